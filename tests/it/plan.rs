//! `plan`: what it says of a real cluster and a simulated Kernel, and that it changes neither.

use std::{collections::BTreeMap, path::Path, process::Stdio};

use aura_whatsapp_operator::{
    api::conditions::Reason,
    sim::{
        fault::{Endpoint, Fault},
        kernel::{KernelOptions, KernelSim},
    },
};
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{Number, PROGRAM, World, cluster};

/// The installation key's Secret in a world.
const KEY: &str = "aura-whatsapp-operator-installation-key";

/// A run of `plan`.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{}{}", self.stdout, self.stderr))
    }

    #[track_caller]
    fn line(&self, name: &str) -> Value {
        let json = self.json();
        let lines = json["channels"].as_array().unwrap();
        let found = lines.iter().find(|line| line["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {json:#}")).clone()
    }

    /// The line of this channel has this sign, action and reason, and its message holds these words.
    #[track_caller]
    fn says(&self, name: &str, sign: &str, action: &str, words: &str) {
        let line = self.line(name);
        let is = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (is("sign"), is("action")),
            (sign.into(), action.into()),
            "{line:#}"
        );
        let text = format!("{} {}", is("reason"), is("message"));
        assert!(text.contains(words), "no {words:?} in {line:#}");
    }
}

