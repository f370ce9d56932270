"""What a card reaches in training: tokens a second, the share of its peak rate that they are, and
memory.

minimind bench gpu # or python benchmarks/gpu.py

Each model runs in a process of its own, through `minimind.pretrain.run` like any other run, on the
shipped text, with and without torch.compile. The result goes to benchmarks/results/gpu-NAME.json;
the plans of `minimind recipe` use it from then on."""

import argparse, json, statistics, subprocess, sys, tempfile
from pathlib import Path
import torch
from bench import HERE, provenance, save
from minimind import pretrain
from minimind.core import get_device, get_dtype, sample
from minimind.log import read_metrics, text_table
from minimind.model import PRESETS, flops_per_token, num_parameters
from minimind.pretrain import TEXT_SAMPLES, PretrainConfig
from minimind.recipe import GPUS, gpu_of
from minimind.tokenizer import Tokenizer

MODELS = "minimind2-small", "minimind-3", "minimind-3-moe"
# log lines that are left out: first calls, compilation
WARM_UP = 2


def settings(size, memory):  # "full" or "ci"; GB of the card
    "What each run is told."
    if size == "ci":
        return dict(
            steps=4,
            log_every=1,
            seq_len=64,
            batch_size=4,
            micro_batch_size=4,
            data=str(sample("pretrain_numbers.jsonl")),
        )
    # as in the recipes
    return dict(
        steps=50,
        log_every=5,
        seq_len=340,
        batch_size=256,
        micro_batch_size=256 if memory > 60 else 32,
    )


def one(model, compiled, tokenizer, options, device):
    """Train a model for some steps; dict of numbers. To be called in a fresh process, so that
    nothing is left of the one before."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = PretrainConfig(
            out=folder,
            model=model,
            tokenizer=tokenizer,
            compile=compiled,
            optimizer="adamw",
            lr=5e-4,
            eval_bytes=0,
            save_every=10**6,
            device=str(device),
            **options,
        )
        pretrain.run(cfg)
        rates = [line["tokens_per_second"] for line in read_metrics(folder) if "lr" in line][
            WARM_UP:
        ]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
    return dict(
        tokens_per_second=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        peak_bytes=peak,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--size",
        choices=("full", "ci"),
        default="full",
        help="ci: seconds on a CPU, to test this script",
    )
    parser.add_argument("--models", nargs="+", help=f"presets (default: {' '.join(MODELS)})")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    # model, compile or plain, tokenizer, options: how a fresh process is asked
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = get_device("cpu" if args.size == "ci" else "auto")
    if device.type != "cuda" and args.size != "ci":
        sys.exit(
            "minimind bench gpu: torch finds no CUDA device here, so there is nothing to measure"
        )
    if args.one:
        model, how, tokenizer, options = args.one
        print(
            "result",
            json.dumps(one(model, how == "compile", tokenizer, json.loads(options), device)),
        )
        return
    dtype, name = (
        get_dtype(device),
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )
    gpu = gpu_of(name)
    # a card that is not in the table has no MFU
    peak = (GPUS[gpu].bf16 if dtype == torch.bfloat16 else GPUS[gpu].fp32) if gpu else None
    options = settings(
        args.size,
        torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else 0,
    )
    title = f"Training on one {gpu or name}: {options['batch_size']} rows × {options['seq_len']} tokens a step, {options['micro_batch_size']} at once, AdamW, packed text"
    result = provenance(title, device, dtype) | dict(
        gpu=gpu or name,
        peak_tflops=peak,
        settings={k: v for k, v in options.items() if k != "data"},
        runs=[],
    )
    with tempfile.TemporaryDirectory() as folder:
        if args.size == "ci":
            tokenizer = Tokenizer.train(["Some text, for some model.\n" * 9], 300)
        else:
            tokenizer = Tokenizer.train(
                pretrain.read_documents([sample(n) for n in TEXT_SAMPLES[0][:2]])
            )
        tokenizer.save(Path(folder) / "tokenizer.json")
        for model in args.models or (MODELS if args.size == "full" else ("ci",)):
            for how in ("plain", "compile") if args.size == "full" else ("plain",):
                command = [
                    sys.executable,
                    __file__,
                    "--size",
                    args.size,
                    "--one",
                    model,
                    how,
                    folder,
                    json.dumps(options),
                ]
                done = subprocess.run(command, capture_output=True, text=True)
                # too little memory for one model need not cost the numbers of the others
                if done.returncode:
                    print(f"{model}, {how}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
                    continue
                if "compile: not possible" in done.stdout:
                    print(f"{model}, {how}: torch.compile does not work here, not measured")
                    continue
                numbers = json.loads(done.stdout.rsplit("result ", 1)[1])
                mfu = (
                    numbers["tokens_per_second"]
                    * flops_per_token(PRESETS[model], options["seq_len"])
                    / (peak * 1e12)
                    if peak
                    else None
                )
                result["runs"].append(
                    dict(
                        model=model,
                        compile=how == "compile",
                        **numbers,
                        **({"mfu": mfu} if mfu else {}),
                    )
                )
                print(
                    f"{model}, {how}: {numbers['tokens_per_second']:,.0f} tokens/s"
                    + (f", MFU {mfu:.1%}" if mfu else ""),
                    flush=True,
                )
    if not result["runs"]:
        sys.exit("minimind bench gpu: every run failed")
    result["columns"] = [
        "model",
        "parameters",
        "torch.compile",
        "tokens/s",
        *(["MFU"] if peak else []),
        "peak memory, GB",
    ]
    result["rows"] = [
        [
            r["model"],
            f"{num_parameters(PRESETS[r['model']]):,}",
            "yes" if r["compile"] else "no",
            f"{r['tokens_per_second']:,.0f}",
            *([f"{r['mfu']:.1%}"] if peak else []),
            f"{r['peak_bytes'] / 1e9:.1f}",
        ]
        for r in result["runs"]
    ]
    print(f"\n{title}\n{text_table([result['columns'], *result['rows']])}")
    save(args.out / f"gpu-{(gpu or name).replace(' ', '-')}.json", result)


if __name__ == "__main__":
    main()
