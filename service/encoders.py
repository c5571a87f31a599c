"""The pretrained encoders that an operator gave this deployment: files NAME.onnx in one folder.

They are not a tenant's: an ONNX file is opened by native code, and whoever chooses it is trusted with the verdicts.
"""

from __future__ import annotations

import re
from pathlib import Path

from models.panel_specs import ENCODER_NAME
from service.errors import InvalidParams
from service.settings import Settings

SUFFIX = ".onnx"
SHOWN = 20


def offered(settings: Settings) -> list[str]:
    """The names that jobs may give, sorted."""
    found = (path.stem for path in settings.encoders.glob(f"*{SUFFIX}") if _is_file(path))
    return sorted(name for name in found if re.fullmatch(ENCODER_NAME, name))


def find(settings: Settings, name: str) -> Path:
    """Raises InvalidParams where this deployment has no such encoder. `name` has been checked to be no path."""
    path = settings.encoders / f"{name}{SUFFIX}"
    if not _is_file(path):
        raise InvalidParams(
            f"There is no encoder {name!r} here. {_what_there_is(settings)}",
            code="encoder_not_found",
            encoders=offered(settings),
        )
    return path


def _is_file(path: Path) -> bool:
    """False, too, where the folder may not be searched: some versions of Python raise that."""
    try:
        return path.is_file()
    except OSError:
        return False


def _what_there_is(settings: Settings) -> str:
    names = offered(settings)
    if not names:
        return (
            "The operator has put none into WINNOW_ENCODERS, the same folder for gateways and workers: leave "
            "panel.encoder out."
        )
    return f"There is: {', '.join(names[:SHOWN])}{'…' if len(names) > SHOWN else ''}."
