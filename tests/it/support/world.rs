//! One installation with its simulated neighbours.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::{
        apiproxy::ApiProxy,
        aura::{AuraOptions, AuraSim, Behaviour},
        controlplane::Child,
        dev::site::{self, EVERYWHERE, FurtherEnvironment, Plan, Site},
        kernel::{KernelOptions, KernelSim},
    },
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::Value;
use tempfile::TempDir;

use super::{PROGRAM, SOON, TestCluster, cluster, door::Door};

/// The key that the bridge presents to Aura, and Aura to the bridge.
pub const AURA_KEY: &str = "fake-key-towards-aura-0001";
pub const REPLY_KEY: &str = "fake-key-from-aura-000002";

/// How a world differs from the usual one.
#[allow(clippy::struct_excessive_bools, reason = "each is a difference of its own")]
pub struct WorldBuilder {
    prefix: &'static str,
    kernel: KernelOptions,
    behaviour: Behaviour,
    log_filter: String,
    environment_extra: String,
    config_extra: String,
    aura_key: String,
    reply_key: String,
    kernel_timeout: String,
    environments: Vec<(String, Option<Side>)>,
    controller_through_proxy: bool,
    bridge_through_proxy: bool,
    bridge: bool,
    release_apart: bool,
    finalizers_cluster_wide: bool,
    controller_arguments: Vec<String>,
    further_namespace: bool,
    cluster_wide: bool,
    asks_bridge_every: Option<&'static str>,
}

/// A part of Kernel that an environment may have a door of its own to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Auth,
    Api,
}

/// A controller beside the first one, with a proxy of its own to the API server.
pub struct SecondController {
    pub site: Site,
    pub child: Child,
    /// Ends with it.
    _proxy: ApiProxy,
}

impl SecondController {
    /// The name of its log.
    pub const NAME: &str = "controller-two";
}

/// An installation in a namespace of its own, running.
pub struct World {
    pub namespace: String,
    pub client: Client,
    pub kernel: KernelSim,
    pub aura: AuraSim,
    pub site: Site,
    pub controller: Option<Child>,
    pub bridge: Option<Child>,
    /// The second namespace whose channels it serves, where it was built with one.
    pub other_namespace: Option<String>,
    kubeconfig: PathBuf,
    proxy: Option<ApiProxy>,
    doors: HashMap<String, Door>,
    _dir: TempDir,
}

impl World {
    /// A world whose namespace begins with `prefix`.
    pub fn builder(prefix: &'static str) -> WorldBuilder {
        WorldBuilder {
            prefix,
            kernel: KernelOptions {
                revoke_on_rotate: true,
                ..KernelOptions::default()
            },
            behaviour: Behaviour::Echo,
            log_filter: "info".to_owned(),
            environment_extra: String::new(),
            config_extra: String::new(),
            aura_key: AURA_KEY.to_owned(),
            reply_key: REPLY_KEY.to_owned(),
            kernel_timeout: "5s".to_owned(),
            environments: Vec::new(),
            controller_through_proxy: false,
            bridge_through_proxy: false,
            bridge: true,
            release_apart: false,
            finalizers_cluster_wide: false,
            controller_arguments: Vec::new(),
            further_namespace: false,
            cluster_wide: false,
            asks_bridge_every: None,
        }
    }

    /// The usual world.
    pub async fn start(prefix: &'static str) -> Self {
        Self::builder(prefix).start().await
    }

    /// The proxy that roles of this world reach the API server through.
    pub fn proxy(&self) -> &ApiProxy {
        self.proxy.as_ref().expect("a world that was built with a proxy")
    }

    /// The door of an environment that was given one.
    pub fn door(&self, environment: &str) -> &Door {
        &self.doors[environment]
    }

