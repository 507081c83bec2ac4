//! What was acknowledged survives `kill -9` (Law 1), seen from outside: whole processes, real files.

mod kills;
mod load;
mod owner;

use aura_whatsapp_operator::sim::{aura::Behaviour, fault::Fault};
use serde_json::json;

use crate::support::{SOON, World};

const USER: &str = "34600000001";

#[tokio::test]
async fn a_message_acknowledged_just_before_a_kill_reaches_aura_and_its_reply_the_user() {
    let mut world = World::start("kill").await;
    let number = world.ready_number("1002").await;
    // Nothing may leave before the kill: Aura does not answer.
    world.aura.inject(Fault::hang());
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let body = json!({"messages": [{"from": USER, "id": "wamid.kill", "type": "text", "text": {"body": "sobrevive"}}]});
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(&url)
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200, "{}", world.log("bridge"));
    world.kill_bridge().await;
    assert!(
        world.aura.activities().is_empty(),
        "the message was still on its way"
    );

    world.aura.clear_faults();
    world.start_bridge().await;
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received[0].text, "Echo: sobrevive");
    assert_eq!(world.aura.activities().len(), 1);
}

#[tokio::test]
async fn a_reply_acknowledged_just_before_a_kill_reaches_the_user() {
    let mut world = World::start("kill-reply").await;
    let number = world.ready_number("1002").await;
    world
        .kernel
        .inject(Fault::hang().on(aura_whatsapp_operator::sim::fault::Endpoint::Send));
    world.kernel.user_sends(&number.digits, USER, "hola").unwrap();
    world.aura.wait_replies(1, SOON).await.unwrap();
    world.kill_bridge().await;
    world.kernel.clear_faults();
    world.start_bridge().await;
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received.len(), 1);
    assert_eq!(
        world.aura.activities().len(),
        1,
        "what Aura took is not told again"
    );
}

#[tokio::test]
async fn killed_again_and_again_under_load_the_bridge_loses_nothing_and_keeps_the_order() {
    let mut world = World::builder("kill-load").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let users: Vec<String> = (0..4).map(|n| format!("3460000000{n}")).collect();
    let mut sent = 0;
    for round in 0..5 {
        for n in 0..10 {
            for user in &users {
                let text = (round * 10 + n).to_string();
                world.kernel.user_sends(&number.digits, user, &text).unwrap();
                sent += 1;
            }
        }
        // Somewhere in the middle of what is under way.
        world.aura.wait_activities(sent - 20, SOON).await.unwrap();
        world.kill_bridge().await;
        world.start_bridge().await;
    }
    let activities = world.aura.wait_activities(sent, SOON).await.unwrap();
    for user in &users {
        let texts: Vec<u32> = activities
            .iter()
            .filter(|activity| activity.body["from"]["id"] == user.as_str())
            .filter_map(|activity| activity.text.as_ref()?.parse().ok())
            .collect();
        assert_eq!(texts, (0..50).collect::<Vec<u32>>(), "{user}");
    }
}

#[tokio::test]
async fn a_stopped_bridge_ends_what_is_under_way_and_goes() {
    let mut world = World::start("stop").await;
    let number = world.ready_number("1002").await;
    for n in 0..20 {
        world
            .kernel
            .user_sends(&number.digits, &format!("3461{n:07}"), "hola")
            .unwrap();
    }
    let status = world.bridge.take().unwrap().stop_within(SOON).await.unwrap();
    assert!(status.success(), "{status}\n{}", world.log("bridge"));
    world.start_bridge().await;
    world.kernel.wait_all_received(20, SOON).await.unwrap();
    assert_eq!(world.aura.duplicates().len(), 0);
}
