#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: the destination of a copy is mapped without IOMMU_IOAS_MAP_WRITEABLE.

The report should say: one DMA fault, a write by this device to that IOVA, which is mapped for reading only.
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
    engine.ioas.map(destination_memory, writeable=False) as destination,  # here: the engine must write it
):
    try:
        engine.ioat.copy(source.iova, destination.iova, 64)
        print(f"DMA to IOVA {destination.iova:#x} was not refused")
    except DmaError as error:
        print(f"DMA to IOVA {destination.iova:#x}: {error}")
