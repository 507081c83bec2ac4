//! How each server of the control plane is started, on which ports and files, and when it is ready.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyper::Request;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;

use super::{
    assets::{Assets, Tool},
    cluster::{Options, StartError},
    files,
    guard::{Child, Guard},
};

/// How long a start may take. It takes two to three seconds; a loaded machine gets many times that.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(25);
/// How long one question may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of a dead server's log an error shows.
const LOG_LINES: usize = 15;
/// Where ports are taken from: below the range that operating systems use for outgoing connections, so that a
/// port stays ours while its server is stopped, and a client that keeps calling a stopped server can never
/// reach itself (a TCP connect to a port that happens to be its own source port succeeds).
pub(super) const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// The namespaces without which a cluster is of no use.
const NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// What is where below the directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    fn create(root: &Path) -> io::Result<Self> {
        let layout = Self {
            root: std::path::absolute(root)?,
        };
        for dir in [layout.certs(), layout.logs(), layout.kubeconfigs()] {
            fs::create_dir_all(&dir).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot create {}: {error}", dir.display()))
            })?;
        }
        Ok(layout)
    }
    fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
    fn data(&self) -> PathBuf {
        self.root.join("etcd")
    }
    fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }
    pub(super) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    fn kubeconfigs(&self) -> PathBuf {
        self.root.join("kubeconfigs")
    }
    fn log(&self, tool: Tool) -> PathBuf {
        self.logs().join(format!("{tool}.log"))
    }
    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.kubeconfigs().join(format!("{name}.yaml"))
    }
    fn signing_key(&self) -> PathBuf {
        self.certs().join("service-accounts.key")
    }
    fn tokens(&self) -> PathBuf {
        self.certs().join("tokens.csv")
    }
    /// Written by the API server: its certificate and the authority that signed it.
    fn ca(&self) -> PathBuf {
        self.certs().join("apiserver.crt")
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    etcd: u16,
    etcd_peer: u16,
    api_server: u16,
}

impl Ports {
    /// Three free ports, free again on return: whoever loses the race for one starts again with others.
    pub(super) fn choose() -> Result<Self, StartError> {
        // Held together until all are chosen, so that they differ.
        let mut held = Vec::new();
        for _ in 0..1000 {
            let port = fastrand::u16(PORTS);
            held.extend(
                TcpListener::bind(("127.0.0.1", port))
                    .ok()
                    .map(|listener| (port, listener)),
            );
            if let [(etcd, _), (etcd_peer, _), (api_server, _)] = held[..] {
                return Ok(Self {
                    etcd,
                    etcd_peer,
                    api_server,
                });
            }
        }
        Err(StartError::NoPort)
    }

    pub(super) fn url(self) -> String {
        format!("https://127.0.0.1:{}", self.api_server)
    }
}

/// All that starting a server needs besides its ports.
#[derive(Debug)]
pub(super) struct Launcher {
    pub layout: Layout,
    assets: Assets,
    guard: Guard,
    pub admin_token: SecretString,
    /// Held as long as the directory is in use.
    _lock: File,
}

