//! What holds for every channel, whatever Kernel does: the decision and the status together, against a small model of
//! Kernel and of the runner.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::{
    super::status::{self, Facts, KEY_GRACE, Key, Told},
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
    /// The leader's claim is lost after so many steps.
    leads_for: usize,
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
        Model { held, read_back, token, get, set, sets: 0, leads_for: usize::MAX }
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
    now: Timestamp,
) -> Option<(Verdict, WhatsAppChannelStatus)> {
    pass_in(&EnvironmentView::Usable, effective, old, kernel, now)
}

/// What Kernel is told, as the status keeps it.
const URL: &str = "https://h/?apikey=****";

fn key(effective: &Effective) -> Key<'static> {
    if effective.mode == WebhookMode::Legacy {
        Key::Legacy { version: None }
    } else {
        Key::Derived {
            generation: 1,
            id: "abcd",
        }
    }
}

fn pass_in(
    environment: &EnvironmentView,
    effective: &Effective,
    old: &WhatsAppChannelStatus,
    kernel: &mut Model,
    now: Timestamp,
) -> Option<(Verdict, WhatsAppChannelStatus)> {
    let told = Told {
        mode: effective.mode,
        generation: 1,
        secret_version: Some("7"),
        webhook_url: Some(URL.into()),
        key: key(effective),
    };
    let mut seen = Observed {
        leading: true,
        now,
        generation: 1,
        environment_name: "es-pro",
        environment: environment.clone(),
        effective,
        holder: None,
        secret_name: "shop",
        secret: None,
        client_holder: None,
        fresh: false,
        // As after a restart: what was registered is what the status says.
        stands: told.stands_in(old),
        told: told.was_set(old),
        misses: 0,
        parked: false,
        before: Before::of(old, 1, false, false),
        announced: Announced::Known,
        token: None,
        held: None,
        set: None,
    };
    let fails = |fault: &Option<KernelError>| fault.clone().map_or(Ok(()), Err);
    for step in 0..10 {
        seen.leading = step < kernel.leads_for;
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
                let facts = Facts {
                    generation: 1,
                    now,
                    secret_version: Some("7"),
                    spaced: None,
                    webhook_url: Some(URL.into()),
                    key: key(effective),
                    requested_at: None,
                    grace: KEY_GRACE,
                };
                return Some((verdict.clone(), status::build(old, &verdict, &facts)));
            }
        }
    }
    panic!("no verdict after ten steps: {seen:?}")
}

fn environment() -> impl Strategy<Value = EnvironmentView> {
    prop_oneof![
        6 => Just(EnvironmentView::Usable),
        1 => (1u64..10_000).prop_map(|left| EnvironmentView::Held {
            reason: "CHG-1".into(),
            left: Duration::from_secs(left),
        }),
        1 => Just(EnvironmentView::Unknown),
        1 => Just(EnvironmentView::NotAllowed),
    ]
}

