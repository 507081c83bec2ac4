//! What to do next for a channel, and what came of it. Pure: observations in, one step out; the runner carries the
//! step out, adds what it saw, and asks again, until the step is a verdict.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    contest::{self, Ruling},
    webhook::Held,
};
use crate::{
    api::{Effective, Existing, OnDelete, TakenOver, WebhookMode, conditions::Reason},
    cluster::SecretProblem,
    config::{self, Environment},
    kernel::KernelError,
};

/// Everything known about a channel so far. What is `None` has not been looked at.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is an observation of its own")]
pub(super) struct Observed<'a> {
    /// This process holds the leader's claim.
    pub leading: bool,
    pub now: Timestamp,
    pub generation: i64,
    pub environment_name: &'a str,
    pub environment: EnvironmentView,
    /// What holds for the channel (with no environment: the built-in defaults).
    pub effective: &'a Effective,
    /// The resource, as "namespace/name", that holds the channel instead of this one; only the name where the reader
    /// may not know the namespace.
    pub holder: Option<String>,
    pub secret_name: &'a str,
    pub secret: Option<Result<(), SecretProblem>>,
    /// The older resource, told as [`Observed::holder`] is, whose Secret holds the same Kernel client.
    pub client_holder: Option<String>,
    /// The webhook was verified for just this spec, Secret and key, and the next look is not due.
    pub fresh: bool,
    /// How much of what Kernel would be told it was told before, whenever that was.
    pub stands: Stands,
    /// Kernel was told just this once, whatever has failed since: what it holds instead, somebody else has set.
    pub told: bool,
    /// How many looks at Kernel failed in a row since it was verified.
    pub misses: u32,
    /// A call of this pass was not made, because nobody's get through.
    pub parked: bool,
    /// What the status said before this pass.
    pub before: Before<'a>,
    /// Whether the bridge knows the key that Kernel would be told.
    pub announced: Announced,
    pub token: Option<Result<(), KernelError>>,
    pub held: Option<Result<Held, KernelError>>,
    pub set: Option<Result<(), KernelError>>,
}

/// How much of what Kernel would be told for this spec, Secret and key stands in the status as told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stands {
    /// Too little to say that Kernel calls this channel's webhook.
    Nothing,
    /// All but for the Secret, which is another version since: Kernel calls the channel's webhook all the same.
    ButForSecret,
    /// All but for the installation key, which is another since: the key before it is still taken.
    ButForKey,
    /// All of it: it is registered.
    Wholly,
}

/// What a pass needs of the status that the one before it left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a memory of its own")]
pub(super) struct Before<'a> {
    /// The message of the Ready condition.
    pub message: Option<&'a str>,
    /// Its reason.
    pub reason: Option<&'a str>,
    /// The callback of the system before was registered by us.
    pub was_legacy: bool,
    /// How often another party's webhook was replaced.
    pub taken_over: Option<&'a TakenOver>,
    /// It was left to the other side for this generation, and nobody has asked for another look.
    pub contested: bool,
    /// Another party's webhook was found and left where it was.
    pub left: Option<Left>,
    /// Kernel could be read back.
    pub readable: bool,
}

/// That another party's webhook was left where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// `WebhookForeign` or `WebhookContested`.
    pub reason: Reason,
    /// It was for this generation of the spec.
    pub same_generation: bool,
}

/// Whether the bridge can know the key that Kernel would be told. A derived key proves itself; one issued elsewhere,
/// or a jump of the generation, the bridge must have heard of first, or it would refuse Kernel's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// It knows it.
    Known,
    /// It must be told, by way of the resource.
    New,
    /// It was told a moment ago.
    JustNow { left: Duration },
}

/// What is known of the channel's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EnvironmentView {
    Unknown,
    NotAllowed,
    Held {
        reason: String,
        left: Duration,
    },
    /// Mode Legacy is asked for, and the environment has no callback for it.
    NoLegacyCallback,
    Usable,
}

