"""Does live traffic still look like the calibration images? A sequential test of conformal p-values; numpy only.

n calibration images cut what a test can say of an image into n + 1 slots; an image's p-value (k + 1)/(n + 1) says that
it fell into slot k, slot 0 the most suspicious. While traffic is exchangeable with the calibration, each next image
falls into slot k with probability (1 + c_k)/(n + 1 + t), with c_k of the t images before it there: not with 1/(n + 1),
for n images know the true quantiles only so well, and traffic comes to know them better. The test bets against these
odds. Its wealth is a martingale that starts at 1, so it ever reaches 1/rate with probability at most `rate`, however
long traffic lasts, and over the draw of the calibration set too.

b bins of slots, k bettors, s streams tested side by side.
Sources: Ville 1939 and Vovk et al. 2005, section 7.1 (betting against exchangeability); Tukey 1947 (the slots of any
sequentially cut statistically equivalent blocks, the joint test of `models.calibration` among them, have a Dirichlet
distribution, hence the odds); Herbster & Warmuth 1998 (sharing wealth among bettors, so that changes may come late).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.calibration import Float64s, Floats, Ranks

EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""P-values at which bins of slots end, as near as the calibration allows."""

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Bettors on so large a share of the traffic lying in one tail …"""
TAILS = (0.002, 0.01, 0.05)
"""… of these sizes: among the smallest p-values (perturbed images), or among the largest (repeated, or too easy)."""
TILTS = (0.4, 0.7, 1.5, 2.5)
"""Bettors on the whole distribution leaning: u^(κ - 1) and (1 - u)^(κ - 1)."""

IDLE_SHARE = 0.5
"""Of the wealth that is put on nothing, to be there when a change comes late."""
SHARING_DELAY = 100
"""After t images a share of 1/(t + SHARING_DELAY) of all wealth is dealt out anew."""


class DriftTest:
    """A martingale that grows when live p-values stop having the distribution that their calibration promises.

    num_calibration: n ≥ 1. rate: the chance, in (0, 1), that clean traffic ever raises the alarm.
    cuts: (n,) bool, whether slots j and j + 1 can be told apart: false where calibration images tie there (see
    `distinct`). streams: independent streams tested side by side, for simulations.
    Memory and time an image: O(streams·k·b), whatever n and the length of the stream.
    Raises ValueError where the numbers do not fit.
    """

    def __init__(
        self, num_calibration: int, *, rate: float, cuts: npt.NDArray[np.bool_] | None = None, streams: int = 1
    ) -> None:
        if num_calibration < 1 or not 0 < rate < 1 or streams < 1:
            raise ValueError(f"no test of {num_calibration} calibration images at rate {rate}, {streams} streams")
        if cuts is not None and cuts.shape != (num_calibration,):
            raise ValueError(f"want one cut for each of {num_calibration} calibration images, not {cuts.shape}")
        self.num_calibration, self.rate = num_calibration, rate
        self.edges = slot_edges(num_calibration, cuts)
        self.sizes = np.diff(self.edges)
        self.counts = np.zeros((streams, len(self.sizes)), dtype=np.int64)
        self.seen = 0
        self.log_wealth = np.zeros(streams)
        self.log_peak = np.zeros(streams)
        self._bets = bets(self.edges)
        self._prior = np.full(len(self._bets), (1 - IDLE_SHARE) / (len(self._bets) - 1))
        self._prior[0] = IDLE_SHARE
        self._weights = np.tile(self._prior, (streams, 1))

    @property
    def alarmed(self) -> npt.NDArray[np.bool_]:
        """(s,), whether the wealth has ever reached 1/rate. It does not go away by itself."""
        return np.asarray(self.log_peak >= -np.log(self.rate))

    @property
    def p_value(self) -> Float64s:
        """(s,), valid whenever one looks: the chance that clean traffic would ever have got so far."""
        return np.asarray(np.exp(-self.log_peak))

    def observe(self, p_values: Floats) -> None:
        """p_values: (t,) of one stream or (s, t), in the order in which they came; each a multiple of 1/(n + 1).

        Raises ValueError where one is no p-value of this calibration.
        """
        places = np.atleast_2d(np.asarray(p_values, dtype=np.float64)) * (self.num_calibration + 1)
        whole = np.rint(np.nan_to_num(places, posinf=0))
        if not ((whole >= 1) & (np.abs(places - whole) < 1e-3) & (whole <= self.num_calibration + 1)).all():
            raise ValueError(f"these are no p-values of {self.num_calibration} calibration images")
        slots = whole.astype(np.int64) - 1
        found = np.searchsorted(self.edges, slots, side="right") - 1
        for column in found.T:
            self._bet_on(column)

    def expected(self) -> Float64s:
        """(s, b), the odds of the next image before it comes."""
        return np.asarray((self.sizes + self.counts) / (self.num_calibration + 1 + self.seen))

    def _bet_on(self, bins: Ranks) -> None:
        """bins: (s,), where the next image of each stream fell."""
        rows = np.arange(len(bins))
        stakes = self.expected() @ self._bets.T  # (s, k): what each bettor's bets cost at these odds
        weights = self._weights * (self._bets.T[bins] / stakes)
        gained = weights.sum(axis=1)
        self.log_wealth += np.log(gained)
        self.log_peak = np.maximum(self.log_peak, self.log_wealth)
        dealt = 1 / (self.seen + SHARING_DELAY)
        self._weights = (1 - dealt) * weights / gained[:, None] + dealt * self._prior
        self.counts[rows, bins] += 1
        self.seen += 1


def distinct(keys: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Whether slots can be told apart at each of (n,) calibration keys, from the most suspicious on.

    keys: in the order in which they rank. Where calibration images tie, live images tie with them too, and their
    p-values lie at one end of the slots that the tie spans, where chance alone would have spread them: only what
    lies beyond the slots of a tie, together with them, has a known probability.
    """
    same = keys[1:] == keys[:-1]
    return np.asarray(~(np.append(same, False) | np.insert(same, 0, False)))


def slot_edges(num_calibration: int, cuts: npt.NDArray[np.bool_] | None = None) -> Ranks:
    """First slots of the bins, and n + 1 at the end: near EDGES, at cuts only, no bin empty. At least one bin."""
    size = num_calibration + 1
    allowed = np.arange(1, size) if cuts is None else 1 + np.flatnonzero(cuts)
    wanted = np.maximum(np.rint(np.array(EDGES) * size), 1)
    nearest = [allowed[np.abs(allowed - edge).argmin()] for edge in wanted] if len(allowed) else []
    return np.unique(np.array([0, *nearest, size], dtype=np.int64))


def bets(edges: Ranks) -> Float64s:
    """(k, b): what each bettor's density is in each bin, relative to the others; the first bets on nothing."""
    share = edges / edges[-1]
    low, high = share[:-1], share[1:]
    found = [np.ones(len(low))]
    for tail in TAILS:
        in_tail = high <= max(tail, high[0]) + 1e-12
        for share_of_traffic in SHARES:
            gain = share_of_traffic / high[in_tail].max()
            found.append(1 - share_of_traffic + gain * in_tail)
            upper = low >= min(1 - tail, low[-1]) - 1e-12
            found.append(1 - share_of_traffic + share_of_traffic / (1 - low[upper].min()) * upper)
    for power in TILTS:
        found.append((high**power - low**power) / (high - low))
        found.append(((1 - low) ** power - (1 - high) ** power) / (high - low))
    return np.stack(found)
