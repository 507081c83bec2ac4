//! The webhook setting: what is taken, shown and refused.

use super::*;

#[tokio::test]
async fn a_webhook_is_set_read_and_cleared_per_client() {
    let world = world(quick()).await;
    let (shop, bank) = (world.token("shop", ADMIN).await, world.token("bank", ADMIN).await);
    assert_eq!(
        body(world.get(WEBHOOK, &shop).send().await.unwrap()).await,
        json!({"webhooks": {"url": ""}})
    );
    let setting = json!({"webhooks": {"url": "https://svc.example.com/m?apikey=k&channelId=c"}});
    let answer = world.set(&shop, &setting).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    assert_eq!(body(answer).await, setting);
    assert_eq!(
        body(world.get(WEBHOOK, &shop).send().await.unwrap()).await,
        setting
    );
    assert_eq!(
        body(world.get(WEBHOOK, &bank).send().await.unwrap()).await,
        json!({"webhooks": {"url": ""}})
    );
    assert!(world.sim.webhook_of("shop").is_some());
    let cleared = world
        .set(&shop, &json!({"webhooks": {"url": ""}}))
        .send()
        .await
        .unwrap();
    assert_eq!(cleared.status(), 201);
    assert_eq!(world.sim.webhook_of("shop"), None);
    assert_eq!(
        (world.sim.webhook_sets("shop"), world.sim.webhook_gets("shop")),
        (2, 2)
    );
    assert_eq!(
        (world.sim.webhook_sets("bank"), world.sim.webhook_gets("bank")),
        (0, 1)
    );
}

#[tokio::test]
async fn a_webhook_setting_must_be_exactly_as_documented() {
    let world = world(quick()).await;
    let token = world.token("shop", ADMIN).await;
    let bad = [
        json!({}),
        json!({"webhooks": {}}),
        json!({"webhooks": {"url": null}}),
        json!({"webhooks": {"url": "not a url"}}),
        json!({"webhooks": {"url": "ftp://example.com"}}),
        json!({"webhooks": {"url": "https://example.com"}, "more": 1}),
        json!({"webhooks": {"url": "https://example.com", "more": 1}}),
        json!([]),
    ];
    for setting in bad {
        refused(world.set(&token, &setting), 400, "INVALID_ARGUMENT").await;
    }
    let request = || world.http.patch(world.sim.url() + WEBHOOK).bearer_auth(&token);
    let json_header = ("content-type", "application/json");
    refused(
        request().header(json_header.0, json_header.1).body("{"),
        400,
        "INVALID_ARGUMENT",
    )
    .await;
    refused(
        request().body(r#"{"webhooks":{"url":""}}"#),
        415,
        "INVALID_ARGUMENT",
    )
    .await;
    assert_eq!(world.sim.webhook_of("shop"), None);
}

#[tokio::test]
async fn each_api_needs_its_own_scope() {
    let world = world(quick()).await;
    let (admin, messaging) = (
        world.token("shop", ADMIN).await,
        world.token("shop", MESSAGING).await,
    );
    let setting = json!({"webhooks": {"url": "https://example.com"}});
    refused(world.get(WEBHOOK, &messaging), 403, "PERMISSION_DENIED").await;
    refused(world.set(&messaging, &setting), 403, "PERMISSION_DENIED").await;
    refused(world.send(&admin, &text("a")), 403, "PERMISSION_DENIED").await;
    let none = world.token("shop", "").await;
    refused(world.get(WEBHOOK, &none), 403, "PERMISSION_DENIED").await;
}

#[tokio::test]
async fn the_unknown_of_the_webhook_setting_is_an_option() {
    let options = KernelOptions {
        mask_keys: true,
        refuse_clear: true,
        ..quick()
    };
    let masking = world(options).await;
    let token = masking.token("shop", ADMIN).await;
    assert!(
        masking
            .sim
            .set_webhook("shop", "https://example.com/m?apiKey=k&channelId=c")
    );
    assert!(!masking.sim.set_webhook("nobody", "https://example.com"));
    let shown = body(masking.get(WEBHOOK, &token).send().await.unwrap()).await;
    assert_eq!(
        shown["webhooks"]["url"],
        "https://example.com/m?apiKey=****&channelId=c"
    );
    refused(
        masking.set(&token, &json!({"webhooks": {"url": ""}})),
        400,
        "INVALID_ARGUMENT",
    )
    .await;
    let blind = world(KernelOptions {
        no_read_back: true,
        ..quick()
    })
    .await;
    let token = blind.token("shop", ADMIN).await;
    refused(blind.get(WEBHOOK, &token), 404, "NOT_FOUND").await;
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let world = world(quick()).await;
    let token = world.token("shop", ADMIN).await;
    refused(
        world.get("/whatsapp/v3/settings/webhook", &token),
        404,
        "NOT_FOUND",
    )
    .await;
    refused(world.get(MESSAGES, &token), 405, "INVALID_ARGUMENT").await;
    refused(
        world.http.post(world.sim.url() + WEBHOOK).bearer_auth(&token),
        405,
        "INVALID_ARGUMENT",
    )
    .await;
}
