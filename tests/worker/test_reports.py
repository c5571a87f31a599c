"""Pages of reports: no foreign name becomes markup, nothing is fetched, everyone can read them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import matplotlib
import numpy as np
import pytest
from report_facts import (
    EVIL,
    Page,
    evaluate_facts,
    evil_evaluate,
    evil_panel,
    evil_sanitise,
    panel_facts,
    sanitise_facts,
    threshold_facts,
)
from report_pages import evaluated, fully_panelled, sanitise_numbers, sanitised

from models.specs import EvaluateSpec, SanitiseSpec
from worker.reports import canvas
from worker.reports.evaluate import evaluate_report
from worker.reports.sanitise import FactsError, FitLosses, sanitise_report

OURS = """
    html head meta title style body a header footer main section h1 h2 h3 h4 p ul li div span b i bdi code pre dl dt dd
    br
    figure figcaption img table caption thead tbody tr th td svg g defs path use text tspan image clippath rect circle
"""
PAGES = ["sanitise", "panel", "threshold", "evaluate", "evil sanitise", "evil panel", "evil evaluate"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {
        "sanitise": sanitised().html,
        "panel": fully_panelled().html,
        "threshold": sanitise_report(threshold_facts()).html,
        "evaluate": evaluated().html,
        "evil sanitise": sanitise_report(evil_sanitise()).html,
        "evil panel": sanitise_report(evil_panel()).html,
        "evil evaluate": evaluate_report(evil_evaluate()).html,
    }


@pytest.fixture(scope="module")
def read(pages: dict[str, str]) -> dict[str, Page]:
    return {name: Page(page) for name, page in pages.items()}


@pytest.mark.parametrize("name", PAGES)
def test_no_page_holds_a_tag_or_an_attribute_that_is_not_ours(read: dict[str, Page], name: str) -> None:
    page = read[name]
    assert not page.complaints
    assert {tag for tag, _ in page.found} <= set(OURS.split())
    assert not [attribute for _, attributes in page.found for attribute in attributes if attribute.startswith("on")]
    assert "49$x_{" not in page.text


@pytest.mark.parametrize("name", ["evil sanitise", "evil panel", "evil evaluate"])
def test_a_hostile_name_is_shown_as_it_is(read: dict[str, Page], name: str) -> None:
    assert read[name].text.count(EVIL) >= 8


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nothing_of_a_network(pages: dict[str, str], read: dict[str, Page], name: str) -> None:
    page = read[name]
    links = [
        value or ""
        for _, attributes in page.found
        for attribute, value in attributes.items()
        if attribute in ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
    ]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    styles = " ".join(value or "" for _, attributes in page.found for a, value in attributes.items() if a == "style")
    assert not re.search(r"@import|url\((?!#)", pages[name].split("</style>")[0] + styles)
    policy = next(a["content"] for tag, a in page.found if tag == "meta" and a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_aloud(read: dict[str, Page], name: str) -> None:
    found = read[name].found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in found].count("h1") == 1
    assert all(attributes.get("alt") for tag, attributes in found if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in found if tag == "svg")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in found if tag == "th")
    assert all(attributes.get("aria-labelledby") in ids for tag, attributes in found if tag == "section")
    references = [
        value[1:]
        for _, attributes in found
        for a, value in attributes.items()
        if a == "xlink:href" and value and value[0] == "#"
    ]
    assert references and set(references) <= set(ids)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_legible_in_light_dark_and_print(pages: dict[str, str]) -> None:
    blocks = re.findall(r":root \{(.*?)\}", pages["sanitise"], re.DOTALL)
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(themes) == 3
    for theme in themes:
        for ground in (theme["card"], theme["paper"]):
            assert all(
                contrast(theme[ink], ground) >= 4.5 for ink in ("ink", "muted", "link", "keep", "reform", "flag")
            )
            marks = (canvas.KEEP, canvas.REFORM, canvas.FLAG, canvas.CLEAN)
            assert all(contrast(mark, ground) >= 3 for mark in marks)
        assert contrast(theme["ink"], theme["warn-paper"]) >= 4.5
    assert all(contrast("#000000", mark) >= 4.5 for mark in (canvas.KEEP, canvas.REFORM, canvas.FLAG))


def test_the_json_is_small_and_plain_whatever_the_size_of_the_set() -> None:
    small, large = (len(json.dumps(sanitise_numbers(sanitise_facts(n=n)), allow_nan=False)) for n in (300, 6000))
    assert large < 1.1 * small < 20_000
    odd = sanitise_facts(
        losses={"denoiser": FitLosses([float("nan"), 1.0], [np.float64(2.0)])}, notes={"x": np.int64(3)}
    )
    report = json.loads(json.dumps(sanitise_numbers(odd), allow_nan=False))
    assert report["losses"]["denoiser"] == {"train": [None, 1.0], "validation": [2.0]}
    assert report["notes"] == {"x": 3}
    json.dumps(evaluated().json, allow_nan=False)


def test_the_settings_can_be_sent_again() -> None:
    sanitise, evaluate = sanitised().json["request"], evaluated().json["request"]
    assert SanitiseSpec.model_validate(sanitise["params"]) == SanitiseSpec.model_validate(
        {"false_quarantine_rate": 0.01, "seed": 7}
    )
    assert EvaluateSpec.model_validate(evaluate["params"]) == EvaluateSpec()
    assert (sanitise["type"], sanitise["dataset"], sanitise["reference"]) == ("sanitise", "signs@1", "trusted@1")
    assert "reference" not in sanitise_numbers(sanitise_facts(reference=None))["request"]


def test_the_same_facts_give_the_same_report_and_leave_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    assert sanitise_report(sanitise_facts()) == sanitised()
    assert evaluate_report(evaluate_facts()) == evaluated()
    assert dict(matplotlib.rcParams) == before


def test_reports_need_neither_pyplot_nor_torch() -> None:
    code = """import sys, worker.reports.sanitise, worker.reports.evaluate
