"""DPO: the losses against TRL's numbers, pairs that are read strictly and cut on the left, batches
that never tear a pair, a reference that is never stale, and a stage that resumes exactly."""

import importlib
import json
import math
import shutil
import signal
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from minimind import dpo, train
from minimind.chat import encode_chat
from minimind.hub import load_pretrained, read_tensors, save_pretrained, write_tensors
from minimind.core import IGNORE, read_json, sample, write_json
from minimind.data import BadLine, JsonlReader
from minimind.dpo import (
    PREFERENCE_LOSSES,
    DPOConfig,
    PairBatches,
    Pairs,
    cached_reference,
    dpo_loss,
    encode_pair,
    measure_pairs,
    pair_logps,
    pair_row,
    preference_loss,
    read_pairs,
    reference_logps,
)
from minimind.losses import token_logprobs
from minimind.model import MiniMind, ModelConfig
from minimind.tokenizer import Tokenizer
from minimind.train import TrainConfig, compute_gradients
from minimind.log import read_metrics
from shared import SHAPE


# Four pairs, exact in binary, and what TRL makes of them. sigmoid, hinge and ipo: TRL 1.16.0,
# DPOTrainer._compute_loss run on these sums (float64);
# label smoothing: TRL 0.12.2, DPOTrainer.dpo_loss (later versions give the name to another loss).
# (loss, gradient by the chosen, by the rejected)
SUMS = (
    [-12.5, -3.25, -40.0, -7.75],
    [-14.0, -2.5, -38.5, -30.25],
    [-13.0, -3.0, -36.0, -9.5],
    [-12.25, -2.75, -41.5, -21.0],
)
LENGTHS = torch.tensor([[6, 9], [3, 2], [20, 17], [5, 12]])
TRL = {
    ("sigmoid", 0.1, 0.0): (
        0.6739857560159697,
        [-0.011099652736384504, -0.012812434912105259, -0.016704694304204154, -0.00624349736012206],
        [0.011099652736384504, 0.012812434912105259, 0.016704694304204154, 0.00624349736012206],
    ),
    ("sigmoid", 0.5, 0.0): (
        1.1602296044175875,
        [-0.030635626641546485, -0.07027206261072477, -0.12133597115608045, -0.0005087672144870159],
        [0.030635626641546485, 0.07027206261072477, 0.12133597115608045, 0.0005087672144870159],
    ),
    ("sigmoid", 0.1, 0.1): (
        0.6883607560159697,
        [-0.008599652736384505, -0.01031243491210526, -0.014204694304204154, -0.003743497360122061],
        [0.008599652736384505, 0.01031243491210526, 0.014204694304204154, 0.003743497360122061],
    ),
    ("sigmoid", 0.1, 0.3): (
        0.7171107560159696,
        [
            -0.003599652736384501,
            -0.005312434912105257,
            -0.009204694304204154,
            0.0012565026398779402,
        ],
        [0.003599652736384501, 0.005312434912105257, 0.009204694304204154, -0.0012565026398779402],
    ),
    ("hinge", 0.1, 0.0): (0.88125, [-0.025, -0.025, -0.025, 0.0], [0.025, 0.025, 0.025, 0.0]),
    ("hinge", 0.5, 0.0): (1.4375, [0.0, -0.125, -0.125, 0.0], [0.0, 0.125, 0.125, 0.0]),
    ("ipo", 0.1, 0.0): (
        23.345122210274358,
        [-0.39351851851851855, -0.8680555555555555, -0.13441176470588237, -0.38791666666666663],
        [0.2623456790123457, 1.3020833333333333, 0.15813148788927334, 0.16163194444444443],
    ),
    ("ipo", 0.5, 0.0): (
        0.9727365893593276,
        [-0.06018518518518521, -0.20138888888888887, -0.03441176470588235, 0.012083333333333335],
        [0.040123456790123475, 0.3020833333333333, 0.040484429065743954, -0.0050347222222222225],
    ),
}


def sums(dtype=torch.float64, values=SUMS):
    return [torch.tensor(x, dtype=dtype, requires_grad=i < 2) for i, x in enumerate(values)]


