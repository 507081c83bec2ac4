//! Which channels there are, and which of them share something: a channelId, a Secret, a Kernel client. Pure.
//!
//! It is fed by the watches and answers without looking at every channel: with ten thousand of them, a pass that
//! searched all would make a full round quadratic. Of a Secret it knows the version alone (Law 6).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube::ResourceExt;

use super::{kept::Kept, object_key::ObjectKey};
use crate::api::{ChannelId, Claim, WhatsAppChannel};

/// What is known of one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The resource.
    pub key: ObjectKey,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// The channel it claims.
    pub channel: ChannelId,
    /// Its environment's name.
    pub environment: Arc<str>,
    /// It is being deleted.
    pub leaving: bool,
    kept: Kept,
    /// The Secrets it names; the first holds its Kernel client.
    secrets: Box<[ObjectKey]>,
    /// The key of that Secret with the client's id, where it is not the usual one.
    id_key: Option<Box<str>>,
    /// A hash of its Kernel client, once its Secret was read.
    client: Option<u64>,
    /// Its Secret is another version since: its client may be another.
    client_stale: bool,
}

impl Entry {
    /// Its claim to the channel.
    pub fn claim(&self) -> Claim {
        Claim {
            created: self.created,
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
        }
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        self.kept.uid()
    }

    /// A hash of its Kernel client, if that is known.
    pub fn client(&self) -> Option<u64> {
        self.client
    }

    /// The Secret with its Kernel client, and the key within that holds the client's id.
    pub fn client_secret(&self) -> (Option<&ObjectKey>, &str) {
        (self.secrets.first(), self.id_key.as_deref().unwrap_or("id"))
    }
}

#[derive(Debug, Default)]
struct SecretEntry {
    /// Its resourceVersion; `None` where it is not there, or not labelled.
    version: Option<Box<str>>,
    users: Vec<ObjectKey>,
}

/// All channels.
#[derive(Debug, Default)]
pub(super) struct Roster {
    entries: HashMap<ObjectKey, Entry>,
    by_channel: HashMap<ChannelId, Vec<ObjectKey>>,
    by_client: HashMap<(Arc<str>, u64), Vec<ObjectKey>>,
    secrets: HashMap<ObjectKey, SecretEntry>,
    environments: HashMap<Arc<str>, usize>,
}

