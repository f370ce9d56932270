"""Data: every row is used once, in an order that can be computed; every bad line is named or
counted; memory does not grow with the file."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import minimind
from minimind import data
from minimind.chat import CHAT_TEMPLATE, encode_chat
from minimind.core import IGNORE, data_dir, sample
from minimind.data import (
    BadLine,
    Batches,
    EpochRows,
    JsonlReader,
    PackedBatches,
    TextReader,
    TokenStore,
    batches_by_length,
    build_store,
    cache_dir,
    cached_stores,
    chat_row,
    clean_text,
    clear_cache,
    file_sha256,
    fitted_tokenizer,
    format_tokens,
    in_heldout,
    manifest,
    map_by_length,
    open_store,
    open_texts,
    pack_lengths,
    pad,
    read_documents,
    run_cache,
    run_store,
    text_row,
)
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, ModelConfig
from minimind.pretrain import PretrainConfig, run
from minimind.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tok():
    texts = [
        text
        for name in ("pretrain_en.jsonl", "pretrain_zh.jsonl")
        for _, (_, text) in zip(range(100), open_texts(sample(name)))
    ]
    return Tokenizer.train(texts, vocab_size=600)


def write(path, rows):
    path.write_text(
        "".join(
            (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
            for row in rows
        ),
        encoding="utf-8",
    )
    return path


def chat(question, answer):
    return {
        "conversations": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def build(paths, tok, out, **kw):
    return build_store(
        paths if isinstance(paths, list) else [paths], tok, out, progress=False, **kw
    )


# ---- packing
class MemoryStore:
    """A store of documents that lie in memory; document i has the tokens 1000·i + 1, 1000·i + 2, …,
    so a token tells where it is from."""

    def __init__(self, lengths, masks=None):
        documents = [np.arange(n) + 1 + 1000 * i for i, n in enumerate(lengths)]
        self.tokens, self.offsets = (
            np.concatenate(documents),
            np.concatenate([[0], np.cumsum(lengths)]),
        )
        self.mask = None if masks is None else np.concatenate(masks).astype(np.uint8)
        self.first = np.array(
            [
                1 if masks is None else next((t for t in range(1, n) if masks[i][t]), n)
                for i, n in enumerate(lengths)
            ]
        )
        self.meta = {"kind": "pretrain" if masks is None else "sft", "sha256": "of the tokens"}

    def where(self, i):
        return f"file:{i + 1}"


LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=40)


def naive_pack(lengths, room):
    free, rows = [], []
    for n in lengths:
        fitting = [row for row, space in enumerate(free) if space >= n]
        if not fitting:
            free.append(room)
            fitting = [len(free) - 1]
        best = min(fitting, key=lambda row: free[row])
        free[best] -= n
        rows.append(best)
    return rows


@given(st.lists(st.integers(1, 24), max_size=60), st.integers(24, 70))
def test_best_fit_is_best_fit(lengths, room):
    rows = pack_lengths(np.array(lengths, int), room)
    assert len(rows) == len(lengths)
    used = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert (used <= room).all() and (used > 0).all()
    naive = np.bincount(naive_pack(lengths, room), weights=lengths) if lengths else used
    assert sorted(used) == sorted(naive)


@pytest.mark.parametrize("lengths", [[9], [3, 0], [-1]])
def test_a_piece_that_fits_no_row_is_an_error(lengths):
    with pytest.raises(ValueError, match="cut them first"):
        pack_lengths(np.array(lengths), 8)


def epoch_of(batches, epoch=0, world_size=1):
    "All rows of an epoch as one dict of arrays, gathered from all ranks."
    parts = [
        batches.at(step, rank, world_size)
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        for rank in range(world_size)
    ]
    return {k: torch.cat([p[k] for p in parts]).numpy() for k in parts[0]}


def check_rows(rows):
    "What must hold in every row, whatever the documents were."
    for ids, labels, positions, segments in zip(
        *(rows[k] for k in ("input_ids", "labels", "position_ids", "segment_ids"))
    ):
        n = int((segments > 0).sum())
        # filler at the end only
        assert (
            not segments[n:].any()
            and not ids[n:].any()
            and not positions[n:].any()
            and (labels[n:] == IGNORE).all()
        )
        starts = np.flatnonzero(np.diff(segments[:n], prepend=0))
        # 1, 1, 1, 2, 2, 3 …
        assert (np.diff(segments[:n], prepend=0)[starts] == 1).all()
        for begin, end in zip(starts, [*starts[1:], n]):
            assert (
                positions[begin:end].tolist() == list(range(end - begin))
                and labels[begin] == IGNORE
            )
            # consecutive tokens of one document
            assert (np.diff(ids[begin:end]) == 1).all()
        assert ((labels == IGNORE) | (labels == ids)).all()


@given(LENGTHS, st.integers(2, 24), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_every_token_is_learned_once(lengths, seq_len, batch_size, world_size, seed):
    store = MemoryStore(lengths)
    batches = PackedBatches(store, seq_len, batch_size, seed)
    rows = epoch_of(batches, world_size=world_size)
    check_rows(rows)
    want = sorted(
        int(t)
        for i in range(len(lengths))
        for t in store.tokens[store.offsets[i] + 1 : store.offsets[i + 1]]
    )
    assert sorted(rows["labels"][rows["labels"] != IGNORE].tolist()) == want
    assert (
        batches.fill * batches.rows * seq_len
        == pytest.approx((rows["segment_ids"] > 0).sum())
        == batches.tokens_per_epoch
    )


@given(LENGTHS, st.data())
def test_chats_keep_their_head_and_their_mask(lengths, data):
    masks = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    seq_len = data.draw(st.integers(2, 24))
    store = MemoryStore(lengths, masks)
    want = [
        [1000 * i + t + 1 for t in range(1, min(n, seq_len)) if masks[i][t]]
        for i, n in enumerate(lengths)
    ]
    empty = [i for i, labels in enumerate(want) if not labels]
    if empty:
        with pytest.raises(ValueError, match=rf"^file:{empty[0] + 1}: nothing to learn"):
            PackedBatches(store, seq_len, 2)
    if len(empty) == len(lengths):
        with pytest.raises(ValueError, match="raise seq_len"):
            PackedBatches(store, seq_len, 2, on_bad_line="skip")
        return
    batches = PackedBatches(store, seq_len, 2, on_bad_line="skip")
    rows = epoch_of(batches)
    check_rows(rows)
    assert batches.skipped == len(empty)
    assert sorted(rows["labels"][rows["labels"] != IGNORE].tolist()) == sorted(
        t for labels in want for t in labels
    )
    heads = Counter(
        (rows["input_ids"][(rows["position_ids"] == 0) & (rows["segment_ids"] > 0)] - 1) // 1000
    )
    # each document once, whole or cut
    assert heads == Counter(i for i in range(len(lengths)) if i not in empty)
    assert (rows["segment_ids"] > 0).sum() == sum(
        min(n, seq_len) for i, n in enumerate(lengths) if i not in empty
    )


@given(LENGTHS, st.integers(1, 6), st.integers(1, 9), st.integers(0, 30))
def test_ranks_share_a_step(lengths, batch_size, world_size, step):
    batches = PackedBatches(MemoryStore(lengths), 16, batch_size)
    whole = batches.at(step)["input_ids"].tolist()
    shares = [batches.at(step, rank, world_size) for rank in range(world_size)]
    real = [share["input_ids"].tolist() for share in shares if share["segment_ids"].any()]
    assert sorted(sum(real, [])) == sorted(whole)
    named = [batches.sources(step, rank, world_size) for rank in range(world_size)]
    assert sorted(sum(named, [])) == sorted(batches.sources(step))
    for share, names in zip(shares, named):
        firsts = share["input_ids"][(share["position_ids"] == 0) & (share["segment_ids"] > 0)]
        # a piece that begins within its document: its first token tells the document all the same
        assert sorted(f"file:{(int(t) - 1) // 1000 + 1}" for t in firsts) == sorted(names)
    sizes = [len(share["input_ids"]) for share in shares]
    # all have something to compute
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    for share in shares:
        if not share["segment_ids"].any():
            assert (share["labels"] == IGNORE).all()


@given(
    LENGTHS,
    st.integers(1, 6),
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(0, 5),
)
def test_a_batch_is_a_pure_function(lengths, batch_size, steps, seed):
    store = MemoryStore(lengths)
    one = PackedBatches(store, 16, batch_size, seed)
    for step in steps:
        for k, v in PackedBatches(store, 16, batch_size, seed).at(step).items():
            assert torch.equal(v, one.at(step)[k])


def test_epochs_have_the_same_rows_in_another_order():
    batches = PackedBatches(MemoryStore([10] * 64), 20, 4)
    epochs = [epoch_of(batches, e)["input_ids"].tolist() for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert (
        epoch_of(PackedBatches(MemoryStore([10] * 64), 20, 4, seed=1))["input_ids"].tolist()
        != epochs[0]
    )


def test_the_tail_batch_is_kept():
    batches = PackedBatches(MemoryStore([8] * 11), 8, 4)
    assert batches.steps_per_epoch == 3 and [len(batches.at(s)["input_ids"]) for s in range(3)] == [
        4,
        4,
        3,
    ]


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(10, 300, 5000)
    assert PackedBatches(MemoryStore(lengths.tolist()), 512, 8).fill > 0.98


@pytest.mark.parametrize(
    "kw, message",
    [
        (dict(seq_len=1), "at least 2 tokens"),
        (dict(batch_size=0), "at least 1 row"),
        (dict(long="drop"), "split or truncate"),
    ],
)
def test_packing_refuses(kw, message):
    with pytest.raises(ValueError, match=message):
        PackedBatches(MemoryStore([5]), **dict(seq_len=8, batch_size=2) | kw)


def test_batches_have_defaults():
    class Toy(Batches):
        steps_per_epoch = 3

    toy = Toy()
    assert toy.sources(0) == [] and toy.numbers() == {} == toy.fingerprint()
    assert toy.observe(None) is None and toy.tokens_per_epoch is None
    assert (toy.fill, toy.sequences, toy.steps_per_making, toy.needs_model) == (1.0, 1, 1, False)
    assert not toy.ahead and toy.sources(0, rank=1, world_size=2) == []
    with pytest.raises(NotImplementedError, match="Toy"):
        toy.at(0, rank=1, world_size=2)


def test_packed_batches_know_their_data():
    batches = PackedBatches(MemoryStore([8] * 11), 8, 4)
    assert isinstance(batches, Batches)
    assert batches.fingerprint() == {
        "tokens_per_epoch": 88,
        "data_sha256": batches.store.meta["sha256"],
    }


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1), st.integers(-100, 0))
def test_padding(rows, fill):
    right, left = pad(rows, fill), pad(rows, fill, side="left")
    longest = max(map(len, rows))
    assert right.dtype == left.dtype == torch.int64
    assert right.tolist() == [row + [fill] * (longest - len(row)) for row in rows]
    assert left.tolist() == [[fill] * (longest - len(row)) + row for row in rows]
    arrays = [np.array(row, np.int64) for row in rows]
    assert torch.equal(pad(arrays, fill), right)


def test_padding_refuses():
    with pytest.raises(ValueError, match="'top': choose right or left"):
        pad([[1]], 0, side="top")
    with pytest.raises(ValueError):
        pad([], 0)


@given(st.lists(st.text(max_size=4), max_size=30), st.integers(1, 7))
def test_like_lengths_go_together_and_results_come_back_in_order(rows, size):
    calls = []

    def f(batch):
        calls.append(batch)
        return [row + "!" for row in batch]

    assert map_by_length(f, rows, size) == [row + "!" for row in rows]
    assert sum(calls, []) == sorted(rows, key=len)
    assert [len(batch) for batch in calls] == [
        len(rows[at : at + size]) for at in range(0, len(rows), size)
    ]
    assert [[rows[i] for i in batch] for batch in batches_by_length(rows, size)] == calls
    longest_first = map_by_length(f, rows, size, length=lambda row: -len(row))
    assert longest_first == [row + "!" for row in rows]


def test_documents_are_read_file_after_file(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"text": f"one {n}"} for n in range(200)])
    b = tmp_path / "b.txt"
    b.write_text("a book")
    documents = list(read_documents([a, b]))
    assert documents == [f"one {n}" for n in range(200)] + ["a book"]
    held = list(read_documents([a, b], "heldout"))
    assert held == [d for d in documents if in_heldout(d)] != []
    assert list(read_documents([a, b], "train")) == [d for d in documents if not in_heldout(d)]
    a.write_text("{broken\n")
    assert list(read_documents([a, b], on_bad_line="skip")) == ["a book"]


def test_a_conversation_is_never_split():
    with pytest.raises(ValueError, match="can't be split"):
        PackedBatches(MemoryStore([5], [[1] * 5]), 8, 2, long="split")


def test_documents_in_a_row_do_not_see_each_other():
    """The loss of a packed batch is the sum of its documents' losses, and a change in one leaves
    the others' as they were."""
    torch.manual_seed(0)
    model = MiniMind(
        ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            vocab_size=6000,
        )
    ).eval()
    lengths = [5, 9, 3, 7, 2]
    batch = PackedBatches(MemoryStore(lengths), 26, 1).at(0)
    alone = sum(
        causal_lm_loss(
            model, {"input_ids": (ids := torch.arange(n)[None] + 1 + 1000 * i), "labels": ids}
        )[0]
        for i, n in enumerate(lengths)
    )
    with torch.no_grad():
        # float32, another order of additions
        assert causal_lm_loss(model, batch)[0].item() == pytest.approx(alone.item(), rel=1e-5)
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        before = model(**inputs)
        inputs["input_ids"] = batch["input_ids"].clone()
        inputs["input_ids"][0, 1] = 5999
        moved = (model(**inputs) - before).abs().amax(-1)[0]
    first = batch["segment_ids"][0] == 1
    assert moved[first].max() > 1e-3 and moved[~first].max() < 1e-6


