//! The API server's own ways to be difficult: watches that end, forget or break again and again, writes whose answer is
//! lost or that conflict; and how little is asked of it when nothing is wrong.

use std::time::{Duration, Instant};

use aura_whatsapp_operator::sim::{
    apiproxy::{Calls, Verb, WatchEnd},
    fault::Fault,
};
use kube::api::DeleteParams;

use super::most_attempts;
use crate::support::{Number, Recorder, SOON, World, condition};

/// How long a storm is watched.
const WINDOW: Duration = Duration::from_millis(2500);
const STATUS: &str = "whatsappchannels/status";

/// Lets every watch of both roles end like this as soon as it begins, and counts what they ask for meanwhile.
async fn a_storm_of(name: &'static str, fault: Fault) {
    let world = World::builder(name)
        .through_proxy()
        .bridge_through_proxy()
        .start()
        .await;
    let (verified, proxy) = (world.ready_number("1002").await, world.proxy());
    let asked = Calls::verbs(&[Verb::List, Verb::Watch]);
    let (before, began) = (proxy.count(&asked), Instant::now());
    proxy.inject(Calls::watches(), fault);
    proxy.end_watches(WatchEnd::Eof);
    // The controller's watches of channels and Secrets, the bridge's of channels.
    proxy.wait_requests(&asked, before + 6, SOON).await.unwrap();
    tokio::time::sleep(WINDOW.saturating_sub(began.elapsed())).await;
    let (count, within) = (proxy.count(&asked) - before, began.elapsed());
    // One that has to begin from the start lists first.
    let most = 3 * 2 * most_attempts(within, Duration::from_millis(200), Duration::from_millis(2500));
    assert!(
        count <= most,
        "{count} lists and watches within {within:?}, which should be {most} at most"
    );
    proxy.clear_faults();
    let new = world.ready_number("1004").await;
    for (number, messages) in [(&verified, 1), (&new, 2)] {
        world.converse(number, "34600000001", "hola", messages).await;
    }
    assert_eq!(world.kernel.webhook_sets(&verified.client_id), 1);
}

#[tokio::test]
async fn watches_that_end_as_soon_as_they_begin_make_no_storm() {
    a_storm_of("storm-eof", Fault::empty()).await;
}

#[tokio::test]
async fn watches_that_break_amid_an_event_make_no_storm() {
    a_storm_of("storm-cut", Fault::cut()).await;
}

#[tokio::test]
async fn watches_whose_past_is_forgotten_again_and_again_make_no_storm() {
    a_storm_of("storm-gone", Fault::gone()).await;
}

#[tokio::test]
async fn what_happened_while_a_watch_was_forgotten_is_found_by_the_next_list() {
    let world = World::builder("gone")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let kept = world.ready_number("1002").await;
    let first = world.ready_number("1004").await;
    let second = world
        .add("1006", |channel| {
            channel["spec"]["channelId"] = first.channel_id.as_str().into();
            // The name decides where two were made within one second.
            channel["metadata"]["name"] = "z-number-1006".into();
        })
        .await;
    let second = Number {
        name: "z-number-1006".into(),
        ..second
    };
    world
        .wait_for(&second, "to wait", |channel| {
            condition(channel, "Accepted").0 == "False"
        })
        .await;
    let (looks, lists) = (
        world.kernel.webhook_gets(&kept.client_id),
        Calls::verbs(&[Verb::List]).of("whatsappchannels"),
    );
    let listed = world.proxy().count(&lists);
    // No watch begins before both have happened: one event that is missed, one that is made.
    world
        .proxy()
        .inject(Calls::all().of("whatsappchannels"), Fault::status(500));
    world.proxy().end_watches(WatchEnd::Gone);
    let delete = DeleteParams::default();
    world.channels().delete(&first.name, &delete).await.unwrap();
    let new = world.add("1008", |_| {}).await;
    world.proxy().clear_faults();
    world.wait_ready(&new).await;
    world.wait_ready(&second).await;
    assert!(world.proxy().count(&lists) > listed);
    assert_eq!(
        world.kernel.webhook_gets(&kept.client_id),
        looks,
        "the unchanged one is left alone"
    );
}

