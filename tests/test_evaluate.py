"Measures: each against its definition, computed in the plainest way."

import json
import lzma
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from minimind import evaluate as ev
from minimind.chat import encode_chat
from minimind.core import sample, seed_everything
from minimind.data import build_store
from minimind.hub import save_pretrained
from minimind.model import MiniMind, ModelConfig
from minimind.tokenizer import Tokenizer

TEXTS = [
    "The cat sat on the mat. 猫坐在垫子上。",
    "A dog ran over the hill and far away, and the cat sat on.",
    "Ünïcödé 👋 text",
    "short",
    "the " * 60,
]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(TEXTS * 3, 320)


@pytest.fixture(scope="module")
def model(tok):  # untrained, but far from uniform: a wrong context or position changes every number
    seed_everything(1)
    return MiniMind(
        ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            head_dim=16,
            vocab_size=tok.vocab_size,
            initializer_range=0.2,
            max_position_embeddings=512,
        )
    ).eval()


@torch.no_grad()
def logprob(model, context, token):  # log p(token | context), by the definition
    return float(model(torch.tensor([context]))[0, -1].log_softmax(-1)[token])


# ---- bits per byte


@given(n=st.integers(1, 60), seq_len=st.integers(2, 20), data=st.data())
def test_windows_score_each_token_once(n, seq_len, data):
    stride = data.draw(st.integers(1, seq_len - 1))
    scored = []
    for ids, labels in ev.score_windows(range(n), seq_len, stride):
        # the shift drops a window's first label
        assert 1 <= len(ids) == len(labels) <= seq_len and labels[0] == ev.IGNORE
        assert all(label in (ev.IGNORE, i) for i, label in zip(ids, labels))
        scored += [label for label in labels if label != ev.IGNORE]
    assert scored == list(range(1, n))


@pytest.mark.parametrize("seq_len, stride", [(8, 8), (8, 9), (8, 0), (8, -1), (1, 1)])
def test_a_stride_that_would_miss_tokens_is_refused(seq_len, stride):
    with pytest.raises(ValueError, match=f"stride={stride}"):
        list(ev.score_windows(range(30), seq_len, stride))


@pytest.mark.parametrize("seq_len, stride", [(16, None), (16, 1), (16, 15), (7, 3), (256, None)])
def test_bits_per_byte_is_its_definition(model, tok, seq_len, stride):
    step, nats, tokens = stride or seq_len // 2, 0.0, 0
    for text in TEXTS:
        ids = [tok.bos_id, *tok.encode(text)]
        for t in range(1, len(ids)):
            # of the first window that reaches t
            start = step * max(0, -(-(t - seq_len + 1) // step))
            nats -= logprob(model, ids[start:t], ids[t])
            tokens += 1
    size = len("".join(TEXTS).encode())
    got = ev.bits_per_byte(model, tok, TEXTS, seq_len, stride)
    assert got["tokens"] == tokens and got["bytes"] == size
    # float32 sums
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert got["loss"] == pytest.approx(nats / tokens, rel=1e-5) and got[
        "perplexity"
    ] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_bits_per_byte_depends_on_the_texts_only(model, tok):
    want = ev.bits_per_byte(model, tok, TEXTS, 16)
    for texts, batch_size in ((TEXTS[::-1], 1), (iter(TEXTS), 3), ([*TEXTS, ""], 1000)):
        got = ev.bits_per_byte(model, tok, texts, 16, batch_size=batch_size)
        assert got == pytest.approx(want, rel=1e-5)
    assert not any(p.grad is not None for p in model.parameters())


def test_bits_per_byte_of_nothing(model, tok):
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="nothing to predict"):
            ev.bits_per_byte(model, tok, texts)


def test_blind_model_needs_the_bits_of_a_token(tok):
    model = MiniMind(
        ModelConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            intermediate_size=8,
            head_dim=8,
            vocab_size=tok.vocab_size,
            initializer_range=0.0,
        )
    )
    assert ev.bits_per_byte(model, tok, TEXTS)["loss"] == pytest.approx(
        math.log(tok.vocab_size), rel=1e-6
    )


