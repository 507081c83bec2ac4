//! What to do next for a channel, and what came of it. Pure: observations in, one step out; the runner carries the
//! step out, adds what it saw, and asks again, until the step is a verdict.

use std::time::Duration;

use super::webhook::Held;
use crate::{
    api::{Effective, Existing, OnDelete, WebhookMode, conditions::Reason},
    cluster::SecretProblem,
    kernel::KernelError,
};

/// Everything known about a channel so far. What is `None` has not been looked at.
#[derive(Clone, Debug)]
pub(super) struct Observed<'a> {
    pub environment_name: &'a str,
    pub environment: EnvironmentView,
    /// What holds for the channel (with no environment: the built-in defaults).
    pub effective: &'a Effective,
    /// The resource, as "namespace/name", that holds the channel instead of this one; only the name where the reader
    /// may not know the namespace.
    pub holder: Option<String>,
    pub secret_name: &'a str,
    pub secret: Option<Result<(), SecretProblem>>,
    /// The webhook was verified for just this spec, Secret and key, and the next look is not due.
    pub fresh: bool,
    /// It was registered for just this spec, Secret and key before, whenever that was.
    pub registered: bool,
    /// How many looks at Kernel failed in a row since it was verified.
    pub misses: u32,
    /// The message of the Ready condition before this pass.
    pub message_before: Option<&'a str>,
    pub token: Option<Result<(), KernelError>>,
    pub held: Option<Result<Held, KernelError>>,
    pub set: Option<Result<(), KernelError>>,
}

/// What is known of the channel's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EnvironmentView {
    Unknown,
    NotAllowed,
    Held {
        reason: String,
    },
    /// Mode Legacy is asked for, and the environment has no callback for it.
    NoLegacyCallback,
    Usable,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    ReadSecret,
    FetchToken,
    ReadWebhook,
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

/// The next step for a channel that is not being deleted.
pub(super) fn decide(seen: &Observed<'_>) -> Step {
    if let Some(verdict) = not_accepted(seen) {
        return Step::Done(verdict);
    }
    match &seen.secret {
        None => return Step::ReadSecret,
        Some(Err(problem)) => return Step::Done(stop(problem.reason(), problem.to_string())),
        Some(Ok(())) => {}
    }
    if seen.fresh {
        return Step::Done(fine(seen, Verified::AsBefore, false));
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
    let must_set = match held {
        Held::Current { key_seen } => !key_seen && !seen.registered,
        // What can't be looked at is set whenever a look is due: on change, on request, and once a day.
        Held::Outdated | Held::Empty | Held::Unsupported => true,
        Held::Foreign { host } => {
            if seen.effective.existing == Existing::Refuse {
                let refused = stop(
                    Reason::WebhookForeign,
                    format!(
                        "Kernel calls another webhook for this number, at {host}; to take it over, set \
                         spec.webhook.existing to TakeOver"
                    ),
                );
                return Step::Done(Verdict {
                    authenticated: true,
                    ..refused
                });
            }
            true
        }
    };
    let verified = if *held == Held::Unsupported {
        Verified::Unsupported
    } else {
        Verified::Yes
    };
    match (&seen.set, must_set) {
        (None, true) => Step::SetWebhook,
        (Some(Err(error)), _) => Step::Done(failed(seen, error)),
        (Some(Ok(())), _) => Step::Done(fine(seen, verified, true)),
        (None, false) => Step::Done(fine(seen, verified, false)),
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
        EnvironmentView::Held { reason } => Some(Verdict {
            next: Next::In(Duration::from_secs(60)),
            ..stop(
                Reason::EnvironmentHeld,
                format!("environment {name:?} is on hold: {reason}"),
            )
        }),
        EnvironmentView::Usable => None,
    }
    .or_else(|| {
        seen.holder.as_ref().map(|holder| {
            stop(
                Reason::ChannelConflict,
                format!("this channelId is held by the older resource {holder}; delete one of the two"),
            )
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
            seen.message_before
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
        authenticated: false,
        next,
    }
}

/// A call to Kernel failed. A webhook that was verified stays so for now: an outage of Kernel must not turn every
/// channel red.
fn failed(seen: &Observed<'_>, error: &KernelError) -> Verdict {
    let next = Next::Retry {
        after: error.retry_after(),
    };
    let blind = matches!(seen.held, Some(Ok(Held::Unsupported)));
    if seen.registered && error.is_transient() && (seen.set.is_none() || blind) {
        let verified = if seen.misses + 1 >= MISSES {
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
        KernelError::PermissionDenied | KernelError::Unauthorized => {
            format!("{error}; check with Kernel what the client in Secret {secret:?} may do")
        }
        _ if error.is_transient() => format!("{error}; trying again"),
        _ => error.to_string(),
    };
    let authenticated = matches!(seen.token, Some(Ok(())));
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
    ReadSecret,
    FetchToken,
    ReadWebhook,
    ClearWebhook,
    /// Let the resource go. `skipped` says what was left behind, for an event.
    Release {
        skipped: Option<String>,
    },
    /// Try again.
    Wait {
        after: Option<Duration>,
    },
}

/// How long a deletion waits for Kernel before it goes on without it.
pub(super) const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);

/// The next step for a channel that has been waiting for its deletion for `age`. It always ends (Law 9).
pub(super) fn decide_cleanup(seen: &Observed<'_>, claimed_by_another: bool, age: Duration) -> CleanupStep {
    let skip = |why: String| CleanupStep::Release { skipped: Some(why) };
    // Keep, a hand-over, or a webhook that is not ours to touch: nothing to do.
    let ours = seen.effective.on_delete == OnDelete::Clear && seen.effective.mode == WebhookMode::Manage;
    if !ours || claimed_by_another || seen.holder.is_some() {
        return CleanupStep::Release { skipped: None };
    }
    match &seen.environment {
        EnvironmentView::Usable => {}
        EnvironmentView::Held { reason } => return skip(format!("its environment is on hold: {reason}")),
        EnvironmentView::Unknown => return skip("its environment is not in the configuration".to_owned()),
        EnvironmentView::NotAllowed | EnvironmentView::NoLegacyCallback => {
            return skip("its environment is not for this namespace".to_owned());
        }
    }
    let failed = |error: &KernelError| {
        if error.is_transient() && age < CLEANUP_PATIENCE {
            CleanupStep::Wait {
                after: error.retry_after(),
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
        // What can't be read back was set by us, as far as we know.
        Some(Ok(Held::Unsupported)) if !seen.registered => return CleanupStep::Release { skipped: None },
        Some(Ok(Held::Empty | Held::Foreign { .. })) => return CleanupStep::Release { skipped: None },
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
