//! `messages`: sees and repairs what is stuck in a bridge.

mod client;
mod erase;
mod table;
mod withheld;

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use self::client::{Client, Content, Failure, Place};
use super::{
    output::{FOUND, NOT_JUDGED, Output, print},
    runtime,
};
use crate::{api::Period, http, words::counted};

const EXAMPLES: &str = "\
Reach the bridge first; its listener is for its pod's loopback alone:
  kubectl -n aura-system port-forward pod/aura-whatsapp-operator-bridge-0 8084:8084

Examples:
  # What was given up, and why?
  aura-whatsapp-operator messages list --state dead

  # What has waited for more than ten minutes?
  aura-whatsapp-operator messages list --state pending --older-than 10m

  # Where is the message that WhatsApp calls so?
  aura-whatsapp-operator messages trace wamid.HBgL…

  # Aura is back: what would be sent again, then do it
  aura-whatsapp-operator messages replay --reason AttemptsExhausted --because 'INC-77' --dry-run
  aura-whatsapp-operator messages replay --reason AttemptsExhausted --because 'INC-77' --yes

  # Hold one conversation, and let it go on
  aura-whatsapp-operator messages park --channel UUID --contact 0a1b2c3d4e5f --direction to_user --because 'INC-78'
  aura-whatsapp-operator messages unpark --channel UUID --contact 0a1b2c3d4e5f --direction to_user --because 'INC-78'

  # A user wants to be forgotten
  echo +34600000001 | aura-whatsapp-operator messages erase --number - --because 'DSR-12' --yes

  # The journal was restored from a backup: what does it withhold, and what becomes of it?
  aura-whatsapp-operator messages journal
  aura-whatsapp-operator messages drop --journal --because 'INC-79: they were delivered before' --yes
  aura-whatsapp-operator messages release --journal --channel UUID --because 'INC-79' --yes

A contact is named by the twelve hex digits that logs show. Every change says why (--because) and leaves a line in the
bridge's audit log.

Exit status:
  0  done, or shown
  1  found: list shows a dead letter or a parked message, journal shows withheld ones; what was named is not there, or not in a state for it
  2  not judged: the bridge can't be reached or has no room now, or the command line can't be understood";

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, after_help = "More and examples with --help")]
pub(super) struct Messages {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: Place,
    /// What is printed
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Messages that are kept, the oldest first
    List(List),
    /// One message; its text only where bridge.showBodies allows it
    Show(Show),
    /// What happened to one message, step by step
    Trace(Trace),
    /// Send dead letters on their way again, at the end of their conversations
    Replay(Replay),
    /// Give messages up: a pending one becomes a dead letter, a dead letter goes for good
    Drop(Drop),
    /// Whether the journal is the one that the cluster knows, and what it withholds if not
    Journal,
    /// Let messages go on that a restored or copied journal withholds, whatever their age
    Release(Release),
    /// Hold one direction of a conversation: its messages are kept and not delivered
    Park(Hold),
    /// Let a conversation that is held go on
    Unpark(Hold),
    /// Try the next message of a conversation now, if it waits for its next attempt
    Retry(Hold),
    /// Take one user out of the journal for good, and print the receipt
    Erase(erase::Erase),
    /// Write dead letters to a file, with texts and phone numbers; needs bridge.showBodies
    Export(Export),
    /// Take dead letters back from a file that export has written
    Import(Import),
}

/// In which state messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// To be delivered
    Pending,
    /// Given up
    Dead,
    /// Sent to a user, and kept for what is reported of it
    Sent,
    /// To be delivered, in a conversation that is held
    Parked,
}

/// Which way messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Direction {
    /// From the user to Aura
    ToAura,
    /// From Aura to the user
    ToUser,
}

/// Which messages are meant.
#[derive(Debug, Args)]
struct Which {
    /// Of this channel: its UUID
    #[arg(long, value_name = "UUID")]
    channel: Option<String>,
    /// Of this contact: the hex digits that logs show
    #[arg(long, value_name = "DIGEST")]
    contact: Option<String>,
    /// In this direction
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// Given up for this reason, such as AttemptsExhausted
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Accepted longer ago than this, such as 10m
    #[arg(long, value_name = "TIME")]
    older_than: Option<Period>,
}

