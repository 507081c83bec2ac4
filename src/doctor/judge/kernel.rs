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
        KernelError::PermissionDenied | KernelError::TokenDenied => Step::fail(
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
    /// Why the controller changes nothing at present, and what ends that, if that is so.
    pub idle: Option<String>,
}

impl Look<'_> {
    /// What the controller will do, or what is to be done about it first.
    fn will(&self, next: String) -> String {
        match &self.idle {
            Some(idle) => format!("{idle}; then {next}"),
            None => next,
        }
    }
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
        let step = Step::fail(id, message, look.will(next)).detail(format!("it should be {}", look.expected));
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
            match look.existing {
                // In mode Legacy too: what is not the system before is another party's.
                Existing::Refuse => format!(
                    "if this channel is to take over from {host}, set spec.webhook.existing to TakeOver; if not, leave it to that system"
                ),
                Existing::TakeOver => format!("the controller takes it over at its next look: {again}"),
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
                look.will(format!(
                    "the controller brings it up to date at its next look: {again}"
                )),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn look(mode: WebhookMode, existing: Existing) -> Look<'static> {
        Look {
            host: "api.example.com",
            namespace: "aura-es",
            name: "shop-es",
            expected: "https://svc.example.com/aura-services/v1/whatsapp/messages?apikey=****",
            mode,
            existing,
            generation: 3,
            no_keys: "name the Secret",
            idle: None,
        }
    }

    fn seen(whose: Whose) -> Seen {
        Seen::Whose(whose)
    }

    #[test]
    fn each_webhook_is_judged_by_what_the_channel_wants() {
        use Outcome::{Fail, Ok as Fine, Warn};
        let foreign = || seen(Whose::Foreign("other.example.com".into()));
        let cases = [
            (
                WebhookMode::Manage,
                seen(Whose::Ours(HeldKey::Current)),
                Fine,
                "key in force",
            ),
            (
                WebhookMode::Manage,
                seen(Whose::Ours(HeldKey::Masked)),
                Fine,
                "masks",
            ),
            (
                WebhookMode::Manage,
                seen(Whose::Ours(HeldKey::NotCompared)),
                Fine,
                "name the Secret",
            ),
            (
                WebhookMode::Manage,
                seen(Whose::Ours(HeldKey::Generation(2))),
                Warn,
                "generation 2; in force is 3",
            ),
            (
                WebhookMode::Manage,
                seen(Whose::Ours(HeldKey::Other)),
                Fail,
                "401",
            ),
            (
                WebhookMode::Manage,
                seen(Whose::Former),
                Fail,
                "no longer in force",
            ),
            (WebhookMode::Manage, foreign(), Fail, "other.example.com"),
            (WebhookMode::Observe, foreign(), Warn, "other.example.com"),
            (WebhookMode::Manage, Seen::Empty, Fail, "no webhook"),
            (WebhookMode::Observe, Seen::Empty, Warn, "no webhook"),
            (WebhookMode::Manage, Seen::Unsupported, Warn, "can't be asked"),
        ];
        for (mode, held, outcome, words) in cases {
            let step = webhook(&look(mode, Existing::Refuse), Ok(&held));
            assert_eq!(step.outcome, outcome, "{step:?}");
            assert!(step.message.contains(words), "{step:?}");
            assert!(step.outcome == Fine || step.next.is_some(), "{step:?}");
        }
        let step = webhook(&look(WebhookMode::Manage, Existing::TakeOver), Ok(&foreign()));
        assert!(step.next.unwrap().contains("takes it over at its next look"));
    }

    #[test]
    fn no_step_promises_what_the_controller_will_not_do() {
        let foreign = || seen(Whose::Foreign("other.example.com".into()));
        let legacy = webhook(&look(WebhookMode::Legacy, Existing::Refuse), Ok(&foreign()));
        assert_eq!(legacy.outcome, Outcome::Fail);
        let next = legacy.next.unwrap();
        assert!(next.contains("set spec.webhook.existing to TakeOver"), "{next}");
        assert!(!next.contains("the controller"), "{next}");
        let legacy = webhook(&look(WebhookMode::Legacy, Existing::TakeOver), Ok(&foreign()));
        assert!(legacy.next.unwrap().starts_with("the controller takes it over"));

        let idle = Look {
            idle: Some("spec.suspend is true: set it to false".into()),
            ..look(WebhookMode::Manage, Existing::TakeOver)
        };
        for held in [
            foreign(),
            seen(Whose::Former),
            seen(Whose::Ours(HeldKey::Other)),
            seen(Whose::Ours(HeldKey::Generation(2))),
            Seen::Empty,
        ] {
            let next = webhook(&idle, Ok(&held)).next.unwrap();
            assert!(
                next.starts_with("spec.suspend is true: set it to false; then "),
                "{next}"
            );
        }
    }

    #[test]
    fn only_a_rate_limit_leaves_the_step_unjudged() {
        let asked = Asked {
            id: StepId::Token,
            host: "auth.example.com",
            scopes: &["a:b".to_owned()],
            secret: "shop",
        };
        let limited = KernelError::RateLimited {
            retry_after: Some(std::time::Duration::from_secs(7)),
        };
        let step = token(&asked, Some(&limited));
        assert_eq!(step.outcome, Outcome::Unknown);
        assert_eq!(step.next.as_deref(), Some("try again in 7 s"));
        for error in [
            KernelError::CredentialsRejected,
            KernelError::ScopeNotGranted(vec!["a:b".into()]),
            KernelError::Unauthorized,
            KernelError::PermissionDenied,
            KernelError::Unavailable {
                status: 502,
                retry_after: None,
            },
            KernelError::Unreachable,
            KernelError::Interrupted,
            KernelError::TimedOut,
            KernelError::Refused { status: 400 },
            KernelError::InvalidResponse("x"),
        ] {
            let step = token(&asked, Some(&error));
            assert_eq!(step.outcome, Outcome::Fail, "{error:?}");
            assert!(step.next.is_some(), "{error:?} says nothing to do");
        }
        assert_eq!(token(&asked, None).message, "auth.example.com grants a:b");
    }
}
