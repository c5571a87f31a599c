"""Which of several representations a caller gets (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import NotAcceptable


def preferred(accept: str, offered: Sequence[str]) -> str:
    """The offered media type that the caller likes best; of several, the first. Raises NotAcceptable."""
    wanted = [_parsed(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    liked = {offer: _liking(offer, wanted) for offer in offered}
    best = max(offered, key=lambda offer: liked[offer])  # max keeps the first of equals
    if liked[best] <= 0:
        raise NotAcceptable(
            f"This call answers with {' or '.join(offered)}; Accept: {accept[:200]} takes none of them.",
            offered=list(offered),
        )
    return best


def _parsed(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    try:
        return media, min(max(float(weight), 0.0), 1.0)
    except ValueError:
        return media, 0.0


def _liking(offer: str, wanted: Sequence[tuple[str, float]]) -> float:
    """By the most specific range that holds the offer."""
    for media in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        weights = [weight for name, weight in wanted if name == media]
        if weights:
            return max(weights)
    return 0.0
