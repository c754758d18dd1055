//! The gate of a DMA port: the protocol behind the completion guarantee.
//!
//! Every port has a gate. The port passes it for each access with a plain store and a load; the thread that takes a
//! translation away pays for the rest.
//!
//! ```text
//!  port (often)                            thread that unmaps (seldom)
//!  ────────────                            ───────────────────────────
//!  inside += 1  (odd: in an access)        take the translation out of the table
//!  light fence                             post what to forget; posted += 1
//!  posted changed? forget what is posted   heavy fence
//!  translate, move bytes                   inside odd? wait until it changes
//!  inside += 1  (even)                     now no port uses it, and none will
//! ```
//!
//! Why it holds: the two fences order as if both were sequentially consistent. Either the thread that unmaps sees the
//! port's `inside`, and then waits; or the port's later loads see both `posted` and the emptied table, so that it
//! neither uses a cached translation nor finds the old one. What the port caches after it looked at `posted` may be of
//! the old table; it is used within this access, for which that thread waits, and forgotten before the next. The loom
//! tests in `port/gate_model.rs` walk through every order.
//!
//! An access is short: a port leaves its gate between pieces of a long transfer, so waiting is bounded by one piece.
//! Only borrowed slices are held for as long as their holder likes. A thread that waited for slices which it holds
//! itself, or for one that waits for them, would wait for ever; so a thread knows the gates that it holds (see
//! [`holder`]), and asks ([`check_may_wait`]) before it takes a lock under which another thread may be waiting.
//!
//! A port that walks tables of another process passes the gate of those besides ([`shared`]).
#![allow(unsafe_code, reason = "follows a pointer that the protocol keeps alive")]

use std::marker::PhantomData;
use std::sync::Arc;

use crate::base::lock::Mutex;
use crate::base::rank;
use crate::base::sync::{
    AtomicBool, AtomicPtr, AtomicU64, Ordering, heavy_fence, is_asymmetric, light_fence, wait_a_little,
};
use crate::base::types::WouldDeadlock;
use holder::Holder;
pub(crate) use holder::call_inside;
use holder::holds_any;
use invalidation::{Invalidation, Queue};
use shared::Passage;

mod holder;
pub(crate) mod invalidation;
pub(crate) mod requester;
pub(crate) mod shared;
pub(crate) mod walker;

/// In [`Gate::inside`]: for as long as the holder likes.
const HELD: u64 = 1 << 63;

/// One port's gate. See the module's page.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Gate {
    /// Odd while the port is inside an access, with [`HELD`] if slices are held. Written by the port only.
    inside: AtomicU64,
    /// The thread that holds, or last held, slices.
    holder: Holder,
    /// Counts what was posted. Written by threads that take translations away.
    posted: AtomicU64,
    /// See [`is_asymmetric`].
    asymmetric: bool,
    /// The passage of another process's gate, while the port walks tables of that; null otherwise. The thread that
    /// changes it then waits until the port is out: only then may the old passage go, and the port passes the new one
    /// (see [`walker::Ports`]).
    passage: AtomicPtr<Passage>,
    /// There was no passage left for the port: it must not walk anything.
    shut: AtomicBool,
    /// What was posted and not yet looked at. Changed before `posted` is.
    queue: Mutex<Queue, rank::Posted>,
}

/// The port is inside an access as long as this lives.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    gate: &'a Gate,
    entered: u64,
}

impl Inside<'_> {
    /// Changes when something is posted. A port that finds it changed calls [`Gate::drain`].
    #[inline(always)]
    pub(crate) fn posted(&self) -> u64 {
        self.gate.posted.load(Ordering::Acquire)
    }

    /// The gate that the port is in.
    #[inline(always)]
    pub(crate) fn gate(&self) -> &Gate {
        self.gate
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        let outside = (self.entered & !HELD) + 1;
        // First, as the passage may go when the port is out of its own gate.
        if let Some(passage) = self.gate.passage() {
            passage.leave(outside);
        }
        self.gate.inside.store(outside, Ordering::Release);
    }
}

/// This thread holds slices of the port as long as this lives.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    inside: Inside<'a>,
    /// It is this thread that holds them, so they stay in it.
    one_thread: PhantomData<*mut ()>,
}

impl<'a> Held<'a> {
    #[inline]
    pub(crate) fn inside(&self) -> &Inside<'a> {
        &self.inside
    }

    /// Leaves the port inside, until what [`Gate::resume`] gives back is dropped.
    #[cfg(feature = "vm-memory")]
    #[inline]
    pub(crate) fn suspend(self) {
        std::mem::forget(self);
    }
}