# ---- reading
BAD = {  # line -> what the message says
    b"": "empty line",
    b"  \r": "empty line",
    b'{"text": "cut': "broken JSON",
    b"{'text': 1}": "broken JSON",
    b'{"text": "a\x00b"}': "broken JSON: Invalid control character",
    b'{"text": "a"} x': "broken JSON: Extra data",
    b'{"text": ' + b"9" * 5000 + b"}": "broken JSON: Exceeds"
    if hasattr(sys, "set_int_max_str_digits")
    else "text is not a string",
    b'"text"': "not an object: str",
    b"[]": "not an object: list",
    b"null": "not an object: NoneType",
    b'{"text": "caf\xe9"}': "invalid UTF-8: byte 0xe9",
    b"\xff\xfe{": "invalid UTF-8: byte 0xff",
    b'{"text": "' + b"x" * 20_000 + b'"}': "line too long: 20,013 bytes, the limit is 15,000",
    b"[" * 12_000: "nested too deep",
    b'{"txt": "a"}': "no text field",
    b'{"text": 5}': "text is not a string: it is int",
    b'{"text": null}': "text is not a string",
    b'{"text": " \\u0000\\n "}': "empty text",
    b'{"text": "\\ud83d"}': "lone surrogate",
}
GOOD = [
    b'{"text": "fine"}',
    b'{"text": "fine \\u0000"}\r',
    b'{"more": 1, "text": "\\ud83d\\ude42"}',
]


