//! `cargo dev`: brings everything up for a person and takes it down again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt, api::DeleteParams, runtime::wait::await_condition};
use serde_json::{Value, json};

use super::{
    cli::Request,
    cluster::Cluster,
    objects, say,
    site::{self, ENVIRONMENT, Plan, Site},
    user::Running,
};
use crate::{
    api::WhatsAppChannel,
    sim::{
        aura::{AuraOptions, AuraSim},
        controlplane::{self, Child, ControlPlane, Guard, Tool},
        kernel::{ClientSpec, KernelOptions, KernelSim},
    },
};

/// The namespace that the development installation lives in.
const RELEASE: &str = "aura-system";
/// How long the simulated Kernel takes for each call: about what a near one would.
const KERNEL_LATENCY: Duration = Duration::from_millis(20);

/// How long controller and bridge may take to stop: longer than the bridge's own grace.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// Prints a step and the time it took.
pub(super) struct Steps {
    start: Instant,
    last: Instant,
}

impl Steps {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            last: Instant::now(),
        }
    }

    pub fn total(&self) -> Duration {
        self.start.elapsed()
    }

    /// Says that a step is done.
    pub fn done(&mut self, what: &str) {
        say(&format!("  {:>7.2} s  {what}", self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

/// The folder of the project.
fn project() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// The folder that `cargo dev` keeps its files in: `target/dev`, or what `AURA_DEV_DIR` names, so that several can run
/// side by side.
pub(super) fn folder() -> PathBuf {
    std::env::var_os("AURA_DEV_DIR").map_or_else(|| project().join("target/dev"), PathBuf::from)
}

/// Everything that runs.
pub(super) struct World {
    pub cluster: Cluster,
    pub client: Client,
    pub kernel: KernelSim,
    pub aura: AuraSim,
    pub site: Site,
    pub controller: Child,
    pub bridge: Child,
    /// The example channels, from apply to Ready.
    pub ready_after: Vec<(String, Duration)>,
    /// Namespaces that were made here, to be deleted from a given cluster.
    made: Vec<String>,
    /// Held while this runs: a second one would wipe the first one's files.
    _lock: File,
}

impl World {
    /// Brings everything up, saying so step by step.
    pub async fn up(request: &Request, steps: &mut Steps) -> anyhow::Result<Self> {
        let folder = folder();
        std::fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("can't make the lock")?;
        if lock.try_lock().is_err() {
            bail!(
                "it is running already, with its files in {}; end it first, or let AURA_DEV_DIR name another folder",
                folder.display()
            );
        }
        let program = build_program()?;
        steps.done("program built");
        let guard = Guard::start(&std::env::current_exe()?)
            .await
            .context("can't start the guard process")?;
        let cluster = match &request.kubeconfig {
            Some(kubeconfig) => Cluster::given(kubeconfig.clone(), request.allow_remote).await?,
            None => {
                let dir = folder.join("cluster");
                let _ = std::fs::remove_dir_all(&dir);
                let mut tools = ControlPlane::tools(true).to_vec();
                tools.push(Tool::Kubectl);
                let assets = controlplane::locate(&tools).await?;
                Cluster::start(dir, guard.clone(), &assets).await?
            }
        };
        let client = cluster.client()?;
        steps.done("control plane ready");

        site::install_crd(&client).await?;
        let examples: Vec<Value> = objects::read_folder(&project().join("examples"))?
            .into_iter()
            .map(objects::as_kubectl_would)
            .collect();
        let namespaces: Vec<Value> = of_kind(&examples, "Namespace").cloned().collect();
        let mut made = Vec::new();
        for namespace in namespaces.iter().cloned().chain([namespace(RELEASE)]) {
            let name = namespace["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if Api::<Namespace>::all(client.clone())
                .get_opt(&name)
                .await?
                .is_none()
            {
                made.push(name);
            }
            objects::apply(&client, namespace).await?;
        }
        let watched: Vec<String> = namespaces
            .iter()
            .filter_map(|namespace| Some(namespace["metadata"]["name"].as_str()?.to_owned()))
            .collect();

        let kernel = KernelSim::start(KernelOptions {
            latency: KERNEL_LATENCY,
            revoke_on_rotate: true,
            ..Default::default()
        })
        .await?;
        for spec in clients(&examples)? {
            kernel.add_client(spec);
        }
        let (aura_key, reply_key) = (made_up_key(), made_up_key());
        let aura = AuraSim::start(AuraOptions::new(&aura_key, &reply_key)).await?;
        let site_dir = folder.join("site");
        let _ = std::fs::remove_dir_all(&site_dir);
        let mut site = Site::install(Plan {
            client: client.clone(),
            kubeconfig: cluster.kubeconfig(),
            guard,
            program: &program,
            dir: site_dir,
            release_namespace: RELEASE,
            watched: &watched,
            finalizers_cluster_wide: false,
            kernel_url: &kernel.url(),
            aura_url: &aura.messages_url(),
            aura_key: &aura_key,
            reply_key: &reply_key,
            log_filter: &request.log_filter,
            kernel_timeout: "5s",
            environment_extra: "",
            further_environments: &[],
            controller_server: None,
            bridge_server: None,
            config_extra: "",
        })
        .await?;
        // More often than in the cluster of a customer: somebody is looking.
        site.asks_bridge_every = Some("1s");
        steps.done("CRD, roles and simulators in place");
        let controller = site.start_controller().await?;
        let bridge = site.start_bridge().await?;
        steps.done("controller and bridge ready");

        for secret in of_kind(&examples, "Secret") {
            objects::apply(&client, secret.clone()).await?;
        }
        let mut ready_after = Vec::new();
        for channel in of_kind(&examples, "WhatsAppChannel") {
            let start = Instant::now();
            let applied = objects::apply(&client, channel.clone()).await?;
            wait_ready(
                &client,
                &applied.namespace().unwrap_or_default(),
                &applied.name_any(),
            )
            .await?;
            let name = applied.name_any();
            steps.done(&format!("{name}: applied and Ready"));
            ready_after.push((name, start.elapsed()));
        }
        Ok(Self {
            cluster,
            client,
            kernel,
            aura,
            site,
            controller,
            bridge,
            ready_after,
            made,
            _lock: lock,
        })
    }

    /// Ends everything that `up` started.
    pub async fn down(self) -> anyhow::Result<()> {
        if !self.cluster.is_own() {
            self.leave().await;
        }
        let (controller, bridge) = tokio::join!(
            self.controller.stop_within(STOP_WITHIN),
            self.bridge.stop_within(STOP_WITHIN)
        );
        controller.context("can't stop the controller")?;
        bridge.context("can't stop the bridge")?;
        self.aura.stop().await;
        self.kernel.stop().await;
        self.cluster.shutdown().await
    }

    /// Takes what was made here away from a given cluster; the CRD stays, as others may use it.
    async fn leave(&self) {
        for (name, _) in &self.ready_after {
            let channels: Api<WhatsAppChannel> = Api::namespaced(self.client.clone(), "aura-es");
            let _ = channels.delete(name, &DeleteParams::default()).await;
            let gone = await_condition(channels, name, |found: Option<&WhatsAppChannel>| found.is_none());
            let _ = tokio::time::timeout(Duration::from_secs(20), gone).await;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in &self.made {
            let _ = namespaces.delete(name, &DeleteParams::default()).await;
        }
        for name in &self.made {
            let gone = await_condition(namespaces.clone(), name, |found: Option<&Namespace>| {
                found.is_none()
            });
            let _ = tokio::time::timeout(Duration::from_secs(20), gone).await;
        }
    }
}

/// Waits until a channel is Ready.
pub(super) async fn wait_ready(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    let api: Api<WhatsAppChannel> = Api::namespaced(client.clone(), namespace);
    let is_ready = |channel: Option<&WhatsAppChannel>| {
        condition(channel, "Ready").is_some_and(|(ready, ..)| ready == "True")
    };
    match tokio::time::timeout(
        Duration::from_secs(20),
        await_condition(api.clone(), name, is_ready),
    )
    .await
    {
        Ok(result) => {
            result.with_context(|| format!("{name} can't be watched"))?;
            Ok(())
        }
        Err(_) => {
            let channel = api.get(name).await.ok();
            let (ready, reason, message) = condition(channel.as_ref(), "Ready").unwrap_or_default();
            bail!("{name} is not Ready after 20 s: {ready} {reason} {message}")
        }
    }
}

fn condition(channel: Option<&WhatsAppChannel>, kind: &str) -> Option<(String, String, String)> {
    let conditions = &channel?.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((found.status.clone(), found.reason.clone(), found.message.clone()))
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// The Kernel clients of the examples: each channel's number with its Secret's credentials.
fn clients(examples: &[Value]) -> anyhow::Result<Vec<ClientSpec>> {
    of_kind(examples, "WhatsAppChannel")
        .map(|channel| {
            let spec = &channel["spec"];
            let name = &spec["kernel"]["credentialsSecretRef"]["name"];
            let secret = of_kind(examples, "Secret")
                .find(|secret| secret["metadata"]["name"] == *name)
                .with_context(|| format!("the examples have no Secret {name}"))?;
            let entry = |key: &str| secret["stringData"][key].as_str().unwrap_or_default().to_owned();
            Ok(ClientSpec {
                id: entry("id"),
                secret: entry("secret"),
                scopes: vec![
                    "whatsapp:app-admin".to_owned(),
                    "whatsapp:app-messaging".to_owned(),
                ],
                number: spec["phoneNumber"].as_str().unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

fn made_up_key() -> String {
    format!("dev-{}", uuid::Uuid::new_v4().simple())
}

/// Builds the program as it would be shipped, in the profile that this command was built in.
fn build_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program has no folder")?;
    let program = folder.join("aura-whatsapp-operator");
    if std::env::var_os("CARGO").is_none() && program.exists() {
        return Ok(program);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--features",
        "sim",
        "--bin",
        "aura-whatsapp-operator",
    ]);
    command.arg("--manifest-path").arg(project().join("Cargo.toml"));
    if folder.ends_with("release") {
        command.arg("--release");
    }
    // What `cargo run` tells this program of itself; build scripts that look at it would build everything anew.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    let status = command.status().context("can't run cargo")?;
    if !status.success() {
        bail!("the program does not build");
    }
    Ok(program)
}

/// Runs until Ctrl-C.
pub(super) async fn run(request: Request) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::new();
    let world = tokio::select! {
        world = World::up(&request, &mut steps) => world?,
        () = stop_signal() => {
            say("\nstopped before everything was up");
            return Ok(ExitCode::FAILURE);
        }
    };
    let running = Running {
        kernel_url: world.kernel.url(),
    };
    running.save()?;
    say(&told(&world));
    let ended = tokio::select! {
        () = stop_signal() => None,
        status = world.controller.wait() => Some(("controller", status)),
        status = world.bridge.wait() => Some(("bridge", status)),
    };
    Running::remove();
    if let Some((name, status)) = ended {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        say(&format!("\nthe {name} ended ({status}); the end of its log:"));
        say(&controlplane::last_lines(&world.site.log(name), 20));
        world.down().await?;
        return Ok(ExitCode::FAILURE);
    }
    say("\nstopping");
    world.down().await?;
    Ok(ExitCode::SUCCESS)
}

fn told(world: &World) -> String {
    let shown = |path: &Path| path.display().to_string();
    let site = &world.site;
    format!(
        "\nUp. Environment {ENVIRONMENT}, channels in namespace aura-es.\n\
         \n  export KUBECONFIG={kubeconfig}\n  kubectl get wac -A -o wide\n  kubectl explain wac.spec\n  \
         cargo dev send --to 1002 \"hola\"\n\n  \
         webhooks   http://{public}/aura-services/v1/whatsapp/messages\n  \
         replies    http://{internal}/v3/conversations/…\n  \
         bridge     http://{bridge}/metrics   {bridge_log}\n  \
         controller http://{controller}/metrics   {controller_log}\n  \
         Kernel     {kernel} (simulated; state at /sim/state)\n  \
         Aura       {aura} (simulated)\n\nCtrl-C ends everything.\n",
        kubeconfig = shown(world.cluster.kubeconfig()),
        public = site.public,
        internal = site.internal,
        bridge = site.bridge_admin,
        bridge_log = shown(&site.log("bridge")),
        controller = site.controller_admin,
        controller_log = shown(&site.log("controller")),
        kernel = world.kernel.url(),
        aura = world.aura.url(),
    )
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
