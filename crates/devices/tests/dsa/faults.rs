//! Pages that are not there.

use ioasid::{PageResponse, RequestedAccess};
use ioasid_devices::dsa::DsaOptions;
use ioasid_devices::dsa::spec::command::Command;
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Flags, Operation};
use ioasid_vfio::Model;
use zerocopy::IntoBytes;

use crate::bench::*;

#[test]
fn a_descriptor_that_waits_goes_on_where_it_was() {
    let bench = Bench::ready(Queue { pasid: Some(5), privileged: true, ..Queue::DEDICATED });
    bench.world.set_of(Some(5), SOURCE, &pattern(0x3000, 2));
    bench.world.absent_of(5, SOURCE + PAGE);
    bench.world.absent_of(5, TARGET + 2 * PAGE);
    bench.submit(&blocking(copy(0, SOURCE + 8, TARGET + 8, 0x2F00)));
    let asked = bench.world.requests(1)[0];
    assert_eq!((asked.pasid.map(|pasid| pasid.get()), asked.iova), (Some(5), SOURCE + PAGE));
    assert_eq!(asked.access, RequestedAccess::READ | RequestedAccess::PRIVILEGED);
    bench.world.answer(SOURCE + PAGE, PageResponse::Success);
    let asked = bench.world.requests(1)[0];
    assert_eq!((asked.iova, asked.access), (TARGET + 2 * PAGE, RequestedAccess::WRITE | RequestedAccess::PRIVILEGED));
    bench.world.answer(TARGET + 2 * PAGE, PageResponse::Success);
    assert_eq!(bench.wait_of(Some(5), 0).status, 1);
    assert_eq!(bench.world.get_of(Some(5), TARGET + 8, 0x2F00), pattern(0x3000, 2)[8..0x2F08]);
}

#[test]
fn many_wait_at_once_while_one_engine_goes_on() {
    let bench = Bench::ready(Queue::DEDICATED);
    for index in 0..8 {
        bench.world.absent(SOURCE + PAGE * index);
        bench.submit(&blocking(copy(1 + index, SOURCE + PAGE * index, TARGET + PAGE * index, 64)));
    }
    let asked: Vec<u64> = bench.world.requests(8).iter().map(|request| request.iova).collect();
    assert_eq!(asked, (0..8).map(|index| SOURCE + PAGE * index).collect::<Vec<_>>());
    assert_eq!(bench.run(&copy(0, TARGET, TARGET + 0x1_0000, 64)).status, 1);
    for index in [7, 0, 3, 1, 6, 2, 5, 4] {
        bench.world.answer(SOURCE + PAGE * index, PageResponse::Success);
        assert_eq!(bench.wait(1 + index).status, 1);
    }
}

#[test]
fn the_members_of_a_batch_wait_at_once_and_a_fence_waits_for_them() {
    let bench = Bench::ready(Queue::DEDICATED);
    let list = TARGET + 0x2_0000;
    for index in 0..3 {
        bench.world.absent(SOURCE + PAGE * index);
        let member = blocking(copy(1 + index, SOURCE + PAGE * index, TARGET + PAGE * index, 64));
        bench.world.set(list + 64 * index, member.as_bytes());
    }
    let last = with_flags(copy(4, SOURCE, TARGET + 0x1_0000, 64), Flags::FENCE);
    bench.world.set(list + 64 * 3, last.as_bytes());
    bench.submit(&batch(0, list, 4));
    bench.world.requests(3);
    for index in [2, 0, 1] {
        assert_eq!((bench.record(4).status, bench.record(0).status), (0, 0));
        bench.world.answer(SOURCE + PAGE * index, PageResponse::Success);
    }
    let record = bench.wait(0);
    assert_eq!((record.status, record.completed.get()), (1, 4));
    assert_eq!(bench.record(4).status, 1);
}

