//! The device: its work queues, what is in flight, and who takes what next.
//!
//! ```text
//!   portal ── submit ──▶ queue ──┐ by priority
//!                        queue ──┴─▶ dispatch ──▶ engine ──▶ retire
//!                                       ▲            │
//!                      answer ── ready ─┘            ▼
//!                                 ▲               parked: pages, members, drain
//!                                 └──────────────────┘
//! ```
//!
//! A *submission* is what went through a portal: one descriptor, or a batch with its members. It is in flight from
//! dispatch until the last of its tasks is retired. Each queue has at most [`IN_FLIGHT`] of them, and each batch at
//! most [`MEMBERS`] members, however long their pages take: queues do not use up each other's share.
//!
//! # Locking
//!
//! `control` holds everything, and is never held during DMA, or while interrupts, page requests or translations of
//! PASIDs are called. The lock of [`Reports`] nests inside it. What a change of state
//! has to tell is collected in [`Later`], and told when the lock is released; a reset waits for that, too.
//!
//! An abort takes parked tasks away at once and marks those that engines work at; they look between steps. An answer
//! for a task that is not parked any more finds nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ioasid::{PageGroup, PageRequest, PageResponse, Pasid, RequestedAccess};

use super::DsaOptions;
use super::command::Unit;
use super::config::Group;
use super::operation::Fault;
use super::queue::{Entry, IN_FLIGHT, Identity, OnBus, Queue, Selection, Way};
use super::reports::{Culprit, Reports, SoftError};
use super::spec::completion::other;
use super::spec::descriptor::Descriptor;
use super::spec::registers::{DeviceState, QueueConfig, QueueMode, QueueState, USER_INTERRUPTS};
use super::task::{Context, Stage, Task};
use crate::PageRequests;

/// Most members of a batch in flight.
pub(super) const MEMBERS: u32 = 32;

/// Most page requests that the submissions of a queue have outstanding.
pub(super) const MAX_PAGE_REQUESTS: u32 = IN_FLIGHT as u32 * MEMBERS;

/// The device, shared by its functions and engines.
pub(super) struct Core {
    pub(super) options: DsaOptions,
    pages: Arc<dyn PageRequests>,
    control: Mutex<Control>,
    /// Signalled when an engine may have something to do.
    work: Condvar,
    /// Signalled when something was retired or told.
    settled: Condvar,
}

/// What only changes with the lock held.
pub(super) struct Control {
    /// The device's own face, then one for each slice.
    pub(super) units: Vec<Unit>,
    /// GENCFG.
    pub(super) general: u32,
    /// GRPCFG.
    pub(super) groups: Vec<Group>,
    pub(super) queues: Vec<Queue>,
    in_flight: BTreeMap<u64, InFlight>,
    parked: BTreeMap<u64, Box<Task>>,
    /// Tasks that can go on, for each group.
    ready: Vec<VecDeque<Box<Task>>>,
    /// Tasks that wait for what their queue has in flight before them.
    drains: VecDeque<Box<Task>>,
    next_id: u64,
    /// Numbers of the changes that have something to tell, and have not told it yet.
    telling: BTreeSet<u64>,
    changes: u64,
    quit: bool,
}

/// A submission in flight.
struct InFlight {
    queue: usize,
    pasid: Option<u32>,
    cancelled: Arc<AtomicBool>,
    /// Tasks that are not retired.
    tasks: u32,
    /// Members among them.
    members: u32,
    /// A member was no success.
    failed: bool,
    /// The batch, if it waits for its members to be no more than that.
    waits: Option<(Box<Task>, u32)>,
}

/// What is to be done when the lock is released.
#[derive(Default)]
pub(super) struct Later {
    notices: Vec<Notice>,
    /// Tasks that are gone; dropping one may drop whatever the sink is.
    gone: VecDeque<Box<Task>>,
}

enum Notice {
    CommandDone(Arc<Reports>),
    Halted(Arc<Reports>),
}

/// What an engine does next.
pub(super) enum Next {
    Work(Box<Task>),
    Quit,
}

