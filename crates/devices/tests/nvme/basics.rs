//! A driver's first steps.

use ioasid_devices::nvme::spec::command::{admin, nvm};
use ioasid_devices::nvme::spec::identify::cns;
use ioasid_devices::nvme::spec::status::Status;

use crate::bench::{Bench, DATA, Image, PAGE, With, command, in_memory, pattern, read, status, write};

#[test]
fn a_controller_is_enabled_and_says_what_it_is() {
    let mut bench = Bench::new();
    let controller = bench.identify(cns::CONTROLLER, 0);
    assert_eq!(&controller[24..34], b"ioasid NVM");
    let namespace = bench.identify(cns::NAMESPACE, 1);
    assert_eq!(u64::from_le_bytes(namespace[..8].try_into().unwrap()), 2048);
}

#[test]
fn what_is_written_is_read() {
    let image = Image::new("basics");
    for (namespace, block) in [(in_memory(1 << 20, 9), 512), (image.namespace(1 << 20, 12), 4096)] {
        let mut bench = Bench::of(&[namespace]);
        let mut pair = bench.pair(1, 64);
        for (first, count) in [(0, 1), (7, 2), (248, 2), (3, 1)] {
            let data = pattern(block * count as usize, first as u8);
            bench.memory.set(DATA, &data);
            assert_eq!(bench.status(&mut pair, write(first, count)), Status::SUCCESS);
            bench.memory.set(DATA, &[0; 8192]);
            assert_eq!(bench.status(&mut pair, read(first, count)), Status::SUCCESS);
            assert_eq!(bench.memory.get(DATA, data.len()), data);
        }
        assert_eq!(bench.status(&mut pair, command(nvm::FLUSH, 1)), Status::SUCCESS);
    }
}

#[test]
fn many_commands_at_once() {
    let mut bench = Bench::of(&[in_memory(16 << 20, 12)]);
    let mut pair = bench.pair(1, 256);
    for round in 0..50u64 {
        for index in 0..200 {
            bench.memory.set(DATA + index * PAGE, &(round * 1000 + index).to_le_bytes());
            bench.submit(&mut pair, command(nvm::WRITE, 1).long(index).data(DATA + index * PAGE, 0));
        }
        for _ in 0..200 {
            assert_eq!(status(&bench.wait(&mut pair)), Status::SUCCESS);
        }
        for index in 0..200 {
            assert_eq!(bench.status(&mut pair, command(nvm::READ, 1).long(index).data(DATA, 0)), Status::SUCCESS);
            assert_eq!(bench.memory.get_u64(DATA), round * 1000 + index);
        }
    }
    assert_eq!(bench.admin_status(command(admin::DELETE_SUBMISSION_QUEUE, 0).word(10, 1)), Status::SUCCESS);
}