impl Roster {
    /// Takes a channel as it is now. `also` is a Secret that its environment's configuration names for it. Answers
    /// whether it is new, or another than before to whoever reconciles it.
    pub fn upsert(&mut self, resource: &WhatsAppChannel, also: Option<&str>) -> bool {
        let (Some(key), Some(created), Ok(channel)) = (
            ObjectKey::of(resource),
            resource.creation_timestamp(),
            resource.spec.channel_id.parse(),
        ) else {
            return false;
        };
        let kept = Kept::new(resource);
        let before = self.remove(&key);
        let differs = before.as_ref().is_none_or(|before| kept.differs(&before.kept));
        let spec = &resource.spec;
        let key = before.as_ref().map_or(key, |before| before.key.clone());
        let environment = self
            .environments
            .get_key_value(spec.environment.as_str())
            .map_or_else(|| Arc::from(spec.environment.as_str()), |(name, _)| name.clone());
        let mut names = spec.secret_names();
        names.extend(also);
        // One Secret may hold both the client and a key.
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(*name));
        let secrets = names
            .into_iter()
            .map(|name| self.secret_user(&ObjectKey::new(&*key.namespace, name), &key))
            .collect::<Box<[_]>>();
        let id_key: Option<Box<str>> = spec
            .kernel
            .credentials_secret_ref
            .id_key
            .as_deref()
            .map(Into::into);
        // What its Secret held when it was read last: it is read again where that may have changed.
        let (client, client_stale) = before
            .filter(|before| before.secrets.first() == secrets.first() && before.id_key == id_key)
            .map_or((None, false), |before| (before.client, before.client_stale));
        let entry = Entry {
            created: created.0.as_second(),
            channel,
            environment,
            leaving: resource.metadata.deletion_timestamp.is_some(),
            kept,
            secrets,
            id_key,
            client,
            client_stale,
            key,
        };
        *self.environments.entry(entry.environment.clone()).or_default() += 1;
        self.by_channel
            .entry(channel)
            .or_default()
            .push(entry.key.clone());
        if let Some(client) = entry.client {
            let shared = self
                .by_client
                .entry((entry.environment.clone(), client))
                .or_default();
            shared.push(entry.key.clone());
        }
        self.entries.insert(entry.key.clone(), entry);
        differs
    }

    /// Notes that a channel names a Secret; answers the key that is shared by all who do.
    fn secret_user(&mut self, secret: &ObjectKey, user: &ObjectKey) -> ObjectKey {
        let known = self.secrets.get_key_value(secret).map(|(known, _)| known.clone());
        let secret = known.unwrap_or_else(|| secret.clone());
        let entry = self.secrets.entry(secret.clone()).or_default();
        // Most Secrets have one user.
        entry.users.reserve_exact(1);
        entry.users.push(user.clone());
        secret
    }

    /// The version of a channel's resource that the watch has told of last.
    pub fn told_version(&self, key: &ObjectKey) -> Option<u64> {
        self.entries.get(key)?.kept.version()
    }

    /// A channel's resource, without its status.
    pub fn resource(&self, key: &ObjectKey) -> Option<WhatsAppChannel> {
        self.entries.get(key)?.kept.open(&key.namespace, &key.name)
    }

    /// Forgets a channel.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        take_out(&mut self.by_channel, &entry.channel, key);
        if let Some(client) = entry.client {
            take_out(&mut self.by_client, &(entry.environment.clone(), client), key);
        }
        for secret in &entry.secrets {
            if let Some(found) = self.secrets.get_mut(secret) {
                found.users.retain(|user| user != key);
                if found.users.is_empty() && found.version.is_none() {
                    self.secrets.remove(secret);
                }
            }
        }
        if let Some(count) = self.environments.get_mut(&entry.environment) {
            *count -= 1;
            if *count == 0 {
                self.environments.remove(&entry.environment);
            }
        }
        Some(entry)
    }

    /// One channel.
    pub fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All channels of a namespace, or of all.
    pub fn channels<'a>(&'a self, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Entry> {
        self.entries
            .values()
            .filter(move |entry| namespace.is_none_or(|namespace| *entry.key.namespace == *namespace))
    }

    /// The keys of all channels of a namespace, or of all.
    pub fn keys(&self, namespace: Option<&str>) -> Vec<ObjectKey> {
        self.channels(namespace).map(|entry| entry.key.clone()).collect()
    }

    /// How many channels an environment has.
    pub fn population(&self, environment: &str) -> usize {
        self.environments.get(environment).copied().unwrap_or_default()
    }

    /// The other channels that claim the same channelId and are not being deleted.
    pub fn rivals<'a>(&'a self, key: &'a ObjectKey, channel: ChannelId) -> impl Iterator<Item = &'a Entry> {
        self.others(self.by_channel.get(&channel), key)
    }

    /// The resource that holds a channel instead of this one: see [`Claim`]. One that is being deleted, or is not
    /// `allowed` in its environment, claims nothing.
    pub fn holder(&self, key: &ObjectKey, id: ChannelId, allowed: impl Fn(&Entry) -> bool) -> Option<Claim> {
        let own = self.get(key)?.claim();
        oldest(self.rivals(key, id).filter(|rival| allowed(rival)), &own)
    }

    /// The older resource that uses the same Kernel client as this one. Two that claim one channel are told so: whose
    /// client it is, is another matter.
    pub fn client_holder(&self, key: &ObjectKey, allowed: impl Fn(&Entry) -> bool) -> Option<Claim> {
        let entry = self.get(key)?;
        if entry.client_stale {
            // Its Secret must be read first: whoever was told to get a client of his own may just have done so.
            return None;
        }
        let sharing = self
            .sharing(key)
            .filter(|other| other.channel != entry.channel && allowed(other));
        oldest(sharing, &entry.claim())
    }

    /// The other channels that use the same Kernel client in the same environment and are not being deleted.
    pub fn sharing<'a>(&'a self, key: &'a ObjectKey) -> impl Iterator<Item = &'a Entry> {
        let keys = self
            .entries
            .get(key)
            .and_then(|entry| self.by_client.get(&(entry.environment.clone(), entry.client?)));
        self.others(keys, key)
    }

    /// The other channels of an environment that use this Kernel client.
    pub fn using<'a>(
        &'a self,
        environment: &Arc<str>,
        client: u64,
        key: &'a ObjectKey,
    ) -> impl Iterator<Item = &'a Entry> {
        self.others(self.by_client.get(&(environment.clone(), client)), key)
    }

    fn others<'a>(
        &'a self,
        keys: Option<&'a Vec<ObjectKey>>,
        but: &'a ObjectKey,
    ) -> impl Iterator<Item = &'a Entry> {
        keys.into_iter()
            .flatten()
            .filter(move |other| *other != but)
            .filter_map(|other| self.entries.get(other))
            .filter(|entry| !entry.leaving)
    }

    /// The Secret that held a channel's Kernel client is gone. Answers the oldest of the others that use that client.
    fn forget_client(&mut self, key: &ObjectKey, secret: &ObjectKey) -> Option<ObjectKey> {
        let entry = self
            .entries
            .get_mut(key)
            .filter(|entry| entry.secrets.first() == Some(secret))?;
        let (client, environment) = (entry.client.take()?, entry.environment.clone());
        take_out(&mut self.by_client, &(environment.clone(), client), key);
        self.using(&environment, client, key)
            .min_by_key(|entry| entry.claim())
            .map(|entry| entry.key.clone())
    }

    /// Notes which Kernel client a channel has. Answers which it had before, where that is another.
    pub fn set_client(&mut self, key: &ObjectKey, client: u64) -> Option<u64> {
        let entry = self.entries.get_mut(key)?;
        entry.client_stale = false;
        let before = entry.client.replace(client);
        if before == Some(client) {
            return None;
        }
        let environment = entry.environment.clone();
        let key = entry.key.clone();
        if let Some(before) = before {
            take_out(&mut self.by_client, &(environment.clone(), before), &key);
        }
        self.by_client.entry((environment, client)).or_default().push(key);
        before
    }

    /// Notes the version of a Secret, or that it is gone (or no longer labelled). Answers whom that concerns.
    pub fn secret(&mut self, secret: &ObjectKey, version: Option<&str>) -> Vec<ObjectKey> {
        match (self.secrets.get_mut(secret), version) {
            (None, None) => Vec::new(),
            (None, Some(version)) => {
                let entry = SecretEntry {
                    version: Some(version.into()),
                    users: Vec::new(),
                };
                self.secrets.insert(secret.clone(), entry);
                Vec::new()
            }
            (Some(found), version) => {
                if found.version.as_deref() == version {
                    return Vec::new();
                }
                found.version = version.map(Into::into);
                let mut concerned = found.users.clone();
                if version.is_none() {
                    if concerned.is_empty() {
                        self.secrets.remove(secret);
                    }
                    // Nobody uses the client that it held: the oldest of those that yield to them may hold it now.
                    for user in concerned.clone() {
                        concerned.extend(self.forget_client(&user, secret));
                    }
                } else {
                    for user in &concerned {
                        if let Some(entry) = self.entries.get_mut(user)
                            && entry.secrets.first() == Some(secret)
                        {
                            entry.client_stale = true;
                        }
                    }
                }
                concerned
            }
        }
    }

    /// The version of a Secret that is there and labelled.
    pub fn version(&self, namespace: &str, name: &str) -> Option<&str> {
        self.secrets
            .get(&ObjectKey::new(namespace, name))?
            .version
            .as_deref()
    }

    /// The Secrets with a version, of a namespace or of all.
    pub fn known_secrets(&self, namespace: Option<&str>) -> HashSet<ObjectKey> {
        self.secrets
            .iter()
            .filter(|(key, entry)| {
                entry.version.is_some() && namespace.is_none_or(|namespace| *key.namespace == *namespace)
            })
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The channels that name a Secret.
    pub fn users(&self, secret: &ObjectKey) -> &[ObjectKey] {
        self.secrets.get(secret).map_or(&[], |entry| &entry.users)
    }
}

