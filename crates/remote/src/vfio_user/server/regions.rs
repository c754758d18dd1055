//! Regions: what there is, and accesses.

use ioasid_errno::ToErrno;
use ioasid_vfio::device::region::{OFFSET_SHIFT, RegionFlags, file_offset};
use rustix::io::Errno;
use zerocopy::IntoBytes;
use zerocopy::native_endian::{U32, U64};

use super::client::{Answer, Client, whole};
use crate::vfio_user::wire::{IoFds, MostBytes, RegionAccess, RegionInfo};

impl Client {
    pub(super) fn region_info(&self, index: u32, most: MostBytes) -> Answer {
        let info = self.session.region_info(index).map_err(|error| error.errno())?;
        // A client maps files, and registers are none: it reads and writes them.
        let flags = info.flags.difference(RegionFlags::MMAP);
        let info = RegionInfo {
            argsz: U32::new(size_of::<RegionInfo>() as u32),
            flags: U32::new(flags.bits()),
            index: U32::new(index),
            cap_offset: U32::new(0),
            size: U64::new(info.size),
            offset: U64::new(0),
        };
        whole(info.as_bytes(), most)
    }

    /// None: whatever is written is looked at by the device.
    pub(super) fn region_io_fds(&self, index: u32, most: MostBytes) -> Answer {
        self.session.region_info(index).map_err(|error| error.errno())?;
        let size = U32::new(size_of::<IoFds>() as u32);
        whole(IoFds { argsz: size, index: U32::new(index), ..IoFds::default() }.as_bytes(), most)
    }

    pub(super) fn region_read(&self, access: RegionAccess) -> Answer {
        let header = size_of::<RegionAccess>();
        let mut reply = vec![0; header + access.count.get() as usize];
        let at = place(access.region.get(), access.offset.get())?;
        let read = self.session.read(at, &mut reply[header..]).map_err(|error| error.errno())?;
        let access = RegionAccess { count: U32::new(read as u32), ..access };
        reply[..header].copy_from_slice(access.as_bytes());
        reply.truncate(header + read);
        Ok(reply)
    }

    pub(super) fn region_write(&self, access: RegionAccess, data: &[u8]) -> Answer {
        let written = self.write(access.region.get(), access.offset.get(), data)?;
        Ok(RegionAccess { count: U32::new(written as u32), ..access }.as_bytes().to_vec())
    }

    pub(super) fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.session.write(place(region, offset)?, data).map_err(|error| error.errno())
    }
}

/// Where it is in the device's file.
fn place(region: u32, offset: u64) -> Result<u64, Errno> {
    if offset >> OFFSET_SHIFT != 0 || region > 1 << 20 {
        return Err(Errno::INVAL);
    }
    Ok(file_offset(region) + offset)
}
