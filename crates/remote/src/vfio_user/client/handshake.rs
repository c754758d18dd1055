//! Connecting: what the two sides can do, and what the device is.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ioasid_vfio::Spec;
use zerocopy::native_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::spec::{Interrupts, read_spec};
use super::tables::Tables;
use super::{ClientOptions, ConnectError, Link, MemoryBy};
use crate::socket::peer::Process;
use crate::socket::{Ended, connect as connect_socket};
use crate::vfio_user::connection::{CallError, Connection};
use crate::vfio_user::wire::{
    Capabilities, CommandId, DeviceInfo, IrqInfo, RegionInfo, TwinSocket, Version, VersionError,
};

/// In DEVICE_GET_INFO: it can be reset, and it is a PCI device.
const RESET: u32 = 1 << 0;
const PCI: u32 = 1 << 1;

/// In DEVICE_GET_IRQ_INFO: it masks itself.
const AUTOMASKED: u32 = 1 << 2;

impl From<CallError> for ConnectError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Ended(ended) => Self::Ended(ended),
            refused @ CallError::Refused(..) => Self::Refused(refused.to_string()),
        }
    }
}

/// Connects, and learns what the device is.
pub(super) fn connect(options: &ClientOptions) -> Result<(Link, Spec), ConnectError> {
    let socket = connect_socket(&options.socket, options.patience)
        .map_err(|error| ConnectError::Connect(options.socket.clone(), error.into()))?;
    let process = Process::of(&socket);
    let connection = Arc::new(Connection::new(socket, options.patience));
    // One that is not known could not be ended.
    let may_share = options.memory == MemoryBy::Tables && process.as_ref().is_some_and(Process::is_of_a_device);
    let (theirs, peer) = agree(&connection, options.patience, may_share)?;
    let info = DeviceInfo { argsz: U32::new(size_of::<DeviceInfo>() as u32), ..DeviceInfo::default() };
    let info: DeviceInfo = ask(&connection, CommandId::DeviceGetInfo, &info)?;
    if info.flags.get() & PCI == 0 {
        return Err(ConnectError::Device("it is no PCI device".to_owned()));
    }
    let mut regions = [0; 8];
    let limit = connection.limit();
    for (index, size) in (0..info.regions.get()).zip(&mut regions) {
        connection.keep_to(limit, CommandId::DeviceGetRegionInfo)?;
        let argsz = U32::new(size_of::<RegionInfo>() as u32);
        let info = RegionInfo { argsz, index: U32::new(index), ..RegionInfo::default() };
        let info: RegionInfo = ask(&connection, CommandId::DeviceGetRegionInfo, &info)?;
        *size = info.size.get();
    }
    let mut irqs = [(0, 0); 3];
    for (index, irq) in (0..info.irqs.get()).zip(&mut irqs) {
        connection.keep_to(limit, CommandId::DeviceGetIrqInfo)?;
        let argsz = U32::new(size_of::<IrqInfo>() as u32);
        let info = IrqInfo { argsz, index: U32::new(index), ..IrqInfo::default() };
        let info: IrqInfo = ask(&connection, CommandId::DeviceGetIrqInfo, &info)?;
        *irq = (info.count.get(), info.flags.get());
    }
    // The two files of the tables' gate.
    let can_share = may_share && theirs.shared_tables && theirs.descriptors() >= 2;
    let tables = if can_share { Tables::share(&connection)? } else { None };
    let link = Link {
        peer: peer.unwrap_or_else(|| connection.clone()),
        connection,
        descriptors: theirs.descriptors(),
        most_maps: theirs.max_dma_maps,
        page_sizes: theirs.pgsizes,
        resets: info.flags.get() & RESET != 0,
        regions,
        masks_line: irqs[0].1 & AUTOMASKED != 0,
        process,
        has_files: AtomicBool::new(tables.is_some()),
        tables,
        is_attended: AtomicBool::new(false),
    };
    let [line, messages, table] = irqs.map(|(count, _)| count);
    let spec = read_spec(&link, &Interrupts { has_line: line > 0, messages, table }, limit)?;
    Ok((link, spec))
}

/// The first message, and the socket for the server's commands, if it makes one.
fn agree(
    connection: &Connection,
    patience: Duration,
    shared_tables: bool,
) -> Result<(Capabilities, Option<Arc<Connection>>), ConnectError> {
    let twin_socket = Some(TwinSocket { supported: true, fd_index: None });
    let ours = Version::with(Capabilities { twin_socket, shared_tables, ..Capabilities::ours() });
    let mut reply = connection.call(CommandId::Version, &[&ours.encode()], &[])?;
    let version = Version::decode(&reply.payload).inspect_err(|error| {
        connection.end(Ended::protocol(error.to_string()));
    })?;
    let twin = version.capabilities.twin_socket.filter(|twin| twin.supported);
    let peer = match twin {
        None => None,
        Some(twin) => {
            let index = twin.fd_index.and_then(|index| usize::try_from(index).ok()).ok_or(VersionError::NoTwin)?;
            let socket = reply.descriptors.take_socket(index).ok_or(VersionError::NoTwin)?;
            let peer = Arc::new(Connection::new(socket, patience));
            connection.refuse_commands();
            Some(peer)
        }
    };
    // A server passes nothing else that this side has a use for.
    connection.refuse_descriptors();
    peer.iter().for_each(|peer| peer.refuse_descriptors());
    Ok((version.capabilities, peer))
}

/// Asks for a structure.
fn ask<T: FromBytes + IntoBytes + Immutable>(
    connection: &Connection,
    command: CommandId,
    question: &T,
) -> Result<T, ConnectError> {
    let reply = connection.call(command, &[question.as_bytes()], &[])?;
    match T::read_from_prefix(&reply.payload) {
        Ok((answer, _)) => Ok(answer),
        Err(_) => Err(connection.end(Ended::protocol(format!("a {command} reply is too short"))).into()),
    }
}
