//! The registers, and the thread that computes and transfers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ioasid::Iova;

use super::{ADDRESS_MASK, BUFFER, BUFFER_SIZE, IDENTIFICATION, Register, command, reason, status};
use crate::thread::LazyThread;
use crate::{Dma, Interrupts};

/// The device's own memory.
type Buffer = [u8; BUFFER_SIZE];

/// The registers, and what becomes of the jobs.
pub(super) struct Engine {
    state: Mutex<State>,
    /// For the thread: there is a job, or it shall end. For a reset: the thread has left a job.
    changed: Condvar,
    interrupts: Arc<dyn Interrupts>,
}

#[derive(Default)]
struct State {
    liveness: u32,
    factorial: u32,
    is_computing: bool,
    /// Interrupt when a factorial is there.
    tells_factorial: bool,
    /// Reasons for an interrupt.
    reasons: u32,
    /// Counts changes of the reasons.
    change: u64,
    transfer: Transfer,
    /// Counts resets: a job of before one has no effect.
    epoch: u64,
    /// Of the job that the thread is in.
    busy_in: Option<u64>,
    quits: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Transfer {
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
}

#[derive(Clone, Copy)]
enum Job {
    Factorial(u32),
    Transfer(Transfer),
}

impl Transfer {
    fn is_running(self) -> bool {
        self.command & command::START != 0
    }
}

impl Engine {
    pub(super) fn new(interrupts: Arc<dyn Interrupts>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), interrupts }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a register reads as; `None` if it can only be written.
    pub(super) fn read(&self, register: Register) -> Option<u64> {
        let state = self.lock();
        Some(match register {
            Register::Identification => IDENTIFICATION.into(),
            Register::Liveness => state.liveness.into(),
            Register::Factorial => state.factorial.into(),
            Register::Status => {
                let computing = if state.is_computing { status::COMPUTING } else { 0 };
                u64::from(computing | if state.tells_factorial { status::INTERRUPT } else { 0 })
            }
            Register::InterruptStatus => state.reasons.into(),
            Register::InterruptRaise | Register::InterruptAcknowledge => return None,
            Register::DmaSource => state.transfer.source,
            Register::DmaDestination => state.transfer.destination,
            Register::DmaCount => state.transfer.count,
            Register::DmaCommand => state.transfer.command,
        })
    }

    /// Writes a register. Returns whether there is a job now.
    pub(super) fn write(&self, register: Register, value: u64) -> bool {
        let word = value as u32;
        let mut state = self.lock();
        let is_running = state.transfer.is_running();
        match register {
            Register::Identification | Register::InterruptStatus => {}
            Register::Liveness => state.liveness = !word,
            Register::Factorial if state.is_computing => {}
            Register::Factorial => {
                state.factorial = word;
                state.is_computing = true;
                return self.begin(state);
            }
            Register::Status => state.tells_factorial = word & status::INTERRUPT != 0,
            Register::InterruptRaise => {
                state.change(|reasons| reasons | word);
                let any = state.reasons != 0;
                drop(state);
                self.interrupt(any);
            }
            Register::InterruptAcknowledge => {
                state.change(|reasons| reasons & !word);
                drop(state);
                self.drive_line();
            }
            // Nothing of a transfer changes while it runs.
            _ if is_running => {}
            Register::DmaSource => state.transfer.source = value,
            Register::DmaDestination => state.transfer.destination = value,
            Register::DmaCount => state.transfer.count = value,
            Register::DmaCommand if value & command::START == 0 => {}
            Register::DmaCommand => {
                state.transfer.command = value;
                return self.begin(state);
            }
        }
        false
    }

    fn begin(&self, state: MutexGuard<'_, State>) -> bool {
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Reasons were added. With `any`, there are some now.
    fn interrupt(&self, any: bool) {
        self.drive_line();
        if any {
            self.interrupts.raise(0);
        }
    }

    /// Asserts INTx as long as there is a reason. A thread that was overtaken between its look and its call looks
    /// again, so the line ends as the last change has it.
    fn drive_line(&self) {
        loop {
            let (asserted, change) = {
                let state = self.lock();
                (state.reasons != 0, state.change)
            };
            self.interrupts.set_intx(asserted);
            if self.lock().change == change {
                return;
            }
        }
    }

    /// Back to power-on. Waits for the one access that is under way.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        let (change, epoch) = (state.change + 1, state.epoch + 1);
        *state = State { change, epoch, busy_in: state.busy_in, quits: state.quits, ..State::default() };
        while state.busy_in.is_some_and(|job| job < epoch) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.drive_line();
    }

