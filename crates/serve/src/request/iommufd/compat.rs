//! VFIO's old requests on a container, which an open `/dev/iommu` stands for: they are about one address space of it,
//! which VFIO_IOAS chooses.
//!
//! Source: `include/uapi/linux/vfio.h` of Linux 7.3.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioasid::{Context, Ioas, Iova, IovaRange, UnmapError};
use ioasid_uapi::iommufd as iommufd_uapi;
use ioasid_uapi::vfio::container as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Call, IommuFile, ToErrno};
use crate::request::Caller;
use crate::request::argument::get_part;
use crate::request::mapping::{Memory, map_memory, unmap_telling};
use crate::request::object;
use crate::request::vfio::{map_access, type1_info};

/// The address space that VFIO's requests are about.
#[derive(Default)]
pub(super) struct Compat(Mutex<Weak<Ioas>>);

impl Compat {
    fn get(&self, context: &Context) -> Result<Arc<Ioas>, Errno> {
        let chosen = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade().ok_or(Errno::NODEV)?;
        // It may have been destroyed, and its id be another's.
        let there = context.ioas(chosen.id()).filter(|there| Arc::ptr_eq(there, &chosen));
        there.ok_or(Errno::NODEV)
    }

    fn set(&self, ioas: Weak<Ioas>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ioas;
    }
}

impl IommuFile {
    /// The address space that VFIO's requests are about.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub(in crate::request) fn default_ioas(&self) -> Result<Arc<Ioas>, Errno> {
        self.compat.get(&self.context)
    }

    /// Has VFIO's requests be about an address space of their own, unless they are about one already.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(in crate::request) fn make_default_ioas(&self) -> Result<(), Errno> {
        let mut chosen = self.compat.0.lock().unwrap_or_else(PoisonError::into_inner);
        if chosen.upgrade().is_none() {
            let made = self.context.ioas_alloc().ok_or(Errno::NOMEM)?;
            // The program knows no number of it, and has nothing to destroy.
            made.disown();
            *chosen = Arc::downgrade(&made);
        }
        Ok(())
    }
}

pub(super) fn vfio_ioas(call: &Call<'_>) -> Result<(), Errno> {
    let mut request: iommufd_uapi::VfioIoas = call.get()?;
    if request.reserved != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let (compat, context) = (&call.file.compat, call.context());
    match request.op {
        iommufd_uapi::VFIO_IOAS_GET => {
            request.ioas_id = compat.get(context)?.id().into();
            call.put(&request)
        }
        iommufd_uapi::VFIO_IOAS_SET => {
            compat.set(Arc::downgrade(&object::ioas(context, request.ioas_id)?));
            Ok(())
        }
        iommufd_uapi::VFIO_IOAS_CLEAR => {
            compat.set(Weak::new());
            Ok(())
        }
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Performs a request of VFIO's, if it is one.
///
/// # Errors
/// `ENOTTY` if it is none; else as Linux.
pub(super) fn ioctl(file: &IommuFile, number: u32, argument: u64, caller: &dyn Caller) -> Result<i64, Errno> {
    match number {
        uapi::GET_API_VERSION => Ok(uapi::API_VERSION.into()),
        uapi::CHECK_EXTENSION => check_extension(file, argument),
        uapi::SET_IOMMU => set_iommu(file, argument).map(|()| 0),
        uapi::IOMMU_GET_INFO => get_info(file, argument, caller).map(|()| 0),
        uapi::IOMMU_MAP_DMA => map_dma(file, argument, caller).map(|()| 0),
        uapi::IOMMU_UNMAP_DMA => unmap_dma(file, argument, caller).map(|()| 0),
        _ => Err(Errno::NOTTY),
    }
}

fn check_extension(file: &IommuFile, extension: u64) -> Result<i64, Errno> {
    match u32::try_from(extension) {
        Ok(uapi::TYPE1_IOMMU | uapi::TYPE1V2_IOMMU | uapi::UNMAP_ALL) => Ok(1),
        // Nothing that a device of software does is anything but coherent.
        Ok(uapi::DMA_CC_IOMMU) => file.compat.get(&file.context).map(|_| 1),
        _ => Ok(0),
    }
}

fn set_iommu(file: &IommuFile, kind: u64) -> Result<(), Errno> {
    match u32::try_from(kind) {
        Ok(uapi::TYPE1V2_IOMMU) => file.compat.get(&file.context).map(drop),
        // Whoever asks for this one may cut mappings anywhere, and so none may be of large pages.
        Ok(uapi::TYPE1_IOMMU) => {
            let ioas = file.compat.get(&file.context)?;
            ioas.set_large_pages(false).map_err(|error| error.errno())
        }
        _ => Err(Errno::INVAL),
    }
}

fn get_info(file: &IommuFile, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    let asked = type1_info::get(caller, address)?;
    let ioas = file.compat.get(&file.context)?;
    let sizes = type1_info::page_sizes(&ioas).max(ioas.iova_ranges().1);
    let capabilities = vec![type1_info::available(u32::MAX), type1_info::ranges(&ioas)];
    type1_info::put(caller, address, asked, sizes, capabilities, true)
}

fn map_dma(file: &IommuFile, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    let request: uapi::Type1DmaMap = get_part(caller, address, size_of::<uapi::Type1DmaMap>())?;
    let known = uapi::DMA_MAP_FLAG_READ | uapi::DMA_MAP_FLAG_WRITE;
    if (request.argsz as usize) < size_of::<uapi::Type1DmaMap>() || request.flags & !known != 0 {
        return Err(Errno::INVAL);
    }
    let target = file.compat.get(&file.context)?;
    let iova = Some(Iova(request.iova));
    let (address, length) = (request.vaddr, request.size);
    let memory = Memory { address, length, peers: false, account: file.account(caller) };
    map_memory(caller, &target, memory, iova, map_access(request.flags)).map(drop)
}

fn unmap_dma(file: &IommuFile, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    let request: uapi::Type1DmaUnmap = get_part(caller, address, size_of::<uapi::Type1DmaUnmap>())?;
    let short = (request.argsz as usize) < size_of::<uapi::Type1DmaUnmap>();
    if short || request.flags & !uapi::DMA_UNMAP_FLAG_ALL != 0 {
        return Err(Errno::INVAL);
    }
    let ioas = file.compat.get(&file.context)?;
    let range = if request.flags & uapi::DMA_UNMAP_FLAG_ALL != 0 {
        if request.iova != 0 || request.size != 0 {
            return Err(Errno::INVAL);
        }
        IovaRange::ALL
    } else {
        if request.size == 0 {
            return Err(Errno::INVAL);
        }
        let range = IovaRange::new(request.iova, request.size).ok_or(Errno::OVERFLOW)?;
        if !ioas.has_large_pages() {
            let ends = [Some(range.start()), range.last().checked_add(1)];
            ends.into_iter().flatten().try_for_each(|end| ioas.cut(Iova(end))).map_err(|error| error.errno())?;
        }
        range
    };
    let tell = |size| caller.write(address, uapi::Type1DmaUnmap { size, ..request }.as_bytes());
    unmap_telling(&ioas, range, request.size, tell, || match ioas.unmap(range) {
        Err(UnmapError::Empty(_)) => Ok(0),
        unmapped => unmapped.map_err(|error| error.errno()),
    })
}
