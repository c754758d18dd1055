//! A front end with a driver of a disk, which our back end has.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use ioasid::memory::Segment;
use ioasid::{GroupId, IommuKind, Machine, Silent};
use ioasid_devices::registry::{self, ModelInfo, Options, Shared, Site};
use ioasid_devices::virtio::Offer;
use ioasid_remote::Ended;
use ioasid_remote::vhost_user::BackEnd;
use ioasid_remote::vhost_user::wire::{
    Header, MemoryHead, MemoryRegion, RequestId, VringAddress, VringFile, VringState, feature, protocol,
};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use crate::peer::{PATIENCE, receive, send, wait_until};

/// A disk of 1 MiB.
pub fn disk() -> Arc<BackEnd> {
    let machine = Machine::new(Arc::new(Silent));
    let iommu = machine.iommu(IommuKind::VtdFiveLevels);
    let info = ModelInfo::find("virtio-blk").unwrap();
    let mut options = Options::default();
    info.parse("memory=1M", &mut options).unwrap();
    let site = Site { rid: "0000:00:01.0".parse().unwrap(), group: GroupId(0) };
    let (shared, notice) = (&mut Shared::default(), Arc::new(|_, _: &str| {}) as _);
    let context = registry::Context { machine: &machine, iommu: &iommu, number: 0, shared, notice };
    let Offer { endpoint, misses, device } = info.offer(&options, site, context).unwrap().unwrap();
    Arc::new(BackEnd::new(&machine, endpoint, device, misses, PATIENCE))
}

/// Where the memory is, for the device, and by which addresses rings refer to it.
pub const GUEST: u64 = 0x100_0000;
pub const USER: u64 = 1 << 40;
pub const LENGTH: u64 = 0x2_0000;
/// In it.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3100;
pub const DATA: u64 = 0x4000;

pub const FEATURES: u64 = 1 << 32 | feature::PROTOCOL_FEATURES;
pub const PROTOCOL: u64 = protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;

pub struct Front {
    pub socket: UnixStream,
    serves: Option<JoinHandle<Ended>>,
    pub memory: Arc<File>,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub error: OwnedFd,
    offered: u16,
}

pub fn state(index: u32, number: u32) -> VringState {
    VringState { index: U32::new(index), number: U32::new(number) }
}

pub fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A memory table.
pub fn table(regions: &[MemoryRegion]) -> Vec<u8> {
    let head = MemoryHead { regions: U32::new(regions.len() as u32), padding: U32::new(0) };
    [head.as_bytes(), regions.as_bytes()].concat()
}

pub fn region(guest: u64, size: u64, user: u64, offset: u64) -> MemoryRegion {
    let [guest, size, user, offset] = [guest, size, user, offset].map(U64::new);
    MemoryRegion { guest, size, user, offset }
}

impl Front {
    /// Connected, and nothing said.
    pub fn new(back_end: &Arc<BackEnd>) -> Self {
        let (socket, other) = UnixStream::pair().unwrap();
        let back_end = back_end.clone();
        let serves = std::thread::spawn(move || back_end.serve(OwnedFd::from(other)).unwrap());
        let (memory, [kick, call, error]) = (Segment::memfd(LENGTH).unwrap().1, std::array::from_fn(|_| counter()));
        Self { socket, serves: Some(serves), memory, kick, call, error, offered: 0 }
    }

    /// As a front end that knows all of the protocol, at work.
    pub fn at_work(back_end: &Arc<BackEnd>) -> Self {
        let front = Self::new(back_end);
        front.agree();
        front.set_up();
        front
    }

    pub fn agree(&self) {
        assert!(self.say(RequestId::SetProtocolFeatures, &PROTOCOL.to_ne_bytes(), &[]));
        assert_eq!(self.ask(RequestId::SetFeatures, &FEATURES.to_ne_bytes(), &[]), Some(0));
    }

