//! A driver that means harm: any registers, any descriptors, any answers, any order.

#![allow(clippy::unwrap_used, reason = "a fixture of tests")]

use std::sync::Arc;

use ioasid::{PageResponse, Pasid, PasidHold};
use ioasid_devices::dsa::spec::command::Command;
use ioasid_devices::dsa::spec::descriptor::{Descriptor, Operation};
use ioasid_devices::dsa::spec::registers::{CMD, PORTAL_SIZE, QueueMode};
use ioasid_devices::dsa::{DsaSlice, PasidTranslation, SliceQueue};
use ioasid_vfio::Model;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::bench::*;

/// One thing that the driver does.
#[derive(Clone, Debug)]
enum Act {
    Read(u8, u64, usize),
    Write(u64, Vec<u8>),
    Command(u32, u32),
    Submit(u64, Box<Descriptor>),
    Enqueue(u64, Box<Descriptor>),
    /// Puts a descriptor where batches are.
    Place(u64, Box<Descriptor>),
    Absent(u64),
    Present(u64),
    Answer(bool),
    Reset,
}

impl Act {
    fn perform(&self, bench: &Bench, model: &dyn Model, pasid: Option<u32>) {
        match self {
            Self::Read(bar, at, len) => model.read(*bar, *at, &mut [0; 64][..*len]),
            Self::Write(at, data) => model.write(0, *at, data),
            Self::Command(code, operand) => model.write(0, CMD, &(code << 20 | operand).to_le_bytes()),
            Self::Submit(portal, descriptor) => model.write(2, *portal, descriptor.as_bytes()),
            Self::Enqueue(portal, descriptor) => {
                model.enqueue(2, *portal, descriptor.as_bytes().try_into().unwrap());
            }
            Self::Place(slot, descriptor) => bench.world.set_of(pasid, LIST + 64 * slot, descriptor.as_bytes()),
            Self::Absent(page) => bench.world.set_absent(pasid, SOURCE + PAGE * page),
            Self::Present(page) => bench.world.set_present(pasid, SOURCE + PAGE * page),
            Self::Answer(success) => bench.world.answer_any(*success),
            Self::Reset => model.reset(),
        }
    }
}

/// Where batches are: some slots, and then the middle of the buffers.
const LIST: u64 = SOURCE + 0x2000;

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..0x8000_u64).prop_map(|at| SOURCE + at),
        3 => (0..8_u64).prop_map(|slot| LIST + 64 * slot),
        2 => (0..8_u64).prop_map(|slot| SOURCE + 8 * slot),
        1 => Just(NOWHERE),
        1 => any::<u64>(),
        1 => (0..128_u64).prop_map(|below| u64::MAX - below),
    ]
}

fn operation() -> impl Strategy<Value = u8> {
    prop_oneof![
        8 => prop::sample::select(&Operation::ALL[..]).prop_map(|operation| operation as u8),
        3 => Just(Operation::Batch as u8),
        1 => any::<u8>(),
    ]
}

