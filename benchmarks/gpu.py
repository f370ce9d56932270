"""What a card reaches: training (tokens a second, the share of the card's peak rate that they are,
memory), and the parts whose choice depends on the card: attention over packed rows, experts,
writing, random numbers that go on.

minimind bench gpu # or python benchmarks/gpu.py; at most eight minutes

Everything that is measured runs in a process of its own, so that a part that fails, or takes all of
the memory, costs only itself. Models are trained through `minimind.pretrain.run` like any other run,
on the shipped text, with and without torch.compile. The result goes to
benchmarks/results/gpu-NAME.json; the plans of `minimind recipe` use it from then on.

--dry does the same with a tiny model on a CPU, in a minute: it shows that the script runs."""

import argparse, json, re, statistics, subprocess, sys, tempfile, time
from contextlib import redirect_stdout
from pathlib import Path
import torch
from bench import HERE, interleaved, provenance, save
from minimind import pretrain
from minimind.attention import attend, find_documents, varlen_obstacle
from minimind.core import get_device, get_dtype, sample
from minimind.generate import generate
from minimind.log import read_metrics, text_table
from minimind.model import PRESETS, MiniMind, flops_per_token, num_parameters
from minimind.moe import dispatch_grouped, dispatch_sorted, route
from minimind.pretrain import TEXT_SAMPLES, PretrainConfig
from minimind.recipe import GPUS, gpu_of
from minimind.tokenizer import Tokenizer
from minimind.train import random_state, set_random_state

MODELS = "minimind2-small", "minimind-3", "minimind2"
# log lines that are left out: first calls, compilation
WARM_UP = 2
# seconds, of the whole and of one process
MOST, EACH = 8 * 60, 150


def settings(dry, memory):  # GB of the card
    "What each training is told."
    if dry:
        rows = dict(steps=4, log_every=1, seq_len=64, batch_size=4, micro_batch_size=4)
        return rows | dict(data=[str(sample("pretrain_numbers.jsonl"))])
    # as in the recipes
    rows = dict(steps=16, log_every=2, seq_len=340, batch_size=256)
    return rows | dict(micro_batch_size=256 if memory > 60 else 32)


def peak_bytes(device):
    "Most memory that this process has had."
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train(device, model, how, tokenizer, options):
    "Train a model for some steps; dict of numbers."
    with tempfile.TemporaryDirectory() as folder:
        cfg = PretrainConfig(
            out=folder,
            model=model,
            tokenizer=tokenizer,
            compile=how == "compile",
            optimizer="adamw",
            lr=5e-4,
            eval_bytes=0,
            save_every=10**6,
            device=str(device),
            dtype=str(get_dtype(device)).removeprefix("torch."),
            **json.loads(options),
        )
        pretrain.run(cfg)
        lines = [line for line in read_metrics(folder) if "lr" in line]
        rates = [line["tokens_per_second"] for line in lines][WARM_UP:]
    return dict(
        tokens_per_second=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        peak_bytes=peak_bytes(device),
        last_loss=lines[-1]["loss"],
    )


def passes(device, ways, inputs, rounds):
    """Of each way, `{name: function of the inputs}`: milliseconds of a forward and backward pass, and
    MiB that it adds."""

    def both(way):
        # under autocast casts are kept, and a kept one belongs to one graph
        out = way(*inputs)
        torch.autograd.grad(out, [x for x in inputs if x.requires_grad], torch.ones_like(out))

    added = {}
    for name, way in ways.items():
        if device.type != "cuda":
            added[name] = ""
            continue
        both(way)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        both(way)
        added[name] = f"{(torch.cuda.max_memory_allocated(device) - before) / 2**20:,.0f}"
    seconds = interleaved({name: lambda w=way: both(w) for name, way in ways.items()}, rounds)
    return [[name, f"{1000 * seconds[name]:.2f}", added[name]] for name in ways]


