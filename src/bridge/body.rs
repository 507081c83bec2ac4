//! Reads a request's body within bounds: its size, its time, and the memory that all bodies together take.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::HeaderMap};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{body::Body as _, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{public::Refusal, state::State};

/// Bytes of bodies that are held at once, until they are durable. Callers beyond are asked to come back.
const ALL_BODIES: usize = 128 << 20;
/// The most that is set aside before anything has come: a declared length is only a promise.
const AT_FIRST: u64 = 64 << 10;

/// The room for all bodies.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ALL_BODIES))
}

impl State {
    /// Reads a body of at most `limit` bytes, and the room that it takes until that is dropped. A declared size over the
    /// limit is refused before anything is read.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit: usize,
        patience: Duration,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        within(&self.bodies, headers, body, limit, patience).await
    }
}

/// Reads a body of at most `limit` bytes that does not count among all: of a listener that few may call.
pub(super) async fn alone(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    patience: Duration,
) -> Result<Bytes, Refusal> {
    let room = Arc::new(Semaphore::new(limit));
    within(&room, headers, body, limit, patience)
        .await
        .map(|(body, _)| body)
}

async fn within(
    room: &Arc<Semaphore>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    patience: Duration,
) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit as u64) {
        return Err(Refusal::TooLarge);
    }
    let read = take(body, limit, room.clone());
    tokio::time::timeout(patience, read)
        .await
        .unwrap_or(Err(Refusal::TooSlow))
}

async fn take(
    mut body: Body,
    limit: usize,
    room: Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let mut taken = room
        .clone()
        .try_acquire_many_owned(0)
        .map_err(|_| Refusal::NotNow)?;
    let hint = body.size_hint().exact().unwrap_or_default().min(AT_FIRST);
    let mut bytes = BytesMut::with_capacity(usize::try_from(hint).unwrap_or_default());
    while let Some(frame) = body.frame().await {
        // Trailers say nothing that matters.
        let Ok(data) = frame.map_err(|_| Refusal::Malformed)?.into_data() else {
            continue;
        };
        if data.len() > limit - bytes.len() {
            return Err(Refusal::TooLarge);
        }
        let more = u32::try_from(data.len()).map_err(|_| Refusal::TooLarge)?;
        taken.merge(
            room.clone()
                .try_acquire_many_owned(more)
                .map_err(|_| Refusal::NotNow)?,
        );
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> Body {
        Body::from(vec![b' '; bytes])
    }

    #[tokio::test]
    async fn all_bodies_together_have_a_bound_and_give_their_room_back() {
        let room = Arc::new(Semaphore::new(100));
        let (first, held) = take(body(60), 80, room.clone()).await.unwrap();
        assert_eq!(first.len(), 60);
        assert_eq!(
            take(body(60), 80, room.clone()).await.unwrap_err(),
            Refusal::NotNow
        );
        assert_eq!(
            take(body(81), 80, room.clone()).await.unwrap_err(),
            Refusal::TooLarge
        );
        assert_eq!(room.available_permits(), 40, "who was refused keeps nothing");
        drop(held);
        assert!(take(body(60), 80, room.clone()).await.is_ok());
        assert_eq!(room.available_permits(), 100);
    }
}
