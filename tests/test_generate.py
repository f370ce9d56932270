"""Generation against Hugging Face's, and its promises: a batch is each row alone, seeds repeat,
streams show whole characters, bad requests say why."""

import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st

from minimind.chat import encode_chat
from minimind.generate import chat, decode_steps, generate, stop_ids, stream
from minimind.sampling import draw_next, keep_top_k, keep_top_p, penalise, sample_next, warp_logits
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


class Parrot:
    """A model that says a given list of ids, whatever it hears: `decode_steps` needs no more than
    this of a model."""

    def __init__(self, script, vocab_size, eos=2):
        self.config = ModelConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            intermediate_size=8,
            eos_token_id=eos,
        )
        self.script, self.said = script, 0
        self.model = SimpleNamespace(embed_tokens=torch.nn.Embedding(vocab_size, 8))

    def new_cache(self, batch_size, max_len):
        return None

    def hidden(self, ids, positions, segments, cache):
        token = self.script[self.said] if self.said < len(self.script) else self.config.eos_token_id
        self.said += 1
        return torch.nn.functional.one_hot(torch.tensor([[token]]), self.config.vocab_size).float()

    def lm_head(self, x):
        return x


@pytest.fixture(scope="module")
def tokenizer():
    texts = [
        "你好，世界。春眠不觉晓，处处闻啼鸟。",
        "a fox and a 🦊, naïve café. the the the end",
    ] * 3
    import warnings

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


