//! Starts the controller's parts and stops them in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    bridge::{self, Asks},
    collector::Channels,
    context::{Context, Parts},
    events::Events,
    gate::Side,
    health::Watchdog,
    installation_key::{self, Installed},
    lease::{self, Timing},
    watch, worker,
};
use crate::{
    admin,
    cluster::{self, Asked, Watches, schema},
    config::{
        Installation,
        follow::{EVERY, Follow, Look},
    },
    delivery::backoff::Backoff,
    kernel,
    server::{self, Bounds, ListenError, Listening, listen},
    telemetry::ControllerMetrics,
};

/// How the controller is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checked configuration.
    pub installation: Installation,
    /// The file that it was read from, and is followed in.
    pub config: PathBuf,
    /// The namespace that the release lives in.
    pub release_namespace: String,
    /// The name of the installation key's Secret, there.
    pub installation_key: String,
    /// How long after a rotation of the installation key Kernel is told of keys derived from it: longer than the kubelet
    /// takes to show it to the bridge.
    pub key_settle: Duration,
    /// The times of the leader election.
    pub lease: Timing,
    /// How the bridge is asked.
    pub bridge: Asks,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// Reconciliations at once, at least.
    pub concurrency: u16,
}

/// The controller can't start.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The admin listener can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS can't be set up.
    #[error("can't set up an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    /// A part ended on its own.
    #[error("the controller's {0} ended")]
    Ended(&'static str),
}

/// How long reconciliations under way may take when the controller is stopped, beyond the time of one call to Kernel: the
/// chart gives it 60 s in all.
const GRACE: Duration = Duration::from_secs(5);
/// The longest that it waits for them.
const LONGEST_GRACE: Duration = Duration::from_secs(50);
/// Reconciliations that may be under way at once, at least: they wait for Kernel most of the time, and how many do is
/// bounded by each environment's gate.
const PLACES: u16 = 256;
/// How often the installed definition is looked at while it is not the one that is needed.
const DEFINITION_EVERY: Duration = Duration::from_secs(2);
const KEY_AGAIN: Backoff = Backoff {
    base: Duration::from_millis(500),
    cap: Duration::from_secs(30),
};
/// How often the installation key's Secret is read for a rotation, at least once within the time it has to settle.
const KEY_EVERY: Duration = Duration::from_secs(60);

/// What readiness says is missing.
type Missing = Arc<ArcSwap<Option<String>>>;

/// Runs the controller until told to stop. Stopping unregisters nothing.
///
/// # Errors
/// When it can't start, with what to put right.
pub async fn run(
    client: Client,
    watches: Watches,
    lease_client: (Client, Asked),
    options: Options,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let channels = Channels::default();
    let (metrics, registry) = ControllerMetrics::new(Box::new(channels.clone()));
    let listener = listen(options.admin).await?;
    let missing: Missing = Arc::new(ArcSwap::from_pointee(Some(
        "waiting for the installation key".to_owned(),
    )));
    let watchdog = Arc::new(Watchdog::default());
    let (healthy, ready): (admin::Readiness, admin::Readiness) = {
        let (watchdog, missing) = (watchdog.clone(), missing.clone());
        (
            Arc::new(move || watchdog.stuck()),
            Arc::new(move || missing.load().as_ref().clone()),
        )
    };
    let admin_stop = CancellationToken::new();
    let refresh = refresh(channels.clone(), watches);
    let listening = Listening {
        listener,
        app: admin::router(registry, healthy, ready, Arc::new(|| None), refresh),
        bounds: Bounds::default(),
        trusted: None,
        tls: None,
        metrics: metrics.listeners.of("admin"),
    };
    let admin_end = server::Stop::at_once(admin_stop.clone(), Duration::from_secs(1));
    let admin = tokio::spawn(listening.serve(admin_end));
    tracing::info!(admin = %options.admin, "listening");

    let mut result = Ok(());
    // Who can't work does not stand for election: it would lead, and keep those that can from it.
    if definition(&client, &missing, &stop).await
        && let Some(installed) = installation_keys(&client, &options, &missing, &stop).await
    {
        let (publish, leadership) = lease::channel();
        let election_stop = lease::Stop {
            asked: stop.clone(),
            finished: CancellationToken::new(),
        };
        let election = tokio::spawn(lease::run(
            lease_client,
            lease::Settings {
                namespace: options.release_namespace.clone(),
                name: lease::DEFAULT_NAME.to_owned(),
                identity: lease::identity(),
                timing: options.lease,
            },
            publish,
            election_stop.clone(),
        ));
        let (events, publisher) =
            Events::new(client.clone(), leadership.clone(), metrics.events_dropped.clone());
        let publisher = tokio::spawn(publisher.run());
        let parts = Parts {
            client,
            kernel: kernel::Client::new()?,
            metrics,
            leadership,
            events,
        };
        let context = Arc::new(Context::new(
            parts,
            options.installation.clone(),
            installed.keys,
            options.release_namespace.clone(),
        ));
        channels.set(&context);
        result = control(&context, &options, &missing, &watchdog, &stop).await;
        publisher.abort();
        // No other leads while our work is under way, and one does as soon as it has ended.
        election_stop.finished.cancel();
        let _ = election.await;
    }
    admin_stop.cancel();
    let _ = admin.await;
    tracing::info!("stopped");
    result
}

