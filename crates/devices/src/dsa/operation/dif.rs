//! The operations with data integrity fields (T10 DIF): Check, Insert, Strip, Update.
//!
//! ```text
//!   512, 520, 4096 or 4104 bytes of data │ guard │ application tag │ reference tag │      big-endian
//!                                        │   2   │        2        │       4       │
//! ```
//!
//! The guard is the CRC of the data. A step is one block, read and written whole, so that what is partial is a number
//! of whole blocks.

use super::transfer::completed;
use super::{Fault, Memory, Run, place};
use crate::dif::{self, FIELD, Field};
use crate::dsa::spec::completion::{Record, Status};
use crate::dsa::spec::descriptor::Descriptor;

/// Bytes of the longest block.
const LONGEST: usize = 4104;
/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dsa) enum Kind {
    Check,
    Insert,
    Strip,
    Update,
}

impl Kind {
    /// Whether the source has fields.
    fn has_source_fields(self) -> bool {
        self != Self::Insert
    }

    /// Whether the destination has fields.
    fn has_destination_fields(self) -> bool {
        matches!(self, Self::Insert | Self::Update)
    }
}

/// The tags of the next block.
#[derive(Clone, Copy)]
struct Tags {
    reference: u32,
    mask: u16,
    application: u16,
    reference_ascends: bool,
    application_ascends: bool,
}

impl Tags {
    /// From the descriptor: seeds and mask at byte `at`, and a byte of flags.
    fn new(descriptor: &Descriptor, at: usize, flags: u8) -> Self {
        Self {
            reference: descriptor.word(at),
            mask: descriptor.half(at + 4),
            application: descriptor.half(at + 6),
            reference_ascends: flags & 0x80 == 0,
            application_ascends: flags & 0x10 != 0,
        }
    }

    fn ascend(&mut self) {
        self.reference = self.reference.wrapping_add(self.reference_ascends.into());
        self.application = self.application.wrapping_add(self.application_ascends.into());
    }

    /// As the completion record has them.
    fn word(&self) -> u64 {
        u64::from(self.reference) | u64::from(self.mask) << 32 | u64::from(self.application) << 48
    }
}

/// One of the operations.
pub(in crate::dsa) struct Dif {
    kind: Kind,
    from: u64,
    to: u64,
    size: u64,
    /// Bytes of a block.
    block: usize,
    source_flags: u8,
    destination_flags: u8,
    guard_seed: u16,
    invert_guard: bool,
    source: Tags,
    destination: Tags,
    blocks: u64,
}

impl Dif {
    pub(in crate::dsa) fn new(kind: Kind, descriptor: &Descriptor) -> Self {
        let [source_flags, destination_flags, flags] = [descriptor.byte(40), descriptor.byte(41), descriptor.byte(42)];
        Self {
            kind,
            from: descriptor.source.get(),
            to: descriptor.destination.get(),
            size: descriptor.size.get().into(),
            block: [512, 520, 4096, LONGEST][usize::from(flags & 3)],
            source_flags,
            destination_flags,
            guard_seed: if flags & 4 == 0 { 0 } else { 0xFFFF },
            invert_guard: flags & 8 != 0,
            source: Tags::new(descriptor, 48, source_flags),
            destination: Tags::new(descriptor, 56, destination_flags),
            blocks: 0,
        }
    }

    /// Bytes of a block in the source.
    fn source_block(&self) -> usize {
        self.block + if self.kind.has_source_fields() { FIELD } else { 0 }
    }

    /// Bytes of a block in the destination; 0 where nothing is written.
    fn destination_block(&self) -> usize {
        match self.kind {
            Kind::Check => 0,
            Kind::Strip => self.block,
            Kind::Insert | Kind::Update => self.block + FIELD,
        }
    }

    /// Whether the source is whole blocks.
    pub(in crate::dsa) fn is_whole(&self) -> bool {
        self.size.is_multiple_of(self.source_block() as u64)
    }

    /// Bytes of the destination.
    pub(in crate::dsa) fn destination_size(&self) -> u64 {
        self.size / self.source_block() as u64 * self.destination_block() as u64
    }

    fn guard(&self, data: &[u8]) -> u16 {
        let remainder = dif::guard(self.guard_seed, data);
        if self.invert_guard { !remainder } else { remainder }
    }

    /// What is wrong with a field: the DIF status, 0 for nothing.
    fn mistakes(&self, field: Field, guard: u16) -> u8 {
        let flag = |bit: u8| self.source_flags >> bit & 1 != 0;
        let no_application = field.application == 0xFFFF;
        let no_tags = no_application && field.reference == u32::MAX;
        let nothing = no_tags && field.guard == 0xFFFF;
        if flag(1) && nothing {
            return if flag(0) { 0x08 } else { 0 };
        }
        if flag(2) && no_application || flag(3) && no_tags {
            return 0;
        }
        let mask = self.source.mask;
        let mut mistakes = 0;
        if !flag(5) && field.guard != guard {
            mistakes |= 0x01;
        }
        if (field.application ^ self.source.application) & !mask != 0 {
            mistakes |= 0x02;
        }
        if !flag(6) && field.reference != self.source.reference {
            mistakes |= 0x04;
        }
        mistakes
    }

    /// The field that the destination gets.
    fn field(&self, source: Option<Field>, guard: u16) -> Field {
        let own = Field {
            guard,
            application: self.destination.application & !self.destination.mask,
            reference: self.destination.reference,
        };
        let Some(source) = source else { return own };
        let passes = |bit: u8| self.destination_flags >> bit & 1 != 0;
        Field {
            guard: if passes(5) { source.guard } else { own.guard },
            application: if passes(3) { source.application } else { own.application },
            reference: if passes(6) { source.reference } else { own.reference },
        }
    }

    fn record(&self, done: u64) -> Record {
        let source = if self.kind.has_source_fields() { self.source.word() } else { 0 };
        let destination = if self.kind.has_destination_fields() { self.destination.word() } else { 0 };
        Record { specific: [source.into(), destination.into()], ..completed(done) }
    }
}

impl Run for Dif {
    fn step(&mut self, memory: &mut Memory<'_>) -> Result<Option<Record>, Fault> {
        let (length, data) = (self.source_block(), self.block);
        let mut block = [0; LONGEST + FIELD];
        memory.read(place(self.from, self.blocks * length as u64, false)?, &mut block[..length])?;
        let guard = self.guard(&block[..data]);
        let source = self.kind.has_source_fields().then(|| Field::read(&block[data..]));
        let mistakes = source.map_or(0, |field| self.mistakes(field, guard));
        if mistakes != 0 {
            return Ok(Some(Record { status: Status::DifError as u8, result: mistakes, ..self.partial() }));
        }
        if self.kind.has_destination_fields() {
            self.field(source, guard).write(&mut block[data..]);
        }
        let written = self.destination_block();
        if written > 0 {
            memory.write(place(self.to, self.blocks * written as u64, true)?, &block[..written])?;
        }
        self.blocks += 1;
        self.source.ascend();
        self.destination.ascend();
        Ok((self.blocks * length as u64 == self.size).then(|| self.record(0)))
    }

    fn partial(&self) -> Record {
        self.record(self.blocks * self.source_block() as u64)
    }
}
