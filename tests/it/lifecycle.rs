//! A channel's life: applied, registered, changed, in trouble, deleted.

use aura_whatsapp_operator::{
    api::{WhatsAppChannel, conditions::Reason},
    sim::{
        dev::site,
        fault::{Endpoint, Fault},
    },
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::DeleteParams,
    runtime::{conditions, wait::await_condition},
};
use serde_json::json;

use crate::support::{Number, SOON, World, condition, handled, ready};

async fn deleted(world: &World, number: &Number) {
    let uid = world.channels().get(&number.name).await.unwrap().uid().unwrap();
    world
        .channels()
        .delete(&number.name, &DeleteParams::default())
        .await
        .unwrap();
    tokio::time::timeout(
        SOON,
        await_condition(world.channels(), &number.name, conditions::is_deleted(&uid)),
    )
    .await
    .expect("the resource goes away")
    .unwrap();
}

#[tokio::test]
async fn two_numbers_are_registered_and_each_answers_with_its_own_token() {
    let world = World::start("two-numbers").await;
    let (first, second) = (world.ready_number("1002").await, world.ready_number("1004").await);
    for number in [&first, &second] {
        let url = world.kernel.webhook_of(&number.client_id).unwrap();
        assert!(url.starts_with(&format!(
            "http://{}/aura-services/v1/whatsapp/messages?apikey=",
            world.site.public
        )));
        assert!(
            url.ends_with(&format!("&channelId={}", number.channel_id)),
            "{url}"
        );
        assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
    }
    let replies = world.converse(&first, "34600000001", "hola", 1).await;
    assert_eq!(replies[0].client_id, first.client_id);
    assert!(replies[0].from_number.ends_with("1002"));
    let replies = world.converse(&second, "34600000001", "adiós", 2).await;
    assert_eq!(replies[1].client_id, second.client_id);
    let sent: Vec<_> = world
        .aura
        .activities()
        .iter()
        .map(|activity| activity.channel_id.clone())
        .collect();
    assert_eq!(sent, [first.channel_id.clone(), second.channel_id.clone()]);

    let channel = world.channels().get(&first.name).await.unwrap();
    let status = channel.status.as_ref().unwrap();
    for kind in [
        "Ready",
        "Accepted",
        "CredentialsValid",
        "WebhookRegistered",
        "WebhookVerified",
    ] {
        assert_eq!(condition(&channel, kind).0, "True", "{kind}");
    }
    assert!(status.webhook_url.as_ref().unwrap().contains("apikey=****"));
    assert!(status.registered_at.is_some() && status.observed_secret_version.is_some());
}

#[tokio::test]
async fn an_unchanged_channel_costs_nothing_and_one_that_is_asked_for_a_look_costs_one_get() {
    let world = World::start("quiet").await;
    let number = world.ready_number("1002").await;
    let (sets, gets) = (
        world.kernel.webhook_sets(&number.client_id),
        world.kernel.webhook_gets(&number.client_id),
    );
    let writes = world
        .metric(world.site.controller_admin, "aura_whatsapp_status_writes_total")
        .await;
    let handled = world.look_now(&number, "one").await;
    assert_eq!(ready(&handled).0, "True");
    assert_eq!(world.kernel.webhook_sets(&number.client_id), sets);
    assert_eq!(world.kernel.webhook_gets(&number.client_id), gets + 1);
    let after = world
        .metric(world.site.controller_admin, "aura_whatsapp_status_writes_total")
        .await;
    assert!(
        (after - writes - 1.0).abs() < 0.5,
        "one write, for the echo of the request: {writes} -> {after}"
    );
}

#[tokio::test]
async fn a_restarted_controller_leaves_a_channel_that_is_right_alone() {
    let mut world = World::start("restart").await;
    let number = world.ready_number("1002").await;
    let calls = world.kernel.calls().len();
    world.controller.take().unwrap().stop().await.unwrap();
    assert!(
        world.kernel.webhook_of(&number.client_id).is_some(),
        "stopping unregisters nothing"
    );
    world.controller = Some(world.site.start_controller().await.unwrap());
    // A second channel has gone all the way: the first had its turn before.
    world.ready_number("1004").await;
    let of_first = world.kernel.calls()[calls..]
        .iter()
        .filter(|call| call.client_id.as_deref() == Some(number.client_id.as_str()))
        .count();
    assert_eq!(of_first, 0, "no call for a channel that is up to date");
}

