//! Reads the cluster, asks Kernel, and has each channel judged. Thin: what a manifest changes stands in `overlay`, what
//! an answer means in the controller's preview.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, ResourceExt};

use super::{
    judge,
    limited::Limited,
    overlay::{self, Planned},
    report::{Line, Report},
};
use crate::{
    api::{ChannelId, Claim, Effective, WhatsAppChannel},
    cluster::{self, SecretProblem},
    config::{Environment, Installation, key_ref},
    controller::{
        preview::{Look, Next, SecretsSeen},
        roll::Roll,
        visit::Gates,
    },
    doctor::{ApiProblem, ConfigSource, Outcome, Step, Surroundings, gather, judge as steps},
    kernel::Credentials,
    validate::{self, Severity, Validator},
};

/// What to plan, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The kubeconfig; without it the surroundings say.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace; without it the kubeconfig's own.
    pub namespace: Option<String>,
    /// The whole cluster.
    pub all_namespaces: bool,
    /// The manifests to lay over the cluster.
    pub manifests: Option<Manifests>,
    /// Tell of channels that the manifests do not name.
    pub unmanaged: bool,
    /// Where the configuration is.
    pub config: ConfigSource,
    /// Where the release is.
    pub release_namespace: Option<String>,
    /// The Secret with the installation key, in the release's namespace, if it may be read.
    pub installation_key: Option<String>,
    /// Whether Kernel is asked.
    pub ask_kernel: bool,
    /// How many channels are looked at at once.
    pub concurrency: usize,
}

/// Texts with manifests.
#[derive(Clone, Debug, Default)]
pub struct Manifests(pub Vec<validate::Source>);

/// There is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The manifests are not valid; the report says where.
    #[error("the manifests are not valid")]
    Invalid(Box<validate::Report>),
    /// The configuration can't be used.
    #[error("{0}")]
    Configuration(String),
    /// Something that everything depends on could not be read.
    #[error("{0}")]
    NotJudged(String),
}

/// A channel's Secrets: its credentials and what else they gave; or why they can't be used; or why they can't be read.
type SecretsRead = Result<Result<(Credentials, SecretsSeen), SecretProblem>, String>;

