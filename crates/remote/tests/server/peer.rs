//! A client that sends what it is told to, and a server with an edu device.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ioasid::{GroupId, IommuKind, Machine, Silent};
use ioasid_devices::registry::{Built, Context, ModelInfo, Options, Shared, Site};
use ioasid_remote::Ended;
use ioasid_remote::vfio_user::wire::{
    Capabilities, CommandId, DmaFlags, DmaMap, DmaUnmap, Header, IrqSet, Kind, RegionAccess, TwinSocket, Version,
};
use ioasid_remote::vfio_user::{ServeError, Server};
use ioasid_vfio::{Function, VfioDevice};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use rustix::net::{SendFlags, recvmsg, sendmsg};
use zerocopy::native_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// How long the server waits for a client here.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// A device that is served.
pub fn server(model: &str, options: &[&str]) -> Arc<Server> {
    let machine = Machine::new(Arc::new(Silent));
    let iommu = machine.iommu(IommuKind::VtdFiveLevels);
    let info = ModelInfo::find(model).unwrap();
    let mut parsed = Options::default();
    options.iter().for_each(|option| info.parse(option, &mut parsed).unwrap());
    let site = Site { rid: "0000:00:01.0".parse().unwrap(), group: GroupId(0) };
    let context = Context {
        machine: &machine,
        iommu: &iommu,
        number: 0,
        shared: &mut Shared::default(),
        notice: Arc::new(|_, _| {}),
    };
    let built = info.build(&parsed, &[site], context).unwrap().remove(0);
    let Built { endpoint, spec, interrupts, model, bus_master } = built;
    let function = Function::new(spec, 0xC000_0000, interrupts, model, bus_master).unwrap();
    Arc::new(Server::new(&machine, endpoint, VfioDevice::new(Arc::new(function)), PATIENCE))
}

/// A client of a server.
pub struct Peer {
    pub socket: UnixStream,
    pub twin: Option<UnixStream>,
    thread: Option<JoinHandle<Result<Ended, ServeError>>>,
    next: u16,
}

