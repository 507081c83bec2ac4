//! What the evidence says of each assumption. Pure.

use std::time::Duration;

use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::Value;

use super::{
    NO_SUCH_SCOPE, Options,
    difference::{Difference, difference},
    evidence::{Evidence, NoAnswer, Reached, Setting, SettingAnswer, TokenAnswer, looks_masked},
};
use crate::kernel::contract::{MAX_ANSWER, MAX_EXPIRES_IN, NO_READ_BACK, SET_STATUSES};

/// What became of an assumption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It does not hold.
    DoesNotHold,
    /// It could not be judged; `observed` says why.
    NotJudged,
    /// Nothing depends on it: only what was seen.
    Noted,
}

/// One assumption, and what was seen of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A stable id.
    pub id: &'static str,
    /// What is assumed.
    pub assumption: &'static str,
    /// Whether it holds.
    pub verdict: Verdict,
    /// What was seen; nothing secret.
    pub observed: String,
    /// Where it does not hold: which setting to change, or what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}

/// A token's life below this is no use, in seconds: it would be fetched anew all the time.
const MIN_LIFE: f64 = 60.0;

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, id: &'static str, assumption: &'static str, judged: Judged, change: &str) {
        let (verdict, observed) = judged;
        self.0.push(Finding {
            id,
            assumption,
            verdict,
            observed,
            change: (verdict == Verdict::DoesNotHold).then(|| change.to_owned()),
        });
    }
}

type Judged = (Verdict, String);

fn holds(observed: impl Into<String>) -> Judged {
    (Verdict::Holds, observed.into())
}

fn fails(observed: impl Into<String>) -> Judged {
    (Verdict::DoesNotHold, observed.into())
}

fn unjudged(why: impl Into<String>) -> Judged {
    (Verdict::NotJudged, why.into())
}

fn noted(observed: impl Into<String>) -> Judged {
    (Verdict::Noted, observed.into())
}

/// Judges a call that was made and answered with something that judges it.
fn answered<T>(
    call: Option<&Reached<T>>,
    status: impl Fn(&T) -> u16,
    judge: impl FnOnce(&T) -> Judged,
) -> Judged {
    match call {
        None => unjudged("not asked"),
        Some(Err(no)) => unjudged(no.words()),
        Some(Ok(answer)) => match status(answer) {
            status @ (429 | 500..=599) if status != 501 => unjudged(format!("Kernel answered {status}")),
            _ => judge(answer),
        },
    }
}

fn token(call: Option<&Reached<TokenAnswer>>, judge: impl FnOnce(&TokenAnswer) -> Judged) -> Judged {
    answered(call, |answer| answer.status, judge)
}

fn setting(call: Option<&Reached<SettingAnswer>>, judge: impl FnOnce(&SettingAnswer) -> Judged) -> Judged {
    answered(call, |answer| answer.status, judge)
}

fn refusal(answer: &TokenAnswer) -> String {
    match &answer.error {
        Some(error) => format!("{} {error}", answer.status),
        None => answer.status.to_string(),
    }
}

/// Every assumption, in the order of the calls.
pub(super) fn judge(options: &Options, evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    tokens(options, evidence, &mut findings);
    reading(evidence, &mut findings);
    writing(options, evidence, &mut findings);
    on_the_way(options, evidence, &mut findings);
    findings.0
}

