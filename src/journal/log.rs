//! What delivering needs of a log. The journal of one volume is one; a log whose partitions are shared out between
//! several bridges can be another.
//!
//! Not for how a log is opened, checked or looked at by people: that is each one's own. What a log held when it was
//! opened (the scan at its start) is handed over beside it; what partitions bring that are taken over later comes through
//! [`Log::committed`], like what is accepted. Every implementation upholds law 1 (an answer means durable), law 2 (the
//! duplicate check and the append are one step) and, within a lane, law 3: `committed` tells of a lane's messages in the
//! order of their numbers, so a lane lies in one partition.

use std::future::Future;

use tokio::sync::mpsc;

use super::{
    AppendError, Appended, Entry, Journal, Lane, NewEntry, Note, Outcome, Pending, ReadError, Reference,
    Sent, Seq,
};

/// A log that messages are accepted into and delivered from. Cheap to clone.
pub trait Log: Clone + Send + Sync + 'static {
    /// Accepts messages: all are durable when this returns, or none is. See [`Journal::append`].
    fn append(
        &self,
        entries: Vec<NewEntry>,
    ) -> impl Future<Output = Result<Vec<Appended>, AppendError>> + Send;
    /// Records how a message ended: delivered, a dead letter, or dropped. See [`Journal::settle`].
    fn settle(&self, seq: Seq, outcome: Outcome) -> impl Future<Output = Result<(), AppendError>> + Send;
    /// Records what is to be known of a message's attempts after a restart. See [`Journal::note`].
    fn note(&self, seq: Seq, note: Note) -> impl Future<Output = Result<(), AppendError>> + Send;
    /// Records that a lane is parked, or no longer. See [`Journal::park`].
    fn park(&self, lane: Lane, parked: bool) -> impl Future<Output = Result<(), AppendError>> + Send;
    /// Reads a message that is kept. See [`Journal::read`].
    fn read(&self, seq: Seq) -> impl Future<Output = Result<Entry, ReadError>> + Send;
    /// What is recorded of a message's attempts.
    fn noted(&self, seq: Seq) -> Note;
    /// The lanes that are parked.
    fn parked(&self) -> Vec<Lane>;
    /// The references under which the parts of a message were sent.
    fn references(&self, seq: Seq) -> Vec<Reference>;
    /// The message that was sent under this reference, if it is still known.
    fn sent(&self, reference: &Reference) -> Option<Sent>;
    /// Every message accepted from now on, once it is durable: a lane's in the order of their numbers.
    fn committed(&self) -> mpsc::UnboundedReceiver<Pending>;
}

impl Log for Journal {
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Appended>, AppendError> {
        Self::append(self, entries).await
    }

    async fn settle(&self, seq: Seq, outcome: Outcome) -> Result<(), AppendError> {
        Self::settle(self, seq, outcome).await
    }

    async fn note(&self, seq: Seq, note: Note) -> Result<(), AppendError> {
        Self::note(self, seq, note).await
    }

    async fn park(&self, lane: Lane, parked: bool) -> Result<(), AppendError> {
        Self::park(self, lane, parked).await
    }

    async fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        Self::read(self, seq).await
    }

    fn noted(&self, seq: Seq) -> Note {
        Self::noted(self, seq)
    }

    fn parked(&self) -> Vec<Lane> {
        Self::parked(self)
    }

    fn references(&self, seq: Seq) -> Vec<Reference> {
        Self::references(self, seq)
    }

    fn sent(&self, reference: &Reference) -> Option<Sent> {
        Self::sent(self, reference)
    }

    fn committed(&self) -> mpsc::UnboundedReceiver<Pending> {
        Self::committed(self)
    }
}
