// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver needs from the host: memory that a device can reach, registers, an interrupt.
//!
//! Memory that is mapped into a device's address space may change at any moment, so no Rust reference to it is ever
//! made: [`Memory`] copies in and out with volatile accesses. Registers are the same, and each access to them is one
//! load or store of the register's width.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use iommufd_bindings::iommufd::{iommu_ioas_iova_ranges, iommu_iova_range};
use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP};
use vfio_ioctls::{VfioDevice, VfioIommufd};
use vmm_sys_util::eventfd::EventFd;

use crate::{Result, explain};

/// What to do when the files that are needed do not exist.
pub(crate) const RUN_ME: &str = "run me as `ioasid run --device ioat -- target/release/ioasid-example-rust-client`";

const PAGE: usize = 4096;

/// A PCI device that VFIO has a character device for.
pub(crate) struct PciDevice {
    /// Its address, such as `0000:00:01.0`.
    pub(crate) bdf: String,
    /// Its directory in sysfs.
    pub(crate) sysfs: PathBuf,
    /// The number of its IOMMU group.
    pub(crate) group: String,
}

impl PciDevice {
    /// The device at `bdf`, or the first of that kind. An error if there is none that is bound to VFIO.
    pub(crate) fn find(vendor: u16, device: u16, bdf: Option<&str>) -> Result<Self> {
        let root = Path::new("/sys/bus/pci/devices");
        let mut candidates = match bdf {
            Some(bdf) => vec![root.join(bdf)],
            None => std::fs::read_dir(root)
                .map_err(explain("scan /sys/bus/pci/devices", RUN_ME))?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<_>>()?,
        };
        candidates.sort();
        for sysfs in candidates {
            let is = |name: &str, wanted: u16| -> Result<bool> {
                let path = sysfs.join(name);
                let text = std::fs::read_to_string(&path)
                    .map_err(explain(&format!("read {}", path.display()), "is there such a device?"))?;
                Ok(text.trim().strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok()) == Some(wanted))
            };
            if is("vendor", vendor)? && is("device", device)? && sysfs.join("vfio-dev").is_dir() {
                let last =
                    |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
                let group = std::fs::read_link(sysfs.join("iommu_group")).map_or_else(|_| "none".into(), |l| last(&l));
                return Ok(Self { bdf: last(&sysfs), sysfs, group });
            }
        }
        Err(format!("no VFIO device {vendor:04x}:{device:04x} in {}: {RUN_ME}", root.display()).into())
    }
}

/// Zeroed pages of this process, shared and anonymous. All accesses are volatile.
pub(crate) struct Memory {
    base: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// At least `size` bytes, rounded up to whole pages.
    pub(crate) fn new(size: usize) -> Result<Self> {
        let len = size.checked_next_multiple_of(PAGE).ok_or("the size is too large")?;
        let base = map(None, len, 0).map_err(explain(&format!("mmap of {len} bytes"), "try a smaller --size"))?;
        Ok(Self { base, len })
    }

    /// Length in bytes, a multiple of the page size.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pointer to `T` at `offset`, checked.
    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.len);
        // SAFETY: `offset` is inside the mapping, as was just checked.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// The word at `offset`, in bytes.
    pub(crate) fn get(&self, offset: usize) -> u64 {
        // SAFETY: `at` checked bounds and alignment; every bit pattern is a u64; volatile, as a device may write it.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// Sets the word at `offset`, in bytes.
    pub(crate) fn set(&self, offset: usize, word: u64) {
        // SAFETY: as for `get`.
        unsafe { self.at::<u64>(offset).write_volatile(word) }
    }

    /// Copies out of the memory. `offset` is a multiple of 8.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        for (number, piece) in into.chunks_mut(8).enumerate() {
            piece.copy_from_slice(&self.get(offset + 8 * number).to_ne_bytes()[..piece.len()]);
        }
    }

    /// Copies into the memory. `offset` and the length are multiples of 8.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let (words, rest) = from.as_chunks();
        assert!(rest.is_empty());
        for (number, word) in words.iter().enumerate() {
            self.set(offset + 8 * number, u64::from_ne_bytes(*word));
        }
    }

    /// Zeroes all of it.
    pub(crate) fn clear(&self) {
        for offset in (0..self.len).step_by(8) {
            self.set(offset, 0);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, is ours alone, and nothing refers to it once `self` is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// mmap: of a file's range, or anonymous.
fn map(file: Option<i32>, len: usize, offset: u64) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_SHARED | if file.is_some() { 0 } else { libc::MAP_ANONYMOUS };
    let offset = offset.try_into().map_err(io::Error::other)?;
    // SAFETY: without MAP_FIXED, the kernel chooses an address that nothing else occupies.
    let base = unsafe {
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, file.unwrap_or(-1), offset)
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))
}

