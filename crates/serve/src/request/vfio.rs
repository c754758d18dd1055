//! Requests on `/dev/vfio/devices/vfioN`, and reads, writes and mappings of it.
//!
//! ```text
//!   open ──► unbound ──BIND_IOMMUFD──► bound ⇄ attached ──last close──► closed
//!            every other request       all requests
//!            is EINVAL
//! ```
//! Source: `include/uapi/linux/vfio.h` and `Documentation/driver-api/vfio.rst` of Linux 7.3.

use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use ioasid::{Device, ObjectId, Pasid};
use ioasid_uapi::vfio as uapi;
use ioasid_vfio::Session;
use ioasid_vfio::device::irq::{IrqActions, IrqData, IrqSet};
use ioasid_vfio::device::region::{RegionFlags, RegionInfo, file_offset, locate};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::argument::{Argument, get_part};
use super::file::{Closer, MappedMemory, Mapping, OpenFile};
use super::object;
use super::{Caller, ToErrno};
use crate::watch::{PciDevice, Watcher};

/// An open file of a VFIO device.
pub struct VfioFile {
    device: Arc<PciDevice>,
    /// Whether it was opened for writing, too.
    writable: bool,
    bound: RwLock<Option<Bound>>,
}

/// What a program has from BIND_IOMMUFD on. The session is dropped first: it stops DMA before the device detaches.
struct Bound {
    session: Session,
    device: Device,
    /// Of the device's PASIDs; 0 if it has none.
    pasid_bits: u32,
}

/// The end of a field: the shortest form of a structure that a request accepts.
macro_rules! through {
    ($structure:ident . $field:ident: $kind:ty) => {
        offset_of!(uapi::$structure, $field) + size_of::<$kind>()
    };
}

impl VfioFile {
    /// A file that is bound to no context yet, and that was opened for reading, or for writing, too.
    #[must_use]
    pub fn new(device: Arc<PciDevice>, writable: bool) -> Self {
        Self { device, writable, bound: RwLock::default() }
    }

    /// Runs `use_it` if the file is bound.
    fn with_bound<T>(&self, use_it: impl FnOnce(&Bound) -> Result<T, Errno>) -> Result<T, Errno> {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        bound.as_ref().ok_or(Errno::INVAL).and_then(use_it)
    }

    /// The kernel makes no mapping to write of a file that was opened for reading; but a program may ask for a store
    /// that its processor does not make.
    fn check_writable(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// Performs request `number` with its argument at `address`.
    ///
    /// # Errors
    /// As Linux: `EINVAL` for anything but BIND_IOMMUFD before the file is bound, `ENOTTY` for an unknown number,
    /// `EFAULT` for a bad address, `EINVAL` for a short argument or unknown flags, and each request's own.
    fn request(&self, number: u32, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
        if number == uapi::DEVICE_BIND_IOMMUFD {
            return self.bind(address, caller).map(|()| 0);
        }
        self.with_bound(|bound| match number {
            uapi::DEVICE_ATTACH_IOMMUFD_PT => bound.attach(address, caller),
            uapi::DEVICE_DETACH_IOMMUFD_PT => bound.detach(address, caller),
            uapi::DEVICE_GET_INFO => bound.info(address, caller),
            uapi::DEVICE_GET_REGION_INFO => bound.region_info(address, caller),
            uapi::DEVICE_GET_IRQ_INFO => bound.irq_info(address, caller),
            uapi::DEVICE_SET_IRQS => bound.set_irqs(address, caller),
            uapi::DEVICE_RESET => {
                bound.session.reset();
                Ok(())
            }
            // There is no bus or slot to reset: the function is inside the root complex.
            uapi::DEVICE_GET_PCI_HOT_RESET_INFO | uapi::DEVICE_PCI_HOT_RESET => Err(Errno::NODEV),
            _ => Err(Errno::NOTTY),
        })
        .map(|()| 0)
    }

    fn bind(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let argument = Argument::new(caller, address)?;
        let request: uapi::BindIommufd = argument.get(through!(BindIommufd.out_devid: u32))?;
        // A token belongs to virtual functions, of which there are none.
        if request.iommufd < 0 || request.flags != 0 {
            return Err(Errno::INVAL);
        }
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        if bound.is_some() {
            return Err(Errno::INVAL);
        }
        let context = caller.context(request.iommufd)?;
        let session = self.device.vfio.open().map_err(|error| error.errno())?;
        let device = context.bind(&self.device.endpoint).map_err(|error| error.errno())?;
        let at = address.wrapping_add(offset_of!(uapi::BindIommufd, out_devid) as u64);
        caller.write(at, device.id().0.get().as_bytes())?;
        *bound = Some(Bound { session, device, pasid_bits: self.device.endpoint.pasid_bits() });
        Ok(())
    }
}

/// Reads a structure with `argsz`, of which the caller must have set aside `minimum` bytes.
fn get<T>(address: u64, caller: &dyn Caller, minimum: usize) -> Result<(T, u32), Errno>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let value: T = get_part(caller, address, minimum)?;
    let argsz = u32::read_from_prefix(value.as_bytes()).map_or(0, |(argsz, _)| argsz);
    if (argsz as usize) < minimum { Err(Errno::INVAL) } else { Ok((value, argsz)) }
}

