//! What a pass reads and does outside: the channel's Secrets, and the calls to Kernel when it is their turn. Thin.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use secrecy::{ExposeSecret, SecretString};

use super::{
    reconcile::{Pass, ReconcileError},
    webhook::{Desired, Held},
};
use crate::{
    api::{WebhookMode, WhatsAppChannel},
    cluster::{self, SecretProblem},
    config::Environment,
    kernel::{Credentials, KernelError, ReadBack, TokenRequest},
    keys::{ApiKey, Tag},
};

/// What has been read and done in the course of a pass.
#[derive(Default)]
pub(super) struct Gathered {
    pub secret_version: Option<String>,
    pub credentials: Option<Credentials>,
    pub issued: Option<ApiKey>,
    pub desired: Option<Desired>,
}

/// A step was asked for before what it needs was there: `decide` never does.
const NOT_GATHERED: KernelError = KernelError::InvalidResponse("the call could not be put together");

impl Pass<'_> {
    pub(super) async fn read_secret(
        &self,
        channel: &WhatsAppChannel,
        gathered: &mut Gathered,
    ) -> Result<Result<(), SecretProblem>, ReconcileError> {
        let secrets: Api<Secret> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let reference = &channel.spec.kernel.credentials_secret_ref;
        let secret = cluster::get(&secrets, &reference.name).await?;
        gathered.secret_version = secret.as_ref().and_then(ResourceExt::resource_version);
        let read = cluster::credentials(secret.as_ref(), reference);
        match read {
            Ok(credentials) => gathered.credentials = Some(credentials),
            Err(problem) => return Ok(Err(problem)),
        }
        let legacy = self
            .environment
            .and_then(|environment| environment.legacy_callback.as_ref());
        let key_ref = match self.effective.mode {
            WebhookMode::Legacy => legacy.and_then(|legacy| legacy.api_key_secret_ref.as_ref()),
            _ => channel
                .spec
                .webhook
                .as_ref()
                .and_then(|webhook| webhook.api_key_secret_ref.as_ref()),
        };
        if let Some(reference) = key_ref {
            let secret = cluster::get(&secrets, &reference.name).await?;
            match cluster::issued_key(secret.as_ref(), reference) {
                Ok(key) => {
                    // A new version of either Secret is a new fingerprint.
                    let version = secret
                        .as_ref()
                        .and_then(ResourceExt::resource_version)
                        .unwrap_or_default();
                    gathered.secret_version = gathered
                        .secret_version
                        .take()
                        .map(|own| format!("{own}.{version}"));
                    gathered.issued = Some(key);
                }
                Err(problem) => return Ok(Err(problem)),
            }
        }
        gathered.desired = self
            .environment
            .map(|environment| match (self.effective.mode, legacy) {
                (WebhookMode::Legacy, Some(legacy)) => {
                    Desired::from_template(&legacy.url, self.id, gathered.issued.as_ref())
                }
                _ => {
                    let derived = || {
                        let tag = Tag::new(&channel.spec.environment, &self.namespace);
                        self.context
                            .keys
                            .api_key(tag, self.effective.key_generation, self.id)
                    };
                    let key = gathered.issued.clone().unwrap_or_else(derived);
                    Desired::new(environment, self.id, &key)
                }
            });
        Ok(Ok(()))
    }

    fn token_request(&self, gathered: &Gathered) -> Option<(&Environment, TokenRequest)> {
        let (environment, credentials) = (self.environment?, gathered.credentials.clone()?);
        let request = TokenRequest {
            url: environment.kernel.token_url(),
            credentials,
            scopes: self.effective.registration_scopes.clone(),
            purposes: self.effective.purposes.clone(),
            timeout: environment.kernel.timeout(),
        };
        Some((environment, request))
    }

    pub(super) async fn fetch_token(&self, gathered: &Gathered) -> Result<(), KernelError> {
        let (_, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        self.counted("token", self.context.kernel.token(&request))
            .await
            .map(|_| ())
    }

    pub(super) async fn read_webhook(&self, gathered: &Gathered) -> Result<Held, KernelError> {
        let (environment, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        let url = environment.kernel.webhook_url(self.effective.api_version);
        let desired = gathered.desired.as_ref().ok_or(NOT_GATHERED)?;
        let held = self
            .counted("webhook_get", self.context.kernel.webhook(&request, &url))
            .await?;
        Ok(match held {
            ReadBack::Url(held) => desired.judge(environment, self.id, held.expose_secret()),
            ReadBack::Empty => Held::Empty,
            ReadBack::Unsupported => Held::Unsupported,
        })
    }

    pub(super) async fn set_webhook(
        &self,
        gathered: &Gathered,
        to: &SecretString,
    ) -> Result<(), KernelError> {
        let (environment, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        let url = environment.kernel.webhook_url(self.effective.api_version);
        self.counted("webhook_set", self.context.kernel.set_webhook(&request, &url, to))
            .await
    }

    /// Makes a call to Kernel when it is its turn, and counts it.
    async fn counted<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, KernelError>>,
    ) -> Result<T, KernelError> {
        let limiter = self.context.limiter(&self.environment_name);
        let _turn = match limiter {
            Some(limiter) => limiter.turn().await,
            None => None,
        };
        let result = call.await;
        let class = result.as_ref().map_or_else(KernelError::class, |_| "ok");
        self.context.metrics.called(operation, class);
        result
    }
}
