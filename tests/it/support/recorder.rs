//! Every version of one channel, in order, from before its creation.

use std::sync::{Arc, Mutex};

use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::{fault::Endpoint, kernel::KernelSim},
};
use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, WatchEvent, WatchParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle};

use super::{Number, SOON, World};

/// One version.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The whole object.
    pub object: Value,
    /// The last version, of an object that is gone.
    pub deleted: bool,
    /// The webhooks that Kernel had taken from this client by then.
    pub taken: Vec<String>,
}

/// Watches one channel.
pub struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    changed: watch::Receiver<()>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Records a channel from now on: every version, if it is yet to be made.
    pub async fn start(world: &World, number: &Number) -> Self {
        let kind = GroupVersionKind::gvk("channels.auracognitive.com", "v1alpha1", "WhatsAppChannel");
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), &world.namespace, &resource);
        let from = api.list(&ListParams::default()).await.unwrap();
        let from = from.metadata.resource_version.unwrap();
        let parameters = WatchParams::default()
            .fields(&format!("metadata.name={}", number.name))
            .timeout(290);
        let mut events = api.watch(&parameters, &from).await.unwrap().boxed();
        let (seen, (tell, changed)) = (Arc::new(Mutex::new(Vec::new())), watch::channel(()));
        let (into, kernel, client) = (seen.clone(), world.kernel.clone(), number.client_id.clone());
        let task = tokio::spawn(async move {
            while let Some(event) = events.try_next().await.unwrap() {
                let (object, deleted) = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                    WatchEvent::Deleted(object) => (object, true),
                    WatchEvent::Bookmark(_) => continue,
                    WatchEvent::Error(error) => panic!("{error:?}"),
                };
                let version = Seen {
                    object: serde_json::to_value(object).unwrap(),
                    deleted,
                    taken: taken(&kernel, &client),
                };
                into.lock().unwrap().push(version);
                tell.send_replace(());
            }
        });
        Self { seen, changed, task }
    }

    /// Waits until this version was recorded: what happens next can't be taken for what came before it.
    pub async fn caught_up(&mut self, channel: &WhatsAppChannel) {
        let wanted: u64 = channel.resource_version().unwrap().parse().unwrap();
        self.wait(|seen| version(seen) >= wanted).await;
    }

    /// Waits until the channel is gone.
    pub async fn gone(&mut self) {
        self.wait(|seen| seen.deleted).await;
    }

    async fn wait(&mut self, is: impl Fn(&Seen) -> bool) {
        let there = async {
            while !self.seen.lock().unwrap().last().is_some_and(&is) {
                self.changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, there)
            .await
            .expect("the recorder catches up");
    }

    /// What was recorded so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn version(seen: &Seen) -> u64 {
    seen.object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// The webhooks that Kernel took from a client, in order, its answer known or not.
fn taken(kernel: &KernelSim, client: &str) -> Vec<String> {
    kernel
        .calls()
        .iter()
        .filter(|call| call.endpoint == Endpoint::WebhookSet && call.client_id.as_deref() == Some(client))
        .filter(|call| call.status == Some(201))
        .filter_map(|call| Some(call.body["webhooks"]["url"].as_str()?.to_owned()))
        .collect()
}
