//! Every way through the decision, without a cluster or a Kernel.

use super::*;
use crate::api::{ChannelDefaults, WhatsAppChannelSpec};

fn effective(change: impl FnOnce(&mut Effective)) -> Effective {
    let mut effective = Effective::new(&WhatsAppChannelSpec::example(), &ChannelDefaults::default());
    change(&mut effective);
    effective
}

pub(super) fn seen(effective: &Effective) -> Observed<'_> {
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
        stands: Stands::Nothing,
        told: false,
        misses: 0,
        parked: false,
        before: Before::default(),
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
        KernelError::Unauthorized,
        KernelError::NotReadable,
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
    masked.stands = Stands::Wholly;
    masked.told = true;
    assert_eq!(verdict(&masked).reason, Reason::Succeeded);
}

#[test]
fn a_fresh_channel_costs_no_call() {
    let effective = effective(|_| {});
    let fresh = Observed {
        fresh: true,
        stands: Stands::Wholly,
        told: true,
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
        stands: Stands::Wholly,
        told: true,
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
        stands: Stands::Wholly,
        told: true,
        secret: Some(Ok(())),
        before: Before {
            message: Some(&before),
            ..Before::default()
        },
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
            stands: Stands::Wholly,
            told: true,
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
            stands: Stands::Wholly,
            told: true,
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
            stands: Stands::Wholly,
            told: true,
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
                after: error.retry_after(),
                why: error,
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
        seen.before.taken_over = history.as_ref();
        assert_eq!(decide(&seen), Step::SetWebhook, "{round}");
        seen.set = Some(Ok(()));
        assert!(verdict(&seen).took_over);
        history = Some(contest::replaced(history.as_ref(), 1, seen.now));
    }
    let mut seen = looked(&take, foreign());
    seen.before.taken_over = history.as_ref();
    let left = verdict(&seen);
    assert_eq!(
        (left.reason, left.next),
        (Reason::WebhookContested, Next::OnChange)
    );
    assert!(left.message.contains("old.example.com"), "{}", left.message);
    // It stays so, also after a restart when the hour is over, until the spec changes.
    seen.before.taken_over = None;
    seen.before.contested = true;
    assert_eq!(verdict(&seen).reason, Reason::WebhookContested);
    seen.before.contested = false;
    seen.before.taken_over = history.as_ref();
    seen.generation = 2;
    assert_eq!(decide(&seen), Step::SetWebhook);
    // That it is ours again ends it.
    let ours = Observed {
        before: Before {
            contested: true,
            ..Before::default()
        },
        stands: Stands::Wholly,
        told: true,
        ..looked(&take, Held::Current { key_seen: true })
    };
    assert_eq!(verdict(&ours).reason, Reason::Succeeded);
}

#[test]
fn another_installation_with_our_address_is_a_rival_as_well() {
    let refuse = effective(|_| {});
    let registered = |held| Observed {
        stands: Stands::Wholly,
        told: true,
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
        seen.before.taken_over = Some(&often);
        assert_eq!(verdict(&seen).reason, Reason::WebhookContested);
    }
}

