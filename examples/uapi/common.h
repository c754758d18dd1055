/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the programs share: what they need of <linux/iommufd.h> and <linux/vfio.h>, which are newer than some systems, and
 * opening a device. Each program says what it does, line by line, and ends with status 1 at the first surprise.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ioasid.h>

struct iommu_destroy { __u32 size, id; };
struct iommu_ioas_alloc { __u32 size, flags, out_ioas_id; };
struct iommu_ioas_map { __u32 size, flags, ioas_id, __reserved; __aligned_u64 user_va, length, iova; };
struct vfio_device_bind_iommufd { __u32 argsz, flags; __s32 iommufd; __u32 out_devid; };
struct vfio_device_attach_iommufd_pt { __u32 argsz, flags, pt_id, pasid; };
#define IOMMU_DESTROY _IO(';', 0x80)
#define IOMMU_IOAS_ALLOC _IO(';', 0x81)
#define IOMMU_IOAS_MAP _IO(';', 0x85)
#define IOMMU_MAP_READ_WRITE_FIXED 7
#define VFIO_DEVICE_BIND_IOMMUFD _IO(';', 118)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(';', 119)
#define VFIO_DEVICE_ATTACH_PASID 1
#define VFIO_DEVICE_DETACH_IOMMUFD_PT _IO(';', 120)

#define PAGE 4096ul

/* Ends the program with what went wrong, unless a claim holds. */
#define CHECK(claim) \
	do { \
		if (!(claim)) { \
			fprintf(stderr, "%s:%d: %s: errno %d (%s)\n", __FILE__, __LINE__, #claim, errno, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

/* A request that succeeds, and one that fails as it should. */
#define DO(fd, request, argument) CHECK(ioctl(fd, request, argument) == 0)
#define FAILS(fd, request, argument, error) CHECK(ioctl(fd, request, argument) == -1 && errno == (error))

struct machine {
	int iommu;
	int device;
	__u32 dev_id;
	__u32 ioas_id;
};

/* The first VFIO device there is, bound to a context that has an address space. */
static inline struct machine open_machine(void)
{
	struct machine m = { .iommu = open("/dev/iommu", O_RDWR) };
	DIR *devices = opendir("/dev/vfio/devices");
	struct dirent *entry = NULL;
	char path[300];

	if (m.iommu < 0 || !devices) {
		fprintf(stderr, "no /dev/iommu: run me as `ioasid run --device dsa -- PROGRAM`\n");
		exit(1);
	}
	while ((entry = readdir(devices)) && entry->d_name[0] == '.')
		;
	CHECK(entry);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
	closedir(devices);
	m.device = open(path, O_RDWR);
	CHECK(m.device >= 0);
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = m.iommu };
	DO(m.device, VFIO_DEVICE_BIND_IOMMUFD, &bind);
	m.dev_id = bind.out_devid;
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };
	DO(m.iommu, IOMMU_IOAS_ALLOC, &ioas);
	m.ioas_id = ioas.out_ioas_id;
	return m;
}

/* Shared memory of so many pages, mapped at an IOVA. */
static inline uint64_t *map_memory(struct machine *m, __u64 iova, size_t pages)
{
	void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	struct iommu_ioas_map map = {
		.size = sizeof(map), .flags = IOMMU_MAP_READ_WRITE_FIXED, .ioas_id = m->ioas_id,
		.user_va = (uintptr_t)at, .length = pages * PAGE, .iova = iova,
	};
	DO(m->iommu, IOMMU_IOAS_MAP, &map);
	return at;
}

static inline void destroy(struct machine *m, __u32 id)
{
	struct iommu_destroy request = { .size = sizeof(request), .id = id };
	DO(m->iommu, IOMMU_DESTROY, &request);
}

static inline void attach(struct machine *m, __u32 pasid, __u32 pt_id)
{
	struct vfio_device_attach_iommufd_pt request = {
		.argsz = sizeof(request), .flags = pasid ? VFIO_DEVICE_ATTACH_PASID : 0, .pt_id = pt_id, .pasid = pasid,
	};
	DO(m->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request);
}

static inline void detach(struct machine *m, __u32 pasid)
{
	struct { __u32 argsz, flags, pasid; } request = {
		.argsz = sizeof(request), .flags = pasid ? VFIO_DEVICE_ATTACH_PASID : 0, .pasid = pasid,
	};
	DO(m->device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &request);
}

/* One word, as a device would read or write it; 0, or an errno. */
static inline int copy_word(struct machine *m, __u32 flags, __u32 id, __u32 pasid, __u64 iova, uint64_t *word)
{
	struct ioasid_copy request = {
		.size = sizeof(request), .flags = flags, .id = id, .pasid = pasid,
		.iova = iova, .length = sizeof(*word), .user_va = (uintptr_t)word,
	};
	return ioctl(m->iommu, IOASID_COPY, &request) ? errno : 0;
}