@given(
    st.integers(0, 999),
    st.floats(0.1, 3),
    st.integers(0, 80),
    st.floats(0.05, 1),
    st.floats(0.2, 8),
)
@example(0, 1.0, 0, 1e-6, 1.0)
@example(0, 1.0, 1, 1.0, 1.0)
def test_warped_like_hugging_face(seed, temperature, top_k, top_p, spread):
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    torch.manual_seed(seed)
    logits = spread * torch.randn(3, V)
    chain = (
        [TemperatureLogitsWarper(temperature)]
        + ([TopKLogitsWarper(top_k)] if top_k else [])
        + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])
    )
    want, got = (
        LogitsProcessorList(chain)(None, logits).softmax(-1),
        warp_logits(logits, temperature, top_k, top_p).softmax(-1),
    )
    # a token right at the border may be rounded to either side
    if (edge := (want > 0) != (got > 0)).any():
        ordered = (logits / temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
        if top_k:
            ordered = (
                LogitsProcessorList(chain[:2])(None, logits)
                .softmax(-1)
                .sort(descending=True)
                .values.cumsum(-1)
            )
        for row in edge.any(-1).nonzero()[:, 0]:
            assert (ordered[row] - top_p).abs().min() < 1e-5 and edge[row].sum() == 1
    else:
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


@given(st.integers(0, 999), st.floats(0.5, 4))
def test_penalised_like_hugging_face(seed, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(seed)
    logits, ids = 3 * torch.randn(3, V), torch.randint(V, (3, 10))
    seen = torch.zeros(3, V, dtype=torch.bool).scatter_(1, ids, True)
    torch.testing.assert_close(
        penalise(logits, seen, penalty),
        RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()),
    )


# ---- choosing a token


@given(st.integers(0, 999), st.floats(0.01, 1), st.sampled_from([5, 300, 1000]), st.floats(0, 8))
def test_nucleus_is_the_smallest_set(seed, p, size, spread):
    "Also where the nucleus is larger than the 256 candidates that are looked at first."
    torch.manual_seed(seed)
    logits = spread * torch.randn(2, size)
    probs, kept = logits.softmax(-1), keep_top_p(logits, p).isfinite()
    for row in range(2):
        inside, outside = probs[row][kept[row]], probs[row][~kept[row]]
        assert len(inside) and inside.sum() >= p - 1e-5
        # without its least it would be too small
        assert inside.sum() - inside.min() < p + 1e-5
        assert not len(outside) or outside.max() <= inside.min() + 1e-9


@given(st.integers(0, 999), st.integers(1, 90))
def test_top_k_keeps_k(seed, k):
    torch.manual_seed(seed)
    logits = torch.randn(2, V)
    kept = keep_top_k(logits, k).isfinite()
    assert (kept.sum(-1) == min(k, V)).all()
    # equals of the k-th stay, as at Hugging Face
    assert keep_top_k(torch.zeros(1, 4), 2).isfinite().all()


@given(st.integers(0, 999), st.integers(1, 5), st.sampled_from([0.0, 1e-7, 0.5, 1 - 2**-24]))
def test_a_draw_is_never_of_a_removed_token(seed, top_k, u):
    torch.manual_seed(seed)
    logits = 4 * torch.randn(5, V)
    drawn = sample_next(logits, 1.0, top_k=top_k, uniform=torch.full((5,), u))
    assert keep_top_k(logits, top_k).gather(1, drawn[:, None]).isfinite().all()


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    logits, n = 2 * torch.randn(1, 12), 40_000
    want = warp_logits(logits, 0.8, 9, 0.95).softmax(-1)[0]
    counts = sample_next(logits.expand(n, -1), 0.8, 9, 0.95).bincount(minlength=12)
    assert (counts[want == 0] == 0).all()
    z = (counts / n - want)[want > 0] / (want * (1 - want) / n)[want > 0].sqrt()
    # standard errors; seeded
    assert z.abs().max() < 4.5


@given(
    st.integers(0, 999), st.floats(0.2, 3), st.sampled_from([0, 3, 9]), st.sampled_from([1.0, 0.7])
)
def test_a_draw_tells_its_probability(seed, temperature, top_k, top_p):
    torch.manual_seed(seed)
    logits = 4 * torch.randn(6, V)
    tokens, logps = draw_next(logits, temperature, top_k, top_p)
    want = (
        warp_logits(logits, temperature, top_k, top_p)
        .log_softmax(-1)
        .gather(1, tokens[:, None])[:, 0]
    )
    torch.testing.assert_close(logps, want, atol=2e-5, rtol=1e-5)
    assert draw_next(logits, 0)[1].tolist() == [0.0] * 6 and torch.equal(
        draw_next(logits, 0)[0], logits.argmax(-1)
    )


def test_extreme_temperatures():
    logits = torch.tensor([[3.0, 1.0, 3.5, -2.0]])
    for tiny in (0, 1e-3, 1e-30):
        assert sample_next(logits, tiny).item() == 2
    assert warp_logits(1e4 * logits, 1e-37).softmax(-1).isfinite().all()
    assert torch.allclose(warp_logits(logits, 1e6).softmax(-1), torch.full((1, 4), 0.25), atol=1e-4)
    assert sample_next(torch.tensor([[0.0, -torch.inf]]), 1.0).item() == 0


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


def test_finished_rows_leave_the_batch(model):
    prompts = [[a, b] for a in range(3, 13) for b in (20, 41)]
    free = generate(model, prompts, 12, temperature=0, eos_token_id=())
    # a token at which rows end at many different steps
    eos = max(range(V), key=lambda i: len({row.index(i) for row in free if i in row}))
    sizes, hidden = [], model.hidden
    model.hidden = lambda ids, *rest: sizes.append(len(ids)) or hidden(ids, *rest)
    try:
        steps = list(decode_steps(model, prompts, 12, temperature=0, eos_token_id=eos))
    finally:
        del model.hidden
    assert sizes == [len(rows) for rows, _ in steps] and len(set(sizes)) > 2, sizes
    want = [row[: row.index(eos) + 1] if eos in row else row for row in free]
    got = [[] for _ in prompts]
    for rows, tokens in steps:
        for row, token in zip(rows, tokens):
            got[row].append(token)
    assert got == want


def test_cached_decoding_is_the_plain_loop(model):
    ids = [7, 8, 9]
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, [7, 8, 9], 12, temperature=0, eos_token_id=()) == ids[3:]


def test_gradients_are_off_inside_and_untouched_outside(model):
    steps = decode_steps(model, [[5]], 3, temperature=0)
    next(steps)
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

    class Fixed(Parrot):
        def hidden(self, ids, *rest):
            return torch.tensor([[[-5.0, -5, 1.0, -5, 0.9, -5]]])

    model = Fixed([], 6)
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
    "What `help` shows of `generate`, `stream` and `chat` is what `decode_steps` does."
    shared, own = inspect.signature(decode_steps).parameters, ("copies", "logprobs")
    first = list(shared).index("temperature")
    options = [name for name in list(shared)[first:] if name not in own]
    for function in (generate, stream, chat):
        theirs = inspect.signature(function).parameters
        assert list(theirs)[-len(options) :] == options
        for name in ("max_new_tokens", *options):
            assert theirs[name].default == shared[name].default
        assert all(f"\n    {name} " in generate.__doc__ for name in options)


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


def said(tokenizer, ids, **options):
    return list(
        stream(Parrot(ids, len(tokenizer)), tokenizer, [1], len(ids) + 1, temperature=0, **options)
    )


