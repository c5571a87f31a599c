"""Writes the tables of docs/detection.md anew from the benchmarks' files: `python -m benchmarks.detection_tables`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. What has not been measured is a dash.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "detection.md"
SETS = ("gtsrb", "cifar10", "mnist", "fashion-mnist")
PLACE = re.compile(r"<!-- table (\S+) -->.*?<!-- end -->", re.DOTALL)
Rows = list[dict[str, Any]]
Pick = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Table:
    """A row for each line, a column for each data set; a cell shows the values whose claims match, in turn.

    lines: name of the line to what stands for {line}. claims: patterns of claims with {set} and {line}; of several that
    match, the worst is shown: the least of those that are to be large, the largest of the others.
    """

    file: str
    what: str
    lines: dict[str, str]
    claims: tuple[tuple[str, Pick], ...]
    sets: tuple[str, ...] = SETS


SIGN_ATTACKS = {
    f"{name} {eps}": f"{attack}-{eps}"
    for eps in ("0.01", "0.005")
    for name, attack in (("FGSM", "fgsm"), ("I-FGSM", "ifgsm"), ("PGD", "pgd"))
}
LEAST = {"C&W, L2": "cw-l2", "DeepFool": "deepfool", "JSMA": "jsma"}
KINDS = {
    "BadNets": "badnets",
    "BadNets, a square that is learnt": "square",
    "blend 0.2": "blend-0.2",
    "sinusoid": "sinusoid",
    "flips": "flips",
}
DETECTORS = {
    name: name
    for name in (
        "residual_energy",
        "label_loss",
        "unchecked_loss",
        "label_agreement",
        "poison_gain",
        "spectral_signature",
        "activation_clustering",
        "recurring_patch",
        "recurring_pattern",
        "duplicates",
        "reconstruction_divergence",
    )
}
RATES = {f"α = {alpha}": f"fpr-at-{alpha}" for alpha in ("0.01", "0.05", "0.1")} | {
    f"discoveries, {rate}": f"fdr-at-{rate}" for rate in ("0.05", "0.1")
}
RESTARTS = {f"{count} restarts": f"adaptive-0.01-restarts-{count}" for count in (1, 3, 9)}
PROCESSED = {"JPEG 95": "ifgsm-0.01-jpeg-95", "blur 0.5 px": "ifgsm-0.01-blur-0.5px"}

FAMILIES = {"ae": "AE", "dae": "DAE", "vae": "VAE", "dvae": "DVAE"}
STACKS = {"no autoencoder": "none/alone"} | {
    f"{words}, σ = {noise}": f"{family}/noise-{noise}" for family, words in FAMILIES.items() for noise in ("0.1", "0.4")
}
PENALISED = {
    f"{family.upper()}, weight {weight}": f"{family}/penalty-{weight}"
    for family in ("cae", "cvae")
    for weight in (0, 10)
}
HLIHOR_CLAIMS = {
    "DAE at least as accurate as AE": "dae-at-least-ae",
    "DVAE at least as accurate as VAE": "dvae-at-least-vae",
    **{
        f"{words}: σ = 0.4 at least as accurate as σ = 0.1": f"{family}-more-noise-at-least-less"
        for family, words in FAMILIES.items()
    },
}

TABLES: dict[str, Table] = {
    "perturbed": Table(
        "detection",
        "least AUROC / least share flagged at 1 %, of four attackers",
        SIGN_ATTACKS,
        (("detect/{set}/{line}/[^/]+/auroc", min), ("detect/{set}/{line}/[^/]+/tpr-at-1%", min)),
    ),
    "least": Table(
        "detection",
        "least AUROC / least share flagged at 1 %, of two attackers / median L2 in levels",
        LEAST,
        (
            ("detect/{set}/{line}/[^/]+/auroc", min),
            ("detect/{set}/{line}/[^/]+/tpr-at-1%", min),
            ("detect/{set}/{line}/[^/]+/median-l2-levels", min),
        ),
    ),
    "halves": Table(
        "detection",
        "least AUROC of the half changed more / of the half changed less / median share of the values changed",
        LEAST,
        (
            ("detect/{set}/{line}/[^/]+/auroc-larger-half", min),
            ("detect/{set}/{line}/[^/]+/auroc-smaller-half", min),
            ("detect/{set}/{line}/[^/]+/median-touched", min),
        ),
    ),
    "processed": Table(
        "detection",
        "AUROC against untouched clean images / against clean images that went the same way / still fooled",
        PROCESSED,
        (
            ("detect/{set}/{line}/[^/]+/auroc", min),
            ("detect/{set}/{line}/[^/]+/auroc-against-clean-alike", min),
            ("detect/{set}/{line}/[^/]+/fooled", max),
        ),
    ),
    "adaptive": Table(
        "detection",
        "flagged at 1 % / fooled / fooled and not flagged",
        RESTARTS,
        (
            ("detect/{set}/{line}/[^/]+/tpr-at-1%", min),
            ("detect/{set}/{line}/[^/]+/fooled", max),
            ("detect/{set}/{line}/[^/]+/fooled-unflagged", max),
        ),
    ),
    "labels": Table(
        "detection",
        "poison found / clean flagged, the default panel at α = 2 %",
        KINDS,
        (("labels/{set}/{line}/panel/tpr", min), ("labels/{set}/{line}/panel/fpr", max)),
    ),
    **{
        f"detectors-{kind}": Table(
            "detection",
            "AUROC / found at α = 2 % by the detector alone",
            DETECTORS,
            ((f"labels/{{set}}/{kind}/{{line}}/auroc", min), (f"labels/{{set}}/{kind}/{{line}}/tpr", min)),
        )
        for kind in KINDS.values()
    },
    "encoded": Table(
        "detection",
        "found without the encoder / with it / clean flagged with it, α = 2 %",
        {"flips": "flips", "BadNets": "badnets"},
        (
            ("encoded/{set}/{line}/default/tpr", min),
            ("encoded/{set}/{line}/panel/tpr", min),
            ("encoded/{set}/{line}/panel/fpr", max),
        ),
    ),
    "encoded-sifted": Table(
        "detection",
        "no trusted images, with it: poison found / clean flagged at α = 5 % / share of poison in the reference",
        {"BadNets": "badnets", "flips": "flips"},
        (
            ("encoded-sifted/{set}/{line}/tpr", min),
            ("encoded-sifted/{set}/{line}/fpr", max),
            ("encoded-sifted/{set}/{line}/reference-poison", max),
        ),
    ),
    "sifted": Table(
        "detection",
        "poison found / clean flagged at α = 5 % / seeds whose sifted reference is free of poison",
        {"BadNets": "badnets", "flips": "flips"},
        (
            ("sifted/{set}/{line}/tpr", min),
            ("sifted/{set}/{line}/fpr", max),
            ("sifted/{set}/{line}/reference-free-of-poison", min),
        ),
    ),
    "rates": Table(
        "detection",
        "realised by the filter alone / by the panel, the worse of two sets",
        RATES,
        (("rates/{set}/[^/]+/filter/{line}", max), ("rates/{set}/[^/]+/panel/{line}", max)),
    ),
    "clean": Table(
        "detection",
        "at α = 2 %",
        {
            "removed": "removed",
            "of the worst class": "worst-class-removed",
            "classes that surely lost more than 3α": "classes-surely-above",
            "test accuracy lost": "accuracy-lost",
        },
        (("clean/{set}/{line}", max),),
    ),
    "shift": Table(
        "detection",
        "clean removed on the reference / on the candidates / BadNets found on the candidates / seeds that report it",
        {"JPEG 95": "jpeg-95", "resized": "resized"},
        (
            ("shift/{set}/{line}/on-reference/clean-removed", max),
            ("shift/{set}/{line}/on-candidates/clean-removed", max),
            ("shift/{set}/{line}/on-candidates/badnets-found", min),
            ("shift/{set}/{line}/reported", min),
        ),
    ),
    "scale": Table(
        "detection",
        "measured",
        {
            "seconds of a fit on 8,000 images, under 60 wanted": "fit-8000",
            "images a second, shards to p-values, over a bare forward pass in the same batches, 0.85 wanted": (
                "scored-over-forward"
            ),
            "peak memory for 200,000 images over that for 20,000, at most 1.2 wanted": "peak-memory-ratio",
        },
        (("scale/(?:{set}/)?{line}", max),),
        ("cifar10",),
    ),
    "hlihor": Table(
        "hlihor",
        "accuracy on clean images / attacked with ε = 0.1 / 0.2 / 0.3",
        STACKS | PENALISED,
        tuple((f"hlihor/{{set}}/accuracy/{{line}}/eps-{eps}", min) for eps in ("0", "0.1", "0.2", "0.3")),
        ("mnist", "fashion-mnist"),
    ),
    "hlihor-claims": Table(
        "hlihor",
        "share of the points of the curves",
        HLIHOR_CLAIMS,
        (("hlihor/{set}/{line}", min),),
        ("mnist", "fashion-mnist", "gtsrb"),
    ),
    "badjie": Table(
        "badjie",
        "least AUROC",
        {"FGSM": "fgsm", "I-FGSM": "ifgsm"},
        (("badjie/{set}/{line}/[^/]+/auroc", min),),
        ("gtsrb",),
    ),
    "badjie-thresholds": Table(
        "badjie",
        "clean lost / attacked found",
        {"0.015": "0.015", "0.003": "0.003", "inferred at 95 %": "inferred-95"},
        (
            ("badjie/{set}/threshold-{line}/clean-lost", max),
            ("badjie/{set}/threshold-{line}/[^/]+/[^/]+/found", min),
        ),
        ("gtsrb",),
    ),
}


def main() -> int:
    PAGE.write_text(PLACE.sub(_filled, PAGE.read_text()))
    return 0


def _filled(found: re.Match[str]) -> str:
    return f"<!-- table {found[1]} -->\n\n{drawn(TABLES[found[1]])}\n\n<!-- end -->"


def drawn(table: Table) -> str:
    rows = _rows(table.file)
    lines = [f"| {table.what} | {' | '.join(table.sets)} |", "|---" * (len(table.sets) + 1) + "|"]
    for name, line in table.lines.items():
        cells = [_cell(rows, table, data_set, line) for data_set in table.sets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Rows, table: Table, data_set: str, line: str) -> str:
    shown = []
    for claim, pick in table.claims:
        wanted = re.compile(claim.format(set=re.escape(data_set), line=re.escape(line)))
        values = [row["measured"] for row in rows if wanted.fullmatch(row["claim"])]
        shown.append(_number(pick(values)) if values else "–")
    return "–" if set(shown) == {"–"} else " / ".join(shown)


def _number(value: float) -> str:
    if abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.4f}" if 0.99 < value < 1 else f"{value:.3f}"


def _rows(name: str) -> Rows:
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
