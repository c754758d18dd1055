//! Slices: each a device of its own, and none a way to another.

#![allow(clippy::unwrap_used, reason = "a fixture of tests")]

use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};

use ioasid::{Machine, PageResponse, Pasid, PasidError, PasidHold, Silent, VirtualPasids};
use ioasid_devices::Interrupts;
use ioasid_devices::dsa::spec::command::{Command, CommandError, REQUEST_INTERRUPT};
use ioasid_devices::dsa::spec::descriptor::Descriptor;
use ioasid_devices::dsa::spec::registers::{
    CMD, CMDSTS, ENGCAP, GENCAP, GRPCAP, GRPCFG, GRPCFG_SIZE, PORTALS_SIZE, QueueConfig, QueueMode, SWERR, WQCAP,
    WQCFG, WQCFG_SIZE,
};
use ioasid_devices::dsa::{DsaSlice, PasidTranslation, SliceError, SliceQueue};
use ioasid_vfio::Model;
use zerocopy::IntoBytes;

use crate::bench::*;

const SHARED: SliceQueue = SliceQueue {
    mode: QueueMode::Shared,
    size: 16,
    threshold: 8,
    priority: 1,
    block_on_fault: true,
    transfer_shift: 21,
    batch_shift: 5,
};
const DEDICATED: SliceQueue = SliceQueue { mode: QueueMode::Dedicated, ..SHARED };

/// What the slice's drivers call PASID 1 is this one; without, it is the other; all else is not theirs.
struct Map(u32, u32);

impl PasidTranslation for Map {
    fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold> {
        match pasid.map(Pasid::get) {
            None => Some(held(self.1)),
            Some(1) => Some(held(self.0)),
            Some(_) => None,
        }
    }
}

#[derive(Default)]
struct Sink(Mutex<Vec<u16>>, Condvar);

impl Sink {
    fn count(&self, vector: u16) -> usize {
        self.0.lock().unwrap().iter().filter(|raised| **raised == vector).count()
    }
}

impl Interrupts for Sink {
    fn raise(&self, vector: u16) {
        self.0.lock().unwrap().push(vector);
        self.1.notify_all();
    }
}

struct Slice {
    model: Arc<DsaSlice>,
    sink: Arc<Sink>,
}

impl Slice {
    fn new(bench: &Bench, index: u8, map: Map) -> Self {
        let sink = Arc::new(Sink::default());
        let model = DsaSlice::new(&bench.device, index, Arc::new(map), sink.clone()).unwrap();
        Self { model, sink }
    }

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.model.read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// Performs a command; returns CMDSTS when it is done.
    fn command(&self, command: Command, operand: u32) -> u32 {
        let before = self.sink.count(0);
        self.model.write(0, CMD, &((command as u32) << 20 | operand | REQUEST_INTERRUPT).to_le_bytes());
        let raised = self.sink.0.lock().unwrap();
        let more = |raised: &mut Vec<u16>| raised.iter().filter(|raised| **raised == 0).count() <= before;
        let (raised, timeout) = self.sink.1.wait_timeout_while(raised, PATIENCE, more).unwrap();
        assert!(!timeout.timed_out(), "the command is not done");
        drop(raised);
        self.read(CMDSTS) as u32
    }

    fn enable(&self) {
        assert_eq!(self.command(Command::EnableDevice, 0), 0);
        assert_eq!(self.command(Command::EnableQueue, 0), 0);
    }

    fn enqueue(&self, pasid: u32, descriptor: &Descriptor) -> bool {
        let named = Descriptor { identity: pasid.into(), ..*descriptor };
        self.model.enqueue(2, 0, named.as_bytes().try_into().unwrap()).unwrap()
    }

    fn submit(&self, descriptor: &Descriptor) {
        self.model.write(2, 0, descriptor.as_bytes());
    }
}

/// Two slices: a shared one of PASID 5, and another of PASID 6.
fn two(second: SliceQueue) -> (Bench, Slice, Slice) {
    let bench = Bench::new();
    bench.device.configure_slices(&[SHARED, second]).unwrap();
    let slices = [Slice::new(&bench, 0, Map(5, 5)), Slice::new(&bench, 1, Map(6, 7))];
    let [first, other] = slices;
    (bench, first, other)
}

