"""An evaluate job: what attacks do to a registered model, bare and as it is served."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from models.robustness import Evaluation, evaluate, share
from models.specs import EvaluateSpec
from service.datasets import repository as datasets
from worker.context import Context, Outcome
from worker.datasets import open_version, relabelled
from worker.examples import worst_cases
from worker.reporting import write_evaluation
from worker.subject import Subject, Trial, load_subject

PLAN = {"foreign networks": 5.0, "clean images": 10.0, "attacks": 80.0, "report": 5.0}
BLOCK_IMAGES = 512


def run(context: Context) -> Outcome:
    context.progress.plan(PLAN)
    spec = EvaluateSpec.model_validate(context.claim.params)
    subject = load_subject(context, spec, context.progress.enter("foreign networks"))
    row, reader = open_version(context, context.claim.inputs["dataset"])
    labels = relabelled(reader.labels(), row.classes, subject.classes)
    clean = _clean(context, subject, reader.shards(), labels)
    rows = _sampled(row.num_samples, spec)
    images = reader.images(rows)
    watch = context.progress.enter("attacks", unit="gradients")
    found = evaluate(subject.target, images, labels[rows], spec, watch=watch)
    context.progress.enter("report")
    trial = Trial(datasets.reference_of(row), found, clean)
    write_evaluation(context, subject, trial, spec, worst_cases(subject, images, labels[rows], found))
    metrics = {"clean": clean, "alpha": subject.alpha, "dataset": trial.dataset, **_summary(found)}

    def publish(_session: Session) -> dict[str, Any]:
        return {}

    return Outcome({"model": subject.reference, "metrics": metrics}, publish)


def _sampled(num_samples: int, spec: EvaluateSpec) -> NDArray[np.int64]:
    rng = np.random.default_rng(np.random.PCG64(spec.seed))
    return np.sort(rng.permutation(num_samples)[: spec.max_images]).astype(np.int64)


def _clean(context: Context, subject: Subject, shards: Any, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy and abstention on all clean images of the set, with intervals."""
    watch = context.progress.enter("clean images", unit="images")
    right, abstained, wrong = 0, 0, 0
    for start, images in shards:
        for place in range(0, len(images), BLOCK_IMAGES):
            block = images[place : place + BLOCK_IMAGES]
            truth = labels[start + place : start + place + len(block)]
            decision = subject.answer(block)
            correct = decision.label_index == truth
            right += int(correct.sum())
            abstained += int(decision.abstained.sum())
            wrong += int((~correct & ~decision.abstained).sum())
            watch.advance(start + place + len(block), len(labels))
    n = len(labels)
    shares = {"accuracy": share(right, n), "abstained": share(abstained, n), "wrong_and_answered": share(wrong, n)}
    return {name: {"share": s.share, "low": s.low, "high": s.high, "n": s.n} for name, s in shares.items()}


def _summary(found: Evaluation) -> dict[str, Any]:
    document = found.to_json()
    return {"attacks": document.pop("rows"), **document}
