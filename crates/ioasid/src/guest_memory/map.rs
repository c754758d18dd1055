//! A guest's memory as an address space: each region at its guest-physical address.

use std::ptr::NonNull;
use std::sync::Arc;

use iopt::Access;
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use crate::base::types::{Iova, IovaRange};
use crate::ioas::{Ioas, MapError, Placement};
use crate::memory::{FileRange, PAGE_SIZE, Segment};

/// Why a guest's memory was not mapped. Nothing of it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MapMemoryError {
    /// A region is not made of the processor's pages, or cannot be read here.
    #[error("the region at {0:#x} is not made of whole pages that can be read in this process")]
    NotPages(u64),
    /// A region cannot be mapped.
    #[error("the region at {0:#x} cannot be mapped: {1}")]
    Map(u64, #[source] MapError),
}

/// Maps all regions of `memory` into `ioas`, each at its guest-physical address, for devices with `access`. The memory
/// stays as long as a device can reach it. What devices write is in no bitmap of vm-memory's: see
/// [`Hwpt::read_dirty`](crate::Hwpt::read_dirty).
///
/// ```
/// use std::sync::Arc;
/// use ioasid::{Access, GroupId, Iova, Machine, Rid, Silent, guest_memory::map_memory};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0x10_0000), 0x4000)])?);
/// let machine = Machine::new(Arc::new(Silent));
/// let endpoint = machine.add_endpoint("0000:00:01.0".parse::<Rid>()?, GroupId(0))?;
/// endpoint.set_bus_master(true)?;
/// let context = machine.context();
/// let ioas = context.ioas_alloc().unwrap();
/// map_memory(&ioas, &memory, Access::all())?;
///
/// let device = context.bind(&endpoint)?;
/// device.attach(None, &ioas)?;
/// endpoint.port().write(Iova(0x10_0010), b"from a device")?;
/// let mut seen = [0; 13];
/// memory.read_slice(&mut seen, GuestAddress(0x10_0010))?;
/// assert_eq!(&seen, b"from a device");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// See [`MapMemoryError`].
pub fn map_memory<B: Bitmap + Send + Sync + 'static>(
    ioas: &Ioas,
    memory: &Arc<GuestMemoryMmap<B>>,
    access: Access,
) -> Result<(), MapMemoryError> {
    // From here on, dropping it undoes what was done.
    let mut mapped = Mapped { ioas, ranges: Vec::new() };
    for region in memory.iter() {
        let (at, length) = (region.start_addr().0, region.len());
        let start = region.get_host_address(MemoryRegionAddress(0)).ok().and_then(NonNull::new);
        let pages = |start: &NonNull<u8>| ((start.addr().get() as u64) | length).is_multiple_of(PAGE_SIZE);
        let start = start.filter(pages).ok_or(MapMemoryError::NotPages(at))?;
        if region.prot() & libc::PROT_READ == 0 {
            return Err(MapMemoryError::NotPages(at));
        }
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let file = region.file_offset().filter(|_| shared);
        let file = file.map(|file| FileRange { file: file.arc().clone(), offset: file.start() });
        // The region is mapped as long as the memory is, which the segment keeps. Its users are prepared for it to
        // change: vm-memory gives no references to its bytes, but volatile slices, as a guest shares it.
        let writable = region.prot() & libc::PROT_WRITE != 0;
        let segment = Segment::kept(start, length, writable, file, memory.clone());
        ioas.map(Placement::Fixed(Iova(at)), length, access, || Ok(vec![segment]))
            .map_err(|error| MapMemoryError::Map(at, error))?;
        mapped.ranges.extend(IovaRange::new(at, length));
    }
    mapped.ranges.clear();
    Ok(())
}

/// What was mapped so far, unmapped again when this is dropped.
struct Mapped<'a> {
    ioas: &'a Ioas,
    ranges: Vec<IovaRange>,
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        for range in self.ranges.drain(..) {
            // Another thread may have unmapped it already.
            let _ = self.ioas.unmap(range);
        }
    }
}
