//! What the protocols between threads are built from: std's, or that of a model checker (loom, shuttle) which goes
//! through the orders in which threads can run; and the two halves of an asymmetric fence.
//!
//! [`light_fence`] and [`heavy_fence`] together order like two sequentially consistent fences, but the first costs
//! nothing: the second makes the kernel run a barrier on every processor that runs a thread of this process
//! (`membarrier(2)`, `PRIVATE_EXPEDITED`). Where the kernel has no membarrier, both are real fences.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(any(loom, shuttle))]
mod platform {
    use super::{Ordering, fence};

    pub(crate) fn light_fence(_asymmetric: bool) {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn heavy_fence() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn is_asymmetric() -> bool {
        false
    }

    pub(crate) fn wait_a_little(_round: u32) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(shuttle)]
        shuttle::thread::yield_now();
    }

    #[cfg(shuttle)]
    shuttle::thread_local! {
        static HELD: std::cell::Cell<usize> = std::cell::Cell::new(0);
    }

    pub(crate) fn begin_holding() {
        #[cfg(shuttle)]
        HELD.with(|held| held.set(held.get() + 1));
    }

    pub(crate) fn end_holding() {
        #[cfg(shuttle)]
        HELD.with(|held| held.set(held.get() - 1));
    }

    /// As outside of a model; loom's tests hold nothing.
    pub(crate) fn holds_any() -> bool {
        #[cfg(loom)]
        return false;
        #[cfg(shuttle)]
        return HELD.with(std::cell::Cell::get) > 0;
    }
}

#[cfg(not(any(loom, shuttle)))]
mod platform {
    use std::cell::Cell;
    use std::sync::LazyLock;
    use std::sync::atomic::compiler_fence;
    use std::time::Duration;

    use super::{Ordering, fence};

    /// Whether the kernel lets this process use expedited barriers.
    static MEMBARRIER: LazyLock<bool> = LazyLock::new(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));

    #[allow(unsafe_code, reason = "no safe wrapper of membarrier exists")]
    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: membarrier takes no pointers.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    /// Whether the light fence may be light.
    pub(crate) fn is_asymmetric() -> bool {
        *MEMBARRIER
    }

    /// Orders this thread's earlier store before its later load, as seen by who calls [`heavy_fence`]. `asymmetric` is what
    /// [`is_asymmetric`] said.
    #[inline]
    pub(crate) fn light_fence(asymmetric: bool) {
        if asymmetric {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// Pays for both sides.
    pub(crate) fn heavy_fence() {
        fence(Ordering::SeqCst);
        if *MEMBARRIER {
            // The kernel may want memory for it, and going on without it would break the completion guarantee; so it is
            // tried until it works. The second form is slow and wants none.
            let forms = [libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED, libc::MEMBARRIER_CMD_GLOBAL];
            while !forms.iter().any(|&form| membarrier(form)) {
                std::thread::yield_now();
            }
        }
    }

    /// Waits for something that another thread is about to do, longer from round to round.
    pub(crate) fn wait_a_little(round: u32) {
        match round {
            0..100 => std::hint::spin_loop(),
            100..200 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
    }

    thread_local! {
        /// Slices that the thread began to hold, and that it held no longer. Leaked ones are held until their port is used
        /// again. Two counters, as one would be waited for twice in each access.
        static BEGUN: Cell<usize> = const { Cell::new(0) };
        static ENDED: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts slices that this thread holds from now on.
    #[inline]
    pub(crate) fn begin_holding() {
        BEGUN.with(|begun| begun.set(begun.get().wrapping_add(1)));
    }

    /// Counts slices that this thread holds no longer.
    #[inline]
    pub(crate) fn end_holding() {
        ENDED.with(|ended| ended.set(ended.get().wrapping_add(1)));
    }

    /// Whether this thread holds slices.
    pub(crate) fn holds_any() -> bool {
        BEGUN.with(Cell::get) != ENDED.with(Cell::get)
    }
}

pub(crate) use platform::{
    begin_holding, end_holding, heavy_fence, holds_any, is_asymmetric, light_fence, wait_a_little,
};
