//! What a message carries of the exchange that it belongs to: its caller's trace and correlator. Pure.
//!
//! It comes with the call that brings the message, is kept with it in the journal, and leaves with each attempt to deliver
//! it: the same trace and correlator, a span of the attempt's own. Who sends no trace is given none: a new one would decide
//! for the other side what it samples. A value that is not valid, too long, or tells of a user is left out; the message is
//! taken all the same (Law 6, Law 11). No part in what makes a message the same when it comes again (Law 2).

use super::w3c::{self, SpanId, TRACEPARENT, TRACESTATE, TraceId, TraceParent};

/// The longest correlator that is taken, in bytes: as CAMARA's APIs have it.
pub const MAX_CORRELATOR_BYTES: usize = 256;
/// What stands for nothing in the form that is kept.
const NONE: &str = "-";
/// What users are known by is longer than this; shorter words may stand in an id by chance.
const SHORT: usize = 6;

/// What a call says of the exchange that it belongs to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Context {
    trace: Option<Trace>,
    correlator: Option<String>,
}

/// A trace as it is passed on.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Trace {
    parent: TraceParent,
    state: Option<String>,
}

impl Context {
    /// What the headers of a call say: each is `None` where it is missing or was given twice, but for the several lines of
    /// a `tracestate`, which are joined by commas.
    pub fn received(traceparent: Option<&str>, tracestate: Option<&str>, correlator: Option<&str>) -> Self {
        // Without a trace nothing is known of its state (3.2.3).
        let trace = traceparent.and_then(TraceParent::parse).map(|parent| Trace {
            parent,
            state: tracestate.and_then(w3c::tracestate),
        });
        Self {
            trace,
            correlator: correlator.and_then(self::correlator),
        }
    }

    /// The same, with this correlator where there is none.
    #[must_use]
    pub fn or_correlator(mut self, other: Option<&str>) -> Self {
        if self.correlator.is_none() {
            self.correlator = other.and_then(correlator);
        }
        self
    }

    /// The same without what tells of a user: what holds one of these, or an id of WhatsApp's, which is made of a number.
    #[must_use]
    pub fn without(mut self, personal: &[&str]) -> Self {
        let tells = |text: &str| {
            let holds = |one: &&str| one.len() > SHORT && text.contains(*one);
            text.contains("wamid") || personal.iter().any(holds)
        };
        self.correlator = self.correlator.filter(|correlator| !tells(correlator));
        self.trace = self.trace.filter(|trace| !tells(&trace.parent.to_string()));
        if let Some(trace) = &mut self.trace {
            trace.state = trace.state.take().filter(|state| !tells(state));
        }
        self
    }

    /// As it is kept with a message: `traceparent correlator tracestate`, `-` for one that is missing; empty for nothing.
    pub fn kept(&self) -> String {
        if *self == Self::default() {
            return String::new();
        }
        let parent = self.trace.as_ref().map(|trace| trace.parent.to_string());
        let state = self.trace.as_ref().and_then(|trace| trace.state.as_deref());
        format!(
            "{} {} {}",
            parent.as_deref().unwrap_or(NONE),
            self.correlator.as_deref().unwrap_or(NONE),
            state.unwrap_or(NONE)
        )
    }

    /// Reads what is kept with a message.
    pub fn of_kept(kept: &str) -> Self {
        let mut parts = kept.splitn(3, ' ');
        let mut next = || parts.next().filter(|part| *part != NONE);
        let (parent, correlator, state) = (next(), next(), next());
        Self::received(parent, state, correlator)
    }

    /// The trace's id.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(|trace| trace.parent.trace_id)
    }

    /// The correlator that came.
    pub fn correlator(&self) -> Option<&str> {
        self.correlator.as_deref()
    }

    /// What an attempt carries: the span is its own, and `own` is its correlator where none came.
    pub fn outgoing(self, own: String, span: SpanId) -> Outgoing {
        let called = |trace: Trace| (trace.parent.called_by(span), trace.state);
        Outgoing {
            correlator: self.correlator.unwrap_or(own),
            trace: self.trace.map(called),
        }
    }
}

/// A correlator that may be passed on: visible ASCII, of a bounded length.
fn correlator(text: &str) -> Option<String> {
    let fine = (1..=MAX_CORRELATOR_BYTES).contains(&text.len()) && text != NONE;
    (fine && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
}

/// What one attempt to deliver a message carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// The correlator: the same for each attempt.
    pub correlator: String,
    trace: Option<(TraceParent, Option<String>)>,
}

