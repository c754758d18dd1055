// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Maps the registers of the first device, and reads one again and again: what a debugger or another tool is put on. */
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

volatile int reads;
static uint8_t *registers;

void read_register(volatile uint8_t *registers)
{
	if (registers[8] != 0x32) {
		puts("a register has another value");
		exit(1);
	}
	reads++;
}

static void map_registers(void)
{
	struct { uint32_t argsz, flags; int32_t iommufd; uint32_t devid; } bind = { .argsz = sizeof bind };
	struct vfio_region_info region = { .argsz = sizeof region };
	int iommu = open("/dev/iommu", O_RDWR), device = open("/dev/vfio/devices/vfio0", O_RDWR);

	bind.iommufd = iommu;
	if (ioctl(device, _IO(VFIO_TYPE, VFIO_BASE + 18), &bind) || ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region)) {
		perror("the device");
		exit(1);
	}
	registers = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);
	if (registers == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
}

#ifdef JAVA
#include <jni.h>

JNIEXPORT void JNICALL Java_Client_map(JNIEnv *env, jclass class)
{
	map_registers();
}

JNIEXPORT jint JNICALL Java_Client_read(JNIEnv *env, jclass class)
{
	return ((volatile uint8_t *)registers)[8];
}
#else
int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 3;

	setvbuf(stdout, NULL, _IONBF, 0);
	map_registers();
	/* One after the other, and then one now and then. */
	for (int n = 0; n < 2000; n++)
		read_register(registers);
	printf("mapped by %d\n", getpid());
	for (int n = 0; n < rounds; n++) {
		read_register(registers);
		usleep(10000);
	}
	puts("done");
}
#endif
