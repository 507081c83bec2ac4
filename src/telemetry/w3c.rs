//! W3C Trace Context: the headers `traceparent` and `tracestate`, read strictly. Pure.
//!
//! Levels 1 and 2 (<https://www.w3.org/TR/trace-context-2/>). What is not valid is left out, never refused: a message
//! must not be lost over a header that only its observers read. What is longer than the standard asks to be passed on is
//! cut as it says (Law 11). Not for what else travels with a message, which is `context`'s.

use std::fmt;

/// The header that names the trace and the caller's span.
pub const TRACEPARENT: &str = "traceparent";
/// The header that holds what tracing systems keep of the trace.
pub const TRACESTATE: &str = "tracestate";

/// The length of a `traceparent` of version 00, in bytes.
pub const TRACEPARENT_BYTES: usize = 55;
/// The longest `tracestate` that is passed on, in bytes: as much as the standard asks for (3.3.1.5).
pub const MAX_TRACESTATE_BYTES: usize = 512;
/// Entries of a `tracestate` (3.3.1.1).
const MAX_ENTRIES: usize = 32;
/// Entries that are longer go first when a `tracestate` is too long (3.3.1.5), in bytes.
const LONG_ENTRY: usize = 128;

/// The caller decided that this trace is recorded.
const SAMPLED: u8 = 0x01;
/// The trace id is random (level 2).
const RANDOM: u8 = 0x02;

/// A trace's id: 32 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceId(u128);

/// A span's id: 16 hex digits as text. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpanId(u64);

