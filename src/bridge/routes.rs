//! Which channel goes where: built from the resources, replaced as a whole, read without a lock. Pure.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::issued::{self, Issued, Taken};
use crate::{
    api::{
        ChannelId, Claim, CredentialsRef, DeliveryMode, Effective, WebhookKeyStatus, WhatsAppChannel,
        WhatsAppChannelSpec,
    },
    config::{Environment, Held, Installation},
    delivery,
    keys::Tag,
};

/// What the bridge keeps of a resource: no secret, little else. Also what the snapshot holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelView {
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
    /// When the resource was created, in seconds since 1970.
    pub created: i64,
    /// It is being deleted: another that claims its channel holds it.
    #[serde(default)]
    pub leaving: bool,
    /// Its spec.
    pub spec: WhatsAppChannelSpec,
    /// The resourceVersion of the Secret that the controller used last: a change of it says that the Secret changed.
    pub secret_version: Option<String>,
    /// The resourceVersion of the Secret with a key issued elsewhere, as the controller announced it.
    #[serde(default)]
    pub api_key_version: Option<String>,
    /// The key that Kernel was told.
    pub webhook_key: Option<WebhookKeyStatus>,
}

/// Where one channel's messages go.
#[derive(Debug)]
pub struct Route {
    /// The channel.
    pub channel: ChannelId,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
    /// The name of its environment.
    pub environment_name: String,
    /// Its environment.
    pub environment: Arc<Environment>,
    /// What holds for it.
    pub effective: Effective,
    /// The Secret with its Kernel client.
    pub credentials: CredentialsRef,
    /// The version of that Secret that the controller saw last.
    pub secret_version: Option<String>,
    /// The tag that its derived keys carry.
    pub tag: Tag,
    /// The generations of its derived key that are taken, and until when the oldest is.
    pub generations: Generations,
    /// The keys issued elsewhere that are taken.
    pub issued: Vec<Taken>,
    /// It has a key issued elsewhere that is not known yet, or is another by now.
    pub key_missing: bool,
    /// It has a key issued elsewhere.
    pub key_issued: bool,
}

/// Whose a message is: the channel, and the resource that it was accepted for. An accepted message stays with its
/// resource, also when another takes the channel over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The channel.
    pub channel: ChannelId,
    /// The digest of the environment's name.
    pub environment: [u8; 8],
    /// The tag of the environment's channels in the resource's namespace.
    pub tag: Tag,
}

/// What an environment is called in the journal: names may be long, a digest has one size.
pub fn environment_digest(name: &str) -> [u8; 8] {
    let hash = Sha256::digest(name.as_bytes());
    let mut digest = [0; 8];
    digest.copy_from_slice(&hash[..8]);
    digest
}

/// Which generations of a derived key are taken: that of the spec; the next one, so that the controller may tell Kernel
/// before this bridge has heard of it; the one that Kernel was told last, and all between (Kernel may have been told one
/// whose report was lost); and the one before that for its grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generations {
    current: u64,
    told: Told,
    previous: Option<(u64, Timestamp)>,
    /// Until then a key of any generation may be on its way: which one Kernel was told before is not known.
    unknown_until: Option<Timestamp>,
    /// The spec names a key issued elsewhere, and Kernel was told it: the derived ones may be what it replaced, because
    /// they had leaked.
    replaced: bool,
}

/// What Kernel was told, as far as the resource says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing is known: nothing was told yet, or the status was lost.
    Unknown,
    /// A key issued elsewhere.
    Issued,
    /// The derived key of this generation.
    Derived(u64),
}

impl Generations {
    fn new(current: u64, status: Option<&WebhookKeyStatus>, issued: bool) -> Self {
        let number = |generation: Option<i64>| u64::try_from(generation?).ok();
        let told = match status {
            None => Told::Unknown,
            Some(status) => number(status.generation).map_or(Told::Issued, Told::Derived),
        };
        let previous = status.and_then(|status| {
            Some((
                number(status.previous_generation)?,
                status.previous_until.as_ref()?.0,
            ))
        });
        let unknown_until = status
            .filter(|status| status.generation.is_some() && status.previous_generation.is_none())
            .and_then(|status| Some(status.previous_until.as_ref()?.0));
        Self {
            current,
            told,
            previous,
            unknown_until,
            replaced: issued && told == Told::Issued,
        }
    }

    /// Whether it is not known which keys Kernel was told.
    pub fn is_unknown(&self, now: Timestamp) -> bool {
        self.told == Told::Unknown || self.unknown_until.is_some_and(|until| now < until)
    }

    /// Whether it comes after all that this bridge has heard of. Its key proves that the installation made it, so that
    /// the resource that says so is on its way; so may be one that takes the key issued elsewhere back.
    pub fn is_ahead(&self, generation: u64) -> bool {
        generation > self.current + 1 || (self.replaced && generation >= self.current)
    }

