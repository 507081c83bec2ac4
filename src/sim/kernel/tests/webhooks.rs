//! Users who write, the webhook calls this causes, and the control surface.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State as Extract,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::post,
};

use super::*;

type Scripted = (StatusCode, Option<&'static str>);

/// Somebody's webhook: answers as scripted, then 200, and keeps what it was sent.
#[derive(Clone, Default)]
struct Webhook {
    script: Arc<Mutex<VecDeque<Scripted>>>,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Webhook {
    async fn start(script: &[Scripted]) -> (Self, String) {
        let webhook = Self::default();
        webhook.script.lock().unwrap().extend(script.iter().copied());
        let app = Router::new()
            .route("/hook", post(Self::take))
            .with_state(webhook.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "http://{}/hook?apikey=not-a-key&channelId=c",
            listener.local_addr().unwrap()
        );
        tokio::spawn(async move { axum::serve(listener, app).await });
        (webhook, url)
    }

    async fn take(Extract(webhook): Extract<Self>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
        assert_eq!(headers["content-type"], "application/json");
        webhook
            .bodies
            .lock()
            .unwrap()
            .push(serde_json::from_slice(&body).unwrap());
        let next = webhook.script.lock().unwrap().pop_front();
        let (status, header) = next.unwrap_or((StatusCode::OK, None));
        if status == StatusCode::GATEWAY_TIMEOUT {
            std::future::pending::<()>().await;
        }
        let name = if status.is_redirection() {
            "location"
        } else {
            "retry-after"
        };
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(name, value.parse().unwrap());
        }
        (status, headers)
    }

    fn texts(&self) -> Vec<String> {
        let bodies = self.bodies.lock().unwrap();
        bodies
            .iter()
            .filter_map(|body| Some(body["messages"][0]["text"]["body"].as_str()?.to_owned()))
            .collect()
    }
}

fn outcomes(calls: &[WebhookCall]) -> Vec<Outcome> {
    calls.iter().map(|call| call.outcome.clone()).collect()
}

#[tokio::test]
async fn a_users_message_is_posted_in_the_on_premises_form() {
    let world = world(quick()).await;
    let (webhook, url) = Webhook::start(&[]).await;
    world.sim.set_webhook("shop", &url);
    let wamid = world.sim.user_sends("1002", "+34 611 111 111", "hola").unwrap();
    let calls = world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    assert_eq!(
        (calls[0].client_id.as_str(), calls[0].wamid.as_ref()),
        ("shop", Some(&wamid))
    );
    assert_eq!(calls[0].url, url);
    assert!(!format!("{calls:?}").contains("not-a-key"));
    let body = webhook.bodies.lock().unwrap()[0].clone();
    assert_eq!(body["contacts"][0]["wa_id"], USER);
    let message = &body["messages"][0];
    assert_eq!((&message["from"], &message["id"]), (&json!(USER), &json!(wamid)));
    assert_eq!(
        (&message["type"], &message["text"]["body"]),
        (&json!("text"), &json!("hola"))
    );
    assert!(message["timestamp"].as_str().unwrap().parse::<i64>().is_ok());
}

#[tokio::test]
async fn a_call_is_repeated_until_200_and_not_after() {
    let world = world(quick()).await;
    let unavailable = (StatusCode::SERVICE_UNAVAILABLE, None);
    let created = (StatusCode::CREATED, None);
    let moved = (StatusCode::TEMPORARY_REDIRECT, Some("/hook"));
    let (webhook, url) = Webhook::start(&[unavailable, created, moved]).await;
    world.sim.set_webhook("shop", &url);
    let first = world.sim.user_sends("1002", USER, "one").unwrap();
    world.sim.user_sends("1002", USER, "two").unwrap();
    let calls = world.sim.wait_webhook_calls(5, SOON).await.unwrap();
    let statuses = [503, 201, 307, 200, 200].map(Outcome::Status);
    assert_eq!(outcomes(&calls), statuses);
    assert_eq!(
        calls.iter().map(|call| call.attempt).collect::<Vec<_>>(),
        [1, 2, 3, 4, 1]
    );
    assert_eq!(webhook.texts(), ["one", "one", "one", "one", "two"]);
    assert_eq!(world.sim.pending_webhook_calls(), 0);
    world.sim.redeliver(&first).unwrap();
    world.sim.wait_webhook_calls(6, SOON).await.unwrap();
    let bodies = webhook.bodies.lock().unwrap();
    assert_eq!((bodies.len(), &bodies[5]), (6, &bodies[0]));
}

#[tokio::test]
async fn a_call_without_an_answer_is_repeated() {
    let world = world(KernelOptions {
        webhook_timeout: Duration::from_millis(50),
        ..quick()
    })
    .await;
    let (_, url) = Webhook::start(&[(StatusCode::GATEWAY_TIMEOUT, None)]).await;
    world
        .sim
        .set_webhook("shop", "http://127.0.0.1:1/?apikey=not-a-key");
    world.sim.user_sends("1002", USER, "a").unwrap();
    let calls = world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    let Outcome::Failed(why) = &calls[0].outcome else {
        panic!("{calls:?}")
    };
    assert!(!why.contains("not-a-key"));
    world.sim.set_webhook("shop", &url);
    let ended = async {
        let mut n = 2;
        loop {
            let calls = world.sim.wait_webhook_calls(n, SOON).await.unwrap();
            if calls
                .last()
                .is_some_and(|call| call.outcome == Outcome::Status(200))
            {
                return calls;
            }
            n = calls.len() + 1;
        }
    };
    assert!(outcomes(&ended.await).contains(&Outcome::Timeout));
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_the_cap() {
    let world = world(KernelOptions {
        retry_step: Duration::ZERO,
        ..quick()
    })
    .await;
    let (_, url) = Webhook::start(&[(StatusCode::SERVICE_UNAVAILABLE, Some("3600"))]).await;
    world.sim.set_webhook("shop", &url);
    let before = std::time::Instant::now();
    world.sim.user_sends("1002", USER, "a").unwrap();
    world.sim.wait_webhook_calls(2, SOON).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(20));
}

#[tokio::test]
async fn a_call_too_old_is_given_up() {
    let world = world(KernelOptions {
        give_up_after: Duration::ZERO,
        ..quick()
    })
    .await;
    let (webhook, url) = Webhook::start(&[(StatusCode::INTERNAL_SERVER_ERROR, None)]).await;
    world.sim.set_webhook("shop", &url);
    world.sim.user_sends("1002", USER, "lost").unwrap();
    world.sim.user_sends("1002", USER, "kept").unwrap();
    world.sim.wait_webhook_calls(2, SOON).await.unwrap();
    assert_eq!(webhook.texts(), ["lost", "kept"]);
}

#[tokio::test]
async fn without_order_a_failing_message_holds_no_other() {
    let options = KernelOptions {
        sequential: false,
        max_concurrent: 1,
        retry_cap: SOON,
        ..quick()
    };
    let world = world(options).await;
    let (webhook, url) = Webhook::start(&[(StatusCode::SERVICE_UNAVAILABLE, Some("3600"))]).await;
    world.sim.set_webhook("shop", &url);
    world.sim.user_sends("1002", USER, "one").unwrap();
    world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    world.sim.user_sends("1002", USER, "two").unwrap();
    world.sim.wait_webhook_calls(2, SOON).await.unwrap();
    assert_eq!(webhook.texts(), ["one", "two"]);
    assert_eq!(world.sim.pending_webhook_calls(), 1);
}

#[tokio::test]
async fn another_users_messages_do_not_wait() {
    let world = world(KernelOptions {
        retry_cap: SOON,
        ..quick()
    })
    .await;
    let (webhook, url) = Webhook::start(&[(StatusCode::SERVICE_UNAVAILABLE, Some("3600"))]).await;
    world.sim.set_webhook("shop", &url);
    world.sim.user_sends("1002", USER, "one").unwrap();
    world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    world.sim.user_sends("1002", "34622222222", "two").unwrap();
    world.sim.wait_webhook_calls(2, SOON).await.unwrap();
    assert_eq!(webhook.texts(), ["one", "two"]);
}

#[tokio::test]
async fn a_number_must_be_one_clients_and_have_a_webhook() {
    let world = world(quick()).await;
    assert_eq!(
        world.sim.user_sends("1002", USER, "a"),
        Err(NoWebhook::NotSet("shop".to_owned()))
    );
    assert_eq!(
        world.sim.user_sends("9", USER, "a"),
        Err(NoWebhook::UnknownNumber("9".to_owned()))
    );
    assert_eq!(
        world.sim.user_sends("", USER, "a"),
        Err(NoWebhook::UnknownNumber(String::new()))
    );
    assert_eq!(
        world.sim.user_sends("1002", "x", "a"),
        Err(NoWebhook::NoUser("x".to_owned()))
    );
    world.sim.add_client(spec("other", "49600001002"));
    assert_eq!(
        world.sim.user_sends("1002", USER, "a"),
        Err(NoWebhook::AmbiguousNumber("1002".to_owned()))
    );
    let exact = world.sim.user_sends("+34600001002", USER, "a");
    assert_eq!(exact, Err(NoWebhook::NotSet("shop".to_owned())));
    assert_eq!(
        world.sim.redeliver("x"),
        Err(UnknownMessage::NotFound("x".to_owned()))
    );
    assert_eq!(
        world.sim.push_status("x", "read", &[]),
        Err(UnknownMessage::NotFound("x".to_owned()))
    );
}

#[tokio::test]
async fn raw_bodies_and_statuses_are_pushed_too() {
    let world = world(quick()).await;
    let (webhook, url) = Webhook::start(&[]).await;
    world.sim.set_webhook("shop", &url);
    let raw = json!({"errors": [{"code": 1014, "title": "Internal error"}]});
    world.sim.push_raw("1002", raw.clone()).unwrap();
    world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    let token = world.token("shop", MESSAGING).await;
    let mut message = text("a");
    message["biz_opaque_callback_data"] = json!("ref-1");
    world.send(&token, &message).send().await.unwrap();
    let id = world.sim.received(USER)[0].wamid.clone();
    world
        .sim
        .push_status(&id, "failed", &[json!({"code": 470, "title": "t"})])
        .unwrap();
    world.sim.wait_webhook_calls(2, SOON).await.unwrap();
    let bodies = webhook.bodies.lock().unwrap();
    assert_eq!(bodies[0], raw);
    let status = &bodies[1]["statuses"][0];
    assert_eq!(
        (&status["id"], &status["recipient_id"]),
        (&json!(id), &json!(USER))
    );
    assert_eq!(
        (&status["status"], &status["errors"][0]["code"]),
        (&json!("failed"), &json!(470))
    );
    assert_eq!(status["biz_opaque_callback_data"], "ref-1");
}

#[tokio::test]
async fn statuses_of_the_next_message_may_come_before_the_answer_to_its_send() {
    let world = world(quick()).await;
    let (webhook, url) = Webhook::start(&[]).await;
    world.sim.set_webhook("shop", &url);
    let token = world.token("shop", MESSAGING).await;
    let error = json!({"code": 1015, "title": "t"});
    world.sim.report_next(&[("failed", &[error])]);
    let late = Fault::delay(SOON).after_effect();
    world.sim.inject(late.on(Endpoint::Send).times(1));
    let (sim, first) = (world.sim.clone(), world.send(&token, &text("a")));
    let sending = tokio::spawn(first.send());
    sim.wait_webhook_calls(1, SOON).await.unwrap();
    assert!(!sending.is_finished(), "the answer is still to come");
    sending.abort();
    world.send(&token, &text("b")).send().await.unwrap();
    let received = world.sim.received(USER);
    let bodies = webhook.bodies.lock().unwrap();
    assert_eq!((bodies.len(), received.len()), (1, 2));
    let status = &bodies[0]["statuses"][0];
    assert_eq!(
        (&status["id"], &status["errors"][0]["code"]),
        (&json!(received[0].wamid), &json!(1015))
    );
}

#[tokio::test]
async fn a_stopped_kernel_calls_nobody_and_forgets_nothing() {
    let world = world(quick()).await;
    let (webhook, url) = Webhook::start(&[]).await;
    world.sim.set_webhook("shop", &url);
    world.sim.stop().await;
    world.sim.user_sends("1002", USER, "a").unwrap();
    tokio::task::yield_now().await;
    assert!(webhook.texts().is_empty());
    world.sim.restart().await.unwrap();
    world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    assert_eq!(webhook.texts(), ["a"]);
}

#[tokio::test]
async fn another_process_can_play_a_user() {
    let world = world(quick()).await;
    let (webhook, url) = Webhook::start(&[]).await;
    world.sim.set_webhook("shop", &url);
    world.sim.inject(Fault::status(500));
    let send = |body: Value| {
        world
            .http
            .post(format!("{}/sim/users/send", world.sim.url()))
            .json(&body)
    };
    let answer = send(json!({"number": "1002", "from": USER, "text": "a"}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(
        body(answer).await["wamid"]
            .as_str()
            .unwrap()
            .starts_with("wamid.")
    );
    world.sim.wait_webhook_calls(1, SOON).await.unwrap();
    assert_eq!(webhook.texts(), ["a"]);
    refused(
        send(json!({"number": "9", "from": USER, "text": "a"})),
        404,
        "NOT_FOUND",
    )
    .await;
    refused(
        send(json!({"number": "1004", "from": USER, "text": "a"})),
        409,
        "CONFLICT",
    )
    .await;
    refused(send(json!({"number": "1002"})), 400, "INVALID_ARGUMENT").await;
}

#[tokio::test]
async fn a_users_messages_can_be_polled() {
    let world = world(quick()).await;
    let poll = |query: &str| {
        let url = format!("{}/sim/users/{USER}/messages{query}", world.sim.url());
        let request = world.http.get(url);
        tokio::spawn(async move { body(request.send().await.unwrap()).await })
    };
    assert_eq!(poll("").await.unwrap(), json!([]));
    let waiting = poll("?after=0&wait_ms=10000");
    let token = world.token("shop", MESSAGING).await;
    world.send(&token, &text("a")).send().await.unwrap();
    let first = waiting.await.unwrap();
    assert_eq!(
        (&first[0]["text"], &first[0]["from_number"]),
        (&json!("a"), &json!("34600001002"))
    );
    assert_eq!(poll("?after=1&wait_ms=1").await.unwrap(), json!([]));
    let url = format!("{}/sim/users/{USER}/messages?after=x", world.sim.url());
    refused(world.http.get(url), 400, "INVALID_ARGUMENT").await;
}

#[tokio::test]
async fn the_state_is_shown_without_secrets() {
    let world = world(quick()).await;
    world
        .sim
        .set_webhook("shop", "https://example.com/m?apikey=not-a-key");
    let token = world.token("shop", ADMIN).await;
    let state = world
        .http
        .get(format!("{}/sim/state", world.sim.url()))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(state.contains("34600001002") && state.contains("apikey=****"));
    assert!(!state.contains("not-a-") && !state.contains(&token));
    assert!(!format!("{:?}", spec("shop", "1")).contains("not-a-secret"));
}
