//! Failures on purpose, for Linux's own tests, which set them as on a kernel that was built for it: a thread writes a
//! number to `/proc/self/task/TID/fail-nth`, and of what its next requests do, the n-th thing that can fail does.
//!
//! Source: Linux `Documentation/fault-injection/fault-injection.rst`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::request::given::GivenFile;

/// What is set, by thread: how many more things until one fails.
type Set = Mutex<HashMap<u32, u32>>;

/// The failures that all threads want.
#[derive(Default)]
pub(crate) struct Failures(Arc<Set>);

fn lock(set: &Set) -> MutexGuard<'_, HashMap<u32, u32>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Failures {
    /// Performs something for thread `tid`, with the failure that it wants.
    pub(crate) fn performing<T>(&self, tid: u32, perform: impl FnOnce() -> T) -> T {
        let nth = lock(&self.0).get(&tid).copied().unwrap_or(0);
        if nth == 0 {
            return perform();
        }
        let (result, left) = ioasid_inject::failing(nth, perform);
        lock(&self.0).insert(tid, left);
        result
    }

    /// The file by which thread `tid` sets it.
    pub(crate) fn file(&self, tid: u32) -> Arc<dyn GivenFile> {
        Arc::new(FailNth { set: self.0.clone(), tid })
    }
}

/// `/proc/self/task/TID/fail-nth`
struct FailNth {
    set: Arc<Set>,
    tid: u32,
}

impl Drop for FailNth {
    fn drop(&mut self) {
        lock(&self.set).remove(&self.tid);
    }
}

impl GivenFile for FailNth {
    fn is_seekable(&self) -> bool {
        true
    }

    fn read(&self, _room: usize) -> Result<Vec<u8>, Errno> {
        let nth = lock(&self.set).get(&self.tid).copied().unwrap_or(0);
        Ok(format!("{nth}\n").into_bytes())
    }

    fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        let text = std::str::from_utf8(data).map_err(|_| Errno::INVAL)?;
        let nth = text.trim().parse().map_err(|_| Errno::INVAL)?;
        lock(&self.set).insert(self.tid, nth);
        Ok(data.len())
    }
}

/// The thread that a path is the file of, as seen by `caller`, who may set only its own.
pub(crate) fn thread_of(path: &str, caller: u32) -> Option<u32> {
    let tid = path.strip_prefix("/proc/self/task/")?.strip_suffix("/fail-nth")?.parse().ok()?;
    (tid == caller).then_some(tid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_sets_its_own_and_reads_what_is_left() {
        assert_eq!(thread_of("/proc/self/task/12/fail-nth", 12), Some(12));
        for other in ["/proc/self/task/13/fail-nth", "/proc/self/task/12/fail", "/proc/self/task/x/fail-nth", ""] {
            assert_eq!(thread_of(other, 12), None);
        }
        let failures = Failures::default();
        let file = failures.file(12);
        let two = || [ioasid_inject::fails(), ioasid_inject::fails()];
        let read = || String::from_utf8(file.read(9).unwrap()).unwrap();
        assert_eq!(failures.performing(12, two), [false; 2]);
        assert_eq!(file.write(b"3"), Ok(1));
        assert_eq!(failures.performing(13, two), [false; 2]);
        assert_eq!((failures.performing(12, two), &*read()), ([false; 2], "1\n"));
        assert_eq!((failures.performing(12, two), &*read()), ([true, false], "0\n"));
        assert_eq!(failures.performing(12, two), [false; 2]);
        assert_eq!(file.write(b"many"), Err(Errno::INVAL));
        file.write(b"1").unwrap();
        drop(file);
        assert_eq!(failures.performing(12, two), [false; 2]);
    }
}
