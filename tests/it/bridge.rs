//! The bridge's doors: what it takes, what it refuses, and how it says so.

use std::time::Duration;

use aura_whatsapp_operator::sim::{
    aura::Behaviour,
    fault::{Endpoint, Fault},
};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use crate::support::{Number, REPLY_KEY, SOON, World};

const USER: &str = "34600000001";

fn http() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn a_text(id: &str) -> Value {
    json!({"messages": [{"from": USER, "id": id, "timestamp": crate::support::now(), "type": "text", "text": {"body": "hola"}}]})
}

async fn post(url: &str, body: &Value) -> Response {
    http().post(url).json(body).send().await.unwrap()
}

fn retry_after(response: &Response) -> Option<u64> {
    response.headers().get("retry-after")?.to_str().ok()?.parse().ok()
}

/// What a caller can tell of an answer, but for the time.
async fn told(response: Response) -> (u16, Vec<String>, String) {
    let status = response.status().as_u16();
    let mut names: Vec<_> = response.headers().keys().map(ToString::to_string).collect();
    names.sort();
    (status, names, response.text().await.unwrap())
}

#[tokio::test]
async fn a_wrong_key_and_an_unknown_channel_are_one_answer() {
    let world = World::start("refused").await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let (base, _) = url.split_once('?').unwrap();
    let (unknown, key) = (
        Uuid::new_v4(),
        url.split_once("apikey=").unwrap().1.split_once('&').unwrap().0,
    );
    let id = &number.channel_id;
    let wrong = told(post(&format!("{base}?apikey=fake-wrong&channelId={id}"), &a_text("w1")).await).await;
    assert_eq!(wrong.0, 401);
    for query in [
        format!("apikey=fake-wrong&channelId={unknown}"),
        format!("apikey={key}&channelId={unknown}"),
        format!("apikey={key}x&channelId={id}"),
        format!("apikey={key}&apikey={key}&channelId={id}"),
        format!("channelId={id}"),
        String::new(),
    ] {
        assert_eq!(
            told(post(&format!("{base}?{query}"), &a_text("w2")).await).await,
            wrong,
            "{query}"
        );
    }
    assert_eq!(post(&url, &a_text("w3")).await.status(), 200);
}

#[tokio::test]
async fn an_authentic_call_for_a_channel_that_is_not_there_now_is_asked_to_come_back_and_then_arrives() {
    let world = World::start("gone").await;
    let number = world.ready_number("1002").await;
    let mut channel = number.channel();
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    world
        .channels()
        .delete(&number.name, &Default::default())
        .await
        .unwrap();
    // Kernel goes on calling: at least once, until somebody takes it.
    world.kernel.user_sends("1002", USER, "hola").unwrap();
    let refused = async {
        loop {
            let response = post(&url, &a_text("g1")).await;
            if response.status() != 200 {
                return response;
            }
        }
    };
    let response = tokio::time::timeout(SOON, refused).await.expect("the route goes");
    assert_eq!(
        (response.status().as_u16(), retry_after(&response)),
        (503, Some(5))
    );
    channel["metadata"]["name"] = json!("number-1002");
    world.apply(channel).await;
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received[0].client_id, number.client_id);
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer_and_takes_nothing() {
    let world = World::builder("bad-input")
        .config("bridge: {maxBodyBytes: 65536}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let send = |method: Method, kind: &'static str, body: Vec<u8>| {
        let call = http()
            .request(method, &url)
            .header("content-type", kind)
            .body(body)
            .send();
        async move { call.await.unwrap().status().as_u16() }
    };
    let text = || a_text("b1").to_string().into_bytes();
    assert_eq!(send(Method::POST, "text/plain", text()).await, 415);
    assert_eq!(
        send(Method::POST, "application/json", b"{\"messages\":".to_vec()).await,
        400
    );
    assert_eq!(send(Method::POST, "application/json", b"[]".to_vec()).await, 400);
    assert_eq!(send(Method::POST, "application/json", Vec::new()).await, 400);
    assert_eq!(
        send(
            Method::POST,
            "application/json",
            b"{\"messages\":[{\"id\":\"x\"}]}".to_vec()
        )
        .await,
        400
    );
    assert_eq!(
        send(Method::POST, "application/json", vec![b' '; 70_000]).await,
        413
    );
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH] {
        assert_eq!(send(method, "application/json", text()).await, 405);
    }
    let elsewhere = url.replace("/whatsapp/messages", "/whatsapp/other");
    assert_eq!(post(&elsewhere, &a_text("b2")).await.status(), 404);
    assert_eq!(
        send(Method::POST, "application/json; charset=utf-8", text()).await,
        200
    );
    let activities = world.aura.wait_activities(1, SOON).await.unwrap();
    assert_eq!(activities.len(), 1, "only the good one was taken");
}

