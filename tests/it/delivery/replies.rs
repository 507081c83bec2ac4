//! In which order replies leave, what becomes of a group and of a conversation when one is given up, and of a channel's
//! backlog when the channel is deleted (Laws 3 and 9): the bridge against the simulators.

use aura_whatsapp_operator::sim::{
    aura::{Behaviour, ReceivedActivity},
    fault::{Endpoint, Fault},
};
use serde_json::{Value, json};

use super::USER;
use crate::support::{Number, REPLY_KEY, SOON, World};

/// Posts a reply as Aura would: with the activity that it answers in the path.
async fn answers(world: &World, activity: &ReceivedActivity, text: &str) {
    let url = format!(
        "http://{}/v3/conversations/{}/activities/{}",
        world.site.internal, activity.conversation_id, activity.id
    );
    let body = json!({"type": "message", "text": text, "channelData": {"channelId": activity.channel_id}});
    let call = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = call
        .post(url)
        .header("authorization", format!("APIKEY {REPLY_KEY}"))
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
}

/// A silent Aura that has these messages of the user.
async fn asked(world: &World, number: &Number, texts: &[&str]) -> Vec<ReceivedActivity> {
    for (n, text) in texts.iter().enumerate() {
        world.kernel.user_sends(&number.digits, USER, text).unwrap();
        world.aura.wait_activities(n + 1, SOON).await.unwrap();
    }
    // That Aura has the last one is known once its end is on disk.
    world.wait_settled().await;
    world.aura.activities()
}

async fn texts(world: &World, n: usize) -> Vec<String> {
    let received = world.wait_received(USER, n).await;
    received.into_iter().map(|message| message.text).collect()
}

async fn with_delivery(prefix: &'static str, delivery: Value) -> (World, Number) {
    let world = World::builder(prefix).aura(Behaviour::Silent).start().await;
    let number = world
        .add("1002", |channel| channel["spec"]["delivery"] = delivery)
        .await;
    world.wait_ready(&number).await;
    (world, number)
}

/// Waits until so many messages were given up.
async fn given_up(world: &World, reason: &str, n: usize) {
    let line = format!("reason=\"{reason}\"");
    world
        .until("messages are given up", async || {
            world.log("bridge").matches(&line).count() == n
        })
        .await;
}

#[tokio::test]
async fn answers_leave_in_the_order_of_the_questions_whichever_aura_has_first() {
    let (world, number) = with_delivery("order-replies", json!({"unansweredAfter": "5m"})).await;
    let asked = asked(&world, &number, &["uno", "dos", "tres"]).await;
    answers(&world, &asked[2], "a tres").await;
    answers(&world, &asked[1], "a dos").await;
    answers(&world, &asked[1], "más a dos").await;
    assert!(world.kernel.received(USER).is_empty(), "they wait for the first");
    answers(&world, &asked[0], "a uno").await;
    assert_eq!(texts(&world, 4).await, ["a uno", "a dos", "más a dos", "a tres"]);
    let overtakes = world
        .metric(world.site.bridge_admin, "aura_whatsapp_reply_overtakes_total")
        .await;
    assert!(overtakes < 0.5);
}

#[tokio::test]
async fn an_answer_waits_for_an_earlier_one_no_longer_than_it_should() {
    let (world, number) = with_delivery("order-bound", json!({"unansweredAfter": "1s"})).await;
    let asked = asked(&world, &number, &["uno", "dos"]).await;
    answers(&world, &asked[1], "a dos").await;
    assert_eq!(texts(&world, 1).await, ["a dos"]);
    let waited = world.kernel.received(USER)[0].at.duration_since(asked[1].at);
    assert!(waited.as_secs_f64() < 5.0, "{waited:?}");
    answers(&world, &asked[0], "a uno").await;
    assert_eq!(texts(&world, 2).await, ["a dos", "a uno"]);
}

