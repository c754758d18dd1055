//! The protocol, model-checked: ports with real IOTLBs, real invalidations and gates, over a table of a few pages.
//!
//! loom goes through every order (of a few steps), shuttle through random ones (of many). Both also get protocols with
//! a part missing, and have to find the hole: a model that finds nothing there would find nothing anywhere.

use std::sync::Arc;

use iopt::Access;

use super::iotlb::{Iotlb, Page};
use crate::base::sync::{AtomicU64, Ordering, heavy_fence};
use crate::base::types::IovaRange;
use crate::gate::invalidation::{Invalidation, TableId};
use crate::gate::{Gate, Inside, quiesce};

#[cfg(loom)]
use loom::thread;
#[cfg(shuttle)]
use shuttle::thread;

const PAGE: u64 = 4096;
const DOMAIN: u64 = 1;

/// What happens in one run: loom cannot take much of it.
#[derive(Clone, Copy)]
struct Size {
    ports: usize,
    pages: u64,
    /// Of each port.
    accesses: u64,
}

/// Pages, each with its entry in the table, and whether its owner has it back.
struct Memory {
    pages: Vec<(AtomicU64, AtomicU64)>,
}

impl Memory {
    fn new(pages: u64) -> Self {
        Self { pages: (0..pages).map(|_| (AtomicU64::new(1), AtomicU64::new(0))).collect() }
    }

    /// The table that ports cache translations of.
    fn table(&self) -> TableId {
        TableId::of(self)
    }
}

/// What a port is made of, as far as the protocol goes.
struct Port {
    iotlb: Iotlb,
    posted: u64,
}

impl Port {
    fn new() -> Self {
        Self { iotlb: Iotlb::new(), posted: 0 }
    }

    fn refresh(&mut self, inside: &Inside<'_>, memory: &Memory) {
        let posted = inside.posted();
        if posted == self.posted {
            return;
        }
        self.posted = posted;
        inside.gate().drain(|invalidation| match invalidation {
            Invalidation::Range(table, range) => {
                assert_eq!(table, memory.table());
                self.iotlb.invalidate(DOMAIN, range);
            }
            Invalidation::Pasid(..) | Invalidation::Attachment(_) | Invalidation::All => self.iotlb.flush(),
        });
    }

    fn caches(&mut self, page: u64) -> bool {
        self.iotlb.lookup(DOMAIN, page * PAGE, Access::READ).is_some()
    }

    /// One access, the whole of which the port is inside.
    fn access(&mut self, gate: &Gate, memory: &Memory, page: u64) {
        let inside = gate.enter();
        self.refresh(&inside, memory);
        self.go_there(memory, page);
        drop(inside);
    }

    /// Translates and uses a page.
    fn go_there(&mut self, memory: &Memory, page: u64) {
        let (entry, given_back) = &memory.pages[page as usize];
        if !self.caches(page) {
            if entry.load(Ordering::Acquire) == 0 {
                return;
            }
            let start = std::ptr::without_provenance_mut(((page + 1) * PAGE) as usize);
            self.iotlb.insert(DOMAIN, page * PAGE, Page { start, shift: 12, access: Access::READ });
        }
        assert_eq!(given_back.load(Ordering::Relaxed), 0, "DMA after unmap returned");
    }
}

type Unmap = fn(&[Gate], &Memory, u64);
type AccessFn = fn(&mut Port, &Gate, &Memory, u64);

/// Takes the page out of the table and posts that.
fn invalidation(memory: &Memory, page: u64) -> Invalidation {
    Invalidation::Range(memory.table(), IovaRange { start: page * PAGE, last: page * PAGE + (PAGE - 1) })
}

/// Unmaps as the engine does.
fn properly(gates: &[Gate], memory: &Memory, page: u64) {
    memory.pages[page as usize].0.store(0, Ordering::Release);
    quiesce(|each| gates.iter().for_each(each), invalidation(memory, page));
}

