//! The resource's definition on a real API server: what it takes, what it refuses, and with which words.

use aura_whatsapp_operator::{api::WhatsAppChannel, sim::dev::objects};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::support::{Number, cluster, project};

/// A channel of a test's own namespace with one value laid over it.
pub fn channel(namespace: &str, path: &str, value: &Value) -> Value {
    let mut channel = Number::new("1002").channel();
    channel["metadata"]["namespace"] = json!(namespace);
    channel["metadata"]["name"] = json!(format!("c-{}", uuid::Uuid::new_v4().simple()));
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = &mut channel["spec"];
    for part in parent.split('.').filter(|part| !part.is_empty()) {
        at = &mut at[part];
    }
    at[key] = value.clone();
    channel
}

/// Each rule: the field, a value that is taken, one that is not, and words of the refusal.
pub fn rules() -> Vec<(&'static str, Value, Value, &'static str)> {
    let id = "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42";
    vec![
        (
            "channelId",
            json!(id),
            json!(id.to_uppercase()),
            "channelId must be a UUID in lower case",
        ),
        (
            "channelId",
            json!(id),
            json!("1002"),
            "channelId must be a UUID in lower case, such as",
        ),
        (
            "channelId",
            json!(id),
            json!(format!("{id}0")),
            "Too long: may not be more than 36",
        ),
        ("channelId", json!(id), Value::Null, "spec.channelId"),
        (
            "phoneNumber",
            json!("1002"),
            json!("34 600"),
            "phoneNumber must be 3 to 15 digits",
        ),
        (
            "phoneNumber",
            json!("+346000000001"),
            json!("12"),
            "phoneNumber must be 3 to 15 digits",
        ),
        (
            "phoneNumber",
            json!("+346000000001"),
            json!("12345678901234567"),
            "Too long",
        ),
        (
            "environment",
            json!("es-pro"),
            json!("ES_PRO"),
            "environment must be the name of an environment",
        ),
        (
            "environment",
            json!("a"),
            json!("-a"),
            "environment must be the name of an environment",
        ),
        ("environment", json!("a"), json!("a".repeat(64)), "Too long"),
        (
            "kernel.credentialsSecretRef.name",
            json!("shop.es-1"),
            json!("Shop"),
            "name must be the name of a Secret",
        ),
        (
            "kernel.credentialsSecretRef.name",
            json!("a"),
            json!("../x"),
            "name must be the name of a Secret",
        ),
        (
            "kernel.credentialsSecretRef.idKey",
            json!("id.txt"),
            json!("a/b"),
            "idKey must be a key of the Secret",
        ),
        (
            "kernel.credentialsSecretRef.secretKey",
            json!("_x-1"),
            json!(""),
            "secretKey must be a key of the Secret",
        ),
        (
            "kernel.scopes.registration",
            json!(["whatsapp:app-admin"]),
            json!(["a b"]),
            "a scope is one word",
        ),
        (
            "kernel.scopes.messaging",
            json!(["x", "y"]),
            json!(["a\"b"]),
            "a scope is one word",
        ),
        (
            "kernel.scopes.messaging",
            json!([]),
            json!(vec!["x"; 17]),
            "must have at most 16 items",
        ),
        (
            "kernel.scopes.messaging",
            json!(["x"]),
            json!(["x".repeat(129)]),
            "Too long",
        ),
        (
            "kernel.purposes",
            json!(["p"]),
            json!(["p q"]),
            "a purpose is one word",
        ),
        (
            "kernel.purposes",
            json!([]),
            json!(vec!["p"; 17]),
            "must have at most 16 items",
        ),
        (
            "kernel.apiVersion",
            json!("v2"),
            json!("v3"),
            "supported values: \"v1\", \"v2\"",
        ),
        (
            "webhook.mode",
            json!("Observe"),
            json!("observe"),
            "supported values: \"Manage\", \"Observe\", \"Legacy\"",
        ),
        (
            "webhook.existing",
            json!("TakeOver"),
            json!("Force"),
            "supported values: \"Refuse\", \"TakeOver\"",
        ),
        (
            "webhook.onDelete",
            json!("Clear"),
            json!("Delete"),
            "supported values: \"Keep\", \"Clear\"",
        ),
        (
            "webhook.keyGeneration",
            json!(2),
            json!(0),
            "should be greater than or equal to 1",
        ),
        (
            "webhook.keyGeneration",
            json!(1_000_000),
            json!(1_000_001),
            "should be less than or equal to 1000000",
        ),
        (
            "webhook.apiKeySecretRef",
            json!({"name": "k", "key": "api-key"}),
            json!({"name": "k", "key": "a b"}),
            "key must be a key of the Secret",
        ),
        (
            "webhook.apiKeySecretRef",
            json!({"name": "k", "key": "k"}),
            json!({"name": "K", "key": "k"}),
            "name must be the name of a Secret",
        ),
        (
            "webhook.apiKeySecretRef",
            json!({"name": "k", "key": "k"}),
            json!({"name": "k"}),
            "key: Required value",
        ),
        (
            "delivery.mode",
            json!("Hold"),
            json!("Stop"),
            "supported values: \"Deliver\", \"Hold\"",
        ),
        (
            "delivery.onUndeliverable",
            json!("Continue"),
            json!("x"),
            "\"Continue\", \"HoldConversation\"",
        ),
        (
            "delivery.onUnknownSend",
            json!("Hold"),
            json!("x"),
            "\"Retry\", \"Hold\"",
        ),
        (
            "delivery.replyOrder",
            json!("AsReceived"),
            json!("x"),
            "\"AfterEarlierRequests\", \"AsReceived\"",
        ),
        (
            "delivery.unansweredAfter",
            json!("30s"),
            json!("10"),
            "unansweredAfter must be a duration such as 10s",
        ),
        (
            "delivery.unansweredAfter",
            json!("5m"),
            json!("5m1s"),
            "unansweredAfter must be between 1s and 5m",
        ),
        (
            "delivery.maxAge.toAura",
            json!("4h"),
            json!("4 h"),
            "toAura must be a duration such as 4h",
        ),
        (
            "delivery.maxAge.toAura",
            json!("168h"),
            json!("59s"),
            "toAura must be between 1m and 168h",
        ),
        (
            "delivery.maxAge.toUser",
            json!("1h30m"),
            json!("forever"),
            "toUser must be a duration such as 1h",
        ),
        (
            "delivery.maxAge.toUser",
            json!("1m"),
            json!("169h"),
            "toUser must be between 1m and 168h",
        ),
        (
            "delivery.messagesPerSecond",
            json!(1),
            json!(0),
            "should be greater than or equal to 1",
        ),
        (
            "delivery.messagesPerSecond",
            json!(1000),
            json!(1001),
            "should be less than or equal to 1000",
        ),
        (
            "conversion.channelData",
            json!("v3"),
            json!("v4"),
            "supported values: \"v1\", \"v2\", \"v3\"",
        ),
        (
            "conversion.options",
            json!("List"),
            json!("Carousel"),
            "\"Auto\", \"Buttons\", \"List\", \"Text\"",
        ),
        (
            "conversion.undeliveredText",
            json!("Lo sentimos"),
            json!("x".repeat(1025)),
            "Too long",
        ),
        ("suspend", json!(true), json!("yes"), "spec.suspend"),
        (
            "resyncPeriod",
            json!("30m"),
            json!("1d"),
            "resyncPeriod must be a duration such as 30m or 1h30m",
        ),
        (
            "resyncPeriod",
            json!("168h"),
            json!("30s"),
            "resyncPeriod must be between 1m and 168h",
        ),
        (
            "kernelUrl",
            Value::Null,
            json!("https://evil.example"),
            "field not declared in schema",
        ),
    ]
}

