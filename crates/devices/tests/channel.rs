//! What a channel does with a chain.

mod common;

use common::*;
use ioasid_devices::ioat::spec::descriptor::Control;
use ioasid_devices::ioat::spec::registers::{ChannelError, State, Status};

const RING: u64 = RAM;
const CMP: u64 = RAM + 0x1_0000;
const SRC: u64 = RAM + 0x10_0000;
const DST: u64 = RAM + 0x20_0000;
const MIB: u32 = 1 << 20;

#[test]
fn a_chain_is_copied_and_each_completion_is_written() {
    let bench = Bench::armed(RING);
    let data = pattern(3 * 5000, 1);
    bench.memory.set(SRC, &data);
    for index in 0..3 {
        let at = RING + 64 * index;
        bench.put(at, copy(SRC + 5000 * index, DST + 5000 * index, 5000, Control::COMPLETION, at + 64));
    }
    bench.w64(CHANCMP, CMP);
    bench.w16(DMACOUNT, 3);
    bench.wait_for(State::Done);

    assert_eq!(bench.memory.get(DST, data.len()), data);
    assert_eq!(bench.status(), Status::new(State::Done, RING + 128));
    assert_eq!(Status(bench.memory.get_u64(CMP)), bench.status());
    assert_eq!(bench.r64(CDAR), RING + 128);
    assert!(bench.errors().is_empty());
}

#[test]
fn a_completion_write_in_the_middle_of_a_chain_says_active() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 64, Control::COMPLETION, RING + 64));
    bench.put(RING + 64, copy(SRC, DST, 64, Control::empty(), 0));
    bench.w64(CHANCMP, CMP);
    bench.w16(DMACOUNT, 2);
    bench.wait_for(State::Done);
    assert_eq!(Status(bench.memory.get_u64(CMP)), Status::new(State::Active, RING));
}

#[test]
fn the_longest_transfer_is_one_mebibyte() {
    let bench = Bench::armed(RING);
    let data = pattern(MIB as usize, 2);
    bench.memory.set(SRC, &data);
    bench.put(RING, copy(SRC, DST, MIB, Control::empty(), 0));
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);
    assert_eq!(bench.memory.get(DST, data.len()), data);
}

#[test]
fn a_fill_repeats_its_eight_bytes_from_the_destination_on() {
    let bench = Bench::armed(RING);
    let pattern = 0x8877_6655_4433_2211_u64;
    bench.put(RING, fill(pattern, DST + 3, 10_001, Control::empty(), 0));
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);

    let filled = bench.memory.get(DST, 10_005);
    let bytes = pattern.to_le_bytes();
    assert!(filled[3..10_004].iter().zip(bytes.iter().cycle()).all(|(is, should)| is == should));
    assert_eq!((filled[2], filled[10_004]), (0, 0));
}

#[test]
fn a_null_descriptor_completes_and_touches_nothing() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(NOWHERE, NOWHERE, 1, Control::NULL | Control::COMPLETION, 0));
    bench.w64(CHANCMP, CMP);
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);
    assert_eq!(Status(bench.memory.get_u64(CMP)), Status::new(State::Done, RING));
    assert_eq!(bench.memory.accesses(), 2, "the descriptor and the completion");
}

#[test]
fn a_self_pointing_descriptor_runs_exactly_as_often_as_counted() {
    for count in [1, 2, 1000, u16::MAX] {
        let bench = Bench::armed(RING);
        bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
        bench.w16(DMACOUNT, count);
        bench.wait_for(State::Done);
        assert_eq!(bench.memory.accesses(), 2 * u64::from(count));
    }
}

#[test]
fn more_doorbells_go_on_from_where_the_chain_was() {
    let bench = Bench::armed(RING);
    for index in 0..4 {
        let at = RING + 64 * index;
        bench.put(at, fill(index + 1, DST + 8 * index, 8, Control::empty(), at + 64));
    }
    for count in 1..=4 {
        bench.w16(DMACOUNT, count);
        bench.wait_for(State::Done);
        assert_eq!(bench.memory.get_u64(DST + 8 * u64::from(count - 1)), u64::from(count));
        assert_eq!(bench.status().completed(), RING + 64 * u64::from(count - 1));
    }
}

