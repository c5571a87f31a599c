"""The loss of a label under classifiers that believed every label of the set but this image's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.detectors.label_loss import label_loss

SEES = (
    "Labels that the rest of the set contradicts: single flips, and poison too rare to be learnt. It needs no label "
    "confirmed, so it sees most where a trusted set is too small to teach its classes."
)
BLIND_TO = (
    "Poison that the set teaches consistently: a learnt trigger's label has the lowest loss of all. Poison with a "
    "fitting label."
)


def unchecked_loss(believing: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """−log p(label | x) in nats. believing: log probabilities (n, c) of classifiers that were not fitted on these very
    images; labels: (n,). Returns (n,). Raises ValueError as `label_loss` does.

    Source: Northcutt et al. 2021 (out-of-sample self-confidence); deviation: a score with a p-value, not a count.
    """
    return label_loss(believing, labels)
