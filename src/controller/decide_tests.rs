//! Every way through the decision, without a cluster or a Kernel.

use super::*;
use crate::api::{ChannelDefaults, WhatsAppChannelSpec};

fn effective(change: impl FnOnce(&mut Effective)) -> Effective {
    let mut effective = Effective::new(&WhatsAppChannelSpec::example(), &ChannelDefaults::default());
    change(&mut effective);
    effective
}

fn seen(effective: &Effective) -> Observed<'_> {
    Observed {
        environment_name: "es-pro",
        environment: EnvironmentView::Usable,
        effective,
        holder: None,
        secret_name: "shop",
        secret: None,
        fresh: false,
        registered: false,
        misses: 0,
        message_before: None,
        token: None,
        held: None,
        set: None,
    }
}

/// Looked at all the way to what Kernel holds.
fn looked(effective: &Effective, held: Held) -> Observed<'_> {
    Observed {
        secret: Some(Ok(())),
        token: Some(Ok(())),
        held: Some(Ok(held)),
        ..seen(effective)
    }
}

fn verdict(seen: &Observed<'_>) -> Verdict {
    match decide(seen) {
        Step::Done(verdict) => verdict,
        step => panic!("a verdict expected, not {step:?}"),
    }
}

fn foreign() -> Held {
    Held::Foreign {
        host: "old.example.com".into(),
    }
}

fn transient() -> Vec<KernelError> {
    vec![
        KernelError::RateLimited {
            retry_after: Some(Duration::from_secs(7)),
        },
        KernelError::Unavailable {
            status: 503,
            retry_after: None,
        },
        KernelError::Unreachable,
        KernelError::Interrupted,
        KernelError::TimedOut,
        KernelError::InvalidResponse("x"),
    ]
}

#[test]
fn a_new_channel_is_taken_through_secret_token_and_look_to_a_registration() {
    let effective = effective(|_| {});
    let mut seen = seen(&effective);
    assert_eq!(decide(&seen), Step::ReadSecret);
    seen.secret = Some(Ok(()));
    assert_eq!(decide(&seen), Step::FetchToken);
    seen.token = Some(Ok(()));
    assert_eq!(decide(&seen), Step::ReadWebhook);
    seen.held = Some(Ok(Held::Empty));
    assert_eq!(decide(&seen), Step::SetWebhook);
    seen.set = Some(Ok(()));
    let verdict = verdict(&seen);
    assert_eq!(
        (verdict.reason, verdict.verified, verdict.registered_now),
        (Reason::Succeeded, Verified::Yes, true)
    );
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    let effective = effective(|_| {});
    let verdict = verdict(&looked(&effective, Held::Current { key_seen: true }));
    assert_eq!(
        (verdict.reason, verdict.registered_now),
        (Reason::Succeeded, false)
    );
}

#[test]
fn a_masked_key_is_set_once_and_then_believed() {
    let effective = effective(|_| {});
    let mut masked = looked(&effective, Held::Current { key_seen: false });
    assert_eq!(decide(&masked), Step::SetWebhook);
    masked.registered = true;
    assert_eq!(verdict(&masked).reason, Reason::Succeeded);
}

#[test]
fn a_fresh_channel_costs_no_call() {
    let effective = effective(|_| {});
    let fresh = Observed {
        fresh: true,
        registered: true,
        secret: Some(Ok(())),
        ..seen(&effective)
    };
    assert_eq!(verdict(&fresh).verified, Verified::AsBefore);
}

#[test]
fn a_foreign_webhook_is_refused_unless_it_may_be_taken_over() {
    let refuse = effective(|_| {});
    let refused = verdict(&looked(&refuse, foreign()));
    assert_eq!(
        (refused.reason, refused.next),
        (Reason::WebhookForeign, Next::OnChange)
    );
    assert!(refused.message.contains("old.example.com") && refused.message.contains("TakeOver"));
    let take = effective(|effective| effective.existing = Existing::TakeOver);
    assert_eq!(decide(&looked(&take, foreign())), Step::SetWebhook);
}

#[test]
fn observe_never_sets_and_says_what_would_change() {
    let observe = effective(|effective| effective.mode = WebhookMode::Observe);
    for (held, word) in [
        (Held::Empty, "would be registered"),
        (Held::Outdated, "would be renewed"),
        (foreign(), "old.example.com"),
        (Held::Current { key_seen: true }, "nothing would change"),
        (Held::Unsupported, "can't be read back"),
    ] {
        let verdict = verdict(&looked(&observe, held));
        assert_eq!(verdict.reason, Reason::Observed);
        assert!(verdict.message.contains(word), "{}", verdict.message);
    }
}

#[test]
fn without_read_back_the_webhook_is_set_whenever_a_look_is_due_and_not_in_between() {
    let effective = effective(|_| {});
    let mut blind = Observed {
        registered: true,
        ..looked(&effective, Held::Unsupported)
    };
    assert_eq!(decide(&blind), Step::SetWebhook);
    blind.set = Some(Ok(()));
    assert_eq!(verdict(&blind).verified, Verified::Unsupported);
    blind.fresh = true;
    assert!(!verdict(&blind).registered_now);
    // An outage on the day's registration leaves the channel Ready: it was registered before.
    let failed = Observed {
        fresh: false,
        set: Some(Err(KernelError::TimedOut)),
        ..blind
    };
    assert_eq!(verdict(&failed).reason, Reason::Succeeded);
}

