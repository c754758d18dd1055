//! A descriptor in flight.
//!
//! ```text
//!   submitted ──▶ New ──▶ Run ─────────────┬──▶ Report ──▶ interrupt, retired
//!                  │  ──▶ Batch ─ members ─┤      │ ▲
//!                  │  ──▶ Drain ───────────┤      ▼ │ page asked for
//!                  └── refused ────────────┘    parked
//! ```
//!
//! A task is owned by who works at it: an engine, or the device while the task waits for an answer. All that it needs
//! to know of its queue is in its [`Context`], as it was when the descriptor was taken out of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasid::PageResponse;

use super::operation::{Fault, Run};
use super::queue::OnBus;
use super::reports::{Culprit, Reports, SoftError};
use super::spec::completion::{FAULT_WRITE, Record, Status};
use super::spec::descriptor::{Descriptor, Flags};

/// In whose name, and with which rights, a descriptor is carried out. The members of a batch have the batch's.
#[derive(Clone)]
pub(super) struct Context {
    /// The index of the queue, as its driver knows it.
    pub(super) queue: u8,
    /// In transactions.
    pub(super) pasid: OnBus,
    /// As the driver knows it.
    pub(super) named: Option<u32>,
    pub(super) privileged: bool,
    /// It is privileged, and the function may not be.
    pub(super) forbidden_privilege: bool,
    /// It may wait for pages of its buffers.
    pub(super) block_on_fault: bool,
    /// It may ask for an interrupt.
    pub(super) may_interrupt: bool,
    /// The device can ask for pages.
    pub(super) can_ask: bool,
    pub(super) max_transfer: u64,
    pub(super) max_batch: u32,
    pub(super) reports: Arc<Reports>,
    /// It was aborted: it shall end, and tell nobody.
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Context {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn may_raise(&self, handle: u16) -> bool {
        self.reports.may_raise(handle, self.named)
    }
}

/// Where a task stands.
pub(super) enum Stage {
    /// Nothing was looked at.
    New,
    /// An operation is on its way.
    Run(Box<dyn Run>),
    /// A batch is.
    Batch(Batch),
    /// What it waited for is done.
    Drained,
    /// The record is to be written, and the interrupt to be raised.
    Report(Record),
}

/// A batch on its way.
pub(super) struct Batch {
    pub(super) list: u64,
    pub(super) count: u32,
    /// The member to begin next.
    pub(super) next: u32,
    /// That member, if it was read.
    pub(super) read: Option<Descriptor>,
    /// Why no further one will be begun.
    pub(super) ended: Option<(Status, Option<Fault>)>,
}

/// A descriptor in flight.
pub(super) struct Task {
    /// Its own number.
    pub(super) id: u64,
    /// The number of the submission that it belongs to: its own, or its batch's.
    pub(super) submission: u64,
    pub(super) group: usize,
    pub(super) context: Context,
    pub(super) descriptor: Descriptor,
    /// Its index in a batch.
    pub(super) member: Option<u16>,
    pub(super) stage: Stage,
    /// The page that it waits, or waited, for.
    pub(super) fault: Option<Fault>,
    pub(super) answer: Option<PageResponse>,
    /// How often it was told that a page is there, since it last got on.
    pub(super) tries: u32,
}

impl Task {
    pub(super) fn flags(&self) -> Flags {
        self.descriptor.flags()
    }

    /// An error of this task for SWERR.
    pub(super) fn error(&self, code: u8) -> SoftError {
        let culprit = Culprit {
            operation: self.descriptor.code(),
            pasid: self.context.named.unwrap_or(0),
            privileged: self.context.privileged,
            member: self.member,
        };
        SoftError { queue: Some(self.context.queue), culprit: Some(culprit), ..SoftError::new(code) }
    }
}

/// `record` of an operation that `fault` ended.
pub(super) fn faulted(record: Record, status: Status, fault: Fault) -> Record {
    let write = if fault.write { FAULT_WRITE } else { 0 };
    Record { status: status as u8 | write, fault_address: fault.at.into(), ..record }
}
