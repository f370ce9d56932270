"""The clients of the engine against Hugging Face's generation, and their promises: a batch is each
row alone, seeds repeat, streams show whole characters, bad requests say why."""

import dataclasses
import inspect
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st

from minimind.chat import encode_chat
from minimind.generate import (
    Engine,
    Request,
    Scheduler,
    TextDecoder,
    chat,
    complete,
    generate,
    stop_ids,
    stream,
)
from minimind.model import MiniMind, ModelConfig
from minimind.tokenizer import Tokenizer

V = 61


def build(seed=0, **changes):
    """A model that has opinions: its logits are spread wide, so that rounding can't change which is
    the largest."""
    torch.manual_seed(seed)
    model = MiniMind(
        ModelConfig(
            **(
                dict(
                    vocab_size=V,
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    intermediate_size=40,
                    max_position_embeddings=64,
                    tie_word_embeddings=False,
                )
                | changes
            )
        )
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def reference(model):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c = model.config
    hf = Qwen3ForCausalLM(
        Qwen3Config(
            **{k: v for k, v in c.to_dict().items() if k not in ("qk_norm", "rope_theta")},
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).eval()
    hf.load_state_dict(model.state_dict())
    return hf


def hf_generate(hf, prompts, n, **options):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = hf.generate(
        ids, attention_mask=real, max_new_tokens=n, do_sample=False, pad_token_id=0, **options
    )[:, width:].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in out]


prompts_of = st.lists(
    st.lists(st.integers(3, V - 1), min_size=1, max_size=9), min_size=1, max_size=4
)


def scripted(script, eos=2):
    "The option that makes a model say a given list of ids, whatever it thinks, and then end."
    return {"allowed": lambda so_far: [[*script, eos][min(len(so_far), len(script))]]}


def fixed(logits):
    "A model with the same logits after every token."
    V, D = len(logits), 8
    shape = dict(vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=1)
    model = build(**shape, num_key_value_heads=1, intermediate_size=D).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(0.0 if "layers" in name else 1.0)
        model.lm_head.weight.copy_(torch.tensor(logits)[:, None].expand(V, D) / D)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    texts = [
        "你好，世界。春眠不觉晓，处处闻啼鸟。",
        "a fox and a 🦊, naïve café. the the the end",
    ] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.train(texts, vocab_size=400)


# ---- against Hugging Face


@given(prompts_of)
@settings(max_examples=20)
def test_greedy_is_hugging_faces(model, reference, prompts):
    assert generate(model, prompts, 12, temperature=0) == hf_generate(reference, prompts, 12)


@given(prompts_of, st.sampled_from([1.1, 1.5, 3.0]))
@settings(max_examples=15)
def test_penalised_greedy_is_hugging_faces(model, reference, prompts, penalty):
    # of one length: Hugging Face penalises the padding too
    prompts = [[p[0]] * max(map(len, prompts)) for p in prompts]
    assert generate(model, prompts, 12, temperature=0, repetition_penalty=penalty) == hf_generate(
        reference, prompts, 12, repetition_penalty=penalty
    )


# ---- batches


@given(
    prompts_of,
    st.sampled_from(
        [
            dict(temperature=0),
            dict(temperature=0, repetition_penalty=1.7),
            dict(temperature=0, repetition_penalty=1.7, penalty_exempt=range(10, 40)),
        ]
    ),
)
@settings(max_examples=25)
def test_a_batch_is_each_row_alone(model, prompts, options):
    assert generate(model, prompts, 10, **options) == [
        generate(model, p, 10, **options) for p in prompts
    ]


@given(prompts_of, st.integers(0, 2**40))
@settings(max_examples=25)
def test_seeded_draws_do_not_depend_on_the_neighbours(model, prompts, seed):
    options = dict(temperature=1.0, top_p=0.95)
    together = generate(model, prompts, 10, seed=seed, **options)
    assert together == generate(model, prompts, 10, seed=seed, **options)
    assert (
        together[0]
        == generate(model, prompts[0], 10, seed=seed, **options)
        == generate(model, prompts[0], 14, seed=seed, **options)[:10]
    )
    seeds = [seed + i for i in range(len(prompts))]
    assert generate(model, prompts, 10, seed=seeds, **options) == [
        generate(model, p, 10, seed=s, **options) for p, s in zip(prompts, seeds)
    ]


def test_rows_and_seeds_draw_apart(model):
    out = generate(model, [[5, 6]] * 8, 12, temperature=2.0, top_p=1.0, seed=0, eos_token_id=())
    # the same prompt eight times: eight texts
    assert len({tuple(row) for row in out}) == 8
    assert not {tuple(row) for row in out} & {
        tuple(row)
        for row in generate(
            model, [[5, 6]] * 8, 12, temperature=2.0, top_p=1.0, seed=1, eos_token_id=()
        )
    }


def test_without_a_seed_torch_decides(model):
    def draw():
        return generate(model, [5, 6], 12, temperature=2.0, top_p=1.0)

    torch.manual_seed(3)
    a = draw()
    b = draw()
    torch.manual_seed(3)
    assert draw() == a != b


def test_a_seed_leaves_torchs_generator_alone(model):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(model, [5, 6], 5, temperature=1.0, seed=1)
    generate(model, [5, 6], 5, temperature=0)
    assert torch.equal(before, torch.get_rng_state())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_cache_rows_in_a_new_order(order):
    "Rows that stay where they are are not copied; the result is that of an index."
    cache = build().new_cache(5, 6)
    for layer in range(2):
        cache.layer(layer).update(*torch.randn(2, 5, 4, 2, 6))
    cache.advance(4, torch.randint(3, (5, 4)))
    want = [t[:, order, :, :4].clone() for t in (cache.k, cache.v)] + [
        cache.segment_ids[order].clone()
    ]
    cache.keep(order)
    assert cache.batch_size == len(order) and all(
        torch.equal(a, b)
        for a, b in zip(want, (cache.k[:, :, :, :4], cache.v[:, :, :, :4], cache.segment_ids))
    )


def test_finished_rows_cost_nothing(model, monkeypatch):
    prompts = [[a, b] for a in range(3, 13) for b in (20, 41)]
    free = generate(model, prompts, 12, temperature=0, eos_token_id=())
    # a token at which rows end at many different steps
    eos = max(range(V), key=lambda i: len({row.index(i) for row in free if i in row}))
    sizes, schedule = [], Scheduler.schedule

    def watched(scheduler):
        kinds = schedule(scheduler)
        sizes.append(sum(map(len, kinds)))
        return kinds

    monkeypatch.setattr(Scheduler, "schedule", watched)
    got = generate(model, prompts, 12, temperature=0, eos_token_id=eos)
    assert got == [row[: row.index(eos) + 1] if eos in row else row for row in free]
    alive = [sum(len(row) > t for row in got) for t in range(12)]
    assert sizes == [n for n in alive if n] and len(set(sizes)) > 2, sizes


SHAPES = {
    "dense": {},
    "tied": dict(tie_word_embeddings=True),
    "no norm of queries and keys": dict(qk_norm=False),
    "experts": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "experts, one shared": dict(
        num_experts=4, norm_topk_prob=True, shared_expert_intermediate_size=24
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cached_decoding_is_the_plain_loop(shape):
    model = build(**shape)
    ids = [7, 8, 9]
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, [7, 8, 9], 12, temperature=0, eos_token_id=()) == ids[3:]


def test_gradients_are_off_inside_and_untouched_outside(model):
    events = Engine(model, slots=1).stream(Request([5], 3, temperature=0))
    next(events)
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())


# ---- ends


def test_stop_ids(model):
    assert (
        stop_ids(model) == {2}
        and stop_ids(model, 7) == {7}
        and stop_ids(model, [7, 9]) == {7, 9}
        and stop_ids(model, ()) == frozenset()
    )


def test_several_end_tokens(model):
    free = generate(model, [5, 6, 7], 20, temperature=0, eos_token_id=())
    a, b = free[4], free[2]
    end = min(free.index(a), free.index(b))
    assert generate(model, [5, 6, 7], 20, temperature=0, eos_token_id=[a, b]) == free[: end + 1]


def test_end_tokens_are_never_penalised():
    "A chat prompt is full of them: the model would be talked out of ending."
    model = fixed([-5.0, -5, 1.0, -5, 0.9, -5])
    # 2 was seen, and ends nevertheless
    assert generate(model, [2, 3], 4, temperature=0, repetition_penalty=2.0) == [2]
    # where 2 ends nothing, it is a token like others
    assert generate(model, [2, 3], 4, temperature=0, repetition_penalty=2.0, eos_token_id=5)[0] == 4


def test_exempt_tokens_are_never_penalised(model):
    a = generate(model, [5, 6, 7], 20, temperature=0, eos_token_id=())
    assert (
        generate(
            model,
            [5, 6, 7],
            20,
            temperature=0,
            eos_token_id=(),
            repetition_penalty=9.0,
            penalty_exempt=range(V),
        )
        == a
    )
    b = generate(model, [5, 6, 7], 20, temperature=0, eos_token_id=(), repetition_penalty=1e6)
    # so large a penalty leaves no repeat
    assert len(set(b)) == 20 and not set(b) & {5, 6, 7} and len(set(a)) < 20


@given(st.lists(st.integers(1, 63), min_size=1, max_size=4))
@settings(max_examples=20)
def test_every_row_may_use_the_whole_context(lengths):
    model = build()
    out = generate(model, [[5] * n for n in lengths], 500, temperature=0, eos_token_id=())
    assert [len(row) for row in out] == [64 - n for n in lengths]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompts=[]), "needs prompts"),
        (dict(prompts=[[5], []]), "at least one token"),
        (dict(prompts=[[5, V]]), f"{V} is not in 0…{V - 1}.*tokenizer"),
        (dict(prompts=[[5, -1]]), "-1 is not in"),
        (dict(prompts=[[5] * 64]), "64 tokens leaves no room in a context of 64"),
        (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(temperature=-1), "temperature=-1"),
        (dict(temperature=math.nan), "temperature=nan"),
        (dict(temperature=math.inf), "temperature=inf"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_p=1.1), "top_p=1.1"),
        (dict(repetition_penalty=0), "repetition_penalty=0"),
        (dict(temperature=1.0, seed=[1, 2]), "2 seeds for 1 prompts"),
        (dict(max_new_tokens=2.5), "max_new_tokens=2.5: must be a whole number"),
        (dict(max_new_tokens="10"), "max_new_tokens='10': must be a whole number"),
        (dict(temperature="0.7"), "temperature='0.7': must be 0"),
        (dict(temperature=None), "temperature=None: must be 0"),
        (dict(top_k=5.0), "top_k=5.0: must be a whole number"),
        (dict(eos_token_id="</s>"), "eos_token_id='</s>': must be a token id.*tokenizer.eos_id"),
        (dict(eos_token_id=2.0), "eos_token_id=2.0: must be a token id"),
        (dict(model="runs/sft"), "'runs/sft' is a path, not a model.*load_pretrained"),
        (dict(model=Path("runs/sft")), "'runs/sft' is a path, not a model"),
    ],
)
def test_bad_requests(model, change, message):
    with pytest.raises(ValueError, match=message):
        generate(**(dict(model=model, prompts=[[5]]) | change))


