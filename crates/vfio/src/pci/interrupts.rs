//! How a function interrupts: shared between the device model, which raises, and VFIO, which has the eventfds.
//!
//! At most one of INTx, MSI and MSI-X is enabled; through VFIO that happens with SET_IRQS, and the enable bits in
//! configuration space follow. What then holds:
//!
//! - **MSI-X.** A vector fires the eventfd that SET_IRQS gave it, whatever address and data its table entry has.
//!   SET_IRQS also clears the vector's mask bit when it sets an eventfd, and sets it when it takes the eventfd away,
//!   as Linux's interrupt core does on the real table. So a program that never touches the table gets its interrupts,
//!   and one that sets a mask bit through its mapping of the BAR holds them: they are pending, show in the pending
//!   bits, and fire once when unmasked. Whatever is masked by the function mask, or cannot be sent as the function is
//!   not bus master, is pending likewise. Disabling MSI-X forgets what is pending.
//! - **MSI.** Has no mask bits. A vector above those in use wraps, as a device then modifies only the low bits of the
//!   message data.
//! - **INTx.** A level. When it is asserted and not masked, the eventfd fires and the line is masked until the program
//!   unmasks it; if it is still asserted then, the eventfd fires again. The Interrupt Disable bit masks, and clearing
//!   it unmasks.
//!
//! ```text
//!   INTx:            asserted: fire
//!            ┌──────────────────────────────┐
//!      ┌─────┴────┐                    ┌────▼────┐
//!      │ unmasked │                    │ masked  ├──┐ unmask, still asserted: fire
//!      └─────▲────┘                    └────┬▲───┘◄─┘
//!            └──────────────────────────────┘└ mask, Interrupt Disable
//!                 unmask, not asserted
//! ```
//!
//! Lock protocol: one lock, innermost of all in this crate, and nothing is called with it held but writes of eventfds,
//! which do not block; the model that listens for changes is told after it is released. So when an eventfd was taken away,
//! no signal on it is under way.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::config::Bits;
use super::lines::Lines;
pub use super::lines::{IrqIndex, Unconsumed};
use super::msix::MsixTable;
use super::{msi, msix};
use crate::eventfd::EventFd;
use crate::lock;
use crate::spec::Spec;

/// The interrupts of one function.
#[derive(Debug)]
pub struct Interrupts {
    counts: [u16; 5],
    state: Mutex<State>,
    told: Told,
}

