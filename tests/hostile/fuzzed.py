"""Good uploads of every format with bits flipped, bytes replaced, pieces doubled and taken out, by a seeded fuzzer."""
# ruff: noqa: E501 (tables of bytes, a file an entry)

from __future__ import annotations

import random
from functools import partial

from tests.hostile.cases import Case
from tests.service.uploads import UPLOADS, idx_pair, zip_of

SOURCES = {
    **{form: UPLOADS[form] for form in ("zip", "zip-csv", "tar", "tar.gz", "tar.bz2", "tar.xz", "webdataset", "npz", "parquet")},
    "idx": zip_of(idx_pair()),
}  # fmt: skip
EACH = 6
TELLING = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0")


def fuzzed(form: str, seed: int) -> bytes:
    rng = random.Random(f"{form} {seed}")
    data = bytearray(SOURCES[form])
    for _ in range(rng.choice((1, 1, 3, 10))):
        place = rng.randrange(4, len(data)) if rng.random() < 0.5 else max(4, len(data) - rng.randrange(1, 600))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 4] = rng.choice(TELLING)
        elif kind == 2:
            data[place : place + 8] = rng.randbytes(8)
        elif kind == 3:
            data[place:place] = data[place : place + rng.randrange(1, 200)]
        else:
            del data[place : place + rng.randrange(1, 50)]
    return bytes(data)


CASES = [Case(f"fuzzed-{form}-{seed}", partial(fuzzed, form, seed)) for form in SOURCES for seed in range(EACH)]
