/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* IOASID_HWPT_ALLOC of a process, and IOASID_COPY through it. (examples/dsa has a device do it, with IOASID_ENQCMD.) */
#include "common.h"
#include <sys/wait.h>

int main(void)
{
	struct machine m = open_machine();
	uint64_t *secret = malloc(1 << 20), word = 0, answer = 7;
	int ready[2];

	/* A child with something of its own, where this process has something else. */
	CHECK(pipe(ready) == 0);
	*secret = 1;
	pid_t child = fork();
	if (child == 0) {
		*secret = 2;
		(void)!write(ready[1], "r", 1);
		while (*(volatile uint64_t *)secret == 2)
			;
		_exit(*secret == answer ? 0 : 1);
	}
	CHECK(child > 0 && read(ready[0], &word, 1) == 1);

	struct ioasid_hwpt_alloc sva = {
		.size = sizeof(sva), .kind = IOASID_HWPT_SVA, .pidfd = syscall(SYS_pidfd_open, child, 0),
	};
	CHECK(sva.pidfd >= 0);
	DO(m.iommu, IOASID_HWPT_ALLOC, &sva);
	CHECK(copy_word(&m, 0, sva.out_hwpt_id, 0, (uintptr_t)secret, &word) == 0 && word == 2 && *secret == 1);
	printf("page table %u is process %d: %lu at %p, where this process has %lu\n",
	       sva.out_hwpt_id, child, word, (void *)secret, *secret);

	/* What it does not map is not there, and what it may not write is not written. */
	CHECK(copy_word(&m, 0, sva.out_hwpt_id, 0, 0x10, &word) == EFAULT);
	CHECK(copy_word(&m, IOASID_COPY_TO, sva.out_hwpt_id, 0, (uintptr_t)main & ~7ul, &word) == EFAULT);
	printf("its protections hold\n");

	/* It ends with the process. */
	int status = 0;
	CHECK(copy_word(&m, IOASID_COPY_TO, sva.out_hwpt_id, 0, (uintptr_t)secret, &answer) == 0);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(copy_word(&m, 0, sva.out_hwpt_id, 0, (uintptr_t)secret, &word) == EFAULT);
	FAILS(m.iommu, IOASID_HWPT_ALLOC, &sva, ESRCH);
	printf("written, and read by the process; with its end, nothing is there\n");
	destroy(&m, sva.out_hwpt_id);
	destroy(&m, m.ioas_id);
	return 0;
}