def value_and_gradients(dtype, beta, loss_type, smoothing, values=SUMS, lengths=LENGTHS):
    logps = sums(dtype, values)
    loss, metrics = dpo_loss(
        *logps, beta=beta, loss_type=loss_type, label_smoothing=smoothing, lengths=lengths
    )
    return loss.detach(), torch.autograd.grad(loss, logps[:2]), metrics


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", TRL)
def test_losses_and_gradients_are_trls(kind, dtype, tolerance):
    loss_type, beta, smoothing = kind
    loss, gradients, metrics = value_and_gradients(dtype, beta, loss_type, smoothing)
    want, *want_gradients = TRL[kind]
    assert float(loss) == pytest.approx(want, rel=tolerance)
    for got, wanted in zip(gradients, want_gradients):
        torch.testing.assert_close(
            got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=tolerance, atol=tolerance
        )
    # TRL's rewards/chosen, …/rejected, …/accuracies, …/margins
    rewards = {
        k: float(metrics[k]) for k in ("chosen_reward", "rejected_reward", "accuracy", "margin")
    }
    assert rewards == pytest.approx(
        dict(
            chosen_reward=-0.5 * beta,
            rejected_reward=-1.9375 * beta,
            accuracy=0.5,
            margin=1.4375 * beta,
        ),
        rel=1e-6,
    )


def trl_loss(trainer, values, lengths, beta, loss_type):
    """TRL's own method, on an object that has the attributes which it reads; the sums are spread
    evenly over the tokens."""
    logps, P, T = sums(values=values), len(lengths), int(lengths.max()) + 1
    mask = torch.zeros(2 * P, T, dtype=torch.long)
    for row, n in enumerate(lengths.T.flatten().tolist()):
        mask[row, 1 : 1 + n] = 1
    per_token = (torch.cat(logps[:2]) / mask.sum(1))[:, None] * mask[:, 1:]
    nothing = torch.zeros(2 * P, T - 1)
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    me = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    inputs = dict(
        input_ids=mask,
        attention_mask=torch.ones_like(mask),
        completion_mask=mask,
        ref_chosen_logps=logps[2],
        ref_rejected_logps=logps[3],
    )
    loss = trainer._compute_loss(me, lambda **_: outputs, inputs, False)
    return loss.detach(), torch.autograd.grad(loss, logps[:2])


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_losses_and_gradients_are_those_of_trl_itself(loss_type, beta):
    trl = pytest.importorskip(
        "trl", minversion="1.16", reason="TRL is no dependency; its numbers stand above"
    )
    trainer = importlib.import_module("trl.trainer.dpo_trainer").DPOTrainer
    generator = np.random.default_rng(0)
    values, lengths = (
        (-generator.exponential(20, (4, 16))).tolist(),
        torch.from_numpy(generator.integers(1, 30, (16, 2))),
    )
    try:
        want, want_gradients = trl_loss(trainer, values, lengths, beta, loss_type)
    except AttributeError as e:
        pytest.skip(f"TRL {trl.__version__} reads other attributes: {e}")
    loss, gradients, _ = value_and_gradients(torch.float64, beta, loss_type, 0.0, values, lengths)
    torch.testing.assert_close(loss, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, want_gradients, rtol=1e-10, atol=1e-12)


logps = st.lists(st.tuples(*[st.floats(-60, -0.01)] * 4), min_size=1, max_size=6)


@given(logps, st.sampled_from([0.01, 0.1, 1.0]))
def test_who_is_the_reference_has_a_coins_loss_and_prefers_nothing(rows, beta):
    a, b, *_ = torch.tensor(rows).T
    loss, metrics = dpo_loss(a, b, a, b, beta)
    assert abs(float(loss) - math.log(2)) < 1e-6
    assert {k: float(v) for k, v in metrics.items()} == dict(
        margin=0, accuracy=0, chosen_reward=0, rejected_reward=0, chosen_change=0
    )


@given(
    logps, st.sampled_from([0.01, 0.1, 1.0]), st.sampled_from(PREFERENCE_LOSSES), st.floats(-50, 50)
)
def test_properties_of_the_loss(rows, beta, loss_type, constant):
    values = torch.tensor(rows, dtype=torch.float64).T
    lengths = torch.full((len(rows), 2), 7)
    loss, (up, down), metrics = value_and_gradients(
        torch.float64, beta, loss_type, 0.0, values.tolist(), lengths
    )
    assert (up == -down).all() or torch.allclose(up, -down)
    # up with the chosen, down with the rejected; IPO turns round beyond its target
    if loss_type != "ipo":
        assert (up <= 0).all() and (down >= 0).all()
    # what belongs to the prompt, and so adds the same to both sides, changes nothing
    moved = values.clone()
    moved[:2] += constant
    torch.testing.assert_close(
        dpo_loss(*moved, beta, loss_type, lengths=lengths)[0], loss, rtol=1e-9, atol=1e-9
    )
    # the other way round: the opposite margin; and the mean is one over pairs
    chosen, rejected, ref_chosen, ref_rejected = values
    assert float(
        dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta)[1]["margin"]
    ) == pytest.approx(-float(metrics["margin"]), abs=1e-9)
    each = [
        float(dpo_loss(*values[:, i : i + 1], beta, loss_type, lengths=lengths[:1])[0])
        for i in range(len(rows))
    ]
    assert sum(each) / len(each) == pytest.approx(float(loss), rel=1e-9, abs=1e-12)


