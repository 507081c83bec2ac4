//! What each role may do in the cluster, with the chart's own rules: all that it needs, and no more.

use aura_whatsapp_operator::lineage::DEFAULT_RECORD;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    coordination::v1::Lease,
    core::v1::ConfigMap,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use serde_json::json;

use crate::support::World;

async fn may(client: &Client, namespace: &str, verb: &str, group: &str, resource: &str) -> bool {
    let (resource, subresource) = resource
        .split_once('/')
        .map_or((resource, None), |(a, b)| (a, Some(b.to_owned())));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    reviews
        .create(&PostParams::default(), &review)
        .await
        .unwrap()
        .status
        .unwrap()
        .allowed
}

/// Whether the record of the journal may be read, and whether another ConfigMap may.
async fn may_read_config_maps(client: &Client, namespace: &str) -> (bool, bool) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    (
        maps.get_opt(DEFAULT_RECORD).await.is_ok(),
        maps.get_opt("another").await.is_ok(),
    )
}

/// A client with the rights of a role's ServiceAccount.
pub async fn as_role(world: &World, account: &str) -> Client {
    let file = world.site.dir().join(format!("{account}.kubeconfig"));
    let config = Kubeconfig::read_from(file).unwrap();
    Client::try_from(
        Config::from_custom_kubeconfig(config, &Default::default())
            .await
            .unwrap(),
    )
    .unwrap()
}

const GROUP: &str = "channels.auracognitive.com";

#[tokio::test]
async fn the_bridge_may_read_and_nothing_else() {
    let world = World::start("bridge-rights").await;
    let bridge = as_role(&world, "aura-whatsapp-bridge").await;
    let here = world.namespace.as_str();
    for verb in ["get", "list", "watch"] {
        assert!(
            may(&bridge, here, verb, GROUP, "whatsappchannels").await,
            "{verb}"
        );
    }
    assert!(may(&bridge, here, "get", "", "secrets").await);
    assert_eq!(may_read_config_maps(&bridge, here).await, (true, false));
    for (verb, group, resource) in [
        ("patch", GROUP, "whatsappchannels"),
        ("update", GROUP, "whatsappchannels/status"),
        ("patch", GROUP, "whatsappchannels/status"),
        ("list", "", "secrets"),
        ("watch", "", "secrets"),
        ("create", "", "secrets"),
        ("create", "events.k8s.io", "events"),
        ("get", "", "configmaps"),
        ("create", "", "serviceaccounts/token"),
    ] {
        assert!(
            !may(&bridge, here, verb, group, resource).await,
            "{verb} {resource}"
        );
    }
    assert!(!may(&bridge, "default", "get", "", "secrets").await);
}

#[tokio::test]
async fn the_controller_may_report_and_not_write_a_spec_or_another_secret() {
    let world = World::start("controller-rights").await;
    let controller = as_role(&world, "aura-whatsapp-controller").await;
    let here = world.namespace.as_str();
    for (verb, group, resource) in [
        ("watch", GROUP, "whatsappchannels"),
        ("patch", GROUP, "whatsappchannels"),
        ("patch", GROUP, "whatsappchannels/status"),
        ("get", "", "secrets"),
        ("create", "", "secrets"),
        ("create", "events.k8s.io", "events"),
        ("create", "coordination.k8s.io", "leases"),
    ] {
        assert!(
            may(&controller, here, verb, group, resource).await,
            "{verb} {resource}"
        );
    }
    for (verb, group, resource) in [
        ("create", GROUP, "whatsappchannels"),
        ("delete", GROUP, "whatsappchannels"),
        ("update", "", "secrets"),
        ("patch", "", "secrets"),
        ("delete", "", "secrets"),
        ("create", "", "pods"),
        ("get", "", "configmaps"),
        // But its own, by name.
        ("get", "coordination.k8s.io", "leases"),
        ("update", "coordination.k8s.io", "leases"),
        ("delete", "coordination.k8s.io", "leases"),
    ] {
        assert!(
            !may(&controller, here, verb, group, resource).await,
            "{verb} {resource}"
        );
    }
    assert_eq!(may_read_config_maps(&controller, here).await, (true, false));
    assert!(!may(&controller, "default", "get", "", "secrets").await);
    assert!(!may(&controller, "kube-system", "create", "", "secrets").await);
}

#[tokio::test]
async fn the_journal_is_recorded_under_its_own_name_by_the_controller_alone() {
    let world = World::start("record-rights").await;
    let here = world.namespace.as_str();
    let write = async |client: Client, name: &str| {
        let maps: Api<ConfigMap> = Api::namespaced(client, here);
        let map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
        let parameters = PatchParams::apply("a-test").force();
        maps.patch(name, &parameters, &Patch::Apply(map)).await
    };
    let refused = |result: Result<ConfigMap, kube::Error>| matches!(result, Err(kube::Error::Api(status)) if status.is_forbidden());
    let (controller, bridge) = (
        as_role(&world, "aura-whatsapp-controller").await,
        as_role(&world, "aura-whatsapp-bridge").await,
    );
    assert!(refused(write(bridge.clone(), DEFAULT_RECORD).await));
    assert!(refused(write(controller.clone(), "another").await));
    // The creation is bound to the name as well, which `create` alone could not be.
    assert_eq!(
        write(controller.clone(), DEFAULT_RECORD)
            .await
            .unwrap()
            .data
            .unwrap()["a"],
        "b"
    );
    let maps: Api<ConfigMap> = Api::namespaced(controller, here);
    assert!(
        maps.delete(DEFAULT_RECORD, &DeleteParams::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_controller_may_make_renew_and_release_its_lease() {
    const LEASE: &str = "aura-whatsapp-operator-controller";
    let mut world = World::start("lease-rights").await;
    // Nobody but the test writes.
    world.controller.take().unwrap().kill9().await.unwrap();
    let client = as_role(&world, "aura-whatsapp-controller").await;
    let leases: Api<Lease> = Api::namespaced(client, &world.namespace);
    let parameters = PostParams::default();
    let mut lease = match leases.get_opt(LEASE).await.unwrap() {
        Some(lease) => lease,
        None => {
            let lease = serde_json::from_value(json!({
                "metadata": {"name": LEASE},
                "spec": {"holderIdentity": "a-test", "leaseDurationSeconds": 12},
            }));
            leases.create(&parameters, &lease.unwrap()).await.unwrap()
        }
    };
    // Released: an empty holder is a valid one.
    lease.spec.as_mut().unwrap().holder_identity = Some(String::new());
    let released = leases.replace(LEASE, &parameters, &lease).await.unwrap();
    assert_eq!(released.spec.unwrap().holder_identity.as_deref(), Some(""));
    let error = leases.replace(LEASE, &parameters, &lease).await.unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(status) if status.is_conflict()),
        "{error}"
    );
    // Without a version nothing is written.
    lease.metadata.resource_version = None;
    assert!(leases.replace(LEASE, &parameters, &lease).await.is_err());
}
