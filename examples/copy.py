#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Copies memory with a DMA engine and proves it by checksum.

    ioasid run --device ioat -- python3 examples/copy.py --size 256M --rounds 4

The driver is in `vfio_ioat.py`, beside this file. With --forbidden, the engine is also told to write to an address that
was never mapped, and the IOMMU must stop it.

Exit status: 0 all is as it should be; 1 a checksum differs, a forbidden DMA was not refused, or a call failed; 2 a bad
command line.
"""

import argparse
import hashlib
import json
import os
import sys
import time

from vfio_ioat import (
    CHANERR_WRITE_REFUSED,
    VFIO_PCI_MSIX_IRQ_INDEX,
    DmaError,
    Failure,
    Memory,
    chanerr_names,
    open_engine,
)

MIB = 1 << 20


def size(text):
    """A number of bytes: 4096, 64K, 256M, 1G."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    digits, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    if not digits.isascii() or not digits.isdigit() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 4096, 64K, 256M or 1G")
    return int(digits) * unit


def count(text):
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def arguments():
    parser = argparse.ArgumentParser(description="Copy memory with an I/OAT DMA engine, and check the copy.")
    parser.add_argument("--size", type=size, default=64 * MIB, help="bytes to copy: 4096, 64K, 256M, 1G (64M)")
    parser.add_argument("--rounds", type=count, default=1, help="how many times to copy them (1)")
    parser.add_argument("--memory", choices=Memory.KINDS, default="shared", help="what memory to use (shared)")
    parser.add_argument("--wait", choices=("interrupt", "poll"), default="interrupt",
                        help="how to learn of the completion: an eventfd, or the word in memory (interrupt)")  # fmt: skip
    parser.add_argument("--forbidden", action="store_true", help="also try a DMA that must be refused")
    parser.add_argument("--device", metavar="BDF", help="PCI address, as 0000:00:01.0 (the first engine found)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds for each completion (10)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    return parser.parse_args()


def fill(memory):
    """Random bytes, each MiB another rotation of one block, so that no two MiB can be taken for each other."""
    block = os.urandom(MIB)
    for number, start in enumerate(range(0, memory.size, MIB)):
        turn = number * 4099 % MIB
        piece = memory.bytes[start : start + MIB]
        piece[:] = (block[turn:] + block[:turn])[: len(piece)]


def sha256(memory, length):
    with memory.bytes[:length] as part:
        return hashlib.sha256(part).hexdigest()


def forbidden(engine, source, destination, length):
    """A write that must not happen. Returns what did, and copies once more to show that the engine still works."""
    address = engine.ioas.never_mapped()
    before = sha256(source.memory, length), sha256(destination.memory, length)
    chanerr = 0
    try:
        engine.ioat.copy(source.iova, address, min(length, MIB))
    except DmaError as error:
        chanerr = error.chanerr
    untouched = before == (sha256(source.memory, length), sha256(destination.memory, length))

    engine.ioat.reset()
    destination.memory.clear()
    engine.ioat.copy(source.iova, destination.iova, length)
    return {
        "iova": address,
        "refused": bool(chanerr & CHANERR_WRITE_REFUSED),
        "chanerr": chanerr,
        "chanerr_bits": chanerr_names(chanerr),
        "memory_untouched": untouched,
        "recovered": before[0] == sha256(destination.memory, length),
    }


def run(options):
    """Does the work. Returns the report as a dictionary."""
    length = options.size
    with (
        open_engine(options.device, options.memory, options.wait == "interrupt", options.timeout) as engine,
        Memory(length, options.memory) as source_memory,
        Memory(length, options.memory) as destination_memory,
        # The least that is needed: the engine may read the source, but not write it.
        engine.ioas.map(source_memory, writeable=False) as source,
        engine.ioas.map(destination_memory) as destination,
    ):
        fill(source_memory)
        wanted, equal, seconds = sha256(source_memory, length), True, 0.0
        for _ in range(options.rounds):
            destination_memory.clear()
            begin = time.perf_counter()
            engine.ioat.copy(source.iova, destination.iova, length)
            seconds += time.perf_counter() - begin
            equal = equal and sha256(destination_memory, length) == wanted

        pci, ioat = engine.device.pci, engine.ioat
        report = {
            "device": pci.bdf,
            "vendor_device": f"{pci.vendor:04x}:{pci.device:04x}",
            "version": f"{ioat.version >> 4}.{ioat.version & 0xF}",
            "cdev": pci.cdev,
            "driver": pci.driver,
            "group": pci.group,
            "regions": engine.device.info.num_regions,
            "bar0_bytes": engine.registers.size,
            "msix_vectors": engine.device.irq(VFIO_PCI_MSIX_IRQ_INDEX).count,
            "iova_ranges": [[start, last] for start, last in engine.ioas.ranges()],
            "memory": options.memory,
            "mappings": [
                {"what": what, "iova": m.iova, "bytes": m.length, "writeable": m.writeable}
                for what, m in (("source", source), ("destination", destination), ("descriptors", engine.ring))
            ],
            "wait": options.wait,
            "rounds": options.rounds,
            "bytes": length * options.rounds,
            "descriptors": ioat.descriptors,
            "interrupts": engine.interrupt.received if engine.interrupt else None,
            "seconds": seconds,
            "gigabytes_per_second": length * options.rounds / seconds / 1e9,
            "sha256": wanted,
            "checksum_equal": equal,
        }
        if options.forbidden:
            report["forbidden"] = forbidden(engine, source, destination, length)
    return report


def plural(number, thing):
    return f"{number} {thing}{'' if number == 1 else 's'}"


def lines(report):
    """The report for people, as (label, text)."""
    yield "device", f"{report['device']}  {report['vendor_device']}  I/OAT {report['version']}  {report['cdev']}"
    yield "group", report["group"]
    vectors = plural(report["msix_vectors"], "MSI-X vector")
    yield "registers", f"BAR 0, {report['bar0_bytes']} bytes, mapped; {vectors}; {report['regions']} regions"
    for number, (start, last) in enumerate(report["iova_ranges"]):
        yield "IOVA ranges" if number == 0 else "", f"{start:#x} - {last:#x}"
    for number, m in enumerate(report["mappings"]):
        access = "read, write" if m["writeable"] else "read"
        text = f"{m['what']:<11}  {m['bytes']:>11} bytes at IOVA {m['iova']:#x}  {report['memory']}  {access}"
        yield "mappings" if number == 0 else "", text
    rounds, descriptors = plural(report["rounds"], "round"), plural(report["descriptors"], "descriptor")
    yield "copied", f"{plural(report['bytes'], 'byte')}, {rounds}, {descriptors}"
    how = "polled" if report["interrupts"] is None else plural(report["interrupts"], "interrupt")
    yield "time", f"{report['seconds']:.4f} s, {how}"
    yield "rate", f"{report['gigabytes_per_second']:.2f} GB/s"
    yield "sha256", f"{'equal' if report['checksum_equal'] else 'DIFFERENT'}  {report['sha256'][:16]}…"
    if stopped := report.get("forbidden"):
        yield "forbidden", f"write to IOVA {stopped['iova']:#x}, never mapped"
        bits = ", ".join(stopped["chanerr_bits"]) or "no error"
        state = "refused, channel halted" if stopped["refused"] else "NOT REFUSED"
        yield "", f"{state}: CHANERR {stopped['chanerr']:#x} ({bits})"
        yield "", f"memory {'untouched' if stopped['memory_untouched'] else 'CHANGED'}"
        yield "", f"after a reset, copied again: {'equal' if stopped['recovered'] else 'DIFFERENT'}"


def main():
    options = arguments()
    try:
        report = run(options)
    except Failure as failure:
        print(f"copy.py: {failure}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report))
    else:
        for label, text in lines(report):
            print(f"{label:<12} {text}")
    good = report["checksum_equal"]
    if stopped := report.get("forbidden"):
        good = good and stopped["refused"] and stopped["memory_untouched"] and stopped["recovered"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
