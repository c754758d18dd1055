//! What goes wrong, and how it is told.

mod common;

use common::*;
use ioasid_devices::ioat::spec::descriptor::{Control, Descriptor, OP_COPY, OP_FILL};
use ioasid_devices::ioat::spec::registers::{ChannelError, State, Status};

const RING: u64 = RAM;
const CMP: u64 = RAM + 0x1_0000;
const SRC: u64 = RAM + 0x10_0000;
const DST: u64 = RAM + 0x20_0000;
const NONE: u32 = 0;

const ERROR_COMPLETION: u16 = 1 << 2;
const ABORT_ON_ANY: u16 = 1 << 3;
const ERROR_INTERRUPT: u16 = 1 << 4;

/// Runs `descriptor` behind one that is well, and returns the bench when the channel has halted.
fn second(descriptor: Descriptor) -> Bench {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING + 64));
    bench.put(RING + 64, descriptor);
    bench.w64(CHANCMP, CMP);
    bench.w16(CHANCTRL, ERROR_COMPLETION | ABORT_ON_ANY);
    bench.w16(DMACOUNT, 2);
    bench.wait_for(State::Halted);
    bench
}

#[test]
fn each_fault_of_a_descriptor_sets_its_bit_and_no_other() {
    let top = 1_u64 << 48;
    let cases: &[(&str, Descriptor, ChannelError)] = &[
        ("size 0", raw(OP_COPY, SRC, DST, 0, NONE, 0), ChannelError::LENGTH),
        ("size 0 of a null", raw(OP_COPY, SRC, DST, 0, Control::NULL.bits(), 0), ChannelError::LENGTH),
        ("size above XFERCAP", raw(OP_COPY, SRC, DST, (1 << 20) + 1, NONE, 0), ChannelError::LENGTH),
        ("size all ones", raw(OP_FILL, SRC, DST, u32::MAX, NONE, 0), ChannelError::LENGTH),
        ("unknown operation", raw(0x02, SRC, DST, 8, NONE, 0), ChannelError::CONTROL),
        ("XOR, which is not offered", raw(0x87, SRC, DST, 8, NONE, 0), ChannelError::CONTROL),
        ("source page break", raw(OP_COPY, SRC, DST, 8, 1 << 6, 0), ChannelError::CONTROL),
        ("destination page break", raw(OP_COPY, SRC, DST, 8, 1 << 7, 0), ChannelError::CONTROL),
        ("bundle", raw(OP_COPY, SRC, DST, 8, 1 << 8, 0), ChannelError::CONTROL),
        ("lowest reserved bit", raw(OP_COPY, SRC, DST, 8, 1 << 11, 0), ChannelError::CONTROL),
        ("highest reserved bit", raw(OP_COPY, SRC, DST, 8, 1 << 23, 0), ChannelError::CONTROL),
        ("null fill", raw(OP_FILL, SRC, DST, 8, Control::NULL.bits(), 0), ChannelError::CONTROL),
        ("source too wide", raw(OP_COPY, top, DST, 8, NONE, 0), ChannelError::SOURCE_ADDRESS),
        ("source ends too wide", raw(OP_COPY, top - 7, DST, 8, NONE, 0), ChannelError::SOURCE_ADDRESS),
        ("source ends at the width", raw(OP_COPY, top - 8, DST, 8, NONE, 0), ChannelError::READ_DATA),
        ("destination too wide", raw(OP_COPY, SRC, top, 8, NONE, 0), ChannelError::DESTINATION_ADDRESS),
        ("destination wraps", raw(OP_FILL, 0, u64::MAX - 3, 8, NONE, 0), ChannelError::DESTINATION_ADDRESS),
        (
            "both too wide",
            raw(OP_COPY, u64::MAX, u64::MAX, 8, NONE, 0),
            ChannelError::SOURCE_ADDRESS.union(ChannelError::DESTINATION_ADDRESS),
        ),
        ("source refused", raw(OP_COPY, NOWHERE, DST, 8, NONE, 0), ChannelError::READ_DATA),
        ("source write-only", raw(OP_COPY, WRITE_ONLY, DST, 8, NONE, 0), ChannelError::READ_DATA),
        ("destination refused", raw(OP_COPY, SRC, NOWHERE, 8, NONE, 0), ChannelError::WRITE_DATA),
        ("destination read-only", raw(OP_COPY, SRC, READ_ONLY, 8, NONE, 0), ChannelError::WRITE_DATA),
        ("runs into read-only", raw(OP_COPY, SRC, READ_ONLY - 4, 8, NONE, 0), ChannelError::WRITE_DATA),
        ("fill refused", raw(OP_FILL, 0, NOWHERE, 8, NONE, 0), ChannelError::WRITE_DATA),
        ("fill read-only", raw(OP_FILL, 0, READ_ONLY - 4096, 8192, NONE, 0), ChannelError::WRITE_DATA),
    ];
    for &(what, descriptor, error) in cases {
        let bench = second(descriptor);
        assert_eq!(bench.errors(), error, "{what}");
        assert_eq!(bench.config_r32(0x180), error.bits(), "{what}: CHANERR_INT");
        assert_eq!(bench.status(), Status::new(State::Halted, RING), "{what}: the one before is the last completed");
        assert_eq!(Status(bench.memory.get_u64(CMP)), bench.status(), "{what}: completion write");
        assert_eq!(bench.r64(CDAR), RING + 64, "{what}: CDAR");
    }
}