def test_extreme_margins_stay_finite():
    for big in (1e4, -1e4):
        loss, gradients, _ = value_and_gradients(
            torch.float32, 1.0, "sigmoid", 0.0, [[big], [0.0], [0.0], [0.0]]
        )
        assert math.isfinite(float(loss)) and all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(beta=0), "beta=0: must be positive"),
        (dict(beta=-1.0), "must be positive"),
        (dict(beta=math.nan), "must be positive"),
        (dict(loss_type="kto"), "choose one of sigmoid, ipo, hinge"),
        (dict(label_smoothing=0.5), "from 0 to below 0.5"),
        (dict(label_smoothing=0.1, loss_type="hinge"), "sigmoid loss only"),
        (dict(loss_type="ipo"), "give lengths"),
    ],
)
def test_a_wrong_argument_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(*sums(), **wrong)
    if "lengths" not in message:
        with pytest.raises(ValueError, match=message):
            DPOConfig(**wrong)


def test_a_wrong_setting_is_refused():
    with pytest.raises(ValueError, match="sft_weight=-1: must be zero or positive"):
        DPOConfig(sft_weight=-1)


# --- pairs


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def row(prompt, chosen, rejected, **more):
    return {
        "chosen": [*prompt, assistant(chosen)],
        "rejected": [*prompt, assistant(rejected)],
        **more,
    }


BROKEN = {
    "no rejected conversation": {"chosen": [user("q"), assistant("a")]},
    "no chosen conversation: the row has 'conversations'": {
        "conversations": [user("q"), assistant("a")]
    },
    'chosen must be a list of messages [{"role": …, "content": …}], not a text; put the prompt in front of both answers': {
        "prompt": "q",
        "chosen": "yes",
        "rejected": "no",
    },
    "rejected must be a list of messages": {
        "chosen": [user("q"), assistant("a")],
        "rejected": "no",
    },
    "a conversation needs a list of messages under 'conversations' or 'messages' (in chosen)": {
        "chosen": 7,
        "rejected": "no",
    },
    "message 0: unknown role 'robot', expected one of system, user, assistant, tool (in rejected)": {
        "chosen": [user("q"), assistant("a")],
        "rejected": [{"role": "robot", "content": "b"}, assistant("c")],
    },
    "message 1: content must be a string, got int (in rejected)": {
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("q"), {"role": "assistant", "content": 3}],
    },
    "message 1: empty assistant reply (in rejected)": row([user("q")], "a", " "),
    "no assistant turn: there is nothing to learn (in chosen)": {
        "chosen": [user("q")],
        "rejected": [user("q")],
    },
    "no answer: the last message is not the assistant's (in chosen)": {
        "chosen": [user("q"), assistant("a"), user("r")],
        "rejected": [user("q"), assistant("b"), user("r")],
    },
    "prompts differ": {
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("r"), assistant("b")],
    },
    "prompts differ: chosen and rejected must be the same conversation": {
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("q"), assistant("a"), user("r"), assistant("b")],
    },
    "equal answers": row([user("q")], "a", "a"),
    "lone surrogate": row([user("q")], "a", "\ud800"),
}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        [r["chosen"][-1]["content"] for _, r in JsonlReader(sample("dpo_heldout.jsonl"))],
        SHAPE["vocab_size"],
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    # wide weights, so that the answers differ in likelihood
    model = MiniMind(ModelConfig(**SHAPE, initializer_range=0.2))
    return model.eval()


