//! The arrows between modules hold: what is pure knows no clock, socket, task or Kubernetes client.

use std::{fs, path::Path};

use aura_whatsapp_operator::failpoint::Place;

use crate::support::project;

/// Modules that only compute, and what none of them may name.
const PURE: &[&str] = &[
    "src/api",
    "src/whatsapp",
    "src/convert",
    "src/keys",
    "src/aura/activity.rs",
    "src/delivery/age.rs",
    "src/delivery/backlog.rs",
    "src/delivery/backoff.rs",
    "src/delivery/channels.rs",
    "src/delivery/circuit.rs",
    "src/delivery/ends.rs",
    "src/delivery/fair.rs",
    "src/delivery/key.rs",
    "src/journal/ids/shelf.rs",
    "src/journal/ids/table.rs",
    "src/journal/ids/filter.rs",
    "src/journal/ids/format.rs",
    "src/journal/ids/plan.rs",
    "src/delivery/lanes.rs",
    "src/delivery/order.rs",
    "src/delivery/pace.rs",
    "src/delivery/people.rs",
    "src/delivery/serve.rs",
    "src/delivery/standing.rs",
    "src/delivery/withheld.rs",
    "src/lineage.rs",
    "src/delivery/timers.rs",
    "src/delivery/types.rs",
    "src/delivery/waiting.rs",
    "src/controller/circuit.rs",
    "src/controller/contest.rs",
    "src/controller/decide.rs",
    "src/controller/delivering.rs",
    "src/controller/limit.rs",
    "src/controller/roster.rs",
    "src/controller/object_key.rs",
    "src/controller/kept.rs",
    "src/controller/workqueue.rs",
    "src/yaml.rs",
    "src/controller/statuses.rs",
    "src/controller/status.rs",
    "src/controller/schedule.rs",
    "src/controller/webhook.rs",
    "src/controller/lease/decide.rs",
    "src/controller/lease/timing.rs",
    "src/controller/inspect.rs",
    "src/controller/preview.rs",
    "src/controller/roll.rs",
    "src/doctor/judge",
    "src/doctor/report.rs",
    "src/doctor/hints.rs",
    "src/doctor/conformance/difference.rs",
    "src/doctor/conformance/evidence.rs",
    "src/doctor/conformance/findings.rs",
    "src/doctor/conformance/report.rs",
    "src/bridge/routes.rs",
    "src/bridge/views.rs",
    "src/journal/gather.rs",
    "src/bridge/auth.rs",
    "src/bridge/entry.rs",
    "src/bridge/issued.rs",
    "src/bridge/lineage/kept.rs",
    "src/bridge/trail.rs",
    "src/bridge/statuses/decide.rs",
    "src/bridge/messages/view.rs",
    "src/bridge/messages/export.rs",
    "src/cli/messages/table.rs",
    "src/bridge/refusing.rs",
    "src/telemetry/context.rs",
    "src/telemetry/w3c.rs",
    "src/server/address.rs",
    "src/server/framing.rs",
    "src/server/pulse.rs",
    "src/server/throttle.rs",
    "src/sim/apiproxy/request.rs",
    "src/sim/ledger.rs",
    "src/validate",
    "src/import",
    "src/plan/judge.rs",
    "src/plan/overlay.rs",
    "src/plan/report.rs",
    "src/words.rs",
];
const EFFECTS: &[&str] = &[
    "tokio::",
    "reqwest",
    "hyper",
    "axum",
    "kube::Api",
    "kube::Client",
    "kube::runtime",
    "std::fs",
    "std::net",
    "SystemTime",
    "Instant::now",
    "Timestamp::now",
    "fastrand",
];

