//! A channel's resource in little room: what a pass needs of it, as JSON that is taken apart when the pass begins. Pure.
//!
//! Ten thousand resources as the library's own structures are mostly empty fields, and 2 KiB each with their place in a
//! store; a pass comes once an hour and takes microseconds to read one.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, api::ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::api::{REQUESTED_AT, WhatsAppChannel, WhatsAppChannelSpec};

/// A resource without its status and without what nobody here reads (labels, managed fields, others' annotations).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    version: Option<Box<str>>,
    uid: Option<Box<str>>,
    /// What a pass depends on: while it is the same bytes, there is nothing new to do.
    rest: Box<[u8]>,
}

#[derive(Serialize, Deserialize)]
struct Rest<'a> {
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    created: Option<Time>,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    deleted: Option<Time>,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    finalizers: Option<Vec<String>>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    requested_at: Option<Cow<'a, str>>,
    #[serde(rename = "s")]
    spec: Cow<'a, WhatsAppChannelSpec>,
}

impl Kept {
    /// Keeps a resource.
    pub fn new(channel: &WhatsAppChannel) -> Self {
        let rest = Rest {
            generation: channel.metadata.generation,
            created: channel.metadata.creation_timestamp.clone(),
            deleted: channel.metadata.deletion_timestamp.clone(),
            finalizers: channel.metadata.finalizers.clone(),
            requested_at: channel
                .annotations()
                .get(REQUESTED_AT)
                .map(|at| Cow::Borrowed(at.as_str())),
            spec: Cow::Borrowed(&channel.spec),
        };
        Self {
            version: channel.resource_version().map(Into::into),
            uid: channel.uid().map(Into::into),
            // What was read from JSON can be written as such; were it not so, the resource could not be opened again and
            // would be passed by.
            rest: serde_json::to_vec(&rest).unwrap_or_default().into(),
        }
    }

    /// Whether a pass over the other one could come to something else.
    pub fn differs(&self, other: &Self) -> bool {
        self.uid != other.uid || self.rest != other.rest
    }

    /// The version, where it is a number: those of one API server can be compared then.
    pub fn version(&self) -> Option<u64> {
        self.version.as_deref()?.parse().ok()
    }

    /// The UID; empty for a resource that was never stored.
    pub fn uid(&self) -> &str {
        self.uid.as_deref().unwrap_or_default()
    }

    /// The resource again.
    pub fn open(&self, namespace: &str, name: &str) -> Option<WhatsAppChannel> {
        let rest: Rest<'_> = serde_json::from_slice(&self.rest).ok()?;
        let annotations = rest
            .requested_at
            .map(|at| [(REQUESTED_AT.to_owned(), at.into_owned())].into());
        let mut channel = WhatsAppChannel::new(name, rest.spec.into_owned());
        channel.metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: self.uid.as_deref().map(Into::into),
            resource_version: self.version.as_deref().map(Into::into),
            generation: rest.generation,
            creation_timestamp: rest.created,
            deletion_timestamp: rest.deleted,
            finalizers: rest.finalizers,
            annotations,
            ..ObjectMeta::default()
        };
        Some(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> WhatsAppChannel {
        let mut channel = WhatsAppChannel::new("a", WhatsAppChannelSpec::example());
        channel.metadata.namespace = Some("n".into());
        channel.metadata.uid = Some("u".into());
        channel.metadata.resource_version = Some("7".into());
        channel.metadata.generation = Some(3);
        channel.metadata.creation_timestamp = Some(Time("2026-11-22T10:00:00Z".parse().unwrap()));
        channel.metadata.deletion_timestamp = Some(Time("2026-11-22T10:00:01Z".parse().unwrap()));
        channel.metadata.finalizers = Some(vec!["a/b".into()]);
        channel
            .annotations_mut()
            .insert(REQUESTED_AT.into(), "now \"quoted\"".into());
        channel
    }

    #[test]
    fn what_is_kept_opens_as_it_was() {
        let channel = channel();
        assert_eq!(Kept::new(&channel).open("n", "a"), Some(channel));
    }

    #[test]
    fn only_what_a_pass_depends_on_makes_a_difference() {
        let before = Kept::new(&channel());
        let mut same = channel();
        same.metadata.resource_version = Some("8".into());
        same.labels_mut().insert("team".into(), "es".into());
        same.annotations_mut().insert("other".into(), "x".into());
        assert!(!Kept::new(&same).differs(&before));
        let changes: [fn(&mut WhatsAppChannel); 6] = [
            |channel| channel.metadata.generation = Some(4),
            |channel| channel.metadata.uid = Some("v".into()),
            |channel| channel.metadata.finalizers = None,
            |channel| channel.metadata.deletion_timestamp = None,
            |channel| channel.spec.suspend = Some(true),
            |channel| {
                channel
                    .annotations_mut()
                    .insert(REQUESTED_AT.into(), "later".into());
            },
        ];
        for change in changes {
            let mut other = channel();
            change(&mut other);
            assert!(Kept::new(&other).differs(&before));
        }
    }
}
