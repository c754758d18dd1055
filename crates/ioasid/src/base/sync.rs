//! What the protocols between threads are built from: std's, or that of a model checker (loom, shuttle) which goes
//! through the orders in which threads can run; and the two halves of an asymmetric fence.
//!
//! [`light_fence`] and [`heavy_fence`] together order like two sequentially consistent fences, but the first costs
//! nothing: the second makes the kernel run a barrier on every processor that runs a thread of this process
//! (`membarrier(2)`, `PRIVATE_EXPEDITED`). Where the kernel has no membarrier, both are real fences.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread_local,
};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
// loom's takes no constants; what is local to a thread has no part in its models.
#[cfg(not(shuttle))]
pub(crate) use std::thread_local;

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
}

#[cfg(not(any(loom, shuttle)))]
mod platform {
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

    /// Orders this thread's earlier store before its later load, as seen by the thread that calls [`heavy_fence`].
    /// `asymmetric` is what [`is_asymmetric`] said.
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
}

pub(crate) use platform::{heavy_fence, is_asymmetric, light_fence, wait_a_little};
