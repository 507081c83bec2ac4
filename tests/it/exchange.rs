//! What ties a message to the exchange that it belongs to: the caller's trace and correlator, kept with the message and
//! carried on with each attempt to deliver it (W3C Trace Context, `x-correlator`).

use aura_whatsapp_operator::sim::{
    aura::{Behaviour, ReceivedActivity},
    dev::site,
    fault::{Endpoint, Fault},
    server::Exchange,
};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::support::{Number, REPLY_KEY, SOON, World, now};

const USER: &str = "34600000001";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const STATE: &str = "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7";
const CORRELATOR: &str = "corr-of-kernel-1";

fn http() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn parent() -> String {
    format!("00-{TRACE}-{SPAN}-01")
}

/// Kernel's call with one text and these headers.
async fn push(world: &World, number: &Number, id: &str, headers: &[(&str, &str)]) -> Response {
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let text = json!({"from": USER, "id": id, "timestamp": now(), "type": "text", "text": {"body": "hola"}});
    let call = http().post(url).json(&json!({"messages": [text]}));
    let call = headers
        .iter()
        .fold(call, |call, (name, value)| call.header(*name, *value));
    call.send().await.unwrap()
}

/// Aura's reply to an activity.
async fn reply(
    world: &World,
    activity: &ReceivedActivity,
    headers: &[(&str, &str)],
    correlator: Option<&str>,
) -> Response {
    let url = format!(
        "http://{}/v3/conversations/{}/activities/{}",
        world.site.internal, activity.conversation_id, activity.id
    );
    let mut data = json!({"channelId": activity.channel_id});
    if let Some(correlator) = correlator {
        data["correlator"] = correlator.into();
    }
    let call = http()
        .post(url)
        .header("authorization", format!("APIKEY {REPLY_KEY}"))
        .json(&json!({"type": "message", "text": "buenas", "channelData": data}));
    let call = headers
        .iter()
        .fold(call, |call, (name, value)| call.header(*name, *value));
    call.send().await.unwrap()
}

fn said_back(response: &Response) -> Option<&str> {
    response.headers().get("x-correlator")?.to_str().ok()
}

/// The parts of a `traceparent`.
fn parts(exchange: &Exchange) -> Vec<&str> {
    exchange.traceparent.as_deref().unwrap().split('-').collect()
}

