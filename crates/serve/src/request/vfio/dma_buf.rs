//! Parts of a device's BARs as DMA buffers, which a program maps for another device by their descriptor.
//!
//! A reset of the device, or its end, takes them back: what was mapped of one before is not reached again.

use std::io;
use std::sync::Arc;

use ioasid::memory::{PAGE_SIZE, Pages, RemoteMemory, Segment};
use ioasid_uapi::vfio::feature as uapi;
use ioasid_vfio::device::region::{ROM, RegionFlags, file_offset};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::device::Opened;
use super::peer::Peer;
use crate::request::file::Given;
use crate::request::given::GivenFile;
use crate::request::{Caller, ToErrno};

/// The most ranges of one buffer.
const MOST_RANGES: u32 = 4096;

/// A buffer, which lives as long as a descriptor of it or a mapping.
struct DmaBuf {
    peer: Arc<Peer>,
    /// Where it begins in the device's file, and how many bytes it has. One of several ranges is not mapped, as on
    /// Linux, and so nobody needs to know them.
    range: Option<(u64, u64)>,
}

/// A buffer as somebody has mapped it, until the device is reset.
struct Lent {
    peer: Arc<Peer>,
    resets: u64,
}

impl Lent {
    fn check(&self) -> io::Result<()> {
        if self.peer.resets() == self.resets { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl RemoteMemory for Lent {
    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.peer.read(address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.peer.write_for(address, data, self.resets)
    }

    fn given_back(&self, address: u64, length: u64) {
        self.peer.given_back(address, length);
    }
}

/// Gives the caller a buffer of the ranges that stand at `address`.
///
/// # Errors
/// `ENODEV` for what is no BAR, `EINVAL` for ranges that are no pages of it, `EFAULT`, `EMFILE`.
pub(super) fn export(opened: &Opened, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
    let mut request = uapi::DmaBuf::new_zeroed();
    caller.read(address, request.as_mut_bytes())?;
    let known = (libc::O_ACCMODE | libc::O_CLOEXEC) as u32;
    if request.nr_ranges == 0 || request.flags != 0 || request.open_flags & !known != 0 {
        return Err(Errno::INVAL);
    }
    if request.region_index >= ROM {
        return Err(Errno::NODEV);
    }
    if request.nr_ranges > MOST_RANGES {
        return Err(Errno::NOMEM);
    }
    if opened.session().device().function().spec().bar(request.region_index as u8).is_none() {
        return Err(Errno::NODEV);
    }
    let info = opened.session().region_info(request.region_index).map_err(|error| error.errno())?;
    if !info.flags.contains(RegionFlags::MMAP) {
        return Err(Errno::INVAL);
    }
    let mut given = vec![uapi::RegionDmaRange::new_zeroed(); request.nr_ranges as usize];
    caller.read(address.wrapping_add(size_of_val(&request) as u64), given.as_mut_slice().as_mut_bytes())?;
    for &uapi::RegionDmaRange { offset, length } in &given {
        let end = offset.checked_add(length).filter(|&end| end <= info.size);
        if length == 0 || end.is_none() || !(offset | length).is_multiple_of(PAGE_SIZE) {
            return Err(Errno::INVAL);
        }
    }
    let range = match given[..] {
        [uapi::RegionDmaRange { offset, length }] => Some((file_offset(request.region_index) + offset, length)),
        _ => None,
    };
    let buffer = DmaBuf { peer: opened.peer().clone(), range };
    let number = caller.reserve()?;
    caller.install(number, Arc::new(Given(Arc::new(buffer))))?;
    Ok(number.into())
}

impl GivenFile for DmaBuf {
    fn pages(&self, start: u64, length: u64) -> Option<Result<Arc<Pages>, Errno>> {
        let Some((at, bytes)) = self.range else { return Some(Err(Errno::OPNOTSUPP)) };
        if start.checked_add(length).is_none_or(|end| end > bytes) {
            return Some(Err(Errno::INVAL));
        }
        let resets = self.peer.resets();
        if !self.peer.answers(at) {
            return Some(Err(Errno::NODEV));
        }
        let lent = Arc::new(Lent { peer: self.peer.clone(), resets });
        Some(Ok(Pages::new(start, length, true, move |offset, length| {
            Ok(vec![Segment::remote(lent.clone(), at + start + offset, length)])
        })))
    }
}
