/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* IOASID_HWPT_ALLOC of a guest's page table and of a guest's table of PASIDs, and IOASID_HWPT_INVALIDATE. */
#include "common.h"

/* The guest's memory begins at guest-physical 0: 1 MiB. */
static uint64_t *guest;

static void put(uint64_t gpa, uint64_t word)
{
	guest[gpa / 8] = word;
}

int main(void)
{
	struct machine m = open_machine();
	uint64_t word = 0;

	guest = map_memory(&m, 0, 256);
	struct ioasid_hwpt_alloc parent = {
		.size = sizeof(parent), .kind = IOASID_HWPT_PAGING, .flags = IOASID_HWPT_NEST_PARENT | IOASID_HWPT_PASID,
		.dev_id = m.dev_id, .pt_id = m.ioas_id,
	};
	DO(m.iommu, IOASID_HWPT_ALLOC, &parent);

	/* A table as x86-64 has it, at 0x1000: IOVA 0x7000 is guest-physical 0x8000. */
	for (uint64_t level = 0; level < 3; level++)
		put(0x1000 + level * PAGE, (0x2000 + level * PAGE) | 7);
	put(0x4000 + 8 * 7, 0x8000 | 7);
	put(0x8000, 80);
	put(0x9000, 90);
	struct ioasid_hwpt_alloc nested = {
		.size = sizeof(nested), .kind = IOASID_HWPT_NESTED, .pt_id = parent.out_hwpt_id,
		.format = IOASID_GUEST_X86_64, .root = 0x1000,
	};
	DO(m.iommu, IOASID_HWPT_ALLOC, &nested);
	CHECK(copy_word(&m, 0, nested.out_hwpt_id, 0, 0x7000, &word) == 0 && word == 80);
	printf("x86-64: IOVA 0x7000 leads to %lu\n", word);

	/* The guest changes its table, and says so. */
	put(0x4000 + 8 * 7, 0x9000 | 7);
	struct ioasid_hwpt_invalidate forget = {
		.size = sizeof(forget), .hwpt_id = nested.out_hwpt_id, .scope = IOASID_INVALIDATE_RANGE,
		.start = 0x7000, .last = 0x7fff,
	};
	DO(m.iommu, IOASID_HWPT_INVALIDATE, &forget);
	CHECK(copy_word(&m, 0, nested.out_hwpt_id, 0, 0x7000, &word) == 0 && word == 90);
	printf("changed: it leads to %lu\n", word);

	/* A whole table of PASIDs as SMMUv3 has it, at 0x20000: PASID 3 has a table as Armv8 has it, at 0x30000. */
	for (uint64_t level = 0; level < 3; level++)
		put(0x30000 + level * PAGE, (0x31000 + level * PAGE) | 3);
	put(0x33000 + 8 * 7, 0x9000 | 1 << 10 | 1 << 6 | 3);
	put(0x20000 + 64 * 3, 1ul << 41 | 1ul << 31 | 16);
	put(0x20000 + 64 * 3 + 8, 0x30000);
	struct ioasid_hwpt_alloc pasids = {
		.size = sizeof(pasids), .kind = IOASID_HWPT_GUEST_PASIDS, .flags = IOASID_HWPT_ZERO_IS_NONE,
		.pt_id = parent.out_hwpt_id, .format = IOASID_GUEST_PASIDS_SMMUV3, .root = 0x20000, .pasid_bits = 4,
		.without_pasid = IOASID_WITHOUT_PASID_BYPASS,
	};
	DO(m.iommu, IOASID_HWPT_ALLOC, &pasids);
	attach(&m, 0, pasids.out_hwpt_id);
	const __u32 by_pasid = IOASID_COPY_DEVICE | IOASID_COPY_PASID;
	CHECK(copy_word(&m, by_pasid, m.dev_id, 3, 0x7000, &word) == 0 && word == 90);
	CHECK(copy_word(&m, by_pasid, m.dev_id, 4, 0x7000, &word) == EFAULT);
	CHECK(copy_word(&m, IOASID_COPY_DEVICE, m.dev_id, 0, 0x8000, &word) == 0 && word == 80);
	printf("SMMUv3: PASID 3 leads to 90, PASID 4 nowhere, and without one the address is the guest's own\n");

	/* It is for all PASIDs, and so attached without one. */
	struct vfio_device_attach_iommufd_pt wrong = {
		.argsz = sizeof(wrong), .flags = VFIO_DEVICE_ATTACH_PASID, .pt_id = pasids.out_hwpt_id, .pasid = 3,
	};
	FAILS(m.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &wrong, EINVAL);
	forget = (struct ioasid_hwpt_invalidate){
		.size = sizeof(forget), .flags = IOASID_INVALIDATE_PASID_VALID, .hwpt_id = pasids.out_hwpt_id,
		.scope = IOASID_INVALIDATE_PASID, .pasid = 3,
	};
	put(0x20000 + 64 * 3, 0);
	DO(m.iommu, IOASID_HWPT_INVALIDATE, &forget);
	CHECK(copy_word(&m, by_pasid, m.dev_id, 3, 0x7000, &word) == EFAULT);
	printf("taken away: PASID 3 leads nowhere\n");
	detach(&m, 0);
	destroy(&m, nested.out_hwpt_id);
	destroy(&m, pasids.out_hwpt_id);
	destroy(&m, parent.out_hwpt_id);
	destroy(&m, m.ioas_id);
	return 0;
}
