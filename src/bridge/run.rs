//! Starts the bridge's parts in order and stops them in order.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    body,
    certificates::Certificate,
    deliver::{Deliverer, SharedDeliverer},
    internal,
    lineage::{Comparison, Lineage},
    messages::{self, Audit, AuditLog, Hands, Office},
    public,
    reload::Reload,
    routes::RouteTable,
    secrets::Secrets,
    snapshot,
    state::{Health, Leaving, Setup, State, now_ms},
    telling,
    watch::Watch,
};
use crate::{
    admin, aura,
    cluster::Watches,
    config::{CredentialError, Installation},
    delivery::{
        Limits, Runner,
        backoff::{Backoff, Retries},
    },
    journal::{self, Journal, Keyring, Surroundings},
    kernel,
    keys::{KeyError, KeyMaterial, Keys},
    server::{self, Bounds, ListenError, Listening, Throttle, listen},
    telemetry::BridgeMetrics,
    tls::TlsError,
};

/// How the bridge is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checked configuration.
    pub installation: Installation,
    /// The file that it was read from, and is followed in.
    pub config: PathBuf,
    /// The namespace that the release lives in.
    pub release_namespace: String,
    /// The directory that the installation Secret is mounted as.
    pub installation_key: PathBuf,
    /// The volume of the journal and the route snapshot.
    pub data_dir: PathBuf,
    /// The ConfigMap with the cluster's record of the journal, in that namespace.
    pub journal_record: String,
    /// Where Kernel calls.
    pub public: SocketAddr,
    /// Where Aura replies.
    pub internal: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// Where people on call see and repair what is stuck: a loopback address.
    pub messages: SocketAddr,
    /// Where their changes are told of.
    pub audit_log: AuditLog,
    /// How long the bridge goes on when it is told to stop, while its readiness says so and each answer closes its
    /// connection: until nobody sends new calls here any more.
    pub drain: Duration,
    /// How long what is under way may take after that.
    pub grace: Duration,
}

/// The bridge can't start.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The installation key can't be used.
    #[error("the installation key in {path}: {source}")]
    Key {
        /// The directory.
        path: String,
        /// Why.
        source: KeyError,
    },
    /// A credential's file can't be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A listener's certificate can't be used.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// The journal does not open.
    #[error("the journal in {path}: {source}")]
    Journal {
        /// The directory.
        path: String,
        /// Why.
        source: journal::OpenError,
    },
    /// What the journal knows of its lineage can't be read or written.
    #[error("the journal in {path}: its lineage: {source}")]
    Lineage {
        /// The directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A listener can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS can't be set up.
    #[error("can't set up an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    /// Whoever reaches the messages listener may use it: it is for this pod alone.
    #[error(
        "--messages-address {0}: must be a loopback address, such as 127.0.0.1:8084; kubectl port-forward reaches it"
    )]
    NotLoopback(SocketAddr),
    /// The audit log can't be written.
    #[error("--audit-log: {0}")]
    AuditLog(std::io::Error),
    /// A part ended on its own.
    #[error("the bridge's {0} ended")]
    Ended(&'static str),
}

/// Reads the installation key from the directory that its Secret is mounted as.
pub(super) fn keys(dir: &Path) -> Result<Keys, BridgeError> {
    let material =
        KeyMaterial::new(|name| std::fs::read(dir.join(name)).ok()).map_err(|source| BridgeError::Key {
            path: dir.display().to_string(),
            source,
        })?;
    Ok(Keys::derive(&material))
}

