//! Every kind of trouble that Kernel can be in while replies are sent: its messages, its tokens, a rotated secret; and
//! what becomes of a reply that may have arrived.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    time::Duration,
};

use aura_whatsapp_operator::{
    failpoint::{Place, VARIABLE},
    sim::{
        aura::Behaviour,
        fault::{Endpoint, Fault},
    },
};
use serde_json::{Value, json};

use super::{USER, a_number_for_each, a_number_for_each_with, call, ended, http, post, text};
use crate::support::{Number, SOON, World};

#[tokio::test]
async fn each_kind_of_trouble_with_kernel_costs_a_retry_at_most_and_no_reply() {
    let world = World::start("kernel-troubles").await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let to = format!("http://{}/", elsewhere.local_addr().unwrap());
    // The head of a 2xx says that the message was sent, whatever becomes of the body.
    let sent = [
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
        ("503", Fault::status(503)),
        ("404", Fault::status(404)),
        ("403", Fault::status(403)),
    ];
    let twice = [("sent, then reset", Fault::reset().after_effect())];
    let refused = [("400", Fault::status(400)), ("422", Fault::status(422))];
    let faults: Vec<_> = sent
        .iter()
        .chain(&retried)
        .chain(&twice)
        .chain(&refused)
        .cloned()
        .collect();
    let numbers = a_number_for_each(&world, &faults).await;
    for (name, fault) in &faults {
        let number = &numbers[name];
        let fault = fault.clone().times(1).on(Endpoint::Send);
        world.kernel.inject(fault.only_for(number.client_id.clone()));
        let url = world.kernel.webhook_of(&number.client_id).unwrap();
        let two = [text(USER, "wamid.1", "uno"), text(USER, "wamid.2", "dos")];
        assert_eq!(post(&http(), &url, &call(&two)).await, 200);
    }
    let expected = 2 * faults.len() + twice.len() - refused.len();
    let received = world
        .kernel
        .wait_all_received(expected, SOON)
        .await
        .unwrap_or_else(|late| panic!("{late}\n{}", world.log("bridge")));
    world.wait_settled().await;
    assert_eq!(world.kernel.all_received().len(), expected);
    let sends = world.kernel.sends();
    for (name, _) in &faults {
        let client = &numbers[name].client_id;
        let made = sends
            .iter()
            .filter(|call| call.client_id.as_ref() == Some(client))
            .count();
        let own = received.iter().filter(|message| message.client_id == *client);
        let texts: Vec<&str> = own.clone().map(|message| message.text.as_str()).collect();
        let (uno, dos) = ("Echo: uno", "Echo: dos");
        if sent.iter().any(|(sent, _)| sent == name) {
            assert_eq!((texts, made), (vec![uno, dos], 2), "{name}");
        } else if retried.iter().any(|(retried, _)| retried == name) {
            assert_eq!((texts, made), (vec![uno, dos], 3), "{name}");
        } else if refused.iter().any(|(refused, _)| refused == name) {
            assert_eq!((texts, made), (vec![dos], 2), "{name}");
        } else {
            assert_eq!((texts, made), (vec![uno, uno, dos], 3), "{name}");
            let marks: Vec<_> = own.map(|message| message.idempotency_key.clone()).collect();
            assert!(marks[0].is_some() && marks[0] == marks[1], "{name}: {marks:?}");
        }
    }
    assert_eq!(ended(&world, "dead_letter").await, refused.len());
    assert!(world.log("bridge").contains("RefusedByKernel"));
    assert_eq!(
        elsewhere.accept().unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "a redirect was followed"
    );
}

#[tokio::test]
async fn replies_of_one_user_wait_for_the_one_that_is_retried_and_those_of_another_do_not() {
    let world = World::builder("retry-order")
        .aura(Behaviour::Replies(3))
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let other = "34600000002";
    world
        .kernel
        .inject(Fault::status(429).retry_after(2).on(Endpoint::Send).times(1));
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    world.kernel.wait_calls(Endpoint::Send, 1, SOON).await.unwrap();
    world.kernel.user_sends(&number.digits, other, "uno").unwrap();
    world.wait_received(other, 3).await;
    assert_eq!(world.kernel.received(USER).len(), 0, "it was asked to wait");
    let received = world.wait_received(USER, 3).await;
    let texts: Vec<_> = received.iter().map(|message| message.text.as_str()).collect();
    assert_eq!(texts, ["Echo: uno (1/3)", "Echo: uno (2/3)", "Echo: uno (3/3)"]);
}