def test_a_tokenizer_without_bos_starts_with_its_end_of_text(tok):
    class NoBos:
        bos_id, eos_id, encode, token_to_id = (
            None,
            7,
            staticmethod(tok.encode),
            staticmethod({"<|endoftext|>": 5}.get),
        )

    class Other(NoBos):
        token_to_id = staticmethod({}.get)

    class Neither(Other):
        eos_id = None

    assert [ev.text_ids(t, "a")[0] for t in (tok, NoBos, Other)] == [tok.bos_id, 5, 7]
    with pytest.raises(ValueError, match="neither bos nor eos"):
        ev.text_ids(Neither, "a")


# ---- baselines


def naive_bigram(tokens, V):
    "Witten and Bell's method C with dictionaries."
    pairs, N = Counter(zip(tokens, tokens[1:])), len(tokens)

    def unigram(t):
        return (tokens.count(t) + 1) / (N + V)

    def bigram(s, t):
        after = {b: n for (a, b), n in pairs.items() if a == s}
        if not after:
            return unigram(t)
        return (after.get(t, 0) + len(after) * unigram(t)) / (sum(after.values()) + len(after))

    return unigram, bigram


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40))
def test_bigram(tokens):
    V = 7  # 5 and 6 never occur
    model, (unigram, bigram) = (
        ev.Bigram(np.array(tokens, dtype=np.uint16), V),
        naive_bigram(tokens, V),
    )
    assert model.unigram == pytest.approx([unigram(t) for t in range(V)])
    table = np.array([model(np.full(V, s), np.arange(V)) for s in range(V)])
    assert table == pytest.approx(np.array([[bigram(s, t) for t in range(V)] for s in range(V)]))
    assert (
        table.sum(-1) == pytest.approx(np.ones(V))
        and model.unigram.sum() == pytest.approx(1)
        and (table > 0).all()
    )


def test_ngram_bits_per_byte(tok, tmp_path):
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8"
    )
    store = build_store([tmp_path / "t.jsonl"], tok, tmp_path / "store", progress=False)
    unigram, bigram = naive_bigram(list(map(int, store.tokens)), tok.vocab_size)
    texts = ["The dog sat.", "zzz 火"]
    ids = [[tok.bos_id, *tok.encode(t)] for t in texts]
    size = len("".join(texts).encode())
    got = ev.ngram_bits_per_byte(store, tok, texts)
    assert got["unigram"] == pytest.approx(
        -sum(math.log2(unigram(t)) for row in ids for t in row[1:]) / size
    )
    assert got["bigram"] == pytest.approx(
        -sum(math.log2(bigram(s, t)) for row in ids for s, t in zip(row, row[1:])) / size
    )
    assert ev.ngram_bits_per_byte(store, tok, texts, max_tokens=5) != got
    json.dumps(got)


def test_xz():
    text = " ".join(f"line {i}" for i in range(500))
    assert ev.xz_bits_per_byte([text]) == 8 * len(
        lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    ) / len(text)
    assert ev.xz_bits_per_byte([text], first=[text]) < ev.xz_bits_per_byte([text]) / 4
    with pytest.raises(ValueError, match="no text"):
        ev.xz_bits_per_byte([])


# ---- shares


def test_wilson_by_hand():
    # 8 of 10: d = 1 + 3.8416/10 = 1.38416; middle = (.8 + .19208)/d; half = 1.96·sqrt(.016 +
    # .009604)/d
    middle, half = 0.99208 / 1.38416, 1.96 * math.sqrt(0.025604) / 1.38416
    assert ev.wilson(8, 10) == pytest.approx((middle - half, middle + half), abs=1e-9)
    # as the literature rounds it
    assert ev.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert ev.wilson(0, 0) == (0, 1) and ev.wilson(0, 5)[0] == 0 and ev.wilson(5, 5)[1] == 1
    for right, n in ((6, 5), (-1, 5)):
        with pytest.raises(ValueError):
            ev.wilson(right, n)


@given(n=st.integers(1, 2000), data=st.data())
def test_wilson_holds_the_share(n, data):
    right = data.draw(st.integers(0, n))
    low, high = ev.wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1 and low < high
    assert ev.wilson(n - right, n) == pytest.approx((1 - high, 1 - low))
    wide = ev.wilson(right, n, z=2.58)
    assert wide[0] <= low and high <= wide[1]