#[test]
fn a_slice_shows_one_of_everything_and_nothing_to_configure() {
    let (_bench, slice, _other) = two(SHARED);
    let spec = slice.model.spec();
    spec.check().unwrap();
    assert_eq!((spec.bar(2).unwrap().size, spec.msix_vectors()), (PORTALS_SIZE, 2));
    assert_eq!(slice.read(GENCAP) >> 31 & 1, 0);
    assert_eq!(slice.read(WQCAP), 16 | 1 << 16 | 0b01_1001 << 48);
    assert_eq!((slice.read(GRPCAP), slice.read(ENGCAP)), (1, 1));
    assert_eq!((slice.read(GRPCFG), slice.read(GRPCFG + 32)), (1, 1));
    for at in (0..0x1000).step_by(8).filter(|at| *at != CMD) {
        let before = slice.read(at);
        let writable = at == 0x88 || (0x400..0x410).contains(&at);
        slice.model.write(0, at, &u64::MAX.to_le_bytes());
        assert!(writable || slice.read(at) == before, "{at:#x}");
    }
    assert_eq!((slice.read(WQCFG + WQCFG_SIZE), slice.read(GRPCFG + GRPCFG_SIZE)), (0, 0));
}

#[test]
fn descriptors_have_the_physical_pasid_and_interrupts_go_to_their_slice() {
    let (bench, slice, other) = two(SHARED);
    slice.enable();
    other.enable();
    slice.model.write(0, 0x408, &(8_u32 | 1 << 12).to_le_bytes());
    bench.world.set_of(Some(5), SOURCE, &pattern(64, 1));
    bench.world.set_of(Some(6), SOURCE, &pattern(64, 2));
    assert!(slice.enqueue(1, &interrupting(copy(0, SOURCE, TARGET, 64), 1)));
    assert!(other.enqueue(1, &copy(0, SOURCE, TARGET, 64)));
    for (pasid, seed) in [(5, 1), (6, 2)] {
        assert_eq!(bench.wait_of(Some(pasid), 0).status, 1);
        assert_eq!(bench.world.get_of(Some(pasid), TARGET, 64), pattern(64, seed));
    }
    // A reset returns when everything was told.
    slice.model.reset();
    other.model.reset();
    assert_eq!((slice.sink.count(1), other.sink.count(1)), (1, 0));
    assert_eq!(bench.world.raised(1), 0);
}

#[test]
fn a_pasid_that_is_not_its_own_goes_no_further_than_the_slices_register() {
    let (bench, slice, other) = two(SHARED);
    slice.enable();
    other.enable();
    for pasid in [5, 6, 0, 0xF_FFFF] {
        let accesses = bench.world.accesses();
        assert!(slice.enqueue(pasid, &copy(0, SOURCE, TARGET, 64)));
        let word = slice.read(SWERR);
        assert_eq!((word & 0xFFFF, word >> 40 & 0xF_FFFF), (0x2201 | 0b1100, pasid.into()));
        slice.model.write(0, SWERR, &3_u64.to_le_bytes());
        assert_eq!(slice.command(Command::DrainAll, 0), 0);
        assert_eq!(bench.world.accesses(), accesses);
    }
    assert_eq!((other.read(SWERR), bench.soft_error()[0]), (0, 0));
}

#[test]
fn a_dedicated_slice_names_its_pasid_in_the_queue() {
    let (bench, _slice, dedicated) = two(DEDICATED);
    let word = |pasid: u32| (QueueConfig::PASID_ENABLE | pasid << 8).to_le_bytes();
    dedicated.enable();
    // Without a PASID, it has the one that the host chose for that; a PASID in the descriptor does not count.
    dedicated.submit(&Descriptor { identity: 5.into(), ..copy(0, SOURCE, TARGET, 64) });
    assert_eq!(bench.wait_of(Some(7), 0).status, 1);
    dedicated.model.write(0, WQCFG + 8, &word(1));
    assert_eq!(dedicated.read(WQCFG + 8) as u32 & QueueConfig::IDENTITY, 0);
    assert_eq!(dedicated.command(Command::DisableQueue, 1), 0);
    dedicated.model.write(0, WQCFG + 8, &word(1));
    assert_eq!(dedicated.command(Command::EnableQueue, 0), 0);
    dedicated.submit(&copy(1, SOURCE, TARGET, 64));
    assert_eq!(bench.wait_of(Some(6), 1).status, 1);
    assert_eq!(dedicated.command(Command::ResetQueue, 1), 0);
    dedicated.model.write(0, WQCFG + 8, &word(5));
    assert_eq!(dedicated.command(Command::EnableQueue, 0), 0);
    dedicated.submit(&copy(2, SOURCE, TARGET, 64));
    assert_eq!(dedicated.read(SWERR) & 0xFFFF, 0x2201 | 0b1100);
}

