//! What a client maps for DMA, and unmaps.

use ioasid::memory::{Pages, Segment};
use ioasid::{Access, Iova, IovaRange, Placement, UnmapError};
use ioasid_errno::ToErrno;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::client::{Answer, Client};
use crate::socket::Passed;
use crate::vfio_user::wire::{Capabilities, DmaFlags, DmaMap, DmaUnmap, UnmapFlags};

impl Client {
    pub(super) fn dma_map(&self, map: &DmaMap, flags: DmaFlags, mut files: Passed) -> Answer {
        if (map.argsz.get() as usize) < size_of::<DmaMap>() {
            return Err(Errno::INVAL);
        }
        if self.ioas.area_count() as u64 >= Capabilities::ours().max_dma_maps {
            return Err(Errno::NOSPC);
        }
        let (iova, offset, length) = (Iova(map.address.get()), map.offset.get(), map.size.get());
        let access = flags.access();
        let map =
            |segment: Segment| self.ioas.map(Placement::Fixed(iova), length, access, || Ok(vec![segment])).map(drop);
        // Of other files than memory, a page could be slow to come.
        let file = if files.is_empty() { None } else { Some(files.take_memory(0).ok_or(Errno::INVAL)?) };
        // What is not mapped here is reached by messages.
        let mapped = match file {
            None => map(Segment::remote(self.memory.clone(), iova.0, length)),
            // A file that may be read and written, and not mapped: it could be one that never answers.
            Some(_) if flags.contains(DmaFlags::FILE_IO) && !flags.contains(DmaFlags::MMAP) => {
                map(Segment::remote(self.memory.clone(), iova.0, length))
            }
            Some(file) => {
                let file = self.files.share(file);
                let file = file.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
                let pages = Pages::of_file(file, offset, length, access.contains(Access::WRITE));
                self.ioas.map_pages(Some(iova), &pages, 0, length, access).map(drop)
            }
        };
        mapped.map(|()| Vec::new()).map_err(|error| error.errno())
    }

    pub(super) fn dma_unmap(&self, unmap: &DmaUnmap, flags: UnmapFlags) -> Answer {
        let (start, size) = (unmap.address.get(), unmap.size.get());
        if (unmap.argsz.get() as usize) < size_of::<DmaUnmap>() {
            return Err(Errno::INVAL);
        }
        let range = match flags.contains(UnmapFlags::ALL) {
            true if (start, size) == (0, 0) => IovaRange::ALL,
            true => return Err(Errno::INVAL),
            false => IovaRange::new(start, size).ok_or(Errno::INVAL)?,
        };
        // The specification has clients unmap exactly what they mapped. QEMU, behind a virtual IOMMU, unmaps ranges
        // with several mappings in them, or none, as Linux lets it.
        match self.ioas.unmap(range) {
            Ok(_) | Err(UnmapError::Empty(_)) => Ok(unmap.as_bytes().to_vec()),
            Err(UnmapError::NotWhole(_)) => Err(Errno::INVAL),
            Err(error) => Err(error.errno()),
        }
    }
}
