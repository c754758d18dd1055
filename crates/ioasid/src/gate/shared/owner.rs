//! The side that takes translations away.

#[cfg(not(any(loom, shuttle)))]
use std::io;
#[cfg(not(any(loom, shuttle)))]
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use thiserror::Error;

use super::layout;
use super::words::Words;
use crate::base::lock::Mutex;
use crate::base::rank;
use crate::base::sync::{Ordering, fence, wait_a_little};
use crate::base::types::IovaRange;

/// Rounds of waiting until the caller is asked whether the member is there: by then, each takes a while.
const ROUNDS: u32 = 200;

/// A member has not said that it is out: it may still use what was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the other process has not acknowledged an invalidation")]
pub struct Unacknowledged;

/// Invalidates what another process has cached of page tables that are shared with it, and waits until no port of that
/// process uses them.
///
/// ```
/// use ioasid::{GateMember, GateOwner, IovaRange};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let owner = GateOwner::new()?;
/// // In the other process, which is passed the two files.
/// let [orders, passages] = owner.files().map(|file| file.try_clone_to_owned());
/// let member = GateMember::join(orders?, passages?)?;
///
/// // No port of the member's is inside, so this returns at once.
/// owner.invalidate(IovaRange::ALL, || true)?;
/// # drop(member);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GateOwner {
    orders: Words,
    passages: Words,
    /// Held to write an order.
    posting: Mutex<(), rank::Orders>,
    #[cfg(not(any(loom, shuttle)))]
    files: [OwnedFd; 2],
}

impl GateOwner {
    /// A gate that no other process has yet.
    ///
    /// # Errors
    /// Of `memfd_create`, `ftruncate` and `mmap`.
    #[cfg(not(any(loom, shuttle)))]
    pub fn new() -> io::Result<Self> {
        use super::words::Others;

        let (orders, to_read) = Words::create(layout::ORDERS, Others::Read)?;
        let (passages, to_write) = Words::create(layout::PASSAGES, Others::Write)?;
        Ok(Self { orders, passages, posting: Mutex::new(()), files: [to_read, to_write] })
    }

    /// One for a model, and what its member has.
    #[cfg(any(loom, shuttle))]
    pub(crate) fn new() -> (Self, [Words; 2]) {
        let words = [Words::new(layout::ORDERS), Words::new(layout::PASSAGES)];
        let [orders, passages] = words.clone();
        (Self { orders, passages, posting: Mutex::new(()) }, words)
    }

    /// The files for the other process ([`GateMember::join`](super::GateMember::join)), in the order in which it takes
    /// them.
    #[cfg(not(any(loom, shuttle)))]
    #[must_use]
    pub fn files(&self) -> [BorrowedFd<'_>; 2] {
        self.files.each_ref().map(AsFd::as_fd)
    }

    /// Has the member forget translations of `range`, which were taken out of the tables before. When it returns, no
    /// port of the member's uses them, and none will.
    ///
    /// While a port is inside, `is_there` is asked again and again whether to wait on: it says no when the member has
    /// ended, and cannot use anything any more, or has had its time. Where the member is this process, a thread that
    /// holds slices of its ports waits for itself.
    ///
    /// # Errors
    /// [`Unacknowledged`] when `is_there` says no; what the member has forgotten by then is not known.
    pub fn invalidate(&self, range: IovaRange, mut is_there: impl FnMut() -> bool) -> Result<(), Unacknowledged> {
        self.post(range);
        fence(Ordering::SeqCst);
        self.wait(&mut is_there)
    }

    pub(crate) fn post(&self, range: IovaRange) {
        let _posting = self.posting.lock();
        let posted = self.orders.at(layout::POSTED);
        let number = posted.load(Ordering::Relaxed);
        // A reader that meets what is written now knows that the entry before is written over.
        fence(Ordering::Release);
        let entry = layout::entry(number);
        self.orders.at(entry).store(range.start, Ordering::Relaxed);
        self.orders.at(entry + 1).store(range.last, Ordering::Relaxed);
        posted.store(number.wrapping_add(1), Ordering::Release);
    }

    pub(crate) fn wait(&self, is_there: &mut dyn FnMut() -> bool) -> Result<(), Unacknowledged> {
        // Whatever the member says: it has no more.
        let used = self.passages.at(layout::USED).load(Ordering::Acquire).min(layout::PORTS as u64);
        for port in 0..used as usize {
            let passage = self.passages.at(layout::passage(port));
            let seen = passage.load(Ordering::Acquire);
            let mut round = 0;
            while seen % 2 == 1 && passage.load(Ordering::Acquire) == seen {
                if round >= ROUNDS && !is_there() {
                    return Err(Unacknowledged);
                }
                wait_a_little(round);
                round = round.saturating_add(1);
            }
        }
        Ok(())
    }
}
