"""What a tokenizer says when it is asked for the wrong thing; chapter 02 tests the right things."""

import json

import pytest
import torch

from minimind.tokenizer import Tokenizer, _fingerprint


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


# --- the fingerprint: what decides about ids, and nothing else


def described(tokenizer, change):
    "The tokenizer that a changed description of this one gives."
    spec = json.loads(tokenizer.json)
    change(spec)
    return Tokenizer(json.dumps(spec))


def merges_as_text(spec):
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]


def with_unknown_keys(spec):  # as a newer library might write them
    spec["model"]["a_new_key"] = spec["a_new_key"] = False
    spec["pre_tokenizer"]["pretokenizers"][1]["a_new_key"] = True


def without_silent_keys(spec):  # as an older one has
    for key in ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"):
        del spec["model"][key]
    del spec["pre_tokenizer"]["pretokenizers"][0]["invert"]
    del spec["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"]


def with_a_limit(spec):
    how = dict(max_length=5, strategy="LongestFirst", stride=0, direction="Right")
    spec["truncation"] = how


SAME = [merges_as_text, with_unknown_keys, without_silent_keys, with_a_limit]


@pytest.mark.parametrize("change", SAME)
def test_another_description_of_the_same_tokenizer(tokenizer, change):
    spec = json.loads(tokenizer.json)
    change(spec)
    # not through the library of today, which would put it into its own words
    assert _fingerprint(json.dumps(spec)) == tokenizer.fingerprint


def test_silence_means_what_it_means_to_the_library():
    spec = {"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}
    prints = set()
    for said in ({}, {"use_regex": True}, {"use_regex": True, "add_prefix_space": True}):
        prints.add(_fingerprint(json.dumps(spec | {"pre_tokenizer": {"type": "ByteLevel"} | said})))
    assert len(prints) == 1
    for said in ({"use_regex": False}, {"add_prefix_space": False}):
        told = spec | {"pre_tokenizer": {"type": "ByteLevel"} | said}
        assert _fingerprint(json.dumps(told)) not in prints
    # the first token is no silence
    unigram = {"type": "Unigram", "vocab": [["<unk>", 0.0]]}
    with_unknown, without = (
        {"model": unigram | {"unk_id": i}, "pre_tokenizer": None} for i in (0, None)
    )
    assert _fingerprint(json.dumps(with_unknown)) != _fingerprint(json.dumps(without))


def another_merge_order(spec):
    merges = spec["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def another_id(spec):
    vocab = spec["model"]["vocab"]
    a, b = list(vocab)[-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def another_added_token(spec):
    spec["added_tokens"][3]["content"] = "<|another|>"


def a_token_that_swallows_space(spec):
    spec["added_tokens"][3]["rstrip"] = True


def another_pattern(spec):
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\\s+"


def a_space_in_front(spec):
    spec["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def a_normaliser(spec):
    spec["normalizer"] = {"type": "NFKC"}


OTHER = [another_merge_order, another_id, another_added_token, a_token_that_swallows_space]
OTHER += [another_pattern, a_space_in_front, a_normaliser]


@pytest.mark.parametrize("change", OTHER)
def test_whatever_decides_about_ids_is_in_the_fingerprint(tokenizer, change):
    assert described(tokenizer, change).fingerprint != tokenizer.fingerprint


def test_the_fingerprint_of_a_known_tokenizer():
    "Ours to keep: recorded in runs and stores, it must be the same in every version to come."
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"ab"}
    tokenizer = Tokenizer.from_bpe(vocab, [(b"a", b"b")])
    assert (
        tokenizer.fingerprint
        == "v2:17f2e0c5ee07b4af9fc173bc085836a4a0b7e3abe4902bd14048036b380a7fad"
    )
