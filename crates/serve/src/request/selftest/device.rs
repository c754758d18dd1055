//! Mock devices: made by a test, and destroyed as the objects of a context are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioasid::{
    Context, Device, Endpoint, EndpointOptions, External, GroupId, IommuKind, Machine, ObjectId, PageGroup,
    PageRequest, Pasid, Recovery, RequestedAccess, Rid,
};
use ioasid_uapi::iommufd::selftest::{self as uapi, command, data};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::Test;
use crate::request::ToErrno;
use crate::request::hardware::DeviceCache;
use crate::request::object;

/// The PCI segment of mock devices, and the number of the first one's group: no others have them.
const SEGMENT: u16 = 0xffff;
const FIRST_GROUP: u32 = 1 << 31;

/// The mock devices of one open file.
pub(in crate::request) struct MockDevices {
    context: Arc<Context>,
    /// By the ids that the test destroys them by.
    devices: Mutex<BTreeMap<u32, Arc<MockDevice>>>,
}

impl MockDevices {
    pub(in crate::request) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, devices: Mutex::default() })
    }

    fn find(&self, fits: impl Fn(u32, &MockDevice) -> bool) -> Result<Arc<MockDevice>, Errno> {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.iter().find(|(id, device)| fits(**id, device)).map(|(_, device)| device.clone()).ok_or(Errno::NOENT)
    }

    /// The device of which a test has this id.
    fn by_id(&self, wanted: u32) -> Result<Arc<MockDevice>, Errno> {
        self.find(|id, _| id == wanted)
    }

    /// The device that is bound with this id.
    pub(super) fn by_device_id(&self, wanted: u32) -> Result<Arc<MockDevice>, Errno> {
        self.find(|_, device| u32::from(device.device.id()) == wanted)
    }
}

/// What the context destroys.
struct Registered {
    devices: Weak<MockDevices>,
    id: u32,
}

impl External for Registered {
    fn destroyed(&self) {
        let Some(devices) = self.devices.upgrade() else { return };
        let device = devices.devices.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        drop(device);
    }
}

/// A device without registers.
pub(super) struct MockDevice {
    /// Dropped first: only what is not bound can be taken off the bus.
    device: Device,
    slot: Slot,
    /// Whether the next attachment of the PASID that is kept for it fails.
    fails: AtomicBool,
}

/// A place on the bus.
struct Slot {
    machine: Arc<Machine>,
    endpoint: Arc<Endpoint>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.machine.remove_endpoint(&self.endpoint);
    }
}

impl Slot {
    /// The first free one.
    fn take(machine: &Arc<Machine>, flags: u32) -> Option<Self> {
        let options = EndpointOptions::behind(&machine.iommu(IommuKind::Mock))
            .pasid_bits(if flags & uapi::MOCK_FLAGS_DEVICE_PASID != 0 { uapi::MOCK_PASID_WIDTH } else { 0 })
            .dirty_tracking(flags & uapi::MOCK_FLAGS_DEVICE_NO_DIRTY == 0)
            .recovery(Recovery::PageRequests);
        (0..=u16::MAX).find_map(|number| {
            let [bus, devfn] = number.to_be_bytes();
            let rid = Rid::new(SEGMENT, bus, devfn >> 3, devfn & 7)?;
            let group = GroupId(FIRST_GROUP + u32::from(number));
            let endpoint = machine.add_endpoint_with(rid, group, options.clone()).ok()?;
            Some(Self { machine: machine.clone(), endpoint })
        })
    }
}

impl MockDevice {
    fn new(context: &Arc<Context>, flags: u32) -> Result<Self, Errno> {
        if flags & !(uapi::MOCK_FLAGS_DEVICE_NO_DIRTY | uapi::MOCK_FLAGS_DEVICE_PASID) != 0 {
            return Err(Errno::INVAL);
        }
        let slot = Slot::take(context.machine(), flags).ok_or(Errno::NOMEM)?;
        let device = context.bind(&slot.endpoint).map_err(|error| error.errno())?;
        slot.endpoint.extend(DeviceCache::new());
        Ok(Self { device, slot, fails: AtomicBool::new(false) })
    }

    /// Attaches it, in place of what it is attached to, or where nothing is. One PASID is kept for a test of what
    /// becomes of an attachment that the device refuses: of two attachments of it in a row the second fails.
    fn attach(
        &self,
        pasid: Option<Pasid>,
        table: u32,
        tell: impl FnOnce(ObjectId) -> Result<(), Errno>,
    ) -> Result<ObjectId, Errno> {
        let is_reserved = pasid.is_some_and(|pasid| pasid.get() == uapi::TEST_PASID_RESERVED);
        if is_reserved && self.fails.swap(false, Ordering::Relaxed) {
            return Err(Errno::NOMEM);
        }
        let target = object::target(self.device.context(), table)?;
        let attached = self.device.attach_if(pasid, target, |id| tell(id).is_ok()).map_err(|error| error.errno())?;
        self.fails.fetch_or(is_reserved, Ordering::Relaxed);
        Ok(attached)
    }

