//! The bytes alone: what is written reads back, at its place only, and no input panics.

use proptest::prelude::*;

use crate::journal::format::{
    Accepted, Fault, HeaderBytes, Link, Record, SEGMENT_HEADER, Salt, SegmentHeader, decode_frame,
    decode_record, encode_frame,
};
use crate::journal::replay::scan;
use crate::journal::{DedupKey, Direction, Outcome, Seq};

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
    let accepted = Accepted {
        seq: Seq(7),
        direction: Direction::ToKernel,
        channel: [1; 16],
        contact: "+34600",
        dedup: DedupKey([2; 16]),
        accepted_at_ms: 3,
        body,
    };
    vec![
        Record::Accepted(accepted),
        Record::Settled {
            seq: Seq(1),
            outcome: Outcome::Delivered {
                reference: Some("r".into()),
            },
        },
        Record::Settled {
            seq: Seq(2),
            outcome: Outcome::DeadLetter { reason: "why".into() },
        },
        Record::Trimmed { first_live: 3 },
    ]
}

fn frame_at(offset: usize, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(&mut frame, SALT, offset as u64, 9, &records(body)).unwrap();
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
        prop_assert_eq!(frame.end, file.len());
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
    fn a_torn_frame_looks_torn_and_a_changed_one_looks_damaged(
        body in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..4000),
        zeros in 0_usize..1500,
        cut: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        let mut body = body;
        body.extend(std::iter::repeat_n(0, zeros));
        let whole = frame_at(192, &body);
        let mut cut_off = whole.clone();
        cut_off.truncate(192 + cut.index(whole.len() - 192));
        prop_assert!(decode_frame(SALT, &cut_off, 192).unwrap_err().is_torn_write());

        let mut flipped = whole.clone();
        flipped[192 + cut.index(whole.len() - 192)] ^= 1_u8 << bit;
        prop_assert!(!decode_frame(SALT, &flipped, 192).unwrap_err().is_torn_write());
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
    assert_eq!(&bytes[..12], b"AWOJRNL\n\x01\0\0\0");
    assert_eq!(bytes[16..24], 5_u64.to_le_bytes());
    let file = frame_at(64, b"hello");
    assert_eq!(&file[64..68], b"FRM1");
    assert_eq!(file.len() % 32, 0);
    assert_eq!(file[72..76], 4_u32.to_le_bytes());
    assert_eq!(file[104], 1);
    assert_eq!(file.last(), Some(&0x5A));
}
