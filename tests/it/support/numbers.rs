//! WhatsApp numbers of a world: a Kernel client, a Secret, a channel.

use std::collections::BTreeMap;

use aura_whatsapp_operator::{
    api::{REQUESTED_AT, WhatsAppChannel, conditions::Reason},
    sim::{
        dev::{bulk::create_all, objects, site::ENVIRONMENT},
        kernel::{ClientSpec, UserMessage},
    },
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::wait::await_condition,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{SOON, World, world::in_namespace};

/// Creations at once, where many are made.
const AT_ONCE: usize = 32;

fn object<K: DeserializeOwned>(object: Value, namespace: &str) -> K {
    serde_json::from_value(in_namespace(object, namespace)).unwrap()
}

/// One number.
#[derive(Clone)]
pub struct Number {
    /// The business number, and the name of the resource: `number-<digits>`.
    pub digits: String,
    pub name: String,
    pub secret_name: String,
    pub client_id: String,
    pub client_secret: String,
    pub channel_id: String,
}

impl Number {
    /// A number that nothing has heard of yet.
    pub fn new(digits: &str) -> Self {
        Self {
            digits: digits.to_owned(),
            name: format!("number-{digits}"),
            secret_name: format!("number-{digits}-kernel"),
            client_id: format!("fake-client-{digits}"),
            client_secret: format!("fake-secret-of-{digits}"),
            channel_id: Uuid::new_v4().to_string(),
        }
    }

    /// What Kernel knows of it.
    pub fn client(&self) -> ClientSpec {
        ClientSpec {
            id: self.client_id.clone(),
            secret: self.client_secret.clone(),
            scopes: vec![
                "whatsapp:app-admin".to_owned(),
                "whatsapp:app-messaging".to_owned(),
            ],
            number: format!("+34600{}", self.digits),
        }
    }

    /// Its Secret.
    pub fn secret(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": self.secret_name, "labels": {"channels.auracognitive.com/channel-secret": "true"}},
            "stringData": {"id": self.client_id, "secret": self.client_secret},
        })
    }

    /// Its channel.
    pub fn channel(&self) -> Value {
        json!({
            "apiVersion": "channels.auracognitive.com/v1alpha1", "kind": "WhatsAppChannel",
            "metadata": {"name": self.name},
            "spec": {
                "channelId": self.channel_id,
                "phoneNumber": format!("+34600{}", self.digits),
                "environment": ENVIRONMENT,
                "kernel": {"credentialsSecretRef": {"name": self.secret_name}},
            },
        })
    }
}

