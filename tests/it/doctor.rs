//! `doctor`: a healthy channel, then one broken at each step in turn; the right step is named, with what to do.

use std::{path::Path, time::Duration};

use aura_whatsapp_operator::{
    api::conditions::Reason,
    doctor::StepId,
    sim::{
        dev::{objects, site::ENVIRONMENT},
        fault::{Endpoint, Fault},
    },
};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::ServiceAccount,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};

use crate::support::{Number, PROGRAM, SOON, World, cluster, private_cluster, project};

/// The installation key's Secret in a world.
const KEY: &str = "aura-whatsapp-operator-installation-key";

/// A run of the doctor.
struct Ran {
    code: i32,
    json: Value,
    stderr: String,
}

impl Ran {
    fn step(&self, id: &str) -> &Value {
        let steps = self.json["steps"].as_array().unwrap();
        steps
            .iter()
            .find(|step| step["id"] == id)
            .unwrap_or_else(|| panic!("no step {id}: {:#}", self.json))
    }

    fn text(&self, id: &str, field: &str) -> String {
        self.step(id)[field].as_str().unwrap_or_default().to_owned()
    }

    /// The first step that is not right is this one, and its message and advice hold these words.
    #[track_caller]
    fn fails_at(&self, id: &str, words: &[&str]) {
        let first = self.json["steps"]
            .as_array()
            .unwrap()
            .iter()
            .find(|step| step["outcome"] == "fail")
            .unwrap_or_else(|| panic!("nothing fails: {:#}", self.json));
        assert_eq!(first["id"], id, "{:#}", self.json);
        assert_eq!(self.code, 1, "{:#}", self.json);
        let text = first.to_string();
        for word in words {
            assert!(text.contains(word), "no {word} in {text}");
        }
    }
}

