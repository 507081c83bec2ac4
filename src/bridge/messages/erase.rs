//! Takes one user out of the journal, and gives a receipt: what waits for him is given up, what was given up goes, and
//! what stands in the files of his messages is overwritten.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State as Extract},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, At, CHUNK,
    answers::Refused,
    audit::Change,
    desk::Desk,
    office::Office,
    order,
    view::{self, ContactPrefix, Wrong},
};
use crate::{
    api::ChannelId,
    bridge::{entry, state::now_ms},
    journal::{AppendError, Erased, Kept, Kind, Seq, Standing, Wanted, Whose},
    keys::Keys,
};

/// How often, and how many times, it is looked whether what was given up has ended: what is under way to the other side
/// takes as long as that side does, and is told as left.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOKS: usize = 50;

/// Who is meant: by his number, or by the digest that logs show.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct EraseOrder {
    number: Option<String>,
    contact: Option<String>,
    channel: Option<String>,
    because: Option<String>,
    dry_run: bool,
}

/// What is kept of a user.
#[derive(Default)]
struct Standings {
    pending: Vec<Seq>,
    dead: Vec<Seq>,
    sent: u64,
}

pub(super) async fn erase<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    let order: EraseOrder = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let whose = whose(&order, &office.state.keys.load())?;
    let digest: String = view::hex(&whose.contact).chars().take(12).collect();
    let kept = standings(&office, &whose).await?;
    if order.dry_run {
        return Ok(Json(json!({
            "contact": digest,
            "channel": order.channel,
            "dryRun": true,
            "wouldGiveUp": {"pending": kept.pending.len(), "deadLetters": kept.dead.len()},
            "sent": kept.sent,
        }))
        .into_response());
    }
    let mut given_up = GivenUp::default();
    let result = carry_out(&office, &whose, kept, &mut given_up).await;
    let receipt = result.as_ref().ok().map(|erased| {
        json!({
            "time": view::time(now_ms()),
            "contact": digest,
            "channel": order.channel,
            "gaveUp": {"pending": given_up.pending.len(), "deadLetters": given_up.dead},
            "overwritten": erased.records,
            "sentAmongThem": erased.sent,
            "files": erased.segments,
            "left": erased.left,
            "complete": erased.left == 0,
            "because": because,
        })
    });
    office.audit.tell(&Change {
        verb: "erase",
        channel: whose.channel.map(ChannelId::from_bytes),
        contact: Some(digest),
        seqs: &given_up.pending,
        outcome: match &result {
            Ok(erased) if erased.left == 0 => "done",
            Ok(_) => "incomplete",
            Err(refused) => refused.code(),
        },
        receipt: receipt.as_ref(),
        because: &because,
        ..Change::default()
    });
    result?;
    Ok(Json(receipt.unwrap_or(Value::Null)).into_response())
}

/// What was given up on the way.
#[derive(Default)]
struct GivenUp {
    pending: Vec<Seq>,
    dead: usize,
}

async fn carry_out<D: Desk>(
    office: &Office<D>,
    whose: &Whose,
    kept: Standings,
    given_up: &mut GivenUp,
) -> Result<Erased, Refused> {
    let journal = &office.state.journal;
    for seq in kept.pending {
        office.desk.give_up(seq).await?;
        given_up.pending.push(seq);
    }
    for _ in 0..LOOKS {
        let waits = |seq: &Seq| journal.kind(*seq) == Some(Kind::Pending);
        if !given_up.pending.iter().any(waits) {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    for seq in kept.dead.iter().chain(&given_up.pending) {
        // What was under way may have arrived.
        if journal.kind(*seq) == Some(Kind::DeadLetter) {
            office.forget(*seq).await?;
        }
    }
    given_up.dead = kept.dead.len();
    let erased = journal.erase(whose.clone()).await;
    erased.map_err(|error| match error {
        AppendError::Io(why) => Refused::NotNow(format!("a part may be erased: {why}")),
        error => error.into(),
    })
}

fn whose(order: &EraseOrder, keys: &Keys) -> Result<Whose, Wrong> {
    let contact = match (&order.number, &order.contact) {
        (Some(number), None) => entry::contact_key(&digits(number)?, keys).0.to_vec(),
        (None, Some(digest)) => ContactPrefix::parse(digest)?.bytes().to_vec(),
        _ => return Err(Wrong("give either number or contact".to_owned())),
    };
    let channel = order.channel.as_deref().map(view::channel).transpose()?;
    Ok(Whose {
        channel: channel.map(|channel| *channel.as_bytes()),
        contact,
    })
}

/// A phone number as WhatsApp writes it: with its country, and nothing but digits.
fn digits(number: &str) -> Result<String, Wrong> {
    let written = |c: char| c.is_ascii_digit() || " +-().".contains(c);
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    if number.trim().chars().all(written) && (6..=20).contains(&digits.len()) {
        Ok(digits)
    } else {
        Err(Wrong(
            "number: a phone number with its country, such as +34600000001".to_owned(),
        ))
    }
}

/// All of it is looked at, however much: what is overlooked would not be erased.
async fn standings<D: Desk>(office: &Office<D>, whose: &Whose) -> Result<Standings, Refused> {
    let wanted = Wanted {
        channel: whose.channel,
        ..Wanted::default()
    };
    let is = |kept: &&Kept| kept.address.contact.0.starts_with(&whose.contact);
    let (mut found, mut after) = (Standings::default(), Some(Seq(0)));
    while let Some(from) = after {
        let page = office.state.journal.kept(from, wanted, CHUNK).await?;
        for kept in page.messages.iter().filter(is) {
            match kept.standing {
                Standing::Pending => found.pending.push(kept.seq),
                Standing::DeadLetter { .. } => found.dead.push(kept.seq),
                Standing::Sent { .. } => found.sent += 1,
            }
        }
        after = page.next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_as_people_write_it() {
        for text in [
            "34600000001",
            "+34 600 000 001",
            "+34-600-000-001",
            "(34) 600.000001",
        ] {
            assert_eq!(digits(text).unwrap(), "34600000001", "{text}");
        }
        for text in ["", "12345", "wamid.X", "34600000001x", "0a1b2c3d4e5f"] {
            assert!(digits(text).is_err(), "{text}");
        }
    }
}
