"""What the end-to-end benchmark's parts share: the stack, how large a run is, the sets uploaded, the models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import datasets
from benchmarks.gtsrb import as_npz
from benchmarks.main import predict_all, wait
from models.attacks.poisoning import poison
from models.attacks.triggers import Patch
from service.client import Job, ProblemError, WinnowClient

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

POISON_SHARE, TARGET = 0.02, 1
TRIGGER = Patch(size_px=5, margin_px=4, colours=((255, 255, 0),))
"""Gu et al. 2017 put a yellow square on traffic signs; a chequered one of 3 px does not survive augmentation."""


@dataclass(frozen=True)
class Scale:
    """How many images a run takes, and what its jobs do otherwise than by default."""

    trusted: int
    candidates: int
    asked: int
    attacked: int
    suite: str
    params: dict[str, Any]


FEW_ATTACKED: dict[str, Any] = {"evaluate": {"max_images": 100}}  # the stack's own part attacks in earnest
FULL = Scale(2000, 10_000, 2000, 400, "full", FEW_ATTACKED)
QUICK = Scale(
    1000, 2000, 300, 20, "quick", {**FEW_ATTACKED, "distill": {"fit": {"epochs": 3}, "max_accuracy_loss": 1.0}}
)


@dataclass(frozen=True, eq=False)
class World:
    """One image set as the service is given it: trusted and candidate images, production's, and those asked about.

    poison: bool (n,), of the candidates.
    """

    name: str
    trusted: tuple[Images, Labels]
    candidates: tuple[Images, Labels]
    production: tuple[Images, Labels]
    asked: tuple[Images, Labels]
    groups: tuple[Labels, Labels] | None
    is_poison: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    client: WinnowClient
    home: Path
    data: Path
    scale: Scale
    seed: int

    def world(self, name: str, *, poisoned: bool) -> World:
        """Half of the test images are production's, which calibrate abstention; of the others some are asked about."""
        given = datasets.load(self.data, name)
        split = datasets.split(given, trusted=self.scale.trusted, candidates=self.scale.candidates, seed=self.seed)
        trusted = np.sort(np.concatenate([split.fit, split.calibrate]))
        candidates = given.images[split.candidates], given.labels[split.candidates]
        is_poison = np.zeros(len(split.candidates), np.bool_)
        if poisoned:
            rng = np.random.default_rng((self.seed, 11))
            made = poison(*candidates, TRIGGER, share=POISON_SHARE, target=TARGET, rng=rng)
            candidates, is_poison = (made.images, made.labels), made.is_poison
        order = np.random.default_rng((self.seed, 12)).permutation(len(given.test_labels))
        production, asked = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :][: self.scale.asked])
        groups = None if given.groups is None else (given.groups[trusted], given.groups[split.candidates])
        return World(
            name,
            (given.images[trusted], given.labels[trusted]),
            candidates,
            (given.test_images[production], given.test_labels[production]),
            (given.test_images[asked], given.test_labels[asked]),
            groups,
            is_poison,
        )

    def upload(self, name: str, part: tuple[Images, Labels], groups: Labels | None = None) -> str:
        """The version's reference; one that the home has is not uploaded again."""
        if any(version.name == name for version in self.client.datasets()):
            return f"{name}@1"
        wait(self.client, self.client.upload_dataset(name, as_npz(*part, groups)))
        return f"{name}@1"

    def upload_world(self, world: World) -> dict[str, str]:
        of_trusted, of_candidates = world.groups or (None, None)
        return {
            "trusted": self.upload(f"{world.name}-trusted", world.trusted, of_trusted),
            "candidates": self.upload(f"{world.name}-candidates", world.candidates, of_candidates),
            "production": self.upload(f"{world.name}-production", world.production),
            "asked": self.upload(f"{world.name}-asked", world.asked),
        }

    def hardened(self, world: World, versions: dict[str, str], **params: Any) -> Job:
        """The harden job of this world, run unless the home has it."""
        model = f"{world.name}-student"
        for job in self.client.jobs(type="harden", state="succeeded"):
            if (job.result or {}).get("model", "").startswith(f"{model}@"):
                return job
        return wait(
            self.client,
            self.client.submit(
                "harden",
                dataset=versions["candidates"],
                reference=versions["trusted"],
                model=model,
                evaluate_on=versions["asked"],
                calibrate_on=versions["production"],
                params=merged(self.scale.params, params),
            ),
        )

    def distilled(self, model: str, dataset: str, reference: str) -> str:
        """A model of this set as it is, trained unless the home has it."""
        try:
            return self.client.model(f"{model}@1").model
        except ProblemError:
            params = self.scale.params.get("distill", {})
            job = self.client.submit("distill", dataset=dataset, model=model, reference=reference, params=params)
            return str((wait(self.client, job).result or {})["model"])

    def answers(self, model: str, images: Images, alpha: float) -> list[Any]:
        return predict_all(self.client, model, images, alpha)


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`second` laid over `first`, section by section."""
    both = {**first, **second}
    shared = first.keys() & second.keys()
    return both | {name: {**first[name], **second[name]} for name in shared}
