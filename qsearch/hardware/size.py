"""Stored size of a layer: what the quantizer must keep beside the packed weights counts, too."""

from __future__ import annotations

from dataclasses import dataclass

from qsearch.errors import DeviceError
from qsearch.spec import QuantizerSpec
from qsearch.types import LayerShape

_FLOAT_BITS = 32
_POWER_OF_TWO_BITS = 8  # the exponent alone
_ZERO_POINT_BITS = 8


@dataclass(frozen=True, slots=True)
class SizeRules:
    """What is stored beside packed weights and 32-bit biases.

    Attributes:
        granularity: One scale for the ``tensor``, for every output ``channel``, or for every ``group`` of inputs of an
            output channel.
        group_size: Inputs a group.
        scale_bits: Bits of a scale.
        zero_bits: Bits of a zero point, one a scale; 0 where there is none. A 1-bit grid never has one.
        codebook: One codebook a layer, of ``2**w`` 32-bit values, instead of scales and zero points.
    """

    granularity: str = "channel"
    group_size: int = 32
    scale_bits: int = _FLOAT_BITS
    zero_bits: int = 0
    codebook: bool = False

    @classmethod
    def from_spec(cls, quantizer: QuantizerSpec) -> SizeRules:
        """The rules of a study file's quantizer."""
        weights = quantizer.weights
        return cls(
            granularity=weights.granularity,
            group_size=weights.group_size,
            scale_bits=_POWER_OF_TWO_BITS if weights.power_of_two else _FLOAT_BITS,
            zero_bits=_ZERO_POINT_BITS if weights.grid == "affine" else 0,
            codebook=weights.grid == "codebook",
        )

    def scales(self, layer: LayerShape) -> int:
        """Number of scales of a layer."""
        if self.granularity == "tensor":
            return 1
        groups = -(-layer.reduction // self.group_size) if self.granularity == "group" else 1
        return layer.out_channels * groups

    def overhead_bits(self, layer: LayerShape, w: int) -> int:
        """Bits of scales and zero points, or of the codebook.

        Args:
            layer: The layer.
            w: Weight width in bits.
        """
        if self.codebook:
            return (1 << w) * _FLOAT_BITS
        return self.scales(layer) * (self.scale_bits + (self.zero_bits if w > 1 else 0))


def layer_size_bytes(layer: LayerShape, w: int, rules: SizeRules | None = None) -> int:
    """Returns the stored size of one layer in bytes; it is the same on every device.

    Weights are packed without gaps inside the layer, ``ceil(count * w / 8)`` bytes; then come scales and zero points
    or the codebook, in whole bytes, and one 32-bit bias for each output channel if the layer has one.

    Args:
        layer: The layer.
        w: Weight width in bits.
        rules: What is stored beside the weights; by default one 32-bit scale for each output channel.
    """
    if w < 1:
        raise DeviceError(f"layer {layer.name!r}: a weight of {w} bits has no size", "use at least 1 bit")
    overhead = (rules or SizeRules()).overhead_bits(layer, w)
    bias = layer.out_channels * _FLOAT_BITS // 8 if layer.has_bias else 0
    return -(-layer.weight_count * w // 8) - (-overhead // 8) + bias
