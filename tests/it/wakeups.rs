//! Nobody is forgotten, and nobody is woken for nothing.

use std::time::Duration;

use aura_whatsapp_operator::{
    api::conditions::Reason,
    sim::{
        apiproxy::Calls,
        fault::{Endpoint, Fault},
    },
};
use serde_json::json;

use crate::support::{Number, SOON, World, ready};

const PASSES: &str = "aura_whatsapp_reconciles_total";

/// Somebody claims a channel without a right to it: neither of the two is reconciled in turns with the other for ever.
#[tokio::test]
async fn a_claim_without_a_right_keeps_nobody_busy() {
    let world = World::builder("claim").without_bridge().start().await;
    let first = world
        .add("1002", |channel| {
            channel["spec"]["environment"] = json!("nowhere");
        })
        .await;
    world.wait_reason(&first, Reason::EnvironmentUnknown).await;
    let second = world
        .add("1004", |channel| {
            channel["spec"]["channelId"] = json!(first.channel_id);
        })
        .await;
    world.wait_ready(&second).await;
    let controller = world.site.controller_admin;
    let before = world.metric(controller, PASSES).await;
    // A third channel goes all the way: time enough for a loop to show.
    world.ready_number("1006").await;
    let after = world.metric(controller, PASSES).await;
    assert!(
        after - before < 20.0,
        "{} passes for one new channel",
        after - before
    );
}

/// The claim ends while a write hangs, and is renewed all the same: the channel is tried again by itself.
#[tokio::test]
async fn a_write_that_hangs_longer_than_the_claim_lasted_is_made_again() {
    let world = World::builder("hung-write")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let writes = Calls::writes().of("whatsappchannels/status");
    world.proxy().inject(writes, Fault::hang().times(1));
    world.ready_number("1002").await;
}

/// An outage or a hold of an environment turns nobody red, also when its configuration is touched meanwhile.
#[tokio::test]
async fn a_changed_configuration_turns_nobody_red_while_kernel_is_away() {
    let world = World::builder("touched").without_bridge().start().await;
    let number = world.ready_number("1002").await;
    world.kernel.stop().await;
    let path = world.site.dir().join("config.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let touched = text.replace("perSecond: 50", "perSecond: 51");
    assert_ne!(touched, text);
    std::fs::write(&path, touched).unwrap();
    let start = tokio::time::Instant::now();
    let mut last = None;
    while start.elapsed() < Duration::from_secs(8) {
        last = Some(ready(&world.channels().get(&number.name).await.unwrap()));
        assert_eq!(
            last.as_ref().unwrap().0,
            "True",
            "{last:?}\n{}",
            world.log("controller")
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        world.log("controller").contains("the configuration changed"),
        "{last:?}"
    );
}

/// Law 7 holds for every mode: a channel that is up to date costs no call at a restart.
#[tokio::test]
async fn a_restarted_controller_leaves_an_observed_channel_alone() {
    let mut world = World::builder("observed").without_bridge().start().await;
    let number: Number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = json!({"mode": "Observe"});
        })
        .await;
    world.wait_reason(&number, Reason::Observed).await;
    let calls = world.kernel.calls().len();
    world.controller.take().unwrap().stop().await.unwrap();
    world.controller = Some(world.site.start_controller().await.unwrap());
    world.ready_number("1004").await;
    let of_first = world.kernel.calls()[calls..]
        .iter()
        .filter(|call| call.client_id.as_deref() == Some(number.client_id.as_str()))
        .count();
    assert_eq!(of_first, 0, "no call for a channel that is up to date");
}

/// A look that was asked for while nobody's calls got through is made when they do again.
#[tokio::test]
async fn a_look_that_was_asked_for_in_an_outage_is_made_after_it() {
    let world = World::builder("asked").without_bridge().start().await;
    let numbers: Vec<_> = (0..24).map(|n| Number::new(&format!("{}", 1100 + n))).collect();
    world.add_all(&numbers).await;
    for number in &numbers {
        world.wait_ready(number).await;
    }
    let gets = |number: &Number| world.kernel.webhook_gets(&number.client_id);
    world.kernel.stop().await;
    let ask = json!({"metadata": {"annotations": {"channels.auracognitive.com/requestedAt": "outage"}}});
    futures::future::join_all(
        numbers
            .iter()
            .map(|number| world.patch_channel(number, ask.clone())),
    )
    .await;
    // The environment is known to be down: some were told so without a call of their own.
    world.kernel.restart().await.unwrap();
    let before: Vec<_> = numbers.iter().map(gets).collect();
    let start = tokio::time::Instant::now();
    loop {
        let missing: Vec<_> = numbers
            .iter()
            .zip(&before)
            .filter(|(n, before)| gets(n) == **before)
            .collect();
        if missing.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < SOON,
            "{} of {} were never looked at",
            missing.len(),
            numbers.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the configuration allows a call to Kernel is what it gets: a claim that is renewed meanwhile cuts nothing short.
#[tokio::test]
async fn a_slow_kernel_has_the_time_that_the_configuration_gives_it() {
    let world = World::builder("slow")
        .kernel_timeout("15s")
        .without_bridge()
        .start()
        .await;
    let slow = Fault::delay(Duration::from_secs(9))
        .on(Endpoint::WebhookGet)
        .times(1);
    world.kernel.inject(slow);
    let number = world.ready_number("1002").await;
    assert_eq!(
        world.kernel.webhook_gets(&number.client_id),
        1,
        "one look was enough"
    );
}

/// A bridge that was started anew has the credentials of every channel before they are needed, as it has after the first
/// start: the API server may be away when they are.
#[tokio::test]
async fn a_restarted_bridge_reads_the_credentials_ahead_as_well() {
    let mut world = World::builder("ahead").bridge_through_proxy().start().await;
    let number = world.ready_number("1002").await;
    let reads = Calls::gets().of("secrets");
    let count = |world: &World| world.proxy().count(&reads);
    // What the snapshot holds is what the resource says: another start finds nothing new.
    world.converse(&number, "34600000001", "hola", 1).await;
    world.wait_settled().await;
    assert_ne!(count(&world), 0);
    world.bridge.take().unwrap().stop().await.unwrap();
    let before = count(&world);
    world.start_bridge().await;
    let start = tokio::time::Instant::now();
    while count(&world) == before {
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "no Secret was read\n{}",
            world.log("bridge")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
