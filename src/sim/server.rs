//! What the simulators and the API server's proxy share: a listener that can be stopped and started again on its port,
//! the place where faults act, and state that can be waited on.
//!
//! It serves hyper connections itself, because a fault must be able to close one without or amid an answer. What is
//! answered is the simulators' concern (`App`), or all of it the proxy's (`Serve`).

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::fault::{Endpoint, Fault, Faults, Kind};

/// The largest request body taken: 3 MB is the largest webhook call that WhatsApp documents.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// A simulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken, or may not be used.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The HTTP client for outgoing calls can't be made.
    #[error("can't make an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// What was waited for did not come in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seen} of {wanted} {what} after {within:?}")]
pub struct Late {
    /// What was waited for.
    pub what: &'static str,
    /// How many were there when time was up.
    pub seen: usize,
    /// How many were waited for.
    pub wanted: usize,
    /// The time given.
    pub within: Duration,
}

/// What a call said of the exchange that it belongs to, in headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// `x-correlator`
    pub correlator: Option<String>,
    /// `idempotency-key`
    pub idempotency_key: Option<String>,
    /// `traceparent`
    pub traceparent: Option<String>,
    /// `tracestate`
    pub tracestate: Option<String>,
}

/// One request, read whole.
pub(crate) struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What it says of the exchange that it belongs to.
    pub fn exchange(&self) -> Exchange {
        let text = |name| self.header(name).map(str::to_owned);
        Exchange {
            correlator: text("x-correlator"),
            idempotency_key: text("idempotency-key"),
            traceparent: text("traceparent"),
            tracestate: text("tracestate"),
        }
    }

    /// The credential of an `Authorization` header of this scheme (schemes are case-insensitive: RFC 9110, 11.1).
    /// More than one header is as good as none.
    pub fn credential(&self, scheme: &str) -> Option<&str> {
        let mut all = self.headers.get_all(AUTHORIZATION).iter();
        let (Some(only), None) = (all.next(), all.next()) else {
            return None;
        };
        let (given, credential) = only.to_str().ok()?.split_once(' ')?;
        given.eq_ignore_ascii_case(scheme).then(|| credential.trim())
    }

    /// Whether the body is declared to be of this media type, with whatever parameters.
    pub fn is(&self, media_type: &str) -> bool {
        let declared = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        declared
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .eq_ignore_ascii_case(media_type)
    }

    pub fn query_value(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    }
}

/// An answer with its whole body.
pub(crate) type Answer = Response<Bytes>;

pub(crate) fn json(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Bytes::from(body.to_string()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// A call that was seen and noted.
pub(crate) struct Arrival {
    pub endpoint: Endpoint,
    /// Whom [`Fault::only_for`] is compared with.
    pub subject: Option<String>,
    /// The ledger's entry.
    pub entry: usize,
}

/// What a simulator answers.
pub(crate) trait App: Send + Sync + 'static {
    fn faults(&self) -> &Faults;
    fn latency(&self) -> Duration;
    /// Notes a call in the ledger. `None`: no endpoint of the simulated system, so no fault and no latency.
    fn arrived(&self, call: &Call) -> Option<Arrival>;
    fn answer(&self, call: &Call) -> impl Future<Output = Answer> + Send;
    /// Notes what was answered; not called when nothing was.
    fn answered(&self, entry: usize, answer: &Answer);
    fn error_body(&self, status: StatusCode) -> Value;
    /// Adds the headers that every answer has.
    fn decorate(&self, _call: &Call, _answer: &mut Answer) {}
}

/// What answers a request as it comes in.
pub(crate) trait Serve: Send + Sync + 'static {
    /// An error closes the connection without an answer.
    fn serve(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Closed>> + Send;
}

impl<A: App> Serve for A {
    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        serve(self, request).await
    }
}

/// A listener on loopback and its connections.
pub(crate) struct Server {
    address: SocketAddr,
    running: Mutex<Option<Running>>,
    up: watch::Sender<bool>,
    /// Held here, by the listener's task, and by each connection.
    connections: Arc<()>,
}