#[test]
fn without_waiting_a_fault_is_a_partial_completion() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.world.absent(SOURCE + PAGE);
    let record = bench.run(&copy(0, SOURCE + 16, TARGET, 0x2000));
    assert_eq!((record.status, record.completed.get()), (0x03, 0xFF0));
    assert_eq!(record.fault_address.get(), SOURCE + PAGE);
    bench.world.read_only(TARGET + PAGE);
    let record = bench.run(&copy(0, SOURCE + 2 * PAGE, TARGET + 8, 0x2000));
    assert_eq!((record.status, record.completed.get()), (0x83, 0xFF8));
    assert_eq!(record.fault_address.get(), TARGET + PAGE);
    assert_eq!(bench.world.unanswered(), 0);
}

#[test]
fn a_page_that_is_not_to_be_had_is_a_partial_completion() {
    for response in [PageResponse::Invalid, PageResponse::Failure] {
        let bench = Bench::ready(Queue::DEDICATED);
        bench.world.absent(TARGET + PAGE);
        bench.submit(&blocking(copy(0, SOURCE, TARGET, 0x2000)));
        bench.world.answer(TARGET + PAGE, response);
        let record = bench.wait(0);
        assert_eq!((record.status, record.completed.get()), (0x84, 0x1000));
        assert_eq!(record.fault_address.get(), TARGET + PAGE);
    }
}

#[test]
fn nobody_is_asked_for_what_is_refused_for_good() {
    let bench = Bench::ready(Queue::DEDICATED);
    let record = bench.run(&blocking(copy(0, NOWHERE, TARGET, 64)));
    assert_eq!((record.status, record.fault_address.get()), (0x04, NOWHERE));
    let record = bench.run(&copy(0, SOURCE, u64::MAX - 7, 64));
    assert_eq!(record.status, 0x83);
    assert_eq!(bench.world.unanswered(), 0);
}

#[test]
fn a_page_that_is_said_to_be_there_and_is_not_is_given_up_in_the_end() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.world.absent(SOURCE);
    bench.submit(&blocking(copy(0, SOURCE, TARGET, 64)));
    for _ in 0..=64 {
        bench.world.pretend();
    }
    assert_eq!(bench.wait(0).status, 0x04);
}

#[test]
fn a_queue_that_may_not_wait_refuses_to() {
    let bench = Bench::ready(Queue { block_on_fault: false, ..Queue::DEDICATED });
    let record = bench.run(&blocking(copy(0, SOURCE, TARGET, 64)));
    assert_eq!((record.status, record.specific[0].get()), (0x11, 2));
}

#[test]
fn the_record_itself_waits_for_its_page_and_is_lost_without() {
    let bench = Bench::ready(Queue::DEDICATED);
    let far = Descriptor { completion: (TARGET + 0x1_0000).into(), ..copy(0, SOURCE, TARGET, 64) };
    bench.world.absent(TARGET + 0x1_0000);
    bench.submit(&far);
    bench.world.answer(TARGET + 0x1_0000, PageResponse::Success);
    bench.drain();
    assert_eq!(bench.world.get(TARGET + 0x1_0000, 1), [1]);

    bench.write32(0x88, 1);
    bench.world.absent(TARGET + 0x1_0000);
    bench.submit(&interrupting(far, 1));
    bench.world.answer(TARGET + 0x1_0000, PageResponse::Invalid);
    let error = bench.wait_soft_error();
    assert_eq!((error[0], error[2]), (0x1A01 | 0b10_1100 | 3 << 32, TARGET + 0x1_0000));
    assert_eq!(bench.read32(0x98) & 1, 1);
    assert_eq!(bench.world.raised(1), 0);
}

#[test]
fn without_page_requests_the_record_is_lost_at_once() {
    let bench = Bench::with(DsaOptions { page_requests: false, ..DsaOptions::default() });
    bench.configure(&[Queue { block_on_fault: false, ..Queue::DEDICATED }], 1);
    bench.enable(1);
    bench.submit(&Descriptor { completion: NOWHERE.into(), ..copy(0, SOURCE, TARGET, 64) });
    assert_eq!(bench.wait_soft_error()[0] & 0xFFFF, 0x1A01 | 0b10_1100);
}