# ---- choices

ITEMS = [
    dict(
        question="The cat sat on",
        choices=[" the mat", " a", " over the hill and far away"],
        answer=0,
    ),
    dict(question="猫", choices=["坐", "垫子上"], answer=1, context="The dog"),
    dict(
        question="the the the the the the the the",
        choices=[" the", " cat sat", "x", " dog ran over"],
        answer=3,
    ),
]


def naive_choices(model, tok, item, as_chat):
    if as_chat:
        head = encode_chat(
            tok, [{"role": "user", "content": item["question"]}], add_generation_prompt=True
        )[0]
    else:
        head = [tok.bos_id, *tok.encode(item.get("context", item["question"]))]

    def score(choice):
        ids = tok.encode(choice)
        return sum(logprob(model, head + ids[:t], ids[t]) for t in range(len(ids)))

    return [score(c) for c in item["choices"]]


@pytest.mark.parametrize("as_chat", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_choices_are_scored_by_their_probability(model, tok, as_chat, batch_size):
    got = ev.choice_logprobs(model, tok, ITEMS, as_chat, batch_size)
    for row, item in zip(got, ITEMS):
        assert row == pytest.approx(naive_choices(model, tok, item, as_chat), rel=1e-4)


def test_multiple_choice(model, tok):
    def best(item, per_byte):
        scores = [
            s / len(c.encode()) if per_byte else s
            for s, c in zip(naive_choices(model, tok, item, False), item["choices"])
        ]
        return scores.index(max(scores))

    for per_byte in (True, False):
        right = [item | {"answer": best(item, per_byte)} for item in ITEMS]
        wrong = [
            item | {"answer": (best(item, per_byte) + 1) % len(item["choices"])} for item in ITEMS
        ]
        got = ev.multiple_choice(model, tok, iter(right), per_byte=per_byte)
        assert (
            got["accuracy"] == 1 and got["n"] == 3 and (got["low"], got["high"]) == ev.wilson(3, 3)
        )
        assert got["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
        assert ev.multiple_choice(model, tok, wrong, per_byte=per_byte)["accuracy"] == 0
    assert [best(i, True) for i in ITEMS] != [best(i, False) for i in ITEMS], (
        "these items should tell the two scores apart"
    )


def test_length_is_counted_in_bytes(model, tok, monkeypatch):
    monkeypatch.setattr(ev, "choice_logprobs", lambda *args: [[-6.0, -4.0]])
    # -1 and -2 a byte, -3 and -2 a character
    item = dict(question="?", choices=["猫猫", "ab"], answer=0)
    assert (
        ev.multiple_choice(model, tok, [item])["accuracy"] == 1
        and ev.multiple_choice(model, tok, [item], per_byte=False)["accuracy"] == 0
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(question=3), "question"),
        (dict(choices=["a"]), "two texts"),
        (dict(choices=["a", ""]), "empty"),
        (dict(choices="ab"), "list"),
        (dict(answer=2), "0 to 1"),
        (dict(answer=-1), "0 to 1"),
        (dict(answer="a"), "'a'"),
        (dict(answer=True), "True"),
    ],
)
def test_malformed_items(model, tok, change, says):
    with pytest.raises(ValueError, match=says):
        ev.multiple_choice(model, tok, [dict(question="q", choices=["a", "b"], answer=0) | change])


def test_no_items(model, tok):
    with pytest.raises(ValueError, match="no items"):
        ev.multiple_choice(model, tok, [])
    with pytest.raises(ValueError, match="no questions"):
        ev.exact_match(model, tok, [])


# ---- answers


