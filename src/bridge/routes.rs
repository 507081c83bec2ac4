//! Which channel goes where: built from the resources, replaced as a whole, read without a lock. Pure: what is known of
//! a Kernel client is handed on from route to route, and never looked into here.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{
    issued::{Issued, Taken},
    secrets::Slot,
    views::{ChannelView, CommonSpec},
};
use crate::{
    api::{ChannelId, CredentialsRef, DeliveryMode, Effective, WebhookKeyStatus},
    config::{Environment, Held, Installation},
    delivery,
    keys::Tag,
};

/// Where one channel's messages go.
#[derive(Debug)]
pub struct Route {
    /// What the resource says.
    view: Arc<ChannelView>,
    /// What holds for it, and for others that say the same.
    terms: Arc<Terms>,
    /// The tag that its derived keys carry.
    pub tag: Tag,
    /// The keys issued elsewhere that are taken.
    pub issued: Box<[Taken]>,
    /// It has a key issued elsewhere that is not known yet, or is another by now.
    pub key_missing: bool,
    /// What is known of its Kernel client.
    pub(super) client: Arc<Slot>,
}

/// What holds for the channels of an environment that say the same.
#[derive(Debug)]
pub struct Terms {
    common: Arc<CommonSpec>,
    environment: Arc<Environment>,
    effective: Effective,
    delivery: Arc<delivery::Settings>,
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
    environments: HashMap<String, Arc<Environment>>,
    terms: Vec<Arc<Terms>>,
}

