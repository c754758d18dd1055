//! What a function tells its driver beside completion records: SWERR, INTCAUSE, and interrupts.
//!
//! ```text
//!   submission ──┐
//!   engines ─────┼──▶ SWERR (the first) ──▶ INTCAUSE ──▶ vector 0
//!   commands ────┘                             ▲
//!                └─────────────────────────────┘
//!   completions ─────▶ MSIXPERM: may it? ──▶ vector of the descriptor
//! ```
//!
//! The device has one of these, and each slice of it one of its own, so whatever a descriptor comes to is told to who
//! submitted it. GENCTRL says which causes interrupt.
//!
//! Locking: `state` is innermost and held for a few instructions. The sink is called with no lock held.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::spec::registers::{GeneralControl, InterruptCause, PERMISSION_STORED, Permission};
use crate::Interrupts;

/// Where the errors and interrupts of a function go.
pub(super) struct Reports {
    sink: Arc<dyn Interrupts>,
    state: Mutex<State>,
}

struct State {
    /// GENCTRL.
    control: GeneralControl,
    /// INTCAUSE.
    cause: InterruptCause,
    /// SWERR.
    error: [u64; 4],
    /// MSIXPERM.
    permissions: Vec<u32>,
    /// A bit for each vector whose handle was asked for; `None` where vectors are named without.
    handles: Option<u64>,
}

/// What SWERR tells of a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Culprit {
    pub(super) operation: u8,
    pub(super) pasid: u32,
    pub(super) privileged: bool,
    /// Its index, if it was in a batch.
    pub(super) member: Option<u16>,
}

/// An error for SWERR.
#[derive(Clone, Copy, Debug)]
pub(super) struct SoftError {
    pub(super) code: u8,
    pub(super) queue: Option<u8>,
    pub(super) culprit: Option<Culprit>,
    /// The address that faulted, and whether it was to be written.
    pub(super) fault: Option<(u64, bool)>,
    /// Flags that are wrong, or an interrupt handle.
    pub(super) information: u32,
}

impl SoftError {
    /// An error that is no descriptor's.
    pub(super) fn new(code: u8) -> Self {
        Self { code, queue: None, culprit: None, fault: None, information: 0 }
    }

    fn words(&self) -> [u64; 4] {
        let bit = |set: bool, at: u32| u64::from(set) << at;
        let mut words = [1 | u64::from(self.code) << 8, u64::from(self.information) << 32, 0, 0];
        if let Some(culprit) = self.culprit {
            words[0] |= bit(true, 2) | bit(culprit.member.is_some(), 4) | bit(culprit.privileged, 6);
            words[0] |= u64::from(culprit.operation) << 32 | u64::from(culprit.pasid) << 40;
            words[1] |= u64::from(culprit.member.unwrap_or(0));
        }
        if let Some(queue) = self.queue {
            words[0] |= bit(true, 3) | u64::from(queue) << 16;
        }
        if let Some((at, write)) = self.fault {
            words[0] |= bit(write, 5);
            words[2] = at;
        }
        words
    }
}

/// SWERR: bits that a written 1 clears.
const VALID: u64 = 1 << 0;
const OVERFLOW: u64 = 1 << 1;
/// Vector of everything that is not a descriptor's completion.
const MISCELLANEOUS: u16 = 0;

impl State {
    fn power_on(vectors: u16, handles: bool) -> Self {
        Self {
            control: GeneralControl::empty(),
            cause: InterruptCause::empty(),
            error: [0; 4],
            permissions: vec![0; vectors.into()],
            handles: handles.then_some(0),
        }
    }
}