@pytest.mark.parametrize(
    "line", BAD, ids=[f"{n}-{reason[:13]}" for n, reason in enumerate(BAD.values())]
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([*GOOD, line, GOOD[0]]) + b"\n")
    with pytest.raises(BadLine) as error:
        list(JsonlReader(path, check=text_row, max_line_bytes=15_000))
    assert (
        str(error.value).startswith(f"{path}:4: ")
        and BAD[line] in str(error.value)
        and len(str(error.value)) < 400
    )
    assert isinstance(error.value, ValueError)


def test_skipping_counts_every_bad_line(tmp_path, tok):
    lines = [*GOOD, *BAD, *GOOD[1:], *BAD]
    path = tmp_path / "data.jsonl"
    # no line end after the last
    path.write_bytes(b"\n".join(lines))
    reader = JsonlReader(path, check=text_row, on_bad_line="skip", max_line_bytes=15_000)
    kept = list(reader)
    assert [text for _, text in kept] == ["fine", "fine", "🙂", "fine", "🙂"] and [
        number for number, _ in kept
    ][:3] == [1, 2, 3]
    assert (
        reader.skipped.total() == 2 * len(BAD)
        and reader.skipped["empty line"] == 4
        and reader.skipped["not an object"] == 6
    )
    assert reader.bytes_read == path.stat().st_size
    # a second pass does not count twice
    assert list(reader) == kept and reader.skipped.total() == 2 * len(BAD)
    store = build(path, tok, tmp_path / "store", on_bad_line="skip", max_line_bytes=15_000)
    # "fine" three times, the face twice
    assert len(store) == 2 and store.meta["skipped"]["duplicate"] == 3
    assert len(store) + sum(store.meta["skipped"].values()) == len(lines)


@pytest.mark.parametrize("encoding, newline", [("utf-8-sig", "\n"), ("utf-8", "\r\n")])
def test_files_from_windows(tmp_path, encoding, newline):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one"}\n{"text": "二"}\n', encoding=encoding, newline=newline)
    assert list(JsonlReader(path, check=text_row)) == [(1, "one"), (2, "二")]


@pytest.mark.parametrize(
    "content, what",
    [
        ('{"text": "one"}'.encode("utf-16"), "UTF-16; convert it"),
        (gzip.compress(b'{"text": "one"}', mtime=0), "compressed by gzip"),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_a_file_that_is_no_utf8_text_is_refused_whole(tmp_path, name, content, what):
    "Also where bad lines may be skipped: what is left of such a file is nothing, or nonsense."
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is {what}"):
        list(open_texts(tmp_path / name, on_bad_line="skip"))


def test_an_empty_line_at_the_end_is_no_row(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n \n')
    assert [n for n, _ in JsonlReader(tmp_path / "data.jsonl")] == [1]
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    with pytest.raises(BadLine, match="data.jsonl:2: empty line"):
        list(JsonlReader(tmp_path / "data.jsonl"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=40).map(lambda b: b.replace(b"\n", b""))
        | st.sampled_from(GOOD + list(BAD)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([20, 15_000]),
)
def test_no_bytes_break_the_reader(tmp_path, lines, limit):
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\n".join([b"{}", *lines]) + b"\n")
    reader = JsonlReader(path, check=text_row, on_bad_line="skip", max_line_bytes=limit)
    # an empty line at the end is no row
    assert len(list(reader)) + reader.skipped.total() == len(lines) + 1 - (not lines[-1].strip())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(
        ["user", "assistant", "tool", "[]", "{}", '[{"name": 1}]', "<think>", "<tool_call>{"]
    ),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "role content tools tool_calls function functions name arguments "
                "reasoning_content".split()
            ),
            x,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": JSON},
    optional={k: JSON for k in ("tools", "tool_calls", "functions", "reasoning_content")},
)


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {"conversations": JSON | st.lists(JSON | MESSAGE, max_size=3)}, optional={"tools": JSON}
    )
)
def test_no_chat_row_breaks_the_check(row):
    try:
        messages, tools = chat_row(row)
    except ValueError as error:
        assert str(error)
    else:
        assert any(m["role"] == "assistant" for m in messages)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": "x"}, "needs a list of messages"),
        (chat("q", ""), "empty assistant reply"),
        ({"conversations": [{"role": "user", "content": "q"}]}, "no assistant turn"),
        ({"conversations": [{"role": "robot", "content": "q"}]}, "unknown role"),
        (chat("q", 5), "content must be a string"),
        (chat("\ud800", "a"), "lone surrogate"),
        ({**chat("q", "a"), "tools": "[{"}, "tools is"),
        (
            '{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{"a": '
            + '{"a": ' * 600
            + "1"
            + "}" * 602
            + "]}"[1:]
            + "}",
            None,
        ),
    ],
)
def test_a_bad_chat_is_named(tmp_path, tok, row, reason):
    path = tmp_path / "chat.jsonl"
    path.write_text(
        "\n".join([json.dumps(chat("q", "a")), row if isinstance(row, str) else json.dumps(row)])
        + "\n"
    )
    with pytest.raises(BadLine, match=rf"chat.jsonl:2: .*{reason or ''}"):
        build(path, tok, tmp_path / "store", kind="sft")
    store = build(path, tok, tmp_path / "store", kind="sft", on_bad_line="skip")
    assert len(store) == 1 and sum(store.meta["skipped"].values()) == 1


def test_what_the_template_refuses_is_named_too(tmp_path, tok):
    tok = Tokenizer(tok.json)
    tok.chat_template = "{{ raise_exception('no') if messages | length == 3 }}" + CHAT_TEMPLATE
    path = write(
        tmp_path / "chat.jsonl",
        [
            chat("q", "a"),
            {
                "conversations": [
                    {"role": "system", "content": "s"},
                    *chat("q", "a")["conversations"],
                ]
            },
        ],
    )
    with pytest.raises(BadLine, match="chat.jsonl:2: .*refuses"):
        build(path, tok, tmp_path / "store", kind="sft")


def test_a_million_lines_with_bad_ones(tmp_path):
    "The line that killed somebody's run was number 1,182,414."
    path, bad = (
        tmp_path / "long.jsonl",
        {7: '{"text": "cut', 500_000: "", 1_182_414: '{"text": "cut'},
    )
    with open(path, "w") as f:
        f.writelines(bad.get(n, '{"text": "line %d"}' % n) + "\n" for n in range(1, 1_200_001))
    reader = JsonlReader(path, on_bad_line="skip")
    kept = [number for number, _ in reader]
    assert len(kept) == 1_199_997 and not bad.keys() & set(kept) and kept[-1] == 1_200_000
    assert reader.skipped == {"broken JSON": 2, "empty line": 1}


