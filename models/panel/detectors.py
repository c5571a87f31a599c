"""The panel's detectors by name: each is fitted on what the pool shows, and scores what any other images show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.detectors import (
    activation_clustering,
    duplicates,
    encoder_loss,
    label_agreement,
    label_loss,
    poison_gain,
    reconstruction_divergence,
    recurring_patch,
    recurring_pattern,
    spectral_signature,
    unchecked_loss,
)
from models.images import Images
from models.panel.encoded import cross_fit_losses
from models.panel.pool import FOLDS, Bools, Labels, Pool
from models.panel.views import Float32s, View
from models.seeding import derive_seed
from models.specs import DetectorName

Reconstruct = Callable[[Images, Labels], Images]
LogProbabilities = Callable[[Images, Labels], Float32s]
Encode = Callable[[Images], Float32s]

NEIGHBOURS = 10


class Fitted(Protocol):
    """A detector ready to score."""

    def score(self, view: View) -> Float32s:
        """(n,), higher is more suspicious; an image's score does not depend on the images beside it."""


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """−log p(label) of the classifier of confirmed labels."""

    def score(self, view: View) -> Float32s:
        return label_loss.label_loss(view.checked, view.labels)


@dataclass(frozen=True, eq=False)
class UncheckedLoss:
    """−log p(label) of the classifier of every label."""

    def score(self, view: View) -> Float32s:
        return unchecked_loss.unchecked_loss(view.believing, view.labels)


@dataclass(frozen=True, eq=False)
class PoisonGain:
    """How much more the label is believed by the classifier that has met the poison."""

    def score(self, view: View) -> Float32s:
        return poison_gain.poison_gain(view.believing, view.checked, view.labels)


@dataclass(frozen=True, eq=False)
class PerFold:
    """A detector for each fold: the folds' features come from different networks."""

    parts: tuple[Fitted, ...]

    def score(self, view: View) -> Float32s:
        found = np.empty(len(view), np.float32)
        for fold, part in enumerate(self.parts):
            chosen = view.folds == fold
            if chosen.any():
                found[chosen] = part.score(view.at(chosen))
        return found


@dataclass(frozen=True, eq=False)
class Agreement:
    index: label_agreement.LabelAgreement

    def score(self, view: View) -> Float32s:
        return self.index.score(view.checked_features, view.labels, rows=view.rows)


@dataclass(frozen=True, eq=False)
class Signature:
    fitted: spectral_signature.SpectralSignature | activation_clustering.ActivationClustering

    def score(self, view: View) -> Float32s:
        return self.fitted.score(view.believing_features, view.labels)


@dataclass(frozen=True, eq=False)
class Copies:
    """indexed: the rows that the index holds, sorted."""

    index: duplicates.DuplicateIndex
    indexed: Labels

    def score(self, view: View) -> Float32s:
        hashes, known = duplicates.perceptual_hashes(view.images), np.isin(view.rows, self.indexed)
        found = np.empty(len(view), np.float32)
        for chosen, inside in ((known, True), (~known, False)):
            if chosen.any():
                found[chosen] = self.index.score(hashes[chosen], view.labels[chosen], indexed=inside)
        return found


@dataclass(frozen=True, eq=False)
class Recurrence:
    fitted: recurring_patch.RecurringPatch

    def score(self, view: View) -> Float32s:
        return self.fitted.score(view.images)


@dataclass(frozen=True, eq=False)
class Pattern:
    fitted: recurring_pattern.RecurringPattern

    def score(self, view: View) -> Float32s:
        return self.fitted.score(view.images, view.labels)


@dataclass(frozen=True, eq=False)
class Divergence:
    """Jensen–Shannon divergence of the checked classifier's answers to an image and to its reconstruction."""

    reconstruct: Reconstruct
    answers: LogProbabilities

    def score(self, view: View) -> Float32s:
        rebuilt = self.answers(self.reconstruct(view.images, view.folds), view.folds)
        return reconstruction_divergence.jensen_shannon(view.checked, rebuilt)


@dataclass(frozen=True, eq=False)
class Encoded:
    """−log p(label) of linear classifiers of what a pretrained encoder sees. fitted: one for each fold."""

    encode: Encode
    fitted: tuple[encoder_loss.EncoderLoss, ...]

    def score(self, view: View) -> Float32s:
        features, found = self.encode(view.images), np.empty(len(view), np.float32)
        for fold, part in enumerate(self.fitted):
            own = view.folds == fold
            found[own] = part.score(features[own], view.labels[own])
        return found


