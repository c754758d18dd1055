//! A slice: one work queue of a device, shown as a device of its own.
//!
//! ```text
//!                ┌────────── DsaSlice ─────────┐            ┌──────────── Dsa ─────────────┐
//!   program A ──▶│ registers, SWERR, MSIXPERM  │            │ queue 0 ─┐                   │
//!                │ portal ── PASID of A? ──────┼── physical ┼▶         ├─ group 0: engine 0 │
//!                └─────────────────────────────┘   PASID    │ queue 1 ─┘                   │
//!   program B ──▶ another ───────────────────────────────── ┼▶                             │
//!                                                           └──────────────────────────────┘
//! ```
//!
//! The host configures the device with [`Dsa::configure_slices`], and it is then the host's: its own registers change
//! nothing, and its own portals take nothing. What a program has is a device with one group, one engine and one queue,
//! whose configuration it can read. It enables, drains, aborts and resets that queue; a dedicated queue it gives a
//! PASID.
//!
//! The program's PASIDs are names of its own. Each is translated when a descriptor is submitted, by a
//! [`PasidTranslation`] of the host's; what comes out goes into transactions and page requests, and is held for as
//! long as the descriptor is in the device. What is in the descriptor does not matter. Members of a batch have the
//! batch's PASID, so theirs never matter. A descriptor with a PASID that is not authorised goes no further than the
//! slice's SWERR.
//!
//! Completion interrupts, errors and command interrupts of the slice's descriptors go to the slice. Queues have their
//! own share of what may be in flight, so pages that one program does not bring cost another nothing; they do share the
//! engines.

use std::sync::Arc;

use ioasid::{Pasid, PasidHold};
use ioasid_vfio::{BarSpec, Model, Spec};
use thiserror::Error;

use super::command::Unit;
use super::config::{Group, check_device, check_queue};
use super::core::Core;
use super::queue::OnBus;
use super::reports::Reports;
use super::spec::command::CommandError;
use super::spec::registers::{DUMMY_PORTAL, DeviceState, PORTALS_SIZE, QueueConfig, QueueMode, USER_INTERRUPTS};
use super::{Dsa, DsaOptions, registers};
use crate::Interrupts;

/// The host's word on which PASIDs a slice may use.
///
/// Called with no lock of the device held, from within submissions.
pub trait PasidTranslation: Send + Sync {
    /// The PASID for transactions of a descriptor that the slice's driver gave `pasid`, or none. `None`: the slice
    /// may not. It is held until the descriptor has left the device, so that it does not come to mean somebody else's
    /// memory before that.
    fn physical(&self, pasid: Option<Pasid>) -> Option<PasidHold>;
}

/// How the host configures a queue that is to be a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceQueue {
    /// Shared or dedicated.
    pub mode: QueueMode,
    /// Entries; those of all queues together are up to 128.
    pub size: u16,
    /// Entries that limited portals of a shared queue may fill.
    pub threshold: u16,
    /// Priority among the queues that share an engine, 1 to 15.
    pub priority: u8,
    /// Descriptors may wait for pages.
    pub block_on_fault: bool,
    /// log2 of the longest transfer, up to 31.
    pub transfer_shift: u8,
    /// log2 of the largest batch, 1 to 10.
    pub batch_shift: u8,
}

impl SliceQueue {
    fn config(&self) -> QueueConfig {
        let (mode, pasid) = match self.mode {
            QueueMode::Shared => (0, QueueConfig::PASID_ENABLE),
            QueueMode::Dedicated => (QueueConfig::DEDICATED, 0),
        };
        let waits = if self.block_on_fault { QueueConfig::BLOCK_ON_FAULT } else { 0 };
        let identity = mode | pasid | waits | u32::from(self.priority & 0xF) << 4;
        let limits = u32::from(self.transfer_shift & 0x1F) | u32::from(self.batch_shift & 0xF) << 5;
        QueueConfig([self.size.into(), self.threshold.into(), identity, limits])
    }
}

/// Why a device cannot be cut into these slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SliceError {
    /// More queues than the device has, or none.
    #[error("{0} slices: a device has a work queue for each, and at least one")]
    Count(usize),
    /// It is enabled, or cut already.
    #[error("the device is in use: it can be cut into slices once, while it is disabled")]
    InUse,
    /// The configuration is not possible, for the reason that a driver would be told.
    #[error("the configuration is not possible: {0:?}")]
    Impossible(CommandError),
}

impl From<CommandError> for SliceError {
    fn from(error: CommandError) -> Self {
        Self::Impossible(error)
    }
}

