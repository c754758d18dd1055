//! Commands and states.

use ioasid_devices::dsa::DsaOptions;
use ioasid_devices::dsa::spec::command::{ACTIVE, Command, REQUEST_INTERRUPT};
use ioasid_devices::dsa::spec::registers::{GRPCFG, INTCAUSE, WQCFG};
use ioasid_vfio::Model;

use crate::bench::*;

#[test]
fn a_device_that_is_enabled_copies_and_says_so() {
    let bench = Bench::ready(Queue::DEDICATED);
    assert_eq!(bench.states(), (1, 1));
    bench.world.set(SOURCE, &pattern(5000, 1));
    let record = bench.run(&interrupting(copy(0, SOURCE, TARGET, 5000), 3));
    assert_eq!((record.status, record.completed.get()), (1, 0));
    assert_eq!(bench.world.get(TARGET, 5000), pattern(5000, 1));
    bench.world.wait_raised(3, 1);
    assert_eq!(bench.soft_error()[0], 0);
}

#[test]
fn a_command_that_asks_for_it_interrupts() {
    let bench = Bench::new();
    bench.configure(&[Queue::DEDICATED], 1);
    assert_eq!(bench.begin(Command::EnableDevice, 0), 0);
    assert_eq!((bench.world.raised(0), bench.read32(INTCAUSE)), (0, 0));
    assert_eq!(bench.command(Command::EnableQueue, 0), 0);
    assert_eq!((bench.world.raised(0), bench.read32(INTCAUSE)), (1, 2));
    bench.write32(INTCAUSE, 2);
    assert_eq!(bench.read32(INTCAUSE), 0);
}

#[test]
fn commands_that_cannot_be_are_refused_with_their_code() {
    let bench = Bench::new();
    bench.write32(0xA0, 31 << 20);
    assert_eq!(bench.read32(0xA8), 0x01);
    bench.write32(0xA0, 1 << 20 | 1 << 25);
    assert_eq!(bench.read32(0xA8), 0x04);
    assert_eq!(bench.begin(Command::EnableQueue, 0), 0x20);
    assert_eq!(bench.begin(Command::DisableDevice, 0), 0x31);
    assert_eq!(bench.begin(Command::DisableQueue, 1), 0x32);
    assert_eq!(bench.begin(Command::DrainQueue, 0x1_0001), 0x02);
    assert_eq!(bench.begin(Command::AbortQueue, 0x100), 0x02);
    bench.configure(&[Queue::DEDICATED], 1);
    bench.enable(1);
    assert_eq!(bench.begin(Command::EnableDevice, 0), 0x10);
    assert_eq!(bench.begin(Command::EnableQueue, 0), 0x21);
    assert_eq!(bench.begin(Command::EnableQueue, 8), 0x02);
    assert_eq!(bench.begin(Command::EnableQueue, 1), 0x22);
}

#[test]
fn groups_that_cannot_be_do_not_enable_the_device() {
    let errors = |configure: &dyn Fn(&Bench)| {
        let bench = Bench::new();
        bench.configure(&[Queue::DEDICATED, Queue::DEDICATED], 0b11);
        configure(&bench);
        bench.begin(Command::EnableDevice, 0)
    };
    assert_eq!(errors(&|_| ()), 0);
    assert_eq!(errors(&|bench| bench.write32(WQCFG, 113)), 0x14);
    assert_eq!(errors(&|bench| bench.write64(GRPCFG + 32, 0)), 0x15);
    assert_eq!(errors(&|bench| bench.group(1, 0, 4)), 0x15);
    assert_eq!(errors(&|bench| bench.group(1, 2, 4)), 0x16);
    assert_eq!(errors(&|bench| bench.write64(GRPCFG, 1)), 0x16);
    assert_eq!(errors(&|bench| bench.write64(GRPCFG, 7)), 0x16);
    assert_eq!(errors(&|bench| bench.write64(GRPCFG, 0x103)), 0x16);
    assert_eq!(errors(&|bench| bench.write64(GRPCFG + 8, 1)), 0x16);
    assert_eq!(errors(&|bench| bench.group(1, 0, 1)), 0x17);
    assert_eq!(errors(&|bench| bench.write64(GRPCFG + 32, 0x13)), 0x17);
}

#[test]
fn queues_that_cannot_be_are_not_enabled() {
    let none = DsaOptions { pasids: false, privileged: false, page_requests: false, ..DsaOptions::default() };
    let errors = |options: &DsaOptions, queue: Queue, priority: u32| {
        let bench = Bench::with(options.clone());
        bench.configure(&[queue], 1);
        bench.write32(WQCFG + 8, queue.words()[2] & !0xF0 | priority << 4);
        assert_eq!(bench.begin(Command::EnableDevice, 0), 0);
        bench.begin(Command::EnableQueue, 0)
    };
    let all = DsaOptions::default();
    let plain = Queue { block_on_fault: false, ..Queue::DEDICATED };
    assert_eq!(errors(&all, Queue::SHARED, 15), 0);
    assert_eq!(errors(&none, plain, 1), 0);
    assert_eq!(errors(&all, plain, 0), 0x23);
    assert_eq!(errors(&none, Queue::DEDICATED, 1), 0x25);
    assert_eq!(errors(&all, Queue { pasid: None, ..Queue::SHARED }, 1), 0x26);
    assert_eq!(errors(&none, Queue { pasid: Some(5), ..plain }, 1), 0x26);
    assert_eq!(errors(&all, Queue { batch_shift: 0, ..plain }, 1), 0x27);
    assert_eq!(errors(&all, Queue { batch_shift: 11, ..plain }, 1), 0x27);
    let user = DsaOptions { privileged: false, ..DsaOptions::default() };
    assert_eq!(errors(&user, Queue { pasid: Some(5), privileged: true, ..plain }, 1), 0x2A);
}