async fn run(kubeconfig: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = tokio::process::Command::new(PROGRAM)
        .arg("doctor")
        .args(arguments)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env_clear()
        .output()
        .await
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

async fn run_json(kubeconfig: &Path, arguments: &[&str]) -> Ran {
    let (code, stdout, stderr) = run(kubeconfig, &[arguments, &["--output", "json"]].concat()).await;
    let json = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    Ran { code, json, stderr }
}

/// Looks at a channel of a world with the world's own configuration.
async fn look(world: &World, name: &str, more: &[&str]) -> Ran {
    let config = world.site.dir().join("config.yaml");
    look_with(world, &config, name, more).await
}

async fn look_with(world: &World, config: &Path, name: &str, more: &[&str]) -> Ran {
    let arguments = [
        &[name, "-n", &world.namespace, "--config", config.to_str().unwrap()],
        more,
    ]
    .concat();
    run_json(cluster().await.kubeconfig(), &arguments).await
}

/// A copy of the world's configuration with one text replaced.
fn config_with(world: &World, from: &str, to: &str) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(world.site.dir().join("config.yaml")).unwrap();
    assert!(text.contains(from), "{text}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text.replace(from, to)).unwrap();
    file
}

#[tokio::test]
async fn a_healthy_channel_passes_every_step() {
    let world = World::start("doctor").await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["delivery"] = json!({"maxAge": {"toUser": "90m"}});
        })
        .await;
    world.wait_ready(&number).await;
    let key = [
        "--installation-key-secret",
        KEY,
        "--release-namespace",
        &world.namespace,
    ];
    let ran = look(&world, &number.name, &key).await;
    assert_eq!(ran.code, 0, "{:#}", ran.json);
    let ids: Vec<&str> = ran.json["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            assert_eq!(step["outcome"], "ok", "{step}");
            step["id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(
        ids,
        [
            "cluster",
            "definition",
            "resource",
            "configuration",
            "environment",
            "conflicts",
            "secret",
            "client",
            "token",
            "token-messaging",
            "webhook",
            "controller",
            "events"
        ]
    );
    assert!(ran.text("webhook", "message").contains("with the key in force"));
    assert!(ran.text("configuration", "message").contains("config.yaml"));
    let source = |path: &str| {
        let settings = ran.json["effective"].as_array().unwrap();
        settings
            .iter()
            .find(|setting| setting["path"] == path)
            .unwrap()
            .clone()
    };
    assert_eq!(source("delivery.maxAge.toUser")["source"], "spec");
    assert_eq!(source("delivery.maxAge.toUser")["value"], "1h30m");
    assert_eq!(source("webhook.mode")["source"], "default");

    // Without the installation key it says what it could not compare.
    let ran = look(&world, &number.name, &[]).await;
    assert_eq!(ran.code, 0);
    assert!(
        ran.text("webhook", "message")
            .contains("not compared: name the installation key's Secret")
    );

    // It changed nothing, and people can read it.
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
    let config = world.site.dir().join("config.yaml");
    let name = format!("wac/{}", number.name);
    let arguments = [
        &name,
        "-n",
        &world.namespace,
        "--config",
        config.to_str().unwrap(),
    ];
    let (code, text, _) = run(cluster().await.kubeconfig(), &arguments).await;
    assert_eq!(code, 0);
    for words in [
        "ok       token ",
        "All is well",
        "toUser: 1h30m  # spec",
        "mode: Manage  # default",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[tokio::test]
async fn a_channel_that_is_broken_in_the_cluster_is_told_where_and_what_to_do() {
    let world = World::start("doctor-cluster").await;
    let number = world.ready_number("1002").await;

    let ran = look(&world, "number-1020", &[]).await;
    ran.fails_at("resource", &["number-1020", "did you mean number-1002"]);

    let file = config_with(&world, &format!("{ENVIRONMENT}:"), "br-dev:");
    let ran = look_with(&world, file.path(), &number.name, &[]).await;
    ran.fails_at("environment", &[ENVIRONMENT, "br-dev"]);
    assert_eq!(ran.text("token", "outcome"), "skipped");
    assert!(ran.text("token", "message").contains("needs environment"));

    let allowed = format!("    namespaces: [{}]", world.namespace);
    let file = config_with(&world, &allowed, "    namespaces: [elsewhere]");
    let ran = look_with(&world, file.path(), &number.name, &[]).await;
    ran.fails_at("environment", &["is not for namespace", &world.namespace]);

    let watched = format!("watchNamespaces: [{}]", world.namespace);
    let file = config_with(&world, &watched, "watchNamespaces: [elsewhere]");
    let ran = look_with(&world, file.path(), &number.name, &[]).await;
    ran.fails_at("environment", &["is not watched", "watchNamespaces"]);
    assert_eq!(
        ran.text("token", "outcome"),
        "ok",
        "what Kernel says is told all the same"
    );

    let held = format!(
        "{allowed}\n    hold: {{until: '2999-01-01T00:00:00Z', what: [registration], reason: CHG-1}}"
    );
    let file = config_with(&world, &allowed, &held);
    let ran = look_with(&world, file.path(), &number.name, &[]).await;
    assert_eq!(
        (ran.code, ran.text("environment", "outcome").as_str()),
        (0, "warn")
    );
    assert!(
        ran.text("environment", "message")
            .contains("(registration) until 2999-01-01T00:00:00Z: CHG-1")
    );

    let file = config_with(&world, "namespaces:", "namespace:");
    let ran = look_with(&world, file.path(), &number.name, &[]).await;
    ran.fails_at("configuration", &["line 4"]);
    assert_eq!(
        ran.text("secret", "outcome"),
        "ok",
        "what does not need it is looked at"
    );

    // Secrets.
    let lost = Number::new("1003");
    world.apply(lost.channel()).await;
    let ran = look(&world, &lost.name, &[]).await;
    ran.fails_at(
        "secret",
        &[&lost.secret_name, "kubectl -n", "create secret generic"],
    );
    assert!(ran.text("webhook", "message").contains("needs secret"));

    let bare = Number::new("1004");
    let mut secret = bare.secret();
    secret["metadata"]["labels"] = json!({});
    world.apply(secret).await;
    world.apply(bare.channel()).await;
    let ran = look(&world, &bare.name, &[]).await;
    let command = format!("kubectl -n {} label secret {}", world.namespace, bare.secret_name);
    ran.fails_at("secret", &[&command]);

    let half = Number::new("1005");
    let mut secret = half.secret();
    secret["stringData"] = json!({"id": half.client_id});
    world.apply(secret).await;
    world.apply(half.channel()).await;
    look(&world, &half.name, &[])
        .await
        .fails_at("secret", &["no value under the key", "secret"]);

    let padded = world.add("1006", |_| {}).await;
    world
        .patch_secret(
            &padded,
            json!({"stringData": {"secret": format!("{}\n", padded.client_secret)}}),
        )
        .await;
    world.wait_ready(&padded).await;
    let ran = look(&world, &padded.name, &[]).await;
    assert_eq!((ran.code, ran.text("secret", "outcome").as_str()), (0, "warn"));
    assert!(
        ran.text("secret", "message")
            .contains("white space around its value under secret")
    );

    // A key issued elsewhere has a Secret of its own.
    let keyless = Number::new("1008");
    world.apply(keyless.secret()).await;
    let mut channel = keyless.channel();
    channel["spec"]["webhook"] = json!({"apiKeySecretRef": {"name": "issued-1008", "key": "api-key"}});
    world.apply(channel).await;
    look(&world, &keyless.name, &[]).await.fails_at(
        "secret",
        &[
            "create secret generic issued-1008 --from-file=api-key, then",
            "correct spec.webhook.apiKeySecretRef",
        ],
    );

    // Neighbours.
    let mut younger = number.channel();
    younger["metadata"]["name"] = "copy".into();
    world.apply(younger).await;
    let copy = Number {
        name: "copy".into(),
        ..number.clone()
    };
    world.wait_reason(&copy, Reason::ChannelConflict).await;
    let ran = look(&world, "copy", &[]).await;
    let holder = format!("{}/{}", world.namespace, number.name);
    ran.fails_at("conflicts", &[&holder, "is older"]);
    let ran = look(&world, &number.name, &[]).await;
    assert_eq!((ran.code, ran.text("conflicts", "outcome").as_str()), (0, "warn"));

    let mut sharing = Number::new("1007").channel();
    sharing["spec"]["kernel"]["credentialsSecretRef"]["name"] = padded.secret_name.clone().into();
    world.apply(sharing).await;
    let shared = Number {
        name: "number-1007".into(),
        ..padded.clone()
    };
    world.wait_reason(&shared, Reason::ClientShared).await;
    let ran = look(&world, &shared.name, &[]).await;
    let holder = format!("{}/{}", world.namespace, padded.name);
    ran.fails_at(
        "client",
        &[&holder, "is older", "ClientShared", "a client of its own"],
    );
    for id in ["token", "token-messaging", "webhook"] {
        assert_eq!(ran.text(id, "message"), "not looked at: needs client", "{id}");
    }
    assert!(ran.text("controller", "message").contains("ClientShared"));
    let ran = look(&world, &padded.name, &[]).await;
    assert_eq!((ran.code, ran.text("client", "outcome").as_str()), (0, "warn"));
    assert!(ran.text("client", "message").contains("number-1007"));
}

#[tokio::test]
async fn a_channel_that_is_broken_at_kernel_is_told_where_and_what_to_do() {
    let world = World::start("doctor-kernel").await;
    let number = world.ready_number("1002").await;
    let host = world.kernel.url().replace("http://", "");
    let brief = ["--timeout", "500ms"];

    world.kernel.inject(Fault::hang().on(Endpoint::Token));
    let ran = look(&world, &number.name, &brief).await;
    ran.fails_at("token", &[&host, "did not answer in time"]);
    assert_eq!(ran.text("webhook", "outcome"), "skipped");
    world.kernel.clear_faults();

    world.kernel.inject(Fault::status(503).on(Endpoint::Token));
    look(&world, &number.name, &[])
        .await
        .fails_at("token", &["answers 503"]);
    world.kernel.clear_faults();

    world.kernel.inject(Fault::status(404).on(Endpoint::WebhookGet));
    let ran = look(&world, &number.name, &[]).await;
    assert_eq!((ran.code, ran.text("webhook", "outcome").as_str()), (0, "warn"));
    world.kernel.clear_faults();

    world.kernel.inject(Fault::hang().on(Endpoint::WebhookGet));
    let ran = look(&world, &number.name, &brief).await;
    ran.fails_at("webhook", &["did not answer in time"]);
    world.kernel.clear_faults();

    let ours = world.kernel.webhook_of(&number.client_id).unwrap();
    let key = [
        "--installation-key-secret",
        KEY,
        "--release-namespace",
        &world.namespace,
    ];
    let other_key = ours.replace("apikey=", "apikey=x");
    world.kernel.set_webhook(&number.client_id, &other_key);
    look(&world, &number.name, &key)
        .await
        .fails_at("webhook", &["not this channel's", "annotate wac"]);
    world
        .kernel
        .set_webhook(&number.client_id, "https://elsewhere.example.com/hook");
    let ran = look(&world, &number.name, &[]).await;
    ran.fails_at("webhook", &["elsewhere.example.com", "TakeOver"]);
    assert_eq!(
        ran.text("controller", "outcome"),
        "ok",
        "it has not looked again yet"
    );
    // The controller of a channel that is suspended, or on hold, does nothing about it, and no such thing is said.
    let allowed = format!("    namespaces: [{}]", world.namespace);
    let held = format!("{allowed}\n    hold: {{until: '2999-01-01T00:00:00Z', what: [registration]}}");
    let file = config_with(&world, &allowed, &held);
    let ran = look_with(&world, file.path(), &number.name, &[]).await;
    ran.fails_at("webhook", &["on hold until 2999", "leaves the webhook as it is"]);
    world.kernel.set_webhook(&number.client_id, "");
    look(&world, &number.name, &[])
        .await
        .fails_at("webhook", &["holds no webhook"]);
    world.kernel.set_webhook(&number.client_id, &ours);

    let lacking = Number::new("1003");
    let mut client = lacking.client();
    client.scopes.pop();
    world.kernel.add_client(client);
    world.apply(lacking.secret()).await;
    world.apply(lacking.channel()).await;
    world.wait_ready(&lacking).await;
    let ran = look(&world, &lacking.name, &[]).await;
    ran.fails_at("token-messaging", &["whatsapp:app-messaging", "Kernel team"]);
    assert_eq!(ran.text("webhook", "outcome"), "ok");

    let wrong = world.add("1004", |_| {}).await;
    world
        .kernel
        .rotate_secret(&wrong.client_id, "fake-another-secret");
    world.kernel.revoke_tokens(&wrong.client_id);
    let ran = look(&world, &wrong.name, &[]).await;
    ran.fails_at(
        "token",
        &["rejects the client's id or secret", &wrong.secret_name],
    );
    assert_eq!(ran.text("token-messaging", "outcome"), "skipped");

    world.kernel.stop().await;
    let ran = look(&world, &number.name, &[]).await;
    ran.fails_at("token", &[&host, "can't be reached from here"]);
}

#[tokio::test]
async fn what_the_controller_says_is_told_with_a_hint_and_its_age() {
    let mut world = World::start("doctor-status").await;
    let number = world.add("1002", |_| {}).await;
    world.wait_ready(&number).await;
    world
        .kernel
        .set_webhook(&number.client_id, "https://elsewhere.example.com/hook");
    world.look_now(&number, "1").await;
    world.wait_reason(&number, Reason::WebhookForeign).await;
    let ran = look(&world, &number.name, &[]).await;
    ran.fails_at("webhook", &["elsewhere.example.com"]);
    assert_eq!(ran.text("controller", "outcome"), "fail");
    assert!(ran.text("controller", "message").contains("WebhookForeign"));
    assert!(
        ran.text("controller", "next")
            .contains("set spec.webhook.existing to TakeOver")
    );

    world.controller.take().unwrap().kill9().await.unwrap();
    world
        .patch_channel(&number, json!({"spec": {"suspend": true}}))
        .await;
    let ran = look(&world, &number.name, &[]).await;
    ran.fails_at("webhook", &["elsewhere.example.com", "spec.suspend is true"]);
    assert_eq!(ran.text("controller", "outcome"), "warn");
    assert!(
        ran.text("controller", "message")
            .contains("speaks of generation 1, the resource has 2")
    );
}

/// A kubeconfig of a ServiceAccount of its own with these rules in the world's namespace.
async fn user(world: &World, name: &str, rules: Value) -> tempfile::NamedTempFile {
    let api = "rbac.authorization.k8s.io/v1";
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
        json!({"apiVersion": api, "kind": "Role", "metadata": {"name": name}, "rules": rules}),
        json!({"apiVersion": api, "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": world.namespace}]}),
    ] {
        world.apply(object).await;
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), &world.namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec::default(),
        ..TokenRequest::default()
    };
    let issued = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .unwrap();
    let file = world.site.dir().join("aura-whatsapp-bridge.kubeconfig");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    config["users"][0]["user"]["token"] = issued.status.unwrap().token.into();
    let own = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(own.path(), config.to_string()).unwrap();
    own
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_is_no_fault_of_the_channel() {
    let world = World::start("doctor-rights").await;
    let number = world.ready_number("1002").await;
    let config = world.site.dir().join("config.yaml");
    let arguments = [
        &number.name,
        "-n",
        &world.namespace,
        "--config",
        config.to_str().unwrap(),
    ];
    let group = "channels.auracognitive.com";
    let first_unknown = |ran: &Ran| {
        assert_eq!(ran.code, 2, "{:#}", ran.json);
        let steps = ran.json["steps"].as_array().unwrap();
        steps
            .iter()
            .find(|step| step["outcome"] == "unknown")
            .unwrap()
            .clone()
    };

    let nobody = user(&world, "nobody", json!([])).await;
    let step = first_unknown(&run_json(nobody.path(), &arguments).await);
    assert_eq!(step["id"], "resource");
    let check = format!(
        "kubectl auth can-i get whatsappchannels.{group} -n {}",
        world.namespace
    );
    assert!(step["next"].as_str().unwrap().contains(&check), "{step}");

    // One who may get the channel alone comes as far as the Secret.
    let channels = json!([{"apiGroups": [group], "resources": ["whatsappchannels"], "verbs": ["get"]}]);
    let reader = user(&world, "reader", channels).await;
    let ran = run_json(reader.path(), &arguments).await;
    let step = first_unknown(&ran);
    assert_eq!(step["id"], "secret");
    assert!(
        step["message"]
            .as_str()
            .unwrap()
            .contains("the right to get secrets in namespace")
    );
    assert_eq!(ran.text("definition", "outcome"), "warn");
    assert_eq!(ran.text("events", "outcome"), "warn");
    assert_eq!(
        ran.text("controller", "outcome"),
        "ok",
        "what can be seen is looked at"
    );

    // The bridge's own rights are enough, without events.
    let bridge = world.site.dir().join("aura-whatsapp-bridge.kubeconfig");
    let ran = run_json(&bridge, &arguments).await;
    assert_eq!(ran.code, 0, "{:#}", ran.json);
    assert!(
        ran.text("conflicts", "message")
            .contains(&format!("seen: namespace {}", world.namespace))
    );
    let without_config = &arguments[..3];
    let step = first_unknown(&run_json(&bridge, without_config).await);
    assert_eq!(step["id"], "configuration");
    assert!(
        step["message"].as_str().unwrap().contains("list configmaps"),
        "{step}"
    );
}

