//! A driver that means harm beside one that does not: any commands, any lists, any doorbells, any registers.
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ioasid_devices::nvme::NvmeOptions;
use ioasid_devices::nvme::spec::command::{Command, admin, nvm};
use ioasid_devices::nvme::spec::registers::{Register, csts};
use ioasid_devices::nvme::spec::status::Status;
use ioasid_vfio::Model;
use zerocopy::FromBytes;

use crate::bench::{
    Bench, CONFIGURATION, DATA, Image, LISTS, PAGE, Pair, RAM, RAM_SIZE, With, command, in_memory, pattern,
};

/// How long, without IOASID_NVME_SECONDS.
const SECONDS: u64 = 4;
/// What the hostile driver has: its data and lists.
const ITS_OWN: std::ops::Range<u64> = LISTS..LISTS + (1 << 20);
/// Its queue pairs.
const ITS_QUEUES: std::ops::RangeInclusive<u16> = 2..=6;

/// Numbers without end.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An address: of its own, or of nothing.
    fn address(&mut self) -> u64 {
        let own = ITS_OWN.start + self.below(ITS_OWN.end - ITS_OWN.start);
        match self.below(8) {
            0..=3 => own & !0xFFF,
            4 => own & !3,
            5 => own,
            6 => RAM + RAM_SIZE + 0x1_0000 + self.below(1 << 20),
            _ => u64::MAX - self.below(1 << 14),
        }
    }

    fn command(&mut self) -> Command {
        let bytes: Vec<u8> = (0..8).flat_map(|_| self.next().to_le_bytes()).collect();
        let mut command = Command::read_from_bytes(&bytes).unwrap();
        command.data = [self.address().into(), self.address().into()];
        command.metadata = self.address().into();
        if self.below(4) == 0 {
            // An SGL, of a kind that there is.
            let kind = self.pick(&[0u64, 0x10, 0x20, 0x30, 0x40, 0x01]);
            command.data[1] = (kind << 56 | self.below(1 << 14)).into();
            command.flags = 0x40;
        } else if self.below(8) > 0 {
            command.flags = self.pick(&[0, 0, 0, 0, 1, 2, 3, 0xC0]);
        }
        for word in 0..6 {
            if self.below(2) == 0 {
                command.words[word] = (self.below(64) as u32).into();
            }
        }
        command
    }

    fn io_command(&mut self) -> Command {
        let known = [
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
        let mut command = self.command();
        if self.below(16) > 0 {
            command.opcode = self.pick(&known);
        }
        // Every namespace but the other driver's.
        command.namespace = self.pick(&[0, 2, 2, 2, 3, 3, 33, 77, u32::MAX - 1]).into();
        command
    }

    fn admin_command(&mut self) -> Command {
        let mut command = self.command();
        command.namespace = self.pick(&[0, 2, 3, 4, 33]).into();
        command.opcode = self.pick(&[
            admin::GET_LOG_PAGE,
            admin::IDENTIFY,
            admin::ABORT,
            admin::GET_FEATURES,
            admin::ASYNC_EVENT_REQUEST,
            admin::NAMESPACE_MANAGEMENT,
            admin::NAMESPACE_ATTACHMENT,
            admin::KEEP_ALIVE,
            admin::FORMAT_NVM,
            admin::CREATE_COMPLETION_QUEUE,
            admin::CREATE_SUBMISSION_QUEUE,
            admin::DELETE_COMPLETION_QUEUE,
            admin::DELETE_SUBMISSION_QUEUE,
            admin::SET_FEATURES,
            0x10,
            0xFF,
        ]);
        let queue = self.pick(&[0, 2, 3, 4, 5, 6, 65, 999]);
        match command.opcode {
            admin::CREATE_COMPLETION_QUEUE | admin::CREATE_SUBMISSION_QUEUE => {
                // At addresses of its own: a queue elsewhere that can be written would be the other driver's memory.
                let at = ITS_OWN.start + self.below(64) * PAGE;
                let entries = self.pick(&[0, 1, 3, 63, 255, 4095, 4096]);
                let of = self.pick(&[0, 2, 3, 4, 5, 6, 65]);
                command = command.word(10, entries << 16 | queue).word(11, of << 16 | self.below(8) as u32).data(at, 0);
            }
            admin::DELETE_COMPLETION_QUEUE | admin::DELETE_SUBMISSION_QUEUE => command = command.word(10, queue),
            // Identifiers of hosts, write caches and the like, but no way to turn the other's commands down.
            admin::SET_FEATURES => {
                let id = self.pick(&[1u32, 2, 4, 6, 8, 9, 0x0A, 0x0B, 0x0E, 0x16, 0x80]);
                command = command.word(10, id | (self.below(2) as u32) << 31);
            }
            _ => {}
        }
        command
    }
}

