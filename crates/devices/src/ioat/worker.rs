//! The engine: fetches descriptors and does what they say, in a thread of its own.
//!
//! ```text
//!   wait ──▶ fetch 64 bytes ──▶ decode ──▶ move, in pieces ──▶ completion write ──▶ CHANSTS ──▶ interrupt ─┐
//!    ▲                                                                                                     │
//!    └─────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The order is the guarantee: whoever sees a descriptor reported as completed, in memory, in CHANSTS or by interrupt,
//! finds its data written. After an error the order is CHANERR and CHANSTS, completion write, interrupt: whoever sees a
//! halt reported in memory finds its reason in the registers.
//!
//! The thread starts with the first doorbell, sleeps while there is nothing to do, and ends with the device. It holds
//! no lock while it does DMA. Between pieces it looks whether a reset has made its work void, so a reset is as quick as
//! one piece.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ioasid::Iova;
use zerocopy::{FromZeros, IntoBytes};

use super::channel::{Channel, Finished, Job, Outcome, Step};
use super::interrupts::InterruptLogic;
use super::spec::descriptor::{Control, Descriptor, Operation};
use super::spec::registers::ChannelError;
use crate::thread::LazyThread;
use crate::{Dma, DmaError};

/// Most bytes between two looks for a reset.
const PIECE: u64 = 256 << 10;
/// Bytes of a fill that are written at once; a multiple of the pattern's eight.
const FILL_BLOCK: usize = 4096;

/// The thread.
pub(super) struct Worker(LazyThread<Box<dyn Dma>>);

impl Worker {
    pub(super) fn new(dma: Box<dyn Dma>) -> Self {
        Self(LazyThread::new(dma))
    }

    /// Starts the thread unless it runs. Returns whether it does.
    pub(super) fn ensure_running(&self, channel: &Arc<Channel>, interrupts: &Arc<InterruptLogic>) -> bool {
        let (channel, interrupts) = (Arc::clone(channel), Arc::clone(interrupts));
        self.0.ensure_running("ioat", move |dma| Engine { channel, dma }.work(&interrupts))
    }

    /// Waits for the thread's end, which [`Channel::quit`] has asked for.
    pub(super) fn join(&self) {
        self.0.join();
    }
}

struct Engine {
    channel: Arc<Channel>,
    dma: Box<dyn Dma>,
}

impl Engine {
    fn work(mut self, interrupts: &InterruptLogic) {
        let mut last = None;
        loop {
            match self.channel.advance(last.take()) {
                Step::Run(job) => {
                    // Whoever resets the device waits for the job, so it ends also if memory's implementor panics.
                    let outcome = catch_unwind(AssertUnwindSafe(|| self.run(&job)));
                    last = Some((job, outcome.unwrap_or(Outcome::Failed(ChannelError::UNAFFILIATED))));
                }
                Step::Deliver => interrupts.deliver(),
                Step::Quit => return,
            }
        }
    }

    /// Processes a descriptor and makes the completion write that follows.
    fn run(&mut self, job: &Job) -> Outcome {
        let (outcome, report) = match self.process(job) {
            Ok(finished) if finished.completion => match self.channel.completion(job) {
                Ok(report) => (Outcome::Completed(finished), report),
                Err(error) => return Outcome::Failed(error),
            },
            Ok(finished) => return Outcome::Completed(finished),
            Err(error) => (Outcome::Halted(error), self.channel.halt(job, error)),
        };
        match report.map(|(at, status)| self.dma.write(Iova(at).into(), &status.0.to_le_bytes())) {
            Some(Err(_)) => Outcome::Failed(ChannelError::COMPLETION_ADDRESS),
            Some(Ok(())) | None => outcome,
        }
    }

    fn process(&mut self, job: &Job) -> Result<Finished, ChannelError> {
        if !job.wrong.is_empty() {
            return Err(job.wrong);
        }
        let mut descriptor = Descriptor::new_zeroed();
        self.dma.read(Iova(job.descriptor).into(), descriptor.as_mut_bytes()).map_err(|_| job.unreadable)?;
        let (operation, control) = descriptor.decode()?;
        match operation {
            Operation::Null => Ok(()),
            Operation::Copy { from, to, len } => self.copy(job, from, to, len.into()),
            Operation::Fill { pattern, to, len } => self.fill(job, pattern, to, len.into()),
        }
        .map_err(|refused| if refused.write { ChannelError::WRITE_DATA } else { ChannelError::READ_DATA })?;
        Ok(Finished {
            next: descriptor.next.get(),
            interrupt: control.contains(Control::INTERRUPT),
            completion: control.contains(Control::COMPLETION),
        })
    }

    /// Copies; ends early, with whatever result, if the job is void.
    fn copy(&mut self, job: &Job, from: u64, to: u64, len: u64) -> Result<(), DmaError> {
        let mut moved = 0;
        while moved < len && !self.channel.is_void(job) {
            let piece = (len - moved).min(PIECE);
            self.dma.copy(Iova(from + moved).into(), Iova(to + moved).into(), piece)?;
            moved += piece;
        }
        Ok(())
    }

    /// Fills; ends early, with whatever result, if the job is void.
    fn fill(&mut self, job: &Job, pattern: u64, to: u64, len: u64) -> Result<(), DmaError> {
        let mut block = [0; FILL_BLOCK];
        let used = (len as usize).next_multiple_of(8).min(FILL_BLOCK);
        for chunk in block[..used].chunks_exact_mut(8) {
            chunk.copy_from_slice(&pattern.to_le_bytes());
        }
        let mut filled = 0;
        while filled < len && !self.channel.is_void(job) {
            let piece = (len - filled).min(FILL_BLOCK as u64);
            self.dma.write(Iova(to + filled).into(), &block[..piece as usize])?;
            filled += piece;
        }
        Ok(())
    }
}
