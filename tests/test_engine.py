"""The engine under pressure: requests come and go as they like, and each gets what it would get alone.
Cases with a number are named after bug reports of nano-vllm (GeeeekExplorer/nano-vllm)."""

import gc
import tracemalloc
import warnings
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings, strategies as st

from minimind.generate import Engine, Request, TextDecoder, cache_bytes, stream
from minimind.lora import apply_lora, merged_model
from minimind.losses import token_logprobs
from minimind.model import MiniMind, ModelConfig
from minimind.tokenizer import Tokenizer

KINDS = {
    "dense": {},
    "llama": dict(qk_norm=False),
    "tied": dict(tie_word_embeddings=True, num_key_value_heads=1),
    "all-heads": dict(num_key_value_heads=4),
    "experts": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "yarn": dict(
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=24)
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@lru_cache(None)
def tokenizer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.train(["你好，世界。", "a fox and a 🦊, naïve café. the end"] * 3, 400)


def build(kind="dense", seed=0, **changes):
    "A model whose logits are spread wide: rounding can't change which is the largest."
    torch.manual_seed(seed)
    shape = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    shape |= dict(num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=96)
    shape |= dict(vocab_size=len(tokenizer())) | KINDS[kind] | changes
    model = MiniMind(ModelConfig(**shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


shared_model = lru_cache(None)(build)


def greedy(ids, n=8, **options):
    return Request(**dict(ids=ids, max_new_tokens=n, temperature=0, eos_token_id=()) | options)


def chance(ids, n=8, seed=0, **options):
    how = dict(temperature=1.0, top_p=1.0, eos_token_id=())
    return Request(**how | dict(ids=ids, max_new_tokens=n, seed=seed) | options)


def text_of(n, start=3):
    "Prompts that differ from their first token on."
    return [3 + (start * 37 + 11 * i) % 200 for i in range(n)]


def alone(model, request, **options):
    "What a request gets from a fresh engine with one place."
    return Engine(model, slots=1, tokenizer=tokenizer(), **options).complete([request])[0]


def tokens_of(events):
    return [event.token for event in events]


def logps_of(events):
    return [event.logp for event in events]


def drain(engine):
    told = {}
    while engine.busy:
        for event in engine.step():
            told.setdefault(event.id, []).append(event)
    return told


def assert_empty(engine):
    slots = engine.scheduler.slots
    assert not engine.busy and not engine.going and not engine.inboxes
    assert not engine.scheduler.waiting and not engine.scheduler.running
    assert slots.busy == slots.singles == 0 and slots.owners == [None] * engine.slots
    assert engine.step() == []


# ---- what may happen

TOKEN_E = lru_cache(None)(lambda: tokenizer().encode("e")[-1])
HOW = [
    lambda: dict(temperature=0),
    lambda: dict(temperature=0, repetition_penalty=1.6, presence_penalty=0.4),
    lambda: dict(temperature=0, logit_bias={7: 3.0, 9: -torch.inf}, logprobs=3),
    lambda: dict(temperature=0, logit_bias={TOKEN_E(): 9.0}, stop=["e", "fox"]),
    lambda: dict(temperature=0, eos_token_id=range(3, 60), min_new_tokens=3),
    lambda: dict(temperature=1.0, top_p=1.0, eos_token_id=()),
    lambda: dict(temperature=0.7, top_k=5, frequency_penalty=0.5),
    lambda: dict(temperature=1.3, top_p=0.8, eos_token_id=range(3, 60)),
    lambda: dict(temperature=2.0, min_p=0.1, logit_bias={TOKEN_E(): 9.0}, stop="e"),
    lambda: dict(temperature=1.0, allowed=lambda drawn: range(10 + len(drawn), 40)),
]
coming = st.fixed_dictionaries(
    dict(
        at=st.integers(0, 14),  # the step before which it comes
        of=st.none() | st.integers(0, 9),  # whose text its prompt begins with
        whole=st.booleans(),  # with the reply, or the prompt only
        cut=st.integers(0, 30),  # so many of those tokens are left out
        new=st.integers(0, 30),  # and so many new ones follow
        n=st.integers(1, 12),
        how=st.integers(0, len(HOW) - 1),
        seed=st.integers(0, 9),
        session=st.sampled_from([None, None, None, "one", "two"]),
        abort=st.none() | st.none() | st.integers(0, 12),  # after so many steps
    )
)
shapes = st.fixed_dictionaries(
    dict(
        slots=st.integers(1, 5),
        piece=st.sampled_from([1, 3, 8, 256]),
        max_len=st.sampled_from([24, 60, 96, 500]),
    )
)


class Play:
    "A schedule of arrivals and aborts, played on an engine that is watched."

    def __init__(self, model, plan, shape):
        self.model, self.engine = model, Engine(model, tokenizer=tokenizer(), **shape)
        self.plan = sorted(plan, key=lambda p: p["at"])
        self.requests, self.prompts, self.told, self.texts = {}, {}, {}, {}
        self.aborted, self.entered, self.aborts = set(), [], []
        self.held_up = False

    def arrive(self, p, step):
        engine, of = self.engine, p["of"]
        said = engine.sessions.get(p["session"], []) if p["session"] else []
        base = []
        if of is not None and self.texts and p["session"] is None:
            number = 1 + of % len(self.texts)
            end = None if p["whole"] else len(self.prompts[number])
            base = self.texts[number][:end]
            base = base[: max(0, len(base) - p["cut"])]
        ids = (base + text_of(p["new"], p["seed"]))[: engine.max_len - 1 - len(said)]
        if not ids and not said:
            ids = [5]
        how = HOW[p["how"]]() | dict(seed=p["seed"], session=p["session"])
        request = Request(ids=ids, max_new_tokens=p["n"], **how)
        if len(said) + len(ids) >= engine.max_len:
            with pytest.raises(ValueError, match="no room"):
                engine.add(request)
            return
        number = engine.add(request)
        seq = engine.going[number]
        self.prompts[number], self.texts[number] = list(seq.tokens), seq.tokens
        self.requests[number], self.told[number] = request, []
        if p["abort"] is not None:
            self.aborts.append((step + p["abort"], number))

    def come_and_go(self, step):
        for number in [n for at, n in self.aborts if at == step]:
            was = number in self.engine.going
            assert self.engine.abort(number) is was
            assert self.engine.abort(number) is False
            self.aborted |= {number} if was else set()
        busy = {seq.request.session for seq in self.engine.going.values()} - {None}
        for p in [p for p in self.plan if p["at"] <= step]:
            if p["session"] in busy:
                with pytest.raises(ValueError, match=f"session '{p['session']}'"):
                    self.engine.add(Request(ids=[5], session=p["session"]))
                continue
            self.plan.remove(p)
            self.arrive(p, step)
            busy |= {p["session"]} - {None}

    def step(self):
        engine, queue = self.engine, self.engine.scheduler
        schedule, seen = queue.schedule, {}

        def watched():
            singles, pieces = schedule()
            assert sum(len(piece.ids) for piece in pieces) <= queue.piece
            assert [piece.place for piece in singles] == list(range(queue.slots.singles))
            assert all(len(piece.ids) == 1 for piece in singles)
            # of a prompt the last token is always computed (nano-vllm 144)
            assert all(piece.ids for piece in pieces)
            owners = queue.slots.owners
            assert sorted(s.place for s in queue.running) == list(range(queue.slots.busy))
            assert all(owners[seq.place] is seq for seq in queue.running)
            assert singles or pieces or not engine.busy
            # who waits does so because all places are taken
            assert not queue.waiting or queue.slots.busy == engine.slots
            self.entered += [s.number for s in queue.running if s.number not in self.entered]
            seen["singles"] = {owners[piece.place].number for piece in singles}
            return singles, pieces

        queue.schedule = watched
        try:
            events = engine.step()
        finally:
            del queue.schedule
        told = [event.id for event in events]
        assert len(set(told)) == len(told) and seen["singles"] <= set(told)
        for event in events:
            assert event.finish is None or event.id not in engine.going
            self.told[event.id].append(event)

    def run(self):
        step = 0
        while self.plan or self.engine.busy:
            self.come_and_go(step)
            self.step()
            step += 1
            assert step < 2000, "it does not come to an end"
        assert self.entered == sorted(self.entered), "somebody was overtaken"
        assert_empty(self.engine)
        return self

    def check(self):
        for number, events in self.told.items():
            if number in self.aborted:
                assert all(event.finish is None for event in events)
            else:
                self.check_events(number, events)
            for event in events:
                known = [common(self.prompts[number], self.texts[n]) for n in range(1, number)]
                most = min(max(known, default=0), len(self.prompts[number]) - 1)
                assert 0 <= event.cached <= most

    def check_events(self, number, events):
        request, prompt = self.requests[number], self.prompts[number]
        same = {name: getattr(request, name) for name in Request.__dataclass_fields__}
        single = Request(**same | dict(ids=prompt, session=None))
        want = alone(self.model, single, max_len=self.engine.max_len)
        assert tokens_of(events) == tokens_of(want)
        assert [e.finish for e in events] == [e.finish for e in want]
        # attention adds up in another order where rows have other lengths, or other pieces
        assert logps_of(events) == pytest.approx(logps_of(want), abs=1e-4)
        stops = self.model.config.eos_token_id if request.eos_token_id is None else ()
        ends = {stops} if isinstance(stops, int) else set(request.eos_token_id or stops)
        assert all(event.finish is None for event in events[:-1])
        check_text("".join(e.text for e in events), events, request, ends)
        room = min(request.max_new_tokens, self.engine.max_len - len(prompt))
        if events[-1].finish == "length":
            assert len(events) == room and events[-1].token not in ends
        check_logits(self.model, prompt, events, request)


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def check_text(text, events, request, ends):
    tokens = tokens_of(events)
    whole = tokenizer().decode(tokens[:-1] if tokens[-1] in ends else tokens)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    found = [whole.find(s) for s in stop if s in whole]
    assert text == (whole[: min(found)] if found else whole)
    assert (events[-1].finish == "stop") == (tokens[-1] in ends or bool(found))


def check_logits(model, prompt, events, request):
    "Against the model's own logits, without any cache."
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens_of(events)]))[0, len(prompt) - 1 : -1]
    plain = request.repetition_penalty == 1 and not request.logit_bias
    if plain and not request.temperature and not request.min_new_tokens:
        for row, event in zip(logits, events):
            assert row.max() - row[event.token] < 1e-4
    for row, event in zip(logits.log_softmax(-1), events):
        if request.logprobs is None:
            assert event.top is None
        else:
            assert {*row.topk(request.logprobs).indices.tolist(), event.token} == set(event.top)
            for token, logp in event.top.items():
                assert logp == pytest.approx(row[token].item(), abs=1e-4)


