//! The client and its tokens against the simulated Kernel: how often a token is fetched, and how long it is kept.
//!
//! The clock is paused only while it is moved: with calls on real sockets under way, a paused one would run ahead.

#![cfg(feature = "sim")]

use std::time::Duration;

use futures::future::join_all;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{AccessToken, Client, Credentials, KernelError, TokenRequest, contract};
use crate::{
    http,
    sim::{
        fault::{Endpoint, Fault},
        kernel::{ClientSpec, KernelOptions, KernelSim},
    },
};

const ADMIN: &str = "whatsapp:app-admin";
const MESSAGING: &str = "whatsapp:app-messaging";
const ID: &str = "fake-client-1002";
const SECRET: &str = "fake-secret-of-1002";
/// How long the simulated Kernel's tokens live.
const LIFE: u64 = 1000;
const AT_ONCE: usize = 50;

struct World {
    sim: KernelSim,
    client: Client,
}

impl World {
    async fn start() -> Self {
        http::install_tls_provider();
        let options = KernelOptions {
            token_lifetime: Duration::from_secs(LIFE),
            ..KernelOptions::default()
        };
        let world = Self {
            sim: KernelSim::start(options).await.unwrap(),
            client: Client::new().unwrap(),
        };
        world.add(ID, SECRET);
        world
    }

    fn add(&self, id: &str, secret: &str) {
        self.sim.add_client(ClientSpec {
            id: id.to_owned(),
            secret: secret.to_owned(),
            scopes: vec![ADMIN.to_owned(), MESSAGING.to_owned()],
            number: "+346001002".to_owned(),
        });
    }

    fn request(&self) -> TokenRequest {
        TokenRequest {
            url: format!("{}/token", self.sim.url()),
            credentials: credentials(ID, SECRET),
            scopes: vec![ADMIN.to_owned()],
            purposes: Vec::new(),
            timeout: Duration::from_secs(5),
            turnstile: None,
        }
    }

    async fn token(&self, request: &TokenRequest) -> String {
        exposed(&self.client.token(request).await)
    }

    fn fetches(&self) -> usize {
        self.sim.token_requests().len()
    }

    /// The auth server's next answer is this.
    fn grants_once(&self, body: Value) {
        let granted = Fault::status(200).body(body).on(Endpoint::Token).times(1);
        self.sim.inject(granted);
    }

    fn webhook_url(&self) -> String {
        format!("{}/whatsapp/v1/settings/webhook", self.sim.url())
    }
}

fn credentials(id: &str, secret: &str) -> Credentials {
    Credentials {
        id: SecretString::from(id),
        secret: SecretString::from(secret),
    }
}

fn exposed(token: &Result<AccessToken, KernelError>) -> String {
    token.as_ref().unwrap().expose().to_owned()
}

