//! The BARs of an open device as memory that other devices' DMA reaches (peer to peer).
//!
//! ```text
//!   DMA of another device ──read──► the register, at once
//!          │
//!          └──write──► posted ──► a thread of the device's own ──► the register
//! ```
//! As on the bus, a write is posted: who writes does not wait for what it sets off. It could not: a write may reset the
//! very device whose thread does the DMA, and the reset waits for it. Memory of a BAR sets nothing off, and is written
//! at once. What was posted has arrived when the mapping is taken back, as on the bus what is behind a read has.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ioasid::memory::RemoteMemory;
use ioasid_vfio::Function;
use ioasid_vfio::device::region::locate;
use rustix::io::Errno;

use super::lock;

/// Posted writes that are not performed yet; with more, who writes waits.
const MOST: usize = 256;
/// How long a device waits if the thread performs nothing meanwhile. The thread may wait for the very device that
/// writes, and then goes on when the device's DMA has failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest access that a register takes.
const WORD: u64 = 8;

/// What is posted.
enum Posted {
    /// Bytes at a file offset, if the device was reset so often.
    Write(u64, Vec<u8>, u64),
    /// Who waits for those before.
    Fence(SyncSender<()>),
}

/// The BARs of an open device, by the offsets of its file.
pub(super) struct Peer {
    registers: Arc<Registers>,
    /// From the first posted write on, until the device is closed.
    posted: Mutex<Option<SyncSender<Posted>>>,
}

struct Registers {
    function: Arc<Function>,
    /// Whether the device is open.
    is_open: RwLock<bool>,
    /// How much of what was posted was performed.
    performed: AtomicU64,
}

impl Registers {
    /// One access, or what a memory of the BAR takes of it.
    fn pieces(&self, address: u64, length: usize) -> impl Iterator<Item = (u64, usize)> + use<'_> {
        let end = address + length as u64;
        let mut at = address;
        std::iter::from_fn(move || {
            let next = self.end_of_memory(at).unwrap_or((at / WORD + 1) * WORD).min(end);
            let piece = (at < end).then_some((at, (next - at) as usize));
            at = next;
            piece
        })
    }

    /// Where the memory ends that a file offset is in, if it is in one.
    fn end_of_memory(&self, address: u64) -> Option<u64> {
        let (index, offset) = locate(address);
        let mut all = self.function.memory().iter().filter(|pages| u32::from(pages.bar) == index);
        let ends = all.find_map(|pages| {
            let end = pages.offset + pages.memory.length();
            (pages.offset..end).contains(&offset).then_some(end)
        });
        ends.map(|end| address - offset + end)
    }

    /// Makes one access, unless the device is closed.
    fn access(
        &self,
        address: u64,
        one: impl FnOnce(&Function, u8, u64) -> Result<(), ioasid_vfio::BarError>,
    ) -> io::Result<()> {
        // Who closes it waits for this one, so this one must not wait for who closes it.
        let open = self.is_open.try_read().map_err(|_| io::ErrorKind::NotConnected)?;
        if !*open {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (index, offset) = locate(address);
        let bar = u8::try_from(index).map_err(|_| io::ErrorKind::NotFound)?;
        one(&self.function, bar, offset).map_err(io::Error::other)
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for (at, length) in self.pieces(address, data.len()) {
            let (piece, behind) = rest.split_at(length);
            self.access(at, |function, bar, offset| function.bar_write(bar, offset, piece))?;
            rest = behind;
        }
        Ok(())
    }

    fn perform(&self, posted: &Receiver<Posted>) {
        for posted in posted {
            match posted {
                // What was posted before a reset does not arrive after it.
                Posted::Write(_, _, resets) if resets != self.function.resets() => {}
                // Nobody can be told any more.
                Posted::Write(address, data, _) => drop(self.write(address, &data)),
                Posted::Fence(reached) => drop(reached.send(())),
            }
            self.performed.fetch_add(1, Ordering::Release);
        }
    }
}

/// Waits as long as something is performed now and then.
struct Patience<'a> {
    registers: &'a Registers,
    seen: u64,
    since: Instant,
}

impl<'a> Patience<'a> {
    fn new(registers: &'a Registers) -> Self {
        Self { registers, seen: registers.performed.load(Ordering::Acquire), since: Instant::now() }
    }