    fn detach(&self, pasid: Option<Pasid>) -> Result<(), Errno> {
        self.device.detach(pasid).map_err(|error| error.errno())?;
        if pasid.is_some_and(|pasid| pasid.get() == uapi::TEST_PASID_RESERVED) {
            self.fails.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

pub(super) fn make(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::MockDomainFlags = test.body()?;
    let flags = if test.request.op == uapi::TEST_OP_MOCK_DOMAIN_FLAGS { body.dev_flags } else { 0 };
    let context = &test.mock.context;
    let made = context.add_external(|id| {
        let device = MockDevice::new(context, flags)?;
        let hwpt = device.attach(None, test.request.id, |_| Ok(()))?;
        let body = command::MockDomainFlags {
            out_stdev_id: id.into(),
            out_hwpt_id: hwpt.into(),
            out_idev_id: device.device.id().into(),
            dev_flags: body.dev_flags,
        };
        test.put(&body)?;
        let mut devices = test.mock.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.insert(id.into(), Arc::new(device));
        Ok(Arc::new(Registered { devices: Arc::downgrade(test.mock), id: id.into() }) as Arc<dyn External>)
    });
    made.ok_or(Errno::NOMEM)?.map(drop)
}

pub(super) fn replace(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::MockDomainReplace = test.body()?;
    let tell = |id: ObjectId| test.put(&command::MockDomainReplace { pt_id: id.into() });
    test.mock.by_id(test.request.id)?.attach(None, body.pt_id, tell).map(drop)
}

pub(super) fn attach_pasid(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::PasidAttach = test.body()?;
    let (device, pasid) = (test.mock.by_id(test.request.id)?, pasid(body.pasid)?);
    if device.device.attached_to(pasid).is_some() {
        return Err(Errno::BUSY);
    }
    let tell = |id: ObjectId| test.put(&command::PasidAttach { pt_id: id.into(), ..body });
    device.attach(pasid, body.pt_id, tell).map(drop)
}

pub(super) fn replace_pasid(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::PasidReplace = test.body()?;
    let (device, pasid) = (test.mock.by_id(test.request.id)?, pasid(body.pasid)?);
    if device.device.attached_to(pasid).is_none() {
        return Err(Errno::INVAL);
    }
    let tell = |id: ObjectId| test.put(&command::PasidReplace { pt_id: id.into(), ..body });
    device.attach(pasid, body.pt_id, tell).map(drop)
}

pub(super) fn detach_pasid(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::PasidDetach = test.body()?;
    test.mock.by_id(test.request.id)?.detach(pasid(body.pasid)?)
}

/// Whether a PASID is attached to the page table that it should be, if to any.
pub(super) fn check_pasid(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::PasidCheck = test.body()?;
    let device = test.mock.by_id(test.request.id)?;
    let attached = device.device.attached_to(pasid(body.pasid)?).map_or(0, u32::from);
    if body.hwpt_id != 0 && !test.mock.context.has(body.hwpt_id) {
        return Err(Errno::NOENT);
    }
    if attached == body.hwpt_id { Ok(()) } else { Err(Errno::INVAL) }
}

/// Whether an entry of what a device would have cached has the value that it should.
pub(super) fn check_cache(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::CheckDevCache = test.body()?;
    let device = test.mock.by_device_id(test.request.id)?;
    let found = device.slot.endpoint.extension::<DeviceCache>().and_then(|cache| cache.entry(body.id));
    if found == Some(body.cache) { Ok(()) } else { Err(Errno::INVAL) }
}

/// Has a device ask for a page.
pub(super) fn request_page(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::TriggerIopf = test.body()?;
    let device = test.mock.by_device_id(body.dev_id)?;
    let request = PageRequest {
        pasid: pasid(body.pasid)?,
        iova: body.addr,
        access: RequestedAccess::from_bits_truncate(body.perm),
    };
    let group = PageGroup { number: body.grpid, requests: vec![request], answer: Box::new(|_| ()) };
    device.slot.endpoint.request_pages(group);
    Ok(())
}

/// Has a device's IOMMU tell the guest something about it.
pub(super) fn report_event(test: &Test<'_>) -> Result<(), Errno> {
    let body: command::TriggerVevent = test.body()?;
    let device = test.mock.by_device_id(body.dev_id)?;
    let attached = device.device.attached_to(None).ok_or(Errno::NOENT)?;
    let nested = test.mock.context.nested_hwpt(attached).ok_or(Errno::NOENT)?;
    let viommu = nested.viommu().and_then(|id| test.mock.context.viommu(id)).ok_or(Errno::NOENT)?;
    let virt_id = viommu.virtual_id(&device.slot.endpoint).filter(|&id| id != 0).ok_or(Errno::NOENT)?;
    let queue = viommu.events(data::VEVENTQ_TYPE_SELFTEST).ok_or(Errno::OPNOTSUPP)?;
    queue.report(data::ViommuEvent { virt_id: virt_id as u32 }.as_bytes());
    Ok(())
}

/// Zero is no PASID, as for the kernel.
fn pasid(number: u32) -> Result<Option<Pasid>, Errno> {
    match number {
        0 => Ok(None),
        _ => Pasid::new(number).map(Some).ok_or(Errno::INVAL),
    }
}
