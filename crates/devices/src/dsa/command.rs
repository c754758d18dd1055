//! Commands: what a write to CMD does, for the device or for a slice of it.
//!
//! ```text
//!   CMD ──▶ refused ───────────────────────────────────────┐
//!       ──▶ stop accepting, abandon ──▶ pending ─ settled ─┴▶ CMDSTS, interrupt
//!                                         ▲        │
//!                                         └────────┘ whatever is waited for is still there
//! ```
//!
//! A command that waits for nothing is done when the write returns. One that waits is active until the last submission
//! that it waits for is retired; submissions are numbered, so later ones do not hold it up. A face has one command at a
//! time.
//!
//! A slice's commands reach its own queue and nothing else. What its driver cannot configure stays as it is: a reset
//! takes away the identity of the queue only.

use std::ops::Range;
use std::sync::Arc;

use super::DsaOptions;
use super::config::{Group, check_device, check_queue};
use super::core::{Control, Core, Later};
use super::queue::Selection;
use super::reports::{Reports, SoftError};
use super::spec::command::{ACTIVE, Command, CommandError, IMS, REQUEST_INTERRUPT, RESERVED};
use super::spec::completion::other;
use super::spec::registers::{DeviceState, QueueState};

/// A face of the device: what one function shows of it.
pub(super) struct Unit {
    pub(super) reports: Arc<Reports>,
    /// The queues that it shows.
    pub(super) queues: Range<usize>,
    /// The host configured it; the driver cannot.
    pub(super) fixed: bool,
    pub(super) state: DeviceState,
    /// CMDSTS, `ACTIVE` apart.
    status: u32,
    pub(super) pending: Option<Pending>,
}

/// A command that waits.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    command: Command,
    /// The queues that it is for.
    queues: u64,
    pub(super) waits_for: Selection,
    /// It asked for an interrupt.
    pub(super) interrupts: bool,
}

impl Unit {
    /// At power-on; `fixed` if its driver can configure nothing.
    pub(super) fn new(reports: Arc<Reports>, queues: Range<usize>, fixed: bool) -> Self {
        Self { reports, queues, fixed, state: DeviceState::Disabled, status: 0, pending: None }
    }

    /// CMDSTS.
    pub(super) fn status(&self) -> u32 {
        if self.pending.is_some() { ACTIVE } else { self.status }
    }

    /// A bit for each of its queues.
    pub(super) fn all(&self) -> u64 {
        self.queues.clone().fold(0, |bits, queue| bits | 1 << queue)
    }

    /// The queues in an operand, which has a bit for each of sixteen.
    fn named(&self, operand: u32) -> Option<u64> {
        let (which, bits) = (operand >> 16, u64::from(operand & 0xFFFF));
        (which == 0 && bits >> self.queues.len() == 0).then(|| bits << self.queues.start)
    }

    /// A reset of the function.
    pub(super) fn power_on(&mut self) {
        self.state = DeviceState::Disabled;
        self.status = 0;
        self.pending = None;
    }
}

/// The commands that a device has.
pub(super) fn capability(options: &DsaOptions) -> u64 {
    let handles = Command::RequestHandle.bit() | Command::ReleaseHandle.bit();
    let all = Command::ALL.into_iter().fold(0, |bits, command| bits | command.bit());
    if options.interrupt_handles { all } else { all & !handles }
}

impl Core {
    /// CMD of a face is written.
    pub(super) fn command(&self, unit: usize, value: u32) {
        let reports = self.change(|control, later| {
            if control.units[unit].pending.is_some() {
                return Some(Arc::clone(&control.units[unit].reports));
            }
            let interrupts = value & REQUEST_INTERRUPT != 0;
            match control.begin(unit, value, &self.options, later) {
                Ok(Some(pending)) => {
                    control.units[unit].pending = Some(Pending { interrupts, ..pending });
                    control.settle(later);
                }
                Ok(None) => control.answer_command(unit, 0, interrupts, later),
                Err(error) => control.answer_command(unit, error as u32, interrupts, later),
            }
            None
        });
        if let Some(reports) = reports {
            reports.error(SoftError::new(other::COMMAND_ACTIVE));
        }
    }
}

