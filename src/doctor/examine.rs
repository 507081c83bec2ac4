//! The steps of one channel, in order: what is read and asked for each, and which of them needs which. Thin: what an
//! answer means stands in `judge`.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, ResourceExt};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    gather::{self, ApiProblem},
    judge::{self, Asked, Happened, Look, Named, Seen},
    report::{Report, Step, StepId},
    surroundings::{ConfigSource, Surroundings},
};
use crate::{
    api::{ChannelId, Effective, KeyRef, WebhookMode, WhatsAppChannel, settings},
    cluster::{self, SecretProblem},
    config::{Environment, Installation, key_ref},
    controller::{inspect::Subject, roll::Roll},
    kernel::{Credentials, KernelError, ReadBack, TokenRequest},
    keys::ApiKey,
};

/// Which channel to look at, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The kubeconfig; without it the surroundings say.
    pub kubeconfig: Option<PathBuf>,
    /// The channel's namespace; without it the kubeconfig's own.
    pub namespace: Option<String>,
    /// The channel's name.
    pub name: String,
    /// Where the configuration is.
    pub config: ConfigSource,
    /// Where the release is.
    pub release_namespace: Option<String>,
    /// The Secret with the installation key, in the release's namespace, if it may be read.
    pub installation_key: Option<String>,
    /// The time for one call to Kernel, instead of the environment's.
    pub timeout: Option<Duration>,
}

/// What a channel's Secrets give.
struct Secrets {
    credentials: Credentials,
    issued: Option<ApiKey>,
}

/// Looks at one channel, from the cluster to Kernel. Changes nothing.
pub async fn run(request: &Request) -> Report {
    let namespace = request.namespace.clone();
    let client = match cluster::client(request.kubeconfig.as_deref()).await {
        Ok(client) => client,
        Err(error) => {
            let mut report = Report::new(namespace.unwrap_or_default(), &request.name);
            report.steps.push(Step::unknown(
                StepId::Cluster,
                error.to_string(),
                "name a kubeconfig with --kubeconfig",
            ));
            return report;
        }
    };
    let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let mut report = Report::new(&namespace, &request.name);
    let began = Instant::now();
    let version = gather::version(&client).await;
    report.steps.push(judge::cluster(version).took(began.elapsed()));
    if !report.passed(StepId::Cluster) {
        return report;
    }
    let Some(channel) = find(&client, &namespace, &request.name, &mut report).await else {
        return report;
    };
    let read = Surroundings::read(
        client,
        &request.config,
        request.release_namespace.as_deref(),
        request.installation_key.as_deref(),
        std::slice::from_ref(&namespace),
        request.timeout,
    );
    match read.await {
        Ok((surroundings, step)) => {
            report.steps.push(step);
            surroundings.examine(&channel, &mut report).await;
        }
        Err(_) => report.steps.push(Step::unknown(
            StepId::Configuration,
            "TLS can't be set up on this machine",
            "",
        )),
    }
    report
}

async fn find(client: &Client, namespace: &str, name: &str, report: &mut Report) -> Option<WhatsAppChannel> {
    let list = gather::channels(client, Some(namespace)).await;
    let step = judge::definition(&list);
    let defined = step.passed();
    report.steps.push(step);
    if !defined {
        return None;
    }
    let found = match &list {
        Ok(channels) => Ok(channels
            .iter()
            .find(|channel| channel.name_any() == name)
            .cloned()),
        Err(_) => gather::channel(client, namespace, name).await,
    };
    let others: Vec<String> = list.iter().flatten().map(ResourceExt::name_any).collect();
    report
        .steps
        .push(judge::resource(namespace, name, &found, &others));
    found.ok().flatten()
}

