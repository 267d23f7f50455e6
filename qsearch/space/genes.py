"""Genes: which widths each layer and each activation tensor may take, after ties, pins and supported pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from qsearch.errors import SpaceError
from qsearch.types import BIT_ALPHABET, LayerShape

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float64]

#: Position of a width (bits) in the alphabet; -1 where the alphabet does not have it.
ALPHABET_INDEX: IntArray = np.full(max(BIT_ALPHABET) + 1, -1, dtype=np.int64)
ALPHABET_INDEX[list(BIT_ALPHABET)] = np.arange(len(BIT_ALPHABET))


@dataclass(frozen=True, slots=True)
class Gene:
    """One decision: the weight width of one layer, or the width of one group of tied activation tensors.

    Attributes:
        name: ``w:LAYER`` or ``a:LAYER``, LAYER being the first layer that reads the tensor.
        kind: What the width is of.
        choices: Widths in bits, ascending, each of them part of at least one legal configuration.
        layers: Indices of the layers the gene decides for, ascending.
    """

    name: str
    kind: Literal["weight", "activation"]
    choices: tuple[int, ...]
    layers: tuple[int, ...]

    @property
    def is_free(self) -> bool:
        """True when there is something to choose."""
        return len(self.choices) > 1


def build_genes(
    layers: Sequence[LayerShape],
    weight_choices: Sequence[Sequence[int]],
    activation_choices: Sequence[Sequence[int]],
    supported: BoolArray,
    tensor_groups: Mapping[int, int] | None,
) -> tuple[tuple[Gene, ...], tuple[Gene, ...]]:
    """Makes one weight gene per layer and one activation gene per tie group, arc-consistent with ``supported``.

    A layer and its input tensor are the only two genes a supported pair couples, so the couplings of one group are
    a star around its activation gene and a single pass over it reaches arc consistency: first drop activation
    widths for which some consumer has no weight width, then weight widths that no remaining activation width
    supports. Every choice that is left belongs to a legal configuration.

    Args:
        layers: The quantizable layers, L of them.
        weight_choices: Requested weight widths (bits) of each layer.
        activation_choices: Requested input widths (bits) of each layer.
        supported: [L, 9, 9], True where layer l runs with (weight, activation) widths of ``BIT_ALPHABET``.
        tensor_groups: Tie group of an activation tensor; a tensor that is not named is a group of its own.

    Returns:
        The weight genes, in layer order, and the activation genes, in the order of their first layer.

    Raises:
        SpaceError: A request is malformed, or leaves a gene without any choice.
    """
    n_layers, n_widths = len(layers), len(BIT_ALPHABET)
    if n_layers == 0:
        raise SpaceError("the search space has no layers", "give a network with at least one quantizable layer")
    for what, lists in (("weight", weight_choices), ("activation", activation_choices)):
        if len(lists) != n_layers:
            raise SpaceError(f"{len(lists)} lists of {what} widths for {n_layers} layers", "give one list per layer")
    if supported.shape != (n_layers, n_widths, n_widths):
        raise SpaceError(
            f"the table of supported pairs has shape {supported.shape}",
            f"it must be [layers, weight widths, activation widths] = {(n_layers, n_widths, n_widths)}",
        )
    weights = [_widths(w, layer, "weight") for w, layer in zip(weight_choices, layers, strict=True)]
    activations = [_widths(a, layer, "activation") for a, layer in zip(activation_choices, layers, strict=True)]

    activation_genes = []
    for members in _tie_groups(layers, tensor_groups):
        shared = _intersection(layers, activations, members)
        activation_genes.append(_consistent_activations(layers, weights, shared, supported, members))
    weight_genes: list[Gene | None] = [None] * n_layers
    for gene in activation_genes:
        columns = ALPHABET_INDEX[list(gene.choices)]
        for index in gene.layers:
            kept = tuple(w for w in weights[index] if supported[index, ALPHABET_INDEX[w], columns].any())
            weight_genes[index] = Gene(f"w:{layers[index].name}", "weight", kept, (index,))
    return tuple(gene for gene in weight_genes if gene is not None), tuple(activation_genes)


def _widths(requested: Sequence[int], layer: LayerShape, what: str) -> tuple[int, ...]:
    """Returns the requested widths sorted and without repeats."""
    widths = sorted({int(bits) for bits in requested})
    if not widths:
        raise SpaceError(f"layer {layer.name!r} has no {what} width to choose from", "list at least one width")
    for bits in widths:
        if bits not in BIT_ALPHABET:
            raise SpaceError(
                f"layer {layer.name!r}: {what} width {bits} is not known",
                f"known widths: {', '.join(map(str, BIT_ALPHABET))} bits",
            )
    return tuple(widths)


def _tie_groups(layers: Sequence[LayerShape], tensor_groups: Mapping[int, int] | None) -> list[tuple[int, ...]]:
    """Returns the layers of each activation gene, groups in the order of their first layer."""
    ties = tensor_groups or {}
    members: dict[tuple[bool, int], list[int]] = {}
    for index, layer in enumerate(layers):
        # A named group and a tensor that stands alone may carry the same number.
        key = (True, ties[layer.tensor]) if layer.tensor in ties else (False, layer.tensor)
        members.setdefault(key, []).append(index)
    return [tuple(group) for group in members.values()]


def _intersection(
    layers: Sequence[LayerShape], activations: Sequence[tuple[int, ...]], members: tuple[int, ...]
) -> tuple[int, ...]:
    shared = set(activations[members[0]]).intersection(*(activations[index] for index in members))
    if not shared:
        wishes = "; ".join(f"{layers[index].name!r} wants {_list(activations[index])}" for index in members)
        raise SpaceError(
            f"layers that share one activation width have none in common: {wishes}",
            "give them at least one common activation width: they read the same tensor, or tensors tied by a residual "
            "add",
        )
    return tuple(sorted(shared))


def _consistent_activations(
    layers: Sequence[LayerShape],
    weights: Sequence[tuple[int, ...]],
    requested: tuple[int, ...],
    supported: BoolArray,
    members: tuple[int, ...],
) -> Gene:
    """Drops the activation widths for which some layer of the group has no weight width."""
    columns = ALPHABET_INDEX[list(requested)]
    possible = {index: supported[index][np.ix_(ALPHABET_INDEX[list(weights[index])], columns)] for index in members}
    kept = np.logical_and.reduce([possible[index].any(axis=0) for index in members])
    choices = tuple(bits for bits, keep in zip(requested, kept, strict=True) if keep)
    if not choices:
        alone = [index for index in members if not possible[index].any()]
        details = "; ".join(
            f"layer {layers[index].name!r} wants weights {_list(weights[index])} with activations {_list(requested)}, "
            f"the devices support {format_pairs(supported[index])}"
            for index in (alone[:1] or members)
        )
        together = "" if alone or len(members) == 1 else " that suits all layers reading it"
        raise SpaceError(
            f"no activation width is left{together}: {details}",
            "allow a supported pair of widths for each of these layers, or drop a device",
        )
    return Gene(f"a:{layers[members[0]].name}", "activation", choices, members)


def format_pairs(supported: BoolArray) -> str:
    """Writes the supported pairs of one layer for an error message.

    Args:
        supported: [9, 9], weight widths by activation widths.
    """
    parts = []
    for column, bits in enumerate(BIT_ALPHABET):
        rows = [w for row, w in enumerate(BIT_ALPHABET) if supported[row, column]]
        if rows:
            parts.append(f"w {_list(rows)} with a {bits}")
    return ", ".join(parts) if parts else "no pair at all"


def _list(widths: Sequence[int]) -> str:
    return "{" + ", ".join(map(str, widths)) + "}"