/// What the messages listener tells of a message by one of its ids.
async fn trace(world: &World, id: &str) -> Value {
    let (status, text) = site::get(world.site.messages, &format!("/v1/trace/{id}"))
        .await
        .unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The attempts of one message all belong to its trace, each as a span of its own, and have one key and correlator.
fn one_trace(attempts: &[Exchange], correlator: &str) {
    let [first, second] = attempts else {
        panic!("two attempts: {attempts:?}")
    };
    for attempt in attempts {
        let [version, trace, span, flags] = parts(attempt)[..] else {
            panic!("{attempt:?}")
        };
        assert_eq!((version, trace, flags), ("00", TRACE, "01"));
        assert_ne!(span, SPAN, "it is the caller's");
        assert_eq!(attempt.tracestate.as_deref(), Some(STATE));
        assert_eq!(attempt.correlator.as_deref(), Some(correlator));
    }
    assert_ne!(parts(first)[2], parts(second)[2], "each attempt is a span");
    assert!(first.idempotency_key.is_some());
    assert_eq!(first.idempotency_key, second.idempotency_key);
    assert_ne!(first.idempotency_key.as_deref(), Some(correlator));
}

/// The lines of the bridge's log with this message that are about this correlator.
fn logged(world: &World, message: &str, correlator: &str) -> Vec<String> {
    let correlator = format!("correlator=\"{correlator}\"");
    let log = world.log("bridge");
    let lines = log
        .lines()
        .filter(|line| line.contains(message) && line.contains(&correlator));
    lines.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn each_attempt_both_ways_continues_the_callers_trace_and_has_its_correlator() {
    let world = World::builder("exchange").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let headers = [
        ("traceparent", &*parent()),
        ("tracestate", STATE),
        ("x-correlator", CORRELATOR),
    ];
    world.aura.inject(Fault::status(503).times(1));
    let answer = push(&world, &number, "wamid.one", &headers).await;
    assert_eq!(
        (answer.status().as_u16(), said_back(&answer)),
        (200, Some(CORRELATOR))
    );
    let activity = world.aura.wait_activities(1, SOON).await.unwrap().remove(0);
    assert_eq!(activity.correlator.as_deref(), Some(CORRELATOR));
    let attempts: Vec<_> = world.aura.calls().into_iter().map(|call| call.exchange).collect();
    one_trace(&attempts, CORRELATOR);
    assert_eq!(attempts[0].idempotency_key.as_ref(), Some(&activity.id));

    // Aura's answer is of the same trace, and has a correlator of its own.
    let own = "corr-of-aura-1";
    let headers = [
        ("traceparent", &*parent()),
        ("tracestate", STATE),
        ("x-correlator", own),
    ];
    world
        .kernel
        .inject(Fault::status(503).on(Endpoint::Send).times(1));
    let answer = reply(&world, &activity, &headers, Some("not-this-one")).await;
    assert_eq!((answer.status().as_u16(), said_back(&answer)), (200, Some(own)));
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received[0].correlator.as_deref(), Some(own));
    let sends: Vec<_> = world
        .kernel
        .sends()
        .into_iter()
        .map(|call| call.exchange)
        .collect();
    one_trace(&sends, own);
    let calls = world.kernel.calls();
    let tokens = calls.iter().filter(|call| call.endpoint == Endpoint::Token);
    for token in tokens {
        assert_eq!(token.exchange.traceparent, None, "a token is for many messages");
    }
    world.wait_settled().await;

    // Who looks finds both by what they are known by elsewhere.
    for (correlator, direction, attempts) in [(CORRELATOR, "to_aura", &attempts), (own, "to_user", &sends)] {
        let told = trace(&world, correlator).await;
        assert_eq!(
            (&told["traceId"], &told["correlator"]),
            (&json!(TRACE), &json!(correlator))
        );
        let failed = logged(&world, "an attempt failed", correlator);
        assert_eq!(failed.len(), 1, "{}", world.log("bridge"));
        for part in [
            format!("direction=\"{direction}\""),
            format!("trace_id={TRACE}"),
            format!("span_id={}", parts(&attempts[0])[2]),
        ] {
            assert!(failed[0].contains(&part), "{part}: {}", failed[0]);
        }
        let delivered = logged(&world, " delivered ", correlator);
        assert_eq!(delivered.len(), 1, "{}", world.log("bridge"));
        assert!(
            delivered[0].contains(&format!("trace_id={TRACE}")),
            "{}",
            delivered[0]
        );
    }
    let sent = trace(&world, own).await;
    let (_, shown) = site::get(world.site.messages, &format!("/v1/messages/{}", sent["seq"]))
        .await
        .unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["traceId"], &shown["correlator"]),
        (&json!(TRACE), &json!(own))
    );
}

#[tokio::test]
async fn what_came_with_a_message_is_still_with_it_after_a_kill() {
    let mut world = World::builder("exchange-kill")
        .aura(Behaviour::Silent)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.aura.stop().await;
    // As long as they may be.
    let state = format!("a={},b={}", "1".repeat(250), "2".repeat(256));
    let correlator = "c".repeat(256);
    let headers = [
        ("traceparent", &*parent()),
        ("tracestate", &*state),
        ("x-correlator", &*correlator),
    ];
    assert_eq!(push(&world, &number, "wamid.one", &headers).await.status(), 200);
    world.kill_bridge().await;
    world.start_bridge().await;
    let (_, kept) = site::get(world.site.messages, &format!("/v1/trace/{correlator}"))
        .await
        .unwrap();
    assert!(kept.contains(TRACE), "the journal finds it: {kept}");
    world.aura.restart().await.unwrap();
    world.aura.wait_activities(1, SOON).await.unwrap();
    let calls = world.aura.calls();
    let carried = &calls.last().unwrap().exchange;
    assert_eq!(parts(carried)[1], TRACE);
    assert_eq!(carried.tracestate.as_deref(), Some(&*state));
    assert_eq!(carried.correlator.as_deref(), Some(&*correlator));
}

