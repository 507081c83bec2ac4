//! What holds for every channel, whatever Kernel does: the decision and the status together, against a small model of
//! Kernel and of the runner.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::{
    super::status::{self, Facts, KEY_GRACE, Key},
    *,
};
use crate::api::{ChannelDefaults, WhatsAppChannelSpec, WhatsAppChannelStatus, conditions::types};

/// A Kernel that holds one webhook and may fail.
#[derive(Clone, Debug)]
struct Model {
    held: Held,
    read_back: bool,
    token: Option<KernelError>,
    get: Option<KernelError>,
    set: Option<KernelError>,
    sets: u32,
}

fn error() -> impl Strategy<Value = KernelError> {
    prop_oneof![
        Just(KernelError::CredentialsRejected),
        Just(KernelError::ScopeNotGranted(vec!["whatsapp:app-admin".into()])),
        Just(KernelError::PermissionDenied),
        Just(KernelError::RateLimited {
            retry_after: Some(Duration::from_secs(3))
        }),
        Just(KernelError::Unavailable {
            status: 500,
            retry_after: None
        }),
        Just(KernelError::Unreachable),
        Just(KernelError::TimedOut),
        Just(KernelError::InvalidResponse("nonsense")),
        Just(KernelError::Refused { status: 422 }),
    ]
}

fn fault() -> impl Strategy<Value = Option<KernelError>> {
    prop_oneof![4 => Just(None), 1 => error().prop_map(Some)]
}

prop_compose! {
    fn model()(
        held in prop_oneof![
            Just(Held::Empty),
            Just(Held::Outdated),
            Just(Held::Current { key_seen: true }),
            Just(Held::Current { key_seen: false }),
            Just(Held::Foreign { host: "other.example.com".into() }),
            Just(Held::Legacy { host: "old.example.com".into() }),
        ],
        read_back in prop::bool::weighted(0.8),
        (token, get, set) in (fault(), fault(), fault()),
    ) -> Model {
        Model { held, read_back, token, get, set, sets: 0 }
    }
}

prop_compose! {
    fn settings()(
        mode in prop_oneof![Just(WebhookMode::Manage), Just(WebhookMode::Observe), Just(WebhookMode::Legacy)],
        existing in prop_oneof![Just(Existing::Refuse), Just(Existing::TakeOver)],
    ) -> Effective {
        let spec = WhatsAppChannelSpec::example();
        Effective { mode, existing, ..Effective::new(&spec, &ChannelDefaults::default()) }
    }
}

fn start() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

/// One pass as the runner makes it, against the model. Answers the verdict and the status after it.
fn pass(
    effective: &Effective,
    old: &WhatsAppChannelStatus,
    kernel: &mut Model,
    registered: bool,
    now: Timestamp,
    leading: bool,
) -> Option<(Verdict, WhatsAppChannelStatus)> {
    let mut seen = Observed {
        leading,
        now,
        generation: 1,
        environment_name: "es-pro",
        environment: EnvironmentView::Usable,
        effective,
        holder: None,
        secret_name: "shop",
        secret: None,
        client_holder: None,
        fresh: false,
        stands: if registered {
            Stands::Wholly
        } else {
            Stands::Nothing
        },
        misses: 0,
        before: Before::of(old, 1, false, false),
        announced: Announced::Known,
        token: None,
        held: None,
        set: None,
    };
    let fails = |fault: &Option<KernelError>| fault.clone().map_or(Ok(()), Err);
    for _ in 0..10 {
        match decide(&seen) {
            Step::StandBy => return None,
            Step::ReadSecret => seen.secret = Some(Ok(())),
            Step::FetchToken => seen.token = Some(fails(&kernel.token)),
            Step::ReadWebhook => {
                let held = if kernel.read_back {
                    kernel.held.clone()
                } else {
                    Held::Unsupported
                };
                seen.held = Some(fails(&kernel.get).map(|()| held));
            }
            Step::SetWebhook => {
                assert_ne!(effective.mode, WebhookMode::Observe, "Observe sets nothing");
                kernel.sets += 1;
                if kernel.set.is_none() {
                    // A Kernel that masks keys goes on masking them.
                    let key_seen = kernel.held != Held::Current { key_seen: false };
                    kernel.held = Held::Current { key_seen };
                }
                seen.set = Some(fails(&kernel.set));
            }
            Step::Announce | Step::ComeBack(_) => panic!("a derived key needs no announcement"),
            Step::Done(verdict) => {
                let key = if effective.mode == WebhookMode::Legacy {
                    Key::Legacy { version: None }
                } else {
                    Key::Derived {
                        generation: 1,
                        id: "abcd",
                    }
                };
                let facts = Facts {
                    generation: 1,
                    now,
                    secret_version: Some("7"),
                    spaced: None,
                    webhook_url: Some("https://h/?apikey=****".into()),
                    key,
                    requested_at: None,
                    grace: KEY_GRACE,
                };
                return Some((verdict.clone(), status::build(old, &verdict, &facts)));
            }
        }
    }
    panic!("no verdict after ten steps: {seen:?}")
}