# ---- plain text
def joined(path, **kw):
    return "".join("".join(text.split()) for _, text in TextReader(path, **kw))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("aé水🙂 \n"), max_size=400),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 9),
)
def test_plain_text_loses_nothing(tmp_path, text, newline, block):
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8", newline=newline)
    # blocks that end within characters
    reader = type("Small", (TextReader,), dict(document_chars=30, block_bytes=block))(path)
    assert (
        "".join("".join(t.split()) for _, t in reader) == "".join(text.split())
        and not reader.skipped
    )
    assert all(len(t) <= 30 * 2 + max(map(len, text.split("\n") or [""])) for _, t in reader)


def test_one_endless_line(tmp_path):
    (tmp_path / "line.txt").write_text("水调歌头" * 200_000, encoding="utf-8")
    reader = TextReader(tmp_path / "line.txt")
    documents = list(reader)
    assert (
        "".join(t for _, t in documents) == "水调歌头" * 200_000
        and {n for n, _ in documents} == {1}
        and max(len(t) for _, t in documents) < 70_000
    )


def test_plain_text_names_bad_bytes(tmp_path):
    (tmp_path / "book.txt").write_bytes("早\n".encode() * 5 + b"caf\xe9\n" + "上\n".encode())
    with pytest.raises(BadLine, match="book.txt:6: invalid UTF-8: byte 0xe9 at column 4"):
        joined(tmp_path / "book.txt")
    assert joined(tmp_path / "book.txt", on_bad_line="skip") == "早" * 5 + "上"


def test_text_documents_know_their_line(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"{'word ' * 100}{n}\n\n" for n in range(12)))
    assert [n for n, _ in TextReader(tmp_path / "book.txt")] == [1, 9, 17]


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    assert clean_text(clean_text(text)) == clean_text(text)


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("cafe\u0301", "caf\u00e9"),
        ("cafe\x00\u0301", "caf\u00e9"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \t\n\n \n\nb", "a\n\nb"),
        (" \ta\x07\x7f\n", "a"),
        ("a\tb  c", "a\tb  c"),
    ],
)
def test_cleaning(raw, clean):
    assert clean_text(raw) == clean


@given(st.lists(st.text(), max_size=20))
def test_the_held_out_side_never_depends_on_others(texts):
    assert [in_heldout(t, 3) for t in texts] == [in_heldout(t, 3) for t in reversed(texts)][::-1]


# ---- the store
def test_bos_and_eos_exactly_once(tmp_path, tok):
    texts = ["hello", "<|im_start|>hello<|im_end|>", "<think>\n</think> <|endoftext|>", "水"]
    store = build(write(tmp_path / "t.jsonl", [{"text": t} for t in texts]), tok, tmp_path / "s")
    for i, text in enumerate(texts):
        ids, mask = store[i]
        assert mask is None and (ids[0], ids[-1]) == (tok.bos_id, tok.eos_id)
        # special tokens in a text stay plain
        assert not tok.special_ids & set(ids[1:-1].tolist()) and tok.decode(ids[1:-1]) == text
        assert store.where(i) == f"{tmp_path / 't.jsonl'}:{i + 1}"
    assert (
        store.tokens.dtype == np.uint16
        and store.meta["tokens"] == len(store.tokens) == store.offsets[-1]
    )


def test_chats_are_stored_with_their_mask(tmp_path, tok):
    store = build(
        write(tmp_path / "c.jsonl", [chat("<|im_end|>q", "an<|im_end|>swer"), chat("q", "b")]),
        tok,
        tmp_path / "s",
        kind="sft",
    )
    ids, mask = store[0]
    assert (
        tok.decode(ids[mask == 1]) == "an<|im_end|>swer<|im_end|>\n"
        and list(ids).count(tok.eos_id) == 2
        and list(ids).count(tok.bos_id) == 2
    )
    assert store.meta["labels"] == sum(int(store[i][1].sum()) for i in range(2))
    shown = format_tokens(tok, ids, np.where(mask, ids, IGNORE))
    # one learned special token; two headers and one end are only read
    assert shown.count("\x1b[32;7m") == 1 and shown.count("\x1b[90;7m") == 3


def test_a_chat_whose_answer_is_cut_off_is_named(tmp_path, tok):
    path = write(
        tmp_path / "c.jsonl",
        [chat("q", "a"), chat("why " * 60, "a"), chat("q", "long answer " * 60)],
    )
    store = build(path, tok, tmp_path / "s", kind="sft")
    with pytest.raises(
        ValueError,
        match=r"c.jsonl:2: nothing to learn: no assistant token among the first 40 of \d+ tokens \(1 such",
    ):
        PackedBatches(store, 40, 2)
    batches = PackedBatches(store, 40, 2, on_bad_line="skip")
    assert (batches.skipped, batches.truncated, batches.rows) == (1, 2, 2) and sorted(
        batches.sources(0)
    ) == [f"{path}:1", f"{path}:3"]
    labels = batches.at(0)["labels"]
    assert ((labels != IGNORE).sum(1) > 0).all()


def test_real_samples_add_up(tmp_path, tok):
    for kind, name in (
        ("pretrain", "pretrain_heldout_zh.jsonl"),
        ("sft", "sft_tools.jsonl"),
        ("sft", "reason.jsonl"),
        ("sft", "lora_identity.jsonl"),
    ):
        store = build(sample(name), tok, tmp_path / name, kind=kind)
        assert (
            len(store) + sum(store.meta["skipped"].values()) == manifest()["files"][name]["lines"]
        )
        batches = PackedBatches(store, 1024, 4)
        labels = epoch_of(batches)["labels"]
        assert (labels != IGNORE).sum() == store.meta["labels"] - (
            0
            if kind == "pretrain"
            else sum(int(store[i][1][1024:].sum()) for i in range(len(store)))
        )
        assert all(source.startswith(str(sample(name))) for source in batches.sources(0))


def test_the_split_is_a_partition(tmp_path, tok):
    path = write(
        tmp_path / "t.jsonl",
        [{"text": f"document {n}"} for n in range(400)] + [{"text": "document 3"}],
    )
    train, held = (build(path, tok, tmp_path / side, split=side) for side in ("train", "heldout"))
    texts = [{tok.decode(s[i][0][1:-1]) for i in range(len(s))} for s in (train, held)]
    assert (
        not texts[0] & texts[1]
        and len(texts[0] | texts[1]) == 400
        and texts[1]
        == {f"document {n}" for n in range(400) if in_heldout(f"document {n}")}
        != set()
    )
    for store in (train, held):
        assert len(store) + store.meta["other_split"] + store.meta["skipped"]["duplicate"] == 401


def test_dedup_can_be_off(tmp_path, tok):
    path = write(tmp_path / "t.jsonl", [{"text": "same"}] * 3)
    assert (
        len(build(path, tok, tmp_path / "a")) == 1
        and len(build(path, tok, tmp_path / "b", dedup=False)) == 3
    )


