//! What becomes of messages between the two doors: each once, in order, whatever the peers do (Laws 2 to 5 and 8).

mod dedup;
mod kernel;
mod neighbour;
mod order;
mod replies;
mod statuses;
mod upstream;

use std::{collections::BTreeMap, time::Duration};

use aura_whatsapp_operator::sim::{aura::ReceivedActivity, fault::Fault};
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::{Number, World};

const USER: &str = "34600000001";

fn http() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// One text in the form of a webhook call's `messages`.
fn text(user: &str, id: &str, text: &str) -> Value {
    let now = Timestamp::now().as_second().to_string();
    json!({"from": user, "id": id, "timestamp": now, "type": "text", "text": {"body": text}})
}

fn call(messages: &[Value]) -> Value {
    json!({ "messages": messages })
}

/// Makes a webhook call; its status.
async fn post(http: &Client, url: &str, body: &Value) -> u16 {
    http.post(url).json(body).send().await.unwrap().status().as_u16()
}

/// The texts that Aura took for one channel, in order.
fn texts_of(activities: &[ReceivedActivity], number: &Number) -> Vec<String> {
    let of_channel = activities
        .iter()
        .filter(|activity| activity.channel_id == number.channel_id);
    of_channel.filter_map(|activity| activity.text.clone()).collect()
}

/// A number for each fault, ready, by the fault's name.
async fn a_number_for_each(
    world: &World,
    faults: &[(&'static str, Fault)],
) -> BTreeMap<&'static str, Number> {
    a_number_for_each_with(world, faults, |_| {}).await
}

/// The same, of channels that differ.
async fn a_number_for_each_with(
    world: &World,
    faults: &[(&'static str, Fault)],
    change: fn(&mut Value),
) -> BTreeMap<&'static str, Number> {
    let mut numbers = BTreeMap::new();
    for (n, (name, _)) in faults.iter().enumerate() {
        numbers.insert(*name, world.add(&format!("20{n:02}"), change).await);
    }
    for number in numbers.values() {
        world.wait_ready(number).await;
    }
    numbers
}

/// How many messages have ended in a way (`delivered`, `dead_letter`), by the bridge's metrics.
async fn ended(world: &World, how: &str) -> usize {
    let page = aura_whatsapp_operator::sim::dev::site::get(world.site.bridge_admin, "/metrics").await;
    let (_, page) = page.unwrap();
    let label = format!("outcome=\"{how}\"");
    page.lines()
        .filter(|line| line.starts_with("aura_whatsapp_deliveries_total{") && line.contains(&label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
        .sum()
}

/// The longest that a call may take which nothing stands in the way of.
const PROMPT: Duration = Duration::from_secs(1);
