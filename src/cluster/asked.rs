//! What a busy API server asks for: `Retry-After` on a 429 or 503 holds for all of a client's calls, so that none of ten
//! thousand passes asks again before that.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::time::Instant;

use super::around::Around;
use crate::http;

/// The longest that is waited for it: whoever asks for more is asked again. A busy API server asks for up to half a minute
/// (API priority and fairness), and a key or a leader may be waiting for the call.
const LONGEST: Duration = Duration::from_secs(10);

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
        if asked.is_none_or(|before| before < Instant::now()) {
            tracing::info!(
                seconds = wait.as_secs(),
                "the API server is busy and asks to be left alone"
            );
        }
        *asked = Some(asked.map_or(until, |before| before.max(until)));
    }
}

/// Notes what is asked for, and has each call wait for it where that is wanted.
#[derive(Clone)]
pub(super) struct Patience {
    pub asked: Asked,
    /// Whoever has to be quick waits by itself.
    pub waits: bool,
}

impl Around for Patience {
    type About = ();

    fn about<B>(&self, _request: &Request<B>) {}

    async fn around<R, E>(
        self,
        (): (),
        call: impl Future<Output = Result<Response<R>, E>> + Send,
    ) -> Result<Response<R>, E>
    where
        R: Send,
        E: Send,
    {
        // Once: a call that others' troubles put off again and again would look stuck.
        if let Some(until) = self.asked.until().filter(|_| self.waits) {
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
            self.asked.note(wait);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicU32, Ordering},
    };

    use tower::{Layer, ServiceExt};

    use super::{
        super::around::{AroundLayer, Surrounded},
        *,
    };

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
        let layer = |waits| {
            AroundLayer(Patience {
                asked: asked.clone(),
                waits,
            })
        };
        let (patient, quick) = (layer(true).layer(server.clone()), layer(false).layer(server));
        let start = Instant::now();
        let ask = async |service: Surrounded<_, _>| {
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