/// Plans. `progress` hears how many channels of how many are judged. Changes nothing.
///
/// # Errors
/// See [`PlanError`].
pub async fn run(
    request: &Request,
    mut progress: impl FnMut(usize, usize),
) -> Result<(Report, Option<validate::Report>), PlanError> {
    let client = cluster::client(request.kubeconfig.as_deref()).await;
    let own = client
        .as_ref()
        .ok()
        .map(|client| client.default_namespace().to_owned());
    let own = request
        .namespace
        .clone()
        .or(own)
        .unwrap_or_else(|| "default".to_owned());
    // What the files say is told also where there is no cluster.
    let manifests = request
        .manifests
        .as_ref()
        .map(|manifests| judged(manifests, &own))
        .transpose()?;
    let client = client.map_err(|error| PlanError::NotJudged(error.to_string()))?;
    passed(&steps::cluster(gather::version(&client).await))?;

    let mut scope = vec![own.clone()];
    if let Some(manifests) = &manifests {
        let named = manifests.report.channels.iter();
        scope = named.map(|channel| channel.namespace.clone()).collect();
        scope.extend(request.namespace.clone());
        scope.sort();
        scope.dedup();
    }
    let mut around = vec![own.clone()];
    around.extend(scope.iter().filter(|namespace| **namespace != own).cloned());
    let (surroundings, step) = Surroundings::read(
        client.clone(),
        &request.config,
        request.release_namespace.as_deref(),
        request.installation_key.as_deref(),
        &around,
        None,
    )
    .await
    .map_err(|_| PlanError::NotJudged("TLS can't be set up on this machine".to_owned()))?;
    readable(&client, &surroundings, request.all_namespaces, &scope).await?;
    passed(&step)?;
    let Some(installation) = surroundings.installation.clone() else {
        return Err(PlanError::NotJudged(said(&step)));
    };

    let now = Timestamp::now();
    let known = &surroundings.neighbours.channels;
    let in_scope = |channel: &&WhatsAppChannel| {
        request.all_namespaces || scope.contains(&channel.namespace().unwrap_or_default())
    };
    let mut planned: Vec<Planned> = match &manifests {
        Some(manifests) => manifests.planned(known, now),
        None => {
            let there = known.iter().filter(in_scope);
            there.cloned().map(Planned::unchanged).collect()
        }
    };
    planned.sort_by_key(|planned| title(&planned.channel));
    let named: BTreeSet<_> = planned.iter().map(|planned| title(&planned.channel)).collect();
    let rest: Vec<&WhatsAppChannel> = known
        .iter()
        .filter(|channel| !named.contains(&title(channel)))
        .collect();

    // Every channel as it would be. One that can't be changed so stays what it is.
    let would_be: Vec<&WhatsAppChannel> = planned
        .iter()
        .map(|planned| {
            let refused = !planned.immutable().is_empty();
            let stays = known
                .iter()
                .find(|known| refused && title(known) == title(&planned.channel));
            stays.unwrap_or(&planned.channel)
        })
        .chain(rest.iter().copied())
        .collect();
    let mut roll = Roll::new(would_be, Some(&installation));
    let files = manifests.as_ref();
    let plan = Plan {
        surroundings: &surroundings,
        installation: &installation,
        files,
        gates: Gates::new(&installation),
        limited: Limited::default(),
        ask_kernel: request.ask_kernel,
        now,
    };
    let secrets: Vec<Option<SecretsRead>> = stream::iter(&planned)
        .map(|planned| plan.secrets(&planned.channel))
        .buffered(request.concurrency)
        .collect()
        .await;
    for (planned, secrets) in planned.iter().zip(&secrets) {
        if let Some(Ok(Ok((credentials, _)))) = secrets {
            roll.uses_client(&planned.channel, credentials);
        }
    }
    let missed = plan.clients_of_the_rest(&planned, &rest, &mut roll).await;

    let total = planned.len();
    progress(0, total);
    let work: Vec<_> = planned.iter().zip(secrets).enumerate().collect();
    let mut judged = stream::iter(work)
        .map(|(index, (planned, secrets))| {
            let (plan, roll) = (&plan, &roll);
            async move { (index, plan.line(planned, secrets, roll).await) }
        })
        .buffer_unordered(request.concurrency);
    let mut lines = BTreeMap::new();
    while let Some((index, line)) = judged.next().await {
        lines.insert(index, line);
        progress(lines.len(), total);
    }
    drop(judged);
    let mut lines: Vec<Line> = lines.into_values().collect();
    let mut notes = plan.limited.notes();
    if lines.iter().any(|line| line.key_not_compared) {
        notes.push(format!("key not compared: {}", surroundings.no_keys));
    }
    if missed > 0 {
        notes.push(format!(
            "the Kernel clients of {missed} other channels could not be compared"
        ));
    }
    if !surroundings.neighbours.unseen.is_empty() {
        notes.push(format!(
            "not seen for lack of rights, so that conflicts can't be told: {}",
            surroundings.neighbours.unseen.join(", ")
        ));
    }
    if files.is_some() && request.unmanaged {
        let rest = rest.into_iter().filter(in_scope).cloned();
        lines.extend(rest.map(|channel| judge::unmanaged(&Planned::unchanged(channel))));
    }
    Ok((
        Report { lines, notes },
        manifests.map(|manifests| manifests.report),
    ))
}

fn title(channel: &WhatsAppChannel) -> (String, String) {
    (channel.namespace().unwrap_or_default(), channel.name_any())
}

/// Manifests that are valid.
struct Judged {
    report: validate::Report,
    secrets: BTreeMap<(String, String), Secret>,
}

fn judged(manifests: &Manifests, namespace: &str) -> Result<Judged, PlanError> {
    let validator = Validator::new().map_err(|error| PlanError::NotJudged(error.to_string()))?;
    let options = validate::Options {
        namespace,
        ..validate::Options::default()
    };
    let report = validator.judge(&manifests.0, options);
    if report.count(Severity::Error) > 0 {
        return Err(PlanError::Invalid(Box::new(report)));
    }
    let objects = manifests
        .0
        .iter()
        .flat_map(|source| validate::objects(&source.text));
    Ok(Judged {
        report,
        secrets: overlay::secrets(objects.collect(), namespace),
    })
}

impl Judged {
    fn planned(&self, known: &[WhatsAppChannel], now: Timestamp) -> Vec<Planned> {
        let known: BTreeMap<_, _> = known.iter().map(|channel| (title(channel), channel)).collect();
        let channels = self.report.channels.iter();
        channels
            .filter_map(|channel| {
                let (namespace, name) = (channel.namespace.clone(), channel.name.clone());
                let there = known.get(&(namespace, name)).copied();
                let spec = channel.spec.as_ref()?;
                Some(Planned::new(&channel.namespace, &channel.name, spec, there, now))
            })
            .collect()
    }
}

