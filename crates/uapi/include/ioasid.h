/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Requests on /dev/iommu that Linux does not have: PASIDs, page tables of processes and guests, what happens on a miss.
 * They go with <linux/iommufd.h>, whose rules hold here too. docs/uapi.md explains each, with its errors and an example.
 */
#ifndef IOASID_H
#define IOASID_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IOASID_TYPE (';')

enum {
	IOASID_CMD_BASE = 0xc0,
	IOASID_CMD_PASID_ALLOC = 0xc0,
	IOASID_CMD_PASID_FREE = 0xc1,
	IOASID_CMD_PARK = 0xc2,
	IOASID_CMD_HWPT_ALLOC = 0xc3,
	IOASID_CMD_HWPT_INVALIDATE = 0xc4,
	IOASID_CMD_FAULT_QUEUE_ALLOC = 0xc5,
	IOASID_CMD_FAULT_QUEUE_GET = 0xc6,
	IOASID_CMD_IOAS_PRESENCE = 0xc7,
	IOASID_CMD_COPY = 0xc8,
	IOASID_CMD_ENQCMD = 0xc9,
};

/* A PASID from min to max that nobody has, for this context. */
struct ioasid_pasid_alloc {
	__u32 size;
	__u32 flags;		/* 0 */
	__u32 min;
	__u32 max;
	__u32 out_pasid;
	__u32 __reserved;
};
#define IOASID_PASID_ALLOC _IO(IOASID_TYPE, IOASID_CMD_PASID_ALLOC)

/* DMA with it stops at once; the number waits for the last who holds it. */
struct ioasid_pasid_free {
	__u32 size;
	__u32 pasid;
};
#define IOASID_PASID_FREE _IO(IOASID_TYPE, IOASID_CMD_PASID_FREE)

/* As IOMMU_DESTROY, also of a page table that devices are attached to. */
struct ioasid_park {
	__u32 size;
	__u32 id;
};
#define IOASID_PARK _IO(IOASID_TYPE, IOASID_CMD_PARK)

enum ioasid_hwpt_kind {
	IOASID_HWPT_PAGING = 0,		/* of an IOAS */
	IOASID_HWPT_NESTED = 1,		/* a guest's page table */
	IOASID_HWPT_GUEST_PASIDS = 2,	/* a guest's table of PASIDs */
	IOASID_HWPT_SVA = 3,		/* a process */
};

enum ioasid_hwpt_flags {
	IOASID_HWPT_NEST_PARENT = 1 << 0,
	IOASID_HWPT_DIRTY_TRACKING = 1 << 1,
	IOASID_HWPT_PASID = 1 << 2,
	IOASID_HWPT_ZERO_IS_NONE = 1 << 3,
};

enum ioasid_on_miss {
	IOASID_ON_MISS_ABORT = 0,
	IOASID_ON_MISS_QUEUE = 1,
	IOASID_ON_MISS_RESOLVE = 2,
};

enum ioasid_guest_format {
	IOASID_GUEST_X86_64 = 0,
	IOASID_GUEST_X86_64_5_LEVELS = 1,
	IOASID_GUEST_ARMV8_4K = 2,
	IOASID_GUEST_ARMV8_16K = 3,
	IOASID_GUEST_ARMV8_64K = 4,
	IOASID_GUEST_RISCV_SV39 = 5,
	IOASID_GUEST_RISCV_SV48 = 6,
	IOASID_GUEST_RISCV_SV57 = 7,
};

enum ioasid_guest_pasids_format {
	IOASID_GUEST_PASIDS_SMMUV3 = 0,
	IOASID_GUEST_PASIDS_SMMUV3_4K = 1,
	IOASID_GUEST_PASIDS_SMMUV3_64K = 2,
	IOASID_GUEST_PASIDS_AMD = 3,
	IOASID_GUEST_PASIDS_AMD_5_LEVELS = 4,
	IOASID_GUEST_PASIDS_RISCV = 5,
};

enum ioasid_without_pasid {
	IOASID_WITHOUT_PASID_REFUSED = 0,
	IOASID_WITHOUT_PASID_ENTRY_ZERO = 1,
	IOASID_WITHOUT_PASID_BYPASS = 2,
};

