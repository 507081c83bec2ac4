//! A plan: its lines, how it is printed, and the exit code that it means. Pure.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use super::overlay::{Change, FieldChange};
use crate::words::{counted, printable};

/// What would be done about a channel at Kernel. The words are stable, for programs that read the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// A webhook is registered.
    Register,
    /// Ours is set anew.
    Renew,
    /// Ours is set again: somebody has changed it.
    PutBack,
    /// Another party's is replaced.
    TakeOver,
    /// That of the system before is replaced.
    ReplaceLegacy,
    /// Nothing.
    None,
    /// It would be refused, or not become Ready.
    Refused,
    /// It could not be judged.
    Unknown,
    /// It is not among the files.
    Unmanaged,
}

/// A line's sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Sign {
    /// `+`: a channel is created or its webhook registered.
    New,
    /// `~`: something that is there changes.
    Changed,
    /// `=`: nothing changes.
    Same,
    /// `!`: it is refused.
    Refused,
    /// `?`: it could not be judged.
    Unknown,
}

impl Sign {
    /// The character.
    pub fn as_char(self) -> char {
        match self {
            Self::New => '+',
            Self::Changed => '~',
            Self::Same => '=',
            Self::Refused => '!',
            Self::Unknown => '?',
        }
    }
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What would be done at Kernel.
    pub action: Action,
    /// What would become of the resource.
    pub change: Change,
    /// The fields of its spec that would be others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// Why it is refused: a reason as it would stand in its status, or one of this report's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The host of the webhook that would be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// For people; may be empty.
    pub message: String,
    /// Whether Kernel holds the key in force could not be told.
    pub key_not_compared: bool,
}

impl Line {
    /// Its sign.
    pub fn sign(&self) -> Sign {
        match (self.action, self.change) {
            (Action::Refused, _) => Sign::Refused,
            (Action::Unknown, _) => Sign::Unknown,
            (Action::Unmanaged, _) | (Action::None, Change::None) => Sign::Same,
            (Action::Register, _) | (_, Change::Create) => Sign::New,
            _ => Sign::Changed,
        }
    }

    /// What would happen, in words.
    fn words(&self) -> String {
        let resource = match self.change {
            Change::None => None,
            Change::Create => Some("new".to_owned()),
            Change::Update => {
                let fields: Vec<&str> = self.fields.iter().map(|field| field.path.as_str()).collect();
                Some(format!("changes {}", fields.join(", ")))
            }
        };
        let webhook = match (self.action, &self.reason) {
            (Action::None, _) if self.message.is_empty() => "nothing to do at Kernel".to_owned(),
            (Action::None, _) => format!("nothing to do at Kernel: {}", self.message),
            (Action::Unknown, _) => format!("can't be judged: {}", self.message),
            (Action::Refused, Some(reason)) => format!("refused: {reason}: {}", self.message),
            _ => self.message.clone(),
        };
        let key = self.key_not_compared.then(|| "key not compared".to_owned());
        let parts: Vec<String> = [resource, Some(webhook), key].into_iter().flatten().collect();
        parts.join("; ")
    }
}

/// What is known of all channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The channels, by namespace and name.
    pub lines: Vec<Line>,
    /// What holds for several of them, for people.
    pub notes: Vec<String>,
}

/// The widest name that others are aligned to.
const WIDEST: usize = 48;

impl Report {
    /// How many lines have this sign.
    pub fn count(&self, sign: Sign) -> usize {
        self.lines.iter().filter(|line| line.sign() == sign).count()
    }

    /// Whether anything would be another than it is.
    pub fn has_changes(&self) -> bool {
        self.lines.iter().any(Line::is_change)
    }

    /// 2: something could not be judged; 1: something is refused; else 0, or `with_changes` if there are changes.
    pub fn exit_code(&self, with_changes: u8) -> u8 {
        if self.count(Sign::Unknown) > 0 {
            2
        } else if self.count(Sign::Refused) > 0 {
            1
        } else if self.has_changes() {
            with_changes
        } else {
            0
        }
    }

