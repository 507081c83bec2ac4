//! One connection, from its first byte to its last: hyper does HTTP, this ends what takes too long.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode, Version, header},
    response::IntoResponse,
};
use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;

use super::{
    Bounds, Overdue, Peer, Stop,
    crowd::Ticket,
    is_draining,
    stream::{SharedPulse, Stream, with},
    tls::{ClientNames, Tls, client_names},
};
use crate::telemetry::ListenerMetrics;

/// Largest head of a request, in bytes, and the most headers in it: beyond either the answer is 431.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;
/// How much of what a peer still sends after our last answer is read and thrown away, and for how long. If the
/// connection were closed under it, the answer might be lost with it (RFC 9112, section 9.6).
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// What all connections of a listener share.
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    http: http1::Builder,
    app: Router,
    bounds: Bounds,
    tls: Option<Arc<Tls>>,
    stop: Stop,
    metrics: ListenerMetrics,
}

impl Connections {
    pub fn new(
        app: Router,
        bounds: Bounds,
        tls: Option<Arc<Tls>>,
        stop: Stop,
        metrics: ListenerMetrics,
    ) -> Self {
        let mut http = http1::Builder::new();
        // hyper's own deadline for a head would hold for idle connections too: the pulse has one for each.
        http.header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .keep_alive(true);
        Self(Arc::new(Shared {
            http,
            app,
            bounds,
            tls,
            stop,
            metrics,
        }))
    }

    /// Serves one connection until it ends.
    pub fn drive(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        pulse: SharedPulse,
        ticket: Ticket,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shared = self.0.clone();
        async move {
            shared.metrics.opened(1);
            match &shared.tls {
                None => shared.http1(stream, Client::new(peer), &pulse, &ticket).await,
                Some(tls) => {
                    if let Some(stream) = shared.shake_hands(tls, stream, &ticket).await {
                        with(&pulse, |pulse| pulse.greeted(Instant::now()));
                        let names = client_names(stream.get_ref().1);
                        shared
                            .http1(stream, Client { peer, names }, &pulse, &ticket)
                            .await;
                    }
                }
            }
            drop(ticket);
            shared.metrics.opened(-1);
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone)]
struct Client {
    peer: SocketAddr,
    names: ClientNames,
}

impl Client {
    fn new(peer: SocketAddr) -> Self {
        let names = ClientNames::default();
        Self { peer, names }
    }
}

impl Shared {
    /// The handshake of TLS, in the time that a head has. Whatever goes wrong in it is the client's affair.
    async fn shake_hands(
        &self,
        tls: &Tls,
        stream: TcpStream,
        ticket: &Ticket,
    ) -> Option<TlsStream<TcpStream>> {
        let handshake = TlsAcceptor::from(tls.config()).accept(stream);
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.bounds.header_timeout, handshake) => shaken,
            () = ticket.leave.notified() => return None,
            () = self.stop.halt.cancelled() => return None,
        };
        match shaken {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
            Err(_) => tracing::debug!("a handshake took too long"),
        }
        self.metrics.closed_by("handshake", 1);
        None
    }

    async fn http1<I>(self: &Arc<Self>, stream: I, client: Client, pulse: &SharedPulse, ticket: &Ticket)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Stream::new(stream, pulse.clone()));
        let service = {
            let (shared, pulse) = (self.clone(), pulse.clone());
            service_fn(move |request| {
                let (shared, pulse, client) = (shared.clone(), pulse.clone(), client.clone());
                async move { Ok::<_, std::convert::Infallible>(shared.answer(request, client, &pulse).await) }
            })
        };
        let mut connection = self.http.serve_connection(io, service);
        let clock = tokio::time::sleep_until(self.next_look(pulse));
        tokio::pin!(clock);
        // Ended while nothing was on its way: nothing can be lost with it.
        let (mut ending, mut quiet) = (false, false);
        loop {
            tokio::select! {
                _ = &mut connection => break,
                () = self.stop.halt.cancelled(), if !ending => {
                    ending = true;
                    quiet = with(pulse, |pulse| pulse.waits_since().is_some());
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = &mut clock => {
                    match with(pulse, |pulse| pulse.due(&self.bounds)) {
                        Some((at, overdue)) if at <= Instant::now() => {
                            self.metrics.closed_by(word(overdue), 1);
                            if overdue != Overdue::Idle || ending {
                                return;
                            }
                            (ending, quiet) = (true, true);
                            Pin::new(&mut connection).graceful_shutdown();
                            clock.as_mut().reset((Instant::now() + LINGER).into());
                        }
                        _ => clock.as_mut().reset(self.next_look(pulse)),
                    }
                }
                () = ticket.leave.notified() => return,
            }
        }
        if !quiet {
            linger(connection.into_parts().io.into_inner().into_inner()).await;
        }
    }

    /// When to look at the pulse next. Each request moves the deadline: it is not followed at each, but looked at when
    /// it could have come.
    fn next_look(&self, pulse: &SharedPulse) -> tokio::time::Instant {
        let due = with(pulse, |pulse| pulse.due(&self.bounds)).map(|(at, _)| at);
        let bounds = &self.bounds;
        let shortest = bounds
            .header_timeout
            .min(bounds.write_timeout)
            .min(bounds.idle_timeout);
        let look = Instant::now() + shortest;
        due.map_or(look, |at| at.min(look)).into()
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        client: Client,
        pulse: &SharedPulse,
    ) -> Response<Body> {
        let serving = Serving::new(pulse);
        let last = serving.number >= self.bounds.requests;
        request.extensions_mut().insert(Peer(client.peer));
        request.extensions_mut().insert(client.names);
        let hostless = request.version() == Version::HTTP_11 && !request.headers().contains_key(header::HOST);
        let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
        let request = request.map(|incoming| {
            Body::new(Followed {
                incoming,
                unread: unread.clone(),
            })
        });
        let mut response = if hostless {
            (StatusCode::BAD_REQUEST, "send a Host\n").into_response()
        } else {
            match self.app.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        };
        // Asked after the answer is made: it may have taken until then. What is left of a body is not read, so that the
        // connection can't be used again.
        if last || hostless || is_draining(&self.stop) || unread.load(Ordering::Relaxed) {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A request's body that tells whether it was read to its end.
struct Followed {
    incoming: Incoming,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.incoming.is_end_stream() {
            self.unread.store(false, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A request that is being served, until it is dropped: hyper drops it when its peer goes.
struct Serving<'a> {
    pulse: &'a SharedPulse,
    number: u32,
}

impl<'a> Serving<'a> {
    fn new(pulse: &'a SharedPulse) -> Self {
        let number = with(pulse, super::pulse::Pulse::begins);
        Self { pulse, number }
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        with(self.pulse, |pulse| pulse.ends(Instant::now()));
    }
}

/// Reads on for a moment after the last answer, so that it arrives.
async fn linger<I: AsyncRead + Unpin>(mut stream: I) {
    let mut scrap = [0; 4096];
    let drained = async {
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut scrap).await {
                Ok(0) | Err(_) => break,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

/// The word for metrics.
fn word(overdue: Overdue) -> &'static str {
    match overdue {
        Overdue::Idle => "idle",
        Overdue::Head => "header_timeout",
        Overdue::Write => "write_timeout",
    }
}