impl Control {
    /// Begins a command. Returns it if it may have to wait.
    fn begin(
        &mut self,
        unit: usize,
        value: u32,
        options: &DsaOptions,
        later: &mut Later,
    ) -> Result<Option<Pending>, CommandError> {
        let known = |command: &Command| capability(options) & command.bit() != 0;
        let command = Command::of(value).filter(known).ok_or(CommandError::Unsupported)?;
        if value & RESERVED != 0 {
            return Err(CommandError::Reserved);
        }
        let face = &self.units[unit];
        if face.state == DeviceState::Halted && command != Command::ResetDevice {
            return Err(CommandError::Halted);
        }
        let operand = value & 0xF_FFFF;
        let all = face.all();
        let enabled = |control: &Self, queue: usize| control.queues[queue].state == QueueState::Enabled;

        // The queues that are meant, and whether they stop, and whether what they have is abandoned.
        let (queues, stops, abandons) = match command {
            Command::EnableDevice => return self.enable_device(unit, options).map(|()| None),
            Command::EnableQueue => return self.enable_queue(unit, operand, options).map(|()| None),
            Command::RequestHandle | Command::ReleaseHandle => {
                self.units[unit].status = 0;
                return self.change_handle(unit, operand, command == Command::RequestHandle).map(|()| None);
            }
            Command::DisableDevice if face.state != DeviceState::Enabled => return Err(CommandError::NotEnabled),
            Command::DisableDevice => (all, true, false),
            Command::ResetDevice => (all, true, true),
            Command::DrainAll | Command::DrainPasid => (all, false, false),
            Command::AbortAll | Command::AbortPasid => (all, false, true),
            Command::DisableQueue | Command::DrainQueue | Command::AbortQueue | Command::ResetQueue => {
                let queues = face.named(operand).ok_or(CommandError::QueueIndex)?;
                let resets = command == Command::ResetQueue;
                let mut named = (0..self.queues.len()).filter(|queue| queues >> queue & 1 != 0);
                if !resets && !named.all(|queue| enabled(self, queue)) {
                    return Err(CommandError::QueueNotEnabled);
                }
                let disables = resets || command == Command::DisableQueue;
                (queues, disables, resets || command == Command::AbortQueue)
            }
        };
        let pasid = matches!(command, Command::DrainPasid | Command::AbortPasid).then_some(operand);
        let waits_for = Selection { queues, pasid, before: self.next_id() };
        if stops {
            for queue in (0..self.queues.len()).filter(|queue| queues >> queue & 1 != 0) {
                if enabled(self, queue) {
                    self.queues[queue].state = QueueState::Draining;
                }
            }
            if matches!(command, Command::DisableDevice | Command::ResetDevice) {
                self.units[unit].state = DeviceState::Draining;
            }
        }
        if abandons {
            self.abandon(waits_for, later);
        }
        Ok(Some(Pending { command, queues, waits_for, interrupts: false }))
    }

    /// A command is done.
    fn answer_command(&mut self, unit: usize, error: u32, interrupts: bool, later: &mut Later) {
        let face = &mut self.units[unit];
        // A result is there already; it has its own bits.
        face.status = if error == 0 { face.status & !0xFF } else { error };
        if interrupts {
            self.tell_command_done(unit, later);
        }
    }

    /// What a command waited for is done.
    pub(super) fn finish(&mut self, unit: usize, later: &mut Later) {
        let Some(pending) = self.units[unit].pending.take() else { return };
        let fixed = self.units[unit].fixed;
        let device = matches!(pending.command, Command::DisableDevice | Command::ResetDevice);
        let resets = matches!(pending.command, Command::ResetDevice | Command::ResetQueue);
        let stops = device || resets || pending.command == Command::DisableQueue;
        for queue in (0..self.queues.len()).filter(|queue| pending.queues >> queue & 1 != 0) {
            let it = &mut self.queues[queue];
            if stops {
                it.state = QueueState::Disabled;
            }
            if resets {
                it.forget(fixed, !device);
            }
        }
        if device {
            self.units[unit].state = DeviceState::Disabled;
        }
        if pending.command == Command::ResetDevice {
            self.units[unit].reports.reset_device();
            if !fixed {
                self.general = 0;
                self.groups.fill(Group::default());
            }
        }
        self.units[unit].status = 0;
        if pending.interrupts {
            self.tell_command_done(unit, later);
        }
    }

    fn enable_device(&mut self, unit: usize, options: &DsaOptions) -> Result<(), CommandError> {
        let face = &self.units[unit];
        if face.state != DeviceState::Disabled {
            return Err(CommandError::DeviceEnabled);
        }
        if !face.fixed {
            let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.config.size()).collect();
            check_device(&self.groups, &sizes, options)?;
        }
        self.units[unit].state = DeviceState::Enabled;
        self.units[unit].status = 0;
        Ok(())
    }

    fn enable_queue(&mut self, unit: usize, operand: u32, options: &DsaOptions) -> Result<(), CommandError> {
        let face = &self.units[unit];
        if face.state != DeviceState::Enabled {
            return Err(CommandError::DeviceNotEnabled);
        }
        let index = operand as usize;
        if index >= face.queues.len() {
            return Err(CommandError::QueueIndex);
        }
        let queue = face.queues.start + index;
        let it = &mut self.queues[queue];
        if it.state != QueueState::Disabled {
            return Err(CommandError::QueueEnabled);
        }
        check_queue(&it.config, options)?;
        it.enable();
        self.units[unit].status = 0;
        Ok(())
    }

    fn change_handle(&mut self, unit: usize, operand: u32, taken: bool) -> Result<(), CommandError> {
        let vector = operand & 0xFFFF;
        if operand & IMS != 0 || !self.units[unit].reports.set_handle(vector, taken) {
            return Err(CommandError::InterruptIndex);
        }
        self.units[unit].status = if taken { vector << 8 } else { 0 };
        Ok(())
    }
}
