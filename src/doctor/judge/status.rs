//! What the controller said, and what happened to the resource, becomes a step. Pure.

use std::time::Duration;

use jiff::{SpanRound, Timestamp, Unit};
use kube::ResourceExt;

use crate::{
    api::{WhatsAppChannel, conditions::types},
    doctor::{
        gather::ApiProblem,
        hints::hint,
        report::{Outcome, Step, StepId},
    },
};

/// A spec that the controller has not looked at for longer is not merely new.
const LATE: Duration = Duration::from_secs(120);
/// What the controller said last.
pub(in crate::doctor) fn controller(channel: &WhatsAppChannel, now: Timestamp) -> Step {
    let id = StepId::Controller;
    let running = "see that the controller runs and watches this namespace (watchNamespaces of the configuration): \
                   kubectl get pods -A -l app.kubernetes.io/component=controller";
    let observed = channel
        .status
        .as_ref()
        .and_then(|status| status.observed_generation)
        .unwrap_or(-1);
    let generation = channel.metadata.generation.unwrap_or_default();
    if observed < generation {
        let since = changed(channel).map(|at| now.duration_since(at));
        let age = since.map_or_else(String::new, |since| {
            format!(", {} after the change", words(since))
        });
        let message = if observed < 0 {
            format!("the controller has not seen this channel yet{age}")
        } else {
            format!(
                "the controller is behind: it speaks of generation {observed}, the resource has {generation}{age}"
            )
        };
        let late = since.is_none_or(|since| Duration::try_from(since).unwrap_or_default() > LATE);
        return if late {
            Step::fail(id, message, running)
        } else {
            Step::warn(id, message, "try again in a moment")
        };
    }
    let conditions = channel.status.iter().flat_map(|status| &status.conditions);
    let Some(ready) = conditions
        .clone()
        .find(|condition| condition.type_ == types::READY)
    else {
        return Step::fail(id, "the status has no Ready condition", running);
    };
    let age = words(now.duration_since(ready.last_transition_time.0));
    let message = format!(
        "Ready is {} for {age}: {}: {}",
        ready.status, ready.reason, ready.message
    );
    let hint = hint(&ready.reason).unwrap_or_default();
    let mut step = match ready.status.as_str() {
        "True" => Step::ok(id, message),
        "False" => Step::fail(id, message, hint),
        _ => Step::warn(id, message, hint),
    };
    for condition in conditions {
        let only_while_true =
            [types::RECONCILING, types::STALLED, types::SUSPENDED].contains(&condition.type_.as_str());
        if condition.type_ != types::READY && (condition.status != "True" || only_while_true) {
            step = step.detail(format!(
                "{} is {}: {}: {}",
                condition.type_, condition.status, condition.reason, condition.message
            ));
        }
    }
    if step.outcome == Outcome::Ok && channel.spec.suspend == Some(true) {
        step = Step {
            outcome: Outcome::Warn,
            ..step
        }
        .next("spec.suspend is true: the controller leaves the channel alone");
    }
    step
}

/// When the spec was written last, as far as the API server keeps it.
fn changed(channel: &WhatsAppChannel) -> Option<Timestamp> {
    let entries = channel.metadata.managed_fields.iter().flatten();
    entries
        .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
        .filter_map(|entry| entry.time.as_ref().map(|at| at.0))
        .max()
        .or_else(|| channel.creation_timestamp().map(|at| at.0))
}

/// One event, for people.
pub(in crate::doctor) struct Happened {
    pub at: Option<Timestamp>,
    pub kind: String,
    pub reason: String,
    pub note: String,
}

/// How many events are shown.
const EVENTS: usize = 5;

/// The events of the resource, oldest first.
pub(in crate::doctor) fn events(read: Result<Vec<Happened>, ApiProblem>, now: Timestamp) -> Step {
    let events = match read {
        Ok(events) => events,
        Err(ApiProblem::Forbidden(right)) => {
            return Step::warn(
                StepId::Events,
                format!("events can't be read: you lack the right to {}", right.words()),
                format!("ask for that right; check it with: {}", right.check()),
            );
        }
        Err(_) => return Step::warn(StepId::Events, "events can't be read", "try again"),
    };
    let mut step = Step::ok(
        StepId::Events,
        match events.len() {
            0 => "none are kept".to_owned(),
            many => format!("{many} kept; the last:"),
        },
    );
    for event in events.iter().rev().take(EVENTS) {
        let age = event
            .at
            .map_or_else(|| "?".to_owned(), |at| words(now.duration_since(at)));
        step = step.detail(format!(
            "{age} ago, {} {}: {}",
            event.kind, event.reason, event.note
        ));
    }
    step
}

/// A span of time in words, to its largest unit or two.
fn words(span: jiff::SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    let whole = jiff::SignedDuration::from_secs(seconds);
    let smallest = match seconds {
        ..120 => Unit::Second,
        120..7200 => Unit::Minute,
        _ => Unit::Hour,
    };
    let rounded = jiff::Span::try_from(whole)
        .and_then(|span| span.round(SpanRound::new().largest(Unit::Hour).smallest(smallest)));
    rounded.map_or_else(|_| format!("{seconds}s"), |span| format!("{span:#}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::{Condition, WhatsAppChannelSpec, WhatsAppChannelStatus};

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A channel of generation 2 that was written an hour ago, with a status that speaks of this one.
    fn channel(observed: i64, ready: (&str, &str)) -> WhatsAppChannel {
        let mut channel = WhatsAppChannel::new("shop-es", WhatsAppChannelSpec::example());
        channel.metadata.generation = Some(2);
        channel.metadata.creation_timestamp = Some(Time(at("2026-11-22T11:00:00Z")));
        channel.status = Some(WhatsAppChannelStatus {
            observed_generation: Some(observed),
            conditions: vec![Condition {
                type_: types::READY.into(),
                status: ready.0.into(),
                reason: ready.1.into(),
                message: "as said".into(),
                observed_generation: Some(observed),
                last_transition_time: Time(at("2026-11-22T09:58:00Z")),
            }],
            ..WhatsAppChannelStatus::default()
        });
        channel
    }

    #[test]
    fn a_controller_that_is_behind_for_long_is_not_running_or_not_watching() {
        let step = controller(&channel(1, ("True", "Succeeded")), at(NOW));
        assert_eq!(step.outcome, Outcome::Fail);
        assert!(
            step.message
                .contains("generation 1, the resource has 2, 1h after the change"),
            "{}",
            step.message
        );
        assert!(step.next.unwrap().contains("watchNamespaces"));
        let step = controller(&channel(-1, ("Unknown", "")), at("2026-11-22T11:00:30Z"));
        assert_eq!(step.outcome, Outcome::Warn, "it may just be new");
        assert!(
            step.message.contains("has not seen this channel yet, 30s"),
            "{}",
            step.message
        );
    }

    #[test]
    fn a_reason_comes_with_its_age_and_its_hint() {
        let step = controller(&channel(2, ("False", "CredentialsRejected")), at(NOW));
        assert_eq!(step.outcome, Outcome::Fail);
        assert_eq!(
            step.message,
            "Ready is False for 2h: CredentialsRejected: as said"
        );
        assert!(step.next.unwrap().contains("Put the right ones into the Secret"));
        let mut suspended = channel(2, ("True", "Succeeded"));
        suspended.spec.suspend = Some(true);
        assert_eq!(controller(&suspended, at(NOW)).outcome, Outcome::Warn);
    }
}
