"""What a detection benchmark measured, seed by seed, merged over runs at different times into one file of claims."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from benchmarks.harness import RESULTS, ClaimRow, command, machine, print_table, row
from models.calibration import wilson_interval


@dataclass(frozen=True)
class Bar:
    """slack: how far beyond `value` a measurement of one seed may lie by its own standard error."""

    sense: Literal["at least", "at most", "shown"] = "shown"
    value: float = 0.0
    slack: float = 0.0

    def holds(self, mean: float, slack: float) -> bool:
        if self.sense == "at least":
            return mean >= self.value - slack
        return self.sense == "shown" or mean <= self.value + slack

    def words(self, slack: float) -> str:
        if self.sense == "shown":
            return "shown"
        sign, beyond = (">=", -slack) if self.sense == "at least" else ("<=", slack)
        return f"{sign} {self.value:.4g}" + (f", with 2 standard errors {self.value + beyond:.4f}" if slack else "")


SHOWN = Bar()


def at_least(value: float) -> Bar:
    return Bar("at least", value)


def at_most(value: float, slack: float = 0.0) -> Bar:
    return Bar("at most", value, slack)


@dataclass(frozen=True)
class Measured:
    """One claim under one seed. low, high: an interval of its own, used while there is one seed."""

    claim: str
    value: float
    bar: Bar = SHOWN
    n: int | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def told(self) -> dict[str, Any]:
        """What differs from the defaults: most claims have no bar, interval or unit, and there are thousands."""
        given, usual = asdict(self), asdict(Measured("", 0.0))
        return {name: value for name, value in given.items() if name in ("claim", "value") or value != usual[name]}

    @classmethod
    def read(cls, told: dict[str, Any]) -> Measured:
        return cls(**{**told, "bar": Bar(**told.get("bar", {}))})


def share(claim: str, hits: int, n: int, bar: Bar = SHOWN) -> Measured:
    low, high = wilson_interval(hits, n)
    return Measured(claim, hits / n if n else float("nan"), bar, n, low, high)


@dataclass(frozen=True)
class Run:
    """One part on one data set under one seed."""

    part: str
    data_set: str
    seed: int
    command: str
    commit: str
    ended: str
    seconds: float
    measured: tuple[Measured, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.part, self.data_set, self.seed

    @classmethod
    def of(cls, part: str, data_set: str, seed: int, measured: Iterable[Measured], seconds: float, module: str) -> Run:
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(part, data_set, seed, command(module), _commit(), ended, round(seconds, 1), tuple(measured))

    @classmethod
    def read(cls, given: dict[str, Any]) -> Run:
        return cls(**{**given, "measured": tuple(map(Measured.read, given["measured"]))})

    def told(self) -> dict[str, Any]:
        return {**vars(self), "measured": [each.told() for each in self.measured]}


@dataclass(frozen=True)
class Record:
    """The file of one benchmark. A run replaces the earlier one of its part, data set and seed."""

    name: str
    path: Path
    runs: dict[tuple[str, str, int], Run]

    @classmethod
    def open(cls, name: str, *, quick: bool) -> Record:
        """A quick record begins empty and is never written."""
        path = RESULTS / f"{name}.json"
        if quick or not path.exists():
            return cls(name, path, {})
        runs = [Run.read(each) for each in json.loads(path.read_text())["runs"]]
        return cls(name, path, {run.key: run for run in runs})

    def add(self, run: Run, *, quick: bool) -> None:
        """Another command may have added its own since this one began: they stay."""
        if not quick:
            self.runs.update(Record.open(self.name, quick=False).runs)
        self.runs[run.key] = run
        if not quick:
            self._write(run)

    def rows(self, parts: Iterable[str] | None = None) -> list[ClaimRow]:
        """Over seeds: the mean, and its 95 % interval by Student's t; of one seed its own."""
        wanted = None if parts is None else set(parts)
        claims: dict[str, list[Measured]] = {}
        for key in sorted(self.runs):
            if wanted is None or key[0] in wanted:
                for each in self.runs[key].measured:
                    claims.setdefault(each.claim, []).append(each)
        return [_row(name, found) for name, found in claims.items()]

    def print(self, parts: Iterable[str] | None = None) -> bool:
        """Whether every claim holds."""
        rows = self.rows(parts)
        print_table(rows)
        return all(each.holds for each in rows)

    def _write(self, last: Run) -> None:
        document = {
            "name": self.name,
            "command": last.command,
            "commit": last.commit,
            "machine": machine(),
            "seconds": round(sum(run.seconds for run in self.runs.values()), 1),
            "rows": [asdict(each) for each in self.rows()],
            "runs": [self.runs[key].told() for key in sorted(self.runs)],
        }
        RESULTS.mkdir(exist_ok=True)
        whole = self.path.with_suffix(".partial")
        whole.write_text(_in_lines(document))
        whole.replace(self.path)


def _in_lines(document: dict[str, Any]) -> str:
    """JSON, each entry of each list on a line of its own: a run that changes is one line that changes."""
    lists = {key: ",\n".join(map(json.dumps, value)) for key, value in document.items() if isinstance(value, list)}
    entries = (
        f"{json.dumps(key)}: [\n{lists[key]}\n]" if key in lists else f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in document.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _row(claim: str, found: list[Measured]) -> ClaimRow:
    values = np.array([each.value for each in found])
    mean, count = float(values.mean()), len(found)
    slack = float(np.sqrt(np.mean([each.bar.slack**2 for each in found]) / count))
    interval: tuple[float, float] | None = None
    if count > 1:
        half = float(student.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
        interval = (mean - half, mean + half)
    elif found[0].low is not None and found[0].high is not None:
        interval = (found[0].low, found[0].high)
    bar = found[-1].bar
    sizes = [each.n for each in found if each.n is not None]
    seeds = f"{count} seed{'s' * (count > 1)}"
    unit = f"{found[0].unit}, {seeds}" if found[0].unit else seeds
    n = sum(sizes) if sizes else None
    return row(claim, bar.words(slack), mean, bar.holds(mean, slack), interval=interval, n=n, unit=unit)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return found.stdout.strip()
