//! What a pass reads and does outside: the channel's Secrets, and the calls to Kernel. Thin.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use secrecy::{ExposeSecret, SecretString};

use super::{
    passage::Passage,
    reconcile::{Pass, ReconcileError},
    webhook::{Desired, Held},
};
use crate::{
    api::{KeyRef, WebhookMode, WhatsAppChannel},
    cluster::{self, SecretProblem},
    config::{Environment, key_ref},
    kernel::{Credentials, KernelError, ReadBack, TokenRequest},
    keys::{ApiKey, Tag},
};

/// The versions of a channel's Secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Versions {
    /// Of the one with its Kernel client; `None` where it is not known, or not there.
    pub client: Option<String>,
    /// Of the one with a key issued elsewhere, where there is one.
    pub api_key: Option<String>,
}

/// What has been read and done in the course of a pass.
#[derive(Default)]
pub(super) struct Gathered {
    pub versions: Versions,
    pub credentials: Option<Credentials>,
    pub issued: Option<ApiKey>,
    /// The Secret of which a value had white space around it.
    pub spaced: Option<String>,
    pub passage: Option<std::sync::Arc<Passage>>,
}

/// A step was asked for before what it needs was there: `decide` never does.
const NOT_GATHERED: KernelError = KernelError::InvalidResponse("the call could not be put together");

impl Pass<'_> {
    /// The reference to a key issued elsewhere that holds in the channel's mode.
    fn key_ref<'a>(&'a self, channel: &'a WhatsAppChannel) -> Option<&'a KeyRef> {
        key_ref(self.environment(), &channel.spec, self.effective.mode)
    }

    /// The versions of the channel's Secrets as the watch knows them.
    pub(super) fn known_versions(&self, channel: &WhatsAppChannel) -> Versions {
        let roster = self.context.roster();
        let version = |name: &str| roster.version(&self.key.namespace, name).map(ToOwned::to_owned);
        Versions {
            client: version(&channel.spec.kernel.credentials_secret_ref.name),
            api_key: self
                .key_ref(channel)
                .and_then(|reference| version(&reference.name)),
        }
    }

    /// Whether the channel's key is one issued elsewhere.
    pub(super) fn is_issued(&self, channel: &WhatsAppChannel) -> bool {
        self.key_ref(channel).is_some()
    }

    pub(super) async fn read_secret(
        &self,
        channel: &WhatsAppChannel,
        gathered: &mut Gathered,
    ) -> Result<Result<(), SecretProblem>, ReconcileError> {
        let secrets: Api<Secret> = Api::namespaced(self.context.client.clone(), &self.key.namespace);
        let reference = &channel.spec.kernel.credentials_secret_ref;
        let secret = cluster::get(&secrets, &reference.name).await?;
        gathered.versions = Versions {
            client: secret.as_ref().and_then(ResourceExt::resource_version),
            api_key: None,
        };
        match cluster::credentials(secret.as_ref(), reference) {
            Ok(credentials) => gathered.credentials = Some(credentials),
            Err(problem) => return Ok(Err(problem)),
        }
        let keys = [reference.id_key(), reference.secret_key()];
        gathered.spaced = secret
            .as_ref()
            .filter(|secret| keys.iter().any(|key| cluster::is_spaced(secret, key)))
            .map(|_| reference.name.clone());
        if let Some(reference) = self.key_ref(channel) {
            let secret = cluster::get(&secrets, &reference.name).await?;
            if secret
                .as_ref()
                .is_some_and(|secret| cluster::is_spaced(secret, &reference.key))
            {
                gathered.spaced = Some(reference.name.clone());
            }
            gathered.versions.api_key = secret.as_ref().and_then(ResourceExt::resource_version);
            match cluster::issued_key(secret.as_ref(), reference) {
                Ok(key) => gathered.issued = Some(key),
                Err(problem) => return Ok(Err(problem)),
            }
        }
        Ok(Ok(()))
    }

    /// The URL that Kernel is to hold; with no key issued elsewhere at hand, fit for being shown and compared alone.
    pub(super) fn desired(&self, issued: Option<&ApiKey>) -> Option<Desired> {
        let environment = self.environment()?;
        if self.effective.mode == WebhookMode::Legacy {
            let legacy = environment.legacy_callback.as_ref()?;
            return Some(Desired::from_template(&legacy.url, self.id, issued));
        }
        let derived = || {
            let tag = Tag::new(&self.environment_name, &self.key.namespace);
            self.context
                .keys
                .load()
                .api_key(tag, self.effective.key_generation, self.id)
        };
        let key = issued.cloned().unwrap_or_else(derived);
        Some(Desired::new(environment, self.id, &key))
    }

    fn token_request(&self, gathered: &Gathered) -> Option<(&Environment, TokenRequest)> {
        let (environment, credentials) = (self.environment()?, gathered.credentials.clone()?);
        let passage = gathered.passage.clone()?;
        let request = TokenRequest {
            url: environment.kernel.token_url(),
            credentials,
            scopes: self.effective.registration_scopes.clone(),
            purposes: self.effective.purposes.clone(),
            timeout: environment.kernel.timeout(),
            turnstile: Some(passage),
        };
        Some((environment, request))
    }

    pub(super) async fn fetch_token(&self, gathered: &Gathered) -> Result<(), KernelError> {
        let (_, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        self.context.kernel.token(&request).await.map(|_| ())
    }

    pub(super) async fn read_webhook(&self, gathered: &Gathered) -> Result<Held, KernelError> {
        let (environment, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        let url = environment.kernel.webhook_url(self.effective.api_version);
        let desired = self.desired(gathered.issued.as_ref()).ok_or(NOT_GATHERED)?;
        Ok(match self.context.kernel.webhook(&request, &url).await? {
            ReadBack::Url(held) => desired.judge(environment, self.id, held.expose_secret()),
            ReadBack::Empty => Held::Empty,
            ReadBack::Unsupported => Held::Unsupported,
        })
    }

    /// Sets the webhook to the channel's own URL.
    pub(super) async fn set_webhook(&self, gathered: &Gathered) -> Result<(), KernelError> {
        let desired = self.desired(gathered.issued.as_ref()).ok_or(NOT_GATHERED)?;
        self.put_webhook(gathered, desired.expose()).await
    }

    /// Clears the webhook.
    pub(super) async fn clear_webhook(&self, gathered: &Gathered) -> Result<(), KernelError> {
        self.put_webhook(gathered, &SecretString::default()).await
    }

    async fn put_webhook(&self, gathered: &Gathered, to: &SecretString) -> Result<(), KernelError> {
        let (environment, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        let url = environment.kernel.webhook_url(self.effective.api_version);
        self.context.kernel.set_webhook(&request, &url, to).await
    }
}
