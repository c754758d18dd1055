//! The gate of a DMA port: the protocol behind the completion guarantee.
//!
//! Every port has a gate. The port passes it for each access with a plain store and a load; whoever takes a
//! translation away pays for the rest.
//!
//! ```text
//!  port (often)                            who unmaps (seldom)
//!  ────────────                            ───────────────────
//!  inside += 1  (odd: in an access)        take the translation out of the table
//!  light fence                             posted += 1
//!  posted changed? forget all cached       heavy fence
//!  translate, move bytes                   inside odd? wait until it changes
//!  inside += 1  (even)                     now nobody uses it, and nobody will
//! ```
//!
//! Why it holds: the two fences order as if both were sequentially consistent. Either the port's `inside` is seen by
//! the one who unmaps, who then waits; or the port's later loads see both `posted` and the emptied table, so that it
//! neither uses a cached translation nor finds the old one. The loom tests below walk through every order.
//!
//! An access is short: a port leaves its gate between pieces of a long transfer, so waiting is bounded by one piece.

use crate::sync::{AtomicU64, Ordering, heavy_fence, light_fence, wait_a_little};

/// One port's gate. See the module's page.
#[derive(Debug)]
pub struct Gate {
    /// Odd while the port is inside an access. Written by the port only.
    inside: AtomicU64,
    /// Counts what the port must forget. Written by those who take translations away.
    posted: AtomicU64,
}

/// The port is inside an access as long as this lives.
#[derive(Debug)]
pub struct Inside<'a> {
    gate: &'a Gate,
    entered: u64,
    posted: u64,
}

impl Inside<'_> {
    /// Changes whenever something that the port may have cached was taken away.
    #[inline]
    #[must_use]
    pub fn posted(&self) -> u64 {
        self.posted
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.inside.store(self.entered + 1, Ordering::Release);
    }
}

impl Gate {
    /// A gate with nobody inside.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a default gate would be one that nobody waits for")]
    pub fn new() -> Self {
        Self { inside: AtomicU64::new(0), posted: AtomicU64::new(0) }
    }

    /// Begins an access. Only the gate's one port calls this, and not while it is inside.
    #[inline]
    pub fn enter(&self) -> Inside<'_> {
        let entered = self.inside.load(Ordering::Relaxed) + 1;
        self.inside.store(entered, Ordering::Relaxed);
        light_fence();
        Inside { gate: self, entered, posted: self.posted.load(Ordering::Acquire) }
    }

    fn wait(&self) {
        let seen = self.inside.load(Ordering::Acquire);
        if seen % 2 == 1 {
            let mut round = 0;
            while self.inside.load(Ordering::Acquire) == seen {
                wait_a_little(round);
                round = round.saturating_add(1);
            }
        }
    }
}

/// Returns when no port behind `gates` uses, or will use, a translation that was taken away before the call.
///
/// `gates` is gone through twice and must give the same gates both times. The caller must not be inside one of them.
pub fn quiesce<'a>(gates: impl Iterator<Item = &'a Gate> + Clone) {
    for gate in gates.clone() {
        gate.posted.fetch_add(1, Ordering::Release);
    }
    heavy_fence();
    for gate in gates {
        gate.wait();
    }
}

#[cfg(all(test, loom))]
mod tests {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;

    use super::*;

    /// One page: whether the table maps it, and whether it went back to its owner.
    struct Page {
        mapped: AtomicBool,
        given_back: AtomicBool,
    }

    /// A port that caches one translation, as an IOTLB does.
    fn access(gate: &Gate, page: &Page, cached: &mut Option<u64>) {
        let inside = gate.enter();
        let hit = *cached == Some(inside.posted());
        if hit || page.mapped.load(Ordering::Acquire) {
            *cached = Some(inside.posted());
            assert!(!page.given_back.load(Ordering::Relaxed), "DMA after unmap returned");
        }
        drop(inside);
    }

    fn model(unmap: impl Fn(&Gate) + Send + Sync + Copy + 'static) {
        loom::model(move || {
            let gate = Arc::new(Gate::new());
            let page = Arc::new(Page { mapped: AtomicBool::new(true), given_back: AtomicBool::new(false) });
            let port = {
                let (gate, page) = (gate.clone(), page.clone());
                thread::spawn(move || {
                    let mut cached = None;
                    access(&gate, &page, &mut cached);
                    access(&gate, &page, &mut cached);
                })
            };
            page.mapped.store(false, Ordering::Release);
            unmap(&gate);
            page.given_back.store(true, Ordering::Relaxed);
            port.join().unwrap();
        });
    }

    #[test]
    fn no_access_through_a_mapping_after_its_unmap_returned() {
        model(|gate| quiesce([gate].into_iter()));
    }

    #[test]
    fn one_thread_waits_for_two_ports() {
        // Three threads have too many orders to walk through all; three preemptions are what a real hole needs.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let gates = Arc::new([Gate::new(), Gate::new()]);
            let page = Arc::new(Page { mapped: AtomicBool::new(true), given_back: AtomicBool::new(false) });
            let ports: Vec<_> = (0..2)
                .map(|n| {
                    let (gates, page) = (gates.clone(), page.clone());
                    thread::spawn(move || access(&gates[n], &page, &mut None))
                })
                .collect();
            page.mapped.store(false, Ordering::Release);
            quiesce(gates.iter());
            page.given_back.store(true, Ordering::Relaxed);
            for port in ports {
                port.join().unwrap();
            }
        });
    }

    #[test]
    #[should_panic(expected = "DMA after unmap returned")]
    fn without_the_heavy_fence_loom_finds_the_hole() {
        model(|gate| {
            gate.posted.fetch_add(1, Ordering::Release);
            gate.wait();
        });
    }

    #[test]
    #[should_panic(expected = "DMA after unmap returned")]
    fn without_waiting_loom_finds_the_hole() {
        model(|gate| {
            gate.posted.fetch_add(1, Ordering::Release);
            heavy_fence();
        });
    }

    #[test]
    #[should_panic(expected = "DMA after unmap returned")]
    fn without_posting_loom_finds_the_hole() {
        model(|gate| {
            heavy_fence();
            gate.wait();
        });
    }
}