struct Running {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(port: u16, app: Arc<impl Serve>) -> Result<Self, StartError> {
        let connections = Arc::new(());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (address, running) = listen(address, app, &connections).await?;
        Ok(Self {
            address,
            running: Mutex::new(Some(running)),
            up: watch::Sender::new(true),
            connections,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open, or whose last call is still being answered.
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.connections).saturating_sub(2)
    }

    /// True while it listens: what the simulated system does by itself pauses while it doesn't.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Closes the listener and every connection; when this returns, they are closed.
    pub async fn stop(&self) {
        self.up.send_replace(false);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { stop, task }) = running {
            drop(stop);
            let _ = task.await;
        }
    }

    /// Listens again on the same port. Does nothing if it does already.
    pub async fn restart(&self, app: Arc<impl Serve>) -> Result<(), StartError> {
        if self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
        {
            let (_, running) = listen(self.address, app, &self.connections).await?;
            *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        }
        self.up.send_replace(true);
        Ok(())
    }
}

async fn listen(
    address: SocketAddr,
    app: Arc<impl Serve>,
    connections: &Arc<()>,
) -> Result<(SocketAddr, Running), StartError> {
    let listening = async {
        let listener = TcpListener::bind(address).await?;
        Ok((listener.local_addr()?, listener))
    };
    let (address, listener) = listening
        .await
        .map_err(|source| StartError::Listen { address, source })?;
    let stop = CancellationToken::new();
    let task = tokio::spawn(accept(listener, app, Arc::clone(connections), stop.clone()));
    Ok((
        address,
        Running {
            stop: stop.drop_guard(),
            task,
        },
    ))
}

async fn accept(listener: TcpListener, app: Arc<impl Serve>, counted: Arc<()>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (app, counted) = (Arc::clone(&app), Arc::clone(&counted));
                    connections.spawn(async move {
                        connection(stream, app).await;
                        drop(counted);
                    });
                }
                // No file descriptors left, or so: the loop must not spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The service's error: makes hyper close the connection without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    #[error("closed by a fault")]
    Now,
    #[error("closed by a fault, with something before")]
    After(Last),
}

/// What is done with a connection before it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// Something is sent that is no HTTP.
    Malformed,
    /// No more is sent, and the caller is listened to until it goes.
    HalfClose,
}

/// An answer's extension: the connection is closed so long after it.
#[derive(Clone, Copy)]
pub(crate) struct CloseAfter(pub Duration);

