//! What a person on call is shown of a message, and how he says which ones he means. Pure.
//!
//! Contacts are told of by their digests, times and numbers as they are; no text and no phone number (Law 6): those are
//! `body`'s, which the configuration must allow.

use std::{collections::HashSet, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::{ChannelId, Period},
    bridge::trail::{Step, Steps, What},
    journal::{Direction, Entry, Kept, Kind, Lane, Seq, Standing, Wanted},
    telemetry::Context,
    whatsapp::Class,
};

/// Messages of a page where nobody says how many.
pub(super) const LIMIT: usize = 100;
/// The most messages of a page.
pub(super) const MAX_LIMIT: usize = 500;
/// The longest reason of a change, in characters.
const MAX_BECAUSE: usize = 200;
/// So many digits in a row may be somebody's phone number.
const TOO_MANY_DIGITS: usize = 9;

/// What was asked can't be understood: what to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub String);

fn wrong<T>(message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(message.into()))
}

/// In which state messages are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Pending,
    Dead,
    Sent,
    /// Pending, in a lane that is parked.
    Parked,
}

/// The first bytes of a contact's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContactPrefix(Vec<u8>);

impl ContactPrefix {
    pub fn parse(text: &str) -> Result<Self, Wrong> {
        let hex = text.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        let fine = (12..=32).contains(&hex.len())
            && hex.len().is_multiple_of(2)
            && hex.iter().all(u8::is_ascii_hexdigit);
        let bytes: Option<Vec<u8>> = hex.chunks(2).map(byte).collect();
        match bytes.filter(|_| fine) {
            Some(bytes) => Ok(Self(bytes)),
            None => wrong("contact: the twelve hex digits that logs show, never a phone number"),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_of(&self, lane: &Lane) -> bool {
        lane.contact.0.starts_with(&self.0)
    }
}

/// Which messages a list is asked for, as it stands in the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ListQuery {
    pub state: Option<String>,
    pub channel: Option<String>,
    pub contact: Option<String>,
    pub direction: Option<String>,
    pub reason: Option<String>,
    pub older_than: Option<String>,
    pub limit: Option<usize>,
    pub after: Option<u64>,
}

/// Which messages are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub wish: Option<Wish>,
    pub channel: Option<ChannelId>,
    pub contact: Option<ContactPrefix>,
    pub direction: Option<Direction>,
    pub reason: Option<String>,
    pub older_than: Option<Duration>,
    pub limit: usize,
    pub after: Seq,
}

impl Filter {
    pub fn new(query: &ListQuery) -> Result<Self, Wrong> {
        let wish = match query.state.as_deref() {
            None => None,
            Some("pending") => Some(Wish::Pending),
            Some("dead") => Some(Wish::Dead),
            Some("sent") => Some(Wish::Sent),
            Some("parked") => Some(Wish::Parked),
            Some(_) => return wrong("state: pending, dead, sent or parked"),
        };
        let limit = query.limit.unwrap_or(LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return wrong(format!("limit: from 1 to {MAX_LIMIT}"));
        }
        let older_than = query.older_than.as_ref().map(|text| Period(text.clone()).parse());
        Ok(Self {
            wish,
            channel: query.channel.as_deref().map(channel).transpose()?,
            contact: query.contact.as_deref().map(ContactPrefix::parse).transpose()?,
            direction: query.direction.as_deref().map(direction).transpose()?,
            reason: query.reason.clone(),
            older_than: older_than
                .transpose()
                .map_err(|error| Wrong(format!("olderThan: {error}")))?,
            limit,
            after: Seq(query.after.unwrap_or_default()),
        })
    }

    /// What of it the journal tells without reading a message.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            kind: self.wish.map(|wish| match wish {
                Wish::Pending | Wish::Parked => Kind::Pending,
                Wish::Dead => Kind::DeadLetter,
                Wish::Sent => Kind::Sent,
            }),
            channel: self.channel.map(|channel| *channel.as_bytes()),
            direction: self.direction,
        }
    }

    /// Whether a message is meant.
    pub fn takes(&self, kept: &Kept, parked: &HashSet<Lane>, now_ms: u64) -> bool {
        let lane = kept.address.lane();
        let age = Duration::from_millis(now_ms.saturating_sub(kept.accepted_at_ms));
        let reason = match &kept.standing {
            Standing::DeadLetter { reason, .. } => Some(reason),
            _ => None,
        };
        self.contact.as_ref().is_none_or(|contact| contact.is_of(&lane))
            && self.older_than.is_none_or(|older| age > older)
            && self.reason.as_ref().is_none_or(|wanted| reason == Some(wanted))
            && (self.wish != Some(Wish::Parked) || parked.contains(&lane))
    }
}

