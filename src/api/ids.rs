//! Identifiers that are parsed once, at the door, and trusted afterwards.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The UUID that identifies a channel univocally in Aura.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[serde(transparent)]
pub struct ChannelId(pub Uuid);

/// The text is not a UUID in its hyphenated form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a channelId is a UUID, such as 6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42")]
pub struct InvalidChannelId;

impl ChannelId {
    /// The sixteen bytes of the UUID, as they stand in the journal and under every MAC.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id that these sixteen bytes hold.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl FromStr for ChannelId {
    type Err = InvalidChannelId;

    /// Upper and lower case are taken, other notations of a UUID (braces, no hyphens, URN) are not: a key is
    /// bound to the id, so two spellings of one id would be a way around a comparison.
    fn from_str(text: &str) -> Result<Self, InvalidChannelId> {
        if text.len() != 36 {
            return Err(InvalidChannelId);
        }
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidChannelId)
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hyphenated_form_is_a_channel_id() {
        let id: ChannelId = "6F1C2A9E-5F0E-4A57-9D2C-0B7A3C1D8E42".parse().unwrap();
        assert_eq!(id.to_string(), "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42");
        assert_eq!(ChannelId::from_bytes(*id.as_bytes()), id);
        for wrong in [
            "",
            "6f1c2a9e5f0e4a579d2c0b7a3c1d8e42",
            "{6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42}",
            "x",
        ] {
            assert_eq!(wrong.parse::<ChannelId>(), Err(InvalidChannelId), "{wrong}");
        }
    }
}
