//! DPDK's dmadev driver (`drivers/dma/ioat`).

use ioasid_devices::ioat::spec::descriptor::{Control, Descriptor};
use ioasid_devices::ioat::spec::registers::{ChannelError, State, Status};
use zerocopy::IntoBytes;

use super::common::*;

const RING: u64 = RAM;
const STATUS: u64 = RAM + 0x1_0000;
const SRC: u64 = RAM + 0x10_0000;
const DST: u64 = RAM + 0x20_0000;
const SLOTS: u16 = 32;
/// How often the driver looks before it gives up.
const RETRIES: usize = 200;

struct Driver {
    bench: Bench,
    next_read: u16,
    next_write: u16,
    offset: u16,
}

impl Driver {
    fn create(bench: Bench) -> Self {
        assert_eq!(bench.r8(CHANCNT), 1);
        if bench.r16(CHANCTRL) & 0x100 != 0 {
            bench.w16(CHANCTRL, 0);
        }
        if bench.r32(CHANERR) != 0 {
            let errors = bench.r32(CHANERR);
            bench.w32(CHANERR, errors);
        }
        bench.w8(CHANCMD, SUSPEND);
        bench.w8(CHANCMD, RESET);
        let mut retry = 0;
        while bench.r8(CHANCMD) & RESET != 0 {
            bench.w64(CHAINADDR, 0);
            retry += 1;
            assert!(retry < 1_000_000, "cannot reset device");
            std::thread::yield_now();
        }
        bench.w16(CHANCTRL, 0x000C);
        Self { bench, next_read: 0, next_write: 0, offset: 0 }
    }

    fn slot(index: u16) -> u64 {
        RING + 64 * u64::from(index % SLOTS)
    }

    /// The `next` field of a slot.
    fn next_of(index: u16) -> u64 {
        Self::slot(index.wrapping_add(1))
    }

    fn start(&mut self) {
        for index in 0..SLOTS {
            self.bench.put(Self::slot(index), Descriptor { next: Self::next_of(index).into(), ..Default::default() });
        }
        (self.next_read, self.next_write, self.offset) = (0, 0, 0);
        self.bench.w64(CHAINADDR, RING);
        self.bench.w64(CHANCMP, STATUS);
        self.set_status(Self::slot(SLOTS - 1));
        assert_ne!(self.bench.state(), State::Halted, "a warning, and a recovery");
    }

    fn stop(&self) {
        self.bench.w8(CHANCMD, SUSPEND);
        let suspended = (0..RETRIES).any(|_| self.bench.state() == State::Suspended);
        assert!(suspended);
    }

    fn set_status(&self, value: u64) {
        self.bench.memory.set(STATUS, &value.to_le_bytes());
    }

    fn enqueue(&mut self, descriptor: Descriptor) {
        let at = Self::slot(self.next_write);
        // The driver leaves `next` as it is.
        self.bench.memory.set(at, &descriptor.as_bytes()[..24]);
        self.next_write = self.next_write.wrapping_add(1);
    }

    fn copy(&mut self, from: u64, to: u64, size: u32) {
        self.enqueue(copy(from, to, size, Control::COMPLETION, 0));
    }

    fn submit(&self) {
        self.bench.w16(DMACOUNT, self.next_write.wrapping_sub(self.offset));
    }

    fn recover(&mut self) {
        let bench = &self.bench;
        let errors = bench.r32(CHANERR);
        bench.w32(CHANERR, errors);
        bench.w8(CHANCMD, RESET);
        bench.w64(CHAINADDR, Self::next_of(self.next_read.wrapping_sub(1)));
        bench.w16(CHANCTRL, 0x000C);
        bench.w64(CHANCMP, STATUS);
        let armed = (0..RETRIES).any(|_| bench.r64(CHANSTS) == State::Armed as u64);
        assert!(armed, "the whole register, not only the state");
        self.offset = self.next_read;
        self.set_status(Self::next_of(self.next_read.wrapping_sub(2)));
    }

    /// Completed operations, and the error that stopped them if one did.
    fn completed(&mut self) -> (u16, Option<ChannelError>) {
        let status = Status(self.bench.memory.get_u64(STATUS));
        let last = if status.0 & !7 == 0 { self.offset.wrapping_sub(1) } else { ((status.0 - RING) >> 6) as u16 };
        let count = last.wrapping_add(1).wrapping_sub(self.next_read) & (SLOTS - 1);
        if status.0 & 7 != State::Halted as u64 {
            self.next_read = self.next_read.wrapping_add(count);
            return (count, None);
        }
        let error = self.bench.errors();
        self.next_read = self.next_read.wrapping_add(count + 1);
        self.recover();
        self.submit();
        (count, Some(error))
    }

    fn wait_for(&mut self, mut count: u16) {
        wait_until("operations completed", || {
            let (done, error) = self.completed();
            assert_eq!(error, None);
            count -= done;
            count == 0
        });
    }
}

#[test]
fn it_copies_and_fills_around_the_ring() {
    let mut driver = Driver::create(Bench::new());
    driver.start();
    for round in 0..100_u8 {
        let data = pattern(7 * 1000, round);
        driver.bench.memory.set(SRC, &data);
        for index in 0..7 {
            driver.copy(SRC + 1000 * index, DST + 1000 * index, 1000);
        }
        driver.enqueue(fill(u64::from_le_bytes([round; 8]), DST + 7000, 100, Control::COMPLETION, 0));
        driver.submit();
        driver.wait_for(8);
        assert_eq!(driver.bench.memory.get(DST, data.len()), data);
        assert_eq!(driver.bench.memory.get(DST + 7000, 100), [round; 100]);
    }
}

#[test]
fn it_finds_the_failed_operation_and_goes_on_after_it() {
    let mut driver = Driver::create(Bench::new());
    driver.start();
    driver.copy(SRC, DST, 64);
    driver.submit();
    driver.wait_for(1);
    for bad in 0..5_u16 {
        for index in 0..5 {
            driver.copy(if index == bad { NOWHERE } else { SRC }, DST, 64);
        }
        driver.submit();
        wait_until("the error", || Status(driver.bench.memory.get_u64(STATUS)).state() == State::Halted);
        assert_eq!(driver.completed(), (bad, Some(ChannelError::READ_DATA)));
        if bad < 4 {
            driver.wait_for(4 - bad);
        }
        assert_eq!(driver.next_read, driver.next_write);
    }
}

#[test]
fn it_stops_used_and_unused_and_starts_again() {
    let mut driver = Driver::create(Bench::new());
    driver.start();
    driver.stop();
    driver.start();
    driver.copy(SRC, DST, 64);
    driver.submit();
    driver.wait_for(1);
    driver.bench.wait_for(State::Done);
    driver.stop();
    driver.start();
    driver.copy(SRC, DST, 64);
    driver.submit();
    driver.wait_for(1);
}

#[test]
fn it_probes_a_device_that_somebody_left_running() {
    let bench = Bench::armed(RAM);
    bench.put(RAM, copy(SRC, DST, 1 << 20, Control::empty(), RAM));
    bench.r16(CHANCTRL);
    bench.w16(DMACOUNT, u16::MAX);
    let mut driver = Driver::create(bench);
    driver.start();
    driver.copy(SRC, DST, 64);
    driver.submit();
    driver.wait_for(1);
}
