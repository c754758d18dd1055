//! The address spaces of programs whose memory devices and requests may need, each opened once however much of it is
//! mapped.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ioasid::memory::Process;
use rustix::io::Errno;

use super::status::process_of;

/// By process number.
#[derive(Default)]
pub(crate) struct Processes(Mutex<HashMap<(u32, Purpose), Weak<Process>>>);

/// What an address space is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Mapping parts of it.
    Mapping,
    /// A page table that is the address space.
    Sva,
}

impl Processes {
    /// The address space that thread `tid` has now.
    ///
    /// # Errors
    /// As [`Process::open`]; `ESRCH` if the thread ends or becomes another program meanwhile.
    pub(crate) fn open(&self, tid: u32, purpose: Purpose) -> io::Result<Arc<Process>> {
        // Most who ask are their process's first thread, and need no look at its status.
        let first = self.known(tid, purpose).filter(|process| process.is_of(tid));
        if let Some(process) = first {
            return Ok(process);
        }
        let pid = process_of(tid).ok_or(Errno::SRCH)?;
        if pid != tid
            && let Some(process) = self.known(pid, purpose).filter(|process| process.is_of(tid))
        {
            return Ok(process);
        }
        let process = Arc::new(match purpose {
            Purpose::Mapping => Process::open(tid)?,
            Purpose::Sva => Process::open_for_sva(tid)?,
        });
        Ok(self.enter(process, tid, purpose))
    }

    /// Makes an address space known, or returns what another thread has made known meanwhile.
    fn enter(&self, process: Arc<Process>, tid: u32, purpose: Purpose) -> Arc<Process> {
        let mut another: Option<Arc<Process>> = None;
        loop {
            let known = {
                let mut all = self.lock();
                let known = all.get(&(process.pid(), purpose)).and_then(Weak::upgrade);
                let Some(known) = known.filter(|known| another.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, known)))
                else {
                    all.retain(|_, process| process.strong_count() > 0);
                    all.insert((process.pid(), purpose), Arc::downgrade(&process));
                    return process;
                };
                known
            };
            if known.is_of(tid) {
                return known;
            }
            another = Some(known);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u32, Purpose), Weak<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was opened by a process number, of whatever process had it then.
    fn known(&self, pid: u32, purpose: Purpose) -> Option<Arc<Process>> {
        self.lock().get(&(pid, purpose)).and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_open_an_address_space_together_have_the_same() {
        for _ in 0..200 {
            let processes = Processes::default();
            let together = std::sync::Barrier::new(4);
            let opened = std::thread::scope(|scope| {
                let open = || {
                    together.wait();
                    processes.open(std::process::id(), Purpose::Mapping).unwrap()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert!(opened.iter().all(|process| Arc::ptr_eq(process, &opened[0])));
        }
    }

    #[test]
    fn an_address_space_is_opened_once_while_it_is_used() {
        let processes = Processes::default();
        let own = std::process::id();
        let first = processes.open(own, Purpose::Mapping).unwrap();
        assert!(Arc::ptr_eq(&first, &processes.open(own, Purpose::Mapping).unwrap()));
        drop(first);
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let other = processes.open(child.id(), Purpose::Sva).unwrap();
        assert_eq!(processes.0.lock().unwrap().len(), 1, "what is not used is forgotten");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(processes.open(child.id(), Purpose::Sva).is_err());
        assert!(!other.is_current());
    }
}
