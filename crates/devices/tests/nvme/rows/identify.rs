//! Identify.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode};
use ioasid_devices::nvme::spec::identify::cns;
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, admin};
use crate::bench::{DATA, NOWHERE, READ_ONLY, With, command, in_memory};

fn identify(cns: u32, namespace: u32) -> Command {
    command(opcode::IDENTIFY, namespace).word(10, cns).data(DATA, 0)
}

pub(super) fn groups() -> Vec<Group> {
    const ALL: u32 = 0xFFFF_FFFF;
    let invalid = Status::INVALID_NAMESPACE;
    let none = vec![0u8; 64];
    let ids = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>();
    let mut rows = vec![
        admin("controller", identify(cns::CONTROLLER, 0), Status::SUCCESS).finds(DATA, [0x34, 0x12, 0xF4, 0x1A]),
        admin("namespace 1", identify(cns::NAMESPACE, 1), Status::SUCCESS).finds(DATA, 2048u64.to_le_bytes()),
        admin("namespace 2", identify(cns::NAMESPACE, 2), Status::SUCCESS).finds(DATA, 512u64.to_le_bytes()),
        admin("a namespace that is not there", identify(cns::NAMESPACE, 3), Status::SUCCESS).finds(DATA, none.clone()),
        admin("namespace 0", identify(cns::NAMESPACE, 0), invalid),
        admin("namespace 33", identify(cns::NAMESPACE, 33), invalid),
        admin("all namespaces", identify(cns::NAMESPACE, ALL), Status::SUCCESS)
            .finds(DATA, [0; 25])
            .finds(DATA + 25, [1]),
        admin("namespace FFFFFFFE", identify(cns::NAMESPACE, ALL - 1), invalid),
        admin("list from 0", identify(cns::ACTIVE_NAMESPACES, 0), Status::SUCCESS).finds(DATA, ids(&[1, 2, 0])),
        admin("list from 1", identify(cns::ACTIVE_NAMESPACES, 1), Status::SUCCESS).finds(DATA, ids(&[2, 0])),
        admin("list from 2", identify(cns::ACTIVE_NAMESPACES, 2), Status::SUCCESS).finds(DATA, ids(&[0, 0])),
        admin("list from FFFFFFFD", identify(cns::ACTIVE_NAMESPACES, ALL - 2), Status::SUCCESS)
            .finds(DATA, none.clone()),
        admin("list from FFFFFFFE", identify(cns::ACTIVE_NAMESPACES, ALL - 1), invalid),
        admin("list from FFFFFFFF", identify(cns::ACTIVE_NAMESPACES, ALL), invalid),
        admin("descriptors", identify(cns::NAMESPACE_DESCRIPTORS, 1), Status::SUCCESS)
            .finds(DATA, [2, 16, 0, 0])
            .finds(DATA + 20, [4, 1, 0, 0, 0, 0]),
        admin("descriptors of none", identify(cns::NAMESPACE_DESCRIPTORS, 3), Status::INVALID_FIELD),
        admin("descriptors of 0", identify(cns::NAMESPACE_DESCRIPTORS, 0), invalid),
        admin("descriptors of all", identify(cns::NAMESPACE_DESCRIPTORS, ALL), invalid),
        admin("NVM namespace", identify(cns::IO_NAMESPACE, 1), Status::SUCCESS).finds(DATA, none.clone()),
        admin("NVM namespace 0", identify(cns::IO_NAMESPACE, 0), invalid),
        admin("NVM controller", identify(cns::IO_CONTROLLER, 0), Status::SUCCESS).finds(DATA, [7]),
        admin("NVM list", identify(cns::IO_ACTIVE_NAMESPACES, 0), Status::SUCCESS).finds(DATA, ids(&[1, 2, 0])),
        admin("independent", identify(cns::INDEPENDENT_NAMESPACE, 1), Status::SUCCESS).finds(DATA + 14, [1]),
        admin("independent of none", identify(cns::INDEPENDENT_NAMESPACE, 3), Status::SUCCESS)
            .finds(DATA, none.clone()),
        admin("independent of 0", identify(cns::INDEPENDENT_NAMESPACE, 0), invalid),
        admin("allocated list", identify(cns::ALLOCATED_NAMESPACES, 0), Status::SUCCESS).finds(DATA, ids(&[1, 2, 0])),
        admin("allocated list from FFFFFFFF", identify(cns::ALLOCATED_NAMESPACES, ALL), invalid),
        admin("allocated", identify(cns::ALLOCATED_NAMESPACE, 2), Status::SUCCESS).finds(DATA, 512u64.to_le_bytes()),
        admin("allocated 0", identify(cns::ALLOCATED_NAMESPACE, 0), invalid),
        admin("controllers of 1", identify(cns::ATTACHED_CONTROLLERS, 1), Status::SUCCESS).finds(DATA, [1, 0, 0, 0]),
        admin("controllers of 3", identify(cns::ATTACHED_CONTROLLERS, 3), Status::SUCCESS).finds(DATA, [0, 0]),
        admin("controllers of 0", identify(cns::ATTACHED_CONTROLLERS, 0), invalid),
        admin("controllers", identify(cns::CONTROLLERS, 0), Status::SUCCESS).finds(DATA, [1, 0, 0, 0]),
        admin("controllers from 1", identify(cns::CONTROLLERS | 1 << 16, 0), Status::SUCCESS).finds(DATA, [0, 0]),
        admin("command sets", identify(cns::IO_COMMAND_SETS | 0xFFFF << 16, 0), Status::SUCCESS).finds(DATA, [1, 0]),
        admin("command sets of controller 1", identify(cns::IO_COMMAND_SETS | 1 << 16, 0), Status::INVALID_FIELD),
        admin("to where nothing is", identify(cns::CONTROLLER, 0).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        admin("to read-only memory", identify(cns::CONTROLLER, 0).data(READ_ONLY, 0), Status::DATA_TRANSFER_ERROR),
        admin("at an odd address", identify(cns::CONTROLLER, 0).data(DATA + 1, 0), Status::PRP_OFFSET_INVALID),
        admin("in two pages", identify(cns::CONTROLLER, 0).data(DATA + 2048, DATA + 8192), Status::SUCCESS)
            .finds(DATA + 2048, [0x34, 0x12]),
        admin(
            "in two pages, the second odd",
            identify(cns::CONTROLLER, 0).data(DATA + 2048, DATA + 8),
            Status::PRP_OFFSET_INVALID,
        ),
    ];
    for set in [cns::IO_NAMESPACE, cns::IO_CONTROLLER, cns::IO_ACTIVE_NAMESPACES] {
        let command = identify(set, 1).word(11, 2 << 24);
        rows.push(admin(format!("CNS {set:#x} of the zoned command set"), command, Status::INVALID_FIELD));
    }
    for cns in [0x04, 0x09, 0x0A, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1D, 0x80, 0xFF] {
        rows.push(admin(format!("CNS {cns:#x}"), identify(cns, 1), Status::INVALID_FIELD));
    }
    let group = Group::new("identify", rows);
    vec![group.with(|options| options.namespaces.push(in_memory(2 << 20, 12)))]
}
