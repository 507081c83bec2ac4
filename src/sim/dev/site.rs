//! One installation of the product on a cluster, as the chart would make it: namespaces, roles, a ServiceAccount
//! with a token of its own for each role, the configuration file, and both roles as processes.

use std::{
    fmt::Write as _,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client,
    api::PostParams,
    config::Kubeconfig,
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::objects::{self, ObjectError};
use crate::{
    api::crd,
    controller::DEFAULT_INSTALLATION_KEY,
    lineage::DEFAULT_RECORD,
    sim::controlplane::{Child, Guard},
};

/// The roles, from the chart's own files: what it grants and what is tested here can't differ.
const CONTROLLER_RULES: &str =
    include_str!("../../../charts/aura-whatsapp-operator/files/rbac/controller.yaml");
const CONTROLLER_RELEASE_RULES: &str =
    include_str!("../../../charts/aura-whatsapp-operator/files/rbac/controller-release.yaml");
const CONTROLLER_FINALIZERS_RULES: &str =
    include_str!("../../../charts/aura-whatsapp-operator/files/rbac/controller-finalizers.yaml");
const BRIDGE_RELEASE_RULES: &str =
    include_str!("../../../charts/aura-whatsapp-operator/files/rbac/bridge-release.yaml");
const BRIDGE_RULES: &str = include_str!("../../../charts/aura-whatsapp-operator/files/rbac/bridge.yaml");

/// The name of the environment that every site has.
pub const ENVIRONMENT: &str = "es-dev";
/// Stands for all namespaces.
pub const EVERYWHERE: &str = "*";

/// The ServiceAccounts.
const CONTROLLER: &str = "aura-whatsapp-controller";
const BRIDGE: &str = "aura-whatsapp-bridge";

/// The site could not be made or a process of it not started.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// An object was refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The API server did not answer or refused.
    #[error("the API server, {doing}: {source}")]
    Api {
        /// What was being done.
        doing: &'static str,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// A file or process.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A process ended before it was ready.
    #[error("the {name} ended before it was ready ({status}):\n{output}")]
    Died {
        /// Which.
        name: &'static str,
        /// How it ended.
        status: String,
        /// The end of its log.
        output: String,
    },
    /// A process did not become ready.
    #[error("the {name} is not ready after {after:?}:\n{output}")]
    NotReady {
        /// Which.
        name: &'static str,
        /// How long was waited.
        after: Duration,
        /// The end of its log.
        output: String,
    },
    /// The kubeconfig can't be used.
    #[error("the kubeconfig can't be used: {0}")]
    Kubeconfig(String),
    /// No port.
    #[error("no free port on 127.0.0.1 between 30000 and 32767")]
    NoPort,
}

fn api(doing: &'static str) -> impl Fn(kube::Error) -> SiteError {
    move |source| SiteError::Api {
        doing,
        source: Box::new(source),
    }
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> SiteError {
    move |source| SiteError::Io { doing, source }
}

/// What a site is made from.
pub struct Plan<'a> {
    /// An administrator's client of the cluster.
    pub client: Client,
    /// The administrator's kubeconfig: server and certificate are taken from it.
    pub kubeconfig: &'a Path,
    /// Ends the processes if we cannot.
    pub guard: Guard,
    /// The program under test: `aura-whatsapp-operator`.
    pub program: &'a Path,
    /// Where the site keeps its files: configuration, credentials, journal, logs.
    pub dir: PathBuf,
    /// The namespace that it is installed in; it must exist.
    pub release_namespace: &'a str,
    /// The namespaces whose channels it serves; they must exist. `*`, alone: all namespaces of the cluster, as the chart's
    /// `clusterWide` does, also those that other sites serve.
    pub watched: &'a [String],
    /// Lets the controller remove its finalizer in all namespaces, as the chart's `rbac.finalizersClusterWide` does.
    pub finalizers_cluster_wide: bool,
    /// The simulated Kernel.
    pub kernel_url: &'a str,
    /// The simulated Aura's message URL.
    pub aura_url: &'a str,
    /// The API key that the bridge presents to Aura.
    pub aura_key: &'a str,
    /// The API key that Aura presents to the bridge.
    pub reply_key: &'a str,
    /// What both roles log.
    pub log_filter: &'a str,
    /// How long one call to Kernel may take.
    pub kernel_timeout: &'a str,
    /// Further lines of each environment's configuration, indented by four spaces. A `registration:` among them takes
    /// the place of the usual one.
    pub environment_extra: &'a str,
    /// Environments beside [`ENVIRONMENT`], for the same namespaces and the same Aura.
    pub further_environments: &'a [FurtherEnvironment],
    /// Where the controller finds the API server, if not where the kubeconfig says: a proxy on loopback, without TLS.
    pub controller_server: Option<&'a str>,
    /// The same for the bridge.
    pub bridge_server: Option<&'a str>,
    /// Further top-level lines of the configuration.
    pub config_extra: &'a str,
}

/// An environment beside the usual one.
#[derive(Clone, Debug)]
pub struct FurtherEnvironment {
    /// Its name.
    pub name: String,
    /// Its Kernel's API.
    pub api_url: String,
    /// Its Kernel's auth server.
    pub auth_url: String,
}

/// One installation.
#[derive(Clone)]
pub struct Site {
    client: Client,
    guard: Guard,
    program: PathBuf,
    dir: PathBuf,
    release_namespace: String,
    log_filter: String,
    /// What the controller's log is named after.
    controller_name: String,
    controller_kubeconfig: PathBuf,
    bridge_kubeconfig: PathBuf,
    /// Where Kernel calls.
    pub public: SocketAddr,
    /// Where Aura replies.
    pub internal: SocketAddr,
    /// The bridge's health and metrics.
    pub bridge_admin: SocketAddr,
    /// The bridge's messages listener.
    pub messages: SocketAddr,
    /// The controller's health and metrics.
    pub controller_admin: SocketAddr,
    /// Further arguments of the controller: `--concurrency` and the like. None unless set.
    pub controller_arguments: Vec<String>,
    /// Whether the controller asks the bridge, as the chart has it do, and how often as its argument says it. `None`: it
    /// does not, so that of what the API server is asked nothing is its doing.
    pub asks_bridge_every: Option<&'static str>,
    /// How many seconds the bridge goes on when it is told to stop. None unless set: nobody has to be told here.
    pub drain: u64,
    /// A variable of the bridge's environment: what arms a failpoint. None unless set.
    pub bridge_variable: Option<(String, String)>,
}

/// Installs the resource's definition and waits until the API server serves it.
///
/// # Errors
/// When the API server refuses it.
pub async fn install_crd(client: &Client) -> Result<(), SiteError> {
    let definition =
        crd::definition().map_err(|error| ObjectError::Yaml("the CRD".into(), error.to_string()))?;
    let name = definition.metadata.name.clone().unwrap_or_default();
    let value = serde_json::to_value(&definition)
        .map_err(|error| ObjectError::Yaml("the CRD".to_owned(), error.to_string()))?;
    objects::apply(client, value).await?;
    await_condition(Api::all(client.clone()), &name, conditions::is_crd_established())
        .await
        .map_err(|error| SiteError::Kubeconfig(format!("the CRD was not established: {error}")))?;
    Ok(())
}

impl Site {
    /// Creates identities, roles and files. Starts nothing.
    ///
    /// # Errors
    /// When the API server or the file system refuses.
    pub async fn install(plan: Plan<'_>) -> Result<Self, SiteError> {
        let client = plan.client.clone();
        identity(&client, plan.release_namespace, CONTROLLER).await?;
        identity(&client, plan.release_namespace, BRIDGE).await?;
        let release = plan.release_namespace;
        for (account, rules) in [
            (CONTROLLER, CONTROLLER_RELEASE_RULES),
            (BRIDGE, BRIDGE_RELEASE_RULES),
        ] {
            let rules = rules
                .replace("INSTALLATION_KEY_SECRET", DEFAULT_INSTALLATION_KEY)
                .replace("JOURNAL_RECORD", DEFAULT_RECORD);
            let name = format!("{account}-release");
            grant(&client, release, &name, &rules, release, account).await?;
        }
        for (account, rules) in [(CONTROLLER, CONTROLLER_RULES), (BRIDGE, BRIDGE_RULES)] {
            for namespace in plan.watched {
                if namespace == EVERYWHERE {
                    let name = format!("{release}-{account}");
                    grant_everywhere(&client, &name, rules, release, account).await?;
                } else {
                    grant(&client, namespace, account, rules, release, account).await?;
                }
            }
        }
        if plan.finalizers_cluster_wide {
            let name = format!("{release}-{CONTROLLER}-finalizers");
            grant_everywhere(&client, &name, CONTROLLER_FINALIZERS_RULES, release, CONTROLLER).await?;
        }

        std::fs::create_dir_all(plan.dir.join("credentials")).map_err(io_error("make the site's folder"))?;
        let site = Self {
            controller_name: "controller".to_owned(),
            controller_kubeconfig: kubeconfig(&plan, &client, CONTROLLER, plan.controller_server).await?,
            bridge_kubeconfig: kubeconfig(&plan, &client, BRIDGE, plan.bridge_server).await?,
            client,
            guard: plan.guard.clone(),
            program: plan.program.to_owned(),
            dir: plan.dir.clone(),
            release_namespace: release.to_owned(),
            log_filter: plan.log_filter.to_owned(),
            public: free_address()?,
            internal: free_address()?,
            bridge_admin: free_address()?,
            messages: free_address()?,
            controller_admin: free_address()?,
            controller_arguments: Vec::new(),
            asks_bridge_every: None,
            drain: 0,
            bridge_variable: None,
        };
        for (name, key) in [("aura-out", plan.aura_key), ("aura-in", plan.reply_key)] {
            write_private(&site.dir.join("credentials").join(name), key.as_bytes())?;
        }
        let config = site.configuration(&plan);
        std::fs::write(site.config(), config).map_err(io_error("write the configuration"))?;
        Ok(site)
    }

    fn configuration(&self, plan: &Plan<'_>) -> String {
        // In quotes: an asterisk alone would be an alias.
        let list = plan.watched.join(", ").replace(EVERYWHERE, "\"*\"");
        let credentials = self.dir.join("credentials");
        let registration = if plan.environment_extra.contains("registration:") {
            ""
        } else {
            "    registration: {perSecond: 50, concurrent: 8}\n"
        };
        let mut text = format!("watchNamespaces: [{list}]\nenvironments:\n");
        let usual = FurtherEnvironment {
            name: ENVIRONMENT.to_owned(),
            api_url: plan.kernel_url.to_owned(),
            auth_url: plan.kernel_url.to_owned(),
        };
        for environment in std::iter::once(&usual).chain(plan.further_environments) {
            let _ = write!(
                text,
                "  {name}:\n    namespaces: [{list}]\n    insecure: true\n    publicUrl: http://{public}\n    \
                 kernel: {{apiUrl: {api}, authUrl: {auth}, timeout: {timeout}}}\n\
                 {registration}    aura:\n      messagesUrl: {aura}\n      \
                 replyUrl: http://{internal}\n      timeout: 5s\n      outboundAuth: {{apiKeyFile: {out}}}\n      \
                 inboundAuth: {{apiKeyFile: {inbound}}}\n{extra}",
                name = environment.name,
                public = self.public,
                api = environment.api_url,
                auth = environment.auth_url,
                timeout = plan.kernel_timeout,
                aura = plan.aura_url,
                internal = self.internal,
                out = credentials.join("aura-out").display(),
                inbound = credentials.join("aura-in").display(),
                extra = plan.environment_extra,
            );
        }
        text + plan.config_extra
    }

    /// The same installation with another controller beside the first one: with an admin listener, a log (by this name)
    /// and a way to the API server of its own: a proxy on loopback, without TLS. Starts nothing.
    ///
    /// # Errors
    /// When there is no port, or the file system refuses.
    pub fn with_another_controller(&self, name: &str, server: &str) -> Result<Self, SiteError> {
        let unusable = |error: &dyn std::fmt::Display| SiteError::Kubeconfig(error.to_string());
        let text = std::fs::read(&self.controller_kubeconfig)
            .map_err(io_error("read the controller's kubeconfig"))?;
        let mut own: Value = serde_json::from_slice(&text).map_err(|error| unusable(&error))?;
        own["clusters"][0]["cluster"] = json!({"server": server});
        let controller_kubeconfig = self.dir.join(format!("{name}.kubeconfig"));
        write_private(&controller_kubeconfig, own.to_string().as_bytes())?;
        Ok(Self {
            controller_name: name.to_owned(),
            controller_kubeconfig,
            controller_admin: free_address()?,
            ..self.clone()
        })
    }

    /// The configuration's file, that both roles follow.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    /// The folder that the installation key is shown to the bridge in; a file for each entry.
    pub fn installation_key(&self) -> PathBuf {
        self.dir.join("installation-key")
    }

    /// The file of the API key that the bridge presents to Aura.
    pub fn aura_key(&self) -> PathBuf {
        self.dir.join("credentials").join("aura-out")
    }

    /// The folder of the site's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log of a role: `controller` or `bridge`.
    pub fn log(&self, role: &str) -> PathBuf {
        self.dir.join(format!("{role}.log"))
    }

    fn command(&self, role: &str, kubeconfig: &Path) -> Command {
        let mut command = Command::new(&self.program);
        // A proxy is for the world outside: it would not find this machine's loopback.
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "KUBECONFIG",
        ] {
            command.env_remove(name);
        }
        command
            .arg(role)
            .arg("--config")
            .arg(self.config())
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args([
                "--namespace",
                &self.release_namespace,
                "--log-filter",
                &self.log_filter,
            ]);
        command
    }

    /// Starts the controller and waits for nothing.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_controller(&self) -> Result<Child, SiteError> {
        let mut command = self.command("controller", &self.controller_kubeconfig);
        command
            .arg("--admin-listen")
            .arg(self.controller_admin.to_string())
            .args(&self.controller_arguments);
        if let Some(every) = self.asks_bridge_every {
            let url = format!("http://{}", self.bridge_admin);
            command.args(["--bridge-url", &url, "--bridge-every", every]);
        }
        self.guard
            .spawn("controller", command, &self.log(&self.controller_name))
            .map_err(io_error("start the controller"))
    }

    /// Starts the controller and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready.
    pub async fn start_controller(&self) -> Result<Child, SiteError> {
        let child = self.spawn_controller()?;
        wait_ready(&child, "controller", self.controller_admin).await?;
        Ok(child)
    }

    /// Starts the bridge and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready.
    pub async fn start_bridge(&self) -> Result<Child, SiteError> {
        let child = self.spawn_bridge().await?;
        wait_ready(&child, "bridge", self.bridge_admin).await?;
        Ok(child)
    }

    /// Starts the bridge. The first time, waits for the installation key as a kubelet does that is to mount it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn spawn_bridge(&self) -> Result<Child, SiteError> {
        self.mount_installation_key().await?;
        let mut command = self.command("bridge", &self.bridge_kubeconfig);
        command
            .arg("--installation-key")
            .arg(self.installation_key())
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["--public-listen", &self.public.to_string()])
            .args(["--internal-listen", &self.internal.to_string()])
            .args(["--admin-listen", &self.bridge_admin.to_string()])
            .args(["--messages-address", &self.messages.to_string()])
            .args(["--drain", &self.drain.to_string(), "--grace", "5"])
            .envs(self.bridge_variable.clone());
        self.guard
            .spawn("bridge", command, &self.log("bridge"))
            .map_err(io_error("start the bridge"))
    }

    async fn mount_installation_key(&self) -> Result<(), SiteError> {
        let folder = self.installation_key();
        if folder.exists() {
            return Ok(());
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.release_namespace);
        let there = |secret: Option<&Secret>| secret.is_some();
        let secret = tokio::time::timeout(
            READY_WITHIN,
            await_condition(secrets, DEFAULT_INSTALLATION_KEY, there),
        )
        .await
        .ok()
        .and_then(Result::ok)
        .flatten()
        .ok_or_else(|| SiteError::Kubeconfig("no installation key: is the controller running?".to_owned()))?;
        std::fs::create_dir_all(self.dir.join("data")).map_err(io_error("make the data folder"))?;
        let partial = self.dir.join("installation-key.new");
        std::fs::create_dir_all(&partial).map_err(io_error("mount the installation key"))?;
        for (name, value) in secret.data.unwrap_or_default() {
            write_private(&partial.join(name), &value.0)?;
        }
        std::fs::rename(&partial, &folder).map_err(io_error("mount the installation key"))
    }
}