/// What the hostile driver does, until `ends`. Resets are asked for by the other, who has to know of them.
fn be_hostile(bench: &Bench, seed: u64, ends: &AtomicBool, pauses: &AtomicBool, paused: &AtomicBool) {
    let mut numbers = Numbers(seed);
    let mut tails = [0u32; 8];
    while !ends.load(Ordering::SeqCst) {
        if pauses.load(Ordering::SeqCst) {
            paused.store(true, Ordering::SeqCst);
            std::thread::yield_now();
            continue;
        }
        paused.store(false, Ordering::SeqCst);
        let queue = *ITS_QUEUES.start() + numbers.below(5) as u16;
        let pair = Pair::new(queue, 64);
        match numbers.below(16) {
            0 => {
                // Bytes of its own: lists, ranges, descriptors, completions even.
                let at = ITS_OWN.start + numbers.below((1 << 20) - 4096) / 8 * 8;
                let values: Vec<u8> = (0..32).flat_map(|_| numbers.address().to_le_bytes()).collect();
                bench.memory.set(at, &values);
            }
            1 => bench.w32(0x1000 + u64::from(queue) * 8 + 4 * numbers.below(2), numbers.next() as u32),
            2 => {
                // Any register but those that end the session, and any doorbell but the other driver's.
                let offset =
                    numbers.pick(&[0, 4, 8, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x3C, 0x50, 0x58, 0x60, 0x100, 0xFFC]);
                let bytes = numbers.next().to_le_bytes();
                bench.device.write(0, offset, &bytes[..numbers.pick(&[1, 2, 4, 8])]);
                bench.device.write(0, 0x1000 + 8 * (7 + numbers.below(500)), &bytes[..4]);
            }
            3 => {
                bench.device.read(0, numbers.below(0x2000), &mut [0; 8]);
            }
            _ => {
                let tail = &mut tails[usize::from(queue)];
                for _ in 0..=numbers.below(8) {
                    let command = numbers.io_command();
                    let at = pair.submissions + u64::from(*tail) * 64;
                    bench.memory.set(at, zerocopy::IntoBytes::as_bytes(&command));
                    *tail = (*tail + 1) % 64;
                }
                bench.w32(0x1000 + u64::from(queue) * 8, *tail);
                // It takes all completions, whatever they are.
                let head =
                    bench.memory.get(pair.completions, 1024).chunks(16).filter(|entry| entry[14] & 1 == 1).count();
                bench.w32(0x1004 + u64::from(queue) * 8, head as u32 % 64);
            }
        }
    }
    paused.store(true, Ordering::SeqCst);
}

#[test]
fn a_well_behaved_queue_is_as_it_should_be_beside_a_hostile_driver() {
    let seconds = std::env::var("IOASID_NVME_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let image = Image::new("hostile");
    let options = NvmeOptions {
        namespaces: vec![in_memory(1 << 20, 9), in_memory(1 << 20, 9), image.namespace(1 << 20, 9)],
        ..NvmeOptions::default()
    };
    let mut bench = Bench::with(&options);
    bench.enable(CONFIGURATION);
    let [ends, pauses, paused] = [const { AtomicBool::new(false) }; 3];
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut numbers = Numbers(0x1234_5678);
    let mut content = vec![vec![0u8; 512]; 2048];
    let (mut commands, mut resets, mut seed) = (0u64, 0, 1);
    while Instant::now() < until {
        ends.store(false, Ordering::SeqCst);
        pauses.store(false, Ordering::SeqCst);
        let mut good = bench.pair(1, 64);
        for id in ITS_QUEUES {
            bench.pair(id, 64);
        }
        seed += 1;
        let shared = &mut bench;
        let admin = std::mem::replace(&mut shared.admin, Pair::new(0, 2));
        let shared = &*shared;
        let mut admin = admin;
        std::thread::scope(|scope| {
            scope.spawn(|| be_hostile(shared, u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15), &ends, &pauses, &paused));
            for _ in 0..400 {
                let first = numbers.below(2040);
                let count = 1 + numbers.below(8);
                let data = pattern(512 * count as usize, numbers.next() as u8);
                shared.memory.set(DATA, &data);
                let write = command(nvm::WRITE, 1).long(first).word(12, count as u32 - 1).data(DATA, 0);
                assert_eq!(shared.status(&mut good, write), Status::SUCCESS);
                for (at, block) in (first as usize..).zip(data.chunks(512)) {
                    content[at] = block.to_vec();
                }
                let first = numbers.below(2040);
                let read = command(nvm::READ, 1).long(first).word(12, 7).data(DATA + PAGE, 0);
                assert_eq!(shared.status(&mut good, read), Status::SUCCESS);
                assert!(shared.memory.get(DATA + PAGE, 4096) == content[first as usize..first as usize + 8].concat());
                commands += 2;
                // Hostile admin commands come from here, as the queue is one.
                if numbers.below(4) == 0 {
                    let id = admin.next;
                    let hostile = numbers.admin_command();
                    let is_request = hostile.opcode == admin::ASYNC_EVENT_REQUEST;
                    shared.submit(&mut admin, hostile);
                    if !is_request {
                        shared.wait_for(&mut admin, id);
                    }
                    admin.early.clear();
                }
            }
            ends.store(true, Ordering::SeqCst);
        });
        bench.admin = admin;
        assert_eq!(bench.csts() & csts::CFS, 0, "it has not failed");
        // A reset in the middle of what is under way, of each kind.
        match numbers.below(3) {
            0 => bench.set(Register::Configuration, 0),
            1 => bench.set(Register::SubsystemReset, 0x4E56_4D65),
            _ => bench.device.reset(),
        }
        resets += 1;
        bench.disable();
        bench.enable(CONFIGURATION);
    }
    // Nothing but its own commands has touched what is its own.
    let mut good = bench.pair(1, 64);
    for first in (0..2048).step_by(8) {
        let read = command(nvm::READ, 1).long(first as u64).word(12, 7).data(DATA, 0);
        assert_eq!(bench.status(&mut good, read), Status::SUCCESS);
        assert!(bench.memory.get(DATA, 4096) == content[first..first + 8].concat(), "block {first}");
    }
    assert!(commands > 0 && resets > 0);
    println!("{commands} commands, {resets} resets");
}
