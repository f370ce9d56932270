"""Inference with int8 weights: exact but for two roundings, the same in any company, hardly worse in
bits per byte, and never an error where a machine has no such product."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from minimind import quantize
from minimind.generate import Engine, Request, float_product
from minimind.lora import apply_lora, quantize_rows
from minimind.model import MiniMind, ModelConfig
from minimind.quantize import STEPS, int8_objection, int8_product, with_products
from shared import TINY_SHAPE

HERE = not int8_objection()
# what is right only where the products are made: elsewhere they are in floats
here = pytest.mark.skipif(not HERE, reason=f"no int8 products on this machine: {int8_objection()}")


def by_integers(weight, x):
    "The product of the two rounded sides, summed as integers, and in the same order as FBGEMM's."
    whole, scale = quantize_rows(weight)
    largest = x.abs().amax(1, keepdim=True)
    # moved up by `STEPS` before rounding, and a row of zeros stays one
    moved = ((x / largest).nan_to_num() * STEPS + STEPS).round().long() - STEPS
    return moved, (moved @ whole.long().T) * (scale / STEPS) * largest


def build(seed=0, **changes):
    "A model that has opinions, so that rounding seldom changes which token is the likeliest."
    torch.manual_seed(seed)
    model = MiniMind(ModelConfig(**TINY_SHAPE | dict(max_position_embeddings=64) | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def requests(seed=0, n=12, **options):
    "Prompts of several lengths, some of them drawn and some greedy."
    source = torch.Generator().manual_seed(seed)
    for i in range(n):
        ids = torch.randint(61, (int(torch.randint(1, 9, (), generator=source)),), generator=source)
        how = dict(temperature=0.8, seed=i) if i % 2 else dict(temperature=0)
        yield Request(ids=ids.tolist(), max_new_tokens=12, eos_token_id=(), **how, **options)


def replies(model, slots, dtype="int8", **options):
    told = Engine(model, slots, 32, dtype).complete(list(requests(**options)))
    return [[(event.token, event.logp) for event in reply] for reply in told]


@here
@given(
    out=st.integers(1, 70),
    width=st.integers(1, 200),
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    loud=st.booleans(),
)
def test_it_is_the_product_of_integers(out, width, rows, seed, loud):
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=source)
    x = torch.randn(rows, width, generator=source)
    if loud:  # one number far above its row, on either side
        weight[0, -1], x[-1, 0] = -1e3, 1e4
    moved, want = by_integers(weight, x)
    assert moved.abs().max() == STEPS
    assert torch.equal(int8_product(weight)(x), want)


@here
@pytest.mark.parametrize("width", [1, 2, 31, 1408, 9001])
def test_the_largest_sums_are_exact(width):
    "All numbers at their largest: where pairs saturate, the result is far off."
    signs = torch.ones(6, width)
    signs[1::2] *= -1
    signs[4, ::2] *= -1
    got, want = int8_product(signs)(signs), signs @ signs.T
    # the scale 1/127 is no float
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-6 * width)


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
@here
def test_older_processors_sum_the_same(instructions):
    "FBGEMM told to do without the newer instructions, by which nothing saturates anyway."
    code = (
        "import torch; torch.manual_seed(0); from minimind.quantize import _rounded_product;"
        "w, x = torch.randn(64, 500).sign(), torch.randn(20, 500).sign();"
        "y = _rounded_product(w)(x); assert torch.allclose(y, x @ w.T, atol=1e-3), 'saturated';"
        "z = _rounded_product(torch.randn(40, 301))(torch.randn(9, 301));"
        "print(y.double().sum().item(), z.double().square().sum().item())"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": what},
            capture_output=True,
            text=True,
            timeout=120,
        )
        for what in (instructions, "")
    ]
    assert not told[0].returncode, told[0].stderr
    assert told[0].stdout == told[1].stdout


@here
@given(
    rows=st.integers(1, 70),
    width=st.sampled_from([1, 16, 37, 192, 513]),
    seed=st.integers(0, 2**16),
)
def test_a_row_does_not_feel_its_company(rows, width, seed):
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(33, width, generator=source)
    x = torch.randn(rows, width, generator=source) * torch.logspace(-6, 6, rows)[:, None]
    product = int8_product(weight)
    every = product(x)
    for i in {0, rows // 2, rows - 1}:
        assert torch.equal(product(x[i : i + 1])[0], every[i])
    turned = torch.randperm(rows, generator=source)
    assert torch.equal(product(x[turned]), every[turned])


@here
def test_zeros_and_broken_numbers():
    torch.manual_seed(0)
    product, x = int8_product(torch.randn(5, 12)), torch.randn(5, 12)
    whole = product(x)
    x[0], x[1], x[2, 3], x[3, 4] = 0, 1e-42, torch.nan, torch.inf
    got = product(x)
    assert torch.equal(got[0], torch.zeros(5))
    assert got[1].abs().max() < 1e-40
    # who looks for broken weights has to find them
    assert got[2].isnan().all() and not got[3].isfinite().any()
    assert torch.equal(got[4], whole[4])
    assert product(x[:0]).shape == (0, 5)
    strided = torch.randn(12, 7).T
    assert torch.equal(product(strided), product(strided.contiguous()))
    weight = torch.randn(3, 12)
    weight[1, 1] = torch.nan
    assert int8_product(weight)(x[4:])[0, 1].isnan()
    weight[1] = 0
    assert int8_product(weight)(x[4:])[0, 1] == 0


@here
def test_other_dtypes_come_back_as_they_were():
    torch.manual_seed(0)
    weight, x = torch.randn(8, 20), torch.randn(3, 20)
    got = int8_product(weight.bfloat16())(x.bfloat16())
    assert got.dtype == torch.bfloat16
    want = int8_product(weight.bfloat16().float())(x.bfloat16().float())
    assert torch.equal(got, want.bfloat16())


KINDS = {
    "qwen3": {},
    "llama, own head": dict(qk_norm=False, tie_word_embeddings=False),
    "odd sizes": dict(hidden_size=22, intermediate_size=37, vocab_size=61),
    "experts": dict(num_experts=4, num_experts_per_tok=2),
    "experts, one of them shared": dict(num_experts=4, shared_expert_intermediate_size=20),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_alone_is_the_request_in_company(kind):
    model = build(**KINDS[kind])
    alone = [replies(model, 1, n=n)[-1] for n in (1, 6, 12)]
    together = replies(model, 12)
    for reply, place in zip(alone, (0, 5, 11)):
        assert [token for token, _ in reply] == [token for token, _ in together[place]]
        for (_, a), (_, b) in zip(reply, together[place]):
            # attention is made in floats, over as many keys as the longest has
            assert abs(a - b) < 0.05
    assert replies(model, 3) == replies(model, 3)


def test_it_answers_nearly_as_floats_do():
    model = build()
    floats, whole = (replies(model, 12, dtype) for dtype in (None, "int8"))
    first = [abs(a[0][1] - b[0][1]) for a, b in zip(floats, whole) if a[0][0] == b[0][0]]
    assert len(first) >= 9 and max(first) < 0.5
    if HERE:
        assert max(first) > 0, "nothing was rounded"


def test_a_lora_model_answers():
    "An adapter's layers compute in their own way, in floats; the head is rounded all the same."
    model = apply_lora(build(), r=2, target_modules=("q_proj", "down_proj"))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.2)
    assert len(replies(model.eval(), 12)) == 12


def test_new_weights_are_rounded_anew():
    model, other = build(), build(1)
    engine = Engine(model, 12, 32, "int8")
    engine.complete(list(requests()))
    engine.load(other)
    told = [[event.token for event in reply] for reply in engine.complete(list(requests()))]
    assert told == [[token for token, _ in reply] for reply in replies(other, 12)]


@pytest.fixture(scope="module")
def trained():
    "A model that has learned to count in circles, and what it is to predict."
    torch.manual_seed(0)
    model = MiniMind(ModelConfig(**TINY_SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    chance = torch.Generator().manual_seed(0)

    def batch(n):  # multiples of a number, and now and then a slip
        start, step = (torch.randint(1, 60, (n, 1), generator=chance) for _ in range(2))
        rows = (start + (step % 7 + 1) * torch.arange(24)) % 61
        slips = torch.rand(rows.shape, generator=chance) < 0.05
        return torch.where(slips, torch.randint(61, rows.shape, generator=chance), rows)

    for _ in range(250):
        rows = batch(16)
        loss = nn.functional.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), batch(200)


@torch.no_grad()
def nats(model, rows):
    return float(
        nn.functional.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    )


def test_the_loss_hardly_grows(trained):
    model, rows = trained
    exact = nats(model, rows)
    assert exact < 2.5, "it has learned nothing, so there is nothing to lose"
    more = nats(with_products(model), rows) / exact - 1
    assert abs(more) < 0.005
    if HERE:
        assert more != 0
    # the measure would see what is too coarse
    coarse = with_products(model, lambda w: float_product(w.sign() * w.abs().mean()))
    assert nats(coarse, rows) / exact - 1 > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_model_computes_as_the_engine(kind):
    model = build(**KINDS[kind])
    ids = list(range(1, 9))
    with torch.no_grad():
        want = with_products(model)(torch.tensor([ids]))[0, -1].log_softmax(-1)
    request = Request(ids=ids, max_new_tokens=1, temperature=0, eos_token_id=(), logprobs=5)
    [[event]] = Engine(model, 1, 32, "int8").complete([request])
    for token, logp in event.top.items():
        assert abs(float(want[token]) - logp) < 0.02
    # the model itself is as it was
    assert all(not isinstance(m, quantize._Multiplies) for m in model.modules())


def forget():
    quantize._objection.cache_clear()
    quantize._say_once.cache_clear()


@pytest.fixture
def fresh():
    "The check at start is made anew, and once more for those who come after."
    forget()
    yield
    forget()


def gone(*_):
    raise AttributeError("'_OpNamespace' 'quantized' object has no attribute 'linear_prepack'")


@pytest.mark.parametrize(
    "replaced, by, words",
    [
        ("_packed", gone, "no such product"),
        ("_rounded_product", lambda w: lambda x: float_product(w)(x) + 1, "not summed exactly"),
        ("_quicker", lambda *_: False, "no quicker"),
    ],
)
def test_without_it_the_engine_computes_in_floats(fresh, monkeypatch, replaced, by, words):
    monkeypatch.setattr(quantize, replaced, by)
    if replaced == "_quicker":  # so that it is asked at all
        monkeypatch.setattr(quantize, "_rounded_product", float_product)
    model = build()
    with pytest.warns(UserWarning, match=words) as told:
        coarse = replies(model, 12)
    assert len(told) == 1, "one warning, however many matrices there are"
    assert coarse == replies(model, 12, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Engine(model, 1, 32, "int8")


def test_other_engines_of_torch_and_cards_are_no_error(fresh):
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "qnnpack"
        with pytest.warns(UserWarning, match="no such product"):
            int8_product(torch.ones(2, 3))
    except RuntimeError:
        pytest.skip("this PyTorch has only one engine")
    finally:
        torch.backends.quantized.engine = before
    assert "processors" in int8_objection("cuda")


def test_the_check_leaves_no_trace(fresh):
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    int8_objection()
    assert torch.get_num_threads() == threads
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


@here
def test_the_check_finds_saturation(fresh, monkeypatch):
    "With the steps that need more than 16 bits for a pair, on a processor that has no more."
    code = "from minimind import quantize; quantize.STEPS = 127;print(quantize.int8_objection())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "not summed exactly" in done.stdout, done.stderr


@here
@pytest.mark.parametrize("kind", ["qwen3", "llama, own head", "odd sizes"])
def test_prompts_of_one_length_get_the_same_bits_in_company(kind):
    "Then attention, in floats, adds up equally many numbers too."
    model = build(**KINDS[kind])
    asked = [
        Request(ids=[i, i + 1, i + 2], max_new_tokens=12, temperature=0.9, seed=i, eos_token_id=())
        for i in range(20)
    ]

    def told(slots):
        events = Engine(model, slots, 16, "int8").complete(asked)
        return [[(event.token, event.logp) for event in reply] for reply in events]

    assert told(1) == told(20)


@here
def test_the_ready_product_would_feel_company():
    "Why it isn't used: one scale for a batch is the scale of the loudest."
    torch.manual_seed(0)
    weight, x = torch.randn(6, 16), torch.randn(2, 16)
    x[1] *= 50
    packed, ready = quantize._packed(weight), torch.ops.quantized.linear_dynamic
    assert not torch.allclose(ready(x, packed)[:1], ready(x[:1], packed), atol=0.05)
    assert torch.equal(int8_product(weight)(x)[:1], int8_product(weight)(x[:1]))
