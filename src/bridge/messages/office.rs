//! Finds what is meant among what is kept, within bounds, and does to it what is asked.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    CHUNK, LaneOrder,
    answers::Refused,
    audit::{Audit, Change},
    desk::Desk,
    view::{self, ContactPrefix, Filter},
};
use crate::{
    api::ChannelId,
    bridge::{
        deliver::word,
        entry,
        state::{Shared, now_ms},
        trail::{IdDigest, What},
    },
    delivery::OfChannel,
    journal::{Kept, Lane, Outcome, Seq, Wanted},
};

/// Messages that are read from disk for one list, whether or not they are meant.
const LOOKED_AT: usize = 5_000;
/// The same when a contact's lane is looked for among the messages of its channel.
const LANE_SEARCHED: usize = 200_000;
/// The same when one message is looked for by an id that is not remembered.
const SEARCHED: usize = 20_000;

/// Why a dead letter that a person dropped is gone, as the journal has it.
const BY_PERSON: &str = "DroppedByPerson";

/// What the listener works with.
pub(in crate::bridge) struct Office<D> {
    pub state: Shared,
    pub desk: D,
    pub audit: Audit,
}

/// Which messages were found, and where to go on.
#[derive(Default)]
pub(super) struct Found {
    pub messages: Vec<Kept>,
    pub next: Option<Seq>,
    pub unreadable: u64,
}

impl<D: Desk> Office<D> {
    pub(super) fn parked(&self) -> HashSet<Lane> {
        self.state.journal.parked().into_iter().collect()
    }

    /// The messages that are meant, up to the filter's limit.
    pub(super) async fn find(&self, filter: &Filter, parked: &HashSet<Lane>) -> Result<Found, Refused> {
        let (mut found, mut after, mut left) = (Found::default(), filter.after, LOOKED_AT);
        let now = now_ms();
        loop {
            let page = self
                .state
                .journal
                .kept(after, filter.wanted(), CHUNK.min(left))
                .await?;
            found.unreadable += page.unreadable;
            // An empty page has cost something too.
            left = left.saturating_sub(page.messages.len().max(CHUNK / 10));
            let last = page.messages.last().map(|kept| kept.seq);
            for kept in page.messages {
                let seq = kept.seq;
                if filter.takes(&kept, parked, now) {
                    found.messages.push(kept);
                }
                if found.messages.len() == filter.limit {
                    found.next = (page.next.is_some() || last != Some(seq)).then_some(seq);
                    return Ok(found);
                }
            }
            match page.next {
                None => return Ok(found),
                Some(next) if left == 0 => {
                    found.next = Some(next);
                    return Ok(found);
                }
                Some(next) => after = next,
            }
        }
    }

    pub(super) fn show(&self, kept: &Kept, parked: &HashSet<Lane>) -> Value {
        let trail = self.state.trail();
        view::message(kept, parked, trail.of(kept.seq), now_ms())
    }

    pub(super) fn may_show(&self) -> Result<(), Refused> {
        let setup = self.state.setup.load();
        let allowed = setup.installation.bridge.show_bodies;
        allowed.then_some(()).ok_or(Refused::BodiesHidden)
    }

    /// The lane of a contact whose digest begins so.
    pub(super) async fn lane(&self, order: &LaneOrder, parked_only: bool) -> Result<Lane, Refused> {
        let channel = view::channel(&order.channel)?;
        let contact = ContactPrefix::parse(&order.contact)?;
        let direction = view::direction(&order.direction)?;
        let is = |lane: &Lane| {
            lane.channel == *channel.as_bytes() && lane.direction == direction && contact.is_of(lane)
        };
        let mut lanes: HashSet<Lane> = self.parked().into_iter().filter(is).collect();
        let mut after = (!parked_only).then_some(Seq(0));
        let mut left = LANE_SEARCHED;
        while let (true, Some(from), true) = (lanes.is_empty(), after, left > 0) {
            left = left.saturating_sub(CHUNK);
            let wanted = Wanted {
                kind: None,
                channel: Some(*channel.as_bytes()),
                direction: Some(direction),
            };
            let page = self.state.journal.kept(from, wanted, CHUNK).await?;
            lanes.extend(page.messages.iter().map(|kept| kept.address.lane()).filter(is));
            after = page.next;
        }
        let mut lanes = lanes.into_iter();
        match (lanes.next(), lanes.next()) {
            (Some(lane), None) => Ok(lane),
            (None, _) if parked_only => Err(Refused::NotParked),
            (None, _) => Err(Refused::NoSuchLane),
            (Some(_), Some(_)) => Err(Refused::Ambiguous),
        }
    }

    /// Sends one dead letter on its way again.
    pub(super) async fn replay(&self, dead: &Kept) -> Result<Seq, Refused> {
        let seq = self.state.journal.replay(dead.seq).await?;
        self.state.trail().replayed(dead.seq, seq, now_ms());
        Ok(seq)
    }

    /// Releases what a journal that was restored or copied withholds: on disk first, so that it outlives a restart.
    pub(super) async fn release(&self, of: OfChannel) -> Result<Vec<Seq>, Refused> {
        let state = self.state.clone();
        let written = tokio::task::spawn_blocking(move || state.lineage.release(of)).await;
        written
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| Refused::NotNow(format!("the journal's volume: {error}")))?;
        Ok(self.desk.release_withheld(of).await?)
    }

    /// Drops a dead letter for good.
    pub(super) async fn forget(&self, seq: Seq) -> Result<(), Refused> {
        let reason = BY_PERSON.to_owned();
        self.state
            .journal
            .settle(seq, Outcome::Dropped { reason })
            .await?;
        self.state.trail().happened(seq, What::Dropped, 0, now_ms());
        Ok(())
    }

    pub(super) fn tell_of(
        &self,
        verb: &'static str,
        kept: &Kept,
        because: &str,
        result: Result<(), &Refused>,
    ) {
        self.audit.tell(&Change {
            verb,
            channel: Some(ChannelId::from_bytes(kept.address.channel)),
            contact: Some(kept.address.contact.to_string()),
            direction: Some(word(kept.address.direction)),
            seqs: &[kept.seq],
            outcome: result.map_or_else(Refused::code, |()| "done"),
            because,
            ..Change::default()
        });
    }

    /// The message that others know by this id: as the trail has it, then as the journal has it.
    pub(super) async fn by_id(&self, id: &str) -> Result<Option<Seq>, Refused> {
        let keys = self.state.keys.load_full();
        let found = self.state.trail().find(IdDigest::of(id, &keys));
        if found.is_some() {
            return Ok(found);
        }
        let sent = self.state.routes.load().iter().find_map(|route| {
            let reference = entry::reference(route.channel(), id, &keys);
            self.state.journal.sent(&reference)
        });
        if let Some(sent) = sent {
            return Ok(Some(sent.seq));
        }
        let (mut after, mut left) = (Some(Seq(0)), SEARCHED);
        while let (Some(from), true) = (after, left > 0) {
            let page = self.state.journal.kept(from, Wanted::default(), CHUNK).await?;
            let is = |kept: &&Kept| entry::is_known_as(kept, id, &keys);
            if let Some(kept) = page.messages.iter().find(is) {
                return Ok(Some(kept.seq));
            }
            left = left.saturating_sub(CHUNK);
            after = page.next;
        }
        Ok(None)
    }
}