@pytest.mark.parametrize("stop", [["ok", ""], [7], "", [None]])
def test_a_stop_string_is_a_text(model, tokenizer, stop):
    with pytest.raises(ValueError, match="a stop string must be a text, and must not be empty"):
        next(stream(model, tokenizer, [5], stop=stop)) if stop else next(
            stream(model, tokenizer, [5], stop=[stop])
        )


def test_a_path_is_no_model_anywhere(tokenizer):
    for ask in (
        lambda: chat("runs/sft", tokenizer, "Hi"),
        lambda: next(stream("x", tokenizer, [1])),
    ):
        with pytest.raises(ValueError, match="is a path, not a model"):
            ask()


def test_all_forms_have_the_same_options():
    "What `help` shows of `generate` is what a `Request` does, and all of that goes everywhere."
    fields = {f.name: f for f in dataclasses.fields(Request)}
    shown = inspect.signature(generate).parameters
    options = [name for name in shown if name not in ("model", "prompts", "more")]
    assert all(shown[name].default == fields[name].default for name in options)
    assert all(f"\n    {name} " in generate.__doc__ for name in options)
    for function in (stream, chat):
        theirs = inspect.signature(function).parameters
        assert theirs["max_new_tokens"].default == fields["max_new_tokens"].default
        assert theirs["options"].kind is inspect.Parameter.VAR_KEYWORD