#[test]
fn a_lower_count_wraps_around() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    bench.w16(DMACOUNT, 5);
    bench.wait_for(State::Done);
    bench.w16(DMACOUNT, 3);
    bench.wait_for(State::Done);
    assert_eq!(bench.memory.accesses(), 2 * (5 + 65534));
}

#[test]
fn the_same_count_again_is_no_work() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);
    bench.w16(DMACOUNT, 1);
    assert_eq!(bench.state(), State::Done);
    assert_eq!(bench.memory.accesses(), 2);
}

#[test]
fn a_channel_is_active_as_soon_as_the_doorbell_is_rung() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), 0));
    bench.memory.hold();
    bench.w16(DMACOUNT, 1);
    assert_eq!(bench.state(), State::Active);
    bench.memory.release();
    bench.wait_for(State::Done);
}

#[test]
fn nothing_is_reported_before_its_data_is_there() {
    let bench = Bench::armed(RING);
    let data = pattern(4096, 3);
    bench.memory.set(SRC, &data);
    bench.put(RING, copy(SRC, DST, 4096, Control::COMPLETION | Control::INTERRUPT, 0));
    bench.w64(CHANCMP, CMP);
    bench.w8(INTRCTRL, 1);
    bench.memory.hold();
    bench.w16(DMACOUNT, 1);
    bench.memory.wait_until_held();
    assert_eq!((bench.status(), bench.memory.get_u64(CMP)), (Status::new(State::Active, 0), 0));
    assert_eq!(bench.sink.messages(), 0);
    bench.memory.release();
    wait_until("completion write", || bench.memory.get_u64(CMP) != 0);
    assert_eq!(bench.memory.get(DST, 4096), data);
}

#[test]
fn suspend_stops_after_the_descriptor_and_resume_goes_on() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING + 64));
    bench.put(RING + 64, fill(7, DST + 8, 8, Control::empty(), 0));
    bench.memory.hold();
    bench.w16(DMACOUNT, 2);
    bench.memory.wait_until_held();
    bench.w8(CHANCMD, SUSPEND);
    assert_eq!((bench.state(), bench.r8(CHANCMD)), (State::Active, SUSPEND));
    bench.memory.release();
    bench.wait_for(State::Suspended);
    assert_eq!((bench.status().completed(), bench.r8(CHANCMD)), (RING, 0));
    assert_eq!(bench.memory.get_u64(DST + 8), 0);

    bench.w8(CHANCMD, RESUME);
    bench.wait_for(State::Done);
    assert_eq!(bench.memory.get_u64(DST + 8), 7);
}

#[test]
fn a_doorbell_during_suspension_waits_for_the_resume() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    bench.w8(CHANCMD, SUSPEND);
    assert_eq!(bench.state(), State::Suspended);
    bench.w16(DMACOUNT, 2);
    assert_eq!((bench.state(), bench.memory.accesses()), (State::Suspended, 0));
    bench.w8(CHANCMD, RESUME);
    bench.wait_for(State::Done);
    assert_eq!(bench.memory.accesses(), 4);
}

#[test]
fn abort_halts_after_the_descriptor_without_an_error() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    bench.memory.hold();
    bench.w16(DMACOUNT, 60_000);
    bench.memory.wait_until_held();
    bench.w8(CHANCMD, ABORT);
    bench.memory.release();
    bench.wait_for(State::Halted);
    assert_eq!((bench.status().completed(), bench.errors()), (RING, ChannelError::empty()));
}

#[test]
fn a_new_chain_address_restarts_a_suspended_channel_from_zero() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING));
    for _ in 0..3 {
        bench.w64(CHAINADDR, RING);
        assert_eq!(bench.status(), Status::new(State::Armed, 0));
        assert_eq!(bench.r16(DMACOUNT), 0);
        bench.w16(DMACOUNT, 1);
        bench.wait_for(State::Done);
        bench.w8(CHANCMD, SUSPEND);
        assert_eq!(bench.status(), Status::new(State::Suspended, RING));
    }
    assert_eq!(bench.memory.accesses(), 6);
}

#[test]
fn a_new_chain_address_does_not_disturb_an_idle_channel() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 8, Control::empty(), RING + 64));
    bench.put(RING + 64, fill(9, DST, 8, Control::empty(), 0));
    bench.w16(DMACOUNT, 1);
    bench.wait_for(State::Done);
    bench.w64(CHAINADDR, NOWHERE);
    assert_eq!((bench.state(), bench.r64(CHAINADDR)), (State::Done, NOWHERE));
    bench.w16(DMACOUNT, 2);
    bench.wait_for(State::Done);
    assert_eq!(bench.memory.get_u64(DST), 9);
}

