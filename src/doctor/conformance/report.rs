//! What came of a run: findings, whether the webhook is what it was, the exit code, and how it is printed. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Finding, Options, Restored, Verdict, evidence::Evidence, findings::judge};
use crate::{api::ApiVersion, words::printable};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct ConformanceReport {
    /// Which Kernel, for people.
    pub kernel: String,
    /// Each assumption.
    pub findings: Vec<Finding>,
    /// What became of the webhook that was there before.
    pub restored: Restored,
    /// Why nothing was written although it was asked for.
    pub refused: Option<String>,
    /// The run was stopped before its end.
    pub interrupted: bool,
}

impl ConformanceReport {
    pub(super) fn new(options: &Options, evidence: &Evidence) -> Self {
        let host = |url: &url::Url| url.host_str().unwrap_or("?").to_owned();
        let version = if options.version == ApiVersion::V1 {
            "v1"
        } else {
            "v2"
        };
        Self {
            kernel: format!(
                "Kernel {version} at {}, auth server {}",
                host(&options.kernel.api_url),
                host(&options.kernel.auth_url)
            ),
            findings: judge(options, evidence),
            restored: evidence.written.restored.clone(),
            refused: evidence.written.refused.clone(),
            interrupted: evidence.interrupted,
        }
    }

    /// 0: what could be judged holds; 1: something does not hold, or the webhook is not what it was; 2: the main
    /// thing (a token) could not be judged, what was asked for was not written, or the run was stopped.
    pub fn exit_code(&self) -> u8 {
        let broken = self
            .findings
            .iter()
            .any(|finding| finding.verdict == Verdict::DoesNotHold);
        let lost = matches!(self.restored, Restored::Failed(_) | Restored::Doubtful(_));
        let no_token = self
            .findings
            .first()
            .is_none_or(|finding| finding.verdict == Verdict::NotJudged);
        if broken || lost {
            1
        } else {
            u8::from(no_token || self.refused.is_some() || self.interrupted) * 2
        }
    }

    /// What a person must not overlook.
    pub fn alarm(&self) -> Option<String> {
        match &self.restored {
            Restored::Failed(file) => Some(format!(
                "THE WEBHOOK COULD NOT BE PUT BACK. Set it by hand to what stands in {} (its owner alone can read it; empty: there was none).",
                file.display()
            )),
            Restored::Doubtful(file) => Some(format!(
                "THE WEBHOOK WAS PUT BACK AS IT WAS READ, BUT KERNEL HIDES KEYS: see whether it still works. What was put back stands in {}.",
                file.display()
            )),
            Restored::Untouched | Restored::PutBack | Restored::PutBackUnseen => None,
        }
    }

    fn restored_words(&self) -> &'static str {
        match self.restored {
            Restored::Untouched => "untouched",
            Restored::PutBack => "putBack",
            Restored::PutBackUnseen => "putBackUnseen",
            Restored::Doubtful(_) => "doubtful",
            Restored::Failed(_) => "failed",
        }
    }

    /// The table, for people.
    pub fn human(&self) -> String {
        let mut text = format!("{}\n\n", self.kernel);
        for finding in &self.findings {
            let word = match finding.verdict {
                Verdict::Holds => "holds",
                Verdict::DoesNotHold => "DOES NOT HOLD",
                Verdict::NotJudged => "not judged",
                Verdict::Noted => "noted",
            };
            let _ = writeln!(text, "{word:<14} {:<24} {}", finding.id, finding.assumption);
            let _ = writeln!(
                text,
                "{:<14} {:<24} observed: {}",
                "",
                "",
                printable(&finding.observed)
            );
            if let Some(change) = &finding.change {
                let _ = writeln!(text, "{:<14} {:<24} change: {change}", "", "");
            }
        }
        if let Some(refused) = &self.refused {
            let _ = writeln!(text, "\nNothing was written: {refused}.");
        }
        if self.interrupted {
            let _ = writeln!(text, "\nStopped before the end.");
        }
        let _ = match &self.restored {
            Restored::Untouched => Ok(()),
            Restored::PutBack => writeln!(text, "\nThe webhook is what it was before."),
            Restored::PutBackUnseen => writeln!(
                text,
                "\nKernel took the webhook that was there before; it could not be read to see that."
            ),
            Restored::Doubtful(_) | Restored::Failed(_) => {
                writeln!(text, "\n{}", self.alarm().unwrap_or_default())
            }
        };
        text
    }

    /// The table, for programs: ids and verdicts are stable.
    pub fn json(&self) -> Value {
        let file = match &self.restored {
            Restored::Failed(file) | Restored::Doubtful(file) => Some(file.display().to_string()),
            _ => None,
        };
        json!({
            "kernel": self.kernel,
            "findings": self.findings,
            "webhook": {"restored": self.restored_words(), "recoveryFile": file},
            "refused": self.refused,
            "interrupted": self.interrupted,
            "exitCode": self.exit_code(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ConformanceReport {
        let finding = |id, verdict, observed: &str, change: Option<&str>| Finding {
            id,
            assumption: "what is assumed",
            verdict,
            observed: observed.to_owned(),
            change: change.map(ToOwned::to_owned),
        };
        ConformanceReport {
            kernel: "Kernel v1 at api.example.com, auth server auth.example.com".into(),
            findings: vec![
                finding("token", Verdict::Holds, "200 with a token", None),
                finding(
                    "webhook-read-back",
                    Verdict::DoesNotHold,
                    "404",
                    Some("kernel.webhookPath"),
                ),
                finding("webhook-set", Verdict::NotJudged, "needs --write", None),
                finding("correlator", Verdict::Noted, "9 of 9 answers carried ours", None),
            ],
            restored: Restored::Failed("/tmp/previous".into()),
            refused: None,
            interrupted: false,
        }
    }

    #[test]
    fn people_read_a_table_and_an_alarm() {
        insta::assert_snapshot!(report().human());
    }

    #[test]
    fn the_exit_code_tells_what_fails_from_what_could_not_be_judged() {
        let mut report = report();
        assert_eq!(report.exit_code(), 1);
        report.findings.remove(1);
        assert_eq!(report.exit_code(), 1, "the webhook is not what it was");
        report.restored = Restored::PutBack;
        assert_eq!(report.exit_code(), 0);
        report.interrupted = true;
        assert_eq!(report.exit_code(), 2);
        report.interrupted = false;
        report.refused = Some("x".into());
        assert_eq!(report.exit_code(), 2);
        report.refused = None;
        report.findings.remove(0);
        assert_eq!(report.exit_code(), 2, "no token was tried for");
    }
}
