//! Which watches stand, as seen on the wire: the library tells of objects and of errors, and nothing when a watch that
//! broke is begun anew and all is quiet. Whoever looks at a metric, or has to refuse a call, must know which it is.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::{Request, Response};

use super::{around::Around, deadline::is_watch};

/// One kind of object in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    /// The kind, as the API server's paths have it: `whatsappchannels`, `secrets`.
    pub plural: String,
    /// The namespace; empty for the whole cluster.
    pub namespace: String,
}

/// The watches of one client, and whether each stands. A clone is another handle of the same.
#[derive(Clone, Default)]
pub struct Watches(Arc<State>);

#[derive(Default)]
struct State {
    known: Mutex<BTreeMap<Watched, bool>>,
    all: AtomicBool,
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Watched, bool>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, watched: Watched, stands: bool) {
        let mut known = self.lock();
        known.insert(watched, stands);
        self.0
            .all
            .store(known.values().all(|stands| *stands), Ordering::Relaxed);
    }

    /// Whether there are watches and all of them stand.
    pub fn all_stand(&self) -> bool {
        self.0.all.load(Ordering::Relaxed)
    }

    /// Each watch, and whether it stands.
    pub fn each(&self) -> Vec<(Watched, bool)> {
        self.lock()
            .iter()
            .map(|(watched, stands)| (watched.clone(), *stands))
            .collect()
    }
}

/// What a request lists or watches; `None` for one that is about a single object, or writes.
fn watched<B>(request: &Request<B>) -> Option<Watched> {
    if request.method() != hyper::Method::GET {
        return None;
    }
    // /api/v1/… or /apis/GROUP/VERSION/…, then [namespaces/NAMESPACE/]PLURAL.
    let mut parts = request.uri().path().trim_matches('/').split('/');
    let skip = match parts.next()? {
        "api" => 1,
        "apis" => 2,
        _ => return None,
    };
    let rest: Vec<_> = parts.skip(skip).collect();
    let (namespace, plural) = match rest.as_slice() {
        [plural] => ("", *plural),
        ["namespaces", namespace, plural] => (*namespace, *plural),
        _ => return None,
    };
    Some(Watched {
        plural: plural.to_owned(),
        namespace: namespace.to_owned(),
    })
}

impl Around for Watches {
    /// What is listed or watched, and whether it is a watch.
    type About = Option<(Watched, bool)>;

    fn about<B>(&self, request: &Request<B>) -> Self::About {
        Some((watched(request)?, is_watch(request)))
    }

    async fn around<R, E>(
        self,
        about: Self::About,
        call: impl Future<Output = Result<Response<R>, E>> + Send,
    ) -> Result<Response<R>, E>
    where
        R: Send,
        E: Send,
    {
        let result = call.await;
        if let Some((watched, watch)) = about {
            let answered = result.as_ref().is_ok_and(|answer| answer.status().is_success());
            // A list that succeeds is no watch yet; one that fails leaves none.
            let known = self.lock().contains_key(&watched);
            if watch || (known && !answered) {
                self.note(watched, answered);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::atomic::AtomicU16};

    use tower::{Layer, ServiceExt};

    use super::{super::around::AroundLayer, *};

    #[tokio::test]
    async fn a_watch_stands_from_its_answer_until_one_is_refused() {
        let status = Arc::new(AtomicU16::new(200));
        let answer = status.clone();
        let server = tower::service_fn(move |_: Request<()>| {
            let status = answer.load(Ordering::Relaxed);
            async move { Ok::<_, Infallible>(Response::builder().status(status).body(()).unwrap()) }
        });
        let watches = Watches::default();
        let service = AroundLayer(watches.clone()).layer(server);
        let ask = async |uri: &str| {
            let request = Request::builder().uri(uri).body(()).unwrap();
            service.clone().oneshot(request).await.unwrap();
        };
        assert!(!watches.all_stand(), "there is none");
        let channels = "/apis/g/v1/namespaces/n/whatsappchannels";
        ask(channels).await;
        assert_eq!(watches.each(), [], "a list is no watch");
        ask(&format!("{channels}?watch=true")).await;
        ask("/api/v1/secrets?limit=1&watch=1").await;
        assert!(watches.all_stand());
        let of = |plural: &str, namespace: &str| Watched {
            plural: plural.into(),
            namespace: namespace.into(),
        };
        status.store(503, Ordering::Relaxed);
        ask("/api/v1/namespaces/n/secrets/one").await;
        assert!(watches.all_stand(), "that was about a single object");
        ask(&format!("{channels}?limit=500")).await;
        assert_eq!(
            watches.each(),
            [(of("secrets", ""), true), (of("whatsappchannels", "n"), false)]
        );
        assert!(!watches.all_stand());
        status.store(200, Ordering::Relaxed);
        ask(channels).await;
        assert!(!watches.all_stand(), "it is listed, not watched yet");
        ask(&format!("{channels}?watch=true")).await;
        assert!(watches.all_stand());
    }
}
