//! The thread that looks at rings, while accesses follow one another.
//!
//! An access that is asked for by a system call soon after another one says that a third may come. Then a ring is
//! looked at, until none of those that are has been asked anything for a while. A program that accesses a register now
//! and then costs nothing in between, and neither do idle ones.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ioasid::memory::Process;
use rustix::io::Errno;

use super::ring::Ring;
use crate::server::Server;

/// The poller stops when nothing is asked for so long, and starts when one access follows another so soon.
const WINDOW: Duration = Duration::from_micros(50);

/// The most threads that are remembered.
const MOST_THREADS: usize = 1024;

/// Looks between two at the clock.
const LOOKS: u32 = 16;

/// The rings of all processes. The thread ends when this is dropped.
pub(crate) struct Rings {
    server: Arc<Server>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a ring to look at.
    changed: Condvar,
    /// Counts changes of what is looked at.
    generation: AtomicU64,
}

#[derive(Default)]
struct State {
    /// By process number.
    rings: HashMap<u32, Known>,
    /// The ring that a thread asked in, by its number. Another thread may have that since: it asks in vain, as nothing
    /// of its own is in there.
    threads: HashMap<u32, Arc<Ring>>,
    looked_at: Vec<Arc<Ring>>,
    has_thread: bool,
    ended: bool,
}

struct Known {
    ring: Arc<Ring>,
    /// When an access was last asked for by a system call.
    asked: Option<Instant>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rings {
    /// No rings yet, of programs that `server` serves.
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server, shared: Arc::default() }
    }

    /// Gives a process a ring, in place of one that it may have, and returns the file to be mapped.
    ///
    /// # Errors
    /// Of the system calls.
    pub(crate) fn add(&self, process: &Arc<Process>) -> Result<OwnedFd, Errno> {
        let (ring, file) = Ring::new(process.clone())?;
        let ring = Known { ring: Arc::new(ring), asked: None };
        let known: Vec<_> = self.shared.lock().rings.values().map(|known| known.ring.clone()).collect();
        let ended: Vec<_> = known.into_iter().filter(|ring| !ring.process().is_current()).collect();
        let has_ended = |known: &Known| ended.iter().any(|ring| Arc::ptr_eq(ring, &known.ring));
        let former = {
            let mut state = self.shared.lock();
            let ended: Vec<_> = state.rings.extract_if(|_, known| has_ended(known)).collect();
            // Threads may have asked in what goes.
            (ended, std::mem::take(&mut state.threads), state.rings.insert(process.pid(), ring))
        };
        drop(former);
        Ok(file)
    }

    /// Has a slot of the ring answered that a thread has, or its `process`.
    pub(crate) fn finish(&self, tid: u32, process: impl FnOnce() -> Option<Arc<Process>>, slot: u64) {
        let known = self.shared.lock().threads.get(&tid).cloned();
        let Some(ring) = known.or_else(|| self.remember(tid, &process()?)) else { return };
        ring.finish(usize::try_from(slot).unwrap_or(usize::MAX), &self.server);
        self.asked(&ring);
    }

    fn remember(&self, tid: u32, process: &Arc<Process>) -> Option<Arc<Ring>> {
        let mut state = self.shared.lock();
        let known = state.rings.get(&process.pid()).filter(|known| Arc::ptr_eq(known.ring.process(), process))?;
        let ring = known.ring.clone();
        if state.threads.len() >= MOST_THREADS {
            state.threads.clear();
        }
        state.threads.insert(tid, ring.clone());
        Some(ring)
    }

    /// An access in a ring was asked for by a system call, and performed.
    fn asked(&self, ring: &Arc<Ring>) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let known = state.rings.get_mut(&ring.process().pid()).filter(|known| Arc::ptr_eq(&known.ring, ring));
        let Some(known) = known else { return };
        let before = known.asked.replace(now);
        if before.is_none_or(|before| now - before > WINDOW) {
            return;
        }
        let ring = ring.clone();
        if state.looked_at.iter().any(|looked_at| Arc::ptr_eq(looked_at, &ring)) {
            return;
        }
        if !state.has_thread {
            let Ok(()) = self.start() else { return };
            state.has_thread = true;
        }
        ring.set_looks(true);
        state.looked_at.push(ring);
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
        self.shared.changed.notify_one();
    }

    fn start(&self) -> io::Result<()> {
        let (shared, server) = (self.shared.clone(), self.server.clone());
        std::thread::Builder::new().name("registers".to_owned()).spawn(move || poll(&shared, &server)).map(drop)
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
        self.shared.changed.notify_one();
    }
}

fn poll(shared: &Shared, server: &Server) {
    loop {
        let (rings, generation) = {
            let nothing = |state: &mut State| state.looked_at.is_empty() && !state.ended;
            let state = shared.changed.wait_while(shared.lock(), nothing).unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            (state.looked_at.clone(), shared.generation.load(Ordering::Relaxed))
        };
        let is_quiet = look_at(&rings, server, || shared.generation.load(Ordering::Relaxed) != generation);
        if is_quiet {
            let mut state = shared.lock();
            // Not those that have come since.
            state.looked_at.retain(|ring| !rings.iter().any(|quiet| Arc::ptr_eq(quiet, ring)));
        }
    }
}

/// Answers what is asked in rings, until nothing is, and returns true; or until `changed`.
fn look_at(rings: &[Arc<Ring>], server: &Server, changed: impl Fn() -> bool) -> bool {
    let mut last = Instant::now();
    loop {
        let mut any = false;
        // To ask what time it is takes longer than to look.
        for _ in 0..LOOKS {
            for ring in rings {
                ring.set_looks(true);
                any |= ring.answer(server);
            }
        }
        std::hint::spin_loop();
        if changed() {
            return false;
        }
        let now = Instant::now();
        if any {
            last = now;
        } else if now - last > WINDOW {
            for ring in rings {
                ring.set_looks(false);
                // A handler that asks later finds no answer, and makes a system call.
                ring.answer(server);
            }
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use ioasid::{Machine, Silent};

    use super::*;
    use crate::watch::{Options, Watcher};

    struct Nobody;

    impl Watcher for Nobody {}

    #[test]
    fn a_ring_is_looked_at_while_accesses_follow_one_another() {
        let server = Server::new(Machine::new(Arc::new(Silent)), vec![], Arc::new(Nobody), Options::default());
        let rings = Rings::new(server);
        let process = Arc::new(Process::open(std::process::id()).unwrap());
        let ask = |process: &Arc<Process>| rings.finish(process.pid(), || Some(process.clone()), 0);
        ask(&process);
        rings.add(&process).unwrap();
        let looked_at = || rings.shared.lock().looked_at.len();
        ask(&process);
        std::thread::sleep(2 * WINDOW);
        assert_eq!(looked_at(), 0, "one access alone");
        for _ in 0..3 {
            while looked_at() == 0 {
                ask(&process);
            }
            while looked_at() > 0 {
                std::thread::yield_now();
            }
        }
        let another = Arc::new(Process::open(std::process::id()).unwrap());
        (0..3).for_each(|_| rings.finish(0, || Some(another.clone()), 0));
        assert_eq!(looked_at(), 0, "another process has no ring");
    }
}