impl Launcher {
    pub(super) fn prepare(options: Options<'_>) -> Result<Self, StartError> {
        let layout = Layout::create(&options.dir)?;
        let lock = File::create(layout.lock())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StartError::DirectoryInUse(layout.root)),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        for tool in [Tool::Etcd, Tool::KubeApiserver, Tool::KubeControllerManager] {
            // Those of an earlier start are of no use any more.
            let _ = fs::remove_file(layout.log(tool));
        }
        let admin_token = SecretString::from(uuid::Uuid::new_v4().simple().to_string());
        files::write_private(
            &layout.tokens(),
            &format!("{},admin,admin-uid,system:masters\n", admin_token.expose_secret()),
        )?;
        // Kept, so that tokens handed out before stay good.
        if !layout.signing_key().exists() {
            files::write_private(&layout.signing_key(), &files::new_signing_key())?;
        }
        Ok(Self {
            layout,
            assets: options.assets.clone(),
            guard: options.guard,
            admin_token,
            _lock: lock,
        })
    }

    fn spawn(&self, tool: Tool, arguments: &[String]) -> io::Result<Child> {
        let mut command = Command::new(self.assets.path(tool));
        command.args(arguments).current_dir(&self.layout.root);
        self.guard.spawn(tool.name(), command, &self.layout.log(tool))
    }

    pub(super) fn etcd(&self, ports: Ports) -> io::Result<Child> {
        let client = format!("http://127.0.0.1:{}", ports.etcd);
        let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
        self.spawn(
            Tool::Etcd,
            &[
                format!("--data-dir={}", self.layout.data().display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // Survives kill -9 all the same; a power cut may take the demo's data with it.
                "--unsafe-no-fsync".into(),
                "--logger=zap".into(),
                "--log-level=error".into(),
            ],
        )
    }

    pub(super) fn api_server(&self, ports: Ports) -> io::Result<Child> {
        let signing_key = self.layout.signing_key();
        let signing_key = signing_key.display();
        self.spawn(
            Tool::KubeApiserver,
            &[
                format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
                format!("--cert-dir={}", self.layout.certs().display()),
                "--bind-address=127.0.0.1".into(),
                // Not guessed from the network: there may be none. Nothing reads the endpoints that would
                // name it.
                "--advertise-address=127.0.0.1".into(),
                "--endpoint-reconciler-type=none".into(),
                format!("--secure-port={}", ports.api_server),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={signing_key}"),
                format!("--service-account-signing-key-file={signing_key}"),
                format!("--token-auth-file={}", self.layout.tokens().display()),
                "--authorization-mode=RBAC".into(),
                "--service-cluster-ip-range=10.0.0.0/24".into(),
                // Would refuse pods until their ServiceAccount exists, which takes a controller manager.
                "--disable-admission-plugins=ServiceAccount".into(),
                "--shutdown-delay-duration=0s".into(),
                "--profiling=false".into(),
            ],
        )
    }

    pub(super) fn controller_manager(&self, kubeconfig: &Path) -> io::Result<Child> {
        self.spawn(
            Tool::KubeControllerManager,
            &[
                format!("--kubeconfig={}", kubeconfig.display()),
                format!(
                    "--service-account-private-key-file={}",
                    self.layout.signing_key().display()
                ),
                "--use-service-account-credentials=true".into(),
                "--leader-elect=false".into(),
                // Serves nothing: one port less that could be taken.
                "--secure-port=0".into(),
                // By default it holds itself back for five seconds while it starts its forty controllers.
                "--kube-api-qps=1000".into(),
                "--kube-api-burst=1000".into(),
                "--profiling=false".into(),
            ],
        )
    }

    pub(super) fn write_kubeconfig(
        &self,
        ports: Ports,
        name: &str,
        token: &str,
        namespace: &str,
    ) -> io::Result<PathBuf> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is not a kubeconfig's name"),
            ));
        }
        let ca = fs::read(self.layout.ca())?;
        let path = self.layout.kubeconfig(name);
        files::write_private(
            &path,
            &files::kubeconfig(&ports.url(), &ca, name, token, namespace),
        )?;
        Ok(path)
    }

    /// Waits until the API server is ready and has its namespaces, and the controller manager, if it is among
    /// `servers`, has done its first work; or until one of `servers` ends.
    pub(super) async fn ready(&self, ports: Ports, servers: &[&Child]) -> Result<Config, StartError> {
        let started = Instant::now();
        let controllers = servers
            .iter()
            .any(|server| server.name() == Tool::KubeControllerManager.name());
        loop {
            for server in servers {
                if let Some(status) = server.try_wait()? {
                    let output = server.output(LOG_LINES);
                    return Err(StartError::Died {
                        name: server.name().to_owned(),
                        status,
                        log: server.log().to_owned(),
                        output,
                    });
                }
            }
            let reason = match tokio::time::timeout(REQUEST_TIMEOUT, self.ask(ports, controllers)).await {
                Ok(Ok(config)) => return Ok(config),
                Ok(Err(reason)) => reason,
                Err(_) => format!("it did not answer within {} s", REQUEST_TIMEOUT.as_secs()),
            };
            let waited = started.elapsed();
            if waited > START_TIMEOUT {
                let log = self.layout.log(Tool::KubeApiserver);
                let output = files::last_lines(&log, LOG_LINES);
                return Err(StartError::NotReady {
                    waited,
                    reason,
                    log,
                    output,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks once; an error is the reason why it is not ready.
    async fn ask(&self, ports: Ports, controllers: bool) -> Result<Config, String> {
        // Read anew each time: the API server writes it on its first start.
        let ca = fs::read(self.layout.ca()).map_err(|error| format!("it has no certificate yet: {error}"))?;
        let text = files::kubeconfig(
            &ports.url(),
            &ca,
            "admin",
            self.admin_token.expose_secret(),
            "default",
        );
        let kubeconfig = Kubeconfig::from_yaml(&text).map_err(|error| error.to_string())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| error.to_string())?;
        // The environment's proxy is for the internet.
        config.proxy_url = None;
        let client = Client::try_from(config.clone()).map_err(|error| error.to_string())?;

        let request = Request::get("/readyz")
            .body(Vec::new())
            .map_err(|error| error.to_string())?;
        client
            .request_text(request)
            .await
            .map_err(|error| format!("/readyz says {error}"))?;
        let namespaces = Api::<Namespace>::all(client.clone());
        for name in NAMESPACES {
            namespaces
                .get(name)
                .await
                .map_err(|error| format!("namespace {name}: {error}"))?;
        }
        if controllers {
            let accounts = Api::<ServiceAccount>::namespaced(client, "default");
            let made = accounts.get("default").await;
            made.map_err(|error| {
                format!("the controller manager has not made the default ServiceAccount: {error}")
            })?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_ports_are_three_and_free() {
        let Ports {
            etcd,
            etcd_peer,
            api_server,
        } = Ports::choose().unwrap();
        let held: Vec<_> = [etcd, etcd_peer, api_server]
            .map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap())
            .into();
        assert_eq!(held.len(), 3);
        assert!(
            [etcd, etcd_peer, api_server]
                .iter()
                .all(|port| PORTS.contains(port))
        );
    }
}