/// Which module may not look at which.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "src/api",
        &[
            "crate::config",
            "crate::kernel",
            "crate::controller",
            "crate::bridge",
            "crate::journal",
            "crate::cluster",
        ],
    ),
    (
        "src/whatsapp",
        &[
            "crate::aura",
            "crate::kernel",
            "crate::api",
            "crate::bridge",
            "crate::controller",
        ],
    ),
    (
        "src/journal",
        &["crate::api", "crate::bridge", "crate::delivery", "crate::kernel"],
    ),
    // What both roles agree on knows neither.
    (
        "src/lineage.rs",
        &[
            "crate::bridge",
            "crate::controller",
            "crate::journal",
            "crate::api",
        ],
    ),
    (
        "src/kernel",
        &[
            "crate::controller",
            "crate::bridge",
            "crate::cluster",
            "crate::sim",
        ],
    ),
    (
        "src/controller",
        &[
            "crate::bridge",
            "crate::sim",
            "crate::journal",
            "crate::doctor",
            "crate::plan",
        ],
    ),
    (
        "src/bridge",
        &["crate::controller", "crate::sim", "crate::doctor"],
    ),
    (
        "src/doctor",
        &["crate::bridge", "crate::sim", "crate::journal", "crate::cli"],
    ),
    (
        "src/plan",
        &["crate::bridge", "crate::sim", "crate::journal", "crate::cli"],
    ),
    // Who leads is decided without a look at what is led.
    (
        "src/controller/lease",
        &[
            "crate::api",
            "crate::config",
            "crate::kernel",
            "crate::keys",
            "super::super",
        ],
    ),
    (
        "src/cluster",
        &[
            "crate::controller",
            "crate::bridge",
            "crate::config",
            "crate::sim",
        ],
    ),
    ("src/bridge", &["crate::controller", "crate::sim"]),
    (
        "src/delivery",
        &["crate::bridge", "crate::controller", "crate::kernel"],
    ),
    (
        "src/validate",
        &[
            "crate::controller",
            "crate::bridge",
            "crate::cluster",
            "crate::kernel",
            "crate::import",
            "crate::cli",
        ],
    ),
    (
        "src/import",
        &[
            "crate::controller",
            "crate::bridge",
            "crate::cluster",
            "crate::kernel",
            "crate::cli",
        ],
    ),
    (
        "src/sim/kernel",
        &[
            "crate::kernel",
            "crate::whatsapp",
            "crate::bridge",
            "crate::controller",
        ],
    ),
    (
        "src/sim/apiproxy",
        &[
            "crate::cluster",
            "crate::kernel",
            "crate::bridge",
            "crate::controller",
        ],
    ),
    (
        "src/sim/aura",
        &[
            "crate::aura",
            "crate::convert",
            "crate::bridge",
            "crate::controller",
        ],
    ),
];

fn sources(path: &Path, found: &mut Vec<(String, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let name = path.strip_prefix(project()).unwrap().display().to_string();
        found.push((name, fs::read_to_string(path).unwrap()));
    }
}

/// The code of a file that is shipped: no comments, no tests.
fn shipped(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn offences(rules: &[(&str, &[&str])]) -> Vec<String> {
    let mut offences = Vec::new();
    for (place, forbidden) in rules {
        let mut files = Vec::new();
        sources(&project().join(place), &mut files);
        assert!(!files.is_empty(), "{place} is not there: correct this list");
        for (file, text) in files.iter().filter(|(file, _)| !file.contains("tests")) {
            let code = shipped(text);
            for word in *forbidden {
                if code.contains(word) {
                    offences.push(format!("{file} names {word}"));
                }
            }
        }
    }
    offences
}

#[test]
fn a_pure_module_has_no_effects() {
    let rules: Vec<(&str, &[&str])> = PURE.iter().map(|place| (*place, EFFECTS)).collect();
    assert_eq!(offences(&rules), Vec::<String>::new());
}

#[test]
fn modules_look_only_where_they_may() {
    assert_eq!(offences(ARROWS), Vec::<String>::new());
}

/// Each failpoint is called at one place, by one line: what the crash tests end the bridge at is all there.
#[test]
fn each_failpoint_is_called_once() {
    let mut files = Vec::new();
    sources(&project().join("src"), &mut files);
    let code: String = files
        .iter()
        .filter(|(file, _)| file != "src/failpoint.rs")
        .map(|(_, text)| shipped(text))
        .collect();
    let called = |line: &str| {
        let call = line.trim().strip_prefix("crate::failpoint::")?;
        let call = call.strip_prefix("at!(").or(call.strip_prefix("after!("))?;
        Some(call.strip_suffix(");")?.to_owned())
    };
    let mut calls: Vec<String> = code.lines().filter_map(called).collect();
    calls.sort();
    let mut places: Vec<String> = Place::ALL.iter().map(|place| format!("{place:?}")).collect();
    places.sort();
    assert_eq!(calls, places);
    assert_eq!(
        code.matches("failpoint::").count(),
        places.len(),
        "called otherwise"
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut files = Vec::new();
    sources(&project().join("src"), &mut files);
    sources(&project().join("tests"), &mut files);
    let silent: Vec<_> = files
        .iter()
        .filter(|(file, text)| !text.starts_with("//!") && !file.ends_with("bin/aura-dev.rs"))
        .collect();
    assert!(
        silent.is_empty(),
        "{:?}",
        silent.iter().map(|(file, _)| file).collect::<Vec<_>>()
    );
    assert!(files.len() > 50);
}