impl Dsa {
    /// Cuts the device into slices, one for each queue, which share the engines in turn. The device itself is enabled,
    /// and no driver configures it any more.
    ///
    /// # Errors
    /// [`SliceError`]; the device is as it was then.
    pub fn configure_slices(&self, queues: &[SliceQueue]) -> Result<(), SliceError> {
        let options = &self.core.options;
        if queues.is_empty() || queues.len() > options.wqs.into() {
            return Err(SliceError::Count(queues.len()));
        }
        let configs: Vec<QueueConfig> = queues.iter().map(SliceQueue::config).collect();
        let sizes: Vec<u16> = configs.iter().map(QueueConfig::size).collect();
        configs.iter().try_for_each(|config| check_queue(config, options))?;
        let groups = groups(queues.len(), options);
        check_device(&groups, &sizes, options)?;

        let mut control = self.core.lock();
        let own = &mut control.units[super::OWN];
        if own.state != DeviceState::Disabled || own.fixed || own.pending.is_some() {
            return Err(SliceError::InUse);
        }
        own.fixed = true;
        // It shows no queue: whatever is submitted or commanded there, finds none.
        own.queues = 0..0;
        control.groups = groups;
        // A slice's users raise the slice's vectors, and no others.
        control.general = USER_INTERRUPTS;
        for (index, config) in configs.into_iter().enumerate() {
            control.queues[index].config = config;
            control.queues[index].unit = NOBODY;
        }
        Ok(())
    }
}

/// The face of a queue that is no slice yet.
const NOBODY: usize = usize::MAX;

/// Each group has an engine, or several, and each queue a group.
fn groups(queues: usize, options: &DsaOptions) -> Vec<Group> {
    let used = queues.min(options.groups.into()).min(options.engines.into());
    let mut groups = vec![Group::default(); options.groups.into()];
    for queue in 0..queues {
        groups[queue % used].queues[0] |= 1 << queue;
    }
    for engine in 0..usize::from(options.engines) {
        groups[engine % used].engines |= 1 << engine;
    }
    groups
}

/// One work queue of a device, as a device.
///
/// What is said of [`Dsa`] goes for it, too. Dropping it ends the DMA of its queue, which can then be another slice.
pub struct DsaSlice {
    parent: Arc<Dsa>,
    unit: usize,
    translation: Arc<dyn PasidTranslation>,
}

impl DsaSlice {
    /// The slice with queue `index` of a device that [`Dsa::configure_slices`] has cut. Its interrupts go to
    /// `interrupts`. `None` if there is no such queue, or it is a slice already.
    pub fn new(
        parent: &Arc<Dsa>,
        index: u8,
        translation: Arc<dyn PasidTranslation>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Option<Arc<Self>> {
        let options = slice_options(&parent.core.options);
        let reports = Arc::new(Reports::new(interrupts, options.vectors(), options.interrupt_handles));
        let mut control = parent.core.lock();
        let index = usize::from(index);
        let own = index..index + 1;
        // A slice of this queue that is no more has left its face.
        let left = control.units.iter().position(|unit| unit.queues == own);
        let unit = left.unwrap_or(control.units.len());
        control.queues.get_mut(index).filter(|queue| queue.unit == NOBODY)?.unit = unit;
        let face = Unit::new(reports, own, true);
        match control.units.get_mut(unit) {
            Some(old) => *old = face,
            None => control.units.push(face),
        }
        drop(control);
        Some(Arc::new(Self { parent: Arc::clone(parent), unit, translation }))
    }

    /// See [`slice_spec`].
    #[must_use]
    pub fn spec(&self) -> Spec {
        slice_spec(&self.parent)
    }

    fn core(&self) -> &Core {
        &self.parent.core
    }

    fn submit(&self, offset: u64, deferrable: bool, command: &[u8; 64]) -> bool {
        let authorise = |pasid| self.translation.physical(pasid).map(|hold| OnBus::Held(Arc::new(hold)));
        self.parent.submit(self.unit, offset, deferrable, command, authorise)
    }
}

/// What the function of a slice looks like on the bus: the device's, with the portals of one queue and two vectors.
#[must_use]
pub fn slice_spec(parent: &Dsa) -> Spec {
    let mut spec = super::spec(&slice_options(&parent.core.options));
    for bar in spec.bars.iter_mut().filter(|bar| bar.index == 2) {
        *bar = BarSpec { size: PORTALS_SIZE, ..*bar };
    }
    spec
}

fn slice_options(parent: &DsaOptions) -> DsaOptions {
    DsaOptions { wqs: 1, engines: 1, groups: 1, ..parent.clone() }
}

impl Model for DsaSlice {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == 0 {
            registers::read(self.core(), self.unit, offset, data);
        } else {
            data.fill(0xFF);
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        match (bar, <&[u8; 64]>::try_from(data)) {
            (0, _) => registers::write(self.core(), self.unit, offset, data),
            (2, Ok(command)) => {
                self.submit(offset, false, command);
            }
            _ => {}
        }
    }

    fn enqueue(&self, bar: u8, offset: u64, command: &[u8; 64]) -> Option<bool> {
        match bar {
            0 if offset >= DUMMY_PORTAL => Some(false),
            2 => Some(self.submit(offset, true, command)),
            _ => None,
        }
    }

    fn reset(&self) {
        self.parent.reset_unit(self.unit);
    }
}

impl Drop for DsaSlice {
    fn drop(&mut self) {
        // Its DMA must not outlive who asked for it; then the queue can be another's.
        self.parent.reset_unit(self.unit);
        let mut control = self.core().lock();
        let queue = control.units[self.unit].queues.start;
        control.queues[queue].unit = NOBODY;
    }
}
