"""One classifier over either trunk: features once, then a head under as many dropout masks as are asked for.

n images, c channels, h × w pixels, d features, k dropout passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.abstention import Reason
from models.classifiers import plain
from models.classifiers.familiarity import Familiarity
from models.classifiers.layers import GRID, GridPool
from models.classifiers.residual import residual_convolutions
from models.seeding import derive_seed, seeded
from models.specs import ClassifierSpec

ImageShape = tuple[int, int, int]
"""Height, width, channels."""


class UnfitNetwork(ValueError):
    """A kind of network that cannot take images of this size."""


class Classifier(nn.Module):
    """Logits of images. Dropout happens only where masks are given; train and eval mode differ in batch norm alone.

    With an outlier class there is one logit more: training sees it, `outlier_gap` tells of it, no answer names it.
    """

    def __init__(
        self, spec: ClassifierSpec, *, num_classes: int, image_shape: ImageShape, outlier_class: bool = False
    ) -> None:
        super().__init__()
        height, width, channels = image_shape
        self.num_classes, self.feature_dim, self.dropout = num_classes, spec.hidden, spec.dropout
        self.image_shape, self.outlier_class = image_shape, outlier_class
        self.convolutions = (
            plain.plain_convolutions(spec.width, channels)
            if spec.kind == "plain"
            else residual_convolutions(spec.width, channels, min(height, width))
        )
        with torch.no_grad():
            maps, *grid = self.convolutions.eval()(torch.zeros(1, channels, height, width)).shape[1:]
        self.convolutions.train()
        whole = spec.kind == "plain" or tuple(grid) == (GRID, GRID)
        self.pool = nn.Identity() if whole else GridPool(*grid)
        features = maps * (grid[0] * grid[1] if whole else GRID * GRID)
        self.hidden = (
            plain.plain_hidden(features, spec.hidden) if spec.kind == "plain" else nn.Linear(features, spec.hidden)
        )
        self.out = nn.Linear(spec.hidden, num_classes + outlier_class)
        self.familiarity: Familiarity | None = None
        self.lowered: Callable[[Tensor], Tensor] | None = None
        """What computes the trunk in its place, where it is served in another precision (models.lowering)."""

    def forward(self, x_nchw: Tensor) -> Tensor:
        """x: float (n, c, h, w) in [0, 1]. Logits (n, num_classes), without dropout."""
        return self._known(self.out(self.trunk(x_nchw)))

    def trunk(self, x_nchw: Tensor) -> Tensor:
        """Features (n, d), all that a dropout mask acts on."""
        if self.lowered is not None:
            return self.lowered(x_nchw)
        return F.relu(self.hidden(self.pool(self.convolutions(x_nchw)).flatten(1)))

    def head(self, features_nd: Tensor, masks_kd: Tensor | None) -> Tensor:
        """Logits (k, n, num_classes) under each of the masks; (1, n, num_classes) without dropout for None."""
        kept = features_nd[None] if masks_kd is None else features_nd[None] * masks_kd[:, None]
        return self._known(self.out(kept))

    @property
    def score_names(self) -> tuple[Reason, ...]:
        """What `scores` has a column for: outlier with an outlier class, unfamiliar once `familiarity` is fitted."""
        return (
            *(("unfamiliar",) if self.familiarity is not None else ()),
            *(("outlier",) if self.outlier_class else ()),
        )

    def scores(self, features_nd: Tensor) -> Tensor:
        """(n, s), higher is more suspicious: what the network has against an image besides its uncertainty."""
        columns = [] if self.familiarity is None else [self.familiarity(features_nd)]
        if self.outlier_class:
            columns.append(F.softplus(self.outlier_gap(features_nd)))
        return torch.stack(columns, dim=1) if columns else features_nd[:, :0]

    def outlier_gap(self, features_nd: Tensor) -> Tensor:
        """The outlier class's log odds against all the others together, (n,), without dropout.

        Raises ValueError for a network without that class.
        """
        if not self.outlier_class:
            raise ValueError("this network has no outlier class")
        logits: Tensor = self.out(features_nd)
        return logits[:, -1] - logits[:, :-1].logsumexp(dim=1)

    def training_logits(self, x_nchw: Tensor, rng: torch.Generator | None) -> Tensor:
        """All logits (n, num_classes, or one more); with dropout in train mode, drawn from `rng` where there is one."""
        if self.training and rng is not None:
            return self.dropout_logits(x_nchw, rng)
        logits: Tensor = self.out(self.trunk(x_nchw))
        return logits

    def dropout_logits(self, x_nchw: Tensor, rng: torch.Generator) -> Tensor:
        """All logits (n, num_classes, or one more) with a mask of each image's own, drawn from `rng`."""
        features = self.trunk(x_nchw)
        kept = torch.rand(features.shape, generator=rng, device=features.device) >= self.dropout
        logits: Tensor = self.out(features * kept / (1 - self.dropout))
        return logits

    def _known(self, logits: Tensor) -> Tensor:
        return logits[..., : self.num_classes] if self.outlier_class else logits


def check_fits(spec: ClassifierSpec, image_shape: ImageShape) -> None:
    """Raises UnfitNetwork where this kind of network cannot take images of that size."""
    height, width, _ = image_shape
    if spec.kind == "plain" and not all(plain.SMALLEST <= side <= plain.LARGEST for side in (height, width)):
        raise UnfitNetwork(
            f"networks of the kind plain take images of {plain.SMALLEST} to {plain.LARGEST} pixels a side, not "
            f"{height} × {width}; ingest at another size, or take the kind residual"
        )


def build_classifier(
    spec: ClassifierSpec, *, num_classes: int, image_shape: ImageShape, seed: int, outlier_class: bool = False
) -> Classifier:
    """A new network for images of `image_shape` (h, w, c), sides of 8 to 256 pixels; the same for the same seed.

    Raises UnfitNetwork.
    """
    check_fits(spec, image_shape)
    with seeded(derive_seed(seed, "classifier")):
        network = Classifier(spec, num_classes=num_classes, image_shape=image_shape, outlier_class=outlier_class)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def restore_classifier(
    spec: ClassifierSpec, weights: Mapping[str, Tensor], *, num_classes: int, image_shape: ImageShape
) -> Classifier:
    """The network that had this `state_dict`, in eval mode: with outlier class and familiarity where it had them.

    Raises UnfitNetwork, and RuntimeError or KeyError where the weights are of another network.
    """
    outlier_class = weights["out.weight"].shape[0] == num_classes + 1
    network = build_classifier(
        spec, num_classes=num_classes, image_shape=image_shape, seed=0, outlier_class=outlier_class
    )
    if "familiarity.means" in weights:
        network.familiarity = Familiarity.empty(*weights["familiarity.means"].shape)
    network.load_state_dict(dict(weights))
    return network.eval()