/// Moves the clock on.
async fn after(seconds: f64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs_f64(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_fetch() {
    let world = World::start().await;
    let request = world.request();
    let tokens = join_all((0..AT_ONCE).map(|_| world.client.token(&request))).await;
    let first = exposed(&tokens[0]);
    assert!(tokens.iter().all(|token| exposed(token) == first));
    assert_eq!(world.token(&request).await, first, "and it is kept");
    assert_eq!(world.fetches(), 1);
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_failure_and_the_next_one_tries_anew() {
    let cases = [
        (
            Fault::status(503),
            KernelError::Unavailable {
                status: 503,
                retry_after: None,
            },
        ),
        (Fault::status(401), KernelError::CredentialsRejected),
        (Fault::reset(), KernelError::Interrupted),
        (
            Fault::status(429).retry_after(7),
            KernelError::RateLimited {
                retry_after: Some(Duration::from_secs(7)),
            },
        ),
    ];
    for (fault, expected) in cases {
        let world = World::start().await;
        let request = world.request();
        world.sim.inject(fault.on(Endpoint::Token));
        let failed = join_all((0..AT_ONCE).map(|_| world.client.token(&request))).await;
        for failure in failed {
            assert_eq!(failure.unwrap_err(), expected);
        }
        assert_eq!(
            world.fetches(),
            1,
            "{expected:?}: one that fails for all is asked once"
        );
        assert_eq!(world.client.token(&request).await.unwrap_err(), expected);
        assert_eq!(world.fetches(), 2, "who comes later asks again");
        world.sim.clear_faults();
        world.token(&request).await;
        assert_eq!(world.fetches(), 3);
    }
}

#[tokio::test]
async fn a_token_is_fetched_anew_at_80_to_90_percent_of_its_life_and_not_all_at_once() {
    let world = World::start().await;
    let requests: Vec<_> = (0..40)
        .map(|n| {
            let (id, secret) = (format!("fake-client-{n}"), format!("fake-secret-{n}"));
            world.add(&id, &secret);
            TokenRequest {
                credentials: credentials(&id, &secret),
                ..world.request()
            }
        })
        .collect();
    let all = || join_all(requests.iter().map(|request| world.token(request)));
    let first = all().await;
    assert_eq!(world.fetches(), 40);
    after(795.0).await;
    assert_eq!(all().await, first);
    assert_eq!(world.fetches(), 40, "none before 80 %");
    after(55.0).await;
    all().await;
    let halfway = world.fetches() - 40;
    assert!((1..40).contains(&halfway), "{halfway} of 40 were fetched by 85 %");
    after(55.0).await;
    let second = all().await;
    assert_eq!(world.fetches(), 80, "each once by 90 %");
    assert!(first.iter().zip(&second).all(|(before, now)| before != now));
}

#[tokio::test]
async fn a_token_serves_on_to_its_end_while_no_other_can_be_had() {
    let world = World::start().await;
    let request = world.request();
    let first = world.token(&request).await;
    world.sim.inject(Fault::status(503).on(Endpoint::Token));
    after(905.0).await;
    assert_eq!(world.token(&request).await, first);
    assert_eq!(world.token(&request).await, first);
    assert_eq!(world.fetches(), 2, "the auth server is not asked for each call");
    after(11.0).await;
    assert_eq!(world.token(&request).await, first);
    assert_eq!(world.fetches(), 3);
    after(90.0).await;
    let over = world.client.token(&request).await;
    assert!(
        matches!(over, Err(KernelError::Unavailable { status: 503, .. })),
        "its life is over"
    );
    world.sim.clear_faults();
    assert_ne!(world.token(&request).await, first);
}

#[tokio::test]
async fn a_caller_whose_token_is_near_its_end_does_not_wait_for_the_one_that_fetches_the_next() {
    let world = World::start().await;
    let request = world.request();
    let first = world.token(&request).await;
    after(905.0).await;
    let hang = Fault::hang().on(Endpoint::Token).times(1);
    world.sim.inject(hang);
    let (refreshes, mut others) = (world.client.token(&request), Vec::new());
    tokio::pin!(refreshes);
    // It has begun, and waits for its answer.
    assert!(futures::poll!(&mut refreshes).is_pending());
    for _ in 0..AT_ONCE {
        others.push(world.token(&request).await);
    }
    assert!(others.iter().all(|token| *token == first));
}

#[tokio::test]
async fn a_rejected_client_is_told_so_although_its_token_is_still_good() {
    let world = World::start().await;
    let request = world.request();
    world.token(&request).await;
    world.sim.inject(Fault::status(401).on(Endpoint::Token));
    after(905.0).await;
    let refused = world.client.token(&request).await;
    assert!(matches!(refused, Err(KernelError::CredentialsRejected)));
}

#[tokio::test]
async fn whatever_defines_a_token_has_one_of_its_own() {
    let (world, elsewhere) = (World::start().await, World::start().await);
    world.add("fake-client-1004", SECRET);
    let base = world.request();
    let first = world.token(&base).await;
    // The right one of now: what is asked with the one before is another question.
    world.sim.rotate_secret(ID, "fake-secret-of-tomorrow");
    let differing = [
        (
            "the secret",
            TokenRequest {
                credentials: credentials(ID, "fake-secret-of-tomorrow"),
                ..world.request()
            },
        ),
        (
            "the client",
            TokenRequest {
                credentials: credentials("fake-client-1004", SECRET),
                ..world.request()
            },
        ),
        (
            "the scopes",
            TokenRequest {
                credentials: credentials(ID, "fake-secret-of-tomorrow"),
                scopes: vec![ADMIN.to_owned(), MESSAGING.to_owned()],
                ..world.request()
            },
        ),
        (
            "the purposes",
            TokenRequest {
                credentials: credentials(ID, "fake-secret-of-tomorrow"),
                purposes: vec!["fake-purpose".to_owned()],
                ..world.request()
            },
        ),
        // What stands in one list is not what stands in the other.
        (
            "the purposes in place of the scopes",
            TokenRequest {
                credentials: credentials(ID, "fake-secret-of-tomorrow"),
                scopes: Vec::new(),
                purposes: vec![ADMIN.to_owned()],
                ..world.request()
            },
        ),
        ("the auth server", elsewhere.request()),
    ];
    let mut tokens = vec![first.clone()];
    for (what, request) in &differing {
        let before = world.fetches() + elsewhere.fetches();
        let token = world.token(request).await;
        assert!(!tokens.contains(&token), "{what}");
        tokens.push(token.clone());
        assert_eq!(world.token(request).await, token, "{what}: it is kept");
        assert_eq!(world.fetches() + elsewhere.fetches(), before + 1, "{what}");
    }
    let patient = TokenRequest {
        timeout: Duration::from_secs(9),
        ..base
    };
    assert_eq!(
        world.token(&patient).await,
        first,
        "how long a call may take says nothing of the token"
    );
}

#[tokio::test]
async fn a_life_that_cannot_be_meant_is_a_short_one_and_a_huge_one_is_cut() {
    let world = World::start().await;
    let request = world.request();
    let cases = [
        (Value::Null, contract::DEFAULT_EXPIRES_IN),
        (json!(0), contract::DEFAULT_EXPIRES_IN),
        (json!(0.4), contract::DEFAULT_EXPIRES_IN),
        (json!(-3600), contract::DEFAULT_EXPIRES_IN),
        (json!(1e300), contract::MAX_EXPIRES_IN),
        (json!(u64::MAX), contract::MAX_EXPIRES_IN),
        (json!(315_360_000), contract::MAX_EXPIRES_IN),
        (json!(100), 100),
    ];
    for (n, (expires_in, life)) in cases.into_iter().enumerate() {
        let mut body = json!({"access_token": format!("fake-token-{n}"), "token_type": "Bearer"});
        if !expires_in.is_null() {
            body["expires_in"] = expires_in.clone();
        }
        world.grants_once(body);
        let token = world.token(&request).await;
        assert_eq!(token, format!("fake-token-{n}"));
        #[allow(clippy::cast_precision_loss, reason = "a day at most")]
        let life = life as f64;
        after(life * 0.79).await;
        assert_eq!(world.token(&request).await, token, "{expires_in}: still kept");
        after(life * 0.12).await;
        assert_ne!(world.token(&request).await, token, "{expires_in}: not any more");
        // What was fetched just now ends before the next case.
        after(1000.0).await;
    }
}

#[tokio::test]
async fn a_token_that_the_api_does_not_take_is_fetched_anew_once_for_all_its_callers() {
    let world = World::start().await;
    let (request, url) = (world.request(), world.webhook_url());
    world.token(&request).await;
    world.sim.revoke_tokens(ID);
    let held = join_all((0..AT_ONCE).map(|_| world.client.webhook(&request, &url))).await;
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    assert_eq!(world.fetches(), 2, "the one that was revoked, and one more");
}

#[tokio::test]
async fn an_api_that_takes_no_token_at_all_is_asked_twice() {
    let world = World::start().await;
    let (request, url) = (world.request(), world.webhook_url());
    world
        .sim
        .inject(Fault::status(401).on(Endpoint::WebhookGet).only_for(ID));
    let refused = world.client.webhook(&request, &url).await;
    assert_eq!(refused.unwrap_err(), KernelError::Unauthorized);
    assert_eq!((world.sim.webhook_gets(ID), world.fetches()), (2, 2));
}