#[tokio::test]
async fn a_changed_secret_is_used_at_once() {
    let world = World::start("rotation").await;
    let number = world.ready_number("1002").await;
    world.converse(&number, "34600000001", "hola", 1).await;
    let before = world
        .channels()
        .get(&number.name)
        .await
        .unwrap()
        .status
        .unwrap()
        .observed_secret_version;
    world
        .kernel
        .rotate_secret(&number.client_id, "fake-rotated-secret");
    world
        .patch_secret(&number, json!({"stringData": {"secret": "fake-rotated-secret"}}))
        .await;
    let replies = world.converse(&number, "34600000001", "otra", 2).await;
    assert_eq!(replies[1].client_id, number.client_id);
    world
        .wait_for(&number, "to have seen the new Secret", |channel| {
            channel.status.as_ref().unwrap().observed_secret_version != before && ready(channel).0 == "True"
        })
        .await;
}

#[tokio::test]
async fn a_raised_key_generation_is_registered_and_refuses_no_call() {
    let world = World::start("keys").await;
    let number = world.ready_number("1002").await;
    let old = world.kernel.webhook_of(&number.client_id).unwrap();
    world
        .patch_channel(&number, json!({"spec": {"webhook": {"keyGeneration": 2}}}))
        .await;
    world
        .wait_for(&number, "to be registered anew", |channel| {
            channel
                .status
                .as_ref()
                .unwrap()
                .webhook_key
                .as_ref()
                .is_some_and(|key| key.generation == Some(2))
        })
        .await;
    let new = world.kernel.webhook_of(&number.client_id).unwrap();
    assert_ne!(old, new);
    world.converse(&number, "34600000001", "hola", 1).await;
    // A call that was on its way with the old key.
    world.kernel.set_webhook(&number.client_id, &old);
    world.converse(&number, "34600000001", "otra", 2).await;
    assert!(
        world
            .kernel
            .webhook_calls()
            .iter()
            .all(|call| format!("{:?}", call.outcome).contains("200"))
    );
}

#[tokio::test]
async fn a_secret_that_comes_late_or_wrong_is_told_of_and_mended_at_once() {
    let world = World::start("secrets").await;
    let number = Number::new("1002");
    world.kernel.add_client(number.client());
    world.apply(number.channel()).await;
    let channel = world.wait_reason(&number, Reason::SecretNotFound).await;
    assert_eq!(condition(&channel, "Reconciling").0, "True");
    assert_eq!(condition(&channel, "CredentialsValid").0, "False");

    let mut secret = number.secret();
    secret["metadata"]["labels"] = json!({});
    world.apply(secret).await;
    // An unlabelled Secret wakes nobody: that is what keeps the watch small. The next try sees it.
    let channel = world.wait_reason(&number, Reason::SecretNotAllowed).await;
    assert!(
        ready(&channel)
            .2
            .contains("kubectl label secret number-1002-kernel"),
        "{:?}",
        ready(&channel)
    );
    assert_eq!(condition(&channel, "Stalled").0, "True");

    let mut secret = number.secret();
    secret["stringData"]["secret"] = json!("");
    world.apply(secret).await;
    world.wait_reason(&number, Reason::SecretKeyMissing).await;
    world
        .patch_secret(&number, json!({"stringData": {"secret": "fake-wrong-secret"}}))
        .await;
    let channel = world.wait_reason(&number, Reason::CredentialsRejected).await;
    assert_eq!(condition(&channel, "Stalled").0, "True");
    world
        .patch_secret(&number, json!({"stringData": {"secret": number.client_secret}}))
        .await;
    let channel = world.wait_ready(&number).await;
    assert_eq!(
        condition(&channel, "Stalled").0,
        "",
        "Stalled exists only while true"
    );
}

