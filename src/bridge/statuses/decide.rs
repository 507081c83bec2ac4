//! What is to be done about a status: wait for its message, tell Aura, send the message again, tell the user. Pure.
//!
//! Not for doing it. Upholds law 3 (never back: a status that is behind what was told before goes no further) and law 1
//! (each status that was accepted goes out or ends with a reason).

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{
    api::{Effective, ReportedStatus},
    journal::{Origin, Reference},
    whatsapp::{Class, Trouble},
};

/// How long a status waits for the record of its send.
pub const WAIT: Duration = Duration::from_secs(10 * 60);
/// How long after WhatsApp's report a message is sent again, the first time, the second and the last.
pub const AGAIN_AFTER: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(15),
    Duration::from_secs(120),
];
/// Messages of which it is remembered how far they got; beyond, the one that was heard of first is forgotten.
const REMEMBERED: usize = 50_000;

/// A status.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What it says.
    pub class: Class,
    /// Why, of a failure.
    pub trouble: Trouble,
    /// When it was accepted, in ms since 1970.
    pub accepted_at_ms: u64,
    /// It says for which user the message was.
    pub names_user: bool,
}

/// The message that it speaks of.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Where it comes from.
    pub origin: Origin,
    /// When it was accepted, in ms since 1970.
    pub accepted_at_ms: u64,
    /// The rank of what Aura was told of it.
    pub told: u8,
}

/// What is known of the message.
#[derive(Clone, Copy, Debug)]
pub enum Known {
    /// No send with this id is recorded.
    NotYet,
    /// It was sent, and can't be read any more.
    Lost,
    /// This.
    Message(Message),
}

/// What the channel says.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The statuses that Aura is told.
    pub told: &'a [ReportedStatus],
    /// There is a text for users who lost a reply.
    pub has_text: bool,
    /// How old a reply may get.
    pub max_age: Duration,
}

impl<'a> Rules<'a> {
    /// Those of a channel that is not known.
    pub const NONE: Rules<'static> = Rules {
        told: &[],
        has_text: false,
        max_age: Duration::ZERO,
    };

    /// Those of a channel's settings.
    pub fn of(effective: &'a Effective) -> Self {
        Self {
            told: &effective.statuses,
            has_text: !effective.undelivered_text.trim().is_empty(),
            max_age: effective.max_age_to_user,
        }
    }

    /// Whether Aura is told.
    pub fn tells(&self, class: Class) -> bool {
        let word = match class {
            Class::Sent => ReportedStatus::Sent,
            Class::Delivered => ReportedStatus::Delivered,
            Class::Read => ReportedStatus::Read,
            Class::Failed => ReportedStatus::Failed,
            Class::Other => ReportedStatus::Other,
        };
        self.told.contains(&word)
    }
}

/// What is done about a failed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    None,
    /// It is sent again.
    Again,
    /// The user is told.
    Tell,
}

/// What is to be done about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Its message's send is waited for until then, in ms since 1970.
    WaitForSend(u64),
    /// Its message is sent again then, in ms since 1970: not before.
    WaitFor(u64),
    /// More is known already: it ends here.
    Late,
    /// Nobody knows whose it is: it ends here, for a person to see.
    Nobodys,
    /// This.
    Do {
        /// About the message.
        remedy: Remedy,
        /// Aura is told.
        tell_aura: bool,
    },
}

/// Decides about a status. `heard` is the highest rank that was heard of the message before, `now_ms` in ms since 1970.
///
/// All but the waiting follows from what is on disk and from the channel's settings, so that a second look, after a
/// restart or at another attempt, finds the same.
pub fn decide(report: &Report, known: Known, heard: u8, rules: &Rules<'_>, now_ms: u64) -> Plan {
    let tell_aura = rules.tells(report.class);
    let (remedy, told) = match known {
        Known::NotYet => {
            let until = report.accepted_at_ms.saturating_add(ms(WAIT));
            if now_ms < until {
                return Plan::WaitForSend(until);
            }
            (Remedy::None, 0)
        }
        Known::Lost => (Remedy::None, 0),
        Known::Message(message) => (remedy(report, &message, rules), message.told),
    };
    let rank = report.class.rank();
    if rank > 0 && rank < told.max(heard) {
        return Plan::Late;
    }
    if !matches!(known, Known::Message(_)) && !report.names_user {
        return Plan::Nobodys;
    }
    if let (Remedy::Again, Known::Message(message)) = (remedy, known) {
        let at = report.accepted_at_ms + ms(pause(message.origin).unwrap_or_default());
        if now_ms < at {
            return Plan::WaitFor(at);
        }
    }
    Plan::Do { remedy, tell_aura }
}

