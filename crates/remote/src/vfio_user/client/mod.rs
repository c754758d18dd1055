//! A device that another process has: to programs here it is a function like any other.
//!
//! ```text
//!   program ── BARs ──────────► Remote (Model) ─── REGION_READ, REGION_WRITE ──────► server
//!           ── Bus Master, … ─► Remote (BusMaster) ── command register, DEVICE_RESET ─►
//!           ◄─ eventfds ─────── Interrupts ◄─ a thread ◄─ eventfds ◄── SET_IRQS ─────
//!   Ioas ───── map, unmap ────► Remote (Mirror) ── DMA_MAP, DMA_UNMAP ───────────────►
//!   DmaPort ◄─ a thread ◄───────────────────────── DMA_READ, DMA_WRITE ──────────────
//! ```
//! Configuration space, the MSI-X table and interrupts are this side's, as they are the host's with hardware; registers
//! are the server's. What the server does by messages goes through a port, so that the engine checks each access, and
//! what was unmapped is not reached. What it was passed as a file it reaches by itself: it is asked to unmap, and one
//! that does not answer, or goes, is believed only when its process has ended.
//!
//! A server that breaks the protocol or does not answer in time is cut off: the device is gone then, as one that was
//! pulled out of its slot. When a program opens it the next time, the server is looked for again.

mod handshake;
mod interrupts;
mod memory;
mod mirror;

mod spec;
mod tables;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ioasid::Endpoint;
use ioasid_vfio::{BusMaster, Interrupts, Model, Spec};
use thiserror::Error;
use zerocopy::native_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::socket::peer::Process;
use crate::socket::{Ended, bounded};
use crate::vfio_user::connection::{CallError, Connection};
use crate::vfio_user::wire::{CommandId, RegionAccess, VersionError};
use interrupts::Wires;
use mirror::Mapped;
use tables::Tables;

/// How to reach a device, and how far to trust its server.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The server's socket.
    pub socket: PathBuf,
    /// How long it has to answer: a millisecond to an hour, or what is nearest to that.
    pub patience: Duration,
    /// How it reaches memory.
    pub memory: MemoryBy,
}

/// How a server reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MemoryBy {
    /// It walks page tables that are shared with it, if it can, and has the files that memory is in, where there are
    /// some; otherwise as [`MemoryBy::Files`].
    #[default]
    Tables,
    /// It is passed the files that memory is in, where there are some, and told what to map.
    Files,
    /// It is passed nothing: each access is a message, and is translated here.
    Messages,
}

/// Why there is no such device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing listens there.
    #[error("no server can be reached at {path}: {1}", path = .0.display())]
    Connect(PathBuf, std::io::Error),
    /// It speaks something else.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// It went, or broke the protocol.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// It does not say what it has to say.
    #[error("the server refuses to say what its device is: {0}")]
    Refused(String),
    /// There cannot be such a device.
    #[error("the server's device is none that there can be: {0}")]
    Device(String),
    /// The server at the socket has another device than before.
    #[error("the server has another device than before")]
    Other,
    /// There is no thread or descriptor to be had.
    #[error("there is no thread or descriptor to be had: {0}")]
    Resources(#[from] std::io::Error),
}

/// A connection to a server, with what was agreed on.
#[derive(Debug)]
struct Link {
    connection: Arc<Connection>,
    /// By which the server's commands come.
    peer: Arc<Connection>,
    /// The most descriptors beside a message to the server.
    descriptors: usize,
    most_maps: u64,
    page_sizes: u64,
    /// Whether it knows DEVICE_RESET.
    resets: bool,
    /// Bytes of each region.
    regions: [u64; 8],
    /// Of INTx: whether it masks itself.
    masks_line: bool,
    /// The server's process.
    process: Option<Process>,
    /// It was passed a file.
    has_files: AtomicBool,
    /// What it walks.
    tables: Option<Tables>,
    /// Its threads have been started.
    is_attended: AtomicBool,
}

/// A device that another process has.
pub struct Remote {
    options: ClientOptions,
    spec: Spec,
    link: Mutex<Arc<Link>>,
    /// What there is to interrupt, and to tell of the end.
    local: OnceLock<Local>,
    /// What was last written to the command register there.
    command: AtomicU16,
    wires: Mutex<Wires>,
    mapped: Mutex<Mapped>,
}

