//! Passing a request on to the API server and its answer back, and doing to either what a fault says.

use std::{
    io,
    sync::{MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{self, HeaderValue},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{ApiRequest, Calls, Chunk, State, Verb, WatchEnd};
use crate::sim::{
    fault::{Fault, Kind},
    server::{
        Answer, Body, CloseAfter, Closed, Last, Serve, breaking, dripping, drops, endless, garbage, half,
        json as answer_json, whole,
    },
};

/// The largest request body that is passed on: the API server takes 3 MiB.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Headers of one connection, not of the request or answer (RFC 9110, 7.6.1), and what the next connection sets itself.
const OF_THE_CONNECTION: &[header::HeaderName] = &[
    header::CONNECTION,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

/// A request, read whole.
struct Given {
    method: Method,
    path_and_query: String,
    headers: HeaderMap,
    body: Bytes,
    verb: Verb,
    /// Its number in the record.
    entry: usize,
}

impl Serve for State {
    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await;
        let body = body.map_err(|_| Closed::Now)?.to_bytes();
        let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
        let request = ApiRequest::new(head.method.as_str(), path, query, Timestamp::now());
        let fault = self.strike(&request);
        let verb = request.verb;
        let status_body = (verb.writes() && request.resource.ends_with("/status"))
            .then(|| serde_json::from_slice::<Value>(&body).unwrap_or_default());
        let entry = self.record.write(|record| {
            let entry = record.requests.len();
            record.requests.push(request);
            record.status_writes.extend(status_body.map(|body| (entry, body)));
            entry
        });
        let given = Given {
            path_and_query: head
                .uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            method: head.method,
            headers: head.headers,
            body,
            verb,
            entry,
        };
        match fault {
            None => self.pass(&given).await,
            Some(fault) => self.misbehave(&given, &fault).await,
        }
    }
}

impl State {
    pub(super) fn faults(&self) -> MutexGuard<'_, Vec<(Calls, Fault)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, request: &ApiRequest) -> Option<Fault> {
        let mut faults = self.faults();
        let taken = faults
            .iter_mut()
            .filter(|(calls, _)| calls.fit(request))
            .find_map(|(_, fault)| fault.strike());
        faults.retain(|(_, fault)| !fault.is_over());
        taken
    }

    fn answered(&self, given: &Given, status: StatusCode) {
        self.record.write(|record| {
            if let Some(request) = record.requests.get_mut(given.entry) {
                request.status = Some(status.as_u16());
            }
        });
    }

    /// The API server's answer, its body still to come. That it is not there closes the connection.
    async fn ask(&self, given: &Given) -> Result<reqwest::Response, Closed> {
        let url = format!(
            "{}{}",
            self.upstream.as_str().trim_end_matches('/'),
            given.path_and_query
        );
        let mut headers = given.headers.clone();
        for name in OF_THE_CONNECTION {
            headers.remove(name);
        }
        self.http
            .request(given.method.clone(), url)
            .headers(headers)
            .body(given.body.clone())
            .send()
            .await
            .map_err(|_| Closed::Now)
    }

    /// Passes a request on, and the answer back as it comes.
    async fn pass(&self, given: &Given) -> Result<Response<Body>, Closed> {
        let answer = self.ask(given).await?;
        self.answered(given, answer.status());
        let ends = (given.verb == Verb::Watch).then(|| self.ends.subscribe());
        let (status, headers) = (answer.status(), kept(answer.headers()));
        Ok(streamed(status, headers, answer_stream(answer, ends)))
    }

    /// The whole answer.
    async fn proper(&self, given: &Given) -> Result<Answer, Closed> {
        let answer = self.ask(given).await?;
        let (status, headers) = (answer.status(), kept(answer.headers()));
        let mut proper = Response::new(answer.bytes().await.map_err(|_| Closed::Now)?);
        *proper.status_mut() = status;
        *proper.headers_mut() = headers;
        Ok(proper)
    }

    async fn misbehave(&self, given: &Given, fault: &Fault) -> Result<Response<Body>, Closed> {
        // A watch has no effect, and its answer no end.
        let watch = given.verb == Verb::Watch;
        if fault.after_effect && !watch {
            self.proper(given).await?;
        }
        let answer = match fault.kind {
            Kind::Delay(time) => {
                tokio::time::sleep(time).await;
                return self.pass(given).await;
            }
            Kind::DelayUpTo(time) => {
                tokio::time::sleep(time.mul_f64(fastrand::f64())).await;
                return self.pass(given).await;
            }
            Kind::Redirect(ref to) => {
                let mut answer = refusal(StatusCode::TEMPORARY_REDIRECT, fault);
                if let Ok(to) = HeaderValue::from_str(to) {
                    answer.headers_mut().insert(header::LOCATION, to);
                }
                answer
            }
            Kind::Endless => return self.proper(given).await.map(endless),
            Kind::Malformed => return Err(Closed::After(Last::Malformed)),
            Kind::HalfClose => return Err(Closed::After(Last::HalfClose)),
            Kind::CloseIdle(after) => {
                let mut answer = self.pass(given).await?;
                answer.extensions_mut().insert(CloseAfter(after));
                return Ok(answer);
            }
            Kind::Hang => std::future::pending().await,
            Kind::Reset => return Err(Closed::Now),
            Kind::Cut if watch => {
                self.answered(given, StatusCode::OK);
                return Ok(broken_event());
            }
            Kind::Cut => return self.proper(given).await.map(half),
            Kind::Drip(each) if watch => {
                let answer = self.ask(given).await?;
                self.answered(given, answer.status());
                let (status, headers) = (answer.status(), kept(answer.headers()));
                let chunks = answer_stream(answer, Some(self.ends.subscribe()));
                let dripping = chunks.flat_map(move |chunk| match chunk.map(Frame::into_data) {
                    Ok(Ok(data)) => drops(data, each).boxed(),
                    Ok(Err(frame)) => stream::iter([Ok(frame)]).boxed(),
                    Err(error) => stream::iter([Err(error)]).boxed(),
                });
                return Ok(streamed(status, headers, dripping));
            }
            Kind::Drip(each) => {
                let answer = self.proper(given).await?;
                self.answered(given, answer.status());
                return Ok(dripping(answer, each));
            }
            Kind::Garbage => garbage(),
            Kind::Empty => Answer::default(),
            Kind::Gone if watch => {
                let mut answer = Answer::new(gone_event());
                let json = HeaderValue::from_static("application/json");
                answer.headers_mut().insert(header::CONTENT_TYPE, json);
                answer
            }
            Kind::Gone => refusal(StatusCode::GONE, fault),
            Kind::Status(status) => refusal(status, fault),
        };
        self.answered(given, answer.status());
        Ok(whole(answer))
    }
}

/// An error as the API server words it.
fn refusal(status: StatusCode, fault: &Fault) -> Answer {
    let body = fault.body.clone().unwrap_or_else(|| status_object(status));
    let mut answer = answer_json(status, &body);
    if let Some(seconds) = fault.retry_after {
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// `metav1.Status`, with the reasons of `k8s.io/apimachinery`.
fn status_object(status: StatusCode) -> Value {
    let reason = match status.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "injected by a test", "reason": reason, "code": status.as_u16(),
    })
}

fn gone_event() -> Bytes {
    let event = json!({"type": "ERROR", "object": status_object(StatusCode::GONE)});
    Bytes::from(format!("{event}\n"))
}

fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers
}

