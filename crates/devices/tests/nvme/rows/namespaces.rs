//! Namespaces are created, deleted, attached, detached, formatted and sanitized.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode};
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, Row, admin, io};
use crate::bench::{DATA, NOWHERE, With, command, in_memory, read};

fn manage(action: u32, namespace: u32) -> Command {
    command(opcode::NAMESPACE_MANAGEMENT, namespace).word(10, action).data(DATA, 0)
}

/// What a host asks for: blocks, capacity, format.
fn wanted(size: u64, capacity: u64, format: u8) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&size.to_le_bytes());
    bytes[8..16].copy_from_slice(&capacity.to_le_bytes());
    bytes[26] = format;
    bytes
}

fn create(what: &str, bytes: Vec<u8>, status: Status) -> Row {
    admin(what, manage(0, 0), status).with(DATA, bytes)
}

fn attach(action: u32, namespace: u32) -> Command {
    command(opcode::NAMESPACE_ATTACHMENT, namespace).word(10, action).data(DATA, 0)
}

fn controllers(ids: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..2].copy_from_slice(&(ids.len() as u16).to_le_bytes());
    for (at, id) in (2..).step_by(2).zip(ids) {
        bytes[at..at + 2].copy_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn format(namespace: u32, word: u32) -> Command {
    command(opcode::FORMAT_NVM, namespace).word(10, word)
}

pub(super) fn groups() -> Vec<Group> {
    let mut shared = wanted(64, 64, 0);
    shared[30] = 1;
    let mut protected = wanted(64, 64, 0);
    protected[29] = 1;
    let ours = controllers(&[0]);
    let rows = vec![
        admin("management 2", manage(2, 1), Status::INVALID_FIELD),
        admin("management 15", manage(15, 1), Status::INVALID_FIELD),
        create("no room", wanted(64, 64, 0), Status::NAMESPACE_INSUFFICIENT_CAPACITY),
        admin("delete what is not there", manage(1, 9), Status::INVALID_NAMESPACE),
        admin("delete 0", manage(1, 0), Status::INVALID_NAMESPACE),
        admin("delete 99", manage(1, 99), Status::INVALID_NAMESPACE),
        admin("delete 2", manage(1, 2), Status::SUCCESS),
        io("a read of what was deleted", Command { namespace: 2.into(), ..read(0, 1) }, Status::INVALID_FIELD),
        create("of nothing", wanted(0, 0, 0), Status::INVALID_FIELD),
        create("thin", wanted(64, 32, 0), Status::THIN_PROVISIONING_NOT_SUPPORTED),
        create("of format 2", wanted(64, 64, 2), Status::INVALID_FORMAT),
        create("shared", shared, Status::INVALID_FIELD),
        create("with protection information", protected, Status::INVALID_FIELD),
        create("too large", wanted(1 << 40, 1 << 40, 0), Status::NAMESPACE_INSUFFICIENT_CAPACITY),
        create("too large for numbers", wanted(u64::MAX, u64::MAX, 1), Status::NAMESPACE_INSUFFICIENT_CAPACITY),
        admin("of another command set", manage(0, 0).word(11, 2 << 24), Status::INVALID_FIELD)
            .with(DATA, wanted(64, 64, 0)),
        admin("from nowhere", manage(0, 0).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        create("64 blocks", wanted(64, 64, 0), Status::SUCCESS).result(2),
        create("32 long blocks", wanted(32, 32, 1), Status::SUCCESS).result(3),
        io("a read of what is not attached", Command { namespace: 2.into(), ..read(0, 1) }, Status::INVALID_FIELD),
        admin("attachment 2", attach(2, 2), Status::INVALID_FIELD).with(DATA, ours.clone()),
        admin("attach to none", attach(0, 2), Status::CONTROLLER_LIST_INVALID).with(DATA, controllers(&[])),
        admin("attach to another", attach(0, 2), Status::CONTROLLER_LIST_INVALID).with(DATA, controllers(&[1])),
        admin("attach to two", attach(0, 2), Status::CONTROLLER_LIST_INVALID).with(DATA, controllers(&[0, 1])),
        admin("attach to 65535", attach(0, 2), Status::CONTROLLER_LIST_INVALID).with(DATA, [0xFF; 4096]),
        admin("attach what is not there", attach(0, 9), Status::INVALID_NAMESPACE).with(DATA, ours.clone()),
        admin("attach, list nowhere", attach(0, 2).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        admin("detach what is not attached", attach(1, 2), Status::NAMESPACE_NOT_ATTACHED).with(DATA, ours.clone()),
        admin("attach", attach(0, 2), Status::SUCCESS).with(DATA, ours.clone()),
        admin("attach twice", attach(0, 2), Status::NAMESPACE_ALREADY_ATTACHED).with(DATA, ours.clone()),
        io("a read of what is attached", Command { namespace: 2.into(), ..read(0, 1) }, Status::SUCCESS),
        io("a read beyond it", Command { namespace: 2.into(), ..read(64, 1) }, Status::LBA_OUT_OF_RANGE),
        admin("detach", attach(1, 2), Status::SUCCESS).with(DATA, ours),
        admin("format what is not attached", format(2, 0), Status::INVALID_FIELD),
        admin("format 99", format(99, 0), Status::INVALID_NAMESPACE),
        admin("format 2 of 2", format(1, 2), Status::INVALID_FORMAT),
        admin("format with metadata", format(1, 0x10), Status::INVALID_FIELD),
        admin("format with protection information", format(1, 1 << 5), Status::INVALID_FIELD),
        admin("format with a key", format(1, 2 << 9), Status::INVALID_FIELD),
        admin("format", format(1, 1 << 9), Status::SUCCESS),
        admin("format to long blocks", format(1, 1), Status::SUCCESS),
        io("a read of a long block", read(255, 1), Status::SUCCESS),
        io("a read beyond them", read(256, 1), Status::LBA_OUT_OF_RANGE),
        admin("format all", format(0xFFFF_FFFF, 0), Status::SUCCESS),
        io("a read of a short block", read(2047, 1), Status::SUCCESS),
        admin("delete all", manage(1, 0xFFFF_FFFF), Status::SUCCESS),
        io("a read of nothing", read(0, 1), Status::INVALID_FIELD),
    ];
    let sanitize = |word| command(opcode::SANITIZE, 0).word(10, word);
    let erase = vec![
        admin("sanitize 0", sanitize(0), Status::INVALID_FIELD),
        admin("sanitize by a key", sanitize(4), Status::INVALID_FIELD),
        admin("sanitize 5", sanitize(5), Status::INVALID_FIELD),
        admin("leave a failure that is none", sanitize(1), Status::SUCCESS),
        admin("overwrite", sanitize(3 | 15 << 4 | 1 << 8).word(11, 0xA5A5_5A5A), Status::SUCCESS),
        admin("sanitize while it goes on", sanitize(2), Status::SANITIZE_IN_PROGRESS),
        admin("format while it goes on", format(1, 0), Status::SANITIZE_IN_PROGRESS),
        admin("identify while it goes on", command(opcode::IDENTIFY, 0).word(10, 1).data(DATA, 0), Status::SUCCESS),
        io("a read while it goes on", read(0, 1), Status::SANITIZE_IN_PROGRESS),
    ];
    let erase = Group::new("sanitize", erase).with(|options| options.namespaces = vec![in_memory(1 << 30, 9)]);
    vec![Group::new("namespaces", rows).with(|options| options.namespaces.push(in_memory(1 << 20, 9))), erase]
}