/// What belongs to the device here.
struct Local {
    endpoint: Weak<Endpoint>,
    interrupts: Arc<Interrupts>,
    told: Box<dyn Fn(&Ended) + Send + Sync>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("socket", &self.options.socket).finish_non_exhaustive()
    }
}

/// Index of configuration space.
const CONFIG: u32 = 7;

/// In the command register: ports and memory answer, and the function may send memory requests.
const ANSWERS: u16 = 0b011;
const BUS_MASTER: u16 = 0b100;

impl Remote {
    /// Connects to a server, and asks what its device is.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(options: ClientOptions) -> Result<Arc<Self>, ConnectError> {
        let options = ClientOptions { patience: bounded(options.patience), ..options };
        let (link, spec) = handshake::connect(&options)?;
        Ok(Arc::new(Self {
            options,
            spec,
            link: Mutex::new(Arc::new(link)),
            local: OnceLock::new(),
            command: AtomicU16::new(0),
            wires: Mutex::default(),
            mapped: Mutex::default(),
        }))
    }

    /// What it looks like.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How the server reaches memory: as it was asked to, or as it can.
    #[must_use]
    pub fn memory_by(&self) -> MemoryBy {
        match (self.options.memory, &self.link().tables) {
            (MemoryBy::Tables, None) => MemoryBy::Files,
            (how, _) => how,
        }
    }

    /// Puts it to work as a requester here, which was made with this as its mirror. A thread of its own calls `told`
    /// when the server has gone, or was cut off. The device's threads start when it is first reset, as a program opens
    /// it.
    ///
    /// # Errors
    /// If it is at work already.
    pub fn start(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        interrupts: Arc<Interrupts>,
        told: impl Fn(&Ended) + Send + Sync + 'static,
    ) -> Result<Attended, ConnectError> {
        let remote = Arc::downgrade(self);
        interrupts.on_change(move || {
            if let Some(remote) = remote.upgrade() {
                remote.wire();
            }
        });
        let local = Local { endpoint: Arc::downgrade(endpoint), interrupts, told: Box::new(told) };
        if self.local.set(local).is_err() {
            return Err(ConnectError::Device("it is at work already".to_owned()));
        }
        Ok(Attended(self.clone()))
    }

    fn link(&self) -> Arc<Link> {
        lock(&self.link).clone()
    }

    /// Starts the threads of a connection, if it has none.
    fn attend(self: &Arc<Self>, link: &Arc<Link>) -> Result<(), ConnectError> {
        let Some(local) = self.local.get() else { return Ok(()) };
        let Some(endpoint) = local.endpoint.upgrade() else { return Ok(()) };
        if link.is_attended.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        lock(&self.wires).forget();
        let attended = memory::attend(link, &endpoint).and_then(|()| interrupts::attend(self, link));
        // Without its threads it would be a device that never interrupts.
        attended.inspect_err(|error| {
            link.connection.end(Ended::Socket(Arc::new(std::io::Error::from(error.kind()))));
            link.peer.end(Ended::Here);
        })?;
        Ok(())
    }

    /// The server has gone, or was cut off: the device answers nothing any more, and its user is asked to let it go.
    fn lost(&self, ended: &Ended) {
        if let Some(local) = self.local.get().filter(|_| !matches!(ended, Ended::Here)) {
            (local.told)(ended);
            local.interrupts.ask_back();
        }
    }

    /// Resets the device. If the server has gone and nothing is mapped for it, it is looked for again.
    fn reset(self: &Arc<Self>) -> Result<(), ConnectError> {
        let reset = |link: &Arc<Link>| -> Result<(), ConnectError> {
            self.attend(link)?;
            if link.resets {
                link.connection.call(CommandId::DeviceReset, &[], &[])?;
            }
            link.write(CONFIG, 4, &ANSWERS.to_le_bytes(), true)?;
            Ok(())
        };
        self.command.store(ANSWERS, Ordering::SeqCst);
        let before = self.link();
        match reset(&before) {
            Err(ConnectError::Ended(_)) if self.is_empty(&before) => {}
            done => return done,
        }
        // What one that is cut off has mapped must not be forgotten for the next.
        if before.has_files.load(Ordering::SeqCst) && !self.has_exited(&before, Duration::ZERO) {
            return Err(ConnectError::Ended(before.connection.end(Ended::Here)));
        }
        let (link, spec) = handshake::connect(&self.options)?;
        // What mirrors were told of tables once, holds.
        if spec != self.spec || link.tables.is_some() != before.tables.is_some() {
            return Err(ConnectError::Other);
        }
        let link = Arc::new(link);
        *lock(&self.link) = link.clone();
        reset(&link)
    }

    /// Whether nothing is mapped for the device.
    fn is_empty(&self, link: &Link) -> bool {
        lock(&self.mapped).is_empty() && link.tables.as_ref().is_none_or(Tables::is_empty)
    }

    fn read_region(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), CallError> {
        self.link().read(region, offset, data)
    }

    fn write_region(&self, region: u32, offset: u64, data: &[u8], waits: bool) -> Result<(), CallError> {
        self.link().write(region, offset, data, waits)
    }

    /// Whether a region has these bytes.
    fn has(&self, region: u32, offset: u64, length: usize) -> bool {
        let size = self.link().regions.get(region as usize).copied().unwrap_or(0);
        offset.checked_add(length as u64).is_some_and(|end| end <= size)
    }

    fn write_command(&self, command: u16) {
        self.command.store(command, Ordering::SeqCst);
        let _ = self.write_region(CONFIG, 4, &command.to_le_bytes(), true);
    }
}

