//! A channel against the installation's configuration, and the configuration's own problems. Pure.

use super::{Channel, Code, Problem};
use crate::{
    api::{Effective, WebhookMode},
    config::{ConfigError, Installation},
    words::{hint, listed},
};

/// What the configuration's error says, as problems.
pub fn config_problems(file: &str, error: &ConfigError) -> Vec<Problem> {
    match error {
        ConfigError::Read { source, .. } => {
            vec![Problem::of_file(Code::Unreadable, file, source.to_string())]
        }
        ConfigError::Parse { reason, .. } => {
            // The first line says it; the lines below quote the file.
            let line = reason.lines().next().unwrap_or("not YAML");
            vec![Problem::of_file(Code::Config, file, line)]
        }
        ConfigError::Invalid { problems, .. } => problems
            .iter()
            .map(|problem| {
                Problem::of_file(Code::Config, file, problem.message.as_str())
                    .field(&problem.field)
                    .at(problem.at)
            })
            .collect(),
    }
}

/// What the configuration says of a channel.
pub(super) fn check(channel: &Channel, installation: &Installation, problems: &mut Vec<Problem>) {
    let namespace = &channel.namespace;
    let watched = &installation.watch_namespaces;
    if !watched.is_empty() && !watched.iter().any(|name| name == namespace || name == "*") {
        let message = format!(
            "namespace {namespace} is not among the installation's watchNamespaces: nobody looks after the channel"
        );
        let problem = channel.problem(Code::NamespaceNotWatched, "metadata.namespace", message);
        problems.push(problem.warning());
    }
    let Some(spec) = &channel.spec else { return };
    let name = &spec.environment;
    let Some(environment) = installation.environments.get(name) else {
        let known: Vec<&str> = installation.environments.keys().map(String::as_str).collect();
        // Of one alone it is said that it is there.
        let hint = hint(name, known.iter().copied().filter(|_| known.len() > 1));
        let message = format!(
            "no such environment in the configuration: there is {}{hint}",
            listed(&known)
        );
        problems.push(channel.problem(Code::EnvironmentUnknown, "spec.environment", message));
        return;
    };
    if !environment.allows(namespace) {
        let message = format!(
            "environment {name} is not for namespace {namespace}: it is for {}",
            listed(&environment.namespaces)
        );
        problems.push(channel.problem(Code::EnvironmentNotAllowed, "spec.environment", message));
    }
    let effective = Effective::new(spec, &environment.channel_defaults);
    if effective.mode == WebhookMode::Legacy && environment.legacy_callback.is_none() {
        let message = format!("mode Legacy needs a legacyCallback, and environment {name} has none");
        problems.push(channel.problem(Code::LegacyCallbackMissing, "spec.webhook.mode", message));
    }
}
