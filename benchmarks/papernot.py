"""Papernot's defence as he tested it and as it must be: `python -m benchmarks.papernot --data FOLDER [--only mnist]`.

Distilled networks at nine temperatures (MNIST) and at T = 20 (CIFAR-10), under JSMA with 112 features, which looks
through a saturated softmax, and under attacks on the logits and from other networks, which do not. A set that is
measured again replaces its earlier rows; networks and measurements are kept, so that a run can be gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import datasets
from benchmarks.datasets import ImageSet
from benchmarks.harness import ClaimRow, commit, earlier, one_of, report, row
from benchmarks.papernot_figures import draw
from benchmarks.papernot_measures import EPS_LINF, Size, measure, transferred
from benchmarks.papernot_networks import EFFORTS, QUICK, TEMPERATURES, Effort, Pair, pair_of
from models.robustness import accuracy_under_attack
from models.specs import EvaluateSpec
from models.training import Silent

NAME = "papernot"
SIZES = {"mnist": Size(5000, 60, 60), "cifar10": Size(2000, 40, 60)}
SWEEP = Size(5000, 30, 30)
FIRST_LOOK = Size(500, 5, 10)
HIGH = {"mnist": 100, "cifar10": 20}
PAPER = {
    "mnist": {"plain": 0.9589, "distilled": 0.0045, "accuracy": 0.9951},
    "cifar10": {"plain": 0.8789, "distilled": 0.0511, "accuracy": 0.8095},
}
LEAST = 1e-300  # what a gradient in doubles that is zero is taken for
Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz and cifar10.npz")
    parser.add_argument("--cache", type=Path, help="where networks and measurements are kept; DATA/papernot")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    parser.add_argument("--only", type=one_of(EFFORTS), default=sorted(EFFORTS, reverse=True), help="mnist or cifar10")
    parser.add_argument(
        "--temperatures", type=int, default=len(TEMPERATURES["mnist"]), help="the first so many of them"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    began, cache = time.monotonic(), asked.cache or asked.data / NAME
    rows, parts = earlier(NAME, asked.only) if not asked.quick else ([], {})
    for name in asked.only:
        bench = Bench(datasets.load(asked.data, name), cache, asked.temperatures, quick=asked.quick)
        found = bench.run()
        mine = claims(name, found)
        rows += mine
        parts[name] = {
            "claims": [each.claim for each in mine],
            "commit": commit(),
            "effort": bench.effort.__dict__,
            "paper": PAPER[name],
            "found": found,
        }
        if not asked.quick and name == "mnist":
            draw(found)
    return report(NAME, rows, time.monotonic() - began, quick=asked.quick, extra={"parts": parts})


class Bench:
    """One image set; every measurement is kept under the network's name and read back where it is there."""

    def __init__(self, given: ImageSet, cache: Path, temperatures: int, *, quick: bool) -> None:
        """temperatures: so many of them, the one of the paper's table first."""
        self.given, self.cache, self.quick = given, cache, quick
        self.temperatures = TEMPERATURES[given.name][: 2 if quick else max(2, temperatures)]
        self.effort: Effort = (QUICK if quick else EFFORTS)[given.name]
        self.high = HIGH[given.name]

    def run(self) -> Found:
        plain = self.pair(1).teacher
        found: Found = {"plain": self.kept("plain", lambda: self._whole(self.pair(1), student=False))}
        for temperature in self.temperatures:
            whole = temperature == self.high
            found[f"T{temperature}"] = self.kept(
                f"T{temperature}{'-whole' if whole else ''}",
                lambda t=temperature, whole=whole: (
                    self._whole(self.pair(t), student=True, temperature=t) if whole else self._swept(t)
                ),
            )
        found["transfer"] = self.kept(
            "transfer",
            lambda: {
                "from_plain": transferred(self.given, plain, self.pair(self.high).student, self.size),
                "from_teacher": transferred(
                    self.given, self.pair(self.high).teacher, self.pair(self.high).student, self.size
                ),
            },
        )
        return found

    @property
    def size(self) -> Size:
        return FIRST_LOOK if self.quick else SIZES[self.given.name]

    def pair(self, temperature: int) -> Pair:
        return pair_of(self.given, temperature, self.effort, self.cache)

    def kept(self, name: str, make: Callable[[], Found]) -> Found:
        path = self.cache / f"{self.given.name}-{self.effort.tag}{'-quick' if self.quick else ''}-{name}.json"
        if not path.exists():
            began = time.monotonic()
            path.write_text(json.dumps(make()))
            print(f"{self.given.name} {name} measured in {time.monotonic() - began:.0f} s", flush=True)
        found: Found = json.loads(path.read_text())
        return found

    def _whole(self, pair: Pair, *, student: bool, temperature: float = 1) -> Found:
        network = pair.student if student else pair.teacher
        found = measure(self.given, network, temperature=temperature, size=self.size, full=True)
        eps = EPS_LINF[self.given.name]
        spec = EvaluateSpec(
            eps_linf=eps, step_linf=eps / 4, pgd_steps=20, pgd_restarts=1, max_images=self.size.untargeted
        )
        flags = accuracy_under_attack(
            network, self.given.test_images, self.given.test_labels, spec, watch=Silent()
        ).masking
        return {**found, "masking": flags}

    def _swept(self, temperature: int) -> Found:
        size = FIRST_LOOK if self.quick else SWEEP
        return measure(self.given, self.pair(temperature).student, temperature=temperature, size=size, full=False)


