//! What was seen of a Kernel: answers taken apart, nothing judged. Pure.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use super::writes::Written;
use crate::kernel::contract::CHANNEL_ID_NAMES;

/// No answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    Unreachable,
    TimedOut,
    Broken,
    TooLarge,
}

impl NoAnswer {
    pub fn words(self) -> &'static str {
        match self {
            Self::Unreachable => "no connection",
            Self::TimedOut => "no answer in time",
            Self::Broken => "the connection broke before the answer ended",
            Self::TooLarge => "an answer that is too large",
        }
    }
}

/// A call, if it was answered.
pub(super) type Reached<T> = Result<T, NoAnswer>;

/// An answer of the token endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenAnswer {
    pub status: u16,
    pub token: Option<SecretString>,
    pub token_type: Option<String>,
    /// As it stands in the answer.
    pub expires_in: Option<Value>,
    pub scope: Option<Vec<String>>,
    /// RFC 6749's error code.
    pub error: Option<String>,
}

/// An answer of the webhook setting.
#[derive(Clone, Debug)]
pub(super) struct SettingAnswer {
    pub status: u16,
    pub setting: Setting,
}

/// What the body of such an answer holds.
#[derive(Clone, Debug)]
pub(super) enum Setting {
    /// No body at all.
    Nothing,
    /// `{"webhooks":{"url":…}}`; empty where there is none.
    Url(SecretString),
    /// Something else.
    Unreadable,
}

/// What was seen of all calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Calls that were answered.
    pub answers: u32,
    /// Of those, how many carried our correlator back.
    pub echoed: u32,
    /// The slowest.
    pub slowest: Duration,
    /// The largest body, in bytes.
    pub largest: usize,
    /// Headers that speak of rates and quotas, with their values.
    pub quota_headers: Vec<String>,
    /// The shapes of `Retry-After` of answers with 429.
    pub limited: Vec<&'static str>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub token: Option<Reached<TokenAnswer>>,
    pub messaging: Option<Reached<TokenAnswer>>,
    pub wrong_secret: Option<Reached<TokenAnswer>>,
    pub ungranted: Option<Reached<TokenAnswer>>,
    pub again: Option<Reached<TokenAnswer>>,
    pub second_token: Option<Reached<TokenAnswer>>,
    pub read: Option<Reached<SettingAnswer>>,
    pub read_badly: Option<Reached<SettingAnswer>>,
    pub read_by_messaging: Option<Reached<SettingAnswer>>,
    pub read_with_first: Option<Reached<SettingAnswer>>,
    pub second_before: Option<Reached<SettingAnswer>>,
    pub messages_path: Option<Reached<u16>>,
    pub written: Written,
    pub seen: Seen,
    pub interrupted: bool,
}

impl Evidence {
    pub fn registration_token(&self) -> Option<SecretString> {
        self.token.as_ref().and_then(token_of)
    }
}

/// The token of an attempt that gave one.
pub(super) fn token_of(answer: &Reached<TokenAnswer>) -> Option<SecretString> {
    answer.as_ref().ok().and_then(|answer| answer.token.clone())
}

impl TokenAnswer {
    /// Takes an answer apart.
    pub fn read(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let usable = |token: &&str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        Self {
            status,
            token: text("access_token")
                .filter(|_| status == 200)
                .filter(usable)
                .map(SecretString::from),
            token_type: text("token_type").map(harmless),
            expires_in: body.get("expires_in").cloned(),
            scope: text("scope").map(|scope| scope.split_whitespace().map(harmless).collect()),
            error: text("error").map(harmless),
        }
    }
}

impl SettingAnswer {
    /// Takes an answer apart.
    pub fn read(status: u16, body: &[u8]) -> Self {
        let setting = if body.is_empty() {
            Setting::Nothing
        } else {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            match body.get("webhooks") {
                Some(Value::Object(webhooks)) => match webhooks.get("url") {
                    Some(Value::String(url)) => Setting::Url(SecretString::from(url.as_str())),
                    None | Some(Value::Null) => Setting::Url(SecretString::default()),
                    Some(_) => Setting::Unreadable,
                },
                Some(Value::Null) => Setting::Url(SecretString::default()),
                _ => Setting::Unreadable,
            }
        };
        Self { status, setting }
    }

