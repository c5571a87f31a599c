"""What schemathesis has to know of the API's media types: the body of an upload is bytes."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/offset+octet-stream", "application/zip", "application/x-npz", "image/*")
def as_bytes(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
