//! What was seen in the cluster becomes a step. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::doctor::{
    gather::{ApiProblem, Neighbours},
    report::{Step, StepId},
};
use crate::{
    api::{Claim, CredentialsRef, KeyRef, WebhookMode, WhatsAppChannel, conditions::Reason},
    cluster::{self, SecretProblem},
    config::{ConfigError, Environment, Held as HeldPart, Installation},
    controller::roll::Roll,
    words,
};

/// How many names near a wrong one are shown.
const NEAR: usize = 3;

/// A call to the API server that failed.
pub(crate) fn unread(id: StepId, what: &str, problem: &ApiProblem) -> Step {
    match problem {
        ApiProblem::Forbidden(right) => Step::unknown(
            id,
            format!("{what} can't be read: you lack the right to {}", right.words()),
            format!("ask for that right; check it with: {}", right.check()),
        ),
        ApiProblem::Unauthenticated => Step::unknown(
            id,
            "the API server does not know who you are (401)",
            "log in anew; the credentials of the kubeconfig may have ended",
        ),
        ApiProblem::NotFound => Step::fail(id, format!("{what} is not there"), ""),
        ApiProblem::Unreachable => Step::unknown(
            id,
            format!("{what} can't be read: the API server does not answer"),
            "check the kubeconfig, VPN and proxy; try: kubectl version",
        ),
        ApiProblem::Refused(status) => Step::unknown(
            id,
            format!("{what} can't be read: the API server answers {status}"),
            "try again; see the API server's log if it stays",
        ),
    }
}

/// The API server.
pub(crate) fn cluster(version: Result<String, ApiProblem>) -> Step {
    match version {
        Ok(version) => Step::ok(StepId::Cluster, format!("the API server answers ({version})")),
        Err(problem) => unread(StepId::Cluster, "the API server's version", &problem),
    }
}

/// The resource's definition: a list that finds nothing at its path has none.
pub(crate) fn definition(list: &Result<Vec<WhatsAppChannel>, ApiProblem>) -> Step {
    match list {
        Ok(channels) => Step::ok(
            StepId::Definition,
            format!(
                "WhatsAppChannel is installed; {} in this namespace",
                channels.len()
            ),
        ),
        Err(ApiProblem::NotFound) => Step::fail(
            StepId::Definition,
            "the cluster does not know WhatsAppChannel: its definition is not installed",
            "aura-whatsapp-operator crd | kubectl apply --server-side -f -",
        ),
        // To read the one channel may still be allowed.
        Err(ApiProblem::Forbidden(right)) => Step::warn(
            StepId::Definition,
            format!(
                "you lack the right to {}: names near and conflicts can't be told",
                right.words()
            ),
            format!("ask for that right; check it with: {}", right.check()),
        ),
        Err(problem) => unread(StepId::Definition, "the list of channels", problem),
    }
}

/// The resource itself; `others` are the names beside it.
pub(in crate::doctor) fn resource(
    namespace: &str,
    name: &str,
    found: &Result<Option<WhatsAppChannel>, ApiProblem>,
    others: &[String],
) -> Step {
    let channel = match found {
        Ok(Some(channel)) => channel,
        Ok(None) => {
            let step = Step::fail(
                StepId::Resource,
                format!("there is no WhatsAppChannel {name:?} in namespace {namespace:?}"),
                "kubectl get wac -A",
            );
            let near = words::nearest(name, others.iter().map(String::as_str));
            return match near.get(..NEAR).unwrap_or(&near) {
                [] => step,
                near => {
                    let next = format!(
                        "did you mean {}? All of them: kubectl get wac -n {namespace}",
                        near.join(" or ")
                    );
                    step.next(next)
                }
            };
        }
        Err(problem) => return unread(StepId::Resource, "the channel", problem),
    };
    if channel.metadata.deletion_timestamp.is_some() {
        return Step::warn(
            StepId::Resource,
            "the channel is being deleted",
            "if it does not go away: kubectl describe wac and the controller's log say why",
        );
    }
    let number = channel.spec.phone_number.as_deref().unwrap_or("no number given");
    Step::ok(
        StepId::Resource,
        format!("channel {} ({number})", channel.spec.channel_id),
    )
}