@kinds
@given(plan=st.lists(coming, min_size=1, max_size=9), shape=shapes)
@settings(max_examples=16)
def test_each_gets_what_it_would_get_alone(kind, plan, shape):
    Play(shared_model(kind), plan, shape).run().check()


# ---- in any company


@kinds
def test_in_company_to_the_last_bit_nano_vllm_108(kind):
    """Rows of one length: also their log-probabilities are those of each alone, bit for bit. Not
    where lengths differ (attention runs over more keys, and adds up in another order), and not with
    experts (a product has as many rows as chose the expert). Heads of 16, so that every sequence
    begins at a round address, as with any usual shape."""
    model = shared_model(kind, head_dim=16)
    requests = [chance(text_of(9, i), 10, i) for i in range(7)]
    together = Engine(model, slots=7, tokenizer=tokenizer()).complete(requests)
    for events, request in zip(together, requests):
        want = alone(model, request)
        assert tokens_of(events) == tokens_of(want)
        assert logps_of(events) == pytest.approx(logps_of(want), abs=1e-5)
        assert kind == "experts" or logps_of(events) == logps_of(want)


def test_after_others_in_one_place_to_the_last_bit():
    model = shared_model()
    requests = [chance(text_of(3 + 5 * i, i), 6, i) for i in range(6)]
    one_place = Engine(model, slots=1, tokenizer=tokenizer()).complete(requests)
    assert [logps_of(e) for e in one_place] == [logps_of(alone(model, r)) for r in requests]


