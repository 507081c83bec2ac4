//! What a busy API server asks for: `Retry-After` on a 429 or 503 holds for all of a client's calls, so that none of ten
//! thousand passes asks again before that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hyper::{Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::http;

/// The longest that is waited for it: whoever asks for more is asked again.
const LONGEST: Duration = Duration::from_secs(30);

/// Until when the API server has asked to be left alone. A clone is another handle of the same.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<Option<Instant>>>);

impl Asked {
    /// Until when, if that is still to come.
    pub fn until(&self) -> Option<Instant> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| Instant::now() < *until)
    }

    fn note(&self, wait: Duration) {
        let until = Instant::now() + wait.min(LONGEST);
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = Some(asked.map_or(until, |before| before.max(until)));
    }
}

/// Notes what is asked for, and has each call wait for it where that is wanted.
#[derive(Clone)]
pub(super) struct AskedLayer {
    pub asked: Asked,
    /// Whoever has to be quick waits by itself.
    pub waits: bool,
}

#[derive(Clone)]
pub(super) struct Waiting<S> {
    inner: S,
    layer: AskedLayer,
}

impl<S> Layer<S> for AskedLayer {
    type Service = Waiting<S>;

    fn layer(&self, inner: S) -> Waiting<S> {
        Waiting {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, B, R> Service<Request<B>> for Waiting<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send,
    R: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // A future does nothing before it is waited for: the request goes out after the wait.
        let call = self.inner.call(request);
        let AskedLayer { asked, waits } = self.layer.clone();
        async move {
            while waits && let Some(until) = asked.until() {
                tokio::time::sleep_until(until).await;
            }
            let result = call.await;
            if let Ok(answer) = &result
                && matches!(
                    answer.status(),
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                )
                && let Some(wait) = http::retry_after(answer.headers(), Timestamp::now())
            {
                asked.note(wait);
            }
            result
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicU32, Ordering},
    };

    use tower::ServiceExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_one_call_is_asked_for_all_wait_for_but_those_that_must_be_quick() {
        let calls = Arc::new(AtomicU32::new(0));
        let server = tower::service_fn(move |_: Request<()>| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                let answer = Response::builder();
                Ok::<_, Infallible>(if first {
                    answer.status(429).header("Retry-After", "7").body(()).unwrap()
                } else {
                    answer.body(()).unwrap()
                })
            }
        });
        let asked = Asked::default();
        let layer = |waits| AskedLayer {
            asked: asked.clone(),
            waits,
        };
        let (patient, quick) = (layer(true).layer(server.clone()), layer(false).layer(server));
        let start = Instant::now();
        let ask = async |service: Waiting<_>| {
            let answer: Response<()> = service.oneshot(Request::new(())).await.unwrap();
            (answer.status().as_u16(), start.elapsed().as_secs())
        };
        assert_eq!(asked.until(), None);
        assert_eq!(ask(quick.clone()).await, (429, 0));
        assert_eq!(ask(quick).await, (200, 0));
        assert_eq!(ask(patient).await, (200, 7));
        assert_eq!(asked.until(), None);
    }
}
