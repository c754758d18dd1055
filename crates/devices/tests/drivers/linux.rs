//! Linux's dmaengine driver (`drivers/dma/ioat`), with MSI-X and with the legacy line.

use ioasid_devices::ioat::spec::descriptor::{Control, Descriptor};
use ioasid_devices::ioat::spec::registers::{ChannelError, State, Status};
use zerocopy::IntoBytes;

use super::common::*;

const COMPLETION: u64 = RAM + 0x8000;
const RING: u64 = RAM + 0x1_0000;
const SRC: u64 = RAM + 0x10_0000;
const DST: u64 = RAM + 0x20_0000;
const SLOTS: u16 = 64;

/// Rearm, error interrupt, error completion, abort on any error.
const RUN: u16 = 0x001D;
/// The errors that its handler takes on; with any other beside them it gives up (BUG).
const RECOVERABLE: ChannelError = ChannelError::READ_DATA.union(ChannelError::WRITE_DATA);

struct Driver {
    bench: Bench,
    head: u16,
    issued: u16,
    tail: u16,
    dmacount: u16,
    last_completion: u64,
    handled: usize,
}

impl Driver {
    fn probe(intrctrl: u8) -> Self {
        let bench = Bench::new();
        assert!(bench.r8(CBVER) >= 0x30);
        let capability = bench.r32(DMACAP);
        assert_eq!(capability & 0x0082_2310, 0, "no RAID, DCA, write back of errors, prefetching");
        assert_eq!(bench.r8(CHANCNT) & 0x1F, 1);
        assert_eq!(bench.r8(XFERCAP) & 0x1F, 20);
        let driver = Self { bench, head: 0, issued: 0, tail: 0, dmacount: 0, last_completion: 0, handled: 0 };
        driver.reset_hw();
        driver.bench.w8(INTRCTRL, intrctrl);
        driver.bench.w32(DCACTRL, u32::MAX);
        assert_eq!(driver.bench.r16(DCAOFFSET), 0, "no DCA provider");
        driver
    }

    fn quiesce(&self) {
        let busy = |state| matches!(state, State::Active | State::Done);
        if busy(self.bench.state()) {
            self.bench.w8(CHANCMD, SUSPEND);
        }
        wait_until("quiet", || !busy(self.bench.state()));
    }

    fn reset_hw(&self) {
        self.quiesce();
        let errors = self.bench.r32(CHANERR);
        self.bench.w32(CHANERR, errors);
        let errors = self.bench.config_r32(0x180);
        self.bench.config_w32(0x180, errors);
        self.bench.w8(CHANCMD, RESET);
        wait_until("the end of the reset", || self.bench.r8(CHANCMD) & RESET == 0);
    }

    fn slot(index: u16) -> u64 {
        RING + 64 * u64::from(index % SLOTS)
    }

    fn set_completion_address(&self) {
        self.bench.w32(CHANCMP, COMPLETION as u32);
        self.bench.w32(CHANCMP + 4, (COMPLETION >> 32) as u32);
    }

    fn alloc_chan(&mut self) {
        self.bench.w16(CHANCTRL, RUN);
        self.bench.memory.set(COMPLETION, &[0; 8]);
        self.set_completion_address();
        for index in 0..SLOTS {
            let next = Self::slot(index + 1).into();
            self.bench.put(Self::slot(index), Descriptor { next, ..Default::default() });
        }
        (self.head, self.issued, self.tail) = (0, 0, 0);
        self.start_null();
        // It looks at most 20 times, a microsecond apart.
        assert!((0..20).any(|_| matches!(self.bench.state(), State::Active | State::Done)));
    }

    fn free_chan(&mut self) {
        self.cleanup();
        self.reset_hw();
        self.last_completion = 0;
        self.dmacount = 0;
    }

    fn set_chain(&self, at: u64) {
        self.bench.w32(CHAINADDR, at as u32);
        self.bench.w32(CHAINADDR + 4, (at >> 32) as u32);
    }

