//! BAR 0 of a face, word by word.
//!
//! The device and its slices show the same registers. A slice's say: one queue, one group, one engine, nothing to
//! configure but the identity of a dedicated queue.
//!
//! Accesses of any size at any offset have a meaning: each word of 8 bytes sees exactly those of its bytes that are
//! accessed, in ascending order.

use super::command::capability;
use super::core::{Control, Core};
use super::spec::descriptor::Operation;
use super::spec::registers::{
    BAR0_SIZE, DUMMY_PORTAL, DeviceState, GRPCFG_SIZE, GeneralCapability, MAX_BATCH_SHIFT, MAX_TRANSFER_SHIFT,
    QueueCapability, QueueConfig, QueueMode, QueueState, Register, TABLE_OFFSETS, TOTAL_WQ_SIZE, USER_INTERRUPTS,
    VERSION_1_0, WQCFG_SIZE,
};

/// A load from BAR 0 of a face.
pub(super) fn read(core: &Core, unit: usize, offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(&mut *data) {
        *byte = if at < DUMMY_PORTAL { 0 } else { 0xFF };
    }
    for part in parts(offset, data.len()) {
        let word = read_word(core, unit, part.word).to_le_bytes();
        data[part.data].copy_from_slice(&word[part.bytes]);
    }
}

/// A store to BAR 0 of a face.
pub(super) fn write(core: &Core, unit: usize, offset: u64, data: &[u8]) {
    for part in parts(offset, data.len()) {
        let (mut value, mut mask) = ([0; 8], [0; 8]);
        value[part.bytes.clone()].copy_from_slice(&data[part.data.clone()]);
        mask[part.bytes.clone()].fill(0xFF);
        write_word(core, unit, part.word, u64::from_le_bytes(value), u64::from_le_bytes(mask));
    }
}

/// The part of an access that falls on one word.
struct Part {
    /// Offset of the word.
    word: u64,
    /// Bytes of the word.
    bytes: std::ops::Range<usize>,
    /// The same, as bytes of the access.
    data: std::ops::Range<usize>,
}

/// The words before the dummy portal that an access falls on.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let end = offset.saturating_add(len as u64).min(DUMMY_PORTAL.min(BAR0_SIZE));
    let mut at = offset;
    std::iter::from_fn(move || {
        let word = at & !7;
        let stop = end.min(word + 8);
        let part = (at < stop).then(|| Part {
            word,
            bytes: (at - word) as usize..(stop - word) as usize,
            data: (at - offset) as usize..(stop - offset) as usize,
        });
        at = at.max(stop);
        part
    })
}

fn read_word(core: &Core, unit: usize, offset: u64) -> u64 {
    let Some((register, index)) = Register::at(offset) else { return 0 };
    let control = core.lock();
    let face = &control.units[unit];
    match register {
        Register::Version => VERSION_1_0,
        Register::GeneralCapability => {
            let mut bits = GeneralCapability::all();
            bits.set(GeneralCapability::CONFIGURATION, !face.fixed);
            bits.set(GeneralCapability::BLOCK_ON_FAULT, core.options.page_requests);
            bits.register(MAX_TRANSFER_SHIFT, MAX_BATCH_SHIFT)
        }
        Register::QueueCapability => queue_capability(&control, unit),
        Register::GroupCapability => {
            if face.fixed {
                1
            } else {
                control.groups.len() as u64
            }
        }
        Register::EngineCapability => {
            if face.fixed {
                1
            } else {
                core.options.engines.into()
            }
        }
        Register::Operations => {
            if index == 0 {
                Operation::capability()
            } else {
                0
            }
        }
        Register::TableOffsets => {
            if index == 0 {
                TABLE_OFFSETS
            } else {
                0
            }
        }
        Register::GeneralConfig => control.general.into(),
        Register::GeneralControl => face.reports.control().into(),
        Register::GeneralStatus => face.state as u64,
        Register::InterruptCause => face.reports.cause().into(),
        Register::CommandStatus => face.status().into(),
        Register::CommandCapability => capability(&core.options),
        Register::Error => face.reports.error_word(index),
        Register::VectorPermission => face.reports.permission(index).into(),
        Register::GroupConfig => {
            let (group, word) = place(index, GRPCFG_SIZE);
            match (face.fixed, group, word) {
                (true, 0, 0 | 4) => 1,
                (true, ..) => 0,
                (false, ..) => control.groups.get(group).map_or(0, |group| group.word(word)),
            }
        }
        Register::QueueConfig => {
            let (queue, word) = place(index, WQCFG_SIZE);
            face.queues.clone().nth(queue).map_or(0, |queue| queue_word(&control, queue, word))
        }
        Register::Command => 0,
    }
}

