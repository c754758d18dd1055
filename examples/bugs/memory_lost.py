#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: a buffer is freed while the device still has its IOVA, and its address is given to something else.

The report should say: memory lost, with its IOVA and when it was unmapped, and one DMA fault, as the device does not
reach what has its address now. On Linux the device would go on writing to the old page, which nothing reads.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from vfio_ioat import PAGE, DmaError, Memory, open_engine

with open_engine() as engine, Memory(PAGE) as source_memory, engine.ioas.map(source_memory) as source:
    freed = Memory(PAGE, kind="private")
    with engine.ioas.map(freed) as destination:
        engine.ioat.copy(source.iova, destination.iova, 64)
        freed.close()  # here: before the IOVA
        try:
            engine.ioat.copy(source.iova, destination.iova, 64)
            print(f"DMA to IOVA {destination.iova:#x} was not refused")
        except DmaError as error:
            print(f"DMA to IOVA {destination.iova:#x}: {error}")