struct ioasid_hwpt_alloc {
	__u32 size;
	__u32 flags;		/* enum ioasid_hwpt_flags */
	__u32 kind;		/* enum ioasid_hwpt_kind */
	__u32 dev_id;		/* PAGING: the device whose IOMMU walks it */
	__u32 pt_id;		/* PAGING: the IOAS; NESTED, GUEST_PASIDS: the parent */
	__s32 pidfd;		/* SVA: the process */
	__u32 format;		/* NESTED, GUEST_PASIDS */
	__u32 on_miss;		/* enum ioasid_on_miss */
	__u32 fault_id;		/* ON_MISS_QUEUE */
	__u32 levels;		/* GUEST_PASIDS: of AMD's and RISC-V's */
	__aligned_u64 root;	/* NESTED, GUEST_PASIDS: guest-physical */
	__u32 pasid_bits;	/* GUEST_PASIDS */
	__u32 without_pasid;	/* GUEST_PASIDS: enum ioasid_without_pasid */
	__u32 out_hwpt_id;
	__u32 __reserved;
};
#define IOASID_HWPT_ALLOC _IO(IOASID_TYPE, IOASID_CMD_HWPT_ALLOC)

enum ioasid_invalidate_scope {
	IOASID_INVALIDATE_ALL = 0,
	IOASID_INVALIDATE_RANGE = 1,
	IOASID_INVALIDATE_PASID = 2,
};

enum ioasid_invalidate_flags {
	IOASID_INVALIDATE_PASID_VALID = 1 << 0,
};

/* A guest changed its tables. */
struct ioasid_hwpt_invalidate {
	__u32 size;
	__u32 flags;		/* enum ioasid_invalidate_flags */
	__u32 hwpt_id;
	__u32 scope;		/* enum ioasid_invalidate_scope */
	__u32 pasid;		/* SCOPE_PASID; without the flag, what has none */
	__u32 __reserved;
	__aligned_u64 start;	/* SCOPE_RANGE */
	__aligned_u64 last;
};
#define IOASID_HWPT_INVALIDATE _IO(IOASID_TYPE, IOASID_CMD_HWPT_INVALIDATE)

/* As IOMMU_FAULT_QUEUE_ALLOC, with a depth and a time. 0: what that has. */
struct ioasid_fault_queue_alloc {
	__u32 size;
	__u32 flags;		/* 0 */
	__u32 depth;		/* groups that wait at a time */
	__u32 timeout_ms;	/* how long one waits */
	__u32 out_fault_id;
	__u32 out_fault_fd;
};
#define IOASID_FAULT_QUEUE_ALLOC _IO(IOASID_TYPE, IOASID_CMD_FAULT_QUEUE_ALLOC)

/* Groups that nobody answered. */
struct ioasid_fault_queue_get {
	__u32 size;
	__u32 fault_id;
	__aligned_u64 out_overflowed;
	__aligned_u64 out_timed_out;
};
#define IOASID_FAULT_QUEUE_GET _IO(IOASID_TYPE, IOASID_CMD_FAULT_QUEUE_GET)

enum ioasid_presence_op {
	IOASID_PRESENCE_FAULT = 0,
	IOASID_PRESENCE_POPULATE = 1,
};

/* Devices fault where something is mapped, or find it again. */
struct ioasid_ioas_presence {
	__u32 size;
	__u32 ioas_id;
	__u32 op;		/* enum ioasid_presence_op */
	__u32 __reserved;
	__aligned_u64 iova;
	__aligned_u64 length;
	__aligned_u64 out_length;	/* POPULATE: bytes that were brought in */
};
#define IOASID_IOAS_PRESENCE _IO(IOASID_TYPE, IOASID_CMD_IOAS_PRESENCE)

enum ioasid_copy_flags {
	IOASID_COPY_TO = 1 << 0,	/* writes; without it, reads */
	IOASID_COPY_DEVICE = 1 << 1,	/* id is a device; without it, a page table */
	IOASID_COPY_PASID = 1 << 2,	/* COPY_DEVICE: with a PASID */
};

/* Software reads or writes as a device would. */
struct ioasid_copy {
	__u32 size;
	__u32 flags;		/* enum ioasid_copy_flags */
	__u32 id;
	__u32 pasid;
	__aligned_u64 iova;
	__aligned_u64 length;
	__aligned_u64 user_va;
};
#define IOASID_COPY _IO(IOASID_TYPE, IOASID_CMD_COPY)

enum ioasid_enqcmd_flags {
	IOASID_ENQCMD_UNBIND = 1 << 0,
};

/* What the calling process's ENQCMD puts on the bus. */
struct ioasid_enqcmd {
	__u32 size;
	__u32 flags;		/* enum ioasid_enqcmd_flags */
	__u32 number;		/* the process's own: its IA32_PASID */
	__u32 pasid;		/* allocated in this context */
};
#define IOASID_ENQCMD _IO(IOASID_TYPE, IOASID_CMD_ENQCMD)

#endif
