/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* IOASID_IOAS_PRESENCE, IOASID_FAULT_QUEUE_ALLOC, IOASID_FAULT_QUEUE_GET: memory that comes later. */
#include "common.h"

static __u32 table(struct machine *m, __u32 on_miss, __u32 fault_id)
{
	struct ioasid_hwpt_alloc alloc = {
		.size = sizeof(alloc), .kind = IOASID_HWPT_PAGING, .dev_id = m->dev_id, .pt_id = m->ioas_id,
		.on_miss = on_miss, .fault_id = fault_id,
	};
	DO(m->iommu, IOASID_HWPT_ALLOC, &alloc);
	return alloc.out_hwpt_id;
}

int main(void)
{
	struct machine m = open_machine();
	uint64_t *memory = map_memory(&m, 0x100000, 64), word = 0;

	struct ioasid_fault_queue_alloc queue = { .size = sizeof(queue), .depth = 16, .timeout_ms = 1000 };
	DO(m.iommu, IOASID_FAULT_QUEUE_ALLOC, &queue);
	__u32 refused = table(&m, IOASID_ON_MISS_ABORT, 0);
	__u32 asked = table(&m, IOASID_ON_MISS_QUEUE, queue.out_fault_id);
	__u32 resolved = table(&m, IOASID_ON_MISS_RESOLVE, 0);

	/* The memory is mapped, and its first half makes devices fault. */
	struct ioasid_ioas_presence presence = {
		.size = sizeof(presence), .ioas_id = m.ioas_id, .op = IOASID_PRESENCE_FAULT,
		.iova = 0x100000, .length = 32 * PAGE,
	};
	DO(m.iommu, IOASID_IOAS_PRESENCE, &presence);
	memory[0] = 11;
	memory[32 * PAGE / 8] = 12;
	CHECK(copy_word(&m, 0, refused, 0, 0x100000 + 32 * PAGE, &word) == 0 && word == 12);
	CHECK(copy_word(&m, 0, refused, 0, 0x100000, &word) == EFAULT);
	CHECK(copy_word(&m, 0, asked, 0, 0x100000, &word) == EAGAIN);
	printf("one table refuses, one would have a device wait for whoever reads descriptor %d\n", queue.out_fault_fd);

	/* The third brings in what is needed, for all tables of the address space. */
	CHECK(copy_word(&m, 0, resolved, 0, 0x100000, &word) == 0 && word == 11);
	CHECK(copy_word(&m, 0, refused, 0, 0x100000, &word) == 0 && word == 11);
	presence.op = IOASID_PRESENCE_POPULATE;
	DO(m.iommu, IOASID_IOAS_PRESENCE, &presence);
	printf("one brought %llu bytes in by itself, and %llu were asked for\n",
	       32 * PAGE - presence.out_length, presence.out_length);
	CHECK(presence.out_length > 0 && presence.out_length < 32 * PAGE);

	struct ioasid_fault_queue_get get = { .size = sizeof(get), .fault_id = queue.out_fault_id };
	DO(m.iommu, IOASID_FAULT_QUEUE_GET, &get);
	printf("the queue lost %llu groups, and %llu waited too long\n", get.out_overflowed, get.out_timed_out);
	CHECK(get.out_overflowed == 0 && get.out_timed_out == 0);

	/* What is wrong is said. */
	presence.iova += 1;
	FAILS(m.iommu, IOASID_IOAS_PRESENCE, &presence, EINVAL);
	presence.iova = 0x900000;
	FAILS(m.iommu, IOASID_IOAS_PRESENCE, &presence, ENOENT);
	destroy(&m, refused);
	destroy(&m, asked);
	destroy(&m, resolved);
	close(queue.out_fault_fd);
	destroy(&m, queue.out_fault_id);
	destroy(&m, m.ioas_id);
	return 0;
}
