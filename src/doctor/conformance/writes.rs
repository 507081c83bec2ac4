//! The part that changes the webhook of the test client, and puts it back.
//!
//! What can't be put back is not changed: the webhook before is known in full, or nothing is written. It is on disk
//! before the first change, and stays there if it could not be put back. A stop is heeded between calls, never in
//! one: a call that is dropped half-way might still arrive after the one that puts back.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::{
    WriteOptions,
    evidence::{Evidence, NoAnswer, Reached, SettingAnswer, looks_masked, place, token_of},
    probe::Probe,
};
use crate::kernel::contract::{NO_READ_BACK, SET_STATUSES};

/// A webhook that leads nowhere: `.invalid` is reserved (RFC 6761). It has the shape of a real one, with a made-up
/// key.
pub(super) const HARMLESS: &str = "https://conformance.invalid/aura-services/v1/whatsapp/messages\
    ?apikey=conformance.1.not-a-real-key&channelId=00000000-0000-4000-8000-000000000000";

/// How often putting back is tried.
const ATTEMPTS: u32 = 6;

/// What was seen while writing.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Why nothing was written, although it was asked for.
    pub refused: Option<String>,
    pub set: Option<Reached<SettingAnswer>>,
    pub read_after_set: Option<Reached<SettingAnswer>>,
    pub second_after_set: Option<Reached<SettingAnswer>>,
    pub clear: Option<Reached<SettingAnswer>>,
    pub read_after_clear: Option<Reached<SettingAnswer>>,
    /// The same change with the bridge's token, which should be refused.
    pub set_by_messaging: Option<Reached<SettingAnswer>>,
    pub restored: Restored,
}

/// What became of the webhook that was there before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Restored {
    /// It was not touched.
    #[default]
    Untouched,
    /// It was put back, and Kernel was read to see that.
    PutBack,
    /// Kernel took it; it can't be read to see that.
    PutBackUnseen,
    /// It was put back as it was read, but Kernel seems to hide keys: see whether it still works. The file holds
    /// what was put back.
    Doubtful(PathBuf),
    /// It could not be put back. The file holds it.
    Failed(PathBuf),
}

/// Changes the webhook, looks what becomes of it, and puts it back whatever happens.
pub(super) async fn run(
    options: &WriteOptions,
    probe: &mut Probe,
    evidence: &mut Evidence,
    stop: &CancellationToken,
    say: &mut (dyn FnMut(&str) + Send),
) -> Written {
    let mut written = Written::default();
    let Some(token) = evidence.registration_token() else {
        written.refused = Some("there is no token".to_owned());
        return written;
    };
    let previous = match previous(evidence.read.as_ref(), options.previous.as_ref()) {
        Ok(previous) => previous,
        Err(why) => {
            written.refused = Some(why);
            return written;
        }
    };
    if previous.expose_secret().is_empty() {
        // To clear what is empty changes nothing, and tells whether the state before can be restored.
        let clear = probe.set_webhook(&token, &previous).await;
        let taken = taken(&clear);
        written.clear = Some(clear);
        if !taken {
            written.refused = Some(
                "Kernel holds no webhook and does not take an empty one: it could not be put back".to_owned(),
            );
            return written;
        }
    }
    if let Err(error) = save(&options.recovery_file, &previous) {
        let file = options.recovery_file.display();
        written.refused = Some(format!(
            "the webhook before can't be kept in {file} ({error}); name another file with --recovery-file"
        ));
        return written;
    }
    say(&format!(
        "The webhook before is kept in {} until it is put back.",
        options.recovery_file.display()
    ));
    let touched = change(probe, &token, evidence, &mut written, stop).await;
    written.restored = if touched {
        if stop.is_cancelled() {
            say(
                "Stopping: the webhook is put back first. A second signal ends at once and leaves it changed.",
            );
        }
        let read_before = evidence
            .read
            .as_ref()
            .and_then(|read| read.as_ref().ok())
            .and_then(SettingAnswer::url)
            .cloned();
        let unanswered = |call: &Option<Reached<SettingAnswer>>| {
            matches!(call, Some(Err(NoAnswer::TimedOut | NoAnswer::Broken)))
        };
        if unanswered(&written.set) || unanswered(&written.clear) || unanswered(&written.set_by_messaging) {
            // It may still be on its way, and must not arrive after what puts back.
            tokio::time::sleep(options.retry_step * 2).await;
        }
        let back = restore(options, probe, token, &previous, read_before.as_ref()).await;
        let from_reading = options.previous.is_none();
        match back {
            Some(_) if from_reading && hides_keys(&written) => {
                Restored::Doubtful(options.recovery_file.clone())
            }
            Some(true) => Restored::PutBack,
            Some(false) => Restored::PutBackUnseen,
            None => Restored::Failed(options.recovery_file.clone()),
        }
    } else {
        Restored::Untouched
    };
    if !matches!(written.restored, Restored::Doubtful(_) | Restored::Failed(_)) {
        let _ = fs::remove_file(&options.recovery_file);
    }
    written
}