async fn run(kubeconfig: &Path, arguments: &[&str], stdin: &str) -> Ran {
    let mut child = tokio::process::Command::new(PROGRAM)
        .arg("plan")
        .args(arguments)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Plans with the world's own configuration and the installation key; `manifests` are handed over on stdin.
async fn plan(world: &World, more: &[&str], manifests: &[Value]) -> Ran {
    let config = world.site.dir().join("config.yaml");
    let mut arguments = vec![
        "-n",
        &world.namespace,
        "--config",
        config.to_str().unwrap(),
        "--release-namespace",
        &world.namespace,
    ];
    if !more.contains(&"human") {
        arguments.extend(["--output", "json"]);
    }
    arguments.extend(more);
    if !manifests.is_empty() {
        arguments.push("-");
    }
    let documents: Vec<String> = manifests.iter().map(Value::to_string).collect();
    let stdin = documents.join(
        "
---
",
    );
    run(cluster().await.kubeconfig(), &arguments, &stdin).await
}

const WITH_KEY: [&str; 2] = ["--installation-key-secret", KEY];

/// The versions of everything in the world's namespace that `plan` could have written, and how often Kernel's webhooks
/// were set.
async fn versions(world: &World) -> (BTreeMap<String, Option<String>>, usize) {
    let all = ListParams::default();
    let mut versions = BTreeMap::new();
    for channel in world.channels().list(&all).await.unwrap() {
        versions.insert(
            format!("channel {}", channel.name_any()),
            channel.resource_version(),
        );
    }
    for secret in world.secrets().list(&all).await.unwrap() {
        versions.insert(format!("secret {}", secret.name_any()), secret.resource_version());
    }
    let sets = world.kernel.calls();
    let sets = sets.iter().filter(|call| call.endpoint == Endpoint::WebhookSet);
    (versions, sets.count())
}

/// Ends the controller: what a channel is then lacks stays so.
async fn stop_controller(world: &mut World) {
    world.controller.take().unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn the_channels_of_a_cluster_are_told_of_as_the_controller_would_treat_them() {
    let mut world = World::builder("plan-cluster").without_bridge().start().await;
    let fine = world.ready_number("1002").await;
    let changed = world.ready_number("1003").await;
    let foreign = world.ready_number("1004").await;
    stop_controller(&mut world).await;
    world.add("1005", |_| {}).await;
    world
        .add("1006", |channel| {
            channel["spec"]["webhook"] = json!({"mode": "Observe"});
        })
        .await;
    world
        .add("1007", |channel| channel["spec"]["suspend"] = json!(true))
        .await;
    world
        .patch_channel(&changed, json!({"spec": {"webhook": {"keyGeneration": 2}}}))
        .await;
    let elsewhere = "https://elsewhere.example.com/hook";
    world.kernel.set_webhook(&foreign.client_id, elsewhere);
    let lost = Number::new("1008");
    world.apply(lost.channel()).await;
    let mut copy = fine.channel();
    copy["metadata"]["name"] = "z-copy".into();
    world.apply(copy).await;
    let mut sharing = Number::new("1009").channel();
    sharing["spec"]["kernel"]["credentialsSecretRef"]["name"] = fine.secret_name.clone().into();
    world.apply(sharing).await;
    let mut nowhere = Number::new("1010").channel();
    nowhere["spec"]["environment"] = "nowhere".into();
    world.apply(nowhere).await;

    let before = versions(&world).await;
    let ran = plan(&world, &WITH_KEY, &[]).await;
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    ran.says(&fine.name, "same", "none", "");
    ran.says(&changed.name, "changed", "renew", "another key");
    ran.says(&foreign.name, "refused", "refused", "WebhookForeign");
    ran.says(&foreign.name, "refused", "refused", "elsewhere.example.com");
    ran.says("number-1005", "new", "register", "would register");
    ran.says("number-1006", "same", "none", "a webhook would be registered");
    ran.says("number-1007", "same", "none", "suspended");
    ran.says(&lost.name, "refused", "refused", "SecretNotFound");
    ran.says("number-1009", "refused", "refused", "ClientShared");
    ran.says("number-1010", "refused", "refused", "EnvironmentUnknown");
    ran.says("z-copy", "refused", "refused", "ChannelConflict");
    let holder = format!("{}/{}", world.namespace, fine.name);
    ran.says("z-copy", "refused", "refused", &holder);
    assert_eq!(ran.line(&fine.name)["keyNotCompared"], false);
    assert_eq!(ran.json()["summary"]["refused"], 5);
    assert_eq!(ran.stderr, "");

    // What another party has is taken over only where that is said.
    world
        .patch_channel(&foreign, json!({"spec": {"webhook": {"existing": "TakeOver"}}}))
        .await;
    let between = versions(&world).await;
    let ran = plan(&world, &[], &[]).await;
    ran.says(
        &foreign.name,
        "changed",
        "takeOver",
        "would take over from elsewhere",
    );
    assert_eq!(ran.line(&foreign.name)["host"], "elsewhere.example.com");

    // Without the installation key, the key's own words are believed.
    ran.says(&fine.name, "same", "none", "");
    assert_eq!(ran.line(&fine.name)["keyNotCompared"], true);
    ran.says(&changed.name, "changed", "renew", "another key");
    let notes = ran.json()["notes"].to_string();
    assert!(notes.contains("--installation-key-secret"), "{notes}");

    // The controller does just that.
    assert_eq!(versions(&world).await, between, "plan writes nothing");
    assert_eq!(before.1, between.1);
    assert_eq!(
        world.kernel.webhook_of(&foreign.client_id).as_deref(),
        Some(elsewhere)
    );
    world.controller = Some(world.site.start_controller().await.unwrap());
    for number in [&changed, &foreign] {
        world.wait_ready(number).await;
    }
    world.wait_reason(&lost, Reason::SecretNotFound).await;
    let ran = plan(&world, &WITH_KEY, &[]).await;
    ran.says(&foreign.name, "same", "none", "");
    ran.says(&changed.name, "same", "none", "");
}

#[tokio::test]
async fn manifests_are_laid_over_the_cluster() {
    let world = World::builder("plan-files").without_bridge().start().await;
    let same = world.ready_number("1002").await;
    let changed = world.ready_number("1003").await;
    let rotated = world.ready_number("1004").await;
    let moved = world.ready_number("1005").await;
    let left = world.ready_number("1006").await;
    let fresh = Number::new("1010");
    world.kernel.add_client(fresh.client());
    let mut slower = changed.channel();
    slower["spec"]["delivery"] = json!({"messagesPerSecond": 5});
    let mut newer = rotated.channel();
    newer["spec"]["webhook"] = json!({"keyGeneration": 2});
    let mut elsewhere = moved.channel();
    elsewhere["spec"]["channelId"] = Number::new("1").channel_id.into();
    let files = [
        same.channel(),
        same.secret(),
        slower,
        newer,
        elsewhere,
        fresh.channel(),
        fresh.secret(),
    ];
    let before = versions(&world).await;
    let ran = plan(&world, &WITH_KEY, &files).await;
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    ran.says(&same.name, "same", "none", "");
    ran.says(&changed.name, "changed", "none", "");
    let field = json!([{"path": "delivery.messagesPerSecond", "from": null, "to": 5}]);
    assert_eq!(ran.line(&changed.name)["fields"], field);
    ran.says(&rotated.name, "changed", "renew", "another key");
    ran.says(&moved.name, "refused", "refused", "Immutable");
    ran.says(&moved.name, "refused", "refused", "channelId");
    ran.says(&fresh.name, "new", "register", "would register");
    assert_eq!(ran.line(&fresh.name)["change"], "create");
    let count = |ran: &Ran| ran.json()["channels"].as_array().unwrap().len();
    assert_eq!(count(&ran), 5, "what is not among the files is not told of");

    // Only what may be done, as people read it, and with its own exit code.
    let good: Vec<Value> = files
        .iter()
        .filter(|file| file["metadata"]["name"] != moved.name.as_str())
        .cloned()
        .collect();
    let detailed = [&WITH_KEY[..], &["--detailed-exit-code", "--show-unmanaged"]].concat();
    let ran = plan(&world, &detailed, &good).await;
    assert_eq!(ran.code, 3, "{}", ran.stdout);
    ran.says(&left.name, "same", "unmanaged", "not among the files");
    assert_eq!(plan(&world, &WITH_KEY, &good).await.code, 0);
    let ran = plan(&world, &["--output", "human"], &good).await;
    let title = |number: &Number| format!("{}/{}", world.namespace, number.name);
    for line in [
        format!("+ {}  new; would register the webhook\n", title(&fresh)),
        format!(
            "~ {}  changes delivery.messagesPerSecond; nothing to do at Kernel; key not compared\n",
            title(&changed)
        ),
        "key not compared: name the installation key's Secret with".to_owned(),
        "4 channels: 1 new, 2 changed, 1 unchanged\n".to_owned(),
    ] {
        assert!(ran.stdout.contains(&line), "no {line:?} in\n{}", ran.stdout);
    }

    // The Secret among the files is the one that counts.
    let mut wrong = fresh.secret();
    wrong["stringData"]["secret"] = "fake-wrong".into();
    let ran = plan(&world, &[], &[fresh.channel(), wrong]).await;
    ran.says(&fresh.name, "refused", "refused", "CredentialsRejected");
    let ran = plan(&world, &[], &[fresh.channel()]).await;
    ran.says(&fresh.name, "refused", "refused", "SecretNotFound");
    let made = json!({"apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret",
        "metadata": {"name": fresh.secret_name},
        "spec": {"target": {"template": {"metadata": {"labels": {"channels.auracognitive.com/channel-secret": "true"}}}},
            "dataFrom": [{"extract": {"key": "x"}}]}});
    let ran = plan(&world, &[], &[fresh.channel(), made]).await;
    assert_eq!(ran.code, 2);
    ran.says(&fresh.name, "unknown", "unknown", "will be made");

    // A new channel is the youngest: it takes neither a channelId nor a Kernel client from another.
    let mut copy = same.channel();
    copy["metadata"]["name"] = "a-copy".into();
    let ran = plan(&world, &[], &[copy]).await;
    ran.says("a-copy", "refused", "refused", "ChannelConflict");
    let mut sharing = fresh.channel();
    sharing["spec"]["kernel"]["credentialsSecretRef"]["name"] = left.secret_name.clone().into();
    let ran = plan(&world, &[], &[sharing]).await;
    ran.says(&fresh.name, "refused", "refused", "ClientShared");
    ran.says(&fresh.name, "refused", "refused", &left.name);

    // What is not valid is told of as `validate` does, and nothing is asked.
    let calls = world.kernel.call_count();
    let mut invalid = fresh.channel();
    invalid["spec"]["webhook"] = json!({"mod": "Observe"});
    let ran = plan(&world, &[], &[invalid]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("did you mean \"mode\"?"), "{}", ran.stderr);
    assert_eq!(world.kernel.call_count(), calls);
    assert_eq!(versions(&world).await, before, "plan writes nothing");
}

#[tokio::test]
async fn a_kernel_that_does_not_answer_leaves_channels_unjudged_and_need_not_be_asked() {
    let mut world = World::builder("plan-down").without_bridge().start().await;
    let mut numbers = Vec::new();
    for digits in ["1002", "1003", "1004", "1005", "1006", "1007"] {
        numbers.push(world.ready_number(digits).await);
    }
    stop_controller(&mut world).await;
    let fresh = world.add("1010", |_| {}).await;
    let mut lost = Number::new("1011").channel();
    lost["spec"]["environment"] = "nowhere".into();
    world.apply(lost).await;

    let calls = world.kernel.call_count();
    let ran = plan(&world, &["--no-kernel"], &[]).await;
    assert_eq!(ran.code, 1);
    ran.says(&numbers[0].name, "same", "none", "as its status says");
    ran.says(&fresh.name, "new", "register", "Kernel was not asked");
    ran.says("number-1011", "refused", "refused", "EnvironmentUnknown");
    assert_eq!(world.kernel.call_count(), calls, "no call was made");

    world.kernel.inject(Fault::status(503).on(Endpoint::Token));
    let calls = world.kernel.call_count();
    let ran = plan(&world, &["--concurrency", "1"], &[]).await;
    assert_eq!(ran.code, 2, "{}", ran.stdout);
    for number in numbers.iter().chain([&fresh]) {
        ran.says(&number.name, "unknown", "unknown", "Kernel answers 503");
    }
    assert_eq!(
        world.kernel.call_count() - calls,
        3,
        "three in vain, then no more"
    );
    world.kernel.clear_faults();

    world.kernel.stop().await;
    let ran = plan(&world, &["--output", "human"], &[]).await;
    assert_eq!(ran.code, 2);
    let line = format!(
        "? {}/{}  can't be judged: Kernel can't be reached\n",
        world.namespace, fresh.name
    );
    assert!(ran.stdout.contains(&line), "{}", ran.stdout);
    world.kernel = KernelSim::start(KernelOptions::default()).await.unwrap();
}

#[tokio::test]
async fn before_mode_legacy_it_is_told_whether_kernel_holds_just_what_the_secret_says() {
    let world = World::builder("plan-legacy")
        .without_bridge()
        .environment_extra(
            "    legacyCallback: {url: \"http://127.0.0.1:9/legacy?apikey={apikey}&channelId={channelId}\", \
             apiKeySecretRef: {name: legacy, key: apikey}}",
        )
        .start()
        .await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = json!({"mode": "Observe"});
        })
        .await;
    let held = |key: &str| {
        let id = &number.channel_id;
        format!("http://127.0.0.1:9/legacy?apikey={key}&channelId={id}")
    };
    world
        .kernel
        .set_webhook(&number.client_id, &held("fake-key-of-before"));
    world.wait_reason(&number, Reason::Observed).await;
    let mut legacy = number.channel();
    legacy["spec"]["webhook"] = json!({"mode": "Legacy"});
    let secret = |key: &str| {
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "legacy", "labels": {"channels.auracognitive.com/channel-secret": "true"}},
            "stringData": {"apikey": key}})
    };
    let ran = plan(&world, &[], &[legacy.clone(), secret("fake-key-of-before")]).await;
    ran.says(&number.name, "changed", "none", "");
    let ran = plan(&world, &[], &[legacy.clone(), secret("fake-wrong-key")]).await;
    ran.says(&number.name, "changed", "renew", "another key");

    // The controller does just that, and the system before is called with a key that it does not know.
    world.apply(secret("fake-wrong-key")).await;
    world
        .patch_channel(&number, json!({"spec": {"webhook": {"mode": "Legacy"}}}))
        .await;
    world.wait_reason(&number, Reason::LegacyRegistered).await;
    assert_eq!(
        world.kernel.webhook_of(&number.client_id),
        Some(held("fake-wrong-key"))
    );
}