#[tokio::test]
async fn a_body_without_a_declared_length_is_cut_off_at_the_limit() {
    let world = World::builder("chunked")
        .config("bridge: {maxBodyBytes: 65536}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let target = url
        .strip_prefix(&format!("http://{}", world.site.public))
        .unwrap();
    let mut stream = TcpStream::connect(world.site.public).await.unwrap();
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    for _ in 0..5 {
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_client_that_dawdles_is_shut_out() {
    let world = World::builder("slow")
        .config("bridge: {headerTimeout: 200ms, bodyTimeout: 200ms}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let target = url
        .strip_prefix(&format!("http://{}", world.site.public))
        .unwrap();
    let mut headers = TcpStream::connect(world.site.public).await.unwrap();
    headers.write_all(b"POST / HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, headers.read_to_end(&mut rest))
        .await
        .expect("the connection is closed")
        .unwrap();
    let mut body = TcpStream::connect(world.site.public).await.unwrap();
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{"
    );
    body.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, body.read_to_end(&mut answer))
        .await
        .expect("the connection is closed")
        .unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn the_same_message_twice_is_delivered_once() {
    let world = World::start("twice").await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let same = a_text("wamid.same");
    let answers = futures::future::join_all((0..8).map(|_| post(&url, &same))).await;
    assert!(answers.iter().all(|answer| answer.status() == 200));
    world.wait_received(USER, 1).await;
    assert_eq!(post(&url, &same).await.status(), 200);
    // What comes after in the same lane has arrived: nothing was left between.
    assert_eq!(post(&url, &a_text("wamid.other")).await.status(), 200);
    world.wait_received(USER, 2).await;
    assert_eq!(
        (world.aura.activities().len(), world.aura.duplicates().len()),
        (2, 0)
    );
}

#[tokio::test]
async fn another_kind_of_message_reaches_aura_with_its_payload() {
    let world = World::start("kinds").await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let location = json!({"contacts": [{"wa_id": USER, "profile": {"name": "Ana"}}], "messages": [
        {"from": USER, "id": "wamid.place", "timestamp": crate::support::now(), "type": "location",
         "location": {"latitude": 40.4, "longitude": -3.7, "name": "Kilómetro 0"}},
        {"from": USER, "id": "wamid.new", "type": "hologram", "hologram": {"depth": 3}}]});
    assert_eq!(post(&url, &location).await.status(), 200);
    let activities = world.aura.wait_activities(2, SOON).await.unwrap();
    let payload = |n: usize| activities[n].body["channelData"]["payload"]["whatsapp"].clone();
    assert_eq!(payload(0)["location"]["name"], "Kilómetro 0");
    assert_eq!(payload(1)["hologram"]["depth"], 3);
    assert_eq!(activities[0].body["from"]["name"], "Ana");
    assert!(activities[0].body.get("text").is_none());
}

#[tokio::test]
async fn a_conversation_is_delivered_in_the_order_it_was_accepted_whatever_fails_on_the_way() {
    let world = World::start("order").await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    world.aura.inject(Fault::status(500).times(3));
    for n in 0..10 {
        let mut text = a_text(&format!("wamid.{n}"));
        text["messages"][0]["text"]["body"] = json!(format!("{n}"));
        assert_eq!(post(&url, &text).await.status(), 200);
    }
    world.wait_received(USER, 10).await;
    let texts: Vec<_> = world
        .aura
        .activities()
        .iter()
        .filter_map(|activity| activity.text.clone())
        .collect();
    assert_eq!(texts, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// Posts a reply as Aura would.
async fn reply(world: &World, key: &str, conversation: &str, activity: &Value) -> (u16, Value) {
    answered(reply_call(world, key, conversation, activity)).await
}

fn reply_call(world: &World, key: &str, conversation: &str, activity: &Value) -> RequestBuilder {
    let url = format!(
        "http://{}/v3/conversations/{conversation}/activities",
        world.site.internal
    );
    http()
        .post(url)
        .header("authorization", format!("APIKEY {key}"))
        .json(activity)
}

async fn answered(call: RequestBuilder) -> (u16, Value) {
    let response = call.send().await.unwrap();
    (
        response.status().as_u16(),
        response.json().await.unwrap_or(Value::Null),
    )
}

#[tokio::test]
async fn a_reply_must_come_from_aura_for_a_conversation_of_its_own_channel() {
    let world = World::builder("replies").aura(Behaviour::Silent).start().await;
    let (first, second) = (world.ready_number("1002").await, world.ready_number("1004").await);
    world.kernel.user_sends("1002", USER, "hola").unwrap();
    let activity = world.aura.wait_activities(1, SOON).await.unwrap().remove(0);
    let conversation = activity.body["conversation"]["id"].as_str().unwrap().to_owned();
    assert!(!conversation.contains(USER));
    let answer = |number: &Number| json!({"type": "message", "text": "¡hola!", "channelData": {"channelId": number.channel_id}});

    assert_eq!(
        reply(&world, "fake-wrong-key", &conversation, &answer(&first))
            .await
            .0,
        401
    );
    let (status, body) = reply(
        &world,
        REPLY_KEY,
        "v1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        &answer(&first),
    )
    .await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (404, Some("ConversationNotFound"))
    );
    let (status, body) = reply(&world, REPLY_KEY, &conversation, &answer(&second)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (403, Some("Forbidden")));
    let (status, body) = reply(
        &world,
        REPLY_KEY,
        &conversation,
        &json!({"type": "message", "text": "x"}),
    )
    .await;
    assert_eq!(status, 400);
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("channelData.channelId")
    );
    let (status, _) = reply(
        &world,
        REPLY_KEY,
        &conversation,
        &json!({"type": "typing", "channelData": {"channelId": first.channel_id}}),
    )
    .await;
    assert_eq!(status, 200, "shows nothing, so nothing is sent");
    let (status, body) = reply(&world, REPLY_KEY, &conversation, &answer(&first)).await;
    assert_eq!(status, 200);
    assert!(body["id"].as_str().is_some());
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].text, "¡hola!");
}

#[tokio::test]
async fn a_reply_with_an_id_is_sent_once_however_often_aura_sends_it() {
    let world = World::builder("reply-twice")
        .aura(Behaviour::Silent)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.kernel.user_sends("1002", USER, "hola").unwrap();
    let activity = world.aura.wait_activities(1, SOON).await.unwrap().remove(0);
    let conversation = activity.body["conversation"]["id"].as_str().unwrap().to_owned();
    let answer = |id: &str| json!({"type": "message", "id": id, "text": id, "channelData": {"channelId": number.channel_id}});
    for id in ["one", "one", "two", "one"] {
        assert_eq!(
            reply(&world, REPLY_KEY, &conversation, &answer(id)).await,
            (200, json!({"id": id}))
        );
    }
    let received = world.wait_received(USER, 2).await;
    let texts: Vec<_> = received.iter().map(|message| message.text.clone()).collect();
    assert_eq!(texts, ["one", "two"]);
}

#[tokio::test]
async fn a_reply_that_its_header_alone_tells_from_others_is_answered_alike_and_sent_once() {
    let world = World::builder("reply-header")
        .aura(Behaviour::Silent)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.kernel.user_sends("1002", USER, "hola").unwrap();
    let activity = world.aura.wait_activities(1, SOON).await.unwrap().remove(0);
    let conversation = activity.body["conversation"]["id"].as_str().unwrap().to_owned();
    let answer = |text: &str| json!({"type": "message", "text": text, "channelData": {"channelId": number.channel_id}});
    let mut without_one = answer("two");
    without_one["id"] = "".into();
    for (id, activity) in [("one", answer("one")), ("two", without_one)] {
        for _ in 0..3 {
            let call = reply_call(&world, REPLY_KEY, &conversation, &activity);
            let told = answered(call.header("idempotency-key", id)).await;
            assert_eq!(told, (200, json!({"id": id})));
        }
    }
    // Another header is another reply, and the id is the same wherever it stands.
    let call = reply_call(&world, REPLY_KEY, &conversation, &answer("three"));
    let told = answered(call.header("idempotency-key", "three")).await;
    assert_eq!(told, (200, json!({"id": "three"})));
    let mut named = answer("one");
    named["id"] = "one".into();
    assert_eq!(
        reply(&world, REPLY_KEY, &conversation, &named).await,
        (200, json!({"id": "one"}))
    );
    world.wait_received(USER, 3).await;
    world.wait_settled().await;
    let received = world.kernel.received(USER);
    let texts: Vec<_> = received.iter().map(|message| message.text.as_str()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_channel_on_hold_takes_everything_and_delivers_when_released() {
    let world = World::start("hold").await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["delivery"] = json!({"mode": "Hold"});
        })
        .await;
    world.wait_ready(&number).await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    assert_eq!(post(&url, &a_text("wamid.held")).await.status(), 200);
    let pending = world
        .metric(world.site.bridge_admin, "aura_whatsapp_pending_messages")
        .await;
    assert!((pending - 1.0).abs() < 0.1);
    assert_eq!(world.aura.calls().len(), 0);
    world
        .patch_channel(&number, json!({"spec": {"delivery": {"mode": "Deliver"}}}))
        .await;
    world.wait_received(USER, 1).await;
}

#[tokio::test]
async fn a_channel_whose_aura_side_hangs_does_not_hold_up_another() {
    let world = World::start("neighbour").await;
    let (stuck, fine) = (world.ready_number("1002").await, world.ready_number("1004").await);
    world
        .aura
        .inject(Fault::hang().only_for(stuck.channel_id.clone()));
    for n in 0..40 {
        world
            .kernel
            .user_sends("1002", &format!("3461{n:07}"), "hola")
            .unwrap();
    }
    world.aura.wait_calls(1, SOON).await.unwrap();
    let start = tokio::time::Instant::now();
    let received = world.converse(&fine, USER, "hola", 1).await;
    assert_eq!(received[0].client_id, fine.client_id);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it waited for its neighbour's timeout"
    );
}

/// A channel sends to Kernel no more often than it may, whatever Aura has to say; a reply waits, and none is lost.
#[tokio::test]
async fn a_channel_sends_no_more_messages_a_second_than_it_may() {
    const RATE: usize = 2;
    let world = World::start("paced").await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["delivery"] = json!({"messagesPerSecond": RATE});
        })
        .await;
    world.wait_ready(&number).await;
    let users: Vec<_> = (0..8).map(|n| format!("3460000010{n}")).collect();
    for user in &users {
        world.kernel.user_sends(&number.digits, user, "hola").unwrap();
    }
    for user in &users {
        world.wait_received(user, 1).await;
    }
    let sends: Vec<_> = world
        .kernel
        .calls()
        .into_iter()
        .filter(|call| call.endpoint == Endpoint::Send)
        .map(|call| call.at)
        .collect();
    assert_eq!(sends.len(), users.len());
    for (n, at) in sends.iter().enumerate() {
        let second = jiff::SignedDuration::from_secs(1);
        let within = sends[..=n]
            .iter()
            .filter(|before| at.duration_since(**before) < second);
        // A call may take its time on the way.
        assert!(within.count() <= RATE + 1, "{sends:?}");
    }
}