#[tokio::test]
async fn as_received_takes_effect_without_a_restart() {
    let (world, number) = with_delivery("order-switch", json!({"unansweredAfter": "5m"})).await;
    let asked = asked(&world, &number, &["uno", "dos"]).await;
    answers(&world, &asked[1], "a dos").await;
    assert!(world.kernel.received(USER).is_empty());
    let as_received = json!({"spec": {"delivery": {"replyOrder": "AsReceived"}}});
    world.patch_channel(&number, as_received).await;
    assert_eq!(texts(&world, 1).await, ["a dos"]);
}

#[tokio::test]
async fn a_refused_reply_takes_the_rest_of_its_answer_with_it() {
    let (world, number) = with_delivery("group", json!({"unansweredAfter": "5m"})).await;
    let asked = asked(&world, &number, &["uno", "dos"]).await;
    answers(&world, &asked[1], "a dos").await;
    // The first part is tried again while the rest comes, then refused.
    world
        .kernel
        .inject(Fault::status(503).retry_after(1).on(Endpoint::Send).times(1));
    world
        .kernel
        .inject(Fault::status(400).on(Endpoint::Send).times(1));
    for part in ["a uno (1/3)", "a uno (2/3)"] {
        answers(&world, &asked[0], part).await;
    }
    given_up(&world, "RefusedByKernel", 1).await;
    given_up(&world, "GroupCancelled", 1).await;
    answers(&world, &asked[0], "a uno (3/3)").await;
    given_up(&world, "GroupCancelled", 2).await;
    assert_eq!(texts(&world, 1).await, ["a dos"]);
}

#[tokio::test]
async fn a_conversation_is_held_after_a_dead_letter_and_another_goes_on() {
    const OTHER: &str = "34600000002";
    let (world, number) = with_delivery("held", json!({"onUndeliverable": "HoldConversation"})).await;
    let asked = asked(&world, &number, &["uno", "dos"]).await;
    world
        .kernel
        .inject(Fault::status(400).on(Endpoint::Send).times(1));
    answers(&world, &asked[0], "a uno").await;
    given_up(&world, "RefusedByKernel", 1).await;
    let held = || world.metric(world.site.bridge_admin, "aura_whatsapp_held_conversations");
    world
        .until("the conversation is held", async || held().await > 0.5)
        .await;
    answers(&world, &asked[1], "a dos").await;
    world.kernel.user_sends(&number.digits, OTHER, "hola").unwrap();
    let theirs = world.aura.wait_activities(3, SOON).await.unwrap().remove(2);
    answers(&world, &theirs, "a ti").await;
    world.wait_received(OTHER, 1).await;
    assert!(world.kernel.received(USER).is_empty());
    // It goes on when the channel says so.
    let going_on = json!({"spec": {"delivery": {"onUndeliverable": "Continue"}}});
    world.patch_channel(&number, going_on).await;
    assert_eq!(texts(&world, 1).await, ["a dos"]);
    assert!(held().await < 0.5);
}

#[tokio::test]
async fn a_deleted_channel_goes_on_delivering_with_what_it_had() {
    let (world, number) = with_delivery("drain", json!({})).await;
    let asked = asked(&world, &number, &["uno"]).await;
    // One conversation, so that there is a token.
    answers(&world, &asked[0], "a uno").await;
    world.wait_received(USER, 1).await;
    world
        .kernel
        .inject(Fault::status(503).retry_after(2).on(Endpoint::Send).times(1));
    answers(&world, &asked[0], "más a uno").await;
    world.kernel.wait_calls(Endpoint::Send, 2, SOON).await.unwrap();
    let gone = "route is gone";
    world
        .channels()
        .delete(&number.name, &Default::default())
        .await
        .unwrap();
    world
        .until("the route is gone", async || world.log("bridge").contains(gone))
        .await;
    assert_eq!(
        world.kernel.received(USER).len(),
        1,
        "the second has not left yet"
    );
    assert_eq!(texts(&world, 2).await, ["a uno", "más a uno"]);
}
