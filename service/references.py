"""Names and references: `signs`, `signs@2`, `signs-student:champion`. Parsed here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.errors import InvalidReference

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_DATASET = re.compile(rf"({NAME})@([1-9][0-9]{{0,8}})")
_MODEL = re.compile(rf"({NAME})(?:@([1-9][0-9]{{0,8}})|:({NAME}))?")


@dataclass(frozen=True)
class DatasetRef:
    """One immutable version of a data set."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class ModelRef:
    """A model by version, by alias, or by name alone."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@{self.version}"
        return self.name if self.alias is None else f"{self.name}:{self.alias}"


def check_name(text: str, *, what: str) -> str:
    """`text` if it may name a data set or a model."""
    if not re.fullmatch(NAME, text):
        raise InvalidReference(
            f"{text!r} cannot name a {what}: use 1 to 64 lower-case letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit."
        )
    return text


def parse_dataset_ref(text: str) -> DatasetRef:
    match = _DATASET.fullmatch(text)
    if match is None:
        raise InvalidReference(f"{text!r} does not name a data set version: write it as name@version, such as signs@1.")
    return DatasetRef(match[1], int(match[2]))


def parse_model_ref(text: str) -> ModelRef:
    match = _MODEL.fullmatch(text)
    if match is None:
        raise InvalidReference(
            f"{text!r} does not name a model: write name, name@version or name:alias, such as signs-student@1."
        )
    return ModelRef(match[1], int(match[2]) if match[2] else None, match[3])
