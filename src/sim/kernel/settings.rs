//! The webhook setting: one URL per client, read with `GET` and replaced with `PATCH`.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{
    State,
    api::{error, json_body},
    oauth::ADMIN,
};
use crate::sim::server::{Answer, Call, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    webhooks: Webhooks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Webhooks {
    url: String,
}

fn setting(url: &str) -> Value {
    json!({"webhooks": {"url": url}})
}

/// What a URL must be to be called, or nothing to clear the setting.
fn check(url: &str) -> Result<(), String> {
    if url.is_empty() {
        return Ok(());
    }
    let parsed = Url::parse(url).map_err(|why| format!("webhooks.url is no URL: {why}"))?;
    match parsed.scheme() {
        "http" | "https" => Ok(()),
        _ => Err("webhooks.url must be http or https".to_owned()),
    }
}

/// A webhook URL with `****` for the value of its API key.
pub fn mask_key(url: &str) -> String {
    let Some((start, query)) = url.split_once('?') else {
        return url.to_owned();
    };
    let masked = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if name.eq_ignore_ascii_case("apikey") => format!("{name}=****"),
        _ => pair.to_owned(),
    });
    format!("{start}?{}", masked.collect::<Vec<_>>().join("&"))
}

impl State {
    /// `GET …/settings/webhook`
    pub(super) fn webhook_get(&self, call: &Call) -> Answer {
        let client = match self.entitled(call, ADMIN) {
            Ok(client) => client,
            Err(refusal) => return *refusal,
        };
        if self.options.no_read_back {
            return error(StatusCode::NOT_FOUND, "there is nothing at this path");
        }
        let url = self
            .data
            .read(|data| data.webhook_of(&client))
            .unwrap_or_default();
        let url = if self.options.mask_keys {
            mask_key(&url)
        } else {
            url
        };
        json(StatusCode::OK, &setting(&url))
    }

    /// `PATCH …/settings/webhook`
    pub(super) fn webhook_set(&self, call: &Call) -> Answer {
        let asked = self
            .entitled(call, ADMIN)
            .and_then(|client| Ok((client, json_body(call)?)));
        let (client, body) = match asked {
            Ok(asked) => asked,
            Err(refusal) => return *refusal,
        };
        let invalid = |why: &str| error(StatusCode::BAD_REQUEST, why);
        let url = match serde_json::from_value::<Setting>(body) {
            Ok(setting) => setting.webhooks.url,
            Err(why) => return invalid(&why.to_string()),
        };
        if let Err(why) = check(&url) {
            return invalid(&why);
        }
        if url.is_empty() && self.options.refuse_clear {
            return invalid("webhooks.url may not be empty");
        }
        self.data.write(|data| data.set_webhook(&client, &url));
        json(StatusCode::CREATED, &setting(&url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_masked_however_it_is_spelt() {
        assert_eq!(
            mask_key("https://a/b?apiKey=k&channelId=c"),
            "https://a/b?apiKey=****&channelId=c"
        );
        assert_eq!(
            mask_key("https://a/b?channelId=c&apikey=k"),
            "https://a/b?channelId=c&apikey=****"
        );
        assert_eq!(mask_key("https://a/b"), "https://a/b");
        assert_eq!(mask_key(""), "");
    }

    #[test]
    fn only_http_urls_and_nothing_are_taken() {
        assert!(
            ["", "https://example.com/x?y=z", "http://127.0.0.1:1/"]
                .iter()
                .all(|url| check(url).is_ok())
        );
        assert!(
            ["example.com", "ftp://example.com", "https://", "/x", " "]
                .iter()
                .all(|url| check(url).is_err())
        );
    }
}
