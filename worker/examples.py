"""Images that an attack turned, for the report's eyes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.attacks.gradient import to_8bit
from models.device import device_of
from models.images import to_float, to_uint8
from models.robustness import attacks
from models.specs import EvaluateSpec
from models.training import Watch
from worker.reports.evaluate import AttackExample
from worker.subject import Subject

TRIED_IMAGES = 64
SHOWN_EACH = 4


def worst_cases(
    subject: Subject, images: NDArray[np.uint8], labels: NDArray[np.int64], spec: EvaluateSpec, watch: Watch
) -> list[AttackExample]:
    """Of each attack a few images that the student had right and then had wrong, answered ones first."""
    images, labels = images[:TRIED_IMAGES], labels[:TRIED_IMAGES]
    tried = attacks(spec)
    found: list[AttackExample] = []
    for done, attack in enumerate(tried):
        watch.advance(done, len(tried))
        device = device_of(subject.student)
        rng = torch.Generator(device).manual_seed(spec.seed)
        truth = torch.from_numpy(labels).to(device)
        attacked = to_uint8(to_8bit(attack.perturb(subject.student, to_float(images, device), truth, rng)))
        found += _turned(subject, attack.name, images, attacked, labels)
    return found


def _turned(
    subject: Subject, attack: str, images: NDArray[np.uint8], attacked: NDArray[np.uint8], labels: NDArray[np.int64]
) -> list[AttackExample]:
    before, decision = subject.answer(images).label_index, subject.answer(attacked)
    after = decision.label_index
    turned = np.flatnonzero((before == labels) & (after != labels))
    order = turned[np.argsort(decision.abstained[turned], kind="stable")][:SHOWN_EACH]
    return [
        AttackExample(
            attack=attack,
            original=images[place],
            attacked=attacked[place],
            label=subject.classes[labels[place]],
            before=subject.classes[before[place]],
            after=subject.classes[after[place]],
            answer=None if decision.abstained[place] else subject.classes[after[place]],
            reason=decision.reason[place],
        )
        for place in order
    ]