    fn lasts(&mut self) -> bool {
        let now = self.registers.performed.load(Ordering::Acquire);
        if now != self.seen {
            (self.seen, self.since) = (now, Instant::now());
        }
        self.since.elapsed() < PATIENCE
    }
}

impl Peer {
    pub(super) fn new(function: Arc<Function>) -> Arc<Self> {
        let (is_open, performed) = (RwLock::new(true), AtomicU64::new(0));
        let registers = Arc::new(Registers { function, is_open, performed });
        Arc::new(Self { registers, posted: Mutex::default() })
    }

    /// Nothing reaches the device any more when this returns.
    pub(super) fn close(&self) {
        *self.registers.is_open.write().unwrap_or_else(PoisonError::into_inner) = false;
        lock(&self.posted).take();
    }

    /// The way to the thread, which is made for the first write.
    fn thread(&self) -> io::Result<SyncSender<Posted>> {
        let mut sender = lock(&self.posted);
        if let Some(sender) = &*sender {
            return Ok(sender.clone());
        }
        let (post, pending) = sync_channel(MOST);
        let registers = self.registers.clone();
        std::thread::Builder::new().name("peer".to_owned()).spawn(move || registers.perform(&pending))?;
        *sender = Some(post.clone());
        Ok(post)
    }

    /// Posts something, when there is room.
    fn post(&self, thread: &SyncSender<Posted>, mut posted: Posted) -> io::Result<()> {
        let mut patience = Patience::new(&self.registers);
        loop {
            posted = match thread.try_send(posted) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(posted)) if patience.lasts() => posted,
                Err(TrySendError::Full(_)) => return Err(io::ErrorKind::TimedOut.into()),
                Err(TrySendError::Disconnected(_)) => return Err(io::ErrorKind::NotConnected.into()),
            };
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits until what was posted before has arrived.
    fn arrived(&self) -> io::Result<()> {
        // Without a thread nothing was posted, and one that has ended performs nothing more.
        let Some(thread) = lock(&self.posted).clone() else { return Ok(()) };
        let (reached, fence) = sync_channel(1);
        match self.post(&thread, Posted::Fence(reached)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
            posted => posted?,
        }
        let mut patience = Patience::new(&self.registers);
        loop {
            match fence.recv_timeout(PATIENCE) {
                Err(RecvTimeoutError::Timeout) if patience.lasts() => {}
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// How often the device was reset.
    pub(super) fn resets(&self) -> u64 {
        self.registers.function.resets()
    }

    /// Whether the device is open, and answers at a file offset.
    pub(super) fn answers(&self, address: u64) -> bool {
        self.registers.access(address, |function, bar, offset| function.check_bar(bar, offset, 1)).is_ok()
    }

    /// Writes, for somebody who knew the device when it had been reset so often.
    pub(super) fn write_for(&self, address: u64, data: &[u8], resets: u64) -> io::Result<()> {
        let ends = self.registers.end_of_memory(address);
        if ends.is_some_and(|end| address + data.len() as u64 <= end) {
            self.arrived()?;
            return self.registers.write(address, data);
        }
        // A device that does not answer is found out now.
        self.registers.access(address, |function, bar, offset| function.check_bar(bar, offset, data.len()))?;
        self.post(&self.thread()?, Posted::Write(address, data.to_vec(), resets))
    }

    /// Waits until what was posted before has arrived, for somebody who is no device.
    ///
    /// # Errors
    /// `EBUSY` if it does not.
    pub(super) fn fence(&self) -> Result<(), Errno> {
        self.arrived().map_err(|_| Errno::BUSY)
    }
}

impl RemoteMemory for Peer {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        // A read does not overtake a write.
        self.arrived()?;
        let mut rest = &mut *data;
        for (at, length) in self.registers.pieces(address, rest.len()) {
            let (piece, behind) = rest.split_at_mut(length);
            self.registers.access(at, |function, bar, offset| function.bar_read(bar, offset, piece))?;
            rest = behind;
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.write_for(address, data, self.resets())
    }

    fn given_back(&self, _address: u64, _length: u64) {
        let _ = self.arrived();
    }
}
