//! Starts the controller's parts and stops them in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use kube::{Client, runtime::Config as ControllerConfig};
use tokio_util::sync::CancellationToken;

use super::{
    collector::Channels,
    context::{Context, Parts, Scope},
    events::Events,
    gate::Side,
    health::Watchdog,
    installation_key::{self, Installed},
    lease::{self, Timing},
    reconcile::{ReconcileError, on_error, reconcile},
    watch,
};
use crate::{
    admin,
    api::WhatsAppChannel,
    cluster::{self, schema},
    config::{
        Installation,
        follow::{EVERY, Follow, Look},
    },
    delivery::backoff::Backoff,
    kernel,
    server::{self, Bounds, ListenError, listen},
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

/// How long reconciliations under way may take when the controller is stopped.
const GRACE: Duration = Duration::from_secs(5);
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
    lease_client: Client,
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
    let bounds = Bounds {
        connections: 64,
        header_timeout: Duration::from_secs(10),
    };
    let admin_stop = CancellationToken::new();
    let refresh = refresh(channels.clone());
    let admin = tokio::spawn(server::serve(
        listener,
        admin::router(registry, healthy, ready, refresh),
        bounds,
        admin_stop.clone(),
        Duration::from_secs(1),
    ));
    tracing::info!(admin = %options.admin, "listening");

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
    let mut result = Ok(());
    if definition(&client, &missing, &stop).await
        && let Some(installed) = installation_keys(&client, &options, &missing, &stop).await
    {
        let (events, publisher) = Events::new(client.clone(), leadership.clone());
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
    }
    // No other leads while our work is under way, and one does as soon as it has ended.
    election_stop.finished.cancel();
    let _ = election.await;
    admin_stop.cancel();
    let _ = admin.await;
    tracing::info!("stopped");
    result
}

/// What is counted when the metrics are asked for.
fn refresh(channels: Channels) -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(move || {
        let Some(context) = channels.context() else {
            return;
        };
        context
            .metrics
            .leader
            .set(i64::from(context.leadership.is_leader()));
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

/// Runs one controller for each watched scope, and what goes with them, until told to stop.
async fn control(
    context: &Arc<Context>,
    options: &Options,
    missing: &Missing,
    watchdog: &Arc<Watchdog>,
    stop: &CancellationToken,
) -> Result<(), ControllerError> {
    let namespaces = match options.installation.scope(&options.release_namespace) {
        None => vec![None],
        Some(namespaces) => namespaces.into_iter().map(Some).collect(),
    };
    // A place for every channel that may have begun, and some for those that call nobody.
    let begun: u64 = options
        .installation
        .environments
        .values()
        .map(|environment| u64::from(environment.registration.concurrent.max(1)) * 2)
        .sum();
    let concurrency = options
        .concurrency
        .max(u16::try_from(begun + 8).unwrap_or(u16::MAX))
        // Places cost nothing while they are empty, and a later configuration may have more environments.
        .max(PLACES);
    let mut scopes = Vec::new();
    let mut running = FuturesUnordered::new();
    for namespace in namespaces {
        let watched = watch::scope(context, namespace.as_deref());
        scopes.push(Scope {
            namespace,
            store: watched.store,
            wake: watched.wake,
        });
        let secrets = stop.clone().run_until_cancelled_owned(watched.secrets);
        running.push(secrets.map(|_| ()).boxed());
        let (context, watchdog) = (context.clone(), watchdog.clone());
        running.push(
            watched
                .controller
                .with_config(ControllerConfig::default().concurrency(concurrency))
                .graceful_shutdown_on(stop.clone().cancelled_owned())
                .run(
                    move |channel: Arc<WhatsAppChannel>, context: Arc<Context>| {
                        let watchdog = watchdog.clone();
                        async move {
                            let _under_way = watchdog.begin();
                            reconcile(channel, context).await
                        }
                    },
                    on_error,
                    context,
                )
                .for_each(|result| async {
                    if let Err(error) = result {
                        report(&error);
                    }
                })
                .boxed(),
        );
    }
    let stores: Vec<_> = scopes.iter().map(|scope| scope.store.clone()).collect();
    // Reconciliations read the scopes: they must be there before the first one runs.
    context.set_scopes(scopes);
    missing.store(Arc::new(Some(
        "waiting for the API server's list of WhatsAppChannels (is the CRD installed, may we list them?)"
            .to_owned(),
    )));
    let synced = async {
        for store in &stores {
            if store.wait_until_ready().await.is_err() {
                return;
            }
        }
        missing.store(Arc::new(None));
        tracing::info!(
            channels = stores.iter().map(|store| store.state().len()).sum::<usize>(),
            "ready"
        );
    };
    let beside = CancellationToken::new();
    let tasks = [
        tokio::spawn(beside.clone().run_until_cancelled_owned(lead(context.clone()))),
        tokio::spawn(beside.clone().run_until_cancelled_owned(probes(context.clone()))),
        tokio::spawn(
            beside
                .clone()
                .run_until_cancelled_owned(follow_config(context.clone(), options.clone())),
        ),
        tokio::spawn(
            beside
                .clone()
                .run_until_cancelled_owned(follow_key(context.clone(), options.clone())),
        ),
    ];
    let work = futures::future::join(synced, async { while running.next().await.is_some() {} });
    // A controller whose list never succeeded does not hear of the stop by itself.
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        _ = work => {}
        () = overdue => tracing::warn!("stopped with work under way: it is taken up again at the next start"),
    }
    beside.cancel();
    for task in tasks {
        let _ = task.await;
    }
    if stop.is_cancelled() {
        Ok(())
    } else {
        Err(ControllerError::Ended("watch"))
    }
}

/// Has every channel looked at when this process begins to lead.
async fn lead(context: Arc<Context>) {
    let mut leadership = context.leadership.clone();
    loop {
        leadership.acquired().await;
        context.begins_to_lead();
        // While it stood by, it saw no Secret: another may hold another client by now.
        context.wait_listed().await;
        watch::read_clients(&context).await;
        leadership.lost().await;
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

fn report<Q: std::error::Error + 'static>(error: &kube::runtime::controller::Error<ReconcileError, Q>) {
    use kube::runtime::controller::Error;
    match error {
        // A deleted object that was still in the queue, and failures that `on_error` has told of.
        Error::ObjectNotFound(_) | Error::ReconcilerFailed(..) => tracing::debug!("nothing to reconcile"),
        Error::QueueError(_) => tracing::warn!("a watch is interrupted; it is tried again"),
        Error::RunnerError(_) => tracing::warn!("the controller's runner failed"),
    }
}
