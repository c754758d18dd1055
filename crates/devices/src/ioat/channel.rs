//! The channel: its registers and its state machine.
//!
//! ```text
//!          CHAINADDR         DMACOUNT ≠ done         count reached
//!  HALTED ───────────▶ ARMED ───────────────▶ ACTIVE ─────────────▶ DONE
//!    ▲                 ▲   │                  │ ▲  ▲                │  │
//!    │       CHAINADDR │   │ suspend          │ │  └────────────────┘  │
//!    │                 │   │          suspend │ │      DMACOUNT ≠ done │
//!    │                 │   ▼                  ▼ │ resume               │ suspend
//!    │                 └───────────────── SUSPENDED ◀──────────────────┘
//!    │
//!    └── power on; from anywhere: reset, abort, error
//! ```
//!
//! Counting is modulo 65536: the channel works while `done`, the number of descriptors completed since it was armed,
//! differs from DMACOUNT. A chain that loops is therefore legal, and bounded. `next` of a descriptor is followed only
//! when the count asks for another one, and is then the value that was fetched with the descriptor.
//!
//! CHAINADDR arms the channel where the picture says so, and zeroes DMACOUNT with `done`. Either half of the register
//! does it, as drivers write it in two. While the channel is ACTIVE or DONE the register takes the value and the chain
//! goes on undisturbed. Suspend and abort take effect after the descriptor that is being processed.
//!
//! # Locking
//!
//! `control` holds everything but what is polled, and is never held during DMA or a call to the interrupt sink. The
//! interrupt logic's own lock nests inside it. `status` (CHANSTS) and `epoch` are
//! written with `control` held and read without it.
//!
//! A reset takes effect on the registers at once, also while the worker is in the middle of a descriptor: it moves
//! `epoch`, and what a job of an older epoch comes to is dropped. The reset bit of CHANCMD stays set until that job has
//! returned, which is when no DMA of before the reset is in flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::interrupts::InterruptLogic;
use super::spec::descriptor::{SIZE, reachable};
use super::spec::registers::{ChannelControl, ChannelError, Command, State, Status};

/// A channel.
pub(super) struct Channel {
    /// CHANSTS.
    status: AtomicU64,
    /// Moves with each reset, abort of a job and end of the device.
    epoch: AtomicU64,
    control: Mutex<Control>,
    interrupts: Arc<InterruptLogic>,
    /// Signalled when the worker has something to do.
    work: Condvar,
    /// Signalled when the worker has left a void job.
    left: Condvar,
}

/// What only changes with the lock held.
struct Control {
    /// CHANCTRL without the bits that live in the interrupt logic and in `in_use`.
    flags: ChannelControl,
    in_use: bool,
    /// DMACOUNT.
    count: u16,
    /// Descriptors completed since the channel was armed.
    done: u16,
    /// CHAINADDR.
    chain: u64,
    /// Where the next descriptor is.
    cursor: Cursor,
    /// CHANCMP, once it was written.
    completion: Option<u64>,
    /// CDAR.
    current: u64,
    /// CHANERR.
    errors: ChannelError,
    /// CHANERR_INT.
    config_errors: ChannelError,
    /// CHANERRMASK.
    mask: ChannelError,
    /// CHANERRMSK_INT.
    config_mask: ChannelError,
    /// DCACTRL.
    dca: u16,
    /// Where to stop after the current job.
    stop: Option<State>,
    /// Epoch of the job that the worker is in.
    job: Option<u64>,
    /// The device is going away.
    quit: bool,
}

/// An address of a descriptor, with where it is from.
#[derive(Clone, Copy)]
enum Cursor {
    /// CHAINADDR.
    Chain(u64),
    /// The `next` field of the descriptor before.
    Next(u64),
}

