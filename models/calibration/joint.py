"""Several tests of one image as one conformal p-value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.calibration.conformal import Float64s, Floats, Ranks, finite, ranks_flagged, threshold_at_fpr


class JointTest:
    """Several tests of one image as one conformal p-value, so that α stays α however many tests there are.

    calibration: (m, t), the scores of m clean images under t tests. weights: (t,), how α is shared among the tests,
    evenly where not given; only their ratios matter. An image is as suspicious as the smallest of its ranks, each over
    its test's weight, among the calibration images and itself; where two images have the same, the test of the lower
    column is believed.
    `ranks`: (m, t), of the calibration images among themselves, 1 the most suspicious.
    That is full conformal prediction: the ranks of the calibration images count the new image too, which makes the
    m + 1 of them exchangeable and the p-value valid at every m, with no part of them set aside to calibrate the
    combination. With t = 1 it is `conformal_p_values`.
    Raises ValueError where a score is not finite or weights are not t positive numbers.
    Source: Vovk et al. 2005, section 2.2 (any symmetric conformity measure). Deviation: no recount per image, see
    `_counted`.
    """

    def __init__(self, calibration: Floats, weights: Sequence[float] | None = None) -> None:
        scores = finite(calibration, "calibration scores", dimensions=2)
        self.num_calibration, self.num_tests = scores.shape
        self.weights = shares(weights, self.num_tests)
        self._sorted = np.sort(scores, axis=0)
        self.ranks = self.num_calibration - positions(self._sorted, scores)
        self._places = _places(self.num_calibration, self.weights)
        self._keys_of: dict[int, Ranks] = {}
        self._columns = np.arange(self.num_tests)

    def p_values(self, scores: Floats) -> tuple[Float64s, Float64s]:
        """scores: (n, t). Returns the joint p-values (n,) and each test's own (n, t).

        O(n·t·log m) and O(n·t) memory. Raises ValueError where t does not fit or a score is not finite.
        """
        ranks, tied = self._rank(scores)
        keys = self._keys(ranks)
        size = self.num_calibration + 1
        return self._counted(keys, ranks, tied) / size, ranks / size

    def own_p_values(self, scores: Floats) -> Float64s:
        """scores: (n, t). Each test's own conformal p-value, (n, t)."""
        return np.asarray(self._rank(scores)[0] / (self.num_calibration + 1))

    def order(self) -> Ranks:
        """What the calibration images have come to, the most suspicious first: (m,), equal where they tie."""
        return self._sorted_keys(0)

    def levels(self, alpha: float) -> Float64s:
        """The own p-value at which each test alone makes the joint p-value <= α, (t,); 0 where none does.

        Between α·weight, where the tests never agree on an image, and α, where they always do.
        """
        flagged = ranks_flagged(alpha, self.num_calibration)
        if flagged == 0:
            return np.zeros(self.num_tests)
        if flagged > self.num_calibration:
            return np.ones(self.num_tests)
        limit = self._sorted_keys(0)[flagged - 1]
        return np.asarray((self._places <= limit).sum(axis=1) / (self.num_calibration + 1))

    def thresholds(self, levels: Float64s) -> Float64s:
        """Of each test the score beyond which its own p-value is at most its level, (t,); inf where that is 0."""
        columns = zip(self._sorted.T, levels, strict=True)
        return np.array([threshold_at_fpr(column, fpr=level) if level > 0 else np.inf for column, level in columns])

    def _rank(self, scores: Floats) -> tuple[Ranks, npt.NDArray[np.bool_]]:
        """Of each image, among the calibration images and itself: its ranks; whether it ties with one of them."""
        if np.ndim(scores) != 2 or np.shape(scores)[1] != self.num_tests:
            raise ValueError(f"scores must have shape (n, {self.num_tests}), not {np.shape(scores)}")
        values = finite(scores, "scores", dimensions=2)
        places = positions(self._sorted, values)
        if self.num_calibration == 0:
            return places + 1, np.zeros(values.shape, dtype=bool)
        at = np.minimum(places, self.num_calibration - 1)
        tied = (self._sorted[at, self._columns] == values) & (places < self.num_calibration)
        return 1 + self.num_calibration - places, tied

    def _keys(self, ranks: Ranks) -> Ranks:
        """ranks: (n, t), from 1. The place of the smallest rank over weight, (n,)."""
        keys: Ranks = self._places[0][ranks[:, 0] - 1]
        for column in range(1, self.num_tests):
            keys = np.minimum(keys, self._places[column][ranks[:, column] - 1])
        return keys

    def _counted(self, keys: Ranks, ranks: Ranks, tied: npt.NDArray[np.bool_]) -> Ranks:
        """How many of the calibration images and the image itself are at least as suspicious as it, (n,).

        Counting the new image moves a calibration image's rank in a test by one where the new image scores at least as
        high. Say key k of the new image comes from test j*. A calibration image whose rank in j* without the new image
        already has a key < k scores at least as high there, and keeps a key <= k; one with a key = k scores lower, and
        moves beyond k. In another test j, where the new image's key exceeds k, a calibration image with a key < k
        scores at least as high: it stays, unless it ties with the new image and the step leads beyond k. So the count
        is that of the calibration images' keys among themselves that are < k, with the ranks of the tests that tie at
        that boundary moved by one.
        """
        counted: Ranks = 1 + np.searchsorted(self._sorted_keys(0), keys, side="left")
        if not tied.any():
            return counted
        moved = np.zeros(len(keys), dtype=np.int64)
        for column in range(self.num_tests):
            ties = np.flatnonzero(tied[:, column])
            places = self._places[column]
            beyond, before = places[ranks[ties, column] - 1], places[ranks[ties, column] - 2]
            moved[ties[(beyond > keys[ties]) & (before < keys[ties])]] |= 1 << column
        for columns in np.unique(moved[moved > 0]):
            rows = np.flatnonzero(moved == columns)
            counted[rows] = 1 + np.searchsorted(self._sorted_keys(int(columns)), keys[rows], side="left")
        return counted

    def _sorted_keys(self, moved: int) -> Ranks:
        """Keys of the calibration images among themselves, ranks of the columns in the bit set `moved` one further."""
        if moved not in self._keys_of:
            step = np.array([moved >> column & 1 for column in range(self.num_tests)], dtype=np.int64)
            self._keys_of[moved] = np.sort(self._keys(self.ranks + step))
        return self._keys_of[moved]


def shares(weights: Sequence[float] | None, t: int) -> Float64s:
    """The weights of t tests, (t,), sum 1, even where not given. Raises ValueError where they are not t positive."""
    given = np.ones(t) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (t,) or t == 0 or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"weights must be {t} positive numbers, at least one, not {weights}")
    return np.asarray(given / given.sum())


def positions(ordered: Float64s, values: Float64s) -> Ranks:
    """How many of each sorted column are below the values in it, (n, t)."""
    columns = [np.searchsorted(s, v, side="left") for s, v in zip(ordered.T, values.T, strict=True)]
    return np.stack(columns, axis=1).astype(np.int64, copy=False)


def _places(m: int, weights: Float64s) -> Ranks:
    """(t, m + 1): the place of rank 1 … m + 1 of each test in the order of (rank / weight, column)."""
    keys = np.arange(1, m + 2) / weights[:, None]
    columns = np.broadcast_to(np.arange(len(weights))[:, None], keys.shape)
    places = np.empty(keys.size, dtype=np.int64)
    places[np.lexsort((columns.ravel(), keys.ravel()))] = np.arange(keys.size)
    return places.reshape(keys.shape)