/// Ports access pages in turn, while all pages but the last are unmapped one after the other with `unmap`.
fn run(size: Size, unmap: Unmap, access: AccessFn) {
    let memory = Arc::new(Memory::new(size.pages));
    let gates: Arc<Vec<Gate>> = Arc::new((0..size.ports).map(|_| Gate::new()).collect());
    let last = size.pages - 1;
    let ports: Vec<_> = (0..size.ports)
        .map(|n| {
            let (gates, memory) = (gates.clone(), memory.clone());
            thread::spawn(move || {
                let mut port = Port::new();
                port.access(&gates[n], &memory, last);
                for turn in 0..size.accesses {
                    access(&mut port, &gates[n], &memory, turn / 2 % size.pages);
                }
                // What fits in the queue is forgotten range by range.
                if size.pages <= 3 {
                    let inside = gates[n].enter();
                    port.refresh(&inside, &memory);
                    assert!(port.caches(last), "forgotten, and nobody took it away");
                }
            })
        })
        .collect();
    for page in 0..last {
        unmap(&gates, &memory, page);
        memory.pages[page as usize].1.store(1, Ordering::Relaxed);
    }
    for port in ports {
        port.join().unwrap();
    }
}

#[cfg(loom)]
fn explore(size: Size, unmap: Unmap, access: AccessFn) {
    let mut model = loom::model::Builder::new();
    // More threads and steps have too many orders to walk through all; three preemptions are what a real hole needs.
    model.preemption_bound = (size.ports > 1 || size.accesses > 2).then_some(3);
    model.check(move || run(size, unmap, access));
}

#[cfg(shuttle)]
fn explore(size: Size, unmap: Unmap, access: AccessFn) {
    // Shuttle takes all atomics as sequentially consistent, so it goes for interleavings; and it has the room for more.
    let size = Size { ports: size.ports + 2, pages: size.pages + 3, accesses: size.accesses * 6 };
    shuttle::check_random(move || run(size, unmap, access), 3_000);
    shuttle::check_pct(move || run(size, unmap, access), 3_000, 3);
}

const SMALL: Size = Size { ports: 1, pages: 2, accesses: 2 };

#[test]
fn no_access_through_a_mapping_after_its_unmap_returned() {
    explore(SMALL, properly, Port::access);
}

#[test]
fn two_ports_are_waited_for_by_one() {
    explore(Size { ports: 2, ..SMALL }, properly, Port::access);
}

#[test]
fn more_unmaps_than_fit_in_the_queue_are_forgotten_all() {
    explore(Size { pages: 4, accesses: 3, ..SMALL }, properly, Port::access);
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_the_heavy_fence_the_hole_is_found() {
    let unmap: Unmap = |gates, memory, page| {
        memory.pages[page as usize].0.store(0, Ordering::Release);
        gates.iter().for_each(|gate| gate.post(invalidation(memory, page)));
        gates.iter().for_each(Gate::wait);
    };
    explore(SMALL, unmap, Port::access);
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_the_light_fence_the_hole_is_found() {
    let access: AccessFn = |port, gate, memory, page| {
        let inside = gate.enter_without_fence();
        port.refresh(&inside, memory);
        port.go_there(memory, page);
    };
    explore(SMALL, properly, access);
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_waiting_the_hole_is_found() {
    let unmap: Unmap = |gates, memory, page| {
        memory.pages[page as usize].0.store(0, Ordering::Release);
        gates.iter().for_each(|gate| gate.post(invalidation(memory, page)));
        heavy_fence();
    };
    explore(SMALL, unmap, Port::access);
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_posting_the_hole_is_found() {
    let unmap: Unmap = |gates, memory, page| {
        memory.pages[page as usize].0.store(0, Ordering::Release);
        heavy_fence();
        gates.iter().for_each(Gate::wait);
    };
    explore(SMALL, unmap, Port::access);
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn a_range_that_is_posted_too_short_is_found() {
    let unmap: Unmap = |gates, memory, page| {
        memory.pages[page as usize].0.store(0, Ordering::Release);
        quiesce(|each| gates.iter().for_each(each), invalidation(memory, page + 1));
    };
    // Without the look at the last page, which this forgets.
    explore(Size { pages: 4, accesses: 3, ..SMALL }, unmap, Port::access);
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn posting_before_the_table_is_changed_is_found() {
    let unmap: Unmap = |gates, memory, page| {
        gates.iter().for_each(|gate| gate.post(invalidation(memory, page)));
        heavy_fence();
        gates.iter().for_each(Gate::wait);
        memory.pages[page as usize].0.store(0, Ordering::Release);
    };
    explore(SMALL, unmap, Port::access);
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn a_port_that_looks_before_it_goes_in_is_found() {
    let access: AccessFn = |port, gate, memory, page| {
        // What it finds posted, it forgets; but from here to the gate more may be.
        let inside = gate.enter();
        port.refresh(&inside, memory);
        drop(inside);
        let _inside = gate.enter();
        port.go_there(memory, page);
    };
    explore(SMALL, properly, access);
}
