//! What a person on call is shown of what is kept: heads without contacts and bodies, by pages.
//!
//! Not for delivery. Upholds law 11: a page reads a bounded number of records, and holds the journal's lock for a few
//! thousand messages at a time; law 6: nothing is unsealed here.

use std::io;
use std::sync::Arc;

#[cfg(any(test, feature = "sim"))]
use super::Backend;
use super::format::{Record, decode_record};
use super::storage::Storage;
use super::writer::Shared;
use super::{AT_ONCE, Journal, Kept, Page, READ_TRIES, ReadError, Seq, Wanted};

/// Messages that are looked at for one page, whether or not they are wanted.
const FOR_A_PAGE: usize = 500_000;

impl Journal {
    /// Kept messages after the number `after`, at most so many. Fewer, or none, do not say that there are no more:
    /// [`Page::next`] does. What ends while a page is made is left out.
    ///
    /// # Errors
    /// [`ReadError::Io`]. A message that is damaged is counted, not shown.
    pub async fn kept(&self, after: Seq, wanted: Wanted, most: usize) -> Result<Page, ReadError> {
        self.looking(move |shared, storage| page(shared, storage, after, &wanted, most))
            .await
    }

    /// One kept message, without contact and body.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn head(&self, seq: Seq) -> Result<Kept, ReadError> {
        self.looking(move |shared, storage| head(shared, storage, seq))
            .await
    }

    async fn looking<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Shared, &dyn Storage) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        #[cfg(any(test, feature = "sim"))]
        if let Backend::Inline(_) = &self.backend {
            return look(&self.shared, &*self.storage);
        }
        let (shared, storage) = (Arc::clone(&self.shared), Arc::clone(&self.storage));
        let looked = tokio::task::spawn_blocking(move || look(&shared, &*storage)).await;
        looked.map_err(|error| ReadError::Io(io::Error::other(error)))?
    }
}

fn page(
    shared: &Shared,
    storage: &dyn Storage,
    after: Seq,
    wanted: &Wanted,
    most: usize,
) -> Result<Page, ReadError> {
    let mut page = Page {
        next: Some(after),
        ..Page::default()
    };
    for _ in 0..FOR_A_PAGE / AT_ONCE {
        let Some(after) = page.next else { break };
        let (found, next) = shared.state().kept_after(after, wanted, AT_ONCE);
        page.next = next;
        for (place, seq) in found.iter().enumerate() {
            match head(shared, storage, *seq) {
                Ok(kept) => page.messages.push(kept),
                // It ended meanwhile.
                Err(ReadError::NotKept(_)) => {}
                Err(error @ ReadError::Io(_)) => return Err(error),
                Err(_) => page.unreadable += 1,
            }
            if page.messages.len() >= most {
                if place + 1 < found.len() || page.next.is_some() {
                    page.next = Some(*seq);
                }
                return Ok(page);
            }
        }
    }
    Ok(page)
}

