//! The Helm chart: what it renders is judged by a real API server, by the program that reads its configuration, and by
//! the files that it shares with the rest of the project. No pod runs here: there is no kubelet.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aura_whatsapp_operator::{
    cli::Cli,
    config::{CredentialSource, Installation},
    sim::controlplane::Tool,
};
use clap::{CommandFactory, Parser};
use k8s_openapi::{
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        core::v1::{Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support;

const RELEASE: &str = "shop";
const SMALL: &str = "small-values.yaml";
const FULL: &str = "full-values.yaml";
/// The kinds that live in no namespace.
const CLUSTER_KINDS: [&str; 3] = ["CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"];

fn chart() -> PathBuf {
    support::project().join("charts/aura-whatsapp-operator")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = support::project().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}:\n{yaml}"))
}

/// `helm template`, with one of the chart's example values and further `--set`s or flags.
struct Render {
    chart: PathBuf,
    arguments: Vec<String>,
}

impl Render {
    /// With no values at all.
    fn bare() -> Self {
        Self {
            chart: chart(),
            arguments: Vec::new(),
        }
    }

    fn example(name: &str) -> Self {
        let values = chart().join("ci").join(name);
        Self::bare().flag("--values").flag(&values.display().to_string())
    }

    fn flag(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// `--set-json path=value`.
    fn set(self, path: &str, value: &Value) -> Self {
        self.flag("--set-json").flag(&format!("{path}={value}"))
    }

    fn watching(self, namespaces: &[&str]) -> Self {
        self.set("watchNamespaces", &json!(namespaces))
    }

    /// The rendered text, or what helm says is wrong.
    async fn run(self, namespace: &str) -> Result<String, String> {
        let home = tempfile::tempdir().unwrap();
        let output = Command::new(support::assets().await.path(Tool::Helm))
            .args(["template", RELEASE])
            .arg(&self.chart)
            .args(["--namespace", namespace])
            .args(&self.arguments)
            // Whoever runs this may have plugins and settings of their own.
            .env("HELM_CACHE_HOME", home.path())
            .env("HELM_CONFIG_HOME", home.path())
            .env("HELM_DATA_HOME", home.path())
            .env("KUBECONFIG", home.path().join("none"))
            .output()
            .await
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    async fn text(self, namespace: &str) -> String {
        self.run(namespace)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    async fn objects(self, namespace: &str) -> Objects {
        let text = self.text(namespace).await;
        let all: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        Objects(all.into_iter().filter(|object| !object.is_null()).collect())
    }
}

/// What was rendered.
struct Objects(Vec<Value>);

impl Objects {
    fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    fn the(&self, kind: &str, name: &str) -> &Value {
        let found: Vec<_> = self
            .of_kind(kind)
            .into_iter()
            .filter(|object| object["metadata"]["name"] == name)
            .collect();
        assert_eq!(found.len(), 1, "{kind} {name}");
        found[0]
    }

    /// The pods that the workloads would make, each under its role's name, with the claims' volumes put in as the
    /// StatefulSet's controller does.
    fn pods(&self) -> Vec<(String, Pod)> {
        let workloads = self
            .of_kind("Deployment")
            .into_iter()
            .chain(self.of_kind("StatefulSet"));
        workloads
            .map(|workload| {
                let mut pod = workload["spec"]["template"].clone();
                let role = pod["spec"]["containers"][0]["name"].as_str().unwrap().to_owned();
                pod["metadata"]["name"] = json!(role);
                for claim in workload["spec"]["volumeClaimTemplates"]
                    .as_array()
                    .into_iter()
                    .flatten()
                {
                    let name = &claim["metadata"]["name"];
                    pod["spec"]["volumes"]
                        .as_array_mut()
                        .unwrap()
                        .push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
                }
                (role, serde_json::from_value(pod).unwrap())
            })
            .collect()
    }

    /// The installation file, as the program takes it.
    fn installation(&self) -> Installation {
        let maps = self.of_kind("ConfigMap");
        assert_eq!(maps.len(), 1);
        let text = maps[0]["data"]["config.yaml"].as_str().unwrap();
        Installation::parse(text, "config.yaml").unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}

/// `kubectl apply` of the rendered text to the API server, strictly; what it wrote to standard error, and whether it
/// went well.
async fn kubectl_apply(cluster: &support::TestCluster, text: &str, flags: &[&str]) -> (bool, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let output = Command::new(support::assets().await.path(Tool::Kubectl))
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .args(["apply", "--server-side", "--force-conflicts", "--validate=strict"])
        .args(flags)
        .arg("--filename")
        .arg(file.path())
        .output()
        .await
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test]
async fn the_chart_renders_and_the_api_server_takes_every_object_strictly() {
    let cluster = support::cluster().await;
    let (release, watched) = (
        cluster.namespace("chart").await,
        cluster.namespace("chart-watched").await,
    );
    let renders = [
        Render::example(SMALL),
        Render::example(SMALL).watching(&[&watched, &release]),
        Render::example(SMALL).set("clusterWide", &json!(true)),
        Render::example(SMALL).set("rbac.finalizersClusterWide", &json!(true)),
        Render::example(FULL).watching(&[&watched]),
        // Names made of digits are still texts.
        Render::example(SMALL)
            .set("bridge.persistence.storageClassName", &json!("1"))
            .set("installationKey.secretName", &json!("2"))
            .set("controller.serviceAccount.name", &json!("3"))
            .set("bridge.serviceAccount.name", &json!("4"))
            .set("bridge.priorityClassName", &json!("5"))
            .set("nameOverride", &json!("6")),
    ];
    for (number, render) in renders.into_iter().enumerate() {
        let text = render.text(&release).await;
        let (fine, errors) = kubectl_apply(cluster, &text, &["--dry-run=server"]).await;
        assert!(fine && errors.is_empty(), "render {number}: {errors}");
    }
}

#[tokio::test]
async fn the_api_server_notices_a_misspelt_field() {
    let cluster = support::cluster().await;
    let release = cluster.namespace("chart-misspelt").await;
    let text = Render::example(SMALL).text(&release).await;
    let (fine, errors) = kubectl_apply(
        cluster,
        &text.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"),
        &["--dry-run=server"],
    )
    .await;
    assert!(!fine && errors.contains("readOnlyRootFileSystem"), "{errors}");
}

#[tokio::test]
async fn an_upgrade_changes_nothing_that_cannot_be_changed() {
    let cluster = support::cluster().await;
    let release = cluster.namespace("chart-upgrade").await;
    // The definition is the whole cluster's, and other tests use it.
    let render = || Render::example(SMALL).set("crds.install", &json!(false));
    let (fine, errors) = kubectl_apply(cluster, &render().text(&release).await, &[]).await;
    assert!(fine, "{errors}");

    let next = tempfile::tempdir().unwrap();
    copy(&chart(), next.path());
    let description = next.path().join("Chart.yaml");
    let version = |line: &str| line.starts_with("version:") || line.starts_with("appVersion:");
    let changed: Vec<String> = std::fs::read_to_string(&description)
        .unwrap()
        .lines()
        .map(|line| {
            if version(line) {
                format!("{}: 99.0.0", line.split(':').next().unwrap())
            } else {
                line.to_owned()
            }
        })
        .collect();
    std::fs::write(&description, changed.join("\n")).unwrap();
    let mut render = render()
        .set("bridge.grace", &json!(60))
        .set("credentialSecrets", &json!(["another", "aura-es-pro"]))
        .set("bridge.podLabels", &json!({"team": "aura"}));
    render.chart = next.path().to_owned();
    let text = render.text(&release).await;
    assert!(text.contains("aura-whatsapp-operator:99.0.0"));
    let (fine, errors) = kubectl_apply(cluster, &text, &["--dry-run=server"]).await;
    assert!(fine && errors.is_empty(), "{errors}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn the_rendered_roles_are_the_shared_files() {
    let shared = |name: &str| {
        read(format!("charts/aura-whatsapp-operator/files/rbac/{name}.yaml"))
            .replace(
                "INSTALLATION_KEY_SECRET",
                "shop-aura-whatsapp-operator-installation-key",
            )
            .replace("JOURNAL_RECORD", "shop-aura-whatsapp-operator-journal")
    };
    let expected = |name: &str| parse(&shared(name));
    // Kind, namespace, name, rules: all that is granted, and to whom.
    let granted = |objects: &Objects| -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for kind in ["Role", "ClusterRole"] {
            for role in objects.of_kind(kind) {
                let (metadata, name) = (&role["metadata"], &role["metadata"]["name"]);
                let bindings = objects.of_kind(&format!("{kind}Binding"));
                let subjects: Vec<_> = bindings
                    .iter()
                    .filter(|binding| {
                        binding["metadata"]["namespace"] == metadata["namespace"]
                            && binding["roleRef"]
                                == json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
                    })
                    .map(|binding| &binding["subjects"])
                    .collect();
                all.insert(json!([kind, metadata["namespace"], role["rules"], subjects]).to_string());
            }
        }
        all
    };
    let line = |kind: &str, namespace: Value, rules: &str, role: &str| {
        let account = format!("shop-aura-whatsapp-operator-{role}");
        let subjects = json!([[{"kind": "ServiceAccount", "name": account, "namespace": "release"}]]);
        json!([kind, namespace, expected(rules), subjects]).to_string()
    };
    let key = line("Role", json!("release"), "controller-release", "controller");
    let record = line("Role", json!("release"), "bridge-release", "bridge");

    let own = Render::example(SMALL).objects("release").await;
    assert_eq!(
        granted(&own),
        BTreeSet::from([
            key.clone(),
            record.clone(),
            line("Role", json!("release"), "controller", "controller"),
            line("Role", json!("release"), "bridge", "bridge"),
        ])
    );
    let named = Render::example(SMALL)
        .watching(&["a", "b"])
        .objects("release")
        .await;
    assert_eq!(
        granted(&named),
        BTreeSet::from([
            key.clone(),
            record.clone(),
            line("Role", json!("a"), "controller", "controller"),
            line("Role", json!("a"), "bridge", "bridge"),
            line("Role", json!("b"), "controller", "controller"),
            line("Role", json!("b"), "bridge", "bridge"),
        ])
    );
    let wide = Render::example(SMALL)
        .set("clusterWide", &json!(true))
        .objects("release")
        .await;
    let all_over = BTreeSet::from([
        key.clone(),
        record.clone(),
        line("ClusterRole", Value::Null, "controller", "controller"),
        line("ClusterRole", Value::Null, "bridge", "bridge"),
    ]);
    assert_eq!(granted(&wide), all_over);
    let finalizers = |render: Render| render.set("rbac.finalizersClusterWide", &json!(true));
    let own = finalizers(Render::example(SMALL)).objects("release").await;
    assert_eq!(
        granted(&own),
        BTreeSet::from([
            key,
            record,
            line("Role", json!("release"), "controller", "controller"),
            line("Role", json!("release"), "bridge", "bridge"),
            line("ClusterRole", Value::Null, "controller-finalizers", "controller"),
        ])
    );
    let wide = finalizers(Render::example(SMALL).set("clusterWide", &json!(true)));
    assert_eq!(
        granted(&wide.objects("release").await),
        all_over,
        "which holds that right already"
    );
    let none = Render::example(SMALL)
        .set("rbac.create", &json!(false))
        .set("rbac.finalizersClusterWide", &json!(true))
        .objects("release")
        .await;
    assert_eq!(granted(&none), BTreeSet::new());
}

/// Whether a ServiceAccount may do this, as the API server sees it: `verb group/resource[/subresource]`.
async fn may(client: &Client, account: &str, namespace: &str, what: &str, name: Option<&str>) -> bool {
    let (verb, resource) = what.split_once(' ').unwrap();
    let mut parts = resource.split('/').map(ToOwned::to_owned);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(account.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: parts.next(),
                resource: parts.next(),
                subresource: parts.next(),
                namespace: Some(namespace.to_owned()),
                name: name.map(ToOwned::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed
}

#[tokio::test]
async fn each_role_may_do_its_work_in_the_watched_namespaces_and_nothing_else() {
    const KEY: &str = "shop-aura-whatsapp-operator-installation-key";
    const CHANNELS: &str = "channels.auracognitive.com/whatsappchannels";
    const RESOURCES: [&str; 10] = [
        CHANNELS,
        "channels.auracognitive.com/whatsappchannels/status",
        "channels.auracognitive.com/whatsappchannels/finalizers",
        "/secrets",
        "/configmaps",
        "/pods",
        "events.k8s.io/events",
        "coordination.k8s.io/leases",
        "apps/deployments",
        "rbac.authorization.k8s.io/roles",
    ];
    const VERBS: [&str; 8] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
    ];
    let cluster = support::cluster().await;
    let client = cluster.admin();
    let (release, watched, other) = (
        cluster.namespace("chart-rights").await,
        cluster.namespace("chart-rights-watched").await,
        cluster.namespace("chart-rights-other").await,
    );
    let render = || Render::example(SMALL).watching(&[&watched]);
    grant(cluster, &render().objects(&release).await).await;
    let account = |role: &str| format!("system:serviceaccount:{release}:shop-aura-whatsapp-operator-{role}");
    let (controller, bridge) = (account("controller"), account("bridge"));

    // The API server learns of new roles a moment after it has stored them.
    let deadline = Instant::now() + support::SOON;
    while !may(&client, &controller, &release, "get /secrets", Some(KEY)).await
        || !may(&client, &controller, &watched, "watch /secrets", None).await
        || !may(&client, &bridge, &watched, "get /secrets", None).await
    {
        assert!(Instant::now() < deadline, "the roles are not in force");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let reading = ["get", "list", "watch"].map(|verb| format!("{verb} {CHANNELS}"));
    let mut for_controller = BTreeSet::from(reading.clone());
    for_controller.extend([
        format!("patch {CHANNELS}"),
        format!("patch {CHANNELS}/status"),
        "get /secrets".to_owned(),
        "list /secrets".to_owned(),
        "watch /secrets".to_owned(),
        "create events.k8s.io/events".to_owned(),
        "patch events.k8s.io/events".to_owned(),
    ]);
    let mut for_bridge = BTreeSet::from(reading);
    for_bridge.insert("get /secrets".to_owned());
    let nothing = BTreeSet::new();
    // Of Secrets and Leases: what can't be bound to a name.
    let to_make_its_own = BTreeSet::from(
        [
            "create /secrets",
            "create coordination.k8s.io/leases",
            "create events.k8s.io/events",
            "patch events.k8s.io/events",
        ]
        .map(ToOwned::to_owned),
    );
    let cases = [
        (&controller, &watched, &for_controller),
        (&controller, &release, &to_make_its_own),
        (&controller, &other, &nothing),
        (&bridge, &watched, &for_bridge),
        (&bridge, &release, &nothing),
        (&bridge, &other, &nothing),
    ];
    for (account, namespace, expected) in cases {
        let mut allowed = BTreeSet::new();
        for verb in VERBS {
            let answers = RESOURCES.map(|resource| {
                let (client, what) = (&client, format!("{verb} {resource}"));
                async move { may(client, account, namespace, &what, None).await.then_some(what) }
            });
            allowed.extend(futures::future::join_all(answers).await.into_iter().flatten());
        }
        assert_eq!(&allowed, expected, "{account} in {namespace}");
    }
    assert!(!may(&client, &controller, &release, "get /secrets", Some("another")).await);
    assert!(!may(&client, &bridge, &release, "get /secrets", Some(KEY)).await);

    const LEASE: &str = "aura-whatsapp-operator-controller";
    for verb in VERBS {
        let what = format!("{verb} coordination.k8s.io/leases");
        let its_own = ["get", "update", "patch", "create"].contains(&verb);
        assert_eq!(
            may(&client, &controller, &release, &what, Some(LEASE)).await,
            its_own,
            "{what}"
        );
        let anothers = verb == "create";
        assert_eq!(
            may(&client, &controller, &release, &what, Some("another")).await,
            anothers,
            "{what}"
        );
        assert!(
            !may(&client, &controller, &watched, &what, Some(LEASE)).await,
            "{what}"
        );
        assert!(
            !may(&client, &bridge, &release, &what, Some(LEASE)).await,
            "{what}"
        );
    }

    grant(
        cluster,
        &render()
            .set("rbac.finalizersClusterWide", &json!(true))
            .objects(&release)
            .await,
    )
    .await;
    let patch = format!("patch {CHANNELS}");
    while !may(&client, &controller, &other, &patch, None).await {
        assert!(Instant::now() < deadline, "the ClusterRole is not in force");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    for verb in VERBS {
        for resource in RESOURCES {
            let what = format!("{verb} {resource}");
            assert_eq!(
                may(&client, &controller, &other, &what, None).await,
                what == patch,
                "{what} anywhere"
            );
        }
    }
    assert!(!may(&client, &bridge, &other, &patch, None).await);
}

/// Applies what a render grants.
async fn grant(cluster: &support::TestCluster, objects: &Objects) {
    let roles: Vec<&Value> = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"]
        .iter()
        .flat_map(|kind| objects.of_kind(kind))
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": roles}).to_string();
    let (fine, errors) = kubectl_apply(cluster, &list, &[]).await;
    assert!(fine, "{errors}");
}

/// The Deployment's own part, and its container's arguments.
fn deployment(objects: &Objects) -> (&Value, Vec<&str>) {
    let found = objects.of_kind("Deployment");
    assert_eq!(found.len(), 1);
    let arguments = found[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap();
    (
        &found[0]["spec"],
        arguments
            .iter()
            .map(|argument| argument.as_str().unwrap())
            .collect(),
    )
}

#[tokio::test]
async fn several_controllers_are_replaced_one_by_one_and_spread_over_nodes() {
    let one = Render::example(SMALL).objects("release").await;
    let (spec, arguments) = deployment(&one);
    assert_eq!(
        (&spec["replicas"], &spec["strategy"]),
        (&json!(1), &json!({"type": "Recreate"}))
    );
    assert!(spec["template"]["spec"]["topologySpreadConstraints"].is_null());
    for argument in [
        "--lease-duration=12s",
        "--lease-renew-deadline=8s",
        "--lease-retry-period=2s",
    ] {
        assert!(arguments.contains(&argument), "{arguments:?}");
    }

    let two = Render::example(FULL).objects("release").await;
    let (spec, arguments) = deployment(&two);
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    assert_eq!((&spec["replicas"], &spec["strategy"]), (&json!(2), &strategy));
    let spread = &spec["template"]["spec"]["topologySpreadConstraints"][0];
    assert_eq!(spread["labelSelector"], spec["selector"]);
    assert_eq!(spread["whenUnsatisfiable"], "ScheduleAnyway");
    for argument in [
        "--lease-duration=30s",
        "--lease-renew-deadline=20s",
        "--lease-retry-period=5s",
    ] {
        assert!(arguments.contains(&argument), "{arguments:?}");
    }
}

#[tokio::test]
async fn one_controller_becomes_two_and_one_again() {
    let cluster = support::cluster().await;
    let release = cluster.namespace("chart-replicas").await;
    for replicas in [1, 2, 1] {
        let render = Render::example(SMALL)
            .set("crds.install", &json!(false))
            .set("controller.replicas", &json!(replicas));
        let (fine, errors) = kubectl_apply(cluster, &render.text(&release).await, &[]).await;
        assert!(fine, "{replicas}: {errors}");
    }
}

#[tokio::test]
async fn the_program_takes_the_arguments_and_variables_that_it_is_given() {
    for example in [SMALL, FULL] {
        for (role, pod) in Render::example(example).objects("release").await.pods() {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let arguments = container.args.clone().unwrap();
            if let Err(error) = Cli::try_parse_from([vec!["operator".to_owned()], arguments].concat()) {
                panic!("{example}, {role}: {error}");
            }
            let command = Cli::command();
            let known: BTreeSet<&str> = command
                .find_subcommand(&role)
                .unwrap()
                .get_arguments()
                .filter_map(|argument| argument.get_env()?.to_str())
                .collect();
            let given: Vec<&str> = container
                .env
                .iter()
                .flatten()
                .map(|env| env.name.as_str())
                .collect();
            assert!(given.contains(&"POD_NAMESPACE"), "{role}: {given:?}");
            assert!(given.iter().all(|name| known.contains(name)), "{role}: {given:?}");
        }
    }
}

#[tokio::test]
async fn values_are_checked() {
    let environment = "environments.es-pro";
    let cases = [
        (Render::bare(), "environments: name at least one"),
        (Render::example(SMALL).set("surprise", &json!(1)), "surprise"),
        (
            Render::example(SMALL).set("bridge.replicas", &json!(2)),
            "replicas",
        ),
        (
            Render::example(SMALL).set("controller.replicas", &json!(0)),
            "/controller/replicas",
        ),
        (
            Render::example(SMALL).set("controller.lease.duration", &json!("1500ms")),
            "/controller/lease/duration",
        ),
        (
            Render::example(SMALL).set("controller.lease.renew", &json!("5s")),
            "'renew' not allowed",
        ),
        (
            Render::example(SMALL).set("controller.lease.retryPeriod", &json!("8s")),
            "controller.lease.renewDeadline: must be longer than retryPeriod (8s)",
        ),
        (
            Render::example(SMALL).set("controller.lease.renewDeadline", &json!("11s")),
            "controller.lease.duration: must be longer than renewDeadline (11s) by a tenth or more, not 12s",
        ),
        (
            Render::example(SMALL).set("controller.lease.duration", &json!("601s")),
            "controller.lease.duration: must be at most 600s",
        ),
        (
            Render::example(SMALL).set("bridge.grace", &json!("long")),
            "/bridge/grace",
        ),
        (
            Render::example(SMALL).set("image.pullPolicy", &json!("Sometimes")),
            "/image/pullPolicy",
        ),
        (
            Render::example(SMALL).set("watchNamespaces", &json!(["*"])),
            "/watchNamespaces/0",
        ),
        (
            Render::example(SMALL)
                .set("clusterWide", &json!(true))
                .watching(&["a"]),
            "watchNamespaces: must be empty",
        ),
        (
            Render::example(SMALL).set("bridge.limits", &json!({"journalBytes": 1})),
            "journalBytes",
        ),
        (
            Render::example(SMALL).set("bridge.limits", &json!({"maxConnections": 0})),
            "/bridge/limits/maxConnections",
        ),
        (
            Render::example(SMALL).set("environments.es-pre", &json!({"namespaces": ["a"]})),
            "'publicUrl', 'kernel', 'aura'",
        ),
        (
            Render::example(SMALL).set(&format!("{environment}.namespace"), &json!(["a"])),
            "'namespace' not allowed",
        ),
        (
            Render::example(SMALL).set(
                &format!("{environment}.channelDefaults"),
                &json!({"webhook": {"mode": "manage"}}),
            ),
            "/environments/es-pro/channelDefaults/webhook/mode",
        ),
        (
            Render::example(SMALL).set("credentialSecrets", &json!([])),
            "environments.es-pro.aura.outboundAuth.apiKeyFile: Secret \"aura-es-pro\" is not mounted",
        ),
        (
            Render::example(SMALL).set(
                &format!("{environment}.aura.inboundAuth"),
                &json!({"bearerFile": "/run/secrets/in"}),
            ),
            "environments.es-pro.aura.inboundAuth.bearerFile: must be",
        ),
        (
            Render::example(SMALL).set(
                "bridge.limits",
                &json!({"tls": {"public": {"certFile": "/tls.crt", "keyFile": "/tls.key"}}}),
            ),
            "bridge.limits.tls.public.certFile: must be",
        ),
        (
            Render::example(SMALL).set(
                &format!("{environment}.aura.outboundAuth"),
                &json!({"mtls": {"certFile": "/etc/aura-whatsapp-operator/credentials/none/tls.crt"}}),
            ),
            "environments.es-pro.aura.outboundAuth.mtls.certFile: Secret \"none\" is not mounted",
        ),
        (
            Render::example(SMALL).set("bridge.serviceAccount.create", &json!(false)),
            "bridge.serviceAccount.name",
        ),
    ];
    for (render, names) in cases {
        let arguments = render.arguments.clone();
        match render.run("release").await {
            Ok(_) => panic!("taken: {arguments:?}"),
            Err(error) => assert!(error.contains(names), "{arguments:?}: {error}"),
        }
    }
    // What a parent chart gives to all its charts is no unknown value.
    Render::example(SMALL)
        .set("global", &json!({"registry": "r"}))
        .text("release")
        .await;
}

#[tokio::test]
async fn the_chart_carries_the_generated_crd() {
    assert_eq!(
        read("charts/aura-whatsapp-operator/files/crd.yaml"),
        read("crds/whatsappchannels.yaml"),
        "the chart's copy is not the generated one; refresh it with: \
         cp crds/whatsappchannels.yaml charts/aura-whatsapp-operator/files/crd.yaml"
    );
    let typed =
        |object: &Value| -> CustomResourceDefinition { serde_json::from_value(object.clone()).unwrap() };
    let generated = typed(&parse(&read("crds/whatsappchannels.yaml")));
    let name = generated.metadata.name.as_deref().unwrap();
    let keep = json!({"helm.sh/resource-policy": "keep"});

    let kept = Render::example(SMALL).objects("release").await;
    let rendered = kept.the("CustomResourceDefinition", name);
    // As types: helm writes 1.0 as 1.
    assert_eq!(typed(rendered).spec, generated.spec);
    assert_eq!(rendered["metadata"]["annotations"], keep);

    let loose = Render::example(SMALL)
        .set("crds.keep", &json!(false))
        .objects("release")
        .await;
    assert_eq!(
        loose.the("CustomResourceDefinition", name)["metadata"]["annotations"],
        Value::Null
    );
    let without = Render::example(SMALL)
        .set("crds.install", &json!(false))
        .objects("release")
        .await;
    assert!(without.of_kind("CustomResourceDefinition").is_empty());
}

#[tokio::test]
async fn the_rendered_configuration_is_taken_by_the_program() {
    let scope = |objects: &Objects| objects.installation().scope("not-the-release");
    let own = Render::example(SMALL).objects("release").await;
    assert_eq!(scope(&own), Some(vec!["release".to_owned()]));
    let named = Render::example(SMALL)
        .watching(&["a", "b"])
        .objects("release")
        .await;
    assert_eq!(scope(&named), Some(vec!["a".to_owned(), "b".to_owned()]));
    let wide = Render::example(SMALL)
        .set("clusterWide", &json!(true))
        .objects("release")
        .await;
    assert_eq!(scope(&wide), None);

    // Every key of the file, as it stands in the values: nothing is lost or changed on the way.
    let full = Render::example(FULL).objects("release").await.installation();
    let values = parse(&read(chart().join("ci").join(FULL)));
    let straight = json!({
        "watchNamespaces": ["release"],
        "environments": values["environments"],
        "bridge": values["bridge"]["limits"],
    });
    assert_eq!(
        full,
        Installation::parse(&straight.to_string(), "full-values.yaml").unwrap()
    );
    assert_eq!(full.bridge.journal_max_bytes, 8 << 30);
    assert_eq!(
        full.environments["es-pro"].hold.as_ref().unwrap().until,
        "2026-12-01T06:00:00Z"
    );
    assert!(full.environments["no"].aura.outbound_auth.none);
}

/// Where each file that the program is told to read comes from.
#[tokio::test]
async fn every_file_that_a_role_reads_is_mounted() {
    for example in [SMALL, FULL] {
        let objects = Render::example(example).objects("release").await;
        let installation = objects.installation();
        for (role, pod) in objects.pods() {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let mut mounts: Vec<&str> = container
                .volume_mounts
                .iter()
                .flatten()
                .inspect(|mount| assert_eq!(mount.sub_path, None, "a file by subPath never changes"))
                .map(|mount| mount.mount_path.as_str())
                .collect();
            let mut wanted: BTreeSet<String> = container
                .args
                .iter()
                .flatten()
                .filter_map(|argument| argument.split_once('='))
                .map(|(_, value)| value.to_owned())
                .filter(|value| value.starts_with('/'))
                .collect();
            if role == "bridge" {
                let auths = installation.environments.values().flat_map(|environment| {
                    [&environment.aura.outbound_auth, &environment.aura.inbound_auth]
                });
                wanted.extend(auths.flat_map(|auth: &CredentialSource| {
                    let mtls = auth
                        .mtls
                        .iter()
                        .flat_map(|mtls| [&mtls.cert_file, &mtls.key_file, &mtls.ca_file]);
                    let files = [&auth.api_key_file, &auth.bearer_file].into_iter().chain(mtls);
                    files
                        .flatten()
                        .map(|file| file.display().to_string())
                        .collect::<Vec<_>>()
                }));
                let tls = &installation.bridge.tls;
                let certificates = [&tls.public, &tls.internal].into_iter().flatten();
                wanted.extend(certificates.flat_map(|files| {
                    [
                        files.cert_file.display().to_string(),
                        files.key_file.display().to_string(),
                    ]
                }));
            }
            assert!(
                wanted.contains("/etc/aura-whatsapp-operator/config/config.yaml"),
                "{role}: {wanted:?}"
            );
            for file in &wanted {
                assert!(
                    mounts.iter().any(|mount| Path::new(file).starts_with(mount)),
                    "{role} reads {file}; mounted: {mounts:?}"
                );
            }
            mounts.sort_unstable();
            for pair in mounts.windows(2) {
                assert!(
                    !Path::new(pair[1]).starts_with(pair[0]),
                    "{role}: {} shadows {}",
                    pair[0],
                    pair[1]
                );
            }
        }
    }
}

#[tokio::test]
async fn the_bridge_is_given_the_time_that_stopping_takes() {
    for (drain, grace) in [(0, 1), (5, 20), (60, 600)] {
        let objects = Render::example(SMALL)
            .set("bridge.drain", &json!(drain))
            .set("bridge.grace", &json!(grace))
            .objects("release")
            .await;
        let (_, pod) = objects
            .pods()
            .into_iter()
            .find(|(role, _)| role == "bridge")
            .unwrap();
        let spec = pod.spec.unwrap();
        for argument in [format!("--drain={drain}"), format!("--grace={grace}")] {
            assert!(spec.containers[0].args.as_ref().unwrap().contains(&argument));
        }
        // Calls first, deliveries after them.
        assert!(spec.termination_grace_period_seconds.unwrap() >= drain + grace + 10);
    }
}

#[tokio::test]
async fn a_changed_configuration_starts_new_pods_and_nothing_else_does() {
    let sums = async |render: Render| -> Vec<String> {
        let objects = render.objects("release").await;
        let pods = objects.pods();
        assert_eq!(pods.len(), 2);
        pods.into_iter()
            .map(|(_, pod)| pod.metadata.annotations.unwrap()["checksum/config"].clone())
            .collect()
    };
    let before = sums(Render::example(SMALL)).await;
    assert_eq!(
        before,
        sums(Render::example(SMALL).set("rbac.create", &json!(false))).await
    );
    let after = sums(Render::example(SMALL).set("bridge.limits", &json!({"maxConnections": 7}))).await;
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
}

#[tokio::test]
async fn no_service_leads_to_the_admin_port() {
    let objects = Render::example(FULL).objects("release").await;
    let services = objects.of_kind("Service");
    assert_eq!(services.len(), 3);
    for service in services {
        for port in service["spec"]["ports"].as_array().unwrap() {
            assert!(
                port["targetPort"] == "public" || port["targetPort"] == "internal",
                "{service}"
            );
        }
    }
    assert_eq!(
        objects.the("Service", "wa-bridge-public")["spec"]["type"],
        "LoadBalancer"
    );
    // The controller reaches the bridge by the name that the headless one gives its pod.
    assert_eq!(objects.the("Service", "wa-bridge")["spec"]["clusterIP"], "None");
    // Aura's replies never face the internet.
    assert_eq!(
        objects.the("Service", "wa-bridge-internal")["spec"]["type"],
        "ClusterIP"
    );
}

#[tokio::test]
async fn every_container_meets_the_restricted_standard() {
    let cluster = support::cluster().await;
    let namespace = cluster.namespace("chart-restricted").await;
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    Api::<Namespace>::all(cluster.admin())
        .patch(&namespace, &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), &namespace);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };

    // The label is in force once a pod that breaks the standard is refused.
    let plain: Pod = serde_json::from_value(json!({
        "metadata": {"name": "plain"}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    }))
    .unwrap();
    let deadline = Instant::now() + support::SOON;
    while pods.create(&dry, &plain).await.is_ok() {
        assert!(Instant::now() < deadline, "the namespace takes any pod");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }

    for example in [SMALL, FULL] {
        let rendered = Render::example(example).objects(&namespace).await.pods();
        assert_eq!(rendered.len(), 2);
        for (role, mut pod) in rendered {
            let spec = pod.spec.as_mut().unwrap();
            for container in &spec.containers {
                let context = container.security_context.as_ref().unwrap();
                // Beyond the standard.
                assert_eq!(context.read_only_root_filesystem, Some(true), "{role}");
            }
            // A class that no cluster has by default is no matter of this test.
            spec.priority_class_name = None;
            if let Err(error) = pods.create(&dry, &pod).await {
                panic!("{example}, {role}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn only_the_pods_of_the_two_roles_get_a_token() {
    let objects = Render::example(SMALL).objects("release").await;
    let accounts = objects.of_kind("ServiceAccount");
    assert_eq!(accounts.len(), 2);
    assert!(
        accounts
            .iter()
            .all(|account| account["automountServiceAccountToken"] == false)
    );
    let used: BTreeSet<String> = objects
        .pods()
        .into_iter()
        .map(|(_, pod)| {
            let spec = pod.spec.unwrap();
            assert_eq!(spec.automount_service_account_token, Some(true));
            spec.service_account_name.unwrap()
        })
        .collect();
    let made: BTreeSet<String> = accounts
        .iter()
        .map(|account| account["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(used, made);
}

#[tokio::test]
async fn every_object_is_in_its_namespace_and_labelled() {
    let objects = Render::example(SMALL).watching(&["a"]).objects("release").await;
    for object in &objects.0 {
        let (kind, metadata) = (object["kind"].as_str().unwrap(), &object["metadata"]);
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/instance"], RELEASE,
            "{object}"
        );
        let namespace = &metadata["namespace"];
        if CLUSTER_KINDS.contains(&kind) {
            assert!(namespace.is_null(), "{object}");
        } else if kind == "Role" || kind == "RoleBinding" {
            assert!(namespace == "a" || namespace == "release", "{object}");
        } else {
            assert_eq!(namespace, "release", "{object}");
        }
    }
}

/// The paths of all values; an object whose keys are the user's counts as one.
fn values(path: &str, value: &Value, all: &mut Vec<String>) {
    match value {
        Value::Object(keys) if !keys.is_empty() && !path.ends_with(".resources") => {
            for (key, value) in keys {
                values(&format!("{path}.{key}"), value, all);
            }
        }
        _ => all.push(path.trim_start_matches('.').to_owned()),
    }
}

#[test]
fn every_value_is_in_the_schema_the_table_and_the_full_example() {
    let defaults = read(chart().join("values.yaml"));
    let readme = read(chart().join("README.md"));
    let schema = parse(&read(chart().join("values.schema.json")));
    let example = parse(&read(chart().join("ci").join(FULL)));
    let mut all = Vec::new();
    values("", &parse(&defaults), &mut all);
    assert!(all.len() > 40, "{all:?}");
    for path in &all {
        let shared = path
            .strip_prefix("controller.")
            .or(path.strip_prefix("bridge."))
            .map(|rest| format!("| `*.{rest}` |"));
        assert!(
            readme.contains(&format!("| `{path}` |"))
                || shared.is_some_and(|shared| readme.contains(&shared)),
            "README.md has no row for {path}"
        );
        let (mut node, mut value) = (&schema, &example);
        for key in path.split('.') {
            if let Some(definition) = node["$ref"].as_str() {
                node = &schema["definitions"][definition.rsplit('/').next().unwrap()];
            }
            node = &node["properties"][key];
            assert!(!node.is_null(), "values.schema.json does not know {path}");
            let next = value.get(key);
            // Set elsewhere: the namespaces differ from test to test.
            if path != "watchNamespaces" && path != "clusterWide" {
                value = next.unwrap_or_else(|| panic!("{FULL} does not set {path}"));
            }
        }
    }
    // Each value is explained where it stands.
    let lines: Vec<&str> = defaults.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let opens_group = line.ends_with(':');
        let below_resources =
            line.trim_start().starts_with("requests:") || line.trim_start().starts_with("limits: {m");
        let same_as_above = ["runAsUser", "runAsGroup"]
            .iter()
            .any(|key| line.trim_start().starts_with(key));
        if line.trim().is_empty()
            || line.trim_start().starts_with('#')
            || opens_group
            || below_resources
            || same_as_above
        {
            continue;
        }
        let before = lines[number.saturating_sub(1)].trim_start();
        assert!(
            before.starts_with('#'),
            "values.yaml, line {}: {line}",
            number + 1
        );
    }
}