#[test]
fn a_drain_command_waits_for_what_came_before_and_a_second_one_is_an_error() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.world.absent(SOURCE);
    bench.submit(&blocking(copy(0, SOURCE, TARGET, 64)));
    bench.world.requests(1);
    let told = bench.world.raised(0);
    assert_eq!(bench.begin(Command::DrainQueue, 1 | REQUEST_INTERRUPT), ACTIVE);
    bench.write32(0xA0, (Command::EnableDevice as u32) << 20);
    assert_eq!(bench.soft_error()[0], 0x5201);
    assert_eq!(bench.read32(0xA8), ACTIVE);
    // What comes later does not hold it up.
    bench.world.absent(SOURCE + PAGE);
    bench.submit(&blocking(copy(1, SOURCE + PAGE, TARGET, 64)));
    bench.world.requests(2);
    bench.world.answer(SOURCE, ioasid::PageResponse::Success);
    assert_eq!(bench.wait(0).status, 1);
    bench.world.wait_raised(0, told + 1);
    assert_eq!((bench.read32(0xA8), bench.record(1).status), (0, 0));
    bench.world.answer(SOURCE + PAGE, ioasid::PageResponse::Success);
    bench.wait(1);
    bench.drain();
}

#[test]
fn disabling_finishes_what_was_accepted_and_accepts_nothing_more() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.world.absent(SOURCE);
    bench.submit(&blocking(copy(0, SOURCE, TARGET, 64)));
    bench.world.requests(1);
    let told = bench.world.raised(0);
    assert_eq!(bench.begin(Command::DisableDevice, REQUEST_INTERRUPT), ACTIVE);
    assert_eq!(bench.states(), (2, 2));
    bench.submit(&copy(1, SOURCE, TARGET, 64));
    bench.world.answer(SOURCE, ioasid::PageResponse::Success);
    assert_eq!(bench.wait(0).status, 1);
    bench.world.wait_raised(0, told + 1);
    assert_eq!(bench.states(), (0, 0));
    assert_eq!(bench.record(1).status, 0);
    // The configuration is still there.
    bench.enable(1);
    assert_eq!(bench.run(&copy(0, TARGET, SOURCE, 64)).status, 1);
}

#[test]
fn an_abort_abandons_what_waits_and_tells_nobody() {
    for (command, operand) in [(Command::AbortAll, 0), (Command::AbortQueue, 1), (Command::AbortPasid, 5)] {
        let bench = Bench::ready(Queue { pasid: Some(5), ..Queue::DEDICATED });
        bench.world.absent_of(5, SOURCE);
        bench.submit(&blocking(copy(0, SOURCE, TARGET, 64)));
        bench.world.requests(1);
        assert_eq!(bench.command(command, operand), 0);
        assert_eq!(bench.states(), (1, 1));
        bench.world.answer(SOURCE, ioasid::PageResponse::Success);
        bench.submit(&copy(1, SOURCE, TARGET, 64));
        assert_eq!(bench.wait_of(Some(5), 1).status, 1);
        assert_eq!(bench.record_of(Some(5), 0).status, 0);
    }
}

#[test]
fn an_abort_of_another_pasid_leaves_a_descriptor_alone() {
    let bench = Bench::ready(Queue { pasid: Some(5), ..Queue::DEDICATED });
    bench.world.absent_of(5, SOURCE);
    bench.submit(&blocking(copy(0, SOURCE, TARGET, 64)));
    bench.world.requests(1);
    assert_eq!(bench.command(Command::AbortPasid, 6), 0);
    assert_eq!(bench.command(Command::DrainPasid, 6), 0);
    bench.world.answer(SOURCE, ioasid::PageResponse::Success);
    assert_eq!(bench.wait_of(Some(5), 0).status, 1);
}

#[test]
fn reset_device_forgets_the_configuration_and_keeps_what_went_wrong() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.submit(&ioasid_devices::dsa::spec::descriptor::Descriptor {
        control: (0xFF << 24).into(),
        ..Default::default()
    });
    bench.wait_soft_error();
    assert_eq!(bench.command(Command::ResetDevice, 0), 0);
    assert_eq!(bench.states(), (0, 0));
    assert_eq!((bench.read64(WQCFG), bench.read64(GRPCFG), bench.read64(GRPCFG + 32)), (0, 0, 0));
    assert_eq!(bench.soft_error()[0] & 0xFF01, 0x1001);
    bench.device.reset();
    assert_eq!(bench.soft_error(), [0; 4]);
}

#[test]
fn reset_queue_keeps_its_size() {
    let bench = Bench::ready(Queue { threshold: 3, ..Queue::DEDICATED });
    assert_eq!(bench.command(Command::ResetQueue, 1), 0);
    assert_eq!(bench.states(), (1, 0));
    assert_eq!((bench.read64(WQCFG), bench.read64(WQCFG + 8)), (16, 0));
}

#[test]
fn an_idle_device_has_no_threads_and_a_dropped_one_has_ended_them() {
    let bench = Bench::new();
    let world = bench.world.clone();
    let before = world.owners();
    bench.configure(&[Queue::DEDICATED], 0b1111);
    bench.enable(1);
    assert_eq!(world.owners(), before);
    bench.run(&copy(0, SOURCE, TARGET, 64));
    assert_eq!(world.owners(), before + 4);
    drop(bench);
    assert_eq!(world.owners(), 1);
}