/// The questions, in order. Whether the webhook may have been changed.
async fn change(
    probe: &mut Probe,
    token: &SecretString,
    evidence: &Evidence,
    written: &mut Written,
    stop: &CancellationToken,
) -> bool {
    if stop.is_cancelled() {
        return false;
    }
    let set = probe.set_webhook(token, &SecretString::from(HARMLESS)).await;
    // Only a clear refusal has surely changed nothing.
    let refused = matches!(&set, Ok(answer) if (400..500).contains(&answer.status) && answer.status != 408)
        || matches!(&set, Err(NoAnswer::Unreachable));
    let is_set = taken(&set);
    written.set = Some(set);
    if refused {
        return false;
    }
    if !is_set || stop.is_cancelled() {
        return true;
    }
    written.read_after_set = Some(probe.webhook(token).await);
    if let Some(second) = evidence.second_token.as_ref().and_then(token_of) {
        written.second_after_set = Some(probe.webhook(&second).await);
    }
    if stop.is_cancelled() {
        return true;
    }
    let clear = probe.set_webhook(token, &SecretString::default()).await;
    let cleared = taken(&clear);
    written.clear = Some(clear);
    if cleared && !stop.is_cancelled() {
        written.read_after_clear = Some(probe.webhook(token).await);
    }
    // The last, because it is put back after it in any case: whether it is taken is not known before.
    let messaging = evidence.messaging.as_ref().and_then(token_of);
    if let Some(messaging) = messaging.filter(|_| !stop.is_cancelled()) {
        written.set_by_messaging = Some(probe.set_webhook(&messaging, &SecretString::from(HARMLESS)).await);
    }
    true
}

/// Puts the webhook back, and looks whether it is there: `Some(true)` if it was seen, `Some(false)` if Kernel took it
/// and can't be read, `None` if it is not there.
async fn restore(
    options: &WriteOptions,
    probe: &mut Probe,
    mut token: SecretString,
    previous: &SecretString,
    read_before: Option<&SecretString>,
) -> Option<bool> {
    for attempt in 0..ATTEMPTS {
        tokio::time::sleep(options.retry_step * attempt).await;
        let set = probe.set_webhook(&token, previous).await;
        if matches!(&set, Ok(answer) if answer.status == 401) {
            // The token may have ended in the meantime.
            if let Some(fresh) = probe.fresh().await {
                token = fresh;
            }
            continue;
        }
        if !taken(&set) {
            continue;
        }
        let read = probe.webhook(&token).await;
        match look_back(&read, read_before, previous) {
            Back::Seen => return Some(true),
            Back::Unreadable => return Some(false),
            // It was taken: that it can't be looked at is said in the end.
            Back::NoAnswer if attempt + 1 == ATTEMPTS => return Some(false),
            Back::NoAnswer | Back::Different => {}
        }
    }
    None
}

/// What a look at Kernel says after the webhook was put back.
enum Back {
    Seen,
    Different,
    Unreadable,
    NoAnswer,
}

fn look_back(
    read: &Reached<SettingAnswer>,
    read_before: Option<&SecretString>,
    previous: &SecretString,
) -> Back {
    let Ok(answer) = read else {
        return Back::NoAnswer;
    };
    if NO_READ_BACK.contains(&answer.status) {
        return Back::Unreadable;
    }
    if answer.is_empty() {
        let empty = previous.expose_secret().is_empty();
        return if empty { Back::Seen } else { Back::Different };
    }
    let expected = read_before.unwrap_or(previous);
    match answer.url() {
        None => Back::NoAnswer,
        Some(url) if url.expose_secret() == expected.expose_secret() => Back::Seen,
        Some(_) => Back::Different,
    }
}

