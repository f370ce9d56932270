"""Writing beside others: this library's engine, Hugging Face's `generate` and llama.cpp, with the
same weights and prompts.

python benchmarks/decode.py [--rounds 5] [--llama-python PATH] [--only hf ours …] [--out …]

Each contestant runs in a process of its own, in turns; shown are medians over the rounds. All
answer greedily; what they write is compared with `generate`'s, so that one that computes something
else is seen. The time to the first token is that of a reply of one token. Two workloads more are
ours alone: requests that come while others are answered, and rollouts of reinforcement learning.

llama.cpp is `pip install xllamacpp gguf numpy` of any environment: --llama-python, or LLAMA_PYTHON,
is its interpreter; without one llama.cpp is left out. Its process has no PyTorch, so what isn't
everywhere is imported where it is used. All of it needs a quiet machine: threads that wait for each
other are ten times slower beside another program."""

import argparse, json, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np

THREADS, SHAPES, AT_ONCE = 2, ("minimind2-small", "ci"), (1, 16)
# tokens of a prompt and of a reply; seconds that something is measured at least
PROMPT, NEW, LEAST = 32, 64, 1.0
# requests that arrive within so many steps; least and most tokens of their prompts and replies
ARRIVALS, WITHIN, PROMPTS, REPLIES = 64, 256, (8, 200), (8, 128)
# prompts of a rollout, completions of each
GROUPS, GROUP = 16, 8


def random_ids(rows, length=PROMPT, seed=0):
    "Prompts, the same in every process: lists of ids, without the special ones."
    return np.random.default_rng(seed).integers(3, 6400, (rows, length)).tolist()


def random_model(shape):
    """The same random weights in every process: larger than those that training begins with, with
    which a model repeats its last token, however wrong the attention is that it computes."""
    import torch
    from minimind.model import MiniMind, preset

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = MiniMind(preset(shape, initializer_range=0.1)).eval()
    # a special token is never the likeliest: llama.cpp can't write an end token and go on
    model.model.embed_tokens.weight.data[:3] = 0
    return model


# ---- contestants: from a shape and the number of requests at once to a function of prompts and the
# ---- tokens wanted, which returns the replies, and for each the seconds until it was complete
def hf(shape, at_once, folder):
    import torch
    from bench import hf_model

    model = random_model(shape)
    theirs = hf_model(model.config).eval()
    theirs.load_state_dict(model.state_dict())
    how = dict(do_sample=False, eos_token_id=None, pad_token_id=0)

    def answer(prompts, new):
        start, ids = time.perf_counter(), torch.tensor(prompts)
        mask = torch.ones_like(ids)
        out = theirs.generate(ids, attention_mask=mask, max_new_tokens=new, **how)
        replies = out[:, ids.shape[1] :].tolist()
        return replies, [time.perf_counter() - start] * len(prompts)

    return answer


def answer_all(engine, requests):
    """Put requests `(step, ids, new tokens)`, the earliest first, to the engine when their step has
    come. Returns the replies, and of each the seconds to its first and to its last token."""
    from minimind.generate import Request

    how = dict(temperature=0, eos_token_id=())
    waiting, replies, times, step = list(requests), {}, {}, 0
    while waiting or engine.busy:
        while waiting and waiting[0][0] <= step:
            _, ids, new = waiting.pop(0)
            start = time.perf_counter()
            number = engine.add(Request(ids=ids, max_new_tokens=new, **how))
            replies[number], times[number] = [], [start]
        for event in engine.step() if engine.busy else ():
            replies[event.id].append(event.token)
            times[event.id].append(time.perf_counter())
        step += 1
    firsts, lasts = zip(*((t[1] - t[0], t[-1] - t[0]) for t in times.values()))
    return list(replies.values()), firsts, lasts


def ours(shape, at_once, folder, dtype=None):
    from minimind.generate import Engine

    engine = Engine(random_model(shape), slots=at_once, max_len=PROMPT + NEW, dtype=dtype)

    def answer(prompts, new):
        replies, _, seconds = answer_all(engine, [(0, ids, new) for ids in prompts])
        return replies, seconds

    return answer


