//! Identify: what the controller and its namespaces are.

use super::super::controller::{Controller, Executed, MAX_TRANSFER_SHIFT, Outcome};
use super::super::features::TEMPERATURE;
use super::super::io::{MOST_OF_ALL, MOST_OF_ONE, MOST_RANGES};
use super::super::namespace::{METADATA, Namespace, PLAIN_FORMATS};
use super::super::session::EVENT_REQUESTS;
use super::super::spec::command::{ALL_NAMESPACES, Command};
use super::super::spec::identify::{Structure, cns};
use super::super::spec::registers::VERSION;
use super::super::spec::status::Status;
use super::super::subsystem::{ERRORS, MOST_NAMESPACES, Subsystem};
use super::super::{SUBSYSTEM_VENDOR, VENDOR};

/// What the controller calls itself.
const MODEL: &str = "ioasid NVMe";
/// A locally administered number, as there is no vendor's.
const IEEE: [u8; 3] = [0x00, 0x54, 0x52];

/// Where namespaces begin in a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Attached,
    Allocated,
}

impl Controller {
    pub(super) fn identify(&mut self, command: &Command) -> Executed {
        let id = command.namespace.get();
        let set = command.word(11) >> 24;
        let subsystem = &self.subsystem;
        let structure = match command.word(10) & 0xFF {
            cns::NAMESPACE if id == ALL_NAMESPACES => common_namespace(subsystem),
            cns::NAMESPACE => {
                find(subsystem, id, Which::Attached)?.map(|it| namespace(subsystem, it)).unwrap_or_default()
            }
            cns::ALLOCATED_NAMESPACE => {
                find(subsystem, id, Which::Allocated)?.map(|it| namespace(subsystem, it)).unwrap_or_default()
            }
            cns::CONTROLLER => self.identify_controller(),
            cns::ACTIVE_NAMESPACES => list(subsystem, id, Which::Attached)?,
            cns::ALLOCATED_NAMESPACES => list(subsystem, id, Which::Allocated)?,
            cns::NAMESPACE_DESCRIPTORS => {
                let namespace = find(subsystem, id, Which::Attached)?.ok_or(Status::INVALID_FIELD)?;
                descriptors(&subsystem.name(namespace))
            }
            cns::IO_NAMESPACE if set == 0 => {
                find(subsystem, id, Which::Attached)?;
                Structure::default()
            }
            cns::IO_CONTROLLER if set == 0 => io_controller(),
            cns::IO_ACTIVE_NAMESPACES if set == 0 => list(subsystem, id, Which::Attached)?,
            cns::INDEPENDENT_NAMESPACE => {
                find(subsystem, id, Which::Attached)?.map(|it| independent(subsystem, it)).unwrap_or_default()
            }
            cns::ATTACHED_CONTROLLERS => {
                let namespace = find(subsystem, id, Which::Allocated)?;
                controllers(command, namespace.is_some_and(|namespace| namespace.attached))
            }
            cns::CONTROLLERS => controllers(command, true),
            cns::IO_COMMAND_SETS if matches!(command.word(10) >> 16, 0 | 0xFFFF) => command_sets(),
            _ => return Err(Status::INVALID_FIELD),
        };
        self.send(command, &structure.0)?;
        Ok(Outcome::Done(0))
    }

    fn identify_controller(&self) -> Structure {
        let (total, free) = self.subsystem.pool.capacity();
        let name = format!(
            "nqn.2014.08.org.nvmexpress:{VENDOR:04x}{SUBSYSTEM_VENDOR:04x}{:<20}{MODEL:<40}",
            self.subsystem.serial
        );
        let mut it = Structure::default();
        it.put_u16(0, VENDOR)
            .put_u16(2, SUBSYSTEM_VENDOR)
            .put_text(4, 20, &self.subsystem.serial)
            .put_text(24, 40, MODEL)
            .put_text(64, 8, env!("CARGO_PKG_VERSION"))
            // RAB: 64 commands.
            .put_u8(72, 6)
            .put(73, IEEE)
            // MDTS.
            .put_u8(77, MAX_TRANSFER_SHIFT as u8)
            .put_u32(80, VERSION)
            // OAES: namespaces change.
            .put_u32(92, 1 << 8)
            // CTRATT: host identifiers of 128 bits.
            .put_u32(96, 1)
            // CNTRLTYPE: for I/O.
            .put_u8(111, 1)
            // OACS: format, namespace management, doorbell buffers.
            .put_u16(256, 1 << 1 | 1 << 3 | 1 << 8)
            // ACL, and AERL: each less one.
            .put_u8(258, 3)
            .put_u8(259, EVENT_REQUESTS as u8 - 1)
            // FRMW: one slot, which is read only.
            .put_u8(260, 0x03)
            // LPA: command effects, offsets, telemetry.
            .put_u8(261, 1 << 1 | 1 << 2 | 1 << 3)
            .put_u8(262, ERRORS as u8 - 1)
            // WCTEMP, CCTEMP.
            .put_u16(266, TEMPERATURE + 33)
            .put_u16(268, TEMPERATURE + 43)
            // TNVMCAP, UNVMCAP.
            .put_u64(280, total)
            .put_u64(296, free)
            // KAS: in units of 100 ms.
            .put_u16(320, 1)
            // SANICAP: block erase, overwrite.
            .put_u32(328, 1 << 1 | 1 << 2)
            // SQES, CQES: 64 and 16 bytes.
            .put_u8(512, 0x66)
            .put_u8(513, 0x44)
            .put_u32(516, MOST_NAMESPACES)
            // ONCS: compare, write uncorrectable, dataset management, write zeroes, save and select, reservations,
            // timestamp, verify, copy.
            .put_u16(520, 0x1FF)
            // FUSES: compare and write.
            .put_u16(522, 1)
            // VWC: there is one, and Flush is for all namespaces, too.
            .put_u8(525, 0b111)
            // NWPC: each kind of write protection.
            .put_u8(531, 0b111)
            // OCFS: format 0.
            .put_u16(534, 1)
            // SGLS: of any alignment; bit buckets; longer than the data.
            .put_u32(536, 1 | 1 << 16 | 1 << 18)
            .put(768, name);
        it
    }
}

