//! A work queue: its configuration, its state, and what it holds.
//!
//! ```text
//!   unlimited portal ──────────▶ │ size      ┐
//!                                │           │ only for unlimited portals
//!   limited portal ────────────▶ │ threshold ┤
//!                                │           │ entries ──▶ dispatch, while the priority's credit lasts
//!                                └───────────┘
//! ```
//!
//! Each queue belongs to one face of the device, and takes nothing from another.

use std::collections::VecDeque;
use std::sync::Arc;

use ioasid::{Pasid, PasidHold};

use super::spec::descriptor::Descriptor;
use super::spec::registers::{QueueConfig, QueueMode, QueueState};

/// Most submissions of a queue in flight.
pub(super) const IN_FLIGHT: usize = 64;

/// A work queue.
pub(super) struct Queue {
    /// The face that it belongs to.
    pub(super) unit: usize,
    /// WQCFG.
    pub(super) config: QueueConfig,
    pub(super) state: QueueState,
    pub(super) entries: VecDeque<Entry>,
    pub(super) in_flight: usize,
    /// Moves when the queue is enabled.
    pub(super) epoch: u64,
    /// What its priority still lets it dispatch.
    pub(super) credit: u8,
}

/// A descriptor in a queue.
pub(super) struct Entry {
    /// Its number among the submissions, which ascend.
    pub(super) id: u64,
    pub(super) descriptor: Descriptor,
    pub(super) identity: Identity,
}

/// The PASID in transactions.
#[derive(Clone, Default)]
pub(super) enum OnBus {
    #[default]
    None,
    /// As the driver of the whole device names it.
    Named(Pasid),
    /// A slice's: nobody else gets it until the descriptor has left the device.
    Held(Arc<PasidHold>),
}

impl OnBus {
    pub(super) fn named(pasid: Option<Pasid>) -> Self {
        pasid.map_or(Self::None, Self::Named)
    }

    pub(super) fn pasid(&self) -> Option<Pasid> {
        match self {
            Self::None => None,
            Self::Named(pasid) => Some(*pasid),
            Self::Held(hold) => Some(hold.pasid()),
        }
    }
}

/// In whose name a descriptor is carried out.
#[derive(Clone, Default)]
pub(super) struct Identity {
    /// In transactions.
    pub(super) pasid: OnBus,
    /// As the driver knows it.
    pub(super) named: Option<u32>,
    pub(super) privileged: bool,
}

/// Which submissions are meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection {
    /// A bit for each queue.
    pub(super) queues: u64,
    /// Only with this PASID, as the driver knows it.
    pub(super) pasid: Option<u32>,
    /// Only those before.
    pub(super) before: u64,
}

impl Selection {
    pub(super) fn has(&self, queue: usize, pasid: Option<u32>, id: u64) -> bool {
        let right = self.pasid.is_none() || self.pasid == pasid;
        self.queues >> queue & 1 != 0 && id < self.before && right
    }
}

/// How a descriptor reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By a posted write.
    Posted,
    /// By a deferrable write, with the PASID and the privilege that the processor put in; through a limited portal or
    /// not.
    Deferrable { limited: bool },
}

impl Queue {
    pub(super) fn new(unit: usize) -> Self {
        Self {
            unit,
            config: QueueConfig::default(),
            state: QueueState::Disabled,
            entries: VecDeque::new(),
            in_flight: 0,
            epoch: 0,
            credit: 0,
        }
    }

    /// Number of descriptors in it.
    pub(super) fn occupancy(&self) -> u16 {
        self.entries.len() as u16
    }

    pub(super) fn enable(&mut self) {
        self.state = QueueState::Enabled;
        self.epoch += 1;
        self.credit = self.config.priority();
    }

    /// Takes the configuration back: if the host made it, only what the driver could write; else all, or all but the
    /// size.
    pub(super) fn forget(&mut self, fixed: bool, keeps_size: bool) {
        match (fixed, self.config.mode()) {
            (true, QueueMode::Dedicated) => self.config.0[2] &= !QueueConfig::IDENTITY,
            (true, QueueMode::Shared) => {}
            (false, _) => self.config = QueueConfig([if keeps_size { self.config.0[0] } else { 0 }, 0, 0, 0]),
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.entries.is_empty() && self.in_flight < IN_FLIGHT
    }

    /// Takes a descriptor, if there is room.
    pub(super) fn push(&mut self, way: Way, entry: Entry) -> bool {
        let room = match way {
            Way::Deferrable { limited: true } => self.config.threshold(),
            Way::Deferrable { limited: false } | Way::Posted => self.config.size(),
        };
        let fits = self.occupancy() < room;
        if fits {
            self.entries.push_back(entry);
        }
        fits
    }
}