    fn prepare(&mut self, descriptor: Descriptor) {
        let at = Self::slot(self.head);
        self.bench.memory.set(at, &descriptor.as_bytes()[..24]);
        self.head += 1;
    }

    fn start_null(&mut self) {
        let at = Self::slot(self.head);
        self.prepare(copy(0, 0, 1, Control::NULL | Control::INTERRUPT | Control::COMPLETION, 0));
        self.set_chain(at);
        self.issue_pending();
    }

    fn memcpy(&mut self, from: u64, to: u64, size: u32) {
        self.prepare(copy(from, to, size, Control::COMPLETION | Control::INTERRUPT, 0));
    }

    fn issue_pending(&mut self) {
        self.dmacount = self.dmacount.wrapping_add(self.head.wrapping_sub(self.issued));
        self.issued = self.head;
        self.bench.w16(DMACOUNT, self.dmacount);
    }

    fn completion(&self) -> Status {
        Status(self.bench.memory.get_u64(COMPLETION))
    }

    /// Reaps what is completed.
    fn reap(&mut self) {
        let completed = self.completion().completed();
        if completed == self.last_completion || completed == 0 {
            return;
        }
        let seen = (self.tail..self.head).find(|index| Self::slot(*index) == completed);
        self.tail = seen.expect("an active descriptor was reported, or it is a BUG") + 1;
        self.last_completion = completed;
    }

    fn cleanup(&mut self) {
        self.reap();
        if self.completion().state() == State::Halted && self.bench.errors().intersects(RECOVERABLE) {
            self.handle_error();
        }
    }

    fn handle_error(&mut self) {
        self.reap();
        let errors = self.bench.errors();
        let config_errors = self.bench.config_r32(0x180);
        assert!(
            errors == ChannelError::READ_DATA || errors == ChannelError::WRITE_DATA,
            "anything else beside it is a BUG: {errors:?}"
        );
        self.abort_descriptors();
        self.reset_hw();
        self.bench.w32(CHANERR, errors.bits());
        self.bench.config_w32(0x180, config_errors);
        self.restart();
        self.handled += 1;
    }

    fn abort_descriptors(&mut self) {
        self.tail = self.head;
        self.last_completion = Self::slot(self.tail);
        self.bench.memory.set(COMPLETION, &self.last_completion.to_le_bytes());
    }

    fn restart(&mut self) {
        self.set_completion_address();
        self.quiesce();
        self.reap();
        self.issued = self.tail;
        self.dmacount = 0;
        if self.head == self.issued {
            self.start_null();
        } else {
            self.set_chain(Self::slot(self.tail));
            self.issue_pending();
        }
    }

    /// What runs after an interrupt.
    fn tasklet(&mut self) {
        self.cleanup();
        self.bench.w16(CHANCTRL, RUN);
    }

    /// The timer, of which only the branch for a halted channel matters here.
    fn timer(&mut self) {
        if self.bench.state() == State::Halted {
            self.abort_descriptors();
            self.reset_hw();
            self.restart();
        }
    }

    /// Runs the tasklet for each message until everything is reaped.
    fn run_until_reaped(&mut self) {
        let mut served = 0;
        while self.tail != self.head {
            self.bench.sink.wait_for_messages(served + 1);
            served = self.bench.sink.messages();
            self.tasklet();
        }
    }
}

#[test]
fn its_self_test_passes_with_msix_again_and_again() {
    let mut driver = Driver::probe(0x09);
    for seed in 0..5 {
        let before = driver.bench.sink.messages();
        driver.alloc_chan();
        let data = pattern(2000, seed);
        driver.bench.memory.set(SRC, &data);
        driver.memcpy(SRC, DST, 2000);
        driver.issue_pending();
        while driver.tail != driver.head {
            driver.bench.sink.wait_for_messages(before + 1);
            driver.tasklet();
            std::thread::yield_now();
        }
        assert_eq!(driver.bench.memory.get(DST, 2000), data);
        driver.free_chan();
        assert_eq!(driver.bench.state(), State::Halted);
    }
}

