//! The configuration's file changes while both roles run: what is good is in force without a restart, what is not is
//! told, and changes nothing.

use std::time::Duration;

use aura_whatsapp_operator::{
    api::{FINALIZER, conditions::Reason},
    sim::{
        dev::site,
        fault::Endpoint,
        kernel::{ApiCall, Outcome},
    },
};
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;

use crate::support::{Number, SOON, World, condition, ready};

const USER: &str = "34600000001";
const TAKEN: &str = "aura_whatsapp_config_reloads_total";
const STALE: &str = "aura_whatsapp_config_stale";

/// Changes the configuration and waits until both roles have seen that.
async fn reconfigured(world: &World, change: impl FnOnce(&str) -> String) {
    let roles = [world.site.controller_admin, world.site.bridge_admin];
    let mut before = Vec::new();
    for role in roles {
        before.push(world.metric(role, TAKEN).await);
    }
    world.reconfigure(change);
    for (role, before) in roles.into_iter().zip(before) {
        world
            .until("the change is seen", async || {
                world.metric(role, TAKEN).await > before
            })
            .await;
    }
}

fn with_lines_for_each_environment(text: &str, lines: &str) -> String {
    text.replace("    insecure: true\n", &format!("    insecure: true\n{lines}\n"))
}

#[tokio::test]
async fn an_environment_that_is_added_or_allowed_is_used_at_once_and_another_public_url_re_registers_all() {
    let world = World::builder("reload")
        .environment("es-other", None)
        .start()
        .await;
    let usual = world.ready_number("1002").await;
    let namespaces = format!("  es-other:\n    namespaces: [{}]", world.namespace);
    let elsewhere = "  es-other:\n    namespaces: [elsewhere]";
    reconfigured(&world, |text| text.replace(&namespaces, elsewhere)).await;
    let in_environment = |name: &'static str| {
        move |channel: &mut serde_json::Value| channel["spec"]["environment"] = name.into()
    };
    let not_allowed = world.add("1004", in_environment("es-other")).await;
    let unknown = world.add("1006", in_environment("es-later")).await;
    world
        .wait_reason(&not_allowed, Reason::EnvironmentNotAllowed)
        .await;
    world.wait_reason(&unknown, Reason::EnvironmentUnknown).await;
    for number in [&not_allowed, &unknown] {
        let channel = world.channels().get(&number.name).await.unwrap();
        assert_eq!(condition(&channel, "Accepted").0, "False");
        assert_eq!(condition(&channel, "Stalled").0, "True");
        assert_eq!(world.kernel.webhook_gets(&number.client_id), 0);
    }

    reconfigured(&world, |text| {
        let text = text.replace(elsewhere, &namespaces);
        let (from, to) = (text.find("  es-dev:").unwrap(), text.find("  es-other:").unwrap());
        let later = text[from..to].replace("es-dev:", "es-later:");
        format!("{text}{later}")
    })
    .await;
    let numbers = [&usual, &not_allowed, &unknown];
    for (n, number) in numbers.into_iter().enumerate() {
        world.wait_ready(number).await;
        let received = world.converse(number, USER, "hola", n + 1).await;
        assert_eq!(received[n].client_id, number.client_id);
    }
    assert_eq!(
        world.kernel.webhook_sets(&usual.client_id),
        1,
        "its environment is what it was"
    );

    let before = format!("http://{}", world.site.public);
    let now = format!("http://localhost:{}", world.site.public.port());
    reconfigured(&world, |text| {
        let former = format!("publicUrl: {now}\n    formerPublicUrls: [{before}]");
        text.replace(&format!("publicUrl: {before}"), &former)
    })
    .await;
    for (n, number) in numbers.into_iter().enumerate() {
        world
            .wait_for(number, "to be registered at the new address", |channel| {
                let url = &channel.status.as_ref().unwrap().webhook_url;
                ready(channel).0 == "True" && url.as_ref().unwrap().starts_with(&now)
            })
            .await;
        let held = world.kernel.webhook_of(&number.client_id).unwrap();
        assert!(held.starts_with(&now), "{held}");
        assert_eq!(world.kernel.webhook_sets(&number.client_id), 2);
        world.converse(number, USER, "otra vez", n + 4).await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_told_with_its_line_and_the_last_good_one_stays_in_force() {
    let world = World::start("bad-config").await;
    let number = world.ready_number("1002").await;
    let good = std::fs::read_to_string(world.site.config()).unwrap();
    reconfigured(&world, |text| format!("{text}nonsense: 1\n")).await;
    let line = format!("line {}", good.lines().count() + 1);
    for (role, admin) in [
        ("controller", world.site.controller_admin),
        ("bridge", world.site.bridge_admin),
    ] {
        assert!(world.metric(admin, STALE).await > 0.0, "{role}");
        let log = world.log(role);
        let told = log.lines().find(|line| line.contains("last good one"));
        assert!(
            told.is_some_and(|told| told.contains(&line) && told.contains("nonsense")),
            "{role}, {line}:\n{log}"
        );
    }
    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.namespace);
    world
        .until("the Lease has an event", async || {
            let events = events.list(&ListParams::default()).await.unwrap();
            events.iter().any(|event| {
                let about = event.regarding.as_ref();
                event.reason.as_deref() == Some("ConfigurationRefused")
                    && about.and_then(|about| about.kind.as_deref()) == Some("Lease")
                    && event.note.as_ref().is_some_and(|note| note.contains(&line))
            })
        })
        .await;
    let channel = world.look_now(&number, "now").await;
    assert_eq!(ready(&channel).0, "True");
    world.ready_number("1004").await;
    world.converse(&number, USER, "hola", 1).await;

    // Also the very file that was there before.
    reconfigured(&world, |_| good).await;
    for admin in [world.site.controller_admin, world.site.bridge_admin] {
        assert!(world.metric(admin, STALE).await < 1.0);
    }
    world.ready_number("1006").await;
}