/// What is read, written and mapped of it is `EINVAL` until it is bound.
impl OpenFile for VfioFile {
    fn ioctl(&self, number: u32, address: u64, caller: &dyn Caller) -> Option<Result<i64, Errno>> {
        Some(self.request(number, address, caller))
    }

    fn in_use(&self) -> &'static [Errno] {
        &[Errno::BUSY, Errno::INVAL]
    }

    fn has_regions(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.with_bound(|bound| bound.session.read(offset, data).map_err(|error| error.errno()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.with_bound(|bound| bound.session.write(offset, data).map_err(|error| error.errno()))
    }

    fn check_mmap(&self, mapping: Mapping) -> Option<Result<(), Errno>> {
        let Mapping { offset, length, shared, .. } = mapping;
        Some(self.with_bound(|bound| {
            let (index, start) = locate(offset);
            let info = bound.session.region_info(index).map_err(|error| error.errno())?;
            // A mapping covers whole pages, also of a region that is smaller.
            let size = info.size.next_multiple_of(ioasid::memory::PAGE_SIZE);
            let inside = start.checked_add(length).is_some_and(|end| end <= size);
            if shared && length != 0 && inside && info.flags.contains(RegionFlags::MMAP) {
                Ok(())
            } else {
                Err(Errno::INVAL)
            }
        }))
    }

    fn load(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.with_bound(|bound| bound.session.mapped_read(offset, data).map_err(|error| error.errno()))
    }

    fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.check_writable()?;
        self.with_bound(|bound| bound.session.mapped_write(offset, data).map_err(|error| error.errno()))
    }

    fn memory(&self, offset: u64) -> Option<MappedMemory> {
        let memory = self.with_bound(|bound| {
            let (place, memory) = bound.session.memory_at(offset).ok_or(Errno::NXIO)?;
            Ok(MappedMemory { place, memory: memory.clone(), writable: self.writable })
        });
        memory.ok()
    }

    fn enqueue(&self, offset: u64, command: &[u8; 64]) -> Result<Option<bool>, Errno> {
        self.check_writable()?;
        self.with_bound(|bound| bound.session.mapped_enqueue(offset, command).map_err(|error| error.errno()))
    }

    fn close(&self, by: Closer, watcher: &dyn Watcher) {
        let bound = self.bound.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Bound { session, device, .. }) = bound {
            drop(session);
            let unread = self.device.vfio.function().interrupts().take_unconsumed();
            match by {
                Closer::End => device.abandon(),
                Closer::Program => {
                    drop(device);
                    if !unread.is_empty() {
                        watcher.interrupts_unread(self.device.rid, &unread);
                    }
                }
            }
        }
    }
}

