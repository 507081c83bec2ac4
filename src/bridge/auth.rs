//! Who may call the webhook: judged from the call's query and header, the keys and the routes. Pure.
//!
//! A wrong key and an unknown channel are one answer. An authentic key for a channel that is not routed is another:
//! the caller is Kernel, and is asked to come back (a deleted-by-mistake resource, a watch that lags and a cold
//! start then lose nothing).

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use url::form_urlencoded;

use super::{
    issued::{self, KeyDigest},
    routes::{Route, RouteTable},
};
use crate::{
    api::ChannelId,
    kernel::contract::{API_KEY_NAMES, CHANNEL_ID_NAMES},
    keys::Keys,
};

/// What a call is worth.
#[derive(Debug)]
pub enum Verdict {
    /// Not from Kernel, or not for a channel of this installation: 401.
    Refused,
    /// From Kernel, for a channel that can't be routed now: 503.
    NotRoutable,
    /// From Kernel, for this channel.
    Routed(Arc<Route>),
}

/// Judges a call by its query and its `Authorization` header. `current` says that the routes are what the API server
/// says now: else a key issued elsewhere may have been replaced without our knowledge.
pub fn judge(
    query: Option<&str>,
    authorization: Option<&str>,
    keys: &Keys,
    routes: &RouteTable,
    current: bool,
    now: Timestamp,
) -> Verdict {
    let query = query.unwrap_or_default();
    let key = match (
        one_of(query, API_KEY_NAMES),
        authorization.and_then(|value| value.strip_prefix("APIKEY ")),
    ) {
        (Found::One(key), None) => key,
        (Found::None, Some(key)) => Cow::Borrowed(key.trim()),
        // Both, neither or two: whichever was meant can't be known.
        _ => Cow::Borrowed(""),
    };
    let channel = match one_of(query, CHANNEL_ID_NAMES) {
        Found::One(text) => text.parse::<ChannelId>().ok(),
        _ => None,
    };
    // An unknown channel takes the same way, and so the same time, as a wrong key.
    let proof = keys.verify(channel.unwrap_or(ChannelId::from_bytes([0; 16])), &key);
    let route = channel.and_then(|channel| routes.get(channel));
    let digest = KeyDigest::of(keys, &key);
    let is_issued =
        !key.is_empty() && issued::presented(route.map_or(&[], |route| &*route.issued), digest, now);
    let departed = channel.map_or(&[][..], |channel| routes.departed(channel));
    let is_departed = !key.is_empty() && issued::presented(departed, digest, now);

    match (route, proof) {
        (Some(route), _) if is_issued => Verdict::Routed(route.clone()),
        (Some(route), Some(proof)) if proof.tag == route.tag => {
            // Also of a channel that changes to a key issued elsewhere: Kernel calls with the derived one until it is
            // told.
            if route.generations().take(proof.generation, now) {
                Verdict::Routed(route.clone())
            } else if route.generations().is_unknown(now) || route.generations().is_ahead(proof.generation) {
                // Kernel may well have been told this one: the status that would say so is lost, or on its way.
                Verdict::NotRoutable
            } else {
                Verdict::Refused
            }
        }
        // The key was made for another namespace or environment, from where the channel has gone for now.
        (_, Some(_)) => Verdict::NotRoutable,
        // The channel's issued key is not known yet, or may be another by now: nobody can be refused or believed.
        (Some(route), None) if route.key_missing || (route.key_issued() && !current) => Verdict::NotRoutable,
        (None, None) if is_departed => Verdict::NotRoutable,
        _ => Verdict::Refused,
    }
}

enum Found<'a> {
    None,
    One(Cow<'a, str>),
    Several,
}

