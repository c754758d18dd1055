//! Blocks with metadata, and with protection information in it (NVM command set specification, 5.2).
//!
//! ```text
//!   the host's        data, and metadata between or beside ──▶ check, or make ──▶ the namespace's
//!                     (none with PRACT)                     ◀── check, or strip ◀──  data … │ metadata, inverted
//! ```
//! Metadata is kept inverted: where nothing was ever written, it reads as ones, which are not checked.
//!
//! The worker itself waits for the files of these commands: they are there to test drivers, not for speed.

use super::super::controller::{Controller, Executed, Outcome};
use super::super::data::{Direction, Layout};
use super::super::namespace::{METADATA, Metadata};
use super::super::spec::command::{Command, control};
use super::super::spec::status::Status;
use super::Range;
use crate::dif::{self, Field};

const FIELD: usize = METADATA as usize;

/// What a command says of protection information.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The controller makes it, and takes it away.
    acts: bool,
    guard: bool,
    application: bool,
    reference: bool,
    /// The reference tag of the first block.
    tag: u32,
    application_tag: u16,
    mask: u16,
}

impl Wanted {
    /// Of CDW12, CDW14 and CDW15.
    pub(super) fn of(command: &Command) -> Self {
        Self::new(command.word(12), command.word(14), command.word(15))
    }

    pub(super) fn new(info: u32, tag: u32, application: u32) -> Self {
        Self {
            acts: info & control::PROTECTION_ACTION != 0,
            guard: info & control::CHECK_GUARD != 0,
            application: info & control::CHECK_APPLICATION != 0,
            reference: info & control::CHECK_REFERENCE != 0,
            tag,
            application_tag: application as u16,
            mask: (application >> 16) as u16,
        }
    }

    /// Checks that this can be asked of blocks from `first` on.
    fn check_sense(self, protection: u8, first: u64) -> Result<(), Status> {
        let is_wrong = match protection {
            1 => self.reference && self.tag != first as u32,
            3 => self.reference,
            _ => false,
        };
        if is_wrong { Err(Status::INVALID_PROTECTION_INFORMATION) } else { Ok(()) }
    }

    /// Whether the controller makes and takes away protection information, if there is some.
    fn acts_on(self, metadata: Metadata) -> bool {
        self.acts && metadata.protection > 0
    }
}

/// Blocks: data, and metadata.
struct Content {
    data: Vec<u8>,
    metadata: Vec<u8>,
    /// Bytes of a block.
    block: usize,
}

impl Content {
    fn new(range: Range) -> Self {
        let block = (range.length / range.count) as usize;
        Self { data: vec![0; range.length as usize], metadata: vec![0; range.count as usize * FIELD], block }
    }

    /// Checks protection information.
    fn check(&self, protection: u8, wanted: Wanted) -> Result<(), Status> {
        if protection == 0 {
            return Ok(());
        }
        let blocks = self.data.chunks(self.block).zip(self.metadata.chunks(FIELD));
        for (index, (data, field)) in (0u32..).zip(blocks) {
            let field = Field::read(field);
            if field.application == u16::MAX && (protection != 3 || field.reference == u32::MAX) {
                continue;
            }
            if wanted.guard && field.guard != dif::guard(0, data) {
                return Err(Status::GUARD_CHECK_ERROR);
            }
            if wanted.application && (field.application ^ wanted.application_tag) & wanted.mask != 0 {
                return Err(Status::APPLICATION_TAG_CHECK_ERROR);
            }
            if wanted.reference && field.reference != wanted.tag.wrapping_add(index) {
                return Err(Status::REFERENCE_TAG_CHECK_ERROR);
            }
        }
        Ok(())
    }

    /// Makes protection information.
    fn protect(&mut self, protection: u8, wanted: Wanted) {
        let blocks = self.data.chunks(self.block).zip(self.metadata.chunks_mut(FIELD));
        for (index, (data, field)) in (0u32..).zip(blocks) {
            let index = if protection == 3 { 0 } else { index };
            let (guard, reference) = (dif::guard(0, data), wanted.tag.wrapping_add(index));
            Field { guard, application: wanted.application_tag, reference }.write(field);
        }
    }

