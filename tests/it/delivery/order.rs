//! In order per conversation (Law 3), also where a fifth of the calls fail and some messages never can be delivered.

use std::time::{Duration, Instant};

use aura_whatsapp_operator::sim::{
    aura::{Behaviour, ReceivedActivity},
    fault::Fault,
};
use serde_json::{Value, json};

use super::{USER, call, ended, http, post, text, texts_of};
use crate::support::{SOON, World};

const CONVERSATIONS: usize = 100;
/// Messages of each conversation, where `AURA_ORDER_MESSAGES` says nothing: what fits into a quarter of a minute.
const MESSAGES: usize = 40;
/// Messages of one call.
const BATCH: usize = 50;
/// How long all of it may take.
const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn thousands_of_messages_arrive_once_and_in_order_while_a_fifth_of_the_calls_fail() {
    let messages = std::env::var("AURA_ORDER_MESSAGES").ok();
    let messages = messages.map_or(MESSAGES, |messages| messages.parse().unwrap());
    let world = World::builder("order-many")
        .aura(Behaviour::Silent)
        .log_filter("warn")
        .config("bridge: {channelConcurrency: 64}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    world.aura.inject(Fault::status(503).share(10));
    world.aura.inject(Fault::reset().share(11));
    world.aura.inject(Fault::delay_up_to(Duration::from_millis(10)));
    let start = Instant::now();
    let all: Vec<Value> = (0..CONVERSATIONS * messages)
        .map(|n| {
            let user = format!("34610000{:03}", n % CONVERSATIONS);
            text(&user, &format!("wamid.{n}"), &n.to_string())
        })
        .collect();
    let http = http();
    for batch in all.chunks(BATCH) {
        assert_eq!(post(&http, &url, &call(batch)).await, 200);
    }
    let accepted = start.elapsed();
    let activities = world.aura.wait_activities(all.len(), LONG).await.unwrap();
    let failed = world
        .aura
        .calls()
        .iter()
        .filter(|call| call.status != Some(200))
        .count();
    println!(
        "{} messages accepted in {accepted:.1?}, delivered after {:.1?}; {failed} calls failed",
        all.len(),
        start.elapsed()
    );
    assert!(failed > all.len() / 10, "{failed} calls failed");
    let number = |activity: &ReceivedActivity| activity.text.as_ref()?.parse().ok();
    assert_eq!(world.aura.disorders(number), []);
    assert_eq!((activities.len(), world.aura.duplicates().len()), (all.len(), 0));
}

#[tokio::test]
async fn a_message_that_aura_refuses_is_given_up_at_once_and_holds_up_nobody() {
    let world = World::start("poison").await;
    let (number, other) = (world.ready_number("1002").await, world.ready_number("1004").await);
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    for status in [400, 413, 415, 422] {
        world
            .aura
            .inject(Fault::status(status).times(1).only_for(number.channel_id.clone()));
    }
    let all: Vec<Value> = (0..6)
        .map(|n| text(USER, &format!("wamid.{n}"), &n.to_string()))
        .collect();
    assert_eq!(post(&http(), &url, &call(&all)).await, 200);
    world.converse(&other, "34600000002", "hola", 1).await;
    world.wait_received(USER, 2).await;
    let activities = world.aura.activities();
    assert_eq!(texts_of(&activities, &number), ["4", "5"]);
    let calls = world.aura.calls();
    let poisoned = calls.iter().filter(|call| call.status != Some(200));
    assert_eq!(poisoned.count(), 4, "none was tried again");
    assert_eq!(ended(&world, "dead_letter").await, 4);
    assert!(world.log("bridge").contains("RefusedByAura"));
}

#[tokio::test]
async fn a_message_whose_attempts_are_used_up_is_given_up_and_the_next_one_goes() {
    let world = World::builder("used-up")
        .config("bridge: {deliveryAttempts: 2}")
        .start()
        .await;
    let (number, other) = (world.ready_number("1002").await, world.ready_number("1004").await);
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    world
        .aura
        .inject(Fault::status(500).times(2).only_for(number.channel_id.clone()));
    let two = [text(USER, "wamid.1", "uno"), text(USER, "wamid.2", "dos")];
    assert_eq!(post(&http(), &url, &call(&two)).await, 200);
    world.converse(&other, "34600000002", "hola", 1).await;
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received[0].text, "Echo: dos");
    let refused = world.aura.calls();
    let refused: Vec<_> = refused.iter().filter(|call| call.status == Some(500)).collect();
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0].activity_id, refused[1].activity_id);
    assert_eq!(ended(&world, "dead_letter").await, 1);
    assert!(world.log("bridge").contains("AttemptsExhausted"));
    // It is known for good: the same message again is no new one.
    let again = call(&two[..1]);
    assert_eq!(post(&http(), &url, &again).await, 200);
    let marker = json!({"messages": [text(USER, "wamid.3", "tres")]});
    assert_eq!(post(&http(), &url, &marker).await, 200);
    world.wait_received(USER, 2).await;
    assert_eq!(texts_of(&world.aura.activities(), &number), ["dos", "tres"]);
    world.kernel.wait_all_received(3, SOON).await.unwrap();
}
