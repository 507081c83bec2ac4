//! How a verdict is reported: the status of the resource. Pure.
//!
//! The rules of kstatus: `observedGeneration` is always that of the spec that was judged; `Reconciling` and
//! `Stalled` exist only while true; a condition's time moves only when its status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    contest,
    decide::{Before, Left, Next, Stands, Verdict, Verified},
};
use crate::api::{
    Condition, LeftAlone, WebhookKeyStatus, WebhookMode, WhatsAppChannelStatus,
    conditions::{Reason, types},
};

/// What a status needs beside the verdict.
pub(super) struct Facts<'a> {
    pub generation: i64,
    pub now: Timestamp,
    pub secret_version: Option<&'a str>,
    /// A value of the Secret had white space around it.
    pub spaced: Option<&'a str>,
    /// The URL that Kernel is told, masked.
    pub webhook_url: Option<String>,
    pub key: Key<'a>,
    pub requested_at: Option<&'a str>,
    /// How long the key before a new one is still taken.
    pub grace: jiff::SignedDuration,
}

/// The marks of the key that Kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Derived from the installation key of this fingerprint.
    Derived { generation: u64, id: &'a str },
    /// Issued elsewhere: the version of its Secret.
    Issued { version: Option<&'a str> },
    /// That of the system before: no matter of the bridge's.
    Legacy { version: Option<&'a str> },
}

impl Key<'_> {
    /// Whether a status says that Kernel was told this key; of a derived one, as derived from whichever installation key.
    fn was_told(&self, status: &WhatsAppChannelStatus) -> bool {
        let told = status.webhook_key.as_ref();
        match *self {
            Self::Derived { generation, .. } => {
                told.is_some_and(|told| told.generation == i64::try_from(generation).ok())
            }
            Self::Issued { version } => {
                told.is_some_and(|told| told.secret_version.as_deref() == version && version.is_some())
            }
            Self::Legacy { version } => status.observed_api_key_version.as_deref() == version,
        }
    }

    /// Whether a status says that Kernel was told a key derived from the installation key in force, if it is derived.
    fn is_of_this_installation_key(&self, status: &WhatsAppChannelStatus) -> bool {
        let told = status.webhook_key.as_ref();
        match *self {
            Self::Derived { id, .. } => {
                told.is_some_and(|told| told.installation_key_id.as_deref() == Some(id))
            }
            Self::Issued { .. } | Self::Legacy { .. } => true,
        }
    }

    /// Whether the bridge can know this key by what a status says: see `Announced`.
    pub fn is_announced(&self, status: &WhatsAppChannelStatus) -> bool {
        match *self {
            // It takes the next generation at any time. Where the status is lost nobody knows what it was told.
            Self::Derived { generation, .. } => status
                .webhook_key
                .as_ref()
                .and_then(|told| u64::try_from(told.generation?).ok())
                .map_or(generation == 1, |told| told.abs_diff(generation) <= 1),
            Self::Issued { version } => status.observed_api_key_version.as_deref() == version,
            Self::Legacy { .. } => true,
        }
    }
}

/// What Kernel was to be told, once.
pub(super) struct Told<'a> {
    pub mode: WebhookMode,
    pub generation: i64,
    pub secret_version: Option<&'a str>,
    /// The URL, masked.
    pub webhook_url: Option<String>,
    pub key: Key<'a>,
}

impl Told<'_> {
    /// Whether a status says that Kernel was told just this once, whatever has failed since. What Kernel holds instead
    /// was set by somebody else then.
    pub fn was_set(&self, status: &WhatsAppChannelStatus) -> bool {
        status.registered_at.is_some()
            && status.webhook_url == self.webhook_url
            && self.key.was_told(status)
            && self.key.is_of_this_installation_key(status)
    }

    /// How much of this a status says that Kernel was told.
    pub fn stands_in(&self, status: &WhatsAppChannelStatus) -> Stands {
        let reason = match self.mode {
            WebhookMode::Manage => Reason::Succeeded,
            WebhookMode::Legacy => Reason::LegacyRegistered,
            // Nothing is registered; that all was found in order holds as long.
            WebhookMode::Observe => Reason::Observed,
        };
        let observes = self.mode == WebhookMode::Observe;
        let told = || status.webhook_url == self.webhook_url && self.key.was_told(status);
        let good =
            || ready(status).is_some_and(|ready| ready.status == "True" && ready.reason == reason.as_str());
        let same_secret =
            self.secret_version.is_some() && status.observed_secret_version.as_deref() == self.secret_version;
        if !(status.observed_generation == Some(self.generation) && (observes || told()) && good()) {
            Stands::Nothing
        } else if !same_secret {
            Stands::ButForSecret
        } else if !(observes || self.key.is_of_this_installation_key(status)) {
            Stands::ButForKey
        } else {
            Stands::Wholly
        }
    }
}