impl Peer {
    /// One that has said nothing yet.
    pub fn silent(server: &Arc<Server>) -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let server = server.clone();
        let thread = std::thread::spawn(move || server.serve(OwnedFd::from(there)));
        Self { socket: here, twin: None, thread: Some(thread), next: 1 }
    }

    /// One that has the device.
    pub fn new(server: &Arc<Server>, twin: bool) -> Self {
        let mut peer = Self::silent(server);
        let twin_socket = twin.then_some(TwinSocket { supported: true, fd_index: None });
        let version = Version::with(Capabilities { twin_socket, ..Capabilities::ours() });
        let (reply, mut descriptors) = peer.call_with(CommandId::Version, &version.encode(), &[]).unwrap();
        let theirs = Version::decode(&reply).unwrap().capabilities;
        assert_eq!(theirs.twin_socket.map(|twin| (twin.supported, twin.fd_index)), twin.then_some((true, Some(0))));
        peer.twin = descriptors.pop().map(UnixStream::from);
        assert_eq!(peer.twin.is_some(), twin);
        peer
    }

    /// A whole device with memory decoding and bus mastering.
    pub fn enabled(server: &Arc<Server>, twin: bool) -> Self {
        let mut peer = Self::new(server, twin);
        peer.write(7, 4, &[6, 0]);
        peer
    }

    pub fn send(&mut self, command: CommandId, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> u16 {
        let id = self.next;
        self.next += 1;
        self.send_header(&Header::command(id, command, payload.len()), payload, descriptors);
        id
    }

    pub fn send_header(&mut self, header: &Header, payload: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send(&self.socket, header, payload, descriptors);
    }

    /// Sends a command; what is behind the header of the reply, or the errno.
    pub fn call_with(
        &mut self,
        command: CommandId,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), u32> {
        let id = self.send(command, payload, descriptors);
        let (header, payload, descriptors) = receive(&self.socket).expect("a reply");
        assert_eq!((header.id.get(), header.command.get()), (id, command as u16));
        match header.kind().unwrap() {
            Kind::Reply { error: None } => Ok((payload, descriptors)),
            Kind::Reply { error: Some(errno) } => Err(errno),
            Kind::Command { .. } => panic!("a command"),
        }
    }

    pub fn call(&mut self, command: CommandId, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.call_with(command, payload, &[]).map(|(payload, _)| payload)
    }

    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        self.try_read(region, offset, count).unwrap()
    }

    pub fn try_read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let access = RegionAccess { offset: U64::new(offset), region: U32::new(region), count: U32::new(count) };
        let reply = self.call(CommandId::RegionRead, access.as_bytes())?;
        let (done, data) = RegionAccess::read_from_prefix(&reply).unwrap();
        assert_eq!(done.count.get() as usize, data.len());
        Ok(data.to_vec())
    }

    pub fn read64(&mut self, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(0, offset, 8).try_into().unwrap())
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.try_write(region, offset, data).unwrap();
    }

    pub fn try_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let count = U32::new(data.len() as u32);
        let access = RegionAccess { offset: U64::new(offset), region: U32::new(region), count };
        self.call(CommandId::RegionWrite, &[access.as_bytes(), data].concat()).map(drop)
    }

    /// Maps memory, of a file or by messages.
    pub fn map(&mut self, address: u64, size: u64, flags: DmaFlags, file: Option<(&dyn AsFd, u64)>) -> Result<(), u32> {
        let map = DmaMap {
            argsz: U32::new(32),
            flags: U32::new(flags.bits()),
            offset: U64::new(file.map_or(0, |(_, offset)| offset)),
            address: U64::new(address),
            size: U64::new(size),
        };
        let descriptors: Vec<_> = file.iter().map(|(file, _)| file.as_fd()).collect();
        self.call_with(CommandId::DmaMap, map.as_bytes(), &descriptors).map(drop)
    }

    pub fn unmap(&mut self, address: u64, size: u64, flags: u32) -> Result<Vec<u8>, u32> {
        let (address, size) = (U64::new(address), U64::new(size));
        let unmap = DmaUnmap { argsz: U32::new(24), flags: U32::new(flags), address, size };
        self.call(CommandId::DmaUnmap, unmap.as_bytes())
    }

    pub fn set_irqs(
        &mut self,
        [index, start, count, flags]: [u32; 4],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), u32> {
        let [index, start, count, flags] = [index, start, count, flags].map(U32::new);
        let set = IrqSet { argsz: U32::new(20), flags, index, start, count };
        self.call_with(CommandId::DeviceSetIrqs, set.as_bytes(), descriptors).map(drop)
    }

    /// Has edu move bytes between its memory and `iova`.
    pub fn start_dma(&mut self, iova: u64, count: u64, to_memory: bool) {
        let (source, destination) = if to_memory { (0x4_0000, iova) } else { (iova, 0x4_0000) };
        for (register, value) in [(0x80, source), (0x88, destination), (0x90, count)] {
            self.write(0, register, &value.to_le_bytes());
        }
        self.write(0, 0x98, &(1 | u64::from(to_memory) << 1).to_le_bytes());
    }

    pub fn wait_for_dma(&mut self) {
        wait_until("the transfer has ended", || self.read64(0x98) & 1 == 0);
    }

    pub fn dma(&mut self, iova: u64, count: u64, to_memory: bool) {
        self.start_dma(iova, count, to_memory);
        self.wait_for_dma();
    }

    /// Waits until the server has let go of this client, and says why that went.
    pub fn end(mut self) -> Result<Ended, ServeError> {
        // What it could still wait for is there no more.
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        drop(self.twin.take());
        self.thread.take().unwrap().join().unwrap()
    }

    /// As [`Peer::end`], of one that the server itself gave up.
    pub fn ended(mut self) -> Result<Ended, ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        drop(self.twin.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn send(mut socket: &UnixStream, header: &Header, payload: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let first = IoSlice::new(header.as_bytes());
    // A server that is gone takes nothing more.
    if sendmsg(socket, &[first], &mut ancillary, SendFlags::NOSIGNAL).is_ok() {
        let _ = socket.write_all(payload);
    }
}

/// The next message, or `None` at the end.
pub fn receive(mut socket: &UnixStream) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = [0; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags).ok()?;
    if received.bytes < 16 {
        return None;
    }
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    let header = Header::read_from_bytes(&bytes).unwrap();
    let mut payload = vec![0; header.payload().unwrap()];
    socket.read_exact(&mut payload).ok()?;
    Some((header, payload, descriptors))
}

pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never came to be that {what}");
        std::thread::yield_now();
    }
}

/// A file in memory of so many bytes, each `fill`.
pub fn memfd(bytes: u64, fill: u8) -> std::fs::File {
    let file = std::fs::File::from(rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![fill; bytes as usize], 0).unwrap();
    file
}

impl Peer {
    /// As [`Peer::dma`], where the device's own commands come by the same socket: `answer` answers them.
    pub fn start_dma_and_answer(
        &mut self,
        iova: u64,
        count: u64,
        to_memory: bool,
        answer: impl Fn(&UnixStream, &Header, &[u8]),
    ) {
        let (source, destination) = if to_memory { (0x4_0000, iova) } else { (iova, 0x4_0000) };
        let access = |offset, value: u64| {
            let access = RegionAccess { offset: U64::new(offset), region: U32::new(0), count: U32::new(8) };
            [access.as_bytes(), &value.to_le_bytes()].concat()
        };
        for (register, value) in
            [(0x80, source), (0x88, destination), (0x90, count), (0x98, 1 | u64::from(to_memory) << 1)]
        {
            self.send(CommandId::RegionWrite, &access(register, value), &[]);
        }
        wait_until("the transfer has ended", || {
            let id = self.send(CommandId::RegionRead, &access(0x98, 0)[..16], &[]);
            loop {
                let (header, payload, _) = receive(&self.socket).expect("a message");
                match header.kind().unwrap() {
                    Kind::Command { .. } => answer(&self.socket, &header, &payload),
                    Kind::Reply { error } => {
                        assert_eq!(error, None);
                        if header.id.get() == id {
                            break payload[16] & 1 == 0;
                        }
                    }
                }
            }
        });
    }
}