#[test]
fn reset_in_the_middle_of_an_endless_loop_halts_the_channel() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 4096, Control::empty(), RING));
    bench.w64(CHANCMP, CMP);
    bench.w16(DMACOUNT, u16::MAX);
    wait_until("the loop runs", || bench.memory.accesses() > 100);
    bench.w8(CHANCMD, RESET);
    wait_until("the end of the reset", || bench.r8(CHANCMD) & RESET == 0);
    assert_eq!(bench.status(), Status::new(State::Halted, 0));
    assert_eq!((bench.r64(CHAINADDR), bench.r64(CHANCMP), bench.r16(DMACOUNT)), (0, 0, 0));
    let accesses = bench.memory.accesses();
    bench.w16(DMACOUNT, 7);
    assert_eq!((bench.state(), bench.memory.accesses()), (State::Halted, accesses));
}

#[test]
fn the_reset_bit_stays_until_the_dma_of_before_has_ended() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, MIB, Control::COMPLETION, RING));
    bench.w64(CHANCMP, CMP);
    bench.memory.hold();
    bench.w16(DMACOUNT, 9);
    bench.memory.wait_until_held();
    bench.w8(CHANCMD, RESET);
    assert_eq!((bench.r8(CHANCMD), bench.state()), (RESET, State::Halted));
    let accesses = bench.memory.accesses();
    bench.memory.release();
    wait_until("the end of the reset", || bench.r8(CHANCMD) == 0);
    assert_eq!(bench.memory.accesses(), accesses + 1, "no piece more than the one under way");
    assert_eq!((bench.state(), bench.memory.get_u64(CMP)), (State::Halted, 0));
}

#[test]
fn a_channel_may_be_armed_and_rung_while_its_reset_is_under_way() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, MIB, Control::empty(), RING));
    bench.put(RING + 64, fill(5, SRC, 8, Control::empty(), 0));
    bench.memory.hold();
    bench.w16(DMACOUNT, 9);
    bench.memory.wait_until_held();
    bench.w8(CHANCMD, RESET);
    bench.w64(CHAINADDR, RING + 64);
    bench.w16(DMACOUNT, 1);
    bench.memory.release();
    bench.wait_for(State::Done);
    assert_eq!((bench.status().completed(), bench.memory.get_u64(SRC)), (RING + 64, 5));
}

#[test]
fn a_function_reset_returns_when_no_dma_is_in_flight() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, MIB, Control::INTERRUPT, RING));
    bench.w8(INTRCTRL, 9);
    bench.w16(CHANCTRL, 0x1C);
    bench.w32(CHANERRMASK, 0xFF);
    bench.config_w32(0x184, 0x3E07);
    bench.w8(GENCTRL, 1);
    bench.memory.hold();
    bench.w16(DMACOUNT, u16::MAX);
    bench.memory.wait_until_held();
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| bench.device.reset());
        wait_until("the reset is seen", || bench.state() == State::Halted);
        assert!(!reset.is_finished());
        bench.memory.release();
    });
    let accesses = bench.memory.accesses();
    for (offset, value) in [(INTRCTRL, 0), (CHANCTRL, 0), (CHANCMD, 0), (CHANERRMASK, 0), (GENCTRL, 0)] {
        assert_eq!(bench.r8(offset), value, "{offset:#x}");
    }
    assert_eq!((bench.status(), bench.config_r32(0x184)), (Status::new(State::Halted, 0), 0));
    assert_eq!(bench.memory.accesses(), accesses);
    assert_eq!(bench.sink.messages(), 0);
}

#[test]
fn an_end_of_the_device_ends_its_dma() {
    let bench = Bench::armed(RING);
    bench.put(RING, copy(SRC, DST, 4096, Control::empty(), RING));
    bench.w16(DMACOUNT, u16::MAX);
    wait_until("the loop runs", || bench.memory.accesses() > 10);
    let memory = bench.memory.clone();
    drop(bench);
    assert_eq!(memory.owners(), 1, "the worker's hold on the memory is gone");
}
