//! How descriptors reach the device, and in whose name.

use ioasid::PageResponse;
use ioasid_devices::dsa::DsaOptions;
use ioasid_devices::dsa::spec::command::Command;
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Flags, Operation};
use ioasid_devices::dsa::spec::registers::{GENCFG, MSIXPERM, PORTAL_SIZE, PORTALS_SIZE, USER_INTERRUPTS, WQCFG};
use ioasid_vfio::Model;
use zerocopy::IntoBytes;

use crate::bench::*;

#[test]
fn any_64_bytes_of_a_portal_are_the_portal_and_other_stores_are_dropped() {
    let bench = Bench::ready(Queue::DEDICATED);
    let bytes = |index| copy(index, SOURCE, TARGET, 64).as_bytes().to_vec();
    bench.device.write(2, 0xFC0, &bytes(0));
    bench.device.write(2, PORTAL_SIZE + 64, &bytes(1));
    bench.wait(0);
    bench.wait(1);
    // Misaligned; too short; interrupts by IMS; a queue that is not enabled; none; the dummy portal.
    bench.device.write(2, 32, &bytes(2));
    bench.device.write(2, 0, &bytes(3)[..32]);
    bench.device.write(2, 2 * PORTAL_SIZE, &bytes(4));
    bench.device.write(2, PORTALS_SIZE, &bytes(5));
    bench.device.write(2, 8 * PORTALS_SIZE, &bytes(6));
    bench.device.write(0, 0xF000, &bytes(7));
    bench.drain();
    assert!((2..8).all(|index| bench.record(index).status == 0));
    assert_eq!(bench.soft_error()[0], 0);
}

#[test]
fn deferrable_writes_are_for_shared_queues_and_posted_ones_for_dedicated() {
    let bench = Bench::new();
    bench.configure(&[Queue::SHARED, Queue::DEDICATED], 1);
    assert_eq!(bench.enqueue(0, false, 5, &copy(0, SOURCE, TARGET, 64)), Some(false));
    bench.enable(2);
    let descriptor = copy(0, SOURCE, TARGET, 64);
    bench.submit(&descriptor);
    assert_eq!(bench.enqueue(1, false, 5, &descriptor), Some(false));
    assert_eq!(bench.enqueue(2, false, 5, &descriptor), Some(false));
    assert_eq!(bench.device.enqueue(2, 2 * PORTAL_SIZE, descriptor.as_bytes().try_into().unwrap()), Some(false));
    assert_eq!(bench.device.enqueue(0, 0xF000, descriptor.as_bytes().try_into().unwrap()), Some(false));
    assert_eq!(bench.device.enqueue(0, 0x40, descriptor.as_bytes().try_into().unwrap()), None);
    bench.drain();
    assert_eq!(bench.record(0).status, 0);
    assert_eq!(bench.enqueue(0, true, 5, &descriptor), Some(true));
    assert_eq!(bench.wait_of(Some(5), 0).status, 1);
}

#[test]
fn a_shared_queue_says_try_again_at_its_threshold_and_when_it_is_full() {
    let bench = Bench::ready(Queue { size: 4, threshold: 2, ..Queue::SHARED });
    bench.world.hold();
    let enqueue = |limited| bench.enqueue(0, limited, 5, &copy(0, SOURCE, TARGET, 64)).unwrap();
    assert!(enqueue(true));
    bench.world.wait_until_held();
    assert_eq!([true, true, true, false, false, false].map(enqueue), [true, true, false, true, true, false]);
    assert_eq!(bench.read32(WQCFG + 24) & 0xFFFF, 4);
    bench.world.release();
    bench.drain();
    assert_eq!(bench.read32(WQCFG + 24) & 0xFFFF, 0);
    assert_eq!(bench.soft_error()[0], 0);
}

#[test]
fn each_client_of_a_shared_queue_has_its_own_address_space() {
    let bench = Bench::new();
    bench.configure(&[Queue::SHARED], 0b1111);
    bench.enable(1);
    for pasid in PASIDS {
        bench.world.set_of(Some(pasid), SOURCE, &pattern(64, pasid as u8));
        assert_eq!(bench.enqueue(0, true, pasid, &copy(0, SOURCE, TARGET, 64)), Some(true));
    }
    for pasid in PASIDS {
        assert_eq!(bench.wait_of(Some(pasid), 0).status, 1);
        assert_eq!(bench.world.get_of(Some(pasid), TARGET, 64), pattern(64, pasid as u8));
    }
    assert_eq!(bench.world.get(TARGET, 64), [0; 64]);
}

#[test]
fn a_drain_in_a_shared_queue_waits_for_its_own_pasid() {
    let bench = Bench::ready(Queue::SHARED);
    bench.world.absent_of(5, SOURCE);
    let drain = descriptor(Operation::Drain, Flags::empty(), 1, 0, 0, 0);
    bench.enqueue(0, false, 5, &blocking(copy(0, SOURCE, TARGET, 64)));
    bench.world.requests(1);
    bench.enqueue(0, false, 5, &drain);
    bench.enqueue(0, false, 6, &drain);
    assert_eq!(bench.wait_of(Some(6), 1).status, 1);
    assert_eq!(bench.record_of(Some(5), 1).status, 0);
    bench.world.answer(SOURCE, PageResponse::Success);
    assert_eq!(bench.wait_of(Some(5), 1).status, 1);
}

