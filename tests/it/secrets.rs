//! Secrets as people make them: with a line's end too much, or with something that is no credential.

use aura_whatsapp_operator::api::conditions::Reason;
use serde_json::json;

use crate::support::{Number, World, condition, ready};

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