impl<'a> Before<'a> {
    /// What a status says to the next pass over this generation of the spec. `asked`: somebody has asked for another
    /// look. `names_legacy`: the URL that it names is the environment's callback of the system before.
    pub fn of(status: &'a WhatsAppChannelStatus, generation: i64, asked: bool, names_legacy: bool) -> Self {
        let ready = ready(status);
        let was = |reason: Reason| ready.is_some_and(|ready| ready.reason == reason.as_str());
        let left = status.left_alone.as_ref().and_then(|left| {
            let reason = [Reason::WebhookForeign, Reason::WebhookContested]
                .into_iter()
                .find(|reason| reason.as_str() == left.reason)?;
            Some(Left {
                reason,
                same_generation: left.generation == generation,
            })
        });
        let verified = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == types::WEBHOOK_VERIFIED);
        Self {
            message: ready.map(|ready| ready.message.as_str()),
            reason: ready.map(|ready| ready.reason.as_str()),
            was_legacy: was(Reason::LegacyRegistered) || names_legacy,
            taken_over: status.taken_over.as_ref(),
            contested: !asked
                && left.is_some_and(|left| left.reason == Reason::WebhookContested && left.same_generation),
            left,
            // Verified, or verified until it was missed several times.
            readable: verified.is_some_and(|verified| {
                verified.status == "True" || verified.reason == Reason::UpstreamUnavailable.as_str()
            }),
        }
    }
}

/// How long a webhook's key is still taken after Kernel was told of the next one: calls may be on their way.
pub(super) const KEY_GRACE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Conditions that this program owns; others are left as they are.
const OWNED: &[&str] = &[
    types::READY,
    types::ACCEPTED,
    types::CREDENTIALS_VALID,
    types::WEBHOOK_REGISTERED,
    types::WEBHOOK_VERIFIED,
    types::RECONCILING,
    types::STALLED,
    types::SUSPENDED,
];

/// The order in which the steps are taken, and so in which conditions fail.
const STEPS: [&str; 3] = [
    types::ACCEPTED,
    types::CREDENTIALS_VALID,
    types::WEBHOOK_REGISTERED,
];

/// The status after a verdict.
pub(super) fn build(
    old: &WhatsAppChannelStatus,
    verdict: &Verdict,
    facts: &Facts<'_>,
) -> WhatsAppChannelStatus {
    let mut status = old.clone();
    status.observed_generation = Some(facts.generation);
    if let Some(version) = facts.secret_version {
        status.observed_secret_version = Some(version.to_owned());
    }
    if verdict.took_over {
        status.taken_over = Some(contest::replaced(
            old.taken_over.as_ref(),
            facts.generation,
            facts.now,
        ));
    }
    let asked =
        facts.requested_at.is_some() && facts.requested_at != old.last_handled_reconcile_at.as_deref();
    let is_ours = verdict.registered_now || verdict.verified == Verified::Yes;
    let contested = |left: &LeftAlone| left.reason == Reason::WebhookContested.as_str();
    if matches!(verdict.reason, Reason::WebhookForeign | Reason::WebhookContested) {
        status.left_alone = Some(LeftAlone {
            generation: facts.generation,
            reason: verdict.reason.as_str().to_owned(),
        });
    } else if is_ours || (asked && old.left_alone.as_ref().is_some_and(contested)) {
        status.left_alone = None;
    }
    if facts.requested_at.is_some() {
        status.last_handled_reconcile_at = facts.requested_at.map(ToOwned::to_owned);
    }
    // Also what was found right without being set: it may have been set by a run before, or its answer been lost.
    if verdict.registered_now || (verdict.verified == Verified::Yes && verdict.reason != Reason::Observed) {
        record(&mut status, facts, verdict.registered_now);
    }
    status.conditions = conditions(old, verdict, facts);
    status
}