def packed(device, dtype, dry):
    "Attention over packed rows, forward and backward: documents laid end to end, or a mask"
    rows = []
    config = PRESETS["ci" if dry else "minimind-3"]
    heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
    for B, T in ((2, 64),) if dry else ((64, 340), (8, 2048)):
        torch.manual_seed(0)
        # documents of 20 to 200 tokens
        starts = torch.randint(20, 200, (B, T)).cumsum(1)
        segments = torch.stack([torch.searchsorted(s, torch.arange(T), right=True) for s in starts])
        documents = find_documents(segments + 1).to(device)
        mask = documents.mask(B, T)
        inputs = [torch.randn(B, T, h, config.head_dim, device=device, dtype=dtype) for h in heads]
        ways = dict(documents=documents, mask=mask) | {"causal, one document": None}
        # on a card that has no kernel for them the mask is all there is
        if device.type == "cuda" and varlen_obstacle(device, dtype, config.head_dim):
            del ways["documents"]
        ways = {name: lambda q, k, v, m=m: attend(q, k, v, m) for name, m in ways.items()}
        inputs = [x.requires_grad_() for x in inputs]
        rows += [[f"{B} × {T}", *row] for row in passes(device, ways, inputs, 3 if dry else 20)]
    return ["rows", "way", "ms", "adds, MiB"], rows


def experts(device, dtype, dry):
    "A layer of experts, forward and backward: one product for each, or one for all"
    config, rows = PRESETS["ci-moe" if dry else "minimind-3-moe"], []
    D, hidden, E = config.hidden_size, config.moe_intermediate_size, config.num_experts
    for N in (64,) if dry else (32 * 340, 256 * 340):
        torch.manual_seed(0)
        x = torch.randn(N, D, device=device, dtype=dtype, requires_grad=True)
        weights, chosen, _ = route(torch.randn(N, E, device=device), config.num_experts_per_tok)
        up = torch.randn(E, 2 * hidden, D, device=device, dtype=dtype) / D**0.5
        down = torch.randn(E, D, hidden, device=device, dtype=dtype) / hidden**0.5
        inputs = [x, weights, chosen, up.requires_grad_(), down.requires_grad_()]
        ways = {"sorted": dispatch_sorted, "grouped": dispatch_grouped}
        rows += [[f"{N:,}", *row] for row in passes(device, ways, inputs, 3 if dry else 10)]
    return ["tokens", "way", "ms", "adds, MiB"], rows


def decode(device, dtype, dry):
    "Greedy writing: 128 tokens after a prompt of 32, weights in the precision of training"
    rows, new = [], 4 if dry else 128
    for name in ("ci",) if dry else ("minimind2-small", "minimind-3"):
        # float16 and bfloat16 for inference need no autocast
        model = MiniMind(name).to(device, dtype).eval()
        for B in (1, 2) if dry else (1, 16, 64):
            prompts = torch.randint(3, model.config.vocab_size, (B, 32)).tolist()
            ask = lambda: generate(model, prompts, new, temperature=0, eos_token_id=())  # noqa: E731
            [seconds] = interleaved({"ours": ask}, 3, warmup=1).values()
            rows.append([name, str(B), f"{B * new / seconds:,.0f}", f"{1000 * seconds / new:.2f}"])
    return ["model", "texts at once", "tokens/s", "ms a token"], rows


def random_numbers(device, dtype, dry):
    "What a resumed run must find again: the generators of the device"
    torch.rand(3, device=device)
    state = random_state()
    first = torch.rand(1000, device=device)
    later = torch.rand(1000, device=device)
    set_random_state(*state)
    rows = [["the same after going back", str(torch.equal(torch.rand(1000, device=device), first))]]
    rows.append(["other ones without", str(not torch.equal(first, later))])
    return ["random numbers", "as they must be"], rows


PARTS = {f.__name__.replace("_", " "): f for f in (packed, experts, decode, random_numbers)}


def part(device, name, dry=False):
    "A part's table."
    columns, rows = PARTS[name](device, get_dtype(device), dry)
    return dict(columns=columns, rows=rows)


def ask(dry, end, *words):  # `end`: when all must be over
    "Call this script with some words in a fresh process; what it found, or `{'error': why}`."
    command = [sys.executable, __file__, *(["--dry"] if dry else []), "--one", *words]
    left = min(EACH, end - time.monotonic())
    if left < 10:
        return dict(error="there was no time left")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return dict(error=f"took more than {left:.0f} s")
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return dict(error=done.stderr.strip().splitlines()[-1][:200])
    # "not possible here", or a layer that gave up on the way: then the numbers are not compiled ones
    if gave_up := re.search("compile: .*", done.stderr):
        return dict(error=gave_up[0])
    return json.loads(done.stdout.rsplit("result ", 1)[1])


def answer(device, kind, *words):
    "What `ask` is waiting for. What a run says goes where it does not disturb."
    with redirect_stdout(sys.stderr):
        found = {"train": train, "part": part}[kind](device, *words)
    print("result", json.dumps(found))