def test_a_store_is_made_again_only_when_something_changed(tmp_path, tok):
    path = write(tmp_path / "t.jsonl", [{"text": "one"}])
    stamp = lambda: (tmp_path / "s" / "meta.json").stat().st_ino
    build(path, tok, tmp_path / "s")
    first = stamp()
    build(path, tok, tmp_path / "s")
    assert stamp() == first
    other = Tokenizer.train(["other text"] * 9, 300)
    for change in (
        dict(split="train"),
        dict(dedup=False),
        dict(on_bad_line="skip"),
        dict(max_line_bytes=999),
        dict(tok=other),
    ):
        before = stamp()
        build(path, change.pop("tok", tok), tmp_path / "s", **change)
        assert stamp() != before, change
    # the same size, another time
    write(path, [{"text": "two"}])
    os.utime(path, ns=(1, 1))
    assert tok.decode(build(path, tok, tmp_path / "s")[0][0][1:-1]) == "two"
    chats = write(tmp_path / "c.jsonl", [chat("q", "a")])
    plain = build(chats, tok, tmp_path / "c", kind="sft")[0][0].tolist()
    templated = Tokenizer(tok.json)
    templated.chat_template = CHAT_TEMPLATE.replace("<|im_start|>user", "<|im_start|>USER").replace(
        "'<|im_start|>' + message.role", "'<|im_start|>X'"
    )
    assert build(chats, templated, tmp_path / "c", kind="sft")[0][0].tolist() != plain


def test_a_store_never_replaces_other_files(tmp_path, tok):
    path = write(tmp_path / "t.jsonl", [{"text": "one"}])
    with pytest.raises(ValueError, match="holds other files"):
        build(path, tok, tmp_path)
    assert path.exists()


def test_nothing_left_behind_by_a_failure(tmp_path, tok):
    path = write(tmp_path / "t.jsonl", [{"text": "one"}, "{"])
    with pytest.raises(BadLine):
        build(path, tok, tmp_path / "s")
    with pytest.raises(FileNotFoundError, match="gone.jsonl"):
        build([path, tmp_path / "gone.jsonl"], tok, tmp_path / "s")
    with pytest.raises(ValueError, match="no document is left.*empty text"):
        build(write(tmp_path / "e.jsonl", [{"text": ""}]), tok, tmp_path / "s", on_bad_line="skip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.jsonl", "t.jsonl"]
    with pytest.raises(FileNotFoundError, match="not a token store"):
        TokenStore(tmp_path / "s")


def test_a_cut_store_is_noticed_and_made_again(tmp_path, tok):
    path = write(tmp_path / "t.jsonl", [{"text": "one two three"}])
    whole = build(path, tok, tmp_path / "s")[0][0].tolist()
    (tmp_path / "s" / "tokens.bin").write_bytes(b"\1\0")
    with pytest.raises(ValueError, match="damaged"):
        TokenStore(tmp_path / "s")
    assert build(path, tok, tmp_path / "s")[0][0].tolist() == whole


@pytest.mark.parametrize(
    "kw, message",
    [
        (dict(kind="dpo"), "pretrain or sft"),
        (dict(split="test"), "train, heldout"),
        (dict(on_bad_line="ignore"), "stop or skip"),
    ],
)
def test_build_refuses(tmp_path, tok, kw, message):
    with pytest.raises(ValueError, match=message):
        build(write(tmp_path / "t.jsonl", [{"text": "one"}]), tok, tmp_path / "s", **kw)


def test_samples_are_whole():
    for name, entry in manifest()["files"].items():
        assert file_sha256(sample(name)) == entry["sha256"], name


# ---- other processes
def python(code, *args, **kw):
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=Path(__file__).parents[1],
        **kw,
    )


BUILD = """
import sys
from minimind.tokenizer import Tokenizer
from minimind.data import build_store
print(len(build_store([sys.argv[1]], Tokenizer.from_file(sys.argv[2]), sys.argv[3], progress=False)))
"""


def grow(path, megabytes):
    "A file of real text with a number in front of each document, so that none is a copy."
    texts = [text for _, text in open_texts(sample("pretrain_en.jsonl"))]
    size, n = 0, 0
    with open(path, "w", encoding="utf-8") as f:
        while size < megabytes * 1e6:
            line = json.dumps({"text": f"{n} {texts[n % len(texts)]}"}, ensure_ascii=False) + "\n"
            f.write(line)
            size += len(line.encode())
            n += 1
    return n


def test_a_killed_build_leaves_no_half_store(tmp_path, tok):
    tok.save(tmp_path / "tok")
    grow(tmp_path / "t.jsonl", 8)
    process = python(BUILD, tmp_path / "t.jsonl", tmp_path / "tok", tmp_path / "s")
    half = lambda: [p for p in tmp_path.glob(".s.*.tmp/tokens.bin") if p.stat().st_size > 0]
    while not half():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "s").exists() and half()
    write(tmp_path / "t.jsonl", [{"text": "one"}])
    build(tmp_path / "t.jsonl", tok, tmp_path / "s")
    # it might belong to another process that is still at work …
    assert half()
    for f in [*half()[0].parent.iterdir(), half()[0].parent]:
        os.utime(f, (1, 1))
    write(tmp_path / "t.jsonl", [{"text": "two"}])
    build(tmp_path / "t.jsonl", tok, tmp_path / "s")
    # … until it is clear that it doesn't
    assert not half() and len(TokenStore(tmp_path / "s")) == 1


def test_processes_may_build_the_same_store(tmp_path, tok):
    tok.save(tmp_path / "tok")
    n = grow(tmp_path / "t.jsonl", 1)
    for process in [
        python(BUILD, tmp_path / "t.jsonl", tmp_path / "tok", tmp_path / "s") for _ in range(2)
    ]:
        out, err = process.communicate()
        assert process.returncode == 0 and int(out) == n, err
    assert not list(tmp_path.glob(".s.*"))


EPOCH = """
import sys, threading, psutil
from minimind.tokenizer import Tokenizer
from minimind.data import PackedBatches, build_store
process, peak, done = psutil.Process(), [0], threading.Event()
def watch():                              # the kernel's own maximum would do, but a child inherits its parent's
    while not done.wait(.02): peak[0] = max(peak[0], process.memory_info().rss)
threading.Thread(target=watch, daemon=True).start()
tok = Tokenizer.from_file(sys.argv[1])
for path in sys.argv[2:]:
    batches = PackedBatches(build_store([path], tok, path + ".store", progress=False), 256, 64)
    for step in range(0, batches.steps_per_epoch, 4): batches.at(step)
    print(peak[0], len(batches.store))
done.set()
"""


def test_memory_is_flat(tmp_path, tok):
    """Ten times the file, the same memory: tokenise, pack, and read rows from everywhere in the
    store."""
    tok.save(tmp_path / "tok")
    grow(tmp_path / "a.jsonl", 3)
    documents = grow(tmp_path / "b.jsonl", 30)
    out, err = python(
        EPOCH, tmp_path / "tok", tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    ).communicate()
    assert out.split()[3:] == [str(documents)], err
    small, large = map(int, out.split()[::2])
    # 12 MB are less than the 20 MB of its tokens or the 30 MB of its text
    assert large - small < 12e6, f"{(large - small) / 1e6:.1f} MB more"