    /// The webhook that it tells, if the call succeeded: empty where there is none.
    pub fn url(&self) -> Option<&SecretString> {
        match &self.setting {
            Setting::Url(url) if matches!(self.status, 200..=299) => Some(url),
            _ => None,
        }
    }

    /// Whether a GET told that there is none.
    pub fn is_empty(&self) -> bool {
        self.status == 204 || self.url().is_some_and(|url| url.expose_secret().is_empty())
    }
}

/// A word of an answer, cut to what can be no secret of ours: short, and made of what such words are made of.
pub(super) fn harmless(word: &str) -> String {
    word.chars()
        .filter(|c| c.is_ascii_alphanumeric() || "_-:. /".contains(*c))
        .take(48)
        .collect()
}

/// Whether a URL is shown with something hidden. Generous: what only looks hidden is not written back either.
pub(super) fn looks_masked(url: &str) -> bool {
    let hidden = |text: &str| {
        let lower = text.to_ascii_lowercase();
        ["**", "xxx", "...", "…", "redact", "hidden", "mask", "%2a%2a"]
            .iter()
            .any(|mark| lower.contains(mark))
    };
    let Ok(parsed) = Url::parse(url) else {
        return hidden(url);
    };
    hidden(parsed.path())
        || parsed.password().is_some_and(hidden)
        || parsed
            .query_pairs()
            .filter(|(name, _)| !CHANNEL_ID_NAMES.contains(&name.as_ref()))
            .any(|(_, value)| hidden(&value) || value.len() < 4)
}

/// Scheme, host, port and path: what a mask leaves.
pub(super) fn place(url: &str) -> Option<(String, String, Option<u16>, String)> {
    let url = Url::parse(url.trim()).ok()?;
    Some((
        url.scheme().to_owned(),
        url.host_str()?.to_owned(),
        url.port_or_known_default(),
        url.path().trim_end_matches('/').to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_url_is_noticed_however_it_is_masked() {
        for masked in [
            "https://h/p?apikey=****&channelId=1",
            "https://h/p?apikey=abcd...",
            "https://h/p?apikey=REDACTED",
            "https://h/p?apikey=",
            "https://h/p/****/x",
            "****",
        ] {
            assert!(looks_masked(masked), "{masked}");
        }
        for whole in [
            "https://h/p?apikey=fake-tag.1.fake&channelId=1",
            "https://h/p",
            "https://h:8080/p?channelId=6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42",
        ] {
            assert!(!looks_masked(whole), "{whole}");
        }
    }

    #[test]
    fn a_setting_is_read_in_each_shape_that_it_may_have() {
        let url = |body: &str| {
            SettingAnswer::read(200, body.as_bytes())
                .url()
                .map(|url| url.expose_secret().to_owned())
        };
        assert_eq!(
            url(r#"{"webhooks":{"url":"https://a"}}"#).as_deref(),
            Some("https://a")
        );
        assert_eq!(url(r#"{"webhooks":{}}"#).as_deref(), Some(""));
        assert_eq!(url(r#"{"webhooks":null}"#).as_deref(), Some(""));
        assert_eq!(url(r#"{"webhook":"https://a"}"#), None);
        assert_eq!(url("[]"), None);
        assert!(SettingAnswer::read(204, b"").is_empty());
    }

    #[test]
    fn only_harmless_words_of_an_answer_are_kept() {
        let answer = TokenAnswer::read(
            400,
            br#"{"error":"invalid_client\u001b[31m","access_token":"fake"}"#,
        );
        assert_eq!(answer.error.as_deref(), Some("invalid_client31m"));
        assert!(answer.token.is_none(), "not with this status");
    }
}