@kinds
def test_whole_prompt_is_known_nano_vllm_199_144(kind):
    model = shared_model(kind)
    engine = Engine(model, slots=3, tokenizer=tokenizer())
    first = engine.complete([greedy(text_of(20), 9)])[0]
    again, longer = engine.complete(
        [greedy(text_of(20), 9), greedy(text_of(20) + tokens_of(first), 9)]
    )
    assert tokens_of(again) == tokens_of(first)
    # all but the last token; of the reply's last one nobody ever knew keys
    assert again[0].cached == 19 and longer[0].cached == 28
    assert tokens_of(longer) == tokens_of(alone(model, greedy(text_of(20) + tokens_of(first), 9)))
    # a prompt of one token has nothing to be known
    assert [e[0].cached for e in engine.complete([greedy([5], 2)] * 2)] == [0, 0]


@kinds
@pytest.mark.parametrize("piece", [1, 2, 8])
def test_prompts_of_whole_pieces_nano_vllm_207(kind, piece):
    model = shared_model(kind)
    lengths = sorted({max(1, k * piece + d) for k in (1, 2) for d in (-1, 0, 1)})
    requests = [greedy(text_of(n, n), 4) for n in lengths]
    engine = Engine(model, slots=3, piece=piece)
    for events, request in zip(engine.complete(requests), requests):
        assert tokens_of(events) == tokens_of(alone(model, request))


