"""From logits to a token: the rules against Hugging Face's and against plain Python, the noise
against a reference and against chance, and a row's draw, which is the same in any company."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st

from minimind.generate import generate
from minimind.model import MiniMind, ModelConfig
from minimind.sampling import (
    _adjusted,
    _race,
    Draw,
    SampledRow,
    Sampling,
    draw_next,
    draw_rows,
    exponential_noise,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    sample_next,
    spread_seed,
    warp_logits,
)
from shared import SHAPE

V = 61


def some_logits(seed, rows, size=V, spread=3.0):
    return spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


# ---- the rules, against Hugging Face


@given(
    st.integers(0, 999),
    st.floats(0.1, 3),
    st.integers(0, 80),
    st.floats(0.05, 1),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    st.floats(0.2, 8),
)
@example(0, 1.0, 0, 1e-6, 0.0, 1.0)
@example(0, 1.0, 1, 1.0, 0.0, 1.0)
def test_warped_like_hugging_face(seed, temperature, top_k, top_p, min_p, spread):
    from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = some_logits(seed, 3, spread=spread)
    chain = [TemperatureLogitsWarper(temperature)]
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    before = LogitsProcessorList(chain)(None, logits).softmax(-1)
    chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [MinPLogitsWarper(min_p)] if min_p else []
    want = LogitsProcessorList(chain)(None, logits).softmax(-1)
    got = warp_logits(logits, temperature, top_k, top_p, min_p).softmax(-1)
    # a token right at a border may be rounded to either side
    mass = before.sort(descending=True).values.cumsum(-1)
    ratio = before / before.amax(-1, keepdim=True)
    at_border = ((mass - top_p).abs().amin(-1) < 1e-5) | ((ratio - min_p).abs().amin(-1) < 1e-6)
    clear = ~at_border if top_p < 1 or min_p else torch.ones(3, dtype=torch.bool)
    assert ((want > 0) == (got > 0))[clear].all()
    torch.testing.assert_close(got[clear], want[clear], atol=1e-6, rtol=1e-4)


@given(st.integers(0, 999), st.floats(0.01, 1))
def test_min_p_like_hugging_face(seed, p):
    from transformers import MinPLogitsWarper

    logits = some_logits(seed, 5, 200)
    assert torch.equal(keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits))


@given(st.integers(0, 999), st.floats(0.5, 4))
def test_penalised_like_hugging_face(seed, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = some_logits(seed, 3)
    ids = torch.randint(V, (3, 10), generator=torch.Generator().manual_seed(seed))
    seen = torch.zeros(3, V, dtype=torch.bool).scatter_(1, ids, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(penalise(logits, seen, penalty), theirs)


@given(st.integers(0, 999), st.floats(0.01, 1), st.sampled_from([5, 300, 1000]), st.floats(0, 8))
def test_nucleus_is_the_smallest_set(seed, p, size, spread):
    "Also where the nucleus is larger than the 256 candidates that are looked at first."
    logits = some_logits(seed, 2, size, spread)
    probs, kept = logits.softmax(-1), keep_top_p(logits, p).isfinite()
    for row in range(2):
        inside, outside = probs[row][kept[row]], probs[row][~kept[row]]
        assert len(inside) and inside.sum() >= p - 1e-5
        # without its least, and those equal to it, it would be too small
        assert inside[inside > inside.min()].sum() < p + 1e-5
        assert not len(outside) or outside.max() < inside.min()


def test_equals_of_the_last_one_stay():
    "Which of them came first in a sorted list would be an accident of device and company."
    assert keep_top_k(torch.zeros(1, 4), 2).isfinite().all()
    assert keep_top_p(torch.zeros(1, 4), 0.3).isfinite().all()
    assert keep_min_p(torch.zeros(1, 4), 1.0).isfinite().all()
    two = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert keep_top_p(two, 0.1).isfinite().tolist() == [[False, True, True, False]]


@given(st.integers(0, 999), st.integers(1, 90))
def test_top_k_keeps_k(seed, k):
    assert (keep_top_k(some_logits(seed, 2), k).isfinite().sum(-1) == min(k, V)).all()


def test_extreme_temperatures():
    logits = torch.tensor([[3.0, 1.0, 3.5, -2.0]])
    for tiny in (0, 1e-3, 1e-30, 1e-60, 5e-324):
        assert sample_next(logits, tiny).item() == 2
        assert sample_next(logits.expand(2, -1), [tiny, 1e-9]).tolist() == [2, 2]
    assert warp_logits(1e4 * logits, 1e-37).softmax(-1).isfinite().all()
    assert torch.allclose(warp_logits(logits, 1e6).softmax(-1), torch.full((1, 4), 0.25), atol=1e-4)
    assert sample_next(torch.tensor([[0.0, -torch.inf]]), 1.0).item() == 0


# ---- the draw


@given(st.integers(0, 2**64), st.integers(1, 5), st.integers(0, 10**6))
def test_a_draw_is_never_of_a_removed_token(seed, top_k, number):
    logits = some_logits(seed % 1000, 5, spread=4)
    drawn = sample_next(logits, 1.0, top_k, draws=[Draw(seed + i, number) for i in range(5)])
    assert keep_top_k(logits, top_k).gather(1, drawn[:, None]).isfinite().all()


def test_the_longest_time_is_still_shorter_than_for_ever():
    "A token alone wins also with the worst luck that there is, found among millions."
    worst, size, token = Draw(713), 6400, 2322
    assert exponential_noise([worst], size)[0, token] == -torch.tensor(2.0**-24).log()
    logits = torch.full((1, size), -torch.inf)
    logits[0, token] = 0
    assert sample_next(logits, draws=[worst]) == token


def test_the_best_luck_brings_no_removed_token_in():
    noise = torch.tensor([[1e-30, 16.6, 2.0**-32]])
    token, logp = _race(torch.tensor([[-torch.inf, 0.0, -torch.inf]]), noise)
    assert token == 1 and logp == 0
    # 2^-40 is no probability at all, and yet more than none
    assert _race(torch.tensor([[-torch.inf, 0.0, -40 * math.log(2)]]), noise)[0] == 1


def chi_square_fits(counts, want):
    "Pearson's test. The mean of chi-square is its degrees, its variance twice that: four spreads."
    assert not counts[want == 0].any()
    likely = want > 5
    chi = ((counts - want)[likely] ** 2 / want[likely]).sum()
    degrees = int(likely.sum()) - 1
    assert chi < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "how",
    [
        dict(),
        dict(top_k=12),
        dict(top_p=0.9),
        dict(min_p=0.05),
        dict(temperature=0.6, top_k=30, top_p=0.95, min_p=0.01),
    ],
    ids=str,
)
def test_shares_of_many_draws_are_the_probabilities(how):
    "Over the draws of one seed, over seeds side by side, over seeds of one batch, over torch's."
    n = 20_000
    logits = some_logits(1, 1, 40, spread=2)
    want = warp_logits(logits, **how).softmax(-1)[0].double() * n
    torch.manual_seed(1)
    for draws in (
        [Draw(5, i) for i in range(n)],
        [Draw(i) for i in range(n)],
        [Draw(seed, 3) for seed in spread_seed(9, n)],
        None,
    ):
        tokens, logps = draw_next(logits.expand(n, -1), **how, draws=draws)
        torch.testing.assert_close(logps.double(), (want[tokens] / n).log(), rtol=0, atol=1e-5)
        chi_square_fits(tokens.bincount(minlength=40).double(), want)


@given(
    st.integers(0, 999),
    st.floats(0.2, 3),
    st.sampled_from([0, 3, 9]),
    st.sampled_from([1.0, 0.7]),
    st.sampled_from([0.0, 0.1]),
)
def test_a_draw_tells_its_probability(seed, temperature, top_k, top_p, min_p):
    how = temperature, top_k, top_p, min_p
    logits = some_logits(seed, 6, spread=4)
    tokens, logps = draw_next(logits, *how, draws=[Draw(seed, i) for i in range(6)])
    want = warp_logits(logits, *how).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    # one more rounding, or one less, of sums of 61 numbers
    torch.testing.assert_close(logps, want, atol=2e-5, rtol=1e-5)
    tokens, logps = draw_next(logits, 0)
    assert logps.tolist() == [0.0] * 6 and torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cut", [{}, dict(top_k=3), dict(top_p=0.9), dict(min_p=0.1)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.7, [0.0, 0.7, 0.7], [0.7, 0.0, 0.7]], ids=str)
def test_logits_that_are_not_finite_are_an_error_also_greedily(broken, cut, temperature):
    for size in (10, 300):
        logits = some_logits(0, 3, size, spread=1)
        draw_next(logits, temperature, **cut)
        if broken == -math.inf:
            logits[1, :9] = logits[1, 10:] = broken  # tokens that are cut away are no fault
            assert draw_next(logits, temperature, **cut)[0][1] == 9
            logits[1] = broken
        else:
            logits[1, 4] = broken
        with pytest.raises(ValueError, match="not finite: its weights are broken"):
            draw_next(logits, temperature, **cut)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_broken_model_does_not_write(temperature):
    model = MiniMind(ModelConfig(**SHAPE)).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="its weights are broken"):
        generate(model, [1, 5, 6], 4, temperature=temperature)


# ---- noise


def reference_noise(seed, number, size):
    "The same function in numpy's unsigned numbers."
    u64, u32 = np.uint64, np.uint32
    with np.errstate(over="ignore"):
        key = u64(seed % 2**64) + u64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> u64(30))) * u64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> u64(27))) * u64(0x94D049BB133111EB)
        key ^= key >> u64(31)
        low, high = u32(int(key) % 2**32), u32(int(key) >> 32)
        x = np.arange(size, dtype=u32) + u32(number * size % 2**32)
        x = x * u32(0x9E3779B9) + low
        x = (x ^ (x >> u32(16))) * u32(0x7FEB352D) ^ high
        x = (x ^ (x >> u32(15))) * u32(0x846CA68B)
    # u - 1 for a uniform u, rounded to float32; near -1 its numbers lie 2^-24 apart
    below = (x >> u32(1)).astype(np.float64) - 2**31
    below = (below.astype(np.float32) + np.float32(0.5)) * np.float32(2**-31)
    return -np.log1p(np.maximum(below, np.float32(2**-24 - 1)).astype(np.float64))


seeds = st.one_of(st.integers(-(2**70), 2**70), st.sampled_from([0, 1, -1, 2**63, 2**64 - 1]))


@given(
    st.lists(st.tuples(seeds, st.integers(0, 10**7)), min_size=1, max_size=5),
    st.sampled_from([1, 7, 64, 999, 6400]),
)
def test_noise_is_the_reference(draws, size):
    got = exponential_noise([Draw(*d) for d in draws], size)
    assert got.dtype == torch.float32 and got.shape == (len(draws), size)
    # float32's logarithm is right to its last digit or the one before
    for row, (seed, number) in zip(got.numpy(), draws):
        np.testing.assert_allclose(row, reference_noise(seed, number, size), rtol=3e-7)


@given(st.lists(st.tuples(seeds, st.integers(0, 10**7)), min_size=1, max_size=9), st.randoms())
def test_noise_is_a_rows_own(draws, random):
    draws = [Draw(*d) for d in draws]
    shuffled = random.sample(draws, len(draws))
    for size in (61, 640):
        together = dict(zip(shuffled, exponential_noise(shuffled, size)))
        for draw in draws:
            assert torch.equal(exponential_noise([draw], size)[0], together[draw])


def uniform(draws, size):
    return (-exponential_noise(draws, size).double()).exp()


WAYS = {
    "tokens of a draw": lambda: uniform([Draw(3)], 2**18)[0],
    "draws of a seed": lambda: uniform([Draw(3, i) for i in range(2**14)], 61)[:, 5],
    "seeds side by side": lambda: uniform([Draw(s) for s in range(2**14)], 61)[:, 5],
    "seeds of a batch": lambda: uniform([Draw(s) for s in spread_seed(3, 2**14)], 61)[:, 5],
    "high bits of a seed": lambda: uniform([Draw(s << 40) for s in range(2**14)], 61)[:, 5],
}


@pytest.mark.parametrize("way", WAYS)
def test_noise_is_uniform_in_every_direction(way):
    "Kolmogorov and Smirnov's distance, and what neighbours have to do with each other."
    u = WAYS[way]()
    n = len(u)
    ordered = u.sort().values
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = torch.maximum(steps - ordered, ordered - steps + 1 / n).max() * math.sqrt(n)
    # of chance, one in a thousand is beyond 1.95
    assert distance < 1.95
    # for each lag: mean of products, whose variance is 1 / 144; four standard errors
    for lag in (1, 2, 3, 61, 64):
        product = ((u[lag:] - 0.5) * (u[:-lag] - 0.5)).mean()
        assert abs(product) * 12 * math.sqrt(n - lag) < 4, lag
    # pairs of neighbours fall evenly on a grid of 16 by 16
    cells = (16 * u[:-1]).long() * 16 + (16 * u[1:]).long()
    counts = cells.bincount(minlength=256).double()
    chi_square_fits(counts, torch.full_like(counts, (n - 1) / 256))


def test_every_bit_of_a_seed_and_of_a_draw_changes_half_of_the_bits():
    "Of the 16 highest of each number, for 500 tokens: 8,000 bits a pair."

    def high(draw):
        return (uniform([draw], 500)[0] * 2**16).long()

    for seed in (0, 12345, 2**64 - 1):
        others = [Draw(seed ^ 1 << bit) for bit in range(64)]
        others += [Draw(seed, 1 << bit) for bit in range(20)]
        here = high(Draw(seed))
        for other in others:
            different = here ^ high(other)
            share = sum(((different >> bit) & 1).double().mean() for bit in range(16)) / 16
            # five standard errors, for 252 pairs
            assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(8000), other


def test_the_first_of_a_race_have_fine_times():
    """Who is first has a time near 0; there the numbers must not be coarse, or many would arrive
    together. With 23 bits 200 of these 1,000 would."""
    noise = exponential_noise([Draw(1, i) for i in range(640)], 6400).flatten()
    first = noise.topk(1000, largest=False).values
    assert len(first.unique()) > 990
    # below 1000 / n lie about a thousand: four standard errors
    assert abs(int((noise < 1000 / len(noise)).sum()) - 1000) < 4 * math.sqrt(1000)
    assert noise.min() > 0 and noise.isfinite().all()


# ---- seeds


def test_seeds_of_a_batch():
    assert spread_seed(7, 1) == [7] == spread_seed(np.int64(7), 1)
    assert spread_seed(7, 5)[:3] == spread_seed(7, 3) and len(set(spread_seed(7, 1000))) == 1000
    assert spread_seed(-1, 1) == [2**64 - 1] == spread_seed([-1], 1)
    assert spread_seed([3, np.int32(4), 2**64 + 5], 3) == [3, 4, 5]
    assert not set(spread_seed(0, 1000)) & set(spread_seed(1, 1000))
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        spread_seed([1, 2], 3)


def test_all_64_bits_of_a_seed_count():
    rows = exponential_noise([Draw(5), Draw(5 + 2**32), Draw(5 + 2**63), Draw(5 + 2**64)], 100)
    assert not (rows[0] == rows[1]).any() and not (rows[0] == rows[2]).any()
    assert torch.equal(rows[0], rows[3])


def test_without_a_seed_torch_decides():
    logits = some_logits(0, 50)

    def draw():
        rows = [SampledRow(Sampling(), [], V) for _ in range(50)]
        return sample_next(logits), draw_rows(logits, rows).tokens

    torch.manual_seed(3)
    a, b = draw(), draw()
    torch.manual_seed(3)
    again = draw()
    for i in range(2):
        assert torch.equal(a[i], again[i]) and not torch.equal(a[i], b[i])


def test_a_seed_leaves_torchs_generator_alone():
    logits = some_logits(0, 2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sample_next(logits, draws=[Draw(1), Draw(2)])
    sample_next(logits, 0)
    ways = Sampling(seed=1), Sampling(temperature=0)
    draw_rows(logits, [SampledRow(how, [], V) for how in ways])
    assert torch.equal(before, torch.get_rng_state())


# ---- rows with settings of their own


@st.composite
def a_row(draw):
    "How a row is sampled, its prompt, its reply so far, and what is banned."
    tokens = st.integers(0, V - 1)
    off_or = lambda off, on: st.one_of(st.just(off), on)
    allowed = draw(st.one_of(st.none(), st.lists(tokens, min_size=12, max_size=40)))
    bias = st.dictionaries(tokens, st.sampled_from([-math.inf, -2.0, 0.5, 3]), max_size=3)
    how = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.3, 0.7, 1, 1.0, 1.7])),
        top_k=draw(off_or(0, st.integers(1, 70))),
        top_p=draw(off_or(1.0, st.floats(0.01, 1))),
        min_p=draw(off_or(0.0, st.floats(0, 1))),
        repetition_penalty=draw(off_or(1.0, st.floats(0.5, 2))),
        presence_penalty=draw(off_or(0.0, st.floats(-2, 2))),
        frequency_penalty=draw(off_or(0.0, st.floats(-2, 2))),
        penalty_exempt=draw(st.lists(tokens, max_size=3)),
        logit_bias=draw(bias),
        allowed=None if allowed is None else lambda drawn: allowed,
        seed=draw(st.integers(0, 2**64)),
        logprobs=draw(st.one_of(st.none(), st.integers(0, 70))),
    )
    banned = draw(st.sets(tokens, max_size=2))
    # something is left: 12 ids may be told twice, 5 may be taken away
    left = set(range(V) if allowed is None else allowed) - banned - set(how.logit_bias)
    assume(left)
    few = st.integers(0, 9)  # so that some come twice
    return how, draw(st.lists(few, max_size=6)), draw(st.lists(few, max_size=8)), banned


def grown(how, prompt, reply, banned, size=V):
    row = SampledRow(how, prompt, size)
    for token in reply:
        row.add(token)
    row.banned = banned
    return row


@given(st.lists(a_row(), min_size=1, max_size=6), st.integers(0, 99), st.booleans())
@settings(max_examples=150)
def test_a_batch_is_each_row_alone_bit_for_bit(rows, seed, coarse):
    logits = some_logits(seed, len(rows))
    if coarse:  # equals are many in bfloat16
        logits = logits.bfloat16()
    before = logits.clone()
    together = draw_rows(logits, [grown(*row) for row in rows])
    assert torch.equal(logits, before)
    for i, row in enumerate(rows):
        alone = draw_rows(logits[i : i + 1], [grown(*row)])
        assert torch.equal(alone.tokens, together.tokens[i : i + 1])
        assert torch.equal(alone.logps, together.logps[i : i + 1])
        assert alone.top == together.top[i : i + 1]


@given(st.lists(st.sampled_from([0.05, 0.5, 0.9, 0.999]), min_size=2, max_size=5))
def test_a_large_vocabulary_too(top_p):
    "Where one row's nucleus needs more than the 256 candidates, and another's does not."
    logits = some_logits(0, len(top_p), 1500, spread=1)
    draws = [Draw(i) for i in range(len(top_p))]
    tokens, logps = draw_next(logits, 1.0, 0, top_p, draws=draws)
    for i, p in enumerate(top_p):
        token, logp = draw_next(logits[i : i + 1], 1.0, 0, p, draws=draws[i : i + 1])
        assert token == tokens[i] and logp == logps[i]


def test_a_list_of_equals_is_the_number():
    logits = some_logits(0, 4)
    draws = [Draw(i) for i in range(4)]
    for how in ((0.7, 5, 0.9, 0.05), (1.3, 0, 0.5, 0.0), (0, 3, 0.9, 0.1)):
        one = draw_next(logits, *how, draws)
        many = draw_next(logits, *([x] * 4 for x in how), draws)
        numpys = draw_next(logits, *([np.array(x)[()]] * 4 for x in how), draws)
        assert all(map(torch.equal, one, many)) and all(map(torch.equal, one, numpys))
    # numpy's float64 in a list must not make the logits wider
    mixed = [np.float64(0.7), 1.5, np.float64(0.3), 2]
    assert warp_logits(logits, mixed, top_p=mixed[:1] + [0.5] * 3).dtype == torch.float32


@given(st.lists(a_row(), min_size=1, max_size=3), st.integers(0, 99))
def test_penalties_bias_and_bans_are_the_formula(rows, seed):
    "What vLLM and OpenAI define, in plain Python: their two penalties count the reply alone."
    logits = some_logits(seed, len(rows))
    got = _adjusted(logits, [grown(*row) for row in rows])
    for i, (how, prompt, reply, banned) in enumerate(rows):
        allowed = range(V) if how.allowed is None else how.allowed(reply)
        want = []
        for token, z in enumerate(logits[i].tolist()):
            if token not in how.penalty_exempt:
                if token in prompt or token in reply:
                    z = z / how.repetition_penalty if z > 0 else z * how.repetition_penalty
                times = reply.count(token)
                z -= how.frequency_penalty * times + how.presence_penalty * (times > 0)
            z += how.logit_bias.get(token, 0)
            want.append(z if token in allowed and token not in banned else -math.inf)
        # some roundings of float32, of numbers up to 30
        torch.testing.assert_close(got[i], torch.tensor(want), atol=1e-5, rtol=1e-6)


def test_penalties_by_hand():
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5, 0.0]])
    row = grown(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [3], [0, 0, 2], (), 5)
    assert _adjusted(logits, [row]).tolist() == [[1.0, 1.0, -1.75, 0.5, 0.0]]
    row = grown(Sampling(repetition_penalty=2.0, penalty_exempt=[0]), [3], [0, 0, 2], (), 5)
    assert _adjusted(logits, [row]).tolist() == [[2.0, 1.0, -2.0, 0.25, 0.0]]


def test_alternatives_are_the_models_own():
    logits = some_logits(0, 3)
    how = dict(temperature=1.5, top_k=3, logit_bias={5: 2.0}, repetition_penalty=1.5)
    ways = [Sampling(**how, seed=1, logprobs=n) for n in (4, None, 0)]
    drawn = draw_rows(logits, [SampledRow(way, [1, 2], V) for way in ways])
    own = logits.log_softmax(-1)
    assert drawn.top[1] is None and list(drawn.top[2]) == [int(drawn.tokens[2])]
    best = own[0].topk(4)
    assert list(drawn.top[0])[:4] == best.indices.tolist()
    assert int(drawn.tokens[0]) in drawn.top[0] and len(drawn.top[0]) <= 5
    for i in (0, 2):
        for token, logp in drawn.top[i].items():
            assert math.isclose(logp, own[i, token], rel_tol=1e-6)
    all_of_them = SampledRow(Sampling(logprobs=1000, seed=0), [], V)
    assert len(draw_rows(logits[:1], [all_of_them]).top[0]) == V


def test_nothing_left_is_an_error():
    logits = some_logits(0, 1)
    ways = [
        (Sampling(allowed=lambda drawn: []), ()),
        (Sampling(allowed=lambda drawn: [3, 4], temperature=0), (3, 4)),
        (Sampling(allowed=lambda drawn: [3], logit_bias={3: -math.inf}), ()),
        (Sampling(), range(V)),
    ]
    for how, banned in ways:
        row = SampledRow(how, [], V)
        row.banned = banned
        with pytest.raises(ValueError, match="no token is left to draw"):
            draw_rows(logits, [row])


def test_allowed_is_asked_with_what_was_drawn():
    heard = []

    def allowed(drawn):
        heard.append(drawn)
        return [len(drawn)]

    row = SampledRow(Sampling(allowed=allowed, seed=0), [9, 9], V)
    for _ in range(3):
        row.add(int(draw_rows(some_logits(0, 1), [row]).tokens))
    assert row.drawn == [0, 1, 2] and heard == [[], [0], [0, 1]]


@pytest.mark.parametrize("token", [-1, V])
def test_tokens_that_do_not_exist_are_an_error(token):
    with pytest.raises(ValueError, match=f"token {token}: there are only 0…60"):
        SampledRow(Sampling(logit_bias={token: 1.0}), [], V)
    row = SampledRow(Sampling(allowed=lambda drawn: [3, token]), [], V)
    with pytest.raises(ValueError, match=f"token {token}: there are only 0…60"):
        draw_rows(some_logits(0, 1), [row])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-0.1),
        dict(temperature=math.nan),
        dict(temperature=math.inf),
        dict(temperature="hot"),
        dict(top_k=-1),
        dict(top_k=2.5),
        dict(top_p=0),
        dict(top_p=1.1),
        dict(min_p=-0.1),
        dict(min_p=1.1),
        dict(repetition_penalty=0),
        dict(presence_penalty=math.nan),
        dict(frequency_penalty=math.inf),
        dict(logit_bias={3: math.nan}),
        dict(logit_bias={3: math.inf}),
        dict(logit_bias={"3": 1.0}),
        dict(logit_bias=[3]),
        dict(allowed=[1, 2]),
        dict(seed=1.5),
        dict(seed="1"),
        dict(logprobs=-1),
        dict(logprobs="3"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_an_error(wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*: must be "):
        Sampling(**wrong)


def test_numpys_numbers_are_settings():
    how = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int64(4))
    same = Sampling(temperature=0.5, top_k=3, seed=4)
    logits = some_logits(0, 1)
    tokens = [int(draw_rows(logits, [SampledRow(h, [], V)]).tokens) for h in (how, same)]
    assert tokens[0] == tokens[1]
