//! An I/O address space: IOVA ranges mapped to pages, which mirrors follow.
//!
//! The areas are the truth, and mirrors follow: one that is added later is filled from the areas. Areas that touch are
//! not merged, as an unmap has to name whole areas. Memory is brought in for the first mirror and let go with the last,
//! area by area; without one, an address space is a list.
//!
//! # Which thread waits for which
//!
//! One lock guards the areas, the list of mirrors and the rules. It is held for a few instructions: not while memory is
//! brought in, a mirror is filled or emptied, or ports are waited for. What keeps other threads away meanwhile is the
//! state of an area:
//!
//! ```text
//!             ┌─ coming ──► mapped ⇄ absent          a thread that meets one that is
//!    free ────┤               │  ▲│                    coming:  fails, as two map the same
//!             ▲               ▼  ││busy                leaving: waits for its end
//!             └──────────── leaving                    busy:    waits until it is settled
//! ```
//! So mappings of different ranges go on beside each other, and a mirror that takes long holds up threads that use the
//! same range, or add and remove mirrors of the same address space.

mod areas;
mod errors;
mod holes;
mod links;
mod map;
mod pinned;
mod presence;
mod protect;
mod rules;
mod software;
mod unmap;

use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;

use iopt::Access;

use crate::base::ids::ObjectId;
use crate::base::lock::{Condvar, Mutex, MutexGuard};
use crate::base::sync::{AtomicBool, Ordering};
use crate::base::types::{IovaRange, WouldDeadlock};
use crate::base::{callback, rank};
use crate::memory::Pages;
use crate::shared::Shared;

use areas::Areas;
pub(crate) use areas::Hold;
pub use errors::{ConnectError, CutError, MapError, Placement, PresenceError, ProtectError, RuleError, UnmapError};
use links::Links;
pub use pinned::PinnedRange;
pub(crate) use pinned::range_of;
use rules::{Limits, Rules};
pub use software::AccessError;
pub(crate) use software::Accessor;

/// One area, for people to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaView {
    /// Its IOVAs.
    pub range: IovaRange,
    /// What devices may do.
    pub access: Access,
    /// Whether devices fault there ([`Ioas::make_fault`]).
    pub absent: bool,
}

/// What the lock guards.
struct State {
    areas: Areas,
    links: Links,
    rules: Rules,
    /// Software that reads and writes without DMA.
    accessors: Vec<Arc<Accessor>>,
    /// What the mirrors and the rules leave, from the first time that it is asked for until they change.
    limits: OnceCell<Limits>,
}

/// An I/O address space.
pub struct Ioas {
    id: ObjectId,
    serial: u64,
    shared: Arc<Shared>,
    state: Mutex<State, rank::State>,
    /// An area is settled, a mirror is not called any more, or another may be added.
    settled: Condvar,
    /// Its owner is not expected to destroy it.
    disowned: AtomicBool,
}

type Locked<'a> = MutexGuard<'a, State, rank::State>;

impl fmt::Debug for Ioas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (areas, bytes) = self.size();
        f.debug_struct("Ioas")
            .field("id", &self.id)
            .field("areas", &areas)
            .field("bytes", &format_args!("{bytes:#x}"))
            .finish_non_exhaustive()
    }
}

impl Ioas {
    pub(crate) fn new(id: ObjectId, shared: Arc<Shared>) -> Self {
        let state = State {
            areas: Areas::default(),
            links: Links::default(),
            rules: Rules::new(),
            accessors: Vec::new(),
            limits: OnceCell::new(),
        };
        Self {
            id,
            serial: shared.serial(),
            shared,
            state: Mutex::new(state),
            settled: Condvar::default(),
            disowned: AtomicBool::new(false),
        }
    }

    /// Its id in its context.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// A number that no other object of this [`Machine`](crate::Machine) has or had; what an [`crate::Observer`] knows
    /// it by.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Tells that its owner does not know of it and will not destroy it. The context destroys it at its own end, and
    /// does not tell of it as a [`Leftover`](crate::Leftover).
    pub fn disown(&self) {
        self.disowned.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_disowned(&self) -> bool {
        self.disowned.load(Ordering::Relaxed)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn lock(&self) -> Locked<'_> {
        self.state.lock()
    }

    /// Lets the lock go until something is settled.
    fn wait<'a>(&self, state: Locked<'a>) -> Result<Locked<'a>, WouldDeadlock> {
        if callback::is_in_one() {
            return Err(WouldDeadlock::InCallback);
        }
        Ok(self.settled.wait(state))
    }

    /// Waits until nothing in `range` is being unmapped or changed.
    fn when_settled<'a>(&self, mut state: Locked<'a>, range: IovaRange) -> Result<Locked<'a>, WouldDeadlock> {
        while state.areas.is_changing(range) {
            state = self.wait(state)?;
        }
        Ok(state)
    }

    /// What is mapped, in order of IOVA.
    #[must_use]
    pub fn areas(&self) -> Vec<AreaView> {
        self.areas_in(IovaRange::ALL)
    }

    /// The areas that have something in common with `range`, in order of IOVA.
    #[must_use]
    pub fn areas_in(&self, range: IovaRange) -> Vec<AreaView> {
        let state = self.lock();
        let areas = state.areas.all_in(range);
        areas.map(|(range, access, absent)| AreaView { range, access, absent }).collect()
    }

    /// How many areas there are, those included that are being mapped or unmapped.
    #[must_use]
    pub fn area_count(&self) -> usize {
        self.lock().areas.count()
    }

    /// How many areas are mapped, and how many bytes they have together.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let state = self.lock();
        state.areas.all_in(IovaRange::ALL).fold((0, 0), |(areas, bytes), (range, ..)| {
            (areas + 1, bytes.saturating_add(range.len_minus_one().saturating_add(1)))
        })
    }

    /// How many bytes the areas have that lie in `range` as a whole: those that [`Ioas::unmap`] would unmap.
    #[must_use]
    pub fn bytes_in(&self, range: IovaRange) -> u64 {
        let state = self.lock();
        let areas = state.areas.all_in(range).map(|(area, ..)| area);
        areas
            .filter(|area| range.contains(area))
            .fold(0, |bytes, area| bytes.saturating_add(area.len_minus_one().saturating_add(1)))
    }

    /// The pages of the areas that have something in common with `range`, each once for every area.
    #[must_use]
    pub fn pages_in(&self, range: IovaRange) -> Vec<Arc<Pages>> {
        self.lock().areas.pages_in(range).cloned().collect()
    }
}
