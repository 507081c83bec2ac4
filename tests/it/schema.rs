//! Whether the installed definition is ours, as a real API server publishes it.

use aura_whatsapp_operator::{
    api::crd,
    cluster::{
        self,
        schema::{Installed, check},
    },
    sim::dev::objects,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, api::DeleteParams};
use serde_json::Value;

use crate::support::{SOON, World, private_cluster};

const NAME: &str = "whatsappchannels.channels.auracognitive.com";

/// What is published follows a change a moment later.
async fn becomes(client: &Client, expected: &Installed) {
    let deadline = tokio::time::Instant::now() + SOON * 2;
    loop {
        let found = check(client).await.unwrap();
        if found == *expected {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{found:?}, not {expected:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn definition() -> Value {
    serde_json::to_value(crd::definition().unwrap()).unwrap()
}

#[tokio::test]
async fn a_missing_and_an_older_definition_are_known_and_a_restored_one_is_good() {
    let cluster = private_cluster().await;
    let client = cluster.admin();
    becomes(&client, &Installed::Good).await;

    let mut older = definition();
    let schema = older
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties")
        .unwrap();
    let status = schema
        .pointer_mut("/status/properties")
        .unwrap()
        .as_object_mut()
        .unwrap();
    status.remove("observedSecretVersion").unwrap();
    let key = status["webhookKey"]["properties"].as_object_mut().unwrap();
    key.remove("installationKeyId").unwrap();
    let spec = schema
        .pointer_mut("/spec/properties")
        .unwrap()
        .as_object_mut()
        .unwrap();
    spec.remove("suspend").unwrap();
    objects::apply(&client, older).await.unwrap();
    let lacks = [
        "spec.suspend",
        "status.observedSecretVersion",
        "status.webhookKey.installationKeyId",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    becomes(&client, &Installed::Older { lacks }).await;

    objects::apply(&client, definition()).await.unwrap();
    becomes(&client, &Installed::Good).await;

    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.delete(NAME, &DeleteParams::default()).await.unwrap();
    becomes(&client, &Installed::Missing).await;

    objects::apply(&client, definition()).await.unwrap();
    becomes(&client, &Installed::Good).await;

    // An API server that is away says nothing about what is installed.
    cluster.control_plane.stop_api_server().await.unwrap();
    assert!(check(&client).await.is_err());
}

#[tokio::test]
async fn the_controller_may_read_what_is_published_with_no_further_right() {
    let world = World::start("schema").await;
    let kubeconfig = world.site.dir().join("aura-whatsapp-controller.kubeconfig");
    let client = cluster::client(Some(&kubeconfig)).await.unwrap();
    assert_eq!(check(&client).await.unwrap(), Installed::Good);
    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    let refused = definitions.get(NAME).await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.is_forbidden()),
        "{refused}"
    );
}
