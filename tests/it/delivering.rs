//! The condition `Delivering`: what the bridge tells reaches the status on transitions, by the leader alone.

use std::process::Command;

use aura_whatsapp_operator::sim::{
    controlplane::Tool,
    dev::site,
    fault::{Endpoint, Fault},
};
use kube::ResourceExt;
use serde_json::json;

use crate::support::{self, Number, World, condition};

const USER: &str = "349876543210987";
const WRITES: &str = "aura_whatsapp_delivering_writes_total";

impl World {
    /// Waits until a channel's condition Delivering is so.
    pub async fn wait_delivering(&self, number: &Number, status: &str, reason: &str) {
        self.wait_for(number, &format!("to deliver {status}/{reason}"), |channel| {
            let (is, why, _) = condition(channel, "Delivering");
            (is.as_str(), why.as_str()) == (status, reason)
        })
        .await;
    }

    async fn controller_metric(&self, name: &str) -> f64 {
        self.metric(self.site.controller_admin, name).await
    }
}

#[tokio::test]
async fn each_state_of_the_delivery_reaches_the_condition_and_ready_stays_as_it_is() {
    let world = World::builder("delivering")
        .asks_bridge_every("200ms")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.wait_delivering(&number, "True", "Flowing").await;

    world.kernel.inject(Fault::status(400).on(Endpoint::Send));
    world.kernel.user_sends("1002", USER, "one").unwrap();
    world.wait_delivering(&number, "True", "DeadLetters").await;
    world.kernel.clear_faults();

    let delivery = |mode: &str| json!({"spec": {"delivery": {"mode": mode}}});
    world.patch_channel(&number, delivery("Hold")).await;
    world.wait_delivering(&number, "False", "Held").await;
    world.patch_channel(&number, delivery("Deliver")).await;
    world.wait_delivering(&number, "True", "DeadLetters").await;

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let messages = format!("http://{}/v1/messages", world.site.messages);
    let list = http.get(format!("{messages}?state=dead")).send().await.unwrap();
    let list: serde_json::Value = list.json().await.unwrap();
    let dead = list["messages"][0]["seq"].as_u64().unwrap();
    let dropped = http
        .post(format!("{messages}/{dead}/drop"))
        .json(&json!({"because": "a test"}))
        .send()
        .await
        .unwrap();
    assert_eq!(dropped.status(), 200);
    world.wait_delivering(&number, "True", "Flowing").await;

    // The credentials are rejected where the bridge uses them, before the controller looks at Kernel again.
    world
        .kernel
        .rotate_secret(&number.client_id, "fake-another-secret");
    world.kernel.user_sends("1002", USER, "two").unwrap();
    world.wait_delivering(&number, "False", "TokenRejected").await;
    let channel = world.channels().get(&number.name).await.unwrap();
    assert_eq!(support::ready(&channel).0, "True", "traffic is no part of Ready");
    world
        .patch_secret(&number, json!({"stringData": {"secret": "fake-another-secret"}}))
        .await;
    world.wait_received(USER, 1).await;
    world.wait_delivering(&number, "True", "Flowing").await;
}

#[tokio::test]
async fn while_nothing_changes_nothing_is_written_and_kubectl_shows_the_column() {
    let world = World::builder("delivering-quiet")
        .asks_bridge_every("100ms")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.wait_delivering(&number, "True", "Flowing").await;
    assert!((world.controller_metric(WRITES).await - 1.0).abs() < f64::EPSILON);
    let before = world.channels().get(&number.name).await.unwrap();
    // Messages come and go; each record of the journal says that the bridge was asked at least twice more.
    let recorded = world
        .controller_metric("aura_whatsapp_journal_record_writes_total")
        .await;
    let mut sent = 0;
    while world
        .controller_metric("aura_whatsapp_journal_record_writes_total")
        .await
        < recorded + 10.0
    {
        sent += 1;
        world
            .converse(&number, USER, &format!("message {sent}"), sent)
            .await;
    }
    let after = world.channels().get(&number.name).await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
    assert!((world.controller_metric(WRITES).await - 1.0).abs() < f64::EPSILON);

    let output = Command::new(support::assets().await.path(Tool::Kubectl))
        .arg("--kubeconfig")
        .arg(support::cluster().await.kubeconfig())
        .args(["--namespace", &world.namespace, "get", "wac", "-o", "wide"])
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let mut lines = table.lines();
    let at = lines.next().unwrap().find("DELIVERING").unwrap();
    assert!(lines.next().unwrap()[at..].starts_with("Flowing"), "{table}");
}

#[tokio::test]
async fn a_bridge_that_stays_away_makes_its_channels_unknown_until_it_is_back() {
    let mut world = World::builder("delivering-unknown")
        .asks_bridge_every("100ms")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.wait_delivering(&number, "True", "Flowing").await;
    world.kill_bridge().await;
    world.wait_delivering(&number, "Unknown", "Unknown").await;
    assert!(world.controller_metric("aura_whatsapp_bridge_up").await.abs() < f64::EPSILON);
    world.start_bridge().await;
    world.wait_delivering(&number, "True", "Flowing").await;
    let (status, page) = site::get(world.site.bridge_admin, "/v1/deliveries")
        .await
        .unwrap();
    assert_eq!((status, page.as_str()), (200, r#"{"channels":{}}"#));
}