/// A descriptor to process.
#[derive(Clone, Copy)]
pub(super) struct Job {
    epoch: u64,
    /// IOVA of the descriptor.
    pub(super) descriptor: u64,
    /// What is wrong with that address, as far as can be said without reading there.
    pub(super) wrong: ChannelError,
    /// What it means if reading there is refused.
    pub(super) unreadable: ChannelError,
}

/// What a descriptor came to.
pub(super) enum Outcome {
    /// It is done, and so is the completion write that it may ask for.
    Completed(Finished),
    /// An error that [`Channel::halt`] has recorded, with everything written that there is to write.
    Halted(ChannelError),
    /// An error that nobody knows of yet.
    Failed(ChannelError),
}

/// A descriptor that was processed.
#[derive(Clone, Copy)]
pub(super) struct Finished {
    /// Its `next` field.
    pub(super) next: u64,
    /// It asks for an interrupt.
    pub(super) interrupt: bool,
    /// It asks for a completion write.
    pub(super) completion: bool,
}

/// What the worker does next.
pub(super) enum Step {
    /// Process a descriptor.
    Run(Job),
    /// Have the interrupt logic deliver.
    Deliver,
    /// End.
    Quit,
}

/// What the one who wrote a register has to see to, with no lock held.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// There is work: see that the worker runs.
    Work,
    /// The interrupt logic has something to deliver.
    Deliver,
}

impl Control {
    fn power_on() -> Self {
        Self {
            flags: ChannelControl::empty(),
            in_use: false,
            count: 0,
            done: 0,
            chain: 0,
            cursor: Cursor::Chain(0),
            completion: None,
            current: 0,
            errors: ChannelError::empty(),
            config_errors: ChannelError::empty(),
            mask: ChannelError::empty(),
            config_mask: ChannelError::empty(),
            dca: 0,
            stop: None,
            job: None,
            quit: false,
        }
    }

    /// The state that follows from the count.
    fn counted(&self) -> State {
        if self.done == self.count { State::Done } else { State::Active }
    }
}

impl Channel {
    pub(super) fn new(interrupts: Arc<InterruptLogic>) -> Self {
        Self {
            status: AtomicU64::new(Status::new(State::Halted, 0).0),
            epoch: AtomicU64::new(0),
            control: Mutex::new(Control::power_on()),
            interrupts,
            work: Condvar::new(),
            left: Condvar::new(),
        }
    }