impl EnvironmentView {
    /// What is known of an environment for a channel in this namespace.
    pub fn of(
        environment: Option<&Environment>,
        effective: &Effective,
        namespace: &str,
        now: Timestamp,
    ) -> Self {
        let Some(environment) = environment else {
            return Self::Unknown;
        };
        if !environment.allows(namespace) {
            return Self::NotAllowed;
        }
        if let Some(hold) = environment.held(config::Held::Registration, now) {
            let left = hold
                .until
                .parse::<Timestamp>()
                .ok()
                .and_then(|until| Duration::try_from(until.duration_since(now)).ok());
            return Self::Held {
                reason: hold.reason.clone(),
                left: left.unwrap_or_default().max(Duration::from_millis(1)),
            };
        }
        if effective.mode == WebhookMode::Legacy && environment.legacy_callback.is_none() {
            return Self::NoLegacyCallback;
        }
        Self::Usable
    }
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Another process leads: nothing is done.
    StandBy,
    ReadSecret,
    FetchToken,
    ReadWebhook,
    /// Let the bridge know of the key, by way of the resource.
    Announce,
    /// Come back after this time; the status stays as it is.
    ComeBack(Duration),
    SetWebhook,
    Done(Verdict),
}

/// What came of a reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub reason: Reason,
    /// For people; stable text without ids, times or secrets.
    pub message: String,
    pub verified: Verified,
    /// Kernel took a registration in this pass.
    pub registered_now: bool,
    /// That registration replaced what another party had set.
    pub took_over: bool,
    /// Kernel took the credentials in this pass.
    pub authenticated: bool,
    pub next: Next,
}

/// What is known about the webhook at Kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// Kernel was read back and holds ours.
    Yes,
    /// As it was before this pass.
    AsBefore,
    /// Kernel can't be read back.
    Unsupported,
    /// Kernel could not be looked at several times in a row.
    Missed,
    /// Not verified.
    No,
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At the channel's own moment.
    AtMoment,
    /// After this time, every time.
    In(Duration),
    /// Soon, less and less often, no sooner than Kernel asks.
    Retry { after: Option<Duration> },
    /// When something changes; else at the channel's own moment.
    OnChange,
}

/// Looks that may fail in a row before `WebhookVerified` becomes Unknown.
const MISSES: u32 = 3;
/// The longest wait for the end of a hold: it may be shortened.
const HOLD_AGAIN: Duration = Duration::from_secs(600);

/// The next step for a channel that is not being deleted.
pub(super) fn decide(seen: &Observed<'_>) -> Step {
    if !seen.leading {
        return Step::StandBy;
    }
    if let Some(verdict) = not_accepted(seen) {
        return Step::Done(verdict);
    }
    // Also of one that was registered: an older one may have come to use its client since.
    if let Some(holder) = &seen.client_holder {
        return Step::Done(stop(
            Reason::ClientShared,
            format!(
                "Secret {:?} holds the same Kernel client as that of the older resource {holder}, and Kernel keeps one \
                 webhook per client; give each number a client of its own",
                seen.secret_name
            ),
        ));
    }
    if seen.fresh {
        return Step::Done(fine(seen, Verified::AsBefore, false));
    }
    match &seen.secret {
        None => return Step::ReadSecret,
        Some(Err(problem)) => return Step::Done(stop(problem.reason(), problem.to_string())),
        Some(Ok(())) => {}
    }
    match &seen.token {
        None => return Step::FetchToken,
        Some(Err(error)) => return Step::Done(failed(seen, error)),
        Some(Ok(())) => {}
    }
    let held = match &seen.held {
        None => return Step::ReadWebhook,
        Some(Err(error)) => return Step::Done(failed(seen, error)),
        Some(Ok(held)) => held,
    };
    if seen.effective.mode == WebhookMode::Observe {
        return Step::Done(observed(held));
    }
    if *held == Held::Unsupported && (seen.left().is_some() || seen.registered() && seen.before.readable) {
        // A gateway that is being set up answers so, too. What could be read and is not there now may be anybody's:
        // nothing is set blindly over it.
        return Step::Done(failed(seen, &KernelError::NotReadable));
    }
    let verified = if *held == Held::Unsupported {
        Verified::Unsupported
    } else {
        Verified::Yes
    };
    let what = match ruling(seen, held) {
        Ok(what) => what,
        Err(verdict) => return Step::Done(verdict),
    };
    match &seen.set {
        None if what == Set::Nothing => Step::Done(fine(seen, verified, false)),
        None => match seen.announced {
            Announced::Known => Step::SetWebhook,
            Announced::New => Step::Announce,
            Announced::JustNow { left } => Step::ComeBack(left),
        },
        Some(Ok(())) => Step::Done(Verdict {
            took_over: what == Set::Replace,
            ..fine(seen, verified, true)
        }),
        Some(Err(error)) => Step::Done(Verdict {
            // It may have been carried out: two parties that both time out would else fight for ever.
            took_over: what == Set::Replace && error.outcome_unknown(),
            ..failed(seen, error)
        }),
    }
}

