//! One installation for the whole cluster: the chart's rules as ClusterRoles, and `watchNamespaces: ["*"]`.

use aura_whatsapp_operator::{
    api::{FINALIZER, WhatsAppChannel},
    sim::dev::objects,
};
use k8s_openapi::api::{core::v1::Secret, events::v1::Event, rbac::v1::RoleBinding};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};

use crate::support::{Number, SOON, World, private_cluster, ready};

const USER: &str = "34600000001";

fn channels(world: &World, namespace: &str) -> Api<WhatsAppChannel> {
    Api::namespaced(world.client.clone(), namespace)
}

/// Makes a number known to Kernel and to this namespace.
async fn add(world: &World, namespace: &str, digits: &str, change: impl FnOnce(&mut Value)) -> Number {
    let number = Number::new(digits);
    world.kernel.add_client(number.client());
    let mut channel = number.channel();
    change(&mut channel);
    for mut object in [number.secret(), channel] {
        object["metadata"]["namespace"] = namespace.into();
        objects::apply(&world.client, object).await.unwrap();
    }
    number
}

async fn wait(
    world: &World,
    namespace: &str,
    number: &Number,
    what: &str,
    is: impl Fn(&WhatsAppChannel) -> bool,
) -> WhatsAppChannel {
    let found = await_condition(
        channels(world, namespace),
        &number.name,
        |channel: Option<&WhatsAppChannel>| channel.is_some_and(&is),
    );
    let found = tokio::time::timeout(SOON, found).await;
    let told = || {
        format!(
            "waited for {namespace}/{} {what}\n{}",
            number.name,
            world.log("controller")
        )
    };
    found.unwrap_or_else(|_| panic!("{}", told())).unwrap().unwrap()
}

#[tokio::test]
async fn both_roles_serve_channels_of_every_namespace_with_the_charts_rules() {
    let cluster = private_cluster().await;
    let world = World::builder("everywhere")
        .release_apart()
        .with_another_namespace()
        .cluster_wide()
        .start_on(&cluster)
        .await;
    let (one, two) = (world.namespace.clone(), world.other_namespace.clone().unwrap());
    let bindings: Api<RoleBinding> = Api::namespaced(world.client.clone(), &two);
    let bindings = bindings.list(&ListParams::default()).await.unwrap();
    assert_eq!(bindings.items.len(), 0, "nothing is granted there alone");
    // Made while both roles run.
    let three = cluster.namespace("later").await;

    let clear = |channel: &mut Value| channel["spec"]["webhook"] = json!({"onDelete": "Clear"});
    let numbers = [
        (one.as_str(), add(&world, &one, "1002", |_| {}).await),
        (two.as_str(), add(&world, &two, "1004", clear).await),
        (three.as_str(), add(&world, &three, "1006", |_| {}).await),
    ];
    let is_ready = |channel: &WhatsAppChannel| ready(channel).0 == "True";
    for (n, (namespace, number)) in numbers.iter().enumerate() {
        wait(&world, namespace, number, "to be Ready", is_ready).await;
        let received = world.converse(number, USER, "hola", n + 1).await;
        assert_eq!(received[n].client_id, number.client_id);
        let events: Api<Event> = Api::namespaced(world.client.clone(), namespace);
        world
            .until("it has an event", async || {
                let events = events.list(&ListParams::default()).await.unwrap();
                events.iter().any(|event| {
                    let about = event.regarding.as_ref();
                    about.and_then(|about| about.name.as_deref()) == Some(number.name.as_str())
                })
            })
            .await;
    }

    // Its Secret is followed, by both roles.
    let (namespace, number) = &numbers[1];
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), namespace);
    world
        .kernel
        .rotate_secret(&number.client_id, "fake-secret-of-tomorrow");
    let patch = json!({"stringData": {"secret": "fake-secret-of-tomorrow"}});
    let rotated = secrets
        .patch(&number.secret_name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    let version = rotated.resource_version();
    wait(
        &world,
        namespace,
        number,
        "to be Ready with its new secret",
        |channel| is_ready(channel) && channel.status.as_ref().unwrap().observed_secret_version == version,
    )
    .await;
    let received = world.converse(number, USER, "otra vez", 4).await;
    assert_eq!(received[3].client_id, number.client_id);

    // So are its deletion, and the finalizer.
    let channels = channels(&world, namespace);
    let channel = channels.get(&number.name).await.unwrap();
    assert_eq!(channel.finalizers(), [FINALIZER]);
    let uid = channel.uid().unwrap();
    let delete = DeleteParams::default();
    channels.delete(&number.name, &delete).await.unwrap();
    let gone = await_condition(channels, &number.name, conditions::is_deleted(&uid));
    tokio::time::timeout(SOON, gone).await.expect("it goes").unwrap();
    assert_eq!(world.kernel.webhook_of(&number.client_id).unwrap_or_default(), "");
    world
        .until("it is not routed any more", async || {
            let routes = world
                .metric(world.site.bridge_admin, "aura_whatsapp_routes")
                .await;
            (routes - 2.0).abs() < 0.5
        })
        .await;
}
