//! Atomics that are std's, or loom's when the protocol is being model-checked; and the two halves of an asymmetric
//! fence.
//!
//! [`light_fence`] and [`heavy_fence`] together order like two sequentially consistent fences, but the first costs
//! nothing: the second makes the kernel run a barrier on every processor that runs a thread of this process
//! (`membarrier(2)`, `PRIVATE_EXPEDITED`). Where the kernel has no membarrier, both are real fences.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
mod asymmetric {
    use super::{Ordering, fence};

    pub(crate) fn light_fence() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn heavy_fence() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn wait_a_little(_round: u32) {
        loom::thread::yield_now();
    }
}

#[cfg(not(loom))]
mod asymmetric {
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

    /// Orders this thread's earlier store before its later load, as seen by who calls [`heavy_fence`].
    #[inline]
    pub(crate) fn light_fence() {
        if *MEMBARRIER {
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

pub(crate) use asymmetric::{heavy_fence, light_fence, wait_a_little};
