//! `include/ioasid.h`: requests on `/dev/iommu` that Linux does not have.
//!
//! In the style of [`crate::iommufd`], whose rules hold here too, and with numbers of their own. `docs/uapi.md`
//! explains each, with its errors. The header in C is part of this crate, and is compared with this file by the tests.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::description::{Header, Layout, constants, layout};
use crate::{TYPE, io};

constants! {
    /// `IOASID_PASID_ALLOC`: [`PasidAlloc`]
    pub const PASID_ALLOC: u32 = io(TYPE, 0xc0);
    /// `IOASID_PASID_FREE`: [`PasidFree`]
    pub const PASID_FREE: u32 = io(TYPE, 0xc1);
    /// `IOASID_PARK`: [`Park`]
    pub const PARK: u32 = io(TYPE, 0xc2);
    /// `IOASID_HWPT_ALLOC`: [`HwptAlloc`]
    pub const HWPT_ALLOC: u32 = io(TYPE, 0xc3);
    /// `IOASID_HWPT_INVALIDATE`: [`HwptInvalidate`]
    pub const HWPT_INVALIDATE: u32 = io(TYPE, 0xc4);
    /// `IOASID_FAULT_QUEUE_ALLOC`: [`FaultQueueAlloc`]
    pub const FAULT_QUEUE_ALLOC: u32 = io(TYPE, 0xc5);
    /// `IOASID_FAULT_QUEUE_GET`: [`FaultQueueGet`]
    pub const FAULT_QUEUE_GET: u32 = io(TYPE, 0xc6);
    /// `IOASID_IOAS_PRESENCE`: [`IoasPresence`]
    pub const IOAS_PRESENCE: u32 = io(TYPE, 0xc7);
    /// `IOASID_COPY`: [`struct@Copy`]
    pub const COPY: u32 = io(TYPE, 0xc8);
    /// `IOASID_ENQCMD`: [`Enqcmd`]
    pub const ENQCMD: u32 = io(TYPE, 0xc9);

    /// `IOASID_HWPT_PAGING`: of an IOAS
    pub const HWPT_PAGING: u32 = 0;
    /// `IOASID_HWPT_NESTED`: a guest's page table
    pub const HWPT_NESTED: u32 = 1;
    /// `IOASID_HWPT_GUEST_PASIDS`: a guest's table of PASIDs
    pub const HWPT_GUEST_PASIDS: u32 = 2;
    /// `IOASID_HWPT_SVA`: a process
    pub const HWPT_SVA: u32 = 3;

    /// `IOASID_HWPT_NEST_PARENT`
    pub const HWPT_NEST_PARENT: u32 = 1 << 0;
    /// `IOASID_HWPT_DIRTY_TRACKING`
    pub const HWPT_DIRTY_TRACKING: u32 = 1 << 1;
    /// `IOASID_HWPT_PASID`
    pub const HWPT_PASID: u32 = 1 << 2;
    /// `IOASID_HWPT_ZERO_IS_NONE`
    pub const HWPT_ZERO_IS_NONE: u32 = 1 << 3;

    /// `IOASID_ON_MISS_ABORT`
    pub const ON_MISS_ABORT: u32 = 0;
    /// `IOASID_ON_MISS_QUEUE`
    pub const ON_MISS_QUEUE: u32 = 1;
    /// `IOASID_ON_MISS_RESOLVE`
    pub const ON_MISS_RESOLVE: u32 = 2;

    /// `IOASID_GUEST_X86_64`
    pub const GUEST_X86_64: u32 = 0;
    /// `IOASID_GUEST_X86_64_5_LEVELS`
    pub const GUEST_X86_64_5_LEVELS: u32 = 1;
    /// `IOASID_GUEST_ARMV8_4K`
    pub const GUEST_ARMV8_4K: u32 = 2;
    /// `IOASID_GUEST_ARMV8_16K`
    pub const GUEST_ARMV8_16K: u32 = 3;
    /// `IOASID_GUEST_ARMV8_64K`
    pub const GUEST_ARMV8_64K: u32 = 4;
    /// `IOASID_GUEST_RISCV_SV39`
    pub const GUEST_RISCV_SV39: u32 = 5;
    /// `IOASID_GUEST_RISCV_SV48`
    pub const GUEST_RISCV_SV48: u32 = 6;
    /// `IOASID_GUEST_RISCV_SV57`
    pub const GUEST_RISCV_SV57: u32 = 7;

    /// `IOASID_GUEST_PASIDS_SMMUV3`
    pub const GUEST_PASIDS_SMMUV3: u32 = 0;
    /// `IOASID_GUEST_PASIDS_SMMUV3_4K`
    pub const GUEST_PASIDS_SMMUV3_4K: u32 = 1;
    /// `IOASID_GUEST_PASIDS_SMMUV3_64K`
    pub const GUEST_PASIDS_SMMUV3_64K: u32 = 2;
    /// `IOASID_GUEST_PASIDS_AMD`
    pub const GUEST_PASIDS_AMD: u32 = 3;
    /// `IOASID_GUEST_PASIDS_AMD_5_LEVELS`
    pub const GUEST_PASIDS_AMD_5_LEVELS: u32 = 4;
    /// `IOASID_GUEST_PASIDS_RISCV`
    pub const GUEST_PASIDS_RISCV: u32 = 5;

    /// `IOASID_WITHOUT_PASID_REFUSED`
    pub const WITHOUT_PASID_REFUSED: u32 = 0;
    /// `IOASID_WITHOUT_PASID_ENTRY_ZERO`
    pub const WITHOUT_PASID_ENTRY_ZERO: u32 = 1;
    /// `IOASID_WITHOUT_PASID_BYPASS`
    pub const WITHOUT_PASID_BYPASS: u32 = 2;

    /// `IOASID_INVALIDATE_ALL`
    pub const INVALIDATE_ALL: u32 = 0;
    /// `IOASID_INVALIDATE_RANGE`
    pub const INVALIDATE_RANGE: u32 = 1;
    /// `IOASID_INVALIDATE_PASID`
    pub const INVALIDATE_PASID: u32 = 2;

    /// `IOASID_INVALIDATE_PASID_VALID`
    pub const INVALIDATE_PASID_VALID: u32 = 1 << 0;

    /// `IOASID_PRESENCE_FAULT`
    pub const PRESENCE_FAULT: u32 = 0;
    /// `IOASID_PRESENCE_POPULATE`
    pub const PRESENCE_POPULATE: u32 = 1;

    /// `IOASID_COPY_TO`: writes; without it, reads
    pub const COPY_TO: u32 = 1 << 0;
    /// `IOASID_COPY_DEVICE`: id is a device; without it, a page table
    pub const COPY_DEVICE: u32 = 1 << 1;
    /// `IOASID_COPY_PASID`: COPY_DEVICE: with a PASID
    pub const COPY_PASID: u32 = 1 << 2;

    /// `IOASID_ENQCMD_UNBIND`
    pub const ENQCMD_UNBIND: u32 = 1 << 0;
}

