//! What stands in the journal for one message, and what it is recognised by when it comes again. Pure.
//!
//! A user's message is kept as a webhook call of its own (so that a journal can be read with any JSON tool and what
//! WhatsApp sent stays as it came); a reply as the activity that Aura posted.

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use super::routes::Owner;
use crate::{
    api::ChannelId,
    aura::with_id,
    journal::{
        Address, ContactKey, DedupKey, Direction, Entry, Kept, NewEntry, Origin, Reference, RequestId, Seq,
    },
    keys::Keys,
    telemetry::Context,
    whatsapp::{Event, InboundMessage, Status},
};

/// When a call came, in ms since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By the wall clock.
    pub wall_ms: u64,
    /// By the clock that things expire by, which does not believe a jump at once.
    pub expiry_ms: u64,
}

/// The journal's entry for a user's message.
pub fn message(owner: &Owner, message: &InboundMessage, keys: &Keys, now: Now) -> NewEntry {
    let contacts = message
        .profile_name
        .as_ref()
        .map(|name| json!([{"wa_id": message.from, "profile": {"name": name}}]));
    let activity = message_activity_id(owner.channel, &message.id, keys);
    let born = Born::of(message.timestamp, now.expiry_ms);
    NewEntry {
        address: address(owner, Direction::ToAura, &message.from, keys),
        contact: message.from.clone(),
        dedup: message_key(owner.channel, &message.id, keys),
        born_ms: Some(born.ms),
        accepted_at_ms: now.wall_ms,
        request: Some(request(&activity, keys)),
        trace: String::new(),
        body: call("messages", &message.raw, contacts.as_ref()),
        origin: Origin::Peer,
        set_aside: born.set_aside,
    }
}

/// The journal's entry for a status.
pub fn status(owner: &Owner, status: &Status, keys: &Keys, now: Now) -> NewEntry {
    let parts: [&[u8]; 4] = [
        b"status",
        owner.channel.as_bytes(),
        status.id.as_bytes(),
        status.status.as_bytes(),
    ];
    let born = Born::of(status.timestamp, now.expiry_ms);
    NewEntry {
        address: address(owner, Direction::ToAura, &status.recipient, keys),
        contact: status.recipient.clone(),
        dedup: DedupKey(keys.fingerprint(&parts)),
        born_ms: Some(born.ms),
        accepted_at_ms: now.wall_ms,
        request: Some(RequestId(reference(owner.channel, &status.id, keys).0)),
        trace: String::new(),
        body: call("statuses", &status.raw, None),
        origin: Origin::Report,
        set_aside: born.set_aside,
    }
}

/// A reply, as far as the journal's entry for it goes.
pub struct ReplyOf<'a> {
    /// The user.
    pub contact: &'a str,
    /// What it is recognised by when it comes again; without one it can't be.
    pub id: Option<&'a str>,
    /// The activity that it answers.
    pub answers: Option<&'a str>,
}

/// The journal's entry for a reply.
pub fn reply(owner: &Owner, reply: &ReplyOf<'_>, body: Bytes, keys: &Keys, now_ms: u64) -> NewEntry {
    let (channel, contact) = (owner.channel.as_bytes(), reply.contact);
    let dedup = match reply.id {
        Some(id) => keys.fingerprint(&[b"reply", channel, contact.as_bytes(), id.as_bytes()]),
        None => *Uuid::new_v4().as_bytes(),
    };
    NewEntry {
        address: address(owner, Direction::ToKernel, contact, keys),
        contact: contact.to_owned(),
        dedup: DedupKey(dedup),
        born_ms: None,
        accepted_at_ms: now_ms,
        request: reply.answers.map(|id| request(id, keys)),
        trace: String::new(),
        body,
        origin: Origin::Peer,
        set_aside: None,
    }
}

/// The journal's entry for a part of a sent reply that is sent again, after WhatsApp's report on it. It goes behind what
/// waits, but before the replies to later requests.
pub fn again(sent: &Entry, part: u8, report: Reference, keys: &Keys, now_ms: u64) -> NewEntry {
    let times = match sent.origin {
        Origin::Resent { times, .. } => times.saturating_add(1),
        _ => 1,
    };
    // Aura's name of it may be of the number that it had first.
    let body = with_id(&sent.body, || reply_id(sent.seq));
    NewEntry {
        dedup: DedupKey(keys.fingerprint(&[b"again", &sent.address.channel, &report.0])),
        request: sent.request,
        origin: Origin::Resent { times, part },
        ..own(sent, body, now_ms)
    }
}

