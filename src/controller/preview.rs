//! What a pass of the controller would come to, without making one: its own decision, asked with what somebody else has
//! read. Pure; nothing that it says is ever done.

use jiff::Timestamp;
use kube::ResourceExt;
use secrecy::ExposeSecret;

use super::{
    decide::{Announced, Before, EnvironmentView, Observed, Stands, Step, decide},
    inspect::Subject,
    status::{self, Key, Told},
    webhook::{Desired, Held},
};
use crate::{
    api::{
        ChannelId, Effective, Existing, REQUESTED_AT, WebhookMode, WhatsAppChannel, WhatsAppChannelStatus,
        conditions::Reason,
    },
    cluster::SecretProblem,
    config::{Environment, key_ref},
    kernel::{KernelError, ReadBack},
    keys::{ApiKey, Keys},
};

/// A channel and what has been read of it so far. What is `None` has not been looked at.
pub(crate) struct Look<'a> {
    /// The channel as it is, or would be; its status is that of the cluster.
    pub channel: &'a WhatsAppChannel,
    /// Its id.
    pub id: ChannelId,
    /// Its environment, where there is one of its name.
    pub environment: Option<&'a Environment>,
    /// Its settings.
    pub effective: &'a Effective,
    /// Now.
    pub now: Timestamp,
    /// The installation's keys, where they may be known.
    pub keys: Option<&'a Keys>,
    /// The resource that holds the channel instead of this one, as "namespace/name".
    pub holder: Option<String>,
    /// The older resource with the same Kernel client.
    pub client_holder: Option<String>,
    /// Its Secrets.
    pub secrets: Option<Result<SecretsSeen, SecretProblem>>,
    /// Its change names other credentials, be they in the same Secret: a status speaks of those before.
    pub other_client: bool,
    /// Kernel's auth server was asked.
    pub token: Option<Result<(), KernelError>>,
    /// Kernel was asked for the webhook.
    pub held: Option<Result<ReadBack, KernelError>>,
}

/// What a channel's Secrets gave, beside its credentials.
#[derive(Clone, Debug, Default)]
pub(crate) struct SecretsSeen {
    /// The version of the one with its Kernel client; `None` where it would be another than in the cluster.
    pub version: Option<String>,
    /// The version of the one with a key issued elsewhere.
    pub key_version: Option<String>,
    /// That key.
    pub issued: Option<ApiKey>,
}

/// What the controller would do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Read the channel's Secrets.
    Secrets,
    /// Fetch a token.
    Token,
    /// Ask Kernel for the webhook.
    Webhook,
    /// It would come to this.
    Ends(Preview),
}

/// What a pass would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preview {
    /// What would be done at Kernel.
    pub forecast: Forecast,
    /// Kernel holds the channel's webhook, and whether with the key in force could not be told.
    pub key_not_compared: bool,
}

/// What would be done at Kernel. The texts are for people and hold no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forecast {
    /// Nothing, and why.
    Nothing(String),
    /// A webhook would be registered where none is known to be.
    Register,
    /// Our webhook would be set anew, because of this.
    Renew(&'static str),
    /// Somebody has changed what was set: it would be set again.
    PutBack,
    /// Another party's webhook, at this host, would be replaced.
    TakeOver {
        /// Its host.
        host: String,
    },
    /// The webhook of the system before, at this host, would be replaced.
    ReplaceLegacy {
        /// Its host.
        host: String,
    },
    /// The channel would not become Ready, for this reason.
    Refused {
        /// The reason that would stand in its status.
        reason: Reason,
        /// What to do.
        message: String,
    },
    /// It can't be told, because of this.
    Unclear(String),
}

impl Preview {
    fn of(forecast: Forecast) -> Self {
        Self {
            forecast,
            key_not_compared: false,
        }
    }

    fn nothing(why: impl Into<String>) -> Self {
        Self::of(Forecast::Nothing(why.into()))
    }
}