#[test]
fn a_batch_whose_list_is_not_there_says_how_far_it_came() {
    let bench = Bench::ready(Queue::DEDICATED);
    let list = TARGET + 0x1_0000 + PAGE - 128;
    for index in 0..2 {
        bench.world.set(list + 64 * index, copy(1 + index, SOURCE, TARGET, 64).as_bytes());
    }
    bench.world.absent(list + 128);
    bench.submit(&batch(0, list, 4));
    bench.world.answer(list + 128, PageResponse::Invalid);
    let record = bench.wait(0);
    assert_eq!((record.status, record.completed.get(), record.fault_address.get()), (0x06, 2, list + 128));
    assert_eq!((bench.record(1).status, bench.record(2).status), (1, 1));
}

#[test]
fn a_reset_while_pages_are_asked_for_leaves_nothing_behind() {
    let bench = Bench::ready(Queue::DEDICATED);
    let list = TARGET + 0x2_0000;
    for index in 0..4 {
        bench.world.absent(SOURCE + PAGE * index);
        let member = blocking(copy(1 + index, SOURCE + PAGE * index, TARGET, 64));
        bench.world.set(list + 64 * index, member.as_bytes());
    }
    bench.submit(&batch(0, list, 4));
    bench.submit(&descriptor(Operation::Drain, Flags::empty(), 6, 0, 0, 0));
    bench.world.requests(4);
    bench.device.reset();
    assert_eq!(bench.states(), (0, 0));
    let accesses = bench.world.accesses();
    let late = bench.world.take_request();
    for index in 1..4 {
        bench.world.answer(SOURCE + PAGE * index, PageResponse::Success);
    }
    (late.answer)(PageResponse::Success);
    assert_eq!(bench.world.accesses(), accesses);
    bench.configure(&[Queue::DEDICATED], 1);
    bench.enable(1);
    assert_eq!(bench.run(&copy(0, TARGET, TARGET + PAGE, 64)).status, 1);
    assert_eq!((1..7).filter(|index| bench.record(*index).status != 0).count(), 0);
}

#[test]
fn a_reset_waits_for_the_access_that_is_under_way() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.world.hold();
    bench.submit(&copy(0, SOURCE, TARGET, 0x1000));
    bench.world.wait_until_held();
    std::thread::scope(|scope| {
        let resetting = scope.spawn(|| {
            bench.device.reset();
            bench.world.accesses()
        });
        // The queue is disabled at once; the reset returns only when the access has.
        while bench.states().1 != 0 {
            std::thread::yield_now();
        }
        // A reset that does not wait has time enough to be caught.
        (0..1000).for_each(|_| std::thread::yield_now());
        let early = resetting.is_finished();
        bench.world.release();
        assert!(!early);
        let accesses = resetting.join().unwrap();
        assert_eq!(bench.world.accesses(), accesses);
    });
    assert_eq!(bench.record(0).status, 0);
}

#[test]
fn memory_that_fails_halts_the_device_until_it_is_reset() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.write32(0x88, 2);
    let list = TARGET + 0x2_0000;
    for index in 0..2 {
        bench.world.set(list + 64 * index, copy(1 + index, SOURCE, TARGET, 64).as_bytes());
    }
    bench.world.fail_at(SOURCE);
    bench.submit(&batch(0, list, 2));
    bench.world.wait_raised(0, 3);
    assert_eq!((bench.states(), bench.read32(0x98) & 0x10), ((3, 0), 0x10));
    assert_eq!(bench.command(Command::EnableDevice, 0), 5);
    bench.world.fail_at(0);
    assert_eq!(bench.command(Command::ResetDevice, 0), 0);
    bench.configure(&[Queue::DEDICATED], 1);
    bench.enable(1);
    assert_eq!(bench.run(&copy(0, SOURCE, TARGET, 64)).status, 1);
    bench.device.reset();
}
