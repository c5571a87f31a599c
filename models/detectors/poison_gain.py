"""How much more firmly a label is believed by a classifier that has met the poison than by one that has not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.detectors.label_loss import label_log_odds

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
    """Log-odds of the label under the classifier of every label − the same under that of confirmed labels, in nats.

    believing, checked: log probabilities (n, c) of classifiers that have not seen these very images; labels: (n,).
    Returns (n,). Raises ValueError where shapes do not fit.
    Odds and not probabilities: a learnt trigger's label is believed with odds of e²⁵ where that of a hard clean image
    has e⁵, and to a difference of probabilities both are one.
    Source: ours; kin to the loss differences of Li et al. 2021 (anti-backdoor learning).
    """
    if believing.shape != checked.shape or labels.shape != checked.shape[:1]:
        raise ValueError(f"want log probabilities of the same images: {believing.shape}, {checked.shape}")
    return (label_log_odds(believing, labels) - label_log_odds(checked, labels)).astype(np.float32)
