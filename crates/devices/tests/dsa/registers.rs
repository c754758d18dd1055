//! Register by register.

use ioasid_devices::dsa::spec::command::Command;
use ioasid_devices::dsa::spec::registers::{
    CMDCAP, ENGCAP, GENCAP, GENCFG, GENCTRL, GRPCAP, GRPCFG, MSIXPERM, OFFSETS, OPCAP, PORTALS_SIZE, VERSION, WQCAP,
    WQCFG,
};
use ioasid_devices::dsa::{self, DsaOptions};
use ioasid_vfio::Model;

use crate::bench::*;

#[test]
fn the_function_is_a_possible_one_whatever_the_options() {
    for (wqs, engines, groups) in [(0, 0, 0), (1, 1, 1), (3, 2, 1), (8, 8, 8), (255, 255, 255)] {
        let options = DsaOptions { wqs, engines, groups, ..DsaOptions::default() };
        let spec = dsa::spec(&options);
        spec.check().unwrap();
        assert!(spec.bar(2).unwrap().size >= PORTALS_SIZE * u64::from(wqs.clamp(1, 8)));
        let bench = Bench::with(options);
        assert_eq!(bench.read64(WQCAP) >> 16 & 0xFF, u64::from(wqs.clamp(1, 8)));
        assert_eq!(bench.read64(ENGCAP), u64::from(engines.clamp(1, 8)));
        assert_eq!(bench.read64(GRPCAP), u64::from(groups.clamp(1, 8)));
    }
}

#[test]
fn capabilities_are_those_of_version_1_with_what_is_there() {
    let bench = Bench::new();
    assert_eq!(bench.read32(VERSION), 0x100);
    assert_eq!(bench.read64(GENCAP), 0x8000_0117 | 31 << 16 | 10 << 21);
    assert_eq!(bench.read64(WQCAP), 128 | 8 << 16 | 0b01_1011 << 48);
    assert_eq!(bench.read64(OPCAP), 0x1_003F_03FF);
    assert_eq!(bench.read64(OFFSETS), 6 | 8 << 16 | 4 << 32);
    assert_eq!(bench.read64(CMDCAP), 0x1FFE);
}

#[test]
fn handles_are_a_command_where_they_are_wanted() {
    let bench = Bench::with(DsaOptions { interrupt_handles: true, ..DsaOptions::default() });
    assert_eq!(bench.read64(CMDCAP), 0x7FFE);
    assert_eq!(bench.command(Command::RequestHandle, 3), 3 << 8);
    assert_eq!(bench.command(Command::RequestHandle, 9), 0x41);
    assert_eq!(bench.command(Command::RequestHandle, 0x1_0000), 0x41);
    assert_eq!(bench.command(Command::ReleaseHandle, 3), 0);
    let plain = Bench::new();
    assert_eq!(plain.command(Command::RequestHandle, 3), 0x01);
}

#[test]
fn accesses_of_any_size_see_their_own_bytes() {
    let bench = Bench::new();
    let whole = bench.read64(GENCAP).to_le_bytes();
    for (at, byte) in (0..).zip(whole) {
        assert_eq!(bench.read(GENCAP + at, 1), u64::from(byte));
    }
    let mut wide = [0xAA; 64];
    bench.device.read(0, GENCAP - 3, &mut wide);
    assert_eq!((wide[..3].to_vec(), &wide[3..11]), (vec![0; 3], &whole[..]));
    bench.device.write(0, GENCTRL, &[3]);
    bench.device.write(0, GENCTRL + 1, &[0xFF; 3]);
    assert_eq!(bench.read32(GENCTRL), 3);
}

#[test]
fn portals_and_what_is_outside_read_as_ones() {
    let bench = Bench::new();
    for (bar, offset) in [(2, 0), (2, 0x1FFC0), (0, 0xF000), (0, 0x1_0000), (4, 0)] {
        let mut data = [0; 16];
        bench.device.read(bar, offset, &mut data);
        assert_eq!(data, [0xFF; 16], "BAR {bar}, {offset:#x}");
    }
}

#[test]
fn reserved_bits_stay_zero() {
    let bench = Bench::new();
    for at in (0..0x4000).step_by(8).filter(|at| *at != 0xA0) {
        bench.write64(at, u64::MAX);
    }
    assert_eq!(bench.read32(GENCFG), 1 << 12);
    assert_eq!(bench.read64(MSIXPERM), 0xFFFF_F00C);
    assert_eq!(bench.read64(MSIXPERM + 9 * 8), 0);
    assert_eq!(bench.read64(GRPCFG + 40), 0x3F);
    assert_eq!(bench.read64(GRPCFG + 4 * 64), 0);
    assert_eq!(bench.read64(WQCFG), 0x0000_FFFF_0000_FFFF);
    assert_eq!(bench.read64(WQCFG + 8), 0x0000_01FF_3FFF_FFFF);
    assert_eq!(bench.read64(WQCFG + 16), 0);
    assert_eq!(bench.read64(WQCFG + 24), 0);
    assert_eq!(bench.read64(WQCFG + 8 * 32), 0);
}

#[test]
fn configuration_is_locked_while_it_is_in_use() {
    let bench = Bench::ready(Queue::DEDICATED);
    let read = || (bench.read32(GENCFG), bench.read64(GRPCFG), bench.read64(WQCFG), bench.read64(WQCFG + 8));
    let before = read();
    for at in [GENCFG, GRPCFG, GRPCFG + 32, WQCFG + 8] {
        bench.write64(at, 0x1010_1010_1010_1010);
    }
    bench.write32(WQCFG, 3);
    assert_eq!(read(), before);
    // The threshold, and the configuration of a queue that is not enabled, can be written.
    bench.write32(WQCFG + 4, 7);
    assert_eq!(bench.read32(WQCFG + 4), 7);
    bench.write32(WQCFG + 32 + 8, 0x11);
    assert_eq!(bench.read32(WQCFG + 32 + 8), 0x11);
}

#[test]
fn the_bus_shows_what_the_host_enabled_and_nothing_else() {
    let all = dsa::spec(&DsaOptions::default()).translation;
    assert_eq!(
        (all.ats, all.page_requests.is_some(), all.pasid.map(|pasid| pasid.privileged)),
        (true, true, Some(true))
    );
    let none = DsaOptions { pasids: false, page_requests: false, ..DsaOptions::default() };
    let none = dsa::spec(&none).translation;
    assert_eq!((none.page_requests, none.pasid), (None, None));
}
