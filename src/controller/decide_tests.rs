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
        leading: true,
        now: "2026-11-22T10:00:00Z".parse().unwrap(),
        generation: 1,
        environment_name: "es-pro",
        environment: EnvironmentView::Usable,
        effective,
        holder: None,
        secret_name: "shop",
        secret: None,
        client_holder: None,
        fresh: false,
        registered: false,
        misses: 0,
        message_before: None,
        was_legacy: false,
        taken_over: None,
        contested: false,
        announced: Announced::Known,
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
                left: Duration::from_secs(60),
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

const NEW: Age = Age {
    all: Duration::ZERO,
    failing: Duration::ZERO,
};

fn failing_for(seconds: u64) -> Age {
    Age {
        all: Duration::from_secs(seconds),
        failing: Duration::from_secs(seconds),
    }
}

#[test]
fn deletion_keeps_the_webhook_by_default_and_clears_only_ours_when_asked_to() {
    let keep = effective(|_| {});
    let released = CleanupStep::Release { skipped: None };
    assert_eq!(decide_cleanup(&seen(&keep), false, NEW), released);
    let clear = effective(|effective| effective.on_delete = OnDelete::Clear);
    assert_eq!(decide_cleanup(&seen(&clear), false, NEW), CleanupStep::ReadSecret);
    assert_eq!(decide_cleanup(&seen(&clear), true, NEW), released, "a hand-over");
    for (held, step) in [
        (Held::Current { key_seen: true }, CleanupStep::ClearWebhook),
        (Held::Outdated, CleanupStep::ClearWebhook),
        (foreign(), released.clone()),
        (Held::Empty, released.clone()),
        (Held::Unsupported, released.clone()),
    ] {
        assert_eq!(decide_cleanup(&looked(&clear, held), false, NEW), step);
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
            decide_cleanup(&seen, false, failing_for(59)),
            CleanupStep::Wait {
                after: error.retry_after()
            }
        );
        let late = decide_cleanup(&seen, false, failing_for(61));
        assert!(
            matches!(late, CleanupStep::Release { skipped: Some(_) }),
            "{late:?}"
        );
    }
    let queued = Observed {
        secret: Some(Ok(())),
        token: Some(Err(KernelError::TimedOut)),
        ..seen(&clear)
    };
    let age = |all, failing| Age {
        all: Duration::from_secs(all),
        failing: Duration::from_secs(failing),
    };
    assert!(
        matches!(
            decide_cleanup(&queued, false, age(600, 0)),
            CleanupStep::Wait { .. }
        ),
        "a long wait for its turn is no failure"
    );
    assert!(matches!(
        decide_cleanup(&queued, false, age(3600, 0)),
        CleanupStep::Release { skipped: Some(_) }
    ));
    let no_secret = Observed {
        secret: Some(Err(SecretProblem::NotFound("shop".into()))),
        ..seen(&clear)
    };
    assert!(matches!(
        decide_cleanup(&no_secret, false, NEW),
        CleanupStep::Release { skipped: Some(_) }
    ));
}

#[test]
fn a_webhook_that_somebody_keeps_changing_is_put_back_a_few_times_and_then_left() {
    let take = effective(|effective| effective.existing = Existing::TakeOver);
    let mut history = None;
    for round in 0..=contest::PUT_BACKS {
        let mut seen = looked(&take, foreign());
        seen.taken_over = history.as_ref();
        assert_eq!(decide(&seen), Step::SetWebhook, "{round}");
        seen.set = Some(Ok(()));
        assert!(verdict(&seen).took_over);
        history = Some(contest::replaced(history.as_ref(), 1, seen.now));
    }
    let mut seen = looked(&take, foreign());
    seen.taken_over = history.as_ref();
    let left = verdict(&seen);
    assert_eq!(
        (left.reason, left.next),
        (Reason::WebhookContested, Next::OnChange)
    );
    assert!(left.message.contains("old.example.com"), "{}", left.message);
    // It stays so, also after a restart when the hour is over, until the spec changes.
    seen.taken_over = None;
    seen.contested = true;
    assert_eq!(verdict(&seen).reason, Reason::WebhookContested);
    seen.contested = false;
    seen.taken_over = history.as_ref();
    seen.generation = 2;
    assert_eq!(decide(&seen), Step::SetWebhook);
    // That it is ours again ends it.
    let ours = Observed {
        contested: true,
        registered: true,
        ..looked(&take, Held::Current { key_seen: true })
    };
    assert_eq!(verdict(&ours).reason, Reason::Succeeded);
}

