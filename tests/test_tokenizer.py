"""What a tokenizer says when it is asked for the wrong thing; chapter 02 tests the right things."""

import pytest
import torch

from minimind.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    with pytest.warns(UserWarning, match="the texts gave only"):
        return Tokenizer.train(["a few words, a few more words"] * 9, vocab_size=320)


@pytest.mark.parametrize("ids", ["12", b"12", 7, [[1, 2], [3, 4]], [None], ["a"], [1, "b"]])
def test_decode_names_what_is_no_list_of_ids(tokenizer, ids):
    with pytest.raises(TypeError, match="decode takes"):
        tokenizer.decode(ids)


def test_decode_refuses_a_batch_of_rows(tokenizer):
    with pytest.raises(TypeError, match="the ids of one text"):
        tokenizer.decode(torch.ones(2, 3, dtype=torch.int64))


def test_decode_takes_any_whole_numbers(tokenizer):
    ids = tokenizer.encode("a few words")
    for same in (tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy(), iter(ids)):
        assert tokenizer.decode(same) == "a few words"


def test_an_id_without_a_token_adds_nothing_and_is_named(tokenizer):
    with pytest.warns(UserWarning, match="id 99999 adds nothing"):
        assert tokenizer.decode([*tokenizer.encode("a few"), 99_999]) == "a few"


def test_a_call_names_the_methods(tokenizer):
    with pytest.raises(TypeError, match=r"encode\(text\) gives the ids"):
        tokenizer("a few words", return_tensors="pt")


@pytest.mark.parametrize("text", ["runs/sft", "runs/sft/tokenizer.json", ""])
def test_a_path_in_place_of_the_content_is_named(text):
    with pytest.raises(ValueError, match="Tokenizer.from_file"):
        Tokenizer(text)
    with pytest.raises(ValueError, match="Tokenizer.train"):
        Tokenizer()


def test_a_broken_file_is_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    for text in ("no JSON at all", "{}", '{"version": "1.0"'):
        file.write_text(text)
        with pytest.raises(ValueError, match="is no tokenizer.json"):
            Tokenizer.from_file(file)


def test_the_reserved_ids_come_from_the_names(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    other = Tokenizer(tokenizer.json, {"eos": "<|endoftext|>", "bos": None, "pad": "no such token"})
    assert (other.pad_id, other.bos_id, other.eos_id) == (None, None, 0)
