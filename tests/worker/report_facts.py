"""Outcomes of jobs that the report tests show, honest and hostile, and a reader of the pages."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from models.calibration import conformal_p_values, threshold_at_fpr
from models.panel.detectors import MODULES
from models.robustness import AttackRow, Evaluation, Served, share
from models.robustness.curves import CurvePoint
from models.robustness.geometry import CodeShift, Robustness
from models.robustness.shares import Mean
from models.shift import Shift
from models.specs import EvaluateSpec, SanitiseSpec
from worker.reports.evaluate import AttackExample, EvaluateFacts
from worker.reports.sanitise import DetectorFacts, FitLosses, GalleryItem, SanitiseFacts, SuspiciousImage
from worker.reports.sanitise_panel_words import FILTER_BLIND_TO, FILTER_SEES

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}$x_{'
VOID_TAGS = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's tags and attributes, with a complaint for every tag that is not closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.complaints: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.complaints += [f"{tag} is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.complaints.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        self.text += data


def sanitise_facts(
    n: int = 400,
    m: int = 199,
    *,
    poison: float = 0.1,
    alpha: float = 0.01,
    classes: int = 4,
    seed: int = 0,
    **changes: Any,
) -> SanitiseFacts:
    rng = np.random.default_rng(seed)
    calibration = rng.lognormal(-2.6, 0.4, m).astype(np.float32)
    scores = rng.lognormal(-2.6, 0.4, n).astype(np.float32)
    poisoned = rng.random(n) < poison
    scores[poisoned] *= 15
    p_values = conformal_p_values(scores, calibration)
    picture = rng.integers(20, 230, (8, 8, 3), dtype=np.uint8)
    gallery = [
        GalleryItem(int(i), f"a/{i}.png", "stop", picture, picture + np.uint8(3), float(scores[i]), float(p_values[i]))
        for i in np.flatnonzero(p_values <= alpha)[:6]
    ]
    facts = SanitiseFacts(
        job_id="job-1",
        dataset="signs@1",
        reference="trusted@1",
        result_dataset="signs@2",
        spec=SanitiseSpec.model_validate({"false_quarantine_rate": alpha, "seed": 7}).model_dump(mode="json"),
        score_name="residual_energy",
        scores=scores,
        p_values=p_values,
        verdicts=np.where(p_values <= alpha, "quarantine", "keep"),
        threshold=threshold_at_fpr(calibration, fpr=alpha),
        alpha=alpha,
        smallest_alpha=1 / (m + 1),
        calibration_scores=calibration,
        calibration_groups=None,
        losses={"surrogate 1": FitLosses([2.0, 0.5], [1.0, 0.6]), "denoiser": FitLosses([0.9, 0.3], ())},
        class_names=[f"class {i}" for i in range(classes)],
        labels=rng.integers(0, classes, n),
        gallery=gallery,
        rates_are="held",
        warnings=[],
        notes={"surrogate_accuracy": [0.9]},
        versions={"winnow": "0.1.0"},
        seconds={"denoiser": 61.0},
    )
    return replace(facts, **changes)


def threshold_facts(**changes: Any) -> SanitiseFacts:
    """A preset badjie job: a fixed threshold, no p-values, kept images reconstructed."""
    facts = sanitise_facts()
    flagged = facts.scores > 0.1
    badjie: dict[str, Any] = {
        "spec": SanitiseSpec.model_validate({"preset": "badjie", "threshold": 0.1}).model_dump(mode="json"),
        "score_name": "reconstruction_error",
        "p_values": None,
        "alpha": None,
        "threshold": 0.1,
        "verdicts": np.where(flagged, "quarantine", "reform"),
    }
    return replace(facts, **(badjie | changes))


def evaluate_facts(**changes: Any) -> EvaluateFacts:
    def served(wrong: int) -> Served:
        return Served(share(20, 200), share(180 - wrong, 200), share(wrong, 200), {"perturbed": 20})

    def row(attack: str, right: int, turned: int, wrong: int, knows: str = "student") -> AttackRow:
        norms = (Mean(0.0098, 0.0097, 0.0099, 200), Mean(0.5, 0.45, 0.55, 200), Mean(99.0, 96.0, 102.0, 200))
        code = CodeShift(Mean(0.91, 0.9, 0.92, 200), Mean(1.1, 1.0, 1.2, 200)) if turned else None
        return AttackRow(attack, share(right, 200), share(turned, 190), *norms, served(wrong), knows, 0.01, code)

    rows = [
        *(row("none", 190, 0, 2, "none"), row("fgsm", 150, 40, 10), row("ifgsm", 140, 50, 11)),
        *(row("pgd-margin", 60, 130, 31), row("adaptive", 80, 110, 44, "everything")),
    ]
    masking = [{"flag": "zero_gradients", "raised": True, "measured": {"share": 0.3}, "meaning": "the softmax is full"}]
    curve = [
        CurvePoint(attack, eps, share(200 - round(4000 * eps), 200), served(round(1000 * eps)))
        for attack in ("pgd-margin", "adaptive")
        for eps in (0.005, 0.01, 0.02, 0.04)
    ]
    least = {"deepfool": Robustness("l2", Mean(0.3, 0.2, 0.4, 190), share(190, 190))}
    outcome = Evaluation(rows, masking, curve, least).to_json()
    picture = np.full((8, 8, 1), 100, np.uint8)
    facts = EvaluateFacts(
        model="signs-student@1",
        dataset="signs@3",
        job_id="job-2",
        spec=EvaluateSpec().model_dump(mode="json"),
        rows=outcome["rows"],
        flags=outcome["gradient_masking"],
        clean={"teacher_accuracy": 0.95},
        examples=[AttackExample("fgsm", picture, picture + np.uint8(3), "stop", "stop", "yield", None, "perturbed")],
        warnings=[],
        curve=outcome["curve"],
        least=outcome["robustness"],
        amplitude={"mean": 1e-9, "low": 0.0, "high": 2e-9, "n": 50},
    )
    return replace(facts, **changes)


def evil_sanitise() -> SanitiseFacts:
    facts = sanitise_facts()
    return replace(
        facts,
        job_id=EVIL,
        dataset=EVIL,
        reference=EVIL,
        result_dataset=EVIL,
        score_name=EVIL,
        class_names=[EVIL] * 4,
        gallery=[replace(item, path=EVIL, label=EVIL) for item in facts.gallery],
        warnings=[EVIL],
        notes={EVIL: EVIL},
        versions={EVIL: EVIL},
        seconds={EVIL: 1.0},
        losses={EVIL: FitLosses([1.0])},
        known_perturbed={EVIL: facts.scores * 9},
    )


def evil_panel() -> SanitiseFacts:
    facts = panel_facts(**every_extra())
    names = [f"{EVIL}{t}" for t in range(4)]
    told = [dict(trial) | {"params": {EVIL: EVIL}, "state": EVIL} for trial in facts.search or []]
    return replace(
        facts,
        detectors=[
            replace(detector, name=name, sees=EVIL, blind_to=EVIL)
            for name, detector in zip(names, facts.detectors, strict=True)
        ],
        gallery=[replace(item, suggested_label=EVIL, reasons=(EVIL,)) for item in facts.gallery],
        shifts={EVIL: facts.shifts["residual_energy"]},
        suspicious_reference=[SuspiciousImage(EVIL, EVIL, EVIL, 1.0)],
        search=told,
    )


def evil_evaluate() -> EvaluateFacts:
    facts = evaluate_facts()
    rows = [dict(row) | {"served_reasons": {EVIL: 3}, "attack": EVIL, "knowledge": EVIL} for row in facts.rows]
    example = replace(facts.examples[0], attack=EVIL, label=EVIL, before=EVIL, after=EVIL, reason=EVIL)
    answered = replace(example, answer=EVIL)
    return replace(
        facts,
        model=EVIL,
        dataset=EVIL,
        job_id=EVIL,
        rows=rows,
        flags=[EVIL, {"flag": EVIL, "raised": False, "measured": {EVIL: EVIL}, "meaning": EVIL}],
        clean={EVIL: EVIL},
        curve=[dict(point) | {"attack": EVIL} for point in facts.curve],
        least={EVIL: dict(facts.least["deepfool"]) | {"norm": EVIL}},
        examples=[example, answered],
        warnings=[EVIL],
        versions={EVIL: EVIL},
        seconds={EVIL: 2.0},
        notes={EVIL: [EVIL]},
    )


def panel_facts(n: int = 4000, m: int = 999, *, classes: int = 6, seed: int = 0, **changes: Any) -> SanitiseFacts:
    """A job of the filter and three more detectors, over perturbed images, backdoored ones and flipped labels."""
    rng = np.random.default_rng(seed)
    names = ("residual_energy", "label_loss", "poison_gain", "duplicates")
    kind = rng.choice(4, n, p=[0.9, 0.04, 0.04, 0.02])  # clean, perturbed, backdoored, flipped
    scores, held = _panel_scores(kind, rng), _panel_scores(np.zeros(m, np.int64), rng)
    own = np.stack([conformal_p_values(scores[:, t], held[:, t]) for t in range(4)], axis=1)
    own_held = np.stack([conformal_p_values(held[:, t], held[:, t]) for t in range(4)], axis=1)
    p_values = conformal_p_values(-own.min(axis=1), -own_held.min(axis=1))
    flagged = p_values <= 0.02
    spoke = (own <= 0.005) & flagged[:, None]
    spoke[np.arange(n), own.argmin(axis=1)] |= flagged
    picture = rng.integers(20, 230, (32, 32, 3), dtype=np.uint8)
    gallery = [
        GalleryItem(
            index=int(i),
            path=f"stop/{i:05d}.png",
            label="class 1",
            original=picture,
            reconstruction=picture + np.uint8(3),
            score=float(scores[i, 0]),
            p_value=float(p_values[i]),
            suggested_label="class 1" if spoke[i, 0] else "class 4",
            reasons=tuple(name for name, own in zip(names, spoke[i], strict=True) if own),
        )
        for i in np.flatnonzero(flagged)[:16]
    ]
    detectors = [
        DetectorFacts(
            name=name,
            scores=scores[:, t],
            calibration_scores=held[:, t],
            spoke=spoke[:, t],
            threshold=threshold_at_fpr(held[:, t], fpr=0.005) if t < 3 else float("inf"),
            sees=getattr(MODULES.get(name), "SEES", FILTER_SEES),
            blind_to=getattr(MODULES.get(name), "BLIND_TO", FILTER_BLIND_TO),
        )
        for t, name in enumerate(names)
    ]
    facts = replace(
        sanitise_facts(n, m, alpha=0.02, classes=classes, seed=seed),
        scores=scores[:, 0],
        calibration_scores=held[:, 0],
        p_values=p_values,
        verdicts=np.where(flagged, "quarantine", "keep"),
        threshold=detectors[0].threshold,
        gallery=gallery,
        detectors=detectors,
        flagged=flagged,
        calibration_flagged=int(np.count_nonzero(conformal_p_values(-own_held.min(axis=1), -own_held.min(1)) <= 0.02)),
    )
    return replace(facts, **changes)


def _panel_scores(kind: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(n, 4), float32: energy, loss of the label, gain (of either sign), and duplicates, which are few."""
    n = len(kind)
    energy = rng.lognormal(-2.6, 0.4, n) * np.where(kind == 1, 12, 1)
    loss = rng.lognormal(-4, 1.5, n) + np.where(kind >= 2, rng.uniform(4, 12, n), 0)
    gain = rng.normal(0, 0.7, n) + np.where(kind == 2, rng.uniform(3, 9, n), 0)
    copies = np.where(rng.random(n) < 0.01, rng.random(n), 0)
    return np.stack([energy, loss, gain, copies], axis=1).astype(np.float32)


def every_extra() -> dict[str, Any]:
    """What only some jobs have to tell: a shift, trials of a search, a suspicious reference."""
    return {
        "shifts": {
            "residual_energy": Shift(True, 0.0002, 0.24, 1.83, "higher", 0.05, 900.0, 3800.0),
            "label_loss": Shift(False, 0.4, 0.01, 1.01, "higher", 0.0, 900.0, 3800.0),
        },
        "rates_are": "estimated",
        "suspicious_reference": [SuspiciousImage("stop/00017.png", "class 1", "class 3", 9.81)],
        "search": [
            {"params": {"width": 24, "fit.lr": 0.004}, "value": 0.231, "seconds": 31.0, "state": "complete"},
            {"params": {"width": 32, "fit.lr": 0.002}, "value": 0.207, "seconds": 44.0, "state": "complete"},
            {"params": {"width": 16, "fit.lr": 0.01}, "value": None, "seconds": 9.0, "state": "diverged"},
        ],
    }
