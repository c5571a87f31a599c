"""Winnow beside MLServer, LitServe and BentoML, and the bare session: the same graph, images and clients, in turns.

Each peer is tried with several settings first and measured with the one that it is fastest with. Only one server runs
at a time, started anew for each turn; its answers are compared with ONNX Runtime's before the clock starts.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ClaimRow, quantile_bounds, row
from benchmarks.serving_bare import bare_throughput
from benchmarks.serving_client import connect
from benchmarks.serving_environments import Environment, PeerFailed, environment
from benchmarks.serving_gateway import gateway, infer_request, shared_out
from benchmarks.serving_model import CLASSES, Home
from benchmarks.serving_peer import PEERS, REQUESTS, Peer, Setting, running
from benchmarks.serving_session import open_session
from benchmarks.serving_target import Probabilities, Target, check, load
from service.registry.bundle import SERVED

WINNOW, BARE = "winnow", "bare-session"
WANTED = 1.5
FEWEST_FOR_AN_INTERVAL = 6
"""From which on the least and the greatest of n are a 95 % interval of the median."""


@dataclass(frozen=True)
class Plan:
    """How long, how often, and where environments are kept. trials: settings to try at most."""

    cache: Path
    cores: int
    rounds: int
    seconds: float
    trial_s: float
    trials: int

    @classmethod
    def of(cls, cache: Path, cores: int, rounds: int, *, quick: bool) -> Plan:
        return cls(cache, cores, 2, 1.5, 1.0, 2) if quick else cls(cache, cores, rounds, 6.0, 4.0, 100)


@dataclass
class Found:
    """Images a second by server, one number a round; what was chosen; and why a peer is missing."""

    rounds: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        settings = {name: asdict(setting) for name, setting in self.settings.items()}
        return {"rounds": self.rounds, "settings": settings, "versions": self.versions, "absent": self.absent}


def compare(home: Home, plan: Plan) -> tuple[list[ClaimRow], dict[str, Any]]:
    """The rows, and what the file tells of them."""
    found, ready = Found(), {}
    wanted = _wanted(home)
    for peer in PEERS:
        try:
            made = environment(peer.package, plan.cache)
            found.versions[peer.package] = made.versions
            found.settings[peer.package] = _fastest(peer, made, home, wanted, plan)
        except PeerFailed as error:
            _leave_out(found, peer, error)
        else:
            ready[peer] = made
    for _ in range(plan.rounds):
        _note(found, BARE, bare_throughput(home, threads=plan.cores, seconds=plan.seconds / 6))
        with gateway(home, **shared_out(plan.cores)) as (port, _process):
            _note(found, WINNOW, _rate(_winnow(home, port), wanted, plan.seconds))
        for peer in [each for each in ready if each.package not in found.absent]:
            try:
                with running(peer, ready[peer], home, found.settings[peer.package]) as target:
                    _note(found, peer.package, _rate(target, wanted, plan.seconds))
            except PeerFailed as error:
                _leave_out(found, peer, error)
    return rows(found), found.told()


def rows(found: Found) -> list[ClaimRow]:
    """One a server, and Winnow's throughput over that of the fastest peer. A peer that is missing holds nothing."""
    peers = [peer.package for peer in PEERS]
    table = [_median_row(found, name) for name in (WINNOW, *peers, BARE)]
    present = [name for name in peers if name not in found.absent]
    if not present:
        return [*table, row("serving/peers/winnow-over-best", f">= {WANTED}", 0.0, False, n=0)]
    best = max(present, key=lambda name: float(np.median(found.rounds[name])))
    ratios = np.array(found.rounds[WINNOW]) / np.array(found.rounds[best])
    middle = float(np.median(ratios))
    holds = middle >= WANTED and not found.absent
    claim = row(
        "serving/peers/winnow-over-best",
        f">= {WANTED}",
        middle,
        holds,
        interval=_interval(ratios),
        n=len(ratios),
        unit=f"times {best}",
    )
    return [*table, claim]


def _median_row(found: Found, name: str) -> ClaimRow:
    claim = f"serving/peers/{name}/images-per-second"
    if name in found.absent:
        return row(claim, "measured, but it is absent", 0.0, False, n=0, unit="1/s")
    rates = np.array(found.rounds[name])
    return row(claim, "measured", np.median(rates), True, interval=_interval(rates), n=len(rates), unit="1/s")


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    return quantile_bounds(values, 0.5) if len(values) >= FEWEST_FOR_AN_INTERVAL else None


def _fastest(peer: Peer, made: Environment, home: Home, wanted: Probabilities, plan: Plan) -> Setting:
    """Raises PeerFailed where it answers under none of its settings."""
    rates: dict[Setting, float] = {}
    failed = PeerFailed("no setting was tried")
    for setting in peer.settings(plan.cores)[: plan.trials]:
        try:
            with running(peer, made, home, setting) as target:
                rates[setting] = _rate(target, wanted, plan.trial_s)
            _say(f"{peer.package} {setting}: {rates[setting]:.0f} images a second")
        except PeerFailed as error:
            failed = error
            _say(f"{peer.package} {setting} FAILED: {error}")
    if not rates:
        raise failed
    return max(rates, key=lambda each: rates[each])


def _rate(target: Target, wanted: Probabilities, seconds: float) -> float:
    """Images a second that are answered, once all answers are right. Raises PeerFailed."""
    check(target, wanted)
    tally = load(target, seconds)
    if others := sum(tally.count(status) for status in tally.latencies if status != 200):
        _say(f"{target.name} answered {others} requests otherwise than with 200: they do not count")
    return tally.count(200) / tally.seconds


def _winnow(home: Home, port: int) -> Target:
    asked = [infer_request(home, index) for index in range(REQUESTS)]
    return Target(WINNOW, port, connect, asked, lambda body: body[-4 * CLASSES :])


def _wanted(home: Home) -> Probabilities:
    """What ONNX Runtime answers without a server."""
    feeds = {"images": home.images[:REQUESTS], "masks": home.masks}
    found: Probabilities
    (found,) = open_session(home.files[SERVED]).run(["mean_probabilities"], feeds)
    return found


def _note(found: Found, name: str, rate: float) -> None:
    found.rounds.setdefault(name, []).append(rate)
    _say(f"round {len(found.rounds[name])}, {name}: {rate:.0f} images a second")


def _leave_out(found: Found, peer: Peer, error: PeerFailed) -> None:
    found.absent[peer.package] = str(error)
    _say(f"{peer.package} is ABSENT: {error}")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