impl World {
    /// Applies an object in the world's namespace.
    pub async fn apply(&self, object: Value) {
        objects::apply(&self.client, in_namespace(object, &self.namespace))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Makes a number known to Kernel, applies its Secret and its channel (changed by `change`), and waits for
    /// nothing.
    pub async fn add(&self, digits: &str, change: impl FnOnce(&mut Value)) -> Number {
        let number = Number::new(digits);
        self.kernel.add_client(number.client());
        self.apply(number.secret()).await;
        let mut channel = number.channel();
        change(&mut channel);
        self.apply(channel).await;
        number
    }

    /// Makes many numbers known to Kernel, creates their Secrets and channels, and waits for nothing.
    pub async fn add_all(&self, numbers: &[Number]) {
        numbers
            .iter()
            .for_each(|number| self.kernel.add_client(number.client()));
        let secret = |number: &Number| object(number.secret(), &self.namespace);
        create_all(&self.secrets(), numbers.iter().map(secret), AT_ONCE, |_| {})
            .await
            .unwrap();
        self.create_channels(numbers).await;
    }

    /// Creates the channels of many numbers, and waits for nothing.
    pub async fn create_channels(&self, numbers: &[Number]) {
        let channel = |number: &Number| object(number.channel(), &self.namespace);
        create_all(&self.channels(), numbers.iter().map(channel), AT_ONCE, |_| {})
            .await
            .unwrap();
    }

    /// Waits until so many channels are there and all are as told; all of them are returned, by name.
    pub async fn wait_all(
        &self,
        count: usize,
        what: &str,
        is: impl Fn(&WhatsAppChannel) -> bool,
    ) -> BTreeMap<String, WhatsAppChannel> {
        let start = tokio::time::Instant::now();
        loop {
            let all = self.channels().list(&ListParams::default()).await.unwrap().items;
            let are = all.iter().filter(|channel| is(channel)).count();
            if all.len() == count && are == count {
                return all
                    .into_iter()
                    .map(|channel| (channel.name_any(), channel))
                    .collect();
            }
            assert!(
                start.elapsed() < SOON,
                "of {} channels, {are} are {what}, not {count}\n{}",
                all.len(),
                self.log("controller")
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// As [`World::add`], and waits until it is Ready and routed.
    pub async fn ready_number(&self, digits: &str) -> Number {
        let number = self.add(digits, |_| {}).await;
        self.wait_ready(&number).await;
        self.wait_routed(&number).await;
        number
    }

    /// Waits until the bridge knows a channel: it may hear of it after the controller has made it Ready. An empty call
    /// holds nothing and is answered 200 then.
    async fn wait_routed(&self, number: &Number) {
        let Some(url) = self
            .kernel
            .webhook_of(&number.client_id)
            .filter(|_| self.bridge.is_some())
        else {
            return;
        };
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        self.until("the bridge knows the channel", async || {
            let answer = http.post(&url).json(&serde_json::json!({})).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Waits until a channel is Ready.
    pub async fn wait_ready(&self, number: &Number) -> WhatsAppChannel {
        self.wait_for(number, "to be Ready", |channel| ready(channel).0 == "True")
            .await
    }

    /// Waits until a channel is not Ready for this reason.
    pub async fn wait_reason(&self, number: &Number, reason: Reason) -> WhatsAppChannel {
        self.wait_for(number, reason.as_str(), |channel| {
            ready(channel).1 == reason.as_str()
        })
        .await
    }

    /// Waits until a channel's resource is as told, and its status speaks of its present generation.
    pub async fn wait_for(
        &self,
        number: &Number,
        what: &str,
        is: impl Fn(&WhatsAppChannel) -> bool,
    ) -> WhatsAppChannel {
        let current = |channel: &WhatsAppChannel| {
            channel
                .status
                .as_ref()
                .and_then(|status| status.observed_generation)
                == channel.metadata.generation
        };
        let condition = |channel: Option<&WhatsAppChannel>| {
            channel.is_some_and(|channel| current(channel) && is(channel))
        };
        let found =
            tokio::time::timeout(SOON, await_condition(self.channels(), &number.name, condition)).await;
        let Ok(found) = found else {
            let is = self
                .channels()
                .get(&number.name)
                .await
                .map(|channel| ready(&channel));
            panic!(
                "waited for {} {what}; it is {is:?}\n{}",
                number.name,
                self.log("controller")
            );
        };
        found.unwrap().unwrap()
    }

    /// Asks for a look at Kernel now, by the annotation, and waits until it was made. `request` must be a new word.
    pub async fn look_now(&self, number: &Number, request: &str) -> WhatsAppChannel {
        let asked = json!({REQUESTED_AT: request});
        self.patch_channel(number, json!({"metadata": {"annotations": asked}}))
            .await;
        self.wait_for(number, "to be looked at", |channel| {
            handled(channel) == Some(request)
        })
        .await
    }

    /// Changes a channel's resource by a merge patch.
    pub async fn patch_channel(&self, number: &Number, patch: Value) {
        self.channels()
            .patch(&number.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// Changes a Secret by a merge patch.
    pub async fn patch_secret(&self, number: &Number, patch: Value) {
        self.secrets()
            .patch(&number.secret_name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// A user writes to a number and gets the `n`-th message of his life; all of them are returned.
    pub async fn converse(&self, number: &Number, user: &str, text: &str, n: usize) -> Vec<UserMessage> {
        self.kernel.user_sends(&number.digits, user, text).unwrap();
        self.wait_received(user, n).await
    }

    /// Waits until a user has received `n` messages.
    pub async fn wait_received(&self, user: &str, n: usize) -> Vec<UserMessage> {
        self.kernel
            .wait_received(user, n, SOON)
            .await
            .unwrap_or_else(|late| panic!("{late:?}\n{}", self.log("bridge")))
    }
}

/// The last request for a look that was acted on.
pub fn handled(channel: &WhatsAppChannel) -> Option<&str> {
    channel.status.as_ref()?.last_handled_reconcile_at.as_deref()
}

/// A condition of a channel: its status, reason and message; empty where it has none.
pub fn condition(channel: &WhatsAppChannel, kind: &str) -> (String, String, String) {
    channel
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|condition| condition.type_ == kind)
        .map(|found| (found.status.clone(), found.reason.clone(), found.message.clone()))
        .unwrap_or_default()
}

/// A channel's Ready condition.
pub fn ready(channel: &WhatsAppChannel) -> (String, String, String) {
    condition(channel, "Ready")
}