#[tokio::test]
async fn once_kernel_limits_the_rate_no_more_is_asked_of_it() {
    let mut world = World::builder("plan-limited").without_bridge().start().await;
    let mut numbers = Vec::new();
    for digits in ["1002", "1003", "1004", "1005"] {
        numbers.push(world.ready_number(digits).await);
    }
    stop_controller(&mut world).await;
    for (endpoint, made) in [(Endpoint::Token, 1), (Endpoint::WebhookGet, 2)] {
        world
            .kernel
            .inject(Fault::status(429).retry_after(7).on(endpoint));
        let calls = world.kernel.call_count();
        let ran = plan(&world, &["--concurrency", "1"], &[]).await;
        assert_eq!(ran.code, 2, "{}", ran.stdout);
        for number in &numbers {
            ran.says(
                &number.name,
                "unknown",
                "unknown",
                "limits the rate of calls (429)",
            );
        }
        assert_eq!(
            world.kernel.call_count() - calls,
            made,
            "no more after the first 429"
        );
        let notes = ran.json()["notes"].to_string();
        assert!(notes.contains("try again in 7 s"), "{notes}");
        world.kernel.clear_faults();
    }
    let ran = plan(&world, &WITH_KEY, &[]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
}

#[tokio::test]
async fn without_kernel_what_the_controller_says_is_not_contradicted() {
    let mut world = World::builder("plan-no-kernel").without_bridge().start().await;
    let fine = world.ready_number("1002").await;
    let foreign = world.ready_number("1003").await;
    world
        .kernel
        .set_webhook(&foreign.client_id, "https://elsewhere.example.com/hook");
    world.look_now(&foreign, "1").await;
    world.wait_reason(&foreign, Reason::WebhookForeign).await;
    stop_controller(&mut world).await;

    let ran = plan(&world, &["--no-kernel"], &[]).await;
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    ran.says(&foreign.name, "refused", "refused", "WebhookForeign");
    ran.says(&foreign.name, "refused", "refused", "elsewhere.example.com");

    let mut slower = fine.channel();
    slower["spec"]["delivery"] = json!({"messagesPerSecond": 5});
    let mut taking = foreign.channel();
    taking["spec"]["webhook"] = json!({"existing": "TakeOver"});
    let ran = plan(&world, &["--no-kernel"], &[slower, taking]).await;
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    ran.says(&fine.name, "changed", "none", "told nothing of what changes");
    ran.says(&foreign.name, "changed", "renew", "Kernel was not asked");

    let mut newer = fine.channel();
    newer["spec"]["webhook"] = json!({"keyGeneration": 2});
    let ran = plan(&world, &["--no-kernel"], &[newer]).await;
    ran.says(&fine.name, "changed", "renew", "Kernel was not asked");
}

#[tokio::test]
async fn what_everything_depends_on_is_told_of_when_it_is_missing() {
    let world = World::builder("plan-missing").without_bridge().start().await;
    let kubeconfig = cluster().await.kubeconfig();
    let namespace = ["-n", &world.namespace];
    let ran = run(Path::new("/nowhere/kubeconfig"), &namespace, "").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);

    let release = [&namespace[..], &["--release-namespace", &world.namespace]].concat();
    let ran = run(kubeconfig, &release, "").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("--config-map"), "{}", ran.stderr);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "environments: {es: {nonsense: 1}}\n").unwrap();
    let broken = [&namespace[..], &["--config", file.path().to_str().unwrap()]].concat();
    let ran = run(kubeconfig, &broken, "").await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("nonsense"), "{}", ran.stderr);

    // One who may not list channels is told which right is lacking.
    let config = world.site.dir().join("config.yaml");
    let config = ["-A", "--config", config.to_str().unwrap()];
    let bridge = world.site.dir().join("aura-whatsapp-bridge.kubeconfig");
    let ran = run(&bridge, &config, "").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("in the whole cluster"), "{}", ran.stderr);
    // The bridge's rights in its own namespace are enough.
    let ran = plan(&world, &[], &[]).await;
    assert_eq!((ran.code, ran.json()["channels"].clone()), (0, json!([])));
    let ran = run(&bridge, &[&namespace[..], &config[1..]].concat(), "").await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "0 channels\n"),
        "{}",
        ran.stderr
    );
    let ran = run(kubeconfig, &["/nowhere/channels"], "").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("/nowhere/channels"), "{}", ran.stderr);
}