@pytest.mark.parametrize("slots", [1, 2])
def test_more_requests_than_places_nano_vllm_210_211_213(slots):
    model = shared_model()
    stem = text_of(30)
    requests = [greedy(stem[: 10 + 4 * (i % 5)] + [3 + i], 5) for i in range(14)]
    engine = Engine(model, slots=slots, piece=7)
    for events, request in zip(engine.complete(requests), requests):
        assert tokens_of(events) == tokens_of(alone(model, request))
    assert_empty(engine)


@pytest.mark.parametrize("when", range(10))
def test_who_is_waited_for_leaves(when):
    "Three with one prefix: the first computes it, is let go in its midst, and the others go on."
    model, stem = shared_model(), text_of(40)
    engine = Engine(model, slots=3, piece=6)
    numbers = [engine.add(greedy(stem + [9 + i], 4)) for i in range(3)]
    told = [event for _ in range(when) for event in engine.step()]
    assert engine.abort(numbers[0])
    told += [event for events in drain(engine).values() for event in events]
    for i in (1, 2):
        want = tokens_of(alone(model, greedy(stem + [9 + i], 4)))
        assert [event.token for event in told if event.id == numbers[i]] == want
    assert_empty(engine)


def test_a_shared_prefix_is_computed_once():
    model, stem = shared_model(), text_of(40)
    engine, computed = Engine(model, slots=4, piece=16), []
    run = engine.runner
    engine.runner = Counting(run, computed)
    events = engine.complete([greedy(stem + [9 + i], 3) for i in range(4)])
    assert [e[0].cached for e in events] == [0, 40, 40, 40]
    # the stem once, of each its own last token, and two of the reply
    assert sum(computed) == 40 + 4 * 3


