//! Files that requests give programs descriptors of.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use ioasid::memory::Pages;
use rustix::io::Errno;

use super::Caller;

/// To be called whenever a file may have become ready.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What can be done with a file without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// A read gives something.
    pub read: bool,
    /// A write takes something.
    pub write: bool,
}

/// A file that a program got its descriptor of by a request. It is dropped some time after the last descriptor is
/// closed.
///
/// Reads and polls are answered by the thread that serves the tree: they wait for nothing and use no descriptors.
pub trait GivenFile: Any + Send + Sync {
    /// Whether it has offsets, so that a part of what a read gets can be read.
    fn is_seekable(&self) -> bool {
        false
    }

    /// What a read with `room` bytes gets; of a file with offsets, all that it has.
    ///
    /// # Errors
    /// As the kind of file says.
    fn read(&self, _room: usize) -> Result<Vec<u8>, Errno> {
        Err(Errno::INVAL)
    }

    /// Takes what is written, and returns how many bytes of it.
    ///
    /// # Errors
    /// As the kind of file says.
    fn write(&self, _data: &[u8]) -> Result<usize, Errno> {
        Err(Errno::INVAL)
    }

    /// `length` of its bytes from `start` on, both multiples of the page size, to be mapped for devices; `None` if it
    /// has none.
    ///
    /// # Errors
    /// `EINVAL` if there are not so many; as the kind of file says.
    fn pages(&self, _start: u64, _length: u64) -> Option<Result<Arc<Pages>, Errno>> {
        None
    }

    /// What can be done now. `wake` is kept in place of the one before, and called whenever that may have changed.
    fn poll(&self, _wake: Option<Wake>) -> Ready {
        Ready { read: true, write: true }
    }
}

/// The file that one of the caller's descriptors is, if a request gave it that.
pub(super) fn given(caller: &dyn Caller, number: i32) -> Option<Arc<dyn GivenFile>> {
    caller.file(number).ok()?.given().cloned()
}

/// The file as one of a kind, if it is.
pub(super) fn of_kind<T: GivenFile>(file: Arc<dyn GivenFile>) -> Option<Arc<T>> {
    let file: Arc<dyn Any + Send + Sync> = file;
    file.downcast().ok()
}

/// Tells that a file has become ready, once for all who wait: the kernel knows them, and a file has one way to tell it.
#[derive(Default)]
pub(super) struct Waiters(Mutex<Option<Wake>>);

impl Waiters {
    /// Has `wake` called from now on.
    pub(super) fn set(&self, wake: Wake) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
    }

    pub(super) fn wake(&self) {
        let wake = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        wake.into_iter().for_each(|wake| wake());
    }
}
