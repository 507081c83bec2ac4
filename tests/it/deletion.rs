//! A deletion with `onDelete: Clear` ends, whatever Kernel says: the webhook is cleared, or an event tells why it was left.

use std::time::Duration;

use aura_whatsapp_operator::{
    api::{FINALIZER, WhatsAppChannel, conditions::Reason},
    sim::fault::{Endpoint, Fault},
};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};

use crate::support::{Number, SOON, World, condition, ready};

const SKIPPED: &str = "aura_whatsapp_cleanups_skipped_total";

fn clear(channel: &mut Value) {
    channel["spec"]["webhook"] = json!({"onDelete": "Clear"});
}

/// A channel whose webhook is registered, and cleared when it is deleted.
async fn to_be_cleared(world: &World, digits: &str) -> Number {
    let number = world.add(digits, clear).await;
    let channel = world.wait_ready(&number).await;
    assert_eq!(channel.finalizers(), [FINALIZER]);
    number
}

/// Deletes a channel and answers its UID.
async fn delete(world: &World, number: &Number) -> String {
    let channels = world.channels();
    let uid = channels.get(&number.name).await.unwrap().uid().unwrap();
    channels
        .delete(&number.name, &DeleteParams::default())
        .await
        .unwrap();
    uid
}

async fn gone(world: &World, number: &Number, uid: &str) {
    let gone = await_condition(world.channels(), &number.name, conditions::is_deleted(uid));
    let gone = tokio::time::timeout(SOON, gone).await;
    assert!(gone.is_ok(), "{} stays\n{}", number.name, world.log("controller"));
}

async fn deleted(world: &World, number: &Number) {
    let uid = delete(world, number).await;
    gone(world, number, &uid).await;
}

/// The events that tell of a webhook that was left behind, of one channel.
async fn skips(world: &World, number: &Number) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.namespace);
    let events = events.list(&ListParams::default()).await.unwrap();
    events
        .into_iter()
        .filter(|event| event.reason.as_deref() == Some(Reason::CleanupSkipped.as_str()))
        .filter(|event| {
            let about = event.regarding.as_ref().and_then(|about| about.name.as_deref());
            about == Some(number.name.as_str())
        })
        .filter_map(|event| event.note)
        .collect()
}

/// Waits for the event and the count that tell of a webhook that was left behind; this is the count's `nth`.
async fn told_of(world: &World, number: &Number, why: &str, nth: f64) {
    world
        .until("an event tells of the webhook", async || {
            skips(world, number).await.iter().any(|note| note.contains(why))
        })
        .await;
    assert_eq!(skips(world, number).await.len(), 1, "it is told once");
    let count = world.metric(world.site.controller_admin, SKIPPED).await;
    assert!((count - nth).abs() < 0.5, "{count} were counted, not {nth}");
}

fn is_registered(world: &World, number: &Number) -> bool {
    let held = world.kernel.webhook_of(&number.client_id);
    held.is_some_and(|url| url.contains(&number.channel_id))
}

fn is_cleared(world: &World, number: &Number) -> bool {
    world
        .kernel
        .webhook_of(&number.client_id)
        .is_none_or(|url| url.is_empty())
}

#[tokio::test]
async fn an_outage_of_kernel_holds_a_deletion_up_and_its_end_clears_the_webhook() {
    let world = World::builder("clear-later").without_bridge().start().await;
    for (digits, fault) in [
        ("1002", Fault::status(503).on(Endpoint::WebhookGet)),
        ("1004", Fault::status(500).on(Endpoint::WebhookSet)),
        ("1006", Fault::status(429).retry_after(1).on(Endpoint::WebhookSet)),
        ("1008", Fault::reset().on(Endpoint::WebhookGet)),
    ] {
        let number = to_be_cleared(&world, digits).await;
        let calls = world.kernel.call_count();
        world.kernel.inject(fault.only_for(&number.client_id));
        let uid = delete(&world, &number).await;
        // It is tried, and tried again.
        let tried = || {
            let calls = world.kernel.calls_since(calls);
            let own = calls.iter().filter(|call| {
                call.client_id.as_deref() == Some(number.client_id.as_str())
                    && call.endpoint == Endpoint::WebhookGet
            });
            own.count()
        };
        world.until("it was tried again", async || tried() >= 2).await;
        let channel = world.channels().get(&number.name).await.unwrap();
        assert_eq!(channel.finalizers(), [FINALIZER], "it stays while there is hope");
        assert!(is_registered(&world, &number));
        world.kernel.clear_faults_for(&number.client_id);
        gone(&world, &number, &uid).await;
        assert!(is_cleared(&world, &number), "{digits}");
        assert!(skips(&world, &number).await.is_empty());
    }
    assert!(world.metric(world.site.controller_admin, SKIPPED).await < 0.5);
}

