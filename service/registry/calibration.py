"""`calibration.json` of a bundle: what the served model needs to decide when to answer null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from models.abstention import AbstentionCalibration, InvalidCalibration, dropout_masks


@dataclass(frozen=True)
class McDropout:
    """The dropout masks of the student, made anew from the seed wherever they are needed."""

    passes: int
    dropout: float
    seed: int
    feature_dim: int

    def masks(self) -> NDArray[np.float32]:
        """(passes, feature_dim)."""
        return dropout_masks(self.passes, self.feature_dim, self.dropout, self.seed)


@dataclass(frozen=True, eq=False)
class ServingCalibration:
    """Abstention's calibration, the masks that it was made with, and the α that holds where a request names none."""

    abstention: AbstentionCalibration
    mc: McDropout
    alpha: float

    def to_bytes(self) -> bytes:
        mc = {
            "passes": self.mc.passes,
            "dropout": self.mc.dropout,
            "seed": self.mc.seed,
            "feature_dim": self.mc.feature_dim,
        }
        document = {"alpha": self.alpha, "n": self.abstention.n, "mc": mc, **self.abstention.to_json()}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises InvalidCalibration where a part is missing or malformed."""
        try:
            document: dict[str, Any] = orjson.loads(data)
            mc = McDropout(**document["mc"])
            alpha = float(document["alpha"])
            mc.masks()  # refuses numbers that no masks can be made from
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InvalidCalibration(f"malformed calibration: {error!r}") from error
        return cls(AbstentionCalibration.from_json(document), mc, alpha)
