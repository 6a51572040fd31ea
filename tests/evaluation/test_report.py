from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hostile import HOSTILE as NAMES
from markdown_it import MarkdownIt
from PIL import Image

from diffusers_fdu.adapters.evaluation_file import check_evaluation, metric_report
from diffusers_fdu.evaluation.images import ImageSet, Request
from diffusers_fdu.evaluation.report.pages import to_html, to_markdown, write_report
from diffusers_fdu.evaluation.result import AttackResult, Evaluation, Metric, from_json, to_json
from diffusers_fdu.utils.markup import cleaned, environment

CHARTS = environment(".html").get_template("evaluation/report/charts.html").module
LEFT, WIDTH = CHARTS.left, CHARTS.width
HOSTILE = '<script>alert("x")</script>\n| $title &amp; \'"'


def gallery(colour: str, count: int = 2, name: str = HOSTILE) -> ImageSet:
    requests = [Request(f"a dog {i}", i, "target", {"object": "dog"}) for i in range(count)]
    requests += [Request(name, 99, "retain", {"object": "cat"})]
    return ImageSet(requests, [Image.new("RGB", (300, 200), colour)] * (count + 1))


ATTACK = AttackResult(
    "re-learning",
    Metric(0.6, 0.4, 0.8, count=20),
    (0, 1),
    (0.5, 0.7),
    0.1,
    0.95,
    Metric(0.25, 0.1, 0.4, count=20),
    {"steps": 40, "seconds": 2.5},
    ((5.0, 0.0), (10.0, 0.2), (40.0, 0.6)),
    (HOSTILE,),
)
EVALUATION = Evaluation(
    protocol="quick",
    about="quick: 15 steps",
    targets=("dog",),
    judge="a judge",
    images=102,
    seeds=(1, 2),
    settings={"num_inference_steps": 15},
    metrics={
        "ua": Metric(0.75, 0.5, 0.9, 0.05, 32),
        "ira": Metric(0.9, None, None, 1.0, 62),
        "kid": Metric(-0.001, -0.002, 0.003, count=62),
    },
    attacks=(ATTACK,),
    recipe={"concepts": [{"target": HOSTILE, "anchor": "cat"}], "f": "kl", "steps_done": 3},
    versions={"torch": "2.13"},
    seconds={"draw": 3.0},
    weights_sha256="0" * 64,
    left_out=("FID: no extractor",),
)


def test_what_is_written_is_read_again(tmp_path) -> None:
    folder = write_report(EVALUATION, tmp_path / "report")
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluation.json",
        "report.html",
        "report.md",
    ]
    assert from_json(folder / "evaluation.json") == EVALUATION


def test_the_file_is_one_that_model_cards_take() -> None:
    content = json.loads(json.dumps(to_json(EVALUATION)))
    assert check_evaluation(content)["metrics"]["ua"] == {
        "value": 0.75,
        "low": 0.5,
        "high": 0.9,
        "before": 0.05,
        "count": 32,
    }


def test_figures_that_are_none_are_refused(tmp_path) -> None:
    bad = replace(EVALUATION, metrics={"fid": Metric(float("nan"))})
    with pytest.raises(ValueError, match="value of fid is nan"):
        write_report(bad, tmp_path)
    with pytest.raises(ValueError, match="no evaluation"):
        from_json({"metrics": {}})
    with pytest.raises(ValueError, match="no evaluation"):
        from_json(tmp_path / "missing.json")


