//! Which URL Kernel is told to call for a channel, and whether a URL that Kernel holds is ours. Pure.

use secrecy::{ExposeSecret, SecretString};
use url::{Url, form_urlencoded};

use crate::{
    api::ChannelId,
    config::Environment,
    kernel::contract::{API_KEY_NAMES, CHANNEL_ID_NAMES, WEBHOOK_CALL_PATH},
    keys::ApiKey,
};

/// The URL that Kernel is told.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    url: SecretString,
    masked: String,
}

/// What Kernel's URL is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The one we would set; where Kernel masks the key, as far as can be seen.
    Current {
        /// The key could be compared.
        key_seen: bool,
    },
    /// Ours, but with another key or below a former public URL.
    Outdated,
    /// Somebody else's; `host` is safe to print.
    Foreign {
        /// Its host.
        host: String,
    },
    /// The callback of the system before, as the environment's configuration has it.
    Legacy {
        /// Its host.
        host: String,
    },
    /// None.
    Empty,
    /// Kernel can't be asked.
    Unsupported,
}

impl Desired {
    /// The URL of a channel's webhook at our bridge.
    pub fn new(environment: &Environment, channel: ChannelId, key: &ApiKey) -> Self {
        let mut url = environment.public_url.clone();
        url.set_path(WEBHOOK_CALL_PATH);
        url.query_pairs_mut()
            .append_pair(API_KEY_NAMES[0], key.expose())
            .append_pair(CHANNEL_ID_NAMES[0], &channel.to_string());
        let url = String::from(url);
        Self {
            masked: mask(&url),
            url: SecretString::from(url),
        }
    }

    /// The URL of a template with `{apikey}` and `{channelId}`: the callback of the system before.
    pub fn from_template(template: &str, channel: ChannelId, key: Option<&ApiKey>) -> Self {
        let template = template.replace("{channelId}", &channel.to_string());
        let fill = |key: &str| template.replace("{apikey}", &encode(key));
        // Masked by what is filled in, not by where: the key may stand anywhere in the template.
        Self {
            masked: template.replace("{apikey}", "****"),
            url: SecretString::from(fill(key.map_or("", ApiKey::expose))),
        }
    }

    /// The URL with its key.
    pub fn expose(&self) -> &SecretString {
        &self.url
    }

    /// The URL with its key masked.
    pub fn masked(&self) -> String {
        self.masked.clone()
    }

    /// What a URL that Kernel holds is to us. Compared parsed: Kernel may write it differently, and may mask the
    /// key, so the key never decides whose it is.
    pub fn judge(&self, environment: &Environment, channel: ChannelId, held: &str) -> Held {
        let Some(parsed) = parse(held) else {
            return Held::Foreign {
                host: "an address that is no URL".to_owned(),
            };
        };
        let Some(desired) = parse(self.url.expose_secret()) else {
            return Held::Outdated;
        };
        if parsed.place == desired.place && parsed.channel == desired.channel {
            let masked = desired.key.is_some()
                && parsed
                    .key
                    .as_deref()
                    .is_none_or(|key| key.is_empty() || key.contains("**"));
            // A template may carry its key elsewhere: then the whole is compared.
            let same = match &desired.key {
                Some(_) => parsed.key == desired.key,
                None => held.trim() == self.url.expose_secret(),
            };
            return if same {
                Held::Current { key_seen: true }
            } else if masked {
                Held::Current { key_seen: false }
            } else {
                Held::Outdated
            };
        }
        let ours = std::iter::once(&environment.public_url)
            .chain(&environment.former_public_urls)
            .any(|base| {
                let mut url = base.clone();
                url.set_path(WEBHOOK_CALL_PATH);
                place(&url) == parsed.place
            });
        if ours && parsed.channel.as_deref() == Some(channel.to_string().as_str()) {
            return Held::Outdated;
        }
        let host = parsed.place.1.clone();
        if is_legacy(environment, channel, &parsed) {
            Held::Legacy { host }
        } else {
            Held::Foreign { host }
        }
    }
}

/// Whether a URL is the environment's legacyCallback for this channel: the same place, and the same channel where the
/// template names it in the query.
fn is_legacy(environment: &Environment, channel: ChannelId, held: &Parsed) -> bool {
    let Some(legacy) = &environment.legacy_callback else {
        return false;
    };
    let template = legacy.url.replace("{channelId}", &channel.to_string());
    parse(&template).is_some_and(|callback| {
        callback.place == held.place && (callback.channel.is_none() || callback.channel == held.channel)
    })
}

/// A key as it stands in a URL.
fn encode(key: &str) -> String {
    form_urlencoded::byte_serialize(key.as_bytes()).collect()
}