/// A configuration that was read from there, or could not be used.
pub(in crate::doctor) fn configuration(
    place: &str,
    read: Result<Installation, ConfigError>,
) -> (Option<Installation>, Step) {
    match read {
        Ok(installation) => {
            let step = Step::ok(StepId::Configuration, format!("from {place}"));
            (Some(installation), step)
        }
        Err(error @ ConfigError::Read { .. }) => {
            let step = Step::unknown(
                StepId::Configuration,
                error.to_string(),
                "name a file that you can read, or leave --config out to use the release's ConfigMap",
            );
            (None, step)
        }
        Err(error) => {
            let step = Step::fail(
                StepId::Configuration,
                error.to_string(),
                format!("correct {place}: neither role takes it as it is"),
            );
            (None, step)
        }
    }
}

/// No ConfigMap, or more than one, could be the release's.
pub(in crate::doctor) fn no_single_config_map(found: &[String], release_namespace: Option<&str>) -> Step {
    let place = release_namespace.map_or_else(
        || "in any namespace".to_owned(),
        |namespace| format!("in namespace {namespace:?}"),
    );
    if found.is_empty() {
        Step::unknown(
            StepId::Configuration,
            format!(
                "no ConfigMap of a release is {place} (label app.kubernetes.io/name=aura-whatsapp-operator, key config.yaml)"
            ),
            "say where the release is with --release-namespace, name the ConfigMap with --config-map, or give --config FILE",
        )
    } else {
        Step::unknown(
            StepId::Configuration,
            format!("several releases are {place}: {}", found.join(", ")),
            "choose one with --release-namespace or --config-map",
        )
    }
}

/// The channel's environment.
pub(in crate::doctor) fn environment(
    installation: &Installation,
    name: &str,
    namespace: &str,
    mode: WebhookMode,
    watched: bool,
    now: Timestamp,
) -> Step {
    let id = StepId::Environment;
    let Some(environment) = installation.environments.get(name) else {
        let known: Vec<&str> = installation.environments.keys().map(String::as_str).collect();
        return Step::fail(
            id,
            format!(
                "the configuration has no environment {name:?}; it has {}",
                known.join(", ")
            ),
            "add it to the configuration; or, since a channel's environment can't be changed, delete the channel and \
             create it with another one",
        );
    };
    if !environment.allows(namespace) {
        return Step::fail(
            id,
            format!("environment {name:?} is not for namespace {namespace:?}"),
            format!(
                "add {namespace:?} to environments.{name}.namespaces of the configuration, or move the channel"
            ),
        );
    }
    if mode == WebhookMode::Legacy && environment.legacy_callback.is_none() {
        return Step::fail(
            id,
            format!("webhook.mode is Legacy, and environment {name:?} has no legacyCallback"),
            format!("set environments.{name}.legacyCallback, or another mode"),
        );
    }
    if !watched {
        return Step::fail(
            id,
            format!("namespace {namespace:?} is not watched: neither role sees its channels"),
            format!(
                "add {namespace:?} to watchNamespaces of the configuration (the chart's value of that name)"
            ),
        );
    }
    let held: Vec<&str> = [
        (HeldPart::Registration, "registration"),
        (HeldPart::Delivery, "delivery"),
    ]
    .into_iter()
    .filter(|(part, _)| environment.held(*part, now).is_some())
    .map(|(_, word)| word)
    .collect();
    match (&environment.hold, held.as_slice()) {
        (Some(hold), [_, ..]) => Step::warn(
            id,
            format!(
                "environment {name:?} is on hold ({}) until {}{}",
                held.join(" and "),
                hold.until,
                if hold.reason.is_empty() {
                    String::new()
                } else {
                    format!(": {}", hold.reason)
                }
            ),
            format!("wait, or end environments.{name}.hold in the configuration"),
        ),
        _ => Step::ok(
            id,
            format!("environment {name:?} is for this namespace, and not on hold"),
        ),
    }
}