#[tokio::test]
async fn each_trouble_with_kernel_has_its_reason() {
    let world = World::start("reasons").await;
    let scopeless = Number::new("2001");
    let mut client = scopeless.client();
    client.scopes = vec!["whatsapp:app-messaging".to_owned()];
    world.kernel.add_client(client);
    world.apply(scopeless.secret()).await;
    world.apply(scopeless.channel()).await;
    let channel = world.wait_reason(&scopeless, Reason::ScopeNotGranted).await;
    assert!(ready(&channel).2.contains("whatsapp:app-admin"));

    let cases = [
        ("2002", Fault::status(403), Reason::PermissionDenied),
        ("2003", Fault::status(429).retry_after(1), Reason::RateLimited),
        ("2004", Fault::status(503), Reason::UpstreamUnavailable),
        ("2005", Fault::reset(), Reason::UpstreamUnavailable),
        ("2006", Fault::garbage(), Reason::InvalidResponse),
    ];
    for (digits, fault, reason) in cases {
        let client = format!("fake-client-{digits}");
        world
            .kernel
            .inject(fault.on(Endpoint::WebhookGet).only_for(client));
        let number = world.add(digits, |_| {}).await;
        let channel = world.wait_reason(&number, reason).await;
        assert_eq!(condition(&channel, "WebhookRegistered").1, reason.as_str());
        assert_eq!(condition(&channel, "CredentialsValid").0, "True");
        assert_eq!(condition(&channel, "Stalled").0 == "True", reason.is_stalled());
        assert_eq!(
            condition(&channel, "Reconciling").0 == "True",
            !reason.is_stalled()
        );
    }
    world.kernel.clear_faults();
    for digits in ["2003", "2004", "2005", "2006"] {
        world
            .wait_ready(&Number {
                name: format!("number-{digits}"),
                ..Number::new(digits)
            })
            .await;
    }
}

#[tokio::test]
async fn an_environment_must_be_known_and_meant_for_the_namespace() {
    let world = World::start("environments").await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["environment"] = json!("es-nowhere");
        })
        .await;
    let channel = world.wait_reason(&number, Reason::EnvironmentUnknown).await;
    assert!(ready(&channel).2.contains("es-nowhere"));
    assert_eq!(condition(&channel, "Accepted").0, "False");
    assert_eq!(world.kernel.calls().len(), 0, "Kernel is not asked");
}

#[tokio::test]
async fn a_foreign_webhook_is_left_alone_until_it_may_be_taken_over() {
    let world = World::start("foreign").await;
    let number = Number::new("1002");
    world.kernel.add_client(number.client());
    world.kernel.set_webhook(
        &number.client_id,
        "https://old.example.com/hook?key=fake-foreign-key",
    );
    world.apply(number.secret()).await;
    world.apply(number.channel()).await;
    let channel = world.wait_reason(&number, Reason::WebhookForeign).await;
    let message = ready(&channel).2;
    assert!(
        message.contains("old.example.com") && !message.contains("fake-foreign-key"),
        "{message}"
    );
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 0);
    world
        .patch_channel(&number, json!({"spec": {"webhook": {"existing": "TakeOver"}}}))
        .await;
    world.wait_ready(&number).await;
    assert!(
        world
            .kernel
            .webhook_of(&number.client_id)
            .unwrap()
            .contains(&number.channel_id)
    );
}

#[tokio::test]
async fn observe_changes_nothing_and_says_what_would() {
    let world = World::start("observe").await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = json!({"mode": "Observe"});
        })
        .await;
    let channel = world.wait_reason(&number, Reason::Observed).await;
    assert!(
        ready(&channel).2.contains("would be registered"),
        "{:?}",
        ready(&channel)
    );
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 0);
}

#[tokio::test]
async fn of_two_resources_with_one_channel_the_younger_waits_and_takes_over() {
    let world = World::start("conflict").await;
    let first = world.ready_number("1002").await;
    let second = world
        .add("1004", |channel| {
            channel["spec"]["channelId"] = json!(first.channel_id);
            // The name decides where two were made within one second.
            channel["metadata"]["name"] = json!("z-number-1004");
        })
        .await;
    let second = Number {
        name: "z-number-1004".into(),
        channel_id: first.channel_id.clone(),
        ..second
    };
    let channel = world.wait_reason(&second, Reason::ChannelConflict).await;
    assert!(ready(&channel).2.contains("number-1002"), "{:?}", ready(&channel));
    assert_eq!(world.kernel.webhook_sets(&second.client_id), 0);
    deleted(&world, &first).await;
    world.wait_ready(&second).await;
    let replies = world.converse(&second, "34600000001", "hola", 1).await;
    assert_eq!(replies[0].client_id, second.client_id);
}

