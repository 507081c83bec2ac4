//! What is said and done about a journal that was restored or copied.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{Because, Ran, client::Client, done, needs_yes, number};
use crate::{
    cli::output::{FOUND, NOT_JUDGED},
    words::{counted, printable},
};

/// How soon the bridge is asked again where it can give up no more at once.
const AGAIN: Duration = Duration::from_millis(200);
/// How often, in a row, before that is told of.
const TRIES: u32 = 50;

/// Whether the journal is the cluster's, and what it withholds.
pub(super) async fn show(client: &Client<'_>) -> Ran {
    let answer = client.get("v1\njournal", &[]).await?;
    let mut human = match answer["verdict"].as_str().unwrap_or_default() {
        "unjudged" => "the cluster's record of the journal can't be read yet\n".to_owned(),
        "current" => "the journal is the one that the cluster knows\n".to_owned(),
        "replaced" => {
            "the journal was empty at this start, and the one that the cluster knew is gone\n".to_owned()
        }
        verdict => {
            let why = answer["why"].as_str().unwrap_or_default();
            format!("{}: {}\n", printable(verdict), printable(why))
        }
    };
    let unjudged = number(&answer["unjudged"]);
    if unjudged > 0 {
        let _ = writeln!(human, "{} wait until it can", counted(unjudged, "message"));
    }
    let withheld = answer["withheld"].as_object();
    for (channel, count) in withheld.into_iter().flatten() {
        let count = counted(number(count), "message");
        let _ = writeln!(human, "  {}  {count} withheld", printable(channel));
    }
    let code = if withheld.is_some_and(|withheld| !withheld.is_empty()) {
        FOUND
    } else {
        0
    };
    done(human, answer, code)
}

fn order(channel: Option<&str>, because: &Because, dry_run: bool) -> Value {
    let mut order = json!({"because": because.because, "dryRun": dry_run});
    if let Some(channel) = channel {
        order["channel"] = channel.into();
    }
    order
}

/// Asks how many are meant. Answers what ends the command already.
async fn would(
    client: &Client<'_>,
    path: &str,
    (key, what): (&str, &str),
    channel: Option<&str>,
    because: &Because,
    yes: bool,
) -> anyhow::Result<Option<Ran>> {
    let would = client.post(path, &order(channel, because, true)).await?;
    let count = number(&would[key]);
    Ok(if because.dry_run {
        let human = format!("{} would be {what}\n", counted(count, "message"));
        Some(done(human, would, 0))
    } else if count == 0 {
        Some(done("nothing is withheld\n", would, FOUND))
    } else if count > 1 && !yes {
        Some(needs_yes(what, count, &json!(count)))
    } else {
        None
    })
}

/// What is withheld goes on.
pub(super) async fn release(client: &Client<'_>, channel: Option<&str>, because: &Because, yes: bool) -> Ran {
    let path = "v1\njournal\nrelease";
    if let Some(ends) = would(client, path, ("released", "released"), channel, because, yes).await? {
        return ends;
    }
    let answer = client.post(path, &order(channel, because, false)).await?;
    let count = counted(number(&answer["released"]), "message");
    done(format!("{count} released\n"), answer, 0)
}

/// What is withheld becomes dead letters.
pub(super) async fn give_up(client: &Client<'_>, channel: Option<&str>, because: &Because, yes: bool) -> Ran {
    let path = "v1\njournal\ndrop";
    if let Some(ends) = would(client, path, ("dropped", "dropped"), channel, because, yes).await? {
        return ends;
    }
    let (mut dropped, mut left, mut tries) = (0, 1, 0);
    while left > 0 && tries < TRIES {
        let answer = client.post(path, &order(channel, because, false)).await?;
        left = number(&answer["left"]);
        match number(&answer["dropped"]) {
            0 => {
                tries += 1;
                tokio::time::sleep(AGAIN).await;
            }
            more => {
                dropped += more;
                tries = 0;
            }
        }
    }
    let mut human = format!("{} dropped: dead letters now\n", counted(dropped, "message"));
    if left > 0 {
        let _ = writeln!(human, "{left} are left: run it again");
    }
    let code = if left > 0 { NOT_JUDGED } else { 0 };
    done(human, json!({"dropped": dropped, "left": left}), code)
}