/// Why the controller changes nothing about a channel at Kernel, and what ends that.
pub(in crate::doctor) fn idle(
    suspended: bool,
    environment: &Environment,
    name: &str,
    now: Timestamp,
) -> Option<String> {
    if suspended {
        return Some(
            "spec.suspend is true, so the controller leaves the webhook as it is: set it to false".to_owned(),
        );
    }
    let hold = environment.held(HeldPart::Registration, now)?;
    Some(format!(
        "the environment is on hold until {}, so the controller leaves the webhook as it is: wait, or end \
         environments.{name}.hold in the configuration",
        hold.until
    ))
}

/// Other resources that name the same channel, by the rule that both roles apply.
pub(in crate::doctor) fn conflicts(
    channel: &WhatsAppChannel,
    neighbours: &Neighbours,
    installation: Option<&Installation>,
) -> Step {
    let id = StepId::Conflicts;
    let seen = &neighbours.seen;
    let roll = Roll::new(neighbours.channels.iter().chain([channel]), installation);
    let rivals = roll.rivals(channel);
    let unseen = |step: Step| {
        if neighbours.unseen.is_empty() {
            step
        } else {
            step.detail(format!(
                "not seen for lack of rights: {}",
                neighbours.unseen.join(", ")
            ))
        }
    };
    let names = |claims: &[Claim]| {
        let names: Vec<String> = claims
            .iter()
            .map(|claim| format!("{}/{}", claim.namespace, claim.name))
            .collect();
        names.join(", ")
    };
    let holder = roll.holder(channel);
    unseen(match (rivals.as_slice(), holder) {
        ([], _) => Step::ok(id, format!("no other resource names this channel (seen: {seen})")),
        (_, Some(holder)) => Step::fail(
            id,
            format!(
                "{}/{} is older and holds this channelId",
                holder.namespace, holder.name
            ),
            format!(
                "delete one of the two; the oldest holds the channel. All that name it: {}",
                names(&rivals)
            ),
        ),
        (_, None) => Step::warn(
            id,
            format!(
                "this channel is held by this resource; named as well by {}",
                names(&rivals)
            ),
            "delete those: they never become Ready",
        ),
    })
}

/// What names a Secret, and under which keys its values are looked for.
pub(in crate::doctor) struct Named<'a> {
    /// The field, as a person finds it.
    pub field: String,
    pub keys: Vec<&'a str>,
}

impl<'a> Named<'a> {
    /// The Secret with a channel's Kernel client.
    pub fn client(reference: &'a CredentialsRef) -> Self {
        Self {
            field: "spec.kernel.credentialsSecretRef".to_owned(),
            keys: vec![reference.id_key(), reference.secret_key()],
        }
    }

    /// The Secret with a key issued elsewhere: in mode Legacy it is the environment that names it.
    pub fn issued(reference: &'a KeyRef, mode: WebhookMode, environment: &str) -> Self {
        Self {
            field: if mode == WebhookMode::Legacy {
                format!("environments.{environment}.legacyCallback.apiKeySecretRef of the configuration")
            } else {
                "spec.webhook.apiKeySecretRef".to_owned()
            },
            keys: vec![&reference.key],
        }
    }
}

