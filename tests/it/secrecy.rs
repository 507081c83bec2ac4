//! Nothing leaks (Law 6): a conversation full of unmistakable words, everything logged at the finest level, and the
//! words found nowhere that a person or a collector can read.

use aura_whatsapp_operator::{
    api::conditions::Reason,
    sim::{
        dev::site,
        fault::{Endpoint, Fault},
    },
};
use kube::{Api, api::DynamicObject, discovery::ApiResource};
use serde_json::json;

use crate::support::{Number, World};

/// Words of at least twelve characters that stand for what must not be seen.
const CLIENT_SECRET: &str = "sentinel-client-secret-4711";
const ROTATED_SECRET: &str = "sentinel-rotated-secret-0815";
const AURA_KEY: &str = "sentinel-key-towards-aura-77";
const REPLY_KEY: &str = "sentinel-key-from-aura-8888";
const ISSUED_KEY: &str = "sentinel-issued-api-key-9999";
const USER: &str = "349876543210987";
const TEXT: &str = "sentinel-words-of-the-user-5150";

/// Everything that must not be seen of a world.
fn sentinels(world: &World, numbers: &[&Number]) -> Vec<String> {
    let mut words: Vec<String> = [
        CLIENT_SECRET,
        ROTATED_SECRET,
        AURA_KEY,
        REPLY_KEY,
        ISSUED_KEY,
        USER,
        TEXT,
    ]
    .map(ToOwned::to_owned)
    .into();
    for number in numbers {
        let url = world.kernel.webhook_of(&number.client_id).unwrap();
        words.push(
            url.split_once("apikey=")
                .unwrap()
                .1
                .split_once('&')
                .unwrap()
                .0
                .to_owned(),
        );
    }
    // How secrets look on their way: in Basic authentication, in a wamid, in a Secret.
    use base64::Engine;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for number in numbers {
        words.push(base64(&format!("{}:{CLIENT_SECRET}", number.client_id)));
    }
    for text in [CLIENT_SECRET, ROTATED_SECRET, ISSUED_KEY, USER] {
        words.push(base64(text).trim_end_matches('=').to_owned());
    }
    words.extend(world.kernel.token_values());
    assert!(words.iter().all(|word| word.len() >= 12), "{words:?}");
    words
}

/// The places where a word of these stands.
fn leaks(places: &[(String, String)], words: &[String]) -> Vec<String> {
    let mut leaks = Vec::new();
    for (place, text) in places {
        for line in text.lines() {
            for word in words {
                if line.contains(word.as_str()) {
                    leaks.push(format!("{place}: {word} in: {line}"));
                }
            }
        }
    }
    leaks
}

/// Everything that can be read of a world: logs, metrics, messages, resources, events.
async fn readable(world: &World) -> Vec<(String, String)> {
    let mut places = vec![];
    for role in ["controller", "bridge"] {
        places.push((format!("the {role}'s log"), world.log(role)));
    }
    for (name, admin) in [
        ("controller", world.site.controller_admin),
        ("bridge", world.site.bridge_admin),
    ] {
        for path in ["/metrics", "/readyz", "/healthz"] {
            places.push((
                format!("the {name}'s {path}"),
                site::get(admin, path).await.unwrap().1,
            ));
        }
    }
    for path in [
        "/v1/messages?limit=500",
        "/v1/messages/1?body=true",
        "/v1/messages/1",
        "/v1/trace/1",
        "/v1/dead-letters/export",
    ] {
        let (_, answer) = site::get(world.site.messages, path).await.unwrap();
        places.push((format!("the messages listener's {path}"), answer));
    }
    for (group, version, kind, plural) in [
        (
            "channels.auracognitive.com",
            "v1alpha1",
            "WhatsAppChannel",
            "whatsappchannels",
        ),
        ("events.k8s.io", "v1", "Event", "events"),
    ] {
        let resource = ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: format!("{group}/{version}"),
            kind: kind.into(),
            plural: plural.into(),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), &world.namespace, &resource);
        let list = api.list(&Default::default()).await.unwrap();
        assert!(!list.items.is_empty(), "there are {plural}");
        places.push((
            plural.to_owned(),
            serde_json::to_string_pretty(&list.items).unwrap(),
        ));
    }
    places
}