/// What a step says, with what to do next.
fn said(step: &Step) -> String {
    let next = step
        .next
        .as_ref()
        .map_or_else(String::new, |next| format!(" ({next})"));
    format!("{}{next}", step.message)
}

fn passed(step: &Step) -> Result<(), PlanError> {
    match step.outcome {
        Outcome::Ok | Outcome::Warn => Ok(()),
        Outcome::Fail => Err(PlanError::Configuration(said(step))),
        Outcome::Unknown | Outcome::Skipped => Err(PlanError::NotJudged(said(step))),
    }
}

/// The channels that are to be planned must have been seen.
async fn readable(
    client: &Client,
    surroundings: &Surroundings,
    all: bool,
    scope: &[String],
) -> Result<(), PlanError> {
    if surroundings.neighbours.whole {
        return Ok(());
    }
    let unseen = surroundings
        .neighbours
        .unseen
        .iter()
        .find(|it| scope.contains(it));
    // Asked once more for what is wrong.
    let list = match (all, unseen) {
        (true, _) => gather::channels(client, None).await,
        (false, Some(namespace)) => gather::channels(client, Some(namespace)).await,
        (false, None) => return Ok(()),
    };
    match list {
        Ok(_) => Ok(()),
        Err(ApiProblem::NotFound) => Err(PlanError::NotJudged(said(&steps::definition(&list)))),
        Err(problem) => {
            let step = steps::unread(
                crate::doctor::StepId::Definition,
                "the list of channels",
                &problem,
            );
            Err(PlanError::NotJudged(said(&step)))
        }
    }
}

struct Plan<'a> {
    surroundings: &'a Surroundings,
    installation: &'a Installation,
    files: Option<&'a Judged>,
    gates: Gates,
    limited: Limited,
    ask_kernel: bool,
    now: Timestamp,
}