def test_options_reach_the_request(model, tokenizer):
    for ask in (
        lambda **how: generate(model, [5], 3, **how),
        lambda **how: list(stream(model, tokenizer, [5], 3, **how)),
        lambda **how: chat(build(vocab_size=len(tokenizer)), tokenizer, "a", 3, **how),
    ):
        with pytest.raises(ValueError, match="min_p=2: must be in"):
            ask(min_p=2)
        with pytest.raises(TypeError, match="no_such_option"):
            ask(no_such_option=1)
    assert generate(model, [5], 3, temperature=0, logit_bias={7: 1e6}) == [7, 7, 7]


def test_complete_tells_what_generate_returns(model):
    prompts = [[5, 6], [7], [8, 9, 10]]
    requests = [Request(p, 7, temperature=0.9, seed=s) for s, p in enumerate(prompts)]
    for slots in (1, 2, 256):
        told = complete(model, requests, slots)
        assert [[e.token for e in events] for events in told] == generate(
            model, prompts, 7, temperature=0.9, seed=range(3)
        )
        assert all(not e.finish for events in told for e in events[:-1])
        assert all(
            events[-1].finish == ("stop" if events[-1].token == 2 else "length") for events in told
        )
    assert complete(model, []) == []


def test_one_prompt_or_many_lists_or_tensors(model):
    one = generate(model, [5, 6], 6, temperature=0)
    assert (
        one
        == generate(model, [[5, 6]], 6, temperature=0)[0]
        == generate(model, torch.tensor([5, 6]), 6, temperature=0)
        == generate(model, ((5, 6),), 6, temperature=0)[0]
    )
    assert generate(model, torch.tensor([[5, 6], [7, 8]]), 6, temperature=0) == generate(
        model, [[5, 6], [7, 8]], 6, temperature=0
    )


