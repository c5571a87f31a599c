"""What becomes of the candidates once they are judged: kept, reformed or quarantined, and the version that is left."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from models.images import Images
from models.specs import PolicySpec
from service.datasets.shard_writing import ShardWriter, Written
from service.jobs.verdicts import Verdict, Verdicts
from worker.context import Context
from worker.examiner import Listing
from worker.fitting import Fitted
from worker.judging import Judgement


@dataclass(frozen=True, eq=False)
class Treatment:
    """The policy, with what it takes to apply it."""

    fitted: Fitted
    judgement: Judgement
    policy: PolicySpec

    def apply(self, images: Images, listing: Listing, verdicts: Verdicts) -> tuple[Images, Verdicts]:
        """(pixels, verdicts) of one shard, whose verdicts so far are keep or quarantine."""
        flagged = verdicts == Verdict.QUARANTINE.value
        reform = self.policy.on_flag == "reform" and bool(flagged.any())
        if not reform and self.policy.pass_through == "original":
            return images, verdicts
        pixels, decided = images.copy(), verdicts.copy()
        if self.policy.pass_through == "reconstructed":
            rest = np.flatnonzero(~flagged)
            pixels[rest] = self.fitted.filter_fit.filter.reconstruct(images[rest], listing.folds[rest])
        if reform:
            places = np.flatnonzero(flagged)
            pixels[places], passes = self._reformed(images[places], listing.at(places))
            decided[places[passes]] = Verdict.REFORM.value
        return pixels, decided

    def _reformed(self, images: Images, listing: Listing) -> tuple[Images, NDArray[np.bool_]]:
        """The reconstructions, and which of them pass every test and look like their label."""
        rebuilt = self.fitted.filter_fit.filter.reconstruct(images, listing.folds)
        scores = self.fitted.examiner.score(rebuilt, listing.labels, listing.folds, listing.rows)
        passes = ~self.judgement.flags(scores, listing.labels)
        return rebuilt, passes & (self.fitted.filter_fit.classify(rebuilt, listing.folds) == listing.labels)


def write_version(context: Context, treatment: Treatment, prefix: str) -> tuple[Verdicts, Written]:
    """Shard by shard: applies the policy, and writes the images that stay."""
    sets = treatment.fitted.sets
    height, width, channels = sets.candidate.image_shape
    rows, listing = sets.candidate_reader.each_row(), treatment.fitted.listings.candidates
    flagged = treatment.judgement.flagged
    verdicts = np.array([Verdict.KEEP.value, Verdict.QUARANTINE.value], dtype=object)[flagged.astype(np.intp)]
    watch = context.progress.enter("writing", unit="images")
    with ShardWriter(context.storage, prefix, (height, width, channels), len(sets.candidate.classes)) as writer:
        for start, images in sets.candidate_reader.shards():
            here = slice(start, start + len(images))
            pixels, verdicts[here] = treatment.apply(images, listing.at(here), verdicts[here])
            kept = verdicts[here] != Verdict.QUARANTINE.value
            for image, row, stays in zip(pixels, islice(rows, len(images)), kept, strict=True):
                if stays:
                    writer.add(image, row)
            watch.advance(start + len(images), sets.candidate_reader.num_samples)
        return verdicts, writer.close()
