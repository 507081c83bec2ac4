//! Whether a real Kernel is as [`crate::kernel::contract`] assumes, asked with a test client.
//!
//! `probe` makes calls, `evidence` is what was seen of each, `findings` what that says of every assumption (pure),
//! `writes` the part that changes the webhook and puts it back. Nothing is printed that a call carried but words that
//! are known to be harmless: no token, no key, no URL with one.

mod difference;
mod evidence;
mod findings;
mod probe;
mod report;
mod writes;

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use self::{
    evidence::{Evidence, token_of},
    probe::Probe,
};
pub use self::{
    findings::{Finding, Verdict},
    report::ConformanceReport,
    writes::Restored,
};
use crate::{api::ApiVersion, config::KernelSettings, kernel::Credentials};

/// What to ask, of whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kernel, as an environment of the configuration names it.
    pub kernel: KernelSettings,
    /// The version of its WhatsApp API.
    pub version: ApiVersion,
    /// The test client.
    pub client: Credentials,
    /// Another client, to see whether it has a webhook of its own.
    pub second: Option<Credentials>,
    /// The scopes of the controller.
    pub registration_scopes: Vec<String>,
    /// The scopes of the bridge.
    pub messaging_scopes: Vec<String>,
    /// The purposes of both.
    pub purposes: Vec<String>,
    /// Whether the webhook may be changed for the time of the run.
    pub write: Option<WriteOptions>,
}

/// How the webhook is changed and put back.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// The webhook that Kernel holds now, for a Kernel that can't be read back or masks the key.
    pub previous: Option<SecretString>,
    /// Where the previous webhook is kept until it is put back. The file must not exist.
    pub recovery_file: PathBuf,
    /// The wait before putting back is tried again; grows by as much each time.
    pub retry_step: Duration,
}

/// A scope that no client has.
const NO_SUCH_SCOPE: &str = "whatsapp:conformance-not-granted";

/// Asks everything. When `stop` is cancelled no further question is asked, and what was changed is put back. `say`
/// is told what a person must know while it runs.
///
/// # Errors
/// When TLS can't be set up.
pub async fn run(
    options: &Options,
    stop: &CancellationToken,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<ConformanceReport, reqwest::Error> {
    let mut probe = Probe::new(options)?;
    let mut evidence = Evidence::default();
    ask(options, &mut probe, &mut evidence, stop).await;
    if let Some(write) = &options.write
        && !stop.is_cancelled()
    {
        evidence.written = writes::run(write, &mut probe, &mut evidence, stop, say).await;
    }
    evidence.interrupted = stop.is_cancelled();
    evidence.seen = probe.seen;
    Ok(ConformanceReport::new(options, &evidence))
}

/// Everything that changes nothing.
async fn ask(options: &Options, probe: &mut Probe, evidence: &mut Evidence, stop: &CancellationToken) {
    let (client, registration) = (&options.client, &options.registration_scopes);
    evidence.token = Some(probe.token(client, registration).await);
    let Some(token) = evidence.registration_token() else {
        return;
    };
    evidence.messaging = Some(probe.token(client, &options.messaging_scopes).await);
    let wrong = Credentials {
        id: client.id.clone(),
        secret: SecretString::from("conformance-wrong-secret"),
    };
    evidence.wrong_secret = Some(probe.token(&wrong, registration).await);
    let mut more = registration.clone();
    more.push(NO_SUCH_SCOPE.to_owned());
    evidence.ungranted = Some(probe.token(client, &more).await);
    if stop.is_cancelled() {
        return;
    }
    evidence.read = Some(probe.webhook(&token).await);
    evidence.read_badly = Some(probe.webhook(&SecretString::from("conformance-no-token")).await);
    if let Some(messaging) = evidence.messaging.as_ref().and_then(token_of) {
        evidence.read_by_messaging = Some(probe.webhook(&messaging).await);
        evidence.messages_path = Some(probe.messages_path(&messaging).await);
    }
    if stop.is_cancelled() {
        return;
    }
    // A second token of the same kind: the first must go on working, because both roles and several replicas fetch
    // their own.
    evidence.again = Some(probe.token(client, registration).await);
    evidence.read_with_first = Some(probe.webhook(&token).await);
    if let Some(second) = &options.second {
        evidence.second_token = Some(probe.token(second, registration).await);
        if let Some(token) = evidence.second_token.as_ref().and_then(token_of) {
            evidence.second_before = Some(probe.webhook(&token).await);
        }
    }
}