fn head(shared: &Shared, storage: &dyn Storage, seq: Seq) -> Result<Kept, ReadError> {
    for _ in 0..READ_TRIES {
        let known = {
            let state = shared.state();
            let place = state.position(seq).zip(state.standing(seq));
            place.map(|(place, standing)| (place, standing, state.note(seq)))
        };
        let ((position, salt), standing, note) = known.ok_or(ReadError::NotKept(seq))?;
        let (offset, len) = (position.place.offset, position.place.len as usize);
        let bytes = storage.read(position.segment, offset, len);
        // Written elsewhere meanwhile, and its old segment gone.
        let moved = shared
            .state()
            .position(seq)
            .is_none_or(|(now, _)| now != position);
        if moved {
            continue;
        }
        let bytes = bytes?;
        let Some((Record::Accepted(entry), _)) = decode_record(salt, offset, &bytes)
            .filter(|(record, _)| matches!(record, Record::Accepted(entry) if entry.head.seq == seq))
        else {
            return Err(ReadError::Damaged {
                seq,
                file: storage.name(position.segment),
                offset,
            });
        };
        return Ok(Kept {
            seq,
            address: entry.head.address,
            standing,
            dedup: entry.head.dedup,
            born_ms: entry.head.born_ms,
            accepted_at_ms: entry.head.accepted_at_ms,
            request: entry.head.request,
            trace: entry.trace.to_owned(),
            note,
            replayed: entry.head.replayed,
            bytes: u64::from(position.place.len),
        });
    }
    Err(ReadError::NotKept(seq))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{dead, delivered, entry, roomy};
    use super::super::{Direction, Kind, Outcome, Reference, Standing};
    use super::*;

    /// Ten messages, of which 3 and 6 are dead letters, 4 is gone and 5 was sent.
    async fn journal() -> Journal {
        let journal = Journal::in_memory_with(roomy());
        for number in 1..=10 {
            journal.append(vec![entry(number)]).await.unwrap();
        }
        journal.settle(Seq(3), dead("TooOld")).await.unwrap();
        journal.settle(Seq(6), dead("RefusedByAura")).await.unwrap();
        journal.settle(Seq(4), delivered()).await.unwrap();
        let reference = Some(Reference([1; 16]));
        journal
            .settle(Seq(5), Outcome::Delivered { reference })
            .await
            .unwrap();
        journal
    }

    async fn all(journal: &Journal, wanted: Wanted, most: usize) -> (Vec<u64>, usize) {
        let (mut seqs, mut pages, mut after) = (Vec::new(), 0, Some(Seq(0)));
        while let Some(from) = after {
            let page = journal.kept(from, wanted, most).await.unwrap();
            assert!(page.messages.len() <= most);
            seqs.extend(page.messages.iter().map(|kept| kept.seq.0));
            pages += 1;
            after = page.next;
        }
        (seqs, pages)
    }

    #[tokio::test]
    async fn pages_hold_each_kept_message_once_and_in_order() {
        let journal = journal().await;
        let every = [1, 2, 3, 5, 6, 7, 8, 9, 10].to_vec();
        for most in [1, 2, 3, 9, 100] {
            let (seqs, pages) = all(&journal, Wanted::default(), most).await;
            assert_eq!(seqs, every);
            assert_eq!(pages, every.len().div_ceil(most), "no page is empty");
        }
    }

    #[tokio::test]
    async fn only_what_is_wanted_is_shown() {
        let journal = journal().await;
        let of = |kind| Wanted {
            kind: Some(kind),
            ..Wanted::default()
        };
        assert_eq!(all(&journal, of(Kind::DeadLetter), 10).await.0, [3, 6]);
        assert_eq!(all(&journal, of(Kind::Sent), 10).await.0, [5]);
        assert_eq!(all(&journal, of(Kind::Pending), 2).await.0, [1, 2, 7, 8, 9, 10]);
        let to_aura = Wanted {
            direction: Some(Direction::ToAura),
            ..of(Kind::Pending)
        };
        assert_eq!(all(&journal, to_aura, 10).await.0, [2, 8, 10]);
        let elsewhere = Wanted {
            channel: Some([9; 16]),
            ..Wanted::default()
        };
        assert_eq!(all(&journal, elsewhere, 10).await.0, Vec::<u64>::new());
    }

    #[tokio::test]
    async fn a_head_says_why_a_message_is_kept_and_one_that_is_gone_has_none() {
        let journal = journal().await;
        let head = journal.head(Seq(3)).await.unwrap();
        assert!(matches!(&head.standing, Standing::DeadLetter { reason, .. } if reason == "TooOld"));
        assert_eq!((head.trace.as_str(), head.dedup), ("trace-3", entry(3).dedup));
        assert!(matches!(
            journal.head(Seq(4)).await,
            Err(ReadError::NotKept(Seq(4)))
        ));
    }

    #[tokio::test]
    async fn a_page_looks_at_a_bounded_number_of_messages_at_once_and_still_finds_the_last() {
        let journal = Journal::in_memory_with(roomy());
        let count = AT_ONCE as u64 * 2 + 10;
        let mut number = 1;
        while number <= count {
            let until = (number + 500).min(count + 1);
            journal
                .append((number..until).map(entry).collect())
                .await
                .unwrap();
            number = until;
        }
        journal.settle(Seq(count), dead("TooOld")).await.unwrap();
        let wanted = Wanted {
            kind: Some(Kind::DeadLetter),
            ..Wanted::default()
        };
        let (found, next) = journal.shared.state().kept_after(Seq(0), &wanted, AT_ONCE);
        assert_eq!((found, next), (Vec::new(), Some(Seq(AT_ONCE as u64))));
        assert_eq!(all(&journal, wanted, 10).await, (vec![count], 1));
    }
}