@dataclass(frozen=True, eq=False)
class Means:
    """What fitting a detector may use. confirmed, known: bool over the view's images.

    known: those that taught the first classifiers, trusted or sifted. pool: what the view shows, encoded by `encode`.
    """

    view: View
    confirmed: Bools
    known: Bools
    seed: int
    reconstruct: Reconstruct
    answers: LogProbabilities
    encode: Encode | None = None
    pool: Pool | None = None


def fit_detector(name: DetectorName, means: Means) -> Fitted:
    """Raises ValueError where the pool is too small for it."""
    return _FITS[name](means)


def _agreement(means: Means) -> Fitted:
    """Neighbours among the confirmed images; among all of a fold where too few are confirmed to have any."""
    parts = []
    for fold in range(FOLDS):
        of_fold = means.view.folds == fold
        chosen = of_fold & means.confirmed
        own = means.view.at(chosen if np.count_nonzero(chosen) > NEIGHBOURS else of_fold)
        neighbours = min(NEIGHBOURS, len(own) - 1)
        index = label_agreement.LabelAgreement.fit(own.checked_features, own.labels, neighbours, rows=own.rows)
        parts.append(Agreement(index))
    return PerFold(tuple(parts))


def _signature(means: Means) -> Fitted:
    views = [means.view.of_fold(fold) for fold in range(FOLDS)]
    fit = spectral_signature.SpectralSignature.fit
    return PerFold(tuple(Signature(fit(v.believing_features, v.labels, num_classes=v.num_classes)) for v in views))


def _clusters(means: Means) -> Fitted:
    parts = []
    for fold in range(FOLDS):
        own = means.view.of_fold(fold)
        rng = np.random.default_rng(derive_seed(means.seed, "clusters", fold))
        fitted = activation_clustering.ActivationClustering.fit(
            own.believing_features, own.labels, num_classes=own.num_classes, rng=rng
        )
        parts.append(Signature(fitted))
    return PerFold(tuple(parts))


def _copies(means: Means) -> Fitted:
    hashes = duplicates.perceptual_hashes(means.view.images)
    return Copies(duplicates.DuplicateIndex.fit(hashes, means.view.labels), np.sort(means.view.rows))


def _recurrences(means: Means) -> Fitted:
    """Each fold is judged by what recurs in the other: an image is no evidence against itself, nor are
    its like where groups are known."""
    parts = []
    for fold in range(FOLDS):
        other = means.view.folds != fold
        view, known = means.view.at(other), means.known[other]
        parts.append(Recurrence(recurring_patch.RecurringPatch.fit(view.images, _surprise(view), known)))
    return PerFold(tuple(parts))


def _patterns(means: Means) -> Fitted:
    """As what recurs: of the other fold."""
    parts = []
    for fold in range(FOLDS):
        view = means.view.at(means.view.folds != fold)
        fit = recurring_pattern.RecurringPattern.fit
        parts.append(Pattern(fit(view.images, view.labels, _surprise(view), num_classes=view.num_classes)))
    return PerFold(tuple(parts))


def _encoder_loss(means: Means) -> Fitted:
    if means.encode is None or means.pool is None:
        raise ValueError("encoder_loss needs an encoder")
    return Encoded(means.encode, cross_fit_losses(means.pool, means.confirmed, means.known))


def _surprise(view: View) -> Float32s:
    """How little the checked classifier believes each label, (n,) in [0, 1]."""
    believed = np.exp(view.checked[np.arange(len(view)), view.labels])
    return np.asarray(np.clip(1 - believed, 0, 1), dtype=np.float32)


_FITS: dict[str, Callable[[Means], Fitted]] = {
    "label_loss": lambda means: LabelLoss(),  # noqa: ARG005
    "unchecked_loss": lambda means: UncheckedLoss(),  # noqa: ARG005
    "poison_gain": lambda means: PoisonGain(),  # noqa: ARG005
    "label_agreement": _agreement,
    "spectral_signature": _signature,
    "activation_clustering": _clusters,
    "recurring_patch": _recurrences,
    "recurring_pattern": _patterns,
    "duplicates": _copies,
    "encoder_loss": _encoder_loss,
    "reconstruction_divergence": lambda means: Divergence(means.reconstruct, means.answers),
}

MODULES = {
    "label_loss": label_loss,
    "unchecked_loss": unchecked_loss,
    "poison_gain": poison_gain,
    "label_agreement": label_agreement,
    "spectral_signature": spectral_signature,
    "activation_clustering": activation_clustering,
    "recurring_patch": recurring_patch,
    "recurring_pattern": recurring_pattern,
    "duplicates": duplicates,
    "encoder_loss": encoder_loss,
    "reconstruction_divergence": reconstruction_divergence,
}
"""Where each says what it sees and what it cannot."""