@pytest.mark.parametrize(
    "reply, answer, right",
    [
        ("72", "72", True),
        ("7+5=12, 2+4+1=7. 27+45=72", "72", True),
        ("27+45=72.", "72", True),
        ("答案是７２。", "72", True),
        ("072", "72", True),
        ("72", "072", True),
        ("72 or 71", "72", False),
        ("", "72", False),
        ("", "0", False),
        ("none", "0", False),
        ("0", "0", True),
        ("000", "0", True),
        ("-3", "3", False),
        ("3", "-3", False),
        ("is -3", "-3", True),
        ("1−4=−3", "-3", True),
        ("7-4=3", "3", True),
        ("5 - 2 = 3", "3", True),
        ("9-6", "6", True),
        ("2.5", "5", False),
        ("2.5", "2", False),
        ("72.0", "72", False),
        ("The answer is Friday.", "friday", True),
        ("Monday, Tuesday. The answer is Tuesday", "Tuesday", True),
        ("Friday", "Monday", False),
        ("It is Friday, I think", "friday", False),
        ("3 , 17, 42", "3,17,42", True),
        ("3、17、42。", "3, 17, 42", True),
        ("3, 42, 17", "3,17,42", False),
        ("7是奇数，所以7是奇数。", "奇数", True),
        ("k：3", "3", True),
        ("a b c", "a b c", True),
        ("a  b c!", "A b c", True),
        ("12:30", "12:30", True),
        ("this is it", "this is it", True),
        ("", "yes", False),
        ("yes", "", False),
    ],
)
def test_is_right(reply, answer, right):
    assert ev.is_right(reply, answer) is right


@given(st.text())
def test_a_text_is_its_own_answer(text):
    assert ev.is_right(text, text)


@given(st.text(alphabet="ab .,:=是-", max_size=20), st.integers(-999, 9999))
def test_no_number_is_no_number(text, n):
    assert not ev.is_right(text, str(n))


@pytest.mark.parametrize(
    "name",
    [
        "sft_skills.jsonl",
        "sft_skills_heldout.jsonl",
        "sft_chat_en_heldout.jsonl",
        "sft_chat_zh_heldout.jsonl",
    ],
)
def test_the_shipped_references_are_right(name):
    for line in sample(name).read_text(encoding="utf-8").splitlines():
        row = ev.check_question(json.loads(line))
        assert ev.answers_row(row["conversations"][-1]["content"], row), row


def talk(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]


def test_answers_come_in_order(model, tok):
    conversations = [
        talk(q)
        for q in ("The cat", "a much longer question about the dog and the cat", "x", "The cat")
    ]
    got = ev.answers(model, tok, conversations, max_new_tokens=6)
    assert (
        got == [ev.answers(model, tok, [c], max_new_tokens=6)[0] for c in conversations]
        and got[0] == got[3]
        and len(set(got)) > 1
    )


def test_end_tokens_are_no_part_of_an_answer(model, tok, monkeypatch):
    monkeypatch.setattr(
        ev,
        "generate",
        lambda model, prompts, n, **options: [[*tok.encode("Yes."), tok.eos_id] for _ in prompts],
    )
    assert ev.answers(model, tok, [talk("Is it?")] * 2) == ["Yes.", "Yes."]


def test_exact_match_asks_without_the_reference(model, tok, monkeypatch):
    asked = []

    def answers(model, tokenizer, conversations, max_new_tokens):
        asked.extend(conversations)
        return ["2", "3", "The cat is MiniMind", "5"]

    monkeypatch.setattr(ev, "answers", answers)
    rows = [
        dict(conversations=talk("1+1?", "1+1=2"), answer="2", skill="add"),
        dict(messages=talk("2+2?"), answer="4", skill="add"),
        dict(
            conversations=talk("Who?", "I am MiniMind."), must_contain=["not chatgpt", "minimind"]
        ),
        dict(conversations=talk("a", "b", "c?", "d"), answer="5", skill="odd"),
    ]
    got = ev.exact_match(model, tok, rows)
    assert asked == [talk("1+1?"), talk("2+2?"), talk("Who?"), talk("a", "b", "c?")]
    assert (
        got["accuracy"] == 3 / 4
        and got["skills"] == {"add": (1, 2), "all": (1, 1), "odd": (1, 1)}
        and got["n"] == 4
        and (got["low"], got["high"]) == ev.wilson(3, 4)
    )
    assert got["replies"][3] == "5" and not ev.answers_row("No idea.", rows[2])


