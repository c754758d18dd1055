//! When an interrupt leaves the device: INTRCTRL, ATTNSTATUS and bit 0 of CHANCTRL.
//!
//! ```text
//!   event ──▶ pending ──(INTRCTRL lets through, channel not disabled)──▶ attention, channel disabled, message sent
//!                ▲                                                            │
//!                └── kept until "rearm" (CHANCTRL bit 0 written as 1) ────────┘
//! ```
//!
//! So there is one interrupt for each rearm, and none is lost: what completes between a handler's last look and its
//! rearm interrupts at the rearm. The INTx line is high while ATTNSTATUS has a bit and INTRCTRL's master bit is set.
//!
//! Locking: `state` is the innermost lock. The channel calls [`post`](InterruptLogic::post) and the `void` functions
//! under its own, so that an event and a reset have one order; [`deliver`](InterruptLogic::deliver), which calls the
//! sink, comes after, with no lock held, so that a sink may take any lock of its own. Levels of the line reach the sink
//! in order all the same: one thread at a time shows them, and goes on until what it showed is the truth.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::spec::registers::InterruptControl;
use crate::Interrupts;

/// MSI-X vector of the channel.
const VECTOR: u16 = 0;

/// The device's interrupt logic.
pub(super) struct InterruptLogic {
    sink: Arc<dyn Interrupts>,
    state: Mutex<State>,
}

struct State {
    /// Only `MASTER` and `MSIX_VECTORS`; the rest is derived.
    control: InterruptControl,
    /// ATTNSTATUS bit 0.
    attention: bool,
    /// CHANCTRL bit 0.
    disabled: bool,
    /// An event that has not become an interrupt yet.
    pending: bool,
    /// The line's level as the sink knows it.
    shown: bool,
    /// A thread is on its way to show another level.
    showing: bool,
}

impl State {
    const POWER_ON: Self = Self {
        control: InterruptControl::empty(),
        attention: false,
        disabled: false,
        pending: false,
        shown: false,
        showing: false,
    };

    fn line(&self) -> bool {
        self.attention && self.control.contains(InterruptControl::MASTER)
    }

    /// Turns a pending event into an interrupt, if that may be now. Returns whether to send the message.
    fn fire(&mut self) -> bool {
        let enabled = self.control.intersects(InterruptControl::MASTER | InterruptControl::MSIX_VECTORS);
        let fires = self.pending && enabled && !self.disabled;
        if fires {
            self.pending = false;
            self.attention = true;
            self.disabled = true;
        }
        fires
    }
}

impl InterruptLogic {
    pub(super) fn new(sink: Arc<dyn Interrupts>) -> Self {
        Self { sink, state: Mutex::new(State::POWER_ON) }
    }

    /// The channel completed a descriptor that asks for an interrupt, or met an error that does. To be delivered.
    pub(super) fn post(&self) {
        self.lock().pending = true;
    }

    /// The channel is reset: nothing of before interrupts any more. To be delivered.
    pub(super) fn void_channel(&self) {
        let mut state = self.lock();
        state.attention = false;
        state.disabled = false;
        state.pending = false;
    }

    /// The function is reset. To be delivered.
    pub(super) fn void_function(&self) {
        self.void_channel();
        self.lock().control = InterruptControl::empty();
    }

    /// Tells the sink what it has to know.
    pub(super) fn deliver(&self) {
        self.change(|_| ());
    }

    /// CHANCTRL bit 0 was written as 1.
    pub(super) fn rearm(&self) {
        self.change(|state| state.disabled = false);
    }

    /// CHANCTRL bit 0.
    pub(super) fn is_disabled(&self) -> bool {
        self.lock().disabled
    }

    /// INTRCTRL is written.
    pub(super) fn write_control(&self, value: u8) {
        let value = InterruptControl::from_bits_truncate(value);
        let stored = InterruptControl::MASTER | InterruptControl::MSIX_VECTORS;
        self.change(|state| state.control = value & stored);
    }

    /// INTRCTRL is read, which clears the master bit.
    pub(super) fn read_control(&self) -> u8 {
        self.change(|state| {
            let mut value = state.control;
            value.set(InterruptControl::STATUS, state.attention);
            value.set(InterruptControl::INT, state.line());
            state.control.remove(InterruptControl::MASTER);
            value.bits()
        })
    }

    /// ATTNSTATUS is read, which clears it.
    pub(super) fn read_attention(&self) -> u32 {
        self.change(|state| u32::from(std::mem::take(&mut state.attention)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then tells the sink what follows from it.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        if state.fire() {
            drop(state);
            self.sink.raise(VECTOR);
            state = self.lock();
        }
        while !state.showing && state.shown != state.line() {
            let level = state.line();
            state.showing = true;
            drop(state);
            self.sink.set_intx(level);
            state = self.lock();
            state.shown = level;
            state.showing = false;
        }
        result
    }
}
