"""Every supported pipeline: what docs/families.md says is so."""

from __future__ import annotations

import pytest
from families import FAMILIES
from safetensors.torch import load_file, save_file
from support import BEGIN, END, ROOT, measure, readme_table

from diffusers_fdu import Concept, FDUnlearner, Robust, load_unlearned
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.evaluation.attacks.attack import AttackTarget
from diffusers_fdu.evaluation.attacks.plain_prompt import Completion, NoiseProbing, Relearning
from diffusers_fdu.evaluation.attacks.search import ConceptInversion
from diffusers_fdu.training.inversion import Inversion


@pytest.mark.parametrize("key", FAMILIES)
def test_a_family(key) -> None:
    """Replay is exact, training pulls, a file holds all of it but rounding, and it stacks."""
    found = measure(FAMILIES[key])
    assert found.replay == found.swap == 0
    assert found.round_trip <= 1e-6  # 0 on some CPUs, 5e-7 on others
    assert found.distance < 0.95
    assert found.stacked
    assert found.offloaded <= 1e-6


def block(name):
    return (ROOT / name).read_text().split(BEGIN)[1].split(END)[0].strip()


def test_the_readme_says_what_is_supported() -> None:
    assert block("README.md") == readme_table()


def test_the_docs_have_every_family() -> None:
    lines = block("docs/families.md").splitlines()[2:]
    assert [line.split(" | ")[0].lstrip("| ") for line in lines] == [
        family.name for family in FAMILIES.values()
    ]


def test_a_pipeline_without_a_loader_says_how_to_save(tmp_path) -> None:
    family = FAMILIES["pixart_sigma"]
    pipe = family.build()
    options = {"trajectories": 2, "steps": 2, "batch_size": 2, "retain": ["a tree"]}
    worker = FDUnlearner(pipe, {**family.run, "num_inference_steps": 2}, False, **options)
    worker.unlearn("dog", "a grey cat")
    with pytest.raises(ValueError, match="use format='peft', and load it with .*load_unlearned"):
        worker.save(tmp_path)
    assert not any(tmp_path.iterdir())
    worker.save(tmp_path, "peft")
    from peft import PeftModel

    fresh = family.build().transformer
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    own = {n: p for n, p in worker.model.named_parameters() if "lora_" in n}
    for name, value in loaded.named_parameters():
        if "lora_" in name:
            plain = name.removeprefix("base_model.model.").replace(".default.", ".forget-dog.")
            assert value.equal(own[plain])
    fresh = family.build()
    before = {n: p.clone() for n, p in fresh.transformer.named_parameters()}
    load_unlearned(fresh, tmp_path, "forget")
    model = fresh.transformer
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    assert not any(m.training for n, m in model.named_modules() if "lora_" in n)
    state = load_file(tmp_path / "adapter_model.safetensors")
    name = next(iter(state))
    for bad in ({**state, name: state[name][:1]}, {f"{k}.other": v for k, v in state.items()}):
        save_file(bad, tmp_path / "adapter_model.safetensors")
        fresh = family.build()
        with pytest.raises(ValueError, match="is no adapter to be trusted"):
            load_unlearned(fresh, tmp_path)
        found = dict(fresh.transformer.named_parameters())
        assert found.keys() == before.keys()
        assert not hasattr(fresh.transformer, "peft_config")
    with pytest.raises(ValueError, match="there is no folder"):
        load_unlearned(family.build(), tmp_path / "nothing")