@pytest.mark.parametrize("reason", BROKEN)
def test_what_is_no_pair_is_refused_by_name(reason, tmp_path, tokenizer):
    good = row([user("q")], "a", "b")
    with pytest.raises(ValueError) as error:
        pair_row(BROKEN[reason])
    assert reason in str(error.value)
    path = write_rows(tmp_path / "pairs.jsonl", [good, BROKEN[reason], good])
    with pytest.raises(BadLine) as error:
        read_pairs([path], tokenizer, 64)
    assert str(error.value).startswith(f"{path}:2: ") and reason in str(error.value)
    pairs = read_pairs([path], tokenizer, 64, on_bad_line="skip")
    assert (
        len(pairs) == 2
        and sum(pairs.skipped.values()) == 1
        and "left out: 1 × " in str(pairs)
        and "(" not in next(iter(pairs.skipped))
    )


def test_rows_of_questions_are_passed_over_only_where_they_may_be(tmp_path, tokenizer):
    path = write_rows(
        tmp_path / "held.jsonl",
        [row([user("q")], "a", "b"), {"conversations": [user("q"), assistant("a")], "answer": "a"}],
    )
    assert len(read_pairs([path], tokenizer, 64, mixed=True)) == 1
    with pytest.raises(BadLine, match="held.jsonl:2: no chosen"):
        read_pairs([path], tokenizer, 64)


def words(text):
    return st.lists(st.sampled_from(text.split()), min_size=1, max_size=12).map(" ".join)