#[test]
fn its_self_test_passes_with_the_legacy_line() {
    let mut driver = Driver::probe(0x01);
    driver.alloc_chan();
    driver.memcpy(SRC, DST, 2000);
    driver.issue_pending();
    let sink = driver.bench.sink.clone();
    let mut served = 0;
    while driver.tail != driver.head {
        sink.wait_for_line(true);
        let intrctrl = driver.bench.r8(INTRCTRL);
        assert_eq!(intrctrl & 1, 1, "the handler before wrote it back");
        if intrctrl & 2 != 0 {
            assert_eq!(driver.bench.r32(ATTNSTATUS), 1);
            driver.tasklet();
            served += 1;
        }
        driver.bench.w8(INTRCTRL, intrctrl);
    }
    assert!(served > 0);
}

#[test]
fn a_long_run_wraps_the_count_and_loses_no_completion() {
    let mut driver = Driver::probe(0x09);
    driver.alloc_chan();
    driver.run_until_reaped();
    for _ in 0..1100 {
        for _ in 0..60 {
            driver.memcpy(SRC, DST, 8);
        }
        driver.issue_pending();
        wait_until("everything reaped", || {
            driver.tasklet();
            driver.tail == driver.head
        });
        (driver.head, driver.tail, driver.issued) = (driver.head % SLOTS, driver.head % SLOTS, driver.head % SLOTS);
    }
    assert_eq!(driver.dmacount, (1_u32 + 66_000) as u16);
}

#[test]
fn a_refused_read_or_write_is_handled_from_its_interrupt() {
    for (from, to) in [(NOWHERE, DST), (SRC, NOWHERE), (SRC, READ_ONLY)] {
        let mut driver = Driver::probe(0x09);
        driver.alloc_chan();
        driver.run_until_reaped();
        let before = driver.bench.sink.messages();
        driver.memcpy(SRC, DST, 512);
        driver.memcpy(from, to, 512);
        driver.memcpy(SRC, DST, 512);
        driver.issue_pending();
        driver.bench.sink.wait_for_messages(before + 1);
        wait_until("the error is handled", || {
            driver.tasklet();
            driver.handled == 1
        });
        // Of the null descriptor that restarts it, it cannot tell the completion: it has set the same value itself.
        driver.bench.wait_for(State::Done);
        driver.bench.memory.set(SRC, &pattern(512, 7));
        driver.memcpy(SRC, DST, 512);
        driver.issue_pending();
        wait_until("a copy after it", || {
            driver.tasklet();
            driver.tail == driver.head
        });
        assert_eq!(driver.bench.memory.get(DST, 512), pattern(512, 7));
        assert_eq!((driver.bench.errors(), driver.bench.config_r32(0x180)), (ChannelError::empty(), 0));
    }
}

#[test]
fn a_channel_that_its_handler_does_not_take_on_is_rebooted_by_its_timer() {
    let mut driver = Driver::probe(0x09);
    driver.alloc_chan();
    driver.run_until_reaped();
    driver.prepare(raw(0x87, 0, 0, 8, 0, 0));
    driver.issue_pending();
    driver.bench.wait_for(State::Halted);
    driver.tasklet();
    assert_eq!((driver.handled, driver.bench.errors()), (0, ChannelError::CONTROL));
    driver.timer();
    driver.bench.wait_for(State::Done);
    driver.memcpy(SRC, DST, 8);
    driver.issue_pending();
    wait_until("a copy after it", || {
        driver.tasklet();
        driver.tail == driver.head
    });
    assert_eq!(driver.bench.errors(), ChannelError::empty());
}

#[test]
fn shutdown_quiesces_a_busy_channel() {
    let mut driver = Driver::probe(0x09);
    driver.alloc_chan();
    for _ in 0..50 {
        driver.memcpy(SRC, DST, 1 << 20);
    }
    driver.issue_pending();
    driver.reset_hw();
    driver.bench.w8(INTRCTRL, 0);
    assert_eq!(driver.bench.status(), Status::new(State::Halted, 0));
}
