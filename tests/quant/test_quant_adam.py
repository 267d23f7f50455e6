"""Adam against torch's own."""

from __future__ import annotations

import torch

from qsearch.quant.adam import Adam


def test_same_steps_as_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=generator)
    ours, theirs = start.clone().requires_grad_(True), start.clone().requires_grad_(True)
    own, reference = Adam(ours), torch.optim.Adam([theirs], lr=0.1)
    for step in range(30):
        # Gradients from 1e-9 (where eps counts) to 1e3.
        gradient = torch.randn(50, generator=generator) * torch.logspace(-9, 3, 50)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        lr = 0.1 / (1 + step)
        reference.param_groups[0]["lr"] = lr
        own.step(lr)
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, start, atol=0.1)


def test_without_a_gradient_nothing_moves() -> None:
    tensor = torch.ones(3, requires_grad=True)
    Adam(tensor).step(0.1)
    assert torch.equal(tensor, torch.ones(3))