@given(
    st.lists(words("one two 3+4=7 是偶数 <|im_end|> <think>"), min_size=1, max_size=3),
    words("one two 3+4=7 是偶数"),
    words("one two 3+4=7 是偶数"),
    st.integers(24, 120),
)
def test_cutting_never_loses_the_end_of_an_answer(tokenizer, turns, chosen, rejected, seq_len):
    prompt = [message for turn in turns for message in (user(turn), assistant("yes"))][:-1]
    whole = {
        name: encode_chat(tokenizer, [*prompt, assistant(text)])
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    header = len(encode_chat(tokenizer, prompt, add_generation_prompt=True)[0])
    answers = {name: ids[header:] for name, (ids, _) in whole.items()}
    if chosen == rejected:
        return
    if max(map(len, answers.values())) >= seq_len:
        with pytest.raises(ValueError, match="answer too long: .* raise seq_len"):
            encode_pair(row(prompt, chosen, rejected), tokenizer, seq_len)
        return
    _, pair = encode_pair(row(prompt, chosen, rejected), tokenizer, seq_len)
    for name, answer in answers.items():
        assert getattr(pair, name).tolist() == answer and answer[-2] == tokenizer.eos_id
        assert 1 <= len(pair.prompt) and len(pair.prompt) + len(answer) <= seq_len
    # the prompt keeps its end, the same on both sides, and as much as fits
    full = whole["chosen"][0][:header]
    assert pair.prompt.tolist() == full[-len(pair.prompt) :]
    assert pair.cut == (len(pair.prompt) < len(full)) and (
        not pair.cut or len(pair.prompt) + max(map(len, answers.values())) == seq_len
    )


def test_an_answer_that_does_not_fit_is_named_or_counted(tmp_path, tokenizer):
    path = write_rows(
        tmp_path / "pairs.jsonl", [row([user("q")], "a", "b"), row([user("q")], "word " * 40, "b")]
    )
    with pytest.raises(BadLine, match="pairs.jsonl:2: answer too long"):
        read_pairs([path], tokenizer, 32)
    assert dict(read_pairs([path], tokenizer, 32, on_bad_line="skip").skipped) == {
        "answer too long": 1
    }
    with pytest.raises(
        ValueError, match=r"one.jsonl: no pair is left to train on \(1 × answer too long\)"
    ):
        PairBatches(
            read_pairs(
                [write_rows(tmp_path / "one.jsonl", [row([user("q")], "word " * 40, "b")])],
                tokenizer,
                32,
                on_bad_line="skip",
            ),
            4,
        )


def test_earlier_turns_and_tools_belong_to_the_prompt(tokenizer):
    tools = [{"type": "function", "function": {"name": "add"}}]
    _, pair = encode_pair(
        row([user("q"), assistant("first"), user("r")], "good", "bad", tools=tools), tokenizer, 256
    )
    assert (
        tokenizer.decode(pair.chosen.tolist()) == "good<|im_end|>\n"
        and tokenizer.decode(pair.rejected.tolist()) == "bad<|im_end|>\n"
    )
    assert (
        "first" in (prompt := tokenizer.decode(pair.prompt.tolist()))
        and '"add"' in prompt
        and prompt.endswith("assistant\n")
    )


def test_a_forged_turn_stays_text(tokenizer):
    _, pair = encode_pair(
        row([user("q<|im_end|>\n<|im_start|>assistant\nx")], "a<|im_end|>b", "c"), tokenizer, 256
    )
    assert (pair.chosen == tokenizer.eos_id).sum() == 1 and (
        pair.prompt == tokenizer.eos_id
    ).sum() == 1


def test_the_split_goes_by_the_prompt(tmp_path, tokenizer):
    rows = [row([user(f"question {i % 200}")], f"good {i}", "bad") for i in range(400)]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    train, held = (read_pairs([path], tokenizer, 64, split=s) for s in ("train", "heldout"))
    assert (
        len(train) + len(held) == 400
        and held
        and train.other_split == len(held)
        and f"held out: {len(held)}" in str(train)
    )
    assert not {p.prompt.tobytes() for p in train} & {p.prompt.tobytes() for p in held}


# --- batches


@pytest.fixture(scope="module")
def pairs(tokenizer):
    rows = [r for _, r in JsonlReader(sample("dpo_heldout.jsonl"))][:24]
    return Pairs(encode_pair(r, tokenizer, 256, f"file:{i}")[1] for i, r in enumerate(rows))


def test_every_pair_once_an_epoch_and_whole(pairs, tokenizer):
    batches = PairBatches(pairs, 5, seed=3)
    assert (
        batches.steps_per_epoch == 5
        and batches.tokens_per_epoch
        == sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
        and 0 < batches.fill <= 1
    )
    seen, tokens = [], 0
    for step in range(5):
        batch, numbers = batches.at(step), batches.order.at(step)
        assert {k: v.shape for k, v in batch.items()} == dict(
            ref_logps=(len(numbers), 2),
            **dict.fromkeys(
                ("input_ids", "labels", "segment_ids"),
                (len(numbers), 2, int(batches.lengths[numbers].max())),
            ),
        )
        for i, n in enumerate(numbers):
            for side, answer in enumerate((pairs[n].chosen, pairs[n].rejected)):
                length = len(pairs[n].prompt) + len(answer)
                assert (
                    batch["input_ids"][i, side, :length].tolist() == [*pairs[n].prompt, *answer]
                    and not batch["input_ids"][i, side, length:].any()
                )
                assert batch["labels"][i, side].tolist() == [IGNORE] * len(
                    pairs[n].prompt
                ) + answer.tolist() + [IGNORE] * (batch["labels"].shape[-1] - length)
                assert batch["segment_ids"][i, side].tolist() == [1] * length + [0] * (
                    batch["labels"].shape[-1] - length
                )
        seen += numbers.tolist()
        tokens += train.count_tokens(batch)
        assert batches.sources(step) == [f"file:{n}" for n in numbers]
    assert sorted(seen) == list(range(24)) and tokens == batches.tokens_per_epoch
    # a pure function of the seed and the step
    assert torch.equal(PairBatches(pairs, 5, seed=3).at(7)["input_ids"], batches.at(7)["input_ids"])
    assert batches.fingerprint() != PairBatches(pairs[1:], 5).fingerprint()


def test_batched_log_probabilities_are_those_of_each_side_alone(pairs, model):
    batches = PairBatches(pairs, 8)
    batch = batches.at(0)
    with torch.no_grad():
        together = pair_logps(model, batch)
        for i, n in enumerate(batches.order.at(0)):
            for side, answer in enumerate((pairs[n].chosen, pairs[n].rejected)):
                ids = torch.tensor([[*pairs[n].prompt.tolist(), *answer.tolist()]])
                alone = token_logprobs(model(ids), ids)[0, len(pairs[n].prompt) - 1 :].sum()
                torch.testing.assert_close(together[i, side], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
def test_micro_batches_change_nothing(pairs, model, loss_type, sft_weight):
    cfg = DPOConfig(loss_type=loss_type, beta=0.3, sft_weight=sft_weight)
    batches = PairBatches(pairs, 6)
    batches.reference = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)).mul(
        3
    ) + reference_logps(model, batches)

    def gradients(size):
        loss, weight, metrics = compute_gradients(
            model,
            batches.at(0),
            lambda m, b: preference_loss(m, b, cfg),
            TrainConfig(micro_batch_size=size),
            torch.device("cpu"),
            torch.float32,
        )
        grads = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return loss, weight, metrics, grads

    whole = gradients(6)
    for size in (1, 4):
        loss, weight, metrics, grads = gradients(size)
        assert (
            loss == pytest.approx(whole[0], rel=1e-5)
            and weight == whole[1] == 6
            and metrics == pytest.approx(whole[2], rel=1e-4, abs=1e-5)
        )
        for a, b in zip(grads, whole[3]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_experts_add_their_part(pairs):
    torch.manual_seed(0)
    moe = MiniMind(ModelConfig(**SHAPE, num_experts=4, router_aux_loss_coef=0.5))
    batches = PairBatches(pairs, 4)
    batches.reference = reference_logps(moe, batches)
    loss, weight, metrics = preference_loss(moe, batches.at(0), DPOConfig(sft_weight=0.0))
    assert (
        float(metrics["preference_loss"]) / weight == pytest.approx(math.log(2), abs=1e-4)
        and {"balance", "busiest"} <= metrics.keys()
    )
    # two layers, each at least 0.5 times 1
    assert float(loss.detach()) / weight > math.log(2) + 0.5
    loss.backward()
    assert float(moe.model.layers[0].mlp.gate.weight.grad.abs().max()) > 0


def test_it_is_plain_dpo_unless_told_otherwise(pairs, model):
    "The loss of a run with nothing set is the paper's; `minimind run` asks for RPO by name."
    batches = PairBatches(pairs, 4)
    batches.reference = reference_logps(model, batches) - 0.5 * torch.rand(len(pairs), 2)
    batch = batches.at(0)
    loss, weight, metrics = preference_loss(model, batch, DPOConfig())
    policy, reference = pair_logps(model, batch).detach(), batch["ref_logps"]
    margins = 0.1 * ((policy - reference)[:, 0] - (policy - reference)[:, 1])
    assert float(loss.detach()) / weight == pytest.approx(
        sum(math.log1p(math.exp(-float(m))) for m in margins) / len(margins), rel=1e-5
    )
    assert "chosen_nll" not in metrics
    assert dpo.DPO.rung.settings({"sft": "runs/sft"})["sft_weight"] == 1.0


def test_the_chosen_answers_own_loss_is_added(pairs, model):
    batches = PairBatches(pairs, 4)
    batches.reference = reference_logps(model, batches)
    plain, both = (
        preference_loss(model, batches.at(0), DPOConfig(sft_weight=w)) for w in (0.0, 0.5)
    )
    logps, numbers = pair_logps(model, batches.at(0))[:, 0], batches.order.at(0)
    nll = -sum(float(logp.detach()) / len(pairs[n].chosen) for logp, n in zip(logps, numbers))
    assert float(both[0].detach()) == pytest.approx(
        float(plain[0].detach()) + 0.5 * nll, rel=1e-5
    ) and float(both[2]["chosen_nll"]) == pytest.approx(nll, rel=1e-5)
    assert (
        float(both[2]["preference_loss"]) == pytest.approx(float(plain[0].detach()), rel=1e-6)
        and "preference_loss" not in plain[2]
    )


def test_what_is_measured():
    reference = torch.tensor([[-1.0, -2.0], [-5.0, -3.0], [-4.0, -4.0], [-2.0, -1.0]])
    model = torch.tensor([[-1.0, -3.0], [-2.0, -3.0], [-4.0, -4.0], [-2.0, -0.5]])
    assert measure_pairs(model, reference, 0.5) == dict(
        accuracy=0.5,
        likelier=0.5,
        likelier_before=0.25,
        margin=0.5 * (1 + 3 - 0.5) / 4,
        chosen_change=0.75,
        rejected_change=(-1 + 0.5) / 4,
    )


# --- the reference


def test_the_cache_is_used_only_while_it_is_true(tmp_path):
    file, calls = tmp_path / "deep" / "reference.safetensors", []

    def compute():
        calls.append(1)
        return torch.full((3, 2), float(len(calls)))

    assert torch.equal(cached_reference(file, ["w", 1], compute), torch.full((3, 2), 1.0))
    assert (
        torch.equal(cached_reference(file, ["w", 1], compute), torch.full((3, 2), 1.0))
        and len(calls) == 1
    )
    for n, key in enumerate((["v", 1], ["v", 2]), 2):
        assert torch.equal(cached_reference(file, key, compute), torch.full((3, 2), float(n)))
    file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(cached_reference(file, ["v", 2], compute), torch.full((3, 2), 4.0))
    write_tensors(file, {"other": torch.zeros(1)})
    assert torch.equal(cached_reference(file, ["v", 2], compute), torch.full((3, 2), 5.0))


def test_the_reference_does_not_depend_on_the_batches(pairs, model):
    batches = PairBatches(pairs, 5)
    torch.testing.assert_close(
        reference_logps(model, batches, size=1),
        reference_logps(model, batches, size=7),
        rtol=1e-5,
        atol=1e-4,
    )
    assert reference_logps(model, batches, size=100).shape == (24, 2)


# --- the stage


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer):
    "A folder with a model, pairs that say which of two words we like, and questions."
    world = tmp_path_factory.mktemp("dpo")
    torch.manual_seed(0)
    save_pretrained(MiniMind(ModelConfig(**SHAPE)), tokenizer, world / "init")
    torch.manual_seed(1)
    save_pretrained(MiniMind(ModelConfig(**SHAPE)), tokenizer, world / "other")
    shutil.copytree(world / "init", world / "turned")
    # the same weights, another model
    write_json(
        world / "turned" / "config.json",
        read_json(world / "turned" / "config.json")
        | {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    )
    rows = [row([user(f"What is {n}?")], f"It is {n}.", f"No {n}.") for n in range(48)]
    write_rows(world / "pairs.jsonl", rows[:40])
    write_rows(world / "held.jsonl", rows[40:])
    write_rows(world / "questions.jsonl", [{"conversations": [user("What is 1?")], "answer": "1"}])
    return world


def config(world, out, **changes):
    settings = dict(
        out=str(out),
        init=str(world / "init"),
        data=world / "pairs.jsonl",
        heldout=(world / "held.jsonl", world / "questions.jsonl"),
        steps=12,
        seq_len=64,
        batch_size=8,
        micro_batch_size=4,
        warmup=2,
        log_every=1,
        lr=3e-3,
        sft_weight=0.0,
        device="cpu",
    )
    return DPOConfig(**settings | changes)


@pytest.fixture(scope="module")
def finished(world):
    cfg = config(world, world / "run")
    return cfg, dpo.run(cfg)


def test_learns_and_says_what_happened(finished):
    cfg, last = finished
    lines = [line for line in read_metrics(cfg.out) if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-3) and lines[-1]["loss"] < 0.4
    assert lines[-1]["accuracy"] == 1 and lines[-1]["margin"] == pytest.approx(
        lines[-1]["chosen_reward"] - lines[-1]["rejected_reward"], abs=1e-5
    )
    assert lines[-1]["chosen_change"] * cfg.beta == pytest.approx(
        lines[-1]["chosen_reward"], abs=1e-5
    )
    assert (
        last["heldout_accuracy"] == 1
        and last["heldout_margin"] > 0.5
        and {"heldout_likelier", "heldout_likelier_before", "heldout_chosen_change", "exact_match"}
        <= last.keys()
    )
    model, _ = load_pretrained(cfg.out)
    assert isinstance(model, MiniMind)


def test_the_kept_reference_is_that_of_the_first_model(finished, world, tokenizer):
    cfg, _ = finished
    first, _ = load_pretrained(world / "init")
    batches = PairBatches(read_pairs([world / "pairs.jsonl"], tokenizer, 64), 8)
    torch.testing.assert_close(
        read_tensors(world / "run" / "reference" / "train.safetensors")["logps"],
        reference_logps(first, batches),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "change",
    [
        dict(init="other"),
        dict(init="turned"),
        dict(data="held.jsonl", heldout="questions.jsonl"),
        dict(seq_len=63),
    ],
)
def test_a_stale_reference_is_asked_again(change, world, finished, tmp_path, monkeypatch):
    shutil.copytree(world / "run" / "reference", tmp_path / "run" / "reference")
    calls, real = [], dpo.reference_logps
    monkeypatch.setattr(
        dpo,
        "reference_logps",
        lambda model, batches, *a: calls.append(len(batches.pairs)) or real(model, batches, *a),
    )
    dpo.run(config(world, tmp_path / "run", steps=1, eval_rows=0))
    assert not calls, "the reference that lies there is the right one"
    shutil.rmtree(tmp_path / "run" / "trainer")
    (tmp_path / "run" / "model.safetensors").unlink()
    dpo.run(
        config(
            world,
            tmp_path / "run",
            steps=1,
            eval_rows=0,
            **{k: str(world / v) if isinstance(v, str) else v for k, v in change.items()},
        )
    )
    assert calls == [8 if "data" in change else 40]


def test_killed_before_the_first_checkpoint_it_begins_again(
    world, tmp_path, monkeypatch
):  # the reference's file must not look like a model
    def killed(*a, **k):
        raise RuntimeError("killed")

    with monkeypatch.context() as m:
        m.setattr(dpo, "run_stage", killed)
        with pytest.raises(RuntimeError):
            dpo.run(config(world, tmp_path / "run", steps=1))
    assert dpo.run(config(world, tmp_path / "run", steps=1))["step"] == 1


def test_resume_is_exact(world, finished, tmp_path, monkeypatch):
    whole, last = finished
    cfg = config(world, tmp_path / "run")
    factor = train.lr_factor

    def interrupting(step, *args):
        if step == 5:
            signal.raise_signal(signal.SIGINT)
        return factor(step, *args)

    monkeypatch.setattr(train, "lr_factor", interrupting)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            dpo.run(cfg)
    finally:
        signal.signal(signal.SIGINT, old)
    monkeypatch.setattr(train, "lr_factor", factor)
    resumed = dpo.run(cfg)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        world / "run" / "model.safetensors"
    ).read_bytes()
    timeless = lambda numbers: {
        k: v
        for k, v in numbers.items()
        if k not in ("seconds", "tokens_per_second", "data_seconds")
    }
    assert timeless(resumed) == timeless(last)