/// A channel's id as it was written.
pub(super) fn channel(text: &str) -> Result<ChannelId, Wrong> {
    text.parse()
        .map_err(|_| Wrong("channel: the channel's UUID, as in spec.channelId".to_owned()))
}

/// A direction's word, as in logs and metrics.
pub(super) fn direction(text: &str) -> Result<Direction, Wrong> {
    match text {
        "to_aura" => Ok(Direction::ToAura),
        "to_user" => Ok(Direction::ToKernel),
        _ => wrong("direction: to_aura or to_user"),
    }
}

/// Why somebody changes something, as it is kept in the audit stream.
pub(super) fn because(text: Option<&str>) -> Result<String, Wrong> {
    let text = text.unwrap_or_default().trim();
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if text.is_empty() {
        wrong("because: say why; it is kept in the audit stream")
    } else if text.chars().count() > MAX_BECAUSE {
        wrong(format!("because: at most {MAX_BECAUSE} characters"))
    } else if text.chars().any(char::is_control) {
        wrong("because: one line")
    } else if digits.unwrap_or_default() >= TOO_MANY_DIGITS {
        wrong("because: no phone numbers; it is kept in the audit stream")
    } else {
        Ok(text.to_owned())
    }
}

/// A time as it is written.
pub(super) fn time(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map(|time| time.to_string())
        .unwrap_or_default()
}

/// What is shown of a message in a list.
pub(super) fn message(kept: &Kept, parked: &HashSet<Lane>, steps: Option<&Steps>, now_ms: u64) -> Value {
    let lane = kept.address.lane();
    let is_parked = parked.contains(&lane);
    // The trail knows attempts that are not worth a record of the journal's.
    let attempts = steps.map_or(0, |steps| u32::from(steps.attempts()));
    let mut shown = json!({
        "seq": kept.seq.0,
        "direction": crate::bridge::deliver::word(lane.direction),
        "channel": ChannelId::from_bytes(lane.channel).to_string(),
        "contact": lane.contact.to_string(),
        "state": match kept.standing {
            Standing::Pending if is_parked => "parked",
            Standing::Pending => "pending",
            Standing::DeadLetter { .. } => "dead",
            Standing::Sent { .. } => "sent",
        },
        "acceptedAt": time(kept.accepted_at_ms),
        "ageSeconds": now_ms.saturating_sub(kept.accepted_at_ms) / 1000,
        "attempts": kept.note.attempts.max(attempts),
        "unknownOutcome": kept.note.unknown || steps.is_some_and(Steps::unknown),
        "bytes": kept.bytes,
    });
    match &kept.standing {
        Standing::Pending => {}
        Standing::DeadLetter { reason, at_ms } => {
            shown["reason"] = reason.as_str().into();
            shown["endedAt"] = time(*at_ms).into();
        }
        Standing::Sent { at_ms } => shown["endedAt"] = time(*at_ms).into(),
    }
    shown
}

/// What is shown of one message beyond that.
pub(super) fn details(shown: &mut Value, kept: &Kept) {
    shown["replayed"] = kept.replayed.into();
    shown["partsSent"] = kept.note.parts.into();
    if let Some(request) = &kept.request {
        shown["request"] = hex(&request.0).into();
    }
}

/// What ties a message to the exchange that it belongs to: as its last attempt carried it, or as it came.
pub(super) fn ties(shown: &mut Value, kept: Option<&Kept>, remembered: Option<&Steps>) {
    let came = kept.map(|kept| Context::of_kept(&kept.trace));
    let carried = remembered.and_then(|steps| steps.ties.as_deref());
    let came_with = |context: &Context| context.correlator().map(ToOwned::to_owned);
    let trace_id = carried
        .map_or_else(|| came.as_ref().and_then(Context::trace_id), |ties| ties.trace_id)
        .map(|id| id.to_string());
    let correlator = carried.map(|ties| ties.correlator.to_string());
    for (name, value) in [
        ("traceId", trace_id),
        (
            "correlator",
            correlator.or_else(|| came.as_ref().and_then(came_with)),
        ),
    ] {
        if let Some(value) = value {
            shown[name] = value.into();
        }
    }
}

/// The message itself: only where the configuration allows it.
pub(super) fn body(shown: &mut Value, entry: &Entry) {
    shown["user"] = entry.contact.as_str().into();
    shown["body"] = text(&entry.body);
}

fn text(body: &Bytes) -> Value {
    match serde_json::from_slice(body) {
        Ok(json) => json,
        Err(_) => json!({"base64": STANDARD.encode(body)}),
    }
}

/// One step of a message.
fn step(step: &Step) -> Value {
    let mut shown = json!({"at": time(step.at_ms), "step": step.what.as_str()});
    if step.attempt > 0 {
        shown["attempt"] = step.attempt.into();
    }
    if step.times > 1 {
        shown["times"] = step.times.into();
    }
    shown
}