class Counting:
    "A runner whose tokens are counted."

    def __init__(self, runner, computed):
        self.runner, self.computed, self.head = runner, computed, runner.head
        self.device = runner.device

    def __call__(self, singles, pieces):
        self.computed.append(sum(len(piece.ids) for piece in [*singles, *pieces]))
        return self.runner(singles, pieces)


def test_abort_meets_finish_mini_sglang_111():
    engine = Engine(shared_model(), slots=2)
    a, b, c = (engine.add(greedy(text_of(5, i), n)) for i, n in enumerate((1, 3, 3)))
    finished = [event for event in engine.step() if event.finish]
    assert [event.id for event in finished] == [a]
    # in the step in which it ended; never known; twice
    assert [engine.abort(n) for n in (a, 99, b, b)] == [False, False, True, False]
    # of one that waits for a place
    assert engine.abort(c) and not engine.abort(c)
    assert_empty(engine)


def test_a_long_prompt_keeps_nobody_waiting():
    engine = Engine(shared_model(), slots=2, piece=4)
    quick = engine.add(greedy(text_of(3), 30))
    engine.step()
    engine.add(greedy(text_of(80, 9), 2))
    for _ in range(19):
        assert [event.id for event in engine.step()] == [quick]


# ---- sessions


def test_a_session_goes_on_where_it_was():
    model = shared_model()
    engine, said = Engine(model, slots=2), []
    for turn in range(4):
        new = text_of(4, turn)
        events = engine.complete([greedy(new, 5, session="x"), greedy(text_of(9, 50 + turn), 3)])[0]
        want = alone(model, greedy(said + new, 5))
        assert tokens_of(events) == tokens_of(want)
        # all but the reply's last token is known
        assert events[0].cached == max(0, len(said) - 1)
        said += new + tokens_of(events)
        assert engine.sessions["x"] == said


def test_a_session_that_is_busy():
    engine = Engine(shared_model())
    number = engine.add(greedy([5, 6], 4, session="x"))
    with pytest.raises(ValueError, match="session 'x'"):
        engine.add(greedy([7], session="x"))
    engine.step()
    assert engine.abort(number) and len(engine.sessions["x"]) == 3
    assert len(engine.complete([greedy([7], 2, session="x")])[0]) == 2


# ---- many


def structures(engine):
    slots = engine.scheduler.slots
    lists = engine.going, engine.inboxes, engine.sessions, engine.scheduler.waiting
    return [*map(len, lists), len(engine.scheduler.running), len(slots.owners), slots.busy]


