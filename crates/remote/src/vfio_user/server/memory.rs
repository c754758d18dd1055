//! Memory of a client that is not mapped here.

use std::io;
use std::sync::Arc;

use ioasid::memory::RemoteMemory;
use zerocopy::native_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use crate::socket::Ended;
use crate::vfio_user::connection::{CallError, Connection};
use crate::vfio_user::wire::{CommandId, DmaAccess, DmaWritten};

/// What a client has mapped without a file: each access is a message.
pub(super) struct PeerMemory {
    peer: Arc<Connection>,
    /// The most bytes of one message.
    transfer: usize,
}

impl PeerMemory {
    pub(super) fn new(peer: Arc<Connection>, transfer: usize) -> Self {
        Self { peer, transfer }
    }

    /// Whatever waits for it waits no more.
    pub(super) fn end(&self) {
        self.peer.end(Ended::Here);
    }

    fn broken(&self, what: &'static str) -> io::Error {
        io::Error::other(self.peer.end(Ended::protocol(what)))
    }
}

/// The memory is refused, or its owner is gone: in either case, it cannot be reached.
fn gone(error: CallError) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, error)
}

impl RemoteMemory for PeerMemory {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        for (at, part) in (address..).step_by(self.transfer).zip(data.chunks_mut(self.transfer)) {
            let access = DmaAccess { address: U64::new(at), count: U64::new(part.len() as u64) };
            let reply = self.peer.call(CommandId::DmaRead, &[access.as_bytes()], &[]).map_err(gone)?;
            let (done, bytes) = DmaAccess::read_from_prefix(&reply.payload)
                .map_err(|_| self.broken("a DMA_READ reply is too short"))?;
            if done != access || bytes.len() != part.len() {
                return Err(self.broken("a DMA_READ reply is to another read"));
            }
            part.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        for (at, part) in (address..).step_by(self.transfer).zip(data.chunks(self.transfer)) {
            let access = DmaAccess { address: U64::new(at), count: U64::new(part.len() as u64) };
            let reply = self.peer.call(CommandId::DmaWrite, &[access.as_bytes(), part], &[]).map_err(gone)?;
            // Some give the count 8 bytes, of which those beyond 4 are 0.
            let (done, _) = DmaWritten::read_from_prefix(&reply.payload)
                .map_err(|_| self.broken("a DMA_WRITE reply is too short"))?;
            if done.address.get() != at || done.count.get() as usize != part.len() {
                return Err(self.broken("a DMA_WRITE reply is to another write"));
            }
        }
        Ok(())
    }
}
