//! A report: its steps, how it is printed, and the exit code that it means. Pure.

use std::{fmt::Write as _, time::Duration};

use serde::{Serialize, Serializer};

use crate::{
    api::{Setting, settings_yaml},
    words::printable,
};

/// How a step came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works; somebody should know this.
    Warn,
    /// This is what is wrong.
    Fail,
    /// It could not be judged: a right is missing, or somebody does not answer who says nothing about the channel.
    Unknown,
    /// It was not looked at, because an earlier step is not ok.
    Skipped,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Which step: its text is stable, for programs that read the report.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum StepId { $($(#[$doc])* $name),* }

        impl StepId {
            /// Every step, in the order in which they are made.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The step's id.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

steps! {
    /// The API server answers.
    Cluster = "cluster",
    /// The resource's definition is installed.
    Definition = "definition",
    /// The channel is there and may be read.
    Resource = "resource",
    /// The installation's configuration is there and can be used.
    Configuration = "configuration",
    /// The channel's environment is configured, is for its namespace and is not on hold.
    Environment = "environment",
    /// No other resource holds the channel.
    Conflicts = "conflicts",
    /// The channel's Secrets are there, labelled, and hold what they should.
    Secret = "secret",
    /// No other channel of the environment uses the same Kernel client.
    Client = "client",
    /// Kernel's auth server grants what the controller asks for.
    Token = "token",
    /// Kernel's auth server grants what the bridge asks for.
    TokenMessaging = "token-messaging",
    /// Kernel holds our webhook.
    Webhook = "webhook",
    /// What the controller said last.
    Controller = "controller",
    /// What happened to the resource of late.
    Events = "events",
}

impl Serialize for StepId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Which.
    pub id: StepId,
    /// How it came out.
    pub outcome: Outcome,
    /// What was seen; one line.
    pub message: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// More lines of what was seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// How long the call over the network took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

impl Step {
    fn new(id: StepId, outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            id,
            outcome,
            message: message.into(),
            next: None,
            details: Vec::new(),
            took_ms: None,
        }
    }

    /// As it should be.
    pub fn ok(id: StepId, message: impl Into<String>) -> Self {
        Self::new(id, Outcome::Ok, message)
    }

    /// It works; somebody should know this.
    pub fn warn(id: StepId, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(id, Outcome::Warn, message).next(next)
    }

    /// This is what is wrong, and what to do.
    pub fn fail(id: StepId, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(id, Outcome::Fail, message).next(next)
    }

    /// It could not be judged, and what would help.
    pub fn unknown(id: StepId, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(id, Outcome::Unknown, message).next(next)
    }

    /// Not looked at, because of that step.
    pub fn skipped(id: StepId, needs: StepId) -> Self {
        Self::new(
            id,
            Outcome::Skipped,
            format!("not looked at: needs {}", needs.as_str()),
        )
    }

    /// What to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into()).filter(|next| !next.is_empty());
        self
    }

    /// One more line of what was seen.
    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// How long the call took.
    #[must_use]
    pub fn took(mut self, took: Duration) -> Self {
        self.took_ms = u64::try_from(took.as_millis()).ok();
        self
    }

    /// Whether what builds on this step can be looked at.
    pub fn passed(&self) -> bool {
        matches!(self.outcome, Outcome::Ok | Outcome::Warn)
    }
}

/// What is known of one channel.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The channel's namespace.
    pub namespace: String,
    /// The channel's name.
    pub name: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The channel's settings with their sources, where they could be told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effective: Vec<Setting>,
}

impl Report {
    /// A report without steps.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            steps: Vec::new(),
            effective: Vec::new(),
        }
    }

    /// The step that decides: the first that fails or could not be judged.
    pub fn decisive(&self) -> Option<&Step> {
        self.steps
            .iter()
            .find(|step| matches!(step.outcome, Outcome::Fail | Outcome::Unknown))
    }

    /// 0: all is well; 1: a step fails; 2: it could not be judged.
    pub fn exit_code(&self) -> u8 {
        match self.decisive().map(|step| step.outcome) {
            None => 0,
            Some(Outcome::Fail) => 1,
            Some(_) => 2,
        }
    }

    /// Whether a step is there and lets others build on it.
    pub fn passed(&self, id: StepId) -> bool {
        self.steps.iter().any(|step| step.id == id && step.passed())
    }

    /// The report for people: one line for each step, then the settings.
    pub fn human(&self) -> String {
        let mut text = format!("Channel {}/{}\n\n", self.namespace, self.name);
        for step in &self.steps {
            let word = match step.outcome {
                Outcome::Ok => "ok",
                Outcome::Warn => "warn",
                Outcome::Fail => "FAIL",
                Outcome::Unknown => "unknown",
                Outcome::Skipped => "skipped",
            };
            let took = step
                .took_ms
                .map_or_else(String::new, |took| format!(" ({took} ms)"));
            let _ = writeln!(
                text,
                "{word:<8} {:<16} {}{took}",
                step.id.as_str(),
                printable(&step.message)
            );
            for detail in &step.details {
                let _ = writeln!(text, "         - {}", printable(detail));
            }
            if let Some(next) = &step.next {
                let _ = writeln!(text, "         next: {}", printable(next));
            }
        }
        if !self.effective.is_empty() {
            let _ = write!(
                text,
                "\nWhat is effective after defaults:\n\n{}",
                settings_yaml(&self.effective, 0)
            );
        }
        let verdict = match self.decisive() {
            None => "All is well as far as can be seen from here.".to_owned(),
            Some(step) if step.outcome == Outcome::Fail => format!("Fails at {}.", step.id.as_str()),
            Some(step) => format!("Could not be judged at {}.", step.id.as_str()),
        };
        let _ = writeln!(text, "\n{verdict}");
        text
    }

    /// The report for programs: the ids of steps and the words of outcomes are stable.
    pub fn json(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["exitCode"] = self.exit_code().into();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("aura-es", "shop-es");
        report.steps = vec![
            Step::ok(StepId::Cluster, "the API server answers (v1.33.1)").took(Duration::from_millis(12)),
            Step::warn(StepId::Environment, "on hold", "wait until 2026-12-01T06:00:00Z"),
            Step::fail(
                StepId::Secret,
                "Secret \"shop\" is not labelled",
                "kubectl label secret shop x=true",
            )
            .detail("key id:\u{1b}[31m 12 bytes"),
            Step::skipped(StepId::Token, StepId::Secret),
            Step::unknown(StepId::Events, "no right to list events", "ask for it"),
        ];
        report
    }

    #[test]
    fn people_read_one_line_for_each_step_and_what_to_do_next() {
        insta::assert_snapshot!(report().human());
    }

    #[test]
    fn the_first_step_that_is_not_right_decides_the_exit_code() {
        let mut report = report();
        assert_eq!(report.exit_code(), 1);
        report.steps.remove(2);
        assert_eq!(report.exit_code(), 2);
        report.steps.truncate(2);
        assert_eq!(report.exit_code(), 0);
        assert!(report.human().contains("All is well"));
    }

    #[test]
    fn programs_read_stable_ids() {
        let json = report().json();
        assert_eq!(json["steps"][2]["id"], "secret");
        assert_eq!(json["steps"][2]["outcome"], "fail");
        assert_eq!(json["steps"][0]["tookMs"], 12);
        assert_eq!(json["exitCode"], 1);
        assert!(json["steps"][0].get("next").is_none());
    }
}
