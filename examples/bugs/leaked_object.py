#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: an I/O address space is allocated and never destroyed.

The report should say: one object was still alive when its context closed, the IOAS with the id that is printed here.
Everything else is undone.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from vfio_ioat import PAGE, Ioas, Memory, open_engine

with open_engine() as engine, Memory(PAGE) as memory, engine.ioas.map(memory) as buffer:
    spare = Ioas(engine.iommufd)  # here: no `with`, and no close()
    engine.ioat.copy(buffer.iova, buffer.iova + PAGE // 2, 64)
    print(f"IOAS {spare.id} was allocated and will not be destroyed")
