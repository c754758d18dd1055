/* Copies in a loop with DPDK's dmadev API, on every DMA device that is ours, and prints how fast: Debian 12 has no
   dpdk-test-dma-perf. Each size is copied for a fifth of a second, with up to 32 copies under way; what arrives is
   compared. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_dmadev.h>
#include <rte_eal.h>
#include <rte_malloc.h>

#define LARGEST (1u << 20)
#define BURST 32

static int measure(int16_t dev, const char *name)
{
	struct rte_dma_info info;
	struct rte_dma_conf conf = { .nb_vchans = 1 };
	struct rte_dma_vchan_conf vchan = { .direction = RTE_DMA_DIR_MEM_TO_MEM, .nb_desc = 256 };
	uint8_t *source = rte_malloc(NULL, LARGEST, 4096), *target = rte_malloc(NULL, LARGEST, 4096);
	uint32_t size;

	if (!source || !target || rte_dma_info_get(dev, &info))
		return 1;
	if (vchan.nb_desc > info.max_desc)
		vchan.nb_desc = info.max_desc;
	if (rte_dma_configure(dev, &conf) || rte_dma_vchan_setup(dev, 0, &vchan) || rte_dma_start(dev))
		return 1;
	for (size = 256; size <= LARGEST; size *= 16) {
		uint64_t begin = rte_get_timer_cycles(), end = begin + rte_get_timer_hz() / 5, now;
		uint64_t submitted = 0, completed = 0;
		bool error = false;

		memset(source, (int)(size >> 8) + dev + 1, size);
		memset(target, 0, size);
		do {
			while (submitted - completed < BURST &&
			       rte_dma_copy(dev, 0, rte_malloc_virt2iova(source), rte_malloc_virt2iova(target), size, 0) >= 0)
				submitted++;
			rte_dma_submit(dev, 0);
			completed += rte_dma_completed(dev, 0, BURST, NULL, &error);
			now = rte_get_timer_cycles();
		} while (now < end && !error);
		while (completed < submitted && !error)
			completed += rte_dma_completed(dev, 0, BURST, NULL, &error);
		now = rte_get_timer_cycles();
		if (error || !completed || memcmp(source, target, size)) {
			printf("%-20s %8" PRIu32 " bytes: failed\n", name, size);
			return 1;
		}
		printf("%-20s %8" PRIu32 " bytes  %8.2f GB/s  %9.0f copies/s\n", name, size,
		       (double)completed * size / (now - begin) * rte_get_timer_hz() / 1e9,
		       (double)completed / (now - begin) * rte_get_timer_hz());
	}
	rte_dma_stop(dev);
	rte_free(source);
	rte_free(target);
	return 0;
}

int main(int argc, char **argv)
{
	int16_t dev;
	int failed = 0, measured = 0;

	if (rte_eal_init(argc, argv) < 0)
		return 1;
	RTE_DMA_FOREACH_DEV(dev) {
		struct rte_dma_info info;

		if (rte_dma_info_get(dev, &info) || strncmp(info.dev_name, "0001:00:", 8))
			continue;
		failed |= measure(dev, info.dev_name);
		measured++;
	}
	rte_eal_cleanup();
	return failed || !measured;
}