impl Plan<'_> {
    fn environment(&self, channel: &WhatsAppChannel) -> Option<&Environment> {
        self.installation.environments.get(&channel.spec.environment)
    }

    fn effective(&self, channel: &WhatsAppChannel) -> Effective {
        let defaults = self
            .environment(channel)
            .map(|environment| environment.channel_defaults.clone());
        Effective::new(&channel.spec, &defaults.unwrap_or_default())
    }

    /// Reads a channel's Secrets, the ones among the files before the cluster's; `None` where they are not looked at.
    async fn secrets(&self, channel: &WhatsAppChannel) -> Option<SecretsRead> {
        let environment = self.environment(channel)?;
        let namespace = channel.namespace()?;
        if !environment.allows(&namespace) {
            return None;
        }
        Some(self.read(channel, environment, &namespace).await)
    }

    async fn read(
        &self,
        channel: &WhatsAppChannel,
        environment: &Environment,
        namespace: &str,
    ) -> SecretsRead {
        let reference = &channel.spec.kernel.credentials_secret_ref;
        let (secret, version) = self.secret(namespace, &reference.name).await?;
        let credentials = match cluster::credentials(secret.as_ref(), reference) {
            Ok(credentials) => credentials,
            Err(problem) => return Ok(Err(problem)),
        };
        let mut seen = SecretsSeen {
            version,
            ..SecretsSeen::default()
        };
        let mode = self.effective(channel).mode;
        if let Some(reference) = key_ref(Some(environment), &channel.spec, mode) {
            let (secret, version) = self.secret(namespace, &reference.name).await?;
            match cluster::issued_key(secret.as_ref(), reference) {
                Ok(key) => (seen.issued, seen.key_version) = (Some(key), version),
                Err(problem) => return Ok(Err(problem)),
            }
        }
        Ok(Ok((credentials, seen)))
    }

    /// A Secret as it would be, and its version if that stays.
    async fn secret(&self, namespace: &str, name: &str) -> Result<(Option<Secret>, Option<String>), String> {
        let key = (namespace.to_owned(), name.to_owned());
        let file = self.files.and_then(|files| files.secrets.get(&key));
        let there = gather::secret(&self.surroundings.client, namespace, name).await;
        if let Some(file) = file {
            let same = |there: &&Secret| there.data == file.data && there.labels() == file.labels();
            let there = there.ok().flatten();
            let version = there
                .as_ref()
                .filter(same)
                .and_then(ResourceExt::resource_version);
            return Ok((Some(file.clone()), version));
        }
        match there {
            Ok(None)
                if self
                    .files
                    .is_some_and(|files| files.report.secrets.contains(&key)) =>
            {
                Err(format!(
                    "Secret {name:?} will be made by what is among the files, and is not there yet"
                ))
            }
            Ok(there) => {
                let version = there.as_ref().and_then(ResourceExt::resource_version);
                Ok((there, version))
            }
            Err(problem) => {
                let what = format!("Secret {name:?}");
                Err(said(&steps::unread(
                    crate::doctor::StepId::Secret,
                    &what,
                    &problem,
                )))
            }
        }
    }

    /// Has the roll know the Kernel clients of channels that are not planned, as far as their Secrets can be read.
    /// Answers how many could not be.
    async fn clients_of_the_rest(
        &self,
        planned: &[Planned],
        rest: &[&WhatsAppChannel],
        roll: &mut Roll<'_>,
    ) -> usize {
        let environments: BTreeSet<&str> = planned
            .iter()
            .map(|planned| planned.channel.spec.environment.as_str())
            .collect();
        let concerned: Vec<&WhatsAppChannel> = rest
            .iter()
            .copied()
            .filter(|other| {
                environments.contains(other.spec.environment.as_str())
                    && other.metadata.deletion_timestamp.is_none()
                    && self.environment(other).is_some_and(|environment| {
                        environment.registration.one_webhook_per_client
                            && environment.allows(&other.namespace().unwrap_or_default())
                    })
            })
            .collect();
        let (clients, missed) = gather::clients_of(&self.surroundings.client, &concerned).await;
        for (channel, credentials) in &clients {
            roll.uses_client(channel, credentials);
        }
        missed
    }

    async fn line(&self, planned: &Planned, secrets: Option<SecretsRead>, roll: &Roll<'_>) -> Line {
        let channel = &planned.channel;
        if let Some(line) = judge::immutable(planned) {
            return line;
        }
        let namespace = channel.namespace().unwrap_or_default();
        if !self.surroundings.watches(self.installation, &namespace) {
            return judge::not_watched(planned);
        }
        let Ok(id) = channel.spec.channel_id.parse::<ChannelId>() else {
            return judge::unknown(planned, "spec.channelId is no UUID");
        };
        let told = |claim: Claim| format!("{}/{}", claim.namespace, claim.name);
        let effective = self.effective(channel);
        let (unread, credentials, secrets) = match secrets {
            None => (None, None, None),
            Some(Err(why)) => (Some(why), None, None),
            Some(Ok(Err(problem))) => (None, None, Some(Err(problem))),
            Some(Ok(Ok((credentials, seen)))) => (None, Some(credentials), Some(Ok(seen))),
        };
        let mut look = Look {
            channel,
            id,
            environment: self.environment(channel),
            effective: &effective,
            now: self.now,
            keys: self.surroundings.keys.as_ref(),
            holder: roll.holder(channel).map(told),
            client_holder: roll.client_holder(channel).map(told),
            secrets,
            other_client: planned.other_client(),
            token: None,
            held: None,
        };
        // At most: the Secrets, the token, the webhook, the end.
        for _ in 0..4 {
            match look.next() {
                Next::Ends(preview) => return judge::forecast(planned, effective.mode, preview, true),
                Next::Secrets => return judge::unknown(planned, unread.unwrap_or_default()),
                Next::Token if !self.ask_kernel => {
                    let preview = look.without_kernel();
                    return judge::forecast(planned, effective.mode, preview, false);
                }
                Next::Token | Next::Webhook => {
                    let (Some(environment), Some(credentials)) = (look.environment, &credentials) else {
                        break;
                    };
                    self.ask(&mut look, environment, credentials, roll).await;
                }
            }
        }
        judge::unknown(planned, "the controller's next step is not known")
    }

    /// Asks Kernel the next question.
    async fn ask(
        &self,
        look: &mut Look<'_>,
        environment: &Environment,
        credentials: &Credentials,
        roll: &Roll<'_>,
    ) {
        let (surroundings, channel) = (self.surroundings, look.channel);
        let (namespace, name) = title(channel);
        let name_of_environment = &channel.spec.environment;
        let scopes = &look.effective.registration_scopes;
        let mut request = surroundings.request(environment, look.effective, credentials, scopes);
        let population = roll.population(name_of_environment);
        let way = self
            .gates
            .visit(name_of_environment, &namespace, &name, population);
        request.turnstile = way.map(|way| self.limited.turnstile(name_of_environment, way));
        let error = if look.token.is_none() {
            let token = surroundings.kernel.token(&request).await.map(|_| ());
            look.token.insert(token).as_ref().err()
        } else {
            let url = environment.kernel.webhook_url(look.effective.api_version);
            let held = surroundings.kernel.webhook(&request, &url).await;
            look.held.insert(held).as_ref().err()
        };
        if let Some(error) = error {
            self.limited.answered(name_of_environment, error);
        }
    }
}