impl Link {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), CallError> {
        let count = U32::new(data.len() as u32);
        let access = RegionAccess { offset: U64::new(offset), region: U32::new(region), count };
        let reply = self.connection.call(CommandId::RegionRead, &[access.as_bytes()], &[])?;
        match RegionAccess::read_from_prefix(&reply.payload) {
            Ok((_, bytes)) if bytes.len() == data.len() => {
                data.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(self.connection.end(Ended::protocol("a REGION_READ reply has other bytes")).into()),
        }
    }

    /// Writes; where nobody `waits`, as on a bus, what becomes of it is not known.
    fn write(&self, region: u32, offset: u64, data: &[u8], waits: bool) -> Result<(), CallError> {
        let count = U32::new(data.len() as u32);
        let access = RegionAccess { offset: U64::new(offset), region: U32::new(region), count };
        let parts = [access.as_bytes(), data];
        if waits {
            self.connection.call(CommandId::RegionWrite, &parts, &[]).map(drop)
        } else {
            self.connection.post(CommandId::RegionWrite, &parts)
        }
    }
}

/// A device that another process has, at work here: the connection ends when this is dropped.
#[derive(Debug)]
pub struct Attended(Arc<Remote>);

impl Drop for Attended {
    fn drop(&mut self) {
        let link = self.0.link();
        link.connection.end(Ended::Here);
        link.peer.end(Ended::Here);
    }
}

impl Model for Attended {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        // Beyond what the server has, nothing answers.
        if !self.0.has(bar.into(), offset, data.len()) || self.0.read_region(bar.into(), offset, data).is_err() {
            data.fill(0xff);
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if self.0.has(bar.into(), offset, data.len()) {
            let _ = self.0.write_region(bar.into(), offset, data, false);
        }
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> bool {
        self.0.has(CONFIG, offset.into(), data.len()) && self.0.read_region(CONFIG, offset.into(), data).is_ok()
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> bool {
        self.0.has(CONFIG, offset.into(), data.len()) && self.0.write_region(CONFIG, offset.into(), data, true).is_ok()
    }

    fn is_present(&self) -> bool {
        self.0.link().connection.ended().is_none()
    }

    fn reset(&self) {
        // One that cannot be found is absent still, which its user sees.
        let _ = self.0.reset();
    }
}

impl BusMaster for Attended {
    fn set_bus_master(&self, enabled: bool) {
        let endpoint = self.0.local.get().and_then(|local| local.endpoint.upgrade());
        let set = |enabled| endpoint.map(|endpoint| endpoint.set_bus_master(enabled));
        // It begins when this side is ready, and this side ends when it has.
        if enabled {
            let _ = set(true);
            self.0.write_command(ANSWERS | BUS_MASTER);
        } else {
            if self.0.command.load(Ordering::SeqCst) & BUS_MASTER != 0 {
                self.0.write_command(ANSWERS);
            }
            let _ = set(false);
        }
    }
}

/// Locks, also after a panic of another thread: nothing here is left half changed by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