@pytest.mark.parametrize(
    "row, says",
    [
        ({}, "list of messages"),
        (dict(conversations=talk("q", "a")), "answer"),
        (dict(conversations=talk("q", "a"), answer=3), "answer"),
        (dict(conversations=talk("q", "a"), must_contain=[]), "must_contain"),
    ],
)
def test_malformed_questions(model, tok, row, says):
    with pytest.raises(ValueError, match=says):
        ev.exact_match(model, tok, [row])


# ---- conversations
def test_a_conversation_goes_on_with_what_the_model_said(model, tok, monkeypatch):
    asked = []

    def answers(model, tokenizer, conversations, max_new_tokens, **sampling):
        asked.append(([list(c) for c in conversations], sampling))
        return [f"{c[-1]['content']}={len(c)}" for c in conversations]

    monkeypatch.setattr(ev, "answers", answers)
    system = dict(role="system", content="Be brief.")
    long = [system, *talk("a", "the reference", "b", "another", "c")]
    got = ev.converse(model, tok, [long, talk("d"), []], 9, seed=5, temperature=0.3)
    assert got == [["a=2", "b=4", "c=6"], ["d=1"], []]
    assert [how for _, how in asked] == [dict(seed=5 + i, temperature=0.3) for i in range(3)]
    assert asked[0][0] == [[system, *talk("a")], talk("d")]
    assert asked[2][0] == [[system, *talk("a", "a=2", "b", "b=4", "c")]]
    assert long[2]["content"] == "the reference" and len(long) == 6


def test_conversations_are_counted_by_turn(model, tok, monkeypatch):
    monkeypatch.setattr(ev, "answers", lambda m, t, c, n, **how: ["It is 4, Tom."] * len(c))
    rows = [
        dict(conversations=talk("2+2?", "4", "And who?"), answers=["4", ["ann", "tom"]]),
        dict(conversations=talk("1+1?"), answers=["2"]),
        dict(conversations=talk("a?", "b", "c?", "d", "e?"), answers=["x", ["tom"], ["it is"]]),
    ]
    got = ev.conversation_accuracy(model, tok, rows)
    assert got["turns"] == [(1, 3), (2, 2), (1, 1)] and got["n"] == 6
    assert got["accuracy"] == 4 / 6 and (got["low"], got["high"]) == ev.wilson(4, 6)
    assert [len(said) for said in got["replies"]] == [2, 1, 3]


