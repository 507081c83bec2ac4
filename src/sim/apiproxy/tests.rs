//! The proxy in front of a small server that is no API server, but answers, streams and counts like one.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Router,
    body::Body,
    extract::State as Extracted,
    http::HeaderMap,
    routing::{get, patch},
};
use futures::stream;
use serde_json::json;

use super::*;

const SOON: Duration = Duration::from_secs(10);
const STATUS: &str = "/apis/g/v1/namespaces/a/whatsappchannels/n/status";
const SECRET: &str = "/api/v1/namespaces/a/secrets/s";
const WATCH: &str = "/api/v1/secrets?watch=true";

struct Upstream {
    proxy: ApiProxy,
    http: reqwest::Client,
    hits: Arc<AtomicUsize>,
}

/// A server that tells who asked, takes a status, and streams two events and then nothing, without an end.
async fn upstream() -> Upstream {
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = |hits: &AtomicUsize| hits.fetch_add(1, Ordering::Relaxed);
    let secret = move |Extracted(hits): Extracted<Arc<AtomicUsize>>, headers: HeaderMap| async move {
        counted(&hits);
        headers["authorization"].to_str().unwrap().to_owned()
    };
    let status = move |Extracted(hits): Extracted<Arc<AtomicUsize>>, body: String| async move {
        counted(&hits);
        body
    };
    let watch = || async {
        let events = stream::iter(["one\n", "two\n"].map(Ok::<_, io::Error>));
        Body::from_stream(futures::StreamExt::chain(events, stream::pending()))
    };
    let router = Router::new()
        .route(SECRET, get(secret))
        .route(STATUS, patch(status))
        .route("/api/v1/secrets", get(watch))
        .with_state(Arc::clone(&hits));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Upstream {
        proxy: ApiProxy::in_front_of(&url, Vec::new()).await.unwrap(),
        http: reqwest::Client::builder()
            .no_proxy()
            .timeout(SOON)
            .build()
            .unwrap(),
        hits,
    }
}

impl Upstream {
    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http
            .get(self.proxy.url() + path)
            .bearer_auth("fake-token-0001")
    }

    fn write(&self, body: &Value) -> reqwest::RequestBuilder {
        self.http.patch(self.proxy.url() + STATUS).body(body.to_string())
    }
}

