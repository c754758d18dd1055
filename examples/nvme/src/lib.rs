//! A polled NVMe driver: all that reads and writes need, and no more.
//!
//! ```text
//!   Controller ── admin Queue ──▶ identify, create queues, doorbell buffers
//!        └──▶ Queue: submit … submit, ring ──▶ device ──▶ poll, poll …
//!
//!   a queue's memory:  │ submissions, 64 bytes each │ completions, 16 bytes each │
//!                         tail ▲ ours                   head ▲ ours, phase tells what is new
//! ```
//! Run: `ioasid run --device nvme,memory=64M -- target/release/ioasid-example-nvme`; `main` has the command line.
//!
//! Source: NVM Express Base Specification 2.0.

use std::error::Error;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

mod vfio;

use vfio::Device;
pub use vfio::{Memory, Words};

/// Of a driver.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Registers.
const CAP: usize = 0x00;
const CC: usize = 0x14;
const CSTS: usize = 0x1C;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;
/// CC: enabled, entries of 64 and of 16 bytes, pages of 4 KiB.
const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
const PAGE: usize = 4096;
const SUBMISSION: usize = 64;
const COMPLETION: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// A command: 64 bytes.
#[derive(Clone, Copy)]
pub struct Command([u64; 8]);

impl Command {
    /// With the pages of its data, the words 10 and 11, and the word 12.
    fn new(opcode: u64, namespace: u32, data: [u64; 2], long: u64, word: u64) -> Self {
        Self([u64::from(namespace) << 32 | opcode, 0, 0, data[0], data[1], long, word, 0])
    }

    /// Reads blocks of a namespace from `first` on, to pages that the device finds at `data`: one of them, or two.
    pub fn read(namespace: u32, first: u64, blocks: u16, data: [u64; 2]) -> Self {
        Self::new(0x02, namespace, data, first, u64::from(blocks) - 1)
    }

    /// Writes them.
    pub fn write(namespace: u32, first: u64, blocks: u16, data: [u64; 2]) -> Self {
        Self::new(0x01, namespace, data, first, u64::from(blocks) - 1)
    }

    /// Has what was written last.
    pub fn flush(namespace: u32) -> Self {
        Self::new(0x00, namespace, [0; 2], 0, 0)
    }
}

/// A command's end.
pub struct Completed {
    /// Which command: what [`Queue::submit`] returned.
    pub id: u16,
    /// Status code type and code: 0 if it was done.
    pub status: u16,
}

/// A queue pair, in memory of its own.
pub struct Queue {
    id: u16,
    entries: u32,
    memory: Memory,
    /// Where completions begin in it.
    completions: usize,
    tail: u32,
    /// What the device knows of the tail.
    rung: u32,
    head: u32,
    phase: u16,
    next: u16,
}

impl Queue {
    fn new(device: &Device, id: u16, entries: u32) -> Result<Self> {
        // Each of the two begins with a page.
        let completions = (entries as usize * SUBMISSION).next_multiple_of(PAGE);
        let memory = device.memory(completions + entries as usize * COMPLETION)?;
        Ok(Self { id, entries, memory, completions, tail: 0, rung: 0, head: 0, phase: 1, next: 0 })
    }

    /// Puts a command into the queue, which the caller does not overfill. The device sees it with the next
    /// [`Controller::ring`].
    pub fn submit(&mut self, command: Command) -> u16 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        for (index, word) in command.0.iter().enumerate() {
            let identifier = if index == 0 { u64::from(id) << 16 } else { 0 };
            self.memory.set(self.tail as usize * SUBMISSION + 8 * index, word | identifier);
        }
        self.tail = (self.tail + 1) % self.entries;
        id
    }

    /// The next completion, if there is one.
    pub fn poll(&mut self) -> Option<Completed> {
        let last: u32 = self.memory.get(self.completions + self.head as usize * COMPLETION + 12);
        let status = (last >> 16) as u16;
        if status & 1 != self.phase {
            return None;
        }
        // The data is seen after the phase.
        fence(Ordering::Acquire);
        self.head += 1;
        if self.head == self.entries {
            (self.head, self.phase) = (0, self.phase ^ 1);
        }
        Some(Completed { id: last as u16, status: status >> 1 & 0x7FF })
    }
}

/// A controller that is enabled.
pub struct Controller {
    device: Device,
    admin: Option<Queue>,
    stride: usize,
    /// Doorbells, and where the device says which changes it wants to be told.
    shadow: Option<[Memory; 2]>,
    next_queue: u16,
}