impl Observed<'_> {
    /// It was registered for just this spec, Secret and key before, whenever that was.
    pub fn registered(&self) -> bool {
        self.stands == Stands::Wholly
    }

    /// Why another party's webhook was left where it was, if that still holds as far as is known.
    fn left(&self) -> Option<Reason> {
        let left = self.before.left?;
        (left.same_generation || self.effective.existing == Existing::Refuse).then_some(left.reason)
    }
}

/// What is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Nothing,
    /// Ours, where nobody minds.
    Ours,
    /// Ours, in place of what another party has set.
    Replace,
}

/// What is done about the webhook that Kernel holds, or why nothing is.
fn ruling(seen: &Observed<'_>, held: &Held) -> Result<Set, Verdict> {
    let rival = match held {
        Held::Current { key_seen } => {
            return Ok(if *key_seen || seen.told {
                Set::Nothing
            } else {
                Set::Ours
            });
        }
        // What can't be looked at is set whenever a look is due: on change, on request, and once a day.
        Held::Unsupported => return Ok(Set::Ours),
        Held::Outdated | Held::Empty if !seen.told && !seen.before.contested => return Ok(Set::Ours),
        Held::Legacy { .. } if seen.before.was_legacy => return Ok(Set::Ours),
        // We had set just this and it is another now: somebody else sets it too, an installation with another key, say.
        Held::Outdated => "the same address with another key".to_owned(),
        Held::Empty => "none".to_owned(),
        Held::Foreign { host } | Held::Legacy { host } => {
            if seen.effective.existing == Existing::Refuse {
                return Err(left_alone(
                    Reason::WebhookForeign,
                    format!(
                        "Kernel calls another webhook for this number, at {host}; to take it over, set \
                         spec.webhook.existing to TakeOver"
                    ),
                ));
            }
            host.clone()
        }
    };
    if seen.before.contested
        || contest::rule(seen.before.taken_over, seen.generation, seen.now) == Ruling::Contested
    {
        return Err(left_alone(
            Reason::WebhookContested,
            format!(
                "somebody keeps changing this number's webhook (Kernel holds {rival} now) and it is left as it is; \
                 find out who, then change the spec or ask for a look with the annotation {}",
                crate::api::REQUESTED_AT
            ),
        ));
    }
    Ok(Set::Replace)
}

fn left_alone(reason: Reason, message: String) -> Verdict {
    Verdict {
        authenticated: true,
        ..stop(reason, message)
    }
}

/// What keeps a channel from being looked at any further.
fn not_accepted(seen: &Observed<'_>) -> Option<Verdict> {
    let name = seen.environment_name;
    match &seen.environment {
        EnvironmentView::Unknown => Some(stop(
            Reason::EnvironmentUnknown,
            format!("environment {name:?} is not in the installation's configuration"),
        )),
        EnvironmentView::NotAllowed => Some(stop(
            Reason::EnvironmentNotAllowed,
            format!(
                "environment {name:?} is not for this namespace; its configuration lists those it is for"
            ),
        )),
        EnvironmentView::NoLegacyCallback => Some(stop(
            Reason::EnvironmentNotAllowed,
            format!("environment {name:?} has no legacyCallback, which webhook mode Legacy needs"),
        )),
        EnvironmentView::Held { .. } | EnvironmentView::Usable => None,
    }
    .or_else(|| {
        seen.holder.as_ref().map(|holder| {
            stop(
                Reason::ChannelConflict,
                format!("this channelId is held by the older resource {holder}; delete one of the two"),
            )
        })
    })
    .or_else(|| {
        let EnvironmentView::Held { reason, left } = &seen.environment else {
            return None;
        };
        let next = Next::In((*left).min(HOLD_AGAIN));
        // What is registered stays so: a hold stops changes, and turns nobody red.
        Some(if seen.stands >= Stands::ButForSecret {
            Verdict {
                next,
                ..fine(seen, Verified::AsBefore, false)
            }
        } else {
            Verdict {
                next,
                ..stop(
                    Reason::EnvironmentHeld,
                    format!("environment {name:?} is on hold: {reason}"),
                )
            }
        })
    })
}

