"""A planted masked defence and an earned one, on MNIST: which of them the evaluation flags, and by what signs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import datasets
from benchmarks.endtoend_setting import Scene
from benchmarks.harness import ClaimRow, row
from models.attacks.gradient import ifgsm
from models.evaluate_specs import EvaluateSpec
from models.images import to_float
from models.robustness import Evaluation, Target, evaluate
from models.seeding import derive_seed, seeded
from models.training import Silent

EPS = 0.1
TRAIN_IMAGES, STEPS, BATCH = 5000, 500, 64
TEMPERATURE = 100.0
ATTACKS = (
    *("fgsm", "ifgsm", "pgd-cross-entropy", "pgd-margin", "pgd-temperature"),
    *("transfer-teacher", "transfer-foreign", "square"),
)


def rows(scene: Scene) -> tuple[list[ClaimRow], dict[str, Any]]:
    data = datasets.load(scene.data, "mnist")
    count = min(TRAIN_IMAGES, scene.scale.candidates)
    x, y = to_float(data.images[:count]), torch.from_numpy(data.labels[:count])
    teacher, foreign = _network(scene, "teacher"), _network(scene, "foreign")
    _fit(teacher, x, y, temperature=TEMPERATURE)
    _fit(foreign, x, y)
    with torch.no_grad():
        soft = torch.cat([(teacher(part) / TEMPERATURE).softmax(1) for part in x.split(500)])
    student, earned = _network(scene, "student"), _network(scene, "earned")
    _fit(student, x, y, soft=soft, temperature=TEMPERATURE)
    _fit(earned, x, y, hardened=True)
    found: list[ClaimRow] = []
    told: dict[str, Any] = {}
    for name, target in (
        ("distilled-at-100", Target(student, teacher=teacher, foreign=[foreign], temperature=TEMPERATURE)),
        ("trained-on-attacks", Target(earned, teacher=foreign, foreign=[foreign])),
    ):
        images, labels = data.test_images[: scene.scale.attacked], data.test_labels[: scene.scale.attacked]
        result = evaluate(target, images, labels, _spec(scene), watch=Silent())
        raised = [sign["flag"] for sign in result.masking if sign["raised"]]
        found += _rows(name, result, raised, masked=name == "distilled-at-100")
        told[name] = raised
    return found, told


def _spec(scene: Scene) -> EvaluateSpec:
    return EvaluateSpec(
        attacks=ATTACKS,
        **{"eps_linf": EPS, "step_linf": EPS / 4, "steps": 20, "pgd_steps": 20, "pgd_restarts": 1, "queries": 150},
        **{"eps_curve": (), "max_images": scene.scale.attacked, "costly_images": scene.scale.attacked},
        seed=scene.seed,
    )


def _rows(name: str, result: Evaluation, raised: list[str], *, masked: bool) -> list[ClaimRow]:
    count, wanted = len(raised), ">= 1 sign raised" if masked else "no sign raised"
    label = f"endtoend/mnist/masking/{name}"
    found = [row(f"{label}/signs-raised", wanted, count, (count > 0) is masked, n=len(result.masking), unit="signs")]
    for each in result.rows:
        right = each.accuracy
        claim, interval = f"{label}/{each.attack}/accuracy", (right.low, right.high)
        found.append(row(claim, "shown", right.share, True, interval=interval, n=right.n))
    return found


def _network(scene: Scene, name: str) -> nn.Module:
    with seeded(derive_seed(scene.seed, "masking", name)):
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2, padding=2)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10)),
        )


def _fit(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    soft: Tensor | None = None,
    temperature: float = 1.0,
    hardened: bool = False,
) -> None:
    """Cross-entropy at a temperature; hardened: on I-FGSM against the network itself, after Madry et al. 2018."""
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(STEPS):
        rows = torch.randint(0, len(x), (BATCH,), generator=rng)
        seen = x[rows]
        if hardened:
            seen = ifgsm(network, seen, y[rows], eps_linf=1.2 * EPS, step_linf=EPS / 2, steps=4)
        loss = temperature * F.cross_entropy(network(seen) / temperature, y[rows] if soft is None else soft[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
