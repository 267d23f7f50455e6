"""Energy per operation at 45 nm, shared by the device models.

Sources: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014 (the measured points);
C. Coelho et al., "Automatic heterogeneous quantization of deep neural networks for low-latency inference on the edge
for particle detectors", Nature Machine Intelligence 2021 (QKeras, whose polynomials fit those points).
"""

from __future__ import annotations

import math

#: The SRAM polynomial falls as memories grow from 2**6 to 2**14.6 bits, which is not physical; below 2**16 bits
#: (8 KiB, the smallest point it was fitted to) its value at 2**16 is used instead.
SRAM_FIT_SMALLEST_LOG2_BITS = 16.0


def mac_pj(w: int, a: int, accumulator: int) -> float:
    """Returns the energy in pJ of one multiply-accumulate.

    The QKeras fit of a ``b``-bit multiplication, ``0.0029948 b^2 + 0.0010417 b``, with ``b^2`` read as ``w a`` and
    ``b`` as their mean, plus an addition at the accumulator's width, ``0.003125 accumulator``.

    Args:
        w: Weight operand width in bits.
        a: Activation operand width in bits.
        accumulator: Accumulator width in bits; 0 for the multiplication alone.
    """
    return 0.002994791667 * w * a + 0.001041666667 * (w + a) / 2 + 0.003125 * accumulator


def sram_pj_per_bit(capacity_bytes: int) -> float:
    """Returns the energy in pJ of reading or writing one bit of an on-chip memory.

    ``9.02427e-4 x^3 - 2.68848e-2 x^2 + 0.2089008 x`` with ``x = log2(bits)`` (QKeras fit), which meets Horowitz's
    8 KiB, 32 KiB and 1 MiB points; constant below 8 KiB, see :data:`SRAM_FIT_SMALLEST_LOG2_BITS`.

    Args:
        capacity_bytes: Size of the memory.
    """
    x = max(math.log2(capacity_bytes * 8), SRAM_FIT_SMALLEST_LOG2_BITS)
    return 0.000902427321 * x**3 - 0.0268847858 * x**2 + 0.208900804 * x
