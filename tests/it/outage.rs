//! While a neighbour is away: what goes on, what waits, and that all recovers by itself (Law 8).

use std::net::SocketAddr;

use aura_whatsapp_operator::{
    api::conditions::Reason,
    sim::fault::{Endpoint, Fault},
};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::json;

use crate::support::{SOON, World, condition, private_cluster, ready};

const USER: &str = "34600000001";

#[tokio::test]
async fn with_the_api_server_stopped_the_bridge_still_routes_also_after_its_own_restart() {
    let cluster = private_cluster().await;
    let mut world = World::builder("no-api").start_on(&cluster).await;
    let number = world.ready_number("1002").await;
    // One conversation, so that the credentials have been read.
    world.converse(&number, USER, "uno", 1).await;

    cluster.control_plane.stop_api_server().await.unwrap();
    world.converse(&number, USER, "dos", 2).await;
    // Whoever looks can see that these are the last known routes, and how old the controller's view is.
    let (bridge, controller) = (world.site.bridge_admin, world.site.controller_admin);
    watches_stand(&world, bridge, 0).await;
    watches_stand(&world, controller, 0).await;
    let told = "aura_whatsapp_watch_last_event_timestamp_seconds";
    assert!(world.metric(world.site.controller_admin, told).await > 0.0);
    routes_grow_old(&world).await;
    // A reply whose record was not on disk yet would be sent again, which is not the matter here.
    world.wait_settled().await;
    world.wait_snapshot([&number]).await;

    world.kill_bridge().await;
    world.start_bridge().await;
    // As old as the snapshot.
    routes_grow_old(&world).await;
    world.kernel.user_sends(&number.digits, USER, "tres").unwrap();
    let activities = world.aura.wait_activities(3, SOON).await.unwrap();
    assert_eq!(activities[2].text.as_deref(), Some("tres"));
    // Its reply was taken, and waits for the credentials, which are nowhere but in the Secret.
    world.aura.wait_replies(3, SOON).await.unwrap();
    assert_eq!(world.kernel.received(USER).len(), 2);

    cluster.control_plane.start_api_server().await.unwrap();
    let received = world.wait_received(USER, 3).await;
    assert_eq!(received[2].text, "Echo: tres");
    world.ready_number("1004").await;
    watches_stand(&world, bridge, 1).await;
    assert!(world.metric(bridge, ROUTES_AGE).await < 0.5, "they are current");
    // Channels and Secrets.
    watches_stand(&world, controller, 2).await;
}

const ROUTES_AGE: &str = "aura_whatsapp_routes_age_seconds";

/// Waits until the bridge says that its routes are of an age.
async fn routes_grow_old(world: &World) {
    world
        .until("the routes grow old", async || {
            world.metric(world.site.bridge_admin, ROUTES_AGE).await >= 1.0
        })
        .await;
}

/// Waits until a role says that so many of its watches stand.
async fn watches_stand(world: &World, admin: SocketAddr, expected: u8) {
    let metric = || world.metric(admin, "aura_whatsapp_watch_connected");
    world
        .until("the watches stand as they should", async || {
            (metric().await - f64::from(expected)).abs() < 0.5
        })
        .await;
}

/// The events that tell of an environment's servers.
async fn told_of_environment(world: &World, reason: &str) -> bool {
    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.namespace);
    let events = events.list(&ListParams::default()).await.unwrap();
    events.iter().any(|event| {
        event.reason.as_deref() == Some(reason)
            && event.regarding.as_ref().and_then(|about| about.kind.as_deref()) == Some("Lease")
    })
}