const READY_WITHIN: Duration = Duration::from_secs(30);

async fn wait_ready(child: &Child, name: &'static str, admin: SocketAddr) -> Result<(), SiteError> {
    let start = tokio::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(io_error("wait for a process"))? {
            return Err(SiteError::Died {
                name,
                status: status.to_string(),
                output: child.output(20),
            });
        }
        if get(admin, "/readyz")
            .await
            .is_some_and(|(status, _)| status == 200)
        {
            return Ok(());
        }
        if start.elapsed() > READY_WITHIN {
            return Err(SiteError::NotReady {
                name,
                after: READY_WITHIN,
                output: child.output(20),
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A page of an admin listener; `None` where nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()
        .ok()?;
    let response = client.get(format!("http://{address}{path}")).send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.text().await.ok()?))
}

/// The processor time that a process has used since its start, its threads' together; in steps of 10 ms.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the second field is the name, which may hold anything; the 14th and 15th are user and system time.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // In what Linux shows to programs, a tick is a hundredth of a second on every architecture that we run on.
    Some(Duration::from_millis((user + system) * 10))
}

/// The resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// Ports that no other site of this process was given, below the range that outgoing connections use: a bridge that
/// is restarted finds its port free.
fn free_address() -> Result<SocketAddr, SiteError> {
    const FIRST: u16 = 30_000;
    const COUNT: u16 = 2_768;
    static NEXT: AtomicU16 = AtomicU16::new(u16::MAX);
    let _ = NEXT.compare_exchange(
        u16::MAX,
        fastrand::u16(0..COUNT),
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(SiteError::NoPort)
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), SiteError> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt};
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(io_error("write a credential"))?;
    file.write_all(content).map_err(io_error("write a credential"))
}