impl RouteTable {
    /// The routes of these resources: of several with one channel, the one that holds it. A resource whose
    /// environment is unknown, or not for its namespace, claims nothing. What is as it was in the table before is taken
    /// over from there, with what is known of Kernel clients.
    pub fn build<'a>(
        views: impl IntoIterator<Item = &'a Arc<ChannelView>>,
        installation: &Installation,
        issued: &Issued,
        before: &Self,
    ) -> Self {
        let environments: HashMap<String, Arc<Environment>> = installation
            .environments
            .iter()
            .map(|(name, environment)| {
                let known = before
                    .environments
                    .get(name)
                    .filter(|known| ***known == *environment);
                let environment = known.cloned().unwrap_or_else(|| Arc::new(environment.clone()));
                (name.clone(), environment)
            })
            .collect();
        let mut holders: HashMap<ChannelId, &Arc<ChannelView>> = HashMap::with_capacity(before.len());
        for view in views {
            let allowed = environments
                .get(view.common.environment())
                .is_some_and(|environment| environment.allows(&view.namespace));
            if allowed {
                let holder = holders.entry(view.channel).or_insert(view);
                if !Arc::ptr_eq(view, holder)
                    && (view.leaving, view.claim()) < (holder.leaving, holder.claim())
                {
                    *holder = view;
                }
            }
        }
        // By the place of the common spec, which each keeps where it is.
        let mut known: HashMap<*const CommonSpec, Arc<Terms>> = HashMap::new();
        for terms in &before.terms {
            let environment = environments.get(terms.common.environment());
            if environment.is_some_and(|environment| Arc::ptr_eq(environment, &terms.environment)) {
                known.insert(Arc::as_ptr(&terms.common), terms.clone());
            }
        }
        let mut used: HashMap<*const CommonSpec, Arc<Terms>> = HashMap::new();
        let mut routes = HashMap::with_capacity(holders.len());
        for (channel, view) in holders {
            let Some(environment) = environments.get(view.common.environment()) else {
                continue;
            };
            let place = Arc::as_ptr(&view.common);
            let terms = used.entry(place).or_insert_with(|| {
                let terms = known.remove(&place);
                terms.unwrap_or_else(|| Arc::new(Terms::new(view.common.clone(), environment.clone())))
            });
            let before = before.get(channel);
            routes.insert(channel, Route::next(before, view, terms, issued));
        }
        Self {
            routes,
            departed: issued.departed(),
            environments,
            terms: used.into_values().collect(),
        }
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

impl Terms {
    fn new(common: Arc<CommonSpec>, environment: Arc<Environment>) -> Self {
        let effective = common.effective(&environment.channel_defaults);
        let held = match effective.delivery_mode {
            DeliveryMode::Hold => Some(delivery::FOREVER),
            DeliveryMode::Deliver => environment
                .hold_until(Held::Delivery)
                .map(|until| u64::try_from(until.as_millisecond()).unwrap_or_default()),
        };
        let delivery = Arc::new(delivery::Settings::new(&effective, common.environment(), held));
        Self {
            common,
            environment,
            effective,
            delivery,
        }
    }
}

impl Route {
    /// The route of a resource. What the one before knew of the same Kernel client is known to this one.
    fn next(
        before: Option<&Arc<Self>>,
        view: &Arc<ChannelView>,
        terms: &Arc<Terms>,
        issued: &Issued,
    ) -> Arc<Self> {
        let (taken, key_missing) = (issued.taken(view).into_boxed_slice(), issued.must_read(view));
        if let Some(before) = before
            && Arc::ptr_eq(&before.view, view)
            && Arc::ptr_eq(&before.terms, terms)
            && (&before.issued, before.key_missing) == (&taken, key_missing)
        {
            return before.clone();
        }
        let client = before
            .filter(|before| before.names_client_of(view))
            .map_or_else(Arc::default, |before| before.client.clone());
        Arc::new(Self {
            view: view.clone(),
            terms: terms.clone(),
            tag: Tag::new(terms.common.environment(), &view.namespace),
            issued: taken,
            key_missing,
            client,
        })
    }

    fn names_client_of(&self, view: &ChannelView) -> bool {
        self.view.namespace == view.namespace
            && self.view.client_secret == view.client_secret
            && self.terms.common.reads_client_like(&view.common)
    }

    /// Whether another's messages go where this one's go, in the same way.
    pub fn leads_where(&self, other: &Self) -> bool {
        self.view.secret_version == other.view.secret_version
            && self.names_client_of(&other.view)
            && self.environment_name() == other.environment_name()
            && (Arc::ptr_eq(&self.terms, &other.terms)
                || (self.terms.effective == other.terms.effective
                    && self.terms.environment == other.terms.environment))
    }

    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.view.channel
    }

    /// The resource's namespace.
    pub fn namespace(&self) -> &str {
        &self.view.namespace
    }

    /// The resource's name.
    pub fn name(&self) -> &str {
        &self.view.name
    }

    /// The name of its environment.
    pub fn environment_name(&self) -> &str {
        self.terms.common.environment()
    }

    /// Its environment.
    pub fn environment(&self) -> &Environment {
        &self.terms.environment
    }

    /// What holds for it.
    pub fn effective(&self) -> &Effective {
        &self.terms.effective
    }

    /// The Secret with its Kernel client.
    pub fn client_secret(&self) -> CredentialsRef {
        self.terms.common.client(&self.view.client_secret)
    }

    /// The version of that Secret that the controller saw last.
    pub fn secret_version(&self) -> Option<&Arc<str>> {
        self.view.secret_version.as_ref()
    }

    /// Whether it has a key issued elsewhere.
    pub fn key_issued(&self) -> bool {
        self.view.issued_key.is_some()
    }

    /// The generations of its derived key that are taken, and until when the oldest is.
    pub fn generations(&self) -> Generations {
        Generations::new(
            self.terms.effective.key_generation,
            self.view.webhook_key.as_ref(),
            self.key_issued(),
        )
    }

    /// What the lanes go by.
    pub fn delivery(&self) -> Arc<delivery::Settings> {
        self.terms.delivery.clone()
    }

    /// Whose its messages are, in the journal.
    pub fn owner(&self) -> Owner {
        Owner {
            channel: self.channel(),
            environment: environment_digest(self.environment_name()),
            tag: self.tag,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::views::{
            Commons,
            tests::{view, view_of},
        },
        *,
    };
    use crate::api::{Webhook, WhatsAppChannel, WhatsAppChannelSpec};

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

    /// The table of these resources alone.
    pub(in crate::bridge) fn table(
        views: impl IntoIterator<Item = ChannelView>,
        issued: &Issued,
    ) -> RouteTable {
        let views: Vec<_> = views.into_iter().map(Arc::new).collect();
        RouteTable::build(&views, &installation(), issued, &RouteTable::default())
    }

    #[test]
    fn of_several_resources_with_one_channel_the_oldest_is_routed() {
        let views = [
            view("aura-es2", "b", 5, 1),
            view("aura-es", "a", 9, 1),
            view("aura-es", "c", 1, 2),
        ];
        let table = table(views, &Issued::default());
        assert_eq!(table.len(), 2);
        assert_eq!(table.get(ChannelId::from_bytes([1; 16])).unwrap().name(), "b");
    }

    #[test]
    fn a_namespace_that_may_not_use_the_environment_claims_nothing() {
        let views = [
            view("elsewhere", "squatter", 1, 1),
            view("aura-es", "owner", 9, 1),
        ];
        let table = table(views, &Issued::default());
        assert_eq!(table.get(ChannelId::from_bytes([1; 16])).unwrap().name(), "owner");
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
            let spec = WhatsAppChannelSpec {
                environment: "es-dev".into(),
                ..WhatsAppChannelSpec::example()
            };
            let mut channel = WhatsAppChannel::new(name, spec);
            let at = |text: &str| Time(text.parse().unwrap());
            channel.metadata.namespace = Some("aura-es".into());
            channel.metadata.creation_timestamp = Some(at(created));
            channel.metadata.deletion_timestamp = leaving.then(|| at("2026-11-22T12:00:00Z"));
            Commons::default().view(&channel).unwrap()
        };
        let (old, young) = (
            resource("old", "2026-11-22T10:00:00Z", true),
            resource("young", "2026-11-22T11:00:00Z", false),
        );
        let holder = |views: Vec<ChannelView>| {
            let channel = views[0].channel;
            table(views, &Issued::default())
                .get(channel)
                .unwrap()
                .name()
                .to_owned()
        };
        assert_eq!(holder(vec![old.clone(), young]), "young");
        assert_eq!(holder(vec![old]), "old", "alone, it is still routed");
    }

    #[test]
    fn what_is_as_it_was_is_taken_over_and_what_is_known_of_a_client_goes_on() {
        let build = |views: &[&ChannelView], installation: &Installation, before: &RouteTable| {
            let views: Vec<_> = views.iter().map(|view| Arc::new((*view).clone())).collect();
            let table = RouteTable::build(&views, installation, &Issued::default(), before);
            (views, table)
        };
        let (one, mut other) = (view("aura-es", "a", 1, 1), view("aura-es", "b", 1, 2));
        other.common = one.common.clone();
        let (views, first) = build(&[&one, &other], &installation(), &RouteTable::default());
        let again = RouteTable::build(&views, &installation(), &Issued::default(), &first);
        let of = |table: &RouteTable, id| table.get(ChannelId::from_bytes([id; 16])).unwrap().clone();
        assert!(
            [1, 2]
                .iter()
                .all(|id| Arc::ptr_eq(&of(&first, *id), &of(&again, *id)))
        );
        // Its Secret is of another version: it is another route, with the same client.
        let mut newer = one.clone();
        newer.secret_version = Some("2".into());
        let (_, table) = build(&[&newer, &other], &installation(), &first);
        let (before, now) = (of(&first, 1), of(&table, 1));
        assert!(Arc::ptr_eq(&before.client, &now.client) && !before.leads_where(&now));
        // The keys within are written out, and are the ones that it has without that.
        let naming = |id_key: &str, secret_key: &str| {
            let mut spec = WhatsAppChannelSpec::example();
            spec.kernel.credentials_secret_ref.id_key = Some(id_key.into());
            spec.kernel.credentials_secret_ref.secret_key = Some(secret_key.into());
            view_of("aura-es", "a", 1, 1, spec)
        };
        let (_, table) = build(&[&naming("id", "secret")], &installation(), &first);
        let (before, now) = (of(&first, 1), of(&table, 1));
        assert!(Arc::ptr_eq(&before.client, &now.client) && before.leads_where(&now));
        // It names another Secret, another key within, or another namespace's: nothing is known of that.
        let mut elsewhere = one.clone();
        elsewhere.client_secret = "another".into();
        let mut taken_over = view("aura-es2", "a", 0, 1);
        taken_over.common = one.common.clone();
        for other in [
            elsewhere,
            naming("id", "another"),
            naming("another", "secret"),
            taken_over,
        ] {
            let (_, table) = build(&[&other], &installation(), &first);
            let (before, now) = (of(&first, 1), of(&table, 1));
            assert!(!Arc::ptr_eq(&before.client, &now.client) && !before.leads_where(&now));
        }
        // Its environment is another by now.
        let mut changed = installation();
        changed
            .environments
            .get_mut("es-dev")
            .unwrap()
            .channel_defaults
            .delivery
            .mode = Some(DeliveryMode::Hold);
        let table = RouteTable::build(&views, &changed, &Issued::default(), &first);
        let (before, now) = (of(&first, 1), of(&table, 1));
        assert!(!before.leads_where(&now) && Arc::ptr_eq(&before.client, &now.client));
        assert_eq!(now.delivery().held_until_ms, Some(delivery::FOREVER));
        assert!(Arc::ptr_eq(&now.delivery(), &of(&table, 2).delivery()), "shared");
    }

    #[test]
    fn what_changes_nothing_for_messages_leads_where_it_did() {
        let one = view("aura-es", "a", 1, 1);
        let observed = WhatsAppChannelSpec {
            webhook: Some(Webhook::default()),
            ..WhatsAppChannelSpec::example()
        };
        let same = view_of("aura-es", "a", 1, 1, observed);
        let route = |view: ChannelView| {
            let channel = view.channel;
            table([view], &Issued::default()).get(channel).unwrap().clone()
        };
        assert!(route(one).leads_where(&route(same)));
    }
}