#[derive(Debug, Args)]
struct List {
    /// In this state
    #[arg(long, value_enum)]
    state: Option<State>,
    #[command(flatten)]
    which: Which,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    limit: u64,
    /// Only those after this number: where the last list ended
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
}

#[derive(Debug, Args)]
struct Show {
    /// The message's number
    seq: u64,
    /// Also the user's number and the text
    #[arg(long)]
    body: bool,
}

#[derive(Debug, Args)]
struct Trace {
    /// A message's number, WhatsApp's id of it, its activity's id, or the correlator of a send
    id: String,
}

/// What every change says.
#[derive(Debug, Args)]
struct Because {
    /// Why: kept in the audit log, at most 200 characters, no phone numbers
    #[arg(long, value_name = "TEXT")]
    because: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct Replay {
    /// The numbers of dead letters; without any, those that the flags name
    #[arg(value_name = "SEQ", conflicts_with_all = ["channel", "contact", "direction", "reason", "older_than"])]
    seqs: Vec<u64>,
    #[command(flatten)]
    which: Which,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
    #[command(flatten)]
    because: Because,
    /// Yes, also if they are several
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Drop {
    /// The messages' numbers
    #[arg(
        value_name = "SEQ",
        required_unless_present = "journal",
        conflicts_with = "journal"
    )]
    seqs: Vec<u64>,
    /// All that a restored or copied journal withholds: they become dead letters
    #[arg(long)]
    journal: bool,
    /// Of those, the ones of this channel alone: its UUID
    #[arg(long, value_name = "UUID", requires = "journal")]
    channel: Option<String>,
    #[command(flatten)]
    because: Because,
    /// Yes, also if they are several
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Release {
    /// All that a restored or copied journal withholds, or that waits until it is known whether it is one
    #[arg(long, required = true)]
    journal: bool,
    /// Of what it withholds, the ones of this channel alone: its UUID
    #[arg(long, value_name = "UUID")]
    channel: Option<String>,
    #[command(flatten)]
    because: Because,
    /// Yes, also if they are several
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Hold {
    /// The channel's UUID
    #[arg(long, value_name = "UUID")]
    channel: String,
    /// The contact's digest: the hex digits that logs show
    #[arg(long, value_name = "DIGEST")]
    contact: String,
    /// Which direction of the conversation
    #[arg(long, value_enum)]
    direction: Direction,
    #[command(flatten)]
    because: Because,
}

#[derive(Debug, Args)]
struct Export {
    /// Of this channel: its UUID
    #[arg(long, value_name = "UUID")]
    channel: Option<String>,
    /// The file to write, readable by you alone; without it standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Import {
    /// The file, or - for standard input
    file: PathBuf,
    #[command(flatten)]
    because: Because,
    /// Yes, also if they are several
    #[arg(long)]
    yes: bool,
}

/// What was done: for people, for programs, and the exit status.
struct Done {
    human: String,
    json: Value,
    code: u8,
}

impl Messages {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        http::install_tls_provider();
        let output = self.output;
        let done = runtime()?.block_on(async {
            let client = self.place.client()?;
            match self.command {
                Command::List(command) => command.run(&client).await,
                Command::Show(command) => command.run(&client).await,
                Command::Trace(command) => command.run(&client).await,
                Command::Replay(command) => command.run(&client).await,
                Command::Drop(command) => command.run(&client).await,
                Command::Journal => withheld::show(&client).await,
                Command::Release(command) => command.run(&client).await,
                Command::Park(command) => command.run(&client, "park").await,
                Command::Unpark(command) => command.run(&client, "unpark").await,
                Command::Retry(command) => command.run(&client, "retry").await,
                Command::Erase(command) => command.run(&client).await,
                Command::Export(command) => command.run(&client).await,
                Command::Import(command) => command.run(&client).await,
            }
        });
        match done {
            Ok(Some(done)) => {
                print(output, &done.human, &done.json)?;
                Ok(done.code)
            }
            Ok(None) => Ok(0),
            Err(error) => match error.downcast_ref::<Failure>() {
                Some(failure) => {
                    writeln!(io::stderr(), "error: {failure}")?;
                    Ok(failure.exit_code())
                }
                None => Err(error),
            },
        }
    }
}

type Ran = anyhow::Result<Option<Done>>;

#[allow(clippy::unnecessary_wraps, reason = "every command ends by it")]
fn done(human: impl Into<String>, json: Value, code: u8) -> Ran {
    let human = human.into();
    Ok(Some(Done { human, json, code }))
}

fn word(value: &impl ValueEnum) -> String {
    let possible = value.to_possible_value();
    possible.map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Which {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("channel", self.channel.clone()),
            ("contact", self.contact.clone()),
            ("direction", self.direction.as_ref().map(word)),
            ("reason", self.reason.clone()),
            ("olderThan", self.older_than.as_ref().map(ToString::to_string)),
        ];
        let given = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
        given.collect()
    }
}

