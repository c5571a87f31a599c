"""What a pretrained encoder adds to the default panel: the same candidates, judged with it and without."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.detection_labels import ALPHA, FILTER, KINDS, looked_at, rates
from benchmarks.detection_record import SHOWN, Measured, at_least, at_most
from benchmarks.detection_setting import Setting

DETECTOR = "encoder_loss"


def measure(setting: Setting, kind: str) -> Iterator[Measured]:
    looked, wanted = looked_at(setting, kind), KINDS[kind][1]
    default = (FILTER, *setting.panel.detectors)
    yield from rates(setting, looked.at((DETECTOR,)), ("encoded", kind, DETECTOR), SHOWN, SHOWN)
    yield from rates(setting, looked.at(default), ("encoded", kind, "default"), SHOWN, SHOWN)
    with_it = looked.at((*default, DETECTOR))
    yield from rates(setting, with_it, ("encoded", kind, "panel"), at_least(wanted), at_most(ALPHA))
    yield Measured(setting.claim("encoded", kind, "panel", "seconds"), looked.panel_seconds, unit="s")
    yield Measured(setting.claim("encoded", kind, "encoding", "seconds"), looked.encoding_seconds, unit="s")
