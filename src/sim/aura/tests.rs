//! The simulated Aura over HTTP: what it takes, what it refuses, and how its replies travel.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::{activity::example, *};

const SOON: Duration = Duration::from_secs(10);
const INBOUND: &str = "not-a-key-in";
const REPLY: &str = "not-a-key-out";
const NOWHERE: &str = "http://127.0.0.1:1";

struct World {
    sim: AuraSim,
    http: reqwest::Client,
}

async fn world(behaviour: Behaviour) -> World {
    let options = AuraOptions {
        behaviour,
        retry_step: Duration::from_millis(2),
        ..AuraOptions::new(INBOUND, REPLY)
    };
    World {
        sim: AuraSim::start(options).await.unwrap(),
        http: client(SOON).unwrap(),
    }
}

impl World {
    fn post(&self, activity: &Value) -> RequestBuilder {
        let request = self.http.post(self.sim.messages_url());
        request
            .header("authorization", format!("APIKEY {INBOUND}"))
            .json(activity)
    }

    async fn takes(&self, activity: &Value) {
        let answer = self.post(activity).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.json::<Value>().await.unwrap(),
            json!({"id": activity["id"]})
        );
    }
}

/// A bridge's internal listener: answers as scripted, then 200, and keeps what it was sent.
#[derive(Clone, Default)]
struct Bridge {
    script: Arc<Mutex<VecDeque<StatusCode>>>,
    replies: Arc<Mutex<Vec<(String, String, Value)>>>,
}

