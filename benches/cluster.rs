//! A control plane for a measurement: a real kube-apiserver and etcd, with the CRD and one namespace.

use std::path::Path;

use aura_whatsapp_operator::{
    http,
    sim::{
        controlplane::{self, ControlPlane, Guard},
        dev::{objects, site},
    },
};
use kube::Client;
use serde_json::json;
use tempfile::TempDir;

/// It ends with this.
pub struct Cluster {
    pub client: Client,
    pub control_plane: ControlPlane,
    pub guard: Guard,
    pub dir: TempDir,
}

impl Cluster {
    pub async fn start(namespace: &str) -> anyhow::Result<Self> {
        http::install_tls_provider();
        println!("starting the control plane");
        let assets = controlplane::locate(ControlPlane::tools(false)).await?;
        let guard = Guard::start(Path::new(env!("CARGO_BIN_EXE_aura-dev"))).await?;
        let dir = TempDir::with_prefix("aura-bench-")?;
        let control_plane = ControlPlane::start(controlplane::Options {
            dir: dir.path().join("cluster"),
            guard: guard.clone(),
            assets: &assets,
            controller_manager: false,
        })
        .await?;
        let client = control_plane.client()?;
        site::install_crd(&client).await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        objects::apply(&client, namespace).await?;
        Ok(Self {
            client,
            control_plane,
            guard,
            dir,
        })
    }
}