SHORT_TRAINING = """
import sys, threading, psutil, time
from pathlib import Path
from minimind.pretrain import PretrainConfig, run
process, peak, done = psutil.Process(), [0], threading.Event()
def watch():
    while not done.wait(.01): peak[0] = max(peak[0], process.memory_info().rss)
threading.Thread(target=watch, daemon=True).start()
start = time.time()
run(PretrainConfig(data=(sys.argv[2],), tokenizer=sys.argv[1], out=sys.argv[2] + ".run", steps=24, batch_size=4, micro_batch_size=4, eval_bytes=2000, device="cpu", on_bad_line="skip"))
done.set()
print(peak[0], time.time() - start)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_gigabyte_trains_in_the_memory_of_a_megabyte(tmp_path, tok, cache):
    """About 1.4 million documents: in memory is their index and the fingerprints of those seen,
    some 60 bytes each, and none of their text."""
    tok.save(tmp_path / "tok")
    grow(tmp_path / "a.jsonl", 1)
    documents = grow(tmp_path / "b.jsonl", 1000)
    with open(tmp_path / "b.jsonl", "a") as f:
        f.write("{broken\n")
    peaks = []
    for name in ("a", "b"):
        out, err = python(
            SHORT_TRAINING, tmp_path / "tok", tmp_path / f"{name}.jsonl"
        ).communicate()
        assert out.strip(), err
        peaks.append(float(out.split()[-2]) / 1e6)
        print(f"{name}: peak {peaks[-1]:.0f} MB, {float(out.split()[-1]):.0f} s")
    store = TokenStore(tmp_path / "b.jsonl.run" / "store")
    assert (
        store.meta["skipped"] == {"broken JSON": 1}
        and len(store) + store.meta["other_split"] == documents
    )
    assert peaks[1] - peaks[0] < 200


# ---- on all cores
def mixed_chats(path, n=400):
    "Good rows, a copy now and then, and rows of each kind that a worker refuses."
    rows = []
    for i in range(n):
        rows.append(chat(f"question {i} " + "why " * (i % 40), f"answer {i}"))
        if i % 31 == 0:
            rows.append(rows[i // 2])  # a copy, perhaps from another stretch
        if i % 53 == 7:
            rows += ["{broken", "", chat("q", ""), chat("\ud800", "a"), {"text": "x"}]
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def bytes_of(store):
    return {f.name: f.read_bytes() for f in sorted(store.path.glob("*.bin"))}


@pytest.fixture
def small_parts(monkeypatch):
    "Stretches of two kilobytes, so that a small file has many."
    real = data._parts
    monkeypatch.setattr(data, "_parts", lambda path: real(path, 2000))


@pytest.mark.parametrize(
    "kw", [dict(), dict(split="train"), dict(split="heldout"), dict(dedup=False)]
)
def test_a_store_does_not_depend_on_the_number_of_processes(tmp_path, tok, small_parts, kw):
    path = mixed_chats(tmp_path / "chats.jsonl")
    more = write(tmp_path / "more.jsonl", [chat(f"more {i}", "yes") for i in range(99)])
    how = dict(kind="sft", on_bad_line="skip", one_in=7) | kw
    one, two = (
        build([path, more, path], tok, tmp_path / f"by{n}", workers=n, **how) for n in (1, 2)
    )
    assert bytes_of(one) == bytes_of(two)
    assert (one.path / "meta.json").read_bytes() == (two.path / "meta.json").read_bytes()
    assert two.meta["skipped"]["broken JSON"] == 16 and len(two) > 40
    # and it is what a reader of one line after another makes
    whole = build([path, more, path], tok, tmp_path / "whole", **how)
    assert bytes_of(whole) == bytes_of(two)
    line = json.loads(Path(path).read_text().splitlines()[int(two.where(9).rpartition(":")[2]) - 1])
    ids, _ = two[9]
    assert line["conversations"][0]["content"] in tok.decode(ids)


def test_the_store_of_chats_is_what_encode_chat_says(tmp_path, tok, small_parts):
    path = mixed_chats(tmp_path / "chats.jsonl")
    store = build(path, tok, tmp_path / "s", kind="sft", on_bad_line="skip", workers=2, dedup=False)
    n, lines = 0, path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            ids, mask = encode_chat(tok, *chat_row(json.loads(line)))
        except ValueError:
            continue
        assert store[n][0].tolist() == ids and store[n][1].tolist() == mask
        assert store.where(n) == f"{path}:{number}"
        n += 1
    assert n == len(store) > 400


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_chat_is_named_whoever_read_it(tmp_path, tok, small_parts, workers):
    rows = [chat(f"question {i} " + "why " * 30, "so") for i in range(100)]
    path = write(tmp_path / "c.jsonl", [*rows[:77], chat("\ud800", "a") and "{", *rows[77:]])
    with pytest.raises(BadLine, match=r"c.jsonl:78: broken JSON"):
        build(path, tok, tmp_path / "s", kind="sft", workers=workers)
    (tmp_path / "z.jsonl").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="z.jsonl is compressed by gzip"):
        build(tmp_path / "z.jsonl", tok, tmp_path / "s", kind="sft", workers=workers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "z.jsonl"]
    assert not workers_of(psutil.Process())


@given(st.lists(st.integers(0, 70), max_size=30), st.integers(1, 90), st.booleans())
def test_stretches_are_whole_lines(sizes, size, ends):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any"
        path.write_bytes(b"\n".join(b"x" * n for n in sizes) + b"\n" * ends)
        text, parts = path.read_bytes(), [*data._parts(path, size)]
    assert b"".join(text[a:b] for a, b in parts) == text
    assert all(b > a for a, b in parts)
    assert all(text[:b].endswith(b"\n") for _, b in parts[:-1])


def test_the_other_side_of_the_split_is_not_encoded(tmp_path, tok, monkeypatch):
    path = write(tmp_path / "c.jsonl", [chat(f"question {i}", "so") for i in range(300)])
    calls = []
    monkeypatch.setattr(data, "encode_chat", lambda *a: calls.append(a) or encode_chat(*a))
    both = [build(path, tok, tmp_path / s, kind="sft", split=s) for s in ("train", "heldout")]
    assert len(calls) == sum(map(len, both)) == 300
    assert [s.meta["other_split"] for s in both] == [len(both[1]), len(both[0])]


def test_workers_pay_for_large_files_only(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_cores", lambda: 6)
    path = tmp_path / "f"
    for megabytes, wanted in ((1, 0), (15, 1), (17, 2), (200, 6)):
        with open(path, "wb") as f:
            f.truncate(megabytes << 20)
        assert data._worker_count([path]) == wanted


# text of every kind, one batch or many
@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_texts_are_encoded_one_by_one_or_many_at_once(tmp_path, tok, monkeypatch, batch):
    real = data._batched
    monkeypatch.setattr(data, "_batched", lambda items: real(items, batch))
    path = sample("pretrain_heldout_zh.jsonl")
    store = build(path, tok, tmp_path / "s", dedup=False)
    for i, (line, text) in enumerate(open_texts(path)):
        assert store[i][0].tolist() == [tok.bos_id, *tok.encode(text), tok.eos_id]
        assert store.where(i) == f"{path}:{line}"
    assert i + 1 == len(store)


BY_TWO = """
import sys
from minimind import data
from minimind.tokenizer import Tokenizer
real = data._parts
data._parts = lambda path: real(path, 20_000)
tok = Tokenizer.from_file(sys.argv[2])
# at the top of a script, without the guard that multiprocessing would need
store = data.build_store([sys.argv[1]], tok, sys.argv[3], kind="sft", progress=False, workers=2)
print(len(store))
"""


def workers_of(process):
    return [
        p for p in psutil.Process(process.pid).children() if "serve_parts" in " ".join(p.cmdline())
    ]


def started(process):
    "The workers, once both are there."
    deadline = time.monotonic() + 60
    while len(workers := workers_of(process)) < 2 or not all(w.num_threads() for w in workers):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return workers


def large_chats(path, n=20_000):
    return write(path, [chat(f"question {i} " + "why " * 90, "so " * 90) for i in range(n)])


def test_a_script_without_a_guard_may_use_workers(tmp_path, tok):
    tok.save(tmp_path / "tok")
    path = large_chats(tmp_path / "c.jsonl", 300)
    out, err = python(BY_TWO, path, tmp_path / "tok", tmp_path / "s").communicate(timeout=120)
    assert out == "300\n" and not err, err


def test_a_killed_worker_is_an_error(tmp_path, tok):
    tok.save(tmp_path / "tok")
    path = large_chats(tmp_path / "c.jsonl")
    process = python(BY_TWO, path, tmp_path / "tok", tmp_path / "s")
    started(process)[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "has ended (exit code -9)" in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "tok"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, tok, number):
    tok.save(tmp_path / "tok")
    path = large_chats(tmp_path / "c.jsonl")
    process = python(BY_TWO, path, tmp_path / "tok", tmp_path / "s", start_new_session=True)
    workers = started(process)
    # Ctrl-C reaches all of them; SIGKILL only the parent
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    _, err = process.communicate(timeout=120)
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive and not (tmp_path / "s").exists()
    if number == signal.SIGINT:  # one traceback, the parent's
        assert err.count("KeyboardInterrupt") == err.count("Traceback") == 1, err


# ---- stores that all runs share
@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(paths, tok, **kw):
    paths = paths if isinstance(paths, list) else [paths]
    return build_store(paths, tok, progress=False, **kw)


def test_a_store_is_known_by_what_it_is_made_of(tmp_path, tok, cache):
    path = write(tmp_path / "t.jsonl", [{"text": f"text {n}"} for n in range(99)])
    first = cached(path, tok)
    assert not first.reused and first.path.parent == cache / "stores"
    again = cached(path, tok)
    assert again.reused and again.path == first.path
    # a copy elsewhere, with times of its own
    (tmp_path / "b").mkdir()
    copy = tmp_path / "b" / "other.jsonl"
    copy.write_bytes(path.read_bytes())
    found = cached(copy, tok)
    assert found.reused and found.path == first.path and found.where(3) == f"{copy}:4"
    others = [
        cached(path, tok, split="train"),
        cached(path, tok, one_in=7),
        cached(path, tok, dedup=False),
        cached(path, Tokenizer.train(["other text"] * 9, 300)),
        cached([path, path], tok),
        cached([path, copy], tok),
    ]
    assert not any(s.reused for s in others)
    assert len({s.path for s in [first, *others]}) == 7
    assert len(others[-2]) == 198 and len(others[-1]) == 99
    # read as plain text it is something else
    (tmp_path / "t.txt").write_bytes(path.read_bytes())
    assert not cached(tmp_path / "t.txt", tok).reused


def test_a_changed_file_is_read_again(tmp_path, tok, cache):
    path = write(tmp_path / "t.jsonl", [{"text": "one"}])
    cached(path, tok)
    write(path, [{"text": "two"}])  # as long
    os.utime(path, ns=(1, 1))
    assert tok.decode(cached(path, tok)[0][0][1:-1]) == "two"
    write(path, [{"text": "one"}])
    os.utime(path, ns=(2, 2))
    assert cached(path, tok).reused


def test_a_file_is_hashed_once(tmp_path, tok, cache, monkeypatch):
    path, read = write(tmp_path / "t.jsonl", [{"text": "one"}]), []
    monkeypatch.setattr(data, "file_sha256", lambda p: read.append(p) or file_sha256(p))
    for dedup in (True, False, True):
        cached(path, tok, dedup=dedup)
    assert read == [path]
    for note in (cache / "files").iterdir():
        note.write_text("{cut")
    assert cached(path, tok).reused and read == [path, path]


def test_a_damaged_store_of_the_cache_is_made_again(tmp_path, tok, cache):
    path = write(tmp_path / "t.jsonl", [{"text": f"text {n}"} for n in range(9)])
    whole = bytes_of(cached(path, tok))
    for name in ("tokens", "offsets", "first", "where"):
        place = cached(path, tok).path
        (place / f"{name}.bin").write_bytes(b"\1")
        again = cached(path, tok)
        assert not again.reused and bytes_of(again) == whole
    (place / "meta.json").write_text("{cut")
    assert not cached(path, tok).reused
    (place / "mask.bin").unlink()
    assert not cached(path, tok).reused and cached(path, tok).reused


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path, tok, cache, monkeypatch):
    path = write(tmp_path / "t.jsonl", [{"text": "one"}])
    real = data._write_store

    def slow(*a, **kw):
        meta = real(*a, **kw)
        write(path, [{"text": "one"}, {"text": "two"}])
        return meta

    monkeypatch.setattr(data, "_write_store", slow)
    with pytest.raises(ValueError, match="t.jsonl was changed while it was read"):
        cached(path, tok)
    assert not [p for p in (cache / "stores").iterdir() if p.is_dir()]


IN_CACHE = """
import sys
from minimind.tokenizer import Tokenizer
from minimind.data import build_store
store = build_store([sys.argv[1]], Tokenizer.from_file(sys.argv[2]), progress=False)
print(len(store), store.reused)
"""


def test_of_several_processes_one_makes_the_store(tmp_path, tok, cache):
    tok.save(tmp_path / "tok")
    n = grow(tmp_path / "t.jsonl", 3)
    processes = [python(IN_CACHE, tmp_path / "t.jsonl", tmp_path / "tok") for _ in range(3)]
    said = sorted(p.communicate()[0].split()[1] for p in processes)
    assert said == ["False", "True", "True"]
    assert len(cached(tmp_path / "t.jsonl", tok)) == n


def test_a_run_refers_to_its_store(tmp_path, tok, cache):
    path = write(tmp_path / "t.jsonl", [{"text": f"text {n}"} for n in range(9)])
    store = run_store([path], tok, tmp_path / "run" / "store", progress=False)
    assert [f.name for f in (tmp_path / "run" / "store").iterdir()] == ["meta.json"]
    by_run = TokenStore(tmp_path / "run" / "store")
    assert bytes_of(by_run) == bytes_of(store) and by_run.where(8) == f"{path}:9"
    # nothing is written again if nothing has changed
    before = (tmp_path / "run" / "store" / "meta.json").stat().st_ino
    assert run_store([path], tok, tmp_path / "run" / "store", progress=False).reused
    assert (tmp_path / "run" / "store" / "meta.json").stat().st_ino == before
    write(path, [{"text": "another"}])
    run_store([path], tok, tmp_path / "run" / "store", progress=False)
    assert len(TokenStore(tmp_path / "run" / "store")) == 1
    clear_cache()
    with pytest.raises(FileNotFoundError, match="are gone from the cache"):
        TokenStore(tmp_path / "run" / "store")
    # but the folder says how to make them again
    assert len(open_store(tmp_path / "run" / "store", tok)) == 1
    assert len(TokenStore(tmp_path / "run" / "store")) == 1
    clear_cache()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="t.jsonl: no such file"):
        open_store(tmp_path / "run" / "store", tok)
    with pytest.raises(FileNotFoundError, match="not a token store"):
        open_store(tmp_path / "nowhere", tok)


def test_chats_too_are_made_again(tmp_path, tok, cache):
    path = write(tmp_path / "c.jsonl", [chat(f"question {i}", "so") for i in range(99)])
    how = dict(kind="sft", split="heldout", one_in=9, dedup=False, progress=False)
    made = bytes_of(run_store([path], tok, tmp_path / "run" / "store", **how))
    clear_cache()
    assert bytes_of(open_store(tmp_path / "run" / "store", tok)) == made


def test_a_run_outlives_a_cache_that_is_emptied(tmp_path, tok, cache):
    path = write(tmp_path / "t.jsonl", [{"text": f"text {n}"} for n in range(50)])
    batches = PackedBatches(cached(path, tok), 64, 4)
    before = batches.at(0)["input_ids"]
    assert clear_cache()[0] == 1 and not [p for p in (cache / "stores").iterdir() if p.is_dir()]
    assert torch.equal(batches.at(0)["input_ids"], before) and batches.at(1)


def test_the_cache_can_be_listed_and_emptied(tmp_path, tok, cache):
    paths = [write(tmp_path / f"{n}.jsonl", [{"text": f"text {n}"}]) for n in range(3)]
    stores = [cached(path, tok) for path in paths]
    (cache / "mine.txt").write_text("not ours")
    os.utime(stores[0].path / "meta.json", (1, time.time() - 9 * 86_400))
    os.utime(stores[1].path / "meta.json", (1, time.time() - 5 * 86_400))
    listed = cached_stores()
    assert [s.path for s in listed] == [s.path for s in reversed(stores)]
    assert all(s.size == sum(f.stat().st_size for f in s.path.iterdir()) for s in listed)
    cached(paths[0], tok)  # its use is noted
    assert clear_cache(unused_for=4) == (1, listed[1].size)
    assert [s.path for s in cached_stores()] == [stores[0].path, stores[2].path]
    assert clear_cache()[0] == 2 and cached_stores() == []
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == ["mine.txt"]


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here" == run_cache(tmp_path / "run")
    monkeypatch.delenv("MINIMIND_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / "xdg" / "minimind"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "minimind"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == tmp_path / "Library" / "Caches" / "minimind"
    # several machines have several caches, and one folder of the run
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert run_cache(tmp_path / "run") == cache_dir()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert run_cache(tmp_path / "run") == tmp_path / "run" / "cache"
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "shared"))
    assert run_cache(tmp_path / "run") == tmp_path / "shared"


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path, tok):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "file" / "cache"))
    assert run_cache(tmp_path / "run") == tmp_path / "run" / "cache"
    path = write(tmp_path / "t.jsonl", [{"text": "one"}])
    store = run_store([path], tok, tmp_path / "run" / "store", progress=False)
    assert store.path.parent == tmp_path / "run" / "cache" / "stores"


def test_a_tokenizer_is_trained_once(tmp_path, cache, monkeypatch):
    path = write(
        tmp_path / "t.jsonl", [{"text": f"a text of words, number {n}"} for n in range(90)]
    )
    trained = []
    real = Tokenizer.train.__func__
    monkeypatch.setattr(
        Tokenizer, "train", classmethod(lambda *a, **kw: trained.append(a) or real(*a, **kw))
    )
    first = fitted_tokenizer([path], 300)
    assert fitted_tokenizer([path], 300).json == first.json and len(trained) == 1
    assert fitted_tokenizer([path], 310).vocab_size > first.vocab_size
    fitted_tokenizer([path], 300, split="train", one_in=2)
    assert len(trained) == 3
    for file in (cache / "tokenizers").glob("*.json"):
        file.write_text("{cut")
    assert fitted_tokenizer([path], 300).json == first.json and len(trained) == 4


def test_runs_on_the_same_file_tokenise_it_once(tmp_path, cache, monkeypatch, capsys):
    (tmp_path / "t.txt").write_text("Some text, for some model, and a little more.\n\n" * 400)
    written, real = [], data._write_store
    monkeypatch.setattr(data, "_write_store", lambda *a: written.append(a) or real(*a))
    how = dict(steps=1, seq_len=64, batch_size=1, eval_bytes=0, vocab_size=300, device="cpu")
    said = []
    for out in ("a", "b"):
        run(PretrainConfig(data=str(tmp_path / "t.txt"), out=str(tmp_path / out), **how))
        said.append(capsys.readouterr().out)
    assert len(written) == 1 and ["from the cache" in out for out in said] == [False, True]
    assert file_sha256(tmp_path / "a/tokenizer.json") == file_sha256(tmp_path / "b/tokenizer.json")


RANKS = """
import os, sys
from minimind import cli, dist, tokenizer
real = tokenizer.Tokenizer.train.__func__
def train(*a, **kw):
    print("trained by", os.environ["RANK"], file=sys.stderr)
    return real(*a, **kw)
