//! When an interrupt leaves the device.

mod common;

use common::*;
use ioasid_devices::ioat::spec::descriptor::Control;
use ioasid_devices::ioat::spec::registers::State;

const RING: u64 = RAM;
const SRC: u64 = RAM + 0x10_0000;
const DST: u64 = RAM + 0x20_0000;

const MASTER: u8 = 1;
const MSIX_VECTORS: u8 = 8;
const REARM: u16 = 1;

/// A bench with a self-pointing copy that asks for an interrupt.
fn bench(intrctrl: u8) -> Bench {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::INTERRUPT, RING));
    bench.w8(INTRCTRL, intrctrl);
    bench
}

/// Has `count` descriptors in all completed.
fn complete(bench: &Bench, count: u16) {
    bench.w16(DMACOUNT, count);
    bench.wait_for(State::Done);
}

#[test]
fn there_is_one_interrupt_for_each_rearm_and_none_is_lost() {
    let bench = bench(MASTER);
    complete(&bench, 1);
    bench.sink.wait_for_messages(1);
    assert_eq!(bench.r16(CHANCTRL) & REARM, 1, "disabled by the interrupt");

    complete(&bench, 100);
    assert_eq!(bench.sink.messages(), 1);
    bench.w16(CHANCTRL, 0);
    assert_eq!(bench.sink.messages(), 1, "writing 0 does not rearm");
    bench.w16(CHANCTRL, REARM);
    assert_eq!(bench.sink.messages(), 2, "what completed meanwhile");
    bench.w16(CHANCTRL, REARM);
    assert_eq!((bench.sink.messages(), bench.r16(CHANCTRL) & REARM), (2, 0));

    complete(&bench, 101);
    bench.sink.wait_for_messages(3);
}

#[test]
fn either_bit_of_intrctrl_lets_messages_through() {
    for intrctrl in [MASTER, MSIX_VECTORS, MASTER | MSIX_VECTORS] {
        let bench = bench(intrctrl);
        complete(&bench, 1);
        bench.sink.wait_for_messages(1);
    }
}

#[test]
fn without_intrctrl_an_interrupt_waits() {
    let bench = bench(0);
    complete(&bench, 1);
    assert_eq!((bench.sink.messages(), bench.r16(CHANCTRL) & REARM), (0, 0));
    bench.w8(INTRCTRL, MSIX_VECTORS);
    assert_eq!(bench.sink.messages(), 1);
}

#[test]
fn a_descriptor_that_does_not_ask_for_an_interrupt_makes_none() {
    let bench = bench(MASTER);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    complete(&bench, 1000);
    bench.w16(CHANCTRL, REARM);
    assert_eq!((bench.sink.messages(), bench.r16(CHANCTRL) & REARM), (0, 0));
}

#[test]
fn the_line_follows_the_handlers_steps() {
    let bench = bench(MASTER);
    complete(&bench, 1);
    bench.sink.wait_for_line(true);
    let intrctrl = bench.r8(INTRCTRL);
    assert_eq!(intrctrl, 0b0111, "master, status, and both");
    bench.sink.wait_for_line(false); // Reading cleared the master bit.
    assert_eq!(bench.r8(INTRCTRL), 0b0010);
    assert_eq!(bench.r8(ATTNSTATUS + 1), 0, "a byte without the bit");
    assert_eq!(bench.r32(ATTNSTATUS), 1);
    assert_eq!(bench.r32(ATTNSTATUS), 0, "reading cleared it");
    bench.w8(INTRCTRL, intrctrl);
    assert!(!bench.sink.line());
    assert_eq!(bench.r8(INTRCTRL), MASTER, "no status any more");
    bench.w8(INTRCTRL, MASTER);

    bench.w16(CHANCTRL, REARM);
    complete(&bench, 2);
    bench.sink.wait_for_line(true);
}

#[test]
fn the_line_rises_again_if_the_handler_did_not_look() {
    let bench = bench(MASTER);
    complete(&bench, 1);
    bench.sink.wait_for_line(true);
    bench.r8(INTRCTRL);
    bench.sink.wait_for_line(false);
    bench.w8(INTRCTRL, MASTER);
    bench.sink.wait_for_line(true);
}

#[test]
fn a_reset_takes_back_what_was_not_delivered() {
    let bench = bench(0);
    complete(&bench, 1);
    bench.w8(CHANCMD, RESET);
    bench.w8(INTRCTRL, MASTER | MSIX_VECTORS);
    assert_eq!(bench.sink.messages(), 0);

    bench.w64(CHAINADDR, RING);
    complete(&bench, 1);
    bench.sink.wait_for_line(true);
    bench.device.reset();
    bench.sink.wait_for_line(false);
    assert_eq!(bench.r32(ATTNSTATUS), 0);
}
