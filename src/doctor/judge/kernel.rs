//! What Kernel answered becomes a step. Pure.

use crate::{
    api::{Existing, REQUESTED_AT, WebhookMode},
    controller::inspect::{HeldKey, Whose},
    doctor::report::{Outcome, Step, StepId},
    kernel::KernelError,
};

/// What a token was asked for.
pub(in crate::doctor) struct Asked<'a> {
    pub id: StepId,
    /// The auth server.
    pub host: &'a str,
    pub scopes: &'a [String],
    pub secret: &'a str,
}

/// An attempt at a token.
pub(in crate::doctor) fn token(asked: &Asked<'_>, error: Option<&KernelError>) -> Step {
    let Asked {
        id,
        host,
        scopes,
        secret,
    } = asked;
    let (id, scopes) = (*id, scopes.join(" "));
    match error {
        None => Step::ok(id, format!("{host} grants {scopes}")),
        Some(KernelError::CredentialsRejected) => Step::fail(
            id,
            format!("{host} rejects the client's id or secret"),
            format!("put the id and secret that Kernel has for this client into Secret {secret:?}"),
        ),
        Some(KernelError::ScopeNotGranted(missing)) => Step::fail(
            id,
            format!("{host} does not grant {}", missing.join(" ")),
            format!(
                "ask the Kernel team to grant {} to this client",
                missing.join(" ")
            ),
        ),
        Some(error) => upstream(id, host, "kernel.authUrl and kernel.tokenPath", error),
    }
}

/// A failure of Kernel that says nothing about the channel's own credentials.
fn upstream(id: StepId, host: &str, settings: &str, error: &KernelError) -> Step {
    match error {
        KernelError::Unreachable | KernelError::Interrupted => Step::fail(
            id,
            format!("{host} can't be reached from here ({error})"),
            format!(
                "check DNS, firewall and proxy towards {host}, and {settings} of the environment; if only the cluster \
                 may reach Kernel, run this in a pod"
            ),
        ),
        KernelError::TimedOut => Step::fail(
            id,
            format!("{host} did not answer in time"),
            format!(
                "it may be overloaded or behind a firewall that drops: check {host} from here; raise kernel.timeout if it is merely slow"
            ),
        ),
        KernelError::RateLimited { retry_after } => Step::unknown(
            id,
            format!("{host} limits the rate of calls (429)"),
            retry_after.map_or_else(
                || "try again in a minute".to_owned(),
                |wait| format!("try again in {} s", wait.as_secs()),
            ),
        ),
        KernelError::Unavailable { status, .. } => Step::fail(
            id,
            format!("{host} answers {status}"),
            "Kernel is ill: try again, and tell the Kernel team if it stays",
        ),
        KernelError::PermissionDenied => Step::fail(
            id,
            format!("{host} says that this client may not do this (403)"),
            "ask the Kernel team what this client lacks",
        ),
        KernelError::Unauthorized => Step::fail(
            id,
            format!("{host} rejects a token that Kernel's auth server has just issued"),
            "see that kernel.apiUrl and kernel.authUrl of the environment belong to the same Kernel",
        ),
        other => Step::fail(
            id,
            format!("{host}: {other}"),
            format!("check {settings} of the environment; doctor conformance tells how this Kernel differs"),
        ),
    }
}

/// What is known of the webhook.
pub(in crate::doctor) struct Look<'a> {
    /// The API's host.
    pub host: &'a str,
    /// Where the channel is, for commands.
    pub namespace: &'a str,
    pub name: &'a str,
    /// What Kernel should hold, its key masked.
    pub expected: &'a str,
    pub mode: WebhookMode,
    pub existing: Existing,
    pub generation: u64,
    /// Why the key in force is not known, if it is not.
    pub no_keys: &'a str,
}

/// What Kernel holds.
pub(in crate::doctor) enum Seen {
    Whose(Whose),
    Empty,
    Unsupported,
}

/// The webhook.
pub(in crate::doctor) fn webhook(look: &Look<'_>, result: Result<&Seen, &KernelError>) -> Step {
    let id = StepId::Webhook;
    let again = format!(
        "kubectl -n {} annotate wac {} {REQUESTED_AT}=\"$(date -Is)\" --overwrite",
        look.namespace, look.name
    );
    let seen = match result {
        Ok(seen) => seen,
        Err(error) => {
            return upstream(id, look.host, "kernel.apiUrl and kernel.webhookPath", error)
                .detail(format!("it should be {}", look.expected));
        }
    };
    let ours =
        |note: &str| Step::ok(id, format!("Kernel holds our webhook{note}")).detail(look.expected.to_owned());
    // In mode Observe nothing is changed: another webhook is what one came to see.
    let wrong = |message: String, next: String| {
        let step = Step::fail(id, message, next).detail(format!("it should be {}", look.expected));
        if look.mode == WebhookMode::Observe {
            Step {
                outcome: Outcome::Warn,
                ..step.next("webhook.mode is Observe: set it to Manage to have this changed")
            }
        } else {
            step
        }
    };
    match seen {
        Seen::Unsupported => Step::warn(
            id,
            format!("{} can't be asked which webhook it holds", look.host),
            "status.registeredAt tells when Kernel last took ours; another party's change is not seen",
        )
        .detail(format!("it should be {}", look.expected)),
        Seen::Empty => wrong(
            "Kernel holds no webhook: messages of users go nowhere".to_owned(),
            again,
        ),
        Seen::Whose(Whose::Foreign(host)) => wrong(
            format!("Kernel calls another webhook, at {host}"),
            match (look.mode, look.existing) {
                (WebhookMode::Manage, Existing::Refuse) => format!(
                    "if this channel is to take over from {host}, set spec.webhook.existing to TakeOver; if not, leave it to that system"
                ),
                _ => format!("the controller takes it over at its next look: {again}"),
            },
        ),
        Seen::Whose(Whose::Former) => wrong(
            "Kernel calls the bridge by an address or in a way that is no longer in force".to_owned(),
            format!("the controller brings it up to date at its next look: {again}"),
        ),
        Seen::Whose(Whose::Ours(key)) => match key {
            HeldKey::Current => ours(", with the key in force"),
            HeldKey::Masked => ours("; its key can't be compared, because Kernel masks it"),
            HeldKey::NotCompared => ours(&format!("; its key was not compared: {}", look.no_keys)),
            HeldKey::Generation(held) => Step::warn(
                id,
                format!(
                    "Kernel holds our webhook with the key of generation {held}; in force is {}",
                    look.generation
                ),
                format!("the controller brings it up to date at its next look: {again}"),
            )
            .detail(look.expected.to_owned()),
            HeldKey::Other => wrong(
                "Kernel holds our webhook with a key that is not this channel's: its calls are refused (401)"
                    .to_owned(),
                format!("the controller brings it up to date at its next look: {again}"),
            ),
        },
    }
}