#[tokio::test]
async fn a_deleted_channel_goes_and_its_webhook_is_kept_or_cleared_as_it_says() {
    let world = World::start("deletion").await;
    let keep = world.ready_number("1002").await;
    let clear = world
        .add("1004", |channel| {
            channel["spec"]["webhook"] = json!({"onDelete": "Clear"});
        })
        .await;
    world.wait_ready(&clear).await;
    let finalizers = |channel: WhatsAppChannel| channel.metadata.finalizers.unwrap_or_default();
    assert!(
        finalizers(world.channels().get(&keep.name).await.unwrap()).is_empty(),
        "nothing stands in its way"
    );
    assert_eq!(
        finalizers(world.channels().get(&clear.name).await.unwrap()),
        ["channels.auracognitive.com/webhook"]
    );
    deleted(&world, &keep).await;
    assert!(
        world
            .kernel
            .webhook_of(&keep.client_id)
            .is_some_and(|url| url.contains(&keep.channel_id))
    );
    deleted(&world, &clear).await;
    assert!(
        world
            .kernel
            .webhook_of(&clear.client_id)
            .is_none_or(|url| url.is_empty())
    );
}

#[tokio::test]
async fn a_secret_that_goes_first_is_still_good_for_clearing_the_webhook() {
    let world = World::start("prune").await;
    let clear = |channel: &mut serde_json::Value| channel["spec"]["webhook"] = json!({"onDelete": "Clear"});
    let number = world.add("1002", clear).await;
    world.wait_ready(&number).await;
    world
        .secrets()
        .delete(&number.secret_name, &DeleteParams::default())
        .await
        .unwrap();
    deleted(&world, &number).await;
    let held = world.kernel.webhook_of(&number.client_id);
    assert!(held.is_none_or(|url| url.is_empty()));
}

#[tokio::test]
async fn deletion_ends_although_the_secret_went_first() {
    let mut world = World::start("orphan").await;
    let number = world
        .add("1002", |channel| {
            channel["spec"]["webhook"] = json!({"onDelete": "Clear"});
        })
        .await;
    world.wait_ready(&number).await;
    world
        .secrets()
        .delete(&number.secret_name, &DeleteParams::default())
        .await
        .unwrap();
    world.wait_reason(&number, Reason::SecretNotFound).await;
    // A controller that remembers what the Secret held would still clear the webhook.
    world.controller.take().unwrap().stop().await.unwrap();
    world.controller = Some(world.site.start_controller().await.unwrap());
    deleted(&world, &number).await;
    let events: Api<k8s_openapi::api::events::v1::Event> =
        Api::namespaced(world.client.clone(), &world.namespace);
    let events = events.list(&kube::api::ListParams::default()).await.unwrap();
    let skipped = events
        .iter()
        .find(|event| event.reason.as_deref() == Some("CleanupSkipped"))
        .unwrap();
    assert!(skipped.note.as_deref().unwrap().contains("number-1002-kernel"));
}

#[tokio::test]
async fn a_suspended_channel_is_left_alone_and_still_routed() {
    let world = World::start("suspend").await;
    let number = world.ready_number("1002").await;
    let looks = world.kernel.webhook_gets(&number.client_id);
    let asked = json!({"channels.auracognitive.com/requestedAt": "now"});
    world
        .patch_channel(
            &number,
            json!({"metadata": {"annotations": asked}, "spec": {"suspend": true}}),
        )
        .await;
    let suspended = |channel: &WhatsAppChannel| condition(channel, "Suspended").0 == "True";
    let channel = world.wait_for(&number, "to be suspended", suspended).await;
    assert_eq!(ready(&channel).0, "True");
    world.converse(&number, "34600000001", "hola", 1).await;
    assert_eq!(
        world.kernel.webhook_gets(&number.client_id),
        looks,
        "asked for a look, and left alone all the same"
    );
    world
        .patch_channel(&number, json!({"spec": {"suspend": null}}))
        .await;
    world
        .wait_for(&number, "to be resumed and looked at", |channel| {
            condition(channel, "Suspended").0.is_empty() && handled(channel) == Some("now")
        })
        .await;
    assert_eq!(world.kernel.webhook_gets(&number.client_id), looks + 1);
}

