//! Every kind of trouble that Aura can be in: each holds its own conversation only, is tried again, and is bounded.

use std::{io::ErrorKind, net::TcpListener, time::Duration};

use aura_whatsapp_operator::sim::{aura::Behaviour, dev::site::resident_bytes, fault::Fault};
use serde_json::Value;

use super::{USER, a_number_for_each, call, http, post, text, texts_of};
use crate::support::{SOON, World};

/// Memory that one answer may cost the bridge, in bytes.
const MEMORY: u64 = 48 << 20;

#[tokio::test]
async fn each_kind_of_trouble_with_aura_costs_a_retry_at_most_and_no_message() {
    let world = World::builder("aura-troubles")
        .aura(Behaviour::Silent)
        .start()
        .await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let to = format!("http://{}/", elsewhere.local_addr().unwrap());
    // The head of a 2xx says that the message was taken, whatever becomes of the body.
    let taken = [
        ("cut amid the body", Fault::cut()),
        ("an endless body", Fault::endless()),
        ("a body that drips", Fault::drip(Duration::from_secs(1))),
    ];
    let retried = [
        ("no answer", Fault::hang()),
        ("reset", Fault::reset()),
        ("closed by half", Fault::half_close()),
        ("no HTTP", Fault::malformed()),
        ("sent elsewhere", Fault::redirect(to)),
        ("429", Fault::status(429).retry_after(1)),
        ("500", Fault::status(500)),
        ("502", Fault::status(502)),
        ("503", Fault::status(503).retry_after(0)),
        ("404", Fault::status(404)),
    ];
    let twice = [
        ("taken, then reset", Fault::reset().after_effect()),
        ("taken, then closed by half", Fault::half_close().after_effect()),
    ];
    let faults: Vec<_> = taken.iter().chain(&retried).chain(&twice).cloned().collect();
    let numbers = a_number_for_each(&world, &faults).await;
    let memory = || resident_bytes(world.bridge.as_ref().unwrap().pid()).unwrap();
    let before = memory();
    for (name, fault) in &faults {
        let number = &numbers[name];
        world
            .aura
            .inject(fault.clone().times(1).only_for(number.channel_id.clone()));
        let url = world.kernel.webhook_of(&number.client_id).unwrap();
        let two = [text(USER, "wamid.1", "uno"), text(USER, "wamid.2", "dos")];
        assert_eq!(post(&http(), &url, &call(&two)).await, 200);
    }
    let activities = world
        .aura
        .wait_activities(2 * faults.len(), SOON)
        .await
        .unwrap_or_else(|late| panic!("{late}\n{}", world.log("bridge")));
    world.wait_settled().await;
    let (calls, duplicates) = (world.aura.calls(), world.aura.duplicates());
    for (name, _) in &faults {
        let number = &numbers[name];
        assert_eq!(texts_of(&activities, number), ["uno", "dos"], "{name}");
        let of_channel = |channel: &str| channel == number.channel_id;
        let made = calls
            .iter()
            .filter(|call| call.channel_id.as_deref().is_some_and(of_channel));
        let again = duplicates
            .iter()
            .filter(|activity| of_channel(&activity.channel_id));
        let (made, again) = (made.count(), again.count());
        let expected = match () {
            () if taken.iter().any(|(taken, _)| taken == name) => (2, 0),
            () if retried.iter().any(|(retried, _)| retried == name) => (3, 0),
            // Its outcome was unknown; it came again under the same id.
            () => (3, 1),
        };
        assert_eq!((made, again), expected, "{name}: calls, duplicates");
    }
    assert_eq!(
        elsewhere.accept().unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "a redirect was followed"
    );
    let after = memory();
    assert!(after < before + MEMORY, "memory grew from {before} to {after}");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_trouble_that_passes() {
    let world = World::builder("no-name").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let (right, wrong) = (world.aura.messages_url(), "http://aura.invalid/messages");
    world.reconfigure(|text| text.replace(&right, wrong));
    world
        .until("the routes are of the new file", async || {
            // Said when the routes and lanes have it.
            let log = world.log("bridge");
            log.contains("the configuration changed and is in force")
        })
        .await;
    world.kernel.user_sends(&number.digits, USER, "hola").unwrap();
    world
        .until("an attempt has failed", async || {
            world
                .log("bridge")
                .contains("can't take messages now (unreachable)")
        })
        .await;
    assert_eq!(world.aura.calls().len(), 0);
    world.reconfigure(|text| text.replace(wrong, &right));
    world.aura.wait_activities(1, SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!(world.aura.duplicates().len(), 0);
}

/// A peer that closes connections that idle, in the moment in which a call is sent on one: the call is made again, and
/// no message is lost or told twice.
#[tokio::test]
async fn a_connection_that_is_closed_under_a_call_costs_no_message() {
    const MESSAGES: usize = 300;
    let world = World::builder("idle").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    // About what lies between two of these messages.
    world.aura.inject(Fault::close_idle(Duration::from_millis(2)));
    let http = http();
    for n in 0..MESSAGES {
        let user = format!("3461000000{}", n % 10);
        let body: Value = call(&[text(&user, &format!("wamid.{n}"), &n.to_string())]);
        assert_eq!(post(&http, &url, &body).await, 200);
    }
    let activities = world.aura.wait_activities(MESSAGES, SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!((activities.len(), world.aura.duplicates().len()), (MESSAGES, 0));
    let number_of =
        |activity: &aura_whatsapp_operator::sim::aura::ReceivedActivity| activity.text.as_ref()?.parse().ok();
    assert_eq!(world.aura.disorders(number_of), []);
}
