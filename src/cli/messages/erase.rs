//! `messages erase`: takes one user out of a bridge's journal, and prints the receipt.

use std::{
    fmt::Write as _,
    io::{self, BufRead},
};

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};

use super::{Because, Ran, client::Client, done, number};
use crate::{
    cli::output::{FOUND, NOT_JUDGED},
    words::{counted, printable},
};

#[derive(Debug, Args)]
#[group(id = "who", required = true, multiple = false, args = ["number", "contact"])]
pub(super) struct Erase {
    /// The user's phone number with its country; - reads it from standard input, so that no shell remembers it
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    number: Option<String>,
    /// The user's digest: the hex digits that logs show
    #[arg(long, value_name = "DIGEST")]
    contact: Option<String>,
    /// In this channel only: its UUID
    #[arg(long, value_name = "UUID")]
    channel: Option<String>,
    #[command(flatten)]
    because: Because,
    /// Yes: it can't be undone
    #[arg(long)]
    yes: bool,
}

impl Erase {
    pub(super) async fn run(self, client: &Client<'_>) -> Ran {
        let number = match self.number.as_deref() {
            Some("-") => {
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
                ensure!(!line.trim().is_empty(), "standard input holds no phone number");
                Some(line.trim().to_owned())
            }
            number => number.map(ToOwned::to_owned),
        };
        let mut order = json!({"because": self.because.because, "dryRun": true});
        for (key, value) in [
            ("number", number),
            ("contact", self.contact),
            ("channel", self.channel),
        ] {
            if let Some(value) = value {
                order[key] = value.into();
            }
        }
        let would = client.post("v1\nerase", &order).await?;
        if self.because.dry_run || !self.yes {
            let mut human = plan(&would);
            let code = if self.because.dry_run { 0 } else { NOT_JUDGED };
            if code != 0 {
                human.push_str("Nothing was done. Say --yes to do it: it can't be undone.\n");
            }
            return done(human, would, code);
        }
        order["dryRun"] = false.into();
        let receipt = client.post("v1\nerase", &order).await?;
        let code = if receipt["complete"] == true { 0 } else { FOUND };
        done(receipt_lines(&receipt), receipt, code)
    }
}

fn who(answer: &Value) -> String {
    let contact = printable(answer["contact"].as_str().unwrap_or_default());
    match answer["channel"].as_str() {
        Some(channel) => format!("contact {contact}, channel {}", printable(channel)),
        None => format!("contact {contact}, all channels"),
    }
}

fn plan(would: &Value) -> String {
    let gives_up = &would["wouldGiveUp"];
    format!(
        "{}: {} pending and {} would be given up, {} of which something may be reported forgotten, and all that \
         stands in the journal's files overwritten.\n",
        who(would),
        number(&gives_up["pending"]),
        counted(number(&gives_up["deadLetters"]), "dead letter"),
        counted(number(&would["sent"]), "sent message"),
    )
}

fn receipt_lines(receipt: &Value) -> String {
    let gave_up = &receipt["gaveUp"];
    let mut text = format!(
        "Erased at {}: {}\n",
        printable(receipt["time"].as_str().unwrap_or_default()),
        who(receipt)
    );
    let _ = writeln!(
        text,
        "  given up       {} pending, {}",
        number(&gave_up["pending"]),
        counted(number(&gave_up["deadLetters"]), "dead letter"),
    );
    let _ = writeln!(
        text,
        "  overwritten    {} in {}",
        counted(number(&receipt["overwritten"]), "record"),
        counted(number(&receipt["files"]), "file"),
    );
    let _ = writeln!(
        text,
        "  because        {}",
        printable(receipt["because"].as_str().unwrap_or_default())
    );
    if receipt["complete"] != true {
        let _ = writeln!(
            text,
            "  left           {} that came or was under way meanwhile: run it again",
            counted(number(&receipt["left"]), "message")
        );
    }
    text
}
