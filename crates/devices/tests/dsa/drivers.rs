//! What public drivers do to the device, in their order.

use ioasid_devices::dsa::DsaOptions;
use ioasid_devices::dsa::spec::command::{ACTIVE, Command};
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Flags, Operation};
use ioasid_devices::dsa::spec::registers::{
    CMDCAP, CMDSTS, ENGCAP, GENCAP, GENCTRL, GENSTS, GRPCAP, GRPCFG, INTCAUSE, OFFSETS, OPCAP, PORTAL_SIZE,
    PORTALS_SIZE, SWERR, WQCAP, WQCFG,
};
use ioasid_vfio::Model;
use zerocopy::IntoBytes;

use crate::bench::*;

/// Linux's idxd: probe, configuration of one dedicated queue for the kernel, and one shared for programs.
#[test]
fn linux_probes_configures_and_disables() {
    let bench = Bench::new();
    // Probe: reset by polling, capabilities, error interrupts.
    assert_eq!(bench.read32(GENSTS) & 3, 0);
    assert_eq!(bench.begin(Command::ResetDevice, 0) & ACTIVE, 0);
    let capability = bench.read64(GENCAP);
    assert_eq!((capability >> 4 & 1, capability >> 31 & 1), (1, 1));
    // No handles to be asked for, and every command that the driver gives.
    assert_eq!(bench.read64(CMDCAP) & (1 << 13), 0);
    let queues = bench.read64(WQCAP) >> 16 & 0xFF;
    let (groups, engines) = (bench.read64(GRPCAP) & 0xFF, bench.read64(ENGCAP) & 0xFF);
    assert_eq!((queues, groups, engines), (8, 4, 4));
    assert_eq!((0..4).map(|word| bench.read64(OPCAP + 8 * word)).skip(1).sum::<u64>(), 0);
    let offsets = bench.read64(OFFSETS);
    let (group_table, queue_table) = ((offsets & 0xFFFF) * 0x100, (offsets >> 16 & 0xFFFF) * 0x100);
    assert_eq!(bench.read64(OFFSETS + 8), 0);
    bench.write32(GENCTRL, 3);

    // Configuration: every queue word by word, reading back what is there; then every group.
    let configs = [Queue { threshold: 0, ..Queue::DEDICATED }, Queue { size: 32, threshold: 24, ..Queue::SHARED }];
    for (index, queue) in (0..).zip(configs) {
        let words = queue.words().into_iter().chain([0; 4]);
        for (word, value) in (0..).zip(words) {
            let at = queue_table + 32 * index + 4 * word;
            bench.write32(at, value | bench.read32(at));
            assert_eq!(bench.read32(at), value);
        }
    }
    for group in 0..groups {
        let bits = if group < 2 { 1 << group } else { 0 };
        for (word, value) in [bits, 0, 0, 0, bits, 1 << 3].into_iter().enumerate() {
            bench.write64(group_table + 64 * group + 8 * word as u64, value);
        }
    }
    assert_eq!(bench.command(Command::EnableDevice, 0), 0);
    assert_eq!(bench.read32(GENSTS) & 3, 1);
    assert_eq!(bench.command(Command::EnableQueue, 0), 0);
    assert_eq!(bench.command(Command::EnableQueue, 1), 0);
    assert_eq!(bench.read32(INTCAUSE), 2);
    bench.write32(INTCAUSE, 2);

    // The kernel's copies, with interrupts; a program's, by ENQCMD.
    bench.world.set(SOURCE, &pattern(4096, 8));
    let kernel = Descriptor { identity: (1 << 31).into(), ..interrupting(copy(0, SOURCE, TARGET, 4096), 1) };
    bench.device.write(2, 0, kernel.as_bytes());
    bench.world.wait_raised(1, 1);
    assert_eq!((bench.wait(0).status, bench.world.get(TARGET, 4096)), (1, pattern(4096, 8)));
    assert_eq!(bench.enqueue(1, true, 6, &blocking(copy(0, SOURCE, TARGET, 64))), Some(true));
    assert_eq!(bench.wait_of(Some(6), 0).status, 1);

    // Taking it down.
    assert_eq!(bench.command(Command::DrainPasid, 6), 0);
    for queue in [1, 2] {
        assert_eq!(bench.command(Command::DrainQueue, queue), 0);
        assert_eq!(bench.command(Command::ResetQueue, queue), 0);
    }
    assert_eq!(bench.command(Command::DisableDevice, 0), 0);
    assert_eq!(bench.command(Command::ResetDevice, 0), 0);
    assert_eq!((bench.read64(GRPCFG), bench.read64(WQCFG), bench.soft_error()[0]), (0, 0, 0));
}

