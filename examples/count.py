# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drives the device of counter.py: maps memory, rings three times, waits for each interrupt, and reads what came by DMA."""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

REGION_INFO, SET_IRQS, ATTACH, BIND = 0x3B6C, 0x3B6E, 0x3B77, 0x3B76
IOAS_ALLOC, IOAS_MAP = 0x3B81, 0x3B85
EVENTFD_TRIGGER, MSI, CONFIG = 4 | 32, 1, 7
IOVA = 0x10000


def ioctl(file, number, layout, *fields):
    """A request whose first field is its own size; returns the fields as they are afterwards."""
    request = bytearray(struct.pack(layout, struct.calcsize(layout), *fields))
    fcntl.ioctl(file, number, request)
    return struct.unpack(layout, request)


def region(device, index):
    return ioctl(device, REGION_INFO, "IIIIQQ", 0, index, 0, 0, 0)[5]


def main():
    iommu = os.open("/dev/iommu", os.O_RDWR)
    device = os.open("/dev/vfio/devices/" + sorted(os.listdir("/dev/vfio/devices"))[0], os.O_RDWR)
    ioctl(device, BIND, "IIiI", 0, iommu, 0)
    ioas = ioctl(iommu, IOAS_ALLOC, "III", 0, 0)[2]
    ioctl(device, ATTACH, "III", 0, ioas)

    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ioctl(iommu, IOAS_MAP, "IIIIQQQ", 1 | 2 | 4, ioas, 0, address, 4096, IOVA)  # at this IOVA, to be read and written

    counter = os.eventfd(0)
    ioctl(device, SET_IRQS, "IIIIIi", EVENTFD_TRIGGER, MSI, 0, 1, counter)
    os.pwrite(device, struct.pack("<H", 6), region(device, CONFIG) + 4)  # memory, and bus master
    bar = region(device, 0)
    os.pwrite(device, struct.pack("<Q", IOVA + 0x100), bar + 8)
    for _ in range(3):
        os.pwrite(device, struct.pack("<Q", 1), bar + 16)
        os.eventfd_read(counter)
        print("interrupted, memory has", struct.unpack_from("<Q", memory, 0x100)[0])
    print("the register says", struct.unpack("<Q", os.pread(device, 8, bar))[0])


if __name__ == "__main__":
    sys.exit(main())