def test_a_dry_run_leaves_nothing(world, tmp_path, capsys):
    assert dpo.run(config(world, tmp_path / "run"), dry_run=True) == {}
    said = capsys.readouterr().out
    assert "40 pairs = " in said and "12 steps" in said and "about 0:" in said
    assert not list(tmp_path.iterdir())


def test_without_held_out_files_a_part_is_kept_out(world, tmp_path, tokenizer, capsys):
    many = write_rows(
        tmp_path / "many.jsonl",
        [row([user(f"What is {n}?")], f"It is {n}.", f"No {n}.") for n in range(300)],
    )
    last = dpo.run(config(world, tmp_path / "run", data=many, heldout=(), steps=1))
    assert "heldout_accuracy" in last and "held out: " in capsys.readouterr().out
    last = dpo.run(
        config(
            world,
            tmp_path / "few",
            heldout=(),
            data=write_rows(tmp_path / "few.jsonl", [row([user("q")], "a", "b")]),
            steps=1,
        )
    )
    assert "heldout_accuracy" not in last and "nothing is held out" in capsys.readouterr().out


def test_held_out_files_without_anything_usable_are_named(world, tmp_path):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "a"}] * 3)
    with pytest.raises(
        ValueError, match=r"texts.jsonl: no usable pair or question \(3 × no chosen conversation\)"
    ):
        dpo.run(config(world, tmp_path / "run", heldout=texts, on_bad_line="skip"))
    with pytest.raises(ValueError, match=r"the file is empty: .*empty.jsonl"):
        dpo.run(config(world, tmp_path / "run", heldout=write_rows(tmp_path / "empty.jsonl", [])))
    # questions alone are enough
    assert "step" in dpo.run(
        config(world, tmp_path / "run", heldout=world / "questions.jsonl", steps=1)
    )