impl Look<'_> {
    fn subject<'b>(&'b self, environment: &'b Environment, namespace: &'b str) -> Subject<'b> {
        let secrets = self.secrets.as_ref().and_then(|secrets| secrets.as_ref().ok());
        Subject {
            environment_name: &self.channel.spec.environment,
            environment,
            namespace,
            channel: self.id,
            effective: self.effective,
            issued: secrets.and_then(|secrets| secrets.issued.as_ref()),
            keys: self.keys,
        }
    }

    /// How much of what Kernel would be told for this spec, Secret and key a status says that it was told, and whether it
    /// was once, whatever has failed since. Without the installation key, the one that Kernel was told is taken to be still
    /// in force. Secrets that could not be read are taken to be what they were, and of one that can't be used that is known.
    fn told(&self, old: &WhatsAppChannelStatus, namespace: &str) -> (Stands, bool) {
        let generation = self.channel.metadata.generation.unwrap_or_default();
        self.told_for(old, namespace, generation)
    }

    /// The same for the spec of this generation.
    fn told_for(&self, old: &WhatsAppChannelStatus, namespace: &str, generation: i64) -> (Stands, bool) {
        let Some(environment) = self.environment else {
            return (Stands::Nothing, false);
        };
        let before;
        let secrets = match &self.secrets {
            Some(Ok(secrets)) => secrets,
            other => {
                let spec = &self.channel.spec;
                let unusable = |name: &str| matches!(other, Some(Err(problem)) if problem.secret() == name);
                let client = unusable(&spec.kernel.credentials_secret_ref.name);
                let key = key_ref(self.environment, spec, self.effective.mode);
                let key = key.is_some_and(|key| unusable(&key.name));
                before = SecretsSeen {
                    version: old.observed_secret_version.clone().filter(|_| !client),
                    key_version: old.observed_api_key_version.clone().filter(|_| !key),
                    issued: None,
                };
                &before
            }
        };
        let told_id = old
            .webhook_key
            .as_ref()
            .and_then(|told| told.installation_key_id.as_deref());
        let version = secrets.key_version.as_deref();
        let mode = self.effective.mode;
        let key = if mode == WebhookMode::Legacy {
            Key::Legacy { version }
        } else if key_ref(self.environment, &self.channel.spec, mode).is_some() {
            Key::Issued { version }
        } else {
            Key::Derived {
                generation: self.effective.key_generation,
                id: self.keys.map(Keys::id).or(told_id).unwrap_or_default(),
            }
        };
        let told = Told {
            mode,
            generation,
            secret_version: secrets.version.as_deref(),
            webhook_url: Some(self.subject(environment, namespace).expected()),
            key,
        };
        (told.stands_in(old), told.was_set(old))
    }

    /// What the controller would do next.
    pub fn next(&self) -> Next {
        let (old, namespace) = (self.status(), self.namespace());
        if self.channel.metadata.deletion_timestamp.is_some() {
            return Next::Ends(Preview::nothing("it is being deleted"));
        }
        if self.effective.suspend {
            return Next::Ends(Preview::nothing("it is suspended"));
        }
        let (held, compared) = match (&self.held, self.environment) {
            (Some(Ok(ReadBack::Url(url))), Some(environment)) => {
                let subject = self.subject(environment, &namespace);
                let (held, compared) = subject.held(url.expose_secret());
                (Some(Ok(held)), compared)
            }
            (Some(Ok(ReadBack::Unsupported)), _) => (Some(Ok(Held::Unsupported)), true),
            (Some(Ok(_)), _) => (Some(Ok(Held::Empty)), true),
            (Some(Err(error)), _) => (Some(Err(error.clone())), true),
            (None, _) => (None, true),
        };
        let seen = self.observed(&old, &namespace, held);
        let preview = match decide(&seen) {
            Step::ReadSecret => return Next::Secrets,
            Step::FetchToken => return Next::Token,
            Step::ReadWebhook => return Next::Webhook,
            Step::SetWebhook => self.change(&seen, &namespace),
            Step::Done(_) if let Some(error) = self.transient() => {
                Preview::of(Forecast::Unclear(error.to_string()))
            }
            Step::Done(verdict) if verdict.reason.is_good() => {
                Preview::nothing(match (&seen.environment, verdict.reason) {
                    (EnvironmentView::Held { reason, .. }, _) if self.secrets.is_none() => format!(
                        "its environment is on hold: {reason} (its Secret can't be read: registered, as its status says)"
                    ),
                    (EnvironmentView::Held { reason, .. }, _) if let Some(Err(problem)) = &self.secrets => {
                        format!("its environment is on hold: {reason}; what stays after it: {problem}")
                    }
                    (EnvironmentView::Held { reason, .. }, _) => {
                        format!("its environment is on hold: {reason}")
                    }
                    (_, Reason::Observed) => verdict.message,
                    _ => String::new(),
                })
            }
            Step::Done(verdict) => Preview::of(Forecast::Refused {
                reason: verdict.reason,
                message: verdict.message,
            }),
            // Never of a leader whose keys are known: see `observed`.
            Step::StandBy | Step::Announce | Step::ComeBack(_) => {
                Preview::of(Forecast::Unclear("the controller would wait".to_owned()))
            }
        };
        Next::Ends(Preview {
            key_not_compared: !compared,
            ..preview
        })
    }

    /// What would come of it as far as that can be told without asking Kernel: what the controller heard of it last
    /// stands until something changes of which Kernel is told.
    pub fn without_kernel(&self) -> Preview {
        let (old, namespace) = (self.status(), self.namespace());
        Preview::of(if self.effective.mode == WebhookMode::Observe {
            Forecast::Nothing("mode Observe".to_owned())
        } else if self.told(&old, &namespace).0 == Stands::Wholly {
            Forecast::Nothing("registered, as its status says".to_owned())
        } else if let Some((reason, message)) = self.standing(&old) {
            Forecast::Refused {
                reason,
                message: format!("{message} (as its status says)"),
            }
        } else if old.registered_at.is_none() && old.webhook_url.is_none() {
            Forecast::Register
        } else if !self.was_told_before(&old, &namespace) {
            Forecast::Renew("the channel is another than when it was registered")
        } else if status::is_blind(&old) {
            Forecast::Renew("it is set on every change, because Kernel can't be read back")
        } else {
            Forecast::Nothing(
                "registered, as its status says; Kernel is told nothing of what changes".to_owned(),
            )
        })
    }

    /// Whether Kernel was told just this for the spec that the status speaks of, which may be another in what Kernel
    /// is not told.
    fn was_told_before(&self, old: &WhatsAppChannelStatus, namespace: &str) -> bool {
        let generation = old.observed_generation;
        !self.other_client
            && generation
                .is_some_and(|generation| self.told_for(old, namespace, generation).0 == Stands::Wholly)
    }

    /// What Kernel said against the channel when it was asked last, if it would be found again: nothing has changed
    /// that it depends on, and nobody asks for another look.
    fn standing(&self, old: &WhatsAppChannelStatus) -> Option<(Reason, String)> {
        if self.is_asked(old) {
            return None;
        }
        let generation = self.channel.metadata.generation.unwrap_or_default();
        let ready = status::ready(old).filter(|ready| ready.status == "False");
        let said = |reason: Reason| {
            let ready = ready.filter(|ready| ready.reason == reason.as_str())?;
            Some((reason, ready.message.clone()))
        };
        // What was left to another party stays so, whatever else its status says meanwhile.
        let left = Before::of(old, generation, false, false).left;
        let left = |reason: Reason, message: &str, same_generation: bool| {
            let still =
                left.filter(|left| left.reason == reason && (left.same_generation || !same_generation));
            still.map(|_| said(reason).unwrap_or_else(|| (reason, message.to_owned())))
        };
        let contested = "somebody keeps changing this number's webhook and it is left as it is";
        if let Some(contested) = left(Reason::WebhookContested, contested, true) {
            return Some(contested);
        }
        // The environment's defaults may allow it since.
        let foreign = "Kernel called another webhook for this number when it was asked last";
        if self.effective.existing == Existing::Refuse
            && let Some(foreign) = left(Reason::WebhookForeign, foreign, false)
        {
            return Some(foreign);
        }
        let secrets = self.secrets.as_ref().and_then(|secrets| secrets.as_ref().ok());
        let same_secret =
            secrets.is_some_and(|seen| seen.version.is_some() && seen.version == old.observed_secret_version);
        if old.observed_generation != Some(generation) || !same_secret {
            return None;
        }
        [
            Reason::CredentialsRejected,
            Reason::ScopeNotGranted,
            Reason::PermissionDenied,
        ]
        .into_iter()
        .find_map(said)
    }

    /// Whether somebody asks for a look that has not been made yet.
    fn is_asked(&self, old: &WhatsAppChannelStatus) -> bool {
        let requested = self.channel.annotations().get(REQUESTED_AT);
        requested.is_some() && requested != old.last_handled_reconcile_at.as_ref()
    }

    fn status(&self) -> WhatsAppChannelStatus {
        self.channel.status.clone().unwrap_or_default()
    }

    fn namespace(&self) -> String {
        self.channel.namespace().unwrap_or_default()
    }

    fn transient(&self) -> Option<&KernelError> {
        let token = self.token.as_ref().and_then(|token| token.as_ref().err());
        let held = self.held.as_ref().and_then(|held| held.as_ref().err());
        held.or(token).filter(|error| error.is_transient())
    }

    fn observed<'b>(
        &'b self,
        old: &'b WhatsAppChannelStatus,
        namespace: &str,
        held: Option<Result<Held, KernelError>>,
    ) -> Observed<'b> {
        let generation = self.channel.metadata.generation.unwrap_or_default();
        let asked = self.is_asked(old);
        let legacy = self
            .environment
            .and_then(|environment| environment.legacy_callback.as_ref())
            .map(|legacy| Desired::from_template(&legacy.url, self.id, None).masked());
        let (stands, told) = self.told(old, namespace);
        Observed {
            leading: true,
            now: self.now,
            generation,
            environment_name: &self.channel.spec.environment,
            environment: EnvironmentView::of(self.environment, self.effective, namespace, self.now),
            effective: self.effective,
            holder: self.holder.clone(),
            secret_name: &self.channel.spec.kernel.credentials_secret_ref.name,
            secret: self
                .secrets
                .as_ref()
                .map(|secrets| secrets.as_ref().map(|_| ()).map_err(Clone::clone)),
            client_holder: self.client_holder.clone(),
            // What a look would come to is the question, whether or not one is due.
            fresh: false,
            stands,
            told,
            misses: 0,
            parked: false,
            before: Before::of(
                old,
                generation,
                asked,
                legacy.is_some() && old.webhook_url == legacy,
            ),
            // That the bridge is told of the key first is a matter of seconds.
            announced: Announced::Known,
            token: self.token.clone(),
            held,
            set: None,
        }
    }

    /// What setting the webhook would be.
    fn change(&self, seen: &Observed<'_>, namespace: &str) -> Preview {
        let held = seen.held.as_ref().and_then(|held| held.as_ref().ok());
        Preview::of(match held {
            Some(Held::Unsupported) if seen.registered() => {
                return Preview::nothing("registered, as its status says: Kernel can't be read back");
            }
            Some(Held::Foreign { host }) => Forecast::TakeOver { host: host.clone() },
            Some(Held::Legacy { host }) => Forecast::ReplaceLegacy { host: host.clone() },
            Some(Held::Empty | Held::Outdated) if seen.told => Forecast::PutBack,
            Some(Held::Outdated) if self.is_elsewhere(namespace) => {
                Forecast::Renew("Kernel calls an address that is no longer in force")
            }
            Some(Held::Outdated) => Forecast::Renew("Kernel holds another key"),
            Some(Held::Current { .. }) => Forecast::Renew("Kernel does not show which key it holds"),
            Some(Held::Empty | Held::Unsupported) | None => Forecast::Register,
        })
    }

    fn is_elsewhere(&self, namespace: &str) -> bool {
        let (Some(environment), Some(Ok(ReadBack::Url(url)))) = (self.environment, &self.held) else {
            return false;
        };
        let whose = self.subject(environment, namespace).judge(url.expose_secret());
        whose == super::inspect::Whose::Former
    }
}

#[cfg(test)]
#[path = "preview_tests.rs"]
mod tests;
