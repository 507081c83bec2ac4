//! The simulated Kernel over HTTP. Here: the world these tests live in.

mod auth;
mod faults;
mod sending;
mod setting;
mod webhooks;

use std::time::Duration;

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use super::*;

const SOON: Duration = Duration::from_secs(10);
const ADMIN: &str = "whatsapp:app-admin";
const MESSAGING: &str = "whatsapp:app-messaging";
const WEBHOOK: &str = "/whatsapp/v1/settings/webhook";
const MESSAGES: &str = "/whatsapp/v1/messages";
const USER: &str = "34611111111";

struct World {
    sim: KernelSim,
    http: reqwest::Client,
}

fn spec(id: &str, number: &str) -> ClientSpec {
    let scopes = vec![ADMIN.to_owned(), MESSAGING.to_owned()];
    ClientSpec {
        id: id.to_owned(),
        secret: format!("not-a-secret-{id}"),
        scopes,
        number: number.to_owned(),
    }
}

/// Short delays: what is waited for in these tests is the simulator's own retry.
fn quick() -> KernelOptions {
    KernelOptions {
        retry_step: Duration::from_millis(2),
        retry_cap: Duration::from_millis(20),
        ..Default::default()
    }
}

async fn world(options: KernelOptions) -> World {
    let sim = KernelSim::start(options).await.unwrap();
    sim.add_client(spec("shop", "+34 600 001 002"));
    sim.add_client(spec("bank", "34600001004"));
    World {
        sim,
        http: client(SOON).unwrap(),
    }
}

impl World {
    fn token_request(&self, id: &str, secret: &str, form: &[(&str, &str)]) -> RequestBuilder {
        self.http
            .post(format!("{}/token", self.sim.url()))
            .basic_auth(id, Some(secret))
            .form(form)
    }

    async fn token(&self, id: &str, scope: &str) -> String {
        let form = [("grant_type", "client_credentials"), ("scope", scope)];
        let answer = self
            .token_request(id, &format!("not-a-secret-{id}"), &form)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let body: Value = answer.json().await.unwrap();
        body["access_token"].as_str().unwrap().to_owned()
    }

    fn get(&self, path: &str, token: &str) -> RequestBuilder {
        self.http.get(self.sim.url() + path).bearer_auth(token)
    }

    fn set(&self, token: &str, body: &Value) -> RequestBuilder {
        self.http
            .patch(self.sim.url() + WEBHOOK)
            .bearer_auth(token)
            .json(body)
    }

    fn send(&self, token: &str, body: &Value) -> RequestBuilder {
        self.http
            .post(self.sim.url() + MESSAGES)
            .bearer_auth(token)
            .json(body)
    }
}

fn text(body: &str) -> Value {
    json!({"recipient_type": "individual", "to": USER, "type": "text", "text": {"body": body}})
}

async fn refused(request: RequestBuilder, status: u16, code: &str) {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), status);
    assert!(answer.headers().contains_key("x-correlator"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(
        body.get("code").or(body.get("error")),
        Some(&json!(code)),
        "{body}"
    );
}

async fn body(answer: Response) -> Value {
    answer.json().await.unwrap()
}