/// The status of a suspended channel: its last Ready stays, observedGeneration goes on.
pub(super) fn suspended(old: &WhatsAppChannelStatus, facts: &Facts<'_>) -> WhatsAppChannelStatus {
    let mut status = old.clone();
    status.observed_generation = Some(facts.generation);
    let mut conditions: Vec<Condition> = old
        .conditions
        .iter()
        .filter(|condition| {
            !matches!(
                condition.type_.as_str(),
                types::RECONCILING | types::STALLED | types::SUSPENDED
            )
        })
        .cloned()
        .map(|condition| Condition {
            // Others say themselves what they have seen.
            observed_generation: if OWNED.contains(&condition.type_.as_str()) {
                Some(facts.generation)
            } else {
                condition.observed_generation
            },
            ..condition
        })
        .collect();
    let message = "spec.suspend is true: the controller leaves the channel alone; messages are still routed";
    if !conditions.iter().any(|condition| condition.type_ == types::READY) {
        conditions.push(condition(
            old,
            types::READY,
            "Unknown",
            Reason::Suspended,
            message,
            facts,
        ));
    }
    conditions.push(condition(
        old,
        types::SUSPENDED,
        "True",
        Reason::Suspended,
        message,
        facts,
    ));
    status.conditions = conditions;
    status
}

/// The status that lets the bridge know of a key before Kernel is told of it.
pub(super) fn announced(old: &WhatsAppChannelStatus, facts: &Facts<'_>) -> WhatsAppChannelStatus {
    let mut status = old.clone();
    if let Key::Issued { version } = facts.key {
        status.observed_api_key_version = version.map(ToOwned::to_owned);
    }
    status
}

/// Records what Kernel holds: the URL and the marks of its key.
fn record(status: &mut WhatsAppChannelStatus, facts: &Facts<'_>, registered_now: bool) {
    if registered_now {
        status.registered_at = Some(seconds(facts.now));
    }
    status.webhook_url.clone_from(&facts.webhook_url);
    let (generation, id, version) = match facts.key {
        Key::Derived { generation, id } => (i64::try_from(generation).ok(), Some(id), None),
        Key::Issued { version } => (None, None, version),
        Key::Legacy { version } => {
            // Kernel calls the system before: which of our keys it was told stays as it was, for the way back.
            status.observed_api_key_version = version.map(ToOwned::to_owned);
            return;
        }
    };
    status.observed_api_key_version = version.map(ToOwned::to_owned);
    let before = status.webhook_key.take().unwrap_or_default();
    let first = before == WebhookKeyStatus::default();
    let same = before.generation == generation && before.secret_version.as_deref() == version;
    // The first of a channel has none before it; where the status was lost, nobody knows: its grace says so.
    let lost = first && generation.is_some_and(|generation| generation > 1);
    let grace = || facts.now.checked_add(facts.grace).ok().map(seconds);
    let (previous_generation, previous_until) = if lost {
        (None, grace())
    } else if first || same {
        (before.previous_generation, before.previous_until)
    } else {
        (before.generation, grace())
    };
    status.webhook_key = Some(WebhookKeyStatus {
        generation,
        installation_key_id: id.map(ToOwned::to_owned),
        secret_version: version.map(ToOwned::to_owned),
        previous_generation,
        previous_until,
    });
}