/// A status write that is hit by this fault: the webhook is set once and the status is right in the end.
async fn a_write_is_hit(name: &'static str, fault: Fault, writes: std::ops::RangeInclusive<usize>) {
    let world = World::builder(name)
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let calls = Calls::writes().of(STATUS);
    world.proxy().inject(calls.clone(), fault);
    let number = world.ready_number("1002").await;
    // The write that was lost is told by the watch; one more pass shows that nothing is left to do.
    let channel = world.look_now(&number, "now").await;
    assert_eq!(
        world.kernel.webhook_sets(&number.client_id),
        1,
        "one PATCH at Kernel"
    );
    for kind in [
        "Ready",
        "Accepted",
        "CredentialsValid",
        "WebhookRegistered",
        "WebhookVerified",
    ] {
        assert_eq!(condition(&channel, kind).0, "True", "{kind}");
    }
    let status = channel.status.unwrap();
    assert_eq!(status.webhook_key.unwrap().generation, Some(1));
    assert!(status.webhook_url.unwrap().contains(&number.channel_id));
    // One of them is that of the look.
    let count = world.proxy().count(&calls) - 1;
    assert!(
        writes.contains(&count),
        "{count} writes: {:#?}",
        world.proxy().status_writes()
    );
}

#[tokio::test]
async fn a_status_write_whose_answer_was_lost_sets_no_webhook_twice() {
    a_write_is_hit("half-written", Fault::reset().after_effect().times(1), 1..=2).await;
}

#[tokio::test]
async fn a_status_write_that_was_lost_altogether_sets_no_webhook_twice() {
    a_write_is_hit("not-written", Fault::reset().times(1), 2..=2).await;
}

#[tokio::test]
async fn a_status_write_in_conflict_is_tried_again() {
    a_write_is_hit("conflict-409", Fault::status(409).times(2), 3..=3).await;
}

#[tokio::test]
async fn an_unchanged_channel_costs_no_write_also_over_a_restart() {
    let mut world = World::builder("no-writes")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.look_now(&number, "once").await;
    let own = Calls::writes().named(&number.name);
    let (looks, events) = (world.kernel.calls().len(), Calls::writes().of("events"));
    // Events follow the status: that of Ready is the only one.
    world.proxy().wait_requests(&events, 1, SOON).await.unwrap();
    assert_eq!(
        world.proxy().count(&own),
        2,
        "Ready, and the look that was asked for"
    );

    world.controller.take().unwrap().stop().await.unwrap();
    let secret = Calls::gets().of("secrets").named(&number.secret_name);
    let reads = world.proxy().count(&secret);
    world.controller = Some(world.site.start_controller().await.unwrap());
    let proxy = world.proxy();
    // A pass that would write is over before the next channel is told of as ready.
    world.ready_number("1004").await;
    assert_eq!(proxy.count(&own), 2, "{:#?}", proxy.requests());
    assert!(proxy.count(&events) <= 2, "{:#?}", proxy.requests());
    assert_eq!(
        world.kernel.calls().len() - looks,
        3,
        "token, GET and PATCH of the other one"
    );
    assert_eq!(proxy.count(&secret), reads, "its Secret's version says enough");
}

#[tokio::test]
async fn a_status_that_may_not_be_written_costs_kernel_no_further_look() {
    let world = World::builder("mute")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let writes = Calls::writes().of(STATUS);
    world.proxy().inject(writes.clone(), Fault::status(403));
    let number = world.add("1002", |_| {}).await;
    world.proxy().wait_requests(&writes, 4, SOON).await.unwrap();
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
    assert_eq!(world.kernel.webhook_gets(&number.client_id), 1);
    world.proxy().clear_faults();
    let channel = world.wait_ready(&number).await;
    assert_eq!(condition(&channel, "WebhookVerified").0, "True");
    assert!(channel.status.unwrap().webhook_url.is_some());
}

#[tokio::test]
async fn a_finalizer_that_is_hard_to_remove_clears_the_webhook_once() {
    let world = World::builder("finalizer")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = serde_json::json!({"onDelete": "Clear"});
        })
        .await;
    let mut recorder = Recorder::start(&world, &number).await;
    world.wait_ready(&number).await;
    let finalizers = Calls::verbs(&[Verb::Patch]).of("whatsappchannels");
    let before = world.proxy().count(&finalizers);
    world
        .proxy()
        .inject(finalizers.clone(), Fault::status(500).times(1));
    world
        .proxy()
        .inject(finalizers.clone(), Fault::reset().after_effect().times(1));
    let delete = DeleteParams::default();
    world.channels().delete(&number.name, &delete).await.unwrap();
    recorder.gone().await;
    assert_eq!(
        world.kernel.webhook_sets(&number.client_id),
        2,
        "set once and cleared once"
    );
    assert!(
        world
            .kernel
            .webhook_of(&number.client_id)
            .is_none_or(|url| url.is_empty())
    );
    assert_eq!(world.proxy().count(&finalizers) - before, 2);
}
