//! The command line, as a person meets it.

use std::process::{Command, Output};

use crate::support::{DEV, PROGRAM};

fn run(program: &str, arguments: &[&str]) -> (Output, String) {
    let output = Command::new(program)
        .args(arguments)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned();
    (output, text)
}

#[test]
fn crd_prints_the_definition_that_the_repository_holds() {
    let (output, text) = run(PROGRAM, &["crd"]);
    assert!(output.status.success());
    assert_eq!(text, include_str!("../../crds/whatsappchannels.yaml"));
}

#[test]
fn help_teaches() {
    for (arguments, words) in [
        (
            vec!["--help"],
            vec!["controller", "bridge", "crd", "doctor", "plan", "WhatsAppChannel"],
        ),
        (
            vec!["bridge", "--help"],
            vec!["--data-dir", "--public-listen", "[default: 0.0.0.0:8080]"],
        ),
        (
            vec!["controller", "--help"],
            vec!["--installation-key-secret", "--config", "POD_NAMESPACE"],
        ),
        (vec!["crd", "--help"], vec!["kubectl apply --server-side"]),
        (
            vec!["doctor", "conformance", "--help"],
            vec!["Examples:", "--previous-url-file", "[default: v1]", "Exit codes"],
        ),
        (
            vec!["validate", "--help"],
            vec![
                "Exit status",
                "kustomize build",
                "--show-effective",
                "--output github",
            ],
        ),
        (
            vec!["plan", "--help"],
            vec![
                "Exit status",
                "Signs: +",
                "--no-kernel",
                "--detailed-exit-code",
                "[default: 4]",
            ],
        ),
        (
            vec!["import", "--help"],
            vec!["Exit status", "--secret-store", "kubeseal", "[default: Observe]"],
        ),
        (
            vec!["messages", "--help"],
            vec![
                "Exit status",
                "port-forward",
                "Examples:",
                "--because",
                "[default: http://127.0.0.1:8084]",
            ],
        ),
        (
            vec!["messages", "replay", "--help"],
            vec!["--because", "--dry-run", "--yes", "--older-than"],
        ),
    ] {
        let (output, text) = run(PROGRAM, &arguments);
        assert!(output.status.success());
        for word in words {
            assert!(
                text.contains(word),
                "{arguments:?} does not tell of {word}:\n{text}"
            );
        }
    }
    let (_, text) = run(DEV, &["--help"]);
    assert!(
        text.contains("--smoke") && text.contains("send") && !text.contains("guard"),
        "{text}"
    );
}

#[test]
fn the_messages_listener_is_for_loopback_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (config, kubeconfig) = (dir.path().join("config.yaml"), dir.path().join("kubeconfig"));
    let installation = "environments: {e: {namespaces: [a], publicUrl: 'https://p.example', kernel: {apiUrl: \
                        'https://a.example', authUrl: 'https://b.example'}, aura: {messagesUrl: 'https://c.example', \
                        replyUrl: 'https://d.example', outboundAuth: {apiKeyFile: /x}, inboundAuth: {apiKeyFile: /y}}}}";
    let cluster = "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: \
                   'https://127.0.0.1:9'}}], users: [{name: c, user: {token: fake}}], contexts: [{name: c, context: \
                   {cluster: c, user: c}}]}";
    std::fs::write(&config, installation).unwrap();
    std::fs::write(&kubeconfig, cluster).unwrap();
    for address in ["0.0.0.0:8084", "10.0.0.1:8084", "[::]:8084"] {
        let (output, text) = run(
            PROGRAM,
            &[
                "bridge",
                "--config",
                config.to_str().unwrap(),
                "--kubeconfig",
                kubeconfig.to_str().unwrap(),
                "--messages-address",
                address,
            ],
        );
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains("must be a loopback address"), "{text}");
    }
}

#[test]
fn messages_without_a_bridge_says_how_to_reach_one() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{free}");
    let arguments = [
        "messages",
        "list",
        "--url",
        &url,
        "-n",
        "aura-system",
        "--pod",
        "wa-bridge-0",
    ];
    let (output, text) = run(PROGRAM, &arguments);
    assert_eq!(output.status.code(), Some(2));
    let command = format!(
        "kubectl --namespace aura-system port-forward pod/wa-bridge-0 {}:8084",
        free.port()
    );
    assert!(
        text.starts_with("error: nothing answers at") && text.contains(&command),
        "{text}"
    );
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_of_in_one_line_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    for (content, word) in [
        ("environments: {}\n", "name at least one"),
        ("environments:\n  es:\n    nonsense: 1\n", "line 3"),
        ("environments: [\n", "config.yaml"),
    ] {
        std::fs::write(&file, content).unwrap();
        for role in ["controller", "bridge"] {
            let (output, text) = run(PROGRAM, &[role, "--config", file.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(1));
            assert!(text.starts_with("error: ") && text.contains(word), "{text}");
        }
    }
    let (output, text) = run(PROGRAM, &["bridge", "--config", "/nowhere/config.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("/nowhere/config.yaml"), "{text}");
}

#[test]
fn a_cluster_that_is_not_on_this_machine_is_refused_unless_allowed_twice() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let kubeconfig = "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: \
                      'https://cluster.invalid:6443'}}], users: [{name: c, user: {token: fake}}], contexts: [{name: c, \
                      context: {cluster: c, user: c}}]}";
    std::fs::write(&file, kubeconfig).unwrap();
    for allowed in [vec![], vec!["--allow-remote"]] {
        let mut arguments = vec!["--kubeconfig", file.to_str().unwrap()];
        arguments.extend(allowed);
        let output = Command::new(DEV)
            .args(&arguments)
            .env_remove("CARGO")
            .env("AURA_DEV_DIR", dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(
            text.contains("cluster.invalid") && text.contains("--allow-remote twice"),
            "{text}"
        );
    }
}

#[test]
fn sending_without_a_running_cluster_says_what_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(DEV)
        .args(["send", "--to", "1002", "hola"])
        .env("AURA_DEV_DIR", dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("start `cargo dev`"));
}