    /// CHANSTS. Takes no lock: this is what drivers poll.
    pub(super) fn status(&self) -> Status {
        Status(self.status.load(Ordering::Acquire))
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_status(&self, _held: &Control, state: State, completed: u64) {
        self.status.store(Status::new(state, completed).0, Ordering::Release);
    }

    fn set_state(&self, held: &Control, state: State) {
        self.set_status(held, state, self.status().completed());
    }

    fn next_epoch(&self, _held: &Control) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the worker is in a job that still counts.
    fn is_busy(&self, held: &Control) -> bool {
        held.job == Some(self.epoch.load(Ordering::Acquire))
    }

    /// Whether the worker is in a job that a reset made void.
    fn is_draining(&self, held: &Control) -> bool {
        held.job.is_some() && !self.is_busy(held)
    }

    // Registers. `value` holds the bytes that were written, `mask` says which ones these are.

    /// CHANCTRL is read. `interrupt_disable` is its bit 0, `takes` whether the byte with the in-use bit is read.
    pub(super) fn read_control(&self, interrupt_disable: bool, takes: bool) -> u16 {
        let mut control = self.lock();
        let mut value = control.flags;
        value.set(ChannelControl::INTERRUPT_DISABLE, interrupt_disable);
        value.set(ChannelControl::IN_USE, control.in_use);
        control.in_use |= takes;
        value.bits()
    }

    /// CHANCTRL is written, bit 0 apart.
    pub(super) fn write_control(&self, value: u16, mask: u16) {
        let mut control = self.lock();
        let merged = merge(control.flags.bits().into(), value.into(), mask.into());
        control.flags = ChannelControl::from_bits_truncate(merged as u16) & ChannelControl::STORED;
        if mask & !value & ChannelControl::IN_USE.bits() != 0 {
            control.in_use = false;
        }
    }

    /// CHANCMD is read.
    pub(super) fn read_command(&self) -> u8 {
        let control = self.lock();
        let mut value = Command::empty();
        value.set(Command::RESET, self.is_draining(&control));
        value.set(Command::SUSPEND, control.stop == Some(State::Suspended));
        value.set(Command::ABORT, control.stop == Some(State::Halted));
        value.bits()
    }

    /// CHANCMD is written.
    pub(super) fn write_command(&self, value: u8) -> Effect {
        let command = Command::from_bits_truncate(value);
        let mut control = self.lock();
        if command.iter().count() > 1 {
            self.next_epoch(&control);
            self.fail(&mut control, ChannelError::COMMAND);
            return Effect::Deliver;
        }
        if command == Command::RESET {
            self.reset_registers(&mut control);
            return Effect::Deliver;
        }
        match (command, self.status().state()) {
            (Command::SUSPEND, State::Active) if self.is_busy(&control) => {
                control.stop = Some(State::Suspended);
            }
            (Command::SUSPEND, State::Active | State::Done | State::Armed) => {
                self.set_state(&control, State::Suspended);
            }
            (Command::ABORT, State::Active) if self.is_busy(&control) => {
                control.stop = Some(State::Halted);
            }
            (Command::ABORT, _) => {
                control.stop = None;
                self.set_state(&control, State::Halted);
            }
            (Command::RESUME, State::Active) if control.stop == Some(State::Suspended) => {
                control.stop = None;
            }
            (Command::RESUME, State::Suspended) => {
                let state = control.counted();
                self.set_state(&control, state);
                return self.effect_of(state);
            }
            _ => {}
        }
        Effect::None
    }

    /// DMACOUNT is read.
    pub(super) fn read_count(&self) -> u16 {
        self.lock().count
    }

    /// DMACOUNT is written: the doorbell.
    pub(super) fn write_count(&self, value: u16, mask: u16) -> Effect {
        let mut control = self.lock();
        control.count = merge(control.count.into(), value.into(), mask.into()) as u16;
        match self.status().state() {
            State::Armed | State::Done if control.done != control.count => {
                // At once, not when the worker wakes: drivers look for it right after the doorbell.
                self.set_state(&control, State::Active);
                self.effect_of(State::Active)
            }
            _ => Effect::None,
        }
    }

    /// CHAINADDR is read.
    pub(super) fn read_chain(&self) -> u64 {
        self.lock().chain
    }

    /// CHAINADDR is written.
    pub(super) fn write_chain(&self, value: u64, mask: u64) {
        let mut control = self.lock();
        control.chain = merge(control.chain, value, mask);
        if matches!(self.status().state(), State::Halted | State::Suspended | State::Armed) {
            control.cursor = Cursor::Chain(control.chain);
            control.count = 0;
            control.done = 0;
            // What was to stop the chain before does not stop this one.
            control.stop = None;
            self.set_status(&control, State::Armed, 0);
        }
    }

    /// CHANCMP is read.
    pub(super) fn read_completion(&self) -> u64 {
        self.lock().completion.unwrap_or(0)
    }

    /// CHANCMP is written. It has no low three bits.
    pub(super) fn write_completion(&self, value: u64, mask: u64) {
        let mut control = self.lock();
        control.completion = Some(merge(control.completion.unwrap_or(0), value, mask) & !0x7);
    }

    /// CDAR is read.
    pub(super) fn read_current(&self) -> u64 {
        self.lock().current
    }

    /// CHANERR is read.
    pub(super) fn read_errors(&self) -> u32 {
        self.lock().errors.bits()
    }

    /// CHANERR is written: ones clear.
    pub(super) fn clear_errors(&self, value: u32) {
        self.lock().errors.remove(ChannelError::from_bits_truncate(value));
    }

    /// CHANERRMASK is read.
    pub(super) fn read_mask(&self) -> u32 {
        self.lock().mask.bits()
    }

    /// CHANERRMASK is written.
    pub(super) fn write_mask(&self, value: u32, mask: u32) {
        let mut control = self.lock();
        let merged = merge(control.mask.bits().into(), value.into(), mask.into());
        control.mask = ChannelError::from_bits_truncate(merged as u32);
    }

    /// CHANERR_INT is read.
    pub(super) fn read_config_errors(&self) -> u32 {
        self.lock().config_errors.bits()
    }

    /// CHANERR_INT is written: ones clear.
    pub(super) fn clear_config_errors(&self, value: u32) {
        self.lock().config_errors.remove(ChannelError::from_bits_truncate(value));
    }

    /// CHANERRMSK_INT is read.
    pub(super) fn read_config_mask(&self) -> u32 {
        self.lock().config_mask.bits()
    }

    /// CHANERRMSK_INT is written.
    pub(super) fn write_config_mask(&self, value: u32, mask: u32) {
        let mut control = self.lock();
        let merged = merge(control.config_mask.bits().into(), value.into(), mask.into());
        control.config_mask = ChannelError::from_bits_truncate(merged as u32);
    }

    /// DCACTRL is read.
    pub(super) fn read_dca(&self) -> u16 {
        self.lock().dca
    }

    /// DCACTRL is written: the target processor, which there is no use for.
    pub(super) fn write_dca(&self, value: u32, mask: u32) {
        let mut control = self.lock();
        control.dca = merge(control.dca.into(), value.into(), mask.into()) as u16;
    }

    // Resets and ends.

    /// What a channel reset changes. CHANCTRL, the masks and the (sticky) errors stay.
    fn reset_registers(&self, control: &mut Control) {
        *control = Control {
            flags: control.flags,
            in_use: control.in_use,
            errors: control.errors,
            config_errors: control.config_errors,
            mask: control.mask,
            config_mask: control.config_mask,
            dca: control.dca,
            job: control.job,
            quit: control.quit,
            ..Control::power_on()
        };
        self.interrupts.void_channel();
        self.next_epoch(control);
        self.set_status(control, State::Halted, 0);
    }

    /// A reset of the function: power-on values. Returns when no DMA is in flight.
    pub(super) fn reset_function(&self) {
        let mut control = self.lock();
        *control = Control { job: control.job, quit: control.quit, ..Control::power_on() };
        self.interrupts.void_function();
        self.next_epoch(&control);
        self.set_status(&control, State::Halted, 0);
        while self.is_draining(&control) {
            control = self.left.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The device goes away: the worker ends as soon as it can.
    pub(super) fn quit(&self) {
        let mut control = self.lock();
        control.quit = true;
        self.next_epoch(&control);
        self.work.notify_all();
    }

    /// There is no worker and there will not be one.
    pub(super) fn no_worker(&self) -> Effect {
        let mut control = self.lock();
        self.fail(&mut control, ChannelError::UNAFFILIATED);
        Effect::Deliver
    }

    /// Halts the channel for `error`, and has it interrupt if it may.
    fn fail(&self, control: &mut Control, error: ChannelError) {
        self.record(control, error);
        self.post_error(control, error);
    }

    fn record(&self, control: &mut Control, error: ChannelError) {
        control.errors |= error;
        control.config_errors |= error;
        control.stop = None;
        self.set_state(control, State::Halted);
    }

    fn post_error(&self, control: &Control, error: ChannelError) {
        if control.flags.contains(ChannelControl::ERROR_INTERRUPT) && !control.mask.contains(error) {
            self.interrupts.post();
        }
    }

    fn effect_of(&self, state: State) -> Effect {
        if state != State::Active {
            return Effect::None;
        }
        self.work.notify_all();
        Effect::Work
    }

    // The worker's side.

    /// Takes in what the last job came to, and waits for what to do next.
    pub(super) fn advance(&self, last: Option<(Job, Outcome)>) -> Step {
        let mut control = self.lock();
        if let Some((job, outcome)) = last
            && self.retire(&mut control, job, outcome)
        {
            return Step::Deliver;
        }
        loop {
            if control.quit {
                return Step::Quit;
            }
            if self.status().state() == State::Active {
                return self.begin(&mut control);
            }
            control = self.work.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin(&self, control: &mut Control) -> Step {
        let (descriptor, misaligned, unreadable) = match control.cursor {
            Cursor::Chain(at) => (at, ChannelError::CHAIN_ADDRESS, ChannelError::CHAIN_ADDRESS),
            Cursor::Next(at) => (at, ChannelError::NEXT_ALIGNMENT, ChannelError::NEXT_ADDRESS),
        };
        let epoch = self.epoch.load(Ordering::Acquire);
        control.current = descriptor;
        control.job = Some(epoch);
        let wrong = if !descriptor.is_multiple_of(SIZE as u64) {
            misaligned
        } else if !reachable(descriptor, SIZE as u32) {
            unreadable
        } else {
            ChannelError::empty()
        };
        Step::Run(Job { epoch, descriptor, unreadable, wrong })
    }

    /// Whether a reset has made `job` void.
    pub(super) fn is_void(&self, job: &Job) -> bool {
        self.epoch.load(Ordering::Relaxed) != job.epoch
    }

    /// The completion write for a job that asks for one: address and value. `None` if the job is void.
    ///
    /// # Errors
    /// CHANCMP was never written.
    pub(super) fn completion(&self, job: &Job) -> Result<Option<(u64, Status)>, ChannelError> {
        let control = self.lock();
        if self.is_void(job) {
            return Ok(None);
        }
        let at = control.completion.ok_or(ChannelError::COMPLETION_ADDRESS)?;
        Ok(Some((at, self.status_after(&control, job))))
    }

    /// Halts the channel for an error of `job`. Returns the completion write that tells of it, if there is to be one.
    ///
    /// This comes before that write, and the interrupt after it ([`Outcome::Halted`]): drivers that learn of the halt
    /// from memory read CHANERR at once.
    pub(super) fn halt(&self, job: &Job, error: ChannelError) -> Option<(u64, Status)> {
        let mut control = self.lock();
        if self.is_void(job) {
            return None;
        }
        self.record(&mut control, error);
        let told = control.flags.contains(ChannelControl::ERROR_COMPLETION);
        control.completion.filter(|_| told).map(|at| (at, self.status()))
    }

    /// CHANSTS once `job` is completed.
    fn status_after(&self, control: &Control, job: &Job) -> Status {
        let last = control.done.wrapping_add(1) == control.count;
        Status::new(if last { State::Done } else { State::Active }, job.descriptor)
    }

    /// Takes in what `job` came to. Returns whether the interrupt logic may have something to deliver.
    fn retire(&self, control: &mut Control, job: Job, outcome: Outcome) -> bool {
        control.job = None;
        if self.is_void(&job) {
            // Only for a void job can somebody wait.
            self.left.notify_all();
            return false;
        }
        match outcome {
            Outcome::Completed(finished) => {
                let after = self.status_after(control, &job);
                control.done = control.done.wrapping_add(1);
                control.cursor = Cursor::Next(finished.next);
                let state = control.stop.take().unwrap_or(after.state());
                if finished.interrupt {
                    self.interrupts.post();
                }
                self.set_status(control, state, job.descriptor);
                finished.interrupt
            }
            Outcome::Halted(error) => {
                self.post_error(control, error);
                true
            }
            Outcome::Failed(error) => {
                self.fail(control, error);
                true
            }
        }
    }
}

/// `old` with the bytes of `value` that `mask` selects.
fn merge(old: u64, value: u64, mask: u64) -> u64 {
    (old & !mask) | (value & mask)
}