#[tokio::test]
async fn a_hold_stops_what_is_new_and_ends_by_itself() {
    let world = World::start("hold").await;
    let verified = world.ready_number("1002").await;
    let hold = |until: Timestamp| {
        format!("    hold: {{until: {until:.0}, what: [registration], reason: maintenance at Kernel}}")
    };
    let hour = Duration::from_secs(3600);
    reconfigured(&world, |text| {
        with_lines_for_each_environment(text, &hold(Timestamp::now() + hour))
    })
    .await;
    let calls = world.kernel.call_count();
    let new = world.add("1004", |_| {}).await;
    let channel = world.wait_reason(&new, Reason::EnvironmentHeld).await;
    assert!(
        ready(&channel).2.contains("maintenance at Kernel"),
        "{:?}",
        ready(&channel)
    );
    assert_eq!(condition(&channel, "Stalled").0, "");
    let channel = world.look_now(&verified, "now").await;
    assert_eq!(ready(&channel).0, "True", "{:?}", ready(&channel));
    world.converse(&verified, USER, "hola", 1).await;
    let registration = |call: &&aura_whatsapp_operator::sim::kernel::ApiCall| {
        matches!(call.endpoint, Endpoint::WebhookGet | Endpoint::WebhookSet)
    };
    assert_eq!(
        world
            .kernel
            .calls_since(calls)
            .iter()
            .filter(registration)
            .count(),
        0,
        "Kernel is left alone"
    );

    // The file is looked at every two seconds: this ends a second or more after that.
    let until = Timestamp::from_second(Timestamp::now().as_second() + 4).unwrap();
    world.reconfigure(|text| {
        let lines = text.lines().map(|line| {
            if line.contains("    hold: {") {
                hold(until)
            } else {
                line.to_owned()
            }
        });
        lines.collect::<Vec<_>>().join("\n") + "\n"
    });
    let channel = world.wait_ready(&new).await;
    let set = world
        .kernel
        .calls_since(calls)
        .into_iter()
        .find(|call| call.endpoint == Endpoint::WebhookSet)
        .unwrap();
    assert!(set.at >= until, "registered at {}, held until {until}", set.at);
    assert_eq!(ready(&channel).0, "True");
    let channel = world.channels().get(&verified.name).await.unwrap();
    assert_eq!(ready(&channel).0, "True");
}