    /// The plan for people: one line for each channel, then the sum.
    pub fn human(&self) -> String {
        let title = |line: &Line| format!("{}/{}", line.namespace, line.name);
        let widest = self.lines.iter().map(|line| title(line).len()).max();
        let width = widest.unwrap_or_default().min(WIDEST);
        let mut text = String::new();
        for line in &self.lines {
            let _ = writeln!(
                text,
                "{} {:<width$}  {}",
                line.sign().as_char(),
                printable(&title(line)),
                printable(&line.words())
            );
        }
        if !self.lines.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "{}", printable(note));
        }
        let _ = write!(text, "{}", counted(self.lines.len(), "channel"));
        let parts: Vec<String> = [
            (Sign::New, "new"),
            (Sign::Changed, "changed"),
            (Sign::Same, "unchanged"),
            (Sign::Refused, "refused"),
            (Sign::Unknown, "not judged"),
        ]
        .into_iter()
        .map(|(sign, word)| (self.count(sign), word))
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
        if !parts.is_empty() {
            let _ = write!(text, ": {}", parts.join(", "));
        }
        text.push('\n');
        text
    }

    /// The plan for programs: the words of actions, changes and signs are stable.
    pub fn json(&self, exit_code: u8) -> Value {
        let channels: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                let mut value = json!(line);
                value["sign"] = json!(line.sign());
                value
            })
            .collect();
        json!({
            "channels": channels,
            "summary": {
                "new": self.count(Sign::New),
                "changed": self.count(Sign::Changed),
                "same": self.count(Sign::Same),
                "refused": self.count(Sign::Refused),
                "unknown": self.count(Sign::Unknown),
            },
            "changes": self.has_changes(),
            "notes": self.notes,
            "exitCode": exit_code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, action: Action, change: Change, message: &str) -> Line {
        Line {
            namespace: "aura-es".into(),
            name: name.into(),
            action,
            change,
            fields: Vec::new(),
            reason: None,
            host: None,
            message: message.into(),
            key_not_compared: false,
        }
    }

    fn report() -> Report {
        let field = |path: &str| FieldChange {
            path: path.into(),
            from: Value::Null,
            to: json!(2),
        };
        Report {
            lines: vec![
                line(
                    "new",
                    Action::Register,
                    Change::Create,
                    "would register the webhook",
                ),
                line("observed", Action::None, Change::Create, "mode Observe"),
                Line {
                    fields: vec![field("webhook.keyGeneration"), field("suspend")],
                    ..line(
                        "renewed",
                        Action::Renew,
                        Change::Update,
                        "would renew the webhook: x",
                    )
                },
                Line {
                    fields: vec![field("delivery.messagesPerSecond")],
                    key_not_compared: true,
                    ..line("slower", Action::None, Change::Update, "")
                },
                line("same", Action::None, Change::None, ""),
                line("other", Action::Unmanaged, Change::None, "not among the files"),
                Line {
                    reason: Some("WebhookForeign".into()),
                    ..line(
                        "foreign\u{1b}[31m",
                        Action::Refused,
                        Change::None,
                        "Kernel calls another",
                    )
                },
                line(
                    "dark",
                    Action::Unknown,
                    Change::None,
                    "Kernel did not answer in time",
                ),
            ],
            notes: vec!["key not compared: name its Secret".into()],
        }
    }

    #[test]
    fn people_read_one_line_for_each_channel_and_the_sum() {
        insta::assert_snapshot!(report().human());
        let nothing = Report {
            lines: Vec::new(),
            notes: Vec::new(),
        };
        assert_eq!(nothing.human(), "0 channels\n");
    }

    #[test]
    fn what_is_not_judged_weighs_more_than_what_is_refused_and_that_more_than_changes() {
        let mut report = report();
        assert_eq!(report.exit_code(3), 2);
        report.lines.pop();
        assert_eq!(report.exit_code(3), 1);
        report.lines.pop();
        assert_eq!((report.exit_code(0), report.exit_code(3)), (0, 3));
        report.lines.drain(..4);
        assert_eq!(report.exit_code(3), 0, "nothing changes");
    }

    #[test]
    fn every_word_that_programs_read_is_documented() {
        let page = include_str!("../../docs/cli.md");
        let section = page
            .split("## `plan`")
            .nth(1)
            .unwrap()
            .split("\n## ")
            .next()
            .unwrap();
        let signs = [Sign::New, Sign::Changed, Sign::Same, Sign::Refused, Sign::Unknown];
        let actions = [
            Action::Register,
            Action::Renew,
            Action::PutBack,
            Action::TakeOver,
            Action::ReplaceLegacy,
            Action::None,
            Action::Refused,
            Action::Unknown,
            Action::Unmanaged,
        ];
        let words = signs
            .iter()
            .map(|sign| json!(sign))
            .chain(actions.iter().map(|it| json!(it)));
        for word in words {
            let word = format!("`{}`", word.as_str().unwrap());
            assert!(section.contains(&word), "docs/cli.md does not tell of {word}");
        }
        for sign in signs {
            assert!(section.contains(&format!("| `{}` |", sign.as_char())));
        }
    }

    #[test]
    fn programs_read_stable_words() {
        let json = report().json(2);
        assert_eq!(json["channels"][0]["action"], "register");
        assert_eq!(json["channels"][0]["change"], "create");
        assert_eq!(json["channels"][0]["sign"], "new");
        assert_eq!(json["channels"][2]["fields"][0]["path"], "webhook.keyGeneration");
        assert_eq!(json["channels"][6]["reason"], "WebhookForeign");
        assert_eq!(json["summary"]["unknown"], 1);
        assert_eq!((&json["changes"], &json["exitCode"]), (&json!(true), &json!(2)));
    }
}