/// A URL with the value of every key parameter masked.
pub(super) fn mask(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else {
        return "****".to_owned();
    };
    let _ = url.set_password(None);
    let Some(query) = url.query() else {
        return url.into();
    };
    let masked: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if !CHANNEL_ID_NAMES.contains(&name) => format!("{name}=****"),
            _ => pair.to_owned(),
        })
        .collect();
    url.set_query(Some(&masked.join("&")));
    url.into()
}

type Place = (String, String, Option<u16>, String);

struct Parsed {
    place: Place,
    channel: Option<String>,
    key: Option<String>,
}

fn place(url: &Url) -> Place {
    (
        url.scheme().to_owned(),
        url.host_str().unwrap_or_default().to_owned(),
        url.port_or_known_default(),
        url.path().trim_end_matches('/').to_owned(),
    )
}

fn parse(text: &str) -> Option<Parsed> {
    let url = Url::parse(text.trim()).ok()?;
    let find = |names: &[&str]| {
        url.query_pairs()
            .find(|(name, _)| names.contains(&name.as_ref()))
            .map(|(_, value)| value.into_owned())
    };
    Some(Parsed {
        place: place(&url),
        channel: find(CHANNEL_ID_NAMES).map(|id| id.to_ascii_lowercase()),
        key: find(API_KEY_NAMES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Installation;

    fn environment() -> Environment {
        let text = r"
environments:
  e:
    namespaces: [n]
    publicUrl: https://svc.example.com
    formerPublicUrls: [https://old.example.com]
    kernel: {apiUrl: https://k.example.com, authUrl: https://k.example.com}
    aura: {messagesUrl: https://a.example.com, replyUrl: http://b, outboundAuth: {apiKeyFile: /x}, inboundAuth: {apiKeyFile: /x}}
";
        Installation::parse(text, "t")
            .unwrap()
            .environments
            .remove("e")
            .unwrap()
    }

    #[test]
    fn a_url_is_ours_by_its_place_and_channel_and_never_by_its_key() {
        let environment = environment();
        let channel = ChannelId::from_bytes([7; 16]);
        let desired = Desired::new(&environment, channel, &ApiKey::issued("fake.key"));
        let at =
            |host: &str, query: &str| format!("https://{host}/aura-services/v1/whatsapp/messages?{query}");
        let judge = |url: String| desired.judge(&environment, channel, &url);
        let id = "channelId=07070707-0707-0707-0707-070707070707";
        assert_eq!(
            judge(desired.expose().expose_secret().to_owned()),
            Held::Current { key_seen: true }
        );
        assert_eq!(
            judge(at("SVC.example.com:443", &format!("{id}&apiKey=fake.key"))),
            Held::Current { key_seen: true }
        );
        assert_eq!(
            judge(at("svc.example.com", &format!("apikey=****&{id}"))),
            Held::Current { key_seen: false }
        );
        assert_eq!(
            judge(at("svc.example.com", &format!("apikey=older&{id}"))),
            Held::Outdated
        );
        assert_eq!(
            judge(at("old.example.com", &format!("apikey=fake.key&{id}"))),
            Held::Outdated
        );
        for foreign in [
            at(
                "svc.example.com",
                "apikey=fake.key&channelId=08080808-0808-0808-0808-080808080808",
            ),
            at("elsewhere.example.com", &format!("apikey=fake.key&{id}")),
            format!("http://svc.example.com/aura-services/v1/whatsapp/messages?{id}"),
            format!("https://svc.example.com/other?{id}"),
            "nonsense".to_owned(),
        ] {
            assert!(
                matches!(judge(foreign.clone()), Held::Foreign { .. }),
                "{foreign}"
            );
        }
    }

    #[test]
    fn a_masked_url_shows_no_key() {
        let desired = Desired::new(
            &environment(),
            ChannelId::from_bytes([7; 16]),
            &ApiKey::issued("fake.key"),
        );
        assert_eq!(
            desired.masked(),
            "https://svc.example.com/aura-services/v1/whatsapp/messages?apikey=****&channelId=07070707-0707-0707-0707-070707070707"
        );
        assert!(!format!("{desired:?}").contains("fake.key"));
        let key = ApiKey::issued("fake/key&1");
        let template = "https://old.example.com/{apikey}/hook?id={channelId}";
        let legacy = Desired::from_template(template, ChannelId::from_bytes([7; 16]), Some(&key));
        assert!(legacy.expose().expose_secret().contains("/fake%2Fkey%261/hook"));
        assert!(legacy.masked().contains("/****/hook?id=07070707"));
        assert_eq!(mask("https://u:fakepass@h/?token=x"), "https://u@h/?token=****");
    }
}
