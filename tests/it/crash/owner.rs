//! A volume has one owner: a second bridge on it is refused, whatever state the first one is in, and a volume that can't be
//! written is told of.

use std::os::unix::fs::symlink;

use aura_whatsapp_operator::sim::{
    aura::{Behaviour, ReceivedActivity},
    dev::site,
};
use rustix::process::Signal;
use serde_json::json;

use crate::support::{SOON, World, now};

/// Starts a bridge that can't: its exit status and what it said last.
async fn refused(world: &World) -> (Option<i32>, String) {
    let child = world.site.spawn_bridge().await.unwrap();
    let status = tokio::time::timeout(SOON, child.wait()).await.expect("it ends");
    (status.unwrap().code(), child.output(5))
}

#[tokio::test]
async fn a_second_bridge_on_a_volume_is_refused_also_while_the_first_one_stands_still() {
    const MESSAGES: usize = 40;
    let world = World::builder("owner").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    world.aura.set_latency(std::time::Duration::from_millis(5));
    let messages: Vec<_> = (0..MESSAGES)
        .map(|n| {
            json!({"from": "34600000001", "id": format!("wamid.{n}"), "timestamp": now(), "type": "text",
                "text": {"body": n.to_string()}})
        })
        .collect();
    let answer = http
        .post(&url)
        .json(&json!({"messages": messages}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    world.aura.wait_activities(3, SOON).await.unwrap();

    // In the middle of its work, with most of the lane before it.
    let first = world.bridge.as_ref().unwrap();
    first.signal(Signal::STOP).unwrap();
    let (code, said) = refused(&world).await;
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(
        said.contains("data/journal is in use by another process"),
        "{said}"
    );
    let before = world.aura.activities().len();
    assert!(before < MESSAGES, "{before} had left before it stood still");
    first.signal(Signal::CONT).unwrap();

    let activities = world.aura.wait_activities(MESSAGES, SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!((activities.len(), world.aura.duplicates().len()), (MESSAGES, 0));
    let number = |activity: &ReceivedActivity| activity.text.as_ref()?.parse().ok();
    assert_eq!(world.aura.disorders(number), []);
    // And while it works.
    assert!(refused(&world).await.1.contains("is in use by another process"));
    assert_eq!(
        site::get(world.site.bridge_admin, "/readyz").await.unwrap().0,
        200
    );
}

#[tokio::test]
async fn a_bridge_whose_volume_takes_no_file_says_so_and_does_not_start() {
    let mut world = World::start("no-volume").await;
    world.bridge.take().unwrap().stop().await.unwrap();
    let journal = world.site.dir().join("data").join("journal");
    std::fs::remove_dir_all(&journal).unwrap();
    // No file can be made there, by nobody: as on a volume that was mounted again to be read only.
    symlink("/sys/kernel", &journal).unwrap();
    let (code, said) = refused(&world).await;
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(
        said.contains("the journal in") && said.contains("data/journal"),
        "{said}"
    );
    assert!(
        ["ermission denied", "ead-only file system", "not permitted"]
            .iter()
            .any(|why| said.contains(why)),
        "{said}"
    );
    assert!(
        site::get(world.site.bridge_admin, "/healthz").await.is_none(),
        "nothing listens"
    );
}
