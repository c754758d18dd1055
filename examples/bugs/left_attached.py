#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bug: the device's file is closed while the device is attached, without VFIO_DEVICE_DETACH_IOMMUFD_PT.

The report should say: this device was still attached to that IOAS when its file was closed. The mappings and the IOAS
are undone; they can be, as the close detaches the device.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from vfio_ioat import PAGE, Memory, open_engine

with open_engine() as engine, Memory(PAGE) as memory, engine.ioas.map(memory) as buffer:
    engine.ioat.copy(buffer.iova, buffer.iova + PAGE // 2, 64)
    engine.ioat.close()
    engine.interrupt.close()
    engine.registers.close()
    engine.device.close()  # here: engine.attachment.close() is missing before it
    print(f"{engine.device.pci.bdf} was closed while attached to IOAS {engine.ioas.id}")
