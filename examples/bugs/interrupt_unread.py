#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: an interrupt is signalled and never consumed. The driver asks for one, then polls and forgets its eventfd.

The report should say: vector 0 of this device has one interrupt that was signalled and never read.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from vfio_ioat import PAGE, Memory, open_engine

with open_engine() as engine, Memory(PAGE) as memory, engine.ioas.map(memory) as buffer:
    engine.ioat.start(buffer.iova, buffer.iova + PAGE // 2, 64, interrupt=True)
    engine.ioat.wait_poll()
    signalled = engine.interrupt.signalled(engine.ioat.timeout)  # looks, but does not read
    engine.ioat.close()
    engine.interrupt.disable()  # here: engine.interrupt.drain() is missing before it
    print(f"an interrupt was {'signalled' if signalled else 'expected'} and is not read")