/// The driver of Linux's VFIO selftests: one dedicated queue with everything, batches of copies, an interrupt.
#[test]
fn the_vfio_selftest_copies_in_batches_and_sends_an_interrupt() {
    let bench = Bench::new();
    let command = |command| {
        assert_eq!(bench.command(command, 0), 0);
        assert_eq!(bench.read64(SWERR) & 1, 0);
    };
    assert!(bench.read64(GENCAP) >> 4 & 1 == 0 || bench.read32(CMDCAP) >> 13 & 1 == 0);
    command(Command::ResetDevice);
    let (capability, queues) = (bench.read64(GENCAP), bench.read64(WQCAP));
    let (transfer, most) = ((capability >> 16 & 0x1F) as u32, (capability >> 21 & 0xF) as u32);
    let size = 1 << ((queues >> 24 & 0xF) + 5);
    let ats = (queues >> 50 & 1) as u32;
    let words = [(queues & 0xFFFF) as u32, 0, 1 | 1 << 4 | ats << 2, transfer | most << 5];
    for at in (0..size).step_by(4) {
        bench.write32(WQCFG + at, words.get(at as usize / 4).copied().unwrap_or(0));
    }
    bench.write64(GRPCFG, 1);
    bench.write64(GRPCFG + 32, 1);
    command(Command::EnableDevice);
    command(Command::EnableQueue);

    // A batch of copies that ask for no record, and a batch that does.
    let list = TARGET + 0x1_0000;
    bench.world.set(SOURCE, &pattern(4096, 6));
    let quiet = without_flags(copy(1, SOURCE, TARGET, 4096), Flags::REQUEST_RECORD);
    let privileged = Descriptor { identity: (1 << 31).into(), ..quiet };
    for index in 0..32 {
        bench.world.set(list + 64 * index, privileged.as_bytes());
    }
    bench.submit(&without_flags(batch(0, list, 30), Flags::REQUEST_RECORD));
    bench.submit(&batch(0, list, 2));
    assert_eq!(bench.wait(0).status, 1);
    assert_eq!((bench.record(1).status, bench.world.get(TARGET, 4096)), (0, pattern(4096, 6)));

    bench.submit(&interrupting(copy(2, SOURCE, TARGET, 8), 1));
    assert_eq!(bench.wait(2).status, 1);
    bench.world.wait_raised(1, 1);
    command(Command::ResetDevice);
    assert_eq!(bench.read32(CMDSTS), 0);
}

/// SPDK's and DPDK's way: a queue and an engine for each group, addresses from the identity, no interrupts, polling.
#[test]
fn a_queue_and_an_engine_for_each_group_work_side_by_side() {
    let bench = Bench::with(DsaOptions { page_requests: false, ..DsaOptions::default() });
    let queue = Queue { block_on_fault: false, ..Queue::DEDICATED };
    for index in 0..4 {
        bench.configure_queue(index, &queue);
        bench.group(index, 1 << index, 1 << index);
    }
    bench.enable(4);
    for index in 0..4 {
        bench.world.set(SOURCE + PAGE * index, &pattern(4096, index as u8));
        let portal = index * PORTALS_SIZE + PORTAL_SIZE + 64 * index;
        let descriptor =
            with_flags(copy(index, SOURCE + PAGE * index, TARGET + PAGE * index, 4096), Flags::CACHE_CONTROL);
        bench.device.write(2, portal, descriptor.as_bytes());
    }
    for index in 0..4 {
        assert_eq!(bench.wait(index).status, 1);
        assert_eq!(bench.world.get(TARGET + PAGE * index, 4096), pattern(4096, index as u8));
    }
    let crc = descriptor(Operation::Crc, Flags::empty(), 9, SOURCE, 0, 4096);
    bench.submit_to(3, &crc);
    assert_eq!(bench.wait(9).status, 1);
    assert_eq!(bench.command(Command::DisableDevice, 0), 0);
}
