//! The gate between two processes, model-checked: the real owner and the real passage of a port, over a table of a few
//! pages and a cache that keeps what it finds.
//!
//! As in `port/gate_model.rs`, protocols with a part missing have to be found out.

use std::sync::Arc;

use super::member::{GateMember, Passage};
use super::owner::GateOwner;
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::base::types::IovaRange;
use crate::gate::invalidation::TableId;

#[cfg(loom)]
use loom::thread;
#[cfg(shuttle)]
use shuttle::thread;

const PAGES: usize = 2;

/// Pages, each with its entry in the table, and whether its owner has it back.
struct Memory([(AtomicU64, AtomicU64); PAGES]);

fn page(page: usize) -> IovaRange {
    IovaRange { start: page as u64, last: page as u64 }
}

/// The other process's port: a passage, and what it has cached.
struct Port {
    passage: Passage,
    cached: [bool; PAGES],
    inside: u64,
}

type Enter = fn(&mut Port);
type Unmap = fn(&GateOwner, &Memory, usize);

impl Port {
    fn forget(cached: &mut [bool; PAGES], range: IovaRange) {
        (range.start..=range.last.min(PAGES as u64 - 1)).for_each(|page| cached[page as usize] = false);
    }

    fn enter(&mut self) {
        let Self { passage, cached, inside } = self;
        *inside += 1;
        passage.enter(*inside, |range| Self::forget(cached, range));
    }

    fn enter_without_fence(&mut self) {
        let Self { passage, cached, inside } = self;
        *inside += 1;
        passage.enter_badly(*inside, false, |range| Self::forget(cached, range));
    }

    /// Its passage says that it was out, and it keeps what it has cached.
    fn enter_without_forgetting(&mut self) {
        self.inside += 1;
        self.passage.enter_badly(self.inside, true, |_| ());
    }

    fn access(&mut self, memory: &Memory, page: usize, enter: Enter) {
        enter(self);
        let (entry, given_back) = &memory.0[page];
        self.cached[page] |= entry.load(Ordering::Acquire) == 1;
        if self.cached[page] {
            assert_eq!(given_back.load(Ordering::Relaxed), 0, "DMA after unmap returned");
        }
        self.inside += 1;
        self.passage.leave(self.inside);
    }
}

fn properly(owner: &GateOwner, memory: &Memory, at: usize) {
    memory.0[at].0.store(0, Ordering::Release);
    owner.invalidate(page(at), || true).unwrap();
}

fn run(accesses: usize, enter: Enter, unmap: Unmap) {
    let memory = Arc::new(Memory([0, 1].map(|_| (AtomicU64::new(1), AtomicU64::new(0)))));
    let (owner, words) = GateOwner::new();
    let member = GateMember::join(words);
    let port = {
        let memory = memory.clone();
        let passage = member.passage(TableId::of(&*memory)).unwrap();
        thread::spawn(move || {
            let mut port = Port { passage, cached: [false; PAGES], inside: 0 };
            for turn in 0..accesses {
                port.access(&memory, turn / 2 % PAGES, enter);
            }
        })
    };
    unmap(&owner, &memory, 0);
    memory.0[0].1.store(1, Ordering::Relaxed);
    port.join().unwrap();
}

#[cfg(loom)]
fn explore(enter: Enter, unmap: Unmap) {
    loom::model::Builder::new().check(move || run(2, enter, unmap));
}

#[cfg(shuttle)]
fn explore(enter: Enter, unmap: Unmap) {
    shuttle::check_random(move || run(12, enter, unmap), 3_000);
    shuttle::check_pct(move || run(12, enter, unmap), 3_000, 3);
}

#[test]
fn no_access_through_a_shared_table_after_its_unmap_returned() {
    explore(Port::enter, properly);
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_the_members_fence_the_hole_is_found() {
    explore(Port::enter_without_fence, properly);
}

#[cfg(loom)]
#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_the_owners_fence_the_hole_is_found() {
    explore(Port::enter, |owner, memory, at| {
        memory.0[at].0.store(0, Ordering::Release);
        owner.post(page(at));
        owner.wait(&mut || true).unwrap();
    });
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn without_waiting_the_hole_is_found() {
    explore(Port::enter, |owner, memory, at| {
        memory.0[at].0.store(0, Ordering::Release);
        owner.post(page(at));
        fence(Ordering::SeqCst);
    });
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn an_acknowledgement_before_the_flush_is_found() {
    explore(Port::enter_without_forgetting, properly);
}

#[test]
#[should_panic(expected = "DMA after unmap returned")]
fn an_order_before_the_table_is_changed_is_found() {
    explore(Port::enter, |owner, memory, at| {
        owner.invalidate(page(at), || true).unwrap();
        memory.0[at].0.store(0, Ordering::Release);
    });
}