/// A namespace, if there is one with this identifier.
fn find(subsystem: &Subsystem, id: u32, which: Which) -> Result<Option<&Namespace>, Status> {
    if !Subsystem::is_identifier(id) {
        return Err(Status::INVALID_NAMESPACE);
    }
    let namespace = subsystem.namespaces.get(&id);
    Ok(namespace.filter(|namespace| which == Which::Allocated || namespace.attached))
}

/// The identifiers after `id`.
fn list(subsystem: &Subsystem, id: u32, which: Which) -> Result<Structure, Status> {
    if id >= ALL_NAMESPACES - 1 {
        return Err(Status::INVALID_NAMESPACE);
    }
    let mut it = Structure::default();
    let after = subsystem.namespaces.range(id + 1..);
    let after = after.filter(|(_, namespace)| which == Which::Allocated || namespace.attached);
    for (index, (id, _)) in after.enumerate() {
        it.put_u32(4 * index, *id);
    }
    Ok(it)
}

/// What all namespaces have in common.
fn common_namespace(subsystem: &Subsystem) -> Structure {
    let mut it = Structure::default();
    let formats = subsystem.formats;
    if formats.len() > PLAIN_FORMATS {
        // MC: metadata in the data, or in a buffer of its own. DPC: types 1 to 3, in the last bytes of metadata.
        it.put_u8(27, 0b11).put_u8(28, 0b1_0111);
    }
    it.put_u8(25, formats.len() as u8 - 1)
        // RESCAP: all kinds, kept over a loss of power, and IEKEY as of revision 1.3.
        .put_u8(31, 0xFF)
        // DLFEAT: deallocated blocks read as zeroes, and Write Zeroes deallocates.
        .put_u8(33, 1 | 1 << 3)
        .put_u16(74, MOST_OF_ONE)
        .put_u32(76, MOST_OF_ALL)
        .put_u8(80, (MOST_RANGES - 1) as u8);
    for (index, format) in formats.iter().enumerate() {
        let metadata = if format.has_metadata { METADATA as u16 } else { 0 };
        it.put_u16(128 + 4 * index, metadata).put_u8(128 + 4 * index + 2, format.shift as u8);
    }
    it
}

fn namespace(subsystem: &Subsystem, namespace: &Namespace) -> Structure {
    let mut it = common_namespace(subsystem);
    it.put_u64(0, namespace.count)
        .put_u64(8, namespace.count)
        .put_u64(16, namespace.count)
        .put_u8(26, namespace.format_number())
        // DPS.
        .put_u8(29, namespace.metadata.protection)
        .put_u64(48, namespace.extent.length)
        .put_u8(99, subsystem.is_protected(namespace).into());
    it
}

fn independent(subsystem: &Subsystem, namespace: &Namespace) -> Structure {
    let mut it = Structure::default();
    // RESCAP; NSATTR; NSTAT: ready.
    it.put_u8(2, 0xFF).put_u8(8, subsystem.is_protected(namespace).into()).put_u8(14, 1);
    it
}

fn descriptors(name: &[u8; 16]) -> Structure {
    let mut it = Structure::default();
    // NGUID, and the command set: NVM.
    it.put(0, [2, 16, 0, 0]).put(4, name).put(20, [4, 1, 0, 0]).put_u8(24, 0);
    it
}

fn io_controller() -> Structure {
    let mut it = Structure::default();
    // VSL: Verify is for as much as a transfer.
    it.put_u8(0, MAX_TRANSFER_SHIFT as u8);
    it
}

/// There is one controller, 0: whether it is from CDW10.CNTID on, and one of those meant.
fn controllers(command: &Command, is_one: bool) -> Structure {
    let mut it = Structure::default();
    it.put_u16(0, (is_one && command.word(10) >> 16 == 0).into());
    it
}

fn command_sets() -> Structure {
    let mut it = Structure::default();
    it.put_u64(0, 1);
    it
}