/// The most messages that the bridge puts on one page.
const PAGE: u64 = 500;

impl List {
    async fn run(self, client: &Client<'_>) -> Ran {
        let mut query = self.which.pairs();
        query.extend(self.state.map(|state| ("state", word(&state))));
        let (mut messages, mut next) = (Vec::new(), self.after);
        let mut unreadable = 0;
        loop {
            let left = self.limit.saturating_sub(messages.len() as u64);
            let mut query = query.clone();
            query.push(("limit", left.min(PAGE).to_string()));
            query.extend(next.map(|after| ("after", after.to_string())));
            let mut page = client.get("v1\nmessages", &query).await?;
            if let Value::Array(more) = page["messages"].take() {
                messages.extend(more);
            }
            unreadable += number(&page["unreadable"]);
            next = page["next"].as_u64();
            if next.is_none() || messages.len() as u64 >= self.limit {
                break;
            }
        }
        let stuck = |message: &Value| matches!(message["state"].as_str(), Some("dead" | "parked"));
        let code = if messages.iter().any(stuck) { FOUND } else { 0 };
        let mut human = table::list(&messages, next);
        if unreadable > 0 {
            let _ = writeln!(
                human,
                "{} can't be read: the journal is damaged there",
                counted(unreadable, "message")
            );
        }
        done(
            human,
            json!({"messages": messages, "next": next, "unreadable": unreadable}),
            code,
        )
    }
}

/// A count that an answer holds.
fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap_or_default()).unwrap_or(usize::MAX)
}

impl Show {
    async fn run(self, client: &Client<'_>) -> Ran {
        let query: &[_] = if self.body {
            &[("body", "true".to_owned())]
        } else {
            &[]
        };
        let message = client.get(&format!("v1\nmessages\n{}", self.seq), query).await?;
        done(table::message(&message), message, 0)
    }
}

impl Trace {
    async fn run(self, client: &Client<'_>) -> Ran {
        let id = self.id.replace('\n', "");
        ensure!(!id.is_empty() && id != "." && id != "..", "give an id");
        let answer = client.get(&format!("v1\ntrace\n{id}"), &[]).await?;
        done(table::trace(&answer), answer, 0)
    }
}

/// What is said instead of changing several messages.
fn needs_yes(what: &str, number: usize, seqs: &Value) -> Ran {
    let human = format!(
        "{} would be {what}; nothing was done. Say --yes to do it, or --dry-run to see which.\n",
        counted(number, "message")
    );
    done(
        human,
        json!({"would": what, "meant": seqs, "done": false}),
        NOT_JUDGED,
    )
}