impl Bound {
    /// The PASID that a request is about, fetched with `fetch` if its flag is set.
    fn pasid(&self, flags: u32, flag: u32, fetch: impl FnOnce() -> Result<u32, Errno>) -> Result<Option<Pasid>, Errno> {
        match flags {
            0 => Ok(None),
            _ if flags != flag => Err(Errno::INVAL),
            _ => {
                let number = fetch()?;
                if self.pasid_bits == 0 {
                    return Err(Errno::OPNOTSUPP);
                }
                Pasid::new(number).map(Some).ok_or(Errno::INVAL)
            }
        }
    }

    fn attach(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let short = through!(AttachIommufdPt.pt_id: u32);
        let (request, argsz) = get::<uapi::AttachIommufdPt>(address, caller, short)?;
        let pasid = self.pasid(request.flags, uapi::ATTACH_PASID, || {
            let long = size_of::<uapi::AttachIommufdPt>();
            if (argsz as usize) < long {
                return Err(Errno::INVAL);
            }
            Ok(get::<uapi::AttachIommufdPt>(address, caller, long)?.0.pasid)
        })?;
        let at = address.wrapping_add(offset_of!(uapi::AttachIommufdPt, pt_id) as u64);
        // What was attached before stays if the program cannot be told.
        let told = |id: ObjectId| caller.write(at, id.0.get().as_bytes()).is_ok();
        let target = object::target(self.device.context(), request.pt_id)?;
        self.device.attach_if(pasid, target, told).map(drop).map_err(|error| error.errno())
    }

    fn detach(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let short = through!(DetachIommufdPt.flags: u32);
        let (request, argsz) = get::<uapi::DetachIommufdPt>(address, caller, short)?;
        let pasid = self.pasid(request.flags, uapi::DETACH_PASID, || {
            let long = size_of::<uapi::DetachIommufdPt>();
            if (argsz as usize) < long {
                return Err(Errno::INVAL);
            }
            Ok(get::<uapi::DetachIommufdPt>(address, caller, long)?.0.pasid)
        })?;
        self.device.detach(pasid).map_err(|error| error.errno())
    }

    fn info(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (_, argsz) = get::<uapi::DeviceInfo>(address, caller, through!(DeviceInfo.num_irqs: u32))?;
        let info = self.session.info();
        let answer = uapi::DeviceInfo {
            argsz,
            flags: info.flags.bits(),
            num_regions: info.regions,
            num_irqs: info.irqs,
            ..uapi::DeviceInfo::default()
        };
        let known = (argsz as usize).min(size_of::<uapi::DeviceInfo>());
        caller.write(address, &answer.as_bytes()[..known])
    }

    fn region_info(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (mut answer, argsz) = get::<uapi::RegionInfo>(address, caller, through!(RegionInfo.offset: u64))?;
        let info = self.session.region_info(answer.index).map_err(|error| error.errno())?;
        answer.flags = info.flags.bits();
        answer.size = info.size;
        answer.offset = file_offset(answer.index);
        answer.cap_offset = 0;
        let at = size_of_val(&answer);
        let capabilities = capabilities(&info, at);
        if !capabilities.is_empty() {
            let needed = at + capabilities.len();
            answer.flags |= uapi::REGION_INFO_FLAG_CAPS;
            if (argsz as usize) < needed {
                answer.argsz = needed as u32;
            } else {
                caller.write(address.wrapping_add(at as u64), &capabilities)?;
                answer.cap_offset = at as u32;
            }
        }
        caller.write(address, answer.as_bytes())
    }

    fn irq_info(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (mut answer, _) = get::<uapi::IrqInfo>(address, caller, size_of::<uapi::IrqInfo>())?;
        let info = self.session.irq_info(answer.index).map_err(|error| error.errno())?;
        answer.flags = info.flags.bits();
        answer.count = info.count;
        caller.write(address, answer.as_bytes())
    }

