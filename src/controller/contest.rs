//! How often a webhook that somebody else set is replaced by ours, before the other side keeps it (Law 10). Pure.
//!
//! Kernel has no fence: two parties that both want their URL there would set it in turns for ever. So it is taken over
//! once for each generation of the spec, put back a few times an hour after that, and then left.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::TakenOver;

/// How often within [`WINDOW`] a webhook is put back after it was taken over.
pub(super) const PUT_BACKS: usize = 3;
/// The time in which put-backs are counted.
pub(super) const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// What is done about another party's webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// It is replaced.
    Replace,
    /// It was replaced too often: the other side keeps it.
    Contested,
}

/// Whether it may be replaced for this generation of the spec.
pub(super) fn rule(history: Option<&TakenOver>, generation: i64, now: Timestamp) -> Ruling {
    match history {
        Some(history) if history.generation == generation => {
            if recent(history, now).count() < PUT_BACKS {
                Ruling::Replace
            } else {
                Ruling::Contested
            }
        }
        _ => Ruling::Replace,
    }
}

/// The history after it was replaced once more.
pub(super) fn replaced(history: Option<&TakenOver>, generation: i64, now: Timestamp) -> TakenOver {
    let put_back_at = match history {
        Some(history) if history.generation == generation => recent(history, now)
            .cloned()
            .chain(std::iter::once(Time(
                Timestamp::from_second(now.as_second()).unwrap_or(now),
            )))
            .collect(),
        _ => Vec::new(),
    };
    TakenOver {
        generation,
        put_back_at,
    }
}

fn recent(history: &TakenOver, now: Timestamp) -> impl Iterator<Item = &Time> {
    history
        .put_back_at
        .iter()
        .filter(move |at| now.duration_since(at.0) < WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_over_once_per_generation_and_put_back_three_times_an_hour() {
        let at = |minutes: i64| Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap();
        let mut history = None;
        for minute in 0..4 {
            assert_eq!(rule(history.as_ref(), 1, at(minute)), Ruling::Replace, "{minute}");
            history = Some(replaced(history.as_ref(), 1, at(minute)));
        }
        assert_eq!(rule(history.as_ref(), 1, at(4)), Ruling::Contested);
        assert_eq!(
            rule(history.as_ref(), 2, at(4)),
            Ruling::Replace,
            "a new generation may again"
        );
        assert_eq!(replaced(history.as_ref(), 2, at(4)).put_back_at, []);
        assert_eq!(
            rule(history.as_ref(), 1, at(61)),
            Ruling::Replace,
            "the first is an hour ago"
        );
    }
}