async fn identity(client: &Client, namespace: &str, name: &str) -> Result<(), SiteError> {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                         "metadata": {"name": name, "namespace": namespace}});
    objects::apply(client, account).await?;
    Ok(())
}

/// Grants rules in one namespace.
async fn grant(
    client: &Client,
    namespace: &str,
    name: &str,
    rules: &str,
    release: &str,
    account: &str,
) -> Result<(), SiteError> {
    bind(
        client,
        "Role",
        &json!({"name": name, "namespace": namespace}),
        rules,
        release,
        account,
    )
    .await
}

/// Grants rules in all namespaces.
async fn grant_everywhere(
    client: &Client,
    name: &str,
    rules: &str,
    release: &str,
    account: &str,
) -> Result<(), SiteError> {
    bind(
        client,
        "ClusterRole",
        &json!({"name": name}),
        rules,
        release,
        account,
    )
    .await
}

async fn bind(
    client: &Client,
    kind: &str,
    metadata: &Value,
    rules: &str,
    release: &str,
    account: &str,
) -> Result<(), SiteError> {
    let name = metadata["name"].as_str().unwrap_or_default();
    let rules = objects::parse(rules, name)?.pop().unwrap_or(Value::Null);
    let api_version = "rbac.authorization.k8s.io/v1";
    let role = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "rules": rules});
    let binding = json!({
        "apiVersion": api_version, "kind": format!("{kind}Binding"), "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": release}],
    });
    objects::apply(client, role).await?;
    objects::apply(client, binding).await?;
    Ok(())
}

