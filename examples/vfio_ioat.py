# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A user-space driver for the Intel I/OAT DMA engine, in the standard library alone.

Read from top to bottom, this is how any user-space driver is written on Linux:

    /dev/iommu ──────────── Iommufd    the context: owns every object made through it
        │ IOAS_ALLOC
      Ioas ──── IOAS_MAP ── Mapping    an I/O address space, and memory in it
        ▲
        │ ATTACH_IOMMUFD_PT            what the device may reach is what is mapped here
        │
    /dev/vfio/devices/vfioN VfioDevice the device: bound to the context, then attached
        │ mmap                         its registers are memory: BAR 0
      Registers
        │ SET_IRQS ──────── Interrupt  its interrupts are an eventfd
        │
      Ioat                             the driver proper: a ring of descriptors

Each object undoes in `close()` what made it, and is a context manager, so that a `with` statement undoes all of it in
the opposite order. That order matters: the channel is stopped before its interrupt is disabled, the interrupt is
consumed before it is disabled, the device is detached before its mappings go, and the address space is destroyed only
when no device is attached to it (EBUSY otherwise).

Sources: linux/iommufd.h and linux/vfio.h for the ioctls, Intel's "CBDMA 3.2" register description for the engine.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import sys
import time
from collections import namedtuple
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

PAGE = mmap.PAGESIZE
RUN_ME = f"run me as `ioasid run --device ioat -- python3 {sys.argv[0]}`"

# ---------------------------------------------------------------------------------------------------------------------
# Errors: which call, what the kernel said, what to do about it
# ---------------------------------------------------------------------------------------------------------------------


class Failure(Exception):
    """A call that failed, in words that a person can act on."""


class DmaError(Failure):
    """The channel halted, as it does when its DMA is refused. `chanerr` is its error register."""

    def __init__(self, chanerr, status):
        self.chanerr = chanerr
        super().__init__(
            f"the channel halted: CHANERR {chanerr:#x} ({', '.join(chanerr_names(chanerr)) or 'no bit set'}), "
            f"CHANSTS {status:#x}"
        )


class TimedOut(Failure):
    """The completion did not come."""


@contextlib.contextmanager
def explained(call, advice=""):
    """Turns an OSError inside the block into a Failure that names the call."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno, error.errno)
        hint = f": {advice}" if advice else ""
        raise Failure(f"{call}: {os.strerror(error.errno)} ({name}){hint}") from error


class Closing:
    """A context manager that calls `close()`. Closing twice is allowed, as it is for files."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---------------------------------------------------------------------------------------------------------------------
# The ABI. Every structure begins with its own size, so that both sides can tell how much of it the other one knows
# ---------------------------------------------------------------------------------------------------------------------


def _io(number):
    """`_IO(';', number)` of linux/ioctl.h: iommufd and VFIO share the type ';' and carry no size in the number."""
    return ord(";") << 8 | number


def structure(name, size, *fields):
    """A ctypes structure, checked against the size that the kernel's header gives it."""
    made = type(name, (ctypes.Structure,), {"_fields_": list(fields)})
    assert ctypes.sizeof(made) == size, f"{name} has {ctypes.sizeof(made)} bytes, not {size}"
    return made


IOMMU_DESTROY = _io(0x80)
IOMMU_IOAS_ALLOC = _io(0x81)
IOMMU_IOAS_IOVA_RANGES = _io(0x84)
IOMMU_IOAS_MAP = _io(0x85)
IOMMU_IOAS_UNMAP = _io(0x86)

IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0
IOMMU_IOAS_MAP_WRITEABLE = 1 << 1
IOMMU_IOAS_MAP_READABLE = 1 << 2