impl Controller {
    /// Resets and enables the first one that there is.
    pub fn open() -> Result<Self> {
        let device = Device::open("0x010802")?;
        let stride = 4 << (device.bar.get::<u64>(CAP) >> 32 & 15);
        let admin = Queue::new(&device, 0, 32)?;
        let registers = &device.bar;
        registers.set(CC, 0u32);
        wait("it is disabled", || (registers.get::<u32>(CSTS) & 1 == 0).then_some(()))?;
        registers.set(AQA, (admin.entries - 1) << 16 | (admin.entries - 1));
        registers.set(ASQ, admin.memory.iova);
        registers.set(ACQ, admin.memory.iova + admin.completions as u64);
        registers.set(CC, ENABLED);
        wait("it is ready", || (registers.get::<u32>(CSTS) & 1 != 0).then_some(()))?;
        Ok(Self { device, admin: Some(admin), stride, shadow: None, next_queue: 1 })
    }

    /// CSTS: all ones of a controller that is gone.
    pub fn status(&self) -> u32 {
        self.device.bar.get(CSTS)
    }

    /// Memory that the controller reaches.
    pub fn memory(&self, length: usize) -> Result<Memory> {
        Ok(self.device.memory(length)?)
    }

    /// Has doorbells in memory from now on, which need no trap: a register is stored to only where the device asks.
    pub fn use_doorbell_buffers(&mut self) -> Result<()> {
        let shadow = [self.device.memory(PAGE)?, self.device.memory(PAGE)?];
        self.run_admin(Command::new(0x7C, 0, [shadow[0].iova, shadow[1].iova], 0, 0))?;
        self.shadow = Some(shadow);
        Ok(())
    }

    /// Makes a queue pair of so many entries.
    pub fn queue(&mut self, entries: u32) -> Result<Queue> {
        let queue = Queue::new(&self.device, self.next_queue, entries)?;
        let id = u64::from(queue.id);
        let size = u64::from(entries - 1) << 16 | id;
        let (submissions, completions) = (queue.memory.iova, queue.memory.iova + queue.completions as u64);
        // Completions, in one piece and without interrupts; submissions, in one piece.
        self.run_admin(Command::new(0x05, 0, [completions, 0], 1 << 32 | size, 0))?;
        self.run_admin(Command::new(0x01, 0, [submissions, 0], id << 48 | 1 << 32 | size, 0))?;
        self.next_queue += 1;
        Ok(queue)
    }

    /// Identify: what structure `cns` says of a namespace, or of the controller.
    pub fn identify(&mut self, cns: u64, namespace: u32) -> Result<[u8; PAGE]> {
        let memory = self.device.memory(PAGE)?;
        self.run_admin(Command::new(0x06, namespace, [memory.iova, 0], cns, 0))?;
        let mut bytes = [0; PAGE];
        memory.read(0, &mut bytes);
        Ok(bytes)
    }

    fn run_admin(&mut self, command: Command) -> Result<()> {
        let mut queue = self.admin.take().ok_or("the admin queue is in use")?;
        let completed = self.run(&mut queue, command);
        self.admin = Some(queue);
        completed
    }

    /// Has a command carried out, and waits for it. No other is in the queue.
    pub fn run(&self, queue: &mut Queue, command: Command) -> Result<()> {
        queue.submit(command);
        self.ring(queue);
        let completed = wait("the command is done", || queue.poll())?;
        self.take(queue);
        let refused = |status| Err(format!("the device refused a command with status {status:#x}").into());
        if completed.status == 0 { Ok(()) } else { refused(completed.status) }
    }

    /// Tells the device of what was submitted.
    pub fn ring(&self, queue: &mut Queue) {
        self.set_doorbell(2 * usize::from(queue.id), queue, queue.tail, queue.rung);
        queue.rung = queue.tail;
    }

    /// Tells the device which completions were taken. It need not hear of it at once: there is always room enough.
    pub fn take(&self, queue: &mut Queue) {
        self.set_doorbell(2 * usize::from(queue.id) + 1, queue, queue.head, queue.head);
    }

    fn set_doorbell(&self, index: usize, queue: &Queue, value: u32, before: u32) {
        if let Some([doorbells, events]) = self.shadow.as_ref().filter(|_| queue.id > 0) {
            // Commands before the doorbell, and the doorbell before the look at what the device wants.
            fence(Ordering::Release);
            doorbells.set(index * self.stride, value);
            fence(Ordering::SeqCst);
            let event: u32 = events.get(index * self.stride);
            let (value, event, before) = (value as u16, event as u16, before as u16);
            if value.wrapping_sub(event).wrapping_sub(1) >= value.wrapping_sub(before) {
                return;
            }
        }
        fence(Ordering::Release);
        self.device.bar.set(DOORBELLS + index * self.stride, value);
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.device.bar.set(CC, 0u32);
    }
}

/// Waits until there is something.
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = (0..1000).find_map(|_| look()) {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("it never came to be that {what}").into());
        }
        std::thread::yield_now();
    }
}
