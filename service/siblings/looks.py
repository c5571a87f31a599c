"""What each process has counted, added up: whoever asks the gateway is told of all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample

from service.serving.statistics import Counted, Version

OURS = "winnow_"
CREATED = "_created"


@dataclass(frozen=True)
class Look:
    """Of one sibling. loaded: the versions in its memory."""

    families: list[Metric]
    counted: dict[Version, Counted]
    loaded: list[Version]


def families_of(registry: CollectorRegistry) -> list[Metric]:
    """What may be added up: what an interpreter and its process are like may not."""
    return [family for family in registry.collect() if family.name.startswith(OURS)]


class Together:
    """A registry and the families of siblings, as one; a moment of creation is the first one's."""

    def __init__(self, own: CollectorRegistry, others: Sequence[Iterable[Metric]]) -> None:
        self._own, self._others = own, others

    def collect(self) -> Iterable[Metric]:
        families = {family.name: family for family in self._own.collect()}
        for family in (family for others in self._others for family in others):
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
