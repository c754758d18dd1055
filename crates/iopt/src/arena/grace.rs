//! When a table that was unlinked may be used for something else: not while anyone who changes tables might still be
//! inside it.
//!
//! Those who change tables enter, and leave when they are done. Each belongs to one of two generations. A *turn* makes
//! those who are inside the earlier generation, and those who enter from then on the later one, who cannot meet what
//! was unlinked before the turn. Once the earlier generation has left, that is nobody's any more. So nobody waits:
//! neither those who enter for those who free, nor the other way round.
//!
//! ```text
//!  state   63   62          61           31 30            0
//!         │ - │ who enters │  inside of 1  │  inside of 0  │
//! ```
//! It is all in one word, so that "the last of the earlier generation left" is one person's finding.

use std::sync::atomic::{AtomicU64, Ordering};

const COUNT_BITS: u32 = 31;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// The generation that is entered.
const LATER: u64 = 1 << 62;

/// Who is inside an arena's tables, by generation.
pub(super) struct Grace {
    state: AtomicU64,
}

/// Which generation somebody entered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u32);

impl Generation {
    fn later(state: u64) -> Self {
        Self(u32::from(state & LATER != 0))
    }

    fn earlier(state: u64) -> Self {
        Self(1 - Self::later(state).0)
    }

    fn one(self) -> u64 {
        1 << (COUNT_BITS * self.0)
    }

    fn inside(self, state: u64) -> u64 {
        (state >> (COUNT_BITS * self.0)) & COUNT
    }
}

impl Grace {
    pub(super) fn new() -> Self {
        Self { state: AtomicU64::new(0) }
    }

    pub(super) fn enter(&self) -> Generation {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let generation = Generation::later(state);
            let entered = state + generation.one();
            // Acquire: who enters after a turn sees what was unlinked before it.
            match self.state.compare_exchange_weak(state, entered, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return generation,
                Err(now) => state = now,
            }
        }
    }

    /// Returns whether this was the last of the earlier generation.
    pub(super) fn leave(&self, generation: Generation) -> bool {
        let before = self.state.fetch_sub(generation.one(), Ordering::AcqRel);
        generation == Generation::earlier(before) && generation.inside(before) == 1
    }

    pub(super) fn earlier_left(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        Generation::earlier(state).inside(state) == 0
    }

    /// Makes those who are inside the earlier generation. Only one at a time, and when the earlier generation has left.
    pub(super) fn turn(&self) {
        self.state.fetch_xor(LATER, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::Grace;

    #[test]
    fn who_entered_before_a_turn_is_waited_for_and_who_enters_after_it_is_not() {
        let grace = Grace::new();
        let (first, second) = (grace.enter(), grace.enter());
        grace.turn();
        let third = grace.enter();
        assert!(!grace.earlier_left());
        assert!(!grace.leave(first));
        assert!(!grace.leave(third));
        assert!(!grace.earlier_left());
        assert!(grace.leave(second));
        assert!(grace.earlier_left());
    }

    #[test]
    fn without_a_turn_nobody_is_the_last() {
        let grace = Grace::new();
        let only = grace.enter();
        assert!(grace.earlier_left());
        assert!(!grace.leave(only));
    }
}