tokenizer.Tokenizer.train = classmethod(train)
dist.leave(cli.main(sys.argv[1:]))
"""


def test_of_all_ranks_the_first_trains_the_tokenizer(tmp_path, cache):
    (tmp_path / "t.txt").write_text("Some text, for some model, and a little more.\n\n" * 400)
    (tmp_path / "ranks.py").write_text(RANKS)
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    words = (
        f"{tmp_path}/ranks.py pretrain --data {tmp_path}/t.txt --out {tmp_path}/run --steps 2 "
        "--vocab-size 300 --seq-len 64 --device cpu --eval-bytes 0"
    )
    done = subprocess.run(
        [sys.executable, *launch, *words.split()],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert re.findall("trained by .", done.stderr) == ["trained by 0"]


# ---- order of rows
def test_epoch_rows_visit_every_row_once_an_epoch():
    order = EpochRows(10, 4, seed=3)
    epochs = [np.concatenate([order.at(3 * e + i) for i in range(3)]) for e in range(3)]
    assert order.steps_per_epoch == 3 and len(order.at(2)) == 2
    assert all(sorted(e) == list(range(10)) for e in epochs) and any(
        (a != b).any() for a, b in zip(epochs, epochs[1:])
    )
    # a pure function of seed and step
    assert (EpochRows(10, 4, seed=3).at(7) == order.at(7)).all()
    with pytest.raises(ValueError, match="batch_size=0"):
        EpochRows(10, 0)


# the others need downloads
@pytest.mark.parametrize("builder", ["skills", "talks", "dpo", "lora", "examples"])
def test_generated_samples_are_what_their_builder_makes(tmp_path, builder):
    "Who changes a builder has to commit what it makes now."
    made = {
        name
        for name, e in manifest()["files"].items()
        if e["builder"].endswith(f"--only {builder}")
    }
    shutil.copytree(
        data_dir(), tmp_path / "data_samples", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in made:
        (tmp_path / "data_samples" / name).unlink()
    program = tmp_path / "data_samples" / "builders" / "build.py"
    subprocess.run(
        [sys.executable, str(program), "--only", builder],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(minimind.__file__).parents[1]), "PYTHONUTF8": "1"},
    )
    for name in made:
        assert (tmp_path / "data_samples" / name).read_bytes() == (
            data_dir() / name
        ).read_bytes(), name
