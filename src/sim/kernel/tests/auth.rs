//! Tokens: who gets one, and how long it is good.

use super::*;

#[tokio::test]
async fn a_token_is_granted_as_documented() {
    let world = world(quick()).await;
    let form = [
        ("grant_type", "client_credentials"),
        ("scope", "whatsapp:app-admin other:scope"),
        ("purpose", "p"),
    ];
    let request = world
        .token_request("shop", "not-a-secret-shop", &form)
        .header("x-correlator", "corr-1");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-correlator"], "corr-1");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let body = body(answer).await;
    assert!(
        body["access_token"]
            .as_str()
            .is_some_and(|token| token.len() > 20)
    );
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["expires_in"], 3599);
    assert_eq!(body["scope"], ADMIN);
    assert_eq!(body["purpose"], "p");
    let requests = world.sim.token_requests();
    assert_eq!(requests[0].client_id.as_deref(), Some("shop"));
    assert_eq!(requests[0].asked, [ADMIN, "other:scope"]);
    assert_eq!(requests[0].granted, [ADMIN]);
    assert_eq!(requests[0].status, Some(200));
}

#[tokio::test]
async fn a_token_is_refused_to_whom_and_what_is_wrong() {
    let world = world(quick()).await;
    let good = ("grant_type", "client_credentials");
    let secret = "not-a-secret-shop";
    refused(
        world.token_request("shop", "wrong", &[good]),
        401,
        "invalid_client",
    )
    .await;
    refused(
        world.token_request("nobody", secret, &[good]),
        401,
        "invalid_client",
    )
    .await;
    let url = format!("{}/token", world.sim.url());
    let in_the_form = [good, ("client_id", "shop"), ("client_secret", secret)];
    refused(world.http.post(&url).form(&in_the_form), 401, "invalid_client").await;
    refused(
        world.token_request("shop", secret, &in_the_form),
        400,
        "invalid_request",
    )
    .await;
    refused(world.token_request("shop", secret, &[]), 400, "invalid_request").await;
    refused(
        world.token_request("shop", secret, &[good, good]),
        400,
        "invalid_request",
    )
    .await;
    refused(
        world.token_request("shop", secret, &[("grant_type", "password")]),
        400,
        "unsupported_grant_type",
    )
    .await;
    let as_json = world
        .http
        .post(&url)
        .basic_auth("shop", Some(secret))
        .json(&json!({"grant_type": "x"}));
    refused(as_json, 400, "invalid_request").await;
    assert!(
        world
            .sim
            .token_requests()
            .iter()
            .all(|request| request.granted.is_empty())
    );
}

#[tokio::test]
async fn a_rotated_secret_is_refused_at_once_and_may_revoke_tokens() {
    for revoke in [false, true] {
        let world = world(KernelOptions {
            revoke_on_rotate: revoke,
            ..quick()
        })
        .await;
        let token = world.token("shop", ADMIN).await;
        assert!(world.sim.rotate_secret("shop", "not-a-secret-either"));
        assert!(!world.sim.rotate_secret("nobody", "x"));
        let form = [("grant_type", "client_credentials")];
        refused(
            world.token_request("shop", "not-a-secret-shop", &form),
            401,
            "invalid_client",
        )
        .await;
        let new = world
            .token_request("shop", "not-a-secret-either", &form)
            .send()
            .await
            .unwrap();
        assert_eq!(new.status(), 200);
        let status = world.get(WEBHOOK, &token).send().await.unwrap().status();
        assert_eq!(status, if revoke { 401 } else { 200 });
    }
}

#[tokio::test]
async fn a_token_that_is_unknown_expired_or_revoked_is_refused() {
    let world = world(KernelOptions {
        token_lifetime: Duration::ZERO,
        ..quick()
    })
    .await;
    let expired = world.token("shop", ADMIN).await;
    refused(world.get(WEBHOOK, &expired), 401, "UNAUTHENTICATED").await;
    refused(world.get(WEBHOOK, "made-up"), 401, "UNAUTHENTICATED").await;
    refused(world.http.get(world.sim.url() + WEBHOOK), 401, "UNAUTHENTICATED").await;
    let basic = world
        .http
        .get(world.sim.url() + WEBHOOK)
        .basic_auth("shop", Some("not-a-secret-shop"));
    refused(basic, 401, "UNAUTHENTICATED").await;
    let world = self::world(quick()).await;
    let token = world.token("shop", ADMIN).await;
    assert_eq!(world.sim.revoke_tokens("shop"), 1);
    assert_eq!(world.sim.revoke_tokens("shop"), 0);
    refused(world.get(WEBHOOK, &token), 401, "UNAUTHENTICATED").await;
}