fn one_of<'a>(query: &'a str, names: &[&str]) -> Found<'a> {
    let mut found = Found::None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if names.contains(&name.as_ref()) {
            found = match found {
                Found::None => Found::One(value),
                _ => Found::Several,
            };
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            issued::Issued,
            routes::tests::table,
            views::{
                ChannelView,
                tests::{view, view_of},
            },
        },
        *,
    };
    use crate::{
        api::{Webhook, WhatsAppChannelSpec},
        keys::{ApiKey, KeyMaterial, Tag},
    };

    fn keys() -> Keys {
        Keys::derive(&KeyMaterial::new(|name| (name != "previous").then(|| vec![3; 32])).unwrap())
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().unwrap()
    }

    fn an_issued_key() -> crate::api::KeyRef {
        crate::api::KeyRef {
            name: "k".into(),
            key: "k".into(),
        }
    }

    fn table_with_key(issued: Option<&str>) -> RouteTable {
        let mut one = view("aura-es", "a", 1, 1);
        if issued.is_some() {
            one.issued_key = Some(Box::new(an_issued_key()));
        }
        let mut known = Issued::default();
        if let Some(key) = issued.filter(|key| !key.is_empty()) {
            known.read(&one, &keys(), &ApiKey::issued(key), "1");
        }
        table([one], &known)
    }

    fn key(id: u8, namespace: &str, generation: u64) -> String {
        let channel = ChannelId::from_bytes([id; 16]);
        keys()
            .api_key(Tag::new("es-dev", namespace), generation, channel)
            .expose()
            .to_owned()
    }

    fn verdict(query: &str, authorization: Option<&str>, table: &RouteTable) -> &'static str {
        verdict_by(query, authorization, table, true)
    }

    fn verdict_by(
        query: &str,
        authorization: Option<&str>,
        table: &RouteTable,
        current: bool,
    ) -> &'static str {
        match judge(Some(query), authorization, &keys(), table, current, now()) {
            Verdict::Refused => "refused",
            Verdict::NotRoutable => "not routable",
            Verdict::Routed(_) => "routed",
        }
    }

    fn channel(id: u8) -> String {
        ChannelId::from_bytes([id; 16]).to_string()
    }

    #[test]
    fn the_derived_key_of_a_routed_channel_is_taken_wherever_kernel_puts_it() {
        let (key, id) = (key(1, "aura-es", 1), channel(1));
        for query in [
            format!("apikey={key}&channelId={id}"),
            format!("channelid={id}&x=1&apiKey={key}"),
        ] {
            assert_eq!(verdict(&query, None, &table_with_key(None)), "routed", "{query}");
        }
        assert_eq!(
            verdict(
                &format!("channelId={id}"),
                Some(&format!("APIKEY {key}")),
                &table_with_key(None)
            ),
            "routed"
        );
    }

    #[test]
    fn an_authentic_key_without_a_route_is_asked_to_come_back() {
        let query = |id: u8, ns: &str| format!("apikey={}&channelId={}", key(id, ns, 1), channel(id));
        assert_eq!(
            verdict(&query(2, "aura-es"), None, &table_with_key(None)),
            "not routable"
        );
        assert_eq!(
            verdict(&query(1, "aura-es"), None, &RouteTable::default()),
            "not routable"
        );
        assert_eq!(
            verdict(&query(1, "aura-es2"), None, &table_with_key(None)),
            "not routable"
        );
    }

    #[test]
    fn a_wrong_key_and_an_unknown_channel_are_refused_alike() {
        let (good, id) = (key(1, "aura-es", 1), channel(1));
        for query in [
            String::new(),
            format!("apikey=&channelId={id}"),
            format!("apikey=wrong&channelId={id}"),
            format!("apikey={good}x&channelId={id}"),
            format!("apikey={good}&channelId={}", channel(9)),
            format!("apikey={good}&apikey={good}&channelId={id}"),
            format!("apikey={good}&channelId={id}&channelId={id}"),
            format!("APIKEY={good}&channelId={id}"),
        ] {
            assert_eq!(verdict(&query, None, &table_with_key(None)), "refused", "{query}");
        }
    }

    #[test]
    fn an_older_generation_is_refused_where_it_is_known_what_kernel_was_told() {
        let call = |generation| {
            format!(
                "apikey={}&channelId={}",
                key(1, "aura-es", generation),
                channel(1)
            )
        };
        let query = call(1);
        let spec = WhatsAppChannelSpec {
            webhook: Some(Webhook {
                key_generation: Some(4),
                ..Webhook::default()
            }),
            ..WhatsAppChannelSpec::example()
        };
        let mut one = view_of("aura-es", "a", 1, 1, spec);
        let table = |view: &ChannelView| table([view.clone()], &Issued::default());
        assert_eq!(verdict(&query, None, &table(&one)), "not routable");
        one.webhook_key = Some(crate::api::WebhookKeyStatus {
            generation: Some(3),
            ..Default::default()
        });
        assert_eq!(verdict(&query, None, &table(&one)), "refused");
        for (generation, expected) in [
            (2, "refused"),
            (3, "routed"),
            (5, "routed"),
            // The installation made it: the resource that says so is on its way to this bridge.
            (6, "not routable"),
            (9, "not routable"),
        ] {
            assert_eq!(
                verdict(&call(generation), None, &table(&one)),
                expected,
                "{generation}"
            );
        }
    }

    #[test]
    fn a_key_issued_elsewhere_is_taken_and_the_derived_one_until_kernel_is_told() {
        let id = channel(1);
        let table_with = table_with_key(Some("fake-issued-key"));
        assert_eq!(
            verdict(
                &format!("apikey=fake-issued-key&channelId={id}"),
                None,
                &table_with
            ),
            "routed"
        );
        assert_eq!(
            verdict(
                &format!("apikey={}&channelId={id}", key(1, "aura-es", 1)),
                None,
                &table_with
            ),
            "routed"
        );
        assert_eq!(
            verdict(&format!("apikey=other&channelId={id}"), None, &table_with),
            "refused"
        );
        assert_eq!(
            verdict_by(&format!("apikey=other&channelId={id}"), None, &table_with, false),
            "not routable",
            "it may have been replaced while the API server was not heard"
        );
        assert_eq!(
            verdict(
                &format!("apikey=&channelId={id}"),
                None,
                &table_with_key(Some(""))
            ),
            "not routable"
        );
    }

    /// It may have been replaced because it had leaked. Or the spec names the other key no longer, and this bridge has not
    /// heard of that: its caller is asked to come back, and is not believed.
    #[test]
    fn a_derived_key_that_was_replaced_by_one_issued_elsewhere_is_not_taken_any_more() {
        let mut one = view("aura-es", "a", 1, 1);
        one.issued_key = Some(Box::new(an_issued_key()));
        let mut known = Issued::default();
        known.read(&one, &keys(), &ApiKey::issued("fake-issued-key"), "1");
        one.webhook_key = Some(crate::api::WebhookKeyStatus {
            secret_version: Some("1".into()),
            ..Default::default()
        });
        let table = |view: &ChannelView| table([view.clone()], &known);
        let call = format!("apikey={}&channelId={}", key(1, "aura-es", 1), channel(1));
        assert_eq!(verdict(&call, None, &table(&one)), "not routable");
        one.issued_key = None;
        assert_eq!(verdict(&call, None, &table(&one)), "routed");
    }

    #[test]
    fn a_new_issued_key_that_was_announced_and_not_read_yet_is_asked_to_come_back() {
        let mut one = view("aura-es", "a", 1, 1);
        one.issued_key = Some(Box::new(an_issued_key()));
        let mut known = Issued::default();
        known.read(&one, &keys(), &ApiKey::issued("fake-one"), "1");
        one.api_key_version = Some("2".into());
        assert!(known.must_read(&one), "the controller says that there is another");
        let table = table([one], &known);
        let call = |key: &str| verdict(&format!("apikey={key}&channelId={}", channel(1)), None, &table);
        assert_eq!(call("fake-one"), "routed");
        assert_eq!(call("fake-two"), "not routable");
    }
}
