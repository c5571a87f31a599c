"""GTSRB split by physical sign, and a candidate set with poison in it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import attackers

TRACKS_A_CLASS = 1000  # more than any class has: (class, track) names a sign


@dataclass(frozen=True)
class Signs:
    """The training images in two parts that share no sign, and the test images."""

    reference: NDArray[np.int64]  # rows of the training set
    candidate: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    signs: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Poisoned:
    """The candidate images as they are uploaded, and the truth about them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    kind: NDArray[np.str_]  # "clean", or attack and attacker such as "ifgsm/mixer"
    attacker_accuracy: dict[str, dict[str, float]]

    @property
    def poison(self) -> NDArray[np.bool_]:
        return np.asarray(self.kind != "clean")


def load(folder: Path, *, reference_images: int, candidate_images: int | None, seed: int) -> Signs:
    """`candidate_images` None takes all the rest. Every class has a sign in the reference."""
    data = np.load(folder / "gtsrb.npz")
    labels = data["y_train"].astype(np.int64)
    signs = labels * TRACKS_A_CLASS + data["track_train"].astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(signs))
    first = {int(sign) // TRACKS_A_CLASS: sign for sign in order[::-1]}
    order = np.concatenate([list(first.values()), [sign for sign in order if sign not in set(first.values())]])
    sizes = np.cumsum([(signs == sign).sum() for sign in order])
    chosen = order[: int(np.searchsorted(sizes, reference_images)) + 1]
    in_reference = np.isin(signs, chosen)
    candidate = np.flatnonzero(~in_reference)
    if candidate_images is not None:
        candidate = np.sort(rng.choice(candidate, candidate_images, replace=False))
    return Signs(
        np.flatnonzero(in_reference),
        candidate,
        data["x_train"],
        labels,
        signs,
        data["x_test"],
        data["y_test"].astype(np.int64),
    )


def poison(signs: Signs, *, share: float, epochs: int, seed: int) -> Poisoned:
    """Perturb a share of the candidates: half FGSM, half I-FGSM, each against two networks in turn."""
    images, labels = signs.images[signs.candidate].copy(), signs.labels[signs.candidate]
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(images))[: round(share * len(images))]
    kind = np.full(len(images), "clean", dtype="<U20")
    networks = {
        "mixer": attackers.PatchMixer(3, images.shape[1], int(labels.max()) + 1),
        "branches": attackers.WideBranches(3, int(labels.max()) + 1),
    }
    told: dict[str, dict[str, float]] = {}
    parts = np.array_split(chosen, 4)
    for number, (name, network) in enumerate(networks.items()):
        attackers.train(network, signs.images[signs.candidate], labels, epochs=epochs, seed=seed + number)
        told[name] = {"clean": attackers.accuracy(network, signs.test_images, signs.test_labels)}
        for attack, rows in zip(("fgsm", "ifgsm"), parts[2 * number : 2 * number + 2], strict=True):
            images[rows] = attackers.perturb(network, images[rows], labels[rows], attack)
            kind[rows] = f"{attack}/{name}"
            told[name][attack] = attackers.accuracy(network, images[rows], labels[rows])
    return Poisoned(images, labels, kind, told)


def as_npz(images: NDArray[np.uint8], labels: NDArray[np.int64], signs: NDArray[np.int64] | None = None) -> io.BytesIO:
    buffer = io.BytesIO()
    groups = {} if signs is None else {"groups": signs}
    np.savez(buffer, images=images, labels=labels, **groups)
    buffer.seek(0)
    return buffer
