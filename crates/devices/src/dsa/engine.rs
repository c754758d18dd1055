//! The engines: each is a thread that takes tasks and works at them until they are done or have to wait.
//!
//! ```text
//!   next ──▶ check ──▶ steps ──▶ record (bytes 8 to 31, then 0 to 7) ──▶ SWERR ──▶ interrupt ──▶ retire ─┐
//!    ▲                   └─ fault: park, and ask for the page                                            │
//!    └───────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The order is the guarantee: a program that sees the status of a record finds the rest of it, and the data, written;
//! one that sees the interrupt finds the record.
//!
//! Threads start when the first descriptor for their group is accepted, sleep while there is nothing to do, and end
//! with the device. An engine does not wait for pages: it parks the task, and takes the next one. Members of a batch
//! are worked at in order, and those that have to wait are parked one by one, up to a limit; so a batch, too, has
//! several pages asked for at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use ioasid::PageResponse;
use zerocopy::{FromZeros, IntoBytes};

use super::check::{Plan, Refusal, check};
use super::core::{Core, MEMBERS, Next};
use super::operation::{Fault, Memory};
use super::reports::SoftError;
use super::spec::completion::{FAULT_WRITE, Record, Status};
use super::spec::descriptor::{self, Descriptor, Flags};
use super::task::{Batch, Stage, Task, faulted};
use crate::Dma;

/// How often a task believes that a page is there now, without getting on.
const MOST_TRIES: u32 = 64;

/// Makes a way to memory for an engine.
pub(super) type Ports = Box<dyn FnMut() -> Box<dyn Dma> + Send>;

/// The threads, as far as they run.
pub(super) struct Engines(Mutex<Threads>);

struct Threads {
    ports: Ports,
    running: Vec<Option<JoinHandle<()>>>,
    /// The device has gone.
    ended: bool,
}

impl Engines {
    pub(super) fn new(ports: Ports, engines: u8) -> Self {
        let running = (0..engines).map(|_| None).collect();
        Self(Mutex::new(Threads { ports, running, ended: false }))
    }

    /// Starts those of `wanted`, a bit for each, that do not run. Returns whether all of them do.
    pub(super) fn ensure_running(&self, core: &Arc<Core>, wanted: u64) -> bool {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Threads { ports, running, ended } = &mut *threads;
        if *ended {
            return false;
        }
        for (index, thread) in running.iter_mut().enumerate() {
            if wanted >> index & 1 == 0 || thread.is_some() {
                continue;
            }
            let mut engine = Engine { core: Arc::clone(core), index, dma: ports(), working: 0 };
            let name = format!("dsa engine {index}");
            *thread = thread::Builder::new().name(name).spawn(move || engine.work()).ok();
            if thread.is_none() {
                return false;
            }
        }
        true
    }

    /// Waits for the threads' end, which [`Core::quit`] has asked for.
    pub(super) fn join(&self) {
        let threads = {
            let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            threads.ended = true;
            std::mem::take(&mut threads.running)
        };
        for thread in threads.into_iter().flatten() {
            // The interrupt sink may hold the last reference to the device, and drop it here.
            if thread.thread().id() != thread::current().id() {
                // A panic of the thread was reported when it happened.
                let _ = thread.join();
            }
        }
    }
}

struct Engine {
    core: Arc<Core>,
    index: usize,
    dma: Box<dyn Dma>,
    /// Tasks that it works at: one, or a batch and a member of it.
    working: u32,
}

impl Engine {
    fn work(&mut self) {
        while let Next::Work(task) = self.core.next(self.index) {
            let submission = task.submission;
            // Whoever resets the device waits for the task, so it ends also if memory's implementor panics.
            if catch_unwind(AssertUnwindSafe(|| self.advance(task))).is_err() {
                self.core.halt();
                self.core.forget(submission, std::mem::take(&mut self.working));
            }
        }
    }

    /// Works at a task until it is retired, or parked.
    fn advance(&mut self, task: Box<Task>) {
        self.working += 1;
        self.advance_on(task);
        self.working -= 1;
    }

    fn advance_on(&mut self, mut task: Box<Task>) {
        if let Some(response) = task.answer.take() {
            task.tries += 1;
            if let (Some(fault), true) = (task.fault, response != PageResponse::Success || task.tries > MOST_TRIES) {
                task = match self.give_up(task, fault) {
                    Some(task) => task,
                    None => return,
                };
            }
        }
        loop {
            if task.context.is_cancelled() {
                return self.core.retire(task, false);
            }
            let advanced = match task.stage {
                Stage::New => self.begin(task),
                Stage::Run(_) => self.run(task),
                Stage::Batch(_) => self.advance_batch(task),
                Stage::Drained => Some(concluded(task, success())),
                Stage::Report(record) => self.report(task, record),
            };
            task = match advanced {
                Some(task) => task,
                None => return,
            };
        }
    }

    fn begin(&mut self, mut task: Box<Task>) -> Option<Box<Task>> {
        match check(&task.descriptor, &task.context, task.member.is_some()) {
            Ok(Plan::Run(run)) => task.stage = Stage::Run(run),
            Ok(Plan::Batch { list, count }) => {
                task.stage = Stage::Batch(Batch { list, count, next: 0, read: None, ended: None });
            }
            Ok(Plan::Drain) => {
                task.stage = Stage::Drained;
                self.core.park_drain(task);
                return None;
            }
            Err(Refusal { status, flags }) => {
                let record = Record { specific: [u64::from(flags).into(), 0.into()], ..ended(status) };
                return Some(concluded(task, record));
            }
        }
        Some(task)
    }

