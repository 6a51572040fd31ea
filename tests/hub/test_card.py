from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import build_tiny_pipe
from families import FAMILIES
from hostile import HOSTILE
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from tiny import unlearner

from diffusers_fdu import FDUnlearner, render_card
from diffusers_fdu.adapters.evaluation_file import read_evaluation, write_evaluation
from diffusers_fdu.hub.card import seeds_text
from diffusers_fdu.utils.markup import cleaned

DOCS = Path(__file__).parents[2] / "docs"
EVALUATION = {
    "protocol": "Drawn and judged.",
    "images": 12,
    "seeds": [1, 2],
    "judge": "a judge",
    "metrics": {
        "ua": {"value": 0.9731, "low": 0.9, "high": 0.99, "before": 0.0123},
        "fid": {"value": 21.5, "low": None, "high": None},
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    worker = unlearner(build_tiny_pipe(), steps=1, trajectories=1, retain=["a red house"])
    worker.unlearn("dog", "cat")
    return worker.save(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "own"))


def change(folder: Path, **fields) -> None:
    path = folder / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def front(text: str) -> dict:
    """What the Hub reads, by its own rule: the lines between the first two of three hyphens."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match
    return yaml.safe_load(match.group(1))


def parsed(text: str) -> list[Token]:
    """The card's tokens by a Markdown parser, inline ones in their place."""
    body = text.split("\n---\n", 1)[1]
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [one for token in parser.parse(body) for one in (token, *(token.children or ()))]


def count(tokens: list[Token], kind: str) -> int:
    return sum(token.type == kind for token in tokens)


def test_what_is_known_is_said_and_nothing_else(folder) -> None:
    text = render_card(folder, "me/no-dog", base_model="org/base", license="apache-2.0")
    data = ModelCard(text).data
    assert data.base_model == "org/base" and data.license == "apache-2.0"
    assert data.library_name == "diffusers" and data.pipeline_tag == "text-to-image"
    assert {"lora", "template:diffusion-lora", "diffusers-fdu", "unlearns:dog"} <= set(data.tags)
    assert data.eval_results is None and data.get("widget") is None
    assert "| “dog” | – | object | cat |" in text
    assert (
        "“a red house”" in text and "| rank | 8 |" in text and "| divergence | hellinger |" in text
    )
    assert "was not evaluated" in text
    assert "UA" not in text and "%" not in text.split("## What was measured")[1].split("##")[0]
    assert 'pipe.load_lora_weights("me/no-dog", adapter_name="forget-dog")' in text
    other = render_card(folder, "me/no-dog", base_model="")
    assert ModelCard(other).data.license is None and ModelCard(other).data.base_model is None


def test_what_was_measured_is_said_with_its_protocol(folder) -> None:
    write_evaluation(EVALUATION, folder)
    text = render_card(folder, "me/no-dog", base_model="org/base")
    results = {r.metric_type: r.metric_value for r in ModelCard(text).data.eval_results}
    assert results == {"ua": 0.9731, "fid": 21.5}
    line = next(line for line in text.splitlines() if line.startswith("| UA"))
    assert line.startswith("| UA | 97.3% | 90.0% to 99.0% | 1.2% |")
    assert "| FID | 21.5 | – | – |" in text
    assert "Drawn and judged." in text and "not evaluated" not in text
    assert "12 pictures, seeds 1, 2, judged by a judge" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_wherever_they_stand(folder, name) -> None:
    write_evaluation(EVALUATION, folder)
    plain = render_card(folder, "me/dog", base_model="org/base")
    concept = {"target": name, "anchor": name, "kind": name, "aliases": [name], "prompts": [name]}
    config = {"retain": [name], "learning_rate": name, "steps": name}
    write_evaluation({**EVALUATION, "protocol": name, "judge": name}, folder)
    change(
        folder,
        concepts=[concept],
        config=config,
        f=name,
        adapter_name=name,
        active_adapters={name: 1.0},
        pipeline_kwargs={name: 2},
        pipeline=name,
        versions={name: name},
        base_model=name,
    )
    text = render_card(folder, "me/dog", base_model="org/base")
    text.encode()
    data = front(text)
    assert data == ModelCard(text).data.to_dict()
    assert data["base_model"] == "org/base" and "license" not in data
    assert data["tags"][-1].startswith("unlearns:") and len(data["tags"][-1]) <= 49
    # The same headings, links and code as without hostile names, and the names as they are.
    found, expected = parsed(text), parsed(plain)
    for kind in ("heading_open", "link_open", "image", "html_inline", "html_block", "fence"):
        assert count(found, kind) == count(expected, kind), kind
    assert count(found, "strong_open") == 0 and count(found, "s_open") == 0
    assert count(found, "em_open") == 1  # the paper's title
    links = {token.attrs["href"] for token in found if token.type == "link_open"}
    assert links <= {
        "https://huggingface.co/org/base",
        "https://arxiv.org/abs/2509.21167",
        "https://arxiv.org/abs/2402.11846",
    }
    cells = ["".join(t.content for t in token.children or ()) for token in found]
    assert f"“{cleaned(name)}”" in cells
    assert "\u202e" not in text and "\x1b" not in text and "49" not in text.split("```")[0]


def test_recipes_of_other_kinds_do_not_break_the_card(folder) -> None:
    odd = [None, 1, "x", [], {}, [None], [{"target": 3}], {"a": []}, float("nan"), True]
    odd += [10**400, {"a": 10**400, "first": 10**400, "last": 1}, [10**400]]
    path = folder / "recipe.json"
    known = json.loads(path.read_text())
    for field in (*known, "merged"):
        for value in odd:
            path.write_text(json.dumps({**known, field: value, "component": "unet"}))
            try:
                ModelCard(render_card(folder, "me/dog", base_model="org/base"))
            except ValueError as error:
                assert "the recipe's" in str(error)
    path.unlink()
    text = render_card(folder, "me/dog", base_model="org/base")
    assert "That was not recorded." in text and "# dog" in text


def test_all_concepts_are_listed(folder) -> None:
    concepts = [
        {"target": "dog", "anchor": "cat", "kind": "object", "aliases": ["puppy", "hound"]},
        {"target": "blob", "anchor": None, "kind": "style"},
        {"target": "Van Gogh", "anchor": {"NegativeGuidance": {"scale": 1.5}}, "kind": "style"},
    ]
    change(folder, concepts=concepts, sigma=[0.5, 0.25, 1])
    text = render_card(folder, "me/x", base_model="org/base")
    assert "| “dog” | puppy, hound | object | cat |" in text
    assert "| “blob” | – | style | what the empty prompt gives |" in text
    assert "away from it, negative guidance 1.5" in text
    assert "| sigma | 0.5, 0.25, 1 |" in text
    tags = ModelCard(text).data.tags
    assert [t for t in tags if t.startswith("unlearns:")] == [
        "unlearns:dog",
        "unlearns:blob",
        "unlearns:van-gogh",
    ]


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ("org/base", None, "org/base"),
        ("org/base", "org/other", "org/other"),
        ("/models/secret", "org/base", "org/base"),
        ("diffusers_fdu/emoji", None, None),
        ("/models/secret", "", None),
        (None, None, ValueError),
        ("/models/secret", None, ValueError),
        ("./models", None, ValueError),
        ("org/base", "no name", ValueError),
        ("docs/card_example", None, ValueError),  # a folder here
    ],
)
def test_the_base_model_is_a_name_on_the_hub(folder, monkeypatch, own, given, expected) -> None:
    monkeypatch.chdir(DOCS.parent)
    change(folder, base_model=own)
    if expected is ValueError:
        with pytest.raises(ValueError, match="org/name"):
            render_card(folder, "me/x", base_model=given)
        return
    text = render_card(folder, "me/x", base_model=given)
    assert ModelCard(text).data.base_model == expected
    assert "secret" not in text


