"""From the ``model`` entry of a study to a network with its weights."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qsearch import plugins
from qsearch.errors import ModelError, PluginError, nearest
from qsearch.models.torchvision_compat import import_torchvision


def load_network(source: str, weights: str | None, arguments: Mapping[str, Any], data: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a study names.

    Args:
        source: ``qsearch:NAME`` (a registered model), ``torchvision:NAME``, or ``package.module:function``.
        weights: For torchvision a member of the model's weights enum (``DEFAULT``, ``IMAGENET1K_V1``, ...); for any
            source the path of a checkpoint (a state dict as .pt/.pth or .safetensors). None: as the source makes it.
        arguments: Keyword arguments of the factory.
        data: The splits of the study; handed to factories that take a parameter ``data``.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelError: The factory fails, does not return a module, or the checkpoint does not fit.
        PluginError: The source does not exist.
    """
    scheme, _, name = source.partition(":")
    if scheme == "torchvision":
        network = _torchvision(name, weights, arguments)
    else:
        factory = plugins.load("models", name) if scheme == "qsearch" else plugins.resolve(source, "model")
        network = _call(factory, source, arguments, data)
        if weights is not None:
            load_checkpoint(network, Path(weights))
    return network.eval()


def _call(factory: Any, source: str, arguments: Mapping[str, Any], data: Mapping[str, Any]) -> nn.Module:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ModelError(f"model {source!r} is a {type(factory).__name__}, not a function", "name a factory function")
    keywords = dict(arguments)
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in keywords if key not in parameters and not takes_any]
    if unknown:
        raise ModelError(f"model {source!r} takes no argument {unknown[0]!r}", nearest(unknown[0], parameters))
    if "data" in parameters and "data" not in keywords:
        keywords["data"] = data
    try:
        network = factory(**keywords)
    except ModelError:
        raise
    except Exception as error:
        if hasattr(error, "hint"):
            raise
        raise ModelError(
            f"model factory {source!r} failed: {type(error).__name__}: {error}", "call it by itself to see why"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"model factory {source!r} returned a {type(network).__name__}, not a torch.nn.Module",
            "return the network itself, with its weights loaded",
        )
    return network


def _torchvision(name: str, weights: str | None, arguments: Mapping[str, Any]) -> nn.Module:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise PluginError(f"unknown model 'torchvision:{name}'", nearest(name, known))
    path = Path(weights) if weights else None
    member = None
    if weights and path and not path.is_file():
        enum = models.get_model_weights(name)
        members = ["DEFAULT", *enum.__members__]
        if weights not in members:
            is_path = "/" in weights or path.suffix in (".pt", ".pth", ".safetensors")
            raise ModelError(
                f"weights {weights!r} of 'torchvision:{name}' are neither a file nor one of its published weights",
                "no such file; is the path relative to the study file?" if is_path else nearest(weights, members),
            )
        member = enum[weights]
    try:
        network: nn.Module = models.get_model(name, weights=member, **arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"'torchvision:{name}' cannot be built: {error}", "check model.arguments") from error
    except OSError as error:
        raise ModelError(
            f"the weights {weights!r} of 'torchvision:{name}' cannot be downloaded: {error}",
            "download them elsewhere and give the path of the file as weights",
        ) from error
    if path is not None and path.is_file():
        load_checkpoint(network, path)
    return network


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Loads a state dict strictly, in place; a wrapping ``state_dict`` key and a ``module.`` prefix are removed.

    Pickled code is never run: torch files are read with ``weights_only=True``.

    Raises:
        ModelError: The file is missing or unreadable, or names or shapes do not match.
    """
    if not path.is_file():
        raise ModelError(f"checkpoint {path} does not exist", "is the path relative to the study file?")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        raise ModelError(f"checkpoint {path} cannot be read: {error}", "is the file complete?") from error
    except Exception as error:  # UnpicklingError, and whatever else the unpickler trips over
        raise ModelError(
            f"checkpoint {path} is not a plain state dict: {error}",
            "save model.state_dict() alone: objects and code in a checkpoint are never loaded",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"checkpoint {path} does not hold a state dict of tensors", "save model.state_dict() alone")
    own = network.state_dict()
    state = {key if key in own else key.removeprefix("module."): value for key, value in state.items()}
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    problems = [f"{key}: missing" for key in own if key not in state and key not in optional]
    problems += [f"{key}: not in the network ({nearest(key, own)})" for key in state if key not in own]
    problems += [
        f"{key}: shape {tuple(value.shape)}, the network has {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ModelError(
            f"checkpoint {path} does not fit the network: {shown}",
            "are architecture, width and number of classes those of the checkpoint? (see model.arguments)",
        )
    network.load_state_dict(state, strict=False)