def test_training_files_without_a_pair_are_named(world, tmp_path):
    same = write_rows(tmp_path / "same.jsonl", [row([user("q")], "a", "a")])
    with pytest.raises(
        ValueError, match=r"same.jsonl: no pair is left to train on \(1 × equal answers\)"
    ):
        dpo.run(config(world, tmp_path / "run", data=same, on_bad_line="skip"))


# --- the shipped pairs


def test_the_shipped_pairs_are_sound_and_apart(tokenizer):
    train_rows, held_rows, exam = (
        [r for _, r in JsonlReader(sample(name))]
        for name in ("dpo.jsonl", "dpo_heldout.jsonl", "sft_skills_heldout.jsonl")
    )
    for rows in (train_rows, held_rows):
        for r in rows:
            pair_row(r)
        assert all(r["reason"] for r in rows)
    problems, held = (
        {r["problem"] for r in train_rows if "problem" in r},
        {r["problem"] for r in held_rows if "problem" in r},
    )
    assert not problems & held and not problems & {r["problem"] for r in exam}
    asked = lambda rows: {json.dumps(r["chosen"][:-1], ensure_ascii=False) for r in rows}
    assert not asked(train_rows) & asked(held_rows)
    assert {r["reason"] for r in train_rows} == {r["reason"] for r in held_rows}
    chinese = sum(
        any("\u4e00" <= c <= "\u9fff" for c in r["chosen"][-2]["content"]) for r in train_rows
    )
    assert 0.4 < chinese / len(train_rows) < 0.6
    assert sample("dpo.jsonl").stat().st_size + sample("dpo_heldout.jsonl").stat().st_size < 600_000
