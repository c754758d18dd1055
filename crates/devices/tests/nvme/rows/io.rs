//! Commands for blocks.

use ioasid_devices::nvme::spec::command::{Command, admin as opcode, nvm};
use ioasid_devices::nvme::spec::status::Status;
use ioasid_devices::nvme::{Backing, NamespaceOptions};

use super::{Group, Row, admin, io};
use crate::bench::{DATA, NOWHERE, PAGE, READ_ONLY, WRITE_ONLY, With, command, pattern, read, write};

fn of(opcode: u8, first: u64, count: u32) -> Command {
    Command { opcode, ..read(first, count) }
}

/// A range of Dataset Management.
fn range(first: u64, count: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(count.to_le_bytes());
    bytes.extend(first.to_le_bytes());
    bytes
}

/// A source of Copy.
fn source(first: u64, count: u16) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[8..16].copy_from_slice(&first.to_le_bytes());
    bytes[16..18].copy_from_slice(&(count - 1).to_le_bytes());
    bytes
}

fn copy(to: u64, ranges: u32) -> Command {
    command(nvm::COPY, 1).long(to).word(12, ranges - 1).data(DATA, DATA + PAGE)
}

fn discard(ranges: u32) -> Command {
    command(nvm::DATASET_MANAGEMENT, 1).word(10, ranges - 1).word(11, 4).data(DATA, 0)
}

const ON_RANGES: [(&str, u8); 7] = [
    ("read", nvm::READ),
    ("write", nvm::WRITE),
    ("compare", nvm::COMPARE),
    ("write zeroes", nvm::WRITE_ZEROES),
    ("write uncorrectable", nvm::WRITE_UNCORRECTABLE),
    ("verify", nvm::VERIFY),
    ("flush", nvm::FLUSH),
];

/// Where namespaces and ranges end.
fn ranges() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, code) in ON_RANGES {
        let on = |namespace: u32| Command { namespace: namespace.into(), ..of(code, 0, 1) };
        rows.extend([
            io(format!("{name} in namespace 0"), on(0), Status::INVALID_NAMESPACE),
            io(format!("{name} in namespace 33"), on(33), Status::INVALID_NAMESPACE),
            io(format!("{name} in namespace 2, which is not there"), on(2), Status::INVALID_FIELD),
        ]);
        if code == nvm::FLUSH {
            continue;
        }
        rows.extend([
            io(format!("{name} in all namespaces"), on(0xFFFF_FFFF), Status::INVALID_NAMESPACE),
            io(format!("{name} of the first block"), of(code, 0, 1), Status::SUCCESS),
            io(format!("{name} of the last block"), of(code, 2047, 1), Status::SUCCESS),
            io(format!("{name} of the block after it"), of(code, 2048, 1), Status::LBA_OUT_OF_RANGE),
            io(format!("{name} across the end"), of(code, 2047, 2), Status::LBA_OUT_OF_RANGE),
            io(format!("{name} at the end of numbers"), of(code, u64::MAX, 1), Status::LBA_OUT_OF_RANGE),
            io(format!("{name} across it"), of(code, u64::MAX - 1, 8), Status::LBA_OUT_OF_RANGE),
            io(format!("{name} of what wraps in bytes"), of(code, 1 << 55, 8), Status::LBA_OUT_OF_RANGE),
        ]);
        // Blocks are zeroes again, and can be read.
        rows.push(io(format!("zeroes after {name}"), of(nvm::WRITE_ZEROES, 0, 2048), Status::SUCCESS));
        rows.push(io(format!("zeroes in the host after {name}"), of(nvm::READ, 0, 8), Status::SUCCESS));
    }
    rows
}