impl Bridge {
    async fn start(script: &[u16]) -> (Self, String) {
        let bridge = Self::default();
        bridge
            .script
            .lock()
            .unwrap()
            .extend(script.iter().map(|code| StatusCode::from_u16(*code).unwrap()));
        let path = "/base/v3/conversations/{conversation}/activities/{activity}";
        let app = Router::new()
            .route(path, post(Self::take))
            .with_state(bridge.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (bridge, url)
    }

    #[expect(clippy::unused_async, reason = "a handler of axum's is")]
    async fn take(
        Extract(bridge): Extract<Self>,
        Path((conversation, activity)): Path<(String, String)>,
        headers: HeaderMap,
        Json(reply): Json<Value>,
    ) -> StatusCode {
        assert_eq!(headers["authorization"], format!("APIKEY {REPLY}"));
        bridge
            .replies
            .lock()
            .unwrap()
            .push((conversation, activity, reply));
        bridge
            .script
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(StatusCode::OK)
    }
}

#[tokio::test]
async fn an_activity_is_taken_and_replied_to_with_a_new_request() {
    let world = world(Behaviour::Echo).await;
    let (bridge, url) = Bridge::start(&[]).await;
    world.takes(&example("wamid.a+b/c=", "una factura", &url)).await;
    let sent = world.sim.wait_replies(1, SOON).await.unwrap();
    assert_eq!((sent[0].attempt, sent[0].status), (1, Some(200)));
    let (conversation, activity, reply) = bridge.replies.lock().unwrap()[0].clone();
    assert_eq!(
        (conversation.as_str(), activity.as_str()),
        ("conv-1", "wamid.a+b/c=")
    );
    assert_eq!(
        (&reply["type"], &reply["id"]),
        (&json!("message"), &json!("conv-1|0000001"))
    );
    assert_eq!(
        (&reply["text"], &reply["replyToId"]),
        (&json!("Echo: una factura"), &json!("wamid.a+b/c="))
    );
    assert_eq!(reply["conversation"], json!({"id": "conv-1"}));
    let data = json!({"channelId": "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42", "correlator": "corr-1"});
    assert_eq!(reply["channelData"], data);
    assert!(reply["from"]["id"].is_string());
}

#[tokio::test]
async fn a_wrong_credential_is_refused() {
    let world = world(Behaviour::Silent).await;
    let activity = example("a", "x", NOWHERE);
    for credential in ["", "APIKEY wrong", "Bearer not-a-key-in", "not-a-key-in"] {
        let request = world
            .http
            .post(world.sim.messages_url())
            .header("authorization", credential);
        assert_eq!(
            request.json(&activity).send().await.unwrap().status(),
            401,
            "{credential}"
        );
    }
    assert!(world.sim.activities().is_empty());
    assert!(world.sim.calls().iter().all(|call| call.status == Some(401)));
}

#[tokio::test]
async fn what_is_no_valid_activity_is_refused() {
    let world = world(Behaviour::Silent).await;
    let mut activity = example("a", "x", NOWHERE);
    activity["channelData"] = json!({});
    assert_eq!(world.post(&activity).send().await.unwrap().status(), 400);
    let json = "application/json";
    let raw = |content_type: &str| {
        let request = world
            .http
            .post(world.sim.messages_url())
            .header("content-type", content_type);
        request
            .header("authorization", format!("APIKEY {INBOUND}"))
            .body("{")
    };
    assert_eq!(raw(json).send().await.unwrap().status(), 400);
    assert_eq!(raw("text/plain").send().await.unwrap().status(), 415);
    assert_eq!(
        world
            .http
            .get(world.sim.messages_url())
            .send()
            .await
            .unwrap()
            .status(),
        405
    );
    assert_eq!(
        world.http.get(world.sim.url()).send().await.unwrap().status(),
        404
    );
    assert!(world.sim.activities().is_empty());
}

#[tokio::test]
async fn a_reply_is_repeated_until_it_is_taken() {
    let world = world(Behaviour::Replies(2)).await;
    let (bridge, url) = Bridge::start(&[503, 401]).await;
    world.takes(&example("a", "x", &url)).await;
    let sent = world.sim.wait_replies(2, SOON).await.unwrap();
    let seen: Vec<_> = sent
        .iter()
        .map(|reply| (reply.text.as_str(), reply.attempt, reply.status))
        .collect();
    let (first, second) = ("Echo: x (1/2)", "Echo: x (2/2)");
    assert_eq!(
        seen,
        [
            (first, 1, Some(503)),
            (first, 2, Some(401)),
            (first, 3, Some(200)),
            (second, 1, Some(200))
        ]
    );
    let ids: Vec<_> = bridge
        .replies
        .lock()
        .unwrap()
        .iter()
        .map(|(_, _, reply)| reply["id"].clone())
        .collect();
    assert_eq!(
        ids,
        [
            "conv-1|0000001",
            "conv-1|0000001",
            "conv-1|0000001",
            "conv-1|0000002"
        ]
    );
}

#[tokio::test]
async fn a_reply_nobody_listens_for_is_repeated_too() {
    let world = world(Behaviour::Echo).await;
    world.takes(&example("a", "x", NOWHERE)).await;
    let sent = world.sim.wait_reply_attempts(2, SOON).await.unwrap();
    assert!(
        sent.iter()
            .all(|reply| reply.status.is_none() && reply.id == "conv-1|0000001")
    );
}

#[tokio::test]
async fn the_same_id_again_is_a_duplicate_without_a_second_reply() {
    let world = world(Behaviour::Echo).await;
    let (bridge, url) = Bridge::start(&[]).await;
    let activity = example("a", "x", &url);
    world.takes(&activity).await;
    world.takes(&activity).await;
    world.takes(&example("b", "y", &url)).await;
    world.sim.wait_duplicates(1, SOON).await.unwrap();
    assert_eq!(world.sim.wait_activities(2, SOON).await.unwrap().len(), 2);
    world.sim.wait_replies(2, SOON).await.unwrap();
    assert_eq!(bridge.replies.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn behaviours_can_be_changed_and_scripted() {
    let world = world(Behaviour::Silent).await;
    let (_bridge, url) = Bridge::start(&[]).await;
    world.takes(&example("a", "x", &url)).await;
    world.sim.set_behaviour(Behaviour::script(|activity| {
        vec![json!({"text": format!("<{}>", activity.id)})]
    }));
    world.takes(&example("b", "x", &url)).await;
    let sent = world.sim.wait_replies(1, SOON).await.unwrap();
    assert_eq!(
        sent.iter().map(|reply| reply.text.as_str()).collect::<Vec<_>>(),
        ["<b>"]
    );
}

#[tokio::test]
async fn disorder_is_seen_per_conversation() {
    let world = world(Behaviour::Silent).await;
    for (id, conversation, text) in [
        ("a", "1", "1"),
        ("b", "2", "5"),
        ("c", "1", "3"),
        ("d", "1", "2"),
        ("e", "2", "6"),
    ] {
        let mut activity = example(id, text, NOWHERE);
        activity["conversation"]["id"] = json!(conversation);
        world.takes(&activity).await;
    }
    let number = |activity: &ReceivedActivity| activity.text.as_ref()?.parse().ok();
    let disorder = Disorder {
        conversation_id: "1".to_owned(),
        before: 3,
        after: 2,
    };
    assert_eq!(world.sim.disorders(number), [disorder]);
    assert_eq!(world.sim.texts("1"), ["1", "3", "2"]);
}

#[tokio::test]
async fn faults_hit_as_they_say() {
    let world = world(Behaviour::Silent).await;
    let mut other = example("b", "x", NOWHERE);
    other["channelData"]["channelId"] = json!("00000000-0000-4000-8000-000000000002");
    let activity = example("a", "x", NOWHERE);
    world.sim.inject(
        Fault::status(503)
            .retry_after(1)
            .only_for("6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42"),
    );
    let answer = world.post(&activity).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    world.takes(&other).await;
    world.sim.clear_faults();
    world
        .sim
        .inject(Fault::reset().after_effect().times(1).on(Endpoint::Messages));
    assert!(world.post(&activity).send().await.is_err());
    world.takes(&activity).await;
    assert_eq!(
        (world.sim.activities().len(), world.sim.duplicates().len()),
        (2, 1)
    );
    let statuses: Vec<_> = world.sim.calls().iter().map(|call| call.status).collect();
    assert_eq!(statuses, [Some(503), Some(200), None, Some(200)]);
}

#[tokio::test]
async fn what_no_server_should_do_is_done_as_it_says() {
    let world = world(Behaviour::Silent).await;
    let activity = example("a", "x", NOWHERE);
    let send = || world.post(&activity).timeout(SOON).send();
    for fault in [Fault::malformed(), Fault::half_close()] {
        world.sim.inject(fault.times(1));
        let error = send().await.unwrap_err();
        assert!(!error.is_timeout() && !error.is_connect(), "{error:?}");
    }
    world
        .sim
        .inject(Fault::redirect("http://127.0.0.1:9/elsewhere").times(1));
    assert_eq!(send().await.unwrap().status(), 307);
    assert!(
        world.sim.activities().is_empty(),
        "none of these has had an effect"
    );

    world.sim.inject(Fault::endless().times(1));
    let mut answer = send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut read = 0;
    while read < 1 << 20 {
        read += answer.chunk().await.unwrap().unwrap().len();
    }
    drop(answer);
    world.sim.inject(Fault::half_close().after_effect().times(1));
    assert!(send().await.is_err());
    assert_eq!(
        (world.sim.activities().len(), world.sim.duplicates().len()),
        (1, 1)
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_a_proper_answer() {
    let world = world(Behaviour::Silent).await;
    world.sim.inject(Fault::close_idle(Duration::ZERO));
    let address = world.sim.url().trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = example("a", "x", NOWHERE).to_string();
    let head = format!(
        "POST /messages HTTP/1.1\r\nhost: x\r\nauthorization: APIKEY {INBOUND}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, format!("{head}{body}").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
    tokio::time::timeout(SOON, reading).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_stopped_aura_refuses_connections_and_replies_after_its_restart() {
    let world = world(Behaviour::Echo).await;
    let (bridge, url) = Bridge::start(&[503]).await;
    let activity = example("a", "x", &url);
    world.takes(&activity).await;
    world.sim.wait_reply_attempts(1, SOON).await.unwrap();
    world.sim.stop().await;
    assert!(world.post(&activity).send().await.unwrap_err().is_connect());
    world.sim.restart().await.unwrap();
    world.sim.wait_replies(1, SOON).await.unwrap();
    assert_eq!(bridge.replies.lock().unwrap().len(), 2);
    world.takes(&activity).await;
    assert_eq!(world.sim.duplicates().len(), 1);
    assert!(!format!("{:?}", world.sim.inner.state.options).contains("not-a-key"));
}
