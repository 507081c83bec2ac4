//! What only several documents together show: two channels with one id or name, and the Secrets they use. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Channel, Code, Options, Problem,
    manifest::{Found, SecretSeen},
};
use crate::{
    api::{SECRET_LABEL, WhatsAppChannelSpec},
    words::hint,
};

/// Looks at all documents together.
pub(super) fn check(found: &Found, options: Options<'_>, problems: &mut Vec<Problem>) {
    names(&found.channels, problems);
    ids(&found.channels, problems);
    shared(&found.channels, options, problems);
    secrets(found, options, problems);
    if found.channels.is_empty() && problems.is_empty() {
        let problem = Problem::of_file(Code::NoChannels, "", "no WhatsAppChannel in any of the files");
        problems.push(problem.warning());
    }
}

fn names(channels: &[Channel], problems: &mut Vec<Problem>) {
    let mut first: BTreeMap<(&str, &str), &Channel> = BTreeMap::new();
    for channel in channels.iter().filter(|channel| !channel.name.is_empty()) {
        let title = (channel.namespace.as_str(), channel.name.as_str());
        match first.get(&title) {
            None => drop(first.insert(title, channel)),
            Some(other) => {
                let message = format!(
                    "the resource also stands in {}: one overwrites the other",
                    other.place()
                );
                problems.push(channel.problem(Code::DuplicateResource, "metadata.name", message));
            }
        }
    }
}

fn ids(channels: &[Channel], problems: &mut Vec<Problem>) {
    let mut first: BTreeMap<&str, &Channel> = BTreeMap::new();
    for channel in channels {
        let Some(spec) = &channel.spec else { continue };
        match first.get(spec.channel_id.as_str()) {
            None => drop(first.insert(&spec.channel_id, channel)),
            // The same resource twice is told of as such.
            Some(other) if other.title() == channel.title() => {}
            Some(other) => {
                let message = format!(
                    "{} ({}) names the same channelId: the older resource will hold it, the other says ChannelConflict",
                    other.title(),
                    other.place()
                );
                problems.push(channel.problem(Code::DuplicateChannelId, "spec.channelId", message));
            }
        }
    }
}

/// Two channels with one Kernel client: Kernel's setting names no number, so it holds one webhook per client.
fn shared(channels: &[Channel], options: Options<'_>, problems: &mut Vec<Problem>) {
    let mut first: BTreeMap<_, &Channel> = BTreeMap::new();
    for channel in channels {
        let Some(spec) = &channel.spec else { continue };
        let environment = options
            .installation
            .and_then(|installation| installation.environments.get(&spec.environment));
        if environment.is_some_and(|environment| !environment.registration.one_webhook_per_client) {
            continue;
        }
        let client = &spec.kernel.credentials_secret_ref;
        let key = (
            &channel.namespace,
            &client.name,
            client.id_key(),
            &spec.environment,
        );
        match first.get(&key) {
            None => drop(first.insert(key, channel)),
            Some(other) if other.title() == channel.title() => {}
            Some(other) => {
                let message = format!(
                    "{} ({}) uses the same Secret in {}: the two share one Kernel client, which has one webhook",
                    other.title(),
                    other.place(),
                    spec.environment
                );
                let field = "spec.kernel.credentialsSecretRef.name";
                problems.push(channel.problem(Code::SecretShared, field, message).warning());
            }
        }
    }
}

/// A Secret that a spec names: the field of its name, the name, and each key with its field.
struct Reference<'a> {
    field: &'static str,
    name: &'a str,
    keys: Vec<(&'static str, &'a str)>,
}

fn references(spec: &WhatsAppChannelSpec) -> Vec<Reference<'_>> {
    let client = &spec.kernel.credentials_secret_ref;
    let issued = spec
        .webhook
        .as_ref()
        .and_then(|it| it.api_key_secret_ref.as_ref());
    let mut references = vec![Reference {
        field: "spec.kernel.credentialsSecretRef.name",
        name: &client.name,
        keys: vec![
            ("spec.kernel.credentialsSecretRef.idKey", client.id_key()),
            ("spec.kernel.credentialsSecretRef.secretKey", client.secret_key()),
        ],
    }];
    references.extend(issued.map(|reference| Reference {
        field: "spec.webhook.apiKeySecretRef.name",
        name: &reference.name,
        keys: vec![("spec.webhook.apiKeySecretRef.key", reference.key.as_str())],
    }));
    references
}

fn secrets(found: &Found, options: Options<'_>, problems: &mut Vec<Problem>) {
    let mut known: BTreeMap<(&str, &str), &SecretSeen> = BTreeMap::new();
    for secret in &found.secrets {
        known.insert((&secret.namespace, &secret.name), secret);
    }
    let mut unlabelled = BTreeSet::new();
    for channel in &found.channels {
        let Some(spec) = &channel.spec else { continue };
        for reference in references(spec) {
            let title = (channel.namespace.as_str(), reference.name);
            let Some(secret) = known.get(&title) else {
                if options.require_secrets {
                    let message = missing(channel, reference.name, &found.secrets);
                    problems.push(channel.problem(Code::SecretNotFound, reference.field, message));
                }
                continue;
            };
            if !secret.labelled && unlabelled.insert(title) {
                problems.push(not_labelled(secret, channel));
            }
            let Some(keys) = &secret.keys else { continue };
            for (field, key) in reference.keys {
                if keys.get(key) != Some(&true) {
                    let message = format!(
                        "Secret \"{}\" ({}:{}) has no value under the key \"{key}\"",
                        secret.name, secret.file, secret.at.line
                    );
                    problems.push(channel.problem(Code::SecretKeyMissing, field, message));
                }
            }
        }
    }
}

fn missing(channel: &Channel, name: &str, secrets: &[SecretSeen]) -> String {
    let here = secrets
        .iter()
        .filter(|secret| secret.namespace == channel.namespace);
    let hint = hint(name, here.map(|secret| secret.name.as_str()));
    format!(
        "no Secret \"{name}\" for namespace {} in the files{hint}",
        channel.namespace
    )
}

fn not_labelled(secret: &SecretSeen, channel: &Channel) -> Problem {
    let message = format!(
        "Secret \"{}\", used by {}, lacks the label without which no channel may use it: add \
         {SECRET_LABEL}: \"true\" to its {}",
        secret.name,
        channel.title(),
        secret.label_place
    );
    Problem::of_file(Code::SecretNotLabelled, &secret.file, message)
        .at(secret.at)
        .of(format!("{}/{}", secret.namespace, secret.name))
        .field(secret.label_place)
}