proptest! {
    /// After its own effects there is nothing left to do, and nothing more to write.
    #[test]
    fn a_second_pass_sets_nothing_and_says_the_same(effective in settings(), mut kernel in model()) {
        let none = WhatsAppChannelStatus::default();
        let (verdict, first) = pass(&effective, &none, &mut kernel, start()).unwrap();
        let sets = kernel.sets;
        let later = start() + SignedDuration::from_secs(3600);
        let (again, second) = pass(&effective, &first, &mut kernel, later).unwrap();
        // What can't be read back is set at each look, and what failed is tried again.
        let blind = !kernel.read_back;
        if verdict.reason.is_good() && !blind {
            prop_assert_eq!(kernel.sets, sets);
        }
        prop_assert_eq!(again.reason, verdict.reason);
        // What may have replaced another party's webhook is counted.
        if !(verdict.took_over || again.took_over) && (!blind || kernel.sets == sets) {
            prop_assert!(status::same(&first, &second), "{:#?} then {:#?}", first, second);
        }
    }

    /// Without the leader's claim no step is taken, whenever it was lost.
    #[test]
    fn who_does_not_lead_does_nothing(
        effective in settings(),
        model in model(),
        leads_for in 0usize..5,
        claimed_by_another: bool,
    ) {
        let none = WhatsAppChannelStatus::default();
        let (mut whole, mut cut) = (model.clone(), Model { leads_for, ..model });
        let complete = pass(&effective, &none, &mut whole, start());
        // It needs a step for each of secret, token, look and setting, and one to say what came of it.
        match pass(&effective, &none, &mut cut, start()) {
            None => prop_assert!(cut.sets <= whole.sets),
            Some(ended) => prop_assert_eq!(Some(ended), complete),
        }
        if leads_for < 4 {
            prop_assert_eq!(cut.sets, 0, "setting is the fourth step");
        }
        let clear = Effective { on_delete: OnDelete::Clear, mode: WebhookMode::Manage, ..effective };
        let deleted = Observed {
            leading: false,
            secret: Some(Ok(())),
            token: Some(Ok(())),
            held: Some(Ok(cut.held.clone())),
            ..super::tests::seen(&clear)
        };
        let age = Age { all: Duration::ZERO, failing: Duration::ZERO };
        prop_assert_eq!(decide_cleanup(&deleted, claimed_by_another, age), CleanupStep::StandBy);
    }

    /// However often somebody else changes the webhook, to a URL of their own or to ours with another key, and whatever
    /// fails in between: it is set so many times an hour at most. What a fight has come to is not forgotten with the next
    /// failure.
    #[test]
    fn nobody_is_fought_for_ever(
        effective in settings(),
        rounds in prop::collection::vec((1i64..1200, fault(), fault(), environment(), 0u8..3), 1..60),
    ) {
        let mut kernel = Model {
            held: Held::Empty, read_back: true, token: None, get: None, set: None, sets: 0, leads_for: usize::MAX,
        };
        let (mut status, mut now) = (WhatsAppChannelStatus::default(), start());
        let (mut sets, mut registered) = (Vec::new(), false);
        for (wait, token, get, environment, rival) in rounds {
            let before = kernel.sets;
            (kernel.token, kernel.get) = (token, get);
            status = pass_in(&environment, &effective, &status, &mut kernel, now).unwrap().1;
            if kernel.sets > before {
                sets.push(now);
                registered = true;
            }
            if registered {
                kernel.held = match rival {
                    0 => Held::Foreign { host: "other.example.com".into() },
                    1 => Held::Outdated,
                    _ => Held::Empty,
                };
            }
            now += SignedDuration::from_secs(wait);
        }
        // The registration, the first taking over, the put-backs, and one that is ours by all that the status says: a
        // failure takes the Ready with it.
        for (n, at) in sets.iter().enumerate() {
            let within = sets[..n].iter().filter(|before| at.duration_since(**before) < contest::WINDOW).count();
            prop_assert!(within <= contest::PUT_BACKS + 1, "{within} in the hour before {at}");
        }
    }

    /// A webhook that Kernel was found to call for somebody else is not set over, however it fails or hides afterwards,
    /// as long as nobody says so.
    #[test]
    fn what_is_anothers_is_refused_through_every_trouble(
        rounds in prop::collection::vec((fault(), fault(), any::<bool>(), environment()), 1..20),
        mode in prop_oneof![Just(WebhookMode::Manage), Just(WebhookMode::Legacy)],
    ) {
        let spec = WhatsAppChannelSpec::example();
        let refuse = Effective {
            mode,
            existing: Existing::Refuse,
            ..Effective::new(&spec, &ChannelDefaults::default())
        };
        let mut kernel = Model {
            held: Held::Foreign { host: "other.example.com".into() },
            read_back: true, token: None, get: None, set: None, sets: 0, leads_for: usize::MAX,
        };
        let mut status = pass(&refuse, &WhatsAppChannelStatus::default(), &mut kernel, start()).unwrap().1;
        for (token, get, read_back, environment) in rounds {
            (kernel.token, kernel.get, kernel.read_back) = (token, get, read_back);
            status = pass_in(&environment, &refuse, &status, &mut kernel, start()).unwrap().1;
            prop_assert_eq!(kernel.sets, 0);
        }
        (kernel.token, kernel.get) = (None, Some(KernelError::TimedOut));
        let (verdict, _) = pass(&refuse, &status, &mut kernel, start()).unwrap();
        prop_assert_eq!(verdict.reason, Reason::WebhookForeign, "it is not forgotten");
    }

    /// What a status says is for people and stable: no secret, no id, no time, and kstatus can read it.
    #[test]
    fn a_status_is_readable_and_holds_nothing_that_varies(
        effective in settings(),
        mut kernel in model(),
        environment in environment(),
    ) {
        let none = WhatsAppChannelStatus::default();
        let (verdict, status) = pass_in(&environment, &effective, &none, &mut kernel, start()).unwrap();
        let has = |kind: &str| status.conditions.iter().any(|one| one.type_ == kind && one.status == "True");
        prop_assert!(has(types::READY) == verdict.reason.is_good());
        prop_assert!(!(has(types::READY) && (has(types::RECONCILING) || has(types::STALLED))));
        prop_assert!(has(types::READY) || has(types::RECONCILING) != has(types::STALLED));
        for condition in &status.conditions {
            prop_assert_eq!(condition.observed_generation, Some(1));
            prop_assert!(condition.message.len() <= 1024);
            // An id, a time, a port, a phone number: all have more digits in a row than an HTTP status.
            let digits = condition.message.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            prop_assert!(digits <= 3, "{}", condition.message);
            prop_assert!(!condition.message.contains("apikey") && !condition.message.contains("://"));
        }
        // A second look by another process at another time says the same, word for word.
        let later = start() + SignedDuration::from_secs(86_400);
        let (_, again) = pass_in(&environment, &effective, &none, &mut kernel.clone(), later).unwrap();
        let words = |status: &WhatsAppChannelStatus| {
            status.conditions.iter().map(|one| (one.type_.clone(), one.message.clone())).collect::<Vec<_>>()
        };
        if kernel.sets == 0 {
            prop_assert_eq!(words(&again), words(&status));
        }
    }
}
