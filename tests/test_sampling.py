"The draw of a token, where a device or a model could make it go wrong."

import math

import numpy as np
import pytest
import torch

from minimind.generate import generate
from minimind.model import MiniMind, ModelConfig
from minimind.sampling import draw_next, warp_logits
from shared import SHAPE


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_are_an_error_also_greedily(broken, temperature):
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    draw_next(logits, temperature)
    if broken == -math.inf:
        logits[1, :9] = broken  # tokens that are cut away are no fault
        assert draw_next(logits, temperature)[0][1] == 9
        logits[1] = broken
    else:
        logits[1, 4] = broken
    with pytest.raises(ValueError, match="not finite: its weights are broken"):
        draw_next(logits, temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_broken_model_does_not_write(temperature):
    model = MiniMind(ModelConfig(**SHAPE)).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="its weights are broken"):
        generate(model, [1, 5, 6], 4, temperature=temperature)


def blocked_scan(x, items=4, warp=32):
    """A running sum as some GPUs make it for one row: within a thread, within a warp, over the
    warps. Each part is rounded for itself, so the whole does not only grow."""
    row = x[0].numpy()
    padded = np.pad(row, (0, -len(row) % (items * warp))).reshape(-1, warp, items)
    own = np.cumsum(padded, -1, dtype=np.float32)
    total, distance = own[..., -1].copy(), 1
    while distance < warp:
        shifted = total.copy()
        shifted[:, distance:] = total[:, distance:] + total[:, :-distance]
        total, distance = shifted, 2 * distance
    before = np.concatenate([np.zeros_like(total[:, :1]), total[:, :-1]], 1)
    warps = np.concatenate([[np.float32(0)], np.cumsum(total[:, -1], dtype=np.float32)[:-1]])
    out = (warps[:, None] + before).astype(np.float32)[..., None] + own
    return torch.from_numpy(out.astype(np.float32).reshape(-1)[: len(row)])[None]


def test_what_was_cut_away_is_never_drawn_whatever_the_device_rounds(monkeypatch):
    """The sums of such a device step up or down at tokens without probability. Darts are thrown at
    just these steps."""
    generator = torch.Generator().manual_seed(0)
    probed = 0
    for _ in range(20):
        logits = 3 * torch.randn(1, 6400, generator=generator)
        warped = warp_logits(logits, 1.0, top_p=0.9)
        probs = warped.exp()
        running = blocked_scan(probs)[0].double()
        steps = ((probs[0, 1:] == 0) & (running[1:] > running[:-1])).nonzero()[:, 0]
        middles = (running[steps] + running[steps + 1]) / 2 / running[-1]
        monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: blocked_scan(self))
        for dart in middles.float():
            token, logp = draw_next(warped, 1.0, uniform=dart[None])
            assert probs[0, token] > 0 and logp.isfinite()
            # it is near: what lies between has no probability to speak of
            near = float(running[token] / running[-1]) - float(dart)
            assert -1e-5 < near < float(probs[0, token]) / float(running[-1]) + 1e-5
            probed += 1
        monkeypatch.undo()
    assert probed > 50


def test_shares_of_many_draws_are_the_probabilities():
    "Pearson's chi-square of 20,000 draws, with fresh numbers and under top-k and top-p."
    torch.manual_seed(1)
    logits = torch.randn(1, 40) * 2
    for how in (dict(), dict(top_k=12), dict(top_p=0.9), dict(temperature=0.6, top_p=0.95)):
        want = warp_logits(logits, **how).softmax(-1)[0].double() * 20_000
        tokens, logps = draw_next(logits.expand(20_000, -1), **how)
        torch.testing.assert_close(logps.double(), (want[tokens] / 20_000).log(), rtol=0, atol=1e-5)
        counts = tokens.bincount(minlength=40).double()
        assert not counts[want == 0].any()
        likely = want > 5
        chi = ((counts - want)[likely] ** 2 / want[likely]).sum()
        degrees = int(likely.sum()) - 1
        # the mean of chi-square is its degrees, its variance twice that: four standard deviations
        assert chi < degrees + 4 * math.sqrt(2 * degrees), how


def test_a_row_draws_the_same_alone_and_in_company():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(64, 500, generator=generator)
    uniform = torch.rand(64, generator=generator)
    together, logps = draw_next(logits, 0.9, top_p=0.9, uniform=uniform)
    for i in range(64):
        token, logp = draw_next(logits[i : i + 1], 0.9, top_p=0.9, uniform=uniform[i : i + 1])
        assert token == together[i] and torch.allclose(logp, logps[i])
