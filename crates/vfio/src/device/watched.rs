//! Eventfds of the program that have something done when they are signalled: a store to a BAR (IOEVENTFD), or INTx
//! unmasked (resample).
//!
//! A thread of the session waits for all of them. It takes the signals, as the kernel does, and reads without waiting:
//! the program may have read them itself meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::eventfd::EventFd;
use crate::lock;

/// Does what a signal asks for.
pub(super) type Action = Box<dyn Fn() + Send>;

/// By which one is found again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Unmasks INTx.
    Unmask,
    /// A store of these bytes at this file offset.
    Store(u64, Vec<u8>),
}

/// The eventfds of one session.
#[derive(Default)]
pub(super) struct Watched(Mutex<Option<Running>>);

struct Running {
    epoll: Arc<OwnedFd>,
    entries: Arc<Mutex<Entries>>,
    /// Ends the thread.
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Entries {
    /// What an event's number means; 0 means the end.
    numbers: BTreeMap<Key, u64>,
    all: BTreeMap<u64, (EventFd, Arc<Mutex<Action>>)>,
    last: u64,
}

impl Watched {
    /// Whether there is one of this kind.
    pub(super) fn has(&self, key: &Key) -> bool {
        lock(&self.0).as_ref().is_some_and(|running| lock(&running.entries).numbers.contains_key(key))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.0).as_ref().map_or(0, |running| lock(&running.entries).all.len())
    }

    /// Has `action` done at each signal of `eventfd`. There is none of this kind yet.
    ///
    /// # Errors
    /// If there can be no thread, or no descriptor.
    pub(super) fn add(&self, key: Key, eventfd: EventFd, action: Action) -> io::Result<()> {
        let mut running = lock(&self.0);
        let running = match &mut *running {
            Some(running) => running,
            none => none.insert(Running::start()?),
        };
        let mut entries = lock(&running.entries);
        entries.last += 1;
        let number = entries.last;
        epoll::add(&running.epoll, &eventfd, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        entries.numbers.insert(key, number);
        entries.all.insert(number, (eventfd, Arc::new(Mutex::new(action))));
        Ok(())
    }

    /// Takes one away: its action is done no more when this returns. Returns whether there was one.
    pub(super) fn remove(&self, key: &Key) -> bool {
        let running = lock(&self.0);
        let Some(running) = &*running else { return false };
        let mut entries = lock(&running.entries);
        let Some(entry) = entries.numbers.remove(key).and_then(|number| entries.all.remove(&number)) else {
            return false;
        };
        let _ = epoll::delete(&running.epoll, &entry.0);
        drop(entries);
        // If the thread is at it, it has it locked.
        drop(lock(&entry.1));
        true
    }

    /// Takes all away, and ends the thread.
    pub(super) fn close(&self) {
        // Dropped without the lock.
        let running = lock(&self.0).take();
        drop(running);
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let entries: Arc<Mutex<Entries>> = Arc::default();
        let (waits, known) = (epoll.clone(), entries.clone());
        let thread = std::thread::Builder::new().name("eventfds".to_owned()).spawn(move || wait(&waits, &known))?;
        Ok(Self { epoll, entries, stop, thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.entries).all.clear();
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits for signals until it is told to end.
fn wait(epoll: &OwnedFd, entries: &Mutex<Entries>) {
    let mut events = Vec::with_capacity(16);
    loop {
        events.clear();
        if epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None).is_err() {
            continue;
        }
        for number in events.iter().map(|event| event.data.u64()) {
            if number == 0 {
                return;
            }
            // The action is locked before the entry can be taken away.
            let found = lock(entries).all.get(&number).map(|(eventfd, action)| (eventfd.take(), action.clone()));
            if let Some((true, action)) = found {
                let action = lock(&action);
                if lock(entries).all.contains_key(&number) {
                    action();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::device::irq::{IrqActions, IrqData, IrqSet};
    use crate::device::region::{StoreError, file_offset};
    use crate::pci::IrqIndex;
    use crate::testing::{Bench, eventfd, read_eventfd};
    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::fd::OwnedFd;

    fn signal(fd: &OwnedFd) {
        rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether the signals of an eventfd were taken, which this does not take.
    fn is_taken(fd: &OwnedFd) -> bool {
        let mut poll = [PollFd::new(fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).unwrap() == 0
    }

    /// Waits until it is so.
    fn until(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it never came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_store_is_made_at_each_signal_until_it_is_taken_away() {
        let bench = Bench::new();
        let (_, theirs) = eventfd();
        let at = file_offset(0) + 0x40;
        let store = |fd| bench.session().store_by(at, &[1, 2, 3, 4], fd);
        assert!(matches!(store(None), Err(StoreError::Missing)));
        store(Some(theirs.try_clone().unwrap())).unwrap();
        assert!(matches!(store(Some(theirs.try_clone().unwrap())), Err(StoreError::Exists)));
        bench.take_events();
        for _ in 0..3 {
            signal(&theirs);
            until(|| {
                let events = bench.take_events();
                assert!(events.len() < 2, "{events:?}");
                !events.is_empty()
            });
            assert_eq!(read_eventfd(&theirs), 0, "the signal was taken");
        }
        store(None).unwrap();
        signal(&theirs);
        // Another of the same thread comes after it, if it came at all.
        let (_, other) = eventfd();
        bench.session().store_by(at + 8, &[9], Some(other.try_clone().unwrap())).unwrap();
        signal(&other);
        until(|| !bench.take_events().is_empty());
        assert_eq!(read_eventfd(&theirs), 1, "nobody takes it any more");
        let table = bench.device().function().spec().msix.as_ref().map(|msix| u64::from(msix.table_offset)).unwrap();
        let refused = bench.session().store_by(file_offset(0) + table, &[1, 2, 3, 4], Some(other.try_clone().unwrap()));
        assert!(matches!(refused, Err(StoreError::Place)));
        bench.close();
        signal(&other);
        assert_eq!(read_eventfd(&other), 1, "a device that is closed takes no signal");
    }

    #[test]
    fn a_signal_unmasks_the_line_which_fires_again_if_it_is_high() {
        let bench = Bench::new();
        let (interrupt, told) = eventfd();
        let (_, resample) = eventfd();
        bench.give_eventfd(IrqIndex::Intx, 0, interrupt);
        let unmask_by = |fds: &[i32]| {
            let (index, start, actions) = (IrqIndex::Intx as u32, 0, IrqActions::UNMASK);
            let request = IrqSet { index, start, count: 1, actions, data: IrqData::Eventfds(fds) };
            bench.session().set_irqs(&request, &mut |_| Ok(resample.try_clone().unwrap()))
        };
        unmask_by(&[5]).unwrap();
        unmask_by(&[5]).unwrap_err();
        bench.interrupts().set_intx(true);
        assert_eq!(read_eventfd(&told), 1);
        for _ in 0..3 {
            signal(&resample);
            until(|| read_eventfd(&told) == 1);
        }
        bench.interrupts().set_intx(false);
        signal(&resample);
        until(|| is_taken(&resample));
        bench.interrupts().set_intx(true);
        until(|| read_eventfd(&told) == 1);
        unmask_by(&[-1]).unwrap();
        signal(&resample);
        assert_eq!(read_eventfd(&resample), 1, "nobody takes it any more");
    }
}
