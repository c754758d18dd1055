#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: the destination of a copy is an address that was never mapped.

The report should say: one DMA fault, a write by this device to that IOVA, not mapped, and never was.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from vfio_ioat import PAGE, DmaError, Memory, open_engine

with open_engine() as engine, Memory(PAGE) as memory, engine.ioas.map(memory) as buffer:
    wrong = engine.ioas.never_mapped()
    try:
        engine.ioat.copy(buffer.iova, wrong, 64)  # here: nothing is mapped at `wrong`
        print(f"DMA to IOVA {wrong:#x} was not refused")
    except DmaError as error:
        print(f"DMA to IOVA {wrong:#x}: {error}")