iommu_destroy = structure("iommu_destroy", 8, ("size", c_uint32), ("id", c_uint32))
iommu_ioas_alloc = structure(
    "iommu_ioas_alloc", 12, ("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32)
)
iommu_iova_range = structure("iommu_iova_range", 16, ("start", c_uint64), ("last", c_uint64))
iommu_ioas_iova_ranges = structure(
    "iommu_ioas_iova_ranges", 32,
    ("size", c_uint32), ("ioas_id", c_uint32), ("num_iovas", c_uint32), ("reserved", c_uint32),
    ("allowed_iovas", c_uint64), ("out_iova_alignment", c_uint64),
)  # fmt: skip
iommu_ioas_map = structure(
    "iommu_ioas_map", 40,
    ("size", c_uint32), ("flags", c_uint32), ("ioas_id", c_uint32), ("reserved", c_uint32),
    ("user_va", c_uint64), ("length", c_uint64), ("iova", c_uint64),
)  # fmt: skip
iommu_ioas_unmap = structure(
    "iommu_ioas_unmap", 24, ("size", c_uint32), ("ioas_id", c_uint32), ("iova", c_uint64), ("length", c_uint64)
)

VFIO_DEVICE_GET_INFO = _io(100 + 7)
VFIO_DEVICE_GET_REGION_INFO = _io(100 + 8)
VFIO_DEVICE_GET_IRQ_INFO = _io(100 + 9)
VFIO_DEVICE_SET_IRQS = _io(100 + 10)
VFIO_DEVICE_BIND_IOMMUFD = _io(100 + 18)
VFIO_DEVICE_ATTACH_IOMMUFD_PT = _io(100 + 19)
VFIO_DEVICE_DETACH_IOMMUFD_PT = _io(100 + 20)

VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_CONFIG_REGION_INDEX = 7
VFIO_PCI_MSIX_IRQ_INDEX = 2

VFIO_DEVICE_FLAGS_PCI = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP = 1 << 2
VFIO_IRQ_SET_DATA_NONE = 1 << 0
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5

vfio_device_info = structure(
    "vfio_device_info", 24,
    ("argsz", c_uint32), ("flags", c_uint32), ("num_regions", c_uint32), ("num_irqs", c_uint32),
    ("cap_offset", c_uint32), ("pad", c_uint32),
)  # fmt: skip
vfio_region_info = structure(
    "vfio_region_info", 32,
    ("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("cap_offset", c_uint32),
    ("size", c_uint64), ("offset", c_uint64),
)  # fmt: skip
vfio_irq_info = structure(
    "vfio_irq_info", 16, ("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("count", c_uint32)
)
# The header's flexible array follows these 20 bytes; one eventfd is all that this driver puts there.
vfio_irq_set = structure(
    "vfio_irq_set", 24,
    ("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("start", c_uint32), ("count", c_uint32),
    ("eventfd", c_int32),
)  # fmt: skip
vfio_device_bind_iommufd = structure(
    "vfio_device_bind_iommufd", 24,
    ("argsz", c_uint32), ("flags", c_uint32), ("iommufd", c_int32), ("out_devid", c_uint32),
    ("token_uuid_ptr", c_uint64),
)  # fmt: skip
vfio_device_attach_iommufd_pt = structure(
    "vfio_device_attach_iommufd_pt", 16,
    ("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32), ("pasid", c_uint32),
)  # fmt: skip
vfio_device_detach_iommufd_pt = structure(
    "vfio_device_detach_iommufd_pt", 12, ("argsz", c_uint32), ("flags", c_uint32), ("pasid", c_uint32)
)


def call(fd, name, argument, advice=""):
    """One ioctl. Its first field, the size, is filled in here; the kernel's answer is in `argument` afterwards."""
    size = argument._fields_[0][0]
    if not getattr(argument, size):
        setattr(argument, size, ctypes.sizeof(argument))
    with explained(name, advice):
        fcntl.ioctl(fd, globals()[name], argument, True)
    return argument


# ---------------------------------------------------------------------------------------------------------------------
# Memory, and the I/O address space that it is mapped into
# ---------------------------------------------------------------------------------------------------------------------


class Memory(Closing):
    """Page-aligned memory of this process, zeroed. `kind`: shared, private (both anonymous) or memfd."""

    KINDS = ("shared", "private", "memfd")

    def __init__(self, size, kind="shared"):
        self.size = -(-size // PAGE) * PAGE
        with explained(f"mmap of {self.size} bytes, {kind}", "is there enough memory? try a smaller --size"):
            if kind == "memfd":
                fd = os.memfd_create("ioat")
                try:
                    os.ftruncate(fd, self.size)
                    self._map = mmap.mmap(fd, self.size)
                finally:
                    os.close(fd)
            else:
                flags = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
                self._map = mmap.mmap(-1, self.size, flags=flags | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(c_uint8.from_buffer(self._map))
        self.bytes = memoryview(self._map)

    def clear(self):
        ctypes.memset(self.address, 0, self.size)

    def close(self):
        self.bytes.release()
        self._map.close()


class Iommufd(Closing):
    """One open of /dev/iommu. Everything made through it dies with it, but a tidy program destroys what it made."""

    def __init__(self):
        with explained("open /dev/iommu", RUN_ME):
            self.fd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)

    def destroy(self, object_id):
        call(self.fd, "IOMMU_DESTROY", iommu_destroy(id=object_id), f"is object {object_id} still in use?")

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Ioas(Closing):
    """An I/O address space: the addresses (IOVA) that an attached device may use, and the memory behind them."""

    def __init__(self, iommufd):
        self.iommufd = iommufd
        self.id = call(iommufd.fd, "IOMMU_IOAS_ALLOC", iommu_ioas_alloc()).out_ioas_id
        self.mappings = []

    def ranges(self):
        """The IOVAs that every attached device can use, as [(start, last)], last inclusive."""
        table = (iommu_iova_range * 64)()
        query = iommu_ioas_iova_ranges(
            ioas_id=self.id, num_iovas=len(table), allowed_iovas=ctypes.addressof(table)
        )
        call(self.iommufd.fd, "IOMMU_IOAS_IOVA_RANGES", query, "more than 64 ranges? make the table larger")
        return [(r.start, r.last) for r in table[: query.num_iovas]]

    def map(self, memory, writeable=True):
        """Lets attached devices read `memory`, and write it too if `writeable`. The kernel chooses the IOVA."""
        return Mapping(self, memory, writeable)

    def never_mapped(self):
        """An IOVA that is allowed but that nothing was ever mapped at: 1 GiB above everything that is mapped."""
        wanted = max((m.iova + m.length for m in self.mappings), default=0) + (1 << 30)
        for start, last in self.ranges():
            candidate = max(start, wanted)
            if candidate + (1 << 20) <= last:
                return candidate
        raise Failure("IOMMU_IOAS_IOVA_RANGES: no allowed IOVA is free 1 GiB above the mappings")

    def close(self):
        if self.id is not None:
            self.iommufd.destroy(self.id)
            self.id = None


class Mapping(Closing):
    """Memory in an I/O address space. `iova` is the address that the device must be given for its first byte."""

    def __init__(self, ioas, memory, writeable):
        request = iommu_ioas_map(
            flags=IOMMU_IOAS_MAP_READABLE | (IOMMU_IOAS_MAP_WRITEABLE if writeable else 0),
            ioas_id=ioas.id,
            user_va=memory.address,
            length=memory.size,
        )
        call(ioas.iommufd.fd, "IOMMU_IOAS_MAP", request, "see `ulimit -l` if this is ENOMEM")
        self.ioas, self.memory, self.writeable = ioas, memory, writeable
        self.iova, self.length = request.iova, memory.size
        self.mapped = True
        ioas.mappings.append(self)

    def close(self):
        if self.mapped:
            # When this returns, no DMA to the range is in flight and none can start: the memory may be reused.
            call(
                self.ioas.iommufd.fd,
                "IOMMU_IOAS_UNMAP",
                iommu_ioas_unmap(ioas_id=self.ioas.id, iova=self.iova, length=self.length),
            )
            self.mapped = False


# ---------------------------------------------------------------------------------------------------------------------
# The device
# ---------------------------------------------------------------------------------------------------------------------

PciDevice = namedtuple("PciDevice", "bdf vendor device group cdev driver")


def _sysfs(bdf, name):
    with open(f"/sys/bus/pci/devices/{bdf}/{name}") as file:
        return file.read().strip()


def _link(bdf, name):
    """The name that a sysfs link ends in, such as the number of the IOMMU group, or "none"."""
    try:
        return os.path.basename(os.readlink(f"/sys/bus/pci/devices/{bdf}/{name}"))
    except OSError:
        return "none"


def find_device(vendor, device, bdf=None):
    """The PCI device at `bdf`, or else the first of that kind that VFIO has a character device for."""
    root = "/sys/bus/pci/devices"
    with explained(f"scan of {root}", RUN_ME):
        candidates = [bdf] if bdf else sorted(os.listdir(root))
    for name in candidates:
        with explained(f"read {root}/{name}/vendor", f"is there such a device? {RUN_ME}"):
            kind = int(_sysfs(name, "vendor"), 16), int(_sysfs(name, "device"), 16)
        if kind != (vendor, device):
            continue
        try:
            cdev = next((f for f in os.listdir(f"{root}/{name}/vfio-dev") if f.startswith("vfio")), None)
        except FileNotFoundError:
            continue  # its driver is another one
        if cdev:
            return PciDevice(
                name, vendor, device, _link(name, "iommu_group"), f"/dev/vfio/devices/{cdev}", _link(name, "driver")
            )
    where = f"at {bdf}" if bdf else f"in {root}"
    raise Failure(f"no device {vendor:04x}:{device:04x} bound to vfio-pci {where}: {RUN_ME}")


PCI_COMMAND = 0x04
PCI_COMMAND_MEMORY = 1 << 1
PCI_COMMAND_MASTER = 1 << 2
PCI_COMMAND_INTX_DISABLE = 1 << 10


class VfioDevice(Closing):
    """A device's character device, bound to a context. Closing it unbinds (and would detach, but see `attach`)."""

    def __init__(self, pci, iommufd):
        self.pci = pci
        with explained(f"open {pci.cdev}", RUN_ME):
            self.fd = os.open(pci.cdev, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Nothing but this works before the bind: until then, nobody has said who answers for the device's DMA.
            bind = vfio_device_bind_iommufd(iommufd=iommufd.fd)
            call(self.fd, "VFIO_DEVICE_BIND_IOMMUFD", bind, f"is another program using {pci.bdf} or its group?")
            self.id = bind.out_devid
            self.info = call(self.fd, "VFIO_DEVICE_GET_INFO", vfio_device_info())
            if not self.info.flags & VFIO_DEVICE_FLAGS_PCI:
                raise Failure(f"{pci.cdev} is not a PCI device (flags {self.info.flags:#x})")
            self.config = self.region(VFIO_PCI_CONFIG_REGION_INDEX)
        except BaseException:
            self.close()
            raise

    def region(self, index):
        return call(self.fd, "VFIO_DEVICE_GET_REGION_INFO", vfio_region_info(index=index))

    def irq(self, index):
        return call(self.fd, "VFIO_DEVICE_GET_IRQ_INFO", vfio_irq_info(index=index))

    def config_read(self, offset, width):
        """A field of PCI configuration space; `width` is 1, 2 or 4 bytes."""
        with explained(f"pread of configuration space at {offset:#x}"):
            return int.from_bytes(os.pread(self.fd, width, self.config.offset + offset), "little")

    def config_write(self, offset, width, value):
        with explained(f"pwrite of configuration space at {offset:#x}"):
            os.pwrite(self.fd, value.to_bytes(width, "little"), self.config.offset + offset)

    def enable(self):
        """Memory decoding, so that the BAR answers, and bus mastering, without which a device makes no DMA."""
        command = self.config_read(PCI_COMMAND, 2)
        wanted = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE
        self.config_write(PCI_COMMAND, 2, command | wanted)

    def attach(self, ioas):
        """From here on, the device's DMA is translated by `ioas`. Closing what is returned detaches it."""
        return Attachment(self, ioas)

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Attachment(Closing):
    """(device → address space). Once detached, the device reaches nothing at all."""

    def __init__(self, device, ioas):
        self.device = device
        request = vfio_device_attach_iommufd_pt(pt_id=ioas.id)
        call(device.fd, "VFIO_DEVICE_ATTACH_IOMMUFD_PT", request, f"the group {device.pci.group} must be free")

    def close(self):
        if self.device.fd is not None:
            call(self.device.fd, "VFIO_DEVICE_DETACH_IOMMUFD_PT", vfio_device_detach_iommufd_pt())


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Registers(Closing):
    """A BAR, mapped. Each read or write below is exactly one load or store of that width.

    Two traps for whoever does this in Python. Assigning to the `.value` of a ctypes integer *reads the register first*
    (bit fields and plain fields share the code), so registers are reached through memoryviews instead. And `mmap.mmap`
    compares the mapping with the file's size, which says nothing about a device, so the system call is made directly.
    """

    def __init__(self, device, index):
        region = device.region(index)
        if not region.flags & VFIO_REGION_INFO_FLAG_MMAP:
            raise Failure(f"BAR {index} of {device.pci.bdf} cannot be mapped (flags {region.flags:#x})")
        self.size = region.size
        with explained(f"mmap of BAR {index}, {region.size} bytes at offset {region.offset:#x}"):
            self._address = _libc.mmap(
                None, region.size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, device.fd, region.offset
            )
            if self._address == ctypes.c_void_p(-1).value:
                self._address = None
                raise OSError(ctypes.get_errno(), "mmap")
        raw = memoryview((c_uint8 * region.size).from_address(self._address)).cast("B")
        self._views = {1: raw, 2: raw.cast("H"), 4: raw.cast("I"), 8: raw.cast("Q")}

    def read(self, offset, width):
        return self._views[width][offset // width]

    def write(self, offset, width, value):
        self._views[width][offset // width] = value

    def close(self):
        if self._address is not None:
            self._views.clear()
            _libc.munmap(self._address, self.size)
            self._address = None


class Interrupt(Closing):
    """MSI-X vector 0, delivered to an eventfd: a counter that the kernel increments and a read sets to zero."""

    def __init__(self, device):
        self.device = device
        self.received = 0
        info = device.irq(VFIO_PCI_MSIX_IRQ_INDEX)
        if info.count == 0:
            raise Failure(f"{device.pci.bdf} has no MSI-X vector: use --wait poll")
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self.eventfd, select.POLLIN)
        try:
            self._set(VFIO_IRQ_SET_DATA_EVENTFD, 1)
        except BaseException:
            os.close(self.eventfd)
            raise

    def _set(self, data, count):
        request = vfio_irq_set(
            flags=data | VFIO_IRQ_SET_ACTION_TRIGGER,
            index=VFIO_PCI_MSIX_IRQ_INDEX,
            count=count,
            eventfd=self.eventfd,
        )
        request.argsz = ctypes.sizeof(request) if count else vfio_irq_set.eventfd.offset
        call(self.device.fd, "VFIO_DEVICE_SET_IRQS", request)

    def signalled(self, seconds):
        """Waits until the eventfd is readable, but leaves what is in it. False if the time ran out."""
        return bool(self._poll.poll(seconds * 1000))

    def drain(self):
        """Consumes every interrupt that has been signalled."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.received += os.eventfd_read(self.eventfd)

    def disable(self):
        if self.eventfd is not None:
            if self.device.fd is not None:
                self._set(VFIO_IRQ_SET_DATA_NONE, 0)
            os.close(self.eventfd)
            self.eventfd = None

    def close(self):
        if self.eventfd is not None:
            self.drain()
            self.disable()


# ---------------------------------------------------------------------------------------------------------------------
# The engine
#
#   BAR 0                              a descriptor, 64 bytes, in memory that is mapped into the device's address space
#   0x000 ┌ device ──────────────┐     0x00 size u32 │ control u32: bit 0 interrupt, bit 3 completion write, 24.. op
#         │ CHANCNT XFERCAP VER  │     0x08 source IOVA
#   0x080 ├ channel 0 ───────────┤     0x10 destination IOVA
#         │ CHANCTRL CHANSTS     │     0x18 IOVA of the next descriptor
#         │ CHANCMD  CHAINADDR   │     0x20 reserved, and room for the driver's own notes
#         │ DMACOUNT CHANCMP     │
#         │ CHANERR              │     the completion word, u64 at the IOVA in CHANCMP, written by the device:
#         └──────────────────────┘     IOVA of the descriptor that was finished last │ bits 2..0 channel status
#
# DMACOUNT is the number of descriptors handed over since CHAINADDR was set (modulo 65536). The engine runs from where
# it stopped until it has done that many, so the ring is linked once and CHAINADDR written once.
# ---------------------------------------------------------------------------------------------------------------------

IOAT_VENDOR, IOAT_DEVICE = 0x8086, 0x2021
IOAT_VERSIONS = (0x32, 0x33)

XFERCAP = 0x01  # u8: log2 of the largest transfer of one descriptor
INTRCTRL = 0x03  # u8
VER = 0x08  # u8
CHANNEL = 0x80
CHANCTRL = CHANNEL + 0x00  # u16
CHANCMD = CHANNEL + 0x04  # u8
DMACOUNT = CHANNEL + 0x06  # u16
CHANSTS = CHANNEL + 0x08  # u64
CHAINADDR = CHANNEL + 0x10  # u64
CHANCMP = CHANNEL + 0x18  # u64
CHANERR = CHANNEL + 0x28  # u32
CONFIG_DMAUNCERRSTS = 0x148  # u32, write 1 to clear, as the next
CONFIG_CHANERR_INT = 0x180

INTRCTRL_MASTER_INT_EN = 0x01
INTRCTRL_MSIX_VECTOR_CONTROL = 0x08
CHANCTRL_INT_REARM = 0x01
CHANCTRL_ERR_COMPLETION_EN = 0x04
CHANCTRL_ANY_ERR_ABORT_EN = 0x08
CHANCTRL_ERR_INT_EN = 0x10
CHANCMD_RESET = 0x20
CHANSTS_STATUS = 0x7
CHANSTS_HALTED = 0x3
DESCRIPTOR_INTERRUPT = 1 << 0
DESCRIPTOR_COMPLETION_WRITE = 1 << 3

CHANERR_BITS = (
    "source address", "destination address", "next address", "next descriptor alignment", "chain address",
    "channel command", "chipset data integrity", "DMA data integrity", "read data", "write data", "control",
    "length", "completion address", "interrupt configuration", "soft", "unaffiliated", "CRC or XOR P", "XOR Q",
    "descriptor count",
)  # fmt: skip
CHANERR_READ_REFUSED = 1 << 0 | 1 << 8  # source address, read data
CHANERR_WRITE_REFUSED = 1 << 1 | 1 << 9  # destination address, write data

ioat_descriptor = structure(
    "ioat_descriptor", 64,
    ("bytes", c_uint32), ("control", c_uint32), ("source", c_uint64), ("destination", c_uint64), ("next", c_uint64),
    ("reserved", c_uint64 * 4),
)  # fmt: skip


def chanerr_names(chanerr):
    """The bits of CHANERR in words."""
    return [name for bit, name in enumerate(CHANERR_BITS) if chanerr >> bit & 1]


class Ioat(Closing):
    """Channel 0 of an I/OAT engine. `interrupt` may be None, and completions are then polled for."""

    RING = 1024  # descriptors; the word that completions are written to comes after them
    MEMORY = RING * ctypes.sizeof(ioat_descriptor) + PAGE

    def __init__(self, device, registers, ring, interrupt=None, timeout=10.0):
        """`ring`: a writeable Mapping of at least `Ioat.MEMORY` bytes. `timeout`: seconds, for each wait."""
        self.device, self.registers, self.interrupt, self.timeout = device, registers, interrupt, timeout
        self.version = registers.read(VER, 1)
        if self.version not in IOAT_VERSIONS:
            raise Failure(f"I/OAT version {self.version:#x} is not one that this driver knows (3.2 or 3.3)")
        self.max_transfer = 1 << (registers.read(XFERCAP, 1) & 0x1F)
        self.descriptors = 0

        self._ring_iova = ring.iova
        self._ring = (ioat_descriptor * self.RING).from_address(ring.memory.address)
        for slot, descriptor in enumerate(self._ring):
            descriptor.next = self._iova_of(slot + 1)
        completion = self.RING * ctypes.sizeof(ioat_descriptor)
        self._completion = c_uint64.from_address(ring.memory.address + completion)
        self._completion_iova = ring.iova + completion

        self.running = False
        self.reset()
        # Interrupts go out through MSI-X, channel by channel.
        registers.write(INTRCTRL, 1, INTRCTRL_MASTER_INT_EN | INTRCTRL_MSIX_VECTOR_CONTROL)

    def _iova_of(self, slot):
        return self._ring_iova + slot % self.RING * ctypes.sizeof(ioat_descriptor)

    def reset(self):
        """Stops the channel, clears its errors (each is a write of the bits that were read), and points it at slot 0.

        The state afterwards is HALTED, which is also how the channel comes up; the next DMACOUNT starts it."""
        for offset in (CONFIG_CHANERR_INT, CONFIG_DMAUNCERRSTS):  # extended configuration space, as PCIe has it
            self.device.config_write(offset, 4, self.device.config_read(offset, 4))
        self.registers.write(CHANERR, 4, self.registers.read(CHANERR, 4))
        self.registers.write(CHANCMD, 1, CHANCMD_RESET)
        deadline = time.monotonic() + self.timeout
        while self.registers.read(CHANCMD, 1) & CHANCMD_RESET:
            if time.monotonic() > deadline:
                raise TimedOut(f"channel reset: CHANCMD kept the reset bit for {self.timeout} s")
            time.sleep(0.001)
        self._count = 0
        self._completion.value = 0
        self.registers.write(CHANCMP, 8, self._completion_iova)
        self.registers.write(CHAINADDR, 8, self._iova_of(0))
        self.running = True

    def start(self, source, destination, length, interrupt=None):
        """Queues a copy between two IOVAs and starts it; `wait_…` waits for it. The copy must fit the ring."""
        pieces = -(-length // self.max_transfer)
        if not 0 < pieces < self.RING:
            raise Failure(f"a copy of {length} bytes needs {pieces} descriptors; the ring has {self.RING}")
        for piece in range(pieces):
            done = piece * self.max_transfer
            descriptor = self._ring[(self._count + piece) % self.RING]
            descriptor.bytes = min(self.max_transfer, length - done)
            descriptor.control = 0
            descriptor.source = source + done
            descriptor.destination = destination + done
        self._count += pieces
        self.descriptors += pieces
        self._last = self._iova_of(self._count - 1)
        if interrupt is None:
            interrupt = self.interrupt is not None
        descriptor.control = DESCRIPTOR_COMPLETION_WRITE | (DESCRIPTOR_INTERRUPT if interrupt else 0)

        # An interrupt disarms itself, so each batch arms it again. Errors stop the channel, and say so both ways.
        control = CHANCTRL_INT_REARM | CHANCTRL_ANY_ERR_ABORT_EN | CHANCTRL_ERR_COMPLETION_EN
        self.registers.write(CHANCTRL, 2, control | (CHANCTRL_ERR_INT_EN if interrupt else 0))
        self.registers.write(DMACOUNT, 2, self._count & 0xFFFF)

    def _done(self):
        return self._completion.value & ~0x3F == self._last

    def check(self):
        """Raises DmaError if the channel has halted."""
        status = self.registers.read(CHANSTS, 8)
        if status & CHANSTS_STATUS == CHANSTS_HALTED:
            raise DmaError(self.registers.read(CHANERR, 4), status)

    def _timed_out(self, what):
        status, chanerr = self.registers.read(CHANSTS, 8), self.registers.read(CHANERR, 4)
        state = "was complete" if self._done() else "was not complete"
        return TimedOut(
            f"{what} within {self.timeout} s; the copy {state} (CHANSTS {status:#x}, CHANERR {chanerr:#x}, "
            f"completion word {self._completion.value:#x}, last descriptor {self._last:#x})"
        )

    def wait_interrupt(self):
        """Sleeps on the eventfd until the copy that was started last is done."""
        deadline = time.monotonic() + self.timeout
        while (left := deadline - time.monotonic()) > 0:
            # In slices, so that a channel that halted without an interrupt is an error at once, not a time-out.
            if self.interrupt.signalled(min(left, 0.25)):
                self.interrupt.drain()
                if self._done():
                    return
            self.check()
        raise self._timed_out("no completion interrupt came")

    def wait_poll(self):
        """Watches the completion word, which is memory and costs nothing, and now and then the status register."""
        deadline = time.monotonic() + self.timeout
        glance = time.monotonic() + 0.02
        while not self._done():
            now = time.monotonic()
            if now > glance:
                self.check()
                glance = now + 0.02
            if now > deadline:
                raise self._timed_out("the completion word did not change")
            time.sleep(0.00002)

    def copy(self, source, destination, length):
        """Copies `length` bytes from one IOVA to another and waits; a copy larger than the ring goes in batches."""
        batch = (self.RING - 1) * self.max_transfer
        for done in range(0, length, batch):
            self.start(source + done, destination + done, min(batch, length - done))
            self.wait_interrupt() if self.interrupt else self.wait_poll()

    def close(self):
        if self.running:
            self.reset()
            self.running = False


# ---------------------------------------------------------------------------------------------------------------------
# All of it at once
# ---------------------------------------------------------------------------------------------------------------------

Engine = namedtuple("Engine", "iommufd device ioas attachment registers interrupt ring ioat")


@contextlib.contextmanager
def open_engine(bdf=None, kind="shared", interrupts=True, timeout=10.0):
    """From nothing to a running DMA engine; leaving the `with` block takes the same steps back."""
    with (
        Memory(Ioat.MEMORY, kind) as ring_memory,
        Iommufd() as iommufd,
        VfioDevice(find_device(IOAT_VENDOR, IOAT_DEVICE, bdf), iommufd) as device,
        Ioas(iommufd) as ioas,
        ioas.map(ring_memory) as ring,
        device.attach(ioas) as attachment,
        Registers(device, VFIO_PCI_BAR0_REGION_INDEX) as registers,
        Interrupt(device) if interrupts else contextlib.nullcontext() as interrupt,
    ):
        device.enable()
        with Ioat(device, registers, ring, interrupt, timeout) as ioat:
            yield Engine(iommufd, device, ioas, attachment, registers, interrupt, ring, ioat)
