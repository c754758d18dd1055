//! The side whose ports use the translations.

#[cfg(not(any(loom, shuttle)))]
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use super::layout;
use super::words::Words;
use crate::base::lock::Mutex;
use crate::base::rank;
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::base::types::IovaRange;
use crate::gate::invalidation::TableId;

/// Why ports cannot pass a gate that is shared with another process.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// What was passed is no such gate: too short, or it could be cut short.
    #[error("the files are not those of a gate: {0}")]
    Files(#[from] std::io::Error),
    /// The gate has a member, here or in another process: two would take the same passages, and each would say that the
    /// other's ports are out.
    #[error("the gate has a member already")]
    Joined,
    /// The endpoint is attached to tables that are shared by another gate, or to others by this one.
    #[error("the endpoint is attached to other tables that are shared")]
    Elsewhere,
    /// There are no passages left. A port that is opened later reaches nothing, until the tables are detached.
    #[error("the gate has passages for {} ports, and all are taken", layout::PORTS)]
    Full,
}

/// What ports pass that walk page tables of another process, beside their own gates: it says what they have to forget,
/// and that process waits until they are out (see [`GateOwner`](super::GateOwner)). A nested table that is shared has
/// one ([`NestedOptions::shared`](crate::NestedOptions::shared)).
#[derive(Debug)]
pub struct GateMember {
    orders: Words,
    passages: Words,
    /// Which passages are taken.
    taken: Mutex<Box<[bool]>, rank::Passages>,
}

/// The passage of one port.
#[derive(Debug)]
pub(crate) struct Passage {
    member: Arc<GateMember>,
    port: usize,
    /// What is walked.
    table: TableId,
    /// How many orders the port has followed. Only the port uses it.
    seen: AtomicU64,
}

impl GateMember {
    /// A member by the owner's two files ([`GateOwner::files`](super::GateOwner::files)), in that order. A gate has one
    /// member at a time; a process that ends without dropping its member leaves a gate that nobody can join.
    ///
    /// # Errors
    /// [`JoinError::Files`], [`JoinError::Joined`].
    #[cfg(not(any(loom, shuttle)))]
    pub fn join(orders: OwnedFd, passages: OwnedFd) -> Result<Arc<Self>, JoinError> {
        use super::words::Others;

        let orders = Words::open(orders.as_fd(), layout::ORDERS, Others::Read)?;
        let passages = Words::open(passages.as_fd(), layout::PASSAGES, Others::Write)?;
        if passages.at(layout::JOINED).swap(1, Ordering::AcqRel) != 0 {
            return Err(JoinError::Joined);
        }
        Ok(Self::of(orders, passages))
    }

    /// One for a model.
    #[cfg(any(loom, shuttle))]
    pub(crate) fn join([orders, passages]: [Words; 2]) -> Arc<Self> {
        Self::of(orders, passages)
    }

    fn of(orders: Words, passages: Words) -> Arc<Self> {
        let taken = Mutex::new(vec![false; layout::PORTS].into_boxed_slice());
        Arc::new(Self { orders, passages, taken })
    }

    /// A passage for a port that has nothing cached of `table`; `None` if all are taken.
    pub(crate) fn passage(self: &Arc<Self>, table: TableId) -> Option<Passage> {
        let port = {
            let mut taken = self.taken.lock();
            let port = taken.iter().position(|taken| !taken)?;
            taken[port] = true;
            let used = self.passages.at(layout::USED);
            used.store(used.load(Ordering::Relaxed).max(port as u64 + 1), Ordering::Release);
            port
        };
        let seen = AtomicU64::new(self.orders.at(layout::POSTED).load(Ordering::Acquire));
        Some(Passage { member: self.clone(), port, table, seen })
    }
}

impl Drop for GateMember {
    fn drop(&mut self) {
        // No passage is left, each of which has this.
        self.passages.at(layout::JOINED).store(0, Ordering::Release);
    }
}

impl Passage {
    fn word(&self) -> &AtomicU64 {
        self.member.passages.at(layout::passage(self.port))
    }

    /// What is walked.
    pub(crate) fn table(&self) -> TableId {
        self.table
    }

    /// The port goes in: `inside` is odd. `forget` is given what was ordered since the last time.
    pub(crate) fn enter(&self, inside: u64, forget: impl FnMut(IovaRange)) {
        self.word().store(inside, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.follow(forget);
    }

    /// [`Passage::enter`] without its fence, or without what it forgets, for a model of what happens then.
    #[cfg(all(test, any(loom, shuttle)))]
    pub(crate) fn enter_badly(&self, inside: u64, fences: bool, forget: impl FnMut(IovaRange)) {
        self.word().store(inside, Ordering::Relaxed);
        if fences {
            fence(Ordering::SeqCst);
        } else {
            self.follow(forget);
        }
    }

    fn follow(&self, forget: impl FnMut(IovaRange)) {
        let (posted, seen) = (self.posted(), self.seen.load(Ordering::Relaxed));
        if posted != seen {
            self.seen.store(posted, Ordering::Relaxed);
            self.catch_up(seen, posted, forget);
        }
    }

    fn posted(&self) -> u64 {
        self.member.orders.at(layout::POSTED).load(Ordering::Acquire)
    }

    /// Whatever the orders say, there are as many as the ring has room for, and each is a range to forget.
    #[cold]
    fn catch_up(&self, seen: u64, posted: u64, mut forget: impl FnMut(IovaRange)) {
        let count = posted.wrapping_sub(seen);
        if count >= layout::RING {
            return forget(IovaRange::ALL);
        }
        for number in (0..count).map(|step| seen.wrapping_add(step)) {
            let entry = layout::entry(number);
            let [start, last] = [entry, entry + 1].map(|at| self.member.orders.at(at).load(Ordering::Relaxed));
            // The owner may be writing over it: then it has posted as many since as the ring has.
            fence(Ordering::Acquire);
            if self.posted().wrapping_sub(number) >= layout::RING || start > last {
                return forget(IovaRange::ALL);
            }
            forget(IovaRange { start, last });
        }
    }

    /// The port is out: `outside` is even.
    pub(crate) fn leave(&self, outside: u64) {
        self.word().store(outside, Ordering::Release);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        // The port may have gone in by it, and come out when it was taken back.
        self.leave(0);
        self.member.taken.lock()[self.port] = false;
    }
}
