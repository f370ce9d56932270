"How a model wants to be sampled stays with it, whoever made it."

import copy
import json

import pytest
import torch

from minimind import hub
from minimind.core import read_json, write_json
from minimind.generate import generate, stop_ids
from minimind.hub import generation_config, load_config, load_model, sampling_options
from minimind.hub import save_pretrained, weights_dtype
from minimind.model import MiniMind, ModelConfig
from minimind.rollout import LocalEngine
from shared import COMPARED_SHAPE as SHAPE

OURS = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9}


@pytest.fixture
def folder(tmp_path):
    "A model that has brought nothing, saved."
    torch.manual_seed(0)
    save_pretrained(MiniMind(ModelConfig(**SHAPE)), None, tmp_path / "a")
    return tmp_path / "a"


def said(folder):
    return read_json(folder / "generation_config.json")


def again(folder, name="b"):
    "The folder that a stage would leave that begins from this one."
    save_pretrained(load_model(folder), None, folder.parent / name)
    return folder.parent / name


def test_a_new_model_is_sampled_as_we_do(folder):
    assert said(folder).items() >= {**OURS, "eos_token_id": 2}.items()
    assert load_model(folder).generation_config == said(folder) == said(again(folder))
    model = load_model(folder)
    model.generation_config["temperature"] = 0.3
    save_pretrained(model, None, folder)
    assert said(again(folder))["temperature"] == 0.3
    assert copy.deepcopy(model).generation_config == model.generation_config


def test_what_others_have_written_is_kept(folder):
    theirs = {
        "eos_token_id": [2, 7],
        "max_length": 4096,
        "transformers_version": "4.51.0",
        "their_key": {"a": [1]},
    }
    write_json(folder / "generation_config.json", theirs)
    assert said(again(folder)) == theirs | {"bos_token_id": 1, "pad_token_id": 0}
    assert sampling_options(load_model(folder)) == {"eos_token_id": [2, 7]}


def test_several_end_tokens_of_the_config_alone_are_kept(folder):
    (folder / "generation_config.json").unlink()
    write_json(folder / "config.json", read_json(folder / "config.json") | {"eos_token_id": [2, 5]})
    assert load_model(folder).config.eos_token_id == (2, 5)
    assert said(again(folder))["eos_token_id"] == [2, 5]
    write_json(folder / "generation_config.json", {"eos_token_id": 5})
    assert load_model(folder).generation_config == {"eos_token_id": 5}
    # as in transformers: what is said about generating goes first
    assert load_model(folder).config.eos_token_id == 5


class Always(torch.nn.Module):
    "A head for which one token is certain."

    def __init__(self, token, vocab_size):
        super().__init__()
        self.logits = 100.0 * torch.eye(vocab_size)[token]

    def forward(self, states):
        return self.logits.expand(*states.shape[:-1], -1)


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_a_folder_with_several_end_tokens_stops_at_each(folder, where):
    """Like Llama 3, which ends a text with one token and a turn with another; the model here writes
    one and the same token again and again."""
    if where == "config.json":
        (folder / "generation_config.json").unlink()
    write_json(folder / where, read_json(folder / where) | {"eos_token_id": [2, 7, 9]})
    for path in (folder, again(folder)):
        model = load_model(path)
        assert model.config.eos_token_id == (2, 7, 9) and load_config(path) == model.config
        assert generation_config(model)["eos_token_id"] == [2, 7, 9]
        assert stop_ids(model) == {2, 7, 9} == LocalEngine(model).stop
        for end in (2, 7, 9, 11):
            model.lm_head = Always(end, model.config.vocab_size)
            replies = generate(model, [1], 6, temperature=0), generate(model, [1], 6, seed=0)
            assert replies == (([end],) * 2 if end != 11 else ([11] * 6,) * 2), end
    # and what transformers reads there is the same
    assert read_json(again(folder, "c") / "config.json")["eos_token_id"] == [2, 7, 9]


@pytest.mark.parametrize("file, kept", [([2], 2), ([], None), (None, None), ([2, 5], (2, 5))])
def test_what_is_kept_of_end_tokens(folder, file, kept):
    (folder / "generation_config.json").unlink()
    write_json(folder / "config.json", read_json(folder / "config.json") | {"eos_token_id": file})
    assert load_config(folder).eos_token_id == kept
    assert load_config(again(folder)).eos_token_id == kept


def test_weights_come_in_the_precision_that_is_asked_for(folder):
    whole = load_model(folder)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    for asked in ("bfloat16", torch.bfloat16):
        half = load_model(folder, dtype=asked)
        for (name, p), wanted in zip(half.named_parameters(), whole.parameters()):
            assert p.dtype == torch.bfloat16 and torch.equal(p, wanted.bfloat16()), name
        assert half.lm_head.weight is half.model.embed_tokens.weight
        ids = torch.tensor([[1, 5, 9, 3]])
        torch.testing.assert_close(half(ids).float(), whole(ids), rtol=0.1, atol=0.05)
        assert len(generate(half, [1, 5], 4, temperature=0, eos_token_id=())) == 4
    with pytest.raises(ValueError, match="dtype 'int8'"):
        load_model(folder, dtype="int8")


def test_only_a_gpu_is_given_half_the_bytes_unasked(folder, monkeypatch):
    assert {p.dtype for p in load_model(folder, dtype="auto").parameters()} == {torch.float32}
    assert weights_dtype("cpu", "auto") == torch.float32
    monkeypatch.setattr(hub, "get_dtype", lambda device, name: (device.type, name))
    assert weights_dtype("cuda", "auto") == ("cuda", "auto")
    assert weights_dtype("cpu", "float16") == ("cpu", "float16")


@pytest.mark.parametrize(
    "file, options",
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.6, "top_k": 20}, {"temperature": 0.0, "top_k": 20}),
        ({"do_sample": True, "temperature": 0.6, "top_k": None}, {"temperature": 0.6}),
        ({"repetition_penalty": 1.1, "max_length": 9}, {"repetition_penalty": 1.1}),
    ],
)
def test_what_is_said_about_sampling(folder, file, options):
    write_json(folder / "generation_config.json", file)
    assert sampling_options(load_model(folder)) == options


def test_a_folder_without_the_file_and_a_damaged_one(folder):
    (folder / "generation_config.json").unlink()
    assert (
        load_model(folder).generation_config == {} and said(again(folder)).items() >= OURS.items()
    )
    for text, says in (("{", "generation_config.json is damaged"), ("[1]", "is not an object")):
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            load_model(folder)


def test_transformers_reads_the_same(folder, recwarn):
    transformers = pytest.importorskip("transformers")
    for changes in ({}, {"temperature": 0.3}, {"eos_token_id": [2, 7]}):
        model = load_model(folder)
        model.generation_config |= changes
        save_pretrained(model, None, folder)
        theirs = transformers.GenerationConfig.from_pretrained(folder)
        for key, value in model.generation_config.items():
            assert getattr(theirs, key) == value, key
        theirs.validate()
        # and what they write we read
        theirs.save_pretrained(folder)
        wanted = {k: v for k, v in sampling_options(model).items() if k != "top_k"}
        assert sampling_options(load_model(folder)).items() >= wanted.items()
    assert not [w for w in recwarn if "generation" in str(w.message).lower()]
    assert json.loads((folder / "generation_config.json").read_text())["top_p"] == 0.9
