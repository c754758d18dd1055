//! Locks that know their place, and that outlive a panic.
//!
//! A thread that panics while it holds a lock leaves what the lock guards whole: everything here is changed in steps
//! that cannot fail, or by values that undo what they did when they are dropped. So no lock is ever *poisoned*, and
//! this is the one place that says so.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

use super::rank::Rank;
use super::sync::{self, AtomicUsize, Ordering};

/// A mutual exclusion with a place among all locks.
pub(crate) struct Mutex<T, R> {
    inner: sync::Mutex<T>,
    rank: PhantomData<fn() -> R>,
}

/// What a [`Mutex`] guards, as long as this lives.
pub(crate) struct MutexGuard<'a, T, R: Rank> {
    guard: sync::MutexGuard<'a, T>,
    held: held::Entry<R>,
}

impl<T, R: Rank> Mutex<T, R> {
    pub(crate) fn new(value: T) -> Self {
        Self { inner: sync::Mutex::new(value), rank: PhantomData }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T, R> {
        let held = held::Entry::take();
        MutexGuard { guard: self.inner.lock().unwrap_or_else(PoisonError::into_inner), held }
    }
}

/// A mutual exclusion for a static, which outlives what a model checker knows of. No other lock is taken under it.
pub(crate) struct StaticMutex<T>(std::sync::Mutex<T>);

impl<T> StaticMutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default, R: Rank> Default for Mutex<T, R> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T, R> std::fmt::Debug for Mutex<T, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T, R: Rank> Deref for MutexGuard<'_, T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, R: Rank> DerefMut for MutexGuard<'_, T, R> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Something that a thread can wait for, which another changes under a [`Mutex`].
#[derive(Default)]
pub(crate) struct Condvar {
    inner: sync::Condvar,
    /// Threads that wait, as nearly always there are none, and to tell of a change is a system call. It grows while the
    /// lock is held: a thread that changes something under it afterwards sees that, and a thread that would wait sees
    /// what changed before.
    waiting: AtomicUsize,
}

impl Condvar {
    /// Tells all that wait of a change that was made under their lock.
    pub(crate) fn notify_all(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.inner.notify_all();
        }
    }

    /// Lets the lock go until something has changed, perhaps.
    pub(crate) fn wait<'a, T, R: Rank>(&self, guard: MutexGuard<'a, T, R>) -> MutexGuard<'a, T, R> {
        let MutexGuard { guard, held } = guard;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.wait(guard).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        MutexGuard { guard, held }
    }

    /// As [`Condvar::wait`], for so long at the most.
    pub(crate) fn wait_timeout<'a, T, R: Rank>(
        &self,
        guard: MutexGuard<'a, T, R>,
        timeout: Duration,
    ) -> MutexGuard<'a, T, R> {
        let MutexGuard { guard, held } = guard;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let (guard, _) = self.inner.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        MutexGuard { guard, held }
    }
}

/// A lock with a place among all, which many can hold to read.
pub(crate) struct RwLock<T, R> {
    inner: sync::RwLock<T>,
    rank: PhantomData<fn() -> R>,
}

/// What an [`RwLock`] guards, to read.
pub(crate) struct RwLockReadGuard<'a, T, R: Rank> {
    guard: sync::RwLockReadGuard<'a, T>,
    _held: held::Entry<R>,
}

/// What an [`RwLock`] guards, to change.
pub(crate) struct RwLockWriteGuard<'a, T, R: Rank> {
    guard: sync::RwLockWriteGuard<'a, T>,
    _held: held::Entry<R>,
}