impl Surroundings {
    /// Looks at a channel that is there, and adds its steps to the report. For any number of channels.
    pub async fn examine(&self, channel: &WhatsAppChannel, report: &mut Report) {
        let now = Timestamp::now();
        let namespace = channel.namespace().unwrap_or_default();
        let environment = self.environment(channel, &namespace, now, report);
        report.steps.push(judge::conflicts(
            channel,
            &self.neighbours,
            self.installation.as_ref(),
        ));
        let effective = self.settings(channel, report);

        let key = key_ref(environment, &channel.spec, effective.mode).map(|key| {
            let named = Named::issued(key, effective.mode, &channel.spec.environment);
            (key, named)
        });
        let (secrets, step) = self.secrets(channel, &namespace, key.as_ref()).await;
        report.steps.push(step);
        match (&secrets, environment) {
            (Some(secrets), Some(environment)) => {
                let step = self.shared(channel, environment, &secrets.credentials).await;
                let free = step.passed();
                report.steps.push(step);
                if free {
                    self.ask_kernel(channel, environment, &effective, secrets, report)
                        .await;
                } else {
                    // The client is another channel's, and so is whatever Kernel holds for it.
                    let ids = [StepId::Token, StepId::TokenMessaging, StepId::Webhook];
                    report
                        .steps
                        .extend(ids.map(|id| Step::skipped(id, StepId::Client)));
                }
            }
            (secrets, _) => {
                let needs = if secrets.is_none() {
                    StepId::Secret
                } else {
                    StepId::Environment
                };
                let ids = [
                    StepId::Client,
                    StepId::Token,
                    StepId::TokenMessaging,
                    StepId::Webhook,
                ];
                report.steps.extend(ids.map(|id| Step::skipped(id, needs)));
            }
        }
        report.steps.push(judge::controller(channel, now));
        report.steps.push(self.events(channel, &namespace, now).await);
    }

    fn environment(
        &self,
        channel: &WhatsAppChannel,
        namespace: &str,
        now: Timestamp,
        report: &mut Report,
    ) -> Option<&Environment> {
        let Some(installation) = &self.installation else {
            report
                .steps
                .push(Step::skipped(StepId::Environment, StepId::Configuration));
            return None;
        };
        let name = &channel.spec.environment;
        let found = installation.environments.get(name);
        let mode = found
            .map(|environment| Effective::new(&channel.spec, &environment.channel_defaults).mode)
            .unwrap_or_default();
        let watched = self.watches(installation, namespace);
        report.steps.push(judge::environment(
            installation,
            name,
            namespace,
            mode,
            watched,
            now,
        ));
        // Kernel can be asked wherever the channel may use it; no token is fetched where it may not.
        let legacy =
            |environment: &&Environment| mode != WebhookMode::Legacy || environment.legacy_callback.is_some();
        found
            .filter(|environment| environment.allows(namespace))
            .filter(legacy)
    }

    /// Whether the roles look at this namespace, as far as is known here.
    pub(crate) fn watches(&self, installation: &Installation, namespace: &str) -> bool {
        if installation.watch_namespaces.is_empty() && self.release.is_none() {
            return true;
        }
        let scope = installation.scope(self.release.as_deref().unwrap_or_default());
        scope.is_none_or(|scope| scope.iter().any(|watched| watched == namespace))
    }

    /// The settings that hold: they are told even where the environment is not for this namespace, and not at all
    /// where its defaults are unknown.
    fn settings(&self, channel: &WhatsAppChannel, report: &mut Report) -> Effective {
        let environment = self
            .installation
            .as_ref()
            .and_then(|installation| installation.environments.get(&channel.spec.environment));
        let defaults = environment.map(|environment| &environment.channel_defaults);
        if let Some(defaults) = defaults {
            report.effective = settings(&channel.spec, defaults);
        }
        Effective::new(&channel.spec, &defaults.cloned().unwrap_or_default())
    }

