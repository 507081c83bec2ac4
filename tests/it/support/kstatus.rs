//! What others make of a status: kstatus (Flux, Argo CD, kpt) and `kubectl wait`, by their own rules. Pure.
//!
//! The rules are those of `sigs.k8s.io/cli-utils/pkg/kstatus/status` for a kind that it does not know, and of
//! `kubectl wait --for=condition` since kubernetes/kubernetes#97408.

use serde_json::Value;

/// What kstatus says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kstatus {
    Current,
    InProgress,
    Failed,
    Terminating,
}

/// kstatus's judgement, in its own order.
pub fn kstatus(object: &Value) -> Kstatus {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Kstatus::Terminating;
    }
    let observed = &object["status"]["observedGeneration"];
    if !observed.is_null() && *observed != object["metadata"]["generation"] {
        return Kstatus::InProgress;
    }
    let conditions = conditions(object);
    for condition in &conditions {
        match (text(condition, "type"), text(condition, "status")) {
            ("Reconciling", "True") => return Kstatus::InProgress,
            ("Stalled", "True") => return Kstatus::Failed,
            _ => {}
        }
    }
    match conditions
        .iter()
        .find(|condition| text(condition, "type") == "Ready")
    {
        Some(ready) if text(ready, "status") != "True" => Kstatus::InProgress,
        _ => Kstatus::Current,
    }
}

/// Whether `kubectl wait --for=condition=KIND` would return.
pub fn kubectl_wait(object: &Value, kind: &str) -> bool {
    conditions(object).iter().any(|condition| {
        let observed = [condition, &object["status"]]
            .into_iter()
            .find_map(|place| place["observedGeneration"].as_i64());
        let stale = match (observed, object["metadata"]["generation"].as_i64()) {
            (Some(observed), Some(generation)) => observed < generation,
            _ => false,
        };
        text(condition, "type").eq_ignore_ascii_case(kind)
            && !stale
            && text(condition, "status").eq_ignore_ascii_case("true")
    })
}

/// The conditions of an object.
pub fn conditions(object: &Value) -> Vec<&Value> {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .collect()
}

/// A condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions(object)
        .into_iter()
        .find(|condition| text(condition, "type") == kind)
}

/// A field of a condition, empty where there is none.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

mod tests {
    use serde_json::json;

    use super::*;

    fn object(generation: i64, observed: impl Into<Option<i64>>, conditions: &[(&str, &str)]) -> Value {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status}))
            .collect();
        let mut object =
            json!({"metadata": {"generation": generation}, "status": {"conditions": conditions}});
        if let Some(observed) = observed.into() {
            object["status"]["observedGeneration"] = observed.into();
        }
        object
    }

    #[test]
    fn kstatus_judges_in_its_own_order() {
        let ready = ("Ready", "True");
        let cases = [
            (
                object(2, 1, &[ready]),
                Kstatus::InProgress,
                "an older generation was observed",
            ),
            (
                object(1, 2, &[ready]),
                Kstatus::InProgress,
                "a newer one was: different is different",
            ),
            (
                object(1, 1, &[("Stalled", "True"), ("Reconciling", "True")]),
                Kstatus::Failed,
                "the first in the list",
            ),
            (
                object(1, 1, &[("Reconciling", "True"), ("Stalled", "True")]),
                Kstatus::InProgress,
                "the first in the list",
            ),
            (
                object(1, 1, &[ready, ("Reconciling", "True")]),
                Kstatus::InProgress,
                "Reconciling goes before Ready",
            ),
            (
                object(1, 1, &[ready, ("Stalled", "True")]),
                Kstatus::Failed,
                "Stalled goes before Ready",
            ),
            (
                object(1, 1, &[("Stalled", "False"), ready]),
                Kstatus::Current,
                "an abnormal one that is false says nothing",
            ),
            (
                object(1, 1, &[("Ready", "False")]),
                Kstatus::InProgress,
                "never Failed",
            ),
            (
                object(1, 1, &[("Ready", "Unknown")]),
                Kstatus::InProgress,
                "never Failed",
            ),
            (
                object(1, None, &[ready]),
                Kstatus::Current,
                "nothing observed is told",
            ),
            (object(1, 1, &[]), Kstatus::Current, "no condition"),
            (
                json!({"metadata": {"generation": 1}}),
                Kstatus::Current,
                "no status at all",
            ),
        ];
        for (object, expected, why) in cases {
            assert_eq!(kstatus(&object), expected, "{why}: {object}");
        }
        let mut deleted = object(2, 1, &[("Stalled", "True")]);
        deleted["metadata"]["deletionTimestamp"] = json!("2026-11-22T10:00:00Z");
        assert_eq!(kstatus(&deleted), Kstatus::Terminating);
    }

    #[test]
    fn kubectl_wait_wants_the_condition_to_speak_of_the_present_generation() {
        let mut own = object(2, 2, &[("Ready", "True")]);
        assert!(kubectl_wait(&own, "Ready") && !kubectl_wait(&own, "Accepted"));
        own["status"]["conditions"][0]["observedGeneration"] = json!(1);
        assert!(!kubectl_wait(&own, "Ready"), "the condition's own goes first");
        assert!(!kubectl_wait(&object(2, 1, &[("Ready", "True")]), "Ready"));
        assert!(!kubectl_wait(&object(2, 2, &[("Ready", "False")]), "Ready"));
        assert!(
            kubectl_wait(&object(2, None, &[("Ready", "True")]), "Ready"),
            "where nothing is told"
        );
    }
}
