//! What [`TestCmd::body`](super::TestCmd::body) holds, for each operation.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Layout, layout};

/// `iommu_test_cmd.add_reserved`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AddReserved {
    /// First IOVA.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}
layout!(AddReserved = "iommu_test_cmd.add_reserved", 16, { start: 0, length: 8 });

/// `iommu_test_cmd.mock_domain`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MockDomain {
    /// Out: the mock device.
    pub out_stdev_id: u32,
    /// Out: the page table that it is attached to.
    pub out_hwpt_id: u32,
    /// Out: the device as bound to the context.
    pub out_idev_id: u32,
}
layout!(MockDomain = "iommu_test_cmd.mock_domain", 12, { out_stdev_id: 0, out_hwpt_id: 4, out_idev_id: 8 });

/// `iommu_test_cmd.mock_domain_flags`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MockDomainFlags {
    /// Out: the mock device.
    pub out_stdev_id: u32,
    /// Out: the page table that it is attached to.
    pub out_hwpt_id: u32,
    /// Out: the device as bound to the context.
    pub out_idev_id: u32,
    /// `MOCK_FLAGS_DEVICE_*`.
    pub dev_flags: u32,
}
layout!(MockDomainFlags = "iommu_test_cmd.mock_domain_flags", 16, {
    out_stdev_id: 0, out_hwpt_id: 4, out_idev_id: 8, dev_flags: 12,
});

/// `iommu_test_cmd.mock_domain_replace`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MockDomainReplace {
    /// The address space or page table.
    pub pt_id: u32,
}
layout!(MockDomainReplace = "iommu_test_cmd.mock_domain_replace", 4, { pt_id: 0 });

/// `iommu_test_cmd.check_map`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckMap {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Address of the memory that has to be mapped there.
    pub uptr: u64,
}
layout!(CheckMap = "iommu_test_cmd.check_map", 24, { iova: 0, length: 8, uptr: 16 });

/// `iommu_test_cmd.check_refs`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckRefs {
    /// Bytes.
    pub length: u64,
    /// Address of the program's memory.
    pub uptr: u64,
    /// How often each page has to be pinned.
    pub refs: u32,
    /// Nothing.
    pub padding: u32,
}
layout!(CheckRefs = "iommu_test_cmd.check_refs", 24, { length: 0, uptr: 8, refs: 16, padding: 20 });

/// `iommu_test_cmd.create_access`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CreateAccess {
    /// Out: descriptor of the access.
    pub out_access_fd: u32,
    /// `MOCK_FLAGS_ACCESS_CREATE_*`.
    pub flags: u32,
}
layout!(CreateAccess = "iommu_test_cmd.create_access", 8, { out_access_fd: 0, flags: 4 });

/// `iommu_test_cmd.destroy_access_pages`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DestroyAccessPages {
    /// The pinned pages.
    pub access_pages_id: u32,
}
layout!(DestroyAccessPages = "iommu_test_cmd.destroy_access_pages", 4, { access_pages_id: 0 });

/// `iommu_test_cmd.access_pages`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AccessPages {
    /// `MOCK_FLAGS_ACCESS_*`.
    pub flags: u32,
    /// Out: the pinned pages.
    pub out_access_pages_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Address of the memory that has to be mapped there.
    pub uptr: u64,
}
layout!(AccessPages = "iommu_test_cmd.access_pages", 32, {
    flags: 0, out_access_pages_id: 4, iova: 8, length: 16, uptr: 24,
});

/// `iommu_test_cmd.access_rw`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AccessRw {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Address of the program's memory.
    pub uptr: u64,
    /// `MOCK_ACCESS_RW_*`.
    pub flags: u32,
    /// Nothing.
    pub padding: u32,
}
layout!(AccessRw = "iommu_test_cmd.access_rw", 32, { iova: 0, length: 8, uptr: 16, flags: 24, padding: 28 });

/// `iommu_test_cmd.memory_limit`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MemoryLimit {
    /// Bytes that the kernel may take at a time for lists of pages, 12 or more.
    pub limit: u32,
}
layout!(MemoryLimit = "iommu_test_cmd.memory_limit", 4, { limit: 0 });

/// `iommu_test_cmd.access_replace_ioas`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AccessReplaceIoas {
    /// The address space.
    pub ioas_id: u32,
}
layout!(AccessReplaceIoas = "iommu_test_cmd.access_replace_ioas", 4, { ioas_id: 0 });

/// `iommu_test_cmd.dirty`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Dirty {
    /// Nothing.
    pub flags: u32,
    /// Nothing.
    pub padding: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes for each bit.
    pub page_size: u64,
    /// Address of a bitmap of the pages to mark.
    pub uptr: u64,
    /// Out: number of pages marked.
    pub out_nr_dirty: u64,
}
layout!(Dirty = "iommu_test_cmd.dirty", 48, {
    flags: 0, padding: 4, iova: 8, length: 16, page_size: 24, uptr: 32, out_nr_dirty: 40,
});