#[test]
fn a_chain_that_begins_nowhere_halts_the_channel() {
    for chain in [NOWHERE, RING + 8, 1 << 48, u64::MAX - 63, WRITE_ONLY, READ_ONLY + 4096 - 32] {
        let bench = Bench::armed(chain);
        bench.w16(CHANCTRL, ERROR_COMPLETION);
        bench.w64(CHANCMP, CMP);
        bench.w16(DMACOUNT, 1);
        bench.wait_for(State::Halted);
        assert_eq!(bench.errors(), ChannelError::CHAIN_ADDRESS, "{chain:#x}");
        wait_until("completion write", || Status(bench.memory.get_u64(CMP)) == Status::new(State::Halted, 0));
    }
}

#[test]
fn a_chain_that_leads_nowhere_halts_the_channel() {
    for (next, error) in [
        (NOWHERE, ChannelError::NEXT_ADDRESS),
        (0, ChannelError::NEXT_ADDRESS),
        (1 << 48, ChannelError::NEXT_ADDRESS),
        (WRITE_ONLY, ChannelError::NEXT_ADDRESS),
        (RING + 32, ChannelError::NEXT_ALIGNMENT),
        (u64::MAX, ChannelError::NEXT_ALIGNMENT),
    ] {
        let bench = Bench::armed(RING);
        bench.put(RING, copy(SRC, DST, 8, Control::empty(), next));
        bench.w16(DMACOUNT, 2);
        bench.wait_for(State::Halted);
        assert_eq!((bench.errors(), bench.status().completed()), (error, RING), "{next:#x}");
    }
}

#[test]
fn the_next_address_of_the_last_descriptor_does_not_matter() {
    for next in [NOWHERE, 0, 1, u64::MAX] {
        let bench = Bench::armed(RING);
        bench.put(RING, copy(SRC, DST, 8, Control::empty(), next));
        bench.w16(DMACOUNT, 1);
        bench.wait_for(State::Done);
        assert!(bench.errors().is_empty());
    }
}

#[test]
fn a_completion_write_that_cannot_be_made_halts_the_channel() {
    for address in [None, Some(NOWHERE), Some(READ_ONLY), Some(u64::MAX)] {
        let bench = Bench::armed(RING);
        bench.put(RING, copy(SRC, DST, 8, Control::COMPLETION, 0));
        if let Some(address) = address {
            bench.w64(CHANCMP, address);
        }
        bench.w16(DMACOUNT, 1);
        bench.wait_for(State::Halted);
        assert_eq!(bench.errors(), ChannelError::COMPLETION_ADDRESS, "{address:x?}");
        assert_eq!(bench.status().completed(), 0);
    }
}