fn is_registered(effective: &Effective, verdict: &Verdict) -> bool {
    effective.mode != WebhookMode::Observe && verdict.reason.is_good()
}

proptest! {
    /// After its own effects there is nothing left to do, and nothing more to write.
    #[test]
    fn a_second_pass_sets_nothing_and_says_the_same(effective in settings(), mut kernel in model()) {
        let none = WhatsAppChannelStatus::default();
        let (verdict, first) = pass(&effective, &none, &mut kernel, false, start(), true).unwrap();
        let sets = kernel.sets;
        let registered = is_registered(&effective, &verdict);
        let later = start() + SignedDuration::from_secs(3600);
        let (again, second) = pass(&effective, &first, &mut kernel, registered, later, true).unwrap();
        // What can't be read back is set at each look, and what failed is tried again.
        let blind = !kernel.read_back;
        if verdict.reason.is_good() && !blind {
            prop_assert_eq!(kernel.sets, sets);
        }
        prop_assert_eq!(again.reason, verdict.reason);
        if !blind || kernel.sets == sets {
            prop_assert!(status::same(&first, &second), "{:#?} then {:#?}", first, second);
        }
    }

    /// Without the leader's claim no step is taken, at any point.
    #[test]
    fn who_does_not_lead_does_nothing(effective in settings(), mut kernel in model(), registered: bool) {
        let none = WhatsAppChannelStatus::default();
        prop_assert!(pass(&effective, &none, &mut kernel, registered, start(), false).is_none());
        prop_assert_eq!(kernel.sets, 0);
    }

    /// However often somebody else changes the webhook, and however often it is looked at: it is set so many times an
    /// hour at most.
    #[test]
    fn nobody_is_fought_for_ever(effective in settings(), waits in prop::collection::vec(1i64..1200, 1..60)) {
        let mut kernel = Model {
            held: Held::Empty, read_back: true, token: None, get: None, set: None, sets: 0,
        };
        let (mut status, mut now, mut registered) = (WhatsAppChannelStatus::default(), start(), false);
        let mut sets = Vec::new();
        for wait in waits {
            let before = kernel.sets;
            let (verdict, next) = pass(&effective, &status, &mut kernel, registered, now, true).unwrap();
            if kernel.sets > before {
                sets.push(now);
            }
            (status, registered) = (next, is_registered(&effective, &verdict));
            kernel.held = Held::Foreign { host: "other.example.com".into() };
            now += SignedDuration::from_secs(wait);
        }
        // The registration, the first taking over, and the put-backs.
        for (n, at) in sets.iter().enumerate() {
            let within = sets[..n].iter().filter(|before| at.duration_since(**before) < contest::WINDOW).count();
            prop_assert!(within <= contest::PUT_BACKS + 1, "{within} in the hour before {at}");
        }
    }

    /// What a status says is for people and stable: no secret, no id, no time, and kstatus can read it.
    #[test]
    fn a_status_is_readable_and_holds_nothing_that_varies(effective in settings(), mut kernel in model()) {
        let none = WhatsAppChannelStatus::default();
        let (verdict, status) = pass(&effective, &none, &mut kernel, false, start(), true).unwrap();
        let has = |kind: &str| status.conditions.iter().any(|one| one.type_ == kind && one.status == "True");
        prop_assert!(has(types::READY) == verdict.reason.is_good());
        prop_assert!(!(has(types::READY) && (has(types::RECONCILING) || has(types::STALLED))));
        prop_assert!(has(types::READY) || has(types::RECONCILING) != has(types::STALLED));
        for condition in &status.conditions {
            prop_assert_eq!(condition.observed_generation, Some(1));
            prop_assert!(condition.message.len() <= 1024);
            let digits = condition.message.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            prop_assert!(digits <= 3, "{}", condition.message);
            prop_assert!(!condition.message.contains("apikey") && !condition.message.contains(&effective.registration_scopes[0].replace("whatsapp", "x")));
        }
        // The next look is not at once, and comes.
        match verdict.next {
            Next::Retry { after } => prop_assert!(after.is_none_or(|after| after <= Duration::from_secs(3600))),
            Next::In(wait) => prop_assert!(wait > Duration::ZERO),
            Next::AtMoment | Next::OnChange => {}
        }
    }
}