def test_a_conversation_is_greedy_unless_asked(model, tok):
    talks = [talk("The cat", "…", "and the dog"), talk("x")]
    greedy = ev.converse(model, tok, talks, 5)
    assert greedy == ev.converse(model, tok, talks, 5, seed=1) == ev.converse(model, tok, talks, 5)
    hot = [ev.converse(model, tok, talks, 5, seed=seed, temperature=5.0) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize(
    "answers, says",
    [
        (None, r"one for each question of the user.s \(1"),
        (["4", "5"], "one for each question"),
        ([[]], "none empty"),
        ([4], "none empty"),
        ([["four", ""]], "none empty"),
    ],
)
def test_a_malformed_conversation_is_named(model, tok, answers, says):
    row = dict(conversations=talk("2+2?", "4"), answers=answers)
    with pytest.raises(ValueError, match=says):
        ev.conversation_accuracy(model, tok, [row])
    with pytest.raises(ValueError, match="no conversations"):
        ev.conversation_accuracy(model, tok, [])


def test_files_of_conversations_are_measured(model, tok, tmp_path):
    rows = [dict(conversations=talk("2+2?", "4", "3+3?"), answers=["4", "6"])] * 2
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    got = ev.measure_conversations(model, tok, [path], max_new_tokens=4)
    assert got == {"talks.jsonl": ev.conversation_accuracy(model, tok, rows, 4)}
    [_, row] = ev.measurement_rows({}, {}, {}, got)
    assert row[:2] == ["talks.jsonl", "right in talks"] and "0/2  0/2" in row[3]


def shipped(name):
    return [json.loads(line) for line in sample(name).read_text(encoding="utf-8").splitlines()]


def lines_of_the_user(rows):
    return {m["content"] for r in rows for m in r["conversations"] if m["role"] == "user"}


@pytest.mark.parametrize("name", ["sft_talks_heldout.jsonl", "first_panel.jsonl"])
def test_the_shipped_conversations_are_answered_right(name):
    for row in map(ev.check_talk, shipped(name)):
        replies = [m["content"] for m in row["conversations"] if m["role"] == "assistant"]
        for reply, answer in zip(replies, row["answers"]):
            key = "must_contain" if isinstance(answer, list) else "answer"
            assert ev.answers_row(reply, {key: answer}), (reply, answer)


def test_no_held_out_conversation_is_trained_on():
    from minimind.sft import CHAT_SAMPLES

    trained = lines_of_the_user(row for name in set(CHAT_SAMPLES[0]) for row in shipped(name))
    talks, panel = shipped("sft_talks_heldout.jsonl"), shipped("first_panel.jsonl")
    assert not trained & lines_of_the_user(talks)
    assert len(talks) == 40 and all(len(row["answers"]) == 3 for row in talks)
    problems = {p for row in talks for p in row["problems"]}
    assert not problems & {row["problem"] for row in shipped("sft_skills.jsonl")}
    asked = [
        (m["content"], known)
        for row in panel
        for m, known in zip(
            [m for m in row["conversations"] if m["role"] == "user"], row["trained"]
        )
    ]
    assert len(asked) == 60 and all(known == (text in trained) for text, known in asked)
    assert sum(known for _, known in asked) <= 15


# ---- slips of the caller
def test_a_single_text_is_one_document(tok, model):
    text = "A king and his hundred men."
    assert ev.bits_per_byte(model, tok, text) == ev.bits_per_byte(model, tok, [text])
    assert ev.xz_bits_per_byte(text) == ev.xz_bits_per_byte([text])


def test_a_broken_model_has_a_perplexity_all_the_same(tok, model):
    import copy

    wild = copy.deepcopy(model)
    with torch.no_grad():
        wild.model.norm.weight.mul_(1e5)
    assert ev.bits_per_byte(wild, tok, ["some text"])["perplexity"] > 1e300


def test_items_may_come_from_a_generator(tok, model):
    items = [{"question": "Is it?", "choices": ["yes", "no"], "answer": 0}] * 2
    assert (
        ev.choice_logprobs(model, tok, iter(items)) == ev.choice_logprobs(model, tok, items) != []
    )


@pytest.mark.parametrize(
    "row, message",
    [
        ({"must_contain": [5]}, "must_contain"),
        ({"must_contain": [""]}, "none of them empty"),
        ({"answer": " "}, "none of them empty"),
        ({"answer": "1", "skill": 3}, "skill is not a string: 3"),
    ],
)
def test_a_malformed_question_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        ev.check_question({"conversations": [{"role": "user", "content": "?"}], **row})


@pytest.mark.parametrize(
    "reply, answer, right",
    [
        ("It is 1,234", "1234", True),
        ("It is 1,234", "234", False),
        ("12,345,678.", "12345678", True),
        ("I count 9, 234", "234", True),
        ("sorted: 3,17,42", "3,17,42", True),
    ],
)
def test_thousands(reply, answer, right):
    assert ev.is_right(reply, answer) == right


def test_files_are_measured_by_name(tok, model, tmp_path):
    rows = {
        "texts": [{"text": "It was a dark night."}, {"text": "The sun rose."}],
        "choices": [dict(question="It was", choices=[" a", " night"], answer=0)] * 3,
        "questions": [
            {"conversations": [{"role": "user", "content": "2+2?"}], "answer": "4", "skill": skill}
            for skill in ("add", "add", "guess")
        ],
    }
    files = {}
    for name, some in rows.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in some))
    copy = tmp_path / "deep" / "texts.jsonl"
    copy.parent.mkdir()
    copy.write_text(files["texts"].read_text())
    store = build_store([copy], tok, tmp_path / "store", progress=False)
    texts, choices, questions = ev.measure_files(
        model,
        tok,
        [files["texts"], copy],
        [files["choices"]],
        [files["questions"]],
        seq_len=32,
        as_chat=False,
        store=store,
    )
    # two files of one name go by their paths
    assert list(texts) == [str(files["texts"]), str(copy)]
    documents = [row["text"] for row in rows["texts"]]
    assert texts[str(copy)] == (
        ev.bits_per_byte(model, tok, documents, 32)
        | {"xz": ev.xz_bits_per_byte(documents)}
        | ev.ngram_bits_per_byte(store, tok, documents)
    )
    assert choices == {"choices.jsonl": ev.multiple_choice(model, tok, rows["choices"])}
    assert questions == {"questions.jsonl": ev.exact_match(model, tok, rows["questions"])}
    head, *table = ev.measurement_rows(texts, choices, questions)
    assert head == ["file", "measure", "value", "beside"] and all(len(row) == 4 for row in table)
    assert [row[1].strip() for row in table] == [
        "bits per byte",
        "bits per byte",
        "right choices",
        "right answers",
        "add",
        "guess",
    ]
    assert "bigram" in table[0][3] and "xz" in table[0][3] and table[2][3] == "chance 50%"
    assert ev.measure_files(model, tok) == ({}, {}, {}) and ev.measurement_rows({}, {}, {}) == [
        head
    ]