def test_a_second_denoiser_is_trained_by_itself(tmp_path) -> None:
    """Each learns from its own side of the boundary, and their files find their places."""
    family = FAMILIES["wan22"]
    pipe = family.build()
    with pytest.warns(UserWarning, match="train the other with .*component='transformer_2'"):
        FDUnlearner(pipe)
    run = {**family.run, "num_inference_steps": 8}
    options = {"trajectories": 3, "steps": 2, "batch_size": 2, "retain": ["a tree"]}
    sides = {"transformer": lambda times: times >= 900, "transformer_2": lambda times: times < 900}
    drawn = {}
    for component, is_own in sides.items():
        worker = FDUnlearner(pipe, run, False, component=component, **options)
        buffer = worker.record("dog", "a grey cat")
        assert buffer.count("unlearn") and is_own(buffer.timesteps).all()
        worker.unlearn("dog", "a grey cat", buffer=buffer, adapter_name="forget")
        worker.save(tmp_path / component)
        drawn[component] = ask(worker.model, buffer, buffer.entries("unlearn"))
        drawn[component, "buffer"] = buffer
    fresh = family.build()
    for component in sides:
        load_unlearned(fresh, tmp_path / component)
    for component in sides:
        model, buffer = getattr(fresh, component), drawn[component, "buffer"]
        assert list(model.peft_config) == ["forget"]
        assert ask(model, buffer, buffer.entries("unlearn")).equal(drawn[component])
    with pytest.raises(ValueError, match="has no denoiser 'unet': choose transformer"):
        FDUnlearner(pipe, component="unet")


def test_a_folder_holds_one_format(tmp_path) -> None:
    pipe = FAMILIES["sd"].build()
    options = {"trajectories": 2, "steps": 2, "batch_size": 2, "retain": ["a tree"]}
    worker = FDUnlearner(pipe, {"num_inference_steps": 2}, False, **options)
    worker.unlearn("dog", "cat")
    for format, kept in (
        ("diffusers", {"pytorch_lora_weights.safetensors"}),
        ("peft", {"adapter_model.safetensors", "adapter_config.json"}),
        ("diffusers", {"pytorch_lora_weights.safetensors"}),
    ):
        worker.save(tmp_path, format)
        assert {path.name for path in tmp_path.iterdir()} == kept | {"recipe.json"}


@pytest.mark.parametrize("given", [{"max_sequence_length": 12}, {}], ids=["given", "default"])
def test_a_prompt_that_the_pipeline_would_cut_is_refused(given) -> None:
    """The tokenizer takes 512; the pipeline takes what it is told, 120 if nothing."""
    family = FAMILIES["pixart_alpha"]
    worker = FDUnlearner(family.build(), {"use_resolution_binning": False, **given}, False)
    limit = given.get("max_sequence_length", 120)
    with pytest.raises(ValueError, match=f"the max_sequence_length takes {limit}: shorten it"):
        worker.record(Concept("a" * limit, "cat", kind="prompt"))


TEXTLESS = ("kolors", "flux2_dev", "qwen_image")
"""Built here without text encoders."""
VIDEOS = ("wan", "wan22", "ltx")


@pytest.mark.parametrize("key", [key for key in FAMILIES if key not in (*TEXTLESS, *VIDEOS)])
def test_a_familys_token_embeddings_can_be_searched(key) -> None:
    """Robust training, and attacks, reach the embeddings of every text encoder."""
    family = FAMILIES[key]
    pipe, run = family.build(), {**family.run, "num_inference_steps": 2}
    robust = Robust(every=1, steps=1, batch=2, prompts=1, pictures=1)
    options = {"trajectories": 2, "steps": 2, "batch_size": 2, "retain": ["a tree"]}
    worker = FDUnlearner(pipe, run, False, robust=robust, **options)
    worker.unlearn("dog", "a grey cat")
    scene = AttackTarget(
        pipe,
        "dog",
        lambda images: [True] * len(images),
        ["a {}"],
        component=worker.component,
        adapter_name=worker.adapter_name,
        settings=run,
        pictures=1,
    )
    inversion = ConceptInversion(Inversion(steps=1, batch=1), pictures=1)
    relearning = Relearning(steps=(1,), batch=1, pictures=1)
    for attack in (inversion, NoiseProbing(scales=(1.1,)), Completion(steps=1), relearning):
        assert attack(scene, 0).hits == [True]


@pytest.mark.parametrize("key", TEXTLESS)
def test_a_pipe_without_text_encoders_cannot_be_trained_robustly(key) -> None:
    family = FAMILIES[key]
    worker = FDUnlearner(family.build(), family.run, False, robust=True, trajectories=2)
    with pytest.raises(ValueError, match="has no text encoder whose tokens are free"):
        worker.record("dog", "a grey cat")
