//! What the leader asks the bridge, and what it writes of the answers: each channel's condition `Delivering`, and the record
//! of the journal (`crate::lineage`). Thin: what to write is decided in `delivering` and `lineage`.
//!
//! The bridge faces the internet and writes nothing in the cluster; the leader is the one writer (Law 10). It asks on its
//! own, so a bridge that hangs or is away holds up no reconciliation.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use reqwest::{Client, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::json;
use url::Url;

use super::{
    context::Context,
    delivering::{Channel, Tracker},
    object_key::ObjectKey,
    reconcile::{ReconcileError, claimed},
};
use crate::{
    api::{Condition, Deliveries, Delivering, WhatsAppChannel, conditions::types},
    http,
    lineage::{Record, Told, to_record},
};

/// Where the bridge is, and how it is asked.
#[derive(Clone, Debug)]
pub struct Asks {
    /// Its admin listener; `None`: nobody is asked.
    pub url: Option<Url>,
    /// How often, about.
    pub every: Duration,
    /// The name of the record's ConfigMap, in the release's namespace.
    pub record: String,
}

/// It is asked no more often.
const AT_MOST_EVERY: Duration = Duration::from_millis(100);
/// The time for one question.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer, in bytes: some 100,000 channels of which none is well.
const MAX_ANSWER: usize = 8 << 20;
/// Looks from one record of a journal to the next.
const RECORD_AFTER: u32 = 2;
/// The field managers: others than the status's, so that neither takes the other's part away.
const DELIVERING_MANAGER: &str = "aura-whatsapp-operator/delivering";
const RECORD_MANAGER: &str = "aura-whatsapp-operator/journal";

/// Asks the bridge for as long as this process leads; does not end.
pub(super) async fn follow(context: Arc<Context>, asks: Asks) {
    let Some(url) = asks.url else {
        return std::future::pending().await;
    };
    let client = match http::direct_client(TIMEOUT) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "can't ask the bridge: no HTTP client");
            return std::future::pending().await;
        }
    };
    let mut leadership = context.leadership.clone();
    loop {
        leadership.acquired().await;
        let term = leadership.term();
        let mut look = Look {
            context: context.clone(),
            client: client.clone(),
            url: url.clone(),
            record: asks.record.clone(),
            known: None,
            tracker: Tracker::default(),
            recorded: None,
            since_record: 0,
            answers: None,
        };
        let looks = async {
            context.wait_listed().await;
            loop {
                look.once().await;
                // Several releases in a cluster do not ask in step.
                tokio::time::sleep(asks.every.max(AT_MOST_EVERY).mul_f64(0.9 + 0.2 * fastrand::f64())).await;
            }
        };
        tokio::select! {
            () = leadership.term_is_over(term) => {}
            () = looks => {}
        }
        context.metrics.bridge_up.set(0);
    }
}

/// What is known from look to look.
struct Look {
    context: Arc<Context>,
    client: Client,
    url: Url,
    record: String,
    /// The page as it was last, under its tag.
    known: Option<(String, Deliveries)>,
    tracker: Tracker,
    /// The record as it is, and its resourceVersion; `None`: it was not read yet.
    recorded: Option<(Option<Record>, Option<String>)>,
    since_record: u32,
    /// Whether the bridge answered, as was told last.
    answers: Option<bool>,
}

impl Look {
    async fn once(&mut self) {
        let told = self.told().await;
        let page = self.page().await;
        self.tell(told.is_some() && page.is_some());
        if let Some(told) = told
            && let Err(error) = self.keep_record(told).await
        {
            tracing::warn!(%error, config_map = self.record, "can't record the bridge's journal; trying again");
            self.recorded = None;
        }
        self.write_conditions(page.as_ref()).await;
    }

    fn tell(&mut self, answers: bool) {
        self.context.metrics.bridge_up.set(i64::from(answers));
        if self.answers.replace(answers) == Some(answers) {
            return;
        }
        if answers {
            tracing::info!("the bridge answers");
        } else {
            tracing::warn!(
                url = %self.url,
                "the bridge does not answer; the channels' condition Delivering stays as it is for a while"
            );
        }
    }

    async fn ask(&self, path: &str, tag: Option<&str>) -> Option<reqwest::Response> {
        let url = self.url.join(path).ok()?;
        let mut request = self.client.get(url).timeout(TIMEOUT);
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        request.send().await.ok()
    }

    async fn told(&self) -> Option<Told> {
        read(self.ask("v1/journal", None).await?).await
    }

