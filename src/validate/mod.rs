//! Judges manifests without a cluster: what the API server would say of each, what the controller would say of all
//! together, and what the installation's configuration says of them.
//!
//! Pure: texts come in, a [`Report`] goes out. It reads no file, and no value of a Secret stands in what it says.

mod across;
mod installation;
mod manifest;
mod metadata;
mod output;
mod rules;
mod schema;

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

pub(crate) use self::manifest::objects;
pub use self::{installation::config_problems, manifest::Channel, output::Format, schema::DefinitionError};
use self::{manifest::Found, schema::Definition};
use crate::{config::Installation, words, yaml::Position};

/// A text to judge. Its `Debug` shows nothing of it: it may hold a Secret.
#[derive(Clone)]
pub struct Source {
    /// What problems call it: the file's path, or `<stdin>`.
    pub name: String,
    /// The text.
    pub text: String,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The API server would refuse it, or the channel would not become Ready.
    Error,
    /// It is taken, but it is hardly meant.
    Warning,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $text:literal),* $(,)?) => {
        /// What kind of problem it is, for machines. The texts are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $code),* }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$code => $text),* }
            }
        }
    };
}

codes! {
    /// The file can't be read.
    Unreadable = "unreadable",
    /// Not YAML or JSON.
    Syntax = "syntax",
    /// One key twice in one mapping.
    DuplicateKey = "duplicate-key",
    /// Not the apiVersion or kind of a channel, though it is meant as one.
    ApiVersion = "api-version",
    /// Name, namespace, labels or annotations.
    Metadata = "metadata",
    /// A field that does not exist.
    UnknownField = "unknown-field",
    /// A required field is missing.
    Required = "required",
    /// A value of the wrong type.
    Type = "type",
    /// Not one of the words that the field takes.
    Enum = "enum",
    /// A number out of its range.
    Range = "range",
    /// A text or list longer than it may be.
    TooLong = "too-long",
    /// A text shorter than it must be.
    TooShort = "too-short",
    /// A rule (CEL) of the resource's definition.
    Rule = "rule",
    /// The manifest holds a status.
    Status = "status",
    /// Several resources name one channelId.
    DuplicateChannelId = "duplicate-channel-id",
    /// Several resources have one name in one namespace.
    DuplicateResource = "duplicate-resource",
    /// A Secret without the label that lets a channel use it.
    SecretNotLabelled = "secret-not-labelled",
    /// A Secret without the key that a channel names.
    SecretKeyMissing = "secret-key-missing",
    /// A Secret that the API server would refuse.
    SecretInvalid = "secret-invalid",
    /// No such Secret among the files, and `--require-secrets`.
    SecretNotFound = "secret-not-found",
    /// Two channels of one environment name one Secret.
    SecretShared = "secret-shared",
    /// The installation's configuration.
    Config = "config",
    /// The environment is not in the configuration.
    EnvironmentUnknown = "environment-unknown",
    /// The environment is not for this namespace.
    EnvironmentNotAllowed = "environment-not-allowed",
    /// Mode Legacy, and the environment has no legacyCallback.
    LegacyCallbackMissing = "legacy-callback-missing",
    /// A namespace that the installation does not watch.
    NamespaceNotWatched = "namespace-not-watched",
    /// No channel in any of the files.
    NoChannels = "no-channels",
}

/// One problem, where it is, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is.
    pub code: Code,
    /// The file.
    pub file: String,
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// The column, from 1; 0 as above.
    pub column: usize,
    /// The resource, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The field, such as `spec.webhook.mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong. One line.
    pub message: String,
}

impl Problem {
    /// A problem of a file as a whole.
    pub fn of_file(code: Code, file: &str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            file: file.to_owned(),
            line: 0,
            column: 0,
            resource: None,
            field: None,
            message: message.into(),
        }
    }

    fn at(mut self, at: Position) -> Self {
        (self.line, self.column) = (at.line, at.column);
        self
    }

    fn of(mut self, resource: impl fmt::Display) -> Self {
        self.resource = Some(resource.to_string());
        self
    }

    fn field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Without characters that would move a terminal's cursor or start a line: names come from files.
    fn printable(&self) -> Self {
        let mut printable = self.clone();
        for text in [&mut printable.file, &mut printable.message]
            .into_iter()
            .chain(&mut printable.resource)
            .chain(&mut printable.field)
        {
            *text = words::printable(text);
        }
        printable
    }
}

/// What is known beside the files.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// The namespace of manifests that name none.
    pub namespace: &'a str,
    /// The installation's configuration.
    pub installation: Option<&'a Installation>,
    /// Whether each Secret that a channel names must be among the files.
    pub require_secrets: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// How many texts were judged.
    pub files: usize,
    /// Every channel, in the order of the files.
    pub channels: Vec<Channel>,
    /// Every Secret, and what will make one: namespace and name.
    pub secrets: BTreeSet<(String, String)>,
    /// How many documents were no channels: Secrets and whatever else.
    pub skipped: usize,
    /// Every problem, by file and place.
    pub problems: Vec<Problem>,
}

impl Report {
    /// How many problems are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    }

    /// Adds problems that were found elsewhere, before all others.
    pub fn add(&mut self, problems: Vec<Problem>) {
        self.problems.splice(0..0, problems);
    }
}

/// Judges by this release's definition of the resource.
pub struct Validator {
    definition: Definition,
}

impl Validator {
    /// # Errors
    /// When the definition holds what can't be judged here: a defect of this program.
    pub fn new() -> Result<Self, DefinitionError> {
        Ok(Self {
            definition: Definition::new()?,
        })
    }

    /// Judges each document of each text, and all of them together.
    pub fn judge(&self, sources: &[Source], options: Options<'_>) -> Report {
        let mut found = Found::default();
        for source in sources {
            manifest::read(source, &self.definition, options.namespace, &mut found);
        }
        let mut problems = std::mem::take(&mut found.problems);
        across::check(&found, options, &mut problems);
        if let Some(installation) = options.installation {
            for channel in &found.channels {
                installation::check(channel, installation, &mut problems);
            }
        }
        let order = |file: &str| sources.iter().position(|source| source.name == file);
        problems.sort_by_cached_key(|problem| (order(&problem.file), problem.line, problem.column));
        Report {
            files: sources.len(),
            problems,
            channels: found.channels,
            secrets: found
                .secrets
                .into_iter()
                .map(|secret| (secret.namespace, secret.name))
                .collect(),
            skipped: found.skipped,
        }
    }
}

#[cfg(test)]
mod tests;
