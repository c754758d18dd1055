//! Whether what the driver configured is possible: the checks of Enable Device and Enable WQ.
//!
//! A work queue with entries is in one group; a group has queues and engines, or neither; an engine is in one group at
//! the most.
//!
//! ```text
//!   queue 0 ─┐
//!   queue 1 ─┴─ group 0 ─┬─ engine 0          queue 3 ─── group 1 ─── engine 3          queue 2: no entries
//!                        └─ engine 1
//! ```

use super::DsaOptions;
use super::spec::command::CommandError;
use super::spec::registers::{GROUP_FLAGS, MAX_BATCH_SHIFT, MAX_TRANSFER_SHIFT, QueueConfig, QueueMode, TOTAL_WQ_SIZE};

/// GRPCFG of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// A bit for each work queue; there is room for 256.
    pub(super) queues: [u64; 4],
    /// A bit for each engine.
    pub(super) engines: u64,
    pub(super) flags: u64,
}

impl Group {
    /// Word `index` of the configuration.
    pub(super) fn word(&self, index: usize) -> u64 {
        match index {
            0..4 => self.queues[index],
            4 => self.engines,
            5 => self.flags,
            _ => 0,
        }
    }

    /// Writes the bits of `mask` of word `index`.
    pub(super) fn write_word(&mut self, index: usize, value: u64, mask: u64) {
        let merged = self.word(index) & !mask | value & mask;
        match index {
            0..4 => self.queues[index] = merged,
            4 => self.engines = merged,
            5 => self.flags = merged & GROUP_FLAGS,
            _ => {}
        }
    }
}

/// Checks groups and the sizes of queues.
pub(super) fn check_device(groups: &[Group], sizes: &[u16], options: &DsaOptions) -> Result<(), CommandError> {
    if sizes.iter().map(|&size| u32::from(size)).sum::<u32>() > TOTAL_WQ_SIZE.into() {
        return Err(CommandError::QueueSizes);
    }
    let (all_queues, all_engines) = (!0 >> (64 - options.wqs), !0 >> (64 - options.engines));
    let (mut queues, mut engines) = (0, 0);
    for group in groups {
        let [low, high @ ..] = group.queues;
        if high != [0; 3] || low & !all_queues != 0 || low & queues != 0 {
            return Err(CommandError::GroupQueues);
        }
        if group.engines & !all_engines != 0 || group.engines & engines != 0 {
            return Err(CommandError::GroupEngines);
        }
        if (low == 0) != (group.engines == 0) {
            return Err(CommandError::GroupIncomplete);
        }
        queues |= low;
        engines |= group.engines;
    }
    let used = (0..).zip(sizes).fold(0, |bits, (queue, &size)| bits | u64::from(size > 0) << queue);
    if used == queues { Ok(()) } else { Err(CommandError::GroupQueues) }
}

/// Checks the configuration of a queue.
pub(super) fn check_queue(config: &QueueConfig, options: &DsaOptions) -> Result<(), CommandError> {
    let pasid = config.has(QueueConfig::PASID_ENABLE);
    let dedicated = config.mode() == QueueMode::Dedicated;
    let wrong = [
        (config.size() == 0, CommandError::QueueSize),
        (config.priority() == 0, CommandError::Priority),
        (config.has(QueueConfig::BLOCK_ON_FAULT) && !options.page_requests, CommandError::BlockOnFault),
        (pasid && !options.pasids || !pasid && !dedicated, CommandError::PasidEnable),
        (!(1..=MAX_BATCH_SHIFT).contains(&config.batch_shift()), CommandError::BatchSize),
        (config.transfer_shift() > MAX_TRANSFER_SHIFT, CommandError::TransferSize),
        (dedicated && pasid && config.has(QueueConfig::PRIVILEGED) && !options.privileged, CommandError::Privileged),
        (config.has(QueueConfig::ATS_DISABLE), CommandError::AtsDisable),
        (config.has(QueueConfig::PRS_DISABLE), CommandError::PrsDisable),
    ];
    wrong.into_iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, error)| Err(error))
}
