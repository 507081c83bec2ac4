//! What the three listeners, the watch and the delivery share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{
    lineage::Lineage,
    refusing::Refusing,
    routes::{Route, RouteTable},
    secrets::Secrets,
    statuses::Heard,
    trail::{IdDigest, Trail, What},
};
use crate::{
    api::ChannelId,
    cluster::{Watches, schema::Installed},
    config::{Credential, CredentialError, Installation},
    journal::{Appended, Journal},
    keys::Keys,
    server::{ClientHeader, Throttle},
    telemetry::BridgeMetrics,
    words::counted,
};

/// Shared state of the bridge.
pub(super) struct State {
    /// The configuration in force.
    pub setup: ArcSwap<Setup>,
    /// Told when the configuration in force is another.
    pub setup_changed: Notify,
    pub keys: ArcSwap<Keys>,
    pub routes: ArcSwap<RouteTable>,
    /// Those of channels that were deleted and still deliver.
    pub leaving: Leaving,
    pub secrets: Secrets,
    pub journal: Journal,
    pub lineage: Lineage,
    pub metrics: BridgeMetrics,
    pub health: Health,
    /// Whether the watches stand.
    pub watches: Watches,
    /// What happened to the last messages.
    pub trail: Mutex<Trail>,
    /// How far the last sent messages got.
    pub heard: Mutex<Heard>,
    /// The journal's limit, in bytes.
    pub journal_max_bytes: u64,
    /// The room for all bodies that are being read or kept.
    pub bodies: Arc<Semaphore>,
    /// Wrong credentials by address, where addresses are known.
    pub throttle: Option<Mutex<Throttle>>,
    /// The proxies in front; `None` where nothing is known of them.
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// The header in which they tell for whom they ask.
    pub client_header: ClientHeader,
}

impl State {
    /// Whether the routes are what the API server says now.
    pub fn is_current(&self) -> bool {
        self.health.synced.load(Ordering::Relaxed) && self.watches.all_stand()
    }

    /// How long ago the routes were last known to be what the API server says, in seconds; as far as anybody has looked.
    pub fn routes_age(&self, now_s: u64) -> u64 {
        if self.is_current() {
            self.health.current_s.store(now_s, Ordering::Relaxed);
        }
        now_s.saturating_sub(self.health.current_s.load(Ordering::Relaxed))
    }

    /// A door has taken a message that came at `at_ms` and is on disk now, or has found that it was taken before.
    pub fn arrived(&self, appended: Appended, at_ms: u64, ids: impl IntoIterator<Item = Option<IdDigest>>) {
        let (seq, what) = match appended {
            Appended::New(seq) => (seq, What::Accepted),
            Appended::Duplicate(seq) => (seq, What::CameAgain),
        };
        let mut trail = self.trail();
        trail.happened(seq, what, 0, at_ms);
        if what == What::Accepted {
            trail.happened(seq, What::Committed, 0, now_ms());
        }
        for id in ids.into_iter().flatten() {
            trail.known_as(seq, id);
        }
    }

    /// How far the last sent messages got. Held for a moment only.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened to the last messages. Held for a moment only.
    pub fn trail(&self) -> MutexGuard<'_, Trail> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes of channels that were deleted, or went to another resource, a moment ago: what they had, they drain with
/// (Law 9).
#[derive(Default)]
pub(super) struct Leaving(Mutex<HashMap<ChannelId, (Arc<Route>, Instant)>>);

/// How long such a route is used: a channel drains for less, and what began at the last moment ends with it.
pub(super) const KEPT: Duration = Duration::from_secs(2 * 60);

impl Leaving {
    fn routes(&self) -> MutexGuard<'_, HashMap<ChannelId, (Arc<Route>, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel goes.
    pub fn add(&self, route: Arc<Route>) {
        self.routes().insert(route.channel(), (route, Instant::now()));
    }

    /// Lets go of those whose time is over, with the credentials that they hold; says whose they were.
    pub fn tidy(&self) -> Vec<ChannelId> {
        let mut routes = self.routes();
        let over = routes.extract_if(|_, (_, since)| since.elapsed() >= KEPT);
        over.map(|(channel, _)| channel).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.routes().is_empty()
    }