/// `struct ioasid_pasid_alloc`: a PASID for this context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The lowest that will do.
    pub min: u32,
    /// The highest that will do.
    pub max: u32,
    /// Out: which.
    pub out_pasid: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(PasidAlloc = "ioasid_pasid_alloc", 24, { size: 0, flags: 4, min: 8, max: 12, out_pasid: 16, reserved: 20 });

/// `struct ioasid_pasid_free`: gives a PASID back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PasidFree {
    /// Size of this structure.
    pub size: u32,
    /// The PASID.
    pub pasid: u32,
}
layout!(PasidFree = "ioasid_pasid_free", 8, { size: 0, pasid: 4 });

/// `struct ioasid_park`: destroys an object although devices may use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Park {
    /// Size of this structure.
    pub size: u32,
    /// The object.
    pub id: u32,
}
layout!(Park = "ioasid_park", 8, { size: 0, id: 4 });

/// `struct ioasid_hwpt_alloc`: a page table of any kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptAlloc {
    /// Size of this structure.
    pub size: u32,
    /// `enum ioasid_hwpt_flags`
    pub flags: u32,
    /// enum ioasid_hwpt_kind.
    pub kind: u32,
    /// PAGING: the device whose IOMMU walks it.
    pub dev_id: u32,
    /// PAGING: the IOAS; NESTED, GUEST_PASIDS: the parent.
    pub pt_id: u32,
    /// SVA: the process.
    pub pidfd: i32,
    /// NESTED, GUEST_PASIDS.
    pub format: u32,
    /// enum ioasid_on_miss.
    pub on_miss: u32,
    /// ON_MISS_QUEUE.
    pub fault_id: u32,
    /// GUEST_PASIDS: of AMD's and RISC-V's.
    pub levels: u32,
    /// NESTED, GUEST_PASIDS: guest-physical.
    pub root: u64,
    /// GUEST_PASIDS.
    pub pasid_bits: u32,
    /// GUEST_PASIDS: enum ioasid_without_pasid.
    pub without_pasid: u32,
    /// Out: the page table.
    pub out_hwpt_id: u32,
    /// Must be 0.
    pub reserved: u32,
}
layout!(HwptAlloc = "ioasid_hwpt_alloc", 64, {
    size: 0, flags: 4, kind: 8, dev_id: 12, pt_id: 16, pidfd: 20, format: 24, on_miss: 28, fault_id: 32, levels: 36, root: 40, pasid_bits: 48, without_pasid: 52, out_hwpt_id: 56, reserved: 60,
});

