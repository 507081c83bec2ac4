//! Starts the controller's parts and stops them in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, TryStreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Config as ControllerConfig, Controller, Predicate, PredicateConfig, WatchStreamExt, predicates,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    context::{Context, Scope},
    installation_key,
    reconcile::{on_error, reconcile},
};
use crate::{
    admin,
    api::{SECRET_LABEL, WhatsAppChannel},
    cluster::WatchBackoff,
    config::Installation,
    delivery::backoff::Backoff,
    kernel,
    keys::Keys,
    server::{self, Bounds, ListenError, listen},
    telemetry::ControllerMetrics,
};

/// How the controller is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checked configuration.
    pub installation: Installation,
    /// The namespace that the release lives in.
    pub release_namespace: String,
    /// The name of the installation key's Secret, there.
    pub installation_key: String,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// Reconciliations at once.
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
}

/// How long reconciliations under way may take when the controller is stopped.
const GRACE: Duration = Duration::from_secs(5);
const KEY_AGAIN: Backoff = Backoff {
    base: Duration::from_millis(500),
    cap: Duration::from_secs(30),
};

/// Runs the controller until told to stop. Stopping unregisters nothing.
///
/// # Errors
/// When it can't start, with what to put right.
pub async fn run(client: Client, options: Options, stop: CancellationToken) -> Result<(), ControllerError> {
    let (metrics, registry) = ControllerMetrics::new();
    let listener = listen(options.admin).await?;
    let readiness = Arc::new(arc_swap::ArcSwap::from_pointee(Some(
        "waiting for the installation key".to_owned(),
    )));
    let ready: admin::Readiness = {
        let readiness = readiness.clone();
        Arc::new(move || readiness.load().as_ref().clone())
    };
    let bounds = Bounds {
        connections: 64,
        header_timeout: Duration::from_secs(10),
    };
    let admin_stop = CancellationToken::new();
    let admin = tokio::spawn(server::serve(
        listener,
        admin::router(registry, ready, Arc::new(|| {})),
        bounds,
        admin_stop.clone(),
        Duration::from_secs(1),
    ));
    tracing::info!(admin = %options.admin, "listening");

    if let Some(keys) = installation_keys(&client, &options, &readiness, &stop).await {
        let context = Arc::new(Context::new(
            client,
            options.installation.clone(),
            keys,
            kernel::Client::new()?,
            metrics,
        ));
        control(&context, &options, &readiness, &stop).await;
    }
    admin_stop.cancel();
    let _ = admin.await;
    tracing::info!("stopped");
    Ok(())
}

type Missing = Arc<arc_swap::ArcSwap<Option<String>>>;

