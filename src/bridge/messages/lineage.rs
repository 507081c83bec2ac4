//! What a person does about a journal that was restored or copied: sees what it withholds, releases it or gives it up.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Request, State as Extract},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, At, answers::Refused, audit::Change, desk::Desk, office::Office, order, view};
use crate::{api::ChannelId, delivery::OfChannel, journal::Seq, lineage::Verdict};

/// Whose messages are meant.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WithheldOrder {
    channel: Option<String>,
    because: Option<String>,
    dry_run: bool,
}

/// What is so of the journal, what it withholds for a person, and what waits for the judgement.
pub(super) async fn show<D: Desk>(Extract(office): At<D>) -> Answer {
    let (verdict, why) = match office.state.lineage.verdict() {
        None => ("unjudged", None),
        Some(Verdict::Current) => ("current", None),
        Some(Verdict::Replaced) => ("replaced", None),
        Some(Verdict::Rewound(why)) => ("rewound", Some(why.as_str())),
    };
    let standing = office.desk.standing().await?;
    let withheld: BTreeMap<String, usize> = standing
        .withheld
        .into_iter()
        .map(|(channel, count)| (channel.to_string(), count))
        .collect();
    Ok(Json(json!({
        "verdict": verdict,
        "why": why,
        "withheld": withheld,
        "unjudged": standing.unjudged,
    }))
    .into_response())
}

/// What is withheld is delivered, whatever its age. If all is meant, also what waits for the judgement.
pub(super) async fn release<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    let order: WithheldOrder = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let of = meant(order.channel.as_deref())?;
    if order.dry_run {
        let (withheld, unjudged) = count(&office, of).await?;
        let count = withheld + if of.is_none() { unjudged } else { 0 };
        return Ok(Json(json!({"released": count, "dryRun": true})).into_response());
    }
    let released = office.release(of).await;
    tell(&office, "releaseJournal", of, &because, &released);
    Ok(Json(json!({"released": released?.len(), "dryRun": false})).into_response())
}

/// What is withheld becomes dead letters, as many as may at once; the answer says how many are left.
pub(super) async fn give_up<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    let order: WithheldOrder = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let of = meant(order.channel.as_deref())?;
    if order.dry_run {
        let (left, _) = count(&office, of).await?;
        return Ok(Json(json!({"dropped": left, "left": left, "dryRun": true})).into_response());
    }
    let dropped = office.desk.give_up_withheld(of).await.map_err(Refused::from);
    tell(&office, "dropJournal", of, &because, &dropped);
    let (dropped, (left, _)) = (dropped?.len(), count(&office, of).await?);
    Ok(Json(json!({"dropped": dropped, "left": left, "dryRun": false})).into_response())
}

fn meant(channel: Option<&str>) -> Result<OfChannel, Refused> {
    Ok(channel.map(view::channel).transpose()?)
}

/// How many of those meant wait for a person, and how many of all for the judgement.
async fn count<D: Desk>(office: &Office<D>, of: OfChannel) -> Result<(usize, usize), Refused> {
    let standing = office.desk.standing().await?;
    let is_meant = |channel: &ChannelId| of.is_none_or(|meant| meant == *channel);
    let meant = standing.withheld.iter().filter(|(channel, _)| is_meant(channel));
    Ok((meant.map(|(_, count)| count).sum(), standing.unjudged))
}

fn tell<D: Desk>(
    office: &Office<D>,
    verb: &'static str,
    channel: OfChannel,
    because: &str,
    result: &Result<Vec<Seq>, Refused>,
) {
    office.audit.tell(&Change {
        verb,
        channel,
        seqs: result.as_deref().unwrap_or_default(),
        outcome: result.as_ref().map_or_else(Refused::code, |_| "done"),
        because,
        ..Change::default()
    });
}
