"""The model under test in an evaluate job, as its attackers hold it, and what it did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.abstention import AbstentionCalibration, calibrate_abstention
from models.attacks.guarded import ServedStack, filter_reform, filter_score
from models.classifiers import Classifier
from models.device import device_of
from models.filtering import Filter
from models.lowering import LoweredTrunk
from models.robustness import Answer, Evaluation, Target, guard
from models.specs import ClassifierSpec, DistillSpec, EvaluateSpec
from models.surrogates import fit_surrogates
from models.training import Watch
from service.errors import UnusableDataset
from service.references import parse_model_ref
from service.registry import bundle as bundles
from service.registry import repository as registry
from service.registry.bundle import Bundle
from service.registry.calibration import McDropout
from service.tables import ModelVersion
from worker.artifacts import load_network
from worker.context import Context
from worker.datasets import open_version
from worker.lineage import sanitise_filter

FOREIGN = 2
MOST_FOREIGN_IMAGES = 4000
EXPECTED_OVER = 16
"""Dropout masks that an attacker who does not know the served ones draws for each step."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The model under test."""

    reference: str
    target: Target
    answer: Answer
    alpha: float
    classes: list[str]
    warnings: list[str]


@dataclass(frozen=True, eq=False)
class Trial:
    """What the model under test did."""

    dataset: str
    found: Evaluation
    clean: dict[str, Any]


def load_subject(context: Context, spec: EvaluateSpec, watch: Watch) -> Subject:
    """watch: told of the foreign networks' training, where the spec wants them."""
    row = context.patiently(partial(_model, context))
    bundle = bundles.load(context.storage, row.prefix, row.files)
    distilled = DistillSpec.model_validate(bundle.card["spec"])
    student, teacher = (
        _network(context, bundle, row.prefix, name, network)
        for name, network in (("student", distilled.student), ("teacher", distilled.teacher))
    )
    trained_on = bundle.card["lineage"]["dataset"]
    dataset, _ = open_version(context, trained_on)
    kept = sanitise_filter(context, dataset)
    alpha = spec.alpha or bundle.calibration.alpha
    own = None if kept is None else kept.filter
    masks = bundle.calibration.mc.masks()
    score = None if own is None else own.score
    calibration = _reformed(student, bundle, own) if spec.reform else bundle.calibration.abstention
    reform = own.reconstruct if own is not None and spec.reform else None
    answer = guard(_as_served(student, distilled, bundle), masks, calibration, score, alpha=alpha, reform=reform)
    known, mc = torch.from_numpy(masks).to(device_of(student)), bundle.calibration.mc

    def stack(given: Callable[[], torch.Tensor]) -> ServedStack:
        return ServedStack.of(
            *(student, given, calibration),
            alpha=alpha,
            detector=None if own is None else filter_score(own.network),
            reform=None if reform is None or own is None else filter_reform(own.network),
        )

    target = Target(
        student,
        answer=answer,
        alpha=alpha,
        stack=stack(lambda: known),
        stack_in_expectation=lambda rng: stack(lambda: _drawn(mc, rng)),
        teacher=teacher,
        foreign=_foreign(context, trained_on, spec, watch) if "transfer-foreign" in spec.chosen else (),
        temperature=distilled.temperature,
    )
    return Subject(
        registry.reference_of(row), target, answer, alpha, list(bundle.classes), _warnings(distilled.export.precision)
    )


def _model(context: Context) -> ModelVersion:
    with context.database.session() as session:
        return registry.resolve(session, parse_model_ref(context.claim.inputs["model"]))


def _network(context: Context, bundle: Bundle, prefix: str, name: str, spec: ClassifierSpec) -> Classifier:
    data = context.storage.read(f"{prefix}/{name}.safetensors")
    return load_network(data, spec, num_classes=len(bundle.classes), image_shape=bundle.image_shape)


def _warnings(precision: str) -> list[str]:
    if precision == "float32":
        return []
    return [
        f"The student is served in {precision}, and what the served model answers is judged in it. Attacks follow the "
        "gradients of its float32 weights, and the rows of the student alone are of those."
    ]


def _as_served(student: Classifier, distilled: DistillSpec, bundle: Bundle) -> Classifier:
    """In the precision that it answers in. Its attackers hold float32, which has gradients."""
    if distilled.export.precision == "float32":
        return student
    served = copy.deepcopy(student)
    served.lowered = LoweredTrunk.of_graph(bundle.served)
    return served


def _drawn(mc: McDropout, rng: torch.Generator) -> torch.Tensor:
    """Dropout masks (EXPECTED_OVER, d) as the served ones are made, but others."""
    kept = torch.rand((EXPECTED_OVER, mc.feature_dim), generator=rng, device=rng.device) >= mc.dropout
    return kept.float() / (1 - mc.dropout)


def _reformed(student: Classifier, bundle: Bundle, own: Filter | None) -> AbstentionCalibration:
    """The bundle's calibration for a student that sees reconstructions, as the gateway makes it."""
    held, before = bundle.held_out(), bundle.calibration.abstention
    if own is None or held.reformed is None:
        raise UnusableDataset(
            "This model was made without a filter, so it has nothing to reform images with. Leave out reform, or "
            "distill from a sanitised data set.",
            code="cannot_reform",
        )
    device, masks = device_of(student), torch.from_numpy(bundle.calibration.mc.masks())
    features = torch.from_numpy(held.reformed).to(device)
    with torch.no_grad():
        passes = torch.stack([student.head(features, mask[None].to(device))[0].softmax(-1) for mask in masks])
        scores = student.scores(features).cpu().numpy()
    further = dict(zip(student.score_names, scores.T, strict=True))
    return calibrate_abstention(
        *(passes.mean(0, keepdim=True).cpu().numpy(), held.labels, held.scores),
        seed=bundle.calibration.mc.seed,
        student_scores={name: further[name] for name in before.student_scores},
        per_class=before.per_class,
    )


def _foreign(context: Context, trained_on: str, spec: EvaluateSpec, watch: Watch) -> Sequence[nn.Module]:
    """Networks of other architectures, fitted on images that the student was trained on."""
    row, reader = open_version(context, trained_on)
    rng = np.random.default_rng(np.random.PCG64(spec.seed))
    rows: NDArray[np.int64] = np.sort(rng.permutation(row.num_samples)[:MOST_FOREIGN_IMAGES])
    fitted = fit_surrogates(
        reader.images(rows),
        reader.labels()[rows],
        count=FOREIGN,
        num_classes=len(row.classes),
        seed=spec.seed,
        watch=watch,
        checkpoints=context.checkpoints,
    )
    return [surrogate.network for surrogate in fitted]
