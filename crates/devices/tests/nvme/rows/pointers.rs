//! PRPs and SGLs.

use ioasid_devices::nvme::spec::command::{Command, nvm};
use ioasid_devices::nvme::spec::status::Status;

use super::{Group, Row, io};
use crate::bench::{DATA, LISTS, NOWHERE, PAGE, READ_ONLY, WRITE_ONLY, With, command, read};

const BLOCK: u8 = 0x00;
const BUCKET: u8 = 0x10;
const SEGMENT: u8 = 0x20;
const LAST: u8 = 0x30;

fn descriptor(kind: u8, address: u64, length: u32) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([0, 0, 0, kind]);
    bytes
}

/// A read of blocks with this descriptor.
fn sgl(count: u32, kind: u8, address: u64, length: u32) -> Command {
    read(0, count).flags(0x40).data(address, u64::from(length) | u64::from(kind) << 56)
}

fn prps() -> Vec<Row> {
    let pages = |count: u64| (0..count).map(|page| DATA + 2 * page * PAGE).collect::<Vec<_>>();
    let odd = {
        let mut pages = pages(8);
        pages[5] += 4;
        pages
    };
    let nowhere = {
        let mut pages = pages(8);
        pages[5] = NOWHERE;
        pages
    };
    // A list at the end of a page: the last entry is where it goes on.
    let near_end = LISTS + PAGE - 16;
    let split = [DATA, LISTS + PAGE];
    let write = |first, count| Command { opcode: nvm::WRITE, ..read(first, count) };
    vec![
        io("what there is", write(0, 128).data(DATA, LISTS), Status::SUCCESS)
            .with(DATA, crate::bench::pattern(65536, 1))
            .with_u64s(LISTS, &(1..16).map(|page| DATA + page * PAGE).collect::<Vec<_>>()),
        io("an odd address", read(0, 1).data(DATA + 1, 0), Status::PRP_OFFSET_INVALID),
        io("an address of 2 bytes", read(0, 1).data(DATA + 2, 0), Status::PRP_OFFSET_INVALID),
        io("an address of 4 bytes", read(0, 1).data(DATA + 4, 0), Status::SUCCESS),
        io("two parts", read(0, 2).data(DATA + PAGE - 512, DATA), Status::SUCCESS),
        io("the second with an offset", read(0, 2).data(DATA + PAGE - 512, DATA + 4), Status::PRP_OFFSET_INVALID),
        io("the second not needed", read(0, 1).data(DATA, DATA + 3), Status::SUCCESS),
        io("the second nowhere", read(0, 16).data(DATA, NOWHERE), Status::DATA_TRANSFER_ERROR),
        io("a list at an odd address", read(0, 32).data(DATA, LISTS + 4), Status::PRP_OFFSET_INVALID),
        io("a list that is nowhere", read(0, 32).data(DATA, NOWHERE), Status::DATA_TRANSFER_ERROR),
        io("a list that cannot be read", read(0, 32).data(DATA, WRITE_ONLY), Status::DATA_TRANSFER_ERROR),
        io("a list with an offset", read(0, 32).data(DATA, LISTS + 8), Status::SUCCESS).with_u64s(LISTS + 8, &pages(8)),
        io("a list with an odd page", read(0, 64).data(DATA, LISTS), Status::PRP_OFFSET_INVALID).with_u64s(LISTS, &odd),
        io("a list with a page nowhere", read(0, 64).data(DATA, LISTS), Status::DATA_TRANSFER_ERROR)
            .with_u64s(LISTS, &nowhere),
        io("a list that goes on", read(0, 32).data(DATA, near_end), Status::SUCCESS)
            .with_u64s(near_end, &split)
            .with_u64s(LISTS + PAGE, &[DATA + PAGE, DATA + 2 * PAGE]),
        io("a list that ends with its page", read(0, 24).data(DATA, near_end), Status::SUCCESS)
            .with_u64s(near_end, &[DATA + PAGE, DATA + 2 * PAGE]),
        io("a list that goes on at an odd address", read(0, 32).data(DATA, near_end), Status::PRP_OFFSET_INVALID)
            .with_u64s(near_end, &[DATA, LISTS + PAGE + 8]),
        io("a list that goes on nowhere", read(0, 32).data(DATA, near_end), Status::DATA_TRANSFER_ERROR)
            .with_u64s(near_end, &[DATA, NOWHERE]),
        io("a list that goes on in itself", read(0, 1024).data(DATA, LISTS + PAGE - 8), Status::PRP_OFFSET_INVALID)
            .with_u64s(LISTS + PAGE - 8, &[LISTS + PAGE - 8]),
        io("a list that is a loop", read(0, 1024).data(DATA, LISTS + PAGE - 8), Status::DATA_TRANSFER_ERROR)
            .with(LISTS, [0; 4096])
            .with_u64s(LISTS + PAGE - 8, &[LISTS]),
        io("as much as there may be", read(0, 1024).data(DATA, LISTS), Status::SUCCESS)
            .with_u64s(LISTS, &(0..127).map(|page| DATA + page * PAGE).collect::<Vec<_>>()),
        io("PSDT 3", read(0, 1).flags(0xC0), Status::INVALID_FIELD),
        io("at the end of addresses", read(0, 1).data(u64::MAX - 3, 0), Status::DATA_TRANSFER_ERROR),
        io("what cannot be written", read(0, 1).data(READ_ONLY, 0), Status::DATA_TRANSFER_ERROR),
    ]
}

