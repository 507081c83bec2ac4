//! What WhatsApp reports of sent messages: told to Aura, once and never back, and put right where that can be done.

use std::time::Duration;

use aura_whatsapp_operator::sim::{
    aura::{Behaviour, ReceivedActivity},
    fault::{Endpoint, Fault},
    kernel::UserMessage,
};
use serde_json::{Value, json};

use super::{USER, ended, http, post, text};
use crate::support::{Number, SOON, World, now};

/// A limit of the moment: the message may arrive later.
const PASSING: i64 = 131_056;
/// This message never will.
const FOR_GOOD: i64 = 1001;

fn error(code: i64) -> Value {
    json!({"code": code, "title": "fake"})
}

/// The events that Aura was told.
fn events(world: &World) -> Vec<ReceivedActivity> {
    let mut activities = world.aura.activities();
    activities.retain(|activity| activity.kind == "event");
    activities
}

/// Waits until Aura was told so many events.
async fn wait_events(world: &World, n: usize) -> Vec<ReceivedActivity> {
    world
        .until("Aura is told", async || events(world).len() >= n)
        .await;
    events(world)
}

fn statuses(events: &[ReceivedActivity]) -> Vec<String> {
    let word = |event: &ReceivedActivity| event.body["value"]["status"].as_str().map(ToOwned::to_owned);
    events.iter().filter_map(word).collect()
}

/// A number whose channel differs.
async fn number_with(world: &World, change: impl FnOnce(&mut Value)) -> Number {
    let number = world.add("1002", change).await;
    world.wait_ready(&number).await;
    number
}

/// A status as Kernel tells it, with what else it holds.
async fn report(world: &World, number: &Number, wamid: &str, status: &str, more: Value) {
    let mut body = json!({"id": wamid, "status": status, "timestamp": now()});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let call = json!({"statuses": [body]});
    assert_eq!(post(&http(), &url, &call).await, 200);
}

fn texts(received: &[UserMessage]) -> Vec<&str> {
    received.iter().map(|message| message.text.as_str()).collect()
}