def test_each_kind_of_file_has_its_lines(folder, tmp_path) -> None:
    change(folder, component="transformer_2")
    text = render_card(folder, "me/x", base_model="org/wan")
    assert '("me/x", adapter_name="forget-dog", load_into_transformer_2=True)' in text
    change(folder, pipeline="WanPipeline")
    assert ModelCard(render_card(folder, "me/x", base_model="org/wan")).data.pipeline_tag == (
        "text-to-video"
    )
    family = next(f for f in FAMILIES.values() if f.name == "PixArt-α")
    kwargs = {**family.run, "num_inference_steps": 1}
    worker = FDUnlearner(family.build(), kwargs, False, steps=1, trajectories=1)
    worker.unlearn("a snoopy", "a dog")
    peft = worker.save(tmp_path / "peft", format="peft")
    text = render_card(peft, "me/x", base_model="org/pixart")
    assert 'load_unlearned(pipe, "me/x")' in text and "load_lora_weights" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {}}, "metrics must name"),
        ({"metrics": {"ua": {"value": 97.0}}}, "value of ua is out of range"),
        ({"metrics": {"ua": {"value": float("nan")}}}, "value of ua is out of range"),
        ({"metrics": {"ua": {"value": "97 %"}}}, "value of ua must be a number"),
        ({"metrics": {"u|a": {"value": 1}}}, "no name of a metric"),
        ({"metrics": {"ua": {"value": 10**400}}}, "value of ua is out of range"),
        ({"metrics": {"fid": {"value": 1, "high": -(10**400)}}}, "high of fid is out of range"),
        ({"protocol": ""}, "protocol must be a text"),
        ({"images": 0}, "images must be"),
        ({"images": 10**400}, "images must be"),
        ({"seeds": [10**400]}, "seeds must be a list"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"weights_sha256": "0" * 64}, "about other weights"),
    ],
)
def test_numbers_that_cannot_be_are_refused(folder, change, message) -> None:
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, **change}))
    with pytest.raises(ValueError, match=message):
        render_card(folder, "me/x", base_model="org/base")


def test_seeds_are_in_words_however_far_apart() -> None:
    assert seeds_text([3, 1, 2, 2]) == "1 to 3" and seeds_text([1, 2]) == "1, 2"
    assert seeds_text([1, 2, 4]) == "1, 2, 4"
    # A list of all whole numbers between them would not fit in any memory.
    assert seeds_text([0, 1, 2**63]) == f"0, 1, {2**63}"


def test_an_evaluation_belongs_to_its_weights(folder) -> None:
    weights = folder / "pytorch_lora_weights.safetensors"
    assert read_evaluation(weights) is None
    write_evaluation(EVALUATION, folder)
    assert read_evaluation(weights) == EVALUATION


def test_the_example_is_what_the_template_renders_today(tmp_path) -> None:
    folder = Path(shutil.copytree(DOCS / "card_example", tmp_path / "run"))
    shutil.copy(DOCS / "before_after.png", folder)
    text = render_card(folder, "user/no-dog-emoji")
    assert (DOCS / "card_example.md").read_text() == text, (
        "write what render_card gives to docs/card_example.md"
    )
    assert ModelCard(text).data.get("base_model") is None
    assert "diffusers_fdu/emoji" not in text
