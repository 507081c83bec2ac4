//! Two controllers of one installation: one leads, the other takes over, and one that was cut off changes nothing
//! afterwards (Law 10).

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::{
        apiproxy::Calls,
        controlplane::Signal,
        dev::site,
        fault::{Endpoint, Fault},
    },
};
use kube::ResourceExt;
use serde_json::json;

use crate::support::{Number, SOON, World};

/// Times of an election that a test can wait for, and long enough for a busy machine.
pub const QUICK: &[&str] = &[
    "--lease-duration",
    "4s",
    "--lease-renew-deadline",
    "3s",
    "--lease-retry-period",
    "500ms",
];

/// Whether the controller with this admin listener leads.
pub async fn leads(world: &World, controller: SocketAddr) -> bool {
    world.metric(controller, "aura_whatsapp_leader").await > 0.0
}

async fn registered_with(world: &World, number: &Number, generation: i64) -> WhatsAppChannel {
    let told = |channel: &WhatsAppChannel| {
        let key = channel.status.as_ref().unwrap().webhook_key.as_ref();
        key.is_some_and(|key| key.generation == Some(generation))
    };
    world
        .wait_for(number, "to be registered with the new key", told)
        .await
}

async fn set_generation(world: &World, number: &Number, generation: i64) {
    let webhook = json!({"keyGeneration": generation});
    world
        .patch_channel(number, json!({"spec": {"webhook": webhook}}))
        .await;
}

#[tokio::test]
async fn of_two_controllers_one_leads_and_the_other_takes_over_when_it_dies() {
    let mut world = World::builder("leader").without_bridge().start().await;
    let second = world.second_controller().await;
    world.ready_number("1002").await;
    let (one, two) = (world.site.controller_admin, second.site.controller_admin);
    assert!(leads(&world, one).await && !leads(&world, two).await);
    for admin in [one, two] {
        assert_eq!(site::get(admin, "/readyz").await.unwrap().0, 200);
    }

    let moment = Instant::now();
    world.controller.take().unwrap().kill9().await.unwrap();
    world
        .until("the second leads", async || leads(&world, two).await)
        .await;
    let took = moment.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?} without a leader");
    world.ready_number("1004").await;
}

#[tokio::test]
async fn a_leader_that_is_told_to_stop_hands_over_at_once() {
    let world = World::builder("hand-over")
        .without_bridge()
        .log_filter("info,aura_whatsapp_operator=debug")
        .start()
        .await;
    let second = world.second_controller().await;
    world.ready_number("1002").await;
    let moment = Instant::now();
    let first = world.controller.as_ref().unwrap();
    first.signal(Signal::TERM).unwrap();
    world
        .until("the second leads", async || {
            leads(&world, second.site.controller_admin).await
        })
        .await;
    let took = moment.elapsed();
    assert!(
        took < Duration::from_secs(3),
        "{took:?} without a leader\n{}",
        world.log("controller")
    );
    assert!(first.wait().await.unwrap().success());
    world.ready_number("1004").await;
}

#[tokio::test]
async fn a_leader_that_was_stopped_and_goes_on_changes_nothing_after_another_took_over() {
    let world = World::builder("paused")
        .through_proxy()
        .without_bridge()
        .log_filter("info,aura_whatsapp_operator=debug")
        .controller_arguments(QUICK)
        .start()
        .await;
    let second = world.second_controller().await;
    let first = world.controller.as_ref().unwrap();
    let (reading, setting) = (world.ready_number("1002").await, world.ready_number("1004").await);
    for (number, at) in [(&reading, Endpoint::WebhookGet), (&setting, Endpoint::WebhookSet)] {
        let slow = Fault::delay(Duration::from_secs(2)).times(1);
        world.kernel.inject(slow.on(at).only_for(&number.client_id));
    }
    let before = world.kernel.call_count();
    set_generation(&world, &reading, 2).await;
    set_generation(&world, &setting, 2).await;
    let under_way = |number: &Number, at: Endpoint| {
        let calls = world.kernel.calls_since(before);
        calls
            .iter()
            .any(|call| call.endpoint == at && call.client_id.as_ref() == Some(&number.client_id))
    };
    world
        .until("a GET and a PATCH are under way", async || {
            under_way(&reading, Endpoint::WebhookGet) && under_way(&setting, Endpoint::WebhookSet)
        })
        .await;
    first.signal(Signal::STOP).unwrap();
    assert_eq!(
        world.kernel.webhook_sets(&reading.client_id),
        1,
        "it was stopped between its check and its PATCH"
    );

    let two = second.site.controller_admin;
    world
        .until("the second leads", async || leads(&world, two).await)
        .await;
    let mut now = Vec::new();
    for number in [&reading, &setting] {
        registered_with(&world, number, 2).await;
        set_generation(&world, number, 3).await;
        let channel = registered_with(&world, number, 3).await;
        now.push((
            number,
            channel.resource_version(),
            world.kernel.webhook_of(&number.client_id),
        ));
    }
    let written = Calls::writes().but("leases");
    let (calls, writes) = (world.kernel.call_count(), world.proxy().count(&written));
    first.signal(Signal::CONT).unwrap();
    let left = |number: &Number| {
        let log = world.log("controller");
        log.lines()
            .any(|line| line.contains("left to the leader") && line.contains(&number.name))
    };
    world
        .until("both passes have ended", async || {
            left(&reading) && left(&setting)
        })
        .await;
    for (number, version, url) in now {
        assert_eq!(world.kernel.webhook_of(&number.client_id), url, "{}", number.name);
        let channel = world.channels().get(&number.name).await.unwrap();
        assert_eq!(channel.resource_version(), version, "{}", number.name);
    }
    assert_eq!(
        world.kernel.call_count(),
        calls,
        "{:?}",
        world.kernel.calls_since(calls)
    );
    assert_eq!(
        world.proxy().count(&written),
        writes,
        "{:#?}",
        world.proxy().requests()
    );

    second.child.stop().await.unwrap();
    world.ready_number("1006").await;
    assert!(leads(&world, world.site.controller_admin).await);
}

#[tokio::test]
async fn a_leader_without_its_api_server_stands_by_and_comes_back_as_a_candidate() {
    let world = World::builder("cut-off")
        .through_proxy()
        .without_bridge()
        .controller_arguments(QUICK)
        .start()
        .await;
    let second = world.second_controller().await;
    let verified = world.ready_number("1002").await;
    let (one, two) = (world.site.controller_admin, second.site.controller_admin);
    assert!(leads(&world, one).await);
    world.proxy().stop().await;
    world
        .until("the second leads, alone", async || {
            leads(&world, two).await && !leads(&world, one).await
        })
        .await;
    let calls = world.kernel.call_count();
    world.ready_number("1004").await;
    world.look_now(&verified, "now").await;
    assert_eq!(
        world.kernel.call_count() - calls,
        5,
        "token, GET and PATCH of the new one, token and GET of the other, all of them the second's: {:?}",
        world.kernel.calls_since(calls)
    );

    let looks = Calls::gets().of("leases");
    let before = world.proxy().count(&looks);
    world.proxy().restart().await.unwrap();
    world
        .proxy()
        .wait_requests(&looks, before + 3, SOON)
        .await
        .unwrap();
    assert!(leads(&world, two).await && !leads(&world, one).await);
    assert!(world.log("controller").contains("no longer leading; standing by"));
    second.child.stop().await.unwrap();
    world.ready_number("1006").await;
    assert!(leads(&world, one).await);
}