/// What happened to a message: as it is remembered, and what of it the journal knows.
pub(super) fn steps(kept: Option<&Kept>, remembered: Option<&Steps>) -> Vec<Value> {
    let mut shown: Vec<Value> = remembered
        .iter()
        .flat_map(|steps| &steps.steps)
        .map(step)
        .collect();
    let Some(kept) = kept else { return shown };
    let has = |shown: &[Value], word: &str| shown.iter().any(|step| step["step"] == word);
    // The bridge has started since, or the message was accepted by no door.
    let begins = ["accepted", "replayed"];
    if !begins.iter().any(|word| has(&shown, word)) {
        let began = if kept.replayed { "replayed" } else { "accepted" };
        shown.insert(0, json!({"at": time(kept.accepted_at_ms), "step": began}));
        if kept.note.unknown && !has(&shown, "unknown") {
            shown.insert(1, json!({"step": "unknown"}));
        }
    }
    match &kept.standing {
        Standing::Sent { at_ms } => {
            let reported = |step: &Value| {
                let word = step["step"].as_str();
                word.is_some_and(|word| word.starts_with("reported"))
            };
            let first = shown.iter().position(reported);
            if !has(&shown, "settled") {
                let settled = json!({"at": time(*at_ms), "step": "settled"});
                shown.insert(first.unwrap_or(shown.len()), settled);
            }
            if let (None, Some(class)) = (first, Class::of_rank(kept.note.told)) {
                shown.push(json!({"step": What::reported(class).as_str()}));
            }
        }
        Standing::Pending => {}
        Standing::DeadLetter { reason, at_ms } => {
            if shown.last().is_none_or(|last| last["step"] != "deadLetter") {
                shown.push(json!({"at": time(*at_ms), "step": "deadLetter"}));
            }
            if let Some(last) = shown.last_mut() {
                last["reason"] = reason.as_str().into();
            }
        }
    }
    shown
}

