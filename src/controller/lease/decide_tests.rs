//! The rules one by one, on records made by hand. The simulation shows that together they keep the promise.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings(identity: &str) -> Settings {
    Settings {
        namespace: "aura".into(),
        name: "lease".into(),
        identity: identity.into(),
        timing: Timing::default(),
    }
}

fn election() -> Election {
    Election::new(settings("me"))
}

fn at(seconds: f64) -> Uptime {
    Duration::from_secs_f64(seconds)
}

fn wall() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

/// A Lease as the API server would answer it.
fn lease(version: &str, holder: &str) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some("lease".into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(12),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }),
    }
}

fn found(election: &mut Election, now: f64, lease: Lease) {
    election.answered(at(now), at(now), 0.0, Answer::Found(lease));
}

fn written(step: Step) -> Lease {
    match step {
        Step::Create(lease) | Step::Replace(lease) => *lease,
        other => panic!("{other:?}"),
    }
}

/// An election that leads since 0 s.
fn leading() -> Election {
    let mut election = election();
    found(&mut election, 0.0, lease("1", ""));
    let mut mine = written(election.step(at(0.0), wall()));
    mine.metadata.resource_version = Some("2".into());
    election.answered(at(0.0), at(0.1), 0.0, Answer::Written(mine));
    election
}

#[test]
fn what_the_api_server_asks_for_is_waited_for_by_a_candidate_and_by_a_leader_while_the_claim_lasts() {
    let mut candidate = election();
    candidate.answered(at(0.0), at(0.1), 0.0, Answer::Failed);
    candidate.put_off(at(7.0), at(0.1));
    assert_eq!(candidate.step(at(0.1), wall()), Step::Wait(at(6.9)));
    let mut leader = leading();
    let end = leader.claim(at(1.0)).unwrap();
    leader.put_off(at(60.0), at(1.0));
    let last = end.saturating_sub(Timing::default().retry_period());
    assert_eq!(
        leader.step(at(1.0), wall()),
        Step::Wait(last.saturating_sub(at(1.0)))
    );
}

#[test]
fn a_lease_that_is_not_there_is_created_at_once() {
    let mut election = election();
    assert_eq!(election.step(at(0.0), wall()), Step::Read);
    election.answered(at(0.0), at(0.1), 0.0, Answer::Absent);
    let Step::Create(lease) = election.step(at(0.1), wall()) else {
        panic!("not created")
    };
    let spec = lease.spec.as_ref().unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("me"));
    assert_eq!(spec.lease_duration_seconds, Some(12));
    assert_eq!(spec.lease_transitions, Some(0));
    assert_eq!(spec.acquire_time, Some(MicroTime(wall())));
    assert_eq!(spec.renew_time, Some(MicroTime(wall())));
    assert_eq!(
        (lease.metadata.name.as_deref(), election.claim(at(0.1))),
        (Some("lease"), None)
    );
}

#[test]
fn a_released_lease_is_taken_at_once_and_counted() {
    let mut election = election();
    found(&mut election, 0.0, lease("7", ""));
    let Step::Replace(lease) = election.step(at(0.0), wall()) else {
        panic!("not taken")
    };
    assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(lease.spec.as_ref().unwrap().lease_transitions, Some(4));
}

#[test]
fn anothers_record_runs_out_by_our_clock_from_when_we_first_had_it() {
    let mut election = election();
    let mut held = lease("1", "other");
    // Ten years old, says the other's clock.
    held.spec.as_mut().unwrap().renew_time = Some(MicroTime("2016-01-01T00:00:00Z".parse().unwrap()));
    for second in [100.0, 104.0, 111.9] {
        found(&mut election, second, held.clone());
        assert_eq!(
            election.step(at(second), wall()),
            Step::Wait(SECOND.mul_f64(if second > 111.0 { 0.1 } else { 2.0 }))
        );
    }
    assert!(matches!(election.step(at(112.0), wall()), Step::Replace(_)));

    held.metadata.resource_version = Some("2".into());
    found(&mut election, 112.0, held);
    assert_eq!(
        election.step(at(114.0), wall()),
        Step::Read,
        "renewed: it runs from here"
    );
    assert!(matches!(election.step(at(124.0), wall()), Step::Replace(_)));
}

#[test]
fn an_answer_that_was_long_under_way_counts_from_when_it_is_here() {
    let mut election = election();
    election.answered(at(0.0), at(1.5), 0.0, Answer::Found(lease("1", "other")));
    assert_eq!(election.step(at(13.4), wall()), Step::Read);
    assert!(matches!(election.step(at(13.5), wall()), Step::Replace(_)));
}

#[test]
fn the_holders_own_duration_counts_and_a_senseless_one_is_bounded() {
    for (seconds, until) in [
        (Some(30), 30.0),
        (Some(3), 3.0),
        (None, 12.0),
        (Some(0), 12.0),
        (Some(-5), 12.0),
        (Some(i32::MAX), 600.0),
    ] {
        let mut election = election();
        let mut held = lease("1", "other");
        held.spec.as_mut().unwrap().lease_duration_seconds = seconds;
        found(&mut election, 0.0, held);
        assert_eq!(election.step(at(until - 0.01), wall()), Step::Read, "{seconds:?}");
        assert!(
            matches!(election.step(at(until), wall()), Step::Replace(_)),
            "{seconds:?}"
        );
    }
    let mut election = election();
    let mut empty = lease("1", "other");
    empty.spec = None;
    found(&mut election, 0.0, empty);
    assert!(
        matches!(election.step(at(0.0), wall()), Step::Replace(_)),
        "held by nobody"
    );
}