/// The journal's entry for what a user is told when a reply is lost for good: once for the replies to one request.
pub fn lost(sent: &Entry, report: Reference, text: &str, keys: &Keys, now_ms: u64) -> NewEntry {
    let about = sent.request.map_or(report.0, |request| request.0);
    let body = json!({"type": "message", "text": text}).to_string();
    NewEntry {
        dedup: DedupKey(keys.fingerprint(&[b"lost", &sent.address.channel, &sent.address.contact.0, &about])),
        origin: Origin::Bridge,
        ..own(sent, Bytes::from(body), now_ms)
    }
}

fn own(sent: &Entry, body: Bytes, now_ms: u64) -> NewEntry {
    NewEntry {
        address: sent.address,
        contact: sent.contact.clone(),
        dedup: DedupKey([0; 16]),
        born_ms: None,
        accepted_at_ms: now_ms,
        request: None,
        trace: sent.trace.clone(),
        body,
        origin: Origin::Peer,
        set_aside: None,
    }
}

impl NewEntry {
    /// The same, with what its call says of the exchange that it belongs to.
    #[must_use]
    pub fn in_context(mut self, kept: &str) -> Self {
        kept.clone_into(&mut self.trace);
        self
    }
}

/// What tells of users in a call: their numbers, and WhatsApp's ids, which are made of them.
pub fn personal(events: &[Event]) -> Vec<&str> {
    fn of(event: &Event) -> [&str; 2] {
        match event {
            Event::Message(message) => [&message.from, bare(&message.id)],
            Event::Status(status) => [&status.recipient, bare(&status.id)],
        }
    }
    events.iter().flat_map(of).collect()
}

/// An id of WhatsApp's without what all of them begin with.
fn bare(id: &str) -> &str {
    id.strip_prefix("wamid.").unwrap_or(id)
}

fn address(owner: &Owner, direction: Direction, contact: &str, keys: &Keys) -> Address {
    Address {
        direction,
        channel: *owner.channel.as_bytes(),
        environment: owner.environment,
        tag: owner.tag.bytes(),
        contact: contact_key(contact, keys),
    }
}

fn message_key(channel: ChannelId, id: &str, keys: &Keys) -> DedupKey {
    DedupKey(keys.fingerprint(&[b"message", channel.as_bytes(), id.as_bytes()]))
}

/// Parts of a reply whose idempotency keys are compared.
const PARTS: usize = 8;

/// Whether others know a message by this id: a user's message by WhatsApp's and by that of its activity, a reply by the
/// idempotency keys of its sends, each by the correlator that it came with.
pub fn is_known_as(kept: &Kept, id: &str, keys: &Keys) -> bool {
    let channel = ChannelId::from_bytes(kept.address.channel);
    if Context::of_kept(&kept.trace).correlator() == Some(id) {
        return true;
    }
    match kept.address.direction {
        Direction::ToAura => {
            kept.dedup == message_key(channel, id, keys) || kept.request == Some(request(id, keys))
        }
        Direction::ToKernel => (0..PARTS).any(|part| send_key(kept.dedup, part, keys) == id),
    }
}

/// What a request is known by: the digest of the id that its activity has.
fn request(activity_id: &str, keys: &Keys) -> RequestId {
    RequestId(keys.fingerprint(&[b"request", activity_id.as_bytes()]))
}

/// How long WhatsApp's own time of a message counts as new: as long as its id is remembered.
const WINDOW_MS: u64 = 7 * 24 * 3600 * 1000;
/// The own time of a message that has none: one that nobody believes, so that its id is looked for in the whole window.
const NO_TIME_MS: u64 = 0;

/// What a message's own time means for it.
struct Born {
    ms: u64,
    set_aside: Option<&'static str>,
}