/// What became of statuses, by the bridge's metrics: those of one class that had one result.
async fn counted(world: &World, status: &str, result: &str) -> usize {
    let page = aura_whatsapp_operator::sim::dev::site::get(world.site.bridge_admin, "/metrics").await;
    let (_, page) = page.unwrap();
    let wanted = format!("aura_whatsapp_statuses_total{{status=\"{status}\",result=\"{result}\"}} ");
    page.lines()
        .find_map(|line| line.strip_prefix(&wanted)?.parse().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_failure_is_told_to_aura_once_as_an_event_of_its_reply_and_conversation() {
    let world = World::start("failed").await;
    let number = world.ready_number("1002").await;
    let received = world.converse(&number, USER, "uno", 1).await;
    let wamid = &received[0].wamid;
    // The user stands in the stored send: a status may name another, or none.
    for _ in 0..2 {
        report(&world, &number, wamid, "failed", json!({"errors": [error(470)]})).await;
    }
    report(&world, &number, wamid, "sent", json!({})).await;
    world.wait_settled().await;
    let told = events(&world);
    assert_eq!(told.len(), 1, "once, and nothing else by default");
    let (event, message) = (&told[0].body, &world.aura.activities()[0]);
    assert_eq!(told[0].conversation_id, message.conversation_id);
    assert_eq!(told[0].from_id, USER);
    assert_eq!(event["name"], "whatsapp.status");
    assert_eq!(event["replyToId"], json!(world.aura.replies()[0].id));
    let value = json!({"status": "failed", "correlated": true, "resent": false, "userTold": false});
    assert_eq!(event["value"], value);
    let payload = &event["channelData"]["payload"]["whatsapp"];
    assert_eq!(
        (&payload["id"], &payload["errors"][0]["code"]),
        (&json!(wamid), &json!(470))
    );
    assert_eq!(
        world.kernel.received(USER).len(),
        1,
        "nothing more reaches the user"
    );
    assert_eq!(
        (
            counted(&world, "failed", "accepted").await,
            counted(&world, "failed", "again").await,
            counted(&world, "failed", "correlated").await,
            counted(&world, "sent", "ignored").await,
        ),
        (1, 1, 1, 1)
    );
    let id = wamid.replace('/', "%2F");
    let url = format!("http://{}/v1/trace/{id}", world.site.messages);
    let trace = http().get(url).send().await.unwrap();
    let trace: Value = trace.json().await.unwrap();
    let steps: Vec<&str> = trace["steps"]
        .as_array()
        .unwrap_or_else(|| panic!("{trace}"))
        .iter()
        .filter_map(|step| step["step"].as_str())
        .collect();
    assert_eq!(
        steps,
        [
            "accepted",
            "committed",
            "delivered",
            "settled",
            "reportedFailed",
            "reportedSent"
        ]
    );
}

#[tokio::test]
async fn aura_is_told_the_statuses_that_its_channel_names_never_back_and_not_after_a_kill_either() {
    let mut world = World::start("never-back").await;
    let number = number_with(&world, |channel| {
        channel["spec"]["delivery"] = json!({"statuses": ["Sent", "Delivered", "Read"]});
    })
    .await;
    let received = world.converse(&number, USER, "uno", 1).await;
    let wamid = &received[0].wamid;
    for status in ["sent", "sent", "read", "delivered", "read", "deleted"] {
        report(&world, &number, wamid, status, json!({"recipient_id": USER})).await;
    }
    world.wait_settled().await;
    assert_eq!(statuses(&events(&world)), ["sent", "read"]);
    assert_eq!(counted(&world, "delivered", "late").await, 1);
    world.kill_bridge().await;
    world.start_bridge().await;
    // Not the same as before the kill, so that its id is new.
    report(
        &world,
        &number,
        wamid,
        "failed",
        json!({"errors": [error(PASSING)]}),
    )
    .await;
    world.wait_settled().await;
    assert_eq!(counted(&world, "failed", "late").await, 1);
    assert_eq!(statuses(&events(&world)), ["sent", "read"]);
    assert_eq!(
        world.kernel.received(USER).len(),
        1,
        "what was read is not sent again"
    );
}

#[tokio::test]
async fn each_step_of_a_message_is_told_to_aura_once_and_in_order_where_its_channel_names_them_all() {
    let world = World::start("each-step").await;
    let number = number_with(&world, |channel| {
        channel["spec"]["delivery"] = json!({"statuses": ["Sent", "Delivered", "Read"]});
    })
    .await;
    let received = world.converse(&number, USER, "uno", 1).await;
    let steps = ["sent", "delivered", "read"];
    for step in steps {
        for _ in 0..2 {
            report(&world, &number, &received[0].wamid, step, json!({})).await;
        }
    }
    wait_events(&world, steps.len()).await;
    world.wait_settled().await;
    let told = events(&world);
    assert_eq!(statuses(&told), steps);
    assert_eq!(world.aura.duplicates().len(), 0);
    let reply = json!(world.aura.replies()[0].id);
    for event in &told {
        assert_eq!(event.body["value"]["correlated"], true);
        assert_eq!(event.body["replyToId"], reply);
    }
    for step in steps {
        let counts = (
            counted(&world, step, "correlated").await,
            counted(&world, step, "again").await,
        );
        assert_eq!(counts, (1, 1), "{step}");
    }
}

/// Such a status waits ten minutes for its send, or until a person gives it up and has it sent on its way after all.
#[tokio::test]
async fn a_failure_of_what_nobody_sent_is_told_of_the_user_that_it_names_and_without_one_is_a_dead_letter() {
    let world = World::start("nobodys").await;
    let number = world.ready_number("1002").await;
    let kept = async |query: &str| -> Vec<u64> {
        let url = format!("http://{}/v1/messages?{query}", world.site.messages);
        let list = http().get(url).send().await.unwrap();
        let list: Value = list.json().await.unwrap();
        let messages = list["messages"].as_array().into_iter().flatten();
        messages.filter_map(|message| message["seq"].as_u64()).collect()
    };
    let does = async |verb: &str, seq: u64| -> bool {
        let url = format!("http://{}/v1/messages/{seq}/{verb}", world.site.messages);
        let order = http().post(url).json(&json!({"because": "INC-1"}));
        order.send().await.unwrap().status() == 200
    };
    for (wamid, user) in [("wamid.unknown", USER), ("wamid.nameless", "")] {
        let failed = json!({"recipient_id": user, "errors": [error(PASSING)]});
        report(&world, &number, wamid, "failed", failed).await;
        let waits = kept("state=pending").await;
        assert_eq!(waits.len(), 1, "{wamid}");
        // Not while it is looked at.
        world
            .until("it is given up", async || does("drop", waits[0]).await)
            .await;
        world
            .until("that is on disk", async || {
                kept("state=dead&reason=Dropped").await == waits
            })
            .await;
        assert!(does("replay", waits[0]).await, "{wamid}");
        world.wait_settled().await;
    }
    let told = events(&world);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].from_id, USER);
    let value = json!({"status": "failed", "correlated": false, "resent": false, "userTold": false});
    assert_eq!(told[0].body["value"], value);
    assert_eq!(told[0].body["replyToId"], Value::Null);
    assert_eq!(kept("state=dead&reason=NoConversation").await.len(), 1);
    assert_eq!(
        world.kernel.sends().len(),
        0,
        "nothing is known that could be sent again"
    );
}

