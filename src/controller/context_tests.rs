//! Who is woken by whom, without a cluster.

use hyper::{Request, Response};
use kube::client::Body;

use super::*;
use crate::{
    api::WhatsAppChannelSpec,
    controller::{collector::Channels, lease, worker::Again},
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
    let (events, _) = Events::new(client.clone(), leadership.clone());
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
