//! TLS on the listeners, with the bridge's own process.

use std::path::Path;

use aura_whatsapp_operator::sim::{
    aura::Behaviour,
    certificates::{Authority, Signed},
    dev::site,
};
use reqwest::{Certificate, Client, Identity};
use serde_json::json;

use super::{USER, target, text};
use crate::support::{SOON, World};

fn client(authority: &Authority, identity: Option<&Signed>) -> Client {
    let ca = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let mut builder = Client::builder()
        .no_proxy()
        .tls_certs_only([ca])
        .pool_max_idle_per_host(0);
    if let Some(signed) = identity {
        let pem = format!("{}{}", signed.certificate, signed.key);
        builder = builder.identity(Identity::from_pem(pem.as_bytes()).unwrap());
    }
    builder.build().unwrap()
}

/// The lines of the bridge's configuration for certificates in this folder.
fn lines(folder: &Path) -> String {
    let of = |listener: &str| {
        let folder = folder.join(listener);
        format!("certFile: {0}/tls.crt, keyFile: {0}/tls.key", folder.display())
    };
    format!(
        "bridge:\n  tls:\n    public: {{{}}}\n    internal: {{{}, clientCaFile: {}/ca.crt}}\n",
        of("public"),
        of("internal"),
        folder.display()
    )
}

#[tokio::test]
async fn both_listeners_speak_tls_aura_shows_its_certificate_and_the_bridges_is_replaced_while_it_runs() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("test").unwrap());
    for listener in ["public", "internal"] {
        authority
            .sign(&["127.0.0.1"], 2040)
            .unwrap()
            .write(&folder.path().join(listener))
            .unwrap();
    }
    std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
    let mut world = World::builder("tls")
        .aura(Behaviour::Silent)
        .without_bridge()
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let credentials = world.site.dir().join("credentials").join("aura-in");
    world.reconfigure(|text| {
        let text = text.replace("replyUrl: http:", "replyUrl: https:").replace(
            &format!("{{apiKeyFile: {}}}", credentials.display()),
            "{mtls: {name: aura.test}}",
        );
        format!("{text}{}", lines(folder.path()))
    });
    world.start_bridge().await;

    let call = async |client: &Client, id: &str| {
        let url = format!("https://{}{}", world.site.public, target(&world, &number));
        let answer = client.post(url).json(&text(USER, id, "hola")).send().await;
        answer.map(|answer| answer.status().as_u16())
    };
    let kernel = client(&authority, None);
    assert_eq!(call(&kernel, "wamid.1").await.unwrap(), 200);
    let activity = world.aura.wait_activities(1, SOON).await.unwrap().remove(0);
    let url = format!(
        "https://{}/v3/conversations/{}/activities",
        world.site.internal, activity.conversation_id
    );
    let reply = json!({"type": "message", "text": "¡hola!", "channelData": {"channelId": number.channel_id}});
    let replied = async |identity: Option<&Signed>| {
        let answer = client(&authority, identity).post(&url).json(&reply).send().await;
        answer.unwrap().status().as_u16()
    };
    assert_eq!(replied(None).await, 401);
    assert_eq!(
        replied(Some(&authority.sign(&["other.test"], 2040).unwrap())).await,
        401
    );
    assert_eq!(
        replied(Some(&authority.sign(&["aura.test"], 2040).unwrap())).await,
        200
    );
    assert_eq!(world.wait_received(USER, 1).await[0].text, "¡hola!");

    let expiry = async |listener: &str, year: i64| {
        let (_, page) = site::get(world.site.bridge_admin, "/metrics").await.unwrap();
        let at = jiff::civil::date(i16::try_from(year).unwrap(), 1, 1)
            .to_zoned(jiff::tz::TimeZone::UTC)
            .unwrap();
        let second = at.timestamp().as_second();
        page.contains(&format!(
            "tls_certificate_expiry_timestamp_seconds{{listener=\"{listener}\"}} {second}\n"
        ))
    };
    assert!(expiry("public", 2040).await && expiry("internal", 2040).await);
    let (new, public) = (Authority::new("new").unwrap(), folder.path().join("public"));
    new.sign(&["127.0.0.1"], 2041).unwrap().write(&public).unwrap();
    world
        .until("the new certificate is in force", async || {
            expiry("public", 2041).await
        })
        .await;
    assert_eq!(call(&client(&new, None), "wamid.2").await.unwrap(), 200);
    assert!(call(&kernel, "wamid.3").await.is_err());
    assert!(expiry("internal", 2040).await);

    std::fs::write(public.join("tls.key"), "no key").unwrap();
    world
        .until("the bad key is told of", async || {
            world
                .metric(world.site.bridge_admin, "aura_whatsapp_tls_certificate_stale")
                .await
                > 0.0
        })
        .await;
    assert_eq!(call(&client(&new, None), "wamid.4").await.unwrap(), 200);
    let told = "the certificate's files can't be used; the last good pair stays in force";
    assert_eq!(world.log("bridge").matches(told).count(), 1);
}