#[tokio::test]
async fn a_status_that_comes_before_its_send_is_recorded_waits_for_it_and_holds_nobody() {
    let world = World::start("before-its-send").await;
    let number = world.ready_number("1002").await;
    world.kernel.report_next(&[("failed", &[error(470)])]);
    let late = Fault::delay(Duration::from_secs(3)).after_effect();
    world.kernel.inject(late.on(Endpoint::Send).times(1));
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    world
        .until("the status is accepted", async || {
            counted(&world, "failed", "accepted").await == 1
        })
        .await;
    world.kernel.user_sends(&number.digits, USER, "dos").unwrap();
    world.aura.wait_activities(2, SOON).await.unwrap();
    assert_eq!(events(&world).len(), 0, "its send is not answered yet");
    let told = wait_events(&world, 1).await;
    assert_eq!(told[0].body["value"]["correlated"], true);
    assert_eq!(told[0].body["replyToId"], json!(world.aura.replies()[0].id));
    world.wait_settled().await;
    assert_eq!(world.kernel.received(USER).len(), 2);
}

#[tokio::test]
async fn a_message_whose_failure_may_pass_is_sent_again_and_another_failure_ends_with_a_word_to_the_user() {
    let world = World::start("again").await;
    let number = number_with(&world, |channel| {
        channel["spec"]["conversion"] = json!({"undeliveredText": "No ha llegado"});
    })
    .await;
    world
        .kernel
        .report_next(&[("sent", &[]), ("failed", &[error(PASSING)])]);
    world.kernel.report_next(&[("failed", &[error(FOR_GOOD)])]);
    // Of the bridge's own words: nothing follows.
    world.kernel.report_next(&[("failed", &[error(FOR_GOOD)])]);
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    let told = wait_events(&world, 3).await;
    world.wait_settled().await;
    let received = world.kernel.received(USER);
    assert_eq!(texts(&received), ["Echo: uno", "Echo: uno", "No ha llegado"]);
    assert_ne!(
        received[0].idempotency_key, received[1].idempotency_key,
        "it is another send, not a second attempt"
    );
    let values: Vec<_> = told
        .iter()
        .map(|event| (&event.body["value"]["resent"], &event.body["value"]["userTold"]))
        .collect();
    let (yes, no) = (&json!(true), &json!(false));
    assert_eq!(values, [(yes, no), (no, yes), (no, no)]);
    let reply = json!(world.aura.replies()[0].id);
    let of: Vec<_> = told.iter().map(|event| &event.body["replyToId"]).collect();
    assert_eq!(of, [&reply, &reply, &Value::Null]);
    assert_eq!(
        (
            counted(&world, "failed", "resent").await,
            counted(&world, "failed", "user_told").await
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn a_user_is_told_once_that_the_answer_to_his_question_was_lost_however_many_parts_it_had() {
    let world = World::builder("told-once")
        .aura(Behaviour::Replies(3))
        .start()
        .await;
    let number = number_with(&world, |channel| {
        channel["spec"]["conversion"] = json!({"undeliveredText": "No ha llegado"});
    })
    .await;
    for _ in 0..3 {
        world.kernel.report_next(&[("failed", &[error(FOR_GOOD)])]);
    }
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    wait_events(&world, 3).await;
    world.wait_settled().await;
    let received = world.kernel.received(USER);
    let told = received.iter().filter(|message| message.text == "No ha llegado");
    assert_eq!((told.count(), received.len()), (1, 4));
}

#[tokio::test]
async fn of_a_long_reply_the_part_that_failed_is_sent_again_and_no_other() {
    let long = "palabra ".repeat(900);
    let replies = vec![Value::from(long.trim())];
    let script = Behaviour::Script(std::sync::Arc::new(move |_: &ReceivedActivity| replies.clone()));
    let world = World::builder("parts").aura(script).start().await;
    let number = world.ready_number("1002").await;
    world.kernel.report_next(&[("failed", &[error(PASSING)])]);
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    let received = world.wait_received(USER, 3).await;
    world.wait_settled().await;
    let received_in_all = world.kernel.received(USER).len();
    let [one, two, again] = &texts(&received)[..] else {
        panic!("{received_in_all} messages");
    };
    assert_eq!((one, received_in_all), (again, 3));
    assert!(one.len() > two.len());
    let told = wait_events(&world, 1).await;
    assert_eq!(told[0].body["replyToId"], json!(world.aura.replies()[0].id));
}

#[tokio::test]
async fn a_status_that_was_accepted_survives_a_kill_and_is_acted_upon_once() {
    let mut world = World::start("killed").await;
    let number = world.ready_number("1002").await;
    world.wait_snapshot([&number]).await;
    let received = world.converse(&number, USER, "uno", 1).await;
    world.wait_settled().await;
    world.aura.inject(Fault::status(503));
    let wamid = received[0].wamid.clone();
    let failed = json!({"recipient_id": USER, "errors": [error(PASSING)]});
    report(&world, &number, &wamid, "failed", failed.clone()).await;
    // Its message is sent again, although Aura is away and can't be told; that it was is on disk.
    world.wait_received(USER, 2).await;
    world
        .until("only the status is left", async || {
            let pending = "aura_whatsapp_pending_messages";
            (world.metric(world.site.bridge_admin, pending).await - 1.0).abs() < 0.1
        })
        .await;
    world.kill_bridge().await;
    world.start_bridge().await;
    report(&world, &number, &wamid, "failed", failed).await;
    world
        .kernel
        .user_sends(&number.digits, "34600000002", "dos")
        .unwrap();
    world.aura.clear_faults();
    wait_events(&world, 1).await;
    world.wait_received("34600000002", 1).await;
    world.wait_settled().await;
    assert_eq!(statuses(&events(&world)), ["failed"]);
    assert_eq!(world.aura.duplicates().len(), 0);
    assert_eq!(world.kernel.received(USER).len(), 2, "it was sent again once");
    assert_eq!(ended(&world, "dead_letter").await, 0);
}

#[tokio::test]
async fn statuses_of_a_call_that_also_holds_messages_keep_nobody_from_his_answer() {
    let world = World::start("mixed").await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    // Nobody knows what it speaks of: it waits, and the user's message behind it does not.
    let call = json!({
        "statuses": [{"id": "wamid.unknown", "recipient_id": USER, "status": "failed", "timestamp": now()}],
        "messages": [text(USER, "wamid.uno", "uno")],
    });
    assert_eq!(post(&http(), &url, &call).await, 200);
    world.wait_received(USER, 1).await;
    assert_eq!(events(&world).len(), 0);
    let pending = world
        .metric(world.site.bridge_admin, "aura_whatsapp_pending_messages")
        .await;
    assert!((pending - 1.0).abs() < 0.1, "{pending} wait");
}

#[tokio::test]
async fn where_the_platform_tells_back_what_was_sent_a_status_settles_a_send_without_an_answer() {
    let world = World::start("told-back").await;
    let number = number_with(&world, |channel| {
        channel["spec"]["kernel"]["apiVersion"] = "v2".into();
    })
    .await;
    let held = world
        .add("1003", |channel| {
            channel["spec"]["kernel"]["apiVersion"] = "v2".into();
            channel["spec"]["delivery"] = json!({"onUnknownSend": "Hold"});
        })
        .await;
    world.wait_ready(&held).await;
    // Retried: the status is here before the second attempt.
    world.kernel.report_next(&[("sent", &[])]);
    let lost = Fault::delay(Duration::from_secs(60)).after_effect();
    world.kernel.inject(lost.on(Endpoint::Send).times(1));
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    world.wait_received(USER, 1).await;
    world.wait_settled().await;
    assert_eq!(world.kernel.received(USER).len(), 1, "it was not sent again");
    assert_eq!(world.kernel.sends().len(), 1);
    assert_eq!(counted(&world, "sent", "settled").await, 1);
    assert_eq!(ended(&world, "dead_letter").await, 0);

    // Held for a person, until a status tells of it.
    let other = "34600000002";
    world
        .kernel
        .inject(Fault::reset().after_effect().on(Endpoint::Send).times(1));
    world.kernel.user_sends(&held.digits, other, "dos").unwrap();
    world
        .until("it is held", async || ended(&world, "dead_letter").await == 1)
        .await;
    let gauge = "aura_whatsapp_dead_letters";
    assert!(world.metric(world.site.bridge_admin, gauge).await > 0.5);
    let wamid = world.kernel.received(other)[0].wamid.clone();
    world.kernel.push_status(&wamid, "delivered", &[]).unwrap();
    world
        .until("it is no dead letter any more", async || {
            world.metric(world.site.bridge_admin, gauge).await < 0.5
        })
        .await;
    world.wait_settled().await;
    // From then on it is a sent message like any other.
    world
        .kernel
        .push_status(&wamid, "failed", &[error(PASSING)])
        .unwrap();
    world
        .until("a late failure is heard of", async || {
            counted(&world, "failed", "late").await == 1
        })
        .await;
    assert_eq!(world.kernel.received(other).len(), 1);
}