fn tokens(options: &Options, evidence: &Evidence, findings: &mut Findings) {
    let first = evidence.token.as_ref();
    findings.add(
        "token",
        "a token is had by client_credentials with HTTP Basic",
        token(first, |answer| match (&answer.token, answer.status) {
            (Some(_), _) => holds("200 with a token"),
            (None, 200) => fails("200 without a token"),
            (None, _) => fails(refusal(answer)),
        }),
        "404: kernel.authUrl and kernel.tokenPath. invalid_client: the client's files. Else ask the Kernel team how this client authenticates",
    );
    let granted = |judge: &dyn Fn(&TokenAnswer) -> Judged| {
        token(first, |answer| match answer.token {
            Some(_) => judge(answer),
            None => unjudged("no token"),
        })
    };
    findings.add(
        "token-type",
        "the token is a bearer token",
        granted(&|answer| match answer.token_type.as_deref() {
            Some(kind) if kind.eq_ignore_ascii_case("bearer") => holds(kind),
            Some(kind) => fails(kind),
            None => fails("no token_type"),
        }),
        "no setting: tokens are sent as bearer tokens; ask the Kernel team",
    );
    findings.add(
        "token-lifetime",
        "expires_in is there, a number of seconds, from a minute to a day",
        granted(&|answer| match &answer.expires_in {
            Some(Value::Number(number)) => {
                let seconds = number.as_f64().unwrap_or_default();
                #[expect(clippy::cast_precision_loss, reason = "a day of seconds is exact")]
                let sane = (MIN_LIFE..=MAX_EXPIRES_IN as f64).contains(&seconds);
                if sane { holds(format!("{seconds} s")) } else { fails(format!("{seconds} s")) }
            }
            Some(Value::String(_)) => fails("a text instead of a number"),
            None | Some(Value::Null) => fails("absent"),
            Some(_) => fails("neither number nor text"),
        }),
        "no setting: without a usable value a token is kept for 5 minutes, and never longer than a day; a text makes the answer unusable",
    );
    findings.add(
        "token-scope-told",
        "the answer tells the scopes that were granted",
        granted(&|answer| match &answer.scope {
            Some(scope) => holds(scope.join(" ")),
            None => fails("no scope in the answer"),
        }),
        "no setting: a scope that is missing is then noticed only when Kernel's API refuses the call (403)",
    );
    findings.add(
        "token-scopes-granted",
        "the client is granted what both roles ask for",
        match (first, evidence.messaging.as_ref()) {
            (Some(Ok(one)), Some(Ok(other))) if one.token.is_some() => {
                let missing: Vec<String> = [
                    (one, &options.registration_scopes),
                    (other, &options.messaging_scopes),
                ]
                .into_iter()
                .flat_map(|(answer, asked)| lacking(answer, asked))
                .collect();
                if missing.is_empty() {
                    holds(format!(
                        "{} {}",
                        options.registration_scopes.join(" "),
                        options.messaging_scopes.join(" ")
                    ))
                } else {
                    fails(format!("not granted: {}", missing.join(" ")))
                }
            }
            _ => unjudged("no token"),
        },
        "ask the Kernel team to grant them to this client; other names: channelDefaults.kernel.scopes",
    );
    findings.add(
        "token-scopes-narrowed",
        "a token has the scopes that were asked for and no others",
        granted(&|answer| match &answer.scope {
            None => unjudged("the answer does not tell the scopes"),
            Some(scope) => {
                let more: Vec<&str> = scope
                    .iter()
                    .filter(|word| !options.registration_scopes.contains(word))
                    .map(String::as_str)
                    .collect();
                if more.is_empty() { holds(scope.join(" ")) } else { fails(format!("also granted: {}", more.join(" "))) }
            }
        }),
        "no setting: the bridge's token could then change webhooks; ask the Kernel team to honour the scope parameter",
    );
    findings.add(
        "wrong-secret",
        "a wrong secret is answered with 401, or 400 and invalid_client",
        token(evidence.wrong_secret.as_ref(), |answer| {
            let told = matches!(answer.error.as_deref(), Some("invalid_client" | "unauthorized_client" | "invalid_grant"));
            match answer.status {
                401 => holds(refusal(answer)),
                400..=499 if told => holds(refusal(answer)),
                _ => fails(refusal(answer)),
            }
        }),
        "no setting: a rotated secret would be reported as InvalidResponse instead of CredentialsRejected; tell this project's maintainers",
    );
    findings.add(
        "ungranted-scope",
        "a scope that is not granted is left out of the answer's scope, or refused as invalid_scope",
        token(evidence.ungranted.as_ref(), |answer| match &answer.scope {
            _ if answer.error.as_deref() == Some("invalid_scope") => {
                holds(format!("refused: {}", refusal(answer)))
            }
            _ if answer.token.is_none() => fails(refusal(answer)),
            Some(scope) if scope.iter().any(|word| word == NO_SUCH_SCOPE) => fails("granted, whatever it is"),
            Some(_) => holds("left out"),
            None => fails("200, and the answer tells no scopes"),
        }),
        "no setting: a missing scope is not reported as ScopeNotGranted",
    );
    let coexists = setting(evidence.read_with_first.as_ref(), |answer| {
        let again = matches!(&evidence.again, Some(Ok(again)) if again.token.is_some());
        match answer.status {
            _ if !again => unjudged("no second token"),
            401 => fails("the first token is refused after a second was fetched"),
            status => holds(format!("the first token still gives {status}")),
        }
    });
    findings.add(
        "tokens-coexist",
        "a new token does not end the one before",
        coexists,
        "no setting: both roles fetch tokens of one client and would end each other's; ask the Kernel team",
    );
}