/// What is counted when the metrics are asked for.
fn refresh(channels: Channels, watches: Watches) -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(move || {
        let Some(context) = channels.context() else {
            return;
        };
        context
            .metrics
            .leader
            .set(i64::from(context.leadership.is_leader()));
        context
            .metrics
            .queue_depth
            .set(i64::try_from(context.work.depth()).unwrap_or(i64::MAX));
        context.metrics.watches.show(&watches);
        context.metrics.clear_environments();
        for (name, gate) in context.setup().gates() {
            context.metrics.waiting(name, gate.waiting());
            for side in Side::ALL {
                context
                    .metrics
                    .environment_is_up(name, side.as_str(), gate.is_up(side));
            }
        }
    })
}

/// Waits until the installed definition has every field that this program writes, for as long as it takes: what it does
/// not know would be dropped from each status without a word. Answers whether to go on.
async fn definition(client: &Client, missing: &Missing, stop: &CancellationToken) -> bool {
    let mut told = None;
    loop {
        let message = match schema::check(client).await {
            Ok(installed) => match installed.message() {
                None => return true,
                Some(message) => message,
            },
            Err(error) => format!(
                "the API server does not tell which CRDs it has ({})",
                cluster::error_class(&error)
            ),
        };
        if told.as_ref() != Some(&message) {
            tracing::error!("waiting: {message}");
        }
        missing.store(Arc::new(Some(message.clone())));
        told = Some(message);
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(DEFINITION_EVERY) => {}
        }
    }
}

