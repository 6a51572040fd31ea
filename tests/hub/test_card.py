from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import build_tiny_pipe, latents
from families import FAMILIES
from hostile import HOSTILE
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image
from tiny import add_other_adapter, state, unlearner

from diffusers_fdu import Concept, FDUnlearner, NegativeGuidance, render_card
from diffusers_fdu.adapters.evaluation_file import read_evaluation, write_evaluation
from diffusers_fdu.cli.demo_job import demo_evaluation
from diffusers_fdu.evaluation.emoji import Scores
from diffusers_fdu.hub.card import seeds_text
from diffusers_fdu.hub.preview import card_prompts, draw_pictures, prompt_of
from diffusers_fdu.utils.markup import cleaned, escaped, slug
from diffusers_fdu.utils.statistics import wilson

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


def test_slugs_are_short_and_differ() -> None:
    assert slug("Mickey  Mouse!") == slug("mickey-mouse") == "mickey-mouse"
    names = ["🦊", "🐶", "x" * 50, "x" * 51, "皮卡丘", "Ångström", "a_b"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names) and max(map(len, slugs)) <= 40
    assert all(re.fullmatch(r"[\w-]+", each) for each in slugs)
    assert slug("皮卡丘") == "皮卡丘" and slug("Ångström") == "ångström"


def test_text_is_cleaned_and_escaped() -> None:
    assert cleaned(" a\n\tb\u202e \x00c\ud800 ") == "a b c"
    assert cleaned("👩‍🚀") == "👩‍🚀"
    assert len(cleaned("y" * 500)) == 100
    assert escaped("www.x.y https://z a@b") == "www\\.x.y https\\://z a\\@b"
    assert escaped("a|b *c* snake_case <i> St. Basil") == (
        "a\\|b \\*c\\* snake_case \\<i> St. Basil"
    )
    assert [escaped(text) for text in ("> a", "- a", "-1", "a -> b")] == [
        "\\> a",
        "\\- a",
        "-1",
        "a -> b",
    ]


def test_wilson_against_known_intervals() -> None:
    # R: prop.test(hits, total, correct = FALSE)
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-6)
    assert wilson(40, 40) == pytest.approx((0.9123785, 1.0), abs=1e-6)
    for bad in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="no share"):
            wilson(*bad)


@pytest.mark.parametrize(("target", "drawn"), [("dog", 40), ("blob", 64)])
def test_the_demo_says_what_it_measured(tmp_path, target, drawn) -> None:
    before, after = Scores(0.05, 0.996, 0.9, 288), Scores(0.975, 0.9879, 1.0, 288)
    found = demo_evaluation(target, before, after)
    write_evaluation(found, tmp_path)
    ua, cra = found["metrics"]["ua"], found["metrics"]["cra"]
    assert ua["low"] < ua["value"] < ua["high"] and ua["before"] == 0.05
    assert cra["low"] < cra["value"] == cra["high"] == 1
    assert f"{drawn} pictures of the target" in found["protocol"]
    own = "style" if target == "blob" else "concept"
    assert f"the right {own}; CRA" in found["protocol"]
    assert len(found["seeds"]) == (10 if target == "dog" else 2)


def test_pictures_show_both_and_leave_the_pipe_alone(pipe, tmp_path) -> None:
    worker = unlearner(pipe, steps=6)
    worker.unlearn(["dog", "tree"], ["cat", "house"])
    name = worker.adapter_name
    add_other_adapter(pipe)  # and it alone is active
    pipe.set_progress_bar_config(desc="mine")
    drawn = latents(pipe)
    before, bar = state(pipe), dict(pipe._progress_bar_config)
    paths = draw_pictures(pipe, "unet", name, worker.recipe, worker.pipeline_kwargs, tmp_path)
    assert state(pipe) == before and pipe._progress_bar_config == bar
    assert pipe.get_active_adapters() == ["other"] and torch.equal(latents(pipe), drawn)
    prompts = [prompt_of(path) for path in paths]
    assert [p.name for p in paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert prompts[:2] == ["a dog", "a photo of a tree"]
    assert not any(word in p.split() for p in prompts[2:] for word in ("dog", "tree", "cat"))
    # The halves are what the pipe draws at strengths 0 and 1 with that seed.
    for strength, left in ((0.0, 0), (1.0, 16 + 8)):
        pipe.set_adapters([name], [strength])
        drawn = pipe(prompts[1], num_inference_steps=3, generator=torch.manual_seed(1)).images[0]
        with Image.open(paths[1]) as both:
            half = both.crop((left, 0, left + 16, 16))
        assert half.tobytes() == drawn.convert("RGB").tobytes()


def test_own_prompts_and_retained_ones_are_shown(pipe, tmp_path) -> None:
    worker = unlearner(pipe, steps=1, retain=["a red house", "blue", "photo"])
    concept = Concept("dog", NegativeGuidance(), prompts=["a {} and a {word}", "the {} runs"])
    worker.unlearn(concept)
    paths = draw_pictures(pipe, "unet", worker.adapter_name, worker.recipe, {}, tmp_path)
    assert [prompt_of(p) for p in paths] == ["the dog runs"] * 2 + ["a red house", "blue"]


@pytest.mark.parametrize("target", ["house", "tree"])
def test_without_a_vocabulary_there_are_others_to_draw(target) -> None:
    recipe = {"concepts": [{"target": target, "anchor": None}]}
    found = card_prompts(SimpleNamespace(), recipe)
    assert len(found) == 4 and len(set(found[2:])) == 2
    assert [target in prompt.split() for prompt in found] == [True, True, False, False]
    words = "tree house bicycle mountain cup bridge".split()
    recipe["concepts"][0]["aliases"] = words
    assert len(card_prompts(SimpleNamespace(), recipe)) == 2


def test_videos_are_not_drawn(tmp_path) -> None:
    pipe = next(f for f in FAMILIES.values() if f.name == "LTX-Video").build()
    with pytest.warns(UserWarning, match="LTXPipeline draws videos"):
        assert draw_pictures(pipe, "transformer", "x", {}, {}, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_example_is_what_the_template_renders_today(tmp_path) -> None:
    folder = Path(shutil.copytree(DOCS / "card_example", tmp_path / "run"))
    shutil.copy(DOCS / "before_after.png", folder)
    text = render_card(folder, "user/no-dog-emoji")
    assert (DOCS / "card_example.md").read_text() == text, (
        "write what render_card gives to docs/card_example.md"
    )
    assert ModelCard(text).data.get("base_model") is None
    assert "diffusers_fdu/emoji" not in text