/// What is done about a failure. It never answers a failure of the bridge's own words, and never sends again what is
/// older than a reply may get.
fn remedy(report: &Report, message: &Message, rules: &Rules<'_>) -> Remedy {
    if report.class != Class::Failed || message.origin == Origin::Bridge {
        return Remedy::None;
    }
    let age = report.accepted_at_ms.saturating_sub(message.accepted_at_ms);
    match report.trouble {
        Trouble::Passing if pause(message.origin).is_some() && age <= ms(rules.max_age) => Remedy::Again,
        Trouble::Passing | Trouble::Message if rules.has_text => Remedy::Tell,
        // A text to a user whom nothing reaches, or from a number that may not send, would be lost as well.
        _ => Remedy::None,
    }
}

/// How long a message is not sent again after a failure; `None`: it was sent often enough.
fn pause(origin: Origin) -> Option<Duration> {
    let times = match origin {
        Origin::Resent { times, .. } => usize::from(times),
        _ => 0,
    };
    AGAIN_AFTER.get(times).copied()
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How far the last messages got, as far as it was heard of, also where Aura is not told. Memory only: what Aura was
/// told stands in the journal as well.
#[derive(Debug, Default)]
pub struct Heard {
    ranks: HashMap<Reference, u8>,
    order: VecDeque<Reference>,
}

impl Heard {
    /// The highest rank that was heard of before; then this one counts too.
    pub fn hear(&mut self, message: Reference, class: Class) -> u8 {
        let rank = class.rank();
        if let Some(before) = self.ranks.get_mut(&message) {
            let highest = *before;
            *before = highest.max(rank);
            return highest;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ranks.remove(&oldest);
        }
        self.order.push_back(message);
        self.ranks.insert(message, rank);
        0
    }

    /// The highest rank that was heard of.
    pub fn of(&self, message: Reference) -> u8 {
        self.ranks.get(&message).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const ALL: [ReportedStatus; 5] = [
        ReportedStatus::Failed,
        ReportedStatus::Sent,
        ReportedStatus::Delivered,
        ReportedStatus::Read,
        ReportedStatus::Other,
    ];

    fn rules(told: &[ReportedStatus], has_text: bool) -> Rules<'_> {
        Rules {
            told,
            has_text,
            max_age: Duration::from_secs(3600),
        }
    }

    fn report(class: Class, trouble: Trouble) -> Report {
        Report {
            class,
            trouble,
            accepted_at_ms: NOW,
            names_user: true,
        }
    }

    fn sent(origin: Origin) -> Known {
        Known::Message(Message {
            origin,
            accepted_at_ms: NOW - 1000,
            told: 0,
        })
    }

    fn again(times: u8) -> Origin {
        Origin::Resent { times, part: 0 }
    }

    /// What is done about a failure in the end, however long that takes.
    fn done(trouble: Trouble, known: Known, has_text: bool) -> Plan {
        let later = NOW + ms(WAIT);
        decide(
            &report(Class::Failed, trouble),
            known,
            0,
            &rules(&[ReportedStatus::Failed], has_text),
            later,
        )
    }

    fn plan(remedy: Remedy) -> Plan {
        Plan::Do {
            remedy,
            tell_aura: true,
        }
    }

    #[test]
    fn a_failure_that_may_pass_has_its_message_sent_again_a_bounded_number_of_times() {
        for times in 0..3 {
            let known = sent(if times == 0 { Origin::Peer } else { again(times) });
            assert_eq!(done(Trouble::Passing, known, true), plan(Remedy::Again));
            let pause = ms(AGAIN_AFTER[usize::from(times)]);
            let failed = report(Class::Failed, Trouble::Passing);
            let at = |now| decide(&failed, known, 0, &rules(&ALL, true), now);
            assert_eq!(at(NOW + pause - 1), Plan::WaitFor(NOW + pause));
            assert_eq!(at(NOW + pause), plan(Remedy::Again));
        }
        assert_eq!(done(Trouble::Passing, sent(again(3)), true), plan(Remedy::Tell));
        assert_eq!(done(Trouble::Passing, sent(again(3)), false), plan(Remedy::None));
    }

    #[test]
    fn what_is_too_old_is_not_sent_again() {
        let old = Known::Message(Message {
            origin: Origin::Peer,
            accepted_at_ms: NOW - 3_600_001,
            told: 0,
        });
        assert_eq!(done(Trouble::Passing, old, true), plan(Remedy::Tell));
    }

    #[test]
    fn a_user_is_told_only_what_may_reach_him_and_never_of_the_telling_itself() {
        assert_eq!(
            done(Trouble::Message, sent(Origin::Peer), true),
            plan(Remedy::Tell)
        );
        assert_eq!(
            done(Trouble::Message, sent(Origin::Peer), false),
            plan(Remedy::None)
        );
        for trouble in [Trouble::User, Trouble::Number] {
            assert_eq!(done(trouble, sent(Origin::Peer), true), plan(Remedy::None));
        }
        for trouble in [Trouble::Passing, Trouble::Message, Trouble::User] {
            assert_eq!(done(trouble, sent(Origin::Bridge), true), plan(Remedy::None));
        }
    }

    #[test]
    fn a_status_before_its_send_waits_for_it_and_then_goes_out_if_it_names_a_user() {
        let failed = report(Class::Failed, Trouble::Passing);
        let at = |report: &Report, now| decide(report, Known::NotYet, 0, &rules(&ALL, true), now);
        let until = NOW + 600_000;
        assert_eq!(at(&failed, NOW), Plan::WaitForSend(until));
        assert_eq!(at(&failed, until - 1), Plan::WaitForSend(until));
        assert_eq!(
            at(&failed, until),
            plan(Remedy::None),
            "nothing is known to send again"
        );
        let nameless = Report {
            names_user: false,
            ..failed
        };
        assert_eq!(at(&nameless, until), Plan::Nobodys);
        let lost = decide(&failed, Known::Lost, 0, &rules(&ALL, true), NOW);
        assert_eq!(
            lost,
            plan(Remedy::None),
            "what can't be read any more is not waited for"
        );
    }

    #[test]
    fn a_failure_of_what_was_delivered_changes_nothing() {
        let failed = report(Class::Failed, Trouble::Passing);
        let heard = Class::Delivered.rank();
        assert_eq!(
            decide(&failed, sent(Origin::Peer), heard, &rules(&ALL, true), NOW),
            Plan::Late
        );
    }

    #[test]
    fn how_far_a_message_got_is_remembered_of_a_bounded_number() {
        let mut heard = Heard::default();
        let message = |n: usize| Reference(u128::try_from(n).unwrap().to_be_bytes());
        assert_eq!(heard.hear(message(0), Class::Read), 0);
        assert_eq!(heard.hear(message(0), Class::Sent), Class::Read.rank());
        assert_eq!(heard.of(message(0)), Class::Read.rank());
        for n in 1..=REMEMBERED {
            heard.hear(message(n), Class::Sent);
        }
        assert_eq!((heard.ranks.len(), heard.order.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(heard.of(message(0)), 0);
    }

    fn class() -> impl Strategy<Value = Class> {
        prop::sample::select(&Class::ALL[..])
    }

    fn trouble() -> impl Strategy<Value = Trouble> {
        prop::sample::select(&[Trouble::Passing, Trouble::Number, Trouble::User, Trouble::Message][..])
    }

    fn origin() -> impl Strategy<Value = Origin> {
        prop_oneof![
            Just(Origin::Peer),
            Just(Origin::Bridge),
            (0..64_u8).prop_map(again)
        ]
    }

    proptest! {
        /// Whatever comes in whatever order, with a restart anywhere: what Aura is told never goes back.
        #[test]
        fn aura_is_never_told_less_than_before(
            statuses in prop::collection::vec((class(), any::<bool>()), 0..20),
        ) {
            let (mut heard, mut told, mut last) = (Heard::default(), 0, 0);
            let message = Reference([1; 16]);
            for (class, restart) in statuses {
                if restart {
                    heard = Heard::default();
                }
                let known = Known::Message(Message { origin: Origin::Peer, accepted_at_ms: NOW, told });
                let report = report(class, Trouble::Message);
                let before = heard.hear(message, class);
                match decide(&report, known, before, &rules(&ALL, false), NOW) {
                    Plan::Do { tell_aura: true, .. } if class != Class::Other => {
                        prop_assert!(class.rank() >= last);
                        last = class.rank();
                        told = told.max(last);
                    }
                    Plan::Do { tell_aura: true, .. } => {}
                    plan => prop_assert_eq!(plan, Plan::Late),
                }
            }
        }

        /// Each status ends: when all its waits are over something is done, or it is late or nobody's.
        #[test]
        fn nothing_waits_for_ever_and_no_message_is_sent_again_for_ever(
            class in class(), trouble in trouble(), origin in origin(), has_text: bool, known in 0..3_u8,
            names_user: bool,
        ) {
            let report = Report { names_user, ..report(class, trouble) };
            let known = [Known::NotYet, Known::Lost, sent(origin)][usize::from(known)];
            let plan = decide(&report, known, 0, &rules(&ALL, has_text), NOW + ms(WAIT));
            prop_assert!(!matches!(plan, Plan::WaitForSend(_) | Plan::WaitFor(_)));
            if let Plan::Do { remedy, .. } = plan {
                if remedy != Remedy::None {
                    prop_assert!(class == Class::Failed && matches!(known, Known::Message(_)));
                    prop_assert!(origin != Origin::Bridge);
                }
                if let (Remedy::Again, Origin::Resent { times, .. }) = (remedy, origin) {
                    prop_assert!(times < 3);
                }
                prop_assert!(remedy != Remedy::Tell || has_text);
            }
        }
    }
}