#[test]
fn privilege_is_refused_where_the_function_has_none() {
    let bench = Bench::with(DsaOptions { privileged: false, ..DsaOptions::default() });
    bench.configure(&[Queue::SHARED], 1);
    bench.enable(1);
    bench.enqueue(0, false, 5 | 1 << 31, &copy(0, SOURCE, TARGET, 64));
    let error = bench.wait_soft_error()[0];
    assert_eq!((error & 0xFFFF, error >> 40), (0x1D01 | 0b100_1100, 5));
    assert_eq!(bench.record_of(Some(5), 0).status, 0);
}

#[test]
fn a_user_raises_only_vectors_of_its_pasid_and_only_if_users_may() {
    for user_interrupts in [false, true] {
        let bench = Bench::new();
        bench.configure(&[Queue::SHARED], 1);
        bench.write32(GENCFG, if user_interrupts { USER_INTERRUPTS } else { 0 });
        bench.write32(MSIXPERM + 8, 8 | 5 << 12);
        bench.enable(1);
        bench.enqueue(0, false, 5, &interrupting(copy(0, SOURCE, TARGET, 64), 1));
        bench.enqueue(0, false, 6, &interrupting(copy(0, SOURCE, TARGET, 64), 1));
        bench.enqueue(0, false, 5 | 1 << 31, &interrupting(copy(1, SOURCE, TARGET, 64), 1));
        assert_eq!(bench.wait_of(Some(5), 1).status, 1);
        let expected = if user_interrupts { (1, 0x19) } else { (0x11, 0x11) };
        assert_eq!((bench.wait_of(Some(5), 0).status, bench.wait_of(Some(6), 0).status), expected);
        bench.drain();
        assert_eq!(bench.world.raised(1), if user_interrupts { 2 } else { 1 });
    }
}

#[test]
fn an_ignored_vector_is_not_raised() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.write32(MSIXPERM + 16, 4);
    assert_eq!(bench.run(&interrupting(copy(0, SOURCE, TARGET, 64), 2)).status, 1);
    bench.drain();
    assert_eq!(bench.world.raised(2), 0);
}

#[test]
fn a_vector_of_a_pasid_is_not_for_descriptors_without() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.write32(MSIXPERM + 16, 8);
    assert_eq!(bench.run(&interrupting(copy(0, SOURCE, TARGET, 64), 2)).status, 0x19);
    bench.drain();
    assert_eq!(bench.world.raised(2), 0);
}

#[test]
fn handles_that_were_not_asked_for_raise_nothing() {
    let bench = Bench::with(DsaOptions { interrupt_handles: true, ..DsaOptions::default() });
    bench.configure(&[Queue::DEDICATED], 1);
    bench.enable(1);
    let descriptor = interrupting(copy(0, SOURCE, TARGET, 64), 2);
    assert_eq!(bench.run(&descriptor).status, 0x19);
    assert_eq!(bench.command(Command::RequestHandle, 2), 2 << 8);
    assert_eq!(bench.run(&descriptor).status, 1);
    bench.world.wait_raised(2, 1);
    assert_eq!(bench.command(Command::ReleaseHandle, 2), 0);
    assert_eq!(bench.run(&descriptor).status, 0x19);
}

#[test]
fn what_a_dedicated_queue_takes_has_the_queues_pasid() {
    let bench = Bench::ready(Queue { pasid: Some(6), ..Queue::DEDICATED });
    bench.submit(&Descriptor { identity: (5 | 1 << 31).into(), ..copy(0, SOURCE, TARGET, 64) });
    assert_eq!(bench.wait_of(Some(6), 0).status, 1);
    assert_eq!((bench.record(0).status, bench.record_of(Some(5), 0).status), (0, 0));
}

#[test]
fn queues_of_one_group_have_turns_by_priority() {
    let bench = Bench::new();
    bench.configure(&[Queue::DEDICATED, Queue::DEDICATED], 1);
    bench.write32(WQCFG + 8, Queue::DEDICATED.words()[2] & !0xF0 | 3 << 4);
    bench.enable(2);
    bench.world.hold();
    // Each fills the same byte with the number of its queue.
    bench.submit_to(0, &copy(0, SOURCE, TARGET, 64));
    bench.world.wait_until_held();
    for index in 0..8 {
        for queue in 0..2 {
            let fill = descriptor(Operation::Fill, Flags::empty(), 1 + 2 * index + queue, queue, TARGET, 1);
            bench.submit_to(queue, &fill);
        }
    }
    bench.world.release();
    bench.drain();
    let order = bench.world.writes_to(TARGET);
    // Of the first eight turns, the queue with priority 3 has three times as many.
    let first = order[..8].iter().filter(|queue| **queue == 0).count();
    assert!((5..=7).contains(&first), "{order:?}");
}
