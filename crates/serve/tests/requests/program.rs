//! A program that makes requests, without a process: memory, descriptors, and what it may.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex};

use ioasid::memory::{Account, Identity, ImportError, Pages, Process, Segment};
use ioasid::{Pasid, PasidHold};
use ioasid_serve::request::file::OpenFile;
use ioasid_serve::request::given::GivenFile;
use ioasid_serve::request::{Caller, Capability};
use rustix::io::Errno;

/// Where its memory is, and how much.
pub const MEMORY: u64 = 0x10_0000;
pub const SIZE: u64 = 1 << 20;
/// Where nothing is.
pub const NOWHERE: u64 = 0x1000;
/// The number of its memory as a file, and that of a pidfd of this process.
pub const MEMORY_FILE: i32 = 3;
pub const PIDFD: i32 = 4;
/// That of an eventfd, and the first that it is given.
pub const EVENTFD: i32 = 5;
const FIRST_GIVEN: i32 = 100;

pub struct Program {
    memory: Arc<File>,
    given: Mutex<BTreeMap<i32, Option<Arc<dyn OpenFile>>>>,
    bound: Mutex<Option<(Pasid, PasidHold)>>,
}

impl Program {
    pub fn new() -> Self {
        let memory = Segment::memfd(SIZE).unwrap().1;
        Self { memory, given: Mutex::default(), bound: Mutex::default() }
    }

    /// The descriptors that it was given, and did not close.
    pub fn descriptors(&self) -> Vec<i32> {
        self.given.lock().unwrap().iter().filter(|(_, file)| file.is_some()).map(|(number, _)| *number).collect()
    }

    /// The file that a request gave it by this number.
    pub fn given(&self, number: i32) -> Option<Arc<dyn GivenFile>> {
        self.file(number).ok()?.given().cloned()
    }

    /// The open file that it has by this number.
    pub fn opened(&self, number: i32) -> Option<Arc<dyn OpenFile>> {
        self.given.lock().unwrap().get(&number)?.clone()
    }

    /// It opens a file.
    pub fn has_opened(&self, file: Arc<dyn OpenFile>) {
        let mut given = self.given.lock().unwrap();
        let number = given.last_key_value().map_or(FIRST_GIVEN, |(last, _)| last + 1);
        given.insert(number, Some(file));
    }

    /// It has closed a number.
    pub fn forget(&self, number: Option<i32>) {
        let file = number.and_then(|number| self.given.lock().unwrap().remove(&number));
        // Dropped without the lock.
        drop(file);
    }

    /// Takes numbers away that no file was given for; a process has them as closed descriptors from then on.
    pub fn forget_reserved(&self) {
        self.given.lock().unwrap().retain(|_, file| file.is_some());
    }

    /// Closes one of its descriptors, counted from the first that it was given.
    pub fn close(&self, which: u8) {
        let number = self.descriptors().get(usize::from(which)).copied();
        if let Some(number) = number {
            // Dropped without the lock.
            let file = self.given.lock().unwrap().remove(&number);
            drop(file);
        }
    }

    /// Its memory ends where mappings begin.
    pub fn lose_what_is_mapped(&self) {
        self.memory.set_len(super::setup::MAPPED - MEMORY).unwrap();
    }

    pub fn put(&self, address: u64, data: &[u8]) {
        self.memory.write_all_at(data, Self::offset(address, data.len()).unwrap()).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_exact_at(&mut data, Self::offset(address, length).unwrap()).unwrap();
        data
    }

    /// Where `length` bytes at `address` are in its memory.
    fn offset(address: u64, length: usize) -> Result<u64, Errno> {
        let offset = address.checked_sub(MEMORY).ok_or(Errno::FAULT)?;
        if offset.checked_add(length as u64).is_none_or(|end| end > SIZE) { Err(Errno::FAULT) } else { Ok(offset) }
    }

    fn fail_for(errno: Errno) -> Result<(), Errno> {
        if ioasid_inject::fails() { Err(errno) } else { Ok(()) }
    }
}

impl Caller for Program {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        Self::fail_for(Errno::FAULT)?;
        self.memory.read_exact_at(data, Self::offset(address, data.len())?).map_err(|_| Errno::FAULT)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        Self::fail_for(Errno::FAULT)?;
        self.memory.write_all_at(data, Self::offset(address, data.len())?).map_err(|_| Errno::FAULT)
    }

    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        Self::fail_for(Errno::MFILE)?;
        match number {
            MEMORY_FILE => rustix::io::dup(&self.memory),
            EVENTFD => rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK),
            _ => Err(Errno::BADF),
        }
    }

    fn is_capable(&self, _capability: Capability) -> bool {
        true
    }

    fn account(&self, _by_process: bool) -> Option<Arc<dyn Account>> {
        None
    }

    fn has_mapped(&self, _offset: u64, _length: u64) -> bool {
        false
    }

    fn file(&self, number: i32) -> Result<Arc<dyn OpenFile>, Errno> {
        match self.given.lock().unwrap().get(&number) {
            Some(file) => file.clone().ok_or(Errno::BADFD),
            None if [MEMORY_FILE, PIDFD].contains(&number) => Err(Errno::BADFD),
            None => Err(Errno::BADF),
        }
    }

    fn reserve(&self) -> Result<i32, Errno> {
        Self::fail_for(Errno::MFILE)?;
        let mut given = self.given.lock().unwrap();
        let number = given.last_key_value().map_or(FIRST_GIVEN, |(last, _)| last + 1);
        given.insert(number, None);
        Ok(number)
    }

    fn install(&self, number: i32, file: Arc<dyn OpenFile>) -> Result<(), Errno> {
        Self::fail_for(Errno::NFILE)?;
        self.given.lock().unwrap().insert(number, Some(file));
        Ok(())
    }

    fn process(&self, pidfd: i32) -> Result<Arc<Process>, Errno> {
        Self::fail_for(Errno::MFILE)?;
        match pidfd {
            PIDFD => Process::open_for_sva(std::process::id()).map(Arc::new).map_err(|_| Errno::SRCH),
            MEMORY_FILE => Err(Errno::INVAL),
            _ => Err(Errno::BADF),
        }
    }

    fn bind_enqcmd(&self, bound: Option<(Pasid, PasidHold)>) -> Result<(), Errno> {
        Self::fail_for(Errno::SRCH)?;
        let before = std::mem::replace(&mut *self.bound.lock().unwrap(), bound);
        drop(before);
        Ok(())
    }

    fn pages(&self, address: u64, length: u64, writable: bool, _peers: bool) -> Result<Arc<Pages>, ImportError> {
        if ioasid_inject::fails() {
            return Err(std::io::Error::from(std::io::ErrorKind::OutOfMemory).into());
        }
        let memory = self.memory.clone();
        Ok(Pages::new(address, length, writable, move |offset, length| {
            let bad = || ImportError::BadAddress(address + offset);
            let start = Self::offset(address + offset, length as usize).map_err(|_| bad())?;
            if start + length > memory.metadata()?.len() {
                return Err(bad());
            }
            Ok(vec![Segment::file(&memory, start, length, writable)?])
        }))
    }

    fn identity(&self, address: u64) -> Option<Identity> {
        let found = self.memory.metadata().ok()?;
        let offset = Self::offset(address, 1).ok()?;
        Some(Identity::File { device: found.dev(), inode: found.ino(), offset })
    }
}
