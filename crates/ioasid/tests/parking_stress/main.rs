//! Parking under load, by content: contexts, page tables, PASIDs, devices and processes come and go while devices do
//! DMA with whatever PASIDs there are or were.
//!
//! ```text
//!   owners ──► contexts, page tables, PASIDs, attachments: made, and ended in every way ─┐
//!                                                                                        ▼
//!                                             who may see which signature, from when until when
//!                                                                                        ▲
//!   devices ─► read and write with any PASID, of any time ───────────────────────────────┘
//! ```
//! Each address space, and each process, has a signature in its memory that nobody else has. A read that succeeds
//! must return one that its requester and PASID were attached to at some moment between its begin and its end: not
//! another context's, and none after the call that stopped it has returned. And no number, of an object or a PASID,
//! is given out while somebody has it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "files of one test program")]

mod devices;
mod history;
mod memory;
mod numbers;
mod owners;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioasid::{Endpoint, GroupId, Machine, PartPasids, Rid, Silent};

use history::History;
use memory::Children;
use numbers::Pasids;
use owners::{Owned, Owner};

/// Seconds; `IOASID_PARKING_SECONDS` changes it.
const LONG: u64 = 60;

/// Threads that own things, and threads that are devices.
const OWNERS: usize = 3;
const DEVICES: usize = 2;
/// Contexts at a time.
const CONTEXTS: usize = 3;
/// PASIDs that contexts allocate from: few, so that each is used again all the time.
const ALLOCATED: (u32, u32) = (1, 12);
/// Devices use PASIDs up to this one; those of parts are the lowest that are free.
const HIGHEST: u32 = 16;

/// A small generator: the test must not depend on how good it is.
pub struct Random(u64);

impl Random {
    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// One of some, unless there is none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }
}

/// What happened, each kind with its name.
pub struct Counts<const KINDS: usize>(&'static [&'static str; KINDS], [AtomicU64; KINDS]);

impl<const KINDS: usize> Counts<KINDS> {
    const fn of(names: &'static [&'static str; KINDS]) -> Self {
        Self(names, [const { AtomicU64::new(0) }; KINDS])
    }

    /// So many more of a kind.
    pub fn add(&self, name: &str, more: usize) {
        let kind = self.0.iter().position(|other| *other == name);
        self.1[kind.unwrap_or_else(|| panic!("nobody counts {name}"))].fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Prints all, and fails if there were too few of any.
    fn report(&self, what: &str, least: u64) {
        let counts = self.1.each_ref().map(|count| count.load(Ordering::Relaxed));
        println!("{what}");
        self.0.iter().zip(&counts).for_each(|(name, count)| println!("  {name:<34} {count:>9}"));
        let few = self.0.iter().zip(&counts).find(|(_, count)| **count < least);
        assert!(few.is_none(), "the test had no power: {few:?}");
    }
}

/// What owners do.
pub static DONE: Counts<16> = Counts::of(&[
    "contexts opened",
    "address spaces made",
    "page tables made",
    "nested page tables made",
    "SVA page tables made",
    "devices bound",
    "parts of a device bound",
    "attached by RID",
    "attached by PASID",
    "attaching refused",
    "PASIDs allocated",
    "PASIDs parked",
    "no PASID free, as some are parked",
    "page tables parked",
    "ids of objects that waited",
    "processes begun",
]);

/// What ended attachments that were not over yet.
pub static ENDED: Counts<8> = Counts::of(&[
    "detached",
    "replaced",
    "page table parked",
    "PASID freed",
    "context closed",
    "device dropped",
    "memory unmapped",
    "process ended",
]);

/// What became of DMA.
pub static DMA: Counts<7> = Counts::of(&[
    "done to an address space",
    "done to a guest's memory",
    "done to a process",
    "refused: attached to nothing",
    "refused: parked",
    "refused: not mapped",
    "refused: the process has ended",
]);

/// The whole machine, and what is known of it.
pub struct Scene {
    machine: Arc<Machine>,
    /// What can be bound: whole devices, and parts of the last requester.
    endpoints: Vec<Arc<Endpoint>>,
    /// Who is on the bus.
    requesters: Vec<Arc<Endpoint>>,
    contexts: [Mutex<Arc<Owned>>; CONTEXTS],
    history: History,
    pasids: Arc<Pasids>,
    children: Children,
    stop: AtomicBool,
}

impl Scene {
    fn new() -> Self {
        let machine = Machine::new(Arc::new(Silent));
        let rid = |bus, slot| Rid::new(0, bus, slot, 0).unwrap();
        let requesters: Vec<_> = (0..4).map(|n| machine.add_endpoint(rid(0, n), GroupId(n.into())).unwrap()).collect();
        let kinds = [PartPasids::Translated, PartPasids::Translated, PartPasids::Identity, PartPasids::Identity];
        let parts = (0..)
            .zip(kinds)
            .map(|(n, kind)| machine.add_part(&requesters[3], rid(1, n), GroupId(100 + u32::from(n)), kind).unwrap());
        let endpoints: Vec<_> = requesters[..3].iter().cloned().chain(parts).collect();
        endpoints.iter().chain(&requesters).for_each(|endpoint| endpoint.set_bus_master(true).unwrap());
        let pasids = Arc::default();
        Self {
            contexts: [(); CONTEXTS].map(|()| Mutex::new(Owned::new(&machine, &pasids))),
            endpoints,
            requesters,
            history: History::new(4, DEVICES),
            pasids,
            children: Children::default(),
            stop: AtomicBool::new(false),
            machine,
        }
    }
}

#[test]
fn what_was_destroyed_freed_or_closed_is_out_of_reach_and_its_numbers_wait_for_the_last_holder() {
    let seconds = std::env::var("IOASID_PARKING_SECONDS").map_or(LONG, |text| text.parse().unwrap());
    let scene = Scene::new();
    std::thread::scope(|scope| {
        let scene = &scene;
        // Whoever fails ends the others, too.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        for n in 0..OWNERS {
            scope.spawn(move || {
                let _ends = Ends(&scene.stop);
                Owner::new(scene, 0x9e37_79b9_7f4a_7c15 + n as u64).run();
            });
        }
        for n in 0..DEVICES {
            scope.spawn(move || {
                let _ends = Ends(&scene.stop);
                devices::run(scene, n, 0xd1b5_4a32_d192_ed03 + n as u64);
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !scene.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        scene.stop.store(true, Ordering::Relaxed);
    });

    let faults: u64 = scene.requesters.iter().map(|requester| requester.parked_faults()).sum();
    DONE.report("done", 20);
    ENDED.report("attachments ended by", 20);
    DMA.report("DMA", 20);
    println!("counted by the engine as parked: {faults}");
    assert!(faults > 20);

    let Scene { machine, contexts, children, pasids, .. } = scene;
    children.end_all();
    drop(contexts);
    assert_eq!(machine.resources(), (0, 0), "windows and tables are all given back");
    assert_eq!((machine.pasids_in_use(), pasids.held()), (0, 0), "so are PASIDs");
    let left = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
    assert_eq!(left.err(), Some(rustix::io::Errno::CHILD), "no process is left");
}
