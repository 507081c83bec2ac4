//! Dead letters out to a file, and in again: the calls. What a line holds is `export`'s.

use std::collections::HashSet;

use axum::{
    Json,
    extract::{Request, State as Extract},
    http::header,
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Answer, Asked, At, CHUNK,
    answers::Refused,
    audit::Change,
    declares,
    desk::Desk,
    export, read,
    view::{self, Filter, ListQuery, Wish},
};
use crate::{
    bridge::state::now_ms,
    journal::{Appended, Kind, Seq, Wanted},
};

/// The largest import, in bytes: what one commit of the journal holds.
const MAX_IMPORT: usize = 16 << 20;
/// The most of an export in one answer, in bytes, but for its last message.
const MAX_EXPORT: usize = 8 << 20;
/// Where the next page of an export begins.
const NEXT: &str = "next-cursor";

pub(super) async fn export<D: Desk>(Extract(office): At<D>, query: Asked<ListQuery>) -> Answer {
    office.may_show()?;
    let filter = Filter {
        wish: Some(Wish::Dead),
        ..Filter::new(&query.get()?)?
    };
    let found = office.find(&filter, &HashSet::new()).await?;
    let keys = office.state.keys.load_full();
    let (mut text, mut seqs, mut next) = (String::new(), Vec::new(), found.next);
    for (place, kept) in found.messages.iter().enumerate() {
        // Whoever ended meanwhile, or can't be opened any more, is left out.
        if let Ok(entry) = office.state.journal.read(kept.seq).await
            && let Some(line) = export::line(kept, &entry, &keys)
        {
            text.push_str(&serde_json::to_string(&line).unwrap_or_default());
            text.push('\n');
            seqs.push(kept.seq);
        }
        if text.len() > MAX_EXPORT && place + 1 < found.messages.len() {
            next = Some(kept.seq);
            break;
        }
    }
    office.audit.tell(&Change {
        verb: "export",
        channel: filter.channel,
        seqs: &seqs,
        outcome: "done",
        ..Change::default()
    });
    let mut response = ([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response();
    if let Some(next) = next {
        response.headers_mut().insert(NEXT, next.0.into());
    }
    Ok(response)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ImportQuery {
    because: Option<String>,
    dry_run: bool,
}

pub(super) async fn import<D: Desk>(
    Extract(office): At<D>,
    query: Asked<ImportQuery>,
    request: Request,
) -> Answer {
    let query = query.get()?;
    let because = view::because(query.because.as_deref())?;
    let (parts, body) = request.into_parts();
    if !declares(&parts.headers, "application/x-ndjson") {
        return Err(Refused::NotDeclared("application/x-ndjson"));
    }
    let body = read(&parts.headers, body, MAX_IMPORT).await?;
    let text = str::from_utf8(&body).map_err(|_| Refused::Wrong("not UTF-8".to_owned()))?;
    let keys = office.state.keys.load_full();
    let mut entries = Vec::new();
    for (place, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let entry = export::Line::parse(line).and_then(|line| line.entry(&keys, now_ms()));
        entries.push(entry.map_err(|error| Refused::Wrong(format!("line {}: {error}", place + 1)))?);
    }
    let lines = entries.len();
    // One that is still a dead letter is known, also where its id is not remembered any more.
    let dead = Wanted {
        kind: Some(Kind::DeadLetter),
        ..Wanted::default()
    };
    let mut after = Some(Seq(0));
    while let (Some(from), false) = (after, entries.is_empty()) {
        let page = office.state.journal.kept(from, dead, CHUNK).await?;
        let kept: HashSet<[u8; 16]> = page.messages.iter().map(|kept| kept.dedup.0).collect();
        entries.retain(|entry| !kept.contains(&entry.dedup.0));
        after = page.next;
    }
    if !query.dry_run {
        let result = if entries.is_empty() {
            Ok(Vec::new())
        } else {
            office.state.journal.append(entries).await.map_err(Refused::from)
        };
        let seqs: Vec<Seq> = result
            .iter()
            .flatten()
            .filter_map(|one| match one {
                Appended::New(seq) => Some(*seq),
                Appended::Duplicate(_) => None,
            })
            .collect();
        office.audit.tell(&Change {
            verb: "import",
            seqs: &seqs,
            outcome: result.as_ref().map_or_else(Refused::code, |_| "done"),
            because: &because,
            ..Change::default()
        });
        result?;
        return Ok(Json(json!({"imported": seqs.len(), "known": lines - seqs.len()})).into_response());
    }
    let imported = entries.len();
    Ok(Json(json!({"imported": imported, "known": lines - imported, "dryRun": true})).into_response())
}
