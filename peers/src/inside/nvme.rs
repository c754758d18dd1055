//! 4 KiB random reads by the driver of `examples/nvme`, at several depths; on the other side, by pread(2) of a file in
//! memory of the same length, and by io_uring at the same depth.
#![allow(unsafe_code, reason = "the kernel is given addresses of buffers")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Result, anyhow, bail, ensure};
use io_uring::{IoUring, opcode, types};
use ioasid_example_nvme::{Command, Controller, Memory, Queue};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::run::time;
use crate::statistics::{Pairs, Side, interleave};

/// Commands under way at once.
pub const DEPTHS: [usize; 3] = [1, 32, 256];
/// Bytes of the namespace, and of the file.
const LENGTH: u64 = 64 << 20;
const BLOCK: usize = 4096;
const BLOCKS: u64 = LENGTH / BLOCK as u64;
const NAMESPACE: u32 = 1;
const PAIRS: usize = 21;
/// Reads of a sample.
const READS: usize = 8192;

/// How the driver rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbells {
    /// By registers, which trap.
    Registers,
    /// On a page of the BAR that is memory.
    Page,
    /// In buffers of its own, and by registers where the device asks for it.
    Buffers,
}

/// The samples of a depth.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Nvme {
    /// Beside pread.
    pub pread: Pairs,
    /// Beside io_uring.
    pub uring: Pairs,
}

/// Measures each of [`DEPTHS`].
pub fn measure(doorbells: Doorbells) -> Result<Vec<Nvme>> {
    let mut driver = Driver::start(doorbells)?;
    let mut file = InMemory::new()?;
    let each = DEPTHS.iter().map(|depth| {
        let mut random = Random::new(*depth as u64);
        let order: Vec<u64> = (0..READS).map(|_| random.below(BLOCKS)).collect();
        let pread = interleave(PAIRS, |side| match side {
            Side::Ours => driver.read(&order, *depth),
            Side::Theirs => file.read_each(&order),
        })?;
        let uring = interleave(PAIRS, |side| match side {
            Side::Ours => driver.read(&order, *depth),
            Side::Theirs => file.read_at_once(&order, *depth),
        })?;
        Ok(Nvme { pread, uring })
    });
    each.collect()
}

/// The driver, with a namespace whose blocks begin with their numbers.
struct Driver {
    queue: Queue,
    memory: Memory,
    controller: Controller,
}

impl Driver {
    fn start(doorbells: Doorbells) -> Result<Self> {
        let failed = |error: Box<dyn std::error::Error>| anyhow!("{error}");
        let mut controller = Controller::open().map_err(failed)?;
        if doorbells == Doorbells::Buffers {
            controller.use_doorbell_buffers().map_err(failed)?;
        }
        let mut queue = controller.queue(1024).map_err(failed)?;
        let memory = controller.memory(DEPTHS[DEPTHS.len() - 1] * BLOCK).map_err(failed)?;
        for block in 0..BLOCKS {
            memory.set(0, number(block));
            controller.run(&mut queue, Command::write(NAMESPACE, block, 1, [memory.iova, 0])).map_err(failed)?;
        }
        Ok(Self { queue, memory, controller })
    }

    /// Reads blocks in this order, `depth` at once. Returns nanoseconds of one.
    fn read(&mut self, order: &[u64], depth: usize) -> Result<f64> {
        let Self { queue, memory, controller } = self;
        // Which slot a command has, by identifier, and which block a slot has.
        let mut slots = vec![0; 1 << 16];
        let mut blocks = vec![0; depth];
        let mut free: Vec<usize> = (0..depth).collect();
        let (mut begun, mut done) = (0, 0);
        // The device looks at doorbells again, after the time that it was not driven in.
        let warm = Command::read(NAMESPACE, 0, 1, [memory.iova, 0]);
        controller.run(queue, warm).map_err(|error| anyhow!("{error}"))?;
        let taken = time(|| {
            while done < order.len() {
                let before = begun;
                while let Some(slot) = (begun < order.len()).then(|| free.pop()).flatten() {
                    let at = memory.iova + (slot * BLOCK) as u64;
                    let id = queue.submit(Command::read(NAMESPACE, order[begun], 1, [at, 0]));
                    (slots[usize::from(id)], blocks[slot]) = (slot, order[begun]);
                    begun += 1;
                }
                if begun > before {
                    controller.ring(queue);
                }
                let before = done;
                while let Some(completed) = queue.poll() {
                    let slot = slots[usize::from(completed.id)];
                    let is_right = completed.status == 0 && memory.get::<u64>(slot * BLOCK) == number(blocks[slot]);
                    ensure!(is_right, "block {} came with status {:#x}", blocks[slot], completed.status);
                    free.push(slot);
                    done += 1;
                }
                if done > before {
                    controller.take(queue);
                }
            }
            Ok(())
        })?;
        Ok(taken / order.len() as f64)
    }
}

/// What a block begins with.
fn number(block: u64) -> u64 {
    block.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A file in memory, with the same blocks.
struct InMemory {
    file: File,
    ring: IoUring,
    buffers: Vec<[u64; BLOCK / 8]>,
}

impl InMemory {
    fn new() -> Result<Self> {
        let file = File::from(memfd_create("peers", MemfdFlags::CLOEXEC)?);
        let mut bytes = vec![0; BLOCK];
        for block in 0..BLOCKS {
            bytes[..8].copy_from_slice(&number(block).to_ne_bytes());
            file.write_all_at(&bytes, block * BLOCK as u64)?;
        }
        let most = DEPTHS[DEPTHS.len() - 1];
        Ok(Self { file, ring: IoUring::new(most as u32)?, buffers: vec![[0; BLOCK / 8]; most] })
    }

    fn read_each(&mut self, order: &[u64]) -> Result<f64> {
        let mut bytes = [0; BLOCK];
        let taken = time(|| {
            for block in order {
                self.file.read_exact_at(&mut bytes, block * BLOCK as u64)?;
                ensure!(bytes[..8] == number(*block).to_ne_bytes(), "block {block} is another");
            }
            Ok(())
        })?;
        Ok(taken / order.len() as f64)
    }

    fn read_at_once(&mut self, order: &[u64], depth: usize) -> Result<f64> {
        let Self { file, ring, buffers } = self;
        let mut blocks = vec![0; depth];
        let mut free: Vec<usize> = (0..depth).collect();
        let (mut begun, mut done) = (0, 0);
        let taken = time(|| {
            while done < order.len() {
                while let Some(slot) = (begun < order.len()).then(|| free.pop()).flatten() {
                    blocks[slot] = order[begun];
                    let (fd, to) = (types::Fd(file.as_raw_fd()), buffers[slot].as_mut_ptr().cast());
                    let read = opcode::Read::new(fd, to, BLOCK as u32).offset(order[begun] * BLOCK as u64);
                    // SAFETY: file and buffer stay until the completion is taken, as `time` is not left before it.
                    if unsafe { ring.submission().push(&read.build().user_data(slot as u64)) }.is_err() {
                        bail!("the ring is full");
                    }
                    begun += 1;
                }
                ring.submit_and_wait(1)?;
                for completion in ring.completion() {
                    let slot = completion.user_data() as usize;
                    let is_right = completion.result() == BLOCK as i32 && buffers[slot][0] == number(blocks[slot]);
                    ensure!(is_right, "block {} came with {}", blocks[slot], completion.result());
                    free.push(slot);
                    done += 1;
                }
            }
            Ok(())
        })?;
        Ok(taken / order.len() as f64)
    }
}
