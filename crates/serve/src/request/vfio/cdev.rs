//! What is asked only of a device that has a file of its own: which context it is bound to, and what it is attached to.

use std::mem::offset_of;
use std::sync::Arc;

use ioasid::{Device, ObjectId, Pasid};
use ioasid_uapi::vfio as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::device::{Opened, Way};
use super::group::Group;
use super::{get, through};
use crate::request::argument::Argument;
use crate::request::file::of_kind;
use crate::request::iommufd::IommuFile;
use crate::request::{Caller, ToErrno, object};
use crate::watch::PciDevice;

/// What BIND_IOMMUFD is asked for.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub(super) fn get_bind(address: u64, caller: &dyn Caller) -> Result<uapi::BindIommufd, Errno> {
    let request: uapi::BindIommufd =
        Argument::new(caller, address)?.get(through!(uapi::BindIommufd, out_devid: u32))?;
    if request.iommufd < 0 || request.flags & !uapi::BIND_FLAG_TOKEN != 0 { Err(Errno::INVAL) } else { Ok(request) }
}

/// BIND_IOMMUFD: opens the device for the context that the argument at `address` names.
pub(super) fn bind(
    pci: &Arc<PciDevice>,
    group: &Arc<Group>,
    request: &uapi::BindIommufd,
    address: u64,
    caller: &dyn Caller,
) -> Result<Arc<Opened>, Errno> {
    let block = group.block()?;
    if request.flags & uapi::BIND_FLAG_TOKEN != 0 {
        caller.read(request.token_uuid_ptr, &mut [0; 16])?;
        // It belongs to virtual functions, of which there are none.
        return Err(Errno::INVAL);
    }
    let iommu = of_kind::<IommuFile>(caller.file(request.iommufd)?).ok_or(Errno::BADFD)?;
    let at = address.wrapping_add(offset_of!(uapi::BindIommufd, out_devid) as u64);
    Opened::new(pci, || {
        let device = iommu.context().bind(&pci.endpoint).map_err(|error| error.errno())?;
        caller.write(at, device.id().0.get().as_bytes())?;
        Ok(Way::Cdev { device, _block: block })
    })
}

/// Performs request `number`, if it is one of these.
pub(super) fn request(device: &Device, number: u32, address: u64, caller: &dyn Caller) -> Option<Result<(), Errno>> {
    match number {
        uapi::DEVICE_ATTACH_IOMMUFD_PT => Some(attach(device, address, caller)),
        uapi::DEVICE_DETACH_IOMMUFD_PT => Some(detach(device, address, caller)),
        _ => None,
    }
}

/// The PASID that a request is about, fetched with `fetch` if its flag is set.
fn pasid(flags: u32, flag: u32, fetch: impl FnOnce() -> Result<u32, Errno>) -> Result<Option<Pasid>, Errno> {
    match flags {
        0 => Ok(None),
        _ if flags != flag => Err(Errno::INVAL),
        _ => {
            let number = fetch()?;
            Pasid::new(number).map(Some).ok_or(Errno::INVAL)
        }
    }
}

fn attach(device: &Device, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    let short = through!(uapi::AttachIommufdPt, pt_id: u32);
    let (request, argsz) = get::<uapi::AttachIommufdPt>(address, caller, short)?;
    let pasid = pasid(request.flags, uapi::ATTACH_PASID, || {
        let long = size_of::<uapi::AttachIommufdPt>();
        if (argsz as usize) < long {
            return Err(Errno::INVAL);
        }
        Ok(get::<uapi::AttachIommufdPt>(address, caller, long)?.0.pasid)
    })?;
    let at = address.wrapping_add(offset_of!(uapi::AttachIommufdPt, pt_id) as u64);
    // What was attached before stays if the program cannot be told.
    let told = |id: ObjectId| caller.write(at, id.0.get().as_bytes()).is_ok();
    let target = object::target(device.context(), request.pt_id)?;
    device.attach_if(pasid, target, told).map(drop).map_err(|error| error.errno())
}

fn detach(device: &Device, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
    let short = through!(uapi::DetachIommufdPt, flags: u32);
    let (request, argsz) = get::<uapi::DetachIommufdPt>(address, caller, short)?;
    let pasid = pasid(request.flags, uapi::DETACH_PASID, || {
        let long = size_of::<uapi::DetachIommufdPt>();
        if (argsz as usize) < long {
            return Err(Errno::INVAL);
        }
        Ok(get::<uapi::DetachIommufdPt>(address, caller, long)?.0.pasid)
    })?;
    device.detach(pasid).map_err(|error| error.errno())
}
