//! The engine for where io_uring is forbidden, as in many containers: threads that wait in system calls.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::{Done, Engine, Job, Operation};

/// Jobs that are carried out at once.
const THREADS: usize = 4;

/// Threads, which start with the first job.
#[derive(Default)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    has_started: bool,
    under_way: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job, or the end.
    changed: Condvar,
    /// Says that something is done. Without, the worker looks again after a moment.
    ready: Option<OwnedFd>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    ends: bool,
    /// Counts what was given up.
    given_up: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let Some(mut job) = state.jobs.pop_front() else {
                if state.ends {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let since = state.given_up;
            drop(state);
            let result = carry_out(&mut job, &|| self.lock().given_up == since);
            state = self.lock();
            state.done.push(Done { token: job.token, result, buffer: job.buffer });
            if let Some(ready) = &self.ready {
                // It can count further than there are jobs.
                let _ = rustix::io::write(ready, &1u64.to_ne_bytes());
            }
        }
    }
}

/// Carries out a job; what is done step by step, as long as it `goes_on`.
fn carry_out(job: &mut Job, goes_on: &dyn Fn() -> bool) -> io::Result<()> {
    let length = job.buffer.bytes().len();
    let file = || job.image.file(job.offset, length).try_clone_to_owned().map(std::fs::File::from);
    match job.operation {
        Operation::Read => file()?.read_exact_at(job.buffer.bytes_mut(), job.offset),
        Operation::Write { durable } => {
            file()?.write_all_at(job.buffer.bytes(), job.offset)?;
            if durable { job.image.flush() } else { Ok(()) }
        }
        Operation::Flush => job.image.flush(),
        Operation::Zero { length, deallocate } => job.image.zero(job.offset, length, deallocate, goes_on),
    }
}

impl Engine for Threads {
    fn submit(&mut self, mut job: Job) {
        self.under_way += 1;
        if !self.has_started {
            self.has_started = true;
            let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
            self.shared = Arc::new(Shared { ready, ..Shared::default() });
            let threads = (0..THREADS).filter_map(|_| {
                let shared = self.shared.clone();
                std::thread::Builder::new().name("nvme-file".into()).spawn(move || shared.work()).ok()
            });
            self.threads = threads.collect();
        }
        if self.threads.is_empty() {
            let result = carry_out(&mut job, &|| true);
            self.shared.lock().done.push(Done { token: job.token, result, buffer: job.buffer });
        } else {
            self.shared.lock().jobs.push_back(job);
            self.shared.changed.notify_one();
        }
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        if let Some(ready) = &self.shared.ready {
            let _ = rustix::io::read(ready, &mut [0; 8]);
        }
        let mut state = self.shared.lock();
        self.under_way -= state.done.len();
        done.append(&mut state.done);
    }

    fn give_up(&mut self) {
        let mut state = self.shared.lock();
        state.given_up += 1;
        while let Some(job) = state.jobs.pop_front() {
            let result = Err(io::ErrorKind::Interrupted.into());
            state.done.push(Done { token: job.token, result, buffer: job.buffer });
        }
    }

    fn under_way(&self) -> usize {
        self.under_way
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.shared.ready.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