    fn set_irqs(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (request, argsz) = get::<uapi::IrqSet>(address, caller, size_of::<uapi::IrqSet>())?;
        let uapi::IrqSet { flags, index, start, count, .. } = request;
        if flags & !(uapi::IRQ_SET_DATA_TYPE_MASK | uapi::IRQ_SET_ACTION_TYPE_MASK) != 0 {
            return Err(Errno::INVAL);
        }
        self.session.check_irq_range(index, start, count).map_err(|error| error.errno())?;
        let data_at = address.wrapping_add(size_of::<uapi::IrqSet>() as u64);
        let room = argsz as usize - size_of::<uapi::IrqSet>();
        // `count` is not above the number of vectors, so these arrays are small.
        let (mut bools, mut fds): (Vec<u8>, Vec<i32>) = (Vec::new(), Vec::new());
        let data = match flags & uapi::IRQ_SET_DATA_TYPE_MASK {
            uapi::IRQ_SET_DATA_NONE => IrqData::None,
            uapi::IRQ_SET_DATA_BOOL => IrqData::Bools(fetch(caller, data_at, room, count, &mut bools)?),
            uapi::IRQ_SET_DATA_EVENTFD => IrqData::Eventfds(fetch(caller, data_at, room, count, &mut fds)?),
            _ => return Err(Errno::INVAL),
        };
        let actions = IrqActions::from_bits_truncate(flags & uapi::IRQ_SET_ACTION_TYPE_MASK);
        let mut descriptor = |number: i32| -> std::io::Result<OwnedFd> { Ok(caller.descriptor(number)?) };
        let request = IrqSet { index, start, count, actions, data };
        self.session.set_irqs(&request, &mut descriptor).map_err(|error| error.errno())
    }
}

/// The capabilities of a region, in a chain that begins at byte `at` of the answer; empty if it has none.
fn capabilities(info: &RegionInfo, at: usize) -> Vec<u8> {
    let header = |id| uapi::CapHeader { id, version: 1, next: 0 };
    let mut all: Vec<Vec<u8>> = Vec::new();
    if !info.memory.is_empty() {
        let header = header(uapi::REGION_INFO_CAP_SPARSE_MMAP);
        let sparse = uapi::SparseMmap { header, nr_areas: info.memory.len() as u32, reserved: 0 };
        let areas = info.memory.iter();
        let areas = areas.map(|area| uapi::SparseMmapArea { offset: area.start, size: area.end - area.start });
        all.push(areas.fold(sparse.as_bytes().to_vec(), |bytes, area| [&bytes, area.as_bytes()].concat()));
    }
    if info.msix_mappable {
        all.push(header(uapi::REGION_INFO_CAP_MSIX_MAPPABLE).as_bytes().to_vec());
    }
    let mut chain = Vec::new();
    let last = all.len().saturating_sub(1);
    for (number, mut capability) in all.into_iter().enumerate() {
        let next = if number == last { 0 } else { (at + chain.len() + capability.len()) as u32 };
        let place = offset_of!(uapi::CapHeader, next);
        capability[place..place + 4].copy_from_slice(&next.to_ne_bytes());
        chain.append(&mut capability);
    }
    chain
}

/// The data of a SET_IRQS request.
fn fetch<'a, T: FromZeros + FromBytes + IntoBytes + Clone>(
    caller: &dyn Caller,
    address: u64,
    room: usize,
    count: u32,
    data: &'a mut Vec<T>,
) -> Result<&'a [T], Errno>
where
    [T]: IntoBytes + FromBytes,
{
    let length = count as usize;
    if room < length * size_of::<T>() {
        return Err(Errno::INVAL);
    }
    data.resize(length, T::new_zeroed());
    caller.read(address, data.as_mut_slice().as_mut_bytes())?;
    Ok(data)
}
