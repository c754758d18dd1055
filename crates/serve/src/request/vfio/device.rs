//! A device that is open, and what is asked of it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use ioasid::{Context, Device, ObjectId};
use ioasid_uapi::vfio as uapi;
use ioasid_vfio::device::irq::{IrqActions, IrqData, IrqSet};
use ioasid_vfio::device::region::{RegionInfo, file_offset};
use ioasid_vfio::{Session, Unconsumed};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::capability::{chain, header};
use super::dma_logging::DmaLog;
use super::feature::LowPower;
use super::group::{Block, InUse};
use super::peer::Peer;
use super::{feature, get, hot_reset, through};
use crate::bus::{Bus, OpenDevice};
use crate::driver::DriverHold;
use crate::request::file::Closer;
use crate::request::{Caller, ToErrno};
use crate::watch::{PciDevice, Watcher};

/// A device that is detached by closing it, as there is no other way.
pub(super) struct Attached(Option<Device>);

impl Attached {
    pub(super) fn new(device: Device) -> Self {
        Self(Some(device))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Device::abandon);
    }
}

/// Other devices reach a device, as long as this is there.
struct Reached(Arc<Peer>);

impl Drop for Reached {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The interrupts that nobody has read when a device is closed; the next user is not told of them.
struct Interrupted(Arc<PciDevice>);

impl Interrupted {
    fn take(&self) -> Vec<Unconsumed> {
        self.0.vfio.function().interrupts().take_unconsumed()
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        self.take();
    }
}

/// How a device came to be open, and what it keeps.
pub(super) enum Way {
    /// By a file of its own: it is bound to the context of an open `/dev/iommu`, and its group is not open.
    Cdev { device: Device, _block: Block },
    /// By its group, which has it bound to the context of a container; or, for an open `/dev/iommu`, it is bound to
    /// that one's.
    Group { device: Option<Attached>, _group: InUse },
}

/// An open device. What it has is let go from the first to the last.
pub(super) struct Opened {
    reached: Reached,
    session: Session,
    interrupted: Interrupted,
    way: Way,
    dma_log: DmaLog,
    low_power: LowPower,
    _hold: DriverHold,
}

impl Opened {
    /// A device that nobody else has open, once `come` has found how it is opened.
    ///
    /// # Errors
    /// `ENODEV` if it is not bound to vfio-pci, `EINVAL` if it is open, `ENOMEM`, and those of `come`.
    pub(super) fn new(pci: &Arc<PciDevice>, come: impl FnOnce() -> Result<Way, Errno>) -> Result<Arc<Self>, Errno> {
        let hold = pci.driver.hold()?;
        let session = pci.vfio.open().map_err(|error| error.errno())?;
        let reached = Reached(Peer::new(pci.vfio.function().clone()));
        let opened = Arc::new(Self {
            reached,
            session,
            interrupted: Interrupted(pci.clone()),
            way: come()?,
            dma_log: DmaLog::of(&pci.endpoint),
            low_power: LowPower::default(),
            _hold: hold,
        });
        if let Some(bus) = opened.bus() {
            let open: Weak<Self> = Arc::downgrade(&opened);
            bus.opened(pci.rid, open);
        }
        Ok(opened)
    }

    /// The bus that it is on.
    pub(super) fn bus(&self) -> Option<&Arc<Bus>> {
        self.interrupted.0.bus.as_ref()
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.reached.0
    }

    pub(super) fn dma_log(&self) -> &DmaLog {
        &self.dma_log
    }

    pub(super) fn low_power(&self) -> &LowPower {
        &self.low_power
    }

    /// What it is bound to by a file of its own.
    pub(super) fn cdev(&self) -> Option<&Device> {
        match &self.way {
            Way::Cdev { device, .. } => Some(device),
            Way::Group { .. } => None,
        }
    }

    /// Stops its DMA, then detaches it.
    pub(super) fn close(self, by: Closer, watcher: &dyn Watcher) {
        let Self { _hold, low_power: _, dma_log, way, interrupted, session, reached } = self;
        drop(reached);
        drop((session, dma_log));
        let unread = interrupted.take();
        if by == Closer::Program && !unread.is_empty() {
            watcher.interrupts_unread(interrupted.0.rid, &unread);
        }
        match way {
            Way::Cdev { device, .. } if by == Closer::Program => drop(device),
            Way::Cdev { device, .. } => device.abandon(),
            Way::Group { .. } => {}
        }
    }

    /// Performs request `number` with its argument at `address`.
    ///
    /// # Errors
    /// As Linux: `ENOTTY` for an unknown number, `EFAULT` for a bad address, `EINVAL` for a short argument or unknown
    /// flags, and each request's own.
    pub(super) fn request(&self, number: u32, address: u64, caller: &dyn Caller) -> Result<i64, Errno> {
        self.low_power.wake();
        if number == uapi::feature::DEVICE_FEATURE {
            return feature::request(self, address, caller);
        }
        match number {
            uapi::DEVICE_GET_INFO => self.info(address, caller),
            uapi::DEVICE_GET_REGION_INFO => self.region_info(address, caller),
            uapi::DEVICE_GET_IRQ_INFO => self.irq_info(address, caller),
            uapi::DEVICE_SET_IRQS => self.set_irqs(address, caller),
            uapi::DEVICE_RESET => self.reset(),
            uapi::DEVICE_IOEVENTFD => self.ioeventfd(address, caller),
            uapi::DEVICE_GET_PCI_HOT_RESET_INFO => hot_reset::info(self, address, caller),
            uapi::DEVICE_PCI_HOT_RESET => hot_reset::reset(self, address, caller),
            _ => Err(Errno::NOTTY),
        }
        .map(|()| 0)
    }

    fn ioeventfd(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (request, _) = get::<uapi::Ioeventfd>(address, caller, through!(uapi::Ioeventfd, fd: i32))?;
        let uapi::Ioeventfd { flags, offset, data, fd, .. } = request;
        if ![1, 2, 4, 8].contains(&flags) || fd < -1 {
            return Err(Errno::INVAL);
        }
        let file = if fd < 0 { None } else { Some(caller.descriptor(fd)?) };
        let stored = self.session.store_by(offset, &data.to_le_bytes()[..flags as usize], file);
        stored.map_err(|error| error.errno())
    }

    fn info(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (_, argsz) = get::<uapi::DeviceInfo>(address, caller, through!(uapi::DeviceInfo, num_irqs: u32))?;
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
        let (mut answer, argsz) = get::<uapi::RegionInfo>(address, caller, through!(uapi::RegionInfo, offset: u64))?;
        let info = self.session.region_info(answer.index).map_err(|error| error.errno())?;
        answer.flags = info.flags.bits();
        answer.size = info.size;
        answer.offset = file_offset(answer.index);
        answer.cap_offset = 0;
        let at = size_of_val(&answer);
        let capabilities = chain(capabilities(&info), at);
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

impl OpenDevice for Opened {
    fn id_in(&self, context: &Arc<Context>) -> Option<ObjectId> {
        let device = match &self.way {
            Way::Cdev { device, .. } => device,
            Way::Group { device, .. } => device.as_ref()?.0.as_ref()?,
        };
        Arc::ptr_eq(device.context(), context).then(|| device.id())
    }

    fn reset(&self) -> Result<(), Errno> {
        // What others have written arrives before, not after.
        self.reached.0.fence()?;
        self.session.reset();
        Ok(())
    }
}

/// The capabilities of a region.
fn capabilities(info: &RegionInfo) -> Vec<Vec<u8>> {
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
    all
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