/// The scopes that were asked for and are not granted.
fn lacking(answer: &TokenAnswer, asked: &[String]) -> Vec<String> {
    match (&answer.token, &answer.scope) {
        (Some(_), None) => Vec::new(),
        (Some(_), Some(have)) => asked
            .iter()
            .filter(|word| !have.contains(word))
            .cloned()
            .collect(),
        (None, _) => asked.to_vec(),
    }
}

const NEEDS_WRITE: &str = "needs --write";

fn reading(evidence: &Evidence, findings: &mut Findings) {
    let read = evidence.read.as_ref();
    findings.add(
        "bad-token",
        "a token that is not one is answered with 401",
        setting(evidence.read_badly.as_ref(), |answer| match answer.status {
            401 => holds("401"),
            // There may be nothing to be authorized for.
            status if NO_READ_BACK.contains(&status) => unjudged(format!("Kernel answered {status}")),
            status => fails(status.to_string()),
        }),
        "no setting: a token that was revoked would not be fetched anew; tell this project's maintainers",
    );
    findings.add(
        "webhook-read-back",
        "the webhook can be read with GET",
        setting(read, |answer| match answer.status {
            200 | 204 => holds(answer.status.to_string()),
            status => fails(status.to_string()),
        }),
        unread(read),
    );
    findings.add(
        "webhook-shape",
        "the webhook is {\"webhooks\":{\"url\":…}}",
        setting(read, |answer| match (&answer.setting, answer.status) {
            (Setting::Url(_), 200) => holds("as assumed"),
            (Setting::Nothing, 204) => unjudged("no webhook is set"),
            (_, 200) => fails("another body"),
            (_, status) => unjudged(format!("Kernel answered {status}")),
        }),
        "no setting: tell this project's maintainers what the body is",
    );
    let shown = evidence.written.read_after_set.as_ref().or(read);
    findings.add(
        "webhook-key-shown",
        "the webhook is shown with its key",
        setting(shown, |answer| match answer.url().map(ExposeSecret::expose_secret) {
            None => unjudged("the webhook can't be read"),
            Some("") => unjudged(format!("no webhook is set; {NEEDS_WRITE}")),
            Some(url) if looks_masked(url) => fails("masked"),
            Some(_) => holds("whole"),
        }),
        "nothing: whose a webhook is is judged without its key; a webhook with an old key is then not noticed",
    );
    findings.add(
        "messaging-cannot-manage",
        "a token for sending can't read or change the webhook",
        by_messaging(evidence),
        "no setting: whoever takes over the bridge could re-point webhooks; ask the Kernel team to hold the two scopes apart",
    );
    findings.add(
        "messages-path",
        "messages are posted to kernel.messagesPath",
        answered(
            evidence.messages_path.as_ref(),
            |status| *status,
            |status| match status {
                404 => unjudged("a GET finds nothing there; only a message that is sent can tell"),
                status => holds(format!("there is something: a GET gives {status}")),
            },
        ),
        "kernel.messagesPath",
    );
}