#[tokio::test]
async fn no_secret_key_number_or_text_is_found_anywhere_while_everything_is_logged() {
    let world = World::builder("secrecy")
        .log_filter("trace")
        .keys(AURA_KEY, REPLY_KEY)
        .start()
        .await;
    let derived = Number {
        client_secret: CLIENT_SECRET.into(),
        ..Number::new("1002")
    };
    let issued = Number {
        client_secret: CLIENT_SECRET.into(),
        ..Number::new("1004")
    };
    for number in [&derived, &issued] {
        world.kernel.add_client(number.client());
        world.apply(number.secret()).await;
    }
    world
        .apply(json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "issued", "labels": {"channels.auracognitive.com/channel-secret": "true"}},
            "stringData": {"key": ISSUED_KEY}}))
        .await;
    world.apply(derived.channel()).await;
    let mut channel = issued.channel();
    channel["spec"]["webhook"] = json!({"apiKeySecretRef": {"name": "issued", "key": "key"}});
    world.apply(channel).await;
    world.wait_ready(&derived).await;
    world.wait_ready(&issued).await;
    world.converse(&derived, USER, TEXT, 1).await;
    world.converse(&issued, USER, TEXT, 2).await;

    // What goes wrong is where texts of errors are made.
    let url = world.kernel.webhook_of(&derived.client_id).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for body in [
        format!("{{\"messages\": [{{\"{TEXT}"),
        format!("[\"{USER}\"]"),
        json!({"messages": [{"id": USER}]}).to_string(),
    ] {
        let call = http
            .post(&url)
            .header("content-type", "application/json")
            .body(body)
            .send();
        assert_eq!(call.await.unwrap().status(), 400);
    }
    assert_eq!(
        http.post(format!("{url}x"))
            .body(TEXT)
            .send()
            .await
            .unwrap()
            .status(),
        401
    );
    world.aura.inject(Fault::reset().times(2));
    world.kernel.revoke_tokens(&derived.client_id);
    world.kernel.inject(Fault::garbage().times(1).on(Endpoint::Token));
    world.converse(&derived, USER, TEXT, 3).await;
    world.kernel.rotate_secret(&derived.client_id, ROTATED_SECRET);
    world.kernel.rotate_secret(&issued.client_id, ROTATED_SECRET);
    world
        .patch_secret(&issued, json!({"stringData": {"secret": "fake-wrong-one"}}))
        .await;
    world.wait_reason(&issued, Reason::CredentialsRejected).await;
    world
        .patch_secret(&derived, json!({"stringData": {"secret": ROTATED_SECRET}}))
        .await;
    world.converse(&derived, USER, TEXT, 4).await;

    let words = sentinels(&world, &[&derived, &issued]);
    let places = readable(&world).await;
    for role in ["controller", "bridge"] {
        let log = world.log(role);
        assert!(
            log.contains("TRACE") && log.contains("hyper_util"),
            "all crates log at the finest level"
        );
    }
    let leaks = leaks(&places, &words);
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}

#[tokio::test]
async fn a_leak_that_is_planted_is_found() {
    let world = World::start("planted").await;
    let number = world
        .add("1002", |channel| {
            channel["metadata"]["annotations"] = json!({"note": TEXT});
        })
        .await;
    world.wait_ready(&number).await;
    let mut places = readable(&world).await;
    let words = sentinels(&world, &[&number]);
    let found = leaks(&places, &words);
    assert!(
        found.iter().any(|leak| leak.starts_with("whatsappchannels")),
        "{found:?}"
    );
    places.push((
        "a line of log".into(),
        format!("calling {}", world.kernel.webhook_of(&number.client_id).unwrap()),
    ));
    assert!(leaks(&places, &words).len() > found.len());
}
