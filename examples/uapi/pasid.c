/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* IOASID_PASID_ALLOC, IOASID_PASID_FREE, IOASID_PARK: what is destroyed while a device may use it. */
#include "common.h"

int main(void)
{
	struct machine m = open_machine();
	uint64_t *memory = map_memory(&m, 0x10000, 1), word = 0;
	const __u32 by_pasid = IOASID_COPY_DEVICE | IOASID_COPY_PASID;

	/* A PASID for the device, of those from 5 to 6. */
	struct ioasid_pasid_alloc alloc = { .size = sizeof(alloc), .min = 5, .max = 6 };
	DO(m.iommu, IOASID_PASID_ALLOC, &alloc);
	__u32 pasid = alloc.out_pasid;
	printf("PASID %u allocated\n", pasid);
	attach(&m, pasid, m.ioas_id);
	memory[0] = 42;
	CHECK(copy_word(&m, by_pasid, m.dev_id, pasid, 0x10000, &word) == 0 && word == 42);
	printf("the device reads %lu with it\n", word);

	/* Freed: nothing goes by it any more, and the number waits for the device. */
	struct ioasid_pasid_free free = { .size = sizeof(free), .pasid = pasid };
	DO(m.iommu, IOASID_PASID_FREE, &free);
	CHECK(copy_word(&m, by_pasid, m.dev_id, pasid, 0x10000, &word) != 0);
	alloc.min = alloc.max = pasid;
	FAILS(m.iommu, IOASID_PASID_ALLOC, &alloc, ENOSPC);
	FAILS(m.iommu, IOASID_PASID_FREE, &free, ENOENT);
	printf("freed: parked, as the device has it still\n");
	detach(&m, pasid);
	DO(m.iommu, IOASID_PASID_ALLOC, &alloc);
	printf("detached: the number is allocated again\n");

	/* A page table, which IOMMU_DESTROY leaves alone as long as a device uses it. */
	struct ioasid_hwpt_alloc table = {
		.size = sizeof(table), .kind = IOASID_HWPT_PAGING, .dev_id = m.dev_id, .pt_id = m.ioas_id,
	};
	DO(m.iommu, IOASID_HWPT_ALLOC, &table);
	attach(&m, 0, table.out_hwpt_id);
	struct iommu_destroy gone = { .size = sizeof(gone), .id = table.out_hwpt_id };
	FAILS(m.iommu, IOMMU_DESTROY, &gone, EBUSY);
	struct ioasid_park park = { .size = sizeof(park), .id = table.out_hwpt_id };
	DO(m.iommu, IOASID_PARK, &park);
	CHECK(copy_word(&m, IOASID_COPY_DEVICE, m.dev_id, 0, 0x10000, &word) != 0);
	FAILS(m.iommu, IOMMU_DESTROY, &gone, ENOENT);
	printf("page table %u parked: the device reaches nothing by it\n", table.out_hwpt_id);
	detach(&m, 0);
	destroy(&m, m.ioas_id);
	return 0;
}