# ---- several processes measure together

# what each process runs: it measures, and counts the tokens that its model read meanwhile
DRIVER = """
import json, sys
from pathlib import Path
import torch
from minimind import evaluate as ev
from minimind.dist import leave, process_group, main_process_done, rank_and_size
from minimind.generate import ModelRunner
from minimind.hub import load_pretrained
folder = Path(sys.argv[1])
texts, rows = json.loads((folder / "asked.json").read_text())
model, tokenizer = load_pretrained(folder)
read = []
hidden = model.hidden
def counted(input_ids, *args, **kw):
    read.append(input_ids.numel())
    return hidden(input_ids, *args, **kw)
model.hidden = counted
class Counted(ModelRunner):
    def __call__(self, singles, pieces):
        read.append(sum(len(piece.ids) for piece in (*singles, *pieces)))
        return super().__call__(singles, pieces)
sys.modules["minimind.generate"].ModelRunner = Counted
with process_group(torch.device("cpu")):
    main_process_done()
    rank, size = rank_and_size()
    out = dict(bits=ev.bits_per_byte(model, tokenizer, texts, seq_len=16, batch_size=2))
    out["read_for_bits"] = sum(read)
    del read[:]
    out["asked"] = ev.exact_match(model, tokenizer, rows, max_new_tokens=5)
    out["read_for_answers"] = sum(read)
    try: ev.share_rows(lambda rows: [1 / (rank - 1) for _ in rows], range(4))
    except ZeroDivisionError as e: out["failed"] = str(e)
    out["fewer"] = ev.share_rows(lambda rows: [row + 1 for row in rows], [1])
    (folder / f"{rank}-of-{size}.json").write_text(json.dumps(out))
leave(0)
"""


@pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="needs gloo and torchrun",
)
def test_two_processes_measure_as_one_and_share_the_work(tok, model, tmp_path):
    save_pretrained(model, tok, tmp_path)
    questions = [
        dict(conversations=talk(f"What is {a} + {a}?"), answer=str(2 * a)) for a in range(7)
    ]
    (tmp_path / "asked.json").write_text(json.dumps([TEXTS, questions]))
    (tmp_path / "driver.py").write_text(DRIVER)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ev.__file__).parents[1])}
    results = {}
    for size in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(size), str(tmp_path / "driver.py"), str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-5000:]
        files = [tmp_path / f"{rank}-of-{size}.json" for rank in range(size)]
        results[size] = [json.loads(f.read_text()) for f in files]
    [alone], both = results[1], results[2]
    # to the last bit: the same batches, added up in the same order
    assert all(r["bits"] == alone["bits"] == both[0]["bits"] for r in both)
    assert alone["bits"] == ev.bits_per_byte(model, tok, TEXTS, seq_len=16, batch_size=2)
    # greedy answers are those of each question alone
    assert all(r["asked"] == alone["asked"] for r in both)
    for work in ("read_for_bits", "read_for_answers"):
        shares = [r[work] for r in both]
        assert max(shares) < 0.75 * alone[work] and sum(shares) < 1.3 * alone[work], work
    # what fails in one fails in all, and a row less than there are processes is no trouble
    assert all(r["failed"] == "division by zero" and r["fewer"] == [2] for r in both)