/// What a token for sending may do with the webhook. That it can't be read with it does not say that it can't be changed.
fn by_messaging(evidence: &Evidence) -> Judged {
    let read = evidence.read_by_messaging.as_ref();
    let changed = evidence.written.set_by_messaging.as_ref();
    // Where nobody can read it, that this token can't either says nothing.
    let readable = !matches!(&evidence.read, Some(Ok(answer)) if NO_READ_BACK.contains(&answer.status));
    let reading = setting(read, |answer| match answer.status {
        401 | 403 if readable => holds(format!("a GET gives {}", answer.status)),
        200 | 204 => fails(format!("it can be read: a GET gives {}", answer.status)),
        _ if !readable => unjudged(format!("the webhook can't be read; {NEEDS_WRITE}")),
        status => unjudged(format!("a GET gives {status}; {NEEDS_WRITE}")),
    });
    let Some(changed) = changed else {
        return reading;
    };
    let changing = setting(Some(changed), |answer| match answer.status {
        401 | 403 => holds(format!("a PATCH gives {}", answer.status)),
        200..=299 => fails(format!("it can be changed: a PATCH gives {}", answer.status)),
        status => unjudged(format!("a PATCH gives {status}")),
    });
    // To change it is the worse of the two.
    if reading.0 == Verdict::DoesNotHold && changing.0 != Verdict::DoesNotHold {
        reading
    } else {
        changing
    }
}

/// What follows from a webhook that can't be read.
fn unread(read: Option<&Reached<SettingAnswer>>) -> &'static str {
    match read {
        Some(Ok(answer)) if NO_READ_BACK.contains(&answer.status) => {
            "if only the path differs: kernel.webhookPath. Else nothing: ReadBackUnsupported, the webhook is set on change and once a day; \
             channelDefaults.resyncPeriod changes how often"
        }
        Some(Ok(answer)) if matches!(answer.status, 401 | 403) => {
            "the registration scope does not allow it: PermissionDenied. Ask the Kernel team, or name another scope in channelDefaults.kernel.scopes"
        }
        _ => "no setting: each look would be reported as InvalidResponse; tell this project's maintainers",
    }
}

