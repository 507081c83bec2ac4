//! The bridge's listeners as the internet meets them; `docs/cases.md` says which case is shown where.

mod flood;
mod overload;
mod protocol;
mod proxies;
mod replies;
mod restart;
mod tls;

use serde_json::{Value, json};

use crate::support::{Answer, Number, Raw, World};

const USER: &str = "34600000001";

/// The path and query that Kernel calls for a number.
fn target(world: &World, number: &Number) -> String {
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let base = format!("http://{}", world.site.public);
    url.strip_prefix(&base).unwrap().to_owned()
}

/// The API key of a number's webhook.
fn key(world: &World, number: &Number) -> String {
    let target = target(world, number);
    let (_, rest) = target.split_once("apikey=").unwrap();
    rest.split('&').next().unwrap().to_owned()
}

/// A call with one text.
fn text(user: &str, id: &str, body: &str) -> Value {
    json!({"messages": [{"from": user, "id": id, "type": "text", "text": {"body": body}}]})
}

/// A request with a body in JSON, and further header lines.
fn request(target: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// The answer to one request on a connection of its own.
async fn told(world: &World, request: &str) -> Answer {
    let mut client = Raw::to(world.site.public).await;
    client.send(request).await;
    client.answer().await.expect("an answer")
}

/// How many calls came with a wrong credential, as the metrics say.
async fn auth_failures(world: &World) -> String {
    let failures = world
        .metric(world.site.bridge_admin, "aura_whatsapp_auth_failures_total")
        .await;
    failures.to_string()
}
