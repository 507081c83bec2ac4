//! The numbers that the controller is loaded with: a Kernel client, a Secret and a channel each, all made up.

use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::{dev::site::ENVIRONMENT, kernel::ClientSpec},
};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use uuid::Uuid;

/// The resource's name of the n-th number.
pub fn name(n: usize) -> String {
    format!("number-{n:06}")
}

/// The id of its Kernel client.
pub fn client_id(n: usize) -> String {
    format!("fake-client-{n:06}")
}

fn client_secret(n: usize) -> String {
    format!("fake-secret-of-{n:06}")
}

fn phone_number(n: usize) -> String {
    format!("+34600{n:06}")
}

/// What Kernel knows of it.
pub fn client(n: usize) -> ClientSpec {
    ClientSpec {
        id: client_id(n),
        secret: client_secret(n),
        scopes: vec!["whatsapp:app-admin".into(), "whatsapp:app-messaging".into()],
        number: phone_number(n),
    }
}

/// Its Secret.
pub fn secret(namespace: &str, n: usize) -> serde_json::Result<Secret> {
    serde_json::from_value(json!({
        "metadata": {"name": secret_name(n), "namespace": namespace,
                     "labels": {"channels.auracognitive.com/channel-secret": "true"}},
        "stringData": {"id": client_id(n), "secret": client_secret(n)},
    }))
}

fn secret_name(n: usize) -> String {
    format!("{}-kernel", name(n))
}

/// Its channel.
pub fn channel(namespace: &str, n: usize) -> serde_json::Result<WhatsAppChannel> {
    let spec: Value = json!({
        "channelId": Uuid::new_v4().to_string(),
        "phoneNumber": phone_number(n),
        "environment": ENVIRONMENT,
        "kernel": {"credentialsSecretRef": {"name": secret_name(n)}},
    });
    serde_json::from_value(json!({
        "apiVersion": "channels.auracognitive.com/v1alpha1", "kind": "WhatsAppChannel",
        "metadata": {"name": name(n), "namespace": namespace},
        "spec": spec,
    }))
}
