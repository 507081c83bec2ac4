//! The real control plane: what it is for, what it survives, and that it goes away.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use aura_whatsapp_operator::sim::controlplane::{
    Assets, ControlPlane, Guard, Options, Signal, StartError, Tool, last_lines, locate,
};
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{ConfigMap, Namespace, Secret, ServiceAccount},
    rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};

const EXE: &str = env!("CARGO_BIN_EXE_aura-dev");

async fn assets() -> Assets {
    locate(&[
        Tool::Etcd,
        Tool::KubeApiserver,
        Tool::KubeControllerManager,
        Tool::Kubectl,
    ])
    .await
    .unwrap()
}

async fn start_in(dir: &Path, controller_manager: bool) -> Result<ControlPlane, StartError> {
    let guard = Guard::start(Path::new(EXE)).await.unwrap();
    let options = Options {
        dir: dir.to_owned(),
        guard,
        assets: &assets().await,
        controller_manager,
    };
    ControlPlane::start(options).await
}

/// The ids of the processes with `needle` in their command line.
fn processes(needle: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id() && String::from_utf8_lossy(&command).contains(needle) {
            found.push(pid);
        }
    }
    found
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

async fn create_namespace(client: &Client, name: &str) {
    let namespace = Namespace {
        metadata: named(name),
        ..Namespace::default()
    };
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
}

async fn create_config_map(client: &Client, namespace: &str, name: &str) {
    let data = BTreeMap::from([("key".to_owned(), name.to_owned())]);
    let map = ConfigMap {
        metadata: named(name),
        data: Some(data),
        ..ConfigMap::default()
    };
    Api::namespaced(client.clone(), namespace)
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
}

async fn client_of(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    assert!(!config.accept_invalid_certs);
    Client::try_from(config).unwrap()
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => unreachable!("not an answer of the API server: {other:?}"),
    }
}

#[tokio::test]
async fn it_starts_serves_kubectl_and_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let assets = assets().await;
    let started = Instant::now();
    let cluster = start_in(dir.path(), true).await.unwrap();
    eprintln!("ready after {:?}", started.elapsed());
    let version = cluster.client().unwrap().apiserver_version().await.unwrap();
    assert!(version.git_version.starts_with("v1."), "{version:?}");

    // kubectl verifies the server's certificate and finds everything in the file.
    let mut kubectl = tokio::process::Command::new(assets.path(Tool::Kubectl));
    kubectl
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .args(["get", "namespaces", "-o", "name"]);
    let output = kubectl.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("namespace/kube-system"), "{output:?}");

    for private in [
        "certs/tokens.csv",
        "certs/service-accounts.key",
        "kubeconfigs/admin.yaml",
    ] {
        let mode = std::fs::metadata(dir.path().join(private))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }

    let needle = dir.path().display().to_string();
    assert_eq!(processes(&needle).len(), 3);
    let stopping = Instant::now();
    cluster.shutdown().await.unwrap();
    eprintln!("stopped after {:?}", stopping.elapsed());
    assert_eq!(processes(&needle), [] as [u32; 0]);
}

#[tokio::test]
async fn dropping_it_is_enough_and_its_directory_keeps_the_objects() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start_in(dir.path(), false).await.unwrap();
    create_config_map(&cluster.client().unwrap(), "default", "kept").await;
    assert!(matches!(
        start_in(dir.path(), false).await,
        Err(StartError::DirectoryInUse(_))
    ));
    drop(cluster);
    assert_eq!(processes(&dir.path().display().to_string()), [] as [u32; 0]);

    let again = start_in(dir.path(), false).await.unwrap();
    Api::<ConfigMap>::namespaced(again.client().unwrap(), "default")
        .get("kept")
        .await
        .unwrap();
}

#[tokio::test]
async fn the_api_server_goes_and_comes_back_with_its_address_and_data() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start_in(dir.path(), true).await.unwrap();
    let (url, client) = (cluster.url(), cluster.client().unwrap());
    create_config_map(&client, "default", "before").await;

    let moment = Instant::now();
    cluster.stop_api_server().await.unwrap();
    eprintln!("API server stopped after {:?}", moment.elapsed());
    let maps = Api::<ConfigMap>::namespaced(client, "default");
    assert!(!matches!(
        maps.get("before").await,
        Ok(_) | Err(kube::Error::Api(_))
    ));

    let moment = Instant::now();
    cluster.start_api_server().await.unwrap();
    eprintln!("API server back after {:?}", moment.elapsed());
    cluster.start_api_server().await.unwrap();
    assert_eq!(cluster.url(), url);
    // The client of before serves on.
    maps.get("before").await.unwrap();
    create_namespace(&cluster.client().unwrap(), "after").await;
    delete_namespace(&cluster.client().unwrap(), "after").await;
}

