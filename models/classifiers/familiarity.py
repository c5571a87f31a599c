"""The layer that tells how foreign an image's features are to every class that the network was trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAR = 1e6
"""Where a class without images lies: nobody is near it."""


class Familiarity(nn.Module):
    """Features (n, d) to the Mahalanobis distance of their direction from the nearest class mean, (n,)."""

    means: Tensor
    whitening: Tensor
    centre: Tensor

    def __init__(self, means_cd: Tensor, whitening_dd: Tensor, *, present: Tensor | None = None) -> None:
        """means_cd: (c, d), whitened already; unit features times whitening_dd have unit variance within classes."""
        super().__init__()
        # Around the means' own centre the squares below stay small, and their difference exact in float32.
        centre = (means_cd if present is None else means_cd[present]).mean(0)
        means_cd = means_cd - centre
        if present is not None:
            means_cd = means_cd.where(present[:, None], torch.full_like(means_cd, FAR))
        self.register_buffer("centre", centre.float())
        self.register_buffer("means", means_cd.float())
        self.register_buffer("whitening", whitening_dd.float())

    @classmethod
    def empty(cls, classes: int, d: int) -> Familiarity:
        """To be filled by `load_state_dict`."""
        return cls(torch.zeros(classes, d), torch.eye(d))

    def forward(self, features_nd: Tensor) -> Tensor:
        whitened = F.normalize(features_nd, dim=1) @ self.whitening - self.centre
        squares = whitened.square().sum(1, keepdim=True) + self.means.square().sum(1)
        return (squares - 2 * whitened @ self.means.T).amin(1).clamp(min=0).sqrt()
