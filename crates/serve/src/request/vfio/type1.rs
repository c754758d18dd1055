//! The old rules of mapping, type1: an address space whose devices come in groups, and whose requests are VFIO's.
//!
//! The first version lets an unmapping name more or less than was mapped, and unmaps whole mappings that begin in the
//! range; the second refuses to cut one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ioasid::memory::PAGE_SIZE;
use ioasid::{
    Context, Device, Endpoint, GroupId, Hwpt, HwptError, HwptOptions, Ioas, Iova, IovaRange, Machine, UnmapError,
};
use ioasid_uapi::vfio::container as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::device::Attached;
use super::group::Group;
use super::{dirty, get, lock, map_access, type1_info};
use crate::request::mapping::{Memory, map_memory, unmap_telling};
use crate::request::{Caller, ToErrno};

/// The most mappings of a container, as many as of Linux's without other settings.
const MOST_MAPPINGS: usize = 65535;

/// The address space of a container.
pub(super) struct Type1 {
    /// Dropped first: devices are attached to the others.
    groups: Mutex<BTreeMap<GroupId, Vec<Attached>>>,
    /// A page table for each kind of IOMMU that a device is behind.
    tables: Mutex<Vec<Arc<Hwpt>>>,
    pub(super) ioas: Arc<Ioas>,
    context: Arc<Context>,
    /// Whether it is of the first version.
    cuts: bool,
    /// Where mappings begin whose address was taken away.
    without_address: Mutex<BTreeSet<u64>>,
    /// Whether what devices write is noted. Locked before the tables.
    pub(super) tracks: Mutex<bool>,
    /// Mappings are made beside each other, and unmapped one after the other: none is half there meanwhile.
    order: RwLock<()>,
}