impl Reports {
    /// Of a function with `vectors` vectors, up to 64. If `handles`, a vector's handle must be asked for.
    pub(super) fn new(sink: Arc<dyn Interrupts>, vectors: u16, handles: bool) -> Self {
        Self { sink, state: Mutex::new(State::power_on(vectors, handles)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an error; only the first until SWERR is cleared.
    pub(super) fn error(&self, error: SoftError) {
        let raises = {
            let mut state = self.lock();
            if state.error[0] & VALID != 0 {
                state.error[0] |= OVERFLOW;
                return;
            }
            state.error = error.words();
            let raises = state.control.contains(GeneralControl::ERROR_INTERRUPT);
            if raises {
                state.cause |= InterruptCause::ERROR;
            }
            raises
        };
        if raises {
            self.sink.raise(MISCELLANEOUS);
        }
    }

    /// A command that asked for it is done.
    pub(super) fn command_done(&self) {
        self.lock().cause |= InterruptCause::COMMAND;
        self.sink.raise(MISCELLANEOUS);
    }

    /// The device has halted.
    pub(super) fn halted(&self) {
        let raises = {
            let mut state = self.lock();
            let raises = state.control.contains(GeneralControl::HALT_INTERRUPT);
            if raises {
                state.cause |= InterruptCause::HALT;
            }
            raises
        };
        if raises {
            self.sink.raise(MISCELLANEOUS);
        }
    }

    /// Whether a descriptor with this PASID, or of a queue without, may name an interrupt by `handle`.
    pub(super) fn may_raise(&self, handle: u16, pasid: Option<u32>) -> bool {
        let state = self.lock();
        let Some(&permission) = state.permissions.get(usize::from(handle)) else { return false };
        let known = state.handles.is_none_or(|handles| handles >> handle & 1 != 0);
        let enabled = permission & Permission::PASID_ENABLE.bits() != 0;
        known && enabled == pasid.is_some() && pasid.is_none_or(|pasid| pasid == permission >> 12)
    }

    /// A descriptor that may raise `handle` is complete.
    pub(super) fn completed(&self, handle: u16) {
        let ignored = Permission::IGNORE.bits();
        let ignores = self.lock().permissions.get(usize::from(handle)).is_none_or(|entry| entry & ignored != 0);
        if !ignores {
            self.sink.raise(handle);
        }
    }

    /// Takes, or gives back, the handle of a vector. Returns whether there is one.
    pub(super) fn set_handle(&self, vector: u32, taken: bool) -> bool {
        let mut state = self.lock();
        let exists = (vector as usize) < state.permissions.len();
        if let (Some(handles), true) = (&mut state.handles, exists) {
            *handles = *handles & !(1 << vector) | u64::from(taken) << vector;
        }
        exists
    }

    /// Reset Device: SWERR stays.
    pub(super) fn reset_device(&self) {
        let mut state = self.lock();
        let power_on = State::power_on(state.permissions.len() as u16, state.handles.is_some());
        *state = State { error: state.error, ..power_on };
    }

    /// A reset of the function.
    pub(super) fn reset_function(&self) {
        let mut state = self.lock();
        *state = State::power_on(state.permissions.len() as u16, state.handles.is_some());
    }

    // Registers.

    pub(super) fn control(&self) -> u32 {
        self.lock().control.bits()
    }

    pub(super) fn write_control(&self, value: u32, mask: u32) {
        let mut state = self.lock();
        let merged = state.control.bits() & !mask | value & mask;
        state.control = GeneralControl::from_bits_truncate(merged);
    }

    pub(super) fn cause(&self) -> u32 {
        self.lock().cause.bits()
    }

    pub(super) fn clear_cause(&self, value: u32) {
        self.lock().cause.remove(InterruptCause::from_bits_truncate(value));
    }

    pub(super) fn error_word(&self, word: usize) -> u64 {
        self.lock().error[word]
    }

    pub(super) fn clear_error(&self, value: u64) {
        self.lock().error[0] &= !(value & (VALID | OVERFLOW));
    }

    pub(super) fn permission(&self, vector: usize) -> u32 {
        self.lock().permissions.get(vector).copied().unwrap_or(0)
    }

    pub(super) fn write_permission(&self, vector: usize, value: u32, mask: u32) {
        if let Some(entry) = self.lock().permissions.get_mut(vector) {
            *entry = (*entry & !mask | value & mask) & PERMISSION_STORED;
        }
    }
}