    async fn secrets(
        &self,
        channel: &WhatsAppChannel,
        namespace: &str,
        key: Option<&(&KeyRef, Named<'_>)>,
    ) -> (Option<Secrets>, Step) {
        let reference = &channel.spec.kernel.credentials_secret_ref;
        let found = gather::secret(&self.client, namespace, &reference.name).await;
        let secret = match found {
            Ok(secret) => secret,
            Err(problem) => {
                let what = format!("Secret {:?}", reference.name);
                return (None, judge::unread(StepId::Secret, &what, &problem));
            }
        };
        let credentials = match cluster::credentials(secret.as_ref(), reference) {
            Ok(credentials) => credentials,
            Err(problem) => {
                let named = Named::client(reference);
                return (None, judge::secret_problem(namespace, &problem, &named));
            }
        };
        let issued = match key {
            None => None,
            Some((key, named)) => match self.issued(namespace, key).await {
                Ok(Ok(issued)) => Some(issued),
                Ok(Err(problem)) => return (None, judge::secret_problem(namespace, &problem, named)),
                Err(problem) => {
                    let what = format!("Secret {:?}", key.name);
                    return (None, judge::unread(StepId::Secret, &what, &problem));
                }
            },
        };
        let step = judge::secrets_usable(&secret.unwrap_or_default(), reference);
        (Some(Secrets { credentials, issued }), step)
    }

    async fn issued(
        &self,
        namespace: &str,
        reference: &KeyRef,
    ) -> Result<Result<ApiKey, SecretProblem>, ApiProblem> {
        let secret: Option<Secret> = gather::secret(&self.client, namespace, &reference.name).await?;
        Ok(cluster::issued_key(secret.as_ref(), reference))
    }

    async fn shared(&self, channel: &WhatsAppChannel, environment: &Environment, own: &Credentials) -> Step {
        let others: Vec<&WhatsAppChannel> = self
            .neighbours
            .channels
            .iter()
            .filter(|other| {
                other.uid() != channel.uid()
                    && other.spec.environment == channel.spec.environment
                    && other.metadata.deletion_timestamp.is_none()
                    && environment.allows(&other.namespace().unwrap_or_default())
                    // Two resources for one channel are a conflict, which has a step of its own.
                    && other.spec.channel_id != channel.spec.channel_id
            })
            .collect();
        let (clients, missed) = gather::clients_of(&self.client, &others).await;
        let mut roll = Roll::new(
            clients.iter().map(|(other, _)| *other).chain([channel]),
            self.installation.as_ref(),
        );
        for (other, credentials) in &clients {
            roll.uses_client(other, credentials);
        }
        roll.uses_client(channel, own);
        let compared = clients.len();
        let same: Vec<String> = clients
            .iter()
            .filter(|(_, credentials)| credentials.id.expose_secret() == own.id.expose_secret())
            .map(|(other, _)| format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any()))
            .collect();
        judge::shared_client(
            &same,
            roll.client_holder(channel).as_ref(),
            compared,
            missed,
            environment.registration.one_webhook_per_client,
        )
    }

    async fn ask_kernel(
        &self,
        channel: &WhatsAppChannel,
        environment: &Environment,
        effective: &Effective,
        secrets: &Secrets,
        report: &mut Report,
    ) {
        let registration = self.request(
            environment,
            effective,
            &secrets.credentials,
            &effective.registration_scopes,
        );
        let messaging = self.request(
            environment,
            effective,
            &secrets.credentials,
            &effective.messaging_scopes,
        );
        let auth = host(&environment.kernel.auth_url);
        let secret = &channel.spec.kernel.credentials_secret_ref.name;
        let mut blocked = false;
        for (id, request) in [
            (StepId::Token, &registration),
            (StepId::TokenMessaging, &messaging),
        ] {
            // What is wrong with the client or the way to the auth server need not be waited for twice.
            if blocked {
                report.steps.push(Step::skipped(id, StepId::Token));
                continue;
            }
            let began = Instant::now();
            let result = self
                .bounded(request, self.kernel.token(request))
                .await
                .map(|_| ());
            let asked = Asked {
                id,
                host: &auth,
                scopes: &request.scopes,
                secret,
            };
            blocked = !matches!(result, Ok(()) | Err(KernelError::ScopeNotGranted(_)));
            let step = judge::token(&asked, result.as_ref().err());
            report.steps.push(step.took(began.elapsed()));
        }
        if !report.passed(StepId::Token) {
            report.steps.push(Step::skipped(StepId::Webhook, StepId::Token));
            return;
        }
        report.steps.push(
            self.webhook(channel, environment, effective, secrets, &registration)
                .await,
        );
    }

