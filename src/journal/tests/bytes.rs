//! The bytes alone: what is written reads back, at its place only, and no input panics.

use proptest::prelude::*;

use crate::journal::format::{
    Accepted, Fault, Head, HeaderBytes, Link, Part, Record, SEGMENT_HEADER, Salt, SegmentHeader,
    decode_frame, decode_record, encode_frame, holds_frames_of,
};
use crate::journal::replay::scan;
use crate::journal::{
    Address, ContactKey, DedupKey, Direction, Lane, MAX_TRACE_BYTES, Note, Origin, Outcome, Reference,
    RequestId, Seq,
};

const SALT: Salt = Salt { number: 5, nonce: 99 };

fn header() -> SegmentHeader {
    SegmentHeader {
        salt: SALT,
        previous: Link { number: 4, len: 96 },
        next_seq: 7,
        newest_ms: 8,
    }
}

fn records(body: &[u8]) -> Vec<Record<'_>> {
    let address = Address {
        direction: Direction::ToKernel,
        channel: [1; 16],
        environment: [2; 8],
        tag: [3; 6],
        contact: ContactKey([4; 16]),
    };
    let head = Head {
        seq: Seq(7),
        address,
        written_again: true,
        replayed: false,
        accepted_at_ms: 3,
        born_ms: None,
        key: 5,
        dedup: DedupKey([2; 16]),
        request: Some(RequestId([6; 16])),
        origin: Origin::Resent { times: 63, part: 255 },
    };
    let settled = |seq, outcome| Record::Settled {
        seq: Seq(seq),
        outcome,
        at_ms: 8,
    };
    let reference = Some(Reference([9; 16]));
    vec![
        Record::Accepted(Accepted {
            head,
            trace: "00-trace",
            sealed: body,
        }),
        settled(1, Outcome::Delivered { reference }),
        settled(2, Outcome::DeadLetter { reason: "why".into() }),
        settled(3, Outcome::Delivered { reference: None }),
        settled(
            4,
            Outcome::Dropped {
                reason: "Expired".into(),
            },
        ),
        Record::Trimmed { first_live: 3 },
        Record::Noted {
            seq: Seq(5),
            note: Note {
                attempts: 6,
                parts: 7,
                unknown: true,
                begun: true,
                told: 7,
            },
        },
        Record::Part {
            seq: Seq(6),
            part: 500,
            reference: Reference([9; 16]),
        },
        Record::Parked {
            lane: Lane {
                direction: Direction::ToAura,
                channel: [1; 16],
                contact: ContactKey([4; 16]),
            },
            parked: true,
        },
        Record::Erased(Head {
            address: Address {
                contact: ContactKey([0; 16]),
                ..address
            },
            key: 0,
            request: None,
            origin: Origin::default(),
            ..head
        }),
    ]
}

fn frame_at(offset: usize, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let records = records(body);
    let parts: Vec<_> = records.iter().map(Part::Record).collect();
    encode_frame(&mut frame, SALT, offset as u64, 9, &parts).unwrap();
    let mut file = vec![0; offset];
    file[..SEGMENT_HEADER].copy_from_slice(&header().encode());
    file.extend_from_slice(&frame);
    file
}

