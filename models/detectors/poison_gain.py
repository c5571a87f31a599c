"""How much more firmly a label is believed by a classifier that has met the poison than by one that has not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SEES = (
    "Triggers: an image whose label only those believe who have learnt from the unchecked set, as a backdoor teaches "
    "it. The more poison there is of a kind, the better it is learnt, and the plainer it shows."
)
BLIND_TO = (
    "Poison that teaches nothing beyond itself, such as single flipped labels, and poison whose label is right. "
    "Where checking has let part of the poison in, both classifiers know it and the gain shrinks."
)

Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def poison_gain(believing: Floats, checked: Floats, labels: Labels) -> Float32s:
    """log p(label) under the classifier of every label − the same under the classifier of confirmed labels, in nats.

    believing, checked: log probabilities (n, c) of classifiers that have not seen these very images; labels: (n,).
    Returns (n,). Raises ValueError where shapes do not fit.
    Source: ours; kin to the loss differences of Li et al. 2021 (anti-backdoor learning).
    """
    if believing.shape != checked.shape or labels.shape != checked.shape[:1]:
        raise ValueError(f"want log probabilities of the same images: {believing.shape}, {checked.shape}")
    rows = np.arange(len(labels))
    return np.asarray(believing[rows, labels] - checked[rows, labels], dtype=np.float32)