impl Outgoing {
    /// The headers that continue the trace; none where there is none.
    pub fn trace_headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.trace.iter().flat_map(|(parent, state)| {
            let state = state.clone().map(|state| (TRACESTATE, state));
            std::iter::once((TRACEPARENT, parent.to_string())).chain(state)
        })
    }

    /// The trace's id.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(|(parent, _)| parent.trace_id)
    }

    /// The attempt's span, where there is a trace.
    pub fn span_id(&self) -> Option<SpanId> {
        self.trace.as_ref().map(|(parent, _)| parent.span_id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::journal::MAX_TRACE_BYTES;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const STATE: &str = "congo=t61rcWkgMzE, rojo=x y";

    fn whole() -> Context {
        Context::received(Some(PARENT), Some(STATE), Some("corr-1"))
    }

    fn headers(outgoing: &Outgoing) -> Vec<(&'static str, String)> {
        outgoing.trace_headers().collect()
    }

    #[test]
    fn what_came_leaves_with_a_span_of_the_attempts_own() {
        let outgoing = whole().outgoing("own".to_owned(), SpanId::new(7));
        assert_eq!(outgoing.correlator, "corr-1");
        let continued = PARENT.replace("00f067aa0ba902b7", "0000000000000007");
        assert_eq!(
            headers(&outgoing),
            [("traceparent", continued), ("tracestate", STATE.to_owned())]
        );
        assert_eq!(outgoing.span_id(), Some(SpanId::new(7)));
    }

    #[test]
    fn who_sends_nothing_starts_no_trace_and_has_our_correlator() {
        let nothing = Context::received(None, Some(STATE), None);
        assert_eq!((&nothing, nothing.kept().as_str()), (&Context::default(), ""));
        let outgoing = nothing.outgoing("own".to_owned(), SpanId::new(7));
        assert_eq!((outgoing.correlator.as_str(), outgoing.trace_id()), ("own", None));
        assert_eq!(headers(&outgoing), []);
    }

    #[test]
    fn it_is_kept_in_a_line_that_people_can_read() {
        assert_eq!(whole().kept(), format!("{PARENT} corr-1 {STATE}"));
        for context in [
            whole(),
            Context::received(Some(PARENT), None, None),
            Context::received(None, None, Some("corr-1")),
            Context::default(),
        ] {
            assert_eq!(Context::of_kept(&context.kept()), context);
        }
        assert_eq!(
            Context::of_kept("an older release's"),
            Context::received(None, None, Some("older"))
        );
    }

    #[test]
    fn the_longest_that_is_taken_can_be_kept() {
        let correlator = "c".repeat(MAX_CORRELATOR_BYTES);
        let entry = |key: char| format!("{key}={}", "v".repeat(251));
        let state = format!("{},{}v", entry('a'), entry('b'));
        let state = format!("{state}{}", "v".repeat(w3c::MAX_TRACESTATE_BYTES - state.len()));
        let longest = Context::received(Some(PARENT), Some(&state), Some(&correlator));
        let kept = longest.kept();
        assert_eq!(Context::of_kept(&kept), longest);
        let expected = w3c::TRACEPARENT_BYTES + MAX_CORRELATOR_BYTES + w3c::MAX_TRACESTATE_BYTES + 2;
        assert_eq!(kept.len(), expected);
        assert!(kept.len() <= MAX_TRACE_BYTES);
    }

    #[test]
    fn a_correlator_is_visible_ascii_of_a_bounded_length() {
        let of = |text: &str| Context::received(None, None, Some(text)).correlator;
        assert_eq!(of("a-b_c:1/{x}").as_deref(), Some("a-b_c:1/{x}"));
        let long = "c".repeat(MAX_CORRELATOR_BYTES + 1);
        for text in ["", "-", " ", "a b", "a\tb", "a\u{7f}", "ü", &long] {
            assert_eq!(of(text), None, "{text:?}");
        }
        assert_eq!(
            Context::default().or_correlator(Some("body")).correlator(),
            Some("body")
        );
        assert_eq!(whole().or_correlator(Some("body")).correlator(), Some("corr-1"));
        assert_eq!(Context::default().or_correlator(Some("a b")), Context::default());
    }

    #[test]
    fn what_tells_of_a_user_is_left_out() {
        let user = "34600000001";
        let without = |correlator: &str, state: &str, parent: &str| {
            Context::received(Some(parent), Some(state), Some(correlator)).without(&[user, "HBgLMzQ2MDA="])
        };
        assert_eq!(without("corr-1", STATE, PARENT), whole());
        let no_correlator = Context::received(Some(PARENT), Some(STATE), None);
        for tells in ["to-34600000001-1", "wamid.HBgL", "HBgLMzQ2MDA=/1"] {
            assert_eq!(without(tells, STATE, PARENT), no_correlator, "{tells}");
        }
        let no_state = Context::received(Some(PARENT), None, Some("corr-1"));
        assert_eq!(without("corr-1", "a=34600000001", PARENT), no_state);
        let of_user = "00-00000000000000000000034600000001-00f067aa0ba902b7-01";
        let no_trace = Context::received(None, None, Some("corr-1"));
        assert_eq!(without("corr-1", STATE, of_user), no_trace);
        // A short id is in many words by chance.
        assert_eq!(whole().without(&["corr-1", "1", ""]), whole());
    }

    proptest! {
        #[test]
        fn what_is_received_is_kept_as_it_is(
            parent in proptest::option::of("00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]"),
            state in proptest::option::of("[a-z]{1,9}=[ -+--<>-~]{1,60}"),
            correlator in proptest::option::of("[!-~]{1,300}"),
        ) {
            let context = Context::received(parent.as_deref(), state.as_deref(), correlator.as_deref());
            prop_assert_eq!(Context::of_kept(&context.kept()), context);
        }
    }
}
