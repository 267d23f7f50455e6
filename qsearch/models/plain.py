"""A copy of the user's network whose layers hold plain weights: nothing computes them anew in each forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qsearch.errors import ModelError

#: Classes whose subclasses are plain layers under another name, unless they change what is computed.
_BASES = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)

#: What a subclass may define without changing what its forward computes.
_HARMLESS = {
    "__init__", "__module__", "__doc__", "__annotations__", "__qualname__", "__repr__", "__dict__", "__weakref__",
    "__constants__", "extra_repr", "reset_parameters", "_get_name",
}  # fmt: skip


def is_plain_layer(module: nn.Module | None) -> bool:
    """True for a convolution or linear layer that computes what torch's own class does, and nothing else."""
    return type(module) in (nn.Conv2d, nn.Linear, NonDynamicallyQuantizableLinear) and not has_hooks(module)


def has_hooks(module: nn.Module | None) -> bool:
    """True when calling the module runs more than its forward."""
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)


def copy_network(module: nn.Module) -> nn.Module:
    """Copies a network, in evaluation mode, with parametrized, normalised and pruned weights made plain.

    Raises:
        ModelError: It cannot be copied.
    """
    # What such a hook computed last is no leaf of autograd, which deepcopy refuses; the copy computes it again.
    memo = {
        id(value): value.detach().clone()
        for child in module.modules()
        for _, name in _weight_hooks(child)
        if isinstance(value := child.__dict__.get(name), torch.Tensor)
    }
    try:
        module = copy.deepcopy(module, memo).eval()
    except Exception as error:
        raise ModelError(
            f"the network cannot be copied: {error}",
            "return a network that copy.deepcopy can copy; a tensor attribute that needs a gradient, for one, "
            "must be a parameter or detached",
        ) from error
    with torch.no_grad():
        for child in list(module.modules()):
            for hook, name in list(_weight_hooks(child)):
                _remove(child, hook, name)
            if parametrize.is_parametrized(child):
                _make_plain(child)
            _give_base_class(child)
    return module


def _weight_hooks(module: nn.Module) -> Iterator[tuple[object, str]]:
    """Hooks that compute a weight before each forward, and the weight's name."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook, hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook, str(hook._tensor_name)


def _remove(module: nn.Module, hook: object, name: str) -> None:
    """Ends the hook; the weight is a parameter with the value that evaluation mode gives it."""
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, name)
    else:
        prune.remove(module, name)  # type: ignore[no-untyped-call]


def _make_plain(module: nn.Module) -> None:
    """Replaces parametrized weights by their values; torch's own removal changes a class that all copies share."""
    parametrizations = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}  # type: ignore[union-attr]
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _give_base_class(module: nn.Module) -> None:
    """Makes a user's subclass that only sets arguments an instance of torch's class, so that it is a layer."""
    for base in _BASES:
        if isinstance(module, base) and not type(module).__module__.startswith("torch."):
            used = {*dir(base), *module.__dict__, *module._parameters, *module._buffers} - _HARMLESS
            between = type(module).__mro__[: type(module).__mro__.index(base)]
            if all(isinstance(module, one) and used.isdisjoint(vars(one)) for one in between):
                module.__class__ = base
            return
