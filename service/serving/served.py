"""A loaded model version: its graphs on ONNX Runtime, warm, proven against its parity sample, for every way to ask."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from models.abstention import AbstentionCalibration, Reason, calibrate_abstention, dropout_masks
from models.calibration import AlphaTooSmall, check_alpha
from service.references import ModelRef
from service.registry.bundle import HEAD, REFORMED, SERVED, Bundle
from service.serving.answers import Answers, Options, Timing
from service.serving.batches import CPU_PIXELS_A_CALL, PIXELS_A_CALL, largest_batch
from service.serving.calling import Calling, Judged, outputs_of
from service.serving.errors import AlphaNotPromised, AlphaOutOfRange, CannotReform, ModelFault, PassesOutOfRange
from service.serving.sessions import Runtime

MOST_PASSES = 256
KEPT_CALLINGS = 16
HEAD_ROWS = 512  # of held-out images whose heads are computed at once
MEMORY_FACTOR = 4
"""Bytes in memory over bytes of a graph: the file, ONNX Runtime's weights, those packed for its kernels, buffers."""

How = tuple[bool, int, int]
"""Reform, passes, seed: requests that agree in these may share a call."""


class Served:
    """Ready when made. One version of one tenant's model."""

    def __init__(self, bundle: Bundle, runtime: Runtime, *, name: str, version: int, batch: int) -> None:
        """Raises ModelFault where a network cannot be run, answers nonsense, or other than when it was exported."""
        self.name, self.version, self.reference = name, version, str(ModelRef(name, version))
        self.classes, self.image_shape = bundle.classes, bundle.image_shape
        self.bundle, self.alpha = bundle.digest, bundle.calibration.alpha
        self.has_detector = bundle.has_detector
        self.smallest_alpha = bundle.calibration.abstention.smallest_alpha
        self._parts, self._runtime = bundle, runtime
        pixels = CPU_PIXELS_A_CALL if runtime.on_cpu else PIXELS_A_CALL
        self._largest = largest_batch(batch, bundle.image_shape, pixels=pixels)
        self._mc = bundle.calibration.mc
        self._lock = threading.Lock()
        self._callings: OrderedDict[How, Calling] = OrderedDict()
        own = self._open(SERVED, bundle.served, self._mc.masks(), bundle.calibration.abstention)
        own.check(bundle.parity)
        self._own = own.tried(self.image_shape, batch=self._largest)
        self._reforming: Calling | None = None
        self.provider = own.network.provider
        self.bytes = MEMORY_FACTOR * len(bundle.served)

    @property
    def batch(self) -> int:
        """Images that one call takes, at most."""
        return self._own.batch

    def how(self, options: Options) -> How:
        """Raises CannotReform, PassesOutOfRange, AlphaOutOfRange or AlphaNotPromised, which names the smallest."""
        if options.reform and not self.has_detector:
            raise CannotReform(
                f"{self.reference} was made without a filter, so it has nothing to reform images with. Leave out "
                "reform, or distill from a sanitised data set."
            )
        passes = self._mc.passes if options.mc_passes is None else options.mc_passes
        if not 2 <= passes <= MOST_PASSES:
            raise PassesOutOfRange(f"mc_passes = {passes}: take 2 to {MOST_PASSES}.")
        if options.alpha is not None:
            self.check_alpha(options.alpha)
        return options.reform, passes, self._mc.seed if options.seed is None else options.seed

    def check_alpha(self, alpha: float) -> None:
        try:
            check_alpha(alpha, self._parts.calibration.abstention.n)
        except AlphaTooSmall as error:
            raise AlphaNotPromised(
                f"α = {alpha:g} cannot be held: this model was calibrated on {error.n} images, and the smallest α that "
                f"they can show is {error.smallest}. Ask for that or more, or distill with a larger reference.",
                smallest_alpha=error.smallest,
                calibration_images=error.n,
            ) from error
        except ValueError as error:
            raise AlphaOutOfRange(f"α = {alpha} is no share of images: it must be above 0 and below 1.") from error

    def calling(self, how: How) -> Calling | None:
        """Where it is there already; else it must be made, off the event loop."""
        return self._own if how == (False, self._mc.passes, self._mc.seed) else self._callings.get(how)

    def make_calling(self, how: How) -> Calling:
        """A graph under other masks, calibrated anew for them on the bundle's held-out images. Takes a moment."""
        with self._lock:
            if (known := self.calling(how)) is not None:
                return known
            reform, passes, seed = how
            masks = dropout_masks(passes, self._mc.feature_dim, self._mc.dropout, seed)
            calibration = self._calibrated(masks, reform=reform)
            if reform:
                made = self._reformer(masks, calibration)
            else:
                made = Calling(self._own.network, masks, calibration, self._own.sizes)
                made = made.tried(self.image_shape, batch=self._largest)
            self._callings[how] = made
            if len(self._callings) > KEPT_CALLINGS:
                self._callings.popitem(last=False)
            return made

    def answers(self, calling: Calling, judged: Judged, alpha: float | None, timing: Timing) -> Answers:
        alpha = self.alpha if alpha is None else alpha
        if not judged.finite.all():
            row = int(judged.finite.argmin())
            raise ModelFault(f"{self.reference} answers numbers that are not finite for image {row}.", image=row)
        p_value = calling.p_values(judged, alpha)
        abstained: NDArray[np.bool_] = p_value <= alpha
        names = calling.calibration.reasons
        reason: list[Reason | None] = [None] * len(abstained)
        for row in abstained.nonzero()[0].tolist():
            reason[row] = names[judged.first[row]]
        return Answers(
            model=self.reference,
            bundle=self.bundle,
            alpha=alpha,
            classes=self.classes,
            probabilities=judged.probabilities,
            index=judged.index,
            abstained=abstained,
            reason=reason,
            p_value=p_value,
            entropy=judged.entropy,
            mutual_information=judged.mutual_information,
            kl=judged.kl,
            timing=timing,
        )

    def _reformer(self, masks: NDArray[np.float32], calibration: AbstentionCalibration) -> Calling:
        if self._reforming is None:
            graph = self._parts.read(REFORMED)
            self._reforming = self._open(REFORMED, graph, masks, calibration)
            self.bytes += MEMORY_FACTOR * len(graph)
        made = Calling(self._reforming.network, masks, calibration, (self._largest,))
        return made.tried(self.image_shape, batch=self._largest)

    def _open(self, name: str, graph: bytes, masks: NDArray[np.float32], calibration: AbstentionCalibration) -> Calling:
        outputs = outputs_of(calibration)
        network = self._runtime.open(graph, name=name, inputs=("images", "masks"), outputs=outputs)
        return Calling(network, masks, calibration, (1,))

    def _calibrated(self, masks: NDArray[np.float32], *, reform: bool) -> AbstentionCalibration:
        """As at distilling: the same images shape the profiles, the same calibrate."""
        held, own = self._parts.held_out(), self._parts.calibration.abstention
        features = held.reformed if reform and held.reformed is not None else held.features
        names = ["mean_probabilities", *own.student_scores]
        head = self._runtime.open(self._parts.read(HEAD), name=HEAD, inputs=("features", "masks"), outputs=names)
        parts = [
            head.run(names, {"features": features[start : start + HEAD_ROWS], "masks": masks})
            for start in range(0, len(features), HEAD_ROWS)
        ]
        mean, *scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        return calibrate_abstention(
            mean[None],
            held.labels,
            held.scores,
            seed=self._mc.seed,
            student_scores=dict(zip(own.student_scores, scores, strict=True)),
            per_class=own.per_class,
            temperature=own.temperature,
        )