/// What was left to the other side is not registered any more: that must not read as "never set by us".
#[test]
fn what_was_left_to_another_installation_stays_left_until_somebody_says_otherwise() {
    let refuse = effective(|_| {});
    for held in [Held::Outdated, Held::Empty] {
        let seen = Observed {
            before: Before {
                contested: true,
                ..Before::default()
            },
            stands: Stands::Nothing,
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
        before: Before {
            was_legacy: true,
            ..Before::default()
        },
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
        stands: Stands::Wholly,
        told: true,
        ..held
    };
    assert_eq!(
        (verdict(&registered).reason, verdict(&registered).next),
        (Reason::Succeeded, Next::In(left))
    );
}

/// An installation key that is rotated in an outage, a Secret that changes during a hold: the webhook that Kernel holds
/// still serves.
#[test]
fn what_still_serves_is_not_red_for_what_could_not_be_renewed() {
    let effective = effective(|_| {});
    let failing = || Observed {
        secret: Some(Ok(())),
        token: Some(Err(KernelError::TimedOut)),
        ..seen(&effective)
    };
    let not_set = || Observed {
        set: Some(Err(KernelError::TimedOut)),
        ..looked(&effective, Held::Outdated)
    };
    let on_hold = || Observed {
        environment: EnvironmentView::Held {
            reason: "CHG-1".into(),
            left: Duration::from_secs(30),
        },
        ..seen(&effective)
    };
    for (seen, stands, good) in [
        (failing(), Stands::ButForKey, true),
        (failing(), Stands::ButForSecret, false),
        (failing(), Stands::Nothing, false),
        (not_set(), Stands::ButForKey, true),
        (not_set(), Stands::Wholly, false),
        (on_hold(), Stands::ButForSecret, true),
        (on_hold(), Stands::Nothing, false),
    ] {
        let verdict = verdict(&Observed { stands, ..seen });
        assert_eq!(verdict.reason.is_good(), good, "{stands:?}: {verdict:?}");
    }
}

#[test]
fn a_call_that_was_not_made_is_no_look_that_failed() {
    let effective = effective(|_| {});
    let away = Observed {
        secret: Some(Ok(())),
        token: Some(Err(KernelError::TimedOut)),
        stands: Stands::Wholly,
        misses: MISSES - 1,
        ..seen(&effective)
    };
    assert_eq!(verdict(&away).verified, Verified::Missed);
    let parked = Observed { parked: true, ..away };
    assert_eq!(verdict(&parked).verified, Verified::AsBefore);
}

/// A gateway that is being set up answers 404 for everything.
#[test]
fn what_could_be_read_and_cannot_now_is_not_set_blindly() {
    let effective = effective(|effective| effective.on_delete = OnDelete::Clear);
    let looked = Observed {
        stands: Stands::Wholly,
        told: true,
        before: Before {
            readable: true,
            ..Before::default()
        },
        ..looked(&effective, Held::Unsupported)
    };
    let missed = verdict(&looked);
    assert_eq!(
        (missed.reason, missed.verified, missed.next),
        (Reason::Succeeded, Verified::AsBefore, Next::Retry { after: None })
    );
    // What must be registered anew is: whose webhook it is was known a moment ago, and it was ours.
    let changed = Observed {
        stands: Stands::Nothing,
        ..looked.clone()
    };
    assert_eq!(decide(&changed), Step::SetWebhook);
    assert!(matches!(
        decide_cleanup(&looked, false, NEW),
        CleanupStep::Wait {
            why: KernelError::NotReadable,
            ..
        }
    ));
    assert!(matches!(
        decide_cleanup(&looked, false, failing_for(61)),
        CleanupStep::Release { skipped: Some(_) }
    ));
}

/// Kernel never could be read back.
#[test]
fn a_deletion_clears_blindly_only_what_we_are_known_to_have_set() {
    let clear = effective(|effective| effective.on_delete = OnDelete::Clear);
    let unknown = looked(&clear, Held::Unsupported);
    assert!(matches!(
        decide_cleanup(&unknown, false, NEW),
        CleanupStep::Release { skipped: Some(_) }
    ));
    let ours = Observed {
        stands: Stands::Wholly,
        told: true,
        ..unknown.clone()
    };
    assert_eq!(decide_cleanup(&ours, false, NEW), CleanupStep::ClearWebhook);
    let anothers = Observed {
        before: Before {
            left: Some(Left {
                reason: Reason::WebhookContested,
                same_generation: true,
            }),
            ..Before::default()
        },
        ..ours
    };
    assert_eq!(
        decide_cleanup(&anothers, false, NEW),
        CleanupStep::Release { skipped: None }
    );
}

#[test]
fn an_outage_lets_nobody_forget_whose_the_webhook_is() {
    for (reason, existing, same_generation, remembered) in [
        (Reason::WebhookForeign, Existing::Refuse, true, true),
        (Reason::WebhookForeign, Existing::Refuse, false, true),
        (Reason::WebhookForeign, Existing::TakeOver, false, false),
        (Reason::WebhookContested, Existing::TakeOver, true, true),
        (Reason::WebhookContested, Existing::TakeOver, false, false),
    ] {
        let effective = effective(|effective| effective.existing = existing);
        let before = Before {
            message: Some("whose it is"),
            reason: Some(reason.as_str()),
            left: Some(Left {
                reason,
                same_generation,
            }),
            ..Before::default()
        };
        let blind = Observed {
            before,
            ..looked(&effective, Held::Unsupported)
        };
        let failing = Observed {
            held: Some(Err(KernelError::TimedOut)),
            ..blind.clone()
        };
        let verdict = verdict(&failing);
        assert_eq!(verdict.reason == reason, remembered, "{verdict:?}");
        assert_eq!(verdict.next, Next::Retry { after: None });
        assert_eq!(decide(&blind) != Step::SetWebhook, remembered);
    }
}

#[test]
fn one_that_was_registered_yields_to_an_older_one_that_comes_to_use_its_client() {
    let effective = effective(|_| {});
    let shared = Observed {
        client_holder: Some("aura-es/old".into()),
        fresh: true,
        stands: Stands::Wholly,
        told: true,
        ..seen(&effective)
    };
    assert_eq!(verdict(&shared).reason, Reason::ClientShared);
}

#[test]
fn a_take_over_whose_outcome_is_unknown_counts() {
    let effective = effective(|effective| effective.existing = Existing::TakeOver);
    for (error, counts) in [
        (KernelError::TimedOut, true),
        (KernelError::Interrupted, true),
        (KernelError::Unreachable, false),
    ] {
        let failed = Observed {
            set: Some(Err(error)),
            ..looked(&effective, foreign())
        };
        assert_eq!(verdict(&failed).took_over, counts);
    }
}

#[test]
fn a_deletion_whose_environment_is_gone_says_that_it_may_leave_something() {
    let keep = effective(|_| {});
    let gone = Observed {
        environment: EnvironmentView::Unknown,
        ..seen(&keep)
    };
    assert!(matches!(
        decide_cleanup(&gone, false, NEW),
        CleanupStep::Release { skipped: Some(_) }
    ));
    assert_eq!(
        decide_cleanup(
            &Observed {
                leading: false,
                ..gone
            },
            false,
            NEW
        ),
        CleanupStep::StandBy
    );
}