impl Type1 {
    /// An address space without devices, of the first version if it `cuts`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn new(machine: &Arc<Machine>, cuts: bool) -> Result<Self, Errno> {
        let context = machine.context();
        // A container is closed with what is mapped in it.
        context.abandon();
        let ioas = context.ioas_alloc().ok_or(Errno::NOMEM)?;
        Ok(Self {
            groups: Mutex::default(),
            tables: Mutex::default(),
            ioas,
            context,
            cuts,
            without_address: Mutex::default(),
            tracks: Mutex::default(),
            order: RwLock::default(),
        })
    }

    /// Attaches the devices of a group.
    ///
    /// # Errors
    /// `EBUSY` if somebody else uses one, `EINVAL` if something is mapped that one reserves.
    pub(super) fn attach(&self, group: &Group) -> Result<(), Errno> {
        let mut devices = Vec::with_capacity(group.devices().len());
        for pci in group.devices() {
            let device = self.context.bind(&pci.endpoint).map_err(|error| error.errno())?;
            let attached = self.attach_device(&device);
            devices.push(Attached::new(device));
            // Of what reserves something else, type1 says this.
            attached.map_err(|errno| if errno == Errno::ADDRINUSE { Errno::INVAL } else { errno })?;
        }
        lock(&self.groups).insert(group.id(), devices);
        Ok(())
    }

    fn attach_device(&self, device: &Device) -> Result<(), Errno> {
        let table = self.table(device.endpoint())?;
        device.attach(None, &table).map(drop).map_err(|error| error.errno())
    }

    /// The page table for a device, made when the first comes that needs it.
    fn table(&self, endpoint: &Arc<Endpoint>) -> Result<Arc<Hwpt>, Errno> {
        let tracks = lock(&self.tracks);
        let mut tables = lock(&self.tables);
        let kind = endpoint.iommu().kind();
        if let Some(table) = tables.iter().find(|table| table.iommu_kind() == kind) {
            return Ok(table.clone());
        }
        // A part of a device has a PASID.
        let options = HwptOptions::default().pasids(true);
        let made = match self.context.hwpt_alloc(endpoint, &self.ioas, options.clone().dirty_tracking(true)) {
            Err(HwptError::NoDirtyTracking) => self.context.hwpt_alloc(endpoint, &self.ioas, options),
            made => made,
        };
        let table = made.map_err(|error| error.errno())?;
        if *tracks {
            dirty::start(&table)?;
        }
        tables.push(table.clone());
        Ok(table)
    }

    /// Detaches the devices of a group.
    pub(super) fn detach(&self, group: GroupId) {
        let devices = lock(&self.groups).remove(&group);
        drop(devices);
    }

    pub(super) fn tables(&self) -> Vec<Arc<Hwpt>> {
        lock(&self.tables).clone()
    }

    /// Performs request `number` with its argument at `address`.
    ///
    /// # Errors
    /// As Linux: `ENOTTY` for an unknown number, and each request's own.
    pub(super) fn request(&self, number: u32, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        match number {
            uapi::IOMMU_GET_INFO => self.info(address, caller),
            uapi::IOMMU_MAP_DMA => self.map(address, caller),
            uapi::IOMMU_UNMAP_DMA => self.unmap(address, caller),
            // The first version has no such request.
            uapi::IOMMU_DIRTY_PAGES if self.cuts => Err(Errno::ACCESS),
            uapi::IOMMU_DIRTY_PAGES => dirty::request(self, address, caller),
            _ => Err(Errno::NOTTY),
        }
    }

    fn info(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let asked = type1_info::get(caller, address)?;
        let free = MOST_MAPPINGS.saturating_sub(self.ioas.area_count()) as u32;
        let capabilities = vec![dirty::capability(), type1_info::available(free), type1_info::ranges(&self.ioas)];
        type1_info::put(caller, address, asked, type1_info::page_sizes(&self.ioas), capabilities, false)
    }

    fn map(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (request, _) = get::<uapi::Type1DmaMap>(address, caller, size_of::<uapi::Type1DmaMap>())?;
        let uapi::Type1DmaMap { flags, vaddr, iova, size, .. } = request;
        let known = uapi::DMA_MAP_FLAG_READ | uapi::DMA_MAP_FLAG_WRITE | uapi::DMA_MAP_FLAG_VADDR;
        if flags & !known != 0 || size == 0 {
            return Err(Errno::INVAL);
        }
        let range = IovaRange::new(iova, size).ok_or(Errno::OVERFLOW)?;
        vaddr.checked_add(size - 1).ok_or(Errno::OVERFLOW)?;
        let access = map_access(flags);
        let new_address = flags & uapi::DMA_MAP_FLAG_VADDR != 0;
        if access.is_empty() != new_address || !(iova | vaddr | size).is_multiple_of(PAGE_SIZE) {
            return Err(Errno::INVAL);
        }
        if new_address {
            return self.set_address(range, caller);
        }
        let _order = self.order.read().unwrap_or_else(PoisonError::into_inner);
        if self.ioas.area_count() >= MOST_MAPPINGS && self.ioas.areas_in(range).is_empty() {
            return Err(Errno::NOSPC);
        }
        let memory = Memory { address: vaddr, length: size, peers: true, account: caller.account(true) };
        map_memory(caller, &self.ioas, memory, Some(Iova(iova)), access).map(drop)
    }

    /// Gives a mapping whose address was taken away another one. The memory is the same, says the caller, who answers
    /// for it from now on.
    fn set_address(&self, range: IovaRange, caller: &dyn Caller) -> Result<(), Errno> {
        let areas = self.ioas.areas_in(range);
        let first = areas.first().ok_or(Errno::NOENT)?;
        let mut without = lock(&self.without_address);
        if first.range != range || !without.contains(&range.start()) {
            return Err(Errno::INVAL);
        }
        for pages in self.ioas.pages_in(range) {
            pages.charge_to(caller.account(true)).map_err(|_| Errno::NOMEM)?;
        }
        without.remove(&range.start());
        Ok(())
    }

    fn unmap(&self, address: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let (request, argsz) = get::<uapi::Type1DmaUnmap>(address, caller, size_of::<uapi::Type1DmaUnmap>())?;
        let uapi::Type1DmaUnmap { flags, iova, size, .. } = request;
        let has = |flag| flags & flag != 0;
        let all = uapi::DMA_UNMAP_FLAG_ALL;
        let (take_address, get_dirty) = (uapi::DMA_UNMAP_FLAG_VADDR, uapi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP);
        if flags & !(all | take_address | get_dirty) != 0 || (has(get_dirty) && has(all | take_address)) {
            return Err(Errno::INVAL);
        }
        let bitmap = if has(get_dirty) { Some(dirty::bitmap_behind(address, argsz, size, caller)?) } else { None };
        let range = if has(all) {
            if iova != 0 || size != 0 {
                return Err(Errno::INVAL);
            }
            IovaRange::ALL
        } else {
            if size == 0 || !(iova | size).is_multiple_of(PAGE_SIZE) {
                return Err(Errno::INVAL);
            }
            IovaRange::new(iova, size).ok_or(Errno::OVERFLOW)?
        };
        if bitmap.is_some_and(|bitmap| bitmap.pgsize != PAGE_SIZE || !*lock(&self.tracks)) {
            return Err(Errno::INVAL);
        }
        let tell = |size| caller.write(address, uapi::Type1DmaUnmap { size, ..request }.as_bytes());
        let _order = self.order.write().unwrap_or_else(PoisonError::into_inner);
        let Some(whole) = self.whole_mappings(range)? else { return tell(0) };
        if has(take_address) {
            return self.take_addresses(whole, tell);
        }
        let _unwritten = bitmap.map(|bitmap| dirty::tell_before_unmap(self, range, bitmap, caller)).transpose()?;
        unmap_telling(&self.ioas, whole, size, tell, || {
            let unmapped = match self.ioas.unmap(whole) {
                Err(UnmapError::Empty(_)) => 0,
                bytes => bytes.map_err(|error| error.errno())?,
            };
            lock(&self.without_address).retain(|start| !(whole.start()..=whole.last()).contains(start));
            Ok(unmapped)
        })
    }

    /// The mappings that an unmapping of `range` is about, from the first to the last; `None` if it is about none.
    ///
    /// # Errors
    /// `EINVAL` if it would cut one, unless it is of the first version.
    fn whole_mappings(&self, range: IovaRange) -> Result<Option<IovaRange>, Errno> {
        let areas = self.ioas.areas_in(range);
        let (Some(first), Some(last)) = (areas.first(), areas.last()) else { return Ok(None) };
        let begins_before = first.range.start() < range.start();
        if !self.cuts && (begins_before || last.range.last() > range.last()) {
            return Err(Errno::INVAL);
        }
        // The first version stops at what it does not find the beginning of.
        if begins_before { Ok(None) } else { Ok(IovaRange::inclusive(first.range.start(), last.range.last())) }
    }

    /// Takes the addresses of mappings away.
    fn take_addresses(&self, whole: IovaRange, tell: impl Fn(u64) -> Result<(), Errno>) -> Result<(), Errno> {
        let starts: Vec<_> = self.ioas.areas_in(whole).iter().map(|area| area.range.start()).collect();
        let mut without = lock(&self.without_address);
        if starts.iter().any(|start| without.contains(start)) {
            return Err(Errno::INVAL);
        }
        tell(self.ioas.bytes_in(whole))?;
        without.extend(starts);
        Ok(())
    }
}