/// Hands out IOVAs. `vfio_dma_map` wants them from the caller, so the caller must ask which ones are allowed.
pub(crate) struct IovaAllocator {
    ranges: Vec<iommu_iova_range>,
    next: u64,
}

impl IovaAllocator {
    /// Reads the ranges that are allowed in the address space of `vfio`.
    pub(crate) fn new(vfio: &VfioIommufd) -> Result<Self> {
        // Not from 0, so that an address that was forgotten is an address that faults.
        Ok(Self { ranges: allowed_ranges(vfio)?, next: 16 << 20 })
    }

    /// The ranges that are allowed; `last` is inclusive.
    pub(crate) fn ranges(&self) -> &[iommu_iova_range] {
        &self.ranges
    }

    /// The next `length` bytes that are free, with a page after them that stays free.
    fn take(&mut self, length: usize) -> Result<u64> {
        for range in &self.ranges {
            let start = self.next.max(range.start.next_multiple_of(PAGE as u64));
            if start.checked_add(length as u64 - 1).is_some_and(|last| last <= range.last) {
                self.next = start + length as u64 + PAGE as u64;
                return Ok(start);
            }
        }
        Err(format!("no allowed IOVA range has {length} bytes left").into())
    }

    /// The first of a MiB that is allowed and that nothing was ever mapped at, 1 GiB beyond all that was taken. The
    /// ranges are read anew, as there are fewer once a device is attached.
    pub(crate) fn never_mapped(&self, vfio: &VfioIommufd) -> Result<u64> {
        const MIB: u64 = 1 << 20;
        let beyond = self.next.saturating_add(1 << 30);
        let place = |range: &iommu_iova_range| {
            let start = range.start.max(beyond).checked_next_multiple_of(MIB)?;
            start.checked_add(MIB - 1).filter(|&last| last <= range.last).map(|_| start)
        };
        let start = allowed_ranges(vfio)?.iter().find_map(place);
        start.ok_or_else(|| "no allowed IOVA is free 1 GiB beyond the mappings".into())
    }
}

/// Asks which IOVAs are allowed in the address space of `vfio`.
fn allowed_ranges(vfio: &VfioIommufd) -> Result<Vec<iommu_iova_range>> {
    /// `_IO(';', 0x84)`; the crates have the structure but no function for it.
    const IOMMU_IOAS_IOVA_RANGES: libc::Ioctl = 0x3b84;
    let mut ranges = vec![iommu_iova_range::default(); 64];
    let mut query = iommu_ioas_iova_ranges {
        size: size_of::<iommu_ioas_iova_ranges>() as u32,
        ioas_id: vfio.ioas().id(),
        num_iovas: ranges.len() as u32,
        allowed_iovas: ranges.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: `query` is the structure that this ioctl takes, and says how many entries `ranges` has room for; both
    // outlive the call.
    let status = unsafe { libc::ioctl(vfio.iommufd().as_raw_fd(), IOMMU_IOAS_IOVA_RANGES, &raw mut query) };
    if status != 0 {
        return Err(
            explain("IOMMU_IOAS_IOVA_RANGES", "EMSGSIZE means more than 64 ranges")(io::Error::last_os_error()),
        );
    }
    ranges.truncate(query.num_iovas as usize);
    Ok(ranges)
}

/// Memory in the address space of `vfio`, until it is dropped.
pub(crate) struct Mapping {
    vfio: Arc<VfioIommufd>,
    iova: u64,
    memory: Memory,
}

impl Mapping {
    /// Maps all of `memory` for reading and writing by every device that is attached.
    pub(crate) fn new(vfio: &Arc<VfioIommufd>, space: &mut IovaAllocator, memory: Memory) -> Result<Self> {
        let iova = space.take(memory.len)?;
        // SAFETY: `memory` is touched only through volatile accesses, and lives in this object, which unmaps it first.
        unsafe { vfio.vfio_dma_map(iova, memory.len, memory.base.as_ptr()) }
            .map_err(explain(&format!("map {} bytes at IOVA {iova:#x}", memory.len), "see `ulimit -l` if ENOMEM"))?;
        Ok(Self { vfio: Arc::clone(vfio), iova, memory })
    }

    /// The address of the first byte for the device.
    pub(crate) fn iova(&self) -> u64 {
        self.iova
    }

    /// The memory that is mapped.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Err(error) = self.vfio.vfio_dma_unmap(self.iova, self.memory.len) {
            // The device may still write to these pages, so they must never be used for anything else.
            eprintln!("unmap of IOVA {:#x} failed: {error}", self.iova);
            std::process::abort();
        }
    }
}