#[tokio::test]
async fn the_configuration_is_found_in_the_releases_config_map() {
    let world = World::start("doctor-config").await;
    let number = world.ready_number("1002").await;
    let kubeconfig = cluster().await.kubeconfig();
    let arguments = [
        &number.name,
        "-n",
        &world.namespace,
        "--release-namespace",
        &world.namespace,
    ];
    let ran = run_json(kubeconfig, &arguments).await;
    assert_eq!(
        (ran.code, ran.text("configuration", "outcome").as_str()),
        (2, "unknown")
    );
    assert!(ran.text("configuration", "next").contains("--config-map"));

    let text = std::fs::read_to_string(world.site.dir().join("config.yaml")).unwrap();
    let map = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "aura-whatsapp-operator"}},
            "data": {"config.yaml": text}})
    };
    world.apply(map("aura-config")).await;
    let ran = run_json(kubeconfig, &arguments).await;
    assert_eq!(ran.code, 0, "{:#}", ran.json);
    assert_eq!(
        ran.text("configuration", "message"),
        format!("from ConfigMap {}/aura-config", world.namespace)
    );

    world.apply(map("other-config")).await;
    let ran = run_json(kubeconfig, &arguments).await;
    assert_eq!(ran.code, 2);
    assert!(ran.text("configuration", "message").contains("other-config"));
    let chosen = [&arguments[..], &["--config-map", "other-config"]].concat();
    assert_eq!(run_json(kubeconfig, &chosen).await.code, 0);
}

