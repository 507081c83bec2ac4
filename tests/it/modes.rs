//! What a webhook may be to us: managed, only observed, that of the system before, another party's, or one that two of
//! our own resources want.

use std::sync::{Arc, Mutex};

use aura_whatsapp_operator::{
    api::{WhatsAppChannel, conditions::Reason},
    sim::dev::objects,
};
use axum::{Router, extract::RawQuery, routing::post};
use kube::{Api, api::DeleteParams, runtime::wait::await_condition};
use serde_json::{Value, json};

use crate::support::{Number, SOON, World, condition, ready};

const USER: &str = "34600000001";
const FOREIGN: &str = "https://old.example.com/hook?key=fake-foreign-key";
/// The API key of the system before.
const LEGACY_KEY: &str = "fake-legacy-key-0001";

/// The system before: takes every webhook call.
struct Before {
    url: String,
    queries: Arc<Mutex<Vec<String>>>,
}

impl Before {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/legacy", listener.local_addr().unwrap());
        let queries = Arc::<Mutex<Vec<String>>>::default();
        let into = queries.clone();
        let take = move |RawQuery(query): RawQuery| async move {
            into.lock().unwrap().push(query.unwrap_or_default());
        };
        let router = Router::new().route("/legacy", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, queries }
    }

    fn calls(&self) -> usize {
        self.queries.lock().unwrap().len()
    }
}

async fn set_webhook(world: &World, number: &Number, webhook: Value) {
    world
        .patch_channel(number, json!({"spec": {"webhook": webhook}}))
        .await;
}

async fn wait_good(world: &World, number: &Number, reason: Reason) -> WhatsAppChannel {
    let channel = world.wait_reason(number, reason).await;
    assert_eq!(ready(&channel).0, "True");
    channel
}

#[tokio::test]
async fn a_number_goes_from_the_system_before_to_ours_and_back_with_one_patch_each() {
    let before = Before::start().await;
    let mut world = World::builder("legacy")
        .environment_extra(&format!(
            "    legacyCallback: {{url: \"{}?apikey={{apikey}}&channelId={{channelId}}\", \
             apiKeySecretRef: {{name: legacy, key: apikey}}}}",
            before.url
        ))
        .start()
        .await;
    world
        .apply(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "legacy", "labels": {"channels.auracognitive.com/channel-secret": "true"}},
            "stringData": {"apikey": LEGACY_KEY},
        }))
        .await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = json!({"mode": "Legacy", "existing": "Refuse"});
        })
        .await;
    let legacy = format!(
        "{}?apikey={LEGACY_KEY}&channelId={}",
        before.url, number.channel_id
    );
    let held = |world: &World| world.kernel.webhook_of(&number.client_id).unwrap();
    let channel = wait_good(&world, &number, Reason::LegacyRegistered).await;
    assert_eq!(held(&world), legacy);
    assert!(
        !serde_json::to_string(&channel.status)
            .unwrap()
            .contains(LEGACY_KEY)
    );
    world.kernel.user_sends(&number.digits, USER, "uno").unwrap();
    world
        .until("the system before is called", async || before.calls() == 1)
        .await;

    set_webhook(&world, &number, json!({"mode": "Manage"})).await;
    wait_good(&world, &number, Reason::Succeeded).await;
    let ours = held(&world);
    assert!(
        ours.starts_with(&format!("http://{}", world.site.public)),
        "{ours}"
    );
    world.converse(&number, USER, "dos", 1).await;
    assert_eq!(before.calls(), 1);

    set_webhook(&world, &number, json!({"mode": "Legacy"})).await;
    wait_good(&world, &number, Reason::LegacyRegistered).await;
    assert_eq!(held(&world), legacy);
    world.kernel.user_sends(&number.digits, USER, "tres").unwrap();
    world
        .until("the system before is called again", async || before.calls() == 2)
        .await;

    // Whoever leads later knows by the status whose webhook it was.
    world.restart_controller().await;
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 3);
    set_webhook(&world, &number, json!({"mode": "Manage"})).await;
    wait_good(&world, &number, Reason::Succeeded).await;
    assert_eq!(held(&world), ours);
    world.converse(&number, USER, "cuatro", 2).await;
    assert_eq!(before.calls(), 2);
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 4);
}