async fn connection(stream: TcpStream, app: Arc<impl Serve>) {
    let _ = stream.set_nodelay(true);
    let stream = Arc::new(stream);
    let (last, close) = (Arc::new(Mutex::new(None)), Arc::new(Notify::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let (app, last, close) = (Arc::clone(&app), Arc::clone(&last), Arc::clone(&close));
        async move {
            let served = app.serve(request).await;
            match &served {
                Err(Closed::After(what)) => {
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(*what);
                }
                Ok(answer) => {
                    if let Some(CloseAfter(time)) = answer.extensions().get().copied() {
                        tokio::spawn(async move {
                            tokio::time::sleep(time).await;
                            close.notify_one();
                        });
                    }
                }
                Err(Closed::Now) => {}
            }
            served
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(SharedStream(Arc::clone(&stream))), service);
    // An error here is a caller that went away, or a fault.
    tokio::select! {
        _ = serving => {}
        () = close.notified() => {}
    }
    let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
    match last {
        None => {}
        Some(Last::Malformed) => {
            let _ = SharedStream(stream)
                .write_all(b"SSH-2.0-this is no HTTP\r\n\r\n")
                .await;
        }
        Some(Last::HalfClose) => {
            let mut stream = SharedStream(stream);
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    }
}

/// A connection that outlives hyper's hold on it: what no HTTP server would do is done on it afterwards.
struct SharedStream(Arc<TcpStream>);

impl AsyncRead for SharedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(into.initialize_unfilled()) {
                Ok(read) => {
                    into.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}

async fn serve(app: &impl App, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_LIMIT).collect().await else {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(whole(json(status, &app.error_body(status))));
    };
    let call = Call {
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        method: head.method,
        headers: head.headers,
        body: body.to_bytes(),
    };
    let Some(arrival) = app.arrived(&call) else {
        return Ok(whole(decorated(app, &call).await));
    };
    let fault = app.faults().take(arrival.endpoint, arrival.subject.as_deref());
    // The runtime's timers go by whole milliseconds and round up: half of one is what that adds on average.
    tokio::time::sleep(app.latency().saturating_sub(Duration::from_micros(500))).await;
    let Some(fault) = fault else {
        let answer = decorated(app, &call).await;
        app.answered(arrival.entry, &answer);
        return Ok(whole(answer));
    };
    misbehave(app, &call, &arrival, &fault).await
}

async fn decorated(app: &impl App, call: &Call) -> Answer {
    let mut answer = app.answer(call).await;
    app.decorate(call, &mut answer);
    answer
}

async fn misbehave(
    app: &impl App,
    call: &Call,
    arrival: &Arrival,
    fault: &Fault,
) -> Result<Response<Body>, Closed> {
    let proper = if fault.after_effect {
        Some(decorated(app, call).await)
    } else {
        None
    };
    let answer = match fault.kind {
        Kind::Status(status) => {
            let body = fault.body.clone().unwrap_or_else(|| app.error_body(status));
            let mut answer = json(status, &body);
            if let Some(seconds) = fault.retry_after {
                answer
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            app.decorate(call, &mut answer);
            answer
        }
        Kind::Gone => {
            let mut answer = json(StatusCode::GONE, &app.error_body(StatusCode::GONE));
            app.decorate(call, &mut answer);
            answer
        }
        Kind::Garbage => {
            let mut answer = garbage();
            app.decorate(call, &mut answer);
            answer
        }
        Kind::Empty => {
            let mut answer = Answer::default();
            app.decorate(call, &mut answer);
            answer
        }
        Kind::Delay(time) => {
            tokio::time::sleep(time).await;
            match proper {
                Some(answer) => answer,
                None => decorated(app, call).await,
            }
        }
        Kind::Hang => std::future::pending().await,
        Kind::Reset => return Err(Closed::Now),
        Kind::Cut => {
            let answer = match proper {
                Some(answer) => answer,
                None => decorated(app, call).await,
            };
            return Ok(half(answer));
        }
        Kind::DelayUpTo(time) => {
            tokio::time::sleep(time.mul_f64(fastrand::f64())).await;
            match proper {
                Some(answer) => answer,
                None => decorated(app, call).await,
            }
        }
        Kind::Redirect(ref to) => {
            let status = StatusCode::TEMPORARY_REDIRECT;
            let mut answer = json(status, &app.error_body(status));
            if let Ok(to) = HeaderValue::from_str(to) {
                answer.headers_mut().insert(LOCATION, to);
            }
            answer
        }
        Kind::Endless => {
            let answer = match proper {
                Some(answer) => answer,
                None => decorated(app, call).await,
            };
            app.answered(arrival.entry, &answer);
            return Ok(endless(answer));
        }
        Kind::Malformed => return Err(Closed::After(Last::Malformed)),
        Kind::HalfClose => return Err(Closed::After(Last::HalfClose)),
        Kind::CloseIdle(after) => {
            let mut answer = match proper {
                Some(answer) => answer,
                None => decorated(app, call).await,
            };
            answer.extensions_mut().insert(CloseAfter(after));
            answer
        }
        Kind::Drip(each) => {
            let answer = match proper {
                Some(answer) => answer,
                None => decorated(app, call).await,
            };
            app.answered(arrival.entry, &answer);
            return Ok(dripping(answer, each));
        }
    };
    app.answered(arrival.entry, &answer);
    Ok(whole(answer))
}

/// A 200 that is no JSON.
pub(crate) fn garbage() -> Answer {
    let mut answer = Response::new(Bytes::from_static(b"<html><body>It works!</body></html>"));
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    answer
}

pub(crate) fn whole(answer: Answer) -> Response<Body> {
    answer.map(|body| {
        Full::new(body)
            .map_err(|never: Infallible| match never {})
            .boxed_unsync()
    })
}

/// The head promises the whole body; after half of it the connection breaks.
pub(crate) fn half(answer: Answer) -> Response<Body> {
    let length = answer.body().len();
    let mut answer = answer.map(|body| StreamBody::new(breaking(body.slice(..length / 2))).boxed_unsync());
    answer
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// A piece of a body, and then the connection breaks.
pub(crate) fn breaking(piece: Bytes) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
    let broken = async {
        // What was given so far is on its way before the end: else not even the head would be sent.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    };
    stream::iter([Ok(Frame::data(piece))]).chain(stream::once(broken))
}

/// The head promises the whole body, which comes byte by byte.
pub(crate) fn dripping(answer: Answer, each: Duration) -> Response<Body> {
    let length = answer.body().len();
    let mut answer = answer.map(|body| StreamBody::new(drops(body, each)).boxed_unsync());
    answer
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// The head says nothing of a length, and the body never ends.
pub(crate) fn endless(answer: Answer) -> Response<Body> {
    let chunk = Bytes::from_static(&[b' '; 16 * 1024]);
    answer.map(|body| {
        let more = stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
        StreamBody::new(stream::iter([Ok(Frame::data(body))]).chain(more)).boxed_unsync()
    })
}

/// The bytes of a chunk one by one, each after this time.
pub(crate) fn drops(
    chunk: Bytes,
    each: Duration,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
    stream::unfold(chunk, move |mut left| async move {
        if left.is_empty() {
            return None;
        }
        tokio::time::sleep(each).await;
        let byte = left.split_to(1);
        Some((Ok(Frame::data(byte)), left))
    })
}

/// A client for the calls that a simulated system makes by itself: follows no redirect, uses no proxy.
pub(crate) fn client(timeout: Duration) -> Result<reqwest::Client, StartError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    Ok(builder.timeout(timeout).build()?)
}

/// State under one lock whose every change wakes those who wait for something in it.
pub(crate) struct Shared<T> {
    data: Mutex<T>,
    changed: watch::Sender<()>,
}

impl<T> Shared<T> {
    pub fn new(data: T) -> Self {
        Self {
            data: Mutex::new(data),
            changed: watch::Sender::new(()),
        }
    }

    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.data.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn write<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.data.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        result
    }

    /// Waits until `count` reaches `wanted`.
    pub async fn wait(
        &self,
        what: &'static str,
        wanted: usize,
        within: Duration,
        count: impl Fn(&T) -> usize,
    ) -> Result<(), Late> {
        let mut changes = self.changed.subscribe();
        let enough = async {
            while self.read(&count) < wanted {
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        match tokio::time::timeout(within, enough).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Late {
                what,
                seen: self.read(&count),
                wanted,
                within,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(authorization: &[&str], content_type: &str) -> Call {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        let query = "after=2&name=a%20b".to_owned();
        Call {
            method: Method::GET,
            path: "/".to_owned(),
            query,
            headers,
            body: Bytes::new(),
        }
    }

    #[test]
    fn a_credential_needs_its_scheme_and_must_be_the_only_one() {
        assert_eq!(call(&["bearer abc"], "a/b").credential("Bearer"), Some("abc"));
        assert_eq!(call(&["Basic abc"], "a/b").credential("Bearer"), None);
        assert_eq!(call(&["Bearer"], "a/b").credential("Bearer"), None);
        assert_eq!(call(&["Bearer a", "Bearer b"], "a/b").credential("Bearer"), None);
    }

    #[test]
    fn a_media_type_may_have_parameters() {
        assert!(call(&[], "Application/JSON; charset=utf-8").is("application/json"));
        assert!(!call(&[], "application/jsonp").is("application/json"));
    }

    #[test]
    fn query_values_are_decoded() {
        assert_eq!(call(&[], "a/b").query_value("name").as_deref(), Some("a b"));
        assert_eq!(call(&[], "a/b").query_value("none"), None);
    }

    #[tokio::test]
    async fn waiting_ends_with_the_change_or_says_what_was_there() {
        let shared = Arc::new(Shared::new(vec![1]));
        let late = shared
            .wait("numbers", 2, Duration::ZERO, Vec::len)
            .await
            .unwrap_err();
        assert_eq!(late.to_string(), "1 of 2 numbers after 0ns");
        let waiting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { shared.wait("numbers", 2, Duration::from_secs(5), Vec::len).await }
        });
        tokio::task::yield_now().await;
        shared.write(|numbers| numbers.push(2));
        waiting.await.unwrap().unwrap();
    }
}
