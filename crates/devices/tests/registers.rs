//! Each register: what it holds, what a read does, what a write does.

mod common;

use common::*;
use ioasid_devices::ioat::spec;
use ioasid_devices::ioat::spec::registers::{BAR0_SIZE, State, Status};

/// Bits that a register keeps when all ones are written, and what it reads as before.
struct Kept {
    offset: u64,
    width: usize,
    before: u64,
    kept: u64,
}

const KEPT: &[Kept] = &[
    Kept { offset: CHANCNT, width: 1, before: 1, kept: 0 },
    Kept { offset: XFERCAP, width: 1, before: 20, kept: 0 },
    Kept { offset: GENCTRL, width: 1, before: 0, kept: 0x01 },
    Kept { offset: ATTNSTATUS, width: 4, before: 0, kept: 0 },
    Kept { offset: CBVER, width: 1, before: 0x32, kept: 0 },
    Kept { offset: 0x09, width: 1, before: 0, kept: 0 },
    Kept { offset: 0x0A, width: 2, before: 0, kept: 0 },
    Kept { offset: INTRDELAY, width: 2, before: 0, kept: 0 },
    Kept { offset: 0x0E, width: 2, before: 0, kept: 0 },
    Kept { offset: DMACAP, width: 4, before: 0x40, kept: 0 },
    Kept { offset: DCAOFFSET, width: 2, before: 0, kept: 0 },
    Kept { offset: 0x40, width: 8, before: 0, kept: 0 },
    Kept { offset: 0x4C, width: 1, before: 0, kept: 0 },
    Kept { offset: DMA_COMP, width: 2, before: 0x6, kept: 0 },
    Kept { offset: 0x85, width: 1, before: 0, kept: 0 },
    Kept { offset: CHANSTS, width: 8, before: 3, kept: 0 },
    Kept { offset: CDAR, width: 8, before: 0, kept: 0 },
    Kept { offset: CHANERR, width: 4, before: 0, kept: 0 },
    Kept { offset: CHANERRMASK, width: 4, before: 0, kept: 0x7_FFFF },
    Kept { offset: DCACTRL, width: 4, before: 0, kept: 0xFFFF },
    Kept { offset: 0xB4, width: 8, before: 0, kept: 0 },
    Kept { offset: 0x100, width: 8, before: 0, kept: 0 },
    Kept { offset: 0x2000, width: 8, before: 0, kept: 0 },
    Kept { offset: DMACOUNT, width: 2, before: 0, kept: 0xFFFF },
    Kept { offset: CHANCMP, width: 8, before: 0, kept: !7 },
    Kept { offset: CHAINADDR, width: 8, before: 0, kept: !0 },
];

fn read(bench: &Bench, offset: u64, width: usize) -> u64 {
    let mut data = [0; 8];
    bench.device.read(0, offset, &mut data[..width]);
    u64::from_le_bytes(data)
}

#[test]
fn registers_keep_exactly_their_writable_bits() {
    for register in KEPT {
        let bench = Bench::new();
        let Kept { offset, width, before, kept } = *register;
        assert_eq!(read(&bench, offset, width), before, "{offset:#x} at power-on");
        bench.device.write(0, offset, &[0xFF; 8][..width]);
        let width_mask = u64::MAX >> (64 - 8 * width);
        let expected = if kept == 0 { before } else { kept & width_mask };
        assert_eq!(read(&bench, offset, width), expected, "{offset:#x} after ones");
        bench.device.write(0, offset, &[0; 8][..width]);
        let expected = if kept == 0 { before } else { 0 };
        assert_eq!(read(&bench, offset, width), expected, "{offset:#x} after zeros");
    }
}

#[test]
fn registers_may_be_written_byte_by_byte_and_in_halves() {
    for (offset, width) in [(CHAINADDR, 8), (CHANCMP, 8), (CHANERRMASK, 4), (DMACOUNT, 2)] {
        for piece in [1, 2, 4, 8].into_iter().filter(|piece| *piece <= width) {
            let bench = Bench::new();
            let data = [0x00, 0x12, 0x03, 0x00, 0x55, 0x66, 0x77, 0x08];
            for (index, chunk) in data[..width].chunks(piece).enumerate() {
                bench.device.write(0, offset + (index * piece) as u64, chunk);
            }
            let mut got = [0; 8];
            for (index, chunk) in got[..width].chunks_mut(piece).enumerate() {
                bench.device.read(0, offset + (index * piece) as u64, chunk);
            }
            assert_eq!(got[..width], data[..width], "{offset:#x} in pieces of {piece}");
        }
    }
}

#[test]
fn either_half_of_chainaddr_arms_and_neither_starts() {
    let bench = Bench::new();
    assert_eq!(bench.state(), State::Halted);
    bench.w32(CHAINADDR, 0x1234_5640);
    assert_eq!(bench.status(), Status::new(State::Armed, 0));
    bench.w32(CHAINADDR + 4, 0x7F);
    assert_eq!((bench.r64(CHAINADDR), bench.state()), (0x7F_1234_5640, State::Armed));
    assert_eq!(bench.memory.accesses(), 0);
}

#[test]
fn chanerr_clears_where_ones_are_written_and_only_there() {
    let bench = Bench::new();
    bench.w8(CHANCMD, 0x24);
    bench.w64(CHAINADDR, NOWHERE);
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Halted);
    assert_eq!((bench.r32(CHANERR), bench.config_r32(0x180)), (0x30, 0x30));
    bench.w32(CHANERR, 0);
    bench.w32(CHANERR, 0xFFFF_FFCF);
    assert_eq!(bench.r32(CHANERR), 0x30);
    bench.w8(CHANERR, 0x10);
    assert_eq!(bench.r32(CHANERR), 0x20);
    bench.w8(CHANCMD, RESET);
    assert_eq!(bench.r32(CHANERR), 0x20, "sticky");
    bench.w32(CHANERR, 0x20);
    assert_eq!((bench.r32(CHANERR), bench.config_r32(0x180)), (0, 0x30), "two records");
    bench.config_w32(0x180, 0x30);
    assert_eq!(bench.config_r32(0x180), 0);
}