/// Reads or creates the installation key, for as long as it takes.
async fn installation_keys(
    client: &Client,
    options: &Options,
    readiness: &Missing,
    stop: &CancellationToken,
) -> Option<Keys> {
    let mut failures = 0;
    loop {
        match installation_key::ensure(client, &options.release_namespace, &options.installation_key).await {
            Ok(keys) => return Some(keys),
            Err(error) => {
                failures += 1;
                tracing::error!(%error, failures, "no installation key yet; trying again");
                readiness.store(Arc::new(Some(error.to_string())));
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(KEY_AGAIN.wait(failures, fastrand::f64())) => {}
        }
    }
}

/// Runs one controller for each watched scope until told to stop.
async fn control(context: &Arc<Context>, options: &Options, readiness: &Missing, stop: &CancellationToken) {
    let namespaces = match options.installation.scope(&options.release_namespace) {
        None => vec![None],
        Some(namespaces) => namespaces.into_iter().map(Some).collect(),
    };
    let mut scopes = Vec::new();
    let mut running = FuturesUnordered::new();
    for namespace in namespaces {
        let (wake, woken) = mpsc::unbounded_channel();
        let (controller, store) = controller(context, namespace.as_deref(), woken);
        scopes.push(Scope {
            namespace,
            store: store.clone(),
            wake,
        });
        running.push(
            controller
                .with_config(ControllerConfig::default().concurrency(options.concurrency))
                .graceful_shutdown_on(stop.clone().cancelled_owned())
                .run(reconcile, on_error, context.clone())
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
    let _ = context.scopes.set(scopes);
    readiness.store(Arc::new(Some(
        "waiting for the API server's list of WhatsAppChannels (is the CRD installed, may we list them?)"
            .to_owned(),
    )));
    let synced = async {
        for store in &stores {
            if store.wait_until_ready().await.is_err() {
                return;
            }
        }
        readiness.store(Arc::new(None));
        tracing::info!(
            channels = stores.iter().map(|store| store.state().len()).sum::<usize>(),
            "ready"
        );
    };
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
}

fn controller(
    context: &Arc<Context>,
    namespace: Option<&str>,
    woken: mpsc::UnboundedReceiver<ObjectRef<WhatsAppChannel>>,
) -> (Controller<WhatsAppChannel>, Store<WhatsAppChannel>) {
    let channels: Api<WhatsAppChannel> = scoped(&context.client, namespace);
    let secrets: Api<PartialObjectMeta<Secret>> = scoped(&context.client, namespace);
    let (told, users) = (context.clone(), context.clone());
    let (store, writer) = reflector::store();
    let stream = watcher(channels, watcher::Config::default())
        .backoff(WatchBackoff::default())
        .modify(|channel| channel.managed_fields_mut().clear())
        .reflect(writer)
        .inspect_ok(move |event| match event {
            Event::Delete(channel) => told.gone(channel),
            Event::InitDone => told.listed_anew(),
            _ => {}
        })
        .applied_objects()
        // What the controller writes itself (the status) wakes nobody; that the finalizer was added must.
        .predicate_filter(
            predicates::generation.combine(predicates::finalizers).combine(predicates::annotations),
            PredicateConfig::default(),
        );
    let lookup = store.clone();
    let controller = Controller::for_stream(stream, store.clone())
        .watches(
            secrets,
            watcher::Config::default().labels(&format!("{SECRET_LABEL}=true")),
            move |secret| users_of(&users.installation, &lookup, &secret),
        )
        .trigger_backoff(WatchBackoff::default())
        .reconcile_on(tokio_stream(woken));
    (controller, store)
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// The channels that name a Secret.
fn users_of(
    installation: &Installation,
    channels: &Store<WhatsAppChannel>,
    secret: &PartialObjectMeta<Secret>,
) -> Vec<ObjectRef<WhatsAppChannel>> {
    let (namespace, name) = (secret.namespace(), secret.name_any());
    let names = |channel: &WhatsAppChannel| {
        let environment = installation.environments.get(&channel.spec.environment);
        let legacy = environment
            .and_then(|environment| environment.legacy_callback.as_ref()?.api_key_secret_ref.as_ref())
            .is_some_and(|reference| reference.name == name);
        legacy || channel.spec.secret_names().contains(&name.as_str())
    };
    channels
        .state()
        .into_iter()
        .filter(|channel| channel.namespace() == namespace && names(channel))
        .map(|channel| ObjectRef::from_obj(&*channel))
        .collect()
}

fn tokio_stream<T>(mut receiver: mpsc::UnboundedReceiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

fn report<E: std::error::Error + 'static, Q: std::error::Error + 'static>(
    error: &kube::runtime::controller::Error<E, Q>,
) {
    use kube::runtime::controller::Error;
    match error {
        // A deleted object that was still in the queue, and failures that `on_error` has told of.
        Error::ObjectNotFound(_) | Error::ReconcilerFailed(..) => tracing::debug!("nothing to reconcile"),
        Error::QueueError(_) => tracing::warn!("a watch is interrupted; it is tried again"),
        Error::RunnerError(_) => tracing::warn!("the controller's runner failed"),
    }
}
