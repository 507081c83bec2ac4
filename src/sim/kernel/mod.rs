//! A simulated Kernel: its token endpoint, its WhatsApp API, and the WhatsApp network behind it with its users.
//!
//! Written from what is documented of Kernel and of WhatsApp's on-premises API, not from our client, and refuses what
//! they would refuse. What is unknown of Kernel is an option. Everything happens on loopback, with made-up secrets.
//!
//! | file | concern |
//! | --- | --- |
//! | `api` | which endpoint a call is for, and the error body |
//! | `oauth` | `POST /token`, and who a bearer token is |
//! | `settings` | `GET` and `PATCH …/settings/webhook` |
//! | `messages`, `rules`, `fields` | `POST …/messages`, and what a message may look like |
//! | `whatsapp_side` | users who write, and the webhook calls this causes |
//! | `ledger` | what happened |
//! | `control` | the same for another process, under `/sim/` |

mod api;
mod control;
mod fields;
mod ledger;
mod messages;
mod oauth;
mod rules;
mod settings;
mod whatsapp_side;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{ledger::Data, whatsapp_side::Push};
pub use self::{
    ledger::{ApiCall, ApiVersion, Outcome, TokenRequest, UserMessage, WebhookCall},
    settings::mask_key,
    whatsapp_side::{NoWebhook, UnknownMessage},
};
use super::{
    fault::{Endpoint, Fault, Faults},
    server::{Late, Server, Shared, StartError, client},
};

/// How the simulated Kernel behaves where the real one is unknown, and how fast.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an unknown of its own")]
pub struct KernelOptions {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// What every API call takes before it is answered.
    pub latency: Duration,
    /// How long a token lives (`expires_in`, in whole seconds).
    pub token_lifetime: Duration,
    /// A rotated secret also revokes the tokens issued before.
    pub revoke_on_rotate: bool,
    /// Reading the webhook back shows `apikey=****`.
    pub mask_keys: bool,
    /// The webhook can't be read back: `GET` answers 404.
    pub no_read_back: bool,
    /// The webhook can't be cleared: a `PATCH` with an empty URL is refused.
    pub refuse_clear: bool,
    /// One webhook call at a time for each user, in order. WhatsApp promises no order; people expect one.
    pub sequential: bool,
    /// Webhook calls in flight per client (`max_concurrent_requests` of the on-premises API).
    pub max_concurrent: usize,
    /// How long a webhook call may take.
    pub webhook_timeout: Duration,
    /// The delay before the first repetition of a webhook call; grows by as much each time.
    pub retry_step: Duration,
    /// The longest delay between two repetitions, also if `Retry-After` asks for more.
    pub retry_cap: Duration,
    /// After this time a webhook call is given up.
    pub give_up_after: Duration,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            port: 0,
            latency: Duration::ZERO,
            token_lifetime: Duration::from_secs(3599),
            revoke_on_rotate: false,
            mask_keys: false,
            no_read_back: false,
            refuse_clear: false,
            sequential: true,
            max_concurrent: 6,
            webhook_timeout: Duration::from_secs(5),
            retry_step: Duration::from_millis(200),
            retry_cap: Duration::from_secs(2),
            give_up_after: Duration::from_secs(24 * 3600),
        }
    }
}

/// An OAuth client of Kernel: one WhatsApp number.
#[derive(Clone)]
pub struct ClientSpec {
    /// The client's id.
    pub id: String,
    /// The client's secret.
    pub secret: String,
    /// The scopes it may be granted.
    pub scopes: Vec<String>,
    /// Its business number; only the digits count.
    pub number: String,
}

impl fmt::Debug for ClientSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            secret: _,
            scopes,
            number,
        } = self;
        let mut shown = f.debug_struct("ClientSpec");
        shown
            .field("id", id)
            .field("scopes", scopes)
            .field("number", number)
            .finish_non_exhaustive()
    }
}

/// What the listener and the tasks work on.
struct State {
    options: KernelOptions,
    faults: Faults,
    data: Shared<Data>,
    pushes: mpsc::UnboundedSender<Push>,
}

/// A handle on a running simulated Kernel; clones are the same Kernel. It ends with its last handle.
#[derive(Clone)]
pub struct KernelSim {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    server: Server,
    _tasks: DropGuard,
}

