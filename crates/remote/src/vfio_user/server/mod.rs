//! A device on a socket: whoever connects has it, one client at a time.
//!
//! ```text
//!   client ── REGION_READ, SET_IRQS … ──► Client ──► Session ──► the device's registers
//!          ── DMA_MAP, DMA_UNMAP ───────► Client ──► Ioas ◄── attached ── Endpoint ◄── the device's DMA
//!          ◄─ DMA_READ, DMA_WRITE ─────── PeerMemory ◄──────── for memory that came without a file
//! ```
//! What a client maps is an address space of the engine's, so each access of the device is translated and checked, and
//! an unmap is answered when none through it is in flight. When a client goes, its address space goes, and the device
//! is reset; the next one finds it as after power-on.

mod client;
mod dma;
mod memory;
mod regions;
mod tables;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ioasid::{AttachError, BindError, Endpoint, Machine};
use ioasid_vfio::VfioDevice;
use ioasid_vfio::device::OpenError;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use thiserror::Error;

use crate::socket::{Ended, bounded};
use crate::vfio_user::connection::Connection;
use crate::vfio_user::wire::{Capabilities, CommandId, MINOR, Request, TwinSocket, Version, VersionError};
use client::Client;

/// A device that clients can have.
#[derive(Debug)]
pub struct Server {
    machine: Arc<Machine>,
    endpoint: Arc<Endpoint>,
    device: Arc<VfioDevice>,
    patience: Duration,
}

/// Why a client did not get the device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another has it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another has it.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It cannot be given an address space.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The two do not speak the same.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The connection ended before that.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// There is no socket to be had.
    #[error("there is no second socket to be had: {0}")]
    Socket(#[from] std::io::Error),
}

impl Server {
    /// Offers `device`, whose DMA is `endpoint`'s, a requester of `machine`'s. A client that does not answer for
    /// `patience` (a millisecond to an hour, or what is nearest to that) is given up.
    #[must_use]
    pub fn new(machine: &Arc<Machine>, endpoint: Arc<Endpoint>, device: Arc<VfioDevice>, patience: Duration) -> Self {
        Self { machine: machine.clone(), endpoint, device, patience: bounded(patience) }
    }

    /// Serves one client, over a stream socket (`AF_UNIX`), until it goes. Returns why it went; the device is as after
    /// power-on then.
    ///
    /// # Errors
    /// [`ServeError`], if it never had the device.
    pub fn serve(&self, socket: OwnedFd) -> Result<Ended, ServeError> {
        let connection = Arc::new(Connection::new(socket, self.patience));
        let (capabilities, twin) = self.agree(&connection)?;
        let peer = twin.unwrap_or_else(|| connection.clone());
        let client = Client::new(&self.machine, &self.endpoint, &self.device, connection, peer, &capabilities)?;
        Ok(client.serve())
    }

    /// The first message: what the client can do, and the socket for this side's commands, if it takes one.
    fn agree(&self, connection: &Connection) -> Result<(Capabilities, Option<Arc<Connection>>), ServeError> {
        // Who connects and says nothing does not keep others from the device.
        let Some(message) = connection.next_by(self.patience)? else {
            return Err(connection.end(Ended::Silent(CommandId::Version.name(), self.patience)).into());
        };
        let request = Request::decode(message.header.command.get(), &message.payload, message.descriptors.len());
        let version = match request {
            Ok(Request::Version(payload)) => Version::decode(payload),
            Ok(_) => return Err(connection.end(Ended::protocol("the first command is not VERSION")).into()),
            Err(error) => return Err(connection.end(error.into()).into()),
        };
        let version = version.inspect_err(|error| {
            // It is told, as far as that is possible.
            let _ = connection.refuse(&message.header, rustix::io::Errno::INVAL);
            connection.end(Ended::protocol(error.to_string()));
        })?;
        let theirs = version.capabilities;
        let mut ours = Capabilities {
            write_multiple: theirs.write_multiple,
            shared_tables: theirs.shared_tables,
            ..Capabilities::ours()
        };
        let (mut twin, mut descriptors) = (None, Vec::new());
        if theirs.twin_socket.is_some_and(|twin| twin.supported) && theirs.descriptors() > 0 {
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            let (here, there) = pair.map_err(std::io::Error::from)?;
            ours.twin_socket = Some(TwinSocket { supported: true, fd_index: Some(0) });
            twin = Some(Arc::new(Connection::new(here, self.patience)));
            descriptors.push(there);
        }
        let reply = Version { minor: version.minor.min(MINOR), ..Version::with(ours) }.encode();
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        connection.reply(&message.header, &[&reply], &descriptors)?;
        Ok((theirs, twin))
    }
}
