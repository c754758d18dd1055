//! Protection information: made, checked, stripped and kept.

use ioasid_devices::nvme::NamespaceOptions;
use ioasid_devices::nvme::spec::command::{Command, admin, control, nvm};
use ioasid_devices::nvme::spec::identify::cns;
use ioasid_devices::nvme::spec::status::Status;

use crate::bench::{Bench, DATA, Image, LISTS, NOWHERE, PAGE, Pair, With, command, in_memory, pattern, read, write};

/// Where metadata is.
const META: u64 = LISTS + 0x1_0000;
const ACT: u32 = control::PROTECTION_ACTION;
const ALL: u32 = control::CHECK_GUARD | control::CHECK_APPLICATION | control::CHECK_REFERENCE;

/// CRC-16/T10-DIF, bit by bit.
fn crc(data: &[u8]) -> u16 {
    data.iter().fold(0, |mut remainder: u16, byte| {
        remainder ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            remainder = remainder << 1 ^ if remainder & 0x8000 != 0 { 0x8BB7 } else { 0 };
        }
        remainder
    })
}

fn field(data: &[u8], application: u16, reference: u32) -> Vec<u8> {
    let mut bytes = crc(data).to_be_bytes().to_vec();
    bytes.extend(application.to_be_bytes());
    bytes.extend(reference.to_be_bytes());
    bytes
}

fn fields(data: &[u8], application: u16, reference: u32) -> Vec<u8> {
    (reference..).zip(data.chunks(512)).flat_map(|(reference, block)| field(block, application, reference)).collect()
}

trait Protected {
    /// PRINFO, the reference tag, the application tag under a mask of ones.
    fn info(self, info: u32, tag: u32, application: u16) -> Self;
}

impl Protected for Command {
    fn info(mut self, info: u32, tag: u32, application: u16) -> Self {
        let word = Command::word(&self, 12) | info;
        self = With::word(self, 12, word);
        self = With::word(self, 14, tag);
        self = With::word(self, 15, 0xFFFF << 16 | u32::from(application));
        self.metadata = META.into();
        self
    }
}

fn of_type(protection: u8) -> NamespaceOptions {
    NamespaceOptions { protection, ..in_memory(1 << 20, 9) }
}

fn bench(namespace: NamespaceOptions) -> (Bench, Pair) {
    let mut bench = Bench::of(&[namespace]);
    let pair = bench.pair(1, 64);
    (bench, pair)
}

#[test]
fn what_the_controller_makes_is_what_it_checks_and_what_a_host_makes() {
    let image = Image::new("protection");
    for namespace in [of_type(1), NamespaceOptions { protection: 1, ..image.namespace(1 << 20, 9) }] {
        let (bench, mut pair) = bench(namespace);
        let data = pattern(1024, 5);
        bench.memory.set(DATA, &data);
        // Made by the controller: the host has none.
        assert_eq!(bench.status(&mut pair, write(7, 2).info(ACT, 7, 0x1234)), Status::SUCCESS);
        bench.memory.set(DATA, &[0; 1024]);
        assert_eq!(bench.status(&mut pair, read(7, 2).info(ALL, 7, 0x1234)), Status::SUCCESS);
        assert_eq!(
            (bench.memory.get(DATA, 1024), bench.memory.get(META, 16)),
            (data.clone(), fields(&data, 0x1234, 7))
        );
        // Stripped: the host's metadata is not touched.
        bench.memory.set(META, &[9; 16]);
        assert_eq!(bench.status(&mut pair, read(7, 2).info(ACT | ALL, 7, 0x1234)), Status::SUCCESS);
        assert_eq!(bench.memory.get(META, 16), [9; 16]);
        // Made by the host.
        bench.memory.set(META, &fields(&data, 0x4321, 20));
        assert_eq!(bench.status(&mut pair, write(20, 2).info(ALL, 20, 0x4321)), Status::SUCCESS);
        assert_eq!(bench.status(&mut pair, read(20, 2).info(ACT | ALL, 20, 0x4321)), Status::SUCCESS);
        let verify = Command { opcode: nvm::VERIFY, ..read(20, 2) };
        assert_eq!(bench.status(&mut pair, verify.info(ALL, 20, 0x4321)), Status::SUCCESS);
        let compare = Command { opcode: nvm::COMPARE, ..read(20, 2) };
        assert_eq!(bench.status(&mut pair, compare.info(ACT | ALL, 20, 0x4321)), Status::SUCCESS);
        bench.memory.set(DATA, &[1]);
        let differs = bench.status(&mut pair, compare.info(ACT | ALL, 20, 0x4321));
        assert_eq!(differs.code(), Status::COMPARE_FAILURE.code());
    }
}

