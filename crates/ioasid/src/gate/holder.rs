//! Which gates a thread holds slices behind.
//!
//! A thread that holds slices asks seldom, and takes and gives back slices often. So a gate names the thread that held
//! it last, a thread has a list of the gates that it was new to once, and looks through them when it asks: holding the
//! same gate again writes nothing here.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak, atomic::AtomicUsize};

use super::{Gate, HELD};
use crate::base::callback;
use crate::base::sync::{Ordering, thread_local};

/// Numbers of threads so far. No number is used again.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's number, or zero before it first held anything.
    static THREAD: Cell<usize> = const { Cell::new(0) };
    /// Accesses in which this thread runs a caller's code.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
    /// Gates that this thread may be holding.
    static GATES: RefCell<Vec<Weak<Gate>>> = const { RefCell::new(Vec::new()) };
}

/// The number of the thread that held a gate last.
#[derive(Debug)]
pub(super) struct Holder(AtomicUsize);

impl Holder {
    /// That of no thread.
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }

    /// Makes this thread the holder of `gate`, whose holder this is.
    #[inline]
    pub(super) fn set(&self, gate: &Arc<Gate>) {
        if self.0.load(Ordering::Relaxed) != THREAD.with(Cell::get) {
            self.change(gate);
        }
    }

    #[cold]
    fn change(&self, gate: &Arc<Gate>) {
        let thread = THREAD.with(|thread| {
            if thread.get() == 0 {
                thread.set(THREADS.fetch_add(1, Ordering::Relaxed) + 1);
            }
            thread.get()
        });
        let _ = GATES.try_with(|gates| {
            let mut gates = gates.borrow_mut();
            gates.retain(|known| known.upgrade().is_some_and(|known| known.holder.is(thread)));
            gates.push(Arc::downgrade(gate));
        });
        self.0.store(thread, Ordering::Relaxed);
    }

    fn is(&self, thread: usize) -> bool {
        self.0.load(Ordering::Relaxed) == thread
    }
}

/// Runs a caller's code inside of an access: memory that only that code can reach. It must not wait for ports, as this
/// one does not leave its gate before.
pub(crate) fn call_inside<T>(code: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            INSIDE.with(|inside| inside.set(inside.get() - 1));
        }
    }
    INSIDE.with(|inside| inside.set(inside.get() + 1));
    let _leave = Leave;
    callback::call(code)
}

/// Whether this thread holds any gate.
pub(super) fn holds_any() -> bool {
    if INSIDE.try_with(Cell::get).unwrap_or(0) > 0 {
        return true;
    }
    let thread = THREAD.with(Cell::get);
    // The gate first: if another thread holds it now, its number was there before.
    let held = |gate: &Gate| gate.inside.load(Ordering::Acquire) & HELD != 0 && gate.holder.is(thread);
    let any = GATES.try_with(|gates| gates.borrow().iter().any(|gate| gate.upgrade().is_some_and(|gate| held(&gate))));
    // A thread that is ending has dropped its list: what it holds then, it holds from one destructor to another.
    any.unwrap_or(false)
}
