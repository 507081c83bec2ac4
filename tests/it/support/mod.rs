//! The tests' worlds: one control plane for all, a namespace and an installation for each.

mod door;
pub mod kstatus;
mod numbers;
mod raw;
mod recorder;
mod world;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use aura_whatsapp_operator::{
    http,
    sim::{
        controlplane::{self, Assets, ControlPlane, Guard, Options, Tool},
        dev::{objects, site},
    },
};
use kube::Client;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::OnceCell;

pub use self::{
    numbers::{Number, condition, handled, ready},
    raw::{Answer, Raw},
    recorder::{Recorder, Seen},
    world::{REPLY_KEY, Side, World, WorldBuilder},
};

/// How long anything may take that has nothing to wait for.
pub const SOON: Duration = Duration::from_secs(20);

/// The development program, which is also the guard process.
pub const DEV: &str = env!("CARGO_BIN_EXE_aura-dev");
/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_aura-whatsapp-operator");

/// A control plane for tests, with the CRD installed.
pub struct TestCluster {
    pub control_plane: ControlPlane,
    pub guard: Guard,
    _dir: TempDir,
}

/// The binaries of the control plane and its tools, found or built once.
pub async fn assets() -> &'static Assets {
    static ASSETS: OnceCell<Assets> = OnceCell::const_new();
    ASSETS
        .get_or_init(|| async {
            http::install_tls_provider();
            controlplane::locate(&Tool::ALL)
                .await
                .unwrap_or_else(|error| panic!("{error}"))
        })
        .await
}

/// The control plane that all tests share, each in a namespace of its own. A test that breaks the API server takes
/// a [`private_cluster`].
pub async fn cluster() -> &'static TestCluster {
    static CLUSTER: OnceCell<TestCluster> = OnceCell::const_new();
    CLUSTER.get_or_init(|| start(true)).await
}

/// A control plane of the test's own, to be broken.
pub async fn private_cluster() -> TestCluster {
    start(false).await
}

async fn start(controller_manager: bool) -> TestCluster {
    let assets = assets().await;
    let guard = Guard::start(Path::new(DEV)).await.expect("the guard process");
    let dir = TempDir::with_prefix("aura-test-cluster-").unwrap();
    let options = Options {
        dir: dir.path().join("cluster"),
        guard: guard.clone(),
        assets,
        controller_manager,
    };
    let control_plane = ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    site::install_crd(&control_plane.client().unwrap()).await.unwrap();
    TestCluster {
        control_plane,
        guard,
        _dir: dir,
    }
}

impl TestCluster {
    /// An administrator's client, for this test's runtime.
    pub fn admin(&self) -> Client {
        self.control_plane.client().unwrap()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        self.control_plane.kubeconfig()
    }

    /// A fresh namespace.
    pub async fn namespace(&self, prefix: &str) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        objects::apply(&self.admin(), namespace).await.unwrap();
        name
    }

    /// Runs kubectl as the administrator; its output and whether it succeeded.
    pub async fn kubectl(&self, arguments: &[&str]) -> (bool, String) {
        let output = tokio::process::Command::new(assets().await.path(Tool::Kubectl))
            .env("KUBECONFIG", self.kubeconfig())
            .args(arguments)
            .output()
            .await
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }
}

/// The folder of the project.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The time as WhatsApp writes it. (A message that is days old by its own time is set aside.)
pub fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs().to_string()
}