#[tokio::test]
async fn a_port_that_is_taken_for_a_moment_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start_in(dir.path(), false).await.unwrap();
    cluster.stop_api_server().await.unwrap();
    let address = cluster.url().replace("https://", "");
    let taken = std::net::TcpListener::bind(address).unwrap();
    let log = dir.path().join("logs/kube-apiserver.log");
    let free_it = async {
        let in_use = || async { last_lines(&log, 50).contains("address already in use") };
        until("the API server has failed once", in_use).await;
        drop(taken);
    };
    let (started, ()) = tokio::join!(cluster.start_api_server(), free_it);
    started.unwrap();
}

#[tokio::test]
async fn a_stopped_api_server_hangs_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start_in(dir.path(), false).await.unwrap();
    let client = cluster.client().unwrap();
    cluster.signal_api_server(Signal::STOP).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(500), client.apiserver_version())
            .await
            .is_err()
    );
    cluster.signal_api_server(Signal::CONT).await.unwrap();
    cluster.client().unwrap().apiserver_version().await.unwrap();
}

async fn delete_namespace(client: &Client, name: &str) {
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    until("the namespace is gone", || async {
        namespaces.get_opt(name).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_deleted_namespace_goes_with_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start_in(dir.path(), true).await.unwrap();
    let client = cluster.client().unwrap();
    create_namespace(&client, "doomed").await;
    create_config_map(&client, "doomed", "inside").await;
    let moment = Instant::now();
    delete_namespace(&client, "doomed").await;
    eprintln!("namespace gone after {:?}", moment.elapsed());
    create_namespace(&client, "doomed").await;
    let maps = Api::<ConfigMap>::namespaced(client, "doomed");
    assert!(maps.get_opt("inside").await.unwrap().is_none());
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start_in(dir.path(), false).await.unwrap();
    let client = cluster.client().unwrap();
    create_namespace(&client, "apps").await;
    create_config_map(&client, "apps", "mine").await;
    create_config_map(&client, "default", "not-mine").await;

    let account = ServiceAccount {
        metadata: named("bridge"),
        ..ServiceAccount::default()
    };
    Api::namespaced(client.clone(), "apps")
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let role = Role {
        metadata: named("reader"),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["configmaps".into()]),
            verbs: vec!["get".into()],
            ..PolicyRule::default()
        }]),
    };
    Api::namespaced(client.clone(), "apps")
        .create(&PostParams::default(), &role)
        .await
        .unwrap();
    let binding = RoleBinding {
        metadata: named("reader"),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "Role".into(),
            name: "reader".into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: "bridge".into(),
            namespace: Some("apps".into()),
            ..Subject::default()
        }]),
    };
    Api::namespaced(client, "apps")
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();

    let token = cluster.token("apps", "bridge").await.unwrap();
    let kubeconfig = cluster.write_kubeconfig("bridge", &token, "apps").unwrap();
    let bridge = client_of(&kubeconfig).await;
    assert_eq!(bridge.default_namespace(), "apps");

    let review = Api::<SelfSubjectReview>::all(bridge.clone());
    let me = review
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .unwrap();
    let user = me.status.unwrap().user_info.unwrap().username;
    assert_eq!(user.as_deref(), Some("system:serviceaccount:apps:bridge"));

    let maps = Api::<ConfigMap>::default_namespaced(bridge.clone());
    until("the role applies", || async { maps.get("mine").await.is_ok() }).await;
    assert_eq!(code(maps.list(&ListParams::default()).await), 403);
    assert_eq!(code(maps.delete("mine", &DeleteParams::default()).await), 403);
    assert_eq!(
        code(
            Api::<ConfigMap>::namespaced(bridge.clone(), "default")
                .get("not-mine")
                .await
        ),
        403
    );
    assert_eq!(
        code(Api::<Secret>::default_namespaced(bridge).get("any").await),
        403
    );

    let forged = cluster
        .write_kubeconfig("forged", &format!("{token}x"), "apps")
        .unwrap();
    let forged = Api::<ConfigMap>::default_namespaced(client_of(&forged).await);
    assert_eq!(code(forged.get("mine").await), 401);
    assert!(cluster.write_kubeconfig("../up", "token", "apps").is_err());

    // A token outlives the server that gave it, as long as the directory is the same.
    cluster.stop_api_server().await.unwrap();
    cluster.start_api_server().await.unwrap();
    maps.get("mine").await.unwrap();
}

#[tokio::test]
async fn a_server_that_dies_shows_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("certs")).unwrap();
    std::fs::write(dir.path().join("certs/service-accounts.key"), "no key").unwrap();
    let error = start_in(dir.path(), false).await.unwrap_err().to_string();
    assert!(error.contains("kube-apiserver ended while starting"), "{error}");
    assert!(error.contains("service-accounts.key"), "{error}");
    assert_eq!(processes(&dir.path().display().to_string()), [] as [u32; 0]);
}