impl Replay {
    async fn run(self, client: &Client<'_>) -> Ran {
        if !self.seqs.is_empty() {
            return each(
                client,
                &self.seqs,
                "replay",
                "sent again",
                &self.because,
                self.yes,
            )
            .await;
        }
        let mut order = json!({
            "because": self.because.because,
            "dryRun": true,
            "limit": self.limit,
        });
        for (key, value) in self.which.pairs() {
            order[key] = value.into();
        }
        let would = client.post("v1\nmessages\nreplay", &order).await?;
        let meant = would["meant"].as_array().map_or(0, Vec::len);
        if self.because.dry_run {
            let list = lines(would["meant"].as_array().into_iter().flatten());
            return done(
                format!("{} would be sent again\n{list}", counted(meant, "message")),
                would,
                0,
            );
        }
        if meant == 0 {
            return done("no such dead letters\n", would, FOUND);
        }
        if meant > 1 && !self.yes {
            return needs_yes("sent again", meant, &would["meant"]);
        }
        order["dryRun"] = false.into();
        let answer = client.post("v1\nmessages\nreplay", &order).await?;
        let replayed = answer["replayed"].as_array().map_or(0, Vec::len);
        let mut human = format!("{} sent again\n", counted(replayed, "message"));
        if answer["next"].is_u64() {
            human.push_str("there may be more: run it again\n");
        }
        let stopped = answer["stopped"]["message"].as_str().map(ToOwned::to_owned);
        if let Some(why) = &stopped {
            let _ = writeln!(human, "stopped: {}", crate::words::printable(why));
        }
        done(human, answer, if stopped.is_some() { NOT_JUDGED } else { 0 })
    }
}

fn lines<'a>(seqs: impl Iterator<Item = &'a Value>) -> String {
    seqs.fold(String::new(), |mut text, seq| {
        let _ = writeln!(text, "  {seq}");
        text
    })
}

/// The same for each of these messages; one that is refused does not keep the others from it.
async fn each(
    client: &Client<'_>,
    seqs: &[u64],
    verb: &str,
    what: &str,
    because: &Because,
    yes: bool,
) -> Ran {
    if seqs.len() > 1 && !yes && !because.dry_run {
        return needs_yes(what, seqs.len(), &json!(seqs));
    }
    let (mut human, mut answers, mut code) = (String::new(), Vec::new(), 0);
    for seq in seqs {
        let order = json!({"because": because.because, "dryRun": because.dry_run});
        match client.post(&format!("v1\nmessages\n{seq}\n{verb}"), &order).await {
            Ok(answer) => {
                let now = match answer["dropped"].as_str() {
                    Some("deadLetter") => ": a dead letter now",
                    Some("deadLetterUnlessDelivered") => ": a dead letter, unless it arrives just now",
                    _ => "",
                };
                let line = match (because.dry_run, answer["replayedAs"].as_u64()) {
                    (true, _) => format!("{seq}  would be {what}{now}\n"),
                    (false, Some(new)) => format!("{seq}  {what} as {new}\n"),
                    (false, None) => format!("{seq}  {what}{now}\n"),
                };
                human.push_str(&line);
                answers.push(answer);
            }
            Err(
                failure @ Failure::Refused {
                    status: 404 | 409 | 410,
                    ..
                },
            ) => {
                let _ = writeln!(human, "{seq}  not {what}: {failure}");
                answers.push(json!({"seq": seq, "error": failure.to_string()}));
                code = FOUND;
            }
            Err(failure) => {
                // What was done is told of before what kept the rest from it.
                io::stdout().write_all(human.as_bytes())?;
                return Err(failure.into());
            }
        }
    }
    done(human, json!({"messages": answers}), code)
}

impl Drop {
    async fn run(self, client: &Client<'_>) -> Ran {
        if self.journal {
            let channel = self.channel.as_deref();
            return withheld::give_up(client, channel, &self.because, self.yes).await;
        }
        each(client, &self.seqs, "drop", "dropped", &self.because, self.yes).await
    }
}

impl Release {
    async fn run(self, client: &Client<'_>) -> Ran {
        withheld::release(client, self.channel.as_deref(), &self.because, self.yes).await
    }
}