/// What became of a descriptor that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Submitted {
    /// It is in the queue; the group has work.
    Accepted(usize),
    /// It is not; whoever waits for an answer shall try again.
    Refused,
    /// It is not and never will be; the reason was told.
    Failed,
}

impl Control {
    /// Whether anything that is meant is in a queue or in flight.
    fn has_any(&self, which: Selection) -> bool {
        let queued = self
            .queues
            .iter()
            .enumerate()
            .any(|(queue, it)| it.entries.iter().any(|entry| which.has(queue, entry.identity.named, entry.id)));
        queued || self.in_flight.iter().any(|(id, it)| which.has(it.queue, it.pasid, *id))
    }

    /// The number of the next submission: all before it have a smaller one.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// A face at power-on: what is meant is abandoned, and its queues are disabled and, if its driver configured them,
    /// forget how.
    pub(super) fn power_on(&mut self, unit: usize, which: Selection, later: &mut Later) {
        let fixed = self.units[unit].fixed;
        self.abandon(which, later);
        for queue in self.units[unit].queues.clone() {
            self.queues[queue].state = QueueState::Disabled;
            self.queues[queue].forget(fixed, false);
        }
        if !fixed {
            self.general = 0;
            self.groups.fill(Group::default());
        }
        self.units[unit].power_on();
        self.settle(later);
    }

    /// The group that a queue is in.
    fn group_of(&self, queue: usize) -> Option<usize> {
        self.groups.iter().position(|group| group.queues[0] >> queue & 1 != 0)
    }

    /// Abandons what is meant: what no engine works at is gone at once, and engines are told.
    pub(super) fn abandon(&mut self, which: Selection, later: &mut Later) {
        for (queue, it) in self.queues.iter_mut().enumerate() {
            it.entries.retain(|entry| !which.has(queue, entry.identity.named, entry.id));
        }
        let mut gone = VecDeque::new();
        for (_, it) in self.in_flight.iter_mut().filter(|(id, it)| which.has(it.queue, it.pasid, **id)) {
            it.cancelled.store(true, Ordering::Release);
            gone.extend(it.waits.take().map(|(task, _)| task));
        }
        gone.extend(self.parked.extract_if(.., |_, task| task.context.is_cancelled()).map(|(_, task)| task));
        for ready in self.ready.iter_mut().chain([&mut self.drains]) {
            for task in std::mem::take(ready) {
                if task.context.is_cancelled() { gone.push_back(task) } else { ready.push_back(task) }
            }
        }
        for task in &gone {
            self.end_task(task.submission);
        }
        later.gone.extend(gone);
    }

    /// A task of a submission is no more. Whether it was the last one.
    fn end_task(&mut self, submission: u64) {
        let Some(it) = self.in_flight.get_mut(&submission) else { return };
        it.tasks = it.tasks.saturating_sub(1);
        if it.tasks == 0 {
            let queue = it.queue;
            self.in_flight.remove(&submission);
            self.queues[queue].in_flight -= 1;
        }
    }

    /// Sees to what waits for submissions to end: drain descriptors and commands.
    pub(super) fn settle(&mut self, later: &mut Later) {
        for task in std::mem::take(&mut self.drains) {
            if self.is_drained(&task) { self.make_ready(task) } else { self.drains.push_back(task) }
        }
        for unit in 0..self.units.len() {
            let Some(pending) = self.units[unit].pending else { continue };
            if !self.has_any(pending.waits_for) {
                self.finish(unit, later);
            }
        }
    }

    /// Whether what a drain descriptor waits for is done: all before it in its queue or, if that is shared, all before
    /// it with its PASID.
    fn is_drained(&self, task: &Task) -> bool {
        let Some(queue) = self.in_flight.get(&task.submission).map(|it| it.queue) else { return true };
        let shared = self.queues[queue].config.mode() == QueueMode::Shared;
        let pasid = if shared { task.context.named } else { None };
        !self.has_any(Selection { queues: 1 << queue, pasid, before: task.submission })
    }

    fn make_ready(&mut self, task: Box<Task>) {
        self.ready[task.group].push_back(task);
    }

