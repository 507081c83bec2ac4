//! The guard as a process: what it ends, what it leaves alone, and what happens when the launcher is killed.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aura_whatsapp_operator::sim::controlplane::{Guard, Signal};

const EXE: &str = env!("CARGO_BIN_EXE_aura-dev");

fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| fields[19].to_owned())
}

fn is_alive(pid: u32) -> bool {
    start_time(pid).is_some()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A process as `Guard::spawn` starts it, but known to no guard.
fn sleeper() -> std::process::Child {
    Command::new("sleep")
        .arg("1000")
        .process_group(0)
        .spawn()
        .unwrap()
}

/// A bare guard process that is told `lines` and then loses its launcher; returns when it has ended.
fn guard_told(lines: &str) {
    let mut guard = Command::new(EXE)
        .arg("guard")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answer = String::new();
    BufReader::new(guard.stdout.take().unwrap())
        .read_line(&mut answer)
        .unwrap();
    assert_eq!(answer, "ready\n");
    guard.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(guard.wait().unwrap().success());
}

#[test]
fn a_watched_process_ends_with_its_launcher() {
    let mut sleeper = sleeper();
    guard_told(&format!(
        "watch {} {}\n",
        sleeper.id(),
        start_time(sleeper.id()).unwrap()
    ));
    assert_eq!(sleeper.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn a_process_that_ignores_the_request_is_killed() {
    let mut stubborn = Command::new("sh")
        .args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(stubborn.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    guard_told(&format!(
        "watch {} {}\n",
        stubborn.id(),
        start_time(stubborn.id()).unwrap()
    ));
    assert_eq!(stubborn.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
}

#[test]
fn forgotten_reused_and_unfinished_registrations_are_left_alone() {
    let mut sleepers = [sleeper(), sleeper(), sleeper(), sleeper()];
    let [forgotten, reused, unfinished, ended] = &sleepers;
    let start = |child: &std::process::Child| start_time(child.id()).unwrap();
    guard_told(&format!(
        "watch {f} {fs}\nwatch {e} {es}\nforget {f}\nwatch {r} {other}\nnonsense\nwatch {u} {us}",
        f = forgotten.id(),
        fs = start(forgotten),
        e = ended.id(),
        es = start(ended),
        r = reused.id(),
        other = start(reused).parse::<u64>().unwrap() - 1,
        u = unfinished.id(),
        us = start(unfinished),
    ));
    assert!(is_alive(forgotten.id()), "forgotten");
    assert!(is_alive(reused.id()), "another process that has the id now");
    assert!(is_alive(unfinished.id()), "a line without its end");
    assert!(!is_alive(ended.id()), "the one that was still watched");
    for sleeper in &mut sleepers {
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}

#[test]
fn a_process_that_leads_no_group_is_never_signalled() {
    let mut ours = Command::new("sleep").arg("1000").spawn().unwrap();
    guard_told(&format!(
        "watch {} {}\n",
        ours.id(),
        start_time(ours.id()).unwrap()
    ));
    assert!(is_alive(ours.id()));
    ours.kill().unwrap();
    ours.wait().unwrap();
}

#[tokio::test]
async fn a_child_runs_writes_its_log_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let guard = Guard::start(Path::new(EXE)).await.unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, "before\n").unwrap();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "echo out; echo err >&2; cat; exec sleep 1000"]);
    let child = guard.spawn("talker", command, &log).unwrap();
    until("it has written", || child.output(9) == "out\nerr").await;
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "before\nout\nerr\n");
    assert_eq!(child.name(), "talker");
    assert!(child.try_wait().unwrap().is_none());

    assert_eq!(child.stop().await.unwrap().signal(), Some(Signal::TERM.as_raw()));
    assert!(!is_alive(child.pid()));
    // All of these are harmless once it has ended.
    child.signal(Signal::KILL).unwrap();
    assert!(child.kill9().await.unwrap().signal().is_some());
}

#[tokio::test]
async fn a_child_is_seen_to_end_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let guard = Guard::start(Path::new(EXE)).await.unwrap();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "exit 7"]);
    let child = guard.spawn("short", command, &dir.path().join("log")).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
}

#[tokio::test]
async fn a_stopped_child_still_stops_and_an_unwilling_one_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let guard = Guard::start(Path::new(EXE)).await.unwrap();
    let mut command = tokio::process::Command::new("sleep");
    command.arg("1000");
    let frozen = guard.spawn("frozen", command, &dir.path().join("log")).unwrap();
    frozen.signal(Signal::STOP).unwrap();
    assert_eq!(frozen.stop().await.unwrap().signal(), Some(Signal::TERM.as_raw()));

    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "trap '' TERM; echo on; while :; do sleep 1; done"]);
    let unwilling = guard
        .spawn("unwilling", command, &dir.path().join("log"))
        .unwrap();
    until("it has set its trap", || unwilling.output(1) == "on").await;
    let status = unwilling.stop_within(Duration::from_millis(100)).await.unwrap();
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
}

#[tokio::test]
async fn what_a_child_started_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let guard = Guard::start(Path::new(EXE)).await.unwrap();
    for how in ["stop", "drop", "exit"] {
        let mut command = tokio::process::Command::new("sh");
        let then = if how == "exit" { "exit" } else { "wait" };
        command.args(["-c", &format!("sleep 1000 & echo $!; {then}")]);
        let child = guard.spawn("parent", command, &dir.path().join(how)).unwrap();
        until("it has started the other", || {
            child.output(1).parse::<u32>().is_ok()
        })
        .await;
        let grandchild: u32 = child.output(1).parse().unwrap();
        match how {
            "stop" => drop(child.stop().await.unwrap()),
            "exit" => drop(child.wait().await.unwrap()),
            _ => drop(child),
        }
        until(how, || !is_alive(grandchild)).await;
    }
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let guard = Guard::start(Path::new(EXE)).await.unwrap();
    let command = tokio::process::Command::new("/nowhere/etcd");
    let error = guard.spawn("etcd", command, &dir.path().join("log")).unwrap_err();
    assert!(error.to_string().contains("etcd (/nowhere/etcd)"), "{error}");
}

#[tokio::test]
async fn a_binary_without_the_subcommand_is_no_guard() {
    let error = Guard::start(Path::new("/bin/true")).await.unwrap_err();
    assert!(error.to_string().contains("`guard` a subcommand"), "{error}");
    assert!(Guard::start(Path::new("/nowhere")).await.is_err());
}
