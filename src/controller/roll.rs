//! Which resource holds a channel, or a Kernel client, for whoever looks at channels without being their controller:
//! the controller's own roster and rules. Pure.

use std::hash::{BuildHasher, RandomState};

use secrecy::ExposeSecret;

use super::{
    object_key::ObjectKey,
    roster::{Entry, Roster},
};
use crate::{
    api::{ChannelId, Claim, WhatsAppChannel},
    config::Installation,
    kernel::Credentials,
};

/// All channels that are known of.
pub(crate) struct Roll<'a> {
    roster: Roster,
    /// Without one, every channel counts.
    installation: Option<&'a Installation>,
    /// Of the clients, hashes are compared.
    hasher: RandomState,
}

impl<'a> Roll<'a> {
    /// Calls the roll. A channel that no API server has stored yet needs a creation time to be counted.
    pub fn new<'c>(
        channels: impl IntoIterator<Item = &'c WhatsAppChannel>,
        installation: Option<&'a Installation>,
    ) -> Self {
        let mut roster = Roster::default();
        for channel in channels {
            roster.upsert(channel, None);
        }
        Self {
            roster,
            installation,
            hasher: RandomState::new(),
        }
    }

    fn allows(&self, entry: &Entry) -> bool {
        self.installation.is_none_or(|installation| {
            let environment = installation.environments.get(&*entry.environment);
            environment.is_some_and(|environment| environment.allows(&entry.key.namespace))
        })
    }

    /// The other resources that claim this one's channel, the oldest first.
    pub fn rivals(&self, channel: &WhatsAppChannel) -> Vec<Claim> {
        let (Some(key), Ok(id)) = (
            ObjectKey::of(channel),
            channel.spec.channel_id.parse::<ChannelId>(),
        ) else {
            return Vec::new();
        };
        let rivals = self.roster.rivals(&key, id);
        let mut rivals: Vec<Claim> = rivals
            .filter(|rival| self.allows(rival))
            .map(Entry::claim)
            .collect();
        rivals.sort();
        rivals
    }

    /// The resource that holds this one's channel instead of it.
    pub fn holder(&self, channel: &WhatsAppChannel) -> Option<Claim> {
        let id = channel.spec.channel_id.parse().ok()?;
        self.roster
            .holder(&ObjectKey::of(channel)?, id, |rival| self.allows(rival))
    }

    /// Notes a channel's Kernel client.
    pub fn uses_client(&mut self, channel: &WhatsAppChannel, client: &Credentials) {
        let hash = self.hasher.hash_one(client.id.expose_secret());
        if let Some(key) = ObjectKey::of(channel) {
            self.roster.set_client(&key, hash);
        }
    }

    /// The older resource that uses the same Kernel client, where Kernel keeps one webhook per client.
    pub fn client_holder(&self, channel: &WhatsAppChannel) -> Option<Claim> {
        let environment = self.installation?.environments.get(&channel.spec.environment)?;
        if !environment.registration.one_webhook_per_client {
            return None;
        }
        self.roster
            .client_holder(&ObjectKey::of(channel)?, |other| self.allows(other))
    }

    /// How many channels an environment has.
    pub fn population(&self, environment: &str) -> usize {
        self.roster.population(environment)
    }
}