    /// Whether a key of this generation is taken now.
    pub fn take(&self, generation: u64, now: Timestamp) -> bool {
        let told = match self.told {
            Told::Derived(told) => told,
            Told::Unknown | Told::Issued => self.current,
        };
        let taken = told.min(self.current)..=told.max(self.current + 1);
        (taken.contains(&generation) && !self.replaced)
            || (self.told == Told::Unknown && generation + 1 == self.current)
            || self
                .previous
                .is_some_and(|(previous, until)| generation == previous && now < until)
    }
}

/// All routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: HashMap<ChannelId, Arc<Route>>,
    /// The keys issued elsewhere of channels that are gone.
    departed: HashMap<ChannelId, Vec<Taken>>,
}

impl ChannelView {
    /// What is kept of a resource; `None` for one that was never stored.
    pub fn new(channel: &WhatsAppChannel) -> Option<Self> {
        let status = channel.status.as_ref();
        Some(Self {
            namespace: channel.namespace()?,
            name: channel.name_any(),
            created: channel.creation_timestamp()?.0.as_second(),
            leaving: channel.metadata.deletion_timestamp.is_some(),
            spec: channel.spec.clone(),
            secret_version: status.and_then(|status| status.observed_secret_version.clone()),
            api_key_version: status.and_then(|status| status.observed_api_key_version.clone()),
            webhook_key: status.and_then(|status| status.webhook_key.clone()),
        })
    }

