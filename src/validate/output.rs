//! A report for people, for programs, and for GitHub's annotations. Pure.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Channel, Problem, Report, Severity};
use crate::{
    api::{ChannelDefaults, settings, settings_yaml, yaml_scalar},
    config::Installation,
    words::{counted, printable},
};

/// How a report looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for each problem, and a last line that sums up
    Human,
    /// One JSON object
    Json,
    /// Workflow commands that GitHub shows beside the lines
    Github,
}

impl Report {
    /// The report as a text that ends in a line break. `effective` adds to JSON what holds for each channel; the other
    /// formats show that as YAML.
    pub fn render(&self, format: Format, effective: bool, installation: Option<&Installation>) -> String {
        match format {
            Format::Human => {
                let mut text = String::new();
                for problem in &self.problems {
                    let _ = writeln!(text, "{}", human(&problem.printable()));
                }
                let _ = writeln!(text, "{}", self.summary());
                text
            }
            Format::Json => format!("{:#}\n", self.json(effective, installation)),
            Format::Github => {
                let mut text = String::new();
                for problem in &self.problems {
                    let _ = writeln!(text, "{}", github(&problem.printable()));
                }
                let _ = writeln!(text, "{}", self.summary());
                text
            }
        }
    }

    fn summary(&self) -> String {
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let mut text = format!(
            "{}, {}, {}",
            counted(self.files, "file"),
            counted(self.channels.len(), "channel"),
            counted(self.problems.len(), "problem")
        );
        if warnings > 0 {
            let _ = write!(
                text,
                " ({}, {})",
                counted(errors, "error"),
                counted(warnings, "warning")
            );
        }
        if self.skipped > 0 {
            let _ = write!(text, "; {} skipped", counted(self.skipped, "other document"));
        }
        text
    }

    fn json(&self, effective: bool, installation: Option<&Installation>) -> Value {
        let channels: Vec<Value> = self
            .channels
            .iter()
            .map(|channel| {
                let mut seen = json!({
                    "file": channel.file, "line": channel.at.line,
                    "namespace": channel.namespace, "name": channel.name,
                });
                if let (true, Some(spec)) = (effective, &channel.spec) {
                    let environment = installation.and_then(|it| it.environments.get(&spec.environment));
                    let defaults = environment
                        .map(|it| it.channel_defaults.clone())
                        .unwrap_or_default();
                    seen["effective"] = json!(settings(spec, &defaults));
                }
                seen
            })
            .collect();
        json!({
            "files": self.files,
            "channels": channels,
            "skipped": self.skipped,
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "problems": self.problems,
        })
    }
}

/// `file:line:column: error: namespace/name: field: message`, as compilers do.
fn human(problem: &Problem) -> String {
    let mut text = String::new();
    if !problem.file.is_empty() {
        text.push_str(&problem.file);
        if problem.line > 0 {
            let _ = write!(text, ":{}:{}", problem.line, problem.column);
        }
        text.push_str(": ");
    }
    text.push_str(word(problem.severity));
    text.push_str(": ");
    text.push_str(&told(problem));
    text
}

fn told(problem: &Problem) -> String {
    [&problem.resource, &problem.field]
        .into_iter()
        .flatten()
        .chain([&problem.message])
        .cloned()
        .collect::<Vec<_>>()
        .join(": ")
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// A workflow command. Its escapes are those of GitHub's toolkit (`packages/core/src/command.ts`): a message may hold
/// no line break, a property neither that nor the characters that end it.
fn github(problem: &Problem) -> String {
    let message = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| message(text).replace(':', "%3A").replace(',', "%2C");
    let mut properties = Vec::new();
    if !problem.file.is_empty() {
        properties.push(format!("file={}", property(&problem.file)));
    }
    if problem.line > 0 {
        properties.push(format!("line={},col={}", problem.line, problem.column));
    }
    properties.push(format!("title={}", property(problem.code.as_str())));
    let text = message(&told(problem));
    format!("::{} {}::{text}", word(problem.severity), properties.join(","))
}

impl Channel {
    /// What holds for it as a YAML document that says where each value comes from; nothing for a spec that is none.
    /// `defaults` is `None` where the environment is not known.
    pub fn effective_yaml(&self, defaults: Option<&ChannelDefaults>) -> String {
        let Some(spec) = &self.spec else {
            return String::new();
        };
        let note = if defaults.is_none() {
            "# Without the channelDefaults of its environment: name the configuration with --config.\n"
        } else {
            ""
        };
        let settings = settings(spec, defaults.unwrap_or(&ChannelDefaults::default()));
        format!(
            "---\n# {}\n{note}metadata:\n  name: {}\n  namespace: {}\nspec:\n{}",
            printable(&self.place()),
            yaml_scalar(&json!(self.name)),
            yaml_scalar(&json!(self.namespace)),
            settings_yaml(&settings, 1)
        )
    }
}
