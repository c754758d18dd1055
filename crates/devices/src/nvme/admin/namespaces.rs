//! Namespaces are created, deleted, attached, detached and formatted.

use super::super::controller::{Controller, Executed, Outcome};
use super::super::namespace::{Format, Metadata, Namespace, WriteProtection};
use super::super::pool::Extent;
use super::super::spec::command::{ALL_NAMESPACES, Command};
use super::super::spec::log::Event;
use super::super::spec::status::Status;
use super::super::subsystem::MOST_NAMESPACES;

/// Bytes of what Namespace Management and Attachment bring.
const DATA: usize = 4096;
/// The controller's identifier.
const CONTROLLER: u16 = 0;
/// Most controllers of a list.
const MOST_CONTROLLERS: u16 = 2047;
/// Bytes that are made zero at once before the registers are looked at.
const AT_ONCE: u64 = 64 << 20;

impl Controller {
    pub(super) fn manage_namespace(&mut self, command: &Command) -> Executed {
        match command.word(10) & 0xF {
            0 if command.word(11) >> 24 != 0 => Err(Status::INVALID_FIELD),
            0 => self.create_namespace(command),
            1 => self.delete_namespaces(command.namespace.get()),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn create_namespace(&mut self, command: &Command) -> Executed {
        let mut data = [0; DATA];
        self.receive(command, &mut data)?;
        let number = |at: usize| {
            let bytes = data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or_default())
        };
        let (size, capacity) = (number(0), number(8));
        let (format, protection, shared) = (data[26], data[29], data[30]);
        let extended = format & 0x10 != 0;
        let (format, metadata) = self.format_of((format & 0xF).into(), extended, protection)?;
        if size == 0 || shared != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if capacity != size {
            return Err(Status::THIN_PROVISIONING_NOT_SUPPORTED);
        }
        let free = (1..=MOST_NAMESPACES).find(|id| !self.subsystem.namespaces.contains_key(id));
        let id = free.ok_or(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE)?;
        let bytes = format.bytes(size).ok_or(Status::NAMESPACE_INSUFFICIENT_CAPACITY)?;
        let extent = self.subsystem.pool.take(bytes).ok_or(Status::NAMESPACE_INSUFFICIENT_CAPACITY)?;
        // The host does not see what a namespace before it held there.
        if let Err(status) = self.erase(extent) {
            self.subsystem.pool.give(extent);
            return Err(status);
        }
        self.subsystem.made += 1;
        let mut namespace = Namespace::new(extent, format, metadata, self.subsystem.made);
        (namespace.count, namespace.attached) = (size, false);
        self.subsystem.namespaces.insert(id, namespace);
        Ok(Outcome::Done(id.into()))
    }

    /// A format by its number, with what metadata is in it: protection information of this type, or none.
    fn format_of(&self, number: usize, extended: bool, protection: u8) -> Result<(Format, Metadata), Status> {
        let format = *self.subsystem.formats.get(number).ok_or(Status::INVALID_FORMAT)?;
        if !format.has_metadata && (extended || protection != 0) || protection > 3 {
            return Err(Status::INVALID_FIELD);
        }
        Ok((format, Metadata { extended, protection }))
    }

    /// Makes every byte zero.
    fn erase(&mut self, extent: Extent) -> Result<(), Status> {
        self.zero_bytes(extent, extent.offset, extent.length)
    }

    /// Makes some bytes zero, as long as there is no reset.
    pub(in crate::nvme) fn zero_bytes(&mut self, extent: Extent, from: u64, length: u64) -> Result<(), Status> {
        let end = from + length;
        for at in (from..end).step_by(AT_ONCE as usize) {
            self.check_reset()?;
            let blocks = self.subsystem.pool.blocks_mut(extent);
            blocks.zero(at, AT_ONCE.min(end - at), true, &|| true).map_err(|_| Status::WRITE_FAULT)?;
        }
        Ok(())
    }

    /// The identifiers that a command is for, of namespaces that are allocated.
    fn chosen(&self, id: u32) -> Result<Vec<u32>, Status> {
        match id {
            ALL_NAMESPACES => Ok(self.subsystem.namespaces.keys().copied().collect()),
            id if self.subsystem.namespaces.contains_key(&id) => Ok(vec![id]),
            _ => Err(Status::INVALID_NAMESPACE),
        }
    }

    fn delete_namespaces(&mut self, id: u32) -> Executed {
        let chosen = self.chosen(id)?;
        let is_protected = |id| {
            self.subsystem.namespaces.get(id).is_some_and(|namespace| namespace.protection != WriteProtection::None)
        };
        if chosen.iter().any(is_protected) {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        self.drain()?;
        for id in chosen {
            if let Some(namespace) = self.subsystem.namespaces.remove(&id) {
                self.subsystem.pool.give(namespace.extent);
                if namespace.attached {
                    self.tell_changed(id);
                }
            }
        }
        Ok(Outcome::Done(0))
    }

    pub(super) fn attach_namespace(&mut self, command: &Command) -> Executed {
        let (id, attaches) = match command.word(10) & 0xF {
            0 => (command.namespace.get(), true),
            1 => (command.namespace.get(), false),
            _ => return Err(Status::INVALID_FIELD),
        };
        let mut data = [0; DATA];
        self.receive(command, &mut data)?;
        let mut words = data.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        let count = words.next().unwrap_or_default();
        let is_ours = (1..=MOST_CONTROLLERS).contains(&count) && words.take(count.into()).eq([CONTROLLER]);
        if !is_ours {
            return Err(Status::CONTROLLER_LIST_INVALID);
        }
        let namespace = self.subsystem.namespaces.get(&id).ok_or(Status::INVALID_NAMESPACE)?;
        match (namespace.attached, attaches) {
            (true, true) => return Err(Status::NAMESPACE_ALREADY_ATTACHED),
            (false, false) => return Err(Status::NAMESPACE_NOT_ATTACHED),
            _ => {}
        }
        self.drain()?;
        if let Some(namespace) = self.subsystem.namespaces.get_mut(&id) {
            namespace.attached = attaches;
        }
        self.tell_changed(id);
        Ok(Outcome::Done(0))
    }

    /// Every block of the namespace is zero then, or of all.
    pub(super) fn format(&mut self, command: &Command) -> Executed {
        let word = command.word(10);
        let (number, extended, protection, erase) = (word & 0xF, word & 0x10 != 0, word >> 5 & 7, word >> 9 & 7);
        let (format, metadata) = self.format_of(number as usize, extended, protection as u8)?;
        // There is no key to be forgotten.
        if erase > 1 {
            return Err(Status::INVALID_FIELD);
        }
        let chosen: Vec<_> = match command.namespace.get() {
            ALL_NAMESPACES => self.subsystem.active().collect(),
            id => {
                self.subsystem.attached(id)?;
                vec![id]
            }
        };
        let host = self.host();
        for id in &chosen {
            self.subsystem.check_writable(*id, &host)?;
            let namespace = self.subsystem.attached(*id)?;
            if format.blocks_in(namespace.extent.length) == 0 {
                return Err(Status::INVALID_FORMAT);
            }
        }
        self.drain()?;
        for id in chosen {
            let extent = self.subsystem.attached(id)?.extent;
            self.erase(extent)?;
            let namespace = self.subsystem.attached(id)?;
            namespace.unmark_all();
            if (namespace.format, namespace.metadata) != (format, metadata) {
                namespace.reformat(format, metadata);
                self.tell_changed(id);
            }
        }
        Ok(Outcome::Done(0))
    }

    fn tell_changed(&mut self, id: u32) {
        self.subsystem.note_changed(id);
        self.happen(Event::NAMESPACE_CHANGED);
    }
}