fn fine(seen: &Observed<'_>, verified: Verified, registered_now: bool) -> Verdict {
    let (reason, message) = match seen.effective.mode {
        WebhookMode::Legacy => (
            Reason::LegacyRegistered,
            "Kernel calls the system before (mode Legacy)",
        ),
        // Without a look, what the last one saw still stands.
        WebhookMode::Observe => (
            Reason::Observed,
            seen.before
                .message
                .filter(|message| message.starts_with(OBSERVE))
                .unwrap_or(OBSERVE),
        ),
        WebhookMode::Manage => (Reason::Succeeded, "Kernel calls this channel's webhook"),
    };
    let authenticated = matches!(seen.token, Some(Ok(())));
    Verdict {
        reason,
        message: message.to_owned(),
        verified,
        registered_now,
        took_over: false,
        authenticated,
        next: Next::AtMoment,
    }
}

/// How every message of mode Observe begins.
const OBSERVE: &str = "mode Observe: all checks passed";

fn observed(held: &Held) -> Verdict {
    let (verified, what) = match held {
        Held::Current { .. } => (Verified::Yes, "nothing would change".to_owned()),
        Held::Outdated => (Verified::No, "the key of our webhook would be renewed".to_owned()),
        Held::Empty => (
            Verified::No,
            "a webhook would be registered where there is none".to_owned(),
        ),
        Held::Foreign { host } => (
            Verified::No,
            format!("the webhook at {host} would be replaced, if existing is TakeOver"),
        ),
        Held::Legacy { host } => (
            Verified::No,
            format!(
                "the webhook of the system before, at {host}, would be replaced, if existing is TakeOver"
            ),
        ),
        Held::Unsupported => (
            Verified::Unsupported,
            "Kernel can't be read back, a webhook would be registered".to_owned(),
        ),
    };
    Verdict {
        reason: Reason::Observed,
        message: format!("{OBSERVE}; {what}"),
        verified,
        registered_now: false,
        took_over: false,
        authenticated: true,
        next: Next::AtMoment,
    }
}

/// Something is wrong that trying again may or may not mend, as its reason says.
fn stop(reason: Reason, message: String) -> Verdict {
    let next = if reason.is_stalled() {
        Next::OnChange
    } else {
        Next::Retry { after: None }
    };
    Verdict {
        reason,
        message,
        verified: Verified::No,
        registered_now: false,
        took_over: false,
        authenticated: false,
        next,
    }
}

/// A call to Kernel failed. A webhook that was verified stays so for now: an outage of Kernel must not turn every
/// channel red. Nor does it let us forget that the webhook is another party's.
fn failed(seen: &Observed<'_>, error: &KernelError) -> Verdict {
    let next = Next::Retry {
        after: error.retry_after(),
    };
    // A token of before may have been taken until now.
    let authenticated = matches!(seen.token, Some(Ok(()))) && *error != KernelError::TokenDenied;
    // That a look is refused says nothing of what it would have shown.
    let looked_in_vain = matches!(seen.held, Some(Err(KernelError::Refused { .. })));
    let passing = error.is_transient() || looked_in_vain;
    if let (Some(reason), true, None) = (seen.left(), passing, &seen.set) {
        let message = seen
            .before
            .message
            .filter(|_| seen.before.reason == Some(reason.as_str()))
            .unwrap_or("another party's webhook was left where it was; Kernel could not be looked at since");
        return Verdict {
            authenticated,
            next,
            ..stop(reason, message.to_owned())
        };
    }
    let blind = matches!(seen.held, Some(Ok(Held::Unsupported)));
    let as_it_was = seen.registered() && (seen.set.is_none() || blind);
    // The webhook with the key before is still good.
    let still_serves = seen.stands == Stands::ButForKey;
    if passing && (as_it_was || still_serves) {
        let verified = if seen.misses + u32::from(!seen.parked) >= MISSES {
            Verified::Missed
        } else {
            Verified::AsBefore
        };
        return Verdict {
            next,
            ..fine(seen, verified, false)
        };
    }
    let secret = seen.secret_name;
    let message = match error {
        KernelError::CredentialsRejected => format!("{error} in Secret {secret:?}; put the right ones there"),
        KernelError::ScopeNotGranted(_) => format!("{error} to the client in Secret {secret:?}; ask for it"),
        KernelError::PermissionDenied | KernelError::TokenDenied => {
            format!("{error}; check with Kernel what the client in Secret {secret:?} may do")
        }
        _ if error.is_transient() => format!("{error}; trying again"),
        _ => error.to_string(),
    };
    let verdict = Verdict {
        authenticated,
        ..stop(error.reason(), message)
    };
    if error.is_transient() {
        Verdict { next, ..verdict }
    } else {
        verdict
    }
}