    /// A command is done, and asked for an interrupt.
    pub(super) fn tell_command_done(&mut self, unit: usize, later: &mut Later) {
        later.notices.push(Notice::CommandDone(Arc::clone(&self.units[unit].reports)));
    }

    /// The queue of `group` whose turn it is: those with work in turn, as often as their priority says.
    fn turn(&mut self, group: usize) -> Option<usize> {
        let members = self.groups[group].queues[0];
        let has_work = |control: &Self, queue: usize| members >> queue & 1 != 0 && control.queues[queue].has_work();
        let waiting: Vec<usize> = (0..self.queues.len()).filter(|&queue| has_work(self, queue)).collect();
        if waiting.iter().all(|&queue| self.queues[queue].credit == 0) {
            for queue in &mut self.queues {
                queue.credit = queue.config.priority();
            }
        }
        // The one with the most credit: so the turns of one that has more are spread among those of the others.
        waiting.into_iter().max_by_key(|&queue| self.queues[queue].credit)
    }
}

impl Core {
    pub(super) fn new(options: DsaOptions, pages: Arc<dyn PageRequests>, reports: Arc<Reports>) -> Self {
        let queues = usize::from(options.wqs);
        let control = Control {
            units: vec![Unit::new(reports, 0..queues, false)],
            general: 0,
            groups: vec![Group::default(); options.groups.into()],
            queues: (0..queues).map(|_| Queue::new(0)).collect(),
            in_flight: BTreeMap::new(),
            parked: BTreeMap::new(),
            ready: (0..options.groups).map(|_| VecDeque::new()).collect(),
            drains: VecDeque::new(),
            next_id: 0,
            telling: BTreeSet::new(),
            changes: 0,
            quit: false,
        };
        Self { options, pages, control: Mutex::new(control), work: Condvar::new(), settled: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then does what is to be done without the lock.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Control, &mut Later) -> R) -> R {
        let mut later = Later::default();
        let (result, number) = {
            let mut control = self.lock();
            let result = change(&mut control, &mut later);
            let number = control.changes;
            control.changes += 1;
            if !later.notices.is_empty() {
                control.telling.insert(number);
            }
            (result, number)
        };
        self.work.notify_all();
        if !later.notices.is_empty() {
            for notice in later.notices {
                match notice {
                    Notice::CommandDone(reports) => reports.command_done(),
                    Notice::Halted(reports) => reports.halted(),
                }
            }
            self.lock().telling.remove(&number);
        }
        self.settled.notify_all();
        result
    }

    // Submission.

    /// A descriptor for `queue` of a face. `authorise` gives the PASID to use for one that the driver names, if it may.
    pub(super) fn submit(
        &self,
        unit: usize,
        queue: usize,
        way: Way,
        descriptor: &Descriptor,
        authorise: impl Fn(Option<Pasid>) -> Option<OnBus>,
    ) -> Submitted {
        let (reports, own_index, mode, epoch, mut identity) = {
            let control = self.lock();
            let Some(it) = control.queues.get(queue).filter(|it| it.unit == unit && it.state == QueueState::Enabled)
            else {
                return Submitted::Refused;
            };
            let identity = match it.config.mode() {
                QueueMode::Dedicated if it.config.has(QueueConfig::PASID_ENABLE) => Identity {
                    pasid: OnBus::None,
                    named: Some(it.config.pasid()),
                    privileged: it.config.has(QueueConfig::PRIVILEGED),
                },
                QueueMode::Dedicated => Identity::default(),
                QueueMode::Shared => Identity {
                    pasid: OnBus::None,
                    named: Some(descriptor.pasid()),
                    privileged: descriptor.is_privileged(),
                },
            };
            let face = &control.units[unit];
            (Arc::clone(&face.reports), queue - face.queues.start, it.config.mode(), it.epoch, identity)
        };
        if (mode == QueueMode::Dedicated) != (way == Way::Posted) {
            return Submitted::Refused;
        }
        let (named, privileged) = (identity.named, identity.privileged);
        let error = |code| {
            let culprit = Culprit { operation: descriptor.code(), pasid: named.unwrap_or(0), privileged, member: None };
            reports.error(SoftError { queue: Some(own_index as u8), culprit: Some(culprit), ..SoftError::new(code) });
            Submitted::Failed
        };
        let Some(pasid) = authorise(named.and_then(Pasid::new)) else { return error(other::PASID_REFUSED) };
        identity.pasid = pasid;
        let (accepted, group) = {
            let mut control = self.lock();
            let id = control.new_id();
            let group = control.group_of(queue);
            let it = &mut control.queues[queue];
            if it.state != QueueState::Enabled || it.epoch != epoch {
                return Submitted::Refused;
            }
            (it.push(way, Entry { id, descriptor: *descriptor, identity }), group)
        };
        match (accepted, way, group) {
            (true, _, Some(group)) => {
                self.work.notify_all();
                Submitted::Accepted(group)
            }
            (false, Way::Posted, _) => error(other::QUEUE_FULL),
            _ => Submitted::Refused,
        }
    }