    /// As it is in the host's data, where metadata is between.
    fn interleaved(&self) -> Vec<u8> {
        let blocks = self.data.chunks(self.block).zip(self.metadata.chunks(FIELD));
        blocks.flat_map(|(data, field)| [data, field]).flatten().copied().collect()
    }

    fn separate(&mut self, bytes: &[u8]) {
        let blocks = self.data.chunks_mut(self.block).zip(self.metadata.chunks_mut(FIELD));
        for (bytes, (data, field)) in bytes.chunks(self.block + FIELD).zip(blocks) {
            data.copy_from_slice(&bytes[..self.block]);
            field.copy_from_slice(&bytes[self.block..]);
        }
    }
}

impl Controller {
    /// What metadata a namespace has, if it has some.
    pub(super) fn metadata_of(&self, id: u32) -> Option<Metadata> {
        let namespace = self.subsystem.namespaces.get(&id)?;
        namespace.format.has_metadata.then_some(namespace.metadata)
    }

    fn metadata_at(&self, range: Range) -> Result<u64, Status> {
        let namespace = self.subsystem.namespaces.get(&range.namespace).ok_or(Status::INVALID_NAMESPACE)?;
        Ok(namespace.metadata_byte(range.first))
    }

    fn load(&self, range: Range) -> Result<Content, Status> {
        let mut content = Content::new(range);
        let (blocks, at) = (self.blocks(range.namespace)?, self.metadata_at(range)?);
        let read = blocks.read(range.offset, &mut content.data);
        let read = read.and_then(|()| blocks.read(at, &mut content.metadata));
        read.map_err(|_| Status::UNRECOVERED_READ_ERROR)?;
        content.metadata.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(content)
    }

    fn store(&mut self, range: Range, mut content: Content, durable: bool) -> Result<(), Status> {
        content.metadata.iter_mut().for_each(|byte| *byte = !*byte);
        let at = self.metadata_at(range)?;
        let blocks = self.blocks_mut(range.namespace)?;
        let written = blocks.write(range.offset, &content.data, false);
        let written = written.and_then(|()| blocks.write(at, &content.metadata, durable));
        written.map_err(|_| Status::WRITE_FAULT)?;
        self.unmark(range);
        Ok(())
    }

    /// Where the host has metadata that is beside its data.
    fn metadata_layout(&mut self, command: &Command, length: u64, direction: Direction) -> Result<Layout, Status> {
        let at = command.metadata.get();
        if !at.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        if command.data_kind() != 2 {
            return Ok(Layout::flat(at, length));
        }
        // One descriptor of an SGL is there.
        let mut descriptor = [0; 16];
        self.memory.read(at, &mut descriptor)?;
        let [address, rest] =
            [&descriptor[..8], &descriptor[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()));
        let pointed = Command { data: [address.into(), rest.into()], ..*command };
        self.layout(&pointed, length, direction).map_err(|status| match status {
            Status::DATA_SGL_LENGTH_INVALID => Status::METADATA_SGL_LENGTH_INVALID,
            other => other,
        })
    }

    /// Takes blocks from the host: without metadata, if the controller makes it.
    fn take_content(&mut self, command: &Command, range: Range, metadata: Metadata) -> Result<Content, Status> {
        let mut content = Content::new(range);
        if Wanted::of(command).acts_on(metadata) {
            self.receive(command, &mut content.data)?;
        } else if metadata.extended {
            let mut bytes = vec![0; content.data.len() + content.metadata.len()];
            self.receive(command, &mut bytes)?;
            content.separate(&bytes);
        } else {
            self.receive(command, &mut content.data)?;
            let layout = self.metadata_layout(command, content.metadata.len() as u64, Direction::FromHost)?;
            layout.read(&mut self.memory, 0, &mut content.metadata)?;
        }
        Ok(content)
    }

