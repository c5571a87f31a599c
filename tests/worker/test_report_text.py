"""Numbers, names and pictures as a report shows them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_facts import sanitise_facts

from worker.reports import text
from worker.reports.pictures import amplification, data_uri, difference
from worker.reports.sanitise import sanitise_report


def test_differences_are_amplified_around_grey_by_a_factor_that_fits() -> None:
    dark, light = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 103, np.uint8)
    assert amplification([(light, dark)]) == 20  # 3 levels × 20 stay in range, × 50 do not
    assert amplification([(light, dark + np.uint8(100))]) == 1
    assert amplification([]) == 1
    assert (difference(light, dark, 20) == 188).all() and (difference(dark, light, 20) == 68).all()
    assert (difference(light, dark, 50) == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_survive_the_way_into_the_page(channels: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    decoded = Image.open(io.BytesIO(base64.b64decode(data_uri(picture).partition(",")[2])))
    assert np.array_equal(np.asarray(decoded).reshape(picture.shape), picture)


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=300))
def test_no_name_hides_or_turns_its_characters(name: str) -> None:
    shown = text.visible(name)
    shown.encode("utf-8")
    assert len(shown) <= 160 and not set(shown) & set("\u202a\u202e\u2066\u200b\u200f\n\x00\x1b\ud800")


def test_a_name_that_turns_the_line_around_is_spelled_out() -> None:
    assert text.visible("cat\u202egpj.exe") == "cat\\u202egpj.exe"
    assert text.visible("b\udcff.png") == "b\\udcff.png"
    report = sanitise_report(sanitise_facts(class_names=["a\u202eb", "c\udcff", "d", "e"]))
    report.html.encode("utf-8")
    assert "a\\u202eb" in report.html and report.json["classes"]


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_is_never_rounded_into_none_or_all(case: tuple[int, int]) -> None:
    k, n = case
    for words in (text.percent(k / n), text.percent_cell(k / n)):
        value = float(words.removesuffix("\u00a0%"))
        assert (value == 0) == (k == 0) and (value == 100) == (k == n)
        assert value == pytest.approx(100 * k / n, abs=0.051)


def test_numbers_in_words() -> None:
    assert [text.percent(x) for x in (0.1, 0.015, 0.0005, 0.9962, 1.0, 0.0)] == [
        f"{n}\u00a0%" for n in ("10", "1.5", "0.05", "99.62", "100", "0")
    ]
    assert text.interval(0.006, 0.015) == "0.6 to 1.5\u00a0%"
    assert text.figure(0.000012345) == "1.234\u00a0×\u00a010⁻⁵" and text.figure(0.20704) == "0.207"
    assert (text.duration(61), text.duration(3.21)) == ("1\u00a0min 1\u00a0s", "3.2\u00a0s")
    assert (text.plural(1, "image"), text.plural(2000, "image")) == ("1\u00a0image", "2,000\u00a0images")