impl SpanId {
    /// A span's id of a number; zero, which is no id, counts as one.
    pub fn new(number: u64) -> Self {
        Self(number.max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A trace, and who in it calls. Shown as the header's value, of version 00.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that calls.
    pub span_id: SpanId,
    flags: u8,
}

impl TraceParent {
    /// Reads a header's value. `None` for what is not valid; of a version that is not known yet, what version 00 has of
    /// it (3.2.4).
    pub fn parse(value: &str) -> Option<Self> {
        let bytes = value.as_bytes();
        let (fixed, rest) = bytes.split_at_checked(TRACEPARENT_BYTES)?;
        if [fixed[2], fixed[35], fixed[52]] != [b'-'; 3] {
            return None;
        }
        let version = hex(&fixed[..2])?;
        let flags = u8::try_from(hex(&fixed[53..])?).ok()?;
        let flags = match version {
            0 if rest.is_empty() => flags & (SAMPLED | RANDOM),
            // What else a later version says is not known.
            1..=0xfe if rest.first().is_none_or(|next| *next == b'-') => flags & SAMPLED,
            _ => return None,
        };
        let (trace, span) = (hex(&fixed[3..35])?, hex(&fixed[36..52])?);
        if trace == 0 || span == 0 {
            return None;
        }
        Some(Self {
            trace_id: TraceId(trace),
            span_id: SpanId(u64::try_from(span).ok()?),
            flags,
        })
    }

    /// The same trace, sampled or not as before, called by another span.
    #[must_use]
    pub fn called_by(self, span_id: SpanId) -> Self {
        Self { span_id, ..self }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Hex digits in lower case, at most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// Reads a `tracestate`, whose several headers are one list, joined by commas. It comes back as it was, unless it is
/// longer than [`MAX_TRACESTATE_BYTES`]: then whole entries are left out. `None` for one that is empty or not valid.
pub fn tracestate(value: &str) -> Option<String> {
    let trim = |text| str::trim_matches(text, [' ', '\t']);
    let value = trim(value);
    let mut entries: Vec<&str> = value.split(',').map(trim).filter(|one| !one.is_empty()).collect();
    if entries.is_empty() || entries.len() > MAX_ENTRIES {
        return None;
    }
    let mut keys = Vec::with_capacity(entries.len());
    for entry in &entries {
        let (key, value) = entry.split_once('=')?;
        if !is_key(key) || !is_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }
    if value.len() <= MAX_TRACESTATE_BYTES {
        return Some(value.to_owned());
    }
    let len = |entries: &[&str]| entries.iter().map(|one| one.len() + 1).sum::<usize>() - 1;
    while len(&entries) > MAX_TRACESTATE_BYTES {
        let long = entries.iter().rposition(|entry| entry.len() > LONG_ENTRY);
        entries.remove(long.unwrap_or(entries.len() - 1));
        if entries.is_empty() {
            return None;
        }
    }
    Some(entries.join(","))
}

/// A key as level 2 has it, which also takes those of level 1.
fn is_key(key: &str) -> bool {
    let begins = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let goes_on = |byte: u8| begins(&byte) || b"_-*/@".contains(&byte);
    key.len() <= 256 && key.as_bytes().first().is_some_and(begins) && key.bytes().all(goes_on)
}

/// A value: printable, without comma and equals sign. (What stands around an entry was trimmed.)
fn is_value(value: &str) -> bool {
    let is = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(is)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn parent(version: &str, flags: &str) -> String {
        format!("{version}-{TRACE}-{SPAN}-{flags}")
    }

    /// What is passed on of a value by a caller with the same span.
    fn passed_on(value: &str) -> Option<String> {
        TraceParent::parse(value).map(|parent| parent.to_string())
    }

    #[test]
    fn a_traceparent_is_read_as_it_is_written_and_only_known_flags_are_kept() {
        for flags in ["00", "01", "02", "03"] {
            assert_eq!(passed_on(&parent("00", flags)), Some(parent("00", flags)));
        }
        assert_eq!(passed_on(&parent("00", "ff")), Some(parent("00", "03")));
        assert_eq!(passed_on(&parent("00", "08")), Some(parent("00", "00")));
    }

    #[test]
    fn what_the_standard_does_not_allow_is_none() {
        let zeros = "0".repeat(32);
        let bad = [
            String::new(),
            "00".to_owned(),
            parent("00", "0"),
            parent("00", "001"),
            parent("00", "01-"),
            parent("00", "01-more"),
            parent("00", "0g"),
            parent("ff", "01"),
            parent("0", "01"),
            parent("0G", "01"),
            parent("00", "01").to_uppercase(),
            parent("00", "01").replace('-', "_"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!(" {}", parent("00", "01")),
            format!("{}.{}", &parent("00", "01")[..54], "é"),
        ];
        for value in bad {
            assert_eq!(TraceParent::parse(&value), None, "{value}");
        }
    }

    #[test]
    fn of_a_later_version_what_is_known_is_read() {
        let known = Some(parent("00", "01"));
        assert_eq!(passed_on(&parent("01", "01")), known);
        assert_eq!(passed_on(&parent("cc", "03")), known);
        assert_eq!(passed_on(&parent("01", "01-what-the-future-will-be")), known);
        assert_eq!(passed_on(&parent("01", "01.what")), None);
    }

    #[test]
    fn another_span_calls_in_the_same_trace() {
        let before = TraceParent::parse(&parent("00", "01")).unwrap();
        let after = before.called_by(SpanId::new(0xabc));
        assert_eq!(after.to_string(), format!("00-{TRACE}-0000000000000abc-01"));
        assert_ne!(
            before.called_by(SpanId::new(0)).span_id.to_string(),
            "0".repeat(16)
        );
    }

    #[test]
    fn a_tracestate_is_passed_on_as_it_came() {
        for value in [
            "rojo=00f067aa0ba902b7",
            "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
            "fw529a3039@dt=FfAc4nB, 1a-_*/=x y\t,,b=~",
        ] {
            assert_eq!(tracestate(value).as_deref(), Some(value));
        }
        assert_eq!(tracestate(" a=1 ").as_deref(), Some("a=1"));
    }

    #[test]
    fn a_tracestate_that_is_not_one_is_none() {
        let many: Vec<String> = (0..33).map(|n| format!("a{n}=1")).collect();
        let many = many.join(",");
        let (key, value) = (format!("{}=1", "a".repeat(257)), format!("a={}", "1".repeat(257)));
        for text in [
            "", " ", ",", "a", "a=", "=1", "A=1", "a=1,a=2", "a=1=2", "a=\u{7f}", "a=é", "a b=1", "@a=1",
            &many, &key, &value,
        ] {
            assert_eq!(tracestate(text), None, "{text}");
        }
        assert!(tracestate(&format!("{}=1", "a".repeat(256))).is_some());
    }

    #[test]
    fn of_a_tracestate_that_is_too_long_long_entries_go_first_and_then_the_last() {
        let entry = |key: char, len: usize| format!("{key}={}", "1".repeat(len));
        let (long, short) = (entry('l', 200), |key| entry(key, 100));
        let joined = |all: &[String]| all.join(",");
        let all = [short('a'), long.clone(), short('b'), short('c'), short('d')];
        assert_eq!(
            tracestate(&joined(&all)).unwrap(),
            joined(&[short('a'), short('b'), short('c'), short('d')])
        );
        let all = [short('a'), short('b'), short('c'), short('d'), short('e')];
        assert_eq!(tracestate(&joined(&all)).unwrap(), joined(&all[..4]));
        let whole = joined(&all)[..MAX_TRACESTATE_BYTES].to_owned();
        assert_eq!(tracestate(&whole), Some(whole));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_read_is_valid_again(parent in "\\PC{0,80}", state in "[a-z0-9=,@ \\PC]{0,700}") {
            if let Some(read) = TraceParent::parse(&parent) {
                prop_assert_eq!(TraceParent::parse(&read.to_string()).unwrap().trace_id, read.trace_id);
            }
            if let Some(read) = tracestate(&state) {
                prop_assert!(read.len() <= MAX_TRACESTATE_BYTES);
                prop_assert_eq!(tracestate(&read), Some(read.clone()));
            }
        }

        #[test]
        fn a_long_list_is_cut_to_entries_that_were_in_it(lengths in proptest::collection::vec(1_usize..250, 1..32)) {
            let entry = |(n, len): (usize, &usize)| format!("k{n}={}", "v".repeat(*len));
            let whole: Vec<String> = lengths.iter().enumerate().map(entry).collect();
            let cut = tracestate(&whole.join(",")).unwrap();
            prop_assert!(cut.len() <= MAX_TRACESTATE_BYTES);
            let mut from = whole.iter();
            for entry in cut.split(',') {
                prop_assert!(from.any(|one| one == entry), "in the order of before");
            }
        }
    }
}