/// A kubeconfig with a token of the ServiceAccount's own, good for a day; for another server, if one is given.
async fn kubeconfig(
    plan: &Plan<'_>,
    client: &Client,
    account: &str,
    server: Option<&str>,
) -> Result<PathBuf, SiteError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), plan.release_namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(24 * 3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let issued = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(api("issue a token"))?;
    let token = issued.status.map(|status| status.token).unwrap_or_default();
    let admin =
        Kubeconfig::read_from(plan.kubeconfig).map_err(|error| SiteError::Kubeconfig(error.to_string()))?;
    let current = admin.current_context.clone().unwrap_or_default();
    let cluster = admin
        .contexts
        .iter()
        .find(|context| context.name == current)
        .and_then(|context| context.context.as_ref())
        .map(|context| context.cluster.clone())
        .unwrap_or_default();
    let clusters = match server {
        Some(server) => json!([{"name": cluster, "cluster": {"server": server}}]),
        None => json!(
            admin
                .clusters
                .iter()
                .filter(|one| one.name == cluster)
                .collect::<Vec<_>>()
        ),
    };
    let own = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": account, "clusters": clusters,
        "users": [{"name": account, "user": {"token": token}}],
        "contexts": [{"name": account,
                      "context": {"cluster": cluster, "user": account, "namespace": plan.release_namespace}}],
    });
    let path = plan.dir.join(format!("{account}.kubeconfig"));
    write_private(&path, own.to_string().as_bytes())?;
    Ok(path)
}
