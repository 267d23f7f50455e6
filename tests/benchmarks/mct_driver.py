"""Runs one method of MCT; ``mct_side_by_side.py`` starts this in the environment that has it.

    PYTHON mct_driver.py JOB.npz RESULT.json

Needs no qsearch: images and settings come from the job, the network from ``tests/factories.py``. Only the call that
quantizes is timed, so importing MCT and reading files are not.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import factories

#: Images of one step of calibration and of gradient PTQ.
BATCH = 32

#: MCT's names of the layers that have 8 bits: batch norms are folded into new nodes.
ENDS = ("conv1_bn", "linear")


def import_mct() -> Any:
    """Imports MCT, which imports torchvision; that may need help (see the module named here)."""
    helper = Path(__file__).resolve().parents[2] / "qsearch" / "models" / "torchvision_compat.py"
    runpy.run_path(str(helper))["import_torchvision"]()
    return importlib.import_module("model_compression_toolkit")


def quantize(mct: Any, images: torch.Tensor, job: dict[str, Any]) -> torch.nn.Module:
    """Quantizes the network with mixed precision under a bound on the bytes of its weights."""
    filters = importlib.import_module("model_compression_toolkit.core.common.network_editors.node_filters")

    def batches() -> Iterator[list[np.ndarray[Any, Any]]]:
        for batch in torch.split(images, BATCH):
            yield [batch.numpy()]

    widths = mct.core.BitWidthConfig()
    widths.set_manual_weights_bit_width([filters.NodeNameFilter(name) for name in ENDS], 8, "weight")
    common = {
        "target_resource_utilization": mct.core.ResourceUtilization(weights_memory=job["weight_bytes"]),
        "core_config": mct.core.CoreConfig(
            mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(), bit_width_config=widths
        ),
    }
    network = factories.cifar_resnet20()
    quantized: torch.nn.Module
    if job["method"] == "ptq":
        quantized, _ = mct.ptq.pytorch_post_training_quantization(network, batches, **common)
    else:
        hessian = dict.fromkeys(("use_hessian_based_weights", "use_hessian_sample_attention"), job["hessian"])
        gradient = mct.gptq.get_pytorch_gptq_config(n_epochs=job["epochs"], **hessian)
        quantized, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            network, batches, gptq_config=gradient, **common
        )
    return quantized


def weight_bits(network: torch.nn.Module) -> dict[str, int]:
    """Weight bits that MCT chose, by the network's own layer names."""
    found = {}
    for name, module in network.named_modules():
        for quantizer in getattr(module, "weights_quantizers", {}).values():
            parts = name.removesuffix("_bn").split("_")  # layer1_0_conv1_bn
            found[".".join(parts)] = int(quantizer.num_bits)
    return found


@torch.no_grad()
def top1(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy in percent."""
    logits = torch.cat([network(batch) for batch in torch.split(images, 250)])
    return 100 * float((logits.argmax(1) == labels).float().mean())


def main() -> None:
    """Reads the job, writes the result."""
    with np.load(sys.argv[1]) as archive:
        job = json.loads(str(archive["job"]))
        calibration, images, labels = (torch.from_numpy(archive[n]) for n in ("calibration", "images", "labels"))
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    mct = import_mct()
    started = time.perf_counter()
    network = quantize(mct, calibration, job)
    quantized = time.perf_counter()
    accuracy = top1(network, images, labels)
    result = {
        "accuracy": accuracy,
        "seconds": quantized - started,
        "score seconds": time.perf_counter() - quantized,
        "weights": weight_bits(network),
        "version": mct.__version__,
        "torch": torch.__version__,
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
