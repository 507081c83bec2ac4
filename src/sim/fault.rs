//! Faults as values: what a simulator does wrong, where, to whom and how often.
//!
//! `Fault::status(429).retry_after(2).times(3).on(Endpoint::Send)` reads as it acts. A fault without [`Fault::times`]
//! lasts until the simulator's `clear_faults()`; of several that fit a call, the one injected first acts, alone.
//! Faults never touch a simulator's own control surface.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hyper::StatusCode;
use serde_json::Value;

/// A place where a fault can act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Kernel: `POST /token`.
    Token,
    /// Kernel: `GET …/settings/webhook`.
    WebhookGet,
    /// Kernel: `PATCH …/settings/webhook`.
    WebhookSet,
    /// Kernel: `POST …/messages`.
    Send,
    /// Aura: `POST /messages`.
    Messages,
}

/// One way to misbehave.
#[derive(Clone, Debug)]
pub struct Fault {
    pub(crate) kind: Kind,
    pub(crate) retry_after: Option<u64>,
    pub(crate) body: Option<Value>,
    pub(crate) after_effect: bool,
    endpoint: Option<Endpoint>,
    subject: Option<String>,
    left: Option<u32>,
    /// Of a hundred calls.
    share: u8,
}

/// What happens to the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Status(StatusCode),
    Delay(Duration),
    Hang,
    Reset,
    Cut,
    Garbage,
    Empty,
    /// The time for each byte of the body.
    Drip(Duration),
    Gone,
    /// Any time up to this one.
    DelayUpTo(Duration),
    Redirect(String),
    Endless,
    Malformed,
    HalfClose,
    /// How long the connection is kept after the answer.
    CloseIdle(Duration),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        let (retry_after, body, after_effect) = (None, None, false);
        Self {
            kind,
            retry_after,
            body,
            after_effect,
            endpoint: None,
            subject: None,
            left: None,
            share: 100,
        }
    }

    /// Answers with this status and the system's usual error body. A number that is no status becomes 500.
    #[must_use]
    pub fn status(code: u16) -> Self {
        Self::new(Kind::Status(
            StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        ))
    }

    /// Answers properly, but only after this time.
    #[must_use]
    pub fn delay(time: Duration) -> Self {
        Self::new(Kind::Delay(time))
    }

    /// Never answers and keeps the connection open.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Kind::Hang)
    }

    /// Closes the connection without an answer. The call has no effect, unless [`Fault::after_effect`] is added.
    #[must_use]
    pub fn reset() -> Self {
        Self::new(Kind::Reset)
    }

    /// Closes the connection amid the answer: the call has had its effect, and half of the answer's body is sent.
    #[must_use]
    pub fn cut() -> Self {
        Self::new(Kind::Cut)
    }

    /// Answers 200 with a body that is no JSON; the call has no effect, unless [`Fault::after_effect`] is added.
    #[must_use]
    pub fn garbage() -> Self {
        Self::new(Kind::Garbage)
    }

    /// Answers 200 with no body; a watch ends at once. The call has no effect, unless [`Fault::after_effect`] is added.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(Kind::Empty)
    }

    /// Answers properly, but the body comes one byte at a time, each after this time: headers in time, and then a
    /// body that never seems to end. The call has had its effect.
    #[must_use]
    pub fn drip(each: Duration) -> Self {
        Self::new(Kind::Drip(each))
    }

    /// What was asked for is gone for good: 410. A watch of the API server says so as the server does, by an `ERROR`
    /// event in an answer of 200.
    #[must_use]
    pub fn gone() -> Self {
        Self::new(Kind::Gone)
    }

    /// Answers properly, but only after some time, up to this one.
    #[must_use]
    pub fn delay_up_to(time: Duration) -> Self {
        Self::new(Kind::DelayUpTo(time))
    }

    /// Sends the caller elsewhere: 307 with this `Location`. The call has no effect.
    #[must_use]
    pub fn redirect(to: impl Into<String>) -> Self {
        Self::new(Kind::Redirect(to.into()))
    }

    /// Answers with the proper head and a body that never ends, as fast as it is read. The call has had its effect.
    #[must_use]
    pub fn endless() -> Self {
        Self::new(Kind::Endless)
    }

    /// Answers with something that is no HTTP, and closes the connection. The call has no effect, unless
    /// [`Fault::after_effect`] is added.
    #[must_use]
    pub fn malformed() -> Self {
        Self::new(Kind::Malformed)
    }

    /// Closes its half of the connection without an answer, and goes on listening on the other half. The call has no
    /// effect, unless [`Fault::after_effect`] is added.
    #[must_use]
    pub fn half_close() -> Self {
        Self::new(Kind::HalfClose)
    }

    /// Answers properly, and closes the connection so long after, with no word before: what a caller sends on it in
    /// that moment has no effect and no answer.
    #[must_use]
    pub fn close_idle(after: Duration) -> Self {
        Self::new(Kind::CloseIdle(after))
    }

    /// Acts on so many of a hundred calls, by chance.
    #[must_use]
    pub fn share(mut self, percent: u8) -> Self {
        self.share = percent;
        self
    }

    /// Adds a `Retry-After` of so many seconds to [`Fault::status`].
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Replaces the error body of [`Fault::status`], for instance by WhatsApp's `{"errors": […]}`.
    #[must_use]
    pub fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Acts so many times, then is gone.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }

    /// Acts at this endpoint only.
    #[must_use]
    pub fn on(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Acts on the calls of one party only: a Kernel client by its id, or an Aura channel by its channelId.
    #[must_use]
    pub fn only_for(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Lets the call have its effect first (a message is sent, a webhook is set) and then withholds the answer:
    /// the caller can't know.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        self.after_effect = true;
        self
    }

    /// Takes one from its count: what is to be done, unless it is over.
    pub(crate) fn strike(&mut self) -> Option<Self> {
        if self.is_over() {
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        Some(self.clone())
    }

    /// Whether it has acted as often as it may.
    pub(crate) fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    fn fits(&self, endpoint: Endpoint, subject: Option<&str>) -> bool {
        !self.is_over()
            && self.endpoint.is_none_or(|wanted| wanted == endpoint)
            && self
                .subject
                .as_deref()
                .is_none_or(|wanted| Some(wanted) == subject)
    }
}

/// The faults of one simulator, in the order they were injected.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(crate) fn inject(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Ends the faults that were meant for one party only.
    pub(crate) fn clear_for(&self, subject: &str) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|fault| fault.subject.as_deref() != Some(subject));
    }

    /// The fault that hits this call, if any; takes one from its count.
    pub(crate) fn take(&self, endpoint: Endpoint, subject: Option<&str>) -> Option<Fault> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chance = |fault: &Fault| fault.share >= 100 || fastrand::u8(..100) < fault.share;
        let fault = faults
            .iter_mut()
            .find(|fault| fault.fits(endpoint, subject) && chance(fault))?;
        let taken = fault.strike();
        faults.retain(|fault| !fault.is_over());
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_ends_after_its_times() {
        let faults = Faults::default();
        faults.inject(Fault::status(429).times(2));
        assert!(faults.take(Endpoint::Send, None).is_some());
        assert!(faults.take(Endpoint::Token, None).is_some());
        assert!(faults.take(Endpoint::Send, None).is_none());
    }

    #[test]
    fn a_fault_without_times_lasts_until_cleared() {
        let faults = Faults::default();
        faults.inject(Fault::hang());
        assert!((0..100).all(|_| faults.take(Endpoint::Send, None).is_some()));
        faults.clear();
        assert!(faults.take(Endpoint::Send, None).is_none());
    }

    #[test]
    fn a_fault_acts_only_where_and_on_whom_it_says() {
        let faults = Faults::default();
        faults.inject(Fault::reset().on(Endpoint::Send).only_for("client-a"));
        assert!(faults.take(Endpoint::Token, Some("client-a")).is_none());
        assert!(faults.take(Endpoint::Send, Some("client-b")).is_none());
        assert!(faults.take(Endpoint::Send, None).is_none());
        assert!(faults.take(Endpoint::Send, Some("client-a")).is_some());
    }

    #[test]
    fn the_first_injected_acts_first_and_zero_times_never() {
        let faults = Faults::default();
        faults.inject(Fault::status(500).times(0));
        faults.inject(Fault::status(503).times(1));
        faults.inject(Fault::garbage());
        let kinds: Vec<_> = (0..2)
            .filter_map(|_| faults.take(Endpoint::Send, None))
            .map(|f| f.kind)
            .collect();
        assert_eq!(
            kinds,
            [Kind::Status(StatusCode::SERVICE_UNAVAILABLE), Kind::Garbage]
        );
    }

    #[test]
    fn a_fault_may_act_on_a_share_of_the_calls_and_the_others_are_for_the_next_one() {
        let faults = Faults::default();
        faults.inject(Fault::hang().share(20));
        faults.inject(Fault::garbage());
        let hangs = (0..1000)
            .filter_map(|_| faults.take(Endpoint::Messages, None))
            .filter(|fault| fault.kind == Kind::Hang);
        assert!((100..300).contains(&hangs.count()));
    }

    #[test]
    fn the_faults_of_one_party_end_without_those_of_another() {
        let faults = Faults::default();
        faults.inject(Fault::hang().only_for("client-a"));
        faults.inject(Fault::hang().only_for("client-b"));
        faults.clear_for("client-a");
        assert!(faults.take(Endpoint::Send, Some("client-a")).is_none());
        assert!(faults.take(Endpoint::Send, Some("client-b")).is_some());
    }

    #[test]
    fn a_number_that_is_no_status_becomes_500() {
        assert_eq!(
            Fault::status(7).kind,
            Kind::Status(StatusCode::INTERNAL_SERVER_ERROR)
        );
    }
}
