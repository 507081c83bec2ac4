//! Secrets as people make them: with a line's end too much, or with something that is no credential.

use std::time::Duration;

use aura_whatsapp_operator::{
    api::conditions::Reason,
    sim::fault::{Endpoint, Fault},
};
use serde_json::json;

use crate::support::{Number, Recorder, World, condition, kstatus, ready};

const USER: &str = "34600000001";

#[tokio::test]
async fn white_space_around_a_credential_is_ignored_and_told() {
    let world = World::start("newline").await;
    let number = Number::new("1002");
    world.kernel.add_client(number.client());
    let mut secret = number.secret();
    for key in ["id", "secret"] {
        let value = format!("{}\n", secret["stringData"][key].as_str().unwrap());
        secret["stringData"][key] = json!(value);
    }
    world.apply(secret).await;
    world.apply(number.channel()).await;
    let channel = world.wait_ready(&number).await;
    let told = condition(&channel, "CredentialsValid");
    assert_eq!(told.0, "True");
    assert!(
        told.2.contains("white space") && told.2.contains(&number.secret_name),
        "{told:?}"
    );
    // The bridge reads it alike.
    world.converse(&number, USER, "hola", 1).await;
    world
        .patch_secret(
            &number,
            json!({"stringData": {"id": number.client_id, "secret": number.client_secret}}),
        )
        .await;
    world
        .wait_for(&number, "to tell of white space no longer", |channel| {
            ready(channel).0 == "True" && !condition(channel, "CredentialsValid").2.contains("white space")
        })
        .await;
}

#[tokio::test]
async fn what_is_no_credential_is_told_and_never_sent() {
    let world = World::builder("no-credential").without_bridge().start().await;
    let number = Number::new("1002");
    world.kernel.add_client(number.client());
    let mut secret = number.secret();
    secret["stringData"]["secret"] = json!("fake-secret\nof-two-lines");
    world.apply(secret).await;
    world.apply(number.channel()).await;
    let channel = world.wait_reason(&number, Reason::SecretInvalid).await;
    assert_eq!(condition(&channel, "CredentialsValid").0, "False");
    assert_eq!(condition(&channel, "Stalled").0, "True");
    let message = ready(&channel).2;
    assert!(
        message.contains("\"secret\"") && !message.contains("fake-secret"),
        "{message}"
    );
    assert_eq!(world.kernel.call_count(), 0);
    world
        .patch_secret(&number, json!({"stringData": {"secret": number.client_secret}}))
        .await;
    world.wait_ready(&number).await;
}

/// Whoever rotates a Secret while its channel is looked at is not told that the one before is no good.
#[tokio::test]
async fn a_secret_that_is_rotated_while_calls_are_under_way_is_never_called_rejected() {
    let world = World::builder("rotated-meanwhile").without_bridge().start().await;
    let number = Number::new("1002");
    let mut recorder = Recorder::start(&world, &number).await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["channelId"] = json!(number.channel_id);
        })
        .await;
    let before = world.wait_ready(&number).await;
    let version = |channel: &aura_whatsapp_operator::api::WhatsAppChannel| {
        channel.status.as_ref().unwrap().observed_secret_version.clone()
    };
    let slow = Fault::delay(Duration::from_millis(700))
        .on(Endpoint::WebhookGet)
        .times(1);
    let calls = world.kernel.call_count();
    world.kernel.inject(slow);
    let ask = json!({"metadata": {"annotations": {"channels.auracognitive.com/requestedAt": "rotation"}}});
    world.patch_channel(&number, ask).await;
    world
        .until("the look is under way", async || {
            let calls = world.kernel.calls_since(calls);
            calls.iter().any(|call| call.endpoint == Endpoint::WebhookGet)
        })
        .await;
    // The look is under way, with the token and the secret of before: both are worth nothing from here on.
    world
        .kernel
        .rotate_secret(&number.client_id, "fake-rotated-secret");
    world
        .patch_secret(&number, json!({"stringData": {"secret": "fake-rotated-secret"}}))
        .await;
    let after = world
        .wait_for(&number, "to have seen the new Secret", |channel| {
            ready(channel).0 == "True" && version(channel) != version(&before)
        })
        .await;
    recorder.caught_up(&after).await;
    let rejected = |object: &serde_json::Value| {
        let ready = kstatus::condition(object, "Ready");
        ready.is_some_and(|ready| ready["reason"] == Reason::CredentialsRejected.as_str())
    };
    let seen = recorder.seen();
    assert!(!seen.iter().any(|seen| rejected(&seen.object)), "{seen:#?}");
    let refused = world.kernel.calls_since(calls);
    assert!(
        refused.iter().any(|call| call.status == Some(401)),
        "the old ones were tried: {refused:#?}"
    );
}
