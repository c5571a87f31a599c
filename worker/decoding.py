"""Decodes samples of an upload to the working resolution, and writes them as a part of a version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from models.specs import IngestSpec
from models.training import Watch
from service.datasets.decoding import Ready, Target
from service.datasets.sample import Layout
from service.datasets.shard_writing import Part, PartWriter
from service.datasets.shards import Row

DEFAULT_SIZE = 64
REPORTED_REJECTIONS = 1000
MANY_REJECTED = 1000  # from which on it is not worth looking at all the others


@dataclass
class Rejected:
    """The images that could not be used: how many, and the first of them."""

    count: int = 0
    first: list[dict[str, str]] = field(default_factory=list)

    def add(self, path: str, problem: str) -> None:
        self.count += 1
        if len(self.first) < REPORTED_REJECTIONS:
            self.first.append({"path": path, "problem": problem})

    def extend(self, others: Rejected) -> None:
        self.count += others.count
        self.first += others.first[: REPORTED_REJECTIONS - len(self.first)]


@dataclass(frozen=True)
class Plan:
    """What an upload becomes, whoever decodes which part of it."""

    spec: IngestSpec
    layout: Layout  # of the images seen so far
    num_samples: int
    max_pixels: int  # of an image before it is brought to the working resolution

    @property
    def shape(self) -> tuple[int, int, int]:
        return working_shape(self.spec, self.layout)

    @property
    def target(self) -> Target:
        size, _, channels = self.shape
        return Target(size, channels, self.max_pixels)

    def refuses(self, rejected: Rejected) -> bool:
        return rejected.count > self.spec.max_rejected_share * self.num_samples


@dataclass(frozen=True)
class Decoded:
    """A part, what was not taken into it, and the layout of all images up to its end."""

    part: Part
    rejected: Rejected
    layout: Layout
    whole: bool = True  # False where it ended early, for nothing can come of it


@dataclass
class Tally:
    """What parts add up to."""

    layout: Layout
    rejected: Rejected = field(default_factory=Rejected)
    whole: bool = True

    def parts(self, decoded: Iterable[Decoded]) -> Iterator[Part]:
        """Each, once it is counted."""
        for one in decoded:
            self.layout = widened(self.layout, one.layout)
            self.rejected.extend(one.rejected)
            self.whole = self.whole and one.whole
            yield one.part


def decode_part(images: Iterable[Ready], writer: PartWriter, plan: Plan, total: int, watch: Watch) -> Decoded:
    """Ends early where the images seen want another working resolution, or too many of them cannot be read."""
    rejected, layout, whole = Rejected(), plan.layout, True
    for done, (sample, pixels, problem, sample_id, width, height, grey) in enumerate(images, start=1):
        if pixels is None:
            rejected.add(sample.path, problem or "")
            whole = rejected.count < MANY_REJECTED or not plan.refuses(rejected)
        else:
            seen = widened(layout, Layout((width, height), grey))
            whole = seen is layout or working_shape(plan.spec, seen) == plan.shape
            layout = seen
            writer.add(pixels, Row(sample_id, sample.path, sample.label, width, height, sample.group))
        if not whole:
            break
        watch.advance(done, total)
    return Decoded(writer.close(), rejected, layout, whole)


def working_shape(spec: IngestSpec, layout: Layout) -> tuple[int, int, int]:
    """(height, width, channels): what the spec says, else the native square size up to 64, else 64."""
    size = spec.size
    if size is None:
        width, height = layout.common_size or (0, 0)
        size = width if width == height and 8 <= width <= DEFAULT_SIZE else DEFAULT_SIZE
    return size, size, spec.channels or (1 if layout.grey else 3)


def widened(layout: Layout | None, other: Layout) -> Layout:
    """The layout of the images of both; the same object where nothing changes."""
    if layout is None:
        return other
    size = layout.common_size if layout.common_size == other.common_size else None
    grey = layout.grey and other.grey
    return layout if (size, grey) == (layout.common_size, layout.grey) else Layout(size, grey)