fn queue_capability(control: &Control, unit: usize) -> u64 {
    let face = &control.units[unit];
    let mut bits = QueueCapability::all();
    if !face.fixed {
        return bits.register(TOTAL_WQ_SIZE, face.queues.len() as u8);
    }
    let config = &control.queues[face.queues.start].config;
    bits.set(QueueCapability::SHARED, config.mode() == QueueMode::Shared);
    bits.set(QueueCapability::DEDICATED, config.mode() == QueueMode::Dedicated);
    bits.register(config.size(), face.queues.len() as u8)
}

/// Words of 8 bytes of WQCFG.
fn queue_word(control: &Control, queue: usize, word: usize) -> u64 {
    let it = &control.queues[queue];
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    match word {
        0 => pair(it.config.0[0], it.config.0[1]),
        1 => pair(it.config.0[2], it.config.0[3]),
        3 => {
            let fixed = control.units[it.unit].fixed;
            let own = fixed && it.config.mode() == QueueMode::Dedicated;
            let support = if own { QueueConfig::MODE_SUPPORT } else { 0 };
            pair(u32::from(it.occupancy()) | support | (it.state as u32) << 30, 0)
        }
        _ => 0,
    }
}

fn write_word(core: &Core, unit: usize, offset: u64, value: u64, mask: u64) {
    let Some((register, index)) = Register::at(offset) else { return };
    let mut control = core.lock();
    let face = &control.units[unit];
    let (fixed, disabled) = (face.fixed, face.state == DeviceState::Disabled);
    let low = mask as u32;
    match register {
        Register::GeneralConfig if disabled && !fixed => {
            control.general = (control.general & !low | value as u32 & low) & USER_INTERRUPTS;
        }
        Register::GeneralControl => face.reports.write_control(value as u32, low),
        Register::InterruptCause => face.reports.clear_cause(value as u32),
        Register::Command if low != 0 => {
            drop(control);
            core.command(unit, value as u32);
        }
        Register::Error if index == 0 => face.reports.clear_error(value),
        Register::VectorPermission => face.reports.write_permission(index, value as u32, low),
        Register::GroupConfig if disabled && !fixed => {
            let (group, word) = place(index, GRPCFG_SIZE);
            if let Some(group) = control.groups.get_mut(group) {
                group.write_word(word, value, mask);
            }
        }
        Register::QueueConfig => {
            let (queue, word) = place(index, WQCFG_SIZE);
            if let Some(queue) = face.queues.clone().nth(queue) {
                for (half, shift) in [(2 * word, 0), (2 * word + 1, 32)] {
                    write_queue(&mut control, queue, half, (value >> shift) as u32, (mask >> shift) as u32);
                }
            }
        }
        _ => {}
    }
}

/// Writes word `half` of 32 bits of WQCFG, as far as it can be written now.
fn write_queue(control: &mut Control, queue: usize, half: usize, value: u32, mask: u32) {
    let unit = &control.units[control.queues[queue].unit];
    let (fixed, disabled) = (unit.fixed, unit.state == DeviceState::Disabled);
    let it = &mut control.queues[queue];
    let idle = it.state == QueueState::Disabled;
    let writable = match (fixed, half) {
        (false, 0) if disabled => QueueConfig::STORED[0],
        (false, 1) => QueueConfig::STORED[1],
        (false, 2 | 3) if idle => QueueConfig::STORED[half],
        (true, 2) if idle && it.config.mode() == QueueMode::Dedicated => QueueConfig::IDENTITY,
        _ => return,
    };
    let mask = mask & writable;
    it.config.0[half] = it.config.0[half] & !mask | value & mask;
}

/// A word of a table as the index of an entry of so many bytes, and that of a word in it.
fn place(index: usize, entry: u64) -> (usize, usize) {
    let words = (entry / 8) as usize;
    (index / words, index % words)
}