fn streamed(
    status: StatusCode,
    headers: HeaderMap,
    body: impl Stream<Item = Chunk> + Send + 'static,
) -> Response<Body> {
    let mut answer = Response::new(StreamBody::new(body).boxed_unsync());
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// An answer's body as it comes, until it ends or, for a watch, is ended.
fn answer_stream(
    answer: reqwest::Response,
    ends: Option<watch::Receiver<WatchEnd>>,
) -> impl Stream<Item = Chunk> + Send + 'static {
    stream::unfold(Some((answer, ends)), |state| async move {
        let (mut answer, mut ends) = state?;
        let ended = async {
            if let Some(ends) = &mut ends
                && ends.changed().await.is_ok()
            {
                return *ends.borrow();
            }
            std::future::pending().await
        };
        let chunk = tokio::select! {
            biased;
            how = ended => {
                return match how {
                    WatchEnd::Eof => None,
                    WatchEnd::Gone => Some((Ok(Frame::data(gone_event())), None)),
                };
            }
            chunk = answer.chunk() => chunk,
        };
        match chunk {
            Ok(Some(data)) => Some((Ok(Frame::data(data)), Some((answer, ends)))),
            Ok(None) => None,
            Err(_) => Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None)),
        }
    })
}

/// Half an event, and then the connection breaks.
fn broken_event() -> Response<Body> {
    let half = Bytes::from_static(br#"{"type":"MODIFIED","object":{"#);
    let mut answer = Response::new(StreamBody::new(breaking(half)).boxed_unsync());
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