/// The next step for a channel that is being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CleanupStep {
    /// Another process leads: nothing is done.
    StandBy,
    ReadSecret,
    FetchToken,
    ReadWebhook,
    ClearWebhook,
    /// Let the resource go. `skipped` says what was left behind, for an event.
    Release {
        skipped: Option<String>,
    },
    /// Try again, because of this.
    Wait {
        after: Option<Duration>,
        why: KernelError,
    },
}

/// How long a deletion tries in vain before it goes on without Kernel, counted from the first failure: that a turn is
/// long in coming, when hundreds are deleted at once, is none.
pub(super) const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a deletion may take in all, whatever the reason.
pub(super) const CLEANUP_END: Duration = Duration::from_secs(3600);

/// How long a deletion has been under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    /// Since it was asked for.
    pub all: Duration,
    /// Since it first failed.
    pub failing: Duration,
}

impl Age {
    /// How long another try may be put off.
    pub fn left(self) -> Duration {
        CLEANUP_PATIENCE
            .saturating_sub(self.failing)
            .min(CLEANUP_END.saturating_sub(self.all))
    }

    /// Whether there is time for another try.
    pub fn has_time(self) -> bool {
        self.failing < CLEANUP_PATIENCE && self.all < CLEANUP_END
    }
}

/// What the status says of a deletion that waits to try again.
pub(super) fn cleanup_failed(why: &KernelError) -> Verdict {
    Verdict {
        verified: Verified::AsBefore,
        next: Next::Retry { after: None },
        ..stop(
            Reason::CleanupFailed,
            format!(
                "deleted, and the webhook could not be cleared yet: {why}; trying again for a minute, then it is left"
            ),
        )
    }
}

/// The next step for a channel that is being deleted. It always ends (Law 9).
pub(super) fn decide_cleanup(seen: &Observed<'_>, claimed_by_another: bool, age: Age) -> CleanupStep {
    if !seen.leading {
        return CleanupStep::StandBy;
    }
    let skip = |why: String| CleanupStep::Release { skipped: Some(why) };
    if seen.environment == EnvironmentView::Unknown {
        // What its channelDefaults said of the deletion is gone with it: it may have been to clear the webhook.
        return skip("its environment is not in the configuration".to_owned());
    }
    // Keep, a hand-over, or a webhook that is not ours to touch: nothing to do.
    let ours = seen.effective.on_delete == OnDelete::Clear && seen.effective.mode == WebhookMode::Manage;
    if !ours || claimed_by_another || seen.holder.is_some() {
        return CleanupStep::Release { skipped: None };
    }
    match &seen.environment {
        EnvironmentView::Usable | EnvironmentView::Unknown => {}
        EnvironmentView::Held { reason, .. } => return skip(format!("its environment is on hold: {reason}")),
        EnvironmentView::NotAllowed | EnvironmentView::NoLegacyCallback => {
            return skip("its environment is not for this namespace".to_owned());
        }
    }
    let failed = |error: &KernelError| {
        if error.is_transient() && age.has_time() {
            CleanupStep::Wait {
                after: error.retry_after(),
                why: error.clone(),
            }
        } else {
            skip(error.to_string())
        }
    };
    match &seen.secret {
        None => return CleanupStep::ReadSecret,
        Some(Err(problem)) => return skip(problem.to_string()),
        Some(Ok(())) => {}
    }
    match &seen.token {
        None => return CleanupStep::FetchToken,
        Some(Err(error)) => return failed(error),
        Some(Ok(())) => {}
    }
    match &seen.held {
        None => return CleanupStep::ReadWebhook,
        Some(Err(error)) => return failed(error),
        // It was another's when it was seen last.
        Some(Ok(Held::Unsupported)) if seen.before.left.is_some() => {
            return CleanupStep::Release { skipped: None };
        }
        Some(Ok(Held::Unsupported)) if seen.before.readable => return failed(&KernelError::NotReadable),
        Some(Ok(Held::Unsupported)) if !seen.registered() => {
            return skip("it can't be read back, and nothing says that it is ours".to_owned());
        }
        // What can't be read back was set by us, as far as we know.
        Some(Ok(Held::Empty | Held::Foreign { .. } | Held::Legacy { .. })) => {
            return CleanupStep::Release { skipped: None };
        }
        Some(Ok(Held::Current { .. } | Held::Outdated | Held::Unsupported)) => {}
    }
    match &seen.set {
        None => CleanupStep::ClearWebhook,
        Some(Ok(())) => CleanupStep::Release { skipped: None },
        Some(Err(error)) => failed(error),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "decide_properties.rs"]
mod properties;