/// Times in a status have whole seconds: that is what the API server keeps.
fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn conditions(old: &WhatsAppChannelStatus, verdict: &Verdict, facts: &Facts<'_>) -> Vec<Condition> {
    let ok = verdict.reason.is_good();
    let failing = (!ok).then(|| verdict.reason.condition());
    let make = |kind: &str, value: &str, reason: Reason, message: &str| {
        condition(old, kind, value, reason, message, facts)
    };
    let ready = if ok { "True" } else { "False" };
    let mut conditions = vec![make(types::READY, ready, verdict.reason, &verdict.message)];
    let mut before_failure = true;
    for step in STEPS {
        conditions.push(if failing == Some(step) {
            before_failure = false;
            make(step, "False", verdict.reason, &verdict.message)
        } else if !before_failure {
            make(
                step,
                "Unknown",
                Reason::Progressing,
                "not looked at: an earlier step failed",
            )
        } else if step == types::WEBHOOK_REGISTERED {
            let value = if verdict.reason == Reason::Observed {
                "Unknown"
            } else {
                "True"
            };
            make(step, value, verdict.reason, &verdict.message)
        } else if step == types::CREDENTIALS_VALID && !ok && !verdict.authenticated {
            make(
                step,
                "Unknown",
                Reason::Progressing,
                "Kernel's auth server has not been heard in this attempt",
            )
        } else {
            match (step == types::ACCEPTED, facts.spaced) {
                (true, _) => make(step, "True", Reason::Succeeded, "the channel is accepted"),
                // Without a look at the Secret, what the last one said of it still stands.
                (false, _) if !verdict.authenticated => keep(old, step, facts)
                    .filter(|kept| kept.status == "True")
                    .unwrap_or_else(|| make(step, "True", Reason::Succeeded, "Kernel takes the credentials")),
                (false, None) => make(step, "True", Reason::Succeeded, "Kernel takes the credentials"),
                (false, Some(secret)) => make(
                    step,
                    "True",
                    Reason::Succeeded,
                    &format!(
                        "Kernel takes the credentials; the white space around a value in Secret {secret:?} is ignored"
                    ),
                ),
            }
        });
    }
    conditions.push(match verdict.verified {
        Verified::Yes => make(types::WEBHOOK_VERIFIED, "True", Reason::Succeeded, "Kernel was read back and holds our URL"),
        Verified::Unsupported => make(
            types::WEBHOOK_VERIFIED,
            "Unknown",
            Reason::ReadBackUnsupported,
            "Kernel can't be read back: the webhook is set on change and once a day; another party's change is not seen",
        ),
        Verified::Missed => make(
            types::WEBHOOK_VERIFIED,
            "Unknown",
            Reason::UpstreamUnavailable,
            "Kernel could not be read back several times in a row; the webhook was ours before",
        ),
        Verified::AsBefore => keep(old, types::WEBHOOK_VERIFIED, facts).unwrap_or_else(|| {
            make(types::WEBHOOK_VERIFIED, "Unknown", Reason::Progressing, "Kernel has not been read back yet")
        }),
        Verified::No => make(types::WEBHOOK_VERIFIED, "Unknown", Reason::Progressing, "Kernel has not been read back"),
    });
    if verdict.reason.is_stalled() {
        conditions.push(make(types::STALLED, "True", verdict.reason, &verdict.message));
    } else if !ok && !matches!(verdict.next, Next::AtMoment) {
        conditions.push(make(
            types::RECONCILING,
            "True",
            Reason::ProgressingWithRetry,
            &verdict.message,
        ));
    }
    conditions.extend(
        old.conditions
            .iter()
            .filter(|one| !OWNED.contains(&one.type_.as_str()))
            .cloned(),
    );
    conditions
}

/// A condition as it was before.
fn keep(old: &WhatsAppChannelStatus, kind: &str, facts: &Facts<'_>) -> Option<Condition> {
    let kept = old.conditions.iter().find(|condition| condition.type_ == kind)?;
    Some(Condition {
        observed_generation: Some(facts.generation),
        ..kept.clone()
    })
}

fn condition(
    old: &WhatsAppChannelStatus,
    kind: &str,
    value: &str,
    reason: Reason,
    message: &str,
    facts: &Facts<'_>,
) -> Condition {
    let before = old
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == value);
    Condition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: reason.as_str().to_owned(),
        message: message.to_owned(),
        observed_generation: Some(facts.generation),
        last_transition_time: before.map_or_else(
            || seconds(facts.now),
            |before| before.last_transition_time.clone(),
        ),
    }
}

/// A status's Ready condition.
pub(super) fn ready(status: &WhatsAppChannelStatus) -> Option<&Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == types::READY)
}

/// Whether the status says that Kernel can't be read back.
pub(super) fn is_blind(status: &WhatsAppChannelStatus) -> bool {
    status
        .conditions
        .iter()
        .any(|condition| condition.reason == Reason::ReadBackUnsupported.as_str())
}

/// Whether two statuses say the same: the order of conditions, which others may change, says nothing.
pub(super) fn same(a: &WhatsAppChannelStatus, b: &WhatsAppChannelStatus) -> bool {
    let sorted = |status: &WhatsAppChannelStatus| {
        let mut status = status.clone();
        status
            .conditions
            .sort_by(|one, other| one.type_.cmp(&other.type_));
        status
    };
    sorted(a) == sorted(b)
}