/// Bytes as hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hex digits as so many bytes.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != N * 2 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        bridge::trail::{Ties, Trail},
        journal::{Address, ContactKey, DedupKey, Note},
        telemetry::w3c::SpanId,
    };

    pub fn kept(seq: u64) -> Kept {
        Kept {
            seq: Seq(seq),
            address: Address {
                direction: Direction::ToAura,
                channel: [7; 16],
                environment: [1; 8],
                tag: [2; 6],
                contact: ContactKey([0xab; 16]),
            },
            standing: Standing::Pending,
            dedup: DedupKey([4; 16]),
            born_ms: None,
            accepted_at_ms: 1_800_000_000_000,
            request: None,
            trace: String::new(),
            note: Note::default(),
            replayed: false,
            bytes: 300,
        }
    }

    fn filter(change: impl FnOnce(&mut ListQuery)) -> Result<Filter, Wrong> {
        let mut query = ListQuery::default();
        change(&mut query);
        Filter::new(&query)
    }

    const NOW: u64 = 1_800_000_600_000;

    #[test]
    fn a_filter_takes_what_it_names_and_nothing_else() {
        let none = HashSet::new();
        let dead = Kept {
            standing: Standing::DeadLetter {
                reason: "TooOld".to_owned(),
                at_ms: 1,
            },
            ..kept(1)
        };
        let takes = |change: fn(&mut ListQuery), kept: &Kept| filter(change).unwrap().takes(kept, &none, NOW);
        assert!(takes(|_| {}, &kept(1)));
        assert!(takes(|query| query.contact = Some("ab".repeat(6)), &kept(1)));
        assert!(takes(|query| query.contact = Some("AB".repeat(16)), &kept(1)));
        assert!(!takes(|query| query.contact = Some("ac".repeat(6)), &kept(1)));
        assert!(takes(
            |query| query.older_than = Some("9m59s".to_owned()),
            &kept(1)
        ));
        assert!(!takes(
            |query| query.older_than = Some("10m".to_owned()),
            &kept(1)
        ));
        assert!(takes(|query| query.reason = Some("TooOld".to_owned()), &dead));
        assert!(!takes(|query| query.reason = Some("Too".to_owned()), &dead));
        assert!(!takes(|query| query.reason = Some("TooOld".to_owned()), &kept(1)));
    }

    #[test]
    fn a_message_is_parked_when_its_lane_is() {
        let parked = HashSet::from([kept(1).address.lane()]);
        let filter = filter(|query| query.state = Some("parked".to_owned())).unwrap();
        assert!(filter.takes(&kept(1), &parked, NOW));
        assert!(!filter.takes(&kept(1), &HashSet::new(), NOW));
        assert_eq!(filter.wanted().kind, Some(Kind::Pending));
        assert_eq!(message(&kept(1), &parked, None, NOW)["state"], "parked");
        assert_eq!(message(&kept(1), &HashSet::new(), None, NOW)["state"], "pending");
    }

    #[test]
    fn what_can_not_be_meant_is_said_by_name() {
        let says = |change: fn(&mut ListQuery)| filter(change).unwrap_err().0;
        assert!(says(|query| query.state = Some("stuck".to_owned())).starts_with("state:"));
        assert!(says(|query| query.contact = Some("34600000001".to_owned())).starts_with("contact:"));
        assert!(says(|query| query.contact = Some("+34600000001".to_owned())).contains("never a phone"));
        assert!(says(|query| query.channel = Some("shop-es".to_owned())).starts_with("channel:"));
        assert!(says(|query| query.older_than = Some("soon".to_owned())).starts_with("olderThan:"));
        assert!(says(|query| query.direction = Some("up".to_owned())).starts_with("direction:"));
        assert!(says(|query| query.limit = Some(0)).starts_with("limit:"));
        assert!(says(|query| query.limit = Some(MAX_LIMIT + 1)).starts_with("limit:"));
    }

    #[test]
    fn a_change_says_why_in_one_line_without_phone_numbers() {
        assert_eq!(
            because(Some(" CHG0030001 Aura was down ")).unwrap(),
            "CHG0030001 Aura was down"
        );
        for text in [
            None,
            Some("  "),
            Some("a\nb"),
            Some("for 34600000001"),
            Some(&"x".repeat(201)),
        ] {
            assert!(because(text).is_err(), "{text:?}");
        }
        assert!(because(Some(&"ü".repeat(200))).is_ok());
    }

    #[test]
    fn a_list_shows_digests_times_and_numbers() {
        let shown = message(&kept(5), &HashSet::new(), None, NOW);
        assert_eq!(
            shown,
            json!({
                "seq": 5, "direction": "to_aura", "channel": "07070707-0707-0707-0707-070707070707",
                "contact": "abababababab", "state": "pending", "acceptedAt": "2027-01-15T08:00:00Z",
                "ageSeconds": 600, "attempts": 0, "unknownOutcome": false, "bytes": 300,
            })
        );
    }

    #[test]
    fn what_ties_a_message_to_its_exchange_is_told_as_it_was_carried_or_else_as_it_came() {
        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let came = Context::received(Some(PARENT), Some("a=1"), Some("corr-1"));
        let tied = |kept: Option<&Kept>, steps: Option<&Steps>| {
            let mut shown = json!({});
            ties(&mut shown, kept, steps);
            shown
        };
        assert_eq!(tied(Some(&kept(1)), None), json!({}));
        let with = Kept {
            trace: came.kept(),
            ..kept(1)
        };
        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let expected = json!({"traceId": trace_id, "correlator": "corr-1"});
        assert_eq!(
            tied(Some(&with), None),
            expected,
            "and what others keep of it is not shown"
        );
        let mut trail = Trail::default();
        let carried = Context::default().outgoing("own".to_owned(), SpanId::new(1));
        trail.tied(Seq(1), Ties::of(&carried));
        assert_eq!(tied(None, trail.of(Seq(1))), json!({"correlator": "own"}));
    }

    #[test]
    fn what_is_not_remembered_is_told_as_the_journal_has_it() {
        let dead = Kept {
            standing: Standing::DeadLetter {
                reason: "TooOld".to_owned(),
                at_ms: 1_800_000_000_001,
            },
            note: Note {
                unknown: true,
                ..Note::default()
            },
            ..kept(1)
        };
        let words = |shown: &[Value]| -> Vec<String> {
            shown
                .iter()
                .map(|step| step["step"].as_str().unwrap().to_owned())
                .collect()
        };
        let shown = steps(Some(&dead), None);
        assert_eq!(words(&shown), ["accepted", "unknown", "deadLetter"]);
        assert_eq!(shown[2]["reason"], "TooOld");
        let mut trail = Trail::default();
        trail.happened(Seq(1), What::Accepted, 0, 1);
        trail.happened(Seq(1), What::Retry, 1, 2);
        trail.happened(Seq(1), What::DeadLetter, 0, 3);
        let shown = steps(Some(&dead), trail.of(Seq(1)));
        assert_eq!(words(&shown), ["accepted", "retry", "deadLetter"]);
        assert_eq!(
            (&shown[1]["attempt"], &shown[2]["reason"]),
            (&1.into(), &"TooOld".into())
        );
    }

    #[test]
    fn hex_is_read_as_it_is_written() {
        assert_eq!(unhex::<3>(&hex(&[0, 171, 255])), Some([0, 171, 255]));
        for text in ["00", "00abf", "00abfg", "+1abff"] {
            assert_eq!(unhex::<3>(text), None, "{text}");
        }
    }
}
