"""The filter that the adaptive attack sees is the filter that serves, and has a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.attacks.guarded import filter_reform, filter_score
from models.filtering import Filter
from models.filtering.trained import build
from models.images import to_float, to_uint8
from models.seeding import seeded

SHAPE = (12, 12, 3)
FILTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("residual", {"width": 8, "depth": 4, "eps_linf": 0.1}),
    "bottleneck": ("bottleneck", {"width": 4, "latent": 16}),
    "convolutional": ("convolutional", {"width": 4, "latent": 16, "variational": False}),
    "variational": ("convolutional", {"width": 4, "latent": 16, "variational": True, "noise_seed": 3}),
}


@pytest.mark.parametrize("name", FILTERS)
def test_the_attackers_filter_is_the_served_one(name: str) -> None:
    kind, layers = FILTERS[name]
    with seeded(0):
        served = Filter(build(kind, SHAPE, layers).eval(), SHAPE, layers)
    images = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    x = to_float(images)
    x.requires_grad_(True)
    scores, rebuilt = filter_score(served.network)(x), filter_reform(served.network)(x)
    np.testing.assert_allclose(scores.detach(), served.score(images), rtol=1e-4)
    apart = np.abs(to_uint8(rebuilt.detach()).astype(int) - served.reconstruct(images).astype(int))
    assert apart.max() <= 1
    assert (apart == 0).mean() > 0.999  # another order of sums may round a half to the other side
    assert np.ptp(served.score(images)) > 0
    for seen in (scores, rebuilt):
        (gradient,) = torch.autograd.grad(seen.sum(), x)
        assert (gradient.flatten(1).abs().amax(1) > 0).all()