#[tokio::test]
async fn every_rule_takes_what_it_should_and_says_what_to_write_instead() {
    let cluster = cluster().await;
    let (client, namespace) = (cluster.admin(), cluster.namespace("rules").await);
    for (path, good, bad, words) in rules() {
        if !(good.is_null())
            && let Err(error) = objects::apply(&client, channel(&namespace, path, &good)).await
        {
            panic!("{path}: {good} should be taken: {error}");
        }
        match objects::apply(&client, channel(&namespace, path, &bad)).await {
            Ok(_) => panic!("{path}: {bad} should be refused"),
            Err(error) => {
                let error = format!(
                    "{error} {:?}",
                    std::error::Error::source(&error).map(ToString::to_string)
                );
                assert!(error.contains(words), "{path}: {bad}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn channel_id_and_environment_never_change() {
    let cluster = cluster().await;
    let (client, namespace) = (cluster.admin(), cluster.namespace("immutable").await);
    let applied = objects::apply(&client, channel(&namespace, "suspend", &json!(true)))
        .await
        .unwrap();
    let api: Api<WhatsAppChannel> = Api::namespaced(client, &namespace);
    for (field, value, words) in [
        (
            "channelId",
            "00000000-0000-4000-8000-000000000000",
            "channelId is immutable: delete this channel",
        ),
        (
            "environment",
            "br-pro",
            "environment is immutable: delete this channel",
        ),
    ] {
        let patch = Patch::Merge(json!({"spec": {field: value}}));
        let error = api
            .patch(&applied.name_any(), &PatchParams::default(), &patch)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let patch = Patch::Merge(json!({"spec": {"phoneNumber": "1003"}}));
    api.patch(&applied.name_any(), &PatchParams::default(), &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_new_object_has_no_defaults_but_a_status_that_nobody_has_observed() {
    let cluster = cluster().await;
    let (client, namespace) = (cluster.admin(), cluster.namespace("defaults").await);
    let sent = channel(&namespace, "suspend", &json!(false));
    let stored = serde_json::to_value(objects::apply(&client, sent.clone()).await.unwrap()).unwrap();
    assert_eq!(stored["spec"], sent["spec"], "a GitOps tool sees no difference");
    assert_eq!(stored["status"], json!({"observedGeneration": -1}));
}

#[tokio::test]
async fn conditions_are_held_to_the_rules_of_the_api_conventions() {
    let cluster = cluster().await;
    let (client, namespace) = (cluster.admin(), cluster.namespace("conditions").await);
    let applied = objects::apply(&client, channel(&namespace, "suspend", &json!(false)))
        .await
        .unwrap();
    let api: Api<WhatsAppChannel> = Api::namespaced(client, &namespace);
    let status = |status: &str, reason: &str| {
        Patch::Merge(
            json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": reason,
            "message": "m", "lastTransitionTime": "2026-11-22T10:00:00Z"}]}}),
        )
    };
    let name = applied.name_any();
    let parameters = PatchParams::default();
    let error = api
        .patch_status(&name, &parameters, &status("true", "Succeeded"))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("supported values: \"True\", \"False\", \"Unknown\""),
        "{error}"
    );
    let error = api
        .patch_status(&name, &parameters, &status("True", "two words"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("reason"), "{error}");
    api.patch_status(&name, &parameters, &status("True", "Succeeded"))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_examples_are_applied_without_a_warning_and_explained_well() {
    let cluster = cluster().await;
    let examples = project().join("examples");
    let examples = examples.to_str().unwrap();
    let (done, text) = cluster.kubectl(&["apply", "--server-side", "-f", examples]).await;
    assert!(done && !text.to_lowercase().contains("warning"), "{text}");
    let (done, text) = cluster
        .kubectl(&["apply", "--dry-run=server", "-f", examples])
        .await;
    assert!(done, "{text}");
    let (done, text) = cluster.kubectl(&["get", "wac", "-A"]).await;
    assert!(
        done && text.contains("ENVIRONMENT") && text.contains("+34600001002"),
        "{text}"
    );
    let (done, text) = cluster.kubectl(&["get", "aura", "-A", "-o", "wide"]).await;
    assert!(
        done && text.contains("CHANNEL") && text.contains("MESSAGE"),
        "{text}"
    );

    let (done, text) = cluster.kubectl(&["explain", "wac.spec"]).await;
    assert!(done, "{text}");
    for words in [
        "channelId",
        "-required-",
        "The UUID that identifies the channel in Aura",
        "resyncPeriod",
        "Default 1h",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    let (done, text) = cluster.kubectl(&["explain", "wac.spec.webhook.mode"]).await;
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(
        done && words.join(" ").contains("Observe checks everything"),
        "{text}"
    );
    // Nobody looks after these here: they were not Ready, and must not stay for other tests.
    let (done, text) = cluster.kubectl(&["delete", "-f", examples, "--wait=false"]).await;
    assert!(done, "{text}");
}