#[test]
fn without_error_completion_an_error_writes_nothing() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(NOWHERE, DST, 8, Control::COMPLETION, 0));
    bench.w64(CHANCMP, CMP);
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Halted);
    assert_eq!((bench.errors(), bench.memory.get_u64(CMP)), (ChannelError::READ_DATA, 0));
}

#[test]
fn an_error_interrupts_if_enabled_and_not_masked() {
    for (control, mask, interrupts) in [
        (ERROR_INTERRUPT, 0, true),
        (0, 0, false),
        (ERROR_INTERRUPT, ChannelError::READ_DATA.bits(), false),
        (ERROR_INTERRUPT, ChannelError::WRITE_DATA.bits(), true),
    ] {
        let bench = Bench::armed(RING);
        bench.put(RING, copy(NOWHERE, DST, 8, Control::empty(), 0));
        bench.w8(INTRCTRL, 1);
        bench.w16(CHANCTRL, control);
        bench.w32(CHANERRMASK, mask);
        bench.w16(DMACOUNT, 1);
        bench.wait_for(State::Halted);
        if interrupts {
            bench.sink.wait_for_messages(1);
        } else {
            bench.w16(CHANCTRL, control | 1);
            assert_eq!(bench.sink.messages(), 0, "a rearm would have delivered it");
        }
        assert_eq!(bench.errors(), ChannelError::READ_DATA);
    }
}

#[test]
fn whoever_sees_the_halt_in_memory_finds_its_reason_and_may_go_on_at_once() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(NOWHERE, DST, 8, Control::empty(), 0));
    bench.put(RING + 64, fill(6, DST, 8, Control::empty(), 0));
    bench.w64(CHANCMP, CMP);
    bench.w8(INTRCTRL, 1);
    bench.w16(CHANCTRL, ERROR_COMPLETION | ERROR_INTERRUPT);
    bench.memory.hold_after_write(CMP);
    bench.w16(DMACOUNT, 1);
    bench.memory.wait_until_held();
    assert_eq!(Status(bench.memory.get_u64(CMP)), Status::new(State::Halted, 0));
    assert_eq!((bench.errors(), bench.state()), (ChannelError::READ_DATA, State::Halted));
    assert_eq!(bench.sink.messages(), 0);

    bench.w32(CHANERR, ChannelError::READ_DATA.bits());
    bench.w64(CHAINADDR, RING + 64);
    bench.w16(DMACOUNT, 1);
    bench.memory.release();
    bench.wait_for(State::Done);
    assert_eq!((bench.status().completed(), bench.errors()), (RING + 64, ChannelError::empty()));
    bench.sink.wait_for_messages(1);
}

#[test]
fn two_commands_at_once_are_an_error() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    bench.w16(DMACOUNT, u16::MAX);
    bench.w8(CHANCMD, RESET | SUSPEND);
    assert_eq!((bench.state(), bench.errors()), (State::Halted, ChannelError::COMMAND));
    bench.w8(CHANCMD, RESET);
    wait_until("the end of the reset", || bench.r8(CHANCMD) == 0);
}

#[test]
fn after_an_error_a_new_chain_works() {
    let bench = second(raw(0xFF, 0, 0, 0, NONE, 0));
    let errors = bench.r32(CHANERR);
    bench.w32(CHANERR, errors);
    bench.w8(CHANCMD, RESET);
    assert_eq!((bench.r8(CHANCMD), bench.errors()), (0, ChannelError::empty()));
    bench.memory.set(SRC, &pattern(64, 4));
    bench.put(RING, copy(SRC, DST, 64, Control::empty(), 0));
    bench.w64(CHAINADDR, RING);
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);
    assert_eq!(bench.memory.get(DST, 64), pattern(64, 4));
}