/// Reads or creates the installation key, for as long as it takes. At a start in the middle of a rotation, until the
/// bridge has had time to read it as well.
async fn installation_keys(
    client: &Client,
    options: &Options,
    missing: &Missing,
    stop: &CancellationToken,
) -> Option<Installed> {
    let mut failures = 0;
    loop {
        let wait =
            match installation_key::ensure(client, &options.release_namespace, &options.installation_key)
                .await
            {
                Ok(installed) => {
                    let left = settling(&installed, options.key_settle);
                    if left.is_zero() {
                        return Some(installed);
                    }
                    missing.store(Arc::new(Some(
                        "the installation key was rotated a moment ago; waiting until the bridge has read it"
                            .to_owned(),
                    )));
                    left
                }
                Err(error) => {
                    failures += 1;
                    tracing::error!(%error, failures, "no installation key yet; trying again");
                    missing.store(Arc::new(Some(error.to_string())));
                    KEY_AGAIN.wait(failures, fastrand::f64())
                }
            };
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How long a rotated installation key is still kept from use.
fn settling(installed: &Installed, settle: Duration) -> Duration {
    installed.rotated_at.map_or(Duration::ZERO, |at| {
        let age = Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default();
        settle.saturating_sub(age)
    })
}

/// Runs the watches, the passes and what goes with them until told to stop.
async fn control(
    context: &Arc<Context>,
    options: &Options,
    missing: &Missing,
    watchdog: &Arc<Watchdog>,
    stop: &CancellationToken,
) -> Result<(), ControllerError> {
    missing.store(Arc::new(context.unlisted()));
    let over = stop.child_token();
    let mut parts = JoinSet::new();
    let mut part = |name: &'static str, part: BoxFuture<'static, ()>| {
        let part = over.clone().run_until_cancelled_owned(part);
        parts.spawn(part.map(move |_| name));
    };
    for namespace in context.namespaces() {
        let channels = watch::follow_channels(context.clone(), namespace.clone());
        part("watch of channels", channels.boxed());
        let secrets = watch::follow_secrets(context.clone(), namespace.clone());
        part("watch of Secrets", secrets.boxed());
    }
    part("round of a new leader", lead(context.clone()).boxed());
    part("probing of environments", probes(context.clone()).boxed());
    part(
        "asking of the bridge",
        bridge::follow(context.clone(), options.bridge.clone()).boxed(),
    );
    let (config, key) = (
        follow_config(context.clone(), options.clone()),
        follow_key(context.clone(), options.clone()),
    );
    part("reading of the configuration", config.boxed());
    part("reading of the installation key", key.boxed());
    part(
        "readiness",
        ready_when_listed(context.clone(), missing.clone()).boxed(),
    );
    let work = worker::run(
        context.clone(),
        places(options),
        watchdog.clone(),
        over.child_token(),
    );
    let mut work = tokio::spawn(work);
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        _ = &mut work => Some("work"),
        part = parts.join_next() => Some(match part {
            Some(Ok(name)) => name,
            _ => "faulty part",
        }),
    };
    over.cancel();
    context.stopping.cancel();
    // A call whose outcome nobody has heard is made again by the next leader: better that it ends.
    let environments = options.installation.environments.values();
    let call = environments.map(|environment| environment.kernel.timeout()).max();
    let grace = (GRACE + call.unwrap_or_default()).min(LONGEST_GRACE);
    if !work.is_finished() && tokio::time::timeout(grace, work).await.is_err() {
        tracing::warn!("stopped with work under way: it is taken up again at the next start");
    }
    match ended {
        // A part that ends because of the stop may be heard of first.
        Some(part) if !stop.is_cancelled() => Err(ControllerError::Ended(part)),
        _ => Ok(()),
    }
}

/// How many passes may be under way at once.
fn places(options: &Options) -> usize {
    // A place for every channel that may have begun, and some for those that call nobody.
    let begun: u64 = options
        .installation
        .environments
        .values()
        .map(|environment| u64::from(environment.registration.concurrent.max(1)) * 2)
        .sum();
    let places = options
        .concurrency
        .max(u16::try_from(begun + 8).unwrap_or(u16::MAX))
        // Places cost nothing while they are empty, and a later configuration may have more environments.
        .max(PLACES);
    usize::from(places)
}

/// Says what has not been listed yet, until nothing is missing.
async fn ready_when_listed(context: Arc<Context>, missing: Missing) {
    context
        .tell_unlisted(|unlisted| missing.store(Arc::new(unlisted)))
        .await;
    tracing::info!(channels = context.roster().keys(None).len(), "ready");
    // For as long as the process runs.
    std::future::pending::<()>().await;
}

/// Has every channel looked at when this process begins to lead.
async fn lead(context: Arc<Context>) {
    let mut leadership = context.leadership.clone();
    loop {
        leadership.acquired().await;
        let term = leadership.term();
        context.begins_to_lead();
        // While it stood by, it saw no Secret: another may hold another client by now.
        let round = async {
            context.wait_listed().await;
            watch::read_clients(&context).await;
            std::future::pending::<()>().await;
        };
        // Another may have led between the end of the claim and the next, however short that was.
        tokio::select! {
            () = leadership.term_is_over(term) => {}
            () = round => {}
        }
    }
}

/// Has one channel at a time try whether an environment that is down is back.
async fn probes(context: Arc<Context>) {
    loop {
        let next = context.setup().gates().filter_map(|(_, gate)| gate.tick()).min();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = context.ticks.notified() => {}
        }
    }
}

/// Takes changes of the configuration's file.
async fn follow_config(context: Arc<Context>, options: Options) {
    let mut follow = Follow::new(&options.config, &options.installation);
    let mut watched = options.installation.watch_namespaces;
    loop {
        tokio::time::sleep(EVERY).await;
        let looked = tokio::task::spawn_blocking(move || {
            let look = follow.look();
            (follow, look)
        });
        let Ok((back, look)) = looked.await else { return };
        follow = back;
        match look {
            Look::Same => {}
            Look::New(installation) => {
                tracing::info!("the configuration changed and is in force");
                if installation.watch_namespaces != watched {
                    watched.clone_from(&installation.watch_namespaces);
                    tracing::warn!("watchNamespaces changed: that takes effect at the next start");
                }
                context.metrics.config().reloaded(true);
                context.reconfigure(*installation);
            }
            Look::Bad(error) => {
                tracing::error!(%error, "the configuration can't be used; the last good one stays in force");
                context.metrics.config().reloaded(false);
                context.config_refused(&error.to_string());
            }
        }
    }
}

/// Takes a rotation of the installation key, once the bridge has had time to read it.
async fn follow_key(context: Arc<Context>, options: Options) {
    let every = KEY_EVERY
        .min(options.key_settle / 2)
        .max(Duration::from_millis(500));
    loop {
        tokio::time::sleep(every).await;
        let installed = match installation_key::read(
            &context.client,
            &options.release_namespace,
            &options.installation_key,
        )
        .await
        {
            Ok(installed) => installed,
            Err(error) => {
                tracing::warn!(%error, "the installation key can't be read; going on with the one that is known");
                continue;
            }
        };
        if installed.keys.id() == context.keys.load().id()
            || !settling(&installed, options.key_settle).is_zero()
        {
            continue;
        }
        tracing::info!(
            key = installed.keys.id(),
            "the installation key was rotated: every webhook is registered anew"
        );
        context.keys.store(Arc::new(installed.keys));
        context.wake_all();
    }
}