#[tokio::test]
async fn that_an_environment_is_down_and_that_it_is_up_again_is_told_by_event_and_metric() {
    let world = World::builder("told").without_bridge().start().await;
    let number = world.ready_number("1002").await;
    let up = || world.metric(world.site.controller_admin, "aura_whatsapp_environment_up");
    assert!(
        (up().await - 3.0).abs() < 0.5,
        "all three kinds of calls get through"
    );
    world.kernel.stop().await;
    let ask = json!({"metadata": {"annotations": {"channels.auracognitive.com/requestedAt": "outage"}}});
    world.patch_channel(&number, ask).await;
    world
        .until("an event tells of the outage", async || {
            told_of_environment(&world, "EnvironmentUnavailable").await
        })
        .await;
    assert!(up().await < 2.5);
    assert!(!told_of_environment(&world, "EnvironmentAvailable").await);
    world.kernel.restart().await.unwrap();
    world
        .until("an event tells of its end", async || {
            told_of_environment(&world, "EnvironmentAvailable").await
        })
        .await;
    assert!((up().await - 3.0).abs() < 0.5);
}

#[tokio::test]
async fn with_kernel_stopped_a_new_channel_says_so_and_a_verified_one_stays_ready() {
    let world = World::start("no-kernel").await;
    let verified = world.ready_number("1002").await;
    world.kernel.stop().await;
    let new = world.add("1004", |_| {}).await;
    let channel = world.wait_reason(&new, Reason::UpstreamUnavailable).await;
    assert_eq!(ready(&channel).0, "False");
    assert_eq!(
        condition(&channel, "Reconciling").1,
        Reason::ProgressingWithRetry.as_str()
    );
    assert_eq!(condition(&channel, "Stalled").0, "");

    let channel = world.look_now(&verified, "now").await;
    assert_eq!(
        ready(&channel).0,
        "True",
        "an outage of Kernel turns no verified channel red"
    );

    world.kernel.restart().await.unwrap();
    world.wait_ready(&new).await;
    world.converse(&new, USER, "hola", 1).await;
}

#[tokio::test]
async fn a_failing_channel_is_retried_less_and_less() {
    let world = World::start("backoff").await;
    world.kernel.inject(Fault::status(503).on(Endpoint::Token));
    let number = world.add("1002", |_| {}).await;
    // Bounds of the waits, in seconds: the upper halves of 1, 2, 4.
    world.kernel.wait_calls(Endpoint::Token, 4, SOON).await.unwrap();
    let times: Vec<_> = world.kernel.calls().iter().map(|call| call.at).collect();
    let waits: Vec<f64> = times
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]).as_secs_f64())
        .collect();
    for (wait, least) in waits.iter().zip([0.5, 1.0, 2.0]) {
        assert!(*wait >= least * 0.95, "{waits:?}");
    }
    world.kernel.clear_faults();
    // A change of the spec starts the waits anew: the old one, of 4 to 8 seconds, is not waited for.
    let start = tokio::time::Instant::now();
    world
        .patch_channel(&number, json!({"spec": {"phoneNumber": "+34600991002"}}))
        .await;
    world.wait_ready(&number).await;
    assert!(start.elapsed().as_secs_f64() < 3.5, "{:?}", start.elapsed());
}

#[tokio::test]
async fn while_aura_or_kernel_is_away_messages_are_taken_and_arrive_afterwards() {
    let world = World::start("away").await;
    let number = world.ready_number("1002").await;
    world.aura.stop().await;
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    world.kernel.wait_webhook_calls(1, SOON).await.unwrap();
    assert!(format!("{:?}", world.kernel.webhook_calls()[0].outcome).contains("200"));
    world.aura.restart().await.unwrap();
    world.wait_received(USER, 1).await;

    world
        .kernel
        .inject(Fault::status(503).retry_after(1).on(Endpoint::Send).times(2));
    world.kernel.user_sends(&number.digits, USER, "dos").unwrap();
    let received = world.wait_received(USER, 2).await;
    assert_eq!(received[1].text, "Echo: dos");
}

#[tokio::test]
async fn a_revoked_token_costs_no_reply() {
    let world = World::start("revoked").await;
    let number = world.ready_number("1002").await;
    world.converse(&number, USER, "uno", 1).await;
    assert!(world.kernel.revoke_tokens(&number.client_id) > 0);
    let received = world.converse(&number, USER, "dos", 2).await;
    assert_eq!(received.len(), 2);
}
