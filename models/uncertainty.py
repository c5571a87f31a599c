"""MC dropout in torch: the probabilities of each dropout pass, with the masks given explicitly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from models.attacks.gradient import evaluating
from models.classifiers import Classifier
from models.device import device_of, exact_convolutions
from models.images import Images, check_images, chunks, to_float
from models.training import Silent, Watch

BATCH_SIZE = 256


def mc_probabilities(
    model: Classifier, images: Images, masks: npt.NDArray[np.float32], *, watch: Watch | None = None
) -> npt.NDArray[np.float32]:
    """Softmax at T = 1 of every image under every mask; the trunk runs once an image.

    images: uint8 (n, h, w, c); masks: (k, d) as from `dropout_masks`. Returns (k, n, classes). Leaves the model's mode.
    Raises NotImages, ValueError where the masks do not fit, and Stopped when the watch does.
    Source: Gal & Ghahramani 2016.
    """
    check_images(images)
    if masks.ndim != 2 or masks.shape[1] != model.feature_dim:
        raise ValueError(f"masks must have shape (k, {model.feature_dim}), not {masks.shape}")
    watch, device = watch or Silent(), device_of(model)
    probabilities = np.empty((len(masks), len(images), model.num_classes), dtype=np.float32)
    masks_kd = torch.from_numpy(masks).to(device)
    with torch.no_grad(), evaluating(model), exact_convolutions():
        for rows in chunks(len(images), BATCH_SIZE):
            logits = model.head(model.trunk(to_float(images[rows], device)), masks_kd)
            probabilities[:, rows] = logits.softmax(dim=-1).cpu().numpy()
            watch.advance(rows.stop, len(images))
    return probabilities
