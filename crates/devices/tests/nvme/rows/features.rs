//! Get and Set Features.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode, nvm};
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, admin, feature, get, io, set};
use crate::bench::{DATA, NOWHERE, With, command, in_memory, write};

const ARBITRATION: u32 = 0x01;
const POWER: u32 = 0x02;
const TEMPERATURE: u32 = 0x04;
const ERROR_RECOVERY: u32 = 0x05;
const WRITE_CACHE: u32 = 0x06;
const QUEUES: u32 = 0x07;
const COALESCING: u32 = 0x08;
const VECTOR: u32 = 0x09;
const ATOMICITY: u32 = 0x0A;
const EVENTS: u32 = 0x0B;
const TIMESTAMP: u32 = 0x0E;
const KEEP_ALIVE: u32 = 0x0F;
const BEHAVIOR: u32 = 0x16;
const SANITIZE: u32 = 0x17;
const PROGRESS: u32 = 0x80;
const HOST: u32 = 0x81;
const NOTIFICATION: u32 = 0x82;
const PERSISTENCE: u32 = 0x83;
const PROTECTION: u32 = 0x84;

const SAVE: u32 = 1 << 31;
const DEFAULT: u32 = 1 << 8;
const SAVED: u32 = 2 << 8;
const CAPABILITIES: u32 = 3 << 8;

/// Of namespace 1.
fn of_one(opcode: u8, id: u32, value: u32) -> Command {
    feature(opcode, id, value, 1)
}

