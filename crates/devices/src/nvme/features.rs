//! Features of the controller: what they are now, by default, and saved.
//!
//! Source: base specification, 5.27.1; NVM command set specification, 4.1.3.

use std::time::Duration;

use super::reservation::HostId;

/// Feature identifiers.
pub(super) mod id {
    pub(in crate::nvme) const ARBITRATION: u8 = 0x01;
    pub(in crate::nvme) const POWER_MANAGEMENT: u8 = 0x02;
    pub(in crate::nvme) const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub(in crate::nvme) const ERROR_RECOVERY: u8 = 0x05;
    pub(in crate::nvme) const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub(in crate::nvme) const NUMBER_OF_QUEUES: u8 = 0x07;
    pub(in crate::nvme) const INTERRUPT_COALESCING: u8 = 0x08;
    pub(in crate::nvme) const INTERRUPT_VECTOR: u8 = 0x09;
    pub(in crate::nvme) const WRITE_ATOMICITY: u8 = 0x0A;
    pub(in crate::nvme) const ASYNC_EVENTS: u8 = 0x0B;
    pub(in crate::nvme) const TIMESTAMP: u8 = 0x0E;
    pub(in crate::nvme) const KEEP_ALIVE: u8 = 0x0F;
    pub(in crate::nvme) const HOST_BEHAVIOR: u8 = 0x16;
    pub(in crate::nvme) const SANITIZE: u8 = 0x17;
    pub(in crate::nvme) const SOFTWARE_PROGRESS: u8 = 0x80;
    pub(in crate::nvme) const HOST_IDENTIFIER: u8 = 0x81;
    pub(in crate::nvme) const RESERVATION_NOTIFICATION: u8 = 0x82;
    pub(in crate::nvme) const RESERVATION_PERSISTENCE: u8 = 0x83;
    pub(in crate::nvme) const WRITE_PROTECTION: u8 = 0x84;
}

/// What a feature is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feature {
    pub(super) id: u8,
    /// Its value can be saved.
    pub(super) saveable: bool,
    /// Each namespace has its own.
    pub(super) per_namespace: bool,
    pub(super) changeable: bool,
    /// What it is at first.
    pub(super) default: u32,
    /// The bits that it has.
    pub(super) mask: u32,
}

const fn feature(id: u8, default: u32, mask: u32) -> Feature {
    Feature { id, saveable: false, per_namespace: false, changeable: true, default, mask }
}

impl Feature {
    const fn saveable(self) -> Self {
        Self { saveable: true, ..self }
    }

    const fn per_namespace(self) -> Self {
        Self { per_namespace: true, ..self }
    }
}

/// 343 K: what over temperature is.
const OVER_TEMPERATURE: u32 = 0x157;
/// 310 K.
pub(super) const TEMPERATURE: u16 = 310;

/// All that there are.
const FEATURES: [Feature; 19] = [
    // A burst without limit.
    feature(id::ARBITRATION, 0x7, 0xFFFF_FF07).saveable(),
    feature(id::POWER_MANAGEMENT, 0, 0xFF).saveable(),
    feature(id::TEMPERATURE_THRESHOLD, OVER_TEMPERATURE, 0x003F_FFFF).saveable(),
    feature(id::ERROR_RECOVERY, 0, 0x1_FFFF).per_namespace(),
    feature(id::VOLATILE_WRITE_CACHE, 1, 1).saveable(),
    feature(id::NUMBER_OF_QUEUES, 0, 0xFFFF_FFFF),
    feature(id::INTERRUPT_COALESCING, 0, 0xFFFF).saveable(),
    feature(id::INTERRUPT_VECTOR, 0, 0x1_FFFF),
    feature(id::WRITE_ATOMICITY, 0, 1).saveable(),
    feature(id::ASYNC_EVENTS, 0, 0xFFFF).saveable(),
    feature(id::TIMESTAMP, 0, 0),
    feature(id::KEEP_ALIVE, 0, 0xFFFF_FFFF),
    feature(id::HOST_BEHAVIOR, 0, 0),
    feature(id::SANITIZE, 0, 1).saveable(),
    feature(id::SOFTWARE_PROGRESS, 0, 0xFF).saveable(),
    feature(id::HOST_IDENTIFIER, 0, 1),
    feature(id::RESERVATION_NOTIFICATION, 0, 0xE).per_namespace(),
    feature(id::RESERVATION_PERSISTENCE, 0, 1).per_namespace(),
    feature(id::WRITE_PROTECTION, 0, 7).per_namespace(),
];

