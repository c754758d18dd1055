//! Drivers of an NVMe controller, on that of `examples/nvme`.

use std::io::Write;
use std::os::unix::fs::FileExt;

use ioasid_example_nvme::{Command, Controller};

/// Blocks that [`writer`] goes round in, of 4096 bytes.
pub const BLOCKS: u64 = 64;
/// Writes between two flushes.
const AT_ONCE: u64 = 8;

/// Reads by a list of pages, of which one is unmapped, and then by a list that is unmapped itself. Says which commands
/// these were.
pub fn unmapped_list() {
    let mut controller = Controller::open().unwrap();
    let mut queue = controller.queue(64).unwrap();
    let pages: Vec<_> = (0..4).map(|_| controller.memory(4096).unwrap()).collect();
    let list = controller.memory(4096).unwrap();
    for (index, page) in pages[1..].iter().enumerate() {
        list.set(8 * index, page.iova);
    }
    let read = Command::read(1, 0, 32, [pages[0].iova, list.iova]);
    controller.run(&mut queue, read).unwrap();
    let mut pages = pages;
    let lost = pages.pop().unwrap();
    let at = lost.iova;
    drop(lost);
    let mut refused = |read| {
        let id = queue.submit(read);
        controller.ring(&mut queue);
        let completed = loop {
            if let Some(completed) = queue.poll() {
                break completed;
            }
        };
        controller.take(&mut queue);
        assert_eq!((completed.id, completed.status), (id, 0x004), "a data transfer error");
        id
    };
    let first = refused(read);
    let list_at = list.iova;
    drop(list);
    let second = refused(read);
    println!("{first} {at:#x} {second} {list_at:#x}");
}

/// What block of number `sequence` holds, of 4096 bytes.
pub fn block(sequence: u64) -> Vec<u8> {
    (0..512u64).flat_map(|word| sequence.wrapping_mul(512).wrapping_add(word).to_le_bytes()).collect()
}

/// Writes blocks that tell their number, from `first` on, and says in the file at `log` up to which they are flushed.
pub fn writer(log: &str, first: u64) {
    let log = std::fs::File::options().write(true).create(true).truncate(false).open(log).unwrap();
    let mut controller = Controller::open().unwrap();
    let mut queue = controller.queue(64).unwrap();
    let memory = controller.memory(4096 * AT_ONCE as usize).unwrap();
    for sequence in (first..).step_by(AT_ONCE as usize) {
        for index in 0..AT_ONCE {
            let offset = 4096 * index as usize;
            memory.write(offset, &block(sequence + index));
            let at = memory.iova + offset as u64;
            queue.submit(Command::write(1, (sequence + index) % BLOCKS, 1, [at, 0]));
        }
        controller.ring(&mut queue);
        for _ in 0..AT_ONCE {
            let completed = loop {
                if let Some(completed) = queue.poll() {
                    break completed;
                }
                std::thread::yield_now();
            };
            assert_eq!(completed.status, 0);
        }
        controller.take(&mut queue);
        controller.run(&mut queue, Command::flush(1)).unwrap();
        log.write_all_at(&(sequence + AT_ONCE).to_le_bytes(), 0).unwrap();
        if sequence == first {
            println!("writing");
            std::io::stdout().flush().unwrap();
        }
    }
}

/// Drives a controller that is taken out with a command: the program sees ones, and nothing hangs.
pub fn removed() {
    let mut controller = Controller::open().unwrap();
    let mut queue = controller.queue(64).unwrap();
    let memory = controller.memory(4096).unwrap();
    let read = Command::read(1, 0, 1, [memory.iova, 0]);
    controller.run(&mut queue, read).unwrap();
    queue.submit(read);
    controller.ring(&mut queue);
    while controller.status() != u32::MAX {
        std::thread::yield_now();
    }
    assert!(queue.poll().is_none());
    let config = std::fs::read("/sys/bus/pci/devices/0001:00:01.0/config").unwrap();
    assert!(config.len() >= 64 && config.iter().all(|byte| *byte == 0xff), "configuration space answers");
}