/// What no output may show.
const SECRET: &str = "sentinel-plan-client-secret";
const ISSUED: &str = "sentinel-plan-issued-key";
const FOREIGN: &str = "sentinel-plan-foreign-key";

#[tokio::test]
async fn nothing_secret_is_in_any_output() {
    let mut world = World::builder("plan-secrecy").without_bridge().start().await;
    let derived = world.ready_number("1003").await;
    stop_controller(&mut world).await;
    let number = Number {
        client_secret: SECRET.into(),
        ..Number::new("1002")
    };
    world.kernel.add_client(number.client());
    let issued = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "issued", "labels": {"channels.auracognitive.com/channel-secret": "true"}},
        "stringData": {"key": ISSUED}});
    let mut channel = number.channel();
    channel["spec"]["webhook"] = json!({"apiKeySecretRef": {"name": "issued", "key": "key"}});
    let mut broken = number.secret();
    broken["data"] = json!({"id": format!("%{SECRET}")});
    let files = [channel, number.secret(), issued, derived.channel()];
    let ours = world.kernel.webhook_of(&derived.client_id).unwrap();
    let key = ours.split_once("apikey=").unwrap().1.split('&').next().unwrap();

    let mut outputs = Vec::new();
    let mut collect = async |files: &[Value]| {
        for output in ["human", "json"] {
            for key in [&WITH_KEY[..], &[]] {
                let ran = plan(&world, &[key, &["--output", output]].concat()[..], files).await;
                outputs.push(ran.stdout + &ran.stderr);
            }
        }
    };
    collect(&files).await;
    collect(&[]).await;
    collect(&[number.channel(), broken]).await;
    for held in [
        format!("https://user:{FOREIGN}@elsewhere.example.com/?apikey={FOREIGN}"),
        format!("no url {FOREIGN}"),
        ours.replace(key, FOREIGN),
    ] {
        world.kernel.set_webhook(&derived.client_id, &held);
        collect(&files).await;
    }
    world.kernel.inject(Fault::garbage().times(2));
    collect(&files).await;

    let mut words = vec![
        SECRET.to_owned(),
        ISSUED.to_owned(),
        FOREIGN.to_owned(),
        key.to_owned(),
        derived.client_secret.clone(),
        derived.client_id.clone(),
        number.client_id.clone(),
    ];
    words.extend(world.kernel.token_values());
    for output in &outputs {
        for word in &words {
            assert!(!output.contains(word.as_str()), "{word} in\n{output}");
        }
    }
    // The test can fail: what may be seen is seen.
    assert!(
        outputs
            .iter()
            .any(|output| output.contains("elsewhere.example.com"))
    );
    assert!(outputs.iter().any(|output| output.contains("would register")));
}