    /// The thread shall end.
    pub(super) fn quit(&self) {
        self.lock().quits = true;
        self.changed.notify_all();
    }

    /// Does what there is to do, until the device goes away.
    fn work(&self, mut dma: Box<dyn Dma>) {
        let mut buffer: Buffer = [0; BUFFER_SIZE];
        let mut of_buffer = 0;
        let mut state = self.lock();
        loop {
            if state.quits {
                return;
            }
            let Some(job) = state.next() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let epoch = state.epoch;
            state.busy_in = Some(epoch);
            drop(state);
            if of_buffer != epoch {
                (buffer, of_buffer) = ([0; BUFFER_SIZE], epoch);
            }
            let mut factorial = 0;
            // A reset waits for the job, so it ends also if memory's implementor panics.
            let _ = catch_unwind(AssertUnwindSafe(|| match job {
                Job::Factorial(of) => factorial = factorial_of(of),
                Job::Transfer(transfer) => transfer.perform(&mut buffer, &mut *dma),
            }));
            // Not before the interrupt is sent has the thread left the job.
            if self.lock().finish(job, epoch, factorial) {
                self.interrupt(true);
            }
            state = self.lock();
            state.busy_in = None;
            self.changed.notify_all();
        }
    }
}

impl State {
    fn change(&mut self, reasons: impl FnOnce(u32) -> u32) {
        self.reasons = reasons(self.reasons);
        self.change += 1;
    }

    fn next(&self) -> Option<Job> {
        if self.is_computing {
            Some(Job::Factorial(self.factorial))
        } else {
            self.transfer.is_running().then_some(Job::Transfer(self.transfer))
        }
    }

    /// A job is done. Returns whether it is a reason for an interrupt.
    fn finish(&mut self, job: Job, epoch: u64, factorial: u32) -> bool {
        if self.epoch != epoch {
            return false;
        }
        let (tells, reason) = match job {
            Job::Factorial(_) => {
                (self.factorial, self.is_computing) = (factorial, false);
                (self.tells_factorial, reason::FACTORIAL)
            }
            Job::Transfer(transfer) => {
                self.transfer.command &= !command::START;
                (transfer.command & command::INTERRUPT != 0, reason::DMA)
            }
        };
        if tells {
            self.change(|reasons| reasons | reason);
        }
        tells
    }
}

/// Modulo 2^32. That of 34 has 32 factors of two.
fn factorial_of(of: u32) -> u32 {
    if of >= 34 { 0 } else { (1..=of).fold(1, u32::wrapping_mul) }
}

impl Transfer {
    /// Moves the bytes. A transfer beyond the device's own memory moves none, and one that memory refuses ends there.
    fn perform(self, buffer: &mut Buffer, dma: &mut dyn Dma) {
        let to_memory = self.command & command::TO_MEMORY != 0;
        let (own, memory) = if to_memory { (self.source, self.destination) } else { (self.destination, self.source) };
        let bytes = || {
            let first = usize::try_from(own.checked_sub(BUFFER)?).ok()?;
            Some(first..first.checked_add(usize::try_from(self.count).ok()?)?)
        };
        let Some(bytes) = bytes().and_then(|bytes| buffer.get_mut(bytes)) else { return };
        let at = Iova(memory & ADDRESS_MASK).into();
        // It has no register that would say so.
        let _ = if to_memory { dma.write(at, bytes) } else { dma.read(at, bytes) };
    }
}

/// The thread.
pub(super) struct Thread(LazyThread<Box<dyn Dma>>);

impl Thread {
    pub(super) fn new(dma: Box<dyn Dma>) -> Self {
        Self(LazyThread::new(dma))
    }

    /// Starts it unless it runs. Returns whether it does.
    pub(super) fn ensure_running(&self, engine: &Arc<Engine>) -> bool {
        let engine = Arc::clone(engine);
        self.0.ensure_running("edu", move |dma| engine.work(dma))
    }

    pub(super) fn join(&self) {
        self.0.join();
    }
}
