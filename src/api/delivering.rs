//! How a channel's messages flow, in one word: the reasons of the `Delivering` condition, and the page on which the bridge
//! tells them to the controller.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::ChannelId;

/// Why `Delivering` is as it is. Each variant's name is the word in the status. Of several that are so, the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Delivering {
    /// Messages of a restored or copied journal wait for a person.
    JournalRewound,
    /// The channel or its environment is on hold.
    Held,
    /// Kernel or Aura rejects the credentials, or there are none.
    TokenRejected,
    /// Messages have waited for longer than five minutes.
    BacklogOld,
    /// Messages were given up and are kept for a person.
    DeadLetters,
    /// Nothing is in the way.
    Flowing,
    /// Nobody knows.
    Unknown,
}

/// The word is none of [`Delivering`]'s.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no reason of the condition Delivering")]
pub struct NoSuchWord;

impl Delivering {
    /// Every reason, for documentation and for tests that must miss none.
    pub const ALL: &[Self] = &[
        Self::JournalRewound,
        Self::Held,
        Self::TokenRejected,
        Self::BacklogOld,
        Self::DeadLetters,
        Self::Flowing,
        Self::Unknown,
    ];

    /// The word as it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JournalRewound => "JournalRewound",
            Self::Held => "Held",
            Self::TokenRejected => "TokenRejected",
            Self::BacklogOld => "BacklogOld",
            Self::DeadLetters => "DeadLetters",
            Self::Flowing => "Flowing",
            Self::Unknown => "Unknown",
        }
    }

    /// The condition's status. A channel with dead letters delivers: what was given up waits for a person, not the rest.
    pub fn status(self) -> &'static str {
        match self {
            Self::Flowing | Self::DeadLetters => "True",
            Self::JournalRewound | Self::Held | Self::TokenRejected | Self::BacklogOld => "False",
            Self::Unknown => "Unknown",
        }
    }

    /// The condition's message: what is so and what to do. Always the same, so that it is written once.
    pub fn message(self) -> &'static str {
        match self {
            Self::JournalRewound => {
                "the bridge's journal is a restored or copied one, and what it held may have been delivered: decide with \
                 \"messages release --journal\" or \"messages drop --journal\"; new messages are delivered"
            }
            Self::Held => "the channel or its environment is on hold: messages are kept and not delivered",
            Self::TokenRejected => {
                "Kernel or Aura rejects the credentials, or they can't be read: messages are kept until they are right"
            }
            Self::BacklogOld => {
                "messages have waited for over five minutes: \"messages list --state pending\" and the bridge's log say why"
            }
            Self::DeadLetters => {
                "messages are delivered, and some were given up: \"messages list --state dead\" says why; replay or drop them"
            }
            Self::Flowing => "messages are delivered",
            Self::Unknown => "the bridge can't be asked, or has no route for this channel",
        }
    }
}

impl fmt::Display for Delivering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Delivering {
    type Err = NoSuchWord;

    fn from_str(word: &str) -> Result<Self, NoSuchWord> {
        let found = Self::ALL.iter().find(|one| one.as_str() == word);
        found.copied().ok_or(NoSuchWord)
    }
}

/// What the bridge tells of its channels: those that are not [`Delivering::Flowing`]. Ids and words, and nothing of any
/// message: whoever reads it learns which channels have trouble.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliveries {
    channels: BTreeMap<ChannelId, String>,
}

impl Deliveries {
    /// Of a channel, one thing more is so.
    pub fn add(&mut self, channel: ChannelId, one: Delivering) {
        let known = self.of(channel);
        if one < known || known == Delivering::Flowing {
            self.channels.insert(channel, one.as_str().to_owned());
        }
    }

    /// How a channel does. A word of a later release is unknown to this one.
    pub fn of(&self, channel: ChannelId) -> Delivering {
        match self.channels.get(&channel) {
            None => Delivering::Flowing,
            Some(word) => word.parse().unwrap_or(Delivering::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: ChannelId = ChannelId(uuid::Uuid::nil());

    #[test]
    fn every_word_is_read_as_it_is_written_and_says_something() {
        for one in Delivering::ALL {
            assert_eq!(one.as_str().parse(), Ok(*one));
            assert_eq!(format!("{one:?}"), one.as_str());
            assert!(one.message().len() > 10);
            assert!(["True", "False", "Unknown"].contains(&one.status()));
        }
        assert_eq!("flowing".parse::<Delivering>(), Err(NoSuchWord));
    }

    #[test]
    fn of_several_things_the_worst_is_told_whatever_their_order() {
        use Delivering as D;
        for (told, worst) in [
            (vec![], D::Flowing),
            (vec![D::DeadLetters, D::Held], D::Held),
            (vec![D::Held, D::DeadLetters], D::Held),
            (
                vec![D::BacklogOld, D::TokenRejected, D::DeadLetters],
                D::TokenRejected,
            ),
            (vec![D::Held, D::JournalRewound], D::JournalRewound),
            (vec![D::Unknown], D::Unknown),
            (vec![D::Unknown, D::DeadLetters], D::DeadLetters),
        ] {
            let mut page = Deliveries::default();
            told.into_iter().for_each(|one| page.add(CHANNEL, one));
            assert_eq!(page.of(CHANNEL), worst);
        }
    }

    #[test]
    fn a_page_holds_ids_and_words_and_a_word_of_a_later_release_is_unknown() {
        let mut page = Deliveries::default();
        page.add(CHANNEL, Delivering::Held);
        let json = serde_json::to_string(&page).unwrap();
        assert_eq!(
            json,
            r#"{"channels":{"00000000-0000-0000-0000-000000000000":"Held"}}"#
        );
        assert_eq!(serde_json::from_str::<Deliveries>(&json).unwrap(), page);
        let later = serde_json::from_str::<Deliveries>(&json.replace("Held", "Throttled")).unwrap();
        assert_eq!(later.of(CHANNEL), Delivering::Unknown);
    }
}