def write_gguf(path, config, weights, quantized):
    "Weights by Hugging Face's names as llama.cpp reads them: in F32, or the matrices in Q8_0."
    import gguf

    c, arch = config, gguf.MODEL_ARCH.QWEN3 if config["qk_norm"] else gguf.MODEL_ARCH.LLAMA
    V, L, Dh = c["vocab_size"], c["num_hidden_layers"], c["head_dim"]
    out = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    said = dict(vocab_size=V, block_count=L, context_length=c["max_position_embeddings"])
    said |= dict(embedding_length=c["hidden_size"], feed_forward_length=c["intermediate_size"])
    said |= dict(head_count=c["num_attention_heads"], head_count_kv=c["num_key_value_heads"])
    said |= dict(key_length=Dh, value_length=Dh, rope_dimension_count=Dh)
    said |= dict(rope_freq_base=c["rope_theta"], layer_norm_rms_eps=c["rms_norm_eps"])
    # no text is read; token i is written " i", so that a reply's text says its ids
    said |= dict(tokenizer_model="llama", token_list=[f"▁{i}" for i in range(V)])
    said |= dict(token_scores=[0.0] * V, token_types=[gguf.TokenType.NORMAL] * V)
    for key, value in (said | dict(add_bos_token=False)).items():
        getattr(out, f"add_{key}")(value)
    names, q8 = gguf.get_tensor_name_map(arch, L), gguf.GGMLQuantizationType.Q8_0
    for name, x in weights.items():
        if name == "lm_head.weight" and c["tie_word_embeddings"]:
            continue
        # its Llama rotates pairs of neighbours, Hugging Face's (and its Qwen3) the two halves
        if not c["qk_norm"] and ("q_proj" in name or "k_proj" in name):
            x = x.reshape(-1, 2, Dh // 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        kind = q8 if quantized and x.ndim == 2 else gguf.GGMLQuantizationType.F32
        name = names.get_name(name, try_suffixes=(".weight",))
        out.add_tensor(name, gguf.quantize(x, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def llama(shape, at_once, folder, quantized=False, exact=False):
    import xllamacpp

    path = folder / f"{shape}-{'q8' if quantized else 'f32'}.gguf"
    if not path.exists():
        config = json.loads((folder / f"{shape}.json").read_text())
        write_gguf(path, config, np.load(folder / f"{shape}.npz"), quantized)
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(path), 0
    params.n_parallel, params.n_ctx = at_once, at_once * 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.cache_ram_mib, params.fit_params = 0, False
    if exact:
        # its usual attention computes in half precision
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server, pool = xllamacpp.Server(params), ThreadPoolExecutor(at_once)
    # no sampler that greedy decoding does without
    how = dict(temperature=0, samplers=["temperature"], ignore_eos=True, cache_prompt=False)

    def ask(ids, new):
        start = time.perf_counter()
        out = server.handle_completions(dict(prompt=ids, n_predict=new, **how))
        seconds = time.perf_counter() - start
        return [int(word) for word in out["choices"][0]["text"].split()], seconds

    return lambda prompts, new: zip(*pool.map(ask, prompts, [new] * len(prompts)))


CONTESTANTS = {
    "hf": ("transformers", hf),
    "llama-exact": ("llama.cpp F32, exact attention", partial(llama, exact=True)),
    "llama-f32": ("llama.cpp F32", llama),
    "ours": ("minimind", ours),
    "llama-q8": ("llama.cpp Q8_0", partial(llama, quantized=True)),
    "ours-int8": ("minimind int8", partial(ours, dtype="int8")),
}
# llama.cpp in the same precision
RIVALS = {"ours": "llama-f32", "ours-int8": "llama-q8"}


# ---- what a process measures
def repeated(run):
    "Call `run(1)`, `run(2)`, … until enough time has gone: the seconds and the results."
    seconds, results = [], []
    while sum(seconds) < LEAST:
        start = time.perf_counter()
        results.append(run(len(results) + 1))
        seconds.append(time.perf_counter() - start)
    return seconds, results


def greedy(contestant, shape, at_once, folder):
    "Requests that come all at once; new prompts each time, so that none is remembered."
    answer = CONTESTANTS[contestant][1](shape, at_once, folder)
    ask = lambda new, seed: answer(random_ids(at_once, seed=seed), new)
    replies, _ = ask(NEW, 0)
    assert all(len(ids) == NEW for ids in replies), "a reply of another length"
    seconds, _ = repeated(partial(ask, NEW))
    _, firsts = repeated(lambda seed: median(list(ask(1, seed))[1]))
    return dict(speed=at_once * NEW / median(seconds), first=median(firsts), replies=replies)


def arrivals(contestant, shape, at_once, folder):
    "Requests of many lengths that come one after the other; and one alone."
    from minimind.generate import Engine

    rng = np.random.default_rng(0)
    steps = np.sort(rng.integers(0, WITHIN, ARRIVALS)).tolist()
    lengths, new = (rng.integers(a, b + 1, ARRIVALS).tolist() for a, b in (PROMPTS, REPLIES))
    engine = Engine(random_model(shape), slots=at_once, max_len=PROMPTS[1] + REPLIES[1])

    def many(seed):
        ids = [row[:n] for row, n in zip(random_ids(ARRIVALS, PROMPTS[1], seed), lengths)]
        return median(answer_all(engine, list(zip(steps, ids, new)))[1])

    many(0)
    seconds, firsts = repeated(many)
    one, _ = repeated(lambda seed: answer_all(engine, [(0, *random_ids(1, seed=seed), NEW)]))
    return dict(speed=sum(new) / median(seconds), first=median(firsts), alone=NEW / median(one))


def rollout(contestant, shape, at_once, folder):
    "Completions drawn for reinforcement learning."
    from minimind.rollout import LocalEngine

    engine, prompts = LocalEngine(random_model(shape)), random_ids(GROUPS)
    draw = lambda seed: chain(*engine.sample(prompts, GROUP, NEW, 1.0, seed))
    count = lambda seed: sum(len(completion.ids) for completion in draw(seed))
    count(0)
    seconds, tokens = repeated(count)
    return dict(speed=sum(tokens) / sum(seconds))


WORKLOADS = dict(greedy=greedy, arrivals=arrivals, rollout=rollout)


# ---- the turns
def in_a_process(python, *what):
    "What the contestant measures. Raises `SystemExit` with its last words if it fails."
    command = [python, __file__, "--contestant", *map(str, what)]
    env = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def same_tokens(replies, others):
    "Share of the tokens that stand before the first that differs from the other reply's."
    pairs = [[a == b for a, b in zip(*pair)] + [False] for pair in zip(replies, others)]
    return sum(pair.index(False) for pair in pairs) / (NEW * len(pairs))


COLUMNS = "shape|requests|program|tokens/s|to transformers'|to llama.cpp's|first, ms|same tokens"


def rows_of(workload, shape, at_once, runs):  # `{contestant: what each of its processes measured}`
    "Lines of the table: medians, their ratios, and the least agreement with transformers' tokens."
    asked = dict(arrivals=f"{ARRIVALS} arriving", rollout=f"{GROUPS} × {GROUP} drawn")
    speeds = {name: median(run["speed"] for run in those) for name, those in runs.items()}
    theirs = [run["replies"] for run in runs.get("hf", ())[:1]]
    for name, those in runs.items():
        beside = [other if other != name else None for other in ("hf", RIVALS.get(name))]
        ratios = [f"{speeds[name] / speeds[o]:.2f}" if o in speeds else "" for o in beside]
        firsts = [run["first"] for run in those if "first" in run]
        first = f"{1000 * median(firsts):.1f}" if firsts else ""
        same = [same_tokens(run["replies"], replies) for run in those for replies in theirs]
        least = f"{min(same):.1%}" if same else ""
        case = shape, asked.get(workload, at_once), CONTESTANTS[name][0]
        yield [*case, f"{speeds[name]:,.0f}", *ratios, first, least]


def write_weights(folder, shape):
    "Weights and shape for a process without PyTorch."
    model = random_model(shape)
    np.savez(folder / f"{shape}.npz", **{k: v.numpy() for k, v in model.state_dict().items()})
    (folder / f"{shape}.json").write_text(json.dumps(model.config.to_dict()))


def llama_build(python):
    "Which llama.cpp an interpreter has and what of the processor it uses; None if it has none."
    code = "import gguf, xllamacpp as x; print('xllamacpp', x.__version__, x.get_system_info())"
    done = python and subprocess.run([python, "-c", code], capture_output=True, text=True)
    return " ".join(done.stdout.replace("|", "").split()) if done and not done.returncode else None


def compare(args):
    from bench import provenance, save
    from minimind.log import text_table

    result = provenance(" ".join(__doc__.split("\n\n")[0].split()))
    build, runs, rows, columns = llama_build(args.llama_python), {}, [], COLUMNS.split("|")
    only = [n for n in CONTESTANTS if n in args.only and (build or not n.startswith("llama"))]
    result["note"] = f"llama.cpp: {build}." if build else "llama.cpp was not at hand."
    print(result["note"])
    result["note"] += " Same tokens: those before the first that differs from transformers'; with "
    result["note"] += "random weights rounding soon makes another text, half precision's too."
    cases = [("greedy", shape, n, only) for shape in args.shapes for n in AT_ONCE]
    mine = [name for name in only if name == "ours"]
    cases += [("arrivals", SHAPES[0], max(AT_ONCE), mine)]
    cases += [("rollout", shape, GROUPS * GROUP, mine) for shape in args.shapes]
    cases = [case for case in cases if case[0] in args.workloads and case[-1]]
    with tempfile.TemporaryDirectory() as folder:
        for shape in args.shapes:
            write_weights(Path(folder), shape)
        for workload, shape, at_once, names in cases:
            by = {name: [] for name in names}
            for name in names * args.rounds:
                python = args.llama_python if name.startswith("llama") else sys.executable
                by[name].append(in_a_process(python, name, workload, shape, at_once, folder))
            rows += rows_of(workload, shape, at_once, by)
            print(text_table([columns, *rows[-len(by) :]]), flush=True)
            for run in chain(*by.values()):
                run.pop("replies", None)
            runs[f"{workload}, {shape}, {at_once}"] = by
            if workload == "arrivals":
                times = median(run["speed"] / run["alone"] for run in by["ours"])
                result["note"] += f" Requests that arrive: {times:.1f} × the tokens/s of one alone."
    save(args.out, result | dict(columns=columns, rows=rows, runs=runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--llama-python", default=os.environ.get("LLAMA_PYTHON"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/decode.json")
    # how a process is told its part
    parser.add_argument("--contestant", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.contestant:
        return compare(args)
    name, workload, shape, at_once, folder = args.contestant
    print(json.dumps(WORKLOADS[workload](name, shape, int(at_once), Path(folder))), flush=True)


if __name__ == "__main__":
    main()
