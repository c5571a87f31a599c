"""An examiner with the listing of the images it is to score, as one value: safetensors, no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.filtering import CrossFilter, Filter
from models.panel.detectors import Encode
from models.panel.packing import pack_panel, unpack_panel
from worker.examiner import Examiner, Labels, Listing

NOTES = "notes"
LISTED = ("labels", "folds", "rows")


def pack_examiner(examiner: Examiner, listing: Listing) -> bytes:
    """The same bytes for the same examiner and listing."""
    filters = examiner.filter.filters
    arrays = {
        f"filter.{fold}.{name}": np.ascontiguousarray(value)
        for fold, fitted in enumerate(filters)
        for name, value in fitted.state().items()
    }
    notes: dict[str, object] = {"filters": [fitted.meta() for fitted in filters], "panel": None}
    notes["encoder"] = examiner.encoder
    if examiner.panel is not None:
        own, notes["panel"] = pack_panel(examiner.panel)
        arrays |= {f"panel.{name}": value for name, value in own.items()}
    arrays |= {f"listing.{name}": _narrow(getattr(listing, name)) for name in LISTED}
    arrays[NOTES] = np.frombuffer(json.dumps(notes, sort_keys=True).encode(), np.uint8)
    return save_tensors(arrays)


def unpack_examiner(data: bytes, encoder_of: Callable[[Mapping[str, Any]], Encode]) -> tuple[Examiner, Listing]:
    """encoder_of: finds again the encoder of such facts as `Examiner` holds; asked only where there was one."""
    arrays = load_tensors(data)
    notes = json.loads(arrays[NOTES].tobytes())
    facts = notes.get("encoder")  # an examiner of before there were any has no word of it
    filters = tuple(Filter.load(_under(arrays, f"filter.{fold}"), meta) for fold, meta in enumerate(notes["filters"]))
    crossed = CrossFilter(filters)
    panel = None
    if notes["panel"] is not None:
        panel = unpack_panel(
            _under(arrays, "panel"),
            notes["panel"],
            image_shape=filters[0].image_shape,
            reconstruct=crossed.reconstruct,
            encode=encoder_of(facts) if facts else None,
        )
    labels, folds, rows = (arrays[f"listing.{name}"].astype(np.int64) for name in LISTED)
    return Examiner(crossed, panel, facts), Listing(labels, folds, rows)


def _narrow(numbers: Labels) -> NDArray[np.unsignedinteger]:
    """In as few bytes as they need: of a million images, 7 MB instead of 24. They are not negative."""
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))


def _under(arrays: dict[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {key.removeprefix(f"{prefix}."): value for key, value in arrays.items() if key.startswith(f"{prefix}.")}
