# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A PCI device in a process of its own, in the standard library alone: a counter with DMA and an interrupt.

    python3 examples/counter.py /tmp/counter &
    ioasid run --device vfio-user,socket=/tmp/counter -- python3 examples/count.py

It speaks vfio-user, so that QEMU (`-device vfio-user-pci`) and others have it, too. Its registers, in BAR 0:

    0x00  count    how often it was rung
    0x08  address  an IOVA
    0x10  ring     counts, writes the count to the address (8 bytes), and interrupts (MSI)

Source: the vfio-user protocol, docs/interop/vfio-user.rst of QEMU.
"""

import os
import socket
import struct
import sys

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS = 1, 2, 3, 4, 5, 7, 8
REGION_READ, REGION_WRITE, DMA_WRITE, RESET = 9, 10, 12, 13
BAR, CONFIG, MSI = 0, 7, 1
EINVAL = 22


class Counter:
    """The device, and its connection with a client."""

    def __init__(self, connection):
        self.connection, self.eventfd, self.waiting = connection, None, []
        self.config = bytearray(256)
        struct.pack_into("<HHHHI", self.config, 0, 0x1234, 0xC0DE, 0, 1 << 4, 0xFF0000 << 8)  # with capabilities
        self.config[0x34] = 0x40
        self.config[0x40:0x44] = 0x05, 0, 0, 0  # one MSI vector
        self.reset()

    def reset(self):
        self.count, self.address = 0, 0

    def receive(self):
        """The next message: header, what is behind it, descriptors."""
        header, descriptors, _, _ = socket.recv_fds(self.connection, 16, 16, socket.MSG_WAITALL)
        if len(header) < 16:
            raise EOFError
        ident, command, size, flags, error = struct.unpack("=HHIII", header)
        return (ident, command, flags), self.connection.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b"", descriptors

    def send(self, ident, command, flags, payload=b"", error=0):
        self.connection.sendall(struct.pack("=HHIII", ident, command, 16 + len(payload), flags, error) + payload)

    def serve(self):
        while True:
            (ident, command, flags), payload, descriptors = self.waiting.pop(0) if self.waiting else self.receive()
            try:
                reply, error = self.answer(command, payload, descriptors), 0
            except (ValueError, struct.error):
                reply, error = b"", EINVAL
            for descriptor in descriptors:
                os.close(descriptor)
            if not flags & 1 << 4:  # a reply is wanted
                self.send(ident, command, 1 | (error != 0) << 5, reply, error)

    def answer(self, command, payload, descriptors):
        if command == VERSION:
            return struct.pack("=HH", 0, 1) + b'{"capabilities":{"max_msg_fds":16}}\0'
        if command in (DMA_MAP, DMA_UNMAP):
            return payload if command == DMA_UNMAP else b""  # it reaches memory by messages, and keeps no mappings
        if command == GET_INFO:
            return struct.pack("=IIII", 16, 3, 9, 5)  # a PCI device that can be reset
        if command == REGION_INFO:
            index = struct.unpack_from("=I", payload, 8)[0]
            size = {BAR: 4096, CONFIG: len(self.config)}.get(index, 0)
            return struct.pack("=IIIIQQ", 32, 3 if size else 0, index, 0, size, 0)
        if command == IRQ_INFO:
            index = struct.unpack_from("=I", payload, 8)[0]
            return struct.pack("=IIII", 16, 1, index, int(index == MSI))
        if command == SET_IRQS:
            _, _, index, _, count = struct.unpack_from("=IIIII", payload)
            if index == MSI and self.eventfd is not None:
                os.close(self.eventfd)
                self.eventfd = None
            if index == MSI and count and descriptors:
                self.eventfd = descriptors.pop(0)
            return b""
        if command == RESET:
            self.reset()
            return b""
        offset, region, count = struct.unpack_from("=QII", payload)
        if region not in (BAR, CONFIG) or command not in (REGION_READ, REGION_WRITE):
            raise ValueError(command)
        if command == REGION_READ:
            return payload[:16] + self.read(region, offset, count)
        self.write(region, offset, payload[16 : 16 + count])
        return payload[:16]

    def read(self, region, offset, count):
        if region == CONFIG:
            return bytes(self.config[offset : offset + count]).ljust(count, b"\0")
        registers = struct.pack("<QQQ", self.count, self.address, 0)
        return registers[offset : offset + count].ljust(count, b"\0")

    def write(self, region, offset, data):
        if region == CONFIG:
            if offset in (0x04, 0x05):  # the command register
                self.config[offset : offset + len(data)] = data
        elif offset == 0x08:
            self.address = int.from_bytes(data, "little")
        elif offset == 0x10:
            self.count += 1
            if self.config[0x04] & 4 and self.dma_write(self.address, struct.pack("<Q", self.count)):
                if self.eventfd is not None:
                    os.eventfd_write(self.eventfd, 1)

    def dma_write(self, address, data):
        """Writes memory; what else the client wants meanwhile is done afterwards."""
        self.send(1, DMA_WRITE, 0, struct.pack("=QQ", address, len(data)) + data)
        while True:
            message = self.receive()
            if message[0][2] & 1:  # the reply
                return not message[0][2] & 1 << 5
            self.waiting.append(message)


def main(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    try:
                        Counter(connection).serve()
                    except (EOFError, ConnectionError):
                        pass
        finally:
            os.unlink(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: counter.py SOCKET")
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        pass
