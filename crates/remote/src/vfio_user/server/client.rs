//! One client, from its first command after VERSION to its end.

use std::io;
use std::sync::{Arc, OnceLock};

use ioasid::{Context, Device, Endpoint, Ioas, Machine};
use ioasid_errno::ToErrno;
use ioasid_vfio::device::irq::{IrqActions, IrqData, IrqSet as VfioIrqSet};
use ioasid_vfio::{Session, VfioDevice};
use rustix::io::Errno;
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use super::ServeError;
use super::memory::PeerMemory;
use super::tables::Tables;
use crate::socket::{Ended, Files, Message, Passed};
use crate::vfio_user::connection::Connection;
use crate::vfio_user::wire::{
    Capabilities, DeviceInfo, Header, IrqInfo, IrqSet, IrqSetFlags, MAX_DESCRIPTORS, MigrationData, MostBytes, Request,
};

/// What a client has while it is connected.
pub(super) struct Client {
    pub(super) connection: Arc<Connection>,
    pub(super) memory: Arc<PeerMemory>,
    pub(super) files: Files,
    pub(super) session: Session,
    pub(super) device: Option<Device>,
    pub(super) ioas: Arc<Ioas>,
    pub(super) context: Arc<Context>,
    /// If the client shares its tables.
    pub(super) tables: OnceLock<Tables>,
}

/// What a command comes to: what to reply, or an errno.
pub(super) type Answer = Result<Vec<u8>, Errno>;

impl Client {
    pub(super) fn new(
        machine: &Arc<Machine>,
        endpoint: &Arc<Endpoint>,
        device: &Arc<VfioDevice>,
        connection: Arc<Connection>,
        peer: Arc<Connection>,
        capabilities: &Capabilities,
    ) -> Result<Self, ServeError> {
        let session = device.open()?;
        let context = machine.context();
        // A context that is new has ids.
        let ioas = context.ioas_alloc().ok_or(ioasid::AttachError::NoIds)?;
        let bound = context.bind(endpoint)?;
        bound.attach(None, &ioas)?;
        let memory = Arc::new(PeerMemory::new(peer, capabilities.transfer()));
        let (files, tables) = (Files::default(), OnceLock::new());
        Ok(Self { connection, memory, files, session, device: Some(bound), ioas, context, tables })
    }

    /// Carries out commands until the client goes.
    pub(super) fn serve(self) -> Ended {
        loop {
            let done = self.connection.next().and_then(|message| self.answer(message));
            if let Err(ended) = done {
                return self.connection.end(ended);
            }
        }
    }

    fn answer(&self, message: Message<Header>) -> Result<(), Ended> {
        let Message { header, payload, descriptors } = message;
        let request = Request::decode(header.command.get(), &payload, descriptors.len());
        match request.map_err(|_| Errno::INVAL).and_then(|request| self.carry_out(request, descriptors)) {
            Ok(reply) => self.connection.reply(&header, &[&reply], &[]),
            Err(errno) => self.connection.refuse(&header, errno),
        }
    }

    fn carry_out(&self, request: Request<'_>, descriptors: Passed) -> Answer {
        match request {
            // It was said.
            Request::Version(_) => Err(Errno::INVAL),
            Request::DmaMap(map, flags) => self.dma_map(&map, flags, descriptors),
            Request::DmaUnmap(unmap, flags) => self.dma_unmap(&unmap, flags),
            Request::SharedTables(tables) => self.share_tables(&tables, descriptors),
            Request::DeviceGetInfo(most) => {
                let info = self.session.info();
                let info = DeviceInfo {
                    argsz: U32::new(size_of::<DeviceInfo>() as u32),
                    flags: U32::new(info.flags.bits()),
                    regions: U32::new(info.regions),
                    irqs: U32::new(info.irqs),
                };
                whole(info.as_bytes(), most)
            }
            Request::DeviceGetRegionInfo(most, index) => self.region_info(index, most),
            Request::DeviceGetRegionIoFds(most, index) => self.region_io_fds(index, most),
            Request::DeviceGetIrqInfo(index) => {
                let info = self.session.irq_info(index).map_err(|error| error.errno())?;
                let info = IrqInfo {
                    argsz: U32::new(size_of::<IrqInfo>() as u32),
                    flags: U32::new(info.flags.bits()),
                    index: U32::new(index),
                    count: U32::new(info.count),
                };
                Ok(info.as_bytes().to_vec())
            }
            Request::DeviceSetIrqs(set, flags, bools) => self.set_irqs(&set, flags, bools, &descriptors),
            Request::RegionRead(access) => self.region_read(access),
            Request::RegionWrite(access, data) => self.region_write(access, data),
            Request::DeviceReset => {
                self.session.reset();
                Ok(Vec::new())
            }
            Request::RegionWriteMulti(writes) => {
                let done = writes.iter().take_while(|write| {
                    let count = write.count.get() as usize;
                    self.write(write.region.get(), write.offset.get(), &write.data[..count]).is_ok()
                });
                Ok(U64::new(done.count() as u64).as_bytes().to_vec())
            }
            // The models have none of VFIO's features beyond a reset, and no state that could be moved.
            Request::DeviceFeature(..) => Err(Errno::NOTTY),
            Request::MigDataRead(MigrationData { .. }) | Request::MigDataWrite(..) => Err(Errno::INVAL),
        }
    }

    fn set_irqs(&self, set: &IrqSet, flags: IrqSetFlags, bools: &[u8], descriptors: &Passed) -> Answer {
        let (index, start, count) = (set.index.get(), set.start.get(), set.count.get());
        self.session.check_irq_range(index, start, count).map_err(|error| error.errno())?;
        // Descriptors by their place in the message; without any, those that there are are taken away.
        let has_any = !descriptors.is_empty();
        let places: Vec<i32> = (0..count as i32).map(|place| if has_any { place } else { -1 }).collect();
        let mut fetch =
            |place: i32| descriptors.clone_eventfd(place as usize).ok_or_else(|| io::Error::from(Errno::INVAL));
        let data = if flags.contains(IrqSetFlags::EVENTFD) {
            IrqData::Eventfds(&places)
        } else if flags.contains(IrqSetFlags::BOOL) {
            IrqData::Bools(bools)
        } else {
            IrqData::None
        };
        debug_assert!(places.len() <= MAX_DESCRIPTORS || !has_any);
        let actions = IrqActions::from_bits_truncate(flags.bits());
        let request = VfioIrqSet { index, start, count, actions, data };
        self.session.set_irqs(&request, &mut fetch).map_err(|error| error.errno())?;
        Ok(Vec::new())
    }
}

/// A reply, if the client has room for it.
pub(super) fn whole(reply: &[u8], MostBytes(most): MostBytes) -> Answer {
    if (most as usize) < reply.len() { Err(Errno::INVAL) } else { Ok(reply.to_vec()) }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A device that waits for the client's memory waits no more.
        self.connection.end(Ended::Here);
        self.memory.end();
        self.session.reset();
        // What a client leaves when it goes is not its fault.
        if let Some(device) = self.device.take() {
            device.abandon();
        }
        drop(self.tables.take());
        let _ = self.context.destroy(self.ioas.id());
    }
}
