"""Whether data sets are what a job needs: shape, classes, and as many images or groups as its rates want."""

from __future__ import annotations

from dataclasses import dataclass

from models.abstention import calibrating_of
from models.calibration import samples_needed, smallest_alpha
from models.spec_fields import CountBy
from models.specs import DistillSpec, SanitiseSpec
from service.datasets import repository as datasets
from service.errors import UnusableDataset
from service.tables import DatasetVersion

MIN_REFERENCE_FIT = 64
HALF = 0.5
"""Of a reference: what each of the two filters is fitted on, and what the one that is served has not seen."""
MIN_SIFTED = 1000
NO_DIVERGENCE = (
    "The detector reconstruction_divergence looks through the filter, which without a trusted reference is fitted "
    "last. Give a reference, or leave the detector out."
)
IMAGES = "images"


def check_matches(dataset: DatasetVersion, shape: tuple[int, ...], classes: list[str], what: str) -> None:
    """Raises UnusableDataset where shape or classes do not fit."""
    name = datasets.reference_of(dataset)
    if tuple(dataset.image_shape) != shape:
        size, _, channels = shape
        raise UnusableDataset(
            f"{name} has images of {'×'.join(map(str, dataset.image_shape))} (height×width×channels), {what} has "
            f"{'×'.join(map(str, shape))}. Upload it again with size={size} and channels={channels}.",
            code="shape_mismatch",
        )
    foreign = sorted(set(dataset.classes) - set(classes))
    if foreign:
        raise UnusableDataset(
            f"{name} has classes that {what} does not: {', '.join(foreign[:5])}{'…' if len(foreign) > 5 else ''}. "
            "Remove them, or name them as the other does.",
            code="class_mismatch",
        )


def check_reference(dataset: DatasetVersion, reference: DatasetVersion, spec: SanitiseSpec) -> None:
    """Raises UnusableDataset where this reference cannot fit the filter or cannot show the α asked for."""
    check_matches(reference, tuple(dataset.image_shape), dataset.classes, f"data set {datasets.reference_of(dataset)}")
    name = datasets.reference_of(reference)
    _refuse_lonely(reference, "calibrate on the other images of each class than it is fitted on")
    fitted = int(reference.num_samples * HALF)
    if fitted < MIN_REFERENCE_FIT:
        raise UnusableDataset(
            f"Reference {name} leaves {fitted} images to fit each of the two filters on; at least {MIN_REFERENCE_FIT} "
            f"are needed. Give a reference of at least {round(MIN_REFERENCE_FIT / HALF)} images.",
            code="reference_too_small",
        )
    alpha = spec.calibration.rate
    counted = _counted(reference, spec.calibration.count_by)
    if alpha is not None and alpha < smallest_alpha(counted.count):
        raise UnusableDataset(
            f"Reference {name} has {counted.count} {counted.unit} to calibrate on: the smallest rate that they can "
            f"promise is {smallest_alpha(counted.count):.4f}, not {alpha}. Ask for that, or give a reference of at "
            f"least {samples_needed(alpha)} {counted.unit}{counted.otherwise('calibration.count_by')}.",
            code="alpha_too_small",
            smallest=smallest_alpha(counted.count),
        )


def check_siftable(dataset: DatasetVersion, spec: SanitiseSpec) -> None:
    """Raises UnusableDataset where no reference can be sifted out of these candidates."""
    name = datasets.reference_of(dataset)
    if dataset.num_samples < MIN_SIFTED or len(dataset.classes) < 2:
        raise UnusableDataset(
            f"{name} has {dataset.num_samples} images of {len(dataset.classes)} classes: without a trusted reference "
            f"Winnow sifts one out of at least {MIN_SIFTED} images of two classes. Give a reference.",
            code="reference_needed",
        )
    _refuse_lonely(dataset, "judge each image by others of its class")
    if "reconstruction_divergence" in spec.panel.detectors:
        raise UnusableDataset(NO_DIVERGENCE, code="reference_needed")


def check_trainable(
    dataset: DatasetVersion, reference: DatasetVersion | None, spec: DistillSpec, *, held_share: float = 1.0
) -> None:
    """Raises UnusableDataset where no classifier can be trained, or its abstention not be calibrated."""
    name = datasets.reference_of(dataset)
    if len(dataset.classes) < 2:
        raise UnusableDataset(
            f"{name} has one class only ({dataset.classes[0]}): a classifier needs two.", code="one_class"
        )
    _refuse_lonely(dataset, "train a classifier and hold images out to check it")
    if reference is not None:
        check_matches(reference, tuple(dataset.image_shape), dataset.classes, f"data set {name}")
    given, share = (dataset, spec.abstention.holdout_share) if reference is None else (reference, held_share)
    counted = _counted(given, spec.abstention.count_by)
    held = min(counted.count, int(given.num_samples * share))  # how many groups so many images show, the worker sees
    calibrating = calibrating_of(held)
    if spec.abstention.alpha < smallest_alpha(calibrating):
        more = f"a reference of more {counted.unit}"
        if reference is None:
            more = f"{more}, or hold out a larger share (abstention.holdout_share)"
        raise UnusableDataset(
            f"Of at most {held} held-out {counted.unit} {calibrating} calibrate abstention: the smallest alpha that "
            f"they can promise is {smallest_alpha(calibrating):.4f}, not {spec.abstention.alpha}. Ask for that, or "
            f"give {more}{counted.otherwise('abstention.count_by')}.",
            code="alpha_too_small",
            smallest=smallest_alpha(calibrating),
        )


@dataclass(frozen=True)
class _Counted:
    """What of a data set counts as one."""

    count: int
    unit: str

    def otherwise(self, choice: str) -> str:
        """The way out, where groups count."""
        if self.unit == IMAGES:
            return ""
        return f', or ask for {choice} "images": it counts them all, and rates are estimates'


def _counted(row: DatasetVersion, count_by: CountBy) -> _Counted:
    """Groups where they count and are known; a version of before they were counted is refused by the worker."""
    if count_by == "images" or row.num_groups is None or row.num_groups == row.num_samples:
        return _Counted(row.num_samples, IMAGES)
    return _Counted(row.num_groups, "groups")


def _refuse_lonely(dataset: DatasetVersion, purpose: str) -> None:
    few = [name for name, count in zip(dataset.classes, dataset.class_counts, strict=True) if count < 2]
    if few:
        raise UnusableDataset(
            f"In {datasets.reference_of(dataset)} these classes have fewer than two images: {', '.join(few[:5])}"
            f"{'…' if len(few) > 5 else ''}. Two are needed to {purpose}: add images or leave the class out.",
            code="class_too_small",
        )