#[tokio::test]
async fn changed_defaults_of_an_environment_hold_for_its_channels_at_once() {
    let world = World::start("defaults").await;
    let number = world.ready_number("1002").await;
    let foreign = Number::new("1004");
    world.kernel.add_client(foreign.client());
    world.kernel.set_webhook(
        &foreign.client_id,
        "https://old.example.com/hook?key=fake-foreign-key",
    );
    world.apply(foreign.secret()).await;
    world.apply(foreign.channel()).await;
    world.wait_reason(&foreign, Reason::WebhookForeign).await;
    let own = world
        .add("1006", |channel| {
            channel["spec"]["webhook"] = json!({"onDelete": "Keep"});
        })
        .await;
    world.wait_ready(&own).await;
    let is_held = async |number: &Number| {
        let channel = world.channels().get(&number.name).await.unwrap();
        channel.finalizers().contains(&FINALIZER.to_owned())
    };
    assert!(!is_held(&number).await);

    let defaults = "    channelDefaults: {webhook: {existing: TakeOver, onDelete: Clear}}";
    reconfigured(&world, |text| with_lines_for_each_environment(text, defaults)).await;
    world.wait_ready(&foreign).await;
    let held = world.kernel.webhook_of(&foreign.client_id).unwrap();
    assert!(held.contains(&foreign.channel_id), "{held}");
    world
        .until("its deletion has something to do", async || {
            is_held(&number).await
        })
        .await;
    assert_eq!(
        world.kernel.webhook_sets(&number.client_id),
        1,
        "what Kernel was told is as it was"
    );
    // Both of them were looked at by now, and the third one is not gone through later than they are.
    world.look_now(&own, "now").await;
    assert!(!is_held(&own).await, "what it says itself holds");

    let mode = "    channelDefaults: {webhook: {onDelete: Keep}, delivery: {mode: Hold}}";
    reconfigured(&world, |text| text.replace(defaults, mode)).await;
    world
        .until("its deletion has nothing to do any more", async || {
            !is_held(&number).await
        })
        .await;
    world.kernel.user_sends(&number.digits, USER, "hola").unwrap();
    waits_in_its_lane(&world, 1.0).await;
    reconfigured(&world, |text| {
        text.replace(mode, "    channelDefaults: {delivery: {mode: Deliver}}")
    })
    .await;
    world.wait_received(USER, 1).await;
}

/// Waits until so many messages are accepted and not delivered.
async fn waits_in_its_lane(world: &World, messages: f64) {
    world
        .until("the message is accepted", async || {
            world
                .metric(world.site.bridge_admin, "aura_whatsapp_pending_messages")
                .await
                >= messages
        })
        .await;
}

#[tokio::test]
async fn a_hold_of_deliveries_takes_messages_and_delivers_them_when_it_ends() {
    let world = World::start("hold-delivery").await;
    let number = world.ready_number("1002").await;
    let hold =
        |until: Timestamp| format!("    hold: {{until: {until:.0}, what: [delivery], reason: maintenance}}");
    let far = hold(Timestamp::now() + Duration::from_secs(3600));
    reconfigured(&world, |text| with_lines_for_each_environment(text, &far)).await;
    let wamid = world.kernel.user_sends(&number.digits, USER, "hola").unwrap();
    let calls = world.kernel.wait_webhook_calls(1, SOON).await.unwrap();
    assert_eq!(calls[0].outcome, Outcome::Status(200), "{wamid}: {:?}", calls[0]);
    waits_in_its_lane(&world, 1.0).await;
    // Nothing but deliveries is held: a new channel is registered.
    let new = world.ready_number("1004").await;
    world.kernel.user_sends(&new.digits, USER, "adiós").unwrap();
    waits_in_its_lane(&world, 2.0).await;
    assert_eq!(world.aura.calls().len(), 0);

    // As above: this ends a second or more after it is seen.
    let until = Timestamp::from_second(Timestamp::now().as_second() + 4).unwrap();
    world.reconfigure(|text| text.replace(&far, &hold(until)));
    world.wait_received(USER, 2).await;
    for call in world.aura.calls() {
        assert!(call.at >= until, "delivered at {}, held until {until}", call.at);
    }
    for channel in [&number, &new] {
        let channel = world.channels().get(&channel.name).await.unwrap();
        assert_eq!(ready(&channel).0, "True", "{:?}", ready(&channel));
    }
}