def test_bfloat16_generates():
    assert (
        len(
            generate(
                build().bfloat16(), [[5], [6, 7]], 6, temperature=0.9, seed=0, eos_token_id=()
            )[1]
        )
        == 6
    )


# ---- streams


@pytest.fixture(scope="module")
def speaker(tokenizer):  # that says what it is told to
    return build(vocab_size=len(tokenizer), num_hidden_layers=1)


def said(model, tokenizer, ids, **options):
    how = dict(temperature=0, **scripted(ids)) | options
    return list(stream(model, tokenizer, [1], len(ids) + 1, **how))


def decoded(tokenizer, ids, stop=()):
    "The pieces that a decoder shows, the last of them at the end."
    decoder = TextDecoder(tokenizer, stop)
    return [decoder.add(i) for i in ids] + [decoder.finish()]


@given(st.text(max_size=30))
@example("好🦊a" + "é\n")
@example("\ufffd")
def test_whole_characters(speaker, tokenizer, text):
    assume(text.encode("utf-8", "ignore").decode() == text)
    ids = tokenizer.encode(text)
    pieces = decoded(tokenizer, ids)
    assert "".join(pieces) == text
    assert text.count("\ufffd") == sum(p.count("\ufffd") for p in pieces)


@given(st.text(max_size=12))
@settings(max_examples=20)
@example("好🦊a" + "é\n")
def test_stream_shows_whole_characters(speaker, tokenizer, text):
    assume(text.encode("utf-8", "ignore").decode() == text)
    ids = tokenizer.encode(text)
    pieces = said(speaker, tokenizer, ids)
    assert pieces == [piece for piece in decoded(tokenizer, ids) if piece]


@given(st.lists(st.integers(3, 399), max_size=25))
@example([36 + 0xE5])
def test_pieces_are_decode_for_any_ids(tokenizer, ids):
    "Broken bytes become replacement characters, the same as when all is decoded at once."
    ids = [i for i in ids if i < len(tokenizer)]
    assert (
        "".join(decoded(tokenizer, ids))
        == b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
        == tokenizer.decode(ids)
    )


@pytest.mark.parametrize("cut", range(5))
def test_a_stream_that_is_cut_ends_in_a_replacement(speaker, tokenizer, cut):
    "Where `max_new_tokens` ends a text in the midst of a character, its bytes come as `decode` says."
    ids = tokenizer.encode("a🦖b")[: cut + 1]
    how = dict(temperature=0, **scripted(ids))
    assert "".join(stream(speaker, tokenizer, [1], len(ids), **how)) == tokenizer.decode(ids)


def test_stream_is_early(speaker, tokenizer):
    ids = tokenizer.encode("a🦖b")
    engine = Engine(speaker, slots=1, tokenizer=tokenizer)
    told = list(engine.stream(Request([1], 99, temperature=0, **scripted(ids))))
    assert [event.token for event in told] == [*ids, 2] and told[-1].finish == "stop"
    assert [event.text for event in told] == ["a", *[""] * (len(ids) - 3), "🦖", "b", ""]