impl Gate {
    /// A gate with no port inside.
    pub(crate) fn new() -> Self {
        Self {
            inside: AtomicU64::new(0),
            holder: Holder::new(),
            posted: AtomicU64::new(0),
            asymmetric: is_asymmetric(),
            passage: AtomicPtr::new(std::ptr::null_mut()),
            shut: AtomicBool::new(false),
            queue: Mutex::new(Queue::new()),
        }
    }

    /// Begins an access. Only the gate's one port calls this, and not while it is inside; but a [`Held`] may have been
    /// leaked: then no thread can reach what it held, and its access goes on as this one.
    #[inline]
    pub(crate) fn enter(&self) -> Inside<'_> {
        let entered = self.begin();
        self.inside.store(entered, Ordering::Relaxed);
        light_fence(self.asymmetric);
        self.pass(entered);
        Inside { gate: self, entered }
    }

    /// Goes through the gate of another process, too, if the port walks tables of that.
    #[inline(always)]
    fn pass(&self, entered: u64) {
        if let Some(passage) = self.passage() {
            self.pass_shared(passage, entered);
        }
    }

    #[cold]
    fn pass_shared(&self, passage: &Passage, entered: u64) {
        passage.enter(entered, |range| self.post(Invalidation::Range(passage.table(), range)));
    }

    /// For the port, inside its own gate or going in.
    #[inline(always)]
    fn passage(&self) -> Option<&Passage> {
        // SAFETY: a thread that takes it back waits until the port is out before the passage goes; and this port found
        // it after it went in, and follows it no longer than it is inside.
        unsafe { self.passage.load(Ordering::Acquire).as_ref() }
    }

    /// Whether the port must not walk anything.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// [`Gate::enter`] without its fence, for a model of what happens then.
    #[cfg(all(test, any(loom, shuttle)))]
    pub(crate) fn enter_without_fence(&self) -> Inside<'_> {
        let entered = self.begin();
        self.inside.store(entered, Ordering::Relaxed);
        Inside { gate: self, entered }
    }

    /// What `inside` becomes.
    #[inline]
    fn begin(&self) -> u64 {
        let inside = self.inside.load(Ordering::Relaxed);
        if inside % 2 == 1 { inside & !HELD } else { inside + 1 }
    }

    /// As [`Gate::enter`], for an access that lasts as long as its caller likes.
    #[inline]
    pub(crate) fn hold(self: &Arc<Self>) -> Held<'_> {
        self.holder.set(self);
        let entered = self.begin() | HELD;
        self.inside.store(entered, Ordering::Release);
        light_fence(self.asymmetric);
        self.pass(entered);
        Held { inside: Inside { gate: self, entered }, one_thread: PhantomData }
    }

    /// Makes this thread the one that holds: the port came here with slices that another leaked.
    #[cfg(feature = "vm-memory")]
    #[inline]
    pub(crate) fn take_over(self: &Arc<Self>) {
        self.holder.set(self);
    }

    /// Whether slices are held, for the port itself to ask.
    #[cfg(feature = "vm-memory")]
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.inside.load(Ordering::Relaxed) & HELD != 0
    }

    /// The access that [`Held::suspend`] has left going on. The port is held.
    #[cfg(feature = "vm-memory")]
    #[inline]
    pub(crate) fn resume(&self) -> Held<'_> {
        let inside = Inside { gate: self, entered: self.inside.load(Ordering::Relaxed) };
        Held { inside, one_thread: PhantomData }
    }

    /// Gives `forget` what was posted since the last time. For the port, inside.
    pub(crate) fn drain(&self, forget: impl FnMut(Invalidation)) {
        self.queue.lock().drain(forget);
    }

    pub(crate) fn post(&self, invalidation: Invalidation) {
        self.queue.lock().push(invalidation);
        self.posted.fetch_add(1, Ordering::Release);
    }

    /// Waits until the access that the port may be in has ended.
    pub(crate) fn wait(&self) {
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

/// Fails if this thread holds up a port, by slices or by code of a caller's inside an access, and so must not wait for
/// any. Code that waits for ports asks this before it takes a lock: the thread that holds the lock may be waiting for
/// those slices.
pub(crate) fn check_may_wait() -> Result<(), WouldDeadlock> {
    if holds_any() { Err(WouldDeadlock::HoldsSlices) } else { Ok(()) }
}

/// Returns when no port behind the gates uses, or will use, a translation that was taken away before the call and that
/// `invalidation` covers.
///
/// `gates` goes through all of them and is called twice. A gate that is new the second time is harmless, and one that
/// is gone by then has no port inside.
pub(crate) fn quiesce(gates: impl Fn(&mut dyn FnMut(&Gate)), invalidation: Invalidation) {
    let mut any = false;
    gates(&mut |gate| {
        gate.post(invalidation);
        any = true;
    });
    if any {
        heavy_fence();
        gates(&mut |gate| gate.wait());
    }
}
