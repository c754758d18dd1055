//! What the server reads and writes by messages: through a port, so each access is translated and checked.

use std::sync::Arc;

use ioasid::{DmaPort, Endpoint, Iova};
use rustix::io::Errno;
use zerocopy::IntoBytes;
use zerocopy::native_endian::U32;

use super::Link;
use crate::socket::{Ended, Message};
use crate::vfio_user::wire::{BY_MESSAGE, Command, DmaWritten, Header};

/// Starts the thread that answers the server's commands, as long as the connection is there.
pub(super) fn attend(link: &Arc<Link>, endpoint: &Arc<Endpoint>) -> std::io::Result<()> {
    let (link, mut port) = (link.clone(), endpoint.port());
    let thread = std::thread::Builder::new().name("remote-dma".to_owned());
    thread.spawn(move || {
        loop {
            let done = link.peer.next().and_then(|message| answer(&link, &mut port, &message));
            if let Err(ended) = done {
                // A server that has broken one of its sockets has no use for the other.
                link.connection.end(ended);
                return;
            }
        }
    })?;
    Ok(())
}

fn answer(link: &Link, port: &mut DmaPort, message: &Message<Header>) -> Result<(), Ended> {
    let (peer, header) = (&link.peer, &message.header);
    match Command::decode(header.command.get(), &message.payload, message.descriptors.len()) {
        Ok(Command::DmaRead(access)) => {
            let mut data = vec![0; access.count.get() as usize];
            match iova(link, access.address.get()).map(|iova| port.read(iova, &mut data)) {
                Some(Ok(())) => peer.reply(header, &[access.as_bytes(), &data], &[]),
                _ => peer.refuse(header, Errno::FAULT),
            }
        }
        Ok(Command::DmaWrite(access, data)) => {
            match iova(link, access.address.get()).map(|iova| port.write(iova, data)) {
                Some(Ok(())) => {
                    let written = DmaWritten { address: access.address, count: U32::new(data.len() as u32) };
                    peer.reply(header, &[written.as_bytes()], &[])
                }
                _ => peer.refuse(header, Errno::FAULT),
            }
        }
        Err(_) => peer.refuse(header, Errno::INVAL),
    }
}

/// What the server means by an address: that of a table that it walks, if it walks any.
fn iova(link: &Link, address: u64) -> Option<Iova> {
    match link.tables {
        None => Some(Iova(address)),
        Some(_) => (address & BY_MESSAGE != 0).then_some(Iova(address & !BY_MESSAGE)),
    }
}
