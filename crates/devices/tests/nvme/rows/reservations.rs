//! Reservations, as a host sees them that changes its identifier to be another.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode, nvm};
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, Row, admin, feature, io};
use crate::bench::{DATA, NOWHERE, With, command, read, write};

fn be(host: u8) -> Row {
    admin(format!("host {host}"), feature(opcode::SET_FEATURES, 0x81, 1, 0), Status::SUCCESS).with(DATA, [host; 16])
}

fn with_keys(what: &str, code: u8, word: u32, keys: [u64; 2], status: Status) -> Row {
    io(what, command(code, 1).word(10, word).data(DATA, 0), status).with_u64s(DATA, &keys)
}

fn register(what: &str, word: u32, keys: [u64; 2], status: Status) -> Row {
    with_keys(what, nvm::RESERVATION_REGISTER, word, keys, status)
}

fn acquire(what: &str, word: u32, keys: [u64; 2], status: Status) -> Row {
    with_keys(what, nvm::RESERVATION_ACQUIRE, word, keys, status)
}

fn release(what: &str, word: u32, key: u64, status: Status) -> Row {
    with_keys(what, nvm::RESERVATION_RELEASE, word, [key, 0], status)
}

pub(super) fn groups() -> Vec<Group> {
    const WRITE_EXCLUSIVE: u32 = 1 << 8;
    const EXCLUSIVE: u32 = 2 << 8;
    let conflict = Status::RESERVATION_CONFLICT;
    let report = |dwords: u32, extended: u32| {
        command(nvm::RESERVATION_REPORT, 1).word(10, dwords - 1).word(11, extended).data(DATA, 0)
    };
    let rows = vec![
        be(1),
        register("register nowhere", 0, [0, 5], Status::SUCCESS),
        register("register again, another key", 0, [0, 6], conflict),
        register("register again", 0, [0, 5], Status::SUCCESS),
        register("action 3", 3, [5, 6], Status::INVALID_FIELD),
        register("CPTPL 1", 1 << 30, [5, 6], Status::INVALID_FIELD),
        register("replace, wrong key", 2, [9, 6], conflict),
        register("replace", 2, [5, 6], Status::SUCCESS),
        io("keys nowhere", command(nvm::RESERVATION_REGISTER, 1).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        io("register in 99", command(nvm::RESERVATION_REGISTER, 99).data(DATA, 0), Status::INVALID_NAMESPACE),
        acquire("acquire, wrong key", WRITE_EXCLUSIVE, [5, 0], conflict),
        acquire("acquire, type 0", 0, [6, 0], Status::INVALID_FIELD),
        acquire("acquire, type 7", 7 << 8, [6, 0], Status::INVALID_FIELD),
        acquire("acquire, action 3", WRITE_EXCLUSIVE | 3, [6, 0], Status::INVALID_FIELD),
        acquire("acquire, key not compared", WRITE_EXCLUSIVE | 8, [6, 0], Status::INVALID_FIELD),
        io("acquire in 99", command(nvm::RESERVATION_ACQUIRE, 99).data(DATA, 0), Status::INVALID_NAMESPACE),
        acquire("acquire", WRITE_EXCLUSIVE, [6, 0], Status::SUCCESS),
        acquire("acquire again", WRITE_EXCLUSIVE, [6, 0], Status::SUCCESS),
        acquire("acquire another type", EXCLUSIVE, [6, 0], conflict),
        io("write by the holder", write(0, 1), Status::SUCCESS),
        io("report", report(22, 1), Status::SUCCESS).with(DATA, [9; 88]).finds(DATA + 4, [1, 1, 0]),
        io("report, short identifiers", report(6, 0), Status::HOST_IDENTIFIER_INCONSISTENT),
        io("report of too much", report(200_000, 1), Status::INVALID_FIELD),
        io("report in 99", command(nvm::RESERVATION_REPORT, 99).word(11, 1).data(DATA, 0), Status::INVALID_NAMESPACE),
        io("report nowhere", report(6, 1).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        be(2),
        io("write by another", write(0, 1), conflict),
        io("zeroes by another", Command { opcode: nvm::WRITE_ZEROES, ..write(0, 1) }, conflict),
        io("uncorrectable by another", Command { opcode: nvm::WRITE_UNCORRECTABLE, ..write(0, 1) }, conflict),
        io("read by another", read(0, 1), Status::SUCCESS),
        admin("format by another", command(opcode::FORMAT_NVM, 1), conflict),
        acquire("acquire, not registered", WRITE_EXCLUSIVE, [0, 0], conflict),
        release("release, not registered", WRITE_EXCLUSIVE, 6, conflict),
        register("unregister, not registered", 1, [6, 0], conflict),
        register("register", 0, [0, 7], Status::SUCCESS),
        acquire("acquire what is held", WRITE_EXCLUSIVE, [7, 0], conflict),
        acquire("preempt a key that nobody has", EXCLUSIVE | 1, [7, 99], conflict),
        acquire("preempt key 0", EXCLUSIVE | 1, [7, 0], Status::INVALID_FIELD),
        acquire("preempt", EXCLUSIVE | 1, [7, 6], Status::SUCCESS),
        io("write by the new holder", write(0, 1), Status::SUCCESS),
        be(1),
        io("read by the old one", read(0, 1), conflict),
        io("compare by the old one", Command { opcode: nvm::COMPARE, ..read(0, 1) }, conflict),
        io("verify by the old one", Command { opcode: nvm::VERIFY, ..read(0, 1) }, conflict),
        release("release by the old one", EXCLUSIVE, 6, conflict),
        be(2),
        release("release another type", WRITE_EXCLUSIVE, 7, Status::INVALID_FIELD),
        release("action 2", EXCLUSIVE | 2, 7, Status::INVALID_FIELD),
        release("key not compared", EXCLUSIVE | 8, 7, Status::INVALID_FIELD),
        io("release in 99", command(nvm::RESERVATION_RELEASE, 99).data(DATA, 0), Status::INVALID_NAMESPACE),
        release("release", EXCLUSIVE, 7, Status::SUCCESS),
        release("release what is not held", EXCLUSIVE, 7, Status::SUCCESS),
        acquire("acquire again", EXCLUSIVE, [7, 0], Status::SUCCESS),
        release("clear", 1, 7, Status::SUCCESS),
        release("clear what is clear", 1, 7, conflict),
        be(1),
        io("write by anyone", write(0, 1), Status::SUCCESS),
    ];
    vec![Group::new("reservations", rows)]
}