#[tokio::test]
async fn a_cluster_without_the_definition_is_told_how_to_install_it() {
    let cluster = private_cluster().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.admin());
    let name = "whatsappchannels.channels.auracognitive.com";
    let uid = definitions.get(name).await.unwrap().metadata.uid.unwrap();
    definitions.delete(name, &DeleteParams::default()).await.unwrap();
    tokio::time::timeout(
        SOON,
        await_condition(definitions, name, conditions::is_deleted(&uid)),
    )
    .await
    .unwrap()
    .unwrap();
    // The API server stops serving it a moment later.
    let deadline = tokio::time::Instant::now() + SOON;
    let ran = loop {
        let ran = run_json(cluster.kubeconfig(), &["shop-es", "-n", "default"]).await;
        if ran.text("definition", "outcome") == "fail" || tokio::time::Instant::now() > deadline {
            break ran;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ran.fails_at("definition", &["crd | kubectl apply --server-side -f -"]);
}

/// What no output may show.
const SECRET: &str = "sentinel-doctor-client-secret";
const ISSUED: &str = "sentinel-doctor-issued-key";
const FOREIGN: &str = "sentinel-doctor-foreign-key";

#[tokio::test]
async fn nothing_secret_is_in_any_output() {
    let world = World::start("doctor-secrecy").await;
    let number = Number {
        client_secret: SECRET.into(),
        ..Number::new("1002")
    };
    world.kernel.add_client(number.client());
    world.apply(number.secret()).await;
    world
        .apply(json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "issued", "labels": {"channels.auracognitive.com/channel-secret": "true"}},
            "stringData": {"key": ISSUED}}))
        .await;
    let mut channel = number.channel();
    channel["spec"]["webhook"] = json!({"apiKeySecretRef": {"name": "issued", "key": "key"}});
    world.apply(channel).await;
    world.wait_ready(&number).await;
    let derived = world.ready_number("1003").await;

    let mut outputs = Vec::new();
    let mut collect = async |name: &str| {
        let config = world.site.dir().join("config.yaml");
        for output in ["human", "json"] {
            let arguments = [
                name,
                "-n",
                &world.namespace,
                "--config",
                config.to_str().unwrap(),
                "--installation-key-secret",
                KEY,
                "--release-namespace",
                &world.namespace,
                "--timeout",
                "1s",
                "--output",
                output,
            ];
            let (_, stdout, stderr) = run(cluster().await.kubeconfig(), &arguments).await;
            assert!(stdout.contains("webhook"), "{stdout}{stderr}");
            outputs.push(stdout + &stderr);
        }
    };
    collect(&number.name).await;
    collect(&derived.name).await;
    let ours = world.kernel.webhook_of(&derived.client_id).unwrap();
    let derived_key = ours
        .split_once("apikey=")
        .unwrap()
        .1
        .split('&')
        .next()
        .unwrap()
        .to_owned();
    for foreign in [
        format!("https://user:{FOREIGN}@elsewhere.example.com/?apikey={FOREIGN}"),
        format!("no url {FOREIGN}"),
        ours.replace(&derived_key, FOREIGN),
    ] {
        // As Kernel may hold it: the simulator takes anything from another party.
        world.kernel.set_webhook(&derived.client_id, &foreign);
        collect(&derived.name).await;
    }
    world.kernel.inject(Fault::garbage().times(2));
    collect(&derived.name).await;
    world
        .kernel
        .rotate_secret(&number.client_id, "fake-another-secret");
    collect(&number.name).await;

    let mut words = vec![
        SECRET.to_owned(),
        ISSUED.to_owned(),
        FOREIGN.to_owned(),
        derived_key,
        derived.client_secret.clone(),
        number.client_id.clone(),
    ];
    words.extend(world.kernel.token_values());
    for output in &outputs {
        for word in &words {
            assert!(!output.contains(word.as_str()), "{word} in\n{output}");
        }
    }
    // The test can fail: what may be seen is seen.
    assert!(outputs.iter().any(|output| output.contains(&number.secret_name)));
}

