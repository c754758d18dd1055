//! A device by `/dev/iommu` and `/dev/vfio/devices`: memory that it reaches, registers, and nothing else.
//!
//! ```text
//!   open /dev/iommu ──▶ IOAS_ALLOC ──┐
//!   open vfioN ──▶ BIND_IOMMUFD ──▶ ATTACH_IOMMUFD_PT ──▶ bus master ──▶ mmap BAR 0
//!   mmap memory ──▶ IOAS_MAP ──▶ an address that the device uses
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

const PAGE: usize = 4096;
const IOMMU_DESTROY: u64 = 0x3b80;
const IOMMU_IOAS_ALLOC: u64 = 0x3b81;
const IOMMU_IOAS_MAP: u64 = 0x3b85;
const IOMMU_IOAS_UNMAP: u64 = 0x3b86;
const VFIO_DEVICE_GET_REGION_INFO: u64 = 0x3b6c;
const VFIO_DEVICE_BIND_IOMMUFD: u64 = 0x3b76;
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: u64 = 0x3b77;
const VFIO_DEVICE_DETACH_IOMMUFD_PT: u64 = 0x3b78;
/// The region of configuration space; that of BAR 0 is 0.
const CONFIG: u64 = 7;
/// PCI_COMMAND: memory space, bus master.
const COMMAND: (u64, [u8; 2]) = (4, [0b110, 0]);
/// IOMMU_IOAS_MAP: writeable and readable, anywhere.
const READ_WRITE: u64 = 0b110;

/// Makes a request. Its structure is `words`, of which the first begins with the size.
fn request<const N: usize>(file: &File, number: u64, words: &mut [u64; N]) -> io::Result<()> {
    words[0] |= size_of_val(words) as u64;
    // SAFETY: the structure is as long as it says.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), number, words.as_mut_ptr()) };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// An I/O address space.
struct Ioas {
    iommu: File,
    id: u64,
}

impl Drop for Ioas {
    fn drop(&mut self) {
        let _ = request(&self.iommu, IOMMU_DESTROY, &mut [self.id << 32]);
    }
}

/// A device that is bound and attached, with BAR 0 mapped.
pub(crate) struct Device {
    ioas: Arc<Ioas>,
    file: File,
    /// Its registers.
    pub(crate) bar: Words,
}

impl Device {
    /// The first device that VFIO has of this PCI class, as sysfs writes it.
    pub(crate) fn open(class: &str) -> io::Result<Self> {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let iommu = open("/dev/iommu")?;
        let mut alloc = [0; 2];
        request(&iommu, IOMMU_IOAS_ALLOC, &mut alloc)?;
        let ioas = Ioas { iommu, id: alloc[1] };
        let file = open(&Self::find(class)?)?;
        request(&file, VFIO_DEVICE_BIND_IOMMUFD, &mut [0, ioas.iommu.as_raw_fd() as u64])?;
        request(&file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut [0, ioas.id])?;
        let [_, _, _, config] = Self::region(&file, CONFIG)?;
        file.write_all_at(&COMMAND.1, config + COMMAND.0)?;
        let [_, _, length, offset] = Self::region(&file, 0)?;
        let bar = Words::map(length as usize, Some((&file, offset)))?;
        Ok(Self { ioas: Arc::new(ioas), file, bar })
    }

    /// Its character device.
    fn find(class: &str) -> io::Result<String> {
        for device in std::fs::read_dir("/sys/bus/pci/devices")? {
            let device = device?.path();
            let is_it = std::fs::read_to_string(device.join("class"))?.trim() == class;
            let mut names = std::fs::read_dir(device.join("vfio-dev")).into_iter().flatten();
            if let Some(Ok(name)) = names.next().filter(|_| is_it) {
                return Ok(format!("/dev/vfio/devices/{}", name.file_name().to_string_lossy()));
            }
        }
        Err(Error::new(io::ErrorKind::NotFound, "no such device is bound to vfio-pci: run me under `ioasid run`"))
    }

    /// Index, length and place in the file of a region, after the flags.
    fn region(file: &File, index: u64) -> io::Result<[u64; 4]> {
        let mut info = [0, index, 0, 0];
        request(file, VFIO_DEVICE_GET_REGION_INFO, &mut info)?;
        Ok(info)
    }

    /// Memory of whole pages that it reaches, all zero.
    pub(crate) fn memory(&self, length: usize) -> io::Result<Memory> {
        let words = Words::map(length.next_multiple_of(PAGE), None)?;
        let mut map = [READ_WRITE << 32, self.ioas.id, words.at.as_ptr() as u64, words.length as u64, 0];
        request(&self.ioas.iommu, IOMMU_IOAS_MAP, &mut map)?;
        Ok(Memory { words, iova: map[4], ioas: self.ioas.clone() })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = request(&self.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &mut [0, 0]);
    }
}

/// Mapped memory, or registers, word by word: others change it at any time, so there is no reference into it.
pub struct Words {
    at: NonNull<u8>,
    length: usize,
}

impl Words {
    /// Maps a part of a file, or new memory.
    fn map(length: usize, file: Option<(&File, u64)>) -> io::Result<Self> {
        let (flags, fd, offset) = match file {
            Some((file, offset)) => (libc::MAP_SHARED, file.as_raw_fd(), offset as i64),
            None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, fd, offset) };
        let at = NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED).ok_or_else(Error::last_os_error)?;
        Ok(Self { at, length })
    }

    fn place<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.length);
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.at.as_ptr().add(offset).cast() }
    }

    /// Loads a `u16`, `u32` or `u64`.
    pub fn get<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: in the mapping and aligned.
        unsafe { self.place::<T>(offset).read_volatile() }
    }

    /// Stores one.
    pub fn set<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: as above.
        unsafe { self.place::<T>(offset).write_volatile(value) };
    }

    /// Copies bytes out, by 8.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        for (index, part) in bytes.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&self.get::<u64>(offset + 8 * index).to_ne_bytes());
        }
    }

    /// Copies bytes in, by 8.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (index, part) in bytes.as_chunks().0.iter().enumerate() {
            self.set(offset + 8 * index, u64::from_ne_bytes(*part));
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped by `Words::map`, of this length, and nothing points into it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// Memory that a device reaches.
pub struct Memory {
    words: Words,
    /// Where the device finds it.
    pub iova: u64,
    ioas: Arc<Ioas>,
}

impl std::ops::Deref for Memory {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.words
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut unmap = [self.ioas.id << 32, self.iova, self.words.length as u64];
        // Before the memory is gone, so that the device never reaches what is another's by then.
        let _ = request(&self.ioas.iommu, IOMMU_IOAS_UNMAP, &mut unmap);
    }
}
