//! A driver that means harm: any registers, any descriptors, any order.

mod common;

use common::*;
use ioasid_devices::ioat::Ioat;
use ioasid_devices::ioat::spec::descriptor::{Control, Descriptor};
use ioasid_devices::ioat::spec::registers::State;
use proptest::prelude::*;

/// Memory of the device that may not be touched: its value must stay.
const GUARD: u8 = 0xA5;
const DATA: u64 = RAM + 0x10_0000;

/// One thing that the driver does.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    ConfigWrite(u16, Vec<u8>),
    Doorbell(u16),
    Chain(u64),
    Command(u8),
    FunctionReset,
}

impl Act {
    fn perform(&self, device: &Ioat) {
        match self {
            Self::Write(at, data) => device.write(0, *at, data),
            Self::Read(at, len) => device.read(0, *at, &mut [0; 20][..*len]),
            Self::ConfigWrite(at, data) => {
                device.config_write(*at, data);
            }
            Self::Doorbell(count) => device.write(0, DMACOUNT, &count.to_le_bytes()),
            Self::Chain(at) => device.write(0, CHAINADDR, &at.to_le_bytes()),
            Self::Command(command) => device.write(0, CHANCMD, &[*command]),
            Self::FunctionReset => device.reset(),
        }
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..16_u64).prop_map(|slot| RAM + 64 * slot),
        3 => (0..0x10_0000_u64).prop_map(|at| DATA + at),
        1 => Just(READ_ONLY),
        1 => Just(WRITE_ONLY),
        1 => Just(NOWHERE),
        1 => any::<u64>(),
        1 => (0..128_u64).prop_map(|below| u64::MAX - below),
        1 => (0..128_u64).prop_map(|below| (1 << 48) - below),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..20)
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (0..0xC8_u64, bytes()).prop_map(|(at, data)| Act::Write(at, data)),
        1 => (any::<u64>(), bytes()).prop_map(|(at, data)| Act::Write(at, data)),
        2 => (0..0xC8_u64, 0..20_usize).prop_map(|(at, len)| Act::Read(at, len)),
        1 => (any::<u64>(), 0..20_usize).prop_map(|(at, len)| Act::Read(at, len)),
        1 => (any::<u16>(), bytes()).prop_map(|(at, data)| Act::ConfigWrite(at, data)),
        1 => (0x140..0x190_u16, bytes()).prop_map(|(at, data)| Act::ConfigWrite(at, data)),
        4 => any::<u16>().prop_map(Act::Doorbell),
        3 => address().prop_map(Act::Chain),
        2 => any::<u8>().prop_map(Act::Command),
        2 => prop::sample::select(vec![RESET, RESUME, ABORT, SUSPEND]).prop_map(Act::Command),
        1 => Just(Act::FunctionReset),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let op = prop_oneof![4 => Just(0_u8), 3 => Just(1), 1 => any::<u8>()];
    let control = prop_oneof![4 => 0..0x40_u32, 1 => 0..0x100_0000_u32];
    let size = prop_oneof![4 => 0..5000_u32, 1 => Just(1 << 20), 1 => any::<u32>()];
    (op, address(), address(), size, control, address())
        .prop_map(|(op, source, destination, size, control, next)| raw(op, source, destination, size, control, next))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_driver_does_panics_hangs_or_reaches_what_is_refused(
        ring in proptest::collection::vec(descriptor(), 16),
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let bench = Bench::new();
        bench.memory.set(READ_ONLY, &[GUARD; 4096]);
        for (slot, descriptor) in ring.iter().enumerate() {
            bench.put(RAM + 64 * slot as u64, *descriptor);
        }
        acts.iter().for_each(|act| act.perform(&bench.device));
        bench.w8(CHANCMD, RESET);
        wait_until("the end of the reset", || bench.r8(CHANCMD) & RESET == 0);
        prop_assert_eq!(bench.state(), State::Halted);
        let accesses = bench.memory.accesses();

        bench.device.reset();
        prop_assert_eq!((bench.r32(CHANERR), bench.config_r32(0x180), bench.r8(INTRCTRL)), (0, 0, 0));
        prop_assert_eq!(bench.memory.accesses(), accesses);
        prop_assert_eq!(bench.memory.get(READ_ONLY, 4096), vec![GUARD; 4096]);

        // And then it works as if nothing had been.
        bench.memory.set(DATA, &pattern(4096, 1));
        bench.put(RAM, copy(DATA, DATA + 8192, 4096, Control::COMPLETION, 0));
        bench.w64(CHANCMP, RAM + 4096);
        bench.w64(CHAINADDR, RAM);
        bench.w16(DMACOUNT, 1);
        bench.wait_for(State::Done);
        prop_assert_eq!(bench.memory.get(DATA + 8192, 4096), pattern(4096, 1));
        let memory = bench.memory.clone();
        drop(bench);
        prop_assert_eq!(memory.owners(), 1);
    }

    /// Two drivers at once, of which neither knows of the other.
    #[test]
    fn nothing_two_drivers_do_at_once_panics_or_hangs(
        ring in proptest::collection::vec(descriptor(), 16),
        left in proptest::collection::vec(act(), 1..40),
        right in proptest::collection::vec(act(), 1..40),
    ) {
        let bench = Bench::new();
        for (slot, descriptor) in ring.iter().enumerate() {
            bench.put(RAM + 64 * slot as u64, *descriptor);
        }
        std::thread::scope(|scope| {
            for acts in [&left, &right] {
                let device = &bench.device;
                scope.spawn(move || acts.iter().for_each(|act| act.perform(device)));
            }
        });
        bench.device.reset();
        prop_assert_eq!(bench.state(), State::Halted);
    }
}