impl Born {
    /// One that is older than ids are remembered, at a time by which nothing older was forgotten, may have been delivered
    /// long ago: it is set aside for a person. What else is not to be believed is for the ids' shelves to judge, which
    /// must be told the same each time the message comes.
    fn of(seconds: Option<i64>, now_ms: u64) -> Self {
        let ms = seconds.and_then(|seconds| u64::try_from(seconds).ok()?.checked_mul(1000));
        let too_old = ms.is_some_and(|ms| ms < now_ms.saturating_sub(WINDOW_MS));
        Self {
            ms: ms.unwrap_or(NO_TIME_MS),
            set_aside: too_old.then_some("OlderThanRemembered"),
        }
    }
}

/// The id of the activity for an event: the same for each attempt, and of no use to who would like the number that
/// WhatsApp's own id holds.
pub fn activity_id(channel: ChannelId, event: &Event, keys: &Keys) -> String {
    match event {
        Event::Message(message) => message_activity_id(channel, &message.id, keys),
        Event::Status(status) => status_activity_id(channel, status, keys),
    }
}

fn status_activity_id(channel: ChannelId, status: &Status, keys: &Keys) -> String {
    let (id, word) = (status.id.as_bytes(), status.status.as_bytes());
    uuid_of(keys.fingerprint(&[b"activity", channel.as_bytes(), b"status", id, word]))
}

/// What Aura is told that its reply is called, where it gave it no id.
pub fn reply_id(seq: Seq) -> String {
    format!("reply-{}", seq.0)
}

fn message_activity_id(channel: ChannelId, id: &str, keys: &Keys) -> String {
    uuid_of(keys.fingerprint(&[b"activity", channel.as_bytes(), b"message", id.as_bytes()]))
}