/// What there is to know of a feature.
pub(super) fn find(id: u8) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.id == id)
}

/// The values of those that are numbers and the controller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Features {
    values: [u32; FEATURES.len()],
    /// The host's identifier, of 16 bytes or of 8.
    pub(super) host: HostId,
    /// It is of 16 bytes.
    pub(super) has_long_identifier: bool,
    /// Vectors whose interrupts are not coalesced.
    uncoalesced: [u64; 2],
    /// What the host has said of its behaviour.
    pub(super) behavior: [u8; 8],
    /// Below which temperature the host wants to be told.
    pub(super) under_temperature: u16,
    /// The host's time in ms, as it said it, and when it did.
    pub(super) timestamp: Option<(u64, std::time::Instant)>,
}

impl Default for Features {
    fn default() -> Self {
        let values = FEATURES.map(|feature| feature.default);
        Self {
            values,
            host: [0; 16],
            has_long_identifier: false,
            uncoalesced: [0; 2],
            behavior: [0; 8],
            under_temperature: 0,
            timestamp: None,
        }
    }
}

impl Features {
    fn index(id: u8) -> Option<usize> {
        FEATURES.iter().position(|feature| feature.id == id)
    }

    /// The value of a feature, zero of one that there is not.
    pub(super) fn get(&self, id: u8) -> u32 {
        Self::index(id).map_or(0, |index| self.values[index])
    }

    pub(super) fn set(&mut self, id: u8, value: u32) {
        if let Some(index) = Self::index(id) {
            self.values[index] = value & FEATURES[index].mask;
        }
    }

    /// Of a vector: its number, and in bit 16 that its interrupts are not coalesced.
    pub(super) fn vector(&self, vector: u16) -> u32 {
        let is_set = self.uncoalesced[usize::from(vector / 64)] & 1 << (vector % 64) != 0;
        u32::from(vector) | u32::from(is_set) << 16
    }

    pub(super) fn set_vector(&mut self, vector: u16, uncoalesced: bool) {
        let (word, bit) = (&mut self.uncoalesced[usize::from(vector / 64)], 1 << (vector % 64));
        *word = *word & !bit | if uncoalesced { bit } else { 0 };
    }

    /// Whether interrupts of a queue wait for more completions: for how many, and for how long.
    pub(super) fn coalescing(&self, queue: u16, vector: u16) -> Option<(u32, Duration)> {
        let value = self.get(id::INTERRUPT_COALESCING);
        let (threshold, time) = (value & 0xFF, value >> 8 & 0xFF);
        let applies = queue != 0 && threshold > 0 && time > 0 && self.vector(vector) >> 16 == 0;
        applies.then(|| (threshold + 1, Duration::from_micros(100) * time))
    }

    /// Whether there is a volatile write cache.
    pub(super) fn caches_writes(&self) -> bool {
        self.get(id::VOLATILE_WRITE_CACHE) & 1 != 0
    }

    /// Commands of a queue that are taken at once.
    pub(super) fn burst(&self) -> usize {
        match self.get(id::ARBITRATION) & 7 {
            7 => usize::MAX,
            shift => 1 << shift,
        }
    }

    /// Commands of a priority that are taken in a round: urgent, high, medium, low.
    pub(super) fn weight(&self, priority: u8) -> usize {
        let arbitration = self.get(id::ARBITRATION);
        match priority {
            0 => usize::MAX,
            priority => (arbitration >> (32 - 8 * u32::from(priority)) & 0xFF) as usize + 1,
        }
    }
}