    pub fn set_up(&self) {
        let memory = table(&[region(GUEST, LENGTH, USER, 0)]);
        let [descriptors, driver, device] = [USER, USER + AVAILABLE, USER + USED].map(U64::new);
        let address = VringAddress { descriptors, driver, device, ..VringAddress::default() };
        let file = U64::new(VringFile { index: 0, has_file: true }.encode());
        let file = file.as_bytes();
        for (id, payload, files) in [
            (RequestId::SetMemTable, &memory[..], &[self.memory.as_fd()][..]),
            (RequestId::SetVringNum, state(0, 64).as_bytes(), &[]),
            (RequestId::SetVringBase, state(0, self.offered.into()).as_bytes(), &[]),
            (RequestId::SetVringAddr, address.as_bytes(), &[]),
            (RequestId::SetVringErr, file, &[self.error.as_fd()]),
            (RequestId::SetVringCall, file, &[self.call.as_fd()]),
            (RequestId::SetVringKick, file, &[self.kick.as_fd()]),
            (RequestId::SetVringEnable, state(0, 1).as_bytes(), &[]),
        ] {
            assert_eq!(self.ask(id, payload, files), Some(0), "{id}");
        }
    }

    /// With rings in which there is nothing, in the same memory, passed again.
    pub fn begin_anew(&mut self) {
        self.ask(RequestId::GetVringBase, state(0, 0).as_bytes(), &[]).unwrap();
        self.memory.write_all_at(&[0; DATA as usize], 0).unwrap();
        self.offered = 0;
        self.set_up();
    }

    /// Sends something that is not answered.
    pub fn say(&self, id: RequestId, payload: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        send(&self.socket, Header::request(id as u32, payload.len(), false), payload, files)
    }

    /// What is answered to a request that wants that: 0 if it was carried out.
    pub fn ask(&self, id: RequestId, payload: &[u8], files: &[BorrowedFd<'_>]) -> Option<u64> {
        send(&self.socket, Header::request(id as u32, payload.len(), true), payload, files).then_some(())?;
        Some(receive(&self.socket)?.number())
    }

    pub fn word(&self, at: u64) -> u16 {
        let mut word = [0; 2];
        self.memory.read_exact_at(&mut word, at).unwrap();
        u16::from_le_bytes(word)
    }

    /// Offers a request of the disk's for `length` bytes at [`DATA`], whose address for the device is `data`.
    pub fn offer(&mut self, kind: u32, sector: u64, data: u64, length: u32) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write_all_at(&header, HEADER).unwrap();
        self.memory.write_all_at(&[0xee], STATUS).unwrap();
        // The device writes what it reads from the disk.
        let flags = if kind == 0 { 3 } else { 1 };
        let chain = [(GUEST + HEADER, 16, 1, 1), (data, length, flags, 2), (GUEST + STATUS, 1, 2, 0u16)];
        for (index, (address, length, flags, next)) in (0..).zip(chain) {
            let [address, length, flags]: [&[u8]; 3] =
                [&u64::to_le_bytes(address), &u32::to_le_bytes(length), &u16::to_le_bytes(flags)];
            self.memory.write_all_at(&[address, length, flags, &next.to_le_bytes()].concat(), 16 * index).unwrap();
        }
        self.memory.write_all_at(&[0, 0], AVAILABLE + 4 + 2 * u64::from(self.offered % 64)).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.memory.write_all_at(&self.offered.to_le_bytes(), AVAILABLE + 2).unwrap();
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    pub fn is_done(&self) -> bool {
        self.word(USED + 2) == self.offered
    }

    /// Its status, when it is done.
    pub fn wait(&self) -> u8 {
        wait_until("the request is done", || self.is_done());
        self.word(STATUS) as u8
    }

    /// Writes to the disk and reads that back.
    pub fn check(&mut self, random: &mut fastrand::Rng) {
        let (sector, data) = (random.u64(..2048 - 8), std::iter::repeat_with(|| random.u8(..)).take(4096));
        let data: Vec<u8> = data.collect();
        self.memory.write_all_at(&data, DATA).unwrap();
        self.offer(1, sector, GUEST + DATA, 4096);
        assert_eq!(self.wait(), 0);
        self.offer(0, sector, GUEST + DATA + 0x1000, 4096);
        assert_eq!(self.wait(), 0);
        let mut read = vec![0; 4096];
        self.memory.read_exact_at(&mut read, DATA + 0x1000).unwrap();
        assert_eq!(read, data);
    }

    /// Why the back end is done with it, when it is or when this goes.
    pub fn ended(mut self) -> Ended {
        let serves = self.serves.take().unwrap();
        if !serves.is_finished() {
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
        serves.join().unwrap()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(serves) = self.serves.take() {
            assert!(serves.join().is_ok() || std::thread::panicking());
        }
    }
}