fn writing(options: &Options, evidence: &Evidence, findings: &mut Findings) {
    let written = &evidence.written;
    let why = match (&options.write, &written.refused) {
        (None, _) => NEEDS_WRITE.to_owned(),
        (Some(_), Some(refused)) => format!("nothing was written: {refused}"),
        (Some(_), None) if evidence.interrupted => "interrupted".to_owned(),
        (Some(_), None) => "a call before it failed".to_owned(),
    };
    let or_why = |judged: Judged, made: bool| if made { judged } else { unjudged(why.clone()) };
    let set = written.set.as_ref();
    findings.add(
        "webhook-set",
        "the webhook is set with PATCH, answered with 200, 201 or 204",
        or_why(
            setting(set, |answer| {
                if SET_STATUSES.contains(&answer.status) { holds(answer.status.to_string()) } else { fails(answer.status.to_string()) }
            }),
            set.is_some(),
        ),
        "404, 405: kernel.webhookPath. 403: the registration scope. 400: Kernel takes no such URL; another 2xx: tell this project's maintainers",
    );
    findings.add(
        "webhook-set-echo",
        "the answer of the PATCH names the webhook that was set, or nothing",
        or_why(
            setting(set, |answer| match &answer.setting {
                _ if !SET_STATUSES.contains(&answer.status) => {
                    unjudged(format!("Kernel answered {}", answer.status))
                }
                Setting::Nothing => holds("no body"),
                Setting::Unreadable => fails("another body"),
                Setting::Url(url) => match difference(url.expose_secret()) {
                    None => holds("the same URL"),
                    Some(Difference::Elsewhere | Difference::Empty) => fails("another URL"),
                    Some(difference) => holds(difference.words()),
                },
            }),
            set.is_some(),
        ),
        "no setting: each registration would be reported as InvalidResponse; tell this project's maintainers",
    );
    let read = written.read_after_set.as_ref();
    findings.add(
        "webhook-kept",
        "the webhook is read as it was set",
        or_why(
            setting(read, |answer| match answer.url() {
                None if NO_READ_BACK.contains(&answer.status) => unjudged("the webhook can't be read"),
                None => fails(format!("{} without a webhook", answer.status)),
                Some(url) => match difference(url.expose_secret()) {
                    None => holds("the same URL"),
                    Some(difference @ (Difference::Order | Difference::Spelling | Difference::Key)) => {
                        holds(format!("the same but for {}", difference.words()))
                    }
                    Some(difference) => fails(difference.words()),
                },
            }),
            read.is_some(),
        ),
        "no setting: a webhook would be taken for another party's; tell this project's maintainers",
    );
    let cleared = written.read_after_clear.as_ref();
    findings.add(
        "webhook-clear",
        "an empty URL clears the webhook",
        or_why(
            setting(written.clear.as_ref(), |answer| match cleared {
                _ if !SET_STATUSES.contains(&answer.status) => fails(answer.status.to_string()),
                Some(Ok(read)) if read.url().is_some() && !read.is_empty() => {
                    fails("taken, but the webhook is still there")
                }
                _ => holds(answer.status.to_string()),
            }),
            written.clear.is_some(),
        ),
        "webhook.onDelete and channelDefaults.webhook.onDelete: Keep; Clear would end as CleanupSkipped",
    );
    findings.add(
        "webhook-per-client",
        "each client has a webhook of its own (registration.oneWebhookPerClient)",
        per_client(options, evidence),
        "a webhook belongs to more than a client: only one channel of these clients can be served; ask the Kernel team for clients of separate applications",
    );
}

fn per_client(options: &Options, evidence: &Evidence) -> Judged {
    if options.second.is_none() {
        return unjudged("needs a second client (--second-client-id-file, --second-client-secret-file)");
    }
    let url = |read: Option<&Reached<SettingAnswer>>| {
        let answer = read?.as_ref().ok()?;
        answer
            .is_empty()
            .then(String::new)
            .or_else(|| Some(answer.url()?.expose_secret().to_owned()))
    };
    let (first, second) = (url(evidence.read.as_ref()), url(evidence.second_before.as_ref()));
    let after = url(evidence.written.second_after_set.as_ref());
    match (first, second, after) {
        (_, _, Some(after)) if difference(&after) != Some(Difference::Elsewhere) && !after.is_empty() => {
            fails("the second client sees the webhook that was set for the first")
        }
        (_, Some(before), Some(after)) if before == after => {
            holds("the second client's webhook did not change with the first's")
        }
        (Some(first), Some(second), _) if first != second => holds("the two clients have different webhooks"),
        (Some(_), Some(_), _) => unjudged(format!("both have the same webhook, or none; {NEEDS_WRITE}")),
        _ => unjudged("a webhook can't be read"),
    }
}

