//! What each role may do in the cluster, with the chart's own rules: all that it needs, and no more.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, Config, api::PostParams, config::Kubeconfig};

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

async fn as_role(world: &World, account: &str) -> Client {
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
    ] {
        assert!(
            !may(&controller, here, verb, group, resource).await,
            "{verb} {resource}"
        );
    }
    assert!(!may(&controller, "default", "get", "", "secrets").await);
    assert!(!may(&controller, "kube-system", "create", "", "secrets").await);
}