/// A Secret that a channel names can't be used, by the rule that both roles apply.
pub(in crate::doctor) fn secret_problem(namespace: &str, problem: &SecretProblem, named: &Named<'_>) -> Step {
    let Named { field, keys } = named;
    let next = match problem {
        SecretProblem::NotFound(name) => {
            let files: Vec<String> = keys.iter().map(|key| format!("--from-file={key}")).collect();
            format!(
                "kubectl -n {namespace} create secret generic {name} {}, then label it; or correct {field}",
                files.join(" ")
            )
        }
        SecretProblem::NotAllowed { name } => format!(
            "kubectl -n {namespace} label secret {name} {}=true",
            crate::api::SECRET_LABEL
        ),
        SecretProblem::KeyMissing { name, key } => {
            format!("put the value under the key {key:?} of Secret {name:?}, or name its key in {field}")
        }
        SecretProblem::Invalid { name, key } => {
            format!("write the value under the key {key:?} of Secret {name:?} anew: one line of text")
        }
    };
    Step::fail(StepId::Secret, problem.to_string(), next)
}

/// Secrets that can be used; white space around their values is worth a word.
pub(in crate::doctor) fn secrets_usable(secret: &Secret, reference: &CredentialsRef) -> Step {
    let keys = [reference.id_key(), reference.secret_key()];
    let name = &reference.name;
    let padded: Vec<&str> = keys
        .into_iter()
        .filter(|key| cluster::is_spaced(secret, key))
        .collect();
    if padded.is_empty() {
        return Step::ok(
            StepId::Secret,
            format!(
                "Secret {name:?} is labelled and has values under {} and {}",
                keys[0], keys[1]
            ),
        );
    }
    Step::warn(
        StepId::Secret,
        format!(
            "Secret {name:?} has white space around its value under {}",
            padded.join(" and ")
        ),
        "it is left out when the value is used; write the value without it (printf, not echo) if others use it too",
    )
}

