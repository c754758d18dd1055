//! What each operation does, against models that are plain to see; and what is wrong with descriptors.

use ioasid_devices::dsa::spec::completion::Record;
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Flags, Operation};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::bench::*;

fn bench() -> Bench {
    Bench::ready(Queue::DEDICATED)
}

/// A descriptor with bytes of its own from byte 40 on.
fn specific(operation: Operation, from: u64, to: u64, size: u32, bytes: &[(usize, &[u8])]) -> Descriptor {
    let mut descriptor = descriptor(operation, Flags::empty(), 0, from, to, size);
    for (at, data) in bytes {
        descriptor.as_mut_bytes()[*at..*at + data.len()].copy_from_slice(data);
    }
    descriptor
}

fn with_byte(mut descriptor: Descriptor, at: usize, value: u8) -> Descriptor {
    descriptor.as_mut_bytes()[at] = value;
    descriptor
}

/// CRC-32C, bit by bit.
fn crc(seed: u32, data: &[u8]) -> u32 {
    !data.iter().fold(!seed, |remainder, byte| {
        (0..8).fold(remainder ^ u32::from(*byte), |it, _| it >> 1 ^ if it & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// The T10 CRC, bit by bit.
fn guard(data: &[u8]) -> u16 {
    data.iter().fold(0, |remainder, byte| {
        (0..8).fold(remainder ^ u16::from(*byte) << 8, |it, _| it << 1 ^ if it >> 15 == 1 { 0x8BB7 } else { 0 })
    })
}

#[test]
fn a_no_op_and_a_cache_flush_succeed() {
    let bench = bench();
    assert_eq!(bench.run(&descriptor(Operation::NoOp, Flags::empty(), 0, 0, 0, 0)).status, 1);
    assert_eq!(bench.run(&descriptor(Operation::CacheFlush, Flags::empty(), 0, 0, TARGET, 99)).status, 1);
}

#[test]
fn a_compare_says_where_the_first_difference_is() {
    let bench = bench();
    let data = pattern(40_000, 3);
    bench.world.set(SOURCE, &data);
    bench.world.set(TARGET, &data);
    let compare = specific(Operation::Compare, SOURCE, TARGET, 40_000, &[]);
    let record = bench.run(&compare);
    assert_eq!((record.status, record.result, record.completed.get()), (1, 0, 0));
    bench.world.set(TARGET + 33_333, &[data[33_333] ^ 1]);
    let record = bench.run(&compare);
    assert_eq!((record.status, record.result, record.completed.get()), (1, 1, 33_333));
    for (expected, status) in [(0, 2), (1, 1), (2, 2), (3, 1)] {
        let checks = with_byte(with_flags(compare, Flags::CHECK_RESULT), 40, expected);
        assert_eq!(bench.run(&checks).status, status);
    }
}

#[test]
fn a_pattern_is_compared_and_filled_from_its_lowest_byte_on() {
    let bench = bench();
    let fill = descriptor(Operation::Fill, Flags::empty(), 0, 0x0807_0605_0403_0201, TARGET + 3, 20_005);
    assert_eq!(bench.run(&fill).status, 1);
    let expected: Vec<u8> = (1..=8).cycle().take(20_005).collect();
    assert_eq!(bench.world.get(TARGET + 3, 20_005), expected);
    assert_eq!(bench.world.get(TARGET + 3 + 20_005, 1), [0]);
    let compare = specific(Operation::ComparePattern, TARGET + 3, 0x0807_0605_0403_0201, 20_005, &[]);
    assert_eq!(bench.run(&compare).result, 0);
    bench.world.set(TARGET + 3 + 20_004, &[0]);
    let record = bench.run(&compare);
    assert_eq!((record.result, record.completed.get()), (1, 20_004));
}

#[test]
fn a_dualcast_writes_both_destinations() {
    let bench = bench();
    let (first, second) = (TARGET + 0x123, TARGET + 0x8123);
    bench.world.set(SOURCE + 1, &pattern(9000, 7));
    let dualcast = specific(Operation::Dualcast, SOURCE + 1, first, 9000, &[(40, &second.to_le_bytes())]);
    assert_eq!(bench.run(&dualcast).status, 1);
    assert_eq!(bench.world.get(first, 9000), pattern(9000, 7));
    assert_eq!(bench.world.get(second, 9000), pattern(9000, 7));
    let differ = specific(Operation::Dualcast, SOURCE, first, 9000, &[(40, &(second + 1).to_le_bytes())]);
    assert_eq!(bench.run(&differ).status, 0x17);
    for overlap in [first, SOURCE + 0x123] {
        let overlap = specific(Operation::Dualcast, SOURCE, first, 9000, &[(40, &overlap.to_le_bytes())]);
        assert_eq!(bench.run(&overlap).status, 0x16);
    }
}

#[test]
fn a_crc_is_that_of_iscsi_and_its_seed_may_lie_in_memory() {
    let bench = bench();
    let data = pattern(20_001, 9);
    bench.world.set(SOURCE, &data);
    let value = |record: Record| record.specific[0].get() as u32;
    let seeded = specific(Operation::Crc, SOURCE, 0, 20_001, &[(40, &77_u32.to_le_bytes())]);
    assert_eq!(value(bench.run(&seeded)), crc(77, &data));
    bench.world.set(TARGET + 0x1000, &77_u32.to_le_bytes());
    let at = (TARGET + 0x1000).to_le_bytes();
    let read =
        with_flags(specific(Operation::CopyCrc, SOURCE, TARGET + 0x2000, 20_001, &[(48, &at)]), Flags::READ_SEED);
    assert_eq!(value(bench.run(&read)), crc(77, &data));
    assert_eq!(bench.world.get(TARGET + 0x2000, 20_001), data);
    let misaligned = with_byte(read, 48, 2);
    assert_eq!(bench.run(&misaligned).status, 0x1C);
}

#[test]
fn a_delta_record_makes_one_region_the_other() {
    let bench = bench();
    let (old, record_at, copy_at) = (pattern(16_384, 1), TARGET + 0x8000, TARGET + 0x2_0000);
    let mut new = old.clone();
    for at in [0, 8, 4095, 4096, 12_000, 16_383] {
        new[at] ^= 0xFF;
    }
    bench.world.set(SOURCE, &old);
    bench.world.set(SOURCE + 0x8000, &new);
    bench.world.set(copy_at, &old);
    let place = record_at.to_le_bytes();
    let room = |room: u32| [(40, place.to_vec()), (48, room.to_le_bytes().to_vec())];
    let create = |bytes: u32| {
        let room = room(bytes);
        let parts: Vec<(usize, &[u8])> = room.iter().map(|(at, data)| (*at, &data[..])).collect();
        specific(Operation::CreateDelta, SOURCE, SOURCE + 0x8000, 16_384, &parts)
    };
    let record = bench.run(&create(4096));
    assert_eq!((record.status, record.result, record.completed.get()), (1, 1, 0));
    assert_eq!(record.specific[0].get(), 60);
    let apply = specific(Operation::ApplyDelta, record_at, copy_at, 16_384, &[(40, &60_u32.to_le_bytes())]);
    assert_eq!(bench.run(&apply).status, 1);
    assert_eq!(bench.world.get(copy_at, 16_384), new);

    bench.world.set(SOURCE, &pattern(16_384, 0x55));
    let record = bench.run(&create(85));
    assert_eq!((record.result, record.specific[0].get(), record.completed.get()), (2, 80, 64));
    assert_eq!(bench.run(&create(79)).status, 0x15);
    assert_eq!(bench.run(&with_byte(create(80), 16, 1)).status, 0x1C);

    for (offset, status) in [(1_u16, 7), (2048, 8)] {
        bench.world.set(record_at + 10, &offset.to_le_bytes());
        bench.world.set(record_at, &1_u16.to_le_bytes());
        let record = bench.run(&apply);
        assert_eq!((record.status, record.completed.get()), (status, 10));
    }
}

#[test]
fn data_integrity_fields_are_inserted_checked_replaced_and_stripped() {
    let bench = bench();
    let data = pattern(1024, 4);
    bench.world.set(SOURCE, &data);
    let tags: [u8; 8] = [9, 0, 0, 0, 0, 0, 0x34, 0x12];
    let insert = specific(Operation::DifInsert, SOURCE, TARGET, 1024, &[(56, &tags)]);
    let record = bench.run(&insert);
    assert_eq!((record.status, record.specific[1].get()), (1, 0x1234_0000_0000_000B));
    let mut expected = Vec::new();
    for (reference, block) in [9_u32, 10].into_iter().zip(data.chunks(512)) {
        expected.extend(block);
        expected.extend(guard(block).to_be_bytes());
        expected.extend([0x12, 0x34]);
        expected.extend(reference.to_be_bytes());
    }
    assert_eq!(bench.world.get(TARGET, 1040), expected);

    let check = specific(Operation::DifCheck, TARGET, 0, 1040, &[(48, &tags)]);
    let record = bench.run(&check);
    assert_eq!((record.status, record.specific[0].get()), (1, 0x1234_0000_0000_000B));
    let other = TARGET + 0x2000;
    let update = specific(Operation::DifUpdate, TARGET, other, 1040, &[(48, &tags), (56, &[1, 0, 0, 0, 0, 0, 7, 0])]);
    assert_eq!(bench.run(&update).status, 1);
    assert_eq!(bench.world.get(other + 512 + 2, 6), [0, 7, 0, 0, 0, 1]);
    let strip = specific(Operation::DifStrip, TARGET, other, 1040, &[(48, &tags)]);
    assert_eq!(bench.run(&strip).status, 1);
    assert_eq!(bench.world.get(other, 1024), data);

    // One thing wrong at a time, in the second block.
    for (at, result) in [(520, 1), (1032 + 2, 2), (1032 + 7, 4)] {
        let byte = bench.world.get(TARGET + at, 1)[0];
        bench.world.set(TARGET + at, &[byte ^ 0x80]);
        let record = bench.run(&check);
        assert_eq!((record.status, record.result, record.completed.get()), (9, result, 520));
        bench.world.set(TARGET + at, &[byte]);
    }
    // Bits of the application tag that are masked are not looked at.
    let masked = specific(Operation::DifCheck, TARGET, 0, 1040, &[(48, &[9, 0, 0, 0, 0, 0xFF, 0x34, 0x56])]);
    assert_eq!(bench.run(&masked).status, 1);
    assert_eq!(bench.run(&specific(Operation::DifCheck, TARGET, 0, 1041, &[])).status, 0x13);
}

#[test]
fn a_batch_does_its_descriptors_and_counts_them() {
    let bench = bench();
    let list = SOURCE + 0x4000;
    bench.world.set(SOURCE, &pattern(4096, 5));
    let members: Vec<Descriptor> = (0..4).map(|i| copy(1 + i, SOURCE + 100 * i, TARGET + 0x1000 * i, 100)).collect();
    for (index, member) in (0..).zip(&members) {
        bench.world.set(list + 64 * index, member.as_bytes());
    }
    let record = bench.run(&batch(0, list, 4));
    assert_eq!((record.status, record.completed.get()), (1, 4));
    for index in 0..4 {
        assert_eq!(bench.record(1 + index).status, 1);
        assert_eq!(bench.world.get(TARGET + 0x1000 * index, 100), pattern(4096, 5)[100 * index as usize..][..100]);
    }
    // A member that fails is counted, and the others are done.
    bench.world.set(list + 64, with_byte(members[1], 63, 1).as_bytes());
    let record = bench.run(&batch(0, list, 4));
    assert_eq!((record.status, record.completed.get()), (5, 4));
    assert_eq!(bench.record(2).status, 0x12);
    // A fence after it ends the batch.
    bench.world.set(list + 128, with_flags(members[2], Flags::FENCE).as_bytes());
    bench.world.set(RECORDS + 32 * 3, &[0; 64]);
    let record = bench.run(&batch(0, list, 4));
    assert_eq!((record.status, record.completed.get()), (5, 2));
    assert_eq!((bench.record(3).status, bench.record(4).status), (0, 0));
}

#[test]
fn batches_in_batches_and_impossible_ones_are_refused() {
    let bench = bench();
    let list = SOURCE + 0x4000;
    bench.world.set(list, batch(1, list, 2).as_bytes());
    bench.world.set(list + 64, descriptor(Operation::Drain, Flags::empty(), 2, 0, 0, 0).as_bytes());
    assert_eq!(bench.run(&batch(0, list, 2)).status, 5);
    assert_eq!((bench.record(1).status, bench.record(2).status), (0x10, 0x10));
    assert_eq!(bench.run(&batch(0, list, 1)).status, 0x14);
    assert_eq!(bench.run(&batch(0, list, 33)).status, 0x14);
    assert_eq!(bench.run(&batch(0, list + 32, 2)).status, 0x18);
}

#[test]
fn a_drain_descriptor_completes_after_what_was_submitted_before() {
    let bench = bench();
    bench.world.absent(SOURCE);
    bench.submit(&blocking(copy(1, SOURCE, TARGET, 64)));
    bench.world.requests(1);
    bench.submit(&descriptor(Operation::Drain, Flags::empty(), 2, 0, 0, 0));
    bench.submit(&copy(3, TARGET, TARGET + 0x1000, 64));
    assert_eq!(bench.wait(3).status, 1);
    assert_eq!(bench.record(2).status, 0);
    bench.world.answer(SOURCE, ioasid::PageResponse::Success);
    assert_eq!(bench.wait(2).status, 1);
    assert_eq!(bench.record(1).status, 1);
}

#[test]
fn what_is_wrong_with_a_descriptor_has_its_code() {
    let bench = bench();
    let good = copy(0, SOURCE, TARGET, 64);
    let drain = descriptor(Operation::Drain, Flags::empty(), 0, 0, 0, 0);
    let cases = [
        (with_byte(good, 7, 0x0A), 0x10, 0),
        (with_byte(good, 7, 0xFF), 0x10, 0),
        (with_flags(good, Flags::FENCE), 0x11, 1),
        (with_flags(good, Flags::CHECK_RESULT), 0x11, 0x80),
        (with_flags(good, Flags::READ_SEED), 0x11, 0x1_0000),
        (with_flags(drain, Flags::BLOCK_ON_FAULT), 0x11, 2),
        (with_byte(good, 39, 1), 0x12, 0),
        (with_byte(good, 36, 1), 0x12, 0),
        (with_byte(good, 63, 1), 0x12, 0),
        (Descriptor { size: 0.into(), ..good }, 0x13, 0),
        (Descriptor { size: 0x20_0001.into(), ..good }, 0x13, 0),
        (interrupting(good, 9), 0x19, 0),
    ];
    for (bad, status, flags) in cases {
        let record = bench.run(&bad);
        assert_eq!((record.status, record.specific[0].get()), (status, flags), "{bad:?}");
    }
    let quiet = without_flags(specific(Operation::Compare, SOURCE, TARGET, 8, &[]), Flags::REQUEST_RECORD);
    let record = bench.run(&quiet);
    assert_eq!((record.status, record.specific[0].get()), (0x11, 8));
    bench.drain();
    // An interrupt that is not its own is told in both places.
    assert_eq!(bench.soft_error()[..2], [0x1901 | 0b1100 | 3 << 32, 9 << 32]);
}

#[test]
fn without_a_record_errors_go_to_the_register_and_successes_nowhere() {
    let bench = bench();
    let silent = Descriptor {
        completion: 0.into(),
        ..without_flags(copy(0, SOURCE, TARGET, 64), Flags::RECORD_VALID | Flags::REQUEST_RECORD)
    };
    bench.submit(&silent);
    bench.drain();
    assert_eq!(bench.soft_error()[0], 0);
    bench.submit(&with_flags(silent, Flags::FENCE));
    assert_eq!(bench.wait_soft_error(), [0x1101 | 0b1100 | 3 << 32, 1 << 32, 0, 0]);
    // A second one is only noted, until the register is cleared.
    bench.submit(&with_byte(silent, 7, 0xFF));
    assert_eq!(bench.wait_soft_error()[0], 0x1103 | 0b1100 | 3 << 32);
    bench.clear_soft_error();
    bench.submit(&Descriptor { completion: (RECORDS + 8).into(), ..copy(0, SOURCE, TARGET, 64) });
    assert_eq!(bench.wait_soft_error()[0], 0x1B01 | 0b1100 | 3 << 32);
}

#[test]
fn a_full_dedicated_queue_drops_and_says_so() {
    let bench = Bench::ready(Queue { size: 2, ..Queue::DEDICATED });
    bench.world.hold();
    bench.submit(&copy(1, SOURCE, TARGET, 64));
    bench.world.wait_until_held();
    for index in 2..5 {
        bench.submit(&copy(index, SOURCE, TARGET, 64));
    }
    assert_eq!(bench.soft_error()[0], 0x5301 | 0b1100 | 3 << 32);
    bench.world.release();
    bench.drain();
    assert_eq!([1, 2, 3, 4].map(|index| bench.record(index).status), [1, 1, 1, 0]);
}

#[derive(Debug, Clone, Copy)]
struct Region {
    from: u64,
    to: u64,
    size: u32,
}

fn region() -> impl Strategy<Value = Region> {
    (0..0x3000_u64, 0..0x3000_u64, 1..40_000_u32).prop_map(|(from, to, size)| Region { from, to, size })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_move_is_as_if_by_way_of_another_place(region in region(), overlap in any::<bool>()) {
        let bench = bench();
        let (from, size) = (SOURCE + region.from, region.size as usize);
        let to = if overlap { SOURCE + region.to } else { TARGET + region.to };
        let mut memory = pattern(0x6_0000, 11);
        bench.world.set(SOURCE, &memory);
        let (at, onto) = ((from - SOURCE) as usize, (to - SOURCE) as usize);
        memory.copy_within(at..at + size, onto);
        prop_assert_eq!(bench.run(&copy(0, from, to, region.size)).status, 1);
        prop_assert!(bench.world.get(SOURCE, 0x6_0000) == memory);
    }

    #[test]
    fn partial_completions_in_a_row_come_to_the_same(
        region in region(), overlap in any::<bool>(), absent in prop::collection::vec(0..24_u64, 0..6),
    ) {
        let bench = bench();
        let to = if overlap { SOURCE + region.to } else { TARGET + region.to };
        let mut memory = pattern(0x6_0000, 11);
        bench.world.set(SOURCE, &memory);
        let (at, onto) = (region.from as usize, (to - SOURCE) as usize);
        memory.copy_within(at..at + region.size as usize, onto);
        for page in absent {
            bench.world.absent(SOURCE + PAGE * (page % 12) + if page < 12 { 0 } else { TARGET - SOURCE });
        }
        let mut next = copy(0, SOURCE + region.from, to, region.size);
        loop {
            let record = bench.run(&next);
            if record.status == 1 {
                break;
            }
            prop_assert_eq!(record.status & 0x7F, 3);
            bench.world.present(record.fault_address.get());
            let (done, size) = (record.completed.get(), next.size.get());
            prop_assert!(done < size);
            let forward = if record.result == 0 { u64::from(done) } else { 0 };
            next.size = (size - done).into();
            next.source = (next.source.get() + forward).into();
            next.destination = (next.destination.get() + forward).into();
        }
        prop_assert!(bench.world.get(SOURCE, 0x6_0000) == memory);
    }
}