proptest! {
    #[test]
    fn a_frame_reads_back_as_it_was_written(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let file = frame_at(64, &body);
        let frame = decode_frame(SALT, &file, 64).unwrap();
        prop_assert_eq!(frame.end, file.len() as u64);
        prop_assert_eq!(frame.newest_ms, 9);
        for (place, record) in &frame.records {
            let at = usize::try_from(place.offset).unwrap();
            prop_assert_eq!(decode_record(SALT, place.offset, &file[at..]), Some((record.clone(), place.len as usize)));
        }
        let read: Vec<_> = frame.records.into_iter().map(|(_, record)| record).collect();
        prop_assert_eq!(read, records(&body));
    }

    #[test]
    fn a_frame_is_not_valid_in_another_segment_or_at_another_place(number in 1_u64..1000, nonce: u64, shift in 1_usize..20) {
        let file = frame_at(64, b"hello");
        if number != SALT.number {
            prop_assert_eq!(decode_frame(Salt { number, ..SALT }, &file, 64).unwrap_err(), Fault::Header);
        }
        if nonce != SALT.nonce {
            prop_assert_eq!(decode_frame(Salt { nonce, ..SALT }, &file, 64).unwrap_err(), Fault::Header);
        }
        let mut moved = vec![0; 64 + 32 * shift];
        moved.extend_from_slice(&file[64..]);
        prop_assert_eq!(decode_frame(SALT, &moved, 64 + 32 * shift).unwrap_err(), Fault::Header);
        let record = &file[96..];
        prop_assert!(decode_record(SALT, 96, record).is_some());
        prop_assert!(decode_record(SALT, 128, record).is_none());
        let other = Salt { number: 6, ..SALT };
        prop_assert!(decode_record(other, 96, record).is_none());
    }

    #[test]
    fn a_frame_that_is_not_whole_or_was_changed_is_none(
        body in proptest::collection::vec(any::<u8>(), 0..4000),
        stale in proptest::collection::vec(any::<u8>(), 0..4000),
        cut: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        let whole = frame_at(192, &body);
        let at = 192 + cut.index(whole.len() - 192);
        let mut cut_off = whole.clone();
        cut_off.truncate(at);
        // Behind what was written stands what the file held before.
        cut_off.extend_from_slice(&stale);
        if cut_off.get(..whole.len()) != Some(&whole[..]) {
            prop_assert!(decode_frame(SALT, &cut_off, 192).is_err());
        }
        let mut flipped = whole.clone();
        flipped[at] ^= 1_u8 << bit;
        prop_assert!(decode_frame(SALT, &flipped, 192).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), offset in 0_usize..400) {
        let _ = SegmentHeader::decode(&bytes);
        let _ = decode_frame(SALT, &bytes, offset);
        let _ = decode_record(SALT, offset as u64, &bytes);
        let _ = scan(&header(), &bytes, None);
        let _ = scan(&header(), &bytes, Some(offset as u64));
    }

    #[test]
    fn bytes_changed_at_random_never_panic_and_never_give_another_message(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let whole = frame_at(64, b"hello");
        let mut file = whole.clone();
        for (place, byte) in changes {
            let at = place.index(file.len());
            file[at] = byte;
        }
        if let Ok((frames, _)) = scan(&header(), &file, None) {
            for frame in frames {
                let read: Vec<_> = frame.records.into_iter().map(|(_, record)| record).collect();
                prop_assert_eq!(read, records(b"hello"));
            }
        }
    }
}

#[test]
fn a_header_reads_back_and_every_flipped_bit_in_it_is_noticed() {
    let bytes = header().encode();
    assert_eq!(SegmentHeader::decode(&bytes), HeaderBytes::Valid(header()));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHeader::decode(&flipped), HeaderBytes::Bad, "bit {bit}");
    }
}

#[test]
fn the_layout_is_the_documented_one() {
    let bytes = header().encode();
    assert_eq!(&bytes[..12], b"AWOJRNL\n\x02\0\0\0");
    assert_eq!(bytes[16..24], 5_u64.to_le_bytes());
    let file = frame_at(64, b"hello");
    assert_eq!(&file[64..68], b"FRM2");
    assert_eq!(file.len() % 32, 0);
    assert_eq!(file[72..76], 10_u32.to_le_bytes());
    assert_eq!(file[76..80], 5_u32.to_le_bytes());
    assert_eq!(file[104..107], [1, 1, 1], "accepted, to Kernel, written again");
    assert!(holds_frames_of(5, &file) && !holds_frames_of(6, &file));
}

/// Of a trace there was one byte of length before: what was written so reads the same.
#[test]
fn a_trace_of_any_length_that_is_kept_reads_back() {
    for len in [0, 1, 255, 256, 511, MAX_TRACE_BYTES] {
        let trace = "t".repeat(len);
        let records = records(b"hello");
        let Record::Accepted(accepted) = &records[0] else {
            panic!("the first is a message")
        };
        let record = Record::Accepted(Accepted {
            trace: &trace,
            ..*accepted
        });
        let mut frame = Vec::new();
        encode_frame(&mut frame, SALT, 64, 9, &[Part::Record(&record)]).unwrap();
        let content = &frame[40..];
        let [low, high] = u16::try_from(len).unwrap().to_le_bytes();
        // Beside the flag that it was written again.
        assert_eq!((content[3], content[2]), (low, 1 | high << 2));
        assert_eq!(decode_record(SALT, 96, &frame[32..]).unwrap().0, record);
    }
}