fn sgls() -> Vec<Row> {
    let list = |descriptors: &[Vec<u8>]| descriptors.concat();
    let two = list(&[descriptor(BLOCK, DATA + 1, 300), descriptor(BLOCK, DATA + 4096, 212)]);
    let one = descriptor(BLOCK, DATA, 512);
    let many = vec![descriptor(BLOCK, DATA, 1); 512];
    vec![
        io("a block", sgl(1, BLOCK, DATA + 3, 512), Status::SUCCESS),
        io("a block that is too short", sgl(1, BLOCK, DATA, 511), Status::DATA_SGL_LENGTH_INVALID),
        io("a block that is longer", sgl(1, BLOCK, DATA, 513), Status::SUCCESS),
        io("a block of nothing", sgl(1, BLOCK, DATA, 0), Status::DATA_SGL_LENGTH_INVALID),
        io("a block nowhere", sgl(1, BLOCK, NOWHERE, 512), Status::DATA_TRANSFER_ERROR),
        io("a block across the end of addresses", sgl(1, BLOCK, u64::MAX - 10, 512), Status::DATA_TRANSFER_ERROR),
        io("a bucket", sgl(1, BUCKET, 0, 512), Status::SUCCESS),
        io("a bucket that is too short", sgl(1, BUCKET, 0, 100), Status::DATA_SGL_LENGTH_INVALID),
        io("a keyed block", sgl(1, 0x40, DATA, 512), Status::SGL_TYPE_INVALID),
        io("a transport block", sgl(1, 0x50, DATA, 512), Status::SGL_TYPE_INVALID),
        io("a vendor's", sgl(1, 0xF0, DATA, 512), Status::SGL_TYPE_INVALID),
        io("a block with an offset", sgl(1, 0x01, DATA, 512), Status::SGL_TYPE_INVALID),
        io("a last segment", sgl(1, LAST, LISTS, 32), Status::SUCCESS).with(LISTS, two.clone()),
        io("a last segment at an odd address", sgl(1, LAST, LISTS + 1, 32), Status::SUCCESS)
            .with(LISTS + 1, two.clone()),
        io("a last segment of 15 bytes", sgl(1, LAST, LISTS, 15), Status::INVALID_SGL_SEGMENT),
        io("a last segment of 33 bytes", sgl(1, LAST, LISTS, 33), Status::INVALID_SGL_SEGMENT),
        io("a last segment of nothing", sgl(1, LAST, LISTS, 0), Status::INVALID_SGL_SEGMENT),
        io("a last segment nowhere", sgl(1, LAST, NOWHERE, 32), Status::DATA_TRANSFER_ERROR),
        io("a last segment at the end of addresses", sgl(1, LAST, u64::MAX - 7, 32), Status::DATA_TRANSFER_ERROR),
        io("a last segment that is too short", sgl(2, LAST, LISTS, 32), Status::DATA_SGL_LENGTH_INVALID)
            .with(LISTS, two.clone()),
        io("a last segment with a segment", sgl(1, LAST, LISTS, 32), Status::INVALID_SGL_SEGMENT)
            .with(LISTS, list(&[one.clone(), descriptor(SEGMENT, LISTS, 16)])),
        io("a last segment with a last segment", sgl(1, LAST, LISTS, 16), Status::INVALID_SGL_SEGMENT)
            .with(LISTS, descriptor(LAST, LISTS + PAGE, 16)),
        io("a last segment with a type that is none", sgl(1, LAST, LISTS, 32), Status::SGL_TYPE_INVALID)
            .with(LISTS, list(&[one.clone(), descriptor(0xE0, LISTS, 16)])),
        io("a segment", sgl(1, SEGMENT, LISTS, 32), Status::SUCCESS)
            .with(LISTS, list(&[descriptor(BLOCK, DATA, 12), descriptor(LAST, LISTS + PAGE, 16)]))
            .with(LISTS + PAGE, descriptor(BLOCK, DATA + 100, 500)),
        io("a segment that ends with a block", sgl(1, SEGMENT, LISTS, 16), Status::INVALID_SGL_SEGMENT)
            .with(LISTS, one.clone()),
        io("a segment in the middle", sgl(1, SEGMENT, LISTS, 48), Status::INVALID_SGL_SEGMENT)
            .with(LISTS, list(&[descriptor(LAST, LISTS, 16), one.clone(), one.clone()])),
        io("a loop of segments", sgl(1, SEGMENT, LISTS, 16), Status::INVALID_SGL_COUNT)
            .with(LISTS, descriptor(SEGMENT, LISTS, 16)),
        io("more descriptors than there may be", sgl(1, LAST, LISTS, 16 * 4096), Status::INVALID_SGL_COUNT),
        io("a byte each", sgl(1, LAST, LISTS, 16 * 512), Status::SUCCESS).with(LISTS, list(&many)),
        io("across pages", sgl(1, LAST, LISTS + PAGE - 8, 32), Status::SUCCESS).with(LISTS + PAGE - 8, two.clone()),
        io("PSDT 2", Command { flags: 0x80, ..sgl(1, BLOCK, DATA, 512) }, Status::SUCCESS),
        io("a bucket in a write", Command { opcode: nvm::WRITE, ..sgl(1, LAST, LISTS, 32) }, Status::SUCCESS)
            .with(LISTS, list(&[descriptor(BUCKET, 0, 100), one.clone()])),
        io(
            "a write of a bucket",
            Command { opcode: nvm::WRITE, ..sgl(1, BUCKET, 0, 512) },
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        io("a bucket in a read", sgl(2, LAST, LISTS, 32), Status::SUCCESS)
            .with(DATA, [0x77; 1024])
            .with(LISTS, list(&[descriptor(BUCKET, 0, 1000), descriptor(BLOCK, DATA + 512, 24)]))
            .finds(DATA, [0x77; 512])
            .finds(DATA + 536, [0x77; 100]),
        io(
            "a compare by an SGL",
            Command { opcode: nvm::COMPARE, ..sgl(1, BLOCK, NOWHERE, 512) },
            Status::DATA_TRANSFER_ERROR,
        ),
        io(
            "ranges by an SGL",
            command(nvm::DATASET_MANAGEMENT, 1).flags(0x40).word(11, 4).data(DATA, 16),
            Status::SUCCESS,
        )
        .with(DATA, [0; 16]),
    ]
}

pub(super) fn groups() -> Vec<Group> {
    vec![Group::new("PRPs", prps()), Group::new("SGLs", sgls())]
}
