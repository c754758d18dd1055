//! Opcodes that there are not.

use ioasid_devices::nvme::spec::command::{Fuse, admin as opcode, nvm};
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, admin, io};
use crate::bench::{With, command};

const ADMIN: [u8; 16] = [
    opcode::DELETE_SUBMISSION_QUEUE,
    opcode::CREATE_SUBMISSION_QUEUE,
    opcode::GET_LOG_PAGE,
    opcode::DELETE_COMPLETION_QUEUE,
    opcode::CREATE_COMPLETION_QUEUE,
    opcode::IDENTIFY,
    opcode::ABORT,
    opcode::SET_FEATURES,
    opcode::GET_FEATURES,
    opcode::ASYNC_EVENT_REQUEST,
    opcode::NAMESPACE_MANAGEMENT,
    opcode::NAMESPACE_ATTACHMENT,
    opcode::KEEP_ALIVE,
    opcode::DOORBELL_BUFFER_CONFIG,
    opcode::FORMAT_NVM,
    opcode::SANITIZE,
];

const IO: [u8; 13] = [
    nvm::FLUSH,
    nvm::WRITE,
    nvm::READ,
    nvm::WRITE_UNCORRECTABLE,
    nvm::COMPARE,
    nvm::WRITE_ZEROES,
    nvm::DATASET_MANAGEMENT,
    nvm::VERIFY,
    nvm::RESERVATION_REGISTER,
    nvm::RESERVATION_REPORT,
    nvm::RESERVATION_ACQUIRE,
    nvm::RESERVATION_RELEASE,
    nvm::COPY,
];

pub(super) fn groups() -> Vec<Group> {
    // Those that the specification names and this controller has not.
    let absent = [0x10, 0x11, 0x14, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x20, 0x24, 0x7F, 0x81, 0x82, 0x86, 0xC0, 0xFF];
    let mut rows = Vec::new();
    for code in absent {
        assert!(!ADMIN.contains(&code));
        rows.push(admin(format!("admin {code:#x}"), command(code, 0), Status::INVALID_OPCODE));
    }
    for code in [0x03, 0x06, 0x07, 0x12, 0x18, 0x1D, 0x79, 0x7A, 0x7D, 0x80, 0xFF] {
        assert!(!IO.contains(&code));
        rows.push(io(format!("I/O {code:#x}"), command(code, 1), Status::INVALID_OPCODE));
    }
    // No admin command has an SGL, or is one of two.
    for code in ADMIN {
        rows.push(admin(format!("admin {code:#x} with an SGL"), command(code, 1).flags(0x40), Status::INVALID_FIELD));
        rows.push(admin(format!("admin {code:#x}, fused"), command(code, 1).flags(1), Status::INVALID_FIELD));
    }
    // Of the commands for I/O, a comparison is the first of two, and nothing else.
    for code in IO.into_iter().filter(|code| *code != nvm::COMPARE) {
        let first = command(code, 1).flags(1);
        assert_eq!(first.fuse(), Fuse::First);
        rows.push(io(format!("I/O {code:#x}, first of two"), first, Status::INVALID_FIELD));
        let second = command(code, 1).flags(2);
        rows.push(io(format!("I/O {code:#x}, second of none"), second, Status::ABORTED_FUSED_MISSING));
        rows.push(io(format!("I/O {code:#x}, fused as 3"), command(code, 1).flags(3), Status::INVALID_FIELD));
    }
    vec![Group::new("opcodes", rows)]
}
