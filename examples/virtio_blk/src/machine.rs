//! The machine: one guest, one disk, and two ways for the disk to reach the guest's memory.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ioasid::guest_memory::PortMemory;
use ioasid::memory::{PAGE_SIZE, Segment};
use ioasid::{Access, Device, Fault, GroupId, Iova, Machine, Observer, Placement, Rid};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::device::{Block, ID, SECTOR, kind, status};
use crate::driver::{BUFFER, BUFFERS, Driver, MEMORY, Request, buffer};

/// Where the guest's memory is in the device's address space.
pub const IOVA: u64 = 0x40_0000_0000;
/// Requests that are offered at a time.
pub const BATCH: usize = 64;
/// Batches in a sample: half of them write, half read.
const BATCHES: usize = 64;
/// Requests in a sample.
pub const SAMPLE: usize = BATCH * BATCHES;
/// Bytes of a disk that leaves the caches to the guest: what a disk in memory is like.
pub const LARGE: usize = 64 << 20;
/// Bytes of a disk that the caches can hold: translation has nothing to hide behind.
pub const SMALL: usize = 2 << 20;

/// How the device reaches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Guest-physical addresses; everything can be reached.
    Direct,
    /// Through a port behind the IOMMU.
    Translated,
}

/// What the IOMMU refused. A VMM would hand it to the guest, or log it.
#[derive(Default)]
struct Faults(Mutex<Vec<Fault>>);

impl Observer for Faults {
    fn fault(&self, fault: &Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(*fault);
    }
}

/// A guest with a disk.
pub struct Guest {
    guest: Arc<GuestMemoryMmap>,
    port: PortMemory,
    block: Block,
    faults: Arc<Faults>,
    seed: u64,
    /// Detaches when it is dropped.
    _device: Device,
}

impl Guest {
    /// A guest whose memory a disk of `bytes` bytes, a multiple of [`BUFFER`], can reach both ways.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(bytes: usize) -> Result<Self> {
        let guest = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        let faults = Arc::new(Faults::default());

