//! Durations as Kubernetes writes them (`metav1.Duration`, such as `1h30m`).

use std::{
    fmt::{self, Write},
    str::FromStr,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A span of time as written in a manifest: one or more numbers, each with `ms`, `s`, `m` or `h`.
///
/// The text is kept as it was written, so that nothing the user wrote is ever written back differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Period(#[schemars(length(max = 32))] pub String);

/// The text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a duration is written like 30s, 5m or 1h30m, not {0:?}")]
pub struct InvalidDuration(pub String);

impl Period {
    /// The span of time that is meant.
    ///
    /// # Errors
    /// When the text is none; the API server's own check lets no such text into a resource.
    pub fn parse(&self) -> Result<Duration, InvalidDuration> {
        parse(&self.0).ok_or_else(|| InvalidDuration(self.0.clone()))
    }

    /// A period of whole seconds, for defaults.
    pub fn seconds(seconds: u64) -> Self {
        Self(format!("{seconds}s"))
    }
}

/// A span of time as a manifest writes it; what is less than a millisecond is left out.
impl From<Duration> for Period {
    fn from(span: Duration) -> Self {
        let mut rest = span.as_millis();
        let mut text = String::new();
        for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if rest >= length {
                let _ = write!(text, "{}{unit}", rest / length);
                rest %= length;
            }
        }
        Self(if text.is_empty() { "0s".to_owned() } else { text })
    }
}

impl FromStr for Period {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let period = Self(text.to_owned());
        period.parse().map(|_| period)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > 32 {
        return None;
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let tail = rest.get(digits..)?;
        let (unit, after) = if let Some(after) = tail.strip_prefix("ms") {
            (Duration::from_millis(1), after)
        } else if let Some(after) = tail.strip_prefix('s') {
            (Duration::from_secs(1), after)
        } else if let Some(after) = tail.strip_prefix('m') {
            (Duration::from_secs(60), after)
        } else {
            (Duration::from_secs(3600), tail.strip_prefix('h')?)
        };
        total = total.checked_add(unit.checked_mul(u32::try_from(number).ok()?)?)?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_kubernetes_writes_them() {
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5400),
            ("0s", 0),
            ("24h", 86_400),
        ] {
            assert_eq!(
                Period(text.into()).parse(),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        assert_eq!(Period("1500ms".into()).parse(), Ok(Duration::from_millis(1500)));
    }

    #[test]
    fn a_duration_is_written_as_it_is_read() {
        for text in ["4h", "1h30m", "10s", "500ms", "1s500ms", "0s"] {
            let span = Period(text.into()).parse().unwrap();
            assert_eq!(Period::from(span).0, text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "5d",
            "1h30",
            "99999999999999999999h",
            "4294967296s",
            "1h 2m",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert!("5d".parse::<Period>().unwrap_err().to_string().contains("1h30m"));
    }
}