    fn claim(&self) -> Claim {
        Claim {
            created: self.created,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl RouteTable {
    /// The routes of these resources: of several with one channel, the one that holds it. A resource whose
    /// environment is unknown, or not for its namespace, claims nothing.
    ///
    pub fn build<'a>(
        views: impl IntoIterator<Item = &'a ChannelView>,
        installation: &Installation,
        issued: &Issued,
    ) -> Self {
        let environments: HashMap<&str, Arc<Environment>> = installation
            .environments
            .iter()
            .map(|(name, environment)| (name.as_str(), Arc::new(environment.clone())))
            .collect();
        let mut holders: HashMap<ChannelId, &ChannelView> = HashMap::new();
        for view in views {
            let Ok(channel) = view.spec.channel_id.parse() else {
                continue;
            };
            let allowed = environments
                .get(view.spec.environment.as_str())
                .is_some_and(|environment| environment.allows(&view.namespace));
            if allowed {
                let holder = holders.entry(channel).or_insert(view);
                if (view.leaving, view.claim()) < (holder.leaving, holder.claim()) {
                    *holder = view;
                }
            }
        }
        let routes = holders
            .into_iter()
            .filter_map(|(channel, view)| {
                let environment = environments.get(view.spec.environment.as_str())?.clone();
                Some((channel, Arc::new(Route::new(channel, view, environment, issued))))
            })
            .collect();
        let departed = issued.departed();
        Self { routes, departed }
    }

    /// The keys of a channel that is gone.
    pub fn departed(&self, channel: ChannelId) -> &[Taken] {
        self.departed.get(&channel).map_or(&[], Vec::as_slice)
    }

    /// The route of a channel.
    pub fn get(&self, channel: ChannelId) -> Option<&Arc<Route>> {
        self.routes.get(&channel)
    }

    /// All routes.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }

    /// How many channels are routed.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether no channel is routed.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

impl Route {
    /// Whose its messages are, in the journal.
    pub fn owner(&self) -> Owner {
        Owner {
            channel: self.channel,
            environment: environment_digest(&self.environment_name),
            tag: self.tag,
        }
    }

    /// What the lanes go by.
    pub fn delivery(&self) -> delivery::Settings {
        let held = match self.effective.delivery_mode {
            DeliveryMode::Hold => Some(delivery::FOREVER),
            DeliveryMode::Deliver => self
                .environment
                .hold_until(Held::Delivery)
                .map(|until| u64::try_from(until.as_millisecond()).unwrap_or_default()),
        };
        delivery::Settings::new(&self.effective, &self.environment_name, held)
    }

    fn new(channel: ChannelId, view: &ChannelView, environment: Arc<Environment>, issued: &Issued) -> Self {
        let effective = Effective::new(&view.spec, &environment.channel_defaults);
        let taken = issued.taken(view);
        Self {
            channel,
            namespace: view.namespace.clone(),
            name: view.name.clone(),
            tag: Tag::new(&view.spec.environment, &view.namespace),
            generations: Generations::new(
                effective.key_generation,
                view.webhook_key.as_ref(),
                issued::reference(view).is_some(),
            ),
            key_missing: issued.must_read(view),
            key_issued: issued::reference(view).is_some(),
            issued: taken,
            environment_name: view.spec.environment.clone(),
            environment,
            effective,
            credentials: view.spec.kernel.credentials_secret_ref.clone(),
            secret_version: view.secret_version.clone(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bridge) fn installation() -> Installation {
        Installation::parse(
            r"
environments:
  es-dev:
    namespaces: [aura-es, aura-es2]
    publicUrl: http://127.0.0.1:8080
    insecure: true
    kernel: {apiUrl: http://127.0.0.1:1, authUrl: http://127.0.0.1:1}
    aura: {messagesUrl: http://127.0.0.1:2, replyUrl: http://127.0.0.1:8081, outboundAuth: {none: true}, inboundAuth: {none: true}}
",
            "test",
        )
        .unwrap()
    }

    pub(in crate::bridge) fn view(namespace: &str, name: &str, created: i64, id: u8) -> ChannelView {
        ChannelView {
            namespace: namespace.into(),
            name: name.into(),
            created,
            leaving: false,
            spec: WhatsAppChannelSpec {
                channel_id: ChannelId::from_bytes([id; 16]).to_string(),
                environment: "es-dev".into(),
                ..WhatsAppChannelSpec::example()
            },
            secret_version: None,
            api_key_version: None,
            webhook_key: None,
        }
    }

    #[test]
    fn of_several_resources_with_one_channel_the_oldest_is_routed() {
        let views = [
            view("aura-es2", "b", 5, 1),
            view("aura-es", "a", 9, 1),
            view("aura-es", "c", 1, 2),
        ];
        let table = RouteTable::build(&views, &installation(), &Issued::default());
        assert_eq!(table.len(), 2);
        assert_eq!(table.get(ChannelId::from_bytes([1; 16])).unwrap().name, "b");
    }

    #[test]
    fn a_namespace_that_may_not_use_the_environment_claims_nothing() {
        let views = [
            view("elsewhere", "squatter", 1, 1),
            view("aura-es", "owner", 9, 1),
        ];
        let table = RouteTable::build(&views, &installation(), &Issued::default());
        assert_eq!(table.get(ChannelId::from_bytes([1; 16])).unwrap().name, "owner");
    }

    #[test]
    fn the_generation_before_is_taken_until_kernel_was_told_and_its_grace_has_passed() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let status = |generation, previous: Option<(i64, &str)>| WebhookKeyStatus {
            generation,
            previous_generation: previous.map(|(previous, _)| previous),
            previous_until: previous
                .map(|(_, text)| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(text.parse().unwrap())),
            ..WebhookKeyStatus::default()
        };
        let takes = |status: Option<&WebhookKeyStatus>| {
            let generations = Generations::new(5, status, false);
            (0..9)
                .filter(|generation| generations.take(*generation, now))
                .collect::<Vec<_>>()
        };
        let (future, past) = ("2026-11-22T10:00:01Z", "2026-11-22T09:59:59Z");
        assert_eq!(takes(None), [4, 5, 6]);
        assert_eq!(takes(Some(&status(Some(4), None))), [4, 5, 6]);
        assert_eq!(takes(Some(&status(Some(5), Some((4, future))))), [4, 5, 6]);
        assert_eq!(takes(Some(&status(Some(5), Some((4, past))))), [5, 6]);
        assert_eq!(takes(Some(&status(Some(5), None))), [5, 6]);
        // A jump, up or down: Kernel goes on with what it was told, which may be one between whose report was lost.
        assert_eq!(takes(Some(&status(Some(2), None))), [2, 3, 4, 5, 6]);
        assert_eq!(takes(Some(&status(Some(5), Some((1, future))))), [1, 5, 6]);
        assert_eq!(takes(Some(&status(Some(8), None))), [5, 6, 7, 8]);
        // It was told one issued elsewhere: of the derived ones none but those of the spec, and that before it.
        assert_eq!(takes(Some(&status(None, Some((3, future))))), [3, 5, 6]);
        // It was told that one, and the spec still names it: what it replaced is taken for its grace alone.
        let replaced = |until| {
            let generations = Generations::new(5, Some(&status(None, Some((5, until)))), true);
            (0..9)
                .filter(|generation| generations.take(*generation, now))
                .collect::<Vec<_>>()
        };
        assert_eq!((replaced(future), replaced(past)), (vec![5], vec![]));
    }

    /// The controller's rule (see `Context::holder`): what is being deleted claims nothing.
    #[test]
    fn a_resource_that_is_being_deleted_gives_way_to_one_that_stays() {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let resource = |name: &str, created: &str, leaving: bool| {
            let mut channel = WhatsAppChannel::new(name, view("aura-es", name, 1, 1).spec);
            let at = |text: &str| Time(text.parse().unwrap());
            channel.metadata.namespace = Some("aura-es".into());
            channel.metadata.creation_timestamp = Some(at(created));
            channel.metadata.deletion_timestamp = leaving.then(|| at("2026-11-22T12:00:00Z"));
            ChannelView::new(&channel).unwrap()
        };
        let views = [
            resource("old", "2026-11-22T10:00:00Z", true),
            resource("young", "2026-11-22T11:00:00Z", false),
        ];
        let channel = ChannelId::from_bytes([1; 16]);
        let table = RouteTable::build(&views, &installation(), &Issued::default());
        assert_eq!(table.get(channel).unwrap().name, "young");
        let table = RouteTable::build(&views[..1], &installation(), &Issued::default());
        assert_eq!(
            table.get(channel).unwrap().name,
            "old",
            "alone, it is still routed"
        );
    }
}
