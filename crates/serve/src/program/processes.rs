//! The address spaces of programs whose memory somebody may need, each opened once however much of it is mapped.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioasid::memory::Process;

/// By thread number.
#[derive(Default)]
pub(crate) struct Processes(Mutex<HashMap<(u32, Purpose), Opened>>);

/// What an address space is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Mapping parts of it.
    Mapping,
    /// A page table that is the address space.
    Sva,
}

struct Opened {
    /// What the kernel told the program when it began, addresses of its own among it, which are others after an exec.
    auxv: Vec<u8>,
    process: Weak<Process>,
}

impl Processes {
    /// The address space that thread `tid` has now.
    ///
    /// # Errors
    /// As [`Process::open`].
    pub(crate) fn open(&self, tid: u32, purpose: Purpose) -> io::Result<Arc<Process>> {
        let auxv = std::fs::read(format!("/proc/{tid}/auxv"))?;
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = opened.get(&(tid, purpose)).filter(|known| known.auxv == auxv);
        // With an exec a program leaves an address space, which then ends unless another process is in it, too.
        if let Some(process) = known.and_then(|known| known.process.upgrade()).filter(|process| process.is_current()) {
            return Ok(process);
        }
        let process = Arc::new(match purpose {
            Purpose::Mapping => Process::open(tid)?,
            Purpose::Sva => Process::open_for_sva(tid)?,
        });
        opened.retain(|_, known| known.process.strong_count() > 0);
        opened.insert((tid, purpose), Opened { auxv, process: Arc::downgrade(&process) });
        Ok(process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_space_is_opened_once_while_somebody_has_it() {
        let processes = Processes::default();
        let own = std::process::id();
        let first = processes.open(own, Purpose::Mapping).unwrap();
        assert!(Arc::ptr_eq(&first, &processes.open(own, Purpose::Mapping).unwrap()));
        drop(first);
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let other = processes.open(child.id(), Purpose::Sva).unwrap();
        assert_eq!(processes.0.lock().unwrap().len(), 1, "what nobody has is forgotten");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(processes.open(child.id(), Purpose::Sva).is_err());
        assert!(!other.is_current());
    }
}
