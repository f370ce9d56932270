"How a model wants to be sampled stays with it, whoever made it."

import copy
import json

import pytest
import torch

from minimind.core import read_json, write_json
from minimind.hub import load_model, sampling_options, save_pretrained
from minimind.model import MiniMind, ModelConfig
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
    assert load_model(folder).config.eos_token_id == 2
    assert said(again(folder))["eos_token_id"] == [2, 5]
    write_json(folder / "generation_config.json", {"eos_token_id": 5})
    assert load_model(folder).generation_config == {"eos_token_id": 5}


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