pub(super) fn groups() -> Vec<Group> {
    let final_ = Status::INVALID_FIELD;
    let mut rows = Vec::new();
    // What can be saved, is of a namespace, can be changed.
    for (id, bits) in [
        (ARBITRATION, 5),
        (POWER, 5),
        (TEMPERATURE, 5),
        (ERROR_RECOVERY, 6),
        (WRITE_CACHE, 5),
        (QUEUES, 4),
        (COALESCING, 5),
        (VECTOR, 4),
        (ATOMICITY, 5),
        (EVENTS, 5),
        (TIMESTAMP, 4),
        (KEEP_ALIVE, 4),
        (BEHAVIOR, 4),
        (SANITIZE, 5),
        (PROGRESS, 5),
        (HOST, 4),
        (NOTIFICATION, 6),
        (PERSISTENCE, 6),
        (PROTECTION, 6),
    ] {
        rows.push(admin(format!("{id:#x} can"), get(id | CAPABILITIES), Status::SUCCESS).result(bits));
        if bits & 2 == 0 {
            let not_of_one = Status::FEATURE_NOT_NAMESPACE_SPECIFIC;
            rows.push(admin(format!("{id:#x} of a namespace"), of_one(opcode::GET_FEATURES, id, 0), not_of_one));
            rows.push(admin(format!("{id:#x} set for one"), of_one(opcode::SET_FEATURES, id, 0), not_of_one));
        } else {
            rows.push(admin(format!("{id:#x} of none"), get(id), Status::INVALID_NAMESPACE));
            rows.push(admin(
                format!("{id:#x} by default"),
                of_one(opcode::GET_FEATURES, id | DEFAULT, 0),
                Status::SUCCESS,
            ));
        }
        if bits & 1 == 0 {
            let command = feature(opcode::SET_FEATURES, id | SAVE, 0, u32::from(bits & 2 != 0));
            rows.push(admin(format!("{id:#x} saved"), command, Status::FEATURE_NOT_SAVEABLE));
        }
        rows.push(admin(format!("{id:#x} selected as 4"), get(id | 4 << 8).word(11, 0), final_));
    }
    for id in [0x00, 0x03, 0x0C, 0x0D, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x18, 0x78, 0xC0, 0xFF] {
        rows.push(admin(format!("get {id:#x}"), get(id), final_));
        rows.push(admin(format!("set {id:#x}"), set(id, 0), final_));
    }
    // Numbers: set, read, saved, by default.
    for (id, value, default) in [
        (ARBITRATION, 0x0102_0304, 7),
        (COALESCING, 0x0507, 0),
        (WRITE_CACHE, 0, 1),
        (ATOMICITY, 1, 0),
        (EVENTS, 0x0102, 0),
        (SANITIZE, 1, 0),
        (PROGRESS, 0x55, 0),
        (TEMPERATURE, 0x160, 0x157),
    ] {
        rows.extend([
            admin(format!("set {id:#x}"), set(id, value), Status::SUCCESS),
            admin(format!("get {id:#x}"), get(id), Status::SUCCESS).result(value.into()),
            admin(format!("{id:#x} saved before"), get(id | SAVED), Status::SUCCESS).result(default),
            admin(format!("save {id:#x}"), set(id | SAVE, value), Status::SUCCESS),
            admin(format!("{id:#x} saved after"), get(id | SAVED), Status::SUCCESS).result(value.into()),
            admin(format!("{id:#x} by default"), get(id | DEFAULT), Status::SUCCESS).result(default),
        ]);
    }
    let granted = 63 << 16 | 63;
    let same = |id, value| [set(id, value), get(id)];
    let [set_alive, get_alive] = same(KEEP_ALIVE, 60_000);
    rows.extend([
        admin("power state 0", set(POWER, 0), Status::SUCCESS),
        admin("power state 1", set(POWER, 1), final_),
        admin("queues", get(QUEUES), Status::SUCCESS).result(granted),
        admin("queues, when there are some", set(QUEUES, 3 << 16 | 3), Status::COMMAND_SEQUENCE_ERROR),
        admin("65536 submission queues", set(QUEUES, 0xFFFF), final_),
        admin("65536 completion queues", set(QUEUES, 0xFFFF << 16), final_),
        admin("vector 64", get(VECTOR).word(11, 64), Status::SUCCESS).result(64),
        admin("vector 65", get(VECTOR).word(11, 65), final_),
        admin("vector 65 set", set(VECTOR, 65), final_),
        admin("vector 3 not coalesced", set(VECTOR, 1 << 16 | 3), Status::SUCCESS),
        admin("vector 3", get(VECTOR).word(11, 3), Status::SUCCESS).result(1 << 16 | 3),
        admin("sensor 2", get(TEMPERATURE).word(11, 2 << 16), final_),
        admin("sensor 2 set", set(TEMPERATURE, 2 << 16 | 300), final_),
        admin("threshold of kind 2", set(TEMPERATURE, 2 << 20 | 300), final_),
        admin("under threshold", set(TEMPERATURE, 1 << 20 | 300), Status::SUCCESS),
        admin("under threshold got", get(TEMPERATURE).word(11, 1 << 20), Status::SUCCESS).result(300),
        admin("alive", set_alive, Status::SUCCESS),
        admin("alive got", get_alive, Status::SUCCESS).result(60_000),
        admin("time", set(TIMESTAMP, 0), Status::SUCCESS).with_u64s(DATA, &[1 << 40]),
        admin("time from nowhere", set(TIMESTAMP, 0).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        admin("time got", get(TIMESTAMP), Status::SUCCESS).with_u64s(DATA, &[0]).finds(DATA + 5, [1, 2, 0]),
        admin("behavior", set(BEHAVIOR, 0), Status::SUCCESS).with(DATA, [1; 512]),
        admin("behavior got", get(BEHAVIOR), Status::SUCCESS)
            .with(DATA, [9; 512])
            .finds(DATA, [1; 8])
            .finds(DATA + 8, [0; 504]),
        admin("host of 8 bytes", set(HOST, 0), Status::SUCCESS).with(DATA, [5; 16]),
        admin("host of 8 got", get(HOST), Status::SUCCESS)
            .with(DATA, [9; 16])
            .finds(DATA, [5; 8])
            .finds(DATA + 8, [9; 8]),
        admin("host of 16 bytes", set(HOST, 1), Status::SUCCESS).with(DATA, [6; 16]),
        admin("host of 16 got", get(HOST).word(11, 1), Status::SUCCESS).with(DATA, [9; 16]).finds(DATA, [6; 16]),
        admin("host to nowhere", get(HOST).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        admin("recovery", of_one(opcode::SET_FEATURES, ERROR_RECOVERY, 7), Status::SUCCESS),
        admin("recovery got", of_one(opcode::GET_FEATURES, ERROR_RECOVERY, 0), Status::SUCCESS).result(7),
        admin("recovery of another", feature(opcode::GET_FEATURES, ERROR_RECOVERY, 0, 2), Status::SUCCESS).result(0),
        admin("recovery of none", feature(opcode::GET_FEATURES, ERROR_RECOVERY, 0, 3), final_),
        admin("recovery of 99", feature(opcode::GET_FEATURES, ERROR_RECOVERY, 0, 99), Status::INVALID_NAMESPACE),
        admin("errors for deallocated blocks", of_one(opcode::SET_FEATURES, ERROR_RECOVERY, 1 << 16), final_),
        admin("recovery of all", feature(opcode::SET_FEATURES, ERROR_RECOVERY, 9, 0xFFFF_FFFF), Status::SUCCESS),
        admin("recovery of another then", feature(opcode::GET_FEATURES, ERROR_RECOVERY, 0, 2), Status::SUCCESS)
            .result(9),
        admin("notification", of_one(opcode::SET_FEATURES, NOTIFICATION, 6), Status::SUCCESS),
        admin("notification got", of_one(opcode::GET_FEATURES, NOTIFICATION, 0), Status::SUCCESS).result(6),
        admin("persistence", of_one(opcode::SET_FEATURES, PERSISTENCE, 1), Status::SUCCESS),
        admin("persistence got", of_one(opcode::GET_FEATURES, PERSISTENCE, 0), Status::SUCCESS).result(1),
        // Write protection.
        admin("protection 4", of_one(opcode::SET_FEATURES, PROTECTION, 4), final_),
        admin("protected", of_one(opcode::SET_FEATURES, PROTECTION, 1), Status::SUCCESS),
        admin("protection got", of_one(opcode::GET_FEATURES, PROTECTION, 0), Status::SUCCESS).result(1),
    ]);
    let protected = Status::NAMESPACE_WRITE_PROTECTED;
    for code in [nvm::WRITE, nvm::WRITE_ZEROES, nvm::WRITE_UNCORRECTABLE] {
        rows.push(io(
            format!("{code:#x} to a protected namespace"),
            Command { opcode: code, ..write(0, 1) },
            protected,
        ));
    }
    let discard = command(nvm::DATASET_MANAGEMENT, 1).word(11, 4).data(DATA, 0);
    let one = [0u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rows.extend([
        io("discard in a protected namespace", discard, protected).with(DATA, one),
        admin("format of a protected namespace", command(opcode::FORMAT_NVM, 1), protected),
        admin("sanitize with a protected namespace", command(opcode::SANITIZE, 0).word(10, 2), protected),
        io("a read of a protected namespace", Command { opcode: nvm::READ, ..write(0, 1) }, Status::SUCCESS),
        admin("not protected", of_one(opcode::SET_FEATURES, PROTECTION, 0), Status::SUCCESS),
        io("a write then", write(0, 1), Status::SUCCESS),
        admin("until the power is cycled", of_one(opcode::SET_FEATURES, PROTECTION, 2), Status::SUCCESS),
        admin("the same again", of_one(opcode::SET_FEATURES, PROTECTION, 2), Status::SUCCESS),
        admin("not any more", of_one(opcode::SET_FEATURES, PROTECTION, 0), Status::FEATURE_NOT_CHANGEABLE),
        admin("for good", feature(opcode::SET_FEATURES, PROTECTION, 3, 2), Status::SUCCESS),
        admin("not for good", feature(opcode::SET_FEATURES, PROTECTION, 1, 2), Status::FEATURE_NOT_CHANGEABLE),
    ]);
    vec![Group::new("features", rows).with(|options| options.namespaces.push(in_memory(1 << 20, 9)))]
}