/// The conditions of a status that this program owns: what it sends in a server-side apply.
pub(super) fn owned(status: &WhatsAppChannelStatus) -> WhatsAppChannelStatus {
    let mut owned = status.clone();
    owned
        .conditions
        .retain(|condition| OWNED.contains(&condition.type_.as_str()));
    owned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(generation: i64, at: &str) -> Facts<'static> {
        Facts {
            generation,
            now: at.parse().unwrap(),
            secret_version: Some("7"),
            webhook_url: Some("https://h/?apikey=****".into()),
            spaced: None,
            key: Key::Derived {
                generation: 1,
                id: "abcd",
            },
            requested_at: None,
            grace: KEY_GRACE,
        }
    }

    fn verdict(reason: Reason, next: Next) -> Verdict {
        Verdict {
            reason,
            message: "m".into(),
            verified: Verified::Yes,
            registered_now: false,
            took_over: false,
            authenticated: true,
            next,
        }
    }

    fn of<'a>(status: &'a WhatsAppChannelStatus, kind: &str) -> Option<(&'a str, &'a str)> {
        let found = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)?;
        Some((found.status.as_str(), found.reason.as_str()))
    }

    const T1: &str = "2026-11-22T10:00:00Z";
    const T2: &str = "2026-11-22T11:00:00.7Z";

    #[test]
    fn a_success_is_ready_and_nothing_else_is_said() {
        let done = Verdict {
            registered_now: true,
            ..verdict(Reason::Succeeded, Next::AtMoment)
        };
        let status = build(&WhatsAppChannelStatus::default(), &done, &facts(3, T1));
        for kind in [
            types::READY,
            types::ACCEPTED,
            types::CREDENTIALS_VALID,
            types::WEBHOOK_REGISTERED,
        ] {
            assert_eq!(of(&status, kind), Some(("True", "Succeeded")), "{kind}");
        }
        assert_eq!(
            (of(&status, types::STALLED), of(&status, types::RECONCILING)),
            (None, None)
        );
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.webhook_key.unwrap().generation, Some(1));
    }

    #[test]
    fn the_same_verdict_changes_nothing_so_nothing_is_written() {
        let done = verdict(Reason::Succeeded, Next::AtMoment);
        let first = build(&WhatsAppChannelStatus::default(), &done, &facts(3, T1));
        assert_eq!(build(&first, &done, &facts(3, T2)), first);
    }

    #[test]
    fn a_webhook_that_was_found_right_is_recorded_although_nothing_was_set() {
        let found = verdict(Reason::Succeeded, Next::AtMoment);
        let status = build(&WhatsAppChannelStatus::default(), &found, &facts(1, T1));
        assert_eq!(status.webhook_url.as_deref(), Some("https://h/?apikey=****"));
        assert_eq!(status.webhook_key.as_ref().unwrap().generation, Some(1));
        assert!(status.registered_at.is_none());
        // A registration whose answer was lost: the key before it gets its grace from when this is seen.
        let next = build(
            &status,
            &found,
            &Facts {
                key: Key::Derived {
                    generation: 2,
                    id: "abcd",
                },
                ..facts(2, T2)
            },
        );
        assert!(next.webhook_key.unwrap().previous_until.is_some());
    }

    #[test]
    fn credentials_are_not_called_valid_before_kernel_took_them() {
        let next = Next::Retry { after: None };
        let silent = Verdict {
            authenticated: false,
            ..verdict(Reason::UpstreamUnavailable, next)
        };
        let status = build(&WhatsAppChannelStatus::default(), &silent, &facts(1, T1));
        assert_eq!(
            of(&status, types::CREDENTIALS_VALID),
            Some(("Unknown", "Progressing"))
        );
        let heard = verdict(Reason::UpstreamUnavailable, next);
        let status = build(&WhatsAppChannelStatus::default(), &heard, &facts(1, T1));
        assert_eq!(of(&status, types::CREDENTIALS_VALID), Some(("True", "Succeeded")));
    }

    #[test]
    fn every_failing_reason_is_in_progress_or_stalled_and_never_both() {
        for reason in Reason::ALL {
            if reason.is_good() {
                continue;
            }
            let next = if reason.is_stalled() {
                Next::OnChange
            } else {
                Next::Retry { after: None }
            };
            let status = build(
                &WhatsAppChannelStatus::default(),
                &verdict(*reason, next),
                &facts(1, T1),
            );
            assert_eq!(of(&status, types::READY), Some(("False", reason.as_str())));
            assert_eq!(
                of(&status, types::STALLED).is_some(),
                reason.is_stalled(),
                "{reason}"
            );
            assert_ne!(
                of(&status, types::STALLED).is_some(),
                of(&status, types::RECONCILING).is_some(),
                "{reason}"
            );
            assert_eq!(of(&status, reason.condition()), Some(("False", reason.as_str())));
        }
    }

    #[test]
    fn the_steps_after_a_failed_one_are_unknown() {
        let failed = verdict(Reason::SecretNotFound, Next::Retry { after: None });
        let status = build(&WhatsAppChannelStatus::default(), &failed, &facts(1, T1));
        assert_eq!(of(&status, types::ACCEPTED), Some(("True", "Succeeded")));
        assert_eq!(
            of(&status, types::WEBHOOK_REGISTERED),
            Some(("Unknown", "Progressing"))
        );
    }

    #[test]
    fn a_transition_moves_the_time_and_a_new_reason_alone_does_not() {
        let status = |old: &WhatsAppChannelStatus, reason, at| {
            build(old, &verdict(reason, Next::Retry { after: None }), &facts(1, at))
        };
        let ready_since =
            |status: &WhatsAppChannelStatus| status.conditions[0].last_transition_time.0.to_string();
        let first = status(&WhatsAppChannelStatus::default(), Reason::RateLimited, T1);
        let second = status(&first, Reason::UpstreamTimeout, T2);
        assert_eq!(ready_since(&second), T1);
        let third = status(&second, Reason::Succeeded, T2);
        assert_eq!(ready_since(&third), "2026-11-22T11:00:00Z");
    }

    #[test]
    fn a_new_key_generation_gives_the_one_before_a_grace() {
        let done = Verdict {
            registered_now: true,
            ..verdict(Reason::Succeeded, Next::AtMoment)
        };
        let first = build(&WhatsAppChannelStatus::default(), &done, &facts(1, T1));
        let second = build(
            &first,
            &done,
            &Facts {
                key: Key::Derived {
                    generation: 2,
                    id: "abcd",
                },
                ..facts(2, T2)
            },
        );
        let key = second.webhook_key.unwrap();
        assert_eq!(key.previous_until.unwrap().0.to_string(), "2026-11-22T12:00:00Z");
    }

    #[test]
    fn a_suspended_channel_keeps_its_last_ready_and_foreign_conditions_stay() {
        let done = verdict(Reason::Succeeded, Next::AtMoment);
        let mut first = build(&WhatsAppChannelStatus::default(), &done, &facts(1, T1));
        first.conditions.push(Condition {
            type_: "Delivering".into(),
            status: "True".into(),
            ..first.conditions[0].clone()
        });
        let status = suspended(&first, &facts(2, T2));
        assert_eq!(of(&status, types::READY), Some(("True", "Succeeded")));
        assert_eq!(of(&status, types::SUSPENDED), Some(("True", "Suspended")));
        assert_eq!(status.observed_generation, Some(2));
        let resumed = build(&status, &done, &facts(3, T2));
        assert_eq!(of(&resumed, types::SUSPENDED), None);
        assert_eq!(of(&resumed, "Delivering"), Some(("True", "Succeeded")));
        assert!(of(&owned(&resumed), "Delivering").is_none());
    }

    #[test]
    fn a_suspended_channel_is_reported_once_whatever_others_report_beside() {
        let done = verdict(Reason::Succeeded, Next::AtMoment);
        let mut first = build(&WhatsAppChannelStatus::default(), &done, &facts(1, T1));
        first.conditions.push(Condition {
            type_: "Delivering".into(),
            observed_generation: Some(1),
            ..first.conditions[0].clone()
        });
        let once = suspended(&first, &facts(2, T2));
        // What is stored: our conditions as they were sent, the others' as they were.
        let mut stored = owned(&once);
        stored.conditions.push(first.conditions.last().unwrap().clone());
        assert!(
            same(&stored, &suspended(&stored, &facts(2, T2))),
            "nothing is left to write"
        );
    }
}