#[tokio::test]
async fn what_kernel_refuses_for_good_is_left_behind_at_once_and_told() {
    let world = World::builder("clear-refused").without_bridge().start().await;
    let cases = [
        ("1004", Fault::status(403).on(Endpoint::WebhookSet), "(403)"),
        ("1006", Fault::status(403).on(Endpoint::WebhookGet), "(403)"),
        (
            "1008",
            Fault::status(401).on(Endpoint::Token),
            "rejects the client",
        ),
    ];
    for (nth, (digits, fault, why)) in (1_u8..).zip(cases) {
        let number = to_be_cleared(&world, digits).await;
        // Else the token of before would do.
        world.kernel.revoke_tokens(&number.client_id);
        world.kernel.inject(fault.only_for(&number.client_id));
        let began = std::time::Instant::now();
        deleted(&world, &number).await;
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "there is nothing to wait for"
        );
        told_of(&world, &number, why, f64::from(nth)).await;
        assert!(is_registered(&world, &number));
    }
}

/// The bound is a minute: so long this test takes.
#[tokio::test]
async fn what_does_not_heal_within_the_patience_of_a_deletion_is_left_behind_and_told() {
    let world = World::builder("clear-in-vain").without_bridge().start().await;
    let cases = [
        ("1002", Fault::status(503).on(Endpoint::WebhookGet), "503"),
        ("1004", Fault::status(404).on(Endpoint::WebhookSet), "404"),
        (
            "1006",
            Fault::status(404).on(Endpoint::WebhookGet),
            "can't be read back",
        ),
        (
            "1008",
            Fault::status(429).retry_after(3600).on(Endpoint::WebhookSet),
            "(429)",
        ),
    ];
    let mut leaving = Vec::new();
    for (digits, fault, why) in cases {
        let number = to_be_cleared(&world, digits).await;
        world.kernel.inject(fault.only_for(&number.client_id));
        let uid = delete(&world, &number).await;
        let channel = world.wait_reason(&number, Reason::CleanupFailed).await;
        assert!(ready(&channel).2.contains(why), "{:?}", ready(&channel));
        leaving.push((number, uid, why));
    }
    for (number, uid, why) in leaving {
        let gone = await_condition(world.channels(), &number.name, conditions::is_deleted(&uid));
        let gone = tokio::time::timeout(Duration::from_secs(90), gone).await;
        assert!(gone.is_ok(), "{} stays\n{}", number.name, world.log("controller"));
        world
            .until("an event tells of the webhook", async || {
                skips(&world, &number).await.iter().any(|note| note.contains(why))
            })
            .await;
        assert!(is_registered(&world, &number));
    }
}

#[tokio::test]
async fn a_kernel_that_takes_no_empty_webhook_keeps_it_and_the_channel_goes() {
    let world = World::builder("no-clear")
        .without_bridge()
        .kernel(|kernel| kernel.refuse_clear = true)
        .start()
        .await;
    let number = to_be_cleared(&world, "1002").await;
    let sets = world.kernel.webhook_sets(&number.client_id);
    deleted(&world, &number).await;
    told_of(&world, &number, "(400)", 1.0).await;
    assert!(is_registered(&world, &number));
    assert_eq!(
        world.kernel.webhook_sets(&number.client_id),
        sets + 1,
        "the same request would be refused again"
    );
}

#[tokio::test]
async fn a_webhook_that_cannot_be_read_back_is_cleared_if_it_was_ours() {
    let world = World::builder("clear-blind")
        .without_bridge()
        .kernel(|kernel| kernel.no_read_back = true)
        .start()
        .await;
    let number = to_be_cleared(&world, "1002").await;
    deleted(&world, &number).await;
    assert!(is_cleared(&world, &number));
    assert!(skips(&world, &number).await.is_empty());
}