#[test]
fn another_installation_with_our_address_is_a_rival_as_well() {
    let refuse = effective(|_| {});
    let registered = |held| Observed {
        registered: true,
        ..looked(&refuse, held)
    };
    for held in [Held::Outdated, Held::Empty] {
        let mut seen = registered(held.clone());
        assert_eq!(decide(&seen), Step::SetWebhook);
        seen.set = Some(Ok(()));
        assert!(verdict(&seen).took_over, "it is counted");
        let often = TakenOver {
            generation: 1,
            put_back_at: vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(seen.now); 3],
        };
        let mut seen = registered(held);
        seen.taken_over = Some(&often);
        assert_eq!(verdict(&seen).reason, Reason::WebhookContested);
    }
}

/// What was left to the other side is not registered any more: that must not read as "never set by us".
#[test]
fn what_was_left_to_another_installation_stays_left_until_somebody_says_otherwise() {
    let refuse = effective(|_| {});
    for held in [Held::Outdated, Held::Empty] {
        let seen = Observed {
            contested: true,
            registered: false,
            ..looked(&refuse, held.clone())
        };
        assert_ne!(decide(&seen), Step::SetWebhook, "{held:?}");
    }
}

#[test]
fn the_callback_of_the_system_before_is_replaced_if_we_had_registered_it_or_may_take_over() {
    let legacy = || Held::Legacy {
        host: "old.example.com".into(),
    };
    let refuse = effective(|_| {});
    assert_eq!(verdict(&looked(&refuse, legacy())).reason, Reason::WebhookForeign);
    let migrated = Observed {
        was_legacy: true,
        ..looked(&refuse, legacy())
    };
    assert_eq!(decide(&migrated), Step::SetWebhook);
    let take = effective(|effective| effective.existing = Existing::TakeOver);
    assert_eq!(decide(&looked(&take, legacy())), Step::SetWebhook);
}

#[test]
fn a_key_that_does_not_prove_itself_is_announced_before_kernel_is_told() {
    let effective = effective(|_| {});
    let with = |announced| Observed {
        announced,
        ..looked(&effective, Held::Outdated)
    };
    assert_eq!(decide(&with(Announced::New)), Step::Announce);
    let left = Duration::from_secs(1);
    assert_eq!(decide(&with(Announced::JustNow { left })), Step::ComeBack(left));
    assert_eq!(decide(&with(Announced::Known)), Step::SetWebhook);
}

#[test]
fn a_shared_client_is_refused_before_kernel_is_asked_anything() {
    let effective = effective(|_| {});
    let shared = verdict(&Observed {
        secret: Some(Ok(())),
        client_holder: Some("aura-es/first".into()),
        ..seen(&effective)
    });
    assert_eq!(
        (shared.reason, shared.next),
        (Reason::ClientShared, Next::OnChange)
    );
    assert!(shared.message.contains("aura-es/first"));
}

#[test]
fn a_hold_stops_changes_and_turns_nobody_red() {
    let effective = effective(|_| {});
    let left = Duration::from_secs(30);
    let held = Observed {
        environment: EnvironmentView::Held {
            reason: "CHG-1".into(),
            left,
        },
        ..seen(&effective)
    };
    assert_eq!(verdict(&held).next, Next::In(left), "it ends by itself");
    let registered = Observed {
        registered: true,
        ..held
    };
    assert_eq!(
        (verdict(&registered).reason, verdict(&registered).next),
        (Reason::Succeeded, Next::In(left))
    );
}