#[tokio::test]
async fn kernel_without_read_back_is_told_on_change_and_on_request_only() {
    let world = World::builder("blind")
        .kernel(|kernel| kernel.no_read_back = true)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let channel = world.channels().get(&number.name).await.unwrap();
    assert_eq!(
        condition(&channel, "WebhookVerified").1,
        Reason::ReadBackUnsupported.as_str()
    );
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
    world.look_now(&number, "x").await;
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 2);
}

#[tokio::test]
async fn a_channel_that_is_deleted_and_made_again_reports_what_kernel_still_holds() {
    let world = World::start("again").await;
    let number = world.ready_number("1002").await;
    deleted(&world, &number).await;
    world.apply(number.channel()).await;
    let channel = world.wait_ready(&number).await;
    let status = channel.status.unwrap();
    assert_eq!(
        world.kernel.webhook_sets(&number.client_id),
        1,
        "it was right already"
    );
    assert_eq!(status.webhook_key.unwrap().generation, Some(1));
    assert!(status.webhook_url.unwrap().contains(&number.channel_id));
}

#[tokio::test]
async fn a_registration_whose_answer_was_lost_is_found_and_recorded() {
    let world = World::start("lost-answer").await;
    let number = Number::new("1002");
    world
        .kernel
        .inject(Fault::reset().after_effect().times(1).on(Endpoint::WebhookSet));
    world.kernel.add_client(number.client());
    world.apply(number.secret()).await;
    world.apply(number.channel()).await;
    let channel = world.wait_ready(&number).await;
    assert_eq!(channel.status.unwrap().webhook_key.unwrap().generation, Some(1));
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
}

#[tokio::test]
async fn keys_that_kernel_masks_are_set_once_and_not_again_and_again() {
    let world = World::builder("masked")
        .kernel(|kernel| kernel.mask_keys = true)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.look_now(&number, "now").await;
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
}

#[tokio::test]
async fn a_namespace_goes_with_its_channels_although_the_rights_in_it_go_too() {
    let world = World::start("namespace").await;
    world.ready_number("1002").await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces
        .delete(&world.namespace, &DeleteParams::default())
        .await
        .unwrap();
    let gone = await_condition(namespaces, &world.namespace, |found: Option<&Namespace>| {
        found.is_none()
    });
    tokio::time::timeout(SOON, gone)
        .await
        .expect("the namespace goes")
        .unwrap();
}

#[tokio::test]
async fn a_controller_that_may_not_list_still_stops_when_told_to() {
    let mut world = World::start("stop-early").await;
    let roles: Api<k8s_openapi::api::rbac::v1::RoleBinding> =
        Api::namespaced(world.client.clone(), &world.namespace);
    roles
        .delete("aura-whatsapp-controller", &DeleteParams::default())
        .await
        .unwrap();
    world.controller.take().unwrap().stop().await.unwrap();
    let controller = world.site.spawn_controller().unwrap();
    loop {
        match site::get(world.site.controller_admin, "/readyz").await {
            Some((503, why)) if why.contains("WhatsAppChannels") => break,
            _ => tokio::task::yield_now().await,
        }
    }
    let status = controller.stop_within(SOON).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn readiness_and_metrics_say_how_both_roles_do() {
    let world = World::start("admin").await;
    let number = world.ready_number("1002").await;
    world.converse(&number, "34600000001", "hola", 1).await;
    for admin in [world.site.controller_admin, world.site.bridge_admin] {
        assert_eq!(site::get(admin, "/healthz").await.unwrap().0, 200);
        assert_eq!(
            site::get(admin, "/readyz").await.unwrap(),
            (200, "ready\n".to_owned())
        );
    }
    let bridge = world.site.bridge_admin;
    assert!((world.metric(bridge, "aura_whatsapp_routes").await - 1.0).abs() < 0.1);
    assert!(
        (world
            .metric(bridge, "aura_whatsapp_messages_accepted_total")
            .await
            - 1.0)
            .abs()
            < 0.1
    );
    let controller = world.site.controller_admin;
    assert!(world.metric(controller, "aura_whatsapp_kernel_calls_total").await >= 3.0);
    let page = site::get(bridge, "/metrics").await.unwrap().1;
    assert!(page.contains(&number.channel_id) && page.trim_end().ends_with("# EOF"));
}
