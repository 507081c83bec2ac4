//! `cargo dev` as a person uses it: up, a message sent and answered, Ctrl-C; and nothing left running, whatever ends it.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use aura_whatsapp_operator::sim::controlplane::Tool;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{DEV, assets, project};

const UP_WITHIN: Duration = Duration::from_secs(90);
const GONE_WITHIN: Duration = Duration::from_secs(20);

fn dev(dir: &Path) -> Command {
    let mut command = Command::new(DEV);
    command
        .env_remove("CARGO")
        .env("CARGO_MANIFEST_DIR", project())
        .env("AURA_DEV_DIR", dir);
    command
}

/// Brings it up and returns it with what it said.
async fn up(dir: &Path) -> (Child, String) {
    // Built first where it must be, with the progress shown.
    assets().await;
    let mut child = dev(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    let told = tokio::time::timeout(UP_WITHIN, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said.push_str(&line);
            said.push('\n');
            if line.contains("Ctrl-C ends everything") {
                return;
            }
        }
        panic!("it ended before it was up");
    });
    told.await.expect("it comes up");
    (child, said)
}

/// The processes that have something of this folder open on their command line.
fn processes(dir: &Path) -> Vec<String> {
    let needle = dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&needle) {
            found.push(command);
        }
    }
    found
}

async fn all_gone(dir: &Path) {
    let start = Instant::now();
    loop {
        let left = processes(dir);
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < GONE_WITHIN, "left running: {left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_newcomer_brings_it_up_sends_a_message_and_ctrl_c_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, said) = up(dir.path()).await;
    for words in [
        "export KUBECONFIG=",
        "kubectl get wac -A",
        "cargo dev send --to 1002",
        "number-1004: applied and Ready",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    assert!(
        processes(dir.path()).len() >= 5,
        "API server, etcd, controller manager, controller, bridge"
    );

    let kubeconfig = said
        .split_once("export KUBECONFIG=")
        .unwrap()
        .1
        .lines()
        .next()
        .unwrap();
    let kubectl = |arguments: &'static [&'static str]| async move {
        let mut command = Command::new(assets().await.path(Tool::Kubectl));
        let output = command
            .env("KUBECONFIG", kubeconfig)
            .current_dir(project())
            .args(arguments)
            .output();
        let output = output.await.unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let table = kubectl(&["get", "wac", "-A", "--no-headers"]).await;
    assert_eq!(
        table
            .lines()
            .filter(|line| line.contains("True") && line.contains("Succeeded"))
            .count(),
        2,
        "{table}"
    );
    let applied = kubectl(&["apply", "-f", "examples/"]).await;
    assert!(!applied.contains("Warning"), "{applied}");

    let output = dev(dir.path())
        .args(["send", "--to", "1002", "hola"])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("→ 34600000001: "), "{text}");
    let output = dev(dir.path())
        .args(["send", "--to", "9999", "hola"])
        .output()
        .await
        .unwrap();
    assert!(!output.status.success(), "nobody has that number");

    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let status = tokio::time::timeout(GONE_WITHIN, child.wait())
        .await
        .expect("it ends")
        .unwrap();
    assert!(status.success(), "{status}");
    all_gone(dir.path()).await;
    assert!(!dir.path().join("running.json").exists());
}

#[tokio::test]
async fn killed_without_a_word_it_leaves_nothing_either() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, _) = up(dir.path()).await;
    child.kill().await.unwrap();
    all_gone(dir.path()).await;
}
