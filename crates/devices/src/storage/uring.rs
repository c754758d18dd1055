//! The engine that asks the kernel by io_uring(7).
#![allow(unsafe_code, reason = "the kernel is given addresses of buffers")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::image::{ZEROES, zero_mode};
use super::{Done, Engine, Job, Operation};

/// Entries of the ring, and of what the kernel says in it: more jobs wait here.
const ENTRIES: u32 = 256;
const COMPLETIONS: u32 = 2 * ENTRIES;

/// A ring, and the jobs that the kernel has.
pub(super) struct Uring {
    ring: IoUring,
    /// A job stays in its place as long as the kernel knows addresses of its buffer.
    jobs: Vec<Option<Flying>>,
    free: Vec<usize>,
    /// Places of jobs that the ring has no room for yet.
    queued: VecDeque<usize>,
    /// Jobs that were given up before they began.
    given_up: Vec<Done>,
    under_way: usize,
}

struct Flying {
    job: Job,
    /// Bytes that are read, or written.
    done: u64,
    /// Zeroes have to be written, as the file system cannot make them.
    writes_zeroes: bool,
    /// It is not continued.
    given_up: bool,
}

impl Uring {
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(COMPLETIONS).build(ENTRIES)?;
        // A kernel that has rings, but not what is asked of them here.
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let wanted = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !wanted.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            ring,
            jobs: Vec::new(),
            free: Vec::new(),
            queued: VecDeque::new(),
            given_up: Vec::new(),
            under_way: 0,
        })
    }

    fn entry(slot: usize, flying: &mut Flying) -> squeue::Entry {
        let Flying { job, done, writes_zeroes, .. } = flying;
        let at = job.offset + *done;
        if let (Operation::Zero { length, .. }, true) = (job.operation, *writes_zeroes) {
            let step = (length - *done).min(ZEROES.len() as u64) as u32;
            let file = Fd(job.image.cached().as_raw_fd());
            return opcode::Write::new(file, ZEROES.as_ptr(), step).offset(at).build().user_data(slot as u64);
        }
        let left = job.buffer.bytes_mut().get_mut(*done as usize..).unwrap_or_default();
        let (start, length) = (left.as_mut_ptr(), left.len());
        let entry = match job.operation {
            Operation::Read => {
                let file = Fd(job.image.file(at, length).as_raw_fd());
                opcode::Read::new(file, start, length as u32).offset(at).build()
            }
            Operation::Write { durable } => {
                let file = Fd(job.image.file(at, length).as_raw_fd());
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(file, start, length as u32).offset(at).rw_flags(flags).build()
            }
            Operation::Flush => {
                let file = Fd(job.image.cached().as_raw_fd());
                opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build()
            }
            Operation::Zero { length, deallocate } => {
                let file = Fd(job.image.cached().as_raw_fd());
                let mode = zero_mode(deallocate).bits().cast_signed();
                opcode::Fallocate::new(file, length).offset(at).mode(mode).build()
            }
        };
        entry.user_data(slot as u64)
    }

    /// Gives the kernel what waits, as far as it has room.
    fn push(&mut self) {
        while let Some(slot) = self.queued.front().copied() {
            // The kernel has room to say what becomes of each.
            if self.under_way - self.queued.len() >= COMPLETIONS as usize {
                break;
            }
            let Some(flying) = &mut self.jobs[slot] else { break };
            let entry = Self::entry(slot, flying);
            // SAFETY: buffer and file stay where they are until the completion is taken: the job is in `jobs` until
            // then, and dropping this waits for it.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.queued.pop_front();
            } else if self.ring.submit().is_err() {
                return;
            }
        }
        // What is not taken now is taken with the next call.
        let _ = self.ring.submit();
    }

    /// What the kernel said of a job. Returns it if it is done.
    fn finish(&mut self, slot: usize, result: i32) -> Option<Done> {
        let flying = self.jobs[slot].as_mut()?;
        let length = match flying.job.operation {
            Operation::Read | Operation::Write { .. } => flying.job.buffer.bytes().len() as u64,
            Operation::Zero { length, .. } if flying.writes_zeroes => length,
            Operation::Zero { .. } | Operation::Flush => 0,
        };
        let cannot_zero = [-libc::EOPNOTSUPP, -libc::ENOSYS, -libc::ENODEV];
        let result = match (flying.job.operation, result) {
            _ if flying.given_up => Err(io::ErrorKind::Interrupted.into()),
            (_, code) if code == -libc::EINTR || code == -libc::EAGAIN => {
                self.queued.push_back(slot);
                return None;
            }
            (Operation::Zero { .. }, code) if !flying.writes_zeroes && cannot_zero.contains(&code) => {
                flying.writes_zeroes = true;
                self.queued.push_back(slot);
                return None;
            }
            (_, code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            (Operation::Read, 0) if flying.done < length => Err(io::ErrorKind::UnexpectedEof.into()),
            (_, 0) if flying.done < length => Err(io::ErrorKind::WriteZero.into()),
            (_, count) => {
                flying.done += if length > 0 { u64::from(count.cast_unsigned()) } else { 0 };
                if flying.done < length {
                    self.queued.push_back(slot);
                    return None;
                }
                Ok(())
            }
        };
        let Flying { job, .. } = self.jobs[slot].take()?;
        self.free.push(slot);
        self.under_way -= 1;
        Some(Done { token: job.token, result, buffer: job.buffer })
    }
}

impl Engine for Uring {
    fn submit(&mut self, job: Job) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[slot] = Some(Flying { job, done: 0, writes_zeroes: false, given_up: false });
        self.queued.push_back(slot);
        self.under_way += 1;
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.given_up);
        while let Some(completion) = { self.ring.completion().next() } {
            let finished = self.finish(completion.user_data() as usize, completion.result());
            done.extend(finished);
        }
        if !self.queued.is_empty() || !self.ring.submission().is_empty() {
            self.push();
        }
    }

    fn give_up(&mut self) {
        for slot in self.queued.drain(..) {
            if let Some(Flying { job, .. }) = self.jobs[slot].take() {
                self.free.push(slot);
                self.under_way -= 1;
                let result = Err(io::ErrorKind::Interrupted.into());
                self.given_up.push(Done { token: job.token, result, buffer: job.buffer });
            }
        }
        self.jobs.iter_mut().flatten().for_each(|flying| flying.given_up = true);
    }

    fn under_way(&self) -> usize {
        self.under_way + self.given_up.len()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring keeps its descriptor open as long as it is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        self.reap(&mut done);
        while self.under_way > 0 {
            if self.ring.submit_and_wait(1).is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
                // The kernel has addresses of these buffers, and does not say what becomes of them.
                self.jobs.drain(..).for_each(std::mem::forget);
                return;
            }
            self.reap(&mut done);
        }
    }
}
