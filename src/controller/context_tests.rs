//! Who is woken by whom, without a cluster.

use hyper::{Request, Response};
use kube::client::Body;

use super::*;
use crate::{
    api::WhatsAppChannelSpec,
    controller::{collector::Channels, lease, memory::Memory, worker::Again},
    keys::KeyMaterial,
};

fn context(one_webhook_per_client: bool) -> Context {
    crate::http::install_tls_provider();
    let nobody = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
    });
    let client = Client::new(nobody, "n");
    let (_, leadership) = lease::channel();
    let (metrics, _) = ControllerMetrics::new(Box::new(Channels::default()));
    let (events, _) = Events::new(client.clone(), leadership.clone(), metrics.events_dropped.clone());
    let parts = Parts {
        client,
        kernel: kernel::Client::new().unwrap(),
        metrics,
        leadership,
        events,
    };
    let text = format!(
        r"
environments:
  es-pro:
    namespaces: [n]
    publicUrl: https://svc.example.com
    kernel: {{apiUrl: https://k.example.com, authUrl: https://k.example.com}}
    registration: {{oneWebhookPerClient: {one_webhook_per_client}}}
    aura: {{messagesUrl: https://a.example.com, replyUrl: http://b, outboundAuth: {{apiKeyFile: /x}}, inboundAuth: {{apiKeyFile: /x}}}}
"
    );
    let installation = Installation::parse(&text, "t").unwrap();
    let keys = Keys::derive(&KeyMaterial::new(|name| (name != "previous").then(|| vec![3; 32])).unwrap());
    Context::new(parts, installation, keys, "n".into())
}

/// Many channels with one Kernel client, by mistake or because this Kernel does not mind.
#[tokio::test]
async fn many_channels_that_share_a_client_wake_each_other_no_more_often_than_there_are_channels() {
    for one_each in [false, true] {
        const MANY: usize = 200;
        let context = context(one_each);
        for n in 0..MANY {
            let mut spec = WhatsAppChannelSpec::example();
            spec.channel_id = ChannelId::from_bytes([u8::try_from(n).unwrap(); 16]).to_string();
            let mut channel = WhatsAppChannel::new(&format!("c{n}"), spec);
            channel.metadata.namespace = Some("n".into());
            channel.metadata.uid = Some(format!("u{n}"));
            channel.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                "2026-11-22T10:00:00Z".parse().unwrap(),
            ));
            context.seen(channel);
        }
        let mut passes = 0;
        while let Some(key) = context.work.next() {
            context.uses_client(&key, 7);
            context.work.done(&key, Again::OnChange);
            passes += 1;
        }
        assert!(
            (MANY..=3 * MANY).contains(&passes),
            "{passes} passes for {MANY} channels ({one_each})"
        );
    }
}

fn shared(context: &Context, name: &str, id: u8, created: &str) -> ObjectKey {
    let mut spec = WhatsAppChannelSpec::example();
    spec.channel_id = ChannelId::from_bytes([id; 16]).to_string();
    spec.kernel.credentials_secret_ref.name = name.to_owned();
    let mut channel = WhatsAppChannel::new(name, spec);
    channel.metadata.namespace = Some("n".into());
    channel.metadata.uid = Some(format!("uid-{name}"));
    channel.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        created.parse().unwrap(),
    ));
    let key = context.seen(channel).unwrap();
    context.roster().secret(&ObjectKey::new("n", name), Some("1"));
    key
}

/// A client is held by the oldest that has it in its Secret, holds its own channel, and is there.
#[tokio::test]
async fn a_client_is_held_by_the_oldest_that_uses_it_now() {
    let context = context(true);
    let old = shared(&context, "old", 1, "2026-11-22T10:00:00Z");
    let young = shared(&context, "young", 2, "2026-11-22T11:00:00Z");
    let holder = |key| context.client_holder(key).map(|claim| claim.name);
    context.uses_client(&young, 7);
    assert_eq!(holder(&young), None);
    context.uses_client(&old, 7);
    assert_eq!(
        holder(&young).as_deref(),
        Some("old"),
        "although it came later to it"
    );
    assert!(context.shares_client(&old) && context.shares_client(&young));

    // Who was told to get another client, and has a Secret of another version, is read before it is told so again.
    context.roster().secret(&ObjectKey::new("n", "young"), Some("2"));
    assert_eq!(holder(&young), None, "it may have another client by now");
    context.uses_client(&young, 7);
    assert_eq!(holder(&young).as_deref(), Some("old"), "it has not");

    let concerned = context.roster().secret(&ObjectKey::new("n", "old"), None);
    assert!(concerned.contains(&young), "who yielded may hold it now");
    assert_eq!(holder(&young), None, "its Secret is gone");
    context.roster().secret(&ObjectKey::new("n", "old"), Some("2"));
    context.uses_client(&old, 7);
    assert_eq!(holder(&young).as_deref(), Some("old"));

    // It yields its own channel to an older one: it registers nothing.
    shared(&context, "oldest", 1, "2026-11-22T09:00:00Z");
    assert_eq!(holder(&young), None);
}

#[tokio::test]
async fn those_that_share_a_webhook_that_was_cleared_look_at_it_at_once() {
    let context = context(true);
    let gone = shared(&context, "gone", 1, "2026-11-22T10:00:00Z");
    let heir = shared(&context, "heir", 1, "2026-11-22T11:00:00Z");
    while let Some(key) = context.work.next() {
        context.work.done(&key, Again::OnChange);
    }
    context.look_at_rivals(&gone, ChannelId::from_bytes([1; 16]));
    assert_eq!(context.work.next(), Some(heir));
    assert_eq!(context.work.next(), None);
    let memory = context.memories.of("uid-heir");
    assert_ne!(memory.looks_made, memory.looks_wanted);
    // A pass that was under way knows nothing of it: what it keeps does not take it back.
    context.memories.keep("uid-heir", Memory::default());
    let memory = context.memories.of("uid-heir");
    assert_ne!(memory.looks_made, memory.looks_wanted);
}

/// Both lists may be there before anybody asks, or between a question and the wait that follows it.
#[tokio::test]
async fn what_is_listed_at_any_moment_is_told() {
    let context = context(true);
    let mut told = Vec::new();
    context
        .tell_unlisted(|unlisted| {
            match told.len() {
                0 => context.listed(Listed::Secrets),
                1 => context.listed(Listed::Channels),
                _ => {}
            }
            told.push(unlisted);
        })
        .await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[0]
            .as_ref()
            .is_some_and(|text| text.contains("WhatsAppChannels"))
    );
    assert_eq!(told[2], None);
    context.tell_unlisted(|unlisted| assert_eq!(unlisted, None)).await;
}