    // The engines' side.

    /// The engines of a group.
    pub(super) fn engines_of(&self, group: usize) -> u64 {
        self.lock().groups[group].engines
    }

    /// Waits for what `engine` does next.
    pub(super) fn next(&self, engine: usize) -> Next {
        let mut control = self.lock();
        loop {
            if control.quit {
                return Next::Quit;
            }
            let group = control.groups.iter().position(|group| group.engines >> engine & 1 != 0);
            if let Some(task) = group.and_then(|group| self.take(&mut control, group)) {
                return Next::Work(task);
            }
            control = self.work.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self, control: &mut Control, group: usize) -> Option<Box<Task>> {
        if let Some(task) = control.ready[group].pop_front() {
            return Some(task);
        }
        let queue = control.turn(group)?;
        let entry = control.queues[queue].entries.pop_front()?;
        let named = entry.identity.named;
        let context = self.context(control, queue, entry.identity);
        let it = &mut control.queues[queue];
        it.credit = it.credit.saturating_sub(1);
        it.in_flight += 1;
        let in_flight = InFlight {
            queue,
            pasid: named,
            cancelled: Arc::clone(&context.cancelled),
            tasks: 1,
            members: 0,
            failed: false,
            waits: None,
        };
        control.in_flight.insert(entry.id, in_flight);
        Some(Box::new(Task {
            id: entry.id,
            submission: entry.id,
            group,
            context,
            descriptor: entry.descriptor,
            member: None,
            stage: Stage::New,
            fault: None,
            answer: None,
            tries: 0,
        }))
    }

    fn context(&self, control: &Control, queue: usize, identity: Identity) -> Context {
        let it = &control.queues[queue];
        let face = &control.units[it.unit];
        let user_interrupts = control.general & USER_INTERRUPTS != 0;
        Context {
            queue: (queue - face.queues.start) as u8,
            pasid: identity.pasid,
            named: identity.named,
            privileged: identity.privileged,
            forbidden_privilege: identity.privileged && !self.options.privileged,
            block_on_fault: it.config.has(QueueConfig::BLOCK_ON_FAULT),
            may_interrupt: user_interrupts || identity.privileged || identity.named.is_none(),
            can_ask: self.options.page_requests,
            max_transfer: 1 << it.config.transfer_shift(),
            max_batch: 1 << it.config.batch_shift(),
            reports: Arc::clone(&face.reports),
            cancelled: Arc::new(AtomicBool::new(false)),
        }
    }

    /// A member of `batch` begins.
    pub(super) fn begin_member(&self, batch: &Task, index: u16, descriptor: Descriptor) -> Box<Task> {
        let mut control = self.lock();
        let id = control.new_id();
        if let Some(it) = control.in_flight.get_mut(&batch.submission) {
            it.tasks += 1;
            it.members += 1;
        }
        Box::new(Task {
            id,
            submission: batch.submission,
            group: batch.group,
            context: batch.context.clone(),
            descriptor,
            member: Some(index),
            stage: Stage::New,
            fault: None,
            answer: None,
            tries: 0,
        })
    }

    /// Gives a batch back, with whether a member failed, if no more than `most` members are in flight. Else it goes on
    /// when that is so.
    pub(super) fn await_members(&self, batch: Box<Task>, most: u32) -> Option<(Box<Task>, bool)> {
        let mut control = self.lock();
        match control.in_flight.get_mut(&batch.submission) {
            Some(it) if it.members > most && !batch.context.is_cancelled() => {
                it.waits = Some((batch, most));
                None
            }
            Some(it) => Some((batch, it.failed)),
            None => Some((batch, true)),
        }
    }

    /// Has a drain descriptor wait.
    pub(super) fn park_drain(&self, task: Box<Task>) {
        self.change(|control, later| {
            if task.context.is_cancelled() {
                control.end_task(task.submission);
                later.gone.push_back(task);
            } else {
                control.drains.push_back(task);
            }
            control.settle(later);
        });
    }

    /// Asks for the page of `fault`, and has the task wait for the answer.
    pub(super) fn park(self: &Arc<Self>, mut task: Box<Task>, fault: Fault) {
        let mut access = if fault.write { RequestedAccess::WRITE } else { RequestedAccess::READ };
        access.set(RequestedAccess::PRIVILEGED, task.context.privileged);
        let request = PageRequest { pasid: task.context.pasid.pasid(), iova: fault.at & !0xFFF, access };
        let id = task.id;
        task.fault = Some(fault);
        let waits = self.change(|control, later| {
            if task.context.is_cancelled() {
                control.end_task(task.submission);
                later.gone.push_back(task);
                control.settle(later);
                return false;
            }
            control.parked.insert(id, task);
            true
        });
        if waits {
            let core = Arc::downgrade(self);
            let answer = move |response| {
                if let Some(core) = core.upgrade() {
                    core.answer(id, response);
                }
            };
            self.pages.request(PageGroup { number: id as u32, requests: vec![request], answer: Box::new(answer) });
        }
    }

    fn answer(&self, id: u64, response: PageResponse) {
        let mut control = self.lock();
        if let Some(mut task) = control.parked.remove(&id) {
            task.answer = Some(response);
            control.make_ready(task);
            self.work.notify_all();
        }
    }

    /// A task is done, for good or bad.
    pub(super) fn retire(&self, task: Box<Task>, success: bool) {
        self.change(|control, later| {
            let waiting = control.in_flight.get_mut(&task.submission).and_then(|it| {
                if task.member.is_some() {
                    it.members -= 1;
                    it.failed |= !success;
                }
                let members = it.members;
                it.waits.take_if(|(_, most)| members <= *most)
            });
            if let Some((batch, _)) = waiting {
                control.make_ready(batch);
            }
            control.end_task(task.submission);
            later.gone.push_back(task);
            control.settle(later);
        });
    }

    /// So many tasks of a submission were lost.
    pub(super) fn forget(&self, submission: u64, tasks: u32) {
        self.change(|control, later| {
            for _ in 0..tasks {
                control.end_task(submission);
            }
            control.settle(later);
        });
    }

    /// The device cannot work: an engine has no thread, or its memory panicked.
    pub(super) fn halt(&self) {
        self.change(|control, later| {
            let everything = Selection { queues: u64::MAX, pasid: None, before: u64::MAX };
            control.abandon(everything, later);
            for queue in &mut control.queues {
                queue.state = QueueState::Disabled;
            }
            for unit in &mut control.units {
                unit.state = DeviceState::Halted;
                later.notices.push(Notice::Halted(Arc::clone(&unit.reports)));
            }
            control.settle(later);
        });
    }

    /// Waits until nothing of these queues is in flight, and all that was to be told until then was.
    pub(super) fn wait_until_quiet(&self, queues: u64) {
        let everything = Selection { queues, pasid: None, before: u64::MAX };
        let mut control = self.lock();
        while control.has_any(everything) {
            control = self.settled.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        let before = control.changes;
        while control.telling.first().is_some_and(|&number| number < before) {
            control = self.settled.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The device goes away: engines end as soon as they can.
    pub(super) fn quit(&self) {
        self.change(|control, later| {
            control.quit = true;
            control.abandon(Selection { queues: u64::MAX, pasid: None, before: u64::MAX }, later);
        });
    }
}