fn transfers() -> Vec<Row> {
    let data = pattern(1024, 3);
    let mut rows = Vec::new();
    for (name, code) in [("read", nvm::READ), ("write", nvm::WRITE), ("compare", nvm::COMPARE), ("verify", nvm::VERIFY)]
    {
        rows.push(io(format!("{name} of more than MDTS"), of(code, 0, 1025), Status::INVALID_FIELD));
    }
    rows.extend([
        io("write", write(5, 2), Status::SUCCESS).with(DATA, data.clone()),
        io("read", read(5, 2), Status::SUCCESS).with(DATA, [0; 1024]).finds(DATA, data.clone()),
        io("read after them", read(7, 1), Status::SUCCESS).finds(DATA, [0; 512]),
        io("compare the same", of(nvm::COMPARE, 5, 2), Status::SUCCESS).with(DATA, data.clone()),
        io("compare another", of(nvm::COMPARE, 5, 2), Status::COMPARE_FAILURE).with(DATA, [1]),
        io("compare with nowhere", of(nvm::COMPARE, 5, 2).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        io("compare with what cannot be read", of(nvm::COMPARE, 5, 2).data(WRITE_ONLY, 0), Status::DATA_TRANSFER_ERROR),
        io("write from nowhere", write(5, 2).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        io("write from what cannot be read", write(5, 2).data(WRITE_ONLY, 0), Status::DATA_TRANSFER_ERROR),
        io("write from what can be read only", write(8, 2).data(READ_ONLY, 0), Status::SUCCESS),
        io("read to nowhere", read(5, 2).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        io("read to what cannot be written", read(5, 2).data(READ_ONLY, 0), Status::DATA_TRANSFER_ERROR),
        io("read to what can be written only", read(5, 2).data(WRITE_ONLY, 0), Status::SUCCESS),
        io("read with FUA", read(5, 2).word(12, 1 << 30 | 1), Status::SUCCESS).finds(DATA, data.clone()),
        io("write with FUA", write(6, 1).word(12, 1 << 30), Status::SUCCESS).with(DATA, [7; 512]),
        io("read what was written", read(5, 2), Status::SUCCESS)
            .finds(DATA, data[..512].to_vec())
            .finds(DATA + 512, [7; 512]),
        // What is not corrected.
        io("uncorrectable", of(nvm::WRITE_UNCORRECTABLE, 5, 1), Status::SUCCESS),
        io("read it", read(5, 1), Status::UNRECOVERED_READ_ERROR),
        io("read it among others", read(0, 8), Status::UNRECOVERED_READ_ERROR),
        io("read its neighbour", read(6, 1), Status::SUCCESS),
        io("compare it", of(nvm::COMPARE, 5, 1), Status::UNRECOVERED_READ_ERROR),
        io("verify it", of(nvm::VERIFY, 5, 1), Status::UNRECOVERED_READ_ERROR),
        io("copy it", copy(100, 1), Status::UNRECOVERED_READ_ERROR).with(DATA, source(5, 1)),
        io("write it", write(5, 1), Status::SUCCESS),
        io("read it then", read(5, 1), Status::SUCCESS),
        io("uncorrectable again", of(nvm::WRITE_UNCORRECTABLE, 5, 3), Status::SUCCESS),
        io("zeroes there", of(nvm::WRITE_ZEROES, 6, 1), Status::SUCCESS),
        io("read the zeroes", read(6, 1), Status::SUCCESS).with(DATA, [1; 512]).finds(DATA, [0; 512]),
        io("read before them", read(5, 1), Status::UNRECOVERED_READ_ERROR),
        io("discard there", discard(1), Status::SUCCESS).with(DATA, range(5, 3)),
        io("read what was discarded", read(5, 3), Status::SUCCESS).finds(DATA, [0; 1536]),
        io("flush", command(nvm::FLUSH, 1), Status::SUCCESS),
        io("flush all", command(nvm::FLUSH, 0xFFFF_FFFF), Status::SUCCESS),
    ]);
    rows
}

fn datasets() -> Vec<Row> {
    let join = |ranges: &[Vec<u8>]| ranges.concat();
    let hint = discard(1).word(11, 3);
    vec![
        io("write all", write(0, 8).data(DATA, 0), Status::SUCCESS).with(DATA, [9; 4096]),
        io("discard 99", Command { namespace: 99.into(), ..discard(1) }, Status::INVALID_NAMESPACE),
        io("hints", hint, Status::SUCCESS).with(DATA, range(0, 8)),
        io("hints beyond the end", hint, Status::LBA_OUT_OF_RANGE).with(DATA, range(2048, 8)),
        io("after hints", read(0, 8), Status::SUCCESS).finds(DATA, [9; 4096]),
        io("discard beyond the end", discard(1), Status::LBA_OUT_OF_RANGE).with(DATA, range(2047, 2)),
        io("discard two, one beyond", discard(2), Status::LBA_OUT_OF_RANGE)
            .with(DATA, join(&[range(0, 8), range(u64::MAX, 1)])),
        io("nothing was discarded", read(0, 8), Status::SUCCESS).finds(DATA, [9; 4096]),
        io("discard nothing", discard(1), Status::SUCCESS).with(DATA, range(0, 0)),
        io("ranges nowhere", discard(1).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        io("ranges at an odd address", discard(1).data(DATA + 1, 0), Status::PRP_OFFSET_INVALID),
        io("discard two", discard(2), Status::SUCCESS).with(DATA, join(&[range(1, 1), range(3, 2)])),
        io("what is left", read(0, 8), Status::SUCCESS)
            .finds(DATA, [9; 512])
            .finds(DATA + 512, [0; 512])
            .finds(DATA + 1024, [9; 512])
            .finds(DATA + 1536, [0; 1024])
            .finds(DATA + 2560, [9; 1536]),
        io("discard by 256 ranges", discard(256), Status::SUCCESS).with(DATA, join(&vec![range(0, 2048); 256])),
        io("nothing is left", read(0, 8), Status::SUCCESS).finds(DATA, [0; 4096]),
    ]
}

fn copies() -> Vec<Row> {
    let data = pattern(4096, 7);
    let (a, b) = (data[512..1536].to_vec(), data[2048..2560].to_vec());
    vec![
        io("write", write(0, 8).data(DATA, 0), Status::SUCCESS).with(DATA, data.clone()),
        io("copy in 99", Command { namespace: 99.into(), ..copy(0, 1) }, Status::INVALID_NAMESPACE),
        io("copy with format 1", copy(100, 1).word(12, 1 << 8), Status::INVALID_FIELD),
        io("copy 129 ranges", copy(100, 129), Status::COMMAND_SIZE_LIMIT_EXCEEDED),
        io("copy a range of 1025 blocks", copy(100, 1), Status::COMMAND_SIZE_LIMIT_EXCEEDED)
            .with(DATA, source(0, 1025)),
        io("copy 3072 blocks", copy(100, 3), Status::COMMAND_SIZE_LIMIT_EXCEEDED)
            .with(DATA, vec![source(0, 1024); 3].concat()),
        io("copy from beyond the end", copy(100, 1), Status::LBA_OUT_OF_RANGE).with(DATA, source(2047, 2)),
        io("copy to beyond the end", copy(2047, 1), Status::LBA_OUT_OF_RANGE).with(DATA, source(0, 2)),
        io("copy to the end of numbers", copy(u64::MAX, 1), Status::LBA_OUT_OF_RANGE).with(DATA, source(0, 2)),
        io("ranges nowhere", copy(100, 1).data(NOWHERE, 0), Status::DATA_TRANSFER_ERROR),
        io("copy", copy(100, 2), Status::SUCCESS).with(DATA, [source(1, 2), source(4, 1)].concat()),
        io("read it", read(100, 3), Status::SUCCESS).finds(DATA, a).finds(DATA + 1024, b),
        io("copy to where it is", copy(1, 1), Status::SUCCESS).with(DATA, source(0, 7)),
        io("read that", read(1, 7), Status::SUCCESS).finds(DATA, data[..3584].to_vec()),
    ]
}

/// Of a namespace that cannot be written.
fn readonly() -> Vec<Row> {
    let protected = Status::NAMESPACE_WRITE_PROTECTED;
    let mut rows: Vec<Row> = [nvm::WRITE, nvm::WRITE_ZEROES, nvm::WRITE_UNCORRECTABLE]
        .into_iter()
        .map(|code| io(format!("{code:#x}"), of(code, 0, 1), protected))
        .collect();
    rows.extend([
        io("copy", copy(100, 1), protected).with(DATA, source(0, 1)),
        io("discard", discard(1), protected).with(DATA, range(0, 1)),
        io("read", read(0, 1), Status::SUCCESS),
        io("flush", command(nvm::FLUSH, 1), Status::SUCCESS),
        admin("format", command(opcode::FORMAT_NVM, 1), protected),
        admin("sanitize", command(opcode::SANITIZE, 0).word(10, 2), protected),
        admin("identify", command(opcode::IDENTIFY, 1).data(DATA, 0), Status::SUCCESS).finds(DATA + 99, [1]),
    ]);
    rows
}

pub(super) fn groups() -> Vec<Group> {
    let namespace =
        NamespaceOptions { backing: Backing::Memory(1 << 20), block_shift: 9, readonly: true, protection: 0 };
    vec![
        Group::new("ranges", ranges()),
        Group::new("transfers", transfers()),
        Group::new("datasets", datasets()),
        Group::new("copies", copies()),
        Group::new("read only", readonly()).with(|options| options.namespaces = vec![namespace]),
    ]
}