fn on_the_way(options: &Options, evidence: &Evidence, findings: &mut Findings) {
    let seen = &evidence.seen;
    let limit = options.kernel.timeout();
    let timed_out = [&evidence.token, &evidence.messaging]
        .into_iter()
        .any(|call| matches!(call, Some(Err(NoAnswer::TimedOut))));
    let slow = seen.slowest.max(if timed_out { limit } else { Duration::ZERO });
    findings.add(
        "timeout",
        "a call is answered within kernel.timeout",
        match (seen.answers, timed_out) {
            (_, true) => fails(format!("a call was not answered in {limit:?}")),
            (0, false) => unjudged("no call was answered"),
            _ => holds(format!(
                "the slowest of {} took {} ms",
                seen.answers,
                slow.as_millis()
            )),
        },
        "kernel.timeout",
    );
    let answers = |judged: Judged| {
        if seen.answers == 0 {
            unjudged("no call was answered")
        } else {
            judged
        }
    };
    findings.add(
        "answer-size",
        "an answer is small",
        answers(holds(format!(
            "the largest had {} bytes of {MAX_ANSWER} that are read",
            seen.largest
        ))),
        "",
    );
    findings.add(
        "correlator",
        "x-correlator is taken, and comes back",
        answers(noted(format!(
            "{} of {} answers carried ours",
            seen.echoed, seen.answers
        ))),
        "",
    );
    findings.add(
        "quota-headers",
        "no header tells of a quota (none is documented)",
        answers(noted(if seen.quota_headers.is_empty() {
            "none seen".to_owned()
        } else {
            seen.quota_headers.join(", ")
        })),
        "",
    );
    findings.add(
        "retry-after",
        "a 429 tells by Retry-After when to come again",
        match seen.limited.first() {
            None => unjudged("no 429 was seen, and none is provoked"),
            Some(&shape @ ("seconds" | "a date")) => holds(shape),
            Some(shape) => fails(*shape),
        },
        "registration.perSecond and registration.concurrent: lower, because Kernel does not say how long to wait",
    );
    findings.add(
        "webhook-call",
        "Kernel calls the URL with apikey and channelId in its query, as it was registered",
        unjudged("only a message of a user to a registered number can tell: the bridge takes every spelling that is known"),
        "",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::conformance::writes::Written;

    #[test]
    fn a_token_for_sending_is_judged_by_what_it_can_change() {
        use Verdict::{DoesNotHold, Holds, NotJudged};
        let answer = |status| Some(Ok(SettingAnswer::read(status, b"")));
        for (read, changed, verdict, observed) in [
            (answer(403), None, Holds, "a GET gives 403"),
            (answer(404), None, NotJudged, "a GET gives 404; needs --write"),
            (answer(200), None, DoesNotHold, "it can be read: a GET gives 200"),
            (answer(403), answer(403), Holds, "a PATCH gives 403"),
            (answer(404), answer(403), Holds, "a PATCH gives 403"),
            (
                answer(403),
                answer(204),
                DoesNotHold,
                "it can be changed: a PATCH gives 204",
            ),
            (
                answer(200),
                answer(201),
                DoesNotHold,
                "it can be changed: a PATCH gives 201",
            ),
            (
                answer(200),
                answer(403),
                DoesNotHold,
                "it can be read: a GET gives 200",
            ),
            (answer(403), answer(400), NotJudged, "a PATCH gives 400"),
            (
                answer(403),
                Some(Err(NoAnswer::TimedOut)),
                NotJudged,
                "no answer in time",
            ),
            (None, None, NotJudged, "not asked"),
        ] {
            let evidence = Evidence {
                read_by_messaging: read,
                written: Written {
                    set_by_messaging: changed,
                    ..Written::default()
                },
                ..Evidence::default()
            };
            assert_eq!(by_messaging(&evidence), (verdict, observed.to_owned()));
        }
        let evidence = Evidence {
            read: answer(404),
            read_by_messaging: answer(403),
            ..Evidence::default()
        };
        let (verdict, observed) = by_messaging(&evidence);
        assert_eq!(verdict, NotJudged);
        assert!(observed.contains("needs --write"), "{observed}");
    }

    #[test]
    fn what_failed_by_chance_is_not_judged() {
        let answer = |status| Ok(SettingAnswer::read(status, b""));
        let judge = |call: &Reached<SettingAnswer>| setting(Some(call), |_| holds("x")).0;
        assert_eq!(judge(&answer(200)), Verdict::Holds);
        assert_eq!(judge(&answer(501)), Verdict::Holds, "501 is an answer of its own");
        for by_chance in [answer(503), answer(429), Err(NoAnswer::TimedOut)] {
            assert_eq!(judge(&by_chance), Verdict::NotJudged, "{by_chance:?}");
        }
    }
}
