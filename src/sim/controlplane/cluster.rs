//! A running control plane: etcd, kube-apiserver and, if wanted, kube-controller-manager, behind one type
//! that starts, stops and restarts them. How each server is started is in `launcher.rs`.
//!
//! It serves on loopback, keeps all of its files below one directory, and authenticates its one administrator
//! by a random token. Everybody else should come with the token of a ServiceAccount
//! ([`ControlPlane::token`]), so that a missing permission fails a test rather than a customer.
//!
//! The data is throw-away: etcd does not wait for the disk, and stopping does not wait for open watches.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, Config, api::PostParams};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;

use super::{
    assets::{Assets, Tool},
    guard::{Child, Guard, Signal},
    launcher::{Launcher, PORTS, Ports},
};

/// How long a server may take to end before it is killed. The API server would wait for its watches to end.
const STOP_GRACE: Duration = Duration::from_millis(300);
/// How many times a start is tried when a port was taken between choosing and using it.
const PORT_ATTEMPTS: u32 = 5;

/// What to start.
#[derive(Debug)]
pub struct Options<'a> {
    /// Data, certificates, logs and kubeconfigs; created if absent. Starting again with the same directory
    /// finds the same objects, on another port and with another administrator's token.
    pub dir: PathBuf,
    /// Ends the processes if we cannot.
    pub guard: Guard,
    /// What [`super::locate`] found of [`ControlPlane::tools`].
    pub assets: &'a Assets,
    /// With kube-controller-manager: namespace deletion, garbage collection, Deployments.
    pub controller_manager: bool,
}

/// A running control plane. Dropping it kills it.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they are to end: fields are dropped from top to bottom.
    controller_manager: Mutex<Option<Child>>,
    api_server: Mutex<Option<Child>>,
    etcd: Mutex<Option<Child>>,
    launcher: Launcher,
    ports: Ports,
    config: Config,
    kubeconfig: PathBuf,
}

/// Why there is no control plane.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another control plane runs on the same files.
    #[error("{} is in use by another control plane: stop that one, or choose another directory", .0.display())]
    DirectoryInUse(PathBuf),
    /// A file or process could not be created.
    #[error("cannot start the control plane: {0}")]
    Io(#[from] io::Error),
    /// A server ended by itself.
    #[error("{name} ended while starting ({status}). The end of its log, {}:\n{output}", .log.display())]
    Died {
        /// The server.
        name: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its whole log.
        log: PathBuf,
        /// The last lines.
        output: String,
    },
    /// It did not become ready.
    #[error(
        "the control plane was not ready after {} s, because {reason}. The end of {}:\n{output}",
        .waited.as_secs(), .log.display()
    )]
    NotReady {
        /// How long it was waited for.
        waited: Duration,
        /// The last answer.
        reason: String,
        /// The API server's whole log.
        log: PathBuf,
        /// The last lines.
        output: String,
    },
    /// No port could be had.
    #[error("no free port between {} and {} on 127.0.0.1", PORTS.start, PORTS.end - 1)]
    NoPort,
}

impl StartError {
    fn is_port_taken(&self) -> bool {
        matches!(self, Self::Died { output, .. } if output.contains("address already in use"))
    }
}