/// A host that resets the slice while it translates.
#[derive(Default)]
struct Meddler(OnceLock<Weak<DsaSlice>>);

impl PasidTranslation for Meddler {
    fn physical(&self, _pasid: Option<Pasid>) -> Option<PasidHold> {
        let slice = self.0.get().and_then(Weak::upgrade)?;
        for (command, operand) in [(Command::ResetQueue, 1), (Command::EnableQueue, 0)] {
            slice.write(0, CMD, &((command as u32) << 20 | operand).to_le_bytes());
        }
        Some(held(5))
    }
}

#[test]
fn a_descriptor_is_not_for_the_queue_that_was_enabled_since() {
    let bench = Bench::new();
    bench.device.configure_slices(&[SHARED]).unwrap();
    let (meddler, sink) = (Arc::new(Meddler::default()), Arc::new(Sink::default()));
    let slice = Slice { model: DsaSlice::new(&bench.device, 0, meddler.clone(), sink.clone()).unwrap(), sink };
    meddler.0.set(Arc::downgrade(&slice.model)).unwrap();
    slice.enable();
    assert!(!slice.enqueue(1, &copy(0, SOURCE, TARGET, 64)));
    assert_eq!(slice.command(Command::DisableQueue, 1), 0);
}

#[test]
fn a_pasid_is_nobody_elses_until_the_last_descriptor_with_it_has_left_the_device() {
    struct Table(VirtualPasids);
    impl PasidTranslation for Table {
        fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold> {
            self.0.hold(pasid)
        }
    }
    let (bench, machine) = (Bench::new(), Machine::new(Arc::new(Silent)));
    let (context, other) = (machine.context(), machine.context());
    bench.device.configure_slices(&[SliceQueue { size: 100, threshold: 100, ..SHARED }]).unwrap();
    let (table, sink) = (Arc::new(Table(VirtualPasids::new())), Arc::new(Sink::default()));
    let slice = Slice { model: DsaSlice::new(&bench.device, 0, table.clone(), sink.clone()).unwrap(), sink };
    slice.enable();
    bench.world.absent_of(5, SOURCE);
    let pasid = context.pasid_alloc(5, 5).unwrap();
    table.0.set(Pasid::new(1), context.hold_pasid(pasid).unwrap());
    // More than can be in flight: some wait in the queue.
    assert!((0..80).all(|_| slice.enqueue(1, &blocking(copy(0, SOURCE, TARGET, 64)))));
    bench.world.requests(64);
    table.0.remove(Pasid::new(1));
    context.pasid_free(pasid).unwrap();
    assert_eq!(other.pasid_alloc(5, 5), Err(PasidError::Full(5, 5)));
    slice.model.reset();
    assert_eq!(other.pasid_alloc(5, 5), Ok(pasid));
}

#[test]
fn members_of_a_batch_cannot_choose_a_pasid() {
    let (bench, slice, _other) = two(SHARED);
    slice.enable();
    let list = TARGET + 0x2_0000;
    for index in 0..2 {
        let member = Descriptor { identity: 6.into(), ..copy(1 + index, SOURCE, TARGET, 64) };
        bench.world.set_of(Some(5), list + 64 * index, member.as_bytes());
    }
    assert!(slice.enqueue(1, &batch(0, list, 2)));
    assert_eq!(bench.wait_of(Some(5), 0).status, 1);
    assert_eq!(bench.record_of(Some(5), 1).status, 1);
    assert_eq!(bench.record_of(Some(6), 1).status, 0);
}

#[test]
fn a_slices_commands_and_resets_reach_its_own_queue_only() {
    let (bench, slice, other) = two(SHARED);
    slice.enable();
    other.enable();
    bench.world.absent_of(5, SOURCE);
    bench.world.absent_of(6, SOURCE);
    slice.enqueue(1, &blocking(copy(0, SOURCE, TARGET, 64)));
    other.enqueue(1, &blocking(copy(0, SOURCE, TARGET, 64)));
    assert_eq!(bench.world.requests(2).iter().filter_map(|it| it.pasid).map(Pasid::get).sum::<u32>(), 11);
    assert_eq!(slice.command(Command::AbortQueue, 2), 2);
    assert_eq!(slice.command(Command::AbortAll, 0), 0);
    assert_eq!(slice.command(Command::DrainAll, 0), 0);
    slice.model.reset();
    assert_eq!((slice.read(0x90), other.read(0x90)), (0, 1));
    assert!(!slice.enqueue(1, &copy(0, SOURCE, TARGET, 64)));
    assert_eq!(bench.record_of(Some(6), 0).status, 0);
    let groups = [bench.world.take_request(), bench.world.take_request()];
    bench.world.present_of(6, SOURCE);
    for group in groups {
        (group.answer)(PageResponse::Success);
    }
    assert_eq!(bench.wait_of(Some(6), 0).status, 1);
    assert_eq!(bench.record_of(Some(5), 0).status, 0);
}

