#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: the destination of a copy was unmapped just before, and the driver still uses its address.

The report should say: one DMA fault, a write by this device to that IOVA, which had been mapped until it was unmapped,
and when that was.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from vfio_ioat import PAGE, DmaError, Memory, open_engine

with (
    open_engine() as engine,
    Memory(PAGE) as source_memory,
    Memory(PAGE) as destination_memory,
    engine.ioas.map(source_memory) as source,
    engine.ioas.map(destination_memory) as destination,
):
    engine.ioat.copy(source.iova, destination.iova, 64)
    destination.close()  # unmaps
    try:
        engine.ioat.copy(source.iova, destination.iova, 64)  # here: the address is stale
        print(f"DMA to IOVA {destination.iova:#x} was not refused")
    except DmaError as error:
        print(f"DMA to IOVA {destination.iova:#x}: {error}")
