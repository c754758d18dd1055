"""Reads a port nine times, and counts the interrupts: the device has one at every third read. On plain system calls."""

import fcntl
import os
import struct

REGION_INFO, SET_IRQS = 0x3B6C, 0x3B6E
BIND_IOMMUFD = 0x3B76
PORTS, INTX = 2, 0
NONE, EVENTFD, UNMASK, TRIGGER = 1, 4, 16, 32

iommu = os.open("/dev/iommu", os.O_RDWR)
name = os.listdir("/dev/vfio/devices")[0]
device = os.open(f"/dev/vfio/devices/{name}", os.O_RDWR)
fcntl.ioctl(device, BIND_IOMMUFD, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))

info = bytearray(struct.pack("IIIIQQ", 32, 0, PORTS, 0, 0, 0))
fcntl.ioctl(device, REGION_INFO, info)
_, flags, _, _, size, offset = struct.unpack("IIIIQQ", info)
assert (flags, size) == (3, 256), (flags, size)  # read and write, and not to be mapped

counter = os.eventfd(0, os.EFD_NONBLOCK)
fcntl.ioctl(device, SET_IRQS, bytearray(struct.pack("IIIIIi", 24, EVENTFD | TRIGGER, INTX, 0, 1, counter)))
reads, interrupts = [], 0
for _ in range(9):
    reads.append(os.pread(device, 1, offset)[0])
    if reads[-1]:
        while True:
            try:
                interrupts += os.eventfd_read(counter)
                break
            except BlockingIOError:
                pass
        fcntl.ioctl(device, SET_IRQS, bytearray(struct.pack("IIIII", 20, NONE | UNMASK, INTX, 0, 1)))
print("reads:", *reads)
print("interrupts:", interrupts)