#[test]
fn one_slice_cannot_take_what_another_may_have_in_flight() {
    let bench = Bench::new();
    // One group, so both share their engines.
    let many = SliceQueue { size: 100, threshold: 100, ..SHARED };
    bench.device.configure_slices(&[many, SliceQueue { size: 1, ..SHARED }]).unwrap();
    let (greedy, modest) = (Slice::new(&bench, 0, Map(5, 5)), Slice::new(&bench, 1, Map(6, 6)));
    greedy.enable();
    modest.enable();
    bench.world.absent_of(5, SOURCE);
    let accepted = (0..400).filter(|_| greedy.enqueue(1, &blocking(copy(0, SOURCE, TARGET, 64)))).count();
    // What is in the queue, and no more than that in flight.
    assert!((100..=164).contains(&accepted), "{accepted}");
    bench.world.requests(64);
    assert!(modest.enqueue(1, &copy(0, SOURCE, TARGET, 64)));
    assert_eq!(bench.wait_of(Some(6), 0).status, 1);
}

#[test]
fn a_device_that_is_cut_is_the_hosts_alone() {
    let (bench, slice, _other) = two(SHARED);
    slice.enable();
    bench.submit(&copy(0, SOURCE, TARGET, 64));
    assert_eq!(bench.enqueue(0, false, 5, &copy(0, SOURCE, TARGET, 64)), Some(false));
    assert_eq!(bench.begin(Command::AbortQueue, 1), 2);
    bench.write64(WQCFG, 0);
    bench.write64(GRPCFG, 0);
    bench.command(Command::ResetDevice, 0);
    bench.device.reset();
    assert!(slice.enqueue(1, &copy(0, SOURCE, TARGET, 64)));
    assert_eq!(bench.wait_of(Some(5), 0).status, 1);
    assert_eq!(bench.device.configure_slices(&[SHARED]), Err(SliceError::InUse));
}

#[test]
fn a_queue_is_one_slice_at_a_time() {
    let (bench, slice, _other) = two(SHARED);
    let again = || DsaSlice::new(&bench.device, 0, Arc::new(Map(7, 7)), Arc::new(Sink::default()));
    assert!(again().is_none());
    slice.enable();
    bench.world.absent_of(5, SOURCE);
    slice.enqueue(1, &blocking(copy(0, SOURCE, TARGET, 64)));
    bench.world.requests(1);
    drop(slice);
    let next = Slice::new(&bench, 0, Map(7, 7));
    next.enable();
    assert_eq!(next.command(Command::ResetQueue, 1), 0);
    assert_eq!(next.command(Command::EnableQueue, 0), 0);
    assert!(next.enqueue(1, &copy(0, SOURCE, TARGET, 64)));
    assert_eq!(bench.wait_of(Some(7), 0).status, 1);
    assert!(DsaSlice::new(&bench.device, 2, Arc::new(Map(5, 5)), Arc::new(Sink::default())).is_none());
}

#[test]
fn cuts_that_cannot_be_are_refused_and_change_nothing() {
    let bench = Bench::new();
    let refused = |queues: &[SliceQueue]| bench.device.configure_slices(queues).unwrap_err();
    assert_eq!(refused(&[]), SliceError::Count(0));
    assert_eq!(refused(&[SHARED; 9]), SliceError::Count(9));
    assert_eq!(refused(&[SliceQueue { size: 129, ..SHARED }]), SliceError::Impossible(CommandError::QueueSizes));
    assert_eq!(refused(&[SliceQueue { size: 0, ..SHARED }]), SliceError::Impossible(CommandError::QueueSize));
    assert_eq!(refused(&[SliceQueue { priority: 0, ..SHARED }]), SliceError::Impossible(CommandError::Priority));
    bench.configure(&[Queue::DEDICATED], 1);
    bench.enable(1);
    assert_eq!(refused(&[SHARED]), SliceError::InUse);
    assert_eq!(bench.run(&copy(0, SOURCE, TARGET, 64)).status, 1);
}
