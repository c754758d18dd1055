//! Linux's VFIO selftest driver (`tools/testing/selftests/vfio/lib/drivers/ioat`).

use ioasid_devices::ioat::spec::descriptor::Control;
use ioasid_devices::ioat::spec::registers::{ChannelError, State};

use super::common::*;

const REGION: u64 = RAM;
const MSI_FROM: u64 = RAM + 64;
const MSI_TO: u64 = RAM + 72;
const SRC: u64 = RAM + 0x10_0000;
const DST: u64 = RAM + 0x20_0000;

struct Driver {
    bench: Bench,
    longest: u32,
}

impl Driver {
    fn probe_and_init() -> Self {
        let bench = Bench::new();
        assert!(matches!(bench.r8(CBVER), 0x32 | 0x33));
        let mut driver = Self { bench, longest: 0 };
        driver.reset();
        driver.bench.w8(INTRCTRL, 0x08);
        driver.longest = 1 << driver.bench.r8(XFERCAP);
        driver
    }

    fn reset(&self) {
        let bench = &self.bench;
        let errors = bench.config_r32(0x180);
        bench.config_w32(0x180, errors);
        let uncorrectable = bench.config_r32(0x148);
        bench.config_w32(0x180, uncorrectable);
        let errors = bench.r32(CHANERR);
        bench.w32(CHANERR, errors);

        bench.w8(CHANCMD, RESET);
        wait_until("the end of the reset", || bench.r8(CHANCMD) & RESET == 0);
        assert_eq!(bench.state(), State::Halted);
        assert_eq!((bench.errors(), bench.config_r32(0x180)), (ChannelError::empty(), 0));
    }

    fn start(&self, from: u64, to: u64, size: u32, count: u16, interrupt: bool) {
        let control = if interrupt { Control::INTERRUPT } else { Control::empty() };
        self.bench.put(REGION, copy(from, to, size, control, REGION));
        self.bench.w64(CHAINADDR, REGION);
        self.bench.w16(CHANCTRL, 0x0009);
        self.bench.w16(DMACOUNT, count);
    }

    fn wait(&self) -> Result<(), ChannelError> {
        wait_until("done or halted", || matches!(self.bench.state(), State::Done | State::Halted));
        if self.bench.state() == State::Halted {
            let errors = self.bench.errors();
            self.reset();
            return Err(errors);
        }
        self.bench.w8(CHANCMD, SUSPEND);
        self.bench.wait_for(State::Suspended);
        Ok(())
    }

    fn memcpy(&self, from: u64, to: u64, size: u32) -> Result<(), ChannelError> {
        let mut done = 0;
        while done < size {
            let chunk = (size - done).min(self.longest);
            self.start(from + u64::from(done), to + u64::from(done), chunk, 1, false);
            self.wait()?;
            done += chunk;
        }
        Ok(())
    }

    fn send_msi(&self) {
        let before = self.bench.sink.messages();
        self.start(MSI_FROM, MSI_TO, 8, 1, true);
        assert_eq!(self.wait(), Ok(()));
        self.bench.sink.wait_for_messages(before + 1);
        assert_eq!(self.bench.sink.messages(), before + 1);
    }
}

#[test]
fn it_copies_in_several_descriptors_without_an_interrupt() {
    let driver = Driver::probe_and_init();
    let data = pattern(700_000, 5);
    driver.bench.memory.set(SRC, &data);
    assert_eq!(driver.memcpy(SRC, DST, 700_000), Ok(()));
    assert_eq!(driver.bench.memory.get(DST, data.len()), data);
    let big = driver.longest + 4096;
    assert_eq!(driver.memcpy(RAM + 0x1000, DST, big), Ok(()));
    assert_eq!(driver.bench.sink.messages(), 0);
}

#[test]
fn it_sees_unmapped_addresses_as_errors_and_recovers_each_time() {
    let driver = Driver::probe_and_init();
    for round in 0..20 {
        assert_eq!(driver.memcpy(NOWHERE, DST, 4096), Err(ChannelError::READ_DATA));
        assert_eq!(driver.memcpy(SRC, NOWHERE, 4096), Err(ChannelError::WRITE_DATA));
        assert_eq!(driver.bench.sink.messages(), round, "errors do not interrupt");
        driver.send_msi();
        assert_eq!(driver.memcpy(SRC, DST, 4096), Ok(()));
    }
}

#[test]
fn a_storm_of_one_self_pointing_descriptor_completes() {
    let driver = Driver::probe_and_init();
    let data = pattern(256, 6);
    driver.bench.memory.set(SRC, &data);
    for _ in 0..2 {
        driver.start(SRC, DST, 256, u16::MAX, false);
        assert_eq!(driver.wait(), Ok(()));
    }
    assert_eq!(driver.bench.memory.get(DST, 256), data);
    assert_eq!(driver.bench.sink.messages(), 0);
}

#[test]
fn removal_in_the_middle_of_a_storm_resets() {
    let driver = Driver::probe_and_init();
    driver.start(SRC, DST, driver.longest, u16::MAX, false);
    driver.reset();
}