fn uuid_of(bytes: [u8; 16]) -> String {
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// What a sent message is recognised by when something is reported of it: WhatsApp's id holds the user's number.
pub fn reference(channel: ChannelId, id: &str, keys: &Keys) -> Reference {
    Reference(keys.fingerprint(&[b"sent", channel.as_bytes(), id.as_bytes()]))
}

/// What the statuses of a part of a reply are to tell back, where the platform does: its place in the journal, bound by a
/// MAC, so that nobody else's word settles a message.
pub fn echo(channel: ChannelId, seq: Seq, part: u16, keys: &Keys) -> String {
    let mac = keys.fingerprint(&[
        b"echo",
        channel.as_bytes(),
        &seq.0.to_be_bytes(),
        &part.to_be_bytes(),
    ]);
    format!("{}.{part}.{}", seq.0, uuid_of(mac))
}

/// Which part of which reply is told back; `None` if it is none of this channel's.
pub fn echoed(channel: ChannelId, text: &str, keys: &Keys) -> Option<(Seq, u16)> {
    let mut words = text.splitn(3, '.');
    let (seq, part) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (echo(channel, Seq(seq), part, keys) == text).then_some((Seq(seq), part))
}

/// What a contact is known by in the lanes: shown, it is the digest that stands for the contact in logs.
pub fn contact_key(contact: &str, keys: &Keys) -> ContactKey {
    ContactKey(keys.fingerprint(&[b"digest", contact.as_bytes()]))
}

/// The idempotency key of one part of a reply: the same for each attempt to send it, also when the reply was a dead
/// letter that is sent on its way again, and no other's, so that a send whose outcome is unknown can be recognised. The
/// first one is the reply's correlator where it came with none.
pub fn send_key(message: DedupKey, part: usize, keys: &Keys) -> String {
    uuid_of(keys.fingerprint(&[b"send", &message.0, &part.to_be_bytes()]))
}

fn call(list: &str, raw: &str, contacts: Option<&serde_json::Value>) -> Bytes {
    // The parts are JSON already: `raw` was cut out of a parsed call.
    let contacts = contacts
        .map(|contacts| format!("\"contacts\":{contacts},"))
        .unwrap_or_default();
    Bytes::from(format!("{{{contacts}\"{list}\":[{raw}]}}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keys::KeyMaterial, whatsapp::parse};

    fn keys() -> Keys {
        Keys::derive(&KeyMaterial::new(|_| Some(vec![3; 32])).unwrap())
    }

    const NOW: Now = Now {
        wall_ms: 1,
        expiry_ms: 1,
    };

    fn owner() -> Owner {
        Owner {
            channel: ChannelId::from_bytes([7; 16]),
            environment: [1; 8],
            tag: crate::keys::Tag::new("es-pro", "aura-es"),
        }
    }

    #[test]
    fn a_message_older_than_ids_are_remembered_is_set_aside_and_any_other_has_the_same_time_each_time() {
        const DAY: u64 = 24 * 3_600_000;
        let now = 20_000 * DAY;
        let born = |ms: u64| Born::of(i64::try_from(ms / 1000).ok(), now);
        assert_eq!(born(now - 7 * DAY).set_aside, None);
        assert_eq!(born(now - 7 * DAY - 1000).set_aside, Some("OlderThanRemembered"));
        for ms in [now - 8 * DAY, now, now + 2 * DAY] {
            assert_eq!(born(ms).ms, ms);
        }
        for none in [None, Some(-5), Some(i64::MAX)] {
            let born = Born::of(none, now);
            assert_eq!((born.ms, born.set_aside), (NO_TIME_MS, None));
        }
    }

    #[test]
    fn a_reply_answers_the_request_that_its_activity_was_posted_for() {
        let body = br#"{"messages":[{"id":"wamid.X","from":"34600000001","type":"text"}]}"#;
        let event = parse(body).ok().unwrap().remove(0);
        let Event::Message(asked) = &event else {
            panic!("a message")
        };
        let posted_as = activity_id(owner().channel, &event, &keys());
        let of = ReplyOf {
            contact: "34600000001",
            id: None,
            answers: Some(&posted_as),
        };
        let answer = reply(&owner(), &of, Bytes::new(), &keys(), 1);
        assert_eq!(answer.request, message(&owner(), asked, &keys(), NOW).request);
        assert!(answer.request.is_some());
    }

    #[test]
    fn a_message_comes_back_from_the_journal_as_it_was() {
        let body = r#"{"contacts":[{"wa_id":"34600000001","profile":{"name":"Ana \"x\""}}],"messages":[
            {"id":"wamid.X","from":"34600000001","type":"order","order":{"n":1e400}}]}"#;
        let events = parse(body.as_bytes()).ok().unwrap();
        let Event::Message(before) = &events[0] else {
            panic!("a message")
        };
        let channel = ChannelId::from_bytes([7; 16]);
        let entry = message(&owner(), before, &keys(), NOW);
        let again = parse(&entry.body).ok().unwrap();
        assert!(again == events);
        assert_eq!(
            activity_id(channel, &again[0], &keys()),
            activity_id(channel, &events[0], &keys())
        );
        assert_ne!(
            activity_id(ChannelId::from_bytes([8; 16]), &events[0], &keys()),
            activity_id(channel, &events[0], &keys())
        );
    }

    #[test]
    fn a_lane_is_logged_under_the_digest_of_its_contact() {
        let contact = contact_key("34600000001", &keys());
        assert_eq!(contact.to_string(), keys().digest("34600000001").to_string());
        assert_ne!(contact, contact_key("34600000002", &keys()));
    }

    #[test]
    fn what_is_told_back_is_believed_of_its_own_channel_and_part_alone() {
        let (channel, other) = (owner().channel, ChannelId::from_bytes([8; 16]));
        let text = echo(channel, Seq(42), 3, &keys());
        assert_eq!(echoed(channel, &text, &keys()), Some((Seq(42), 3)));
        assert_eq!(echoed(other, &text, &keys()), None);
        for wrong in [
            "",
            "42",
            "42.3",
            "42.3.",
            "41.3.x",
            &text.replace("42.", "43."),
            &format!("{text}0"),
        ] {
            assert_eq!(echoed(channel, wrong, &keys()), None, "{wrong}");
        }
    }

    #[test]
    fn replies_are_told_apart_by_their_own_id_only() {
        let dedup = |id| {
            let answers = None;
            let of = ReplyOf {
                contact: "1",
                id,
                answers,
            };
            reply(&owner(), &of, Bytes::new(), &keys(), 1).dedup
        };
        assert!(dedup(Some("a")) == dedup(Some("a")) && dedup(Some("a")) != dedup(Some("b")));
        assert!(dedup(None) != dedup(None));
    }
}
