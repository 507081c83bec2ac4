//! Watches that end as soon as they begin are begun anew less and less often.
//!
//! The library waits after an error. A watch that merely ends (an answer without a body, a connection that breaks amid
//! an event) is no error to it: it asks again at once, hundreds of times a second for as long as a proxy or a server in
//! trouble goes on like that.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Request, Response};
use tokio::time::Instant;

use super::{around::Around, backoff::WatchBackoff, deadline::is_watch};

/// A watch that is begun so long after the one before on the same path is no repetition. Longer than the longest wait:
/// else a storm would end its own waits.
const APART: Duration = Duration::from_secs(10);

/// Paces the watches of one client.
#[derive(Clone, Default)]
pub(super) struct Pace {
    /// By path: a fixed few for each watched namespace.
    paths: Arc<Mutex<HashMap<String, Begun>>>,
}

#[derive(Default)]
struct Begun {
    last: Option<Instant>,
    waits: WatchBackoff,
}

impl Begun {
    /// When a watch may begin that is asked for now. It counts as begun then.
    fn next(&mut self, now: Instant) -> Instant {
        let at = match self.last {
            Some(last) if now.duration_since(last) < APART => {
                let wait = self.waits.next().unwrap_or(APART);
                now.max(last + wait)
            }
            _ => {
                self.waits = WatchBackoff::default();
                now
            }
        };
        self.last = Some(at);
        at
    }
}

impl Around for Pace {
    /// When it may begin.
    type About = Option<Instant>;

    fn about<B>(&self, request: &Request<B>) -> Self::About {
        is_watch(request).then(|| {
            let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = paths.entry(request.uri().path().to_owned()).or_default();
            begun.next(Instant::now())
        })
    }

    async fn around<R, E>(
        self,
        at: Self::About,
        call: impl Future<Output = Result<Response<R>, E>> + Send,
    ) -> Result<Response<R>, E>
    where
        R: Send,
        E: Send,
    {
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
        call.await
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{Layer, Service, ServiceExt};

    use super::{super::around::AroundLayer, *};

    /// When requests were served, in seconds, of a client that asks again as soon as it is answered.
    async fn served(uris: &[&str]) -> Vec<f64> {
        let start = Instant::now();
        let server = tower::service_fn(move |_: Request<()>| async move {
            Ok::<_, Infallible>(Response::new(start.elapsed()))
        });
        let mut service = AroundLayer(Pace::default()).layer(server);
        let mut times = Vec::new();
        for uri in uris {
            let request = Request::builder().uri(*uri).body(()).unwrap();
            times.push(
                service
                    .ready()
                    .await
                    .unwrap()
                    .call(request)
                    .await
                    .unwrap()
                    .into_body()
                    .as_secs_f64(),
            );
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_are_begun_less_and_less_often() {
        let times = served(&["/a?watch=true"; 12]).await;
        assert!(times[0] < 0.01, "the first at once: {times:?}");
        let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (wait, most) in waits.iter().zip([0.4, 0.8, 1.6, 3.2, 5.0, 5.0]) {
            assert!((most / 2.0 - 0.01..=most + 0.01).contains(wait), "{waits:?}");
        }
        assert!(
            waits[6..].iter().all(|wait| (2.4..5.1).contains(wait)),
            "{waits:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn other_paths_and_other_calls_do_not_wait() {
        let times = served(&["/a?watch=true", "/b?watch=true", "/a", "/a", "/a?watch=false"]).await;
        assert!(times.iter().all(|time| *time < 0.01), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_lived_is_followed_at_once() {
        let start = Instant::now();
        let mut begun = Begun::default();
        assert_eq!(begun.next(start), start);
        assert!(begun.next(start) > start);
        let later = start + Duration::from_secs(290);
        assert_eq!(begun.next(later), later);
        let again = begun.next(later) - later;
        assert!(
            again <= Duration::from_millis(400),
            "its waits begin anew: {again:?}"
        );
    }
}