    pub fn channels(&self) -> Api<WhatsAppChannel> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The log of a role so far.
    pub fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.site.log(role)).unwrap_or_default()
    }

    /// Starts another controller of this installation and waits until it is ready.
    pub async fn second_controller(&self) -> SecondController {
        let proxy = ApiProxy::start(&self.kubeconfig).await.unwrap();
        let site = self
            .site
            .with_another_controller(SecondController::NAME, &proxy.url())
            .unwrap_or_else(|error| panic!("{error}"));
        let child = site
            .start_controller()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        SecondController {
            site,
            child,
            _proxy: proxy,
        }
    }

    /// Stops the controller and starts it again.
    pub async fn restart_controller(&mut self) {
        self.controller.take().unwrap().stop().await.unwrap();
        self.start_controller().await;
    }

    /// Starts the controller after it was stopped or killed.
    pub async fn start_controller(&mut self) {
        let started = self.site.start_controller().await;
        self.controller = Some(started.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Changes the configuration's file as a kubelet does: the new one takes the place of the old one at once.
    pub fn reconfigure(&self, change: impl FnOnce(&str) -> String) {
        let path = self.site.config();
        let text = change(&std::fs::read_to_string(&path).unwrap());
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Waits until something is so, looking again and again.
    pub async fn until(&self, what: &str, is: impl AsyncFn() -> bool) {
        let start = tokio::time::Instant::now();
        while !is().await {
            assert!(
                start.elapsed() < SOON,
                "waited in vain until {what}\n{}\n{}\n{}",
                self.log("controller"),
                self.log(SecondController::NAME),
                self.log("bridge")
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Waits until the bridge's snapshot of the routes knows these numbers: after that a start serves them at once, also
    /// without the API server.
    pub async fn wait_snapshot(&self, numbers: impl IntoIterator<Item = &super::Number>) {
        let snapshot = self.site.dir().join("data").join("routes.json");
        let ids: Vec<&str> = numbers
            .into_iter()
            .map(|number| number.channel_id.as_str())
            .collect();
        self.until("the snapshot knows the channels", async || {
            let known = std::fs::read_to_string(&snapshot).unwrap_or_default();
            ids.iter().all(|id| known.contains(id))
        })
        .await;
    }

    /// Kills the bridge as the kernel would, without a word.
    pub async fn kill_bridge(&mut self) {
        self.bridge.take().unwrap().kill9().await.unwrap();
    }

    /// Starts the bridge again on the same volume and ports.
    pub async fn start_bridge(&mut self) {
        self.bridge = Some(
            self.site
                .start_bridge()
                .await
                .unwrap_or_else(|error| panic!("{error}")),
        );
    }

    /// Waits until every message that the bridge has accepted is delivered or given up, and that is on disk.
    pub async fn wait_settled(&self) {
        let start = tokio::time::Instant::now();
        while self
            .metric(self.site.bridge_admin, "aura_whatsapp_pending_messages")
            .await
            > 0.0
        {
            assert!(
                start.elapsed() < SOON,
                "messages are still pending\n{}",
                self.log("bridge")
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// A metric of a role's page: the sum over its labels.
    pub async fn metric(&self, admin: SocketAddr, name: &str) -> f64 {
        let (_, page) = site::get(admin, "/metrics")
            .await
            .expect("the admin listener answers");
        page.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl WorldBuilder {
    pub fn kernel(mut self, change: impl FnOnce(&mut KernelOptions)) -> Self {
        change(&mut self.kernel);
        self
    }

    pub fn aura(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
        self
    }

    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log_filter);
        self
    }

    /// Lines at the top of the configuration.
    pub fn config(mut self, lines: &str) -> Self {
        self.config_extra = format!("{lines}\n");
        self
    }

    /// Lines of the environment's configuration, indented by four spaces.
    pub fn environment_extra(mut self, lines: &str) -> Self {
        self.environment_extra = format!("{lines}\n");
        self
    }

    /// How long one call to Kernel may take, as the configuration writes it.
    pub fn kernel_timeout(mut self, timeout: &str) -> Self {
        timeout.clone_into(&mut self.kernel_timeout);
        self
    }

    /// One more environment, at the same simulated Kernel and Aura; with a [`Door`] to one side of Kernel, if wanted.
    pub fn environment(mut self, name: &str, door: Option<Side>) -> Self {
        self.environments.push((name.to_owned(), door));
        self
    }

    /// Lets the controller reach the API server through a proxy of the world's own.
    pub fn through_proxy(mut self) -> Self {
        self.controller_through_proxy = true;
        self
    }

    /// The same for the bridge; both use one proxy.
    pub fn bridge_through_proxy(mut self) -> Self {
        self.bridge_through_proxy = true;
        self
    }

    /// Starts no bridge: for what concerns the controller alone.
    pub fn without_bridge(mut self) -> Self {
        self.bridge = false;
        self
    }

    /// Installs the roles in a namespace beside the one with the channels: so that the latter can be deleted.
    pub fn release_apart(mut self) -> Self {
        self.release_apart = true;
        self
    }

    /// Lets the controller remove its finalizer in all namespaces.
    pub fn finalizers_cluster_wide(mut self) -> Self {
        self.finalizers_cluster_wide = true;
        self
    }

    /// Further arguments of the controller.
    pub fn controller_arguments(mut self, arguments: &[&str]) -> Self {
        self.controller_arguments = arguments.iter().map(ToString::to_string).collect();
        self
    }

    /// Has the controller ask the bridge, this often.
    pub fn asks_bridge_every(mut self, every: &'static str) -> Self {
        self.asks_bridge_every = Some(every);
        self
    }

    /// Serves a second namespace as well.
    pub fn with_another_namespace(mut self) -> Self {
        self.further_namespace = true;
        self
    }

    /// Serves all namespaces. Only on a control plane of the test's own: it would serve those of other tests as well.
    pub fn cluster_wide(mut self) -> Self {
        self.cluster_wide = true;
        self
    }

    pub fn keys(mut self, aura_key: &str, reply_key: &str) -> Self {
        aura_key.clone_into(&mut self.aura_key);
        reply_key.clone_into(&mut self.reply_key);
        self
    }

    /// Starts it on the control plane that all tests share.
    pub async fn start(self) -> World {
        self.start_on(cluster().await).await
    }

    /// Starts it on this control plane.
    pub async fn start_on(self, cluster: &TestCluster) -> World {
        let namespace = cluster.namespace(self.prefix).await;
        let release = if self.release_apart {
            cluster.namespace("release").await
        } else {
            namespace.clone()
        };
        let client = cluster.admin();
        let kernel = KernelSim::start(self.kernel).await.unwrap();
        let mut aura_options = AuraOptions::new(&self.aura_key, &self.reply_key);
        aura_options.behaviour = self.behaviour;
        let aura = AuraSim::start(aura_options).await.unwrap();
        let proxy = if self.controller_through_proxy || self.bridge_through_proxy {
            Some(ApiProxy::start(cluster.kubeconfig()).await.unwrap())
        } else {
            None
        };
        let server = proxy.as_ref().map(ApiProxy::url);
        let (mut environments, mut doors) = (Vec::new(), HashMap::new());
        for (name, side) in self.environments {
            let mut environment = FurtherEnvironment {
                name: name.clone(),
                api_url: kernel.url(),
                auth_url: kernel.url(),
            };
            if let Some(side) = side {
                let door = Door::to(kernel.url().trim_start_matches("http://").parse().unwrap()).await;
                match side {
                    Side::Auth => environment.auth_url = door.url(),
                    Side::Api => environment.api_url = door.url(),
                }
                doors.insert(name, door);
            }
            environments.push(environment);
        }
        let other_namespace = if self.further_namespace {
            Some(cluster.namespace(self.prefix).await)
        } else {
            None
        };
        let watched: Vec<String> = if self.cluster_wide {
            vec![EVERYWHERE.to_owned()]
        } else {
            std::iter::once(&namespace)
                .chain(&other_namespace)
                .cloned()
                .collect()
        };
        let dir = TempDir::with_prefix("aura-test-site-").unwrap();
        let mut site = Site::install(Plan {
            client: client.clone(),
            kubeconfig: cluster.kubeconfig(),
            guard: cluster.guard.clone(),
            program: Path::new(PROGRAM),
            dir: dir.path().join("site"),
            release_namespace: &release,
            watched: &watched,
            finalizers_cluster_wide: self.finalizers_cluster_wide,
            kernel_url: &kernel.url(),
            aura_url: &aura.messages_url(),
            aura_key: &self.aura_key,
            reply_key: &self.reply_key,
            log_filter: &self.log_filter,
            kernel_timeout: &self.kernel_timeout,
            environment_extra: &self.environment_extra,
            further_environments: &environments,
            controller_server: server.as_deref().filter(|_| self.controller_through_proxy),
            bridge_server: server.as_deref().filter(|_| self.bridge_through_proxy),
            config_extra: &self.config_extra,
        })
        .await
        .unwrap_or_else(|error| panic!("{error}"));
        site.controller_arguments = self.controller_arguments;
        site.asks_bridge_every = self.asks_bridge_every;
        let controller = site
            .start_controller()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let bridge = if self.bridge {
            let started = site.start_bridge().await;
            Some(started.unwrap_or_else(|error| panic!("{error}")))
        } else {
            None
        };
        World {
            namespace,
            client,
            kernel,
            aura,
            site,
            controller: Some(controller),
            bridge,
            other_namespace,
            kubeconfig: cluster.kubeconfig().to_owned(),
            proxy,
            doors,
            _dir: dir,
        }
    }
}

/// An object with a namespace put into it.
pub fn in_namespace(mut object: Value, namespace: &str) -> Value {
    object["metadata"]["namespace"] = namespace.into();
    object
}