    /// What is asked of the auth server for a channel's client.
    pub(crate) fn request(
        &self,
        environment: &Environment,
        effective: &Effective,
        credentials: &Credentials,
        scopes: &[String],
    ) -> TokenRequest {
        TokenRequest {
            url: environment.kernel.token_url(),
            credentials: credentials.clone(),
            scopes: scopes.to_vec(),
            purposes: effective.purposes.clone(),
            timeout: self.timeout.unwrap_or_else(|| environment.kernel.timeout()),
            turnstile: None,
        }
    }

    async fn webhook(
        &self,
        channel: &WhatsAppChannel,
        environment: &Environment,
        effective: &Effective,
        secrets: &Secrets,
        request: &TokenRequest,
    ) -> Step {
        let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
        let Ok(id) = channel.spec.channel_id.parse::<ChannelId>() else {
            return Step::fail(StepId::Webhook, "spec.channelId is no UUID", "correct it");
        };
        let subject = Subject {
            environment_name: &channel.spec.environment,
            environment,
            namespace: &namespace,
            channel: id,
            effective,
            issued: secrets.issued.as_ref(),
            keys: self.keys.as_ref(),
        };
        let url = environment.kernel.webhook_url(effective.api_version);
        let began = Instant::now();
        let held = self.bounded(request, self.kernel.webhook(request, &url)).await;
        let took = began.elapsed();
        let seen = held.map(|held| match held {
            ReadBack::Url(held) => Seen::Whose(subject.judge(held.expose_secret())),
            ReadBack::Empty => Seen::Empty,
            ReadBack::Unsupported => Seen::Unsupported,
        });
        let look = Look {
            host: &host(&environment.kernel.api_url),
            namespace: &namespace,
            name: &name,
            expected: &subject.expected(),
            mode: effective.mode,
            existing: effective.existing,
            generation: effective.key_generation,
            no_keys: &self.no_keys,
            idle: judge::idle(
                effective.suspend,
                environment,
                &channel.spec.environment,
                Timestamp::now(),
            ),
        };
        judge::webhook(&look, seen.as_ref()).took(took)
    }

    /// A call to Kernel, ended some time after each of its parts (a token, the call, both once more) should have.
    async fn bounded<T>(
        &self,
        request: &TokenRequest,
        call: impl Future<Output = Result<T, KernelError>>,
    ) -> Result<T, KernelError> {
        let answer = tokio::time::timeout(request.timeout * 4 + Duration::from_secs(2), call).await;
        answer.unwrap_or(Err(KernelError::TimedOut))
    }

    async fn events(&self, channel: &WhatsAppChannel, namespace: &str, now: Timestamp) -> Step {
        let uid = channel.uid().unwrap_or_default();
        let events = gather::events(&self.client, namespace, &uid).await.map(|events| {
            events
                .into_iter()
                .map(|event| Happened {
                    at: gather::last_seen(&event),
                    kind: event.type_.unwrap_or_default(),
                    reason: event.reason.unwrap_or_default(),
                    note: event.message.unwrap_or_default(),
                })
                .collect()
        });
        judge::events(events, now)
    }
}

/// A URL's host and port: what a person looks up and lets through a firewall.
fn host(url: &url::Url) -> String {
    let name = url.host_str().unwrap_or("?");
    url.port()
        .map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}