async fn code(request: reqwest::RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

/// Whether a whole answer comes.
async fn whole(request: reqwest::RequestBuilder) -> bool {
    match request.send().await {
        Ok(answer) => answer.bytes().await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_request_passes_with_the_callers_own_credentials_and_is_noted() {
    let up = upstream().await;
    let answer = up.get(SECRET).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "Bearer fake-token-0001");
    assert_eq!(code(up.get("/api/v1/namespaces/a/secrets/none")).await, 404);
    let seen: Vec<_> = up
        .proxy
        .requests()
        .into_iter()
        .map(|request| (request.verb, request.resource, request.name, request.status))
        .collect();
    let of = |name: &str, status| (Verb::Get, "secrets".to_owned(), name.to_owned(), Some(status));
    assert_eq!(seen, [of("s", 200), of("none", 404)]);
    assert_eq!(up.proxy.count(&Calls::gets().named("s")), 1);
}

#[tokio::test]
async fn writes_to_a_status_are_kept_in_order_with_what_became_of_them() {
    let up = upstream().await;
    let calls = Calls::writes().of("whatsappchannels/status");
    assert_eq!(code(up.write(&json!({"n": 1}))).await, 200);
    up.proxy.inject(calls.clone(), Fault::status(409).times(1));
    assert_eq!(code(up.write(&json!({"n": 2}))).await, 409);
    up.proxy.inject(calls, Fault::reset().after_effect().times(1));
    assert!(up.write(&json!({"n": 3})).send().await.is_err());
    let writes: Vec<_> = up
        .proxy
        .status_writes()
        .iter()
        .map(|write| (write.name.clone(), write.body["n"].clone(), write.status))
        .collect();
    let of = |n: u32, status| ("n".to_owned(), json!(n), status);
    assert_eq!(writes, [of(1, Some(200)), of(2, Some(409)), of(3, None)]);
    // The one that was refused did not arrive; the one whose answer was withheld did.
    assert_eq!(up.hits.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_fault_hits_the_requests_that_are_meant_and_ends_with_its_times() {
    let up = upstream().await;
    let limited = Fault::status(429).retry_after(3).times(1);
    up.proxy.inject(Calls::gets().of("secrets"), limited);
    assert_eq!(code(up.write(&json!({}))).await, 200);
    let answer = up.get(SECRET).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &"3".parse().unwrap())
    );
    let body: Value = answer.json().await.unwrap();
    assert_eq!(
        (&body["kind"], &body["reason"]),
        (&json!("Status"), &json!("TooManyRequests"))
    );
    assert_eq!(code(up.get(SECRET)).await, 200);
    up.proxy.inject(Calls::all(), Fault::status(500));
    assert_eq!(code(up.get(SECRET)).await, 500);
    up.proxy.clear_faults();
    assert_eq!(code(up.get(SECRET)).await, 200);
}

#[tokio::test]
async fn bodies_that_lie_break_drip_or_are_missing() {
    let up = upstream().await;
    let once = |fault: Fault| up.proxy.inject(Calls::all(), fault.times(1));
    once(Fault::garbage());
    let garbage = up.get(SECRET).send().await.unwrap();
    assert_eq!(garbage.status(), 200);
    assert!(garbage.json::<Value>().await.is_err());
    once(Fault::empty());
    assert_eq!(up.get(SECRET).send().await.unwrap().bytes().await.unwrap(), "");
    once(Fault::cut());
    assert!(!whole(up.get(SECRET)).await);
    once(Fault::reset());
    assert!(up.get(SECRET).send().await.is_err());
    once(Fault::hang());
    assert!(
        up.get(SECRET)
            .timeout(Duration::from_millis(50))
            .send()
            .await
            .is_err()
    );
    once(Fault::drip(Duration::from_millis(1)));
    let dripped = up.get(SECRET).send().await.unwrap();
    assert_eq!(dripped.content_length(), Some(22));
    assert_eq!(dripped.text().await.unwrap(), "Bearer fake-token-0001");
    once(Fault::drip(Duration::from_secs(5)));
    let dripping = up.get(SECRET).timeout(Duration::from_millis(200)).send().await;
    assert!(
        dripping.unwrap().bytes().await.unwrap_err().is_timeout(),
        "the head came in time"
    );
    once(Fault::delay(Duration::from_millis(5)));
    assert_eq!(code(up.get(SECRET)).await, 200);
}

#[tokio::test]
async fn a_watch_streams_until_it_is_ended_or_forgotten() {
    let up = upstream().await;
    for (how, last) in [(WatchEnd::Eof, "two\n"), (WatchEnd::Gone, "410")] {
        let mut watch = up.get(WATCH).send().await.unwrap();
        let mut text = String::new();
        while !text.ends_with("two\n") {
            text.push_str(std::str::from_utf8(&watch.chunk().await.unwrap().unwrap()).unwrap());
        }
        up.proxy.end_watches(how);
        while let Some(chunk) = watch.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(text.starts_with("one\ntwo\n") && text.contains(last), "{text}");
    }
    // An ended watch says nothing about the next one.
    let mut watch = up.get(WATCH).send().await.unwrap();
    assert!(watch.chunk().await.unwrap().is_some());
}

#[tokio::test]
async fn a_watch_that_begins_may_be_gone_empty_or_broken() {
    let up = upstream().await;
    let next = |fault: Fault| {
        up.proxy.inject(Calls::watches(), fault.times(1));
        up.get(WATCH).send()
    };
    let gone: Value = next(Fault::gone()).await.unwrap().json().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(next(Fault::empty()).await.unwrap().bytes().await.unwrap(), "");
    assert!(next(Fault::cut()).await.unwrap().bytes().await.is_err());
    let mut dripping = next(Fault::drip(Duration::from_millis(1))).await.unwrap();
    assert_eq!(dripping.chunk().await.unwrap().unwrap(), "o");
    assert_eq!(up.proxy.count(&Calls::watches()), 4);
}

#[tokio::test]
async fn a_stopped_proxy_refuses_connections_and_goes_on_where_it_was() {
    let up = upstream().await;
    let mut watch = up.get(WATCH).send().await.unwrap();
    watch.chunk().await.unwrap();
    let url = up.proxy.url();
    up.proxy.stop().await;
    let ended = async { while let Ok(Some(_)) = watch.chunk().await {} };
    tokio::time::timeout(SOON, ended).await.expect("the watch breaks");
    assert!(up.get(SECRET).send().await.unwrap_err().is_connect());
    up.proxy.restart().await.unwrap();
    assert_eq!(up.proxy.url(), url);
    assert_eq!(code(up.get(SECRET)).await, 200);
    up.proxy.wait_requests(&Calls::all(), 2, SOON).await.unwrap();
}