#[tokio::test]
async fn observe_says_of_each_webhook_what_would_become_of_it_and_changes_none() {
    let mut world = World::builder("observing").without_bridge().start().await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = json!({"mode": "Observe", "existing": "TakeOver"});
        })
        .await;
    let channel = wait_good(&world, &number, Reason::Observed).await;
    assert!(ready(&channel).2.contains("registered where there is none"));
    let ours = format!(
        "http://{}/aura-services/v1/whatsapp/messages?apikey=fake-other-key&channelId={}",
        world.site.public, number.channel_id
    );
    for (held, told) in [
        (FOREIGN, "the webhook at old.example.com would be replaced"),
        (&ours, "the key of our webhook would be renewed"),
    ] {
        world.kernel.set_webhook(&number.client_id, held);
        let channel = world
            .look_now(&number, told.split(' ').next_back().unwrap())
            .await;
        assert_eq!(ready(&channel).1, Reason::Observed.as_str());
        assert!(ready(&channel).2.contains(told), "{:?}", ready(&channel));
        assert_ne!(condition(&channel, "WebhookVerified").0, "True");
    }
    world.restart_controller().await;
    let channel = world.look_now(&number, "after-the-restart").await;
    assert!(ready(&channel).2.contains("renewed"), "{:?}", ready(&channel));
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 0);
    assert_eq!(world.kernel.webhook_of(&number.client_id), Some(ours));
}

#[tokio::test]
async fn a_webhook_that_another_party_sets_again_and_again_is_left_to_it_also_over_restarts() {
    let mut world = World::builder("fight").without_bridge().start().await;
    let number = Number::new("1002");
    world.kernel.add_client(number.client());
    world.kernel.set_webhook(&number.client_id, FOREIGN);
    world.apply(number.secret()).await;
    let mut channel = number.channel();
    channel["spec"]["webhook"] = json!({"existing": "TakeOver"});
    world.apply(channel).await;
    world.wait_ready(&number).await;
    let sets = |world: &World| world.kernel.webhook_sets(&number.client_id);
    assert_eq!(sets(&world), 1, "taken over");
    for put_back in 1..=3 {
        if put_back == 2 {
            // What was done before the restart counts after it.
            world.restart_controller().await;
        }
        world.kernel.set_webhook(&number.client_id, FOREIGN);
        let channel = world.look_now(&number, &format!("look-{put_back}")).await;
        assert_eq!(ready(&channel).0, "True");
        assert_eq!(sets(&world), 1 + put_back, "put back");
    }
    for look in 4..=6 {
        if look == 5 {
            world.restart_controller().await;
            world.ready_number("1004").await;
        }
        world.kernel.set_webhook(&number.client_id, FOREIGN);
        let channel = world.look_now(&number, &format!("look-{look}")).await;
        assert_eq!(ready(&channel).1, Reason::WebhookContested.as_str());
        assert_eq!(condition(&channel, "Stalled").0, "True");
        let message = ready(&channel).2;
        assert!(
            message.contains("old.example.com") && !message.contains("fake-foreign-key"),
            "{message}"
        );
        assert_eq!(sets(&world), 4, "the other side keeps it");
    }
    assert_eq!(
        world.kernel.webhook_of(&number.client_id).as_deref(),
        Some(FOREIGN)
    );
    // Whoever changes the spec has found out who it is.
    world
        .patch_channel(&number, json!({"spec": {"phoneNumber": "+34600991002"}}))
        .await;
    world.wait_ready(&number).await;
    assert_eq!(sets(&world), 5);
}

#[tokio::test]
async fn of_two_channels_with_one_kernel_client_the_younger_waits_and_takes_over() {
    let mut world = World::builder("shared").without_bridge().start().await;
    let older = world.ready_number("1002").await;
    let younger = Number {
        name: "z-number-1004".into(),
        client_id: older.client_id.clone(),
        client_secret: older.client_secret.clone(),
        ..Number::new("1004")
    };
    world.apply(younger.secret()).await;
    let mut channel = younger.channel();
    channel["spec"]["webhook"] = json!({"existing": "TakeOver"});
    world.apply(channel).await;
    let told = world.wait_reason(&younger, Reason::ClientShared).await;
    assert!(ready(&told).2.contains(&older.name), "{:?}", ready(&told));
    assert_eq!(condition(&told, "Accepted").0, "False");
    assert_eq!(condition(&told, "Stalled").0, "True");
    let held = world.kernel.webhook_of(&older.client_id);
    world.restart_controller().await;
    let told = world.look_now(&younger, "after-the-restart").await;
    assert_eq!(ready(&told).1, Reason::ClientShared.as_str());
    assert_eq!(world.kernel.webhook_sets(&older.client_id), 1);
    assert_eq!(world.kernel.webhook_of(&older.client_id), held);

    let delete = DeleteParams::default();
    world.channels().delete(&older.name, &delete).await.unwrap();
    world.wait_ready(&younger).await;
    assert!(
        world
            .kernel
            .webhook_of(&older.client_id)
            .unwrap()
            .contains(&younger.channel_id)
    );
}