fn oldest<'a>(others: impl Iterator<Item = &'a Entry>, own: &Claim) -> Option<Claim> {
    others.map(Entry::claim).filter(|other| other < own).min()
}

fn take_out<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Vec<ObjectKey>>, at: &K, key: &ObjectKey) {
    if let Some(keys) = map.get_mut(at) {
        keys.retain(|one| one != key);
        if keys.is_empty() {
            map.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::WhatsAppChannelSpec;

    fn channel(name: &str, id: u8, secret: &str) -> WhatsAppChannel {
        let mut spec = WhatsAppChannelSpec::example();
        spec.channel_id = ChannelId::from_bytes([id; 16]).to_string();
        spec.kernel.credentials_secret_ref.name = secret.to_owned();
        let mut channel = WhatsAppChannel::new(name, spec);
        channel.metadata.namespace = Some("n".into());
        channel.metadata.creation_timestamp = Some(Time("2026-11-22T10:00:00Z".parse().unwrap()));
        channel
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("n", name)
    }

    fn names<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
        let mut names: Vec<_> = entries.map(|entry| entry.key.name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn rivals_are_those_that_claim_the_same_channel_and_stay() {
        let mut roster = Roster::default();
        for (name, id) in [("a", 1), ("b", 1), ("c", 2)] {
            roster.upsert(&channel(name, id, "s"), None);
        }
        let mut leaving = channel("d", 1, "s");
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        roster.upsert(&leaving, None);
        let id = ChannelId::from_bytes([1; 16]);
        assert_eq!(names(roster.rivals(&key("a"), id)), ["b"]);
        roster.remove(&key("b"));
        assert_eq!(names(roster.rivals(&key("a"), id)), Vec::<String>::new());
        assert_eq!(roster.population("es-pro"), 3);
    }

    #[test]
    fn a_secret_tells_those_that_name_it_when_its_version_is_another_and_nobody_else() {
        let mut roster = Roster::default();
        assert!(
            roster.secret(&key("s"), Some("1")).is_empty(),
            "nobody names it yet"
        );
        roster.upsert(&channel("a", 1, "s"), Some("callback"));
        roster.upsert(&channel("b", 2, "t"), None);
        assert_eq!(roster.version("n", "s"), Some("1"));
        assert!(roster.secret(&key("s"), Some("1")).is_empty());
        assert_eq!(roster.secret(&key("s"), Some("2")), [key("a")]);
        assert_eq!(roster.secret(&key("callback"), Some("3")), [key("a")]);
        assert_eq!(roster.secret(&key("s"), None), [key("a")]);
        assert_eq!(roster.version("n", "s"), None);
        // A channel that names another Secret now is not told of the old one.
        roster.upsert(&channel("a", 1, "t"), None);
        assert!(roster.secret(&key("s"), Some("9")).is_empty());
        assert_eq!(roster.users(&key("t")).len(), 2);
    }

    #[test]
    fn who_shares_a_client_is_known_until_its_secret_holds_another() {
        let mut roster = Roster::default();
        for (name, id) in [("a", 1), ("b", 2), ("c", 3)] {
            roster.upsert(&channel(name, id, name), None);
        }
        assert_eq!(roster.set_client(&key("a"), 7), None);
        assert_eq!(roster.set_client(&key("b"), 7), None);
        roster.set_client(&key("c"), 8);
        assert_eq!(names(roster.sharing(&key("a"))), ["b"]);
        // A new version of the resource changes nothing about that.
        roster.upsert(&channel("b", 2, "b"), None);
        assert_eq!(names(roster.sharing(&key("a"))), ["b"]);
        assert_eq!(roster.set_client(&key("b"), 8), Some(7));
        assert_eq!(names(roster.sharing(&key("a"))), Vec::<String>::new());
        assert_eq!(names(roster.sharing(&key("b"))), ["c"]);
        roster.remove(&key("c"));
        assert_eq!(names(roster.sharing(&key("b"))), Vec::<String>::new());
    }
}