#[test]
fn each_check_has_its_status() {
    let (bench, mut pair) = bench(of_type(1));
    let data = pattern(512, 1);
    bench.memory.set(DATA, &data);
    let mut code = |command: Command| bench.status(&mut pair, command).code();
    let good = field(&data, 0x1111, 3);
    for (what, at, info, expected) in [
        ("guard", 0, control::CHECK_GUARD, Status::GUARD_CHECK_ERROR),
        ("application", 3, control::CHECK_APPLICATION, Status::APPLICATION_TAG_CHECK_ERROR),
        ("reference", 7, control::CHECK_REFERENCE, Status::REFERENCE_TAG_CHECK_ERROR),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bench.memory.set(META, &bad);
        assert_eq!(code(write(3, 1).info(ALL, 3, 0x1111)), expected.code(), "{what} written");
        assert_eq!(code(write(3, 1).info(info, 3, 0x1111)), expected.code(), "{what} alone");
        // Not checked, it is written as it is, and found when it is read.
        assert_eq!(code(write(3, 1).info(ALL & !info, 3, 0x1111)), 0, "{what} not checked");
        assert_eq!(code(read(3, 1).info(info, 3, 0x1111)), expected.code(), "{what} read");
        assert_eq!(code(read(3, 1).info(ALL & !info, 3, 0x1111)), 0, "{what} not checked");
        let verify = Command { opcode: nvm::VERIFY, ..read(3, 1) };
        assert_eq!(code(verify.info(info, 3, 0x1111)), expected.code(), "{what} verified");
        let compare = Command { opcode: nvm::COMPARE, ..read(3, 1) };
        assert_eq!(code(compare.info(info, 3, 0x1111)), expected.code(), "{what} compared");
    }
    // The tag of type 1 is the block's number.
    assert_eq!(code(read(3, 1).info(control::CHECK_REFERENCE, 4, 0)), Status::INVALID_PROTECTION_INFORMATION.code());
    // A mask leaves bits out.
    bench.memory.set(META, &field(&data, 0x12FF, 3));
    assert_eq!(code(write(3, 1).info(0, 3, 0)), 0);
    assert_eq!(code(read(3, 1).info(control::CHECK_APPLICATION, 3, 0x1200).word(15, 0xFF00 << 16 | 0x1200)), 0);
    let other = read(3, 1).info(control::CHECK_APPLICATION, 3, 0x1200).word(15, 0xFF00 << 16 | 0x1300);
    assert_eq!(code(other), Status::APPLICATION_TAG_CHECK_ERROR.code());
    // An application tag of ones switches checks off.
    bench.memory.set(META, &[0, 0, 0xFF, 0xFF, 9, 9, 9, 9]);
    assert_eq!(code(write(3, 1).info(ALL, 3, 0x1111)), 0);
    // Metadata at an odd address, and nowhere.
    assert_eq!(code(Command { metadata: (META + 2).into(), ..read(3, 1) }), Status::INVALID_FIELD.code());
    assert_eq!(code(Command { metadata: NOWHERE.into(), ..read(3, 1) }), Status::DATA_TRANSFER_ERROR.code());
}

#[test]
fn types_differ_in_what_reference_tags_are() {
    // Of type 2, they begin anywhere; of type 3, they are the host's and not checked.
    let (bench2, mut pair2) = bench(of_type(2));
    let data = pattern(1024, 8);
    bench2.memory.set(DATA, &data);
    assert_eq!(bench2.status(&mut pair2, write(3, 2).info(ACT, 1000, 5)), Status::SUCCESS);
    assert_eq!(bench2.status(&mut pair2, read(3, 2).info(ALL, 1000, 5)), Status::SUCCESS);
    assert_eq!(bench2.memory.get(META, 16), fields(&data, 5, 1000));
    let other = bench2.status(&mut pair2, read(3, 2).info(ALL, 1001, 5));
    assert_eq!(other.code(), Status::REFERENCE_TAG_CHECK_ERROR.code());
    let (bench3, mut pair3) = bench(of_type(3));
    bench3.memory.set(DATA, &data);
    assert_eq!(bench3.status(&mut pair3, write(3, 2).info(ACT, 77, 5)), Status::SUCCESS);
    let checked = bench3.status(&mut pair3, read(3, 2).info(ALL, 77, 5));
    assert_eq!(checked.code(), Status::INVALID_PROTECTION_INFORMATION.code());
    let two = control::CHECK_GUARD | control::CHECK_APPLICATION;
    assert_eq!(bench3.status(&mut pair3, read(3, 2).info(two, 0, 5)), Status::SUCCESS);
    let both = [field(&data[..512], 5, 77), field(&data[512..], 5, 77)].concat();
    assert_eq!(bench3.memory.get(META, 16), both);
}