def measure_parts(dry, end):
    "The parts one after another, printed as they come."
    out = []
    for name, function in PARTS.items():
        found = part(torch.device("cpu"), name, dry) if dry else ask(dry, end, "part", name)
        out.append(dict(name=name, title=function.__doc__) | found)
        table = [found["columns"], *found["rows"]] if "rows" in found else [[found["error"]]]
        print(f"\n{name}. {function.__doc__}\n{text_table(table)}", flush=True)
    return out


def measure_runs(dry, models, options, peak, end):  # TFLOP/s of the card, or None
    "The trainings one after another, first all without torch.compile."
    out = []
    with tempfile.TemporaryDirectory() as folder:
        texts = ["Some text, for some model.\n" * 9]
        if not dry:
            texts = pretrain.read_documents([sample(n) for n in TEXT_SAMPLES[0][:2]])
        Tokenizer.train(texts, 300 if dry else 6400).save(Path(folder) / "tokenizer.json")
        for how in ("plain",) if dry else ("plain", "compile"):
            for model in models:
                found = ask(dry, end, "train", model, how, folder, json.dumps(options))
                # too little memory for one model need not cost the numbers of the others
                if "error" in found:
                    print(f"{model}, {how}: {found['error']}", flush=True)
                    continue
                work = flops_per_token(PRESETS[model], options["seq_len"])
                mfu = found["tokens_per_second"] * work / (peak * 1e12) if peak else None
                found |= {"mfu": mfu} if mfu else {}
                out.append(dict(model=model, compile=how == "compile") | found)
                share = f", MFU {mfu:.1%}" if mfu else ""
                print(
                    f"{model}, {how}: {found['tokens_per_second']:,.0f} tokens/s{share}", flush=True
                )
    return out


def table_of(runs, peak):
    "Columns and rows of the trainings."
    share = ["MFU"] if peak else []
    columns = ["model", "parameters", "torch.compile", "tokens/s", *share, "peak memory, GB"]
    rows = []
    for r in runs:
        row = [r["model"], f"{num_parameters(PRESETS[r['model']]):,}"]
        row += ["yes" if r["compile"] else "no", f"{r['tokens_per_second']:,.0f}"]
        row += [f"{r['mfu']:.1%}"] if peak else []
        rows.append([*row, f"{r['peak_bytes'] / 1e9:.1f}"])
    return columns, rows


def peak_rate(gpu, dtype):  # a key of `GPUS`, or None: a card that is not in the table has no MFU
    "TFLOP/s in a precision."
    if gpu is None:
        return None
    known = {torch.bfloat16: GPUS[gpu].bf16, torch.float32: GPUS[gpu].fp32}
    return known.get(dtype) or None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--dry", action="store_true", help="a tiny model on a CPU, to try this script"
    )
    parser.add_argument("--models", nargs="+", help=f"presets (default: {' '.join(MODELS)})")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    # how a fresh process is asked
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device, end = get_device("cpu" if args.dry else "auto"), time.monotonic() + MOST
    if device.type != "cuda" and not args.dry:
        sys.exit(
            "minimind bench gpu: torch finds no CUDA device here, so there is nothing to measure"
        )
    if args.one:
        return answer(device, *args.one)
    dtype, name, memory = get_dtype(device), "cpu", 0
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    gpu = gpu_of(name)
    peak, options = peak_rate(gpu, dtype), settings(args.dry, memory)
    rows = f"{options['batch_size']} rows × {options['seq_len']} tokens a step"
    title = (
        f"Training on one {gpu or name}: {rows}, {options['micro_batch_size']} at once, AdamW, "
        "packed text"
    )
    shown = {k: v for k, v in options.items() if k != "data"}
    # the commit as it is before results are written
    result = provenance(title, device, dtype) | dict(
        gpu=gpu or name, peak_tflops=peak, settings=shown
    )
    result["parts"] = measure_parts(args.dry, end)
    models = args.models or (("ci",) if args.dry else MODELS)
    result["runs"] = measure_runs(args.dry, models, options, peak, end)
    if not result["runs"]:
        sys.exit("minimind bench gpu: every run failed")
    result["columns"], result["rows"] = table_of(result["runs"], peak)
    print(f"\n{title}\n{text_table([result['columns'], *result['rows']])}")
    save(args.out / f"gpu-{(gpu or name).replace(' ', '-')}.json", result)


if __name__ == "__main__":
    main()