#[tokio::test]
async fn a_reply_that_kernel_never_takes_is_given_up_and_the_next_one_goes() {
    let world = World::builder("never-sent")
        .config("bridge: {deliveryAttempts: 2}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world
        .kernel
        .inject(Fault::status(500).on(Endpoint::Send).times(2));
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    world.aura.wait_replies(1, SOON).await.unwrap();
    world.kernel.user_sends(&number.digits, USER, "dos").unwrap();
    let received = world.wait_received(USER, 1).await;
    assert_eq!(received[0].text, "Echo: dos");
    assert_eq!(ended(&world, "dead_letter").await, 1);
    let marks: BTreeSet<_> = world
        .kernel
        .sends()
        .iter()
        .map(|call| call.exchange.idempotency_key.clone())
        .collect();
    assert_eq!((world.kernel.sends().len(), marks.len()), (3, 2));
}

#[tokio::test]
async fn each_kind_of_trouble_with_tokens_delays_replies_and_loses_none() {
    let mut world = World::start("token-troubles").await;
    let faults = [
        ("401", Fault::status(401)),
        ("400", Fault::status(400)),
        ("429", Fault::status(429).retry_after(1)),
        ("500", Fault::status(500)),
        ("503", Fault::status(503)),
        ("slow", Fault::delay(Duration::from_millis(500))),
        ("no answer", Fault::hang()),
        ("reset", Fault::reset()),
        ("no JSON", Fault::garbage()),
        ("nothing", Fault::empty()),
        ("cut", Fault::cut()),
        ("no HTTP", Fault::malformed()),
        ("an endless body", Fault::endless()),
    ];
    let numbers = a_number_for_each(&world, &faults).await;
    // The tokens are in the bridge's memory alone.
    world.kill_bridge().await;
    for (name, fault) in &faults {
        let fault = fault.clone().times(1).on(Endpoint::Token);
        world
            .kernel
            .inject(fault.only_for(numbers[name].client_id.clone()));
    }
    let before = world.kernel.token_requests().len();
    world.start_bridge().await;
    for (name, _) in &faults {
        let url = world.kernel.webhook_of(&numbers[name].client_id).unwrap();
        // Ten conversations at once that need one token.
        let all: Vec<_> = (0..10)
            .map(|n| text(&format!("3460000010{n}"), &format!("wamid.{n}"), "hola"))
            .collect();
        assert_eq!(post(&http(), &url, &call(&all)).await, 200);
    }
    let received = world
        .kernel
        .wait_all_received(10 * faults.len(), SOON)
        .await
        .unwrap_or_else(|late| panic!("{late}\n{}", world.log("bridge")));
    world.wait_settled().await;
    assert_eq!(ended(&world, "dead_letter").await, 0);
    let requests = world.kernel.token_requests();
    for (name, _) in &faults {
        let client = &numbers[name].client_id;
        let own = received.iter().filter(|message| message.client_id == *client);
        let users: BTreeSet<_> = own.clone().map(|message| message.to.clone()).collect();
        assert_eq!((own.count(), users.len()), (10, 10), "{name}");
        let asked = requests[before..]
            .iter()
            .filter(|request| request.client_id.as_ref() == Some(client))
            .count();
        // The one that went wrong and the one that went well; one alone where it was only slow.
        let expected = if *name == "slow" { 1 } else { 2 };
        assert_eq!(asked, expected, "{name}: token requests");
    }
}

#[tokio::test]
async fn a_client_secret_that_is_rotated_while_replies_are_sent_costs_no_reply() {
    const USERS: usize = 8;
    const ROUNDS: usize = 12;
    let world = World::start("rotated-under-way").await;
    let number = world.ready_number("1002").await;
    let user = |n: usize| format!("3460000020{n}");
    for round in 0..ROUNDS {
        for n in 0..USERS {
            world
                .kernel
                .user_sends(&number.digits, &user(n), &round.to_string())
                .unwrap();
        }
        world
            .kernel
            .wait_all_received(round * USERS / 2, SOON)
            .await
            .unwrap();
        if round % 4 == 1 {
            let secret = format!("fake-rotated-secret-{round}");
            // Kernel's own: tokens that were issued before are revoked.
            world.kernel.rotate_secret(&number.client_id, &secret);
            world
                .patch_secret(&number, json!({"stringData": {"secret": secret}}))
                .await;
        }
    }
    for n in 0..USERS {
        let received = world.wait_received(&user(n), ROUNDS).await;
        let texts: Vec<_> = received.iter().map(|message| message.text.clone()).collect();
        let expected: Vec<_> = (0..ROUNDS).map(|round| format!("Echo: {round}")).collect();
        assert_eq!(texts, expected);
    }
    world.wait_settled().await;
    assert_eq!(world.kernel.all_received().len(), USERS * ROUNDS);
    assert_eq!(ended(&world, "dead_letter").await, 0);
    let mut sends: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for call in world.kernel.sends() {
        *sends.entry(call.exchange.idempotency_key).or_default() += 1;
    }
    assert!(
        sends.values().all(|times| *times <= 2),
        "one retry at most: {sends:?}"
    );
}

/// Has what may have arrived left to a person.
fn holds_unknown(channel: &mut Value) {
    // After a kill it may not be known that a message was answered: the reply to the next one waits for no longer.
    channel["spec"]["delivery"] = json!({"onUnknownSend": "Hold", "unansweredAfter": "1s"});
}

/// The user who writes to this number.
fn user_of(number: &Number) -> String {
    format!("3460000{}", number.digits)
}

/// What Kernel answered to each of a number's sends.
fn answers(world: &World, number: &Number) -> Vec<Option<u16>> {
    let sends = world.kernel.sends();
    let own = sends
        .iter()
        .filter(|call| call.client_id.as_ref() == Some(&number.client_id));
    own.map(|call| call.status).collect()
}

/// How many replies were left to a person, as the log has it.
fn left_to_a_person(world: &World) -> usize {
    world.log("bridge").matches("reason=\"UnknownOutcome\"").count()
}

#[tokio::test]
async fn a_reply_that_a_gateway_had_is_left_to_a_person_and_one_that_was_not_taken_is_sent_again() {
    let world = World::start("gateways").await;
    // The user has the message all the same: the answer was lost behind the gateway.
    let lost = |status: u16| Fault::status(status).after_effect();
    let faults = [
        ("502", lost(502)),
        ("504", lost(504)),
        ("503", Fault::status(503)),
    ];
    let numbers = a_number_for_each_with(&world, &faults, holds_unknown).await;
    let retried = world.ready_number("1002").await;
    let held = faults.iter().map(|(name, fault)| (&numbers[name], fault.clone()));
    for (number, fault) in held.chain([(&retried, lost(502))]) {
        let fault = fault.times(1).on(Endpoint::Send);
        world.kernel.inject(fault.only_for(number.client_id.clone()));
        world
            .kernel
            .user_sends(&number.digits, &user_of(number), "uno")
            .unwrap();
    }
    world
        .until("two are left to a person", async || {
            ended(&world, "dead_letter").await == 2
        })
        .await;
    world.wait_received(&user_of(&numbers["503"]), 1).await;
    let again = world.wait_received(&user_of(&retried), 2).await;
    world.wait_settled().await;
    for (name, expected) in [
        ("502", vec![Some(502)]),
        ("504", vec![Some(504)]),
        ("503", vec![Some(503), Some(201)]),
    ] {
        assert_eq!(answers(&world, &numbers[name]), expected, "{name}");
        let received = world.kernel.received(&user_of(&numbers[name]));
        assert_eq!(received.len(), 1, "{name}");
    }
    assert_eq!(answers(&world, &retried), [Some(502), Some(201)]);
    let marks: Vec<_> = again.iter().map(|message| &message.idempotency_key).collect();
    assert!(marks[0].is_some() && marks[0] == marks[1], "{marks:?}");
    assert_eq!(left_to_a_person(&world), 2);
}

/// A 401 says that nothing was done, and without a token nothing more is.
#[tokio::test]
async fn a_reply_for_which_no_token_can_be_had_after_a_401_is_no_unknown_send_and_arrives_once() {
    let world = World::start("no-other-token").await;
    let faults = [
        ("no answer", Fault::hang()),
        ("reset", Fault::reset()),
        ("no JSON", Fault::garbage()),
        ("502", Fault::status(502)),
        ("504", Fault::status(504)),
    ];
    let numbers = a_number_for_each_with(&world, &faults, holds_unknown).await;
    // One conversation of each, so that there is a token.
    for number in numbers.values() {
        world.converse(number, &user_of(number), "uno", 1).await;
    }
    for (name, fault) in &faults {
        let number = &numbers[name];
        assert!(world.kernel.revoke_tokens(&number.client_id) > 0, "{name}");
        let fault = fault.clone().times(1).on(Endpoint::Token);
        world.kernel.inject(fault.only_for(number.client_id.clone()));
        world
            .kernel
            .user_sends(&number.digits, &user_of(number), "dos")
            .unwrap();
    }
    for number in numbers.values() {
        world.wait_received(&user_of(number), 2).await;
    }
    world.wait_settled().await;
    for (name, number) in &numbers {
        let received = world.kernel.received(&user_of(number));
        let texts: Vec<_> = received.iter().map(|message| message.text.as_str()).collect();
        assert_eq!(texts, ["Echo: uno", "Echo: dos"], "{name}");
        let expected = [Some(201), Some(401), Some(201)];
        assert_eq!(answers(&world, number), expected, "{name}");
    }
    assert_eq!(ended(&world, "dead_letter").await, 0);
    assert_eq!(left_to_a_person(&world), 0);
}

/// The process ends in the send of a reply, which its user has by then or not, while the reply of another channel is
/// sent and not answered.
async fn a_send_is_cut_off(prefix: &'static str, place: Place, hit: u64, sent: usize) {
    // Nobody gives up the one that is not answered before the process ends.
    let mut world = World::builder(prefix).kernel_timeout("1m").start().await;
    let retried = world.ready_number("1002").await;
    let held = world.add("1004", holds_unknown).await;
    world.wait_ready(&held).await;
    world.wait_snapshot([&retried, &held]).await;
    world.kill_bridge().await;
    world.site.bridge_variable = Some((VARIABLE.to_owned(), place.armed_at(hit)));
    world.start_bridge().await;
    let unanswered = Fault::hang().after_effect().on(Endpoint::Send).times(1);
    world.kernel.inject(unanswered);
    let (its_user, other) = (user_of(&retried), user_of(&held));
    world
        .kernel
        .user_sends(&retried.digits, &its_user, "uno")
        .unwrap();
    world.wait_received(&its_user, 1).await;
    world.kernel.user_sends(&held.digits, &other, "uno").unwrap();
    let bridge = world.bridge.take().unwrap();
    let status = tokio::time::timeout(SOON, bridge.wait())
        .await
        .expect("it ends in the send")
        .unwrap();
    assert_eq!(status.signal(), Some(9));
    assert_eq!(world.kernel.received(&other).len(), sent);

    world.site.bridge_variable = None;
    world.start_bridge().await;
    world
        .until("one is left to a person", async || {
            ended(&world, "dead_letter").await == 1
        })
        .await;
    let again = world.wait_received(&its_user, 2).await;
    let marks: Vec<_> = again.iter().map(|message| &message.idempotency_key).collect();
    assert!(marks[0].is_some() && marks[0] == marks[1], "{marks:?}");
    // What comes after it goes.
    world.kernel.user_sends(&held.digits, &other, "dos").unwrap();
    world.wait_received(&other, sent + 1).await;
    world.wait_settled().await;
    let received = world.kernel.received(&other);
    let texts: Vec<_> = received.iter().map(|message| message.text.as_str()).collect();
    assert_eq!(texts, ["Echo: uno", "Echo: dos"][1 - sent..]);
    assert_eq!(world.kernel.received(&its_user).len(), 2);
    assert_eq!(left_to_a_person(&world), 1);
}

#[tokio::test]
async fn a_reply_whose_send_a_kill_cut_off_is_left_to_a_person_where_the_channel_says_so() {
    a_send_is_cut_off("cut-off-sent", Place::AfterKernel, 1, 1).await;
}

#[tokio::test]
async fn a_reply_that_a_kill_kept_from_being_sent_is_left_to_a_person_too_for_nobody_knows() {
    a_send_is_cut_off("cut-off-before", Place::BeforeKernel, 2, 0).await;
}