/// `struct ioasid_hwpt_invalidate`: forgets what a guest changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HwptInvalidate {
    /// Size of this structure.
    pub size: u32,
    /// `enum ioasid_invalidate_flags`
    pub flags: u32,
    /// The nested page table.
    pub hwpt_id: u32,
    /// enum ioasid_invalidate_scope.
    pub scope: u32,
    /// SCOPE_PASID; without the flag, what has none.
    pub pasid: u32,
    /// Must be 0.
    pub reserved: u32,
    /// SCOPE_RANGE.
    pub start: u64,
    /// Its last address, inclusive.
    pub last: u64,
}
layout!(HwptInvalidate = "ioasid_hwpt_invalidate", 40, {
    size: 0, flags: 4, hwpt_id: 8, scope: 12, pasid: 16, reserved: 20, start: 24, last: 32,
});

/// `struct ioasid_fault_queue_alloc`: a fault queue with a depth and a time-out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct FaultQueueAlloc {
    /// Size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Groups that wait at a time.
    pub depth: u32,
    /// How long one waits.
    pub timeout_ms: u32,
    /// Out: the queue.
    pub out_fault_id: u32,
    /// Out: its descriptor.
    pub out_fault_fd: u32,
}
layout!(FaultQueueAlloc = "ioasid_fault_queue_alloc", 24, {
    size: 0, flags: 4, depth: 8, timeout_ms: 12, out_fault_id: 16, out_fault_fd: 20,
});

/// `struct ioasid_fault_queue_get`: what became of groups that nobody answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct FaultQueueGet {
    /// Size of this structure.
    pub size: u32,
    /// The queue.
    pub fault_id: u32,
    /// Out: groups that found it full.
    pub out_overflowed: u64,
    /// Out: groups that waited too long.
    pub out_timed_out: u64,
}
layout!(FaultQueueGet = "ioasid_fault_queue_get", 24, { size: 0, fault_id: 4, out_overflowed: 8, out_timed_out: 16 });

/// `struct ioasid_ioas_presence`: makes devices fault, or brings memory in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoasPresence {
    /// Size of this structure.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// enum ioasid_presence_op.
    pub op: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Where.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// POPULATE: bytes that were brought in.
    pub out_length: u64,
}
layout!(IoasPresence = "ioasid_ioas_presence", 40, {
    size: 0, ioas_id: 4, op: 8, reserved: 12, iova: 16, length: 24, out_length: 32,
});

/// `struct ioasid_copy`: reads or writes as a device would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Copy {
    /// Size of this structure.
    pub size: u32,
    /// `enum ioasid_copy_flags`
    pub flags: u32,
    /// The object.
    pub id: u32,
    /// The PASID.
    pub pasid: u32,
    /// Where.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// The program's memory.
    pub user_va: u64,
}
layout!(Copy = "ioasid_copy", 40, { size: 0, flags: 4, id: 8, pasid: 12, iova: 16, length: 24, user_va: 32 });

/// `struct ioasid_enqcmd`: what the calling process's ENQCMD puts on the bus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Enqcmd {
    /// Size of this structure.
    pub size: u32,
    /// `enum ioasid_enqcmd_flags`
    pub flags: u32,
    /// The process's own: its IA32_PASID.
    pub number: u32,
    /// Allocated in this context.
    pub pasid: u32,
}
layout!(Enqcmd = "ioasid_enqcmd", 16, { size: 0, flags: 4, number: 8, pasid: 12 });

const LAYOUTS: &[Layout] = &[
    PasidAlloc::LAYOUT,
    PasidFree::LAYOUT,
    Park::LAYOUT,
    HwptAlloc::LAYOUT,
    HwptInvalidate::LAYOUT,
    FaultQueueAlloc::LAYOUT,
    FaultQueueGet::LAYOUT,
    IoasPresence::LAYOUT,
    Copy::LAYOUT,
    Enqcmd::LAYOUT,
];

/// What of the header is here.
pub(crate) const HEADER: Header = Header { path: "include/ioasid.h", layouts: &[LAYOUTS], constants: &[CONSTANTS] };