impl<T, R: Rank> RwLock<T, R> {
    pub(crate) fn new(value: T) -> Self {
        Self { inner: sync::RwLock::new(value), rank: PhantomData }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T, R> {
        let _held = held::Entry::take();
        RwLockReadGuard { guard: self.inner.read().unwrap_or_else(PoisonError::into_inner), _held }
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T, R> {
        let _held = held::Entry::take();
        RwLockWriteGuard { guard: self.inner.write().unwrap_or_else(PoisonError::into_inner), _held }
    }
}

impl<T: Default, R: Rank> Default for RwLock<T, R> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T, R: Rank> Deref for RwLockReadGuard<'_, T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, R: Rank> Deref for RwLockWriteGuard<'_, T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, R: Rank> DerefMut for RwLockWriteGuard<'_, T, R> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod held {
    use std::cell::RefCell;
    use std::marker::PhantomData;

    use super::Rank;

    /// Locks that one thread holds at a time, at the most.
    const MOST: usize = 16;

    /// The places and names of the locks that this thread holds or waits for. In an array, as an unmap allocates
    /// nothing.
    struct Held {
        locks: [(u16, bool, &'static str); MOST],
        used: usize,
    }

    thread_local! {
        static HELD: RefCell<Held> = const { RefCell::new(Held { locks: [(0, false, ""); MOST], used: 0 }) };
    }

    /// Says that this thread holds a lock of a rank.
    pub(super) struct Entry<R: Rank>(PhantomData<(R, *mut ())>);

    impl<R: Rank> Entry<R> {
        pub(super) fn take() -> Self {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                let used = held.used;
                if let Some(&(place, leaf, name)) = held.locks[..used].iter().max_by_key(|(place, ..)| *place) {
                    assert!(place < R::PLACE && !leaf, "the lock {} is taken while {name} is held", R::NAME);
                }
                held.locks[used] = (R::PLACE, R::LEAF, R::NAME);
                held.used += 1;
            });
            Self(PhantomData)
        }
    }

    impl<R: Rank> Drop for Entry<R> {
        fn drop(&mut self) {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                let used = held.used;
                if let Some(at) = held.locks[..used].iter().rposition(|(place, ..)| *place == R::PLACE) {
                    held.locks.copy_within(at + 1..used, at);
                    held.used -= 1;
                }
            });
        }
    }

    /// Panics if this thread holds any lock.
    pub(crate) fn assert_none(what: &str) {
        let _ = HELD.try_with(|held| {
            let held = held.borrow();
            assert!(held.used == 0, "{what} while {} is held", held.locks[0].2);
        });
    }
}

#[cfg(not(all(debug_assertions, not(any(loom, shuttle)))))]
mod held {
    use std::marker::PhantomData;

    use super::Rank;

    pub(super) struct Entry<R: Rank>(PhantomData<R>);

    impl<R: Rank> Entry<R> {
        #[inline(always)]
        pub(super) fn take() -> Self {
            Self(PhantomData)
        }
    }

    #[inline(always)]
    pub(crate) fn assert_none(_what: &str) {}
}

pub(crate) use held::assert_none;

#[cfg(test)]
#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::base::rank::{Attach, Ids, State, Users};

    fn panics(work: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(work)).expect_err("out of order, and nothing said so");
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn locks_are_taken_from_the_outermost_to_the_innermost() {
        let (outer, inner) = (Mutex::<(), Attach>::default(), RwLock::<(), State>::default());
        let leaf = Mutex::<(), Ids>::default();
        drop((outer.lock(), inner.read(), leaf.lock()));
        let said = panics(|| drop((inner.write(), outer.lock())));
        assert!(said.contains("attach::Attach is taken while ioas::State is held"), "{said}");
        // What was let go is not held any more, in whatever order.
        let held = (outer.lock(), inner.read());
        drop(held.0);
        drop((held.1, leaf.lock()));
        drop(outer.lock());
    }

    #[test]
    fn nothing_is_taken_under_a_leaf_nor_twice() {
        let (leaf, inner) = (Mutex::<(), Users>::default(), Mutex::<(), Ids>::default());
        let said = panics(|| drop((leaf.lock(), inner.lock())));
        assert!(said.contains("base::Ids is taken while mirror::Users is held"), "{said}");
        let [one, other] = [(); 2].map(|()| RwLock::<(), State>::default());
        let said = panics(|| drop((one.read(), other.read())));
        assert!(said.contains("ioas::State is taken while ioas::State is held"), "{said}");
    }

    #[test]
    fn callers_code_does_not_run_under_a_lock() {
        let lock = Mutex::<(), Attach>::default();
        let guard = lock.lock();
        assert!(panics(|| assert_none("a caller's code runs")).contains("runs while attach::Attach is held"));
        drop(guard);
        assert_none("a caller's code runs");
    }

    #[test]
    fn who_waits_is_told_and_who_does_not_costs_nothing() {
        let (lock, changed) = (Mutex::<bool, State>::new(false), Condvar::default());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let mut done = lock.lock();
                while !*done {
                    done = changed.wait(done);
                }
            });
            while changed.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            *lock.lock() = true;
            changed.notify_all();
            waits.join().unwrap();
        });
        assert_eq!(changed.waiting.load(Ordering::Relaxed), 0);
        drop(changed.wait_timeout(lock.lock(), Duration::from_millis(1)));
        assert_eq!(changed.waiting.load(Ordering::Relaxed), 0);
    }
}