#[tokio::test]
async fn an_environment_that_is_taken_away_is_told_of_and_comes_back_as_it_was() {
    let world = World::builder("taken-away")
        .environment("es-other", None)
        .start()
        .await;
    let usual = world.ready_number("1002").await;
    let other = world
        .add("1004", |channel| {
            channel["spec"]["environment"] = "es-other".into();
        })
        .await;
    world.wait_ready(&other).await;
    world.converse(&other, USER, "hola", 1).await;
    let (whole, calls) = (
        std::fs::read_to_string(world.site.config()).unwrap(),
        world.kernel.call_count(),
    );
    let controller = world.site.controller_admin;
    reconfigured(&world, |text| {
        text[..text.find("  es-other:").unwrap()].to_owned()
    })
    .await;
    let channel = world.wait_reason(&other, Reason::EnvironmentUnknown).await;
    assert_eq!(condition(&channel, "Accepted").0, "False");
    assert_eq!(condition(&channel, "Stalled").0, "True");
    let (_, page) = site::get(controller, "/metrics").await.unwrap();
    assert!(
        !page.contains("environment=\"es-other\"") && page.contains("environment=\"es-dev\""),
        "{page}"
    );
    world.converse(&usual, USER, "sigo aquí", 2).await;
    // Kernel is asked to come back with a call that is authentic: nothing is lost.
    let ended = world.kernel.webhook_calls().len();
    world.kernel.user_sends(&other.digits, USER, "¿hola?").unwrap();
    let ended = world.kernel.wait_webhook_calls(ended + 1, SOON).await.unwrap();
    assert_eq!(
        ended.last().unwrap().outcome,
        Outcome::Status(503),
        "{:?}",
        ended.last()
    );
    assert_eq!(world.aura.calls().len(), 2);
    let own = |call: &&ApiCall| {
        call.client_id.as_deref() == Some(other.client_id.as_str()) && call.endpoint != Endpoint::Send
    };
    let calls = world.kernel.calls_since(calls);
    assert_eq!(calls.iter().filter(own).count(), 0, "Kernel is left alone");

    reconfigured(&world, |_| whole).await;
    world.wait_ready(&other).await;
    world.wait_received(USER, 3).await;
    assert_eq!(
        world.kernel.webhook_sets(&other.client_id),
        1,
        "its webhook stayed as it was"
    );
}

#[tokio::test]
async fn limits_are_changed_without_a_restart() {
    let registration = |n: u32| format!("    registration: {{perSecond: {n}, concurrent: 8}}");
    let world = World::builder("limits")
        .environment_extra(&registration(1))
        .start()
        .await;
    let numbers: Vec<Number> = (0..30).map(|n| Number::new(&format!("{}", 1002 + n))).collect();
    world.add_all(&numbers).await;
    // Three calls each: one a second would take a minute and a half.
    world.kernel.wait_calls(Endpoint::Token, 2, SOON).await.unwrap();
    world.reconfigure(|text| text.replace(&registration(1), &registration(50)));
    world
        .wait_all(numbers.len(), "Ready", |channel| ready(channel).0 == "True")
        .await;
}

#[tokio::test]
async fn another_api_key_for_aura_is_used_without_a_restart() {
    let mut world = World::builder("aura-key").without_bridge().start().await;
    let right = std::fs::read_to_string(world.site.aura_key()).unwrap();
    std::fs::write(world.site.aura_key(), "fake-key-of-last-month-001").unwrap();
    world.start_bridge().await;
    let number = world.ready_number("1002").await;
    world.kernel.user_sends(&number.digits, USER, "hola").unwrap();
    world
        .until("Aura refuses the old one", async || {
            world.aura.calls().iter().any(|call| call.status == Some(401))
        })
        .await;
    std::fs::write(world.site.aura_key(), right).unwrap();
    world.wait_received(USER, 1).await;
}
