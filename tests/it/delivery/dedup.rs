//! Once per id (Law 2): batches, redeliveries, callers that go away, statuses.

use std::os::unix::process::ExitStatusExt;

use aura_whatsapp_operator::{
    failpoint::{Place, VARIABLE},
    sim::{aura::Behaviour, fault::Fault},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{USER, call, ended, http, post, text};
use crate::support::{SOON, World};

/// A hundred messages of thirty conversations, and the process ends while they are written.
async fn a_batch_is_cut_off(prefix: &'static str, place: Place, kept: u32) {
    let mut world = World::builder(prefix).aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    world.wait_snapshot([&number]).await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let batch: Vec<Value> = (0..100)
        .map(|n| {
            text(
                &format!("346000001{:02}", n % 30),
                &format!("wamid.{n}"),
                &n.to_string(),
            )
        })
        .collect();
    // Nothing leaves: what is pending is what is kept.
    world.aura.stop().await;
    world.kill_bridge().await;
    world.site.bridge_variable = Some((VARIABLE.to_owned(), place.armed_at(1)));
    world.start_bridge().await;
    let answer = http().post(&url).json(&call(&batch)).send().await;
    assert!(answer.is_err(), "the process ended before it could answer");
    let status = world.bridge.take().unwrap().wait().await.unwrap();
    assert_eq!(status.signal(), Some(9));

    world.site.bridge_variable = None;
    world.start_bridge().await;
    let pending = world
        .metric(world.site.bridge_admin, "aura_whatsapp_pending_messages")
        .await;
    assert!(
        (pending - f64::from(kept)).abs() < 0.1,
        "{pending} of 100 are kept"
    );
    assert_eq!(post(&http(), &url, &call(&batch)).await, 200);
    world.aura.restart().await.unwrap();
    let activities = world.aura.wait_activities(100, SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!(world.aura.duplicates().len(), 0);
    assert_eq!(activities.len(), 100);
    let number_of =
        |activity: &aura_whatsapp_operator::sim::aura::ReceivedActivity| activity.text.as_ref()?.parse().ok();
    assert_eq!(world.aura.disorders(number_of), []);
}

#[tokio::test]
async fn a_batch_that_was_not_written_yet_is_not_kept_at_all() {
    a_batch_is_cut_off("batch-none", Place::JournalBeforeWrite, 0).await;
}

#[tokio::test]
async fn a_batch_that_was_written_is_kept_as_a_whole() {
    a_batch_is_cut_off("batch-all", Place::JournalWritten, 100).await;
}

#[tokio::test]
async fn a_message_that_comes_again_while_the_first_copy_is_being_retried_is_delivered_once() {
    let world = World::builder("retrying").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    world.aura.inject(Fault::status(503));
    let same = call(&[text(USER, "wamid.same", "hola")]);
    world
        .until("the bridge knows the channel", async || {
            post(&http(), &url, &same).await == 200
        })
        .await;
    world.aura.wait_calls(2, SOON).await.unwrap();
    for _ in 0..3 {
        assert_eq!(post(&http(), &url, &same).await, 200);
    }
    let pending = world
        .metric(world.site.bridge_admin, "aura_whatsapp_pending_messages")
        .await;
    assert!((pending - 1.0).abs() < 0.1, "{pending} wait in the lane");
    world.aura.clear_faults();
    // One that comes after in the same lane: nothing is left between.
    let after = call(&[text(USER, "wamid.after", "adiós")]);
    assert_eq!(post(&http(), &url, &after).await, 200);
    world.aura.wait_activities(2, SOON).await.unwrap();
    world.wait_settled().await;
    let texts: Vec<_> = world.aura.activities().into_iter().map(|one| one.text).collect();
    assert_eq!(texts, [Some("hola".to_owned()), Some("adiós".to_owned())]);
    assert_eq!(world.aura.duplicates().len(), 0);
}

#[tokio::test]
async fn the_same_message_on_many_connections_at_once_is_delivered_once_and_each_call_is_answered_200() {
    const CONNECTIONS: usize = 32;
    let world = World::builder("at-once").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    // Each client has its own connection, which stands before any of them calls.
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| http()).collect();
    for client in &clients {
        assert_eq!(post(client, &url, &json!({})).await, 200);
    }
    for round in 0..10 {
        let same = call(&[text(USER, &format!("wamid.{round}"), &round.to_string())]);
        let calls = clients.iter().map(|client| post(client, &url, &same));
        let answers = futures::future::join_all(calls).await;
        assert_eq!(answers, [200; CONNECTIONS]);
    }
    let activities = world.aura.wait_activities(10, SOON).await.unwrap();
    world.wait_settled().await;
    let texts: Vec<_> = activities.into_iter().filter_map(|one| one.text).collect();
    assert_eq!(texts, (0..10).map(|round| round.to_string()).collect::<Vec<_>>());
    assert_eq!(
        (world.aura.activities().len(), world.aura.duplicates().len()),
        (10, 0)
    );
    let metric = |name| world.metric(world.site.bridge_admin, name);
    let again = metric("aura_whatsapp_messages_deduplicated_total").await;
    assert!((again - 10.0 * 31.0).abs() < 0.1, "{again}");
}

#[tokio::test]
async fn a_caller_that_does_not_wait_for_its_answer_and_comes_again_is_taken_once() {
    let world = World::builder("hasty").aura(Behaviour::Silent).start().await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let target = url
        .strip_prefix(&format!("http://{}", world.site.public))
        .unwrap();
    let calls: Vec<Value> = (0..20)
        .map(|n| call(&[text(USER, &format!("wamid.{n}"), &n.to_string())]))
        .collect();
    for body in &calls {
        let body = body.to_string();
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(world.site.public).await.unwrap();
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .await
            .unwrap();
        // Closed with the answer unread.
    }
    for body in &calls {
        assert_eq!(post(&http(), &url, body).await, 200);
    }
    world.aura.wait_activities(calls.len(), SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!(world.aura.activities().len(), calls.len());
    assert_eq!(world.aura.duplicates().len(), 0);
    assert_eq!(ended(&world, "delivered").await, calls.len());
}

/// Failures are told to Aura, each kind once; what went well is counted and not told.
#[tokio::test]
async fn each_status_of_interest_is_told_once_and_in_order_with_the_users_messages() {
    let world = World::start("statuses").await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let received = world.converse(&number, USER, "uno", 1).await;
    let wamid = &received[0].wamid;
    let now = Timestamp::now().as_second().to_string();
    let status = |status: &str| {
        json!({"statuses": [{"id": wamid, "recipient_id": USER, "status": status, "timestamp": now,
            "errors": [{"code": 470, "title": "expired"}]}]})
    };
    for kind in ["sent", "failed", "sent", "failed", "warning", "delivered", "read"] {
        assert_eq!(post(&http(), &url, &status(kind)).await, 200, "{kind}");
    }
    assert_eq!(
        post(&http(), &url, &call(&[text(USER, "wamid.dos", "dos")])).await,
        200
    );
    world.wait_received(USER, 2).await;
    let told: Vec<String> = world
        .aura
        .activities()
        .iter()
        .map(|activity| {
            let payload = &activity.body["channelData"]["payload"]["whatsapp"];
            let status = payload["status"].as_str().map(ToOwned::to_owned);
            status.or_else(|| activity.text.clone()).unwrap_or_default()
        })
        .collect();
    assert_eq!(told, ["uno", "failed", "dos"]);
    assert_eq!(world.aura.duplicates().len(), 0);
}