/// `iommu_test_cmd.check_iotlb`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckIotlb {
    /// Which entry, up to `MOCK_NESTED_DOMAIN_IOTLB_ID_MAX`.
    pub id: u32,
    /// The value that it has to have.
    pub iotlb: u32,
}
layout!(CheckIotlb = "iommu_test_cmd.check_iotlb", 8, { id: 0, iotlb: 4 });

/// `iommu_test_cmd.trigger_iopf`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TriggerIopf {
    /// The device.
    pub dev_id: u32,
    /// The PASID.
    pub pasid: u32,
    /// The group's number.
    pub grpid: u32,
    /// `PGFAULT_PERM_*`.
    pub perm: u32,
    /// The IOVA.
    pub addr: u64,
}
layout!(TriggerIopf = "iommu_test_cmd.trigger_iopf", 24, { dev_id: 0, pasid: 4, grpid: 8, perm: 12, addr: 16 });

/// `iommu_test_cmd.check_dev_cache`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CheckDevCache {
    /// Which entry, up to `MOCK_DEV_CACHE_ID_MAX`.
    pub id: u32,
    /// The value that it has to have.
    pub cache: u32,
}
layout!(CheckDevCache = "iommu_test_cmd.check_dev_cache", 8, { id: 0, cache: 4 });

/// `iommu_test_cmd.trigger_vevent`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct TriggerVevent {
    /// The device.
    pub dev_id: u32,
}
layout!(TriggerVevent = "iommu_test_cmd.trigger_vevent", 4, { dev_id: 0 });

/// `iommu_test_cmd.pasid_attach`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidAttach {
    /// The PASID.
    pub pasid: u32,
    /// The address space or page table.
    pub pt_id: u32,
}
layout!(PasidAttach = "iommu_test_cmd.pasid_attach", 8, { pasid: 0, pt_id: 4 });

/// `iommu_test_cmd.pasid_replace`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidReplace {
    /// The PASID.
    pub pasid: u32,
    /// The address space or page table.
    pub pt_id: u32,
}
layout!(PasidReplace = "iommu_test_cmd.pasid_replace", 8, { pasid: 0, pt_id: 4 });

/// `iommu_test_cmd.pasid_detach`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidDetach {
    /// The PASID.
    pub pasid: u32,
}
layout!(PasidDetach = "iommu_test_cmd.pasid_detach", 4, { pasid: 0 });

/// `iommu_test_cmd.pasid_check`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidCheck {
    /// The PASID.
    pub pasid: u32,
    /// The page table that has to be attached, or 0 for none.
    pub hwpt_id: u32,
}
layout!(PasidCheck = "iommu_test_cmd.pasid_check", 8, { pasid: 0, hwpt_id: 4 });

/// `iommu_test_cmd.dmabuf_get`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmabufGet {
    /// Bytes.
    pub length: u32,
    /// Flags for the descriptor.
    pub open_flags: u32,
}
layout!(DmabufGet = "iommu_test_cmd.dmabuf_get", 8, { length: 0, open_flags: 4 });

/// `iommu_test_cmd.dmabuf_revoke`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DmabufRevoke {
    /// Descriptor of the DMA buffer.
    pub dmabuf_fd: i32,
    /// 1 to revoke it, 0 to give it back.
    pub revoked: u32,
}
layout!(DmabufRevoke = "iommu_test_cmd.dmabuf_revoke", 8, { dmabuf_fd: 0, revoked: 4 });

pub(crate) const LAYOUTS: &[Layout] = &[
    AddReserved::LAYOUT,
    MockDomain::LAYOUT,
    MockDomainFlags::LAYOUT,
    MockDomainReplace::LAYOUT,
    CheckMap::LAYOUT,
    CheckRefs::LAYOUT,
    CreateAccess::LAYOUT,
    DestroyAccessPages::LAYOUT,
    AccessPages::LAYOUT,
    AccessRw::LAYOUT,
    MemoryLimit::LAYOUT,
    AccessReplaceIoas::LAYOUT,
    Dirty::LAYOUT,
    CheckIotlb::LAYOUT,
    TriggerIopf::LAYOUT,
    CheckDevCache::LAYOUT,
    TriggerVevent::LAYOUT,
    PasidAttach::LAYOUT,
    PasidReplace::LAYOUT,
    PasidDetach::LAYOUT,
    PasidCheck::LAYOUT,
    DmabufGet::LAYOUT,
    DmabufRevoke::LAYOUT,
];