    /// The route that a channel had, while it still may be used.
    pub fn get(&self, channel: ChannelId) -> Option<Arc<Route>> {
        let routes = self.routes();
        let (route, since) = routes.get(&channel)?;
        (since.elapsed() < KEPT).then(|| route.clone())
    }
}

/// The configuration, with the credentials whose files it names.
pub(super) struct Setup {
    pub installation: Installation,
    pub aura: HashMap<String, AuraCredentials>,
}

impl Setup {
    /// Reads the files that a configuration names.
    ///
    /// # Errors
    /// When one can't be used.
    pub fn new(installation: Installation) -> Result<Self, CredentialError> {
        let aura = AuraCredentials::read(&installation)?;
        Ok(Self { installation, aura })
    }
}

/// How one environment's Aura and the bridge know each other.
pub(super) struct AuraCredentials {
    pub outbound: Credential,
    pub inbound: Credential,
}

/// What readiness depends on.
#[derive(Default)]
pub(super) struct Health {
    /// Routes are known: from the API server, or from the snapshot of a run before.
    pub routes_known: AtomicBool,
    /// When the routes were last known to be what the API server says, in seconds since 1970: before this run
    /// looked, when the snapshot was saved, or the run began.
    pub current_s: AtomicU64,
    /// The API server's own list of every watched namespace has been seen by this process.
    pub synced: AtomicBool,
    /// The API server does not know the resource.
    pub definition_missing: AtomicBool,
    /// The bridge is stopping: no new calls, please.
    pub draining: Arc<AtomicBool>,
    /// Messages of runs before that may not be delivered yet.
    pub withheld: AtomicUsize,
    /// Messages that the journal did not take.
    pub refusing: Mutex<Refusing>,
}

impl Health {
    /// What is missing for readiness, in words; none when ready.
    pub fn missing(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("stopping".to_owned());
        }
        if self.routes_known.load(Ordering::Relaxed) {
            return None;
        }
        let definition = self.definition_missing.load(Ordering::Relaxed);
        let why = definition.then(|| Installed::Missing.message()).flatten();
        let why = why.unwrap_or_else(|| "waiting for the API server's list of WhatsAppChannels".to_owned());
        Some(format!("no routes yet: {why}"))
    }
}

impl State {
    /// What a person should know of a bridge that is ready all the same.
    pub fn noted(&self) -> Option<String> {
        let withheld = self.health.withheld.load(Ordering::Relaxed);
        let why = match self.lineage.verdict() {
            None => "until the cluster's record of the journal can be read",
            Some(_) => "for a person, because the journal was restored or copied: see \"messages journal\"",
        };
        (withheld > 0).then(|| format!("{} of before this start wait {why}", counted(withheld, "message")))
    }
}

impl AuraCredentials {
    /// Reads the credentials of every environment.
    ///
    /// # Errors
    /// When a file can't be used.
    fn read(installation: &Installation) -> Result<HashMap<String, Self>, CredentialError> {
        installation
            .environments
            .iter()
            .map(|(name, environment)| {
                let credentials = Self {
                    outbound: environment.aura.outbound_auth.read()?,
                    inbound: environment.aura.inbound_auth.read()?,
                };
                Ok((name.clone(), credentials))
            })
            .collect()
    }
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Shared by all parts.
pub(super) type Shared = Arc<State>;

#[cfg(test)]
mod tests {
    use super::{
        super::{issued::Issued, routes::tests::table, views::tests::view},
        *,
    };

    #[tokio::test(start_paused = true)]
    async fn a_route_that_leaves_is_used_for_its_time_and_then_let_go() {
        let routes = table([view("aura-es", "a", 1, 1)], &Issued::default());
        let route = routes.iter().next().unwrap().clone();
        drop(routes);
        let leaving = Leaving::default();
        leaving.add(route.clone());
        tokio::time::advance(KEPT / 2).await;
        assert_eq!(leaving.tidy(), []);
        assert!(Arc::ptr_eq(&leaving.get(route.channel()).unwrap(), &route));
        tokio::time::advance(KEPT / 2).await;
        assert!(leaving.get(route.channel()).is_none() && !leaving.is_empty());
        assert_eq!(leaving.tidy(), [route.channel()]);
        assert!(leaving.is_empty());
        assert_eq!(Arc::strong_count(&route), 1, "with what it knew of its client");
    }
}
