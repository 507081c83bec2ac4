//! What people read of the bridge's answers. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use crate::words::{counted, printable};

const COLUMNS: [&str; 8] = [
    "SEQ",
    "STATE",
    "DIRECTION",
    "CHANNEL",
    "CONTACT",
    "AGE",
    "ATTEMPTS",
    "WHY",
];

/// A list of messages.
pub(super) fn list(messages: &[Value], next: Option<u64>) -> String {
    if messages.is_empty() {
        return match next {
            None => "no messages\n".to_owned(),
            Some(next) => format!("no messages so far; go on with --after {next}\n"),
        };
    }
    let mut rows = vec![COLUMNS.map(ToOwned::to_owned)];
    rows.extend(messages.iter().map(row));
    let mut text = aligned(&rows);
    let _ = write!(text, "\n{}", counted(messages.len(), "message"));
    if let Some(next) = next {
        let _ = write!(text, "; more with --after {next}");
    }
    text.push('\n');
    text
}

fn row(message: &Value) -> [String; 8] {
    let word = |key: &str| printable(message[key].as_str().unwrap_or_default());
    let mut why = word("reason");
    if message["unknownOutcome"] == true {
        let more = if why.is_empty() { "" } else { ", " };
        why.push_str(more);
        why.push_str("outcome unknown");
    }
    [
        message["seq"].to_string(),
        word("state"),
        word("direction"),
        word("channel"),
        word("contact"),
        age(message["ageSeconds"].as_u64().unwrap_or_default()),
        message["attempts"].to_string(),
        why,
    ]
}

/// Lines whose columns stand below one another.
fn aligned(rows: &[[String; 8]]) -> String {
    let mut widths = [0; 8];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A span of time in its two largest units.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// One message.
pub(super) fn message(message: &Value) -> String {
    let mut text = String::new();
    for (key, name) in [
        ("seq", "seq"),
        ("state", "state"),
        ("reason", "reason"),
        ("direction", "direction"),
        ("channel", "channel"),
        ("contact", "contact"),
        ("acceptedAt", "accepted"),
        ("endedAt", "ended"),
        ("attempts", "attempts"),
        ("unknownOutcome", "unknown"),
        ("partsSent", "parts sent"),
        ("replayed", "replayed"),
        ("bytes", "bytes"),
        ("request", "request"),
        ("traceId", "trace id"),
        ("correlator", "correlator"),
        ("user", "user"),
    ] {
        let value = match &message[key] {
            Value::Null => continue,
            Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
            Value::String(word) => printable(word),
            other => other.to_string(),
        };
        let seconds = message["ageSeconds"].as_u64().filter(|_| key == "acceptedAt");
        let ago = seconds.map_or_else(String::new, |seconds| format!(" ({} ago)", age(seconds)));
        let _ = writeln!(text, "{name:<11} {value}{ago}");
    }
    if !message["body"].is_null() {
        let body = serde_json::to_string_pretty(&message["body"]).unwrap_or_default();
        let lines: Vec<String> = body.lines().map(printable).collect();
        let _ = writeln!(text, "body\n{}", lines.join("\n"));
    }
    text
}

/// What happened to one message.
pub(super) fn trace(answer: &Value) -> String {
    let mut text = match &answer["message"] {
        Value::Null => format!("seq         {}\nstate       not kept any more\n", answer["seq"]),
        kept => message(kept),
    };
    for (key, name) in [("traceId", "trace id"), ("correlator", "correlator")] {
        if let Some(word) = answer[key].as_str() {
            let _ = writeln!(text, "{name:<11} {}", printable(word));
        }
    }
    text.push('\n');
    for step in answer["steps"].as_array().into_iter().flatten() {
        let at = printable(step["at"].as_str().unwrap_or("?"));
        let what = match step["step"].as_str().unwrap_or_default() {
            "accepted" => "accepted",
            "committed" => "on disk, and its sender is told so",
            "cameAgain" => "came again, and was known",
            "replayed" => "sent on its way again by a person",
            "delivered" => "the other side took it",
            "retry" => "failed, to be tried again",
            "unknown" => "written, and not answered: it may have arrived",
            "fatal" => "refused for good",
            "blocked" => "the channel could not deliver: no attempt was counted",
            "settled" => "that it was delivered is on disk",
            "deadLetter" => "given up: dead letter",
            "dropped" => "dropped",
            other => other,
        };
        let _ = write!(text, "{at:<30} ");
        if let Some(attempt) = step["attempt"].as_u64() {
            let _ = write!(text, "attempt {attempt}: ");
        }
        text.push_str(&printable(what));
        if let Some(reason) = step["reason"].as_str() {
            let _ = write!(text, " ({})", printable(reason));
        }
        if let Some(times) = step["times"].as_u64() {
            let _ = write!(text, " ({times} times, last then)");
        }
        text.push('\n');
    }
    let left_out = answer["stepsLeftOut"].as_u64().unwrap_or_default();
    if left_out > 0 {
        let _ = writeln!(text, "({left_out} more in the middle are not remembered)");
    }
    if answer["remembered"] == false {
        text.push_str("(as the journal has it: the bridge remembers nothing more of it)\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dead() -> Value {
        json!({
            "seq": 4711, "state": "dead", "reason": "AttemptsExhausted", "direction": "to_user",
            "channel": "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42", "contact": "0a1b2c3d4e5f",
            "acceptedAt": "2026-12-01T06:00:00Z", "endedAt": "2026-12-01T10:02:11Z", "ageSeconds": 15_131,
            "attempts": 80, "unknownOutcome": true, "bytes": 412, "replayed": false, "partsSent": 1,
        })
    }

    #[test]
    fn people_read_a_table() {
        let pending = json!({
            "seq": 4812, "state": "pending", "direction": "to_aura",
            "channel": "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42", "contact": "ffeeddccbbaa",
            "ageSeconds": 42, "attempts": 3, "unknownOutcome": false,
        });
        insta::assert_snapshot!(list(&[dead(), pending], Some(4812)));
    }

    #[test]
    fn people_read_what_happened_to_a_message() {
        let steps = json!([
            {"at": "2026-12-01T06:00:00Z", "step": "accepted"},
            {"at": "2026-12-01T06:00:01Z", "step": "blocked", "attempt": 1, "times": 12},
            {"at": "2026-12-01T06:03:01Z", "step": "unknown", "attempt": 1},
            {"at": "2026-12-01T10:02:11Z", "step": "deadLetter", "reason": "AttemptsExhausted"},
        ]);
        let answer = json!({
            "seq": 4711, "message": dead(), "steps": steps, "stepsLeftOut": 63, "remembered": true,
            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "correlator": "corr-1",
        });
        insta::assert_snapshot!(trace(&answer));
    }

    #[test]
    fn nothing_is_said_in_words() {
        assert_eq!(list(&[], None), "no messages\n");
        assert!(list(&[], Some(7)).contains("--after 7"));
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not_printed() {
        let mut message = dead();
        message["reason"] = "a\u{1b}[31mb".into();
        message["body"] = json!({"text": "\u{9b}31m"});
        assert!(!list(std::slice::from_ref(&message), None).contains('\u{1b}'));
        assert!(!super::message(&message).contains(['\u{1b}', '\u{9b}']));
    }

    #[test]
    fn an_age_has_two_units() {
        for (seconds, text) in [(5, "5s"), (61, "1m1s"), (15_131, "4h12m"), (90_000, "1d1h")] {
            assert_eq!(age(seconds), text);
        }
    }
}