def many(n):
    model = build(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=32)
    engine = Engine(model, slots=16, max_len=12)

    def serve(first, n):
        for i in range(first, first + n):
            # few seeds: what belongs to one is remembered, of some thousands
            engine.add(chance([3 + i % 20, 4 + i % 7], 2, i % 64))
            if len(engine.scheduler.waiting) > 20:
                engine.step()
        drain(engine)
        gc.collect()
        tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
        return tensors, structures(engine)

    serve(0, 200)
    tracemalloc.start()
    before, start = serve(200, n // 2), tracemalloc.get_traced_memory()[0]
    after = serve(200 + n // 2, n // 2)
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert before == after
    # not even ten bytes a request
    assert grown < max(20_000, 10 * n // 2), grown
    assert_empty(engine)


def test_thousands_of_requests_leave_nothing():
    many(2000)


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing():
    many(10_000)


def test_streams_side_by_side_leave_nothing():
    model = shared_model()
    engine = Engine(model, slots=2)
    requests = [greedy(text_of(4, i), 6) for i in range(4)]
    streams = [engine.stream(request) for request in requests]
    got = [[next(s)] for s in streams]
    streams[1].close()
    for i in (0, 2, 3):
        got[i] += streams[i]
        assert tokens_of(got[i]) == tokens_of(alone(model, requests[i]))
    assert_empty(engine)


# ---- log-probabilities


@kinds
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_logps_are_the_learners(kind, temperature):
    "What is sampled here is what a policy gradient reads off the model."
    model = shared_model(kind)
    requests = [
        chance(text_of(4 + 5 * (i % 3), i // 2), 9, i, temperature=temperature, logprobs=2)
        for i in range(6)
    ]
    engine = Engine(model, slots=4, piece=5)
    for request, events in zip(requests, engine.complete(requests)):
        ids = torch.tensor([[*request.ids, *tokens_of(events)]])
        with torch.no_grad():
            logits = model(ids)
        want = token_logprobs(logits / temperature, ids)[0, len(request.ids) - 1 :]
        assert logps_of(events) == pytest.approx(want.tolist(), abs=1e-4)
        check_logits(model, list(request.ids), events, request)
    assert {e.logp for e in alone(model, greedy([5, 6]))} == {0.0}


# ---- precisions


@kinds
def test_half_as_precise(kind):
    "In bfloat16: the cache too; log-probabilities near those of float32."
    model = build(kind, initializer_range=0.1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(0.3)
    request = chance(text_of(12), 10, logprobs=0)
    events = Engine(model, dtype=torch.bfloat16).complete([request])[0]
    engine = Engine(model, dtype=torch.bfloat16)
    assert engine.runner.cache.k.dtype == engine.runner.cache.v.dtype == torch.bfloat16
    with torch.no_grad():
        ids = torch.tensor([[*request.ids, *tokens_of(events)]])
        want = token_logprobs(model(ids), ids)[0, len(request.ids) - 1 :]
    assert logps_of(events) == pytest.approx(want.tolist(), abs=0.05)
    assert logps_of(events) != pytest.approx(want.tolist(), abs=1e-6)


def test_autocast_around_it_changes_nothing():
    model = shared_model()
    want = alone(model, chance([5, 6, 7]))
    with torch.autocast("cpu", torch.bfloat16):
        assert Engine(model, 1, dtype=torch.float32).complete([chance([5, 6, 7])])[0][0].logp == (
            want[0].logp
        )
        engine = Engine(model, 1, dtype=torch.float32)
        number = engine.add(chance([5, 6, 7]))
        assert logps_of(drain(engine)[number]) == logps_of(want)


@kinds
def test_a_model_in_bfloat16(kind):
    model = build(kind).bfloat16()
    engine = Engine(model, slots=2)
    assert engine.runner.cache.k.dtype == torch.bfloat16
    events = engine.complete([chance(text_of(5, i), 6, i) for i in range(3)])
    assert [len(e) for e in events] == [6] * 3


# ---- weights that change


def adapted(seed=1):
    model = apply_lora(build(), r=2)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_adapted_model_is_its_merged_copy(dtype):
    model, request = adapted(), chance(text_of(6), 8)
    got = Engine(model, 2, dtype=dtype).complete([request, greedy([5, 6])])
    want = Engine(merged_model(model), 2, dtype=dtype).complete([request, greedy([5, 6])])
    if dtype is None:
        assert [tokens_of(e) for e in got] == [tokens_of(e) for e in want]
        assert tokens_of(got[1]) != tokens_of(alone(build(), greedy([5, 6])))
    # the first token, before a rounded one can lead elsewhere
    assert got[0][0].logp == pytest.approx(want[0][0].logp, abs=1e-4 if dtype is None else 0.3)


@kinds
def test_new_weights(kind):
    model = build(kind)
    engine, request = Engine(model, slots=2), greedy(text_of(20), 8)
    before = engine.complete([request])[0]
    loss = model(torch.tensor([text_of(20)])).logsumexp(-1).mean()
    loss.backward()
    assert all(p.requires_grad and not p.is_inference() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=3.0).step()
    engine.add(request)
    engine.step()
    with pytest.raises(ValueError, match="1 requests are on their way"):
        engine.load(model)
    drain(engine)
    engine.load(model)
    after = engine.complete([request])[0]
    assert tokens_of(after) == tokens_of(alone(model, request)) != tokens_of(before)
    # keys of the old weights are of no use
    assert after[0].cached == 0


@kinds
def test_nothing_is_left_behind_in_the_model(kind):
    model = build(kind).train()
    Engine(model).complete([greedy([5, 6, 7], 4)])
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert all(module.training for module in model.modules())
    model(torch.tensor([[5, 6, 7]])).square().mean().backward()
    assert all(p.grad is not None and p.requires_grad for p in model.parameters())


# ---- what can't be met


BAD = [
    (dict(ids=None), "lists of token ids"),
    (dict(ids=5), "lists of token ids"),
    (dict(ids="text"), "lists of token ids"),
    (dict(ids=[1.5]), "lists of token ids"),
    (dict(ids=[]), "at least one token"),
    (dict(ids=[10**6]), "1000000"),
    (dict(ids=[-1]), "-1"),
    (dict(ids=[5] * 96), "96"),
    (dict(ids=[5], max_new_tokens=0), "max_new_tokens=0"),
    (dict(ids=[5], min_new_tokens=-1), "min_new_tokens=-1"),
    (dict(ids=[5], temperature=-1), "temperature=-1"),
    (dict(ids=[5], temperature=float("nan")), "temperature=nan"),
    (dict(ids=[5], top_p=0), "top_p=0"),
    (dict(ids=[5], top_k=1.5), "top_k=1.5"),
    (dict(ids=[5], min_p=2), "min_p=2"),
    (dict(ids=[5], repetition_penalty=0), "repetition_penalty=0"),
    (dict(ids=[5], presence_penalty=float("inf")), "presence_penalty=inf"),
    (dict(ids=[5], logit_bias={10**6: 1.0}), "1000000"),
    (dict(ids=[5], logit_bias={5: "x"}), "logit_bias"),
    (dict(ids=[5], seed="x"), "seed='x'"),
    (dict(ids=[5], logprobs=-1), "logprobs=-1"),
    (dict(ids=[5], allowed=[5]), "allowed"),
    (dict(ids=[5], stop=[""]), "stop"),
    (dict(ids=[5], stop=[3]), "stop"),
    (dict(ids=[5], eos_token_id="end"), "eos_token_id='end'"),
]


def test_bad_requests_say_why_and_leave_others_going():
    model = shared_model()
    engine = Engine(model, tokenizer=tokenizer())
    number = engine.add(greedy([5, 6], len(BAD) + 1))
    events = []
    for options, said in BAD:
        with pytest.raises(ValueError, match=said):
            engine.add(Request(**options))
        events += engine.step()
    assert list(engine.going) == [number]
    events += drain(engine)[number]
    assert tokens_of(events) == tokens_of(alone(model, greedy([5, 6], len(BAD) + 1)))
    assert_empty(engine)
    # of a list with a bad one, none is begun
    with pytest.raises(ValueError, match="-1"):
        engine.complete([greedy([5]), greedy([-1])])
    assert_empty(engine)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(allowed=lambda drawn: () if len(drawn) == 2 else None), "no token is left"),
        (dict(allowed=lambda drawn: [10**6]), "1000000"),
        (dict(allowed=lambda drawn: 1 / 0), "division"),
        (dict(eos_token_id=range(10**3), min_new_tokens=2), "no token is left"),
        (dict(logit_bias={4: 1e39}), "not finite"),
        (dict(presence_penalty=1e39), "not finite"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_one_that_cannot_go_on_ends_and_others_lose_nothing(options, said, first):
    model, steps = shared_model(), 0
    engine = Engine(model, slots=3, tokenizer=tokenizer(), piece=4)
    good = [greedy(text_of(5), 7), chance(text_of(9, 2), 7)]
    bad = Request(ids=text_of(5), max_new_tokens=5, temperature=1.0, **options)
    requests = [bad, *good] if first else [*good, bad]
    numbers = [engine.add(request) for request in requests]
    told = {number: [] for number in numbers}
    failed = numbers[requests.index(bad)]
    while engine.busy:
        steps += 1
        assert steps < 40
        try:
            for event in engine.step():
                told[event.id].append(event)
        except ValueError as error:
            assert said in str(error) and f"request {failed}:" in str(error)
            assert failed not in engine.going
            said = "never again"
    assert said == "never again"
    for number, request in zip(numbers, requests):
        if request is not bad:
            assert tokens_of(told[number]) == tokens_of(alone(model, request))
    assert_empty(engine)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_broken_weights_are_named(top_p):
    model = build()
    model.lm_head.weight.data[3] = torch.nan
    engine = Engine(model)
    engine.add(chance([5, 6], top_p=top_p))
    with pytest.raises(ValueError, match="weights are broken"):
        drain(engine)
    assert_empty(engine)


@pytest.mark.parametrize("eos", [10**6, -1, [2, 10**6]])
def test_an_end_that_the_vocabulary_lacks(eos):
    events = alone(shared_model(), chance([5], 4, eos_token_id=eos, min_new_tokens=3))
    want = alone(shared_model(), chance([5], 4, logit_bias={} if eos != [2, 10**6] else {2: -99}))
    assert tokens_of(events)[:3] == tokens_of(want)[:3]


def test_bad_engines():
    model = shared_model()
    one = cache_bytes(model.config, 96, torch.float32)
    for options, said in [
        (dict(slots=0), "slots=0"),
        (dict(piece=0), "piece=0"),
        (dict(max_len=1), "max_len=1"),
        (dict(memory=one - 1), f"memory={one - 1:,}"),
    ]:
        with pytest.raises(ValueError, match=said):
            Engine(model, **options)
    with pytest.raises(ValueError, match="is a path"):
        Engine("here/it/is")
    with pytest.raises(ValueError, match="tokenizer"):
        Engine(model).add(Request(ids=[5], stop="x"))
    # more than the context is the context; memory decides how many
    assert Engine(model, max_len=10**6).max_len == 96
    assert [Engine(model, 9, memory=n * one).slots for n in (1, 2.5, 99, float("inf"))] == [
        *(1, 2, 9, 9)
    ]


# ---- text


@given(st.lists(st.integers(3, 290), min_size=1, max_size=20))
@settings(max_examples=30)
def test_pieces_of_text_are_the_whole(ids):
    decoder = TextDecoder(tokenizer())
    pieces = [decoder.add(token) for token in ids]
    assert "".join(pieces) + decoder.finish() == tokenizer().decode(ids)


def test_stream_is_the_engines():
    model, request = shared_model(), chance([5, 6], 20, 4)
    said = "".join(event.text for event in alone(model, request))
    how = dict(temperature=1.0, top_p=1.0, seed=4, eos_token_id=())
    assert "".join(stream(model, tokenizer(), [5, 6], 20, **how)) == said


def test_a_failure_is_told_to_whoever_asked():
    "One stream's request can't go on: that stream says so, and another one loses nothing."
    model, greedy = build(), Request([5, 6], 6, temperature=0, eos_token_id=())
    wanted = [event.token for event in Engine(model, 1, 32).complete([greedy])[0]]
    engine = Engine(model, slots=2, max_len=32)
    good = engine.stream(greedy)
    heard = [next(good).token]
    bad = engine.stream(Request([7, 8], 6, temperature=0, allowed=lambda drawn: ()))
    # it is the good one that steps, and meets the other's failure
    with pytest.raises(ValueError, match="request 2: no token is left"):
        next(bad)
    assert heard + [e.token for e in good] == wanted
    assert not engine.busy and not engine.inboxes


def test_an_engine_keeps_its_shape():
    with pytest.raises(ValueError, match="another config"):
        Engine(build(), 1, 32).load(build("llama"))
