"""What each process has counted, added up: whoever asks the gateway is told of all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample

from service.serving.statistics import Counted, Version, joined

OURS = "winnow_"
CREATED = "_created"
GAUGE = "gauge"


@dataclass(frozen=True)
class Look:
    """Of one sibling, or of several."""

    families: list[Metric]
    counted: dict[Version, Counted]


def added(past: Look, last: Look) -> Look:
    """What is left of one that has ended: what it counted, and nothing of what it held."""
    families = [family for family in last.families if family.type != GAUGE]
    return Look(list(_together([past.families, families])), joined([past.counted, last.counted]))


def families_of(registry: CollectorRegistry) -> list[Metric]:
    """What may be added up: what an interpreter and its process are like may not."""
    return [family for family in registry.collect() if family.name.startswith(OURS)]


class Together:
    """A registry and the families of siblings, as one; a moment of creation is the earliest."""

    def __init__(self, own: CollectorRegistry, others: Sequence[Iterable[Metric]]) -> None:
        self._own, self._others = own, others

    def collect(self) -> Iterable[Metric]:
        return _together([self._own.collect(), *self._others])


def _together(parts: Sequence[Iterable[Metric]]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for family in (family for part in parts for family in part):
        known = families.get(family.name)
        families[family.name] = family if known is None else _sum(known, family)
    return families.values()


def _sum(family: Metric, other: Metric) -> Metric:
    samples = {(sample.name, frozenset(sample.labels.items())): sample for sample in family.samples}
    for sample in other.samples:
        place = sample.name, frozenset(sample.labels.items())
        samples[place] = _added(samples[place], sample) if place in samples else sample
    summed = Metric(family.name, family.documentation, family.type, family.unit)
    summed.samples = list(samples.values())
    return summed


def _added(sample: Sample, other: Sample) -> Sample:
    value = min(sample.value, other.value) if sample.name.endswith(CREATED) else sample.value + other.value
    return sample._replace(value=value)