/// Lets the device answer in its BAR, and make DMA (bits 1 and 2 of the PCI command register; 10 is "no INTx").
pub(crate) fn enable(device: &VfioDevice) -> Result<()> {
    const COMMAND: u64 = 0x04;
    const WANTED: u16 = 1 << 1 | 1 << 2 | 1 << 10;
    let mut command = [0; 2];
    device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut command, COMMAND);
    let wanted = u16::from_le_bytes(command) | WANTED;
    device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &wanted.to_le_bytes(), COMMAND);
    // Neither call returns an error, so look.
    device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut command, COMMAND);
    match u16::from_le_bytes(command) {
        now if now & WANTED == WANTED => Ok(()),
        now => Err(format!("the PCI command register is {now:#x} after {wanted:#x} was written to it").into()),
    }
}

/// A BAR, mapped.
pub(crate) struct Registers {
    base: NonNull<u8>,
    len: usize,
}

/// The widths of a register.
pub(crate) trait Width: Copy {}
impl Width for u8 {}
impl Width for u16 {}
impl Width for u32 {}
impl Width for u64 {}

impl Registers {
    /// Maps all of BAR `index` (0 to 5).
    pub(crate) fn map(device: &VfioDevice, index: u32) -> Result<Self> {
        if device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Err(format!("BAR {index} cannot be mapped").into());
        }
        let len = device.get_region_size(index).try_into()?;
        let base = map(Some(device.as_raw_fd()), len, device.get_region_offset(index))
            .map_err(explain(&format!("mmap of BAR {index}"), "does the device have one?"))?;
        Ok(Self { base, len })
    }

    /// Length of the BAR in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn at<T: Width>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.len);
        // SAFETY: `offset` is inside the mapping, as was just checked.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// One load of the register at `offset`, of the width of `T`.
    pub(crate) fn read<T: Width>(&self, offset: usize) -> T {
        // SAFETY: `at` checked bounds and alignment; `T` is an integer, so every bit pattern is a value of it.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// One store to the register at `offset`, of the width of `T`.
    pub(crate) fn write<T: Width>(&self, offset: usize, value: T) {
        // SAFETY: `at` checked bounds and alignment.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, is ours alone, and nothing refers to it once `self` is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// MSI-X vector 0, delivered to an eventfd, until it is dropped.
pub(crate) struct Interrupt<'a> {
    device: &'a VfioDevice,
    eventfd: EventFd,
    received: Cell<u64>,
}

impl<'a> Interrupt<'a> {
    /// Enables MSI-X with one vector.
    pub(crate) fn enable(device: &'a VfioDevice) -> Result<Self> {
        let eventfd =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(explain("eventfd", "see `ulimit -n`"))?;
        device.enable_msix(vec![&eventfd]).map_err(explain("enable MSI-X", "does the device have MSI-X vectors?"))?;
        Ok(Self { device, eventfd, received: Cell::new(0) })
    }

    /// Waits for an interrupt and consumes it. False if none came in that time.
    pub(crate) fn wait(&self, time: Duration) -> Result<bool> {
        let mut poll = libc::pollfd { fd: self.eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd, and outlives the call.
        match unsafe { libc::poll(&raw mut poll, 1, time.as_millis().try_into()?) } {
            0 => Ok(false),
            1.. => {
                self.drain();
                Ok(true)
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(explain("poll of the eventfd", "this should not happen")(error)),
            },
        }
    }

    /// How many interrupts have been consumed.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Reads until there is nothing left to read.
    fn drain(&self) {
        while let Ok(number) = self.eventfd.read() {
            self.received.set(self.received.get() + number);
        }
    }
}

impl Drop for Interrupt<'_> {
    fn drop(&mut self) {
        self.drain();
        if let Err(error) = self.device.disable_msix() {
            eprintln!("{error}");
        }
    }
}