#[tokio::test]
async fn a_webhook_that_another_party_has_set_meanwhile_is_left_alone() {
    let world = World::builder("clear-foreign").without_bridge().start().await;
    let number = to_be_cleared(&world, "1002").await;
    let foreign = "https://other.example.com/hook?key=fake-foreign-key";
    world.kernel.set_webhook(&number.client_id, foreign);
    let sets = world.kernel.webhook_sets(&number.client_id);
    deleted(&world, &number).await;
    assert_eq!(
        world.kernel.webhook_of(&number.client_id).as_deref(),
        Some(foreign)
    );
    assert_eq!(world.kernel.webhook_sets(&number.client_id), sets);
    assert!(
        skips(&world, &number).await.is_empty(),
        "nothing of ours is left behind"
    );
}

#[tokio::test]
async fn a_suspended_channel_is_deleted_and_its_webhook_cleared_all_the_same() {
    let world = World::builder("clear-suspended").without_bridge().start().await;
    let number = to_be_cleared(&world, "1002").await;
    world
        .patch_channel(&number, json!({"spec": {"suspend": true}}))
        .await;
    let suspended = |channel: &WhatsAppChannel| condition(channel, "Suspended").0 == "True";
    world.wait_for(&number, "to be suspended", suspended).await;
    deleted(&world, &number).await;
    assert!(is_cleared(&world, &number));
    assert!(skips(&world, &number).await.is_empty());
}

#[tokio::test]
async fn a_channel_of_an_environment_on_hold_goes_and_its_webhook_stays() {
    let world = World::builder("clear-held").without_bridge().start().await;
    let number = to_be_cleared(&world, "1002").await;
    let taken = async || {
        let controller = world.site.controller_admin;
        world
            .metric(controller, "aura_whatsapp_config_reloads_total")
            .await
    };
    let before = taken().await;
    world.reconfigure(|text| {
        let until = jiff::Timestamp::now() + Duration::from_secs(3600);
        let hold =
            format!("hold: {{until: {until:.0}, what: [registration], reason: maintenance at Kernel}}");
        text.replace(
            "    insecure: true\n",
            &format!("    insecure: true\n    {hold}\n"),
        )
    });
    world
        .until("the hold is in force", async || taken().await > before)
        .await;
    let calls = world.kernel.call_count();
    deleted(&world, &number).await;
    told_of(&world, &number, "maintenance at Kernel", 1.0).await;
    assert!(is_registered(&world, &number));
    assert_eq!(world.kernel.call_count(), calls, "Kernel is left alone");
}

#[tokio::test]
async fn the_loser_of_a_conflict_leaves_the_webhook_of_the_winner_alone() {
    let world = World::builder("clear-loser").without_bridge().start().await;
    let winner = world.ready_number("1002").await;
    // The same channel with the same Kernel client, the same channel with another one, another channel with the same
    // client. The names decide where two were made within one second.
    let losers = [
        ("z-same", "1002", true, Reason::ChannelConflict),
        ("z-other-client", "1004", true, Reason::ChannelConflict),
        ("z-other-channel", "1002", false, Reason::ClientShared),
    ];
    for (name, digits, same_channel, reason) in losers {
        let mut loser = Number {
            name: name.to_owned(),
            ..Number::new(digits)
        };
        if same_channel {
            loser.channel_id.clone_from(&winner.channel_id);
        }
        world.kernel.add_client(loser.client());
        world.apply(loser.secret()).await;
        let mut channel = loser.channel();
        clear(&mut channel);
        world.apply(channel).await;
        let channel = world.wait_reason(&loser, reason).await;
        assert_eq!(channel.finalizers(), [FINALIZER]);
        let calls = world.kernel.call_count();
        deleted(&world, &loser).await;
        assert!(is_registered(&world, &winner), "{name}");
        let sets = world
            .kernel
            .calls_since(calls)
            .into_iter()
            .filter(|call| call.endpoint == Endpoint::WebhookSet);
        assert_eq!(sets.count(), 0, "{name}");
        assert!(skips(&world, &loser).await.is_empty(), "{name}");
    }
    world.look_now(&winner, "now").await;
    assert_eq!(world.kernel.webhook_sets(&winner.client_id), 1);
}