print({"matplotlib.pyplot", "torch"} & set(sys.modules))"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration_scores": np.zeros(0, np.float32), "p_values": None, "losses": {}, "gallery": []},
        {"reference": None, "rates_are": "estimated", "warnings": ["sifted"], "verdicts": ["quarantine"] * 400},
        {"scores": np.full(400, 0.5, np.float32), "calibration_scores": np.full(199, 0.5, np.float32)},
        {"scores": np.zeros(400, np.float32), "calibration_scores": np.zeros(199, np.float32), "threshold": 0.0},
        {
            "losses": {"denoiser": FitLosses([float("nan")])},
            "labels": np.zeros(400, np.int64),
            "class_names": ["only"],
        },
    ],
)
def test_edges_of_a_job_still_give_a_page(changes: dict[str, Any]) -> None:
    report = sanitise_report(sanitise_facts(**changes))
    assert not Page(report.html).complaints
    json.dumps(report.json, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": np.zeros(3, np.int64)}, "labels has 3 entries for 400 scores"),
        ({"verdicts": ["keep"] * 399 + ["drop"]}, "unknown verdict: drop"),
        ({"scores": np.full(400, np.inf)}, "scores holds a value that is not finite"),
        ({"threshold": float("nan")}, "threshold is not finite"),
        ({"labels": np.full(400, 9)}, "outside the 4 classes"),
    ],
)
def test_contradicting_facts_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FactsError, match=complaint):
        sanitise_facts(**changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"flagged": np.zeros(4000, bool), "verdicts": ["keep"] * 4000, "gallery": []},
        {
            "reference": None,
            "sifting": {"looked_at": 0, "started_from": 0, "trusted": 0},
            "rates_are": "estimated",
            "search": [],
            "shifts": {},
        },
    ],
)
def test_edges_of_a_panels_job_still_give_a_page(changes: dict[str, Any]) -> None:
    report = sanitise_report(panel_facts(**changes))
    assert not Page(report.html).complaints
    json.dumps(report.json, allow_nan=False)


@pytest.mark.slow
def test_a_panels_report_stays_light_whatever_the_size_of_the_set() -> None:
    small, large = sanitise_numbers(panel_facts(4000, losses={})), sanitise_report(panel_facts(60_000, losses={}))
    assert len(json.dumps(large.json)) < 1.1 * len(json.dumps(small)) < 40_000
    assert len(large.html) < 2_000_000


def test_thirty_five_thousand_images_take_less_than_five_seconds() -> None:
    facts = sanitise_facts(n=35_000, m=2000, classes=43)
    started = time.process_time()
    html = sanitise_report(facts).html
    assert time.process_time() - started < 5
    assert len(html) < 2_000_000