def claims(name: str, found: Found) -> list[ClaimRow]:
    plain, high = found["plain"], found[f"T{HIGH[name]}"]
    paper, on_mnist = PAPER[name], name == "mnist"
    label = f"papernot/{name}"
    flags = [flag["flag"] for flag in high["masking"] if flag["raised"]]
    rows = [
        _share(f"{label}/plain/accuracy", f"shown (paper {paper['accuracy']})", plain["accuracy"]),
        _share(f"{label}/distilled/accuracy", "shown", high["accuracy"]),
        _share(
            f"{label}/plain/jsma-112",
            f">= 0.90 (paper {paper['plain']})" if on_mnist else f"shown (paper {paper['plain']})",
            plain["jsma_success"],
            lambda s: s >= 0.9 or not on_mnist,
        ),
        _share(
            f"{label}/distilled/jsma-112",
            f"<= 0.01 (paper {paper['distilled']})" if on_mnist else f"shown (paper {paper['distilled']})",
            high["jsma_success"],
            lambda s: s <= 0.01 or not on_mnist,
        ),
        _share(f"{label}/distilled/jsma-112-logits", "shown", high["logits_jsma_success"]),
        _share(f"{label}/distilled/carlini-wagner", ">= 0.95", high["carlini_wagner"], lambda s: s >= 0.95),
        *(
            _share(f"{label}/distilled/{attack}", "shown", high[attack])
            for attack in ("fgsm", "ifgsm", "ifgsm_at_temperature", "pgd_margin")
        ),
        _share(f"{label}/distilled/transfer-from-plain", "shown", found["transfer"]["from_plain"]),
        _share(f"{label}/distilled/transfer-from-teacher", "shown", found["transfer"]["from_teacher"]),
        _share(f"{label}/plain/zero-gradients", "shown", plain["zero_gradients"]),
        _share(f"{label}/distilled/zero-gradients", "shown", high["zero_gradients"]),
        row(f"{label}/distilled/masking-flags", ">= 1 raised", len(flags), len(flags) >= 1, unit=", ".join(flags)),
        row(
            f"{label}/gradient-amplitude-smaller",
            "shown (paper: up to 30)",
            math.log10(plain["gradient_amplitude"]["median"] / max(high["gradient_amplitude"]["median"], LEAST)),
            True,
            n=high["gradient_amplitude"]["n"],
            unit="powers of ten",
        ),
        row(
            f"{label}/robustness-gain",
            f"shown (paper {'7.90' if on_mnist else '5.56'})",
            high["robustness"]["mean"] / plain["robustness"]["mean"] - 1,
            True,
            n=high["robustness"]["n"],
        ),
    ]
    return rows + [each for key, value in found.items() if key[1:].isdigit() for each in _sweep(label, key, value)]


def _sweep(label: str, key: str, value: Found) -> list[ClaimRow]:
    return [
        _share(f"{label}/{key}/jsma-112", "shown", value["jsma_success"]),
        _share(f"{label}/{key}/accuracy", "shown", value["accuracy"]),
        row(f"{label}/{key}/robustness", "shown", value["robustness"]["mean"], True, n=value["robustness"]["n"]),
        row(f"{label}/{key}/gradient-amplitude", "shown", value["gradient_amplitude"]["median"], True),
    ]


def _share(claim: str, wanted: str, found: Found, holds: Callable[[float], bool] = lambda _share: True) -> ClaimRow:
    measured = found["share"]
    return row(claim, wanted, measured, holds(measured), interval=(found["low"], found["high"]), n=found["n"])


if __name__ == "__main__":
    sys.exit(main())
