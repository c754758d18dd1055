//! A gate between two processes: one takes translations away, in the other ports use them.
//!
//! The owner has page tables in memory that the other process reads, and invalidates what it has taken out of them; a
//! port of the other process, the member, passes this gate besides its own.
//!
//! ```text
//!  member's port                              owner
//!  ─────────────                              ─────
//!  own gate: inside (see the parent module)   take the translation out of the table
//!  passage = odd                              write the range into the ring; posted += 1
//!  fence                                      fence
//!  posted changed? forget what the ring has   a passage odd? wait until it changes,
//!  walk the owner's tables, move bytes          or the member is gone
//!  passage = even                             now no port of the member's uses it
//! ```
//! It is the protocol between threads, with two differences. Both fences are real ones, as an asymmetric fence would
//! have to reach every processor of the machine: the port pays some 10 ns for each access, and an invalidation is
//! acknowledged in half a microsecond. And neither side trusts the other: each has a file that the other can only read
//! or that it believes nothing of, and neither can cut one short. The owner gives up a member that does not come out:
//! it ends that process, or says that it may still reach what it has mapped.
//!
//! What the owner writes (`orders`) can only be read elsewhere; it says no more than what to forget, and forgetting too
//! much is only slow. What the member writes (`passages`), it could write wrongly, and would then reach what is not its
//! own any more, as it could with the memory that it has mapped.

#[cfg(all(test, any(loom, shuttle)))]
mod gate_model;
mod member;
mod owner;
mod words;

pub(crate) use member::Passage;
pub use member::{GateMember, JoinError};
pub use owner::{GateOwner, Unacknowledged};

/// Where words of the two files are. Those of different writers, and of different ports, are two cache lines apart.
mod layout {
    /// Words in two cache lines.
    const APART: usize = 16;

    /// Invalidations that the ring has room for.
    pub(super) const RING: u64 = 32;
    /// Ports of a member's, at the most.
    pub(super) const PORTS: usize = if cfg!(any(loom, shuttle)) { 2 } else { 511 };

    /// In the owner's file: how many invalidations there were.
    pub(super) const POSTED: usize = 0;
    /// Words of the owner's file.
    pub(super) const ORDERS: usize = APART + 2 * RING as usize;

    /// The first address of an invalidation, which the last follows.
    pub(super) fn entry(number: u64) -> usize {
        APART + 2 * (number % RING) as usize
    }

    /// In the member's file: how many of its passages were ever used.
    pub(super) const USED: usize = 0;
    /// In the member's file: 1 while there is a member, 0 otherwise.
    pub(super) const JOINED: usize = 1;
    /// Words of the member's file.
    pub(super) const PASSAGES: usize = (PORTS + 1) * APART;

    /// The passage of a port: odd while it is inside.
    pub(super) fn passage(port: usize) -> usize {
        (port + 1) * APART
    }
}