/// What the message advises helps, and so does its opposite: a registered channel yields to an older one that comes to use
/// its client.
#[tokio::test]
async fn a_channel_that_is_given_a_client_of_its_own_yields_no_longer() {
    let world = World::builder("own-client").without_bridge().start().await;
    let older = world.ready_number("1002").await;
    let younger = Number {
        name: "z-number-1004".into(),
        ..Number::new("1004")
    };
    world.kernel.add_client(younger.client());
    let shared = json!({"stringData": {"id": older.client_id, "secret": older.client_secret}});
    let mut secret = younger.secret();
    secret["stringData"] = shared["stringData"].clone();
    world.apply(secret).await;
    world.apply(younger.channel()).await;
    world.wait_reason(&younger, Reason::ClientShared).await;

    let own = json!({"stringData": {"id": younger.client_id, "secret": younger.client_secret}});
    world.patch_secret(&younger, own).await;
    world.wait_ready(&younger).await;
    assert_eq!(world.kernel.webhook_sets(&younger.client_id), 1);

    // The older one's Secret is edited by mistake, and holds the younger one's client.
    let mistake = json!({"stringData": {"id": younger.client_id, "secret": younger.client_secret}});
    world.patch_secret(&older, mistake).await;
    world.wait_reason(&younger, Reason::ClientShared).await;
    world.patch_secret(&older, shared).await;
    world.wait_ready(&older).await;
    world.wait_ready(&younger).await;
}

#[tokio::test]
async fn a_channel_claimed_in_two_namespaces_stays_with_the_older_one_over_a_restart() {
    let mut world = World::builder("two-places")
        .with_another_namespace()
        .start()
        .await;
    let other = world.other_namespace.clone().unwrap();
    let older = world.ready_number("1002").await;
    let younger = Number {
        // Sorts after the other one where both were made within a second: namespaces are numbered as they are made.
        channel_id: older.channel_id.clone(),
        ..Number::new("1004")
    };
    world.kernel.add_client(younger.client());
    let elsewhere: Api<WhatsAppChannel> = Api::namespaced(world.client.clone(), &other);
    // The older one is older by a second, which is what counts.
    let made = world.channels().get(&older.name).await.unwrap();
    let made = made.metadata.creation_timestamp.unwrap().0;
    world
        .until("a second is over", async || {
            jiff::Timestamp::now().as_second() > made.as_second()
        })
        .await;
    for mut object in [younger.secret(), younger.channel()] {
        object["metadata"]["namespace"] = other.as_str().into();
        objects::apply(&world.client, object).await.unwrap();
    }
    let waits = |channel: Option<&WhatsAppChannel>| {
        channel.is_some_and(|channel| ready(channel).1 == Reason::ChannelConflict.as_str())
    };
    let wait = async |is: &(dyn Fn(Option<&WhatsAppChannel>) -> bool + Sync)| {
        let found = await_condition(elsewhere.clone(), &younger.name, is);
        tokio::time::timeout(SOON, found)
            .await
            .expect("its status changes")
            .unwrap()
            .unwrap()
    };
    let told = wait(&waits).await;
    let message = ready(&told).2;
    assert!(
        message.contains("in another namespace") && !message.contains(&world.namespace),
        "who reads this may not know the other namespace: {message}"
    );
    let calls = world.kernel.call_count();
    world.controller.take().unwrap().stop().await.unwrap();
    world.controller = Some(world.site.start_controller().await.unwrap());
    world.ready_number("1006").await;
    assert!(waits(Some(&elsewhere.get(&younger.name).await.unwrap())));
    assert_eq!(
        world.kernel.call_count() - calls,
        3,
        "token, GET and PATCH of the third"
    );
    world.converse(&older, USER, "hola", 1).await;

    let delete = DeleteParams::default();
    world.channels().delete(&older.name, &delete).await.unwrap();
    let is_ready =
        |channel: Option<&WhatsAppChannel>| channel.is_some_and(|channel| ready(channel).0 == "True");
    wait(&is_ready).await;
    let received = world.converse(&younger, USER, "hola", 2).await;
    assert_eq!(received[1].client_id, younger.client_id);
}
