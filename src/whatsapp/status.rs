//! What WhatsApp's words for a sent message's way mean, and the codes of its errors. Pure.
//!
//! Not for what is done about them. The codes are those of the on-premises API (its error reference) and of the Cloud
//! API; which of them pass is documented for few of them ("resend"), and a judgement for the rest: this is the place to
//! change it. A code that is not listed is one of the message's own, so that nothing is sent twice on a guess.

/// How far a message got, by WhatsApp's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// WhatsApp has it.
    Sent,
    /// It did not reach the user.
    Failed,
    /// The user's device has it.
    Delivered,
    /// The user saw it.
    Read,
    /// Something about it that is no step of its way: deleted, warning, or what WhatsApp adds one day.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sent, Self::Failed, Self::Delivered, Self::Read, Self::Other];

    /// That of a status's word.
    pub fn of(word: &str) -> Self {
        match word {
            "sent" => Self::Sent,
            "failed" => Self::Failed,
            "delivered" => Self::Delivered,
            "read" => Self::Read,
            _ => Self::Other,
        }
    }

    /// Its word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Other => "other",
        }
    }

    /// The one that has this rank.
    pub fn of_rank(rank: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|class| rank > 0 && class.rank() == rank)
    }

    /// How far along the way it is, from 1 to 7; 0: it is no step of it. A message that was delivered did not fail,
    /// whatever comes late.
    pub fn rank(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Sent => 1,
            Self::Failed => 2,
            Self::Delivered => 3,
            Self::Read => 4,
        }
    }
}

/// Why a message did not reach its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It may if it is sent again.
    Passing,
    /// The business number's own: spam limit, payment, certificate. A person must look; sending more makes it worse.
    Number,
    /// Nothing reaches this user now: no WhatsApp, an old one, or the 24 hours to answer in are over.
    User,
    /// This message can't be sent.
    Message,
}

/// Service not ready, overloaded, limits of a moment, media that could not be fetched.
const PASSING: &[i64] = &[
    // On-premises.
    400, 408, 429, 500, 1000, 1011, 1014, 1015, 1016, 1017, 1018, 1023, //
    // Cloud.
    1, 2, 4, 80_007, 130_429, 131_000, 131_016, 131_052, 131_053, 131_056, 133_004,
];
const NUMBER: &[i64] = &[402, 430, 432, 433, 471, 1031, 131_031, 131_042, 131_048];
const USER: &[i64] = &[
    410, 470, 472, 480, 1013, 1026, 1028, 130_472, 131_021, 131_026, 131_047,
];

/// What a failure's codes say. Of several the one counts that leaves the least to try.
pub fn trouble(codes: &[i64]) -> Trouble {
    let one = |code: &i64| match code {
        code if PASSING.contains(code) => Trouble::Passing,
        code if NUMBER.contains(code) => Trouble::Number,
        code if USER.contains(code) => Trouble::User,
        _ => Trouble::Message,
    };
    let of = |wanted: Trouble| codes.iter().any(|code| one(code) == wanted);
    [Trouble::Number, Trouble::User, Trouble::Message, Trouble::Passing]
        .into_iter()
        .find(|trouble| of(*trouble))
        .unwrap_or(Trouble::Message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_passes_only_if_all_its_errors_do() {
        assert_eq!(trouble(&[1015]), Trouble::Passing);
        assert_eq!(trouble(&[131_056, 1]), Trouble::Passing);
        assert_eq!(trouble(&[1015, 1001]), Trouble::Message);
        assert_eq!(trouble(&[470, 1001]), Trouble::User);
        assert_eq!(trouble(&[471, 470]), Trouble::Number);
        assert_eq!(trouble(&[123_456]), Trouble::Message, "an unknown code");
        assert_eq!(trouble(&[]), Trouble::Message);
    }

    #[test]
    fn no_code_stands_in_two_lists() {
        let all: Vec<i64> = [PASSING, NUMBER, USER].concat();
        let once: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(once.len(), all.len());
    }

    #[test]
    fn each_word_has_its_class_and_a_rank_that_can_be_kept() {
        for class in Class::ALL {
            assert!(class.rank() <= 7);
            assert_eq!(Class::of(class.as_str()), class);
            let of_rank = Class::of_rank(class.rank());
            assert_eq!(of_rank, Some(class).filter(|class| *class != Class::Other));
        }
        assert_eq!(Class::of("warning"), Class::Other);
        assert!(Class::Sent.rank() < Class::Failed.rank());
        assert!(Class::Failed.rank() < Class::Delivered.rank());
        assert!(Class::Delivered.rank() < Class::Read.rank());
    }
}