#[test]
fn what_was_never_written_is_not_checked() {
    let (bench, mut pair) = bench(of_type(1));
    let all = |first| read(first, 1).info(ALL, first as u32, 9);
    assert_eq!(bench.status(&mut pair, all(5)), Status::SUCCESS);
    assert_eq!(bench.memory.get(META, 8), [0xFF; 8]);
    bench.memory.set(DATA, &[6; 512]);
    assert_eq!(bench.status(&mut pair, write(5, 1).info(ACT, 5, 1)), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, all(5)).code(), Status::APPLICATION_TAG_CHECK_ERROR.code());
    // Zeroes, discarded, are as if they were never written; with PRACT, they have protection information.
    let zeroes = Command { opcode: nvm::WRITE_ZEROES, ..read(5, 1) };
    assert_eq!(bench.status(&mut pair, zeroes), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, all(5)), Status::SUCCESS);
    assert_eq!((bench.memory.get(DATA, 512), bench.memory.get(META, 8)), (vec![0; 512], vec![0xFF; 8]));
    assert_eq!(bench.status(&mut pair, zeroes.info(ACT, 5, 9)), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, all(5)), Status::SUCCESS);
    assert_eq!(bench.memory.get(META, 8), field(&[0; 512], 9, 5));
    bench.memory.set(DATA, &[[0; 4], 1u32.to_le_bytes(), 5u32.to_le_bytes(), [0; 4]].concat());
    let discard = command(nvm::DATASET_MANAGEMENT, 1).word(11, 4).data(DATA, 0);
    assert_eq!(bench.status(&mut pair, discard), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, all(5)), Status::SUCCESS);
    assert_eq!(bench.memory.get(META, 8), [0xFF; 8]);
}

#[test]
fn a_copy_checks_and_makes_protection_information() {
    let (bench, mut pair) = bench(of_type(1));
    let data = pattern(1024, 2);
    bench.memory.set(DATA, &data);
    assert_eq!(bench.status(&mut pair, write(10, 2).info(ACT, 10, 0x55)), Status::SUCCESS);
    let mut source = vec![0; 32];
    source[8] = 10;
    source[16] = 1;
    source[24] = 10;
    source[28..32].copy_from_slice(&[0x55, 0, 0xFF, 0xFF]);
    bench.memory.set(DATA, &source);
    let copy = |to: u64, info| command(nvm::COPY, 1).long(to).data(DATA, 0).word(12, info).word(14, to as u32);
    // All checks of the source, which are 14 bits lower; made anew for where it goes.
    let remade = copy(40, ALL >> 14 | ACT).word(15, 0x66);
    assert_eq!(bench.status(&mut pair, remade), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, read(40, 2).info(ALL, 40, 0x66)), Status::SUCCESS);
    assert_eq!((bench.memory.get(DATA, 1024), bench.memory.get(META, 16)), (data.clone(), fields(&data, 0x66, 40)));
    bench.memory.set(DATA, &source);
    // As it is: its reference tags are not those of where it goes.
    assert_eq!(bench.status(&mut pair, copy(50, 0)), Status::SUCCESS);
    let there = bench.status(&mut pair, read(50, 2).info(control::CHECK_REFERENCE, 50, 0));
    assert_eq!(there.code(), Status::REFERENCE_TAG_CHECK_ERROR.code());
    source[28] = 0x56;
    bench.memory.set(DATA, &source);
    assert_eq!(bench.status(&mut pair, copy(60, ALL >> 14)).code(), Status::APPLICATION_TAG_CHECK_ERROR.code());
}

