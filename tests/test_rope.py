"""The stretching of RoPE against Hugging Face's own functions and MiniMind's numbers; every error;
and what rotations must keep."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minimind.rope import (
    apply_rope,
    check_scaling,
    ntk_theta,
    rope_frequencies,
    rope_tables,
    scaled_frequencies,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def hugging_face(
    head_dim, theta, scaling, seq_len=None
):  # (inv_freq, attention factor) from transformers
    config = Qwen3Config(
        head_dim=head_dim,
        rope_parameters=scaling | {"rope_theta": theta},
        max_position_embeddings=scaling.get("original_max_position_embeddings", 2048),
    )
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=seq_len)


# The same float32 numbers go through two or three roundings more or less: 1e-6 is some eight units
# in the last place, and a wrong pair is off by far more.
SAME = dict(rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "head_dim,theta", list(itertools.product((32, 64, 80, 96, 128), (1e4, 1e6)))
)
@pytest.mark.parametrize("original", (64, 2048, 40000))
def test_yarn_equals_hugging_face(head_dim, theta, original):
    for factor, truncate, more in itertools.product(
        (2.0, 4.0, 7.5, 32.0),
        (True, False),
        ({}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"attention_factor": 1.0}),
    ):
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "truncate": truncate,
        } | more
        theirs, their_factor = hugging_face(head_dim, theta, scaling)
        ours, our_factor = scaled_frequencies(head_dim, theta, scaling)
        torch.testing.assert_close(ours, theirs, **SAME)
        assert (
            ours.dtype == torch.float32
            and isinstance(our_factor, float)
            and abs(our_factor - their_factor) < 1e-12
        )


@pytest.mark.parametrize(
    "head_dim,theta,factor",
    list(itertools.product((32, 64, 80, 96, 128), (1e4, 1e6), (2.0, 7.5, 32.0))),
)
def test_linear_and_ntk_equal_hugging_face(head_dim, theta, factor):
    ours, attention_factor = scaled_frequencies(
        head_dim, theta, {"rope_type": "linear", "factor": factor}
    )
    assert (
        torch.equal(
            ours, hugging_face(head_dim, theta, {"rope_type": "linear", "factor": factor})[0]
        )
        and attention_factor == 1
    )
    # their `dynamic` type with factor 1, asked for `factor` times the training length, is NTK by
    # that factor
    dynamic, _ = hugging_face(
        head_dim, theta, {"rope_type": "dynamic", "factor": 1.0}, seq_len=int(factor * 2048)
    )
    # powers of a large float32 base
    torch.testing.assert_close(
        rope_frequencies(head_dim, ntk_theta(head_dim, theta, factor)), dynamic, rtol=1e-5, atol=0
    )


def test_yarn_fixed_values():
    ours, attention_factor = scaled_frequencies(
        16, 1e6, {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    )
    # the last has three digits
    torch.testing.assert_close(
        ours,
        torch.tensor([1, 0.11114246, 0.00790569, 0.00140585, 0.00025, 4.446e-5, 7.91e-6, 1.41e-6]),
        rtol=4e-3,
        atol=0,
    )
    assert abs(attention_factor - 1.1386294) < 1e-7


@pytest.mark.parametrize("head_dim,low,high", ((64, 5, 14), (80, 6, 17), (96, 8, 21)))
def test_ramp_of_minimind(head_dim, low, high):
    """MiniMind's ramp bounds, found from outside: the last pair that is left alone, and the first
    that gets the full factor."""
    ratio = scaled_frequencies(head_dim, 1e6, YARN | {"factor": 16})[0] / rope_frequencies(
        head_dim, 1e6
    )
    left_alone, full = (ratio == 1).nonzero().flatten(), (ratio - 1 / 16 < 1e-6).nonzero().flatten()
    assert (
        (left_alone.max(), full.min()) == (low, high)
        and len(left_alone) == low + 1
        and len(full) == head_dim // 2 - high
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80).map(lambda n: 2 * n),
    st.floats(100, 1e7),
    st.floats(1, 64),
    st.integers(1, 1 << 20),
    st.floats(0.1, 4),
    st.floats(1.01, 50),
    st.booleans(),
)
def test_yarn_only_slows_down_and_slow_pairs_most(
    head_dim, theta, factor, original, beta_slow, ratio, truncate
):
    inv_freq, attention_factor = scaled_frequencies(
        head_dim,
        theta,
        {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_slow": beta_slow,
            "beta_fast": beta_slow * ratio,
            "truncate": truncate,
        },
    )
    kept = inv_freq / rope_frequencies(head_dim, theta)
    assert (
        inv_freq.shape == (head_dim // 2,)
        and (kept <= 1 + 1e-6).all()
        and (kept >= (1 - 1e-6) / factor).all()
    )
    assert (kept.diff() <= 1e-6).all() and (inv_freq.diff() < 0).all() and attention_factor >= 1


def test_pairs_under_one_turn_never_meet_a_new_angle():
    for head_dim, theta, factor, original in itertools.product(
        (32, 64, 96), (1e4, 1e6), (2, 16), (128, 2048)
    ):
        plain, (inv_freq, _) = (
            rope_frequencies(head_dim, theta),
            scaled_frequencies(
                head_dim,
                theta,
                YARN | {"factor": factor, "original_max_position_embeddings": original},
            ),
        )
        under = original * plain < 2 * math.pi
        assert (
            under.any()
            and (factor * original * inv_freq[under] <= original * plain[under] * (1 + 1e-6)).all()
        )


def test_a_tiny_training_length_still_slows_down():
    """Fewer positions than one turn of the fastest pair: both ends of the ramp would be negative,
    and the ramp would run backwards."""
    inv_freq, _ = scaled_frequencies(
        32, 1e4, {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1}
    )
    torch.testing.assert_close(inv_freq[1:], rope_frequencies(32, 1e4)[1:] / 4)


@pytest.mark.parametrize("nothing", (None, {}, {"rope_type": "default"}, {"type": "default"}))
def test_plain(nothing):
    inv_freq, attention_factor = scaled_frequencies(64, 1e6, nothing)
    assert (
        check_scaling(nothing) == {}
        and torch.equal(inv_freq, rope_frequencies(64, 1e6))
        and attention_factor == 1
    )
    for ours, plain in zip(rope_tables(64, 100, 1e6, nothing), rope_tables(64, 100, 1e6)):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("scaling", (LINEAR | {"factor": 1}, YARN | {"factor": 1}))
def test_factor_one_changes_nothing(scaling):
    inv_freq, attention_factor = scaled_frequencies(64, 1e6, scaling)
    torch.testing.assert_close(inv_freq, rope_frequencies(64, 1e6), **SAME)
    assert attention_factor == 1


def test_canonical_form():
    full = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": None,
        "truncate": True,
    }
    assert (
        check_scaling(YARN) == full
        and check_scaling(full) == full
        and list(check_scaling(YARN)) == list(full)
    )
    assert (
        check_scaling({"type": "yarn", "factor": 4, "original_max_position_embeddings": 2048})
        == full
    )
    assert check_scaling({"rope_type": "linear", "type": "linear", "factor": 2}) == {
        "rope_type": "linear",
        "factor": 2.0,
    }
    given = dict(YARN)
    check_scaling(given)["factor"] = 9
    assert given == YARN  # a copy; the caller's dict stays
    assert scaled_frequencies(64, 1e6, YARN | {"attention_factor": 1})[1] == 1


@pytest.mark.parametrize(
    "scaling,parts",
    (
        ("yarn", ["'yarn'", "not a dict"]),
        ([], ["[]", "not a dict"]),
        ([1], ["[1]", "not a dict"]),
        (4, ["4", "not a dict"]),
        ({"factor": 2.0}, ["no rope_type", "'yarn'"]),
        ({"rope_type": "dynamic", "factor": 2.0}, ["'dynamic'", "'linear'"]),
        ({"rope_type": None}, ["None", "'linear'"]),
        ({"rope_type": ["yarn"]}, ["['yarn']", "'linear'"]),
        (
            {"rope_type": "yarn", "type": "linear", "factor": 2.0},
            ["'type': 'linear'", "only rope_type"],
        ),
        ({"rope_type": "default", "factor": 2.0}, ["factor", "remove"]),
        ({"rope_type": "linear"}, ["lacks factor", "number of at least 1"]),
        (
            {"rope_type": "yarn", "factor": 2.0},
            ["lacks original_max_position_embeddings", "training length"],
        ),
        ({"rope_type": "yarn"}, ["factor", "original_max_position_embeddings"]),
        (YARN | {"beta": 3}, ["'beta'", "remove", "beta_fast"]),
        (LINEAR | {"beta_fast": 3}, ["'beta_fast'", "remove"]),
        (YARN | {"rope_theta": 1e6}, ["'rope_theta'", "remove"]),
        (YARN | {1: 2}, ["[1]", "remove"]),
        *(
            (base | {"factor": bad}, [f"factor={bad!r}", "at least 1"])
            for base in (LINEAR, YARN)
            for bad in (0.5, 0, -2, math.inf, math.nan, "4", None, True, [4])
        ),
        *(
            (YARN | {"original_max_position_embeddings": bad}, [f"={bad!r}", "whole number"])
            for bad in (0, -1, 2048.0, "2048", None, True)
        ),
        *(
            (YARN | {key: bad}, [f"{key}={bad!r}", "positive"])
            for key in ("beta_fast", "beta_slow", "attention_factor")
            for bad in (0, -1.0, math.inf, math.nan, "1", True)
        ),
        *((YARN | {key: None}, [f"{key}=None"]) for key in ("beta_fast", "beta_slow", "truncate")),
        (YARN | {"beta_fast": 1}, ["beta_fast=1.0", "beta_slow=1.0", "larger"]),
        (YARN | {"beta_slow": 40}, ["beta_fast=32.0", "beta_slow=40.0", "larger"]),
        *((YARN | {"truncate": bad}, [f"truncate={bad!r}", "True or False"]) for bad in (1, "yes")),
    ),
    ids=str,
)
def test_errors_of_check_scaling(scaling, parts):
    with pytest.raises(ValueError) as e:
        check_scaling(scaling)
    for part in parts:
        assert part in str(e.value)
    if scaling:
        with pytest.raises(ValueError):
            rope_tables(32, 8, 1e6, scaling)


@pytest.mark.parametrize(
    "call,part",
    (
        (lambda: rope_frequencies(31), "31"),
        (lambda: scaled_frequencies(31, 1e6, YARN), "31"),
        (lambda: scaled_frequencies(32, 1.0, YARN), "theta=1.0"),
        (lambda: scaled_frequencies(32, 0.5, YARN), "theta=0.5"),
        (lambda: ntk_theta(31, 1e6, 2), "31"),
        (lambda: ntk_theta(2, 1e6, 2), "2"),
        *(
            (lambda f=f: ntk_theta(32, 1e6, f), f"factor={f}")
            for f in (0.5, -1, math.inf, math.nan)
        ),
        (lambda: apply_rope(torch.zeros(1, 8, 1, 31), *torch.zeros(2, 8, 31)), "31"),
        (lambda: apply_rope(torch.zeros(1, 9, 1, 32), *rope_tables(32, 8)), "(8, 32)"),
    ),
)
def test_other_errors(call, part):
    with pytest.raises(ValueError) as e:
        call()
    assert part in str(e.value)


@pytest.mark.parametrize(
    "head_dim,theta,factor", list(itertools.product((4, 32, 80), (1e4, 1e6), (1, 2.5, 16)))
)
def test_ntk_slows_the_slowest_by_the_factor(head_dim, theta, factor):
    ratio = rope_frequencies(head_dim, ntk_theta(head_dim, theta, factor)) / rope_frequencies(
        head_dim, theta
    )
    assert ratio[0] == 1 and (ratio.diff() <= 1e-6).all()
    torch.testing.assert_close(ratio[-1].item(), 1 / factor, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scaling", (None, LINEAR, YARN))
def test_tables_and_scores(scaling):
    """Halves are equal but for the sign of the sines; scores depend on the distance only; lengths change by the attention factor
    and nothing else."""
    inv_freq, attention_factor = scaled_frequencies(32, 1e6, scaling)
    cos, sin = rope_tables(32, 600, 1e6, scaling)
    assert cos.shape == sin.shape == (600, 32) and cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos[:, :16], cos[:, 16:]) and torch.equal(sin[:, :16], -sin[:, 16:])
    exact = torch.outer(torch.arange(600.0).double(), inv_freq.double())
    # a float32 angle near 600 is off by up to 3e-5
    torch.testing.assert_close(
        cos[:, :16].double(), exact.cos() * attention_factor, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        sin[:, 16:].double(), exact.sin() * attention_factor, atol=1e-4, rtol=0
    )
    q, k = torch.randn(2, 1, 50, 2, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        apply_rope(q, cos[:50], sin[:50]).norm(dim=-1), attention_factor * q.norm(dim=-1)
    )
    scores = [
        torch.einsum(
            "bthd,bshd->bhts",
            apply_rope(q, cos[i : i + 50], sin[i : i + 50]),
            apply_rope(k, cos[i : i + 50], sin[i : i + 50]),
        )
        for i in (0, 550)
    ]
    torch.testing.assert_close(*scores, atol=5e-3, rtol=0)
    torch.testing.assert_close(
        scores[0].diagonal(dim1=-2, dim2=-1),
        attention_factor**2 * torch.einsum("bthd,bthd->bht", q, k),
        atol=1e-4,
        rtol=1e-4,
    )


def test_tables_equal_a_qwen3_with_yarn():
    "The whole rotary module of a Hugging Face model, attention factor included."
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    module = Qwen3RotaryEmbedding(
        Qwen3Config(
            head_dim=32, rope_parameters=YARN | {"rope_theta": 1e6}, max_position_embeddings=8192
        )
    )
    theirs = module(torch.zeros(1), torch.arange(8192)[None])
    # frequencies differ in the last bit (6e-8 of itself), which position 8,191 turns into 1e-3 of a
    # radian for the fastest mixed pair
    cos, sin = rope_tables(32, 8192, 1e6, YARN)
    # theirs put the sign on the queries and keys
    for ours, their in zip((cos, sin * torch.tensor([-1.0, 1.0]).repeat_interleave(16)), theirs):
        torch.testing.assert_close(ours, their[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("scaling", (None, YARN))
def test_the_sign_in_the_table_changes_no_bit(dtype, scaling):
    "Against the rotation with the minus on a plain sine, and without its passes over the tables."
    x = torch.randn(2, 40, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    cos, sin = rope_tables(32, 40, 1e6, scaling)
    inv_freq, attention_factor = scaled_frequencies(32, 1e6, scaling)
    angles = torch.outer(torch.arange(40.0), inv_freq).repeat(1, 2)
    plain = angles.sin() * attention_factor
    signed = torch.cat([-plain[..., :16], plain[..., 16:]], dim=-1)
    want = torch.addcmul(x * cos.unsqueeze(-2), x.roll(16, dims=-1), signed.unsqueeze(-2))
    assert torch.equal(apply_rope(x, cos, sin), want.to(dtype))
    called = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            called.append(f._schema.name.removeprefix("aten::"))
            return f(*args, **(kwargs or {}))

    with Calls():
        apply_rope(x, cos, sin)
    rounded = ["_to_copy"] if dtype == torch.bfloat16 else []
    assert sorted(set(called)) == sorted([*rounded, "addcmul", "mul", "roll", "unsqueeze"])