impl ControlPlane {
    /// What has to be located to start one.
    #[must_use]
    pub fn tools(controller_manager: bool) -> &'static [Tool] {
        const TOOLS: [Tool; 3] = [Tool::Etcd, Tool::KubeApiserver, Tool::KubeControllerManager];
        if controller_manager { &TOOLS } else { &TOOLS[..2] }
    }

    /// Starts one and waits until it is ready: two to three seconds.
    ///
    /// # Errors
    /// A [`StartError`], with the end of the log of what went wrong. Nothing is left running then.
    pub async fn start(options: Options<'_>) -> Result<Self, StartError> {
        // kube needs to be told which cryptography to use, once; an error says that somebody has told it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let with_controller_manager = options.controller_manager;
        let launcher = Launcher::prepare(options)?;

        let mut attempt = 1;
        let (ports, etcd, api_server, config) = loop {
            let ports = Ports::choose()?;
            // At the same time: the API server has enough to do before it needs its store.
            let etcd = launcher.etcd(ports)?;
            let api_server = launcher.api_server(ports)?;
            match launcher.ready(ports, &[&etcd, &api_server]).await {
                Ok(config) => break (ports, etcd, api_server, config),
                Err(error) if error.is_port_taken() && attempt < PORT_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        let kubeconfig =
            launcher.write_kubeconfig(ports, "admin", launcher.admin_token.expose_secret(), "default")?;
        let controller_manager = with_controller_manager
            .then(|| launcher.controller_manager(&kubeconfig))
            .transpose()?;
        if let Some(controller_manager) = &controller_manager {
            launcher
                .ready(ports, &[&etcd, &api_server, controller_manager])
                .await?;
        }
        Ok(Self {
            controller_manager: Mutex::new(controller_manager),
            api_server: Mutex::new(Some(api_server)),
            etcd: Mutex::new(Some(etcd)),
            launcher,
            ports,
            config,
            kubeconfig,
        })
    }

    /// The API server's address, `https://127.0.0.1:PORT`: the same for its whole life, restarts included.
    #[must_use]
    pub fn url(&self) -> String {
        self.ports.url()
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The directory of the servers' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.launcher.layout.logs()
    }

    /// Writes a kubeconfig called `name` for whoever `token` belongs to, with `namespace` as its default.
    ///
    /// # Errors
    /// If `name` is no file name, or the file cannot be written.
    pub fn write_kubeconfig(&self, name: &str, token: &str, namespace: &str) -> io::Result<PathBuf> {
        self.launcher.write_kubeconfig(self.ports, name, token, namespace)
    }

    /// A new client for the administrator. It belongs to the current tokio runtime, as any client does: take
    /// a new one in each test.
    ///
    /// # Errors
    /// If the client cannot be set up.
    pub fn client(&self) -> kube::Result<Client> {
        Client::try_from(self.config.clone())
    }

    /// A new token of an existing ServiceAccount (TokenRequest), good for an hour.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn token(&self, namespace: &str, service_account: &str) -> kube::Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client()?, namespace);
        let answer = accounts
            .create_token_request(service_account, &PostParams::default(), &request)
            .await?;
        Ok(answer.status.map(|status| status.token).unwrap_or_default())
    }

    /// Stops the API server; etcd keeps the data, and the controller manager keeps trying.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn stop_api_server(&self) -> io::Result<()> {
        stop(&self.api_server).await
    }

    /// Starts the API server again, on the same port and with the same data, and waits until it is ready.
    /// Does nothing if it runs.
    ///
    /// # Errors
    /// As for [`ControlPlane::start`].
    pub async fn start_api_server(&self) -> Result<(), StartError> {
        let (etcd, mut running) = (self.etcd.lock().await, self.api_server.lock().await);
        let mut attempt = 1;
        loop {
            let server = match running.take() {
                Some(server) if server.try_wait()?.is_none() => server,
                _ => self.launcher.api_server(self.ports)?,
            };
            let servers: Vec<&Child> = etcd.iter().chain([&server]).collect();
            match self.launcher.ready(self.ports, &servers).await {
                Ok(_) => {
                    *running = Some(server);
                    return Ok(());
                }
                Err(error) if error.is_port_taken() && attempt < PORT_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(STOP_GRACE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the API server a signal: stopped (SIGSTOP) it accepts connections and answers nothing, until it
    /// may go on (SIGCONT).
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn signal_api_server(&self, signal: Signal) -> io::Result<()> {
        match &*self.api_server.lock().await {
            Some(server) => server.signal(signal),
            None => Ok(()),
        }
    }

    /// Stops everything, in order and within about a second. The files stay. Once stopped it stays stopped.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn shutdown(&self) -> io::Result<()> {
        stop(&self.controller_manager).await?;
        stop(&self.api_server).await?;
        stop(&self.etcd).await
    }
}

async fn stop(server: &Mutex<Option<Child>>) -> io::Result<()> {
    match server.lock().await.take() {
        Some(server) => server.stop_within(STOP_GRACE).await.map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told_from_another_death() {
        let died = |output: &str| StartError::Died {
            name: "etcd".into(),
            status: std::process::ExitStatus::default(),
            log: "/logs/etcd.log".into(),
            output: output.into(),
        };
        assert!(died("listen tcp 127.0.0.1:1: bind: address already in use").is_port_taken());
        assert!(!died("unknown flag").is_port_taken());
        assert!(
            died("unknown flag")
                .to_string()
                .contains("/logs/etcd.log:\nunknown flag")
        );
    }
}