#[test]
fn a_claim_begins_with_the_answer_and_ends_a_deadline_after_the_sending() {
    let election = leading();
    assert_eq!(election.claim(at(0.1)), Some(at(8.0)));
    assert_eq!(election.claim(at(8.0)), None);
    assert_eq!(election.step(at(1.0), wall()), Step::Wait(SECOND));
    let renewed = written(election.step(at(2.0), wall()));
    let spec = renewed.spec.unwrap();
    assert_eq!(renewed.metadata.resource_version.as_deref(), Some("2"));
    assert_eq!(spec.lease_transitions, Some(4), "a renewal is no transition");
}

#[test]
fn an_error_neither_ends_a_claim_nor_extends_it() {
    for answer in [Answer::Failed, Answer::Unknown, Answer::Conflict] {
        let mut election = leading();
        election.answered(at(2.0), at(3.0), 0.0, answer);
        assert_eq!(election.claim(at(3.0)), Some(at(8.0)));
        assert_eq!(election.claim(at(8.0)), None);
    }
}

#[test]
fn who_sees_another_in_the_lease_steps_down_at_once() {
    for holder in ["other", ""] {
        let mut election = leading();
        found(&mut election, 3.0, lease("9", holder));
        assert_eq!(election.claim(at(3.0)), None);
    }
}

#[test]
fn a_renewal_whose_answer_was_lost_is_found_and_made_again() {
    let mut election = leading();
    election.answered(at(2.0), at(4.0), 0.0, Answer::Unknown);
    assert!(matches!(election.step(at(4.0), wall()), Step::Replace(_)));
    election.answered(at(4.0), at(4.1), 0.0, Answer::Conflict);
    assert_eq!(election.step(at(4.1), wall()), Step::Read);
    found(&mut election, 4.2, lease("3", "me"));
    assert_eq!(election.claim(at(4.2)), Some(at(8.0)), "reading extends nothing");
    let renewed = written(election.step(at(4.2), wall()));
    assert_eq!(renewed.metadata.resource_version.as_deref(), Some("3"));
}

#[test]
fn a_second_conflict_in_a_row_is_no_reason_for_haste() {
    let mut election = leading();
    election.answered(at(2.0), at(2.1), 0.0, Answer::Conflict);
    found(&mut election, 2.2, lease("3", "me"));
    election.answered(at(2.2), at(2.3), 0.0, Answer::Conflict);
    assert_eq!(
        election.step(at(2.3), wall()),
        Step::Wait(Duration::from_millis(1_900))
    );
}

#[test]
fn a_lease_deleted_under_its_holder_is_left_to_him_until_it_would_have_run_out() {
    let mut election = election();
    found(&mut election, 0.0, lease("1", "other"));
    election.answered(at(2.0), at(2.0), 0.0, Answer::Absent);
    assert_eq!(election.step(at(4.0), wall()), Step::Read);
    assert!(matches!(election.step(at(12.0), wall()), Step::Create(_)));
    // The holder itself makes it again at once.
    let mut holder = leading();
    holder.answered(at(2.0), at(2.0), 0.0, Answer::Absent);
    assert!(matches!(holder.step(at(2.0), wall()), Step::Create(_)));
    assert_eq!(holder.claim(at(2.0)), Some(at(8.0)));
}

#[test]
fn looks_are_spread_and_never_further_apart_than_the_retry_period() {
    for (chance, wait) in [(0.0, 2.0), (0.5, 1.5), (1.0, 1.0)] {
        let mut election = election();
        election.answered(at(0.0), at(0.0), chance, Answer::Found(lease("1", "other")));
        assert_eq!(election.step(at(0.0), wall()), Step::Wait(at(wait)));
    }
}

#[test]
fn what_others_wrote_into_the_lease_is_kept() {
    let mut election = election();
    let mut released = lease("1", "");
    released.metadata.labels = Some([("team".to_owned(), "aura".to_owned())].into());
    released.spec.as_mut().unwrap().lease_transitions = Some(-4);
    found(&mut election, 0.0, released.clone());
    let taken = written(election.step(at(0.0), wall()));
    assert_eq!(taken.metadata.labels, released.metadata.labels);
    assert_eq!(taken.spec.unwrap().lease_transitions, Some(1));
}

#[test]
fn only_our_own_lease_is_released_and_its_count_is_kept() {
    let mut election = leading();
    election.resign();
    assert_eq!(election.claim(at(1.0)), None);
    let released = written(election.release(wall()).unwrap());
    let spec = released.spec.as_ref().unwrap();
    assert_eq!(released.metadata.resource_version.as_deref(), Some("2"));
    assert_eq!(
        (spec.holder_identity.as_deref(), spec.lease_transitions),
        (Some(""), Some(4))
    );
    election.answered(at(1.0), at(1.1), 0.0, Answer::Conflict);
    assert_eq!(election.release(wall()), Some(Step::Read));
    found(&mut election, 1.2, lease("3", "other"));
    assert_eq!(election.release(wall()), None);

    let mut candidate = Election::new(settings("me"));
    assert_eq!(candidate.release(wall()), None, "never had it");
    found(&mut candidate, 0.0, lease("1", ""));
    candidate.answered(at(0.0), at(2.0), 0.0, Answer::Unknown);
    assert_eq!(
        candidate.release(wall()),
        Some(Step::Read),
        "may have it after all"
    );
}

#[path = "simulation_tests.rs"]
mod simulation;
