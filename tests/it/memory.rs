//! What a controller and a bridge keep in memory: their channels, not their neighbours' objects (Law 11).

use std::collections::BTreeMap;

use aura_whatsapp_operator::sim::{
    controlplane::{Child, requests},
    dev::{bulk::create_all, site::resident_bytes},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::ObjectMeta;
use serde_json::json;

use crate::support::{World, condition, private_cluster};

/// Secrets that have nothing to do with WhatsApp: some 100 Helm releases and the certificates of a busy namespace.
const UNRELATED: usize = 30_000;
/// The size of each one's value.
const BYTES: usize = 1024;
/// Creations at once.
const AT_ONCE: usize = 64;
/// What a process may grow by meanwhile, in bytes: what connections and an allocator take for themselves. Who keeps
/// only the metadata of those Secrets grows by several times as much.
const GROWTH: u64 = 3 << 20;

fn unrelated(namespace: &str, n: usize) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("unrelated-{n:05}")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "value".to_owned(),
            ByteString(vec![b'x'; BYTES]),
        )])),
        ..Secret::default()
    }
}

fn resident(process: Option<&Child>) -> u64 {
    resident_bytes(process.unwrap().pid()).unwrap()
}

#[tokio::test]
async fn memory_does_not_grow_with_the_unrelated_secrets_of_a_namespace() {
    let cluster = private_cluster().await;
    let mut world = World::builder("memory").start_on(&cluster).await;
    let (first, second) = (world.ready_number("1002").await, world.ready_number("1004").await);
    for number in [&first, &second] {
        world
            .converse(number, &format!("3460000{}", number.digits), "hola", 1)
            .await;
    }
    let before = [world.controller.as_ref(), world.bridge.as_ref()].map(resident);
    let sent_before = requests::watch_events(&world.client, "secrets").await.unwrap();

    let start = tokio::time::Instant::now();
    let secrets = (0..UNRELATED).map(|n| unrelated(&world.namespace, n));
    create_all(&world.secrets(), secrets, AT_ONCE, |_| {})
        .await
        .unwrap();
    println!("{UNRELATED} Secrets created in {:?}", start.elapsed());

    // Both are handled: nothing is still to be read that memory could yet grow with.
    world
        .patch_channel(&first, json!({"spec": {"webhook": {"keyGeneration": 2}}}))
        .await;
    world.wait_ready(&first).await;
    assert_eq!(world.kernel.webhook_sets(&first.client_id), 2);
    let version = |channel: &aura_whatsapp_operator::api::WhatsAppChannel| {
        channel.status.as_ref().unwrap().observed_secret_version.clone()
    };
    let old = version(&world.channels().get(&second.name).await.unwrap());
    world
        .kernel
        .rotate_secret(&second.client_id, "fake-rotated-secret");
    world
        .patch_secret(&second, json!({"stringData": {"secret": "fake-rotated-secret"}}))
        .await;
    let channel = world
        .wait_for(&second, "to see its new Secret", |channel| {
            version(channel) != old
        })
        .await;
    assert_eq!(condition(&channel, "CredentialsValid").0, "True");

    let sent = requests::watch_events(&world.client, "secrets").await.unwrap() - sent_before;
    let after = [world.controller.as_ref(), world.bridge.as_ref()].map(resident);
    let grown = [0, 1].map(|role| after[role].saturating_sub(before[role]));
    println!(
        "controller and bridge had {before:?} bytes and grew by {grown:?}; {sent} events of Secrets were sent"
    );
    assert!(
        grown.iter().all(|grown| *grown < GROWTH),
        "{before:?}, then {after:?}"
    );
    // The API server itself watches Secrets and is sent each once; a role that did so too would be sent as many.
    assert!(
        sent < UNRELATED as u64 * 3 / 2,
        "{sent} events of Secrets were sent"
    );

    // Nor does a start beside them, which lists before it watches.
    world.controller.take().unwrap().stop().await.unwrap();
    world.controller = Some(world.site.start_controller().await.unwrap());
    world.look_now(&first, "now").await;
    let anew = resident(world.controller.as_ref());
    println!("the controller that was started beside them has {anew} bytes");
    assert!(anew < before[0] + GROWTH, "{} before, {anew} anew", before[0]);
}