/// The webhook before, in full; or why it can't be put back.
fn previous(
    read: Option<&Reached<SettingAnswer>>,
    given: Option<&SecretString>,
) -> Result<SecretString, String> {
    let Some(Ok(read)) = read else {
        return Err("the webhook before could not be read".to_owned());
    };
    let name_it = "give it with --previous-url-file";
    let (given_place, read_place) = (
        given.and_then(|given| place(given.expose_secret())),
        read.url().and_then(|url| place(url.expose_secret())),
    );
    let differs = || {
        Err("Kernel holds another webhook than --previous-url-file names; look which one is right".to_owned())
    };
    match (read.url(), given) {
        _ if read.is_empty() => match given {
            Some(given) if !given.expose_secret().is_empty() => differs(),
            _ => Ok(SecretString::default()),
        },
        (Some(held), None) if looks_masked(held.expose_secret()) => Err(format!(
            "Kernel masks the key of the webhook before, so it could not be put back: {name_it}"
        )),
        (Some(held), None) => Ok(held.clone()),
        (Some(held), Some(given)) => {
            let same = if looks_masked(held.expose_secret()) {
                given_place.is_some() && given_place == read_place
            } else {
                held.expose_secret() == given.expose_secret()
            };
            if same { Ok(given.clone()) } else { differs() }
        }
        (None, Some(given)) if NO_READ_BACK.contains(&read.status) => Ok(given.clone()),
        (None, None) if NO_READ_BACK.contains(&read.status) => Err(format!(
            "Kernel can't be read back, so the webhook before is not known: {name_it}"
        )),
        (None, _) => Err(format!("the webhook before could not be read ({})", read.status)),
    }
}

/// Whether Kernel shows our own harmless URL with another key than was set: then it may hide others as well.
fn hides_keys(written: &Written) -> bool {
    let read = written
        .read_after_set
        .as_ref()
        .and_then(|read| read.as_ref().ok());
    let key = |url: &str| {
        let url = url::Url::parse(url).ok()?;
        url.query_pairs()
            .find(|(name, _)| name.eq_ignore_ascii_case("apikey"))
            .map(|(_, value)| value.into_owned())
    };
    read.and_then(SettingAnswer::url).is_some_and(|url| {
        let url = url.expose_secret();
        place(url) == place(HARMLESS) && key(url) != key(HARMLESS)
    })
}

fn taken(answer: &Reached<SettingAnswer>) -> bool {
    matches!(answer, Ok(answer) if SET_STATUSES.contains(&answer.status))
}

/// Keeps the webhook in a file of its own, for its owner only, on the disk.
fn save(path: &Path, url: &SecretString) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(url.expose_secret().as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as a call gives it")]
    fn read(status: u16, body: &str) -> Reached<SettingAnswer> {
        Ok(SettingAnswer::read(status, body.as_bytes()))
    }

    fn held(url: &str) -> Reached<SettingAnswer> {
        read(200, &serde_json::json!({"webhooks": {"url": url}}).to_string())
    }

    #[test]
    fn nothing_is_written_that_could_not_be_put_back() {
        let whole = "https://h.example.com/p?apikey=fake-key-of-before&channelId=1";
        let masked = "https://h.example.com/p?apikey=****&channelId=1";
        let given = SecretString::from(whole);
        fn known(read: &Reached<SettingAnswer>, given: Option<&SecretString>) -> Option<String> {
            let previous = previous(Some(read), given).ok();
            previous.map(|url| url.expose_secret().to_owned())
        }
        assert_eq!(known(&held(whole), None).as_deref(), Some(whole));
        assert_eq!(known(&held(masked), None), None);
        assert_eq!(known(&held(masked), Some(&given)).as_deref(), Some(whole));
        assert_eq!(known(&held("https://other.example.com/"), Some(&given)), None);
        assert_eq!(
            known(
                &held("https://h.example.com/p?apikey=****"),
                Some(&SecretString::from("https://i.example.com/p"))
            ),
            None
        );
        assert_eq!(known(&read(404, "{}"), None), None);
        assert_eq!(known(&read(404, "{}"), Some(&given)).as_deref(), Some(whole));
        assert_eq!(known(&held(""), None).as_deref(), Some(""));
        assert_eq!(known(&held(""), Some(&given)), None);
        for status in [403, 500] {
            assert_eq!(known(&read(status, "{}"), Some(&given)), None, "{status}");
        }
        assert_eq!(known(&read(200, "<html>"), Some(&given)), None);
        assert_eq!(known(&Err(NoAnswer::TimedOut), Some(&given)), None);
        assert!(previous(None, Some(&given)).is_err());
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("previous");
        let url = SecretString::from("https://h.example.com/");
        save(&path, &url).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(save(&path, &url).is_err());
    }

    #[test]
    fn a_key_that_comes_back_differently_is_noticed() {
        let after = |url: &str| Written {
            read_after_set: Some(held(url)),
            ..Written::default()
        };
        assert!(!hides_keys(&after(HARMLESS)));
        assert!(hides_keys(&after(&HARMLESS.replace("not-a-real-key", "N"))));
        assert!(!hides_keys(&Written::default()));
    }
}
