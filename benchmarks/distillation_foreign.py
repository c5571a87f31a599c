"""Foreign images: how many the student refuses at α = 5 %, by the tests it has and by others that it might have had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks import datasets
from benchmarks.distillation_networks import distilled, training_rows
from benchmarks.harness import ClaimRow, row
from models.abstention import Reason, calibrate_abstention, decide, dropout_masks
from models.calibration import JointTest, realised_rate_bounds, wilson_interval
from models.classifiers import Classifier
from models.familiarity import fit_familiarity, student_scores
from models.images import chunks, to_float
from models.uncertainty import mc_probabilities

ALPHA = 0.05
FOREIGN = {"mnist": "fashion-mnist", "gtsrb": "cifar10"}
CALIBRATING, CLEAN, STRANGERS = 2500, 3000, 2000
PASSES, NEIGHBOURS = 32, 10
Images = NDArray[np.uint8]
Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Three:
    """One thing of calibration, clean and foreign images."""

    calibration: Any
    clean: Any
    foreign: Any

    def each(self) -> tuple[Any, Any, Any]:
        return self.calibration, self.clean, self.foreign


def foreign_rows(data: Path, cache: Path, *, quick: bool) -> tuple[list[ClaimRow], dict[str, Any]]:
    rows: list[ClaimRow] = []
    study: dict[str, Any] = {}
    for name, stranger in FOREIGN.items():
        given = datasets.load(data, name)
        student = distilled(given, "defensive", cache, quick=quick).student
        train = training_rows(given, "defensive", 0, quick=quick)
        student.familiarity = fit_familiarity(student, given.images[train], given.labels[train])
        order = np.random.default_rng(1).permutation(len(given.test_labels))
        share = 10 if quick else 1
        cut = CALIBRATING // share, (CALIBRATING + CLEAN) // share
        foreign = datasets.load(data, stranger).test_images[: STRANGERS // share]
        images = Three(given.test_images[order[: cut[0]]], given.test_images[order[cut[0] : cut[1]]], foreign)
        rows += _as_served(f"abstain/{name}", stranger, student, images, given.test_labels[order[: cut[0]]])
        study[f"{name}/{stranger}"] = alternatives(student, given.images[train][:8000], images)
    return rows, {"study": study}


def _as_served(label: str, stranger: str, student: Classifier, images: Three, labels: Any) -> list[ClaimRow]:
    masks = dropout_masks(PASSES, student.feature_dim, student.dropout, 0)
    passes = [mc_probabilities(student, each, masks) for each in images.each()]
    rows = []
    for name, with_familiarity in (("uncertainty-alone", False), ("as-served", True)):
        own: list[dict[Reason, Any]] = [
            student_scores(student, each) if with_familiarity else {} for each in images.each()
        ]
        made = calibrate_abstention(passes[0], labels, None, seed=0, student_scores=own[0])
        clean, foreign = (
            int(decide(passes[i], None, made, alpha=ALPHA, student_scores=own[i]).abstained.sum()) for i in (1, 2)
        )
        low, high = realised_rate_bounds(ALPHA, made.n, len(images.clean))
        rate, refused = clean / len(images.clean), foreign / len(images.foreign)
        wanted = f"within the bounds of α = {ALPHA} (n_cal = {made.n})"
        rows += [
            row(
                f"{label}/clean/{name}",
                wanted,
                rate,
                low <= rate <= high,
                interval=(low, high),
                n=len(images.clean),
            ),
            row(
                f"{label}/{stranger}/{name}",
                ">= 0.95" if with_familiarity else "shown",
                refused,
                not with_familiarity or refused >= 0.95,
                interval=wilson_interval(foreign, len(images.foreign)),
                n=len(images.foreign),
            ),
        ]
    return rows


def alternatives(student: Classifier, train: Images, images: Three) -> dict[str, dict[str, float]]:
    """Of each score: AUROC, and foreign images refused at α = 5 %, by it alone and together with the entropy."""
    features, of_train = Three(*(_features(student, each) for each in images.each())), _features(student, train)
    masks = dropout_masks(PASSES, student.feature_dim, student.dropout, 0)
    unsure = [_entropy(mc_probabilities(student, each, masks)) for each in images.each()]
    found = {}
    for name, scores in _scores(student, of_train, features).items():
        calibration, clean, foreign = (each.astype(np.float64) for each in scores.each())
        limit = np.quantile(calibration, 1 - ALPHA)
        joint = JointTest(np.stack([unsure[0], calibration], axis=1))
        truth = np.r_[np.zeros(len(clean)), np.ones(len(foreign))]
        found[name] = {
            "auroc": float(roc_auc_score(truth, np.r_[clean, foreign])),
            "clean_refused": float((clean > limit).mean()),
            "foreign_refused": float((foreign > limit).mean()),
            "foreign_refused_with_entropy": float(
                (joint.p_values(np.stack([unsure[2], foreign], axis=1))[0] <= ALPHA).mean()
            ),
        }
    return found


def _scores(student: Classifier, train: torch.Tensor, features: Three) -> dict[str, Three]:
    if student.familiarity is None:
        raise ValueError("the student has no familiarity yet")
    with torch.no_grad():
        logits = Three(*(student.out(each) for each in features.each()))
        unit = torch.nn.functional.normalize(train, dim=1)
        near = Three(*(_neighbour(torch.nn.functional.normalize(each, dim=1), unit) for each in features.each()))
        return {
            "unfamiliar (Mahalanobis, unit features)": Three(
                *(student.familiarity(each).numpy() for each in features.each())
            ),
            "energy": Three(*(-each.logsumexp(1).numpy() for each in logits.each())),
            "largest logit": Three(*(-each.amax(1).numpy() for each in logits.each())),
            "largest probability": Three(*(-each.softmax(1).amax(1).numpy() for each in logits.each())),
            "10th neighbour": near,
            "length of features": Three(*(-each.norm(dim=1).numpy() for each in features.each())),
        }


def _neighbour(features: torch.Tensor, train: torch.Tensor) -> Scores:
    parts = [torch.cdist(features[rows], train).kthvalue(NEIGHBOURS, dim=1) for rows in chunks(len(features), 256)]
    return torch.cat([part.values for part in parts]).numpy()


def _features(student: Classifier, images: Images) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([student.trunk(to_float(images[rows])) for rows in chunks(len(images), 256)])


def _entropy(passes: NDArray[np.float32]) -> Scores:
    mean = passes.astype(np.float64).mean(axis=0)
    return np.asarray(-(mean * np.log(np.maximum(mean, 1e-12))).sum(axis=1))
