//! Failures on purpose: of everything that can fail while a request is performed, the n-th does.
//!
//! Code that can fail for lack of something (memory, descriptors, ids, the program's memory) asks [`fails`] first, and
//! then behaves as if it had. A test performs a request with its first failure, its second, and so on, until there was
//! none left to be had: so every way that a request can fail is gone, as Linux's `fail-nth` does for its kernel.
//!
//! Nothing is asked where bytes move. Unless somebody injects failures at this moment, asking is one load.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that inject failures.
static INJECTING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// How many more askings until one fails; 0 if none does.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

/// Whether what this thread is about to do has to fail.
#[inline]
#[must_use]
pub fn fails() -> bool {
    INJECTING.load(Ordering::Relaxed) != 0 && count()
}

#[cold]
fn count() -> bool {
    LEFT.with(|left| {
        let before = left.get();
        left.set(before.saturating_sub(1));
        before == 1
    })
}

/// Ends it, also when what is performed panics.
struct Injecting;

impl Drop for Injecting {
    fn drop(&mut self) {
        LEFT.set(0);
        INJECTING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Performs something of which, on this thread, the `nth` thing that can fail does, counted from 1; nothing does with
/// 0. Returns what is left of `nth` too: 0 if something failed, else what was not reached.
pub fn failing<T>(nth: u32, perform: impl FnOnce() -> T) -> (T, u32) {
    if nth == 0 {
        return (perform(), 0);
    }
    INJECTING.fetch_add(1, Ordering::Relaxed);
    let _injecting = Injecting;
    LEFT.set(nth);
    let result = perform();
    (result, LEFT.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often of four askings it failed.
    fn four() -> Vec<bool> {
        (0..4).map(|_| fails()).collect()
    }

    #[test]
    fn one_fails_and_only_here() {
        assert_eq!(failing(0, four), (vec![false; 4], 0));
        assert_eq!(failing(1, four), (vec![true, false, false, false], 0));
        assert_eq!(failing(4, four), (vec![false, false, false, true], 0));
        assert_eq!(failing(6, four), (vec![false; 4], 2));
        assert_eq!(four(), [false; 4]);
        let elsewhere = failing(1, || std::thread::scope(|scope| scope.spawn(four).join()));
        assert!(matches!(elsewhere, (Ok(failed), 1) if failed == [false; 4]));
    }

    #[test]
    fn a_panic_ends_it() {
        assert!(std::panic::catch_unwind(|| failing(2, || panic!("on purpose"))).is_err());
        assert_eq!(four(), [false; 4]);
    }
}