#[test]
fn observe_says_what_the_last_look_saw_until_the_next_one() {
    let observe = effective(|effective| effective.mode = WebhookMode::Observe);
    let before = verdict(&looked(&observe, foreign())).message;
    let fresh = Observed {
        fresh: true,
        registered: true,
        secret: Some(Ok(())),
        message_before: Some(&before),
        ..seen(&observe)
    };
    assert_eq!(verdict(&fresh).message, before);
}

#[test]
fn nothing_is_looked_at_where_the_channel_is_not_accepted() {
    let effective = effective(|_| {});
    for (environment, reason) in [
        (EnvironmentView::Unknown, Reason::EnvironmentUnknown),
        (EnvironmentView::NotAllowed, Reason::EnvironmentNotAllowed),
        (EnvironmentView::NoLegacyCallback, Reason::EnvironmentNotAllowed),
        (
            EnvironmentView::Held {
                reason: "CHG-1".into(),
            },
            Reason::EnvironmentHeld,
        ),
    ] {
        assert_eq!(
            verdict(&Observed {
                environment,
                ..seen(&effective)
            })
            .reason,
            reason
        );
    }
    let conflict = verdict(&Observed {
        holder: Some("aura-es/first".into()),
        ..seen(&effective)
    });
    assert_eq!(conflict.reason, Reason::ChannelConflict);
    assert!(conflict.message.contains("aura-es/first"));
}

#[test]
fn a_kernel_outage_fails_a_new_channel_and_leaves_a_verified_one_ready() {
    let effective = effective(|_| {});
    for error in transient() {
        let new = Observed {
            secret: Some(Ok(())),
            token: Some(Err(error.clone())),
            ..seen(&effective)
        };
        let failed = verdict(&new);
        assert_eq!(failed.reason, error.reason());
        assert_eq!(
            failed.next,
            Next::Retry {
                after: error.retry_after()
            }
        );
        let known = Observed {
            registered: true,
            ..new
        };
        assert_eq!(
            (verdict(&known).reason, verdict(&known).verified),
            (Reason::Succeeded, Verified::AsBefore)
        );
        assert_eq!(
            verdict(&known).next,
            Next::Retry {
                after: error.retry_after()
            }
        );
        assert_eq!(
            verdict(&Observed { misses: 2, ..known }).verified,
            Verified::Missed
        );
    }
}

#[test]
fn what_only_a_person_can_mend_stalls_even_a_verified_channel() {
    let effective = effective(|_| {});
    for error in [
        KernelError::CredentialsRejected,
        KernelError::ScopeNotGranted(vec!["whatsapp:app-admin".into()]),
        KernelError::PermissionDenied,
    ] {
        let seen = Observed {
            secret: Some(Ok(())),
            token: Some(Err(error.clone())),
            registered: true,
            ..seen(&effective)
        };
        let verdict = verdict(&seen);
        assert_eq!((verdict.reason, verdict.next), (error.reason(), Next::OnChange));
        assert!(
            verdict.reason.is_stalled() && verdict.message.contains("shop"),
            "{}",
            verdict.message
        );
    }
}

#[test]
fn after_its_own_effects_nothing_is_left_to_do() {
    let effective = effective(|_| {});
    for held in [Held::Empty, Held::Outdated, Held::Current { key_seen: false }] {
        let mut seen = looked(&effective, held.clone());
        assert_eq!(decide(&seen), Step::SetWebhook);
        seen.set = Some(Ok(()));
        assert!(verdict(&seen).registered_now);
        let after = match held {
            Held::Current { .. } => Held::Current { key_seen: false },
            _ => Held::Current { key_seen: true },
        };
        let again = Observed {
            registered: true,
            ..looked(&effective, after)
        };
        assert!(!verdict(&again).registered_now, "{held:?}");
    }
}

#[test]
fn deletion_keeps_the_webhook_by_default_and_clears_only_ours_when_asked_to() {
    let keep = effective(|_| {});
    let released = CleanupStep::Release { skipped: None };
    assert_eq!(decide_cleanup(&seen(&keep), false, Duration::ZERO), released);
    let clear = effective(|effective| effective.on_delete = OnDelete::Clear);
    assert_eq!(
        decide_cleanup(&seen(&clear), false, Duration::ZERO),
        CleanupStep::ReadSecret
    );
    assert_eq!(
        decide_cleanup(&seen(&clear), true, Duration::ZERO),
        released,
        "a hand-over"
    );
    for (held, step) in [
        (Held::Current { key_seen: true }, CleanupStep::ClearWebhook),
        (Held::Outdated, CleanupStep::ClearWebhook),
        (foreign(), released.clone()),
        (Held::Empty, released.clone()),
        (Held::Unsupported, released.clone()),
    ] {
        assert_eq!(decide_cleanup(&looked(&clear, held), false, Duration::ZERO), step);
    }
}

#[test]
fn deletion_ends_whatever_kernel_does() {
    let clear = effective(|effective| effective.on_delete = OnDelete::Clear);
    for error in transient() {
        let seen = Observed {
            secret: Some(Ok(())),
            token: Some(Err(error.clone())),
            ..seen(&clear)
        };
        assert_eq!(
            decide_cleanup(&seen, false, Duration::from_secs(59)),
            CleanupStep::Wait {
                after: error.retry_after()
            }
        );
        let late = decide_cleanup(&seen, false, Duration::from_secs(61));
        assert!(
            matches!(late, CleanupStep::Release { skipped: Some(_) }),
            "{late:?}"
        );
    }
    let no_secret = Observed {
        secret: Some(Err(SecretProblem::NotFound("shop".into()))),
        ..seen(&clear)
    };
    assert!(matches!(
        decide_cleanup(&no_secret, false, Duration::ZERO),
        CleanupStep::Release { skipped: Some(_) }
    ));
}