    fn run(&mut self, mut task: Box<Task>) -> Option<Box<Task>> {
        let Stage::Run(run) = &mut task.stage else { return Some(task) };
        match run.step(&mut Memory::new(&mut *self.dma, task.context.pasid.pasid())) {
            Ok(None) => {
                task.tries = 0;
                Some(task)
            }
            Ok(Some(record)) => {
                let status = if record.status == 0 { Status::Success as u8 } else { record.status };
                Some(concluded(task, Record { status, ..record }))
            }
            Err(fault) => {
                let waits = task.flags().contains(Flags::BLOCK_ON_FAULT);
                self.fault(task, fault, waits)
            }
        }
    }

    /// A fault: has the task wait for the page if it may, else gives up.
    fn fault(&mut self, task: Box<Task>, fault: Fault, waits: bool) -> Option<Box<Task>> {
        if !(fault.recoverable && waits && task.context.can_ask) {
            return self.give_up(task, fault);
        }
        self.core.park(task, fault);
        None
    }

    /// The page is not to be had.
    fn give_up(&mut self, mut task: Box<Task>, fault: Fault) -> Option<Box<Task>> {
        match &mut task.stage {
            Stage::Run(run) => {
                let waits = task.descriptor.flags().contains(Flags::BLOCK_ON_FAULT);
                let status = if waits { Status::PageRefused } else { Status::PageFault };
                let record = faulted(run.partial(), status, fault);
                Some(concluded(task, record))
            }
            Stage::Batch(batch) => {
                batch.ended = Some((Status::BatchPageFault, Some(fault)));
                Some(task)
            }
            // The record is lost, and whoever waits for it learns it from SWERR only.
            Stage::Report(_) => {
                let error = task.error(Status::RecordFault as u8);
                let at = task.descriptor.completion.get();
                task.context.reports.error(SoftError { fault: Some((at, true)), ..error });
                self.core.retire(task, false);
                None
            }
            Stage::New | Stage::Drained => Some(task),
        }
    }

    /// One member of a batch, or its end.
    fn advance_batch(&mut self, mut task: Box<Task>) -> Option<Box<Task>> {
        let Stage::Batch(batch) = &mut task.stage else { return Some(task) };
        if let Some((status, fault)) = batch.ended.or((batch.next == batch.count).then_some((Status::Success, None))) {
            let next = batch.next;
            let (task, failed) = self.core.await_members(task, 0)?;
            let status = if failed && status == Status::Success { Status::BatchFailed } else { status };
            let record = Record { completed: next.into(), ..ended(status) };
            let record = fault.map_or(record, |fault| faulted(record, status, fault));
            return Some(concluded(task, record));
        }
        let member = match batch.read {
            Some(member) => member,
            None => {
                let mut member = Descriptor::new_zeroed();
                let at = batch.list.saturating_add(u64::from(batch.next) * descriptor::SIZE as u64);
                let mut memory = Memory::new(&mut *self.dma, task.context.pasid.pasid());
                if let Err(fault) = memory.read(at, member.as_mut_bytes()) {
                    return self.fault(task, fault, true);
                }
                batch.read = Some(member);
                task.tries = 0;
                member
            }
        };
        let fence = member.flags().contains(Flags::FENCE);
        let (mut task, failed) = self.core.await_members(task, if fence { 0 } else { MEMBERS - 1 })?;
        let Stage::Batch(batch) = &mut task.stage else { return Some(task) };
        if fence && failed {
            batch.ended = Some((Status::BatchFailed, None));
            return Some(task);
        }
        batch.read = None;
        batch.next += 1;
        let index = (batch.next - 1) as u16;
        let member = self.core.begin_member(&task, index, member);
        self.advance(member);
        Some(task)
    }

    /// Writes the record if there is to be one, tells what else there is to tell, and retires the task.
    fn report(&mut self, task: Box<Task>, record: Record) -> Option<Box<Task>> {
        let flags = task.flags();
        let has_place = record.is_presentable() && flags.contains(Flags::RECORD_VALID);
        if has_place && (flags.contains(Flags::REQUEST_RECORD) || !record.is_quiet()) {
            let at = task.descriptor.completion.get();
            let mut memory = Memory::new(&mut *self.dma, task.context.pasid.pasid());
            let (first, rest) = record.as_bytes().split_at(8);
            // The status last, and with eight bytes at once: who sees it finds the rest.
            let written = memory.write(at + 8, rest).and_then(|()| memory.write(at, first));
            if let Err(fault) = written {
                return self.fault(task, fault, true);
            }
        }
        let handle = task.descriptor.interrupt.get();
        let wrong_handle = record.is(Status::InterruptHandle);
        if !record.is_quiet() && (!has_place || wrong_handle) {
            let information = match record.specific[0].get() as u32 {
                _ if wrong_handle => handle.into(),
                flags if record.is(Status::Flags) => flags,
                _ => 0,
            };
            let faulted = [Status::PageFault, Status::PageRefused, Status::BatchPageFault];
            let fault = faulted
                .into_iter()
                .any(|status| record.is(status))
                .then(|| (record.fault_address.get(), record.status & FAULT_WRITE != 0));
            task.context.reports.error(SoftError { fault, information, ..task.error(record.code()) });
        }
        let interrupts = flags.contains(Flags::REQUEST_INTERRUPT) && task.context.may_interrupt;
        if interrupts && record.is_presentable() && task.context.may_raise(handle) {
            task.context.reports.completed(handle);
        }
        self.core.retire(task, record.is(Status::Success));
        None
    }
}

fn ended(status: Status) -> Record {
    Record { status: status as u8, ..Record::default() }
}

fn success() -> Record {
    ended(Status::Success)
}

fn concluded(mut task: Box<Task>, record: Record) -> Box<Task> {
    task.stage = Stage::Report(record);
    task.tries = 0;
    task
}