prop_compose! {
    fn any_descriptor()(
        operation in operation(),
        flags in prop_oneof![4 => 0..0x20_u32, 2 => (0..0x20_u32).prop_map(|it| it | 0xE), 1 => any::<u32>()],
        record in prop_oneof![4 => (0..64_u64).prop_map(|it| RECORDS + 32 * it), 1 => address()],
        source in address(), destination in address(),
        size in prop_oneof![4 => 0..0x3000_u32, 2 => (0..64_u32).prop_map(|it| it * 8), 2 => 2..9_u32, 1 => any::<u32>()],
        interrupt in 0..12_u16,
        specific in prop::array::uniform3(prop_oneof![4 => Just(0_u64), 1 => address(), 1 => 80..400_u64]),
        identity in prop_oneof![3 => 0..8_u32, 1 => any::<u32>()],
    ) -> Descriptor {
        Descriptor {
            identity: identity.into(),
            control: (u32::from(operation) << 24 | flags & 0xFF_FFFF).into(),
            completion: record.into(),
            source: source.into(),
            destination: destination.into(),
            size: size.into(),
            interrupt: interrupt.into(),
            reserved: 0.into(),
            specific: specific.map(Into::into),
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    let portal = prop_oneof![6 => (0..8_u64).prop_map(|page| PORTAL_SIZE * page), 1 => 0..0x4_0000_u64];
    let bytes = prop::collection::vec(any::<u8>(), 0..65);
    let other = portal.clone();
    prop_oneof![
        1 => (0..6_u8, 0..0x1_1000_u64, 0..64_usize).prop_map(|(bar, at, len)| Act::Read(bar, at, len)),
        2 => (prop_oneof![0..0x1000_u64, any::<u64>()], bytes).prop_map(|(at, data)| Act::Write(at, data)),
        2 => (1..16_u32, prop_oneof![4 => 0..4_u32, 1 => any::<u32>()]).prop_map(|(code, it)| Act::Command(code, it)),
        6 => (portal, any_descriptor()).prop_map(|(at, it)| Act::Submit(at, Box::new(it))),
        4 => (other, any_descriptor()).prop_map(|(at, it)| Act::Enqueue(at, Box::new(it))),
        4 => (0..8_u64, any_descriptor()).prop_map(|(at, it)| Act::Place(at, Box::new(it))),
        2 => (0..8_u64).prop_map(Act::Absent),
        2 => (0..8_u64).prop_map(Act::Present),
        4 => any::<bool>().prop_map(Act::Answer),
        1 => Just(Act::Reset),
    ]
}

/// After whatever it was, a reset gives a device that works.
fn recovers(bench: &Bench) {
    bench.device.reset();
    for page in 0..RAM_PAGES {
        bench.world.present(RAM + PAGE * page);
    }
    bench.configure(&[Queue::DEDICATED], 1);
    bench.enable(1);
    bench.world.set(SOURCE, &pattern(5000, 1));
    assert_eq!(bench.run(&copy(0, SOURCE, TARGET, 5000)).status, 1);
    assert_eq!(bench.world.get(TARGET, 5000), pattern(5000, 1));
}

struct Only(u32);

impl PasidTranslation for Only {
    fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold> {
        pasid.filter(|pasid| pasid.get() < 4).map(|_| held(self.0))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn nothing_that_a_driver_does_panics_hangs_or_outlives_a_reset(acts in prop::collection::vec(act(), 0..80)) {
        let bench = Bench::new();
        bench.configure(&[Queue::DEDICATED, Queue::SHARED], 0b11);
        bench.enable(2);
        for act in &acts {
            act.perform(&bench, &*bench.device, None);
        }
        recovers(&bench);
    }

    #[test]
    fn nothing_that_a_slices_driver_does_is_seen_by_another(acts in prop::collection::vec(act(), 0..80)) {
        let bench = Bench::new();
        let queue = SliceQueue {
            mode: QueueMode::Shared,
            size: 16,
            threshold: 16,
            priority: 1,
            block_on_fault: true,
            transfer_shift: 20,
            batch_shift: 4,
        };
        bench.device.configure_slices(&[queue; 2]).unwrap();
        let slice = |index, pasid| {
            DsaSlice::new(&bench.device, index, Arc::new(Only(pasid)), Arc::new(bench.world.clone())).unwrap()
        };
        let (hostile, other) = (slice(0, 5), slice(1, 6));
        let enable = |model: &DsaSlice| {
            for command in [Command::EnableDevice, Command::EnableQueue] {
                model.write(0, CMD, &((command as u32) << 20).to_le_bytes());
            }
        };
        enable(&hostile);
        enable(&other);
        bench.world.set_of(Some(6), SOURCE, &pattern(4096, 6));
        for act in &acts {
            act.perform(&bench, &*hostile, Some(5));
        }
        // Nobody's memory but its own has changed, and the other goes on as if nothing had been.
        for pasid in [None, Some(7)] {
            prop_assert!(bench.world.get_of(pasid, RAM, (RAM_PAGES * PAGE) as usize).iter().all(|byte| *byte == 0));
        }
        let work = Descriptor { identity: 1.into(), ..copy(0, SOURCE, TARGET, 4096) };
        prop_assert_eq!(other.enqueue(2, 0, work.as_bytes().try_into().unwrap()), Some(true));
        prop_assert_eq!(bench.wait_of(Some(6), 0).status, 1);
        prop_assert_eq!(bench.world.get_of(Some(6), TARGET, 4096), pattern(4096, 6));
        let mut error = [0; 8];
        other.read(0, 0xC0, &mut error);
        prop_assert_eq!(error, [0; 8]);
        hostile.reset();
        let accesses = bench.world.accesses();
        while bench.world.unanswered() > 0 {
            bench.world.answer_any(true);
        }
        prop_assert_eq!(bench.world.accesses(), accesses);
    }
}

#[test]
fn answers_of_any_kind_and_number_do_no_harm() {
    let bench = Bench::ready(Queue::DEDICATED);
    bench.world.absent(SOURCE);
    for _ in 0..8 {
        bench.submit(&blocking(copy(0, SOURCE, TARGET, 64)));
    }
    bench.world.requests(8);
    for response in [PageResponse::Failure, PageResponse::Invalid, PageResponse::Success] {
        (bench.world.take_request().answer)(response);
    }
    recovers(&bench);
}