/// Runs the bridge until told to stop.
///
/// # Errors
/// When it can't start, with what to put right.
pub async fn run(
    client: kube::Client,
    watches: Watches,
    options: Options,
    stop: CancellationToken,
) -> Result<(), BridgeError> {
    if !options.messages.ip().is_loopback() {
        return Err(BridgeError::NotLoopback(options.messages));
    }
    let audit = Audit::open(&options.audit_log).map_err(BridgeError::AuditLog)?;
    let keys = keys(&options.installation_key)?;
    let setup = Setup::new(options.installation.clone())?;
    let limits = options.installation.bridge.clone();
    let public_certificate = Certificate::open("public", limits.tls.public.as_ref())?;
    let internal_certificate = Certificate::open("internal", limits.tls.internal.as_ref())?;
    let journal_dir = options.data_dir.join("journal");
    let journal_options = journal::Options {
        max_bytes: limits.journal_max_bytes,
        // Small enough that the largest stays a small part of the whole.
        segment_bytes: (limits.journal_max_bytes / 32).clamp(1 << 20, 64 << 20),
        channel_share: limits.journal_channel_share,
        environment_share: limits.journal_environment_share,
        dead_letter_retention: limits.dead_letter_retention(),
        ..journal::Options::default()
    };
    let keyring = Keyring::open(&options.data_dir.join("journal-keys"), keys.wrapping())
        .map_err(journal::OpenError::from)
        .map_err(|source| BridgeError::Journal {
            path: journal_dir.display().to_string(),
            source,
        })?;
    let (metrics, registry) = BridgeMetrics::new();
    let (syncs, batches) = (
        metrics.journal_sync_seconds.clone(),
        metrics.journal_batch_records.clone(),
    );
    let surroundings = Surroundings {
        keyring: Some(Arc::new(keyring)),
        on_commit: Arc::new(move |records, took| {
            syncs.observe(took.as_secs_f64());
            batches.observe(f64::from(u32::try_from(records).unwrap_or(u32::MAX)));
        }),
        ..Surroundings::default()
    };
    let opened = {
        let dir = journal_dir.clone();
        tokio::task::spawn_blocking(move || Journal::open(&dir, journal_options, surroundings)).await
    };
    let (journal, pending) = opened
        .map_err(|_| BridgeError::Ended("journal"))?
        .map_err(|source| BridgeError::Journal {
            path: journal_dir.display().to_string(),
            source,
        })?;
    let lineage = {
        let (dir, journal) = (journal_dir.clone(), journal.clone());
        tokio::task::spawn_blocking(move || Lineage::open(&dir, journal)).await
    };
    let lineage = lineage
        .map_err(|_| BridgeError::Ended("journal"))?
        .map_err(|source| BridgeError::Lineage {
            path: journal_dir.display().to_string(),
            source,
        })?;
    let accepted = journal.committed();

    let snapshot = snapshot::load(&options.data_dir);
    let routes = match &snapshot {
        Some(known) => RouteTable::build(
            &known.channels.views,
            &options.installation,
            &known.issued,
            &RouteTable::default(),
        ),
        None => RouteTable::default(),
    };
    tracing::info!(
        pending = pending.len(),
        routes = routes.len(),
        snapshot = snapshot.is_some(),
        key = keys.id(),
        "the journal is open"
    );
    metrics
        .routes
        .set(i64::try_from(routes.len()).unwrap_or(i64::MAX));
    let health = Health::default();
    health.routes_known.store(snapshot.is_some(), Ordering::Relaxed);
    let known_since = snapshot
        .as_ref()
        .map_or_else(|| now_ms() / 1000, |known| known.saved_s);
    health.current_s.store(known_since, Ordering::Relaxed);
    let state = Arc::new(State {
        setup: ArcSwap::from_pointee(setup),
        setup_changed: Notify::new(),
        keys: ArcSwap::from_pointee(keys),
        routes: ArcSwap::from_pointee(routes),
        leaving: Leaving::default(),
        secrets: Secrets::new(client.clone()),
        journal: journal.clone(),
        lineage,
        metrics,
        health,
        watches,
        trail: Mutex::default(),
        heard: Mutex::default(),
        journal_max_bytes: limits.journal_max_bytes,
        bodies: body::room(),
        throttle: limits
            .trusted_proxies
            .is_some()
            .then(|| Mutex::new(Throttle::per_minute(limits.auth_failures_per_minute))),
        trusted_proxies: limits.trusted_proxies(),
        client_header: limits.client_address_header,
    });
    let deliverer: SharedDeliverer = Arc::new(Deliverer {
        state: state.clone(),
        aura: aura::Client::new()?,
        kernel: kernel::Client::new()?,
    });
    let seconds = Duration::from_secs;
    let lane_limits = Limits {
        channel_concurrency: limits.channel_concurrency,
        concurrency: limits.delivery_concurrency,
        retries: Retries {
            attempts: limits.delivery_attempts,
            waits: Backoff {
                base: limits.retry_first(),
                cap: limits.retry_longest(),
            },
        },
        blocked: Backoff {
            base: Duration::from_millis(500),
            cap: seconds(15),
        },
        outage: Backoff {
            base: seconds(1),
            cap: seconds(60),
        },
    };
    let (runner, handle) = Runner::new(journal.clone(), deliverer, lane_limits, accepted);
    let runner = runner.withholding(pending, |message| state.lineage.holds(message));
    // Those that the snapshot knows: the watch tells of what is another.
    for route in state.routes.load().iter() {
        handle.serves(route.channel(), route.delivery());
    }

    let (public_listener, internal_listener, admin_listener, messages_listener) = (
        listen(options.public).await?,
        listen(options.internal).await?,
        listen(options.admin).await?,
        listen(options.messages).await?,
    );
    let bounds = limits.bounds();
    let office = Office {
        state: state.clone(),
        desk: Hands {
            journal: journal.clone(),
            runner: handle.clone(),
        },
        audit,
    };
    let comparison = Comparison {
        client: client.clone(),
        namespace: options.release_namespace.clone(),
        name: options.journal_record.clone(),
        state: state.clone(),
        runner: handle.clone(),
    };
    let told = telling::router(state.clone(), handle.clone());
    let watch = Watch {
        client,
        scope: options.installation.scope(&options.release_namespace),
        state: state.clone(),
        runner: handle,
        data_dir: options.data_dir.clone(),
    };
    tracing::info!(public = %options.public, internal = %options.internal, admin = %options.admin, messages = %options.messages, "listening");

    let grace = options.grace;
    let admin_stop = CancellationToken::new();
    let admin = Listening {
        listener: admin_listener,
        // What is stuck in a bridge ends it: see `Parts`.
        app: admin::router(
            registry,
            Arc::new(|| None),
            readiness(&state),
            noted(&state),
            refresh(&state),
        )
        .merge(told),
        bounds: Bounds::default(),
        trusted: None,
        tls: None,
        metrics: state.metrics.listeners.of("admin"),
    };
    let admin_end = server::Stop::at_once(admin_stop.clone(), Duration::from_secs(1));
    let admin = tokio::spawn(admin.serve(admin_end));
    let halt = CancellationToken::new();
    let listeners_end = server::Stop {
        draining: state.health.draining.clone(),
        halt: halt.clone(),
        grace,
    };
    // All stop taking on work at once, within one grace: what is accepted in that time is on disk for the next start.
    let mut parts = Parts::default();
    let public = Listening {
        listener: public_listener,
        app: public::router(state.clone()),
        bounds,
        trusted: limits.trusted_proxies(),
        tls: tls_of(public_certificate.as_ref()),
        metrics: state.metrics.listeners.of("public"),
    };
    let internal = Listening {
        listener: internal_listener,
        app: internal::router(state.clone()),
        bounds,
        // Aura's own pods, few and known.
        trusted: None,
        tls: tls_of(internal_certificate.as_ref()),
        metrics: state.metrics.listeners.of("internal"),
    };
    parts.spawn("delivery", runner.run(halt.clone(), grace));
    let reload = Reload {
        state: state.clone(),
        config: options.config.clone(),
        installation_key: options.installation_key.clone(),
        certificates: public_certificate
            .into_iter()
            .chain(internal_certificate)
            .inspect(|certificate| certificate.show(&state))
            .collect(),
    };
    parts.spawn("reload", reload.run(halt.clone()));
    parts.spawn("watch", watch.run(snapshot, halt.clone()));
    parts.spawn("lineage", comparison.run(halt.clone()));
    parts.spawn("public listener", public.serve(listeners_end.clone()));
    parts.spawn("internal listener", internal.serve(listeners_end.clone()));
    let messages = Listening {
        listener: messages_listener,
        app: messages::router(office),
        bounds: Bounds {
            connections: 16,
            ..Bounds::default()
        },
        trusted: None,
        tls: None,
        metrics: state.metrics.listeners.of("messages"),
    };
    parts.spawn("messages listener", messages.serve(listeners_end));
    let told = async {
        stop.cancelled().await;
        state.health.draining.store(true, Ordering::Relaxed);
        tracing::info!(seconds = options.drain.as_secs(), "draining");
        tokio::time::sleep(options.drain).await;
    };
    let ended = tokio::select! {
        () = told => None,
        part = parts.next() => part,
    };
    state.health.draining.store(true, Ordering::Relaxed);
    halt.cancel();
    while parts.next().await.is_some() {}
    journal.close().await;
    admin_stop.cancel();
    let _ = admin.await;
    match ended {
        // A bridge that takes messages and delivers none would be worse than one that is started anew.
        Some(part) => Err(BridgeError::Ended(part)),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

fn tls_of(certificate: Option<&Certificate>) -> Option<Arc<server::Tls>> {
    certificate.map(|certificate| certificate.tls.clone())
}

/// The tasks that make up the bridge, by name.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<tokio::task::Id, &'static str>,
}

impl Parts {
    fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(part).id();
        self.names.insert(id, name);
    }

    /// The next part that ends; `None` when none is left.
    async fn next(&mut self) -> Option<&'static str> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a part of the bridge failed");
                error.id()
            }
        };
        Some(self.names.get(&id).copied().unwrap_or("part"))
    }
}

fn readiness(state: &Arc<State>) -> admin::Readiness {
    let state = state.clone();
    Arc::new(move || state.missing())
}

fn noted(state: &Arc<State>) -> admin::Readiness {
    let state = state.clone();
    Arc::new(move || state.noted())
}

fn refresh(state: &Arc<State>) -> Arc<dyn Fn() + Send + Sync> {
    let state = state.clone();
    Arc::new(move || {
        let journal = state.journal.stats();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        state
            .metrics
            .pending
            .set(gauge(journal.pending_to_aura + journal.pending_to_kernel));
        state.metrics.journal_bytes.set(gauge(journal.bytes_on_disk));
        state.metrics.journal_live_bytes.set(gauge(journal.live_bytes));
        state.metrics.journal_ids.set(gauge(journal.dedup_ids));
        state
            .metrics
            .journal_max_bytes
            .set(gauge(state.journal_max_bytes));
        state.metrics.dead_letters.set(gauge(journal.dead_letters));
        state.metrics.expired(journal.expired);
        let now_s = now_ms() / 1000;
        state.metrics.backlogs(&state.journal.backlogs(), now_s);
        state.metrics.routes_age.set(gauge(state.routes_age(now_s)));
        state.metrics.watches.show(&state.watches);
    })
}