#[tokio::test]
async fn one_correlator_ties_a_message_to_its_answers_and_each_send_has_a_key_of_its_own() {
    let world = World::builder("exchange-all")
        .aura(Behaviour::Replies(2))
        .start()
        .await;
    let number = world.ready_number("1002").await;
    // Aura says it back where its activities have it.
    let headers = [("x-correlator", CORRELATOR)];
    assert_eq!(push(&world, &number, "wamid.one", &headers).await.status(), 200);
    let received = world.wait_received(USER, 2).await;
    for message in &received {
        assert_eq!(message.correlator.as_deref(), Some(CORRELATOR));
    }
    assert_ne!(received[0].idempotency_key, received[1].idempotency_key);
    assert_eq!(
        world.aura.calls()[0].exchange.traceparent,
        None,
        "no trace is begun"
    );

    // Who sends none: the activity's id ties them.
    assert_eq!(said_back(&push(&world, &number, "wamid.two", &[]).await), None);
    let activity = world.aura.wait_activities(2, SOON).await.unwrap().remove(1);
    let received = world.wait_received(USER, 4).await;
    assert_eq!(activity.correlator.as_ref(), Some(&activity.id));
    assert_eq!(received[2].correlator.as_ref(), Some(&activity.id));
    assert_eq!(
        world.aura.calls()[1].exchange.correlator.as_ref(),
        Some(&activity.id)
    );
    // Aura's reply of its own accord has none at all: its key ties it.
    let answer = reply(&world, &activity, &[], None).await;
    assert_eq!((answer.status().as_u16(), said_back(&answer)), (200, None));
    let received = world.wait_received(USER, 5).await;
    assert!(received[4].correlator.is_some());
    assert_eq!(received[4].correlator, received[4].idempotency_key);
}

#[tokio::test]
async fn what_is_not_valid_or_tells_of_a_user_is_left_out_and_the_message_is_taken() {
    let world = World::builder("exchange-odd")
        .aura(Behaviour::Silent)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let (of_user, zeros, long) = (format!("for-{USER}-1"), "0".repeat(32), "c".repeat(257));
    let parent = parent();
    let zero = parent.replace(TRACE, &zeros);
    let two = [
        ("traceparent", &*parent),
        ("traceparent", &*parent),
        ("tracestate", STATE),
    ];
    let cases: [&[(&str, &str)]; 6] = [
        &[("traceparent", &zero), ("x-correlator", &of_user)],
        &[("traceparent", "00-what-01"), ("x-correlator", "a b")],
        &[("tracestate", STATE), ("x-correlator", &long)],
        &two,
        &[("x-correlator", "wamid.HBgLMzQ2MDAwMDAwMDE")],
        &[("x-correlator", "one"), ("x-correlator", "two")],
    ];
    for (n, headers) in cases.iter().enumerate() {
        let answer = push(&world, &number, &format!("wamid.{n}"), headers).await;
        assert_eq!(answer.status(), 200, "{headers:?}");
        let activity = world.aura.wait_activities(n + 1, SOON).await.unwrap().remove(n);
        let carried = world.aura.calls().remove(n).exchange;
        assert_eq!(
            (carried.traceparent, carried.tracestate),
            (None, None),
            "{headers:?}"
        );
        assert_eq!(carried.correlator.as_ref(), Some(&activity.id), "{headers:?}");
    }
    assert!(!world.log("bridge").contains(USER), "{}", world.log("bridge"));
    // A later version of the standard, and more of it than is passed on.
    let later = parent.replacen("00", "cc", 1) + "-more";
    let state = (0..32).fold(String::new(), |all, n| format!("{all}k{n}={},", "v".repeat(40)));
    push(
        &world,
        &number,
        "wamid.later",
        &[("traceparent", &later), ("tracestate", &state)],
    )
    .await;
    world.aura.wait_activities(cases.len() + 1, SOON).await.unwrap();
    let carried = world.aura.calls().remove(cases.len()).exchange;
    assert_eq!(parts(&carried)[..2], ["00", TRACE]);
    let cut = carried.tracestate.unwrap();
    assert!(cut.len() <= 512 && state.starts_with(&cut), "{cut}");

    // Nothing is said back to who is not known.
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let call = http().post(format!("{url}x")).header("x-correlator", CORRELATOR);
    let answer = call.json(&json!({})).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), said_back(&answer)), (401, None));
}