class Page(HTMLParser):
    """Tags, what they load, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return to_html(replace(EVALUATION, before=gallery("red", 20), after=gallery("blue", 20)))


def test_the_page_loads_nothing(page: str) -> None:
    found = Page(page)
    assert found.loads and all(link.startswith("data:image/webp;base64,") for link in found.loads)
    assert "script" not in found.tags and "link" not in found.tags
    assert "@import" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page


def test_text_of_others_is_only_text(page: str) -> None:
    assert "<script" not in page
    assert cleaned(HOSTILE) in Page(page).text
    assert "<script" not in to_markdown(EVALUATION).replace(r"\<", "")


def renamed(name: str) -> Evaluation:
    """The evaluation with a name wherever text of others stands."""
    attack = replace(ATTACK, name=name, found=(name,), budget={name: 1})
    recipe = {"concepts": [{"target": name, "anchor": name, "aliases": [name]}], "f": name}
    return replace(
        EVALUATION,
        about=name,
        targets=(name,),
        judge=name,
        settings={name: name},
        metrics={**EVALUATION.metrics, name: Metric(0.5)},
        attacks=(attack,),
        recipe=recipe,
        versions={name: name},
        left_out=(name,),
        before=gallery("red", name=name),
        after=gallery("blue", name=name),
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_name_adds_to_a_page(name: str) -> None:
    plain, hostile = renamed("plain"), renamed(name)
    found = Page(to_html(hostile))
    assert found.tags == Page(to_html(plain)).tags
    assert cleaned(name) in found.text
    parse = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse
    kinds = []
    for evaluation in (plain, hostile):
        tokens = parse(to_markdown(evaluation))
        kinds.append([one.type for token in tokens for one in (token, *(token.children or ()))])
    assert "\u202e" not in to_markdown(hostile) and "\x1b" not in to_html(hostile)
    for expected, tokens in (kinds,):
        assert [k for k in tokens if k != "text_special"] == expected


def test_pictures_are_shown_in_pairs_and_no_more_than_a_dozen(page: str) -> None:
    found = Page(page)
    assert found.tags.count("img") == 2 * (12 + 1)
    assert "12 of 20 pictures" in found.text and "1 of 1 pictures" in found.text
    assert len(page) < 200_000


def test_the_figures_of_the_page_are_those_of_the_evaluation(page: str) -> None:
    text = Page(page).text
    assert '"dog" is gone from 75% (50% to 90%) of its pictures; 90% of the others' in text
    for figure in ("75.0%", "50.0% to 90.0%", "5.0%", "-0.001", "60%", "25%", "95%", "50%, 70%"):
        assert figure in text
    assert "FID: no extractor" in text and "SHA-256 " + "0" * 64 in text


def test_the_markdown_has_the_same_figures() -> None:
    text = to_markdown(EVALUATION)
    assert "| UA | 5.0% | 75.0% | 50.0% to 90.0% | 32 |" in text
    assert "| re-learning | 60% | 40.0% to 80.0% | 50%, 70% | 10% | 95% | 25% |" in text


def test_bars_and_whiskers_stand_where_the_figures_are() -> None:
    root = ElementTree.fromstring(
        CHARTS.bars([metric_report(*item) for item in EVALUATION.metrics.items()])
    )
    group = next(g for g in root.iter("g") if g.get("data-metric") == "ua")
    bar = group.find("rect")
    assert float(bar.get("width")) == pytest.approx(0.75 * WIDTH)
    before = group.find("line")
    assert float(before.get("x1")) == pytest.approx(LEFT + 0.05 * WIDTH)
    whisker = re.findall(r"M([\d.]+) ", group.find("path").get("d"))
    assert float(whisker[0]) == pytest.approx(LEFT + 0.5 * WIDTH)
    assert float(whisker[-1]) == pytest.approx(LEFT + 0.9 * WIDTH)
    names = [g.get("data-metric") for g in root.iter("g")]
    assert names == ["ua", "ira"]  # distances are no shares
    other = next(g for g in root.iter("g") if g.get("data-metric") == "ira")
    assert other.find("path") is None


def test_curves_rise_with_success() -> None:
    root = ElementTree.fromstring(CHARTS.curve(ATTACK))
    points = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    (_, low), (_, middle), (_, high) = points
    assert (low - high) == pytest.approx(3 * (low - middle))
    floor = next(n for n in root.iter("line") if n.get("class") == "floor")
    assert (low - float(floor.get("y1"))) / (low - high) == pytest.approx(0.25 / 0.6, rel=1e-3)


def test_little_is_enough(tmp_path) -> None:
    bare = replace(
        EVALUATION,
        attacks=(),
        recipe={},
        versions={},
        seconds={},
        left_out=(),
        metrics={"ua": Metric(1.0)},
    )
    write_report(bare, tmp_path)
    assert "Attacks" not in Page((tmp_path / "report.html").read_text()).text
    assert "## Attacks" not in (tmp_path / "report.md").read_text()


def test_a_metric_that_no_longer_exists_is_shown_by_its_plain_name(tmp_path) -> None:
    evaluation = replace(EVALUATION, metrics={"feature_drift": Metric(0.25, 0.2, 0.3, count=62)})
    folder = write_report(evaluation, tmp_path / "report")
    read = from_json(folder / "evaluation.json")
    assert read == evaluation
    assert "feature_drift" in to_markdown(read) and "feature_drift" in Page(to_html(read)).text