#[test]
fn metadata_is_between_the_data_or_beside_it() {
    let (mut bench, mut pair) = bench(of_type(1));
    let namespace = bench.identify(cns::NAMESPACE, 1);
    assert_eq!((namespace[25], namespace[26], namespace[27], namespace[28], namespace[29]), (3, 2, 3, 0x17, 1));
    assert_eq!(namespace[128..144], [0, 0, 9, 0, 0, 0, 12, 0, 8, 0, 9, 0, 8, 0, 12, 0]);
    // Blocks and their metadata have room in 1 MiB.
    let count = u64::from_le_bytes(namespace[..8].try_into().unwrap());
    assert!((2016..=2017).contains(&count), "{count}");
    assert_eq!(bench.status(&mut pair, read(count - 1, 1).info(ACT, 0, 0)), Status::SUCCESS);
    assert_eq!(bench.status(&mut pair, read(count, 1).info(ACT, 0, 0)).code(), Status::LBA_OUT_OF_RANGE.code());
    // Between, of type 2.
    bench.done(command(admin::FORMAT_NVM, 1).word(10, 2 | 1 << 4 | 2 << 5));
    let data = pattern(1024, 4);
    let mixed = [&data[..512], &field(&data[..512], 7, 100), &data[512..], &field(&data[512..], 7, 101)].concat();
    bench.memory.set(DATA, &mixed);
    assert_eq!(bench.status(&mut pair, write(0, 2).info(ALL, 100, 7)), Status::SUCCESS);
    bench.memory.set(DATA, &[0; 1040]);
    assert_eq!(bench.status(&mut pair, read(0, 2).info(ALL, 100, 7)), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA, 1040), mixed);
    assert_eq!(bench.status(&mut pair, read(0, 2).info(ACT | ALL, 100, 7)), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA, 1024), data);
    // With the data, a transfer is longer than it may be.
    assert_eq!(bench.status(&mut pair, read(0, 1024)).code(), Status::INVALID_FIELD.code());
    // Metadata that is the host's alone, by an SGL.
    bench.done(command(admin::FORMAT_NVM, 1).word(10, 2));
    bench.memory.set(DATA, &data);
    bench.memory.set(META, &[3; 16]);
    let pointer = LISTS;
    let descriptor = |length: u64| [META.to_le_bytes(), length.to_le_bytes()].concat();
    bench.memory.set(pointer, &descriptor(16));
    let by_sgl = |code| Command { opcode: code, flags: 0x80, metadata: pointer.into(), ..read(0, 2).data(DATA, 1024) };
    assert_eq!(bench.status(&mut pair, by_sgl(nvm::WRITE)), Status::SUCCESS);
    bench.memory.set(META, &[0; 16]);
    assert_eq!(bench.status(&mut pair, by_sgl(nvm::READ)), Status::SUCCESS);
    assert_eq!(bench.memory.get(META, 16), [3; 16]);
    bench.memory.set(META, &[4; 16]);
    assert_eq!(bench.status(&mut pair, by_sgl(nvm::COMPARE)).code(), Status::COMPARE_FAILURE.code());
    bench.memory.set(pointer, &descriptor(15));
    let short = bench.status(&mut pair, by_sgl(nvm::READ));
    assert_eq!(short.code(), Status::METADATA_SGL_LENGTH_INVALID.code());
    // What cannot be formatted.
    for (word, status) in
        [(4, Status::INVALID_FORMAT), (2 | 4 << 5, Status::INVALID_FIELD), (1 << 5, Status::INVALID_FIELD)]
    {
        assert_eq!(bench.admin_status(command(admin::FORMAT_NVM, 1).word(10, word)).code(), status.code());
    }
    // A namespace with it is made.
    bench.done(command(admin::NAMESPACE_MANAGEMENT, 1).word(10, 1));
    let mut wanted = vec![0; 4096];
    (wanted[0], wanted[8], wanted[26], wanted[29]) = (100, 100, 3, 3);
    bench.memory.set(DATA, &wanted);
    assert_eq!(bench.done(command(admin::NAMESPACE_MANAGEMENT, 0).data(DATA, 0)), 1);
    let made = bench.identify(cns::ALLOCATED_NAMESPACE, 1);
    assert_eq!((made[0], made[26], made[29], made[48]), (100, 3, 3, 0));
}

#[test]
fn two_fused_commands_are_one_with_protection_information() {
    let (bench, mut pair) = bench(of_type(1));
    let data = pattern(512, 6);
    bench.memory.set(DATA, &data);
    assert_eq!(bench.status(&mut pair, write(1, 1).info(ACT, 1, 2)), Status::SUCCESS);
    bench.memory.set(DATA + PAGE, &[8; 512]);
    let compare = Command { opcode: nvm::COMPARE, flags: 1, ..read(1, 1).info(ACT, 1, 2) };
    let exchange = Command { opcode: nvm::WRITE, flags: 2, ..read(1, 1).data(DATA + PAGE, 0).info(ACT, 1, 3) };
    let ids = [compare, exchange].map(|command| bench.submit(&mut pair, command));
    for id in ids {
        assert_eq!(bench.wait_for(&mut pair, id).status.get() >> 1, 0);
    }
    assert_eq!(bench.status(&mut pair, read(1, 1).info(ALL, 1, 3)), Status::SUCCESS);
    assert_eq!(bench.memory.get(DATA, 512), [8; 512]);
}