#[test]
fn reading_the_in_use_bit_takes_the_channel() {
    let bench = Bench::new();
    assert_eq!(bench.r8(CHANCTRL), 0, "the low byte does not hold the bit");
    assert_eq!(bench.r16(CHANCTRL), 0, "the first reader gets it");
    assert_eq!(bench.r16(CHANCTRL), 0x100);
    bench.w8(CHANCTRL, 0);
    assert_eq!(bench.r16(CHANCTRL), 0x100, "the low byte does not release it");
    bench.w16(CHANCTRL, 0x11C);
    assert_eq!(bench.r16(CHANCTRL), 0x11C, "nor does a one");
    bench.w16(CHANCTRL, 0x1C);
    assert_eq!((bench.r16(CHANCTRL), bench.r16(CHANCTRL)), (0x1C, 0x11C));
}

#[test]
fn reading_intrctrl_clears_its_master_bit_and_neighbours_do_not() {
    let bench = Bench::new();
    bench.w8(INTRCTRL, 0xFF);
    bench.r8(GENCTRL);
    bench.r32(ATTNSTATUS);
    assert_eq!(bench.r8(INTRCTRL), 0x09);
    assert_eq!(bench.r8(INTRCTRL), 0x08);
    bench.w8(INTRCTRL, 0x01);
    assert_eq!(bench.r32(CHANCNT), 0x0100_1401, "a wider read includes it");
    assert_eq!(bench.r8(INTRCTRL), 0);
}

#[test]
fn one_wide_access_is_its_registers_in_order() {
    let bench = Bench::new();
    bench.put(RAM, copy(RAM, RAM + 4096, 8, spec::descriptor::Control::empty(), RAM));
    // CHAINADDR and CHANCMP with one 16-byte store, as SSE makes it.
    let mut both = RAM.to_le_bytes().to_vec();
    both.extend((RAM + 8192).to_le_bytes());
    bench.device.write(0, CHAINADDR, &both);
    assert_eq!((bench.r64(CHAINADDR), bench.r64(CHANCMP)), (RAM, RAM + 8192));
    // CHANCTRL, CHANCMD and DMACOUNT with one 8-byte store.
    bench.w64(CHANCTRL, 0x0003_0000_0000_0008);
    bench.wait_for(State::Done);
    assert_eq!((bench.r16(CHANCTRL), bench.r16(DMACOUNT)), (0x08, 3));
}

#[test]
fn unaligned_and_odd_accesses_see_the_bytes_they_cover() {
    let bench = Bench::new();
    bench.w64(CHANCMP, 0x1122_3344_5566_7788);
    let mut data = [0; 5];
    bench.device.read(0, CHANCMP - 2, &mut data);
    assert_eq!(data, [0, 0, 0x88, 0x77, 0x66]);
    bench.device.write(0, CHANCMP + 1, &[0xAA, 0xBB, 0xCC]);
    assert_eq!(bench.r64(CHANCMP), 0x1122_3344_CCBB_AA88);
    bench.device.read(0, CHANCMP, &mut []);
    bench.device.write(0, CHANCMP, &[]);
}

#[test]
fn what_is_outside_reads_as_ones_and_ignores_writes() {
    let bench = Bench::new();
    for (bar, offset) in [(0, BAR0_SIZE), (0, u64::MAX), (0, u64::MAX - 3), (1, 0), (5, 0x88), (255, 0)] {
        let mut data = [0; 8];
        bench.device.read(bar, offset, &mut data);
        assert_eq!(data, [0xFF; 8], "{bar} {offset:#x}");
        bench.device.write(bar, offset, &data);
    }
    let mut data = [7; 8];
    bench.device.read(0, BAR0_SIZE - 4, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
}

#[test]
fn configuration_registers_are_the_devices_own_and_no_more() {
    let bench = Bench::new();
    bench.config_w32(0x184, u32::MAX);
    bench.config_w32(0x148, u32::MAX);
    assert_eq!((bench.config_r32(0x184), bench.config_r32(0x148)), (0x7_FFFF, 0));
    assert!(bench.device.config_write(0x185, &[0]));
    assert_eq!(bench.config_r32(0x184), 0x7_00FF);
    let mut data = [0; 8];
    assert!(bench.device.config_read(0x180, &mut data));
    assert_eq!(data, [0, 0, 0, 0, 0xFF, 0, 7, 0]);
    for (offset, len) in [(0, 4), (0x10, 8), (0x147, 1), (0x146, 4), (0x14A, 4), (0x17F, 2), (0x184, 8), (0xFFF, 8)] {
        assert!(!bench.device.config_read(offset, &mut data[..len]), "{offset:#x}");
        assert!(!bench.device.config_write(offset, &data[..len]), "{offset:#x}");
    }
}

#[test]
fn the_description_is_that_of_the_hardware() {
    let spec = spec();
    assert_eq!((spec.vendor, spec.device, spec.class), (0x8086, 0x2021, 0x08_8000));
    let msix = spec.msix.unwrap();
    assert_eq!((msix.vectors, msix.table_offset, msix.pba_offset), (1, 0x2000, 0x3000));
    assert_eq!(spec.bar(0).map(|bar| (bar.size, bar.kind)), Some((0x4000, ioasid_vfio::BarKind::Memory64)));
}
