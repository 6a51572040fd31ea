from __future__ import annotations

import pytest
import torch

from diffusers_fdu.pipelines.placeholder_tokens import PlaceholderTokens
from diffusers_fdu.pipelines.recorder import Recorder
from diffusers_fdu.pipelines.tokenizers import single_tokens


def to_device(pipe, prompt: str) -> torch.Tensor:
    """The denoiser's text for a prompt."""
    inputs = Recorder(pipe).first_call([prompt]).inputs
    return inputs["encoder_hidden_states"][0]


def test_the_marker_is_one_token_and_no_word_of_the_prompts(pipe) -> None:
    slots = PlaceholderTokens(pipe, 2, ["a dog in blue"])
    words = slots.marker.split()
    assert len(words) == 2 and words[0] == words[1]
    assert words[0] not in ("dog", "blue")
    assert len(pipe.tokenizer.tokenize(words[0])) == 1


def test_the_markers_own_embedding_changes_nothing(pipe) -> None:
    slots = PlaceholderTokens(pipe)
    prompt = f"a {slots.marker} house"
    with torch.no_grad():
        found = slots.conditioning(Recorder(pipe), [prompt], ["encoder_hidden_states"])
    assert torch.equal(found["encoder_hidden_states"][0], to_device(pipe, prompt))


def test_another_words_embedding_makes_it_that_word(pipe) -> None:
    slots = PlaceholderTokens(pipe, avoid=["dog"])
    (_, ids), *_ = single_tokens(pipe, ["dog"])
    slots.vectors = [slots.embeddings(0, ids)]
    with torch.no_grad():
        found = slots.conditioning(
            Recorder(pipe), [f"a {slots.marker} house"], ["encoder_hidden_states"]
        )
    assert torch.allclose(
        found["encoder_hidden_states"][0], to_device(pipe, "a dog house"), atol=1e-6
    )


def test_several_slots_are_filled_in_order(pipe) -> None:
    slots = PlaceholderTokens(pipe, 2, ["dog", "house"])
    ids = [single_tokens(pipe, [word])[0][1][0] for word in ("dog", "house")]
    slots.vectors = [slots.embeddings(0, ids)]
    with torch.no_grad():
        found = slots.conditioning(
            Recorder(pipe), [f"a {slots.marker}", "a cat"], ["encoder_hidden_states"]
        )["encoder_hidden_states"]
    assert torch.allclose(found[0], to_device(pipe, "a dog house"), atol=1e-6)
    assert torch.allclose(found[1], to_device(pipe, "a cat"), atol=1e-6)


def test_gradients_are_those_of_finite_differences(pipe) -> None:
    pipe.text_encoder.double()
    slots, recorder = PlaceholderTokens(pipe), Recorder(pipe)
    (own,) = slots.vectors
    vector = own.double().requires_grad_()
    weight = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(v: torch.Tensor) -> torch.Tensor:
        found = slots.conditioning(recorder, [f"a {slots.marker}"], ["encoder_hidden_states"], [v])
        return (found["encoder_hidden_states"].double() @ weight).sum()

    (gradient,) = torch.autograd.grad(value(vector), vector)
    step = torch.randn(own.shape, dtype=torch.float64)
    with torch.no_grad():
        change = (value(vector + 1e-3 * step) - value(vector - 1e-3 * step)) / 2e-3
    assert torch.allclose((gradient * step).sum(), change, rtol=1e-3)


def test_the_table_and_the_hooks_stay_as_they_were(pipe) -> None:
    before = pipe.text_encoder.get_input_embeddings().weight.clone()
    text = to_device(pipe, "a dog")
    slots = PlaceholderTokens(pipe)
    with slots.substituted([torch.ones(1, 16)]):
        assert not torch.equal(to_device(pipe, f"a {slots.marker}"), text)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, before)
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert torch.equal(to_device(pipe, "a dog"), text)


def test_a_random_start_is_a_word_outside_the_prompts(pipe) -> None:
    slots = PlaceholderTokens(pipe, avoid=["a photo of a dog"])
    words = dict(single_tokens(pipe, ["dog", "photo", "cat", "tree", "apple", "emoji", "style"]))
    taken = [slots.embeddings(0, words[word])[0] for word in ("dog", "photo")]
    for seed in range(8):
        slots.start_at_random_word(torch.Generator().manual_seed(seed))
        assert not any(torch.equal(slots.vectors[0][0], other) for other in taken)


def test_encoders_that_cut_the_gradient_are_refused(pipe, monkeypatch) -> None:
    own = type(pipe).encode_prompt
    monkeypatch.setattr(type(pipe), "encode_prompt", torch.no_grad()(own))
    slots = PlaceholderTokens(pipe)
    vectors = [vector.requires_grad_() for vector in slots.vectors]
    with pytest.raises(ValueError, match="no gradient reaches"):
        slots.conditioning(
            Recorder(pipe), [f"a {slots.marker}"], ["encoder_hidden_states"], vectors
        )


def test_pipes_without_text_encoders_are_refused(pipe) -> None:
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="no text encoder"):
        PlaceholderTokens(pipe)