#[tokio::test]
async fn help_and_mistakes_are_answered_with_what_to_write() {
    let kubeconfig = Path::new("/nowhere/kubeconfig");
    let ran = run_json(kubeconfig, &["shop-es", "-n", "aura-es"]).await;
    assert_eq!(
        (ran.code, ran.text("cluster", "outcome").as_str()),
        (2, "unknown")
    );
    assert!(ran.stderr.is_empty());
    let dir = tempfile::tempdir().unwrap();
    let nobody_listens = dir.path().join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "c", "user": {"token": "fake"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    std::fs::write(&nobody_listens, config.to_string()).unwrap();
    let ran = run_json(&nobody_listens, &["shop-es"]).await;
    assert_eq!(
        (ran.code, ran.text("cluster", "outcome").as_str()),
        (2, "unknown")
    );
    assert!(
        ran.text("cluster", "message")
            .contains("the API server does not answer")
    );
    let (code, stdout, _) = run(kubeconfig, &["--help"]).await;
    assert_eq!(code, 0);
    for word in [
        "Examples:",
        "--installation-key-secret",
        "Exit codes",
        "conformance",
    ] {
        assert!(stdout.contains(word), "{stdout}");
    }
    let page = std::fs::read_to_string(project().join("docs/cli.md")).unwrap();
    for id in StepId::ALL {
        assert!(
            page.contains(&format!("| `{}` |", id.as_str())),
            "docs/cli.md does not tell of {}",
            id.as_str()
        );
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "doctor-empty"}});
    objects::apply(&cluster().await.admin(), namespace).await.unwrap();
    let ran = run_json(cluster().await.kubeconfig(), &["shop-es", "-n", "doctor-empty"]).await;
    ran.fails_at("resource", &["shop-es", "doctor-empty", "kubectl get wac -A"]);
}