    /// How the channels do; `None`: the bridge can't say.
    async fn page(&mut self) -> Option<Deliveries> {
        let tag = self.known.as_ref().map(|(tag, _)| tag.as_str());
        let response = self.ask("v1/deliveries", tag).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return self.known.as_ref().map(|(_, page)| page.clone());
        }
        let tag = response.headers().get(header::ETAG);
        let tag = tag.and_then(|tag| tag.to_str().ok()).map(ToOwned::to_owned);
        let page: Deliveries = read(response).await?;
        self.known = tag.map(|tag| (tag, page.clone()));
        Some(page)
    }

    /// Records how far the journal has got.
    async fn keep_record(&mut self, told: Told) -> Result<(), ReconcileError> {
        let namespace = self.context.release_namespace();
        let records: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
        let (recorded, version) = match self.recorded.clone() {
            Some(known) => known,
            None => {
                let found = records.get_opt(&self.record).await?;
                let version = found.as_ref().and_then(ResourceExt::resource_version);
                let record = found.and_then(|found| Record::read(&found.data.unwrap_or_default()).ok());
                self.recorded = Some((record, version.clone()));
                (record, version)
            }
        };
        self.since_record = self.since_record.saturating_add(1);
        let Some(next) = to_record(recorded.as_ref(), told) else {
            return Ok(());
        };
        let before = recorded.filter(|record| record.id != next.id);
        if self.since_record < RECORD_AFTER && recorded.is_some() && before.is_none() {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            // A leader that was stopped and goes on writes nothing over what its successor wrote.
            "metadata": {
                "name": self.record,
                "resourceVersion": version,
                "labels": {"app.kubernetes.io/managed-by": "aura-whatsapp-operator"},
            },
            "data": next.data(),
        });
        let parameters = PatchParams::apply(RECORD_MANAGER).force();
        let patch = Patch::Apply(patch);
        let written = claimed(&self.context, records.patch(&self.record, &parameters, &patch)).await?;
        self.context.metrics.journal_record_writes.inc();
        self.recorded = Some((Some(next), written.resource_version()));
        self.since_record = 0;
        if let Some(before) = before {
            self.context.journal_is_another(before.pending);
        }
        Ok(())
    }

    fn channels(&self) -> Vec<Channel> {
        let context = &self.context;
        let all: Vec<_> = {
            let roster = context.roster();
            let staying = roster.channels(None).filter(|entry| !entry.leaving);
            staying
                .map(|entry| (entry.key.clone(), entry.channel, entry.uid().to_owned()))
                .collect()
        };
        let known = all.into_iter().map(|(key, id, uid)| {
            let mut said = None;
            context.memories.conditions(&uid, |kind, _, reason| {
                if kind == types::DELIVERING {
                    said = Some(reason.parse().unwrap_or(Delivering::Unknown));
                }
            });
            let is_held_by_another = context.holder(&key, id).is_some();
            Channel {
                id: (!is_held_by_another).then_some(id),
                key,
                said,
            }
        });
        known.collect()
    }

    async fn write_conditions(&mut self, page: Option<&Deliveries>) {
        let due = self.tracker.looked(page, self.channels());
        for (key, what) in due {
            if let Err(error) = self.write(&key, what).await {
                tracing::warn!(
                    namespace = &*key.namespace, name = &*key.name, %error,
                    "can't write the condition Delivering; trying again"
                );
                self.tracker.not_written(&key);
                // The rest would fare alike.
                if matches!(error, ReconcileError::StoodDown) {
                    return;
                }
            }
        }
    }

    async fn write(&self, key: &ObjectKey, what: Delivering) -> Result<(), ReconcileError> {
        let uid = self.context.roster().get(key).map(|entry| entry.uid().to_owned());
        let Some(uid) = uid else { return Ok(()) };
        let old = self.context.memories.status(&uid).conditions;
        let old = old.iter().find(|condition| condition.type_ == types::DELIVERING);
        let patch = json!({
            "apiVersion": WhatsAppChannel::api_version(&()),
            "kind": WhatsAppChannel::kind(&()),
            // Of another resource by this name nothing is known.
            "metadata": {"uid": uid},
            "status": {"conditions": [condition(old, what, Timestamp::now())]},
        });
        let channels: Api<WhatsAppChannel> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let parameters = PatchParams::apply(DELIVERING_MANAGER).force();
        let patch = Patch::Apply(patch);
        let written = claimed(
            &self.context,
            channels.patch_status(&key.name, &parameters, &patch),
        )
        .await;
        match written {
            Ok(_) => {
                self.context.metrics.delivering_writes.inc();
                tracing::info!(
                    namespace = &*key.namespace,
                    name = &*key.name,
                    delivering = what.as_str(),
                    "how the channel delivers changed"
                );
                Ok(())
            }
            // It went meanwhile.
            Err(ReconcileError::Api(error)) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict())
}

/// An answer in JSON; `None` where it is none.
async fn read<T: DeserializeOwned>(response: reqwest::Response) -> Option<T> {
    if response.status() != StatusCode::OK {
        return None;
    }
    let body = http::read_body(response, MAX_ANSWER).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// The condition. It does not depend on the spec, so it names no generation: else it would be out of date after each change
/// until it is written again.
fn condition(old: Option<&Condition>, what: Delivering, now: Timestamp) -> Condition {
    let since = old
        .filter(|old| old.status == what.status())
        .map(|old| old.last_transition_time.clone());
    Condition {
        type_: types::DELIVERING.to_owned(),
        status: what.status().to_owned(),
        reason: what.as_str().to_owned(),
        message: what.message().to_owned(),
        observed_generation: None,
        last_transition_time: since
            .unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_condition_moves_only_when_its_status_does() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let flowing = condition(None, Delivering::Flowing, at(100));
        let dead = condition(Some(&flowing), Delivering::DeadLetters, at(200));
        assert_eq!(
            (
                dead.status.as_str(),
                dead.reason.as_str(),
                dead.last_transition_time.0
            ),
            ("True", "DeadLetters", at(100))
        );
        let held = condition(Some(&dead), Delivering::Held, at(300));
        assert_eq!(
            (held.status.as_str(), held.last_transition_time.0),
            ("False", at(300))
        );
    }
}