@pytest.mark.parametrize(
    "options", [{}, {"eos_token_id": None}, {"eos_token_id": 2}, {"eos_token_id": [2, 0]}]
)
def test_stream_leaves_out_the_end(speaker, tokenizer, options):
    ids = [*tokenizer.encode("the end"), 2, *tokenizer.encode("more")]
    assert "".join(said(speaker, tokenizer, ids, **options)) == "the end"


def test_stream_shows_tags(speaker, tokenizer):
    ids = [
        tokenizer.token_to_id("<think>"),
        *tokenizer.encode("a"),
        tokenizer.token_to_id("</think>"),
    ]
    assert "".join(said(speaker, tokenizer, ids)) == "<think>a</think>"


texts_with_stops = given(
    st.text("ab。好\n", max_size=20), st.text("ab。好\n", min_size=1, max_size=4)
)


@texts_with_stops
@example("aab", "ab")
@example("abab好", "abb")
def test_stop_strings(tokenizer, text, stop):
    assert "".join(decoded(tokenizer, tokenizer.encode(text), stop)) == text.split(stop)[0]


@texts_with_stops
@settings(max_examples=20)
@example("aab", "ab")
@example("abab好", "abb")
def test_a_stop_string_ends_a_stream(speaker, tokenizer, text, stop):
    "Also across the borders of tokens; nothing is drawn after it."
    ids = tokenizer.encode(text)
    engine = Engine(speaker, slots=1, tokenizer=tokenizer)
    request = Request([1], len(ids) + 1, temperature=0, stop=stop, **scripted(ids))
    told = list(engine.stream(request))
    assert "".join(event.text for event in told) == text.split(stop)[0]
    decoder = TextDecoder(tokenizer, stop)
    needed = next((n for n, i in enumerate(ids, 1) if decoder.add(i) or decoder.stopped), None)
    while needed and not decoder.stopped and needed < len(ids):
        needed += 1
        decoder.add(ids[needed - 1])
    assert len(told) == (needed if decoder.stopped else len(ids) + 1)
    assert told[-1].finish == "stop" and not engine.busy


def test_several_stop_strings(speaker, tokenizer):
    ids = tokenizer.encode("the fox。a\n\nb")
    assert "".join(said(speaker, tokenizer, ids, stop=["\n\n", "。"])) == "the fox"
    assert "".join(said(speaker, tokenizer, ids, stop=("\n\n",))) == "the fox。a"
    # a token may complete two of them: the first one counts
    texts = {i: tokenizer.decode([i]) for i in set(range(len(tokenizer))) - tokenizer.special_ids}
    token = next(i for i, text in texts.items() if len(text) == len(set(text)) >= 3)
    assert decoded(tokenizer, [token], list(texts[token][2:0:-1]))[0] == texts[token][0]
    with pytest.raises(ValueError, match="stop string"):
        said(speaker, tokenizer, ids, stop=["x", ""])


def test_stream_is_generate(tokenizer):
    model = build(vocab_size=len(tokenizer))
    for seed in range(3):
        options = dict(temperature=1.0, top_p=1.0, seed=seed, eos_token_id=())
        assert "".join(stream(model, tokenizer, [1, 50], 30, **options)) == tokenizer.decode(
            generate(model, [1, 50], 30, **options)
        )


def test_chat(speaker, tokenizer, monkeypatch):
    heard, add = [], Engine.add
    monkeypatch.setattr(Engine, "add", lambda self, ask: heard.append(ask.ids) or add(self, ask))
    question = [{"role": "user", "content": "你好"}]
    answer = tokenizer.encode("the fox 🦊")
    for messages in ("你好", question):
        how = dict(temperature=0, **scripted(answer))
        assert chat(speaker, tokenizer, messages, **how) == "the fox 🦊"
    assert heard == [encode_chat(tokenizer, question, add_generation_prompt=True)[0]] * 2
    short = chat(speaker, tokenizer, "a", max_new_tokens=2, temperature=0, **scripted(answer))
    assert short == tokenizer.decode(answer[:2])


@pytest.mark.parametrize(
    "prompts", ["hello", ["hello"], [[1.5, 2]], [["a"]], None, 5, [None], {5: 6}, torch.tensor(5)]
)
def test_text_is_no_prompt(model, prompts):
    with pytest.raises(ValueError, match="encode the text first"):
        generate(model, prompts, 2)


def test_seeds_may_be_numpys(model):
    import numpy as np

    assert generate(model, [[3, 4]], 5, seed=np.int64(3)) == generate(model, [[3, 4]], 5, seed=3)