/// What is called after a change, if anything is.
#[derive(Default)]
struct Told(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    /// Which of INTx, MSI and MSI-X is enabled.
    enabled: Option<IrqIndex>,
    lines: Lines,
    table: MsixTable,
    /// MSI vectors in use, when MSI is enabled.
    msi_in_use: u16,
    intx: Intx,
    /// Whether the function may send messages, which are memory writes.
    may_send: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Intx {
    asserted: bool,
    masked: bool,
    /// Interrupt Disable, in the command register.
    disabled: bool,
}

/// What a reset loses and the host puts back.
#[derive(Debug, Clone)]
pub(crate) struct SavedInterrupts {
    enabled: Option<IrqIndex>,
    function_masked: bool,
    msi_in_use: u16,
    intx: Intx,
}

/// For the device model.
impl Interrupts {
    /// The interrupts that `spec` describes, all disabled.
    pub fn new(spec: &Spec) -> Arc<Self> {
        let counts = [u16::from(spec.interrupt_pin != 0), spec.msi_vectors.into(), spec.msix_vectors(), 1, 1];
        Arc::new(Self {
            counts,
            state: Mutex::new(State {
                enabled: None,
                lines: Lines::new(counts),
                table: MsixTable::new(spec.msix_vectors()),
                msi_in_use: 0,
                intx: Intx::default(),
                may_send: false,
            }),
            told: Told::default(),
        })
    }

    /// Sends the message of `vector`, by MSI-X or MSI, whichever is enabled. Without either, or without such a
    /// vector, nothing happens.
    pub fn raise(&self, vector: u16) {
        let mut state = self.state();
        match state.enabled {
            Some(IrqIndex::Msix) if vector < self.counts[IrqIndex::Msix as usize] => {
                state.table.set_pending(vector.into());
                state.deliver();
            }
            Some(IrqIndex::Msi) if state.may_send => {
                let vector = usize::from(vector % state.msi_in_use.max(1).next_power_of_two());
                if let Some(line) = state.lines.of(IrqIndex::Msi).get_mut(vector) {
                    line.fire();
                }
            }
            _ => {}
        }
    }

    /// Asserts or deasserts INTx.
    pub fn set_intx(&self, asserted: bool) {
        let mut state = self.state();
        state.intx.asserted = asserted;
        state.deliver();
    }

    /// Asserts INTx, and lets it go at once: for a model that knows of signals, and not of the line. No program unmasks
    /// the line in between.
    pub fn pulse_intx(&self) {
        let mut state = self.state();
        state.intx.asserted = true;
        state.deliver();
        state.intx.asserted = false;
    }

    /// Has `told` called after an index was enabled or disabled, and after INTx was unmasked: for a model whose device is
    /// elsewhere, and whose own interrupts follow. It is called from the thread that made the change, with no lock of
    /// this held, and may ask for and raise interrupts. Only the first counts.
    pub fn on_change(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.told.0.set(Box::new(told));
    }

    fn tell(&self) {
        if let Some(told) = self.told.0.get() {
            told();
        }
    }

    /// Asks the program to let go of the device (the request index).
    pub fn ask_back(&self) {
        self.loop_back(IrqIndex::Request, 0);
    }

    /// Which of INTx, MSI and MSI-X is enabled.
    pub fn enabled(&self) -> Option<IrqIndex> {
        self.state().enabled
    }
}

/// For the report at the end.
impl Interrupts {
    /// Number of vectors of an index.
    pub fn count(&self, index: IrqIndex) -> u16 {
        self.counts[index as usize]
    }

    /// How many signals a vector has sent since the function was made. 0 for a vector that does not exist.
    pub fn sent(&self, index: IrqIndex, vector: u16) -> u64 {
        let mut state = self.state();
        state.lines.of(index).get(usize::from(vector)).map_or(0, |line| line.sent_in_total())
    }

    /// What the program has not read from the eventfds that are assigned now.
    pub fn unconsumed(&self) -> Vec<Unconsumed> {
        self.state().lines.unread_now()
    }

    /// Takes what the program had not read from eventfds when they were replaced or taken away, by SET_IRQS or as the
    /// device was closed; one entry a vector.
    pub fn take_unconsumed(&self) -> Vec<Unconsumed> {
        self.state().lines.take_released()
    }
}

/// For the function's registers.
impl Interrupts {
    pub(super) fn read_table(&self, offset: usize, data: &mut [u8]) {
        self.state().table.read_table(offset, data);
    }

    pub(super) fn write_table(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        state.table.write_table(offset, data);
        state.deliver();
    }

    pub(super) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        self.state().table.read_pending(offset, data);
    }

    /// The live bits of MSI-X message control.
    pub(super) fn msix_control(&self) -> u32 {
        let state = self.state();
        let enable = if state.enabled == Some(IrqIndex::Msix) { msix::ENABLE } else { 0 };
        let mask = if state.table.function_mask() { msix::FUNCTION_MASK } else { 0 };
        enable | mask
    }

    pub(super) fn write_msix_control(&self, bits: Bits) {
        let mut state = self.state();
        if bits.mask & msix::FUNCTION_MASK != 0 {
            state.table.set_function_mask(bits.value & msix::FUNCTION_MASK != 0);
        }
        if bits.mask & msix::ENABLE != 0 {
            state.switch(IrqIndex::Msix, bits.value & msix::ENABLE != 0);
        }
        state.deliver();
        drop(state);
        self.tell();
    }

    /// The live bits of MSI message control.
    pub(super) fn msi_control(&self) -> u32 {
        let state = self.state();
        let enable = if state.enabled == Some(IrqIndex::Msi) { msi::ENABLE } else { 0 };
        enable | state.msi_in_use.max(1).next_power_of_two().ilog2() << msi::IN_USE_SHIFT
    }

    pub(super) fn write_msi_control(&self, bits: Bits) {
        let mut state = self.state();
        if bits.mask & msi::IN_USE != 0 {
            let in_use = 1 << ((bits.value & msi::IN_USE) >> msi::IN_USE_SHIFT);
            state.msi_in_use = self.count(IrqIndex::Msi).min(in_use);
        }
        if bits.mask & msi::ENABLE != 0 {
            state.switch(IrqIndex::Msi, bits.value & msi::ENABLE != 0);
        }
        drop(state);
        self.tell();
    }

    /// Follows the function's right to send memory requests.
    pub(super) fn set_may_send(&self, may_send: bool) {
        let mut state = self.state();
        state.may_send = may_send;
        state.deliver();
    }

    pub(super) fn intx_asserted(&self) -> bool {
        self.state().intx.asserted
    }

    /// Follows the Interrupt Disable bit.
    pub(super) fn set_intx_disabled(&self, disabled: bool) {
        let mut state = self.state();
        state.intx.disabled = disabled;
        if disabled {
            state.intx.masked = true;
        } else {
            state.unmask_intx();
        }
        drop(state);
        self.tell();
    }

    /// Function level reset. Eventfds stay: they are the host's, not the function's.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.table.reset();
        state.msi_in_use = 0;
        state.intx = Intx::default();
        state.may_send = false;
        if state.enabled != Some(IrqIndex::Intx) {
            state.enabled = None;
        }
        drop(state);
        self.tell();
    }

    pub(super) fn save(&self) -> SavedInterrupts {
        let state = self.state();
        SavedInterrupts {
            enabled: state.enabled,
            function_masked: state.table.function_mask(),
            msi_in_use: state.msi_in_use,
            intx: state.intx,
        }
    }

    /// Puts back what a reset lost, with the vectors that have an eventfd unmasked, as Linux does.
    pub(super) fn restore(&self, saved: &SavedInterrupts) {
        let mut state = self.state();
        state.enabled = saved.enabled;
        state.msi_in_use = saved.msi_in_use;
        state.intx = Intx { asserted: state.intx.asserted, ..saved.intx };
        state.table.set_function_mask(saved.function_masked);
        for vector in 0..self.count(IrqIndex::Msix) {
            state.follow_eventfd(vector);
        }
        state.deliver();
        drop(state);
        self.tell();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// For SET_IRQS. Vectors are within the index's count.
impl Interrupts {
    /// Enables an index, with MSI for `vectors` of them. Who listens for changes is told when they are given eventfds,
    /// before which nothing could be signalled.
    pub(crate) fn enable(&self, index: IrqIndex, vectors: u16) {
        let mut state = self.state();
        state.enabled = Some(index);
        match index {
            IrqIndex::Intx => state.intx.masked = state.intx.disabled,
            IrqIndex::Msi => state.msi_in_use = vectors,
            _ => {}
        }
    }

    /// MSI vectors that can be given eventfds.
    pub(crate) fn msi_in_use(&self) -> u16 {
        self.state().msi_in_use
    }

    /// Disables an index and takes its eventfds away.
    pub(crate) fn disable(&self, index: IrqIndex) {
        let mut state = self.state();
        state.lines.release(index);
        if index == IrqIndex::Msix {
            for vector in 0..self.count(index) {
                state.follow_eventfd(vector);
            }
        }
        state.switch(index, false);
        drop(state);
        self.tell();
    }

    /// Gives the vectors from `start` on these eventfds.
    pub(crate) fn assign(&self, index: IrqIndex, start: u16, eventfds: Vec<Option<EventFd>>) {
        let mut state = self.state();
        for (vector, eventfd) in (start..).zip(eventfds) {
            state.lines.assign(index, vector, eventfd);
            if index == IrqIndex::Msix {
                state.follow_eventfd(vector);
            }
        }
        state.deliver();
        drop(state);
        self.tell();
    }

    /// Whether a vector has an eventfd.
    pub(crate) fn has_eventfd(&self, index: IrqIndex, vector: u16) -> bool {
        self.state().lines.of(index).get(usize::from(vector)).is_some_and(|line| line.has_eventfd())
    }

    /// Signals as if the device had, past every mask but Interrupt Disable.
    pub(crate) fn loop_back(&self, index: IrqIndex, vector: u16) {
        let mut state = self.state();
        if index == IrqIndex::Intx && state.intx.disabled {
            return;
        }
        if let Some(line) = state.lines.of(index).get_mut(usize::from(vector)) {
            line.fire();
        }
    }

    pub(crate) fn mask_intx(&self) {
        self.state().intx.masked = true;
    }

    pub(crate) fn unmask_intx(&self) {
        self.state().unmask_intx();
        self.tell();
    }
}

impl State {
    /// Fires whatever is due.
    fn deliver(&mut self) {
        match self.enabled {
            Some(IrqIndex::Msix) if self.may_send => {
                for vector in self.table.take_due() {
                    self.lines.of(IrqIndex::Msix)[vector].fire();
                }
            }
            Some(IrqIndex::Intx) if self.intx.asserted && !self.intx.masked => {
                self.intx.masked = true;
                self.fire_intx();
            }
            _ => {}
        }
    }

    fn unmask_intx(&mut self) {
        if !self.intx.masked || self.intx.disabled {
            return;
        }
        if self.intx.asserted && self.enabled == Some(IrqIndex::Intx) {
            self.fire_intx();
        } else {
            self.intx.masked = false;
        }
    }

    fn fire_intx(&mut self) {
        if let Some(line) = self.lines.of(IrqIndex::Intx).first_mut() {
            line.fire();
        }
    }

    /// Enables an index, or disables it if it is enabled.
    fn switch(&mut self, index: IrqIndex, on: bool) {
        if on {
            self.enabled = Some(index);
        } else if self.enabled == Some(index) {
            self.enabled = None;
            self.table.clear_pending();
        }
    }

    /// A vector with an eventfd is unmasked, one without is masked.
    fn follow_eventfd(&mut self, vector: u16) {
        let vector = usize::from(vector);
        let masked = !self.lines.of(IrqIndex::Msix)[vector].has_eventfd();
        self.table.set_mask(vector, masked);
    }
}
