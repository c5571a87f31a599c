"""From an HTTP answer to a record, or to the error that it tells of."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from service.client.errors import ClientError, NotWinnow, ProblemError
from service.client.records import Wire

WireT = TypeVar("WireT", bound=Wire)

SAID = ("type", "code", "status", "detail", "title", "error")


def problem_of(answer: httpx.Response) -> ClientError:
    try:
        told = answer.json()
        extra = {key: value for key, value in told.items() if key not in SAID}
        detail = told.get("detail") or told.get("error") or told.get("title", "")  # error: the inference protocol's
        return ProblemError(told["code"], answer.status_code, detail, extra)
    except (ValueError, KeyError, AttributeError, TypeError):
        request = f"{answer.request.method} {answer.request.url}"
        return NotWinnow(
            f"{request} answered {answer.status_code}, and not as Winnow would. Is the address right?",
            answer.status_code,
        )


def json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise NotWinnow(
            f"{answer.request.url} did not answer with a JSON object. Is it Winnow's address?", answer.status_code
        )
    return told


def parse(answer: httpx.Response, kind: type[WireT]) -> WireT:
    return validated(json_object(answer), kind, answer)


def validated(told: Any, kind: type[WireT], answer: httpx.Response) -> WireT:
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise NotWinnow(
            f"{answer.request.url} answered in a form that this client does not understand ({kind.__name__}: "
            f"{error.errors()[0]['msg']} at {error.errors()[0]['loc']}). Are client and service of the same version?",
            answer.status_code,
        ) from error