        // What a VMM does once: an IOMMU, and an endpoint in it for each device.
        let machine = Machine::new(faults.clone());
        let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0)).context("no endpoint")?;
        let port = PortMemory::new(endpoint.port(), None);

        // What the guest decides: which memory the device reaches, and where.
        let context = machine.context();
        let ioas = context.ioas_alloc().context("no address space")?;
        ioas.map(Placement::Fixed(Iova(IOVA)), MEMORY as u64, Access::all(), || Ok(pages(&guest)))?;
        let device = context.bind(&endpoint)?;
        device.attach(None, &ioas)?;
        endpoint.set_bus_master(true)?;

        Ok(Self { guest, port, block: Block::new(bytes / SECTOR)?, faults, seed: 0, _device: device })
    }

    /// A driver whose queue the device uses from now on.
    fn driver(&mut self, path: Path) -> Result<Driver> {
        let bus = if path == Path::Direct { 0 } else { IOVA };
        let driver = Driver::new(self.guest.clone(), bus)?;
        self.block.activate(driver.rings())?;
        Ok(driver)
    }

    /// Lets the device do what it was offered: the same code for either path.
    fn process(&mut self, path: Path) -> Result<()> {
        match path {
            Path::Direct => self.block.process(&*self.guest),
            Path::Translated => self.block.process(&self.port),
        }?;
        Ok(())
    }

    /// How long the device takes for [`SAMPLE`] requests. Each is verified, while the clock stands.
    ///
    /// # Errors
    /// If a request fails, or data does not arrive.
    pub fn sample(&mut self, path: Path) -> Result<Duration> {
        let mut driver = self.driver(path)?;
        let mut elapsed = Duration::ZERO;
        for _ in 0..BATCHES / 2 {
            self.seed += 1;
            elapsed += self.batch(&mut driver, path, kind::OUT)?;
            elapsed += self.batch(&mut driver, path, kind::IN)?;
        }
        Ok(elapsed)
    }

    /// How long the device takes for one batch, which writes the pages of this seed or reads them again.
    fn batch(&mut self, driver: &mut Driver, path: Path, kind: u32) -> Result<Duration> {
        let (seed, device_writes) = (self.seed, kind == kind::IN);
        let first = seed as usize * BATCH;
        let disk = self.block.disk().len();
        // What is written comes from one buffer, and is read into another.
        let pages = (first..first + BATCH)
            .map(|page| (page, page * BUFFER % disk, buffer(if device_writes { page + BUFFERS / 2 } else { page })));
        let mut requests = Vec::with_capacity(BATCH);
        for (page, place, buffer) in pages.clone() {
            let data = if device_writes { [0; BUFFER] } else { pattern(seed, page) };
            self.guest.write_slice(&data, buffer)?;
            let sector = (place / SECTOR) as u64;
            requests.push(Request { kind, sector, data: driver.bus_address(buffer), device_writes });
        }
        driver.submit(&requests)?;

        let start = Instant::now();
        self.process(path)?;
        let elapsed = start.elapsed();

        let answers = driver.complete()?;
        ensure!(answers.iter().all(|&answer| answer == status::OK), "a request failed: {answers:?}");
        for (page, place, buffer) in pages {
            let wanted = pattern(seed, page);
            ensure!(self.block.disk()[place..][..BUFFER] == wanted, "page {page} is not on the disk");
            let mut data = [0; BUFFER];
            self.guest.read_slice(&mut data, buffer)?;
            ensure!(data == wanted, "page {page} is not in memory");
        }
        Ok(elapsed)
    }

    /// Goes through the requests that move no data to speak of.
    ///
    /// # Errors
    /// If the device does not answer as it should.
    pub fn check_requests(&mut self, path: Path) -> Result<()> {
        let mut driver = self.driver(path)?;
        let data = driver.bus_address(buffer(0));
        let beyond = (self.block.disk().len() / SECTOR) as u64;
        let request = |kind, sector, device_writes| Request { kind, sector, data, device_writes };
        let requests = [
            (request(kind::FLUSH, 0, false), status::OK),
            (request(kind::GET_ID, 0, true), status::OK),
            (request(kind::IN, beyond, true), status::IOERR),
            (request(kind::OUT, u64::MAX, false), status::IOERR),
            (request(99, 0, false), status::UNSUPP),
        ];
        driver.submit(&requests.map(|(request, _)| request))?;
        self.process(path)?;
        let (answers, wanted) = (driver.complete()?, requests.map(|(_, wanted)| wanted));
        ensure!(answers == wanted, "{path:?}: the device answers {answers:?} in place of {wanted:?}");
        let mut id = [0; ID.len()];
        self.guest.read_slice(&mut id, buffer(0))?;
        ensure!(id == *ID, "the device's name is {id:?}");
        Ok(())
    }

    /// A driver's mistake: it asks the device to write to a buffer that it forgot to map, by its guest-physical
    /// address.
    ///
    /// # Errors
    /// If that does not fail, or memory is not as before.
    pub fn buggy_driver(&mut self) -> Result<Refused> {
        let mut driver = self.driver(Path::Translated)?;
        let good = driver.bus_address(buffer(0));
        let bad = buffer(1).0;
        let before = pattern(1, 1);
        self.guest.write_slice(&before, buffer(1))?;
        self.faults.take();

        let request = |data| Request { kind: kind::IN, sector: 0, data, device_writes: true };
        driver.submit(&[request(good), request(bad), request(good)])?;
        self.process(Path::Translated)?;
        let answers = driver.complete()?;
        ensure!(answers == [status::OK, status::IOERR, status::OK], "the device answers {answers:?}");
        let mut after = [0; BUFFER];
        self.guest.read_slice(&mut after, buffer(1))?;
        ensure!(after == before, "memory has changed");

        let faults = self.faults.take();
        let [fault] = faults[..] else { anyhow::bail!("{} faults in place of one", faults.len()) };
        Ok(Refused { status: answers[1], fault })
    }
}

impl Faults {
    fn take(&self) -> Vec<Fault> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What became of a request that went astray.
pub struct Refused {
    /// What the driver was told.
    pub status: u8,
    /// What the VMM was told.
    pub fault: Fault,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, fault: Fault { rid, iova, write, reason, .. } } = self;
        let access = if *write { "write" } else { "read" };
        write!(f, "{rid}: {access} at IOVA {iova} refused: {reason}; the driver gets status {status} (IOERR)")
    }
}

/// The guest's memory as what a device can be given. Each page by itself, so that each needs a translation of its own:
/// the hard case. A VMM that gives a region as one segment has fewer, larger translations.
fn pages(guest: &Arc<GuestMemoryMmap>) -> Vec<Segment> {
    let regions = guest.iter().filter_map(|region| Some((NonNull::new(region.as_ptr())?, region.len())));
    regions
        .flat_map(|(start, length)| {
            (0..length).step_by(PAGE_SIZE as usize).map(move |offset| {
                #[allow(unsafe_code, reason = "only a VMM can know that its guest's memory stays")]
                // SAFETY: the page is one of the region's, which stays mapped as long as `guest` is kept; and the
                // guest's memory is only ever used through volatile slices.
                unsafe {
                    Segment::local(start.add(offset as usize), PAGE_SIZE, guest.clone())
                }
            })
        })
        .collect()
}

/// Bytes that differ from page to page, from sample to sample, and from word to word.
fn pattern(seed: u64, page: usize) -> [u8; BUFFER] {
    let mut bytes = [0; BUFFER];
    let mut word = seed << 32 | page as u64;
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    bytes
}