/// Other channels of the environment with the same Kernel client; `holder` is the older one that keeps this one from
/// it, by the rule that the controller applies.
pub(in crate::doctor) fn shared_client(
    same: &[String],
    holder: Option<&Claim>,
    compared: usize,
    missed: usize,
    one_per_client: bool,
) -> Step {
    let id = StepId::Client;
    let scope = if missed == 0 {
        format!("{compared} others compared")
    } else {
        format!("{compared} others compared, {missed} could not be")
    };
    let next = "Kernel holds one webhook per client: give each channel a client of its own, or set \
                registration.oneWebhookPerClient to false if Kernel does otherwise";
    if let Some(holder) = holder {
        return Step::fail(
            id,
            format!(
                "uses the same Kernel client as {}/{}, which is older and holds it ({}; {scope})",
                holder.namespace,
                holder.name,
                Reason::ClientShared
            ),
            next,
        );
    }
    match same {
        [] => Step::ok(
            id,
            format!("no other channel of the environment uses the same Kernel client ({scope})"),
        ),
        same if !one_per_client => Step::ok(
            id,
            format!(
                "shares its Kernel client with {}, which the configuration allows ({scope})",
                same.join(", ")
            ),
        ),
        same => Step::warn(
            id,
            format!(
                "this channel holds its Kernel client; used as well by {} ({scope})",
                same.join(", ")
            ),
            next,
        ),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::{
        api::WhatsAppChannelSpec,
        doctor::{gather::Right, report::Outcome},
    };

    fn channel(name: &str, created: i64) -> WhatsAppChannel {
        let mut channel = WhatsAppChannel::new(name, WhatsAppChannelSpec::example());
        channel.metadata.namespace = Some("aura-es".into());
        channel.metadata.uid = Some(format!("uid-of-{name}"));
        channel.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
        channel
    }

    #[test]
    fn the_oldest_holds_the_channel_and_others_say_so() {
        let (old, new) = (channel("old", 100), channel("new", 200));
        let neighbours = Neighbours {
            channels: vec![old.clone(), new.clone()],
            whole: false,
            seen: "namespace aura-es".into(),
            unseen: vec!["aura-br".into()],
        };
        let step = conflicts(&new, &neighbours, None);
        assert_eq!(step.outcome, Outcome::Fail);
        assert!(step.message.contains("aura-es/old is older"));
        assert!(step.details[0].contains("aura-br"));
        assert_eq!(conflicts(&old, &neighbours, None).outcome, Outcome::Warn);
        let mut gone = neighbours.clone();
        gone.channels[0].metadata.deletion_timestamp = Some(Time(Timestamp::from_second(300).unwrap()));
        assert_eq!(conflicts(&new, &gone, None).outcome, Outcome::Ok);
    }

    #[test]
    fn names_near_a_wrong_one_are_shown() {
        let names = ["shop-es", "shop-ec", "zzz"].map(ToOwned::to_owned);
        let next = |name| resource("aura-es", name, &Ok(None), &names).next.unwrap();
        assert!(next("shop-e").contains("did you mean shop-es or shop-ec?"));
        assert!(!next("qqqq").contains("did you mean"));
    }

    #[test]
    fn what_cannot_be_read_is_no_fault_of_the_channel() {
        let right = Right {
            verb: "get",
            resource: "secrets",
            namespace: Some("aura-es".into()),
        };
        for problem in [
            ApiProblem::Forbidden(right),
            ApiProblem::Unauthenticated,
            ApiProblem::Unreachable,
            ApiProblem::Refused(500),
        ] {
            let step = unread(StepId::Secret, "the Secret", &problem);
            assert_eq!(step.outcome, Outcome::Unknown, "{problem:?}");
            assert!(step.next.is_some());
        }
    }

    #[test]
    fn a_secret_that_is_missing_is_to_be_made_as_what_names_it_wants_it() {
        let client = CredentialsRef {
            name: "shop".into(),
            id_key: Some("client-id".into()),
            secret_key: None,
        };
        let key = KeyRef {
            name: "issued".into(),
            key: "api-key".into(),
        };
        let missing = |name: &str, named: &Named<'_>| {
            let problem = SecretProblem::NotFound(name.into());
            secret_problem("aura-es", &problem, named).next.unwrap()
        };
        assert_eq!(
            missing("shop", &Named::client(&client)),
            "kubectl -n aura-es create secret generic shop --from-file=client-id --from-file=secret, then label it; \
             or correct spec.kernel.credentialsSecretRef"
        );
        assert_eq!(
            missing("issued", &Named::issued(&key, WebhookMode::Manage, "es-pro")),
            "kubectl -n aura-es create secret generic issued --from-file=api-key, then label it; \
             or correct spec.webhook.apiKeySecretRef"
        );
        let legacy = Named::issued(&key, WebhookMode::Legacy, "es-pro");
        let next = missing("issued", &legacy);
        assert!(next.contains("--from-file=api-key"), "{next}");
        assert!(next.ends_with("environments.es-pro.legacyCallback.apiKeySecretRef of the configuration"));
        let problem = SecretProblem::KeyMissing {
            name: "issued".into(),
            key: "api-key".into(),
        };
        let next = secret_problem("aura-es", &problem, &legacy).next.unwrap();
        assert!(next.contains("environments.es-pro.legacyCallback"), "{next}");
    }

    #[test]
    fn a_shared_client_fails_the_younger_is_worth_a_word_to_the_older_and_is_fine_where_allowed() {
        let same = ["aura-es/other".to_owned()];
        let holder = Claim {
            created: 100,
            namespace: "aura-es".into(),
            name: "other".into(),
        };
        let younger = shared_client(&same, Some(&holder), 1, 0, true);
        assert_eq!(younger.outcome, Outcome::Fail);
        assert!(younger.message.contains("aura-es/other, which is older"));
        assert!(younger.message.contains("ClientShared"));
        assert!(younger.next.unwrap().contains("a client of its own"));
        assert_eq!(shared_client(&same, None, 1, 0, true).outcome, Outcome::Warn);
        assert_eq!(shared_client(&same, None, 1, 0, false).outcome, Outcome::Ok);
        let step = shared_client(&[], None, 3, 2, true);
        assert_eq!(step.outcome, Outcome::Ok);
        assert!(step.message.contains("3 others compared, 2 could not be"));
    }
}
