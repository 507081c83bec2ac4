//! Both roles where the resource's definition is missing or older than the program: they say so, keep running, and go on
//! by themselves when it is put right.

use std::{net::SocketAddr, time::Duration};

use aura_whatsapp_operator::{
    api::crd,
    cluster::schema::{self, Installed},
    sim::{
        controlplane::Child,
        dev::{
            objects,
            site::{self, get},
        },
    },
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, api::DeleteParams};

use crate::support::{SOON, TestCluster, World, private_cluster};

const NAME: &str = "whatsappchannels.channels.auracognitive.com";
const USER: &str = "34600000001";

async fn published(client: &Client, is: impl Fn(&Installed) -> bool) {
    let start = tokio::time::Instant::now();
    while !schema::check(client).await.is_ok_and(|found| is(&found)) {
        assert!(start.elapsed() < SOON * 2, "the API server publishes another");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn delete_definition(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.delete(NAME, &DeleteParams::default()).await.unwrap();
    published(client, |found| *found == Installed::Missing).await;
}

/// A world whose bridge has never run and whose controller is stopped.
async fn stopped(prefix: &'static str, cluster: &TestCluster) -> World {
    let mut world = World::builder(prefix).without_bridge().start_on(cluster).await;
    world.controller.take().unwrap().stop().await.unwrap();
    world
}

/// Waits until a role that runs is not ready and says all of this.
async fn says(child: &Child, admin: SocketAddr, words: &[&str]) {
    let start = tokio::time::Instant::now();
    loop {
        let page = get(admin, "/readyz").await;
        if let Some((503, text)) = &page
            && words.iter().all(|word| text.contains(word))
        {
            break;
        }
        assert!(
            start.elapsed() < SOON,
            "{} says {page:?}, not {words:?}\n{}",
            child.name(),
            child.output(20)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nothing that a new start would mend.
    let healthy = get(admin, "/healthz").await;
    assert!(matches!(healthy, Some((200, _))), "{healthy:?}");
}

async fn becomes_ready(child: &Child, admin: SocketAddr) {
    let start = tokio::time::Instant::now();
    while get(admin, "/readyz")
        .await
        .is_none_or(|(status, _)| status != 200)
    {
        assert!(
            start.elapsed() < SOON * 2,
            "{}\n{}",
            child.name(),
            child.output(20)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(child.try_wait().unwrap().is_none(), "{} still runs", child.name());
}

#[tokio::test]
async fn without_the_definition_both_roles_say_so_and_go_on_by_themselves_when_it_is_there() {
    let install = [
        NAME,
        "is not installed; install it: aura-whatsapp-operator crd | kubectl apply",
    ];
    let cluster = private_cluster().await;
    let mut world = stopped("no-crd", &cluster).await;
    delete_definition(&world.client).await;
    let controller = world.site.spawn_controller().unwrap();
    let bridge = world.site.spawn_bridge().await.unwrap();
    says(&controller, world.site.controller_admin, &install).await;
    says(&bridge, world.site.bridge_admin, &install).await;

    site::install_crd(&world.client).await.unwrap();
    becomes_ready(&controller, world.site.controller_admin).await;
    becomes_ready(&bridge, world.site.bridge_admin).await;
    let number = world.ready_number("1002").await;
    world.converse(&number, USER, "uno", 1).await;

    // It goes under both, with all channels: nothing of Kernel's is touched, and the same channel comes back.
    let sets = world.kernel.webhook_sets(&number.client_id);
    delete_definition(&world.client).await;
    site::install_crd(&world.client).await.unwrap();
    world.apply(number.channel()).await;
    world.wait_ready(&number).await;
    assert_eq!(world.kernel.webhook_sets(&number.client_id), sets);
    world.converse(&number, USER, "dos", 2).await;
    for child in [&controller, &bridge] {
        assert!(child.try_wait().unwrap().is_none(), "{} still runs", child.name());
    }
    world.controller = Some(controller);
    world.bridge = Some(bridge);
}

#[tokio::test]
async fn with_an_older_definition_the_controller_writes_nothing_until_it_is_updated() {
    let cluster = private_cluster().await;
    let mut world = stopped("old-crd", &cluster).await;
    let mut older = serde_json::to_value(crd::definition().unwrap()).unwrap();
    let status = older
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties")
        .unwrap();
    status.as_object_mut().unwrap().remove("takenOver").unwrap();
    objects::apply(&world.client, older).await.unwrap();
    published(&world.client, |found| matches!(found, Installed::Older { .. })).await;
    let controller = world.site.spawn_controller().unwrap();
    let number = world.add("1002", |_| {}).await;
    let update = [
        "older than this program",
        "lacks status.takenOver",
        "update it: aura-whatsapp-operator crd",
    ];
    says(&controller, world.site.controller_admin, &update).await;
    // Nor does it lead: another that can work must not wait for it.
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.namespace);
    let lease = leases.get("aura-whatsapp-operator-controller").await.unwrap();
    let holder = lease
        .spec
        .and_then(|spec| spec.holder_identity)
        .unwrap_or_default();
    assert_eq!(
        holder, "",
        "the one before has released it, and nobody has taken it"
    );
    // The bridge writes nothing: it does with what is there.
    world.start_bridge().await;
    assert_eq!(world.kernel.call_count(), 0);
    let channel = world.channels().get(&number.name).await.unwrap();
    assert_eq!(channel.status.and_then(|status| status.registered_at), None);

    site::install_crd(&world.client).await.unwrap();
    becomes_ready(&controller, world.site.controller_admin).await;
    world.wait_ready(&number).await;
    world.converse(&number, USER, "hola", 1).await;
    world.controller = Some(controller);
}
