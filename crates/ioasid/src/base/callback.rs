//! Code of callers that the engine calls.
//!
//! | callback | what it may do | if it panics |
//! | --- | --- | --- |
//! | source of pages | call the engine; what waits for these pages is an error | nothing is mapped, the caller sees it |
//! | [`Account`](crate::memory::Account) | the same | the same; from a drop, no caller sees it |
//! | [`Observer`](crate::Observer) | call the engine | what it was told of is done, the caller sees it |
//! | unmap notice of an access | call the engine; unmapping that range is an error | nothing is unmapped, the caller sees it |
//! | answer to a page request | call the engine | the others are answered, the caller sees it |
//! | notice of an arrival | call the engine | the group is in the queue, the caller sees it |
//! | `confirm` of an attachment | call the engine | it is taken back, the caller sees it |
//! | [`Mirror`](crate::Mirror) | call the engine; what waits for that mirror is an error | as if it had failed |
//! | notice of lost memory | nothing that waits for DMA | the others are told |
//! | [`RemoteMemory`](crate::memory::RemoteMemory) | nothing that waits for DMA: that is an error | the access ends, the caller sees it |
//!
//! None runs while a lock is held, but `RemoteMemory` runs inside the port's gate. *The caller* is the thread whose
//! call, transaction or drop led there. A callback that waits for another thread must not do so for one that waits for
//! it.
//!
//! What has to wait for a callback to end asks first whether this thread is in one ([`is_in_one`]), and fails instead.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use super::lock::assert_none;
use super::sync::thread_local;

thread_local! {
    /// How many callbacks this thread is in, one called from the other.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether a callback of the engine's runs on this thread.
pub(crate) fn is_in_one() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
}

struct In;

impl In {
    fn enter() -> Self {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for In {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
    }
}

/// Runs a caller's code.
pub(crate) fn call<T>(code: impl FnOnce() -> T) -> T {
    assert_none("a caller's code runs");
    let _in = In::enter();
    code()
}

/// Runs a caller's code where a panic must go no further, as in a drop; `None` if it panics. The panic hook has told of
/// it.
pub(crate) fn call_contained<T>(code: impl FnOnce() -> T) -> Option<T> {
    assert_none("a caller's code runs");
    catch_unwind(AssertUnwindSafe(|| call(code))).ok()
}

/// Runs several pieces of callers' code, each whatever became of the others. If one panics, the panic goes on when this
/// is dropped, after the others.
#[derive(Default)]
pub(crate) struct Each(Option<Box<dyn Any + Send>>);

impl Each {
    pub(crate) fn call(&mut self, code: impl FnOnce()) {
        assert_none("a caller's code runs");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| call(code))) {
            self.0.get_or_insert(panic);
        }
    }
}

impl Drop for Each {
    fn drop(&mut self) {
        if let Some(panic) = self.0.take()
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}