impl fmt::Debug for KernelSim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelSim")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl KernelSim {
    /// Starts a Kernel without clients.
    ///
    /// # Errors
    /// When the port can't be listened on.
    pub async fn start(options: KernelOptions) -> Result<Self, StartError> {
        let http = client(options.webhook_timeout)?;
        let (pushes, queue) = mpsc::unbounded_channel();
        let data = Shared::new(Data::new(options.latency));
        let port = options.port;
        let state = Arc::new(State {
            options,
            faults: Faults::default(),
            data,
            pushes,
        });
        let server = Server::start(port, Arc::clone(&state)).await?;
        let tasks = CancellationToken::new();
        let pushing = whatsapp_side::run(Arc::clone(&state), http, queue, server.up());
        tokio::spawn(tasks.clone().run_until_cancelled_owned(pushing));
        Ok(Self {
            inner: Arc::new(Inner {
                state,
                server,
                _tasks: tasks.drop_guard(),
            }),
        })
    }

    /// The base of both the auth server and the API, without a final slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.server.address())
    }

    /// Closes the listener and all connections; no webhook call is begun until [`KernelSim::restart`].
    pub async fn stop(&self) {
        self.inner.server.stop().await;
    }

    /// Listens again on the same port, with all it knew.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn restart(&self) -> Result<(), StartError> {
        self.inner.server.restart(Arc::clone(&self.inner.state)).await
    }

    /// Connections that callers have open, or whose last call is still being answered.
    pub fn connections(&self) -> usize {
        self.inner.server.connections()
    }

    /// Misbehaves from now on.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.inject(fault);
    }

    /// Behaves again.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Behaves again towards one client: ends the faults that were injected with [`Fault::only_for`] it.
    pub fn clear_faults_for(&self, client_id: &str) {
        self.state().faults.clear_for(client_id);
    }

    /// Sets what every API call takes before it is answered.
    pub fn set_latency(&self, latency: Duration) {
        self.data().write(|data| data.latency = latency);
    }

    /// Registers a client; one with the same id is replaced and keeps its webhook.
    pub fn add_client(&self, spec: ClientSpec) {
        self.data().write(|data| data.add_client(spec));
    }

    /// Forgets a client with its tokens and webhook. False if there is none.
    pub fn remove_client(&self, id: &str) -> bool {
        self.data().write(|data| data.remove_client(id))
    }

    /// Gives a client another secret; the old one is refused at once. False if there is no such client.
    pub fn rotate_secret(&self, id: &str, new_secret: &str) -> bool {
        let revoke = self.state().options.revoke_on_rotate;
        self.data().write(|data| {
            if revoke {
                data.revoke_tokens(id);
            }
            data.rotate_secret(id, new_secret)
        })
    }

    /// Revokes every token of a client; how many there were.
    pub fn revoke_tokens(&self, id: &str) -> usize {
        self.data().write(|data| data.revoke_tokens(id))
    }

    /// The webhook that Kernel holds for a client.
    pub fn webhook_of(&self, client_id: &str) -> Option<String> {
        self.data().read(|data| data.webhook_of(client_id))
    }

    /// Sets a client's webhook as a foreign party would; an empty URL clears it. False if there is no such client.
    pub fn set_webhook(&self, client_id: &str, url: &str) -> bool {
        self.data().write(|data| data.set_webhook(client_id, url))
    }

    /// A user writes a text to a business number, given by its digits or only the last of them. Gives the message's
    /// id; the webhook call follows.
    ///
    /// # Errors
    /// When no webhook is set for that number, or it is not the number of exactly one client.
    pub fn user_sends(&self, number: &str, from: &str, text: &str) -> Result<String, NoWebhook> {
        self.state().user_sends(number, from, text)
    }

    /// Calls the webhook of a business number with any body, as at-least-once as a user's message.
    ///
    /// # Errors
    /// As [`KernelSim::user_sends`].
    pub fn push_raw(&self, number: &str, body: Value) -> Result<(), NoWebhook> {
        self.state().push_raw(number, body)
    }

    /// Calls the webhook with a status (`sent`, `delivered`, `read`, `failed`) of a message that a user received;
    /// `errors` are WhatsApp's error objects, for `failed`.
    ///
    /// # Errors
    /// When no user received such a message, or the client's webhook is not set.
    pub fn push_status(&self, wamid: &str, status: &str, errors: &[Value]) -> Result<(), UnknownMessage> {
        self.state().push_status(wamid, status, errors)
    }

    /// Reports these statuses, with WhatsApp's error objects, of the next message that a user receives, as soon as that
    /// is so: the webhook calls do not wait for the send's answer. Asked for several times, it goes for one message
    /// after another.
    pub fn report_next(&self, statuses: &[(&str, &[Value])]) {
        let reports = statuses
            .iter()
            .map(|(status, errors)| ((*status).to_owned(), errors.to_vec()))
            .collect();
        self.data().write(|data| data.reports.push_back(reports));
    }

    /// Makes the webhook call of a user's message again, whatever came of it before.
    ///
    /// # Errors
    /// When no user sent such a message.
    pub fn redeliver(&self, wamid: &str) -> Result<(), UnknownMessage> {
        self.state().redeliver(wamid)
    }

    /// What a user received, in order.
    pub fn received(&self, user: &str) -> Vec<UserMessage> {
        self.data().read(|data| data.received(user).cloned().collect())
    }

    /// Waits until a user has received `n` messages.
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_received(
        &self,
        user: &str,
        n: usize,
        within: Duration,
    ) -> Result<Vec<UserMessage>, Late> {
        self.data()
            .wait("messages to the user", n, within, |data| {
                data.received(user).count()
            })
            .await?;
        Ok(self.received(user))
    }

    /// What all users received, in order.
    pub fn all_received(&self) -> Vec<UserMessage> {
        self.data().read(|data| data.received.clone())
    }

    /// What all users received after the first `count` messages: cheap where there were many before.
    pub fn received_since(&self, count: usize) -> Vec<UserMessage> {
        self.data()
            .read(|data| data.received.get(count..).unwrap_or_default().to_vec())
    }

    /// Waits until all users together have received `n` messages.
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_all_received(&self, n: usize, within: Duration) -> Result<Vec<UserMessage>, Late> {
        self.data()
            .wait("messages to users", n, within, |data| data.received.len())
            .await?;
        Ok(self.all_received())
    }

    /// Every webhook call that has ended, in the order they ended.
    pub fn webhook_calls(&self) -> Vec<WebhookCall> {
        self.data().read(|data| data.webhook_calls.clone())
    }

    /// Waits until `n` webhook calls have ended.
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_webhook_calls(&self, n: usize, within: Duration) -> Result<Vec<WebhookCall>, Late> {
        self.data()
            .wait("webhook calls", n, within, |data| data.webhook_calls.len())
            .await?;
        Ok(self.webhook_calls())
    }

    /// Webhook calls not yet answered with 200 and not given up.
    pub fn pending_webhook_calls(&self) -> usize {
        self.data().read(|data| data.pending)
    }

    /// Every call to an endpoint of Kernel, also those that a fault hit.
    pub fn calls(&self) -> Vec<ApiCall> {
        self.data().read(|data| data.calls.clone())
    }

    /// How many calls there have been: where [`KernelSim::calls_since`] goes on.
    pub fn call_count(&self) -> usize {
        self.data().read(|data| data.calls.len())
    }

    /// The calls after the first `count`, also those that a fault hit: cheap where there were many before.
    pub fn calls_since(&self, count: usize) -> Vec<ApiCall> {
        self.data()
            .read(|data| data.calls.get(count..).unwrap_or_default().to_vec())
    }

    /// Waits until a client has called an endpoint after the first `count` calls, and been answered.
    ///
    /// # Errors
    /// When it has not after this time.
    pub async fn wait_call_of(
        &self,
        client_id: &str,
        endpoint: Endpoint,
        count: usize,
        within: Duration,
    ) -> Result<(), Late> {
        let meant = |call: &&ApiCall| {
            call.client_id.as_deref() == Some(client_id) && call.status.is_some() && call.endpoint == endpoint
        };
        let new = |data: &Data| data.calls.iter().skip(count).filter(meant).count();
        self.data().wait("calls of the client", 1, within, new).await
    }

    /// Waits until an endpoint has been called `n` times (the calls may not be answered yet).
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_calls(&self, at: Endpoint, n: usize, within: Duration) -> Result<Vec<ApiCall>, Late> {
        self.data()
            .wait("calls", n, within, |data| data.calls_at(at).count())
            .await?;
        Ok(self.data().read(|data| data.calls_at(at).cloned().collect()))
    }

    /// Every call to the token endpoint.
    pub fn token_requests(&self) -> Vec<TokenRequest> {
        self.data().read(|data| {
            data.calls_at(Endpoint::Token)
                .map(ApiCall::token_request)
                .collect()
        })
    }

    /// How often a client set its webhook or tried to.
    pub fn webhook_sets(&self, client_id: &str) -> usize {
        self.count(Endpoint::WebhookSet, client_id)
    }

    /// Every access token that is good now, for tests that look for leaks.
    pub fn token_values(&self) -> Vec<String> {
        self.data().read(|data| data.tokens.keys().cloned().collect())
    }

    /// How often a client read its webhook or tried to.
    pub fn webhook_gets(&self, client_id: &str) -> usize {
        self.count(Endpoint::WebhookGet, client_id)
    }

    /// Every call to send a message, taken or not.
    pub fn sends(&self) -> Vec<ApiCall> {
        self.data()
            .read(|data| data.calls_at(Endpoint::Send).cloned().collect())
    }

    fn count(&self, endpoint: Endpoint, client_id: &str) -> usize {
        let by = |call: &&ApiCall| call.client_id.as_deref() == Some(client_id);
        self.data()
            .read(|data| data.calls_at(endpoint).filter(by).count())
    }

    fn state(&self) -> &Arc<State> {
        &self.inner.state
    }

    fn data(&self) -> &Shared<Data> {
        &self.inner.state.data
    }
}