impl Hold {
    async fn run(self, client: &Client<'_>, verb: &str) -> Ran {
        let order = json!({
            "channel": self.channel,
            "contact": self.contact,
            "direction": word(&self.direction),
            "because": self.because.because,
            "dryRun": self.because.dry_run,
        });
        let answer = client.post(&format!("v1\nlanes\n{verb}"), &order).await?;
        let contact = crate::words::printable(answer["contact"].as_str().unwrap_or_default());
        let would = if self.because.dry_run { "would be " } else { "" };
        let what = match verb {
            "park" => "held",
            "unpark" => "let go on",
            _ => "tried now, if its next message waits",
        };
        done(
            format!("contact {contact}, {}: {would}{what}\n", word(&self.direction)),
            answer,
            0,
        )
    }
}

impl Export {
    async fn run(self, client: &Client<'_>) -> Ran {
        let mut out: Box<dyn Write> = match &self.out {
            None => Box::new(io::stdout()),
            Some(path) => {
                use std::os::unix::fs::OpenOptionsExt;
                let mut options = std::fs::OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                Box::new(file.with_context(|| path.display().to_string())?)
            }
        };
        let (mut after, mut count) = (None, 0);
        loop {
            let mut query: Vec<(&str, String)> = Vec::new();
            query.extend(self.channel.clone().map(|channel| ("channel", channel)));
            query.extend(after.clone().map(|after| ("after", after)));
            let (lines, next) = client
                .call(Method::GET, "v1\ndead-letters\nexport", &query, Content::Nothing)
                .await?;
            count += lines
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .count();
            out.write_all(&lines)?;
            if next.is_none() {
                break;
            }
            after = next;
        }
        out.flush()?;
        // On stdout stand the lines alone.
        writeln!(io::stderr(), "{} exported", counted(count, "dead letter"))?;
        Ok(None)
    }
}

/// The most of a file that is sent in one call, in bytes, but for one line alone.
const IMPORT: usize = 4 << 20;

impl Import {
    async fn run(self, client: &Client<'_>) -> Ran {
        let mut text = String::new();
        if self.file.as_os_str() == "-" {
            io::stdin().lock().read_to_string(&mut text)?;
        } else {
            text = std::fs::read_to_string(&self.file).with_context(|| self.file.display().to_string())?;
        }
        let count = text.lines().filter(|line| !line.trim().is_empty()).count();
        if count > 1 && !self.yes && !self.because.dry_run {
            return needs_yes("imported as dead letters", count, &json!(count));
        }
        let (mut imported, mut known) = (0, 0);
        for part in parts(&text, IMPORT) {
            let mut query = vec![("because", self.because.because.clone())];
            query.extend(self.because.dry_run.then(|| ("dryRun", "true".to_owned())));
            let content = Content::Lines(part.into_bytes());
            let answer = client
                .json(Method::POST, "v1\ndead-letters\nimport", &query, content)
                .await?;
            imported += answer["imported"].as_u64().unwrap_or_default();
            known += answer["known"].as_u64().unwrap_or_default();
        }
        let would = if self.because.dry_run { "would be " } else { "" };
        done(
            format!("{imported} {would}imported as dead letters, {known} known already\n"),
            json!({"imported": imported, "known": known, "dryRun": self.because.dry_run}),
            0,
        )
    }
}

/// A file's lines in parts of at most so many bytes, but for lines that are larger.
fn parts(text: &str, most: usize) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match parts.last_mut().filter(|part| part.len() + line.len() < most) {
            Some(part) => {
                part.push_str(line);
                part.push('\n');
            }
            None => parts.push(format!("{line}\n")),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_sent_in_parts_of_whole_lines() {
        let text = "aaaa\n\nbbbb\ncccc\nlonger than a part\nd\n";
        let sent = parts(text, 11);
        assert_eq!(sent, ["aaaa\nbbbb\n", "cccc\n", "longer than a part\n", "d\n"]);
        assert_eq!(parts("", 11), Vec::<String>::new());
    }
}