    pub(super) fn read_protected(&mut self, command: &Command, range: Range, metadata: Metadata) -> Executed {
        let wanted = Wanted::of(command);
        wanted.check_sense(metadata.protection, range.first)?;
        let content = self.load(range)?;
        content.check(metadata.protection, wanted)?;
        if wanted.acts_on(metadata) {
            self.send(command, &content.data)?;
        } else if metadata.extended {
            self.send(command, &content.interleaved())?;
        } else {
            self.send(command, &content.data)?;
            let layout = self.metadata_layout(command, content.metadata.len() as u64, Direction::ToHost)?;
            layout.write(&mut self.memory, 0, &content.metadata)?;
        }
        Ok(Outcome::Done(0))
    }

    pub(super) fn write_protected(&mut self, command: &Command, range: Range, metadata: Metadata) -> Executed {
        let wanted = Wanted::of(command);
        wanted.check_sense(metadata.protection, range.first)?;
        let mut content = self.take_content(command, range, metadata)?;
        if wanted.acts_on(metadata) {
            content.protect(metadata.protection, wanted);
        } else {
            content.check(metadata.protection, wanted)?;
        }
        self.store(range, content, self.is_durable(command))?;
        Ok(Outcome::Done(0))
    }

    /// Protection information is checked, and only the rest compared.
    pub(super) fn compare_protected(&mut self, command: &Command, range: Range, metadata: Metadata) -> Executed {
        let wanted = Wanted::of(command);
        wanted.check_sense(metadata.protection, range.first)?;
        let ours = self.load(range)?;
        ours.check(metadata.protection, wanted)?;
        let theirs = self.take_content(command, range, metadata)?;
        let is_same = ours.data == theirs.data && (metadata.protection > 0 || ours.metadata == theirs.metadata);
        if is_same { Ok(Outcome::Done(0)) } else { Err(Status::COMPARE_FAILURE) }
    }

    pub(super) fn verify_protected(&mut self, command: &Command, range: Range, metadata: Metadata) -> Executed {
        let wanted = Wanted::of(command);
        wanted.check_sense(metadata.protection, range.first)?;
        self.load(range)?.check(metadata.protection, wanted)?;
        Ok(Outcome::Done(0))
    }

    /// Makes data zero, and metadata as it is where nothing was written, or protection information that goes with it.
    pub(super) fn zero_protected(&mut self, range: Range, made: Option<(u8, Wanted)>) -> Result<(), Status> {
        if let Some((protection, wanted)) = made.filter(|(protection, wanted)| *protection > 0 && wanted.acts) {
            wanted.check_sense(protection, range.first)?;
            let mut content = Content::new(range);
            content.protect(protection, wanted);
            return self.store(range, content, false);
        }
        let (extent, at) = (self.subsystem.attached(range.namespace)?.extent, self.metadata_at(range)?);
        self.zero_bytes(extent, range.offset, range.length)?;
        self.zero_bytes(extent, at, range.count * METADATA)?;
        self.unmark(range);
        Ok(())
    }

    /// Copies blocks with their metadata: checked as each source says, and as the destination says, or made anew.
    pub(super) fn copy_protected(
        &mut self,
        command: &Command,
        sources: &[(Range, Wanted)],
        to: Range,
        metadata: Metadata,
    ) -> Executed {
        let wanted = Wanted::of(command);
        wanted.check_sense(metadata.protection, to.first)?;
        let mut all = Content { data: Vec::new(), metadata: Vec::new(), block: Content::new(to).block };
        for (range, checks) in sources {
            checks.check_sense(metadata.protection, range.first)?;
            let content = self.load(*range)?;
            content.check(metadata.protection, *checks)?;
            all.data.extend(content.data);
            all.metadata.extend(content.metadata);
        }
        if wanted.acts_on(metadata) {
            all.protect(metadata.protection, wanted);
        } else {
            all.check(metadata.protection, wanted)?;
        }
        self.store(to, all, self.is_durable(command))?;
        self.subsystem.health.note_written(to.length);
        Ok(Outcome::Done(0))
    }
}