@given(st.text(max_size=30))
@example("好🦊a" + "é\n")
@example("\ufffd")
def test_stream_shows_whole_characters(tokenizer, text):
    assume(text.encode("utf-8", "ignore").decode() == text)
    pieces = said(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text and all(pieces)
    assert text.count("\ufffd") == sum(p.count("\ufffd") for p in pieces)


@given(st.lists(st.integers(3, 399), max_size=25))
@example([36 + 0xE5])
def test_stream_is_decode_for_any_ids(tokenizer, ids):
    "Broken bytes become replacement characters, the same as when all is decoded at once."
    ids = [i for i in ids if i < len(tokenizer)]
    assert (
        "".join(said(tokenizer, ids))
        == b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
        == tokenizer.decode(ids)
    )


def test_stream_is_early(tokenizer):
    parrot = Parrot(tokenizer.encode("a🦖b"), len(tokenizer))
    when = [(piece, parrot.said) for piece in stream(parrot, tokenizer, [1], 99, temperature=0)]
    assert [p for p, _ in when] == ["a", "🦖", "b"] and [n for _, n in when] == sorted(
        {n for _, n in when}
    )


@pytest.mark.parametrize(
    "options", [{}, {"eos_token_id": None}, {"eos_token_id": 2}, {"eos_token_id": [2, 0]}]
)
def test_stream_leaves_out_the_end(tokenizer, options):
    assert (
        "".join(
            said(tokenizer, [*tokenizer.encode("the end"), 2, *tokenizer.encode("more")], **options)
        )
        == "the end"
    )


def test_stream_shows_tags(tokenizer):
    ids = [
        tokenizer.token_to_id("<think>"),
        *tokenizer.encode("a"),
        tokenizer.token_to_id("</think>"),
    ]
    assert "".join(said(tokenizer, ids)) == "<think>a</think>"


@given(st.text("ab。好\n", max_size=20), st.text("ab。好\n", min_size=1, max_size=4))
@example("aab", "ab")
@example("abab好", "abb")
def test_stop_strings(tokenizer, text, stop):
    pieces = said(tokenizer, tokenizer.encode(text), stop=stop)
    assert "".join(pieces) == text.split(stop)[0] and all(pieces)


def test_several_stop_strings(tokenizer):
    ids = tokenizer.encode("the fox。a\n\nb")
    assert (
        "".join(said(tokenizer, ids, stop=["\n\n", "。"])) == "the fox"
        and "".join(said(tokenizer, ids, stop=("\n\n",))) == "the fox。a"
    )
    with pytest.raises(ValueError, match="stop string"):
        said(tokenizer, ids, stop=["x", ""])


def test_stream_is_generate(tokenizer):
    model = build(vocab_size=len(tokenizer))
    for seed in range(3):
        options = dict(temperature=1.0, top_p=1.0, seed=seed, eos_token_id=())
        assert "".join(stream(model, tokenizer, [1, 50], 30, **options)) == tokenizer.decode(
            generate(model, [1, 50], 30, **options)
        )


def test_chat(tokenizer):
    heard = []

    class Listener(Parrot):
        def hidden(self, ids, *rest):
            heard.append(ids[0].tolist())
            return super().hidden(ids, *rest)

    question = [{"role": "user", "content": "你好"}]
    for messages in ("你好", question):
        assert (
            chat(
                Listener([*tokenizer.encode("the fox 🦊"), 2], len(tokenizer)),
                tokenizer,
                messages,
                temperature=0,
            )
            == "the fox 🦊"
        )
    assert heard[0] == encode_chat(tokenizer, question, add_generation_prompt=True)[0]
    assert chat(
        Listener(tokenizer.encode("the fox"), len(tokenizer)),
        tokenizer,
        "a",
        max_new_tokens=2,
        temperature=0,
    ) == tokenizer.decode(tokenizer.encode("the fox")[:2])


@pytest.mark.parametrize(
    "prompts", ["hello", ["hello"], [[1.5, 2]], [["a"]], None, 5, [None], {5: 6}, torch.tensor(5)]
)
def test_text_is_no_prompt(model, prompts):
    with pytest.raises(ValueError, match="encode the text first"):
        generate(model, prompts, 2)


def test_seeds_may_be_numpys(model):
    import numpy as np

    assert generate(model, [[3, 4]], 5, seed=np.int64(3)) == generate(model, [[3, 4]], 5, seed=3)
