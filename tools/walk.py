"""Follow one config and one batch through the code, from the command line to the first loss: which
module hands them to which.

`python tools/walk.py` trains one step of a tiny model and prints every hand-over from one module to
another, in order. Good is a walk down the ladder: few hand-overs, each module entered seldom, and
none from a lower chapter back up to a higher one."""

import dataclasses
import os
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

root = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "2")


def is_config(value):  # of a run; a model's shape is another thing
    return dataclasses.is_dataclass(value) and hasattr(value, "seq_len")


def is_batch(value):
    return isinstance(value, dict) and "input_ids" in value and "labels" in value


def chapter(module):  # its number on the ladder; tools stand below all
    found = list((root / "nbs").glob(f"[0-9]*_{module}.ipynb"))
    number = int(found[0].name[:2]) if found else 99
    return number if number < 90 else 0


class Walk:
    "The hand-overs of a thing of one kind from module to module."

    def __init__(self, wanted):
        self.wanted, self.steps = wanted, []

    def see(self, caller, callee, function, values):
        if caller != callee and any(map(self.wanted, values)):
            self.steps.append((caller, callee, function))

    def __str__(self):
        entered = Counter(callee for _, callee, _ in self.steps)
        up = sum(chapter(callee) > chapter(caller) > 0 for caller, callee, _ in self.steps)
        lines = [f"  {a} → {b}.{f}" for a, b, f in self.steps]
        counts = ", ".join(f"{m} {n}" for m, n in entered.most_common())
        return "\n".join(
            [*lines, f"  {len(lines)} hand-overs ({counts}), {up} of them up the ladder"]
        )


def traced(walks, package, until):
    "A profile function that shows every call between modules to the walks, up to one function."
    done = []

    def module_of(frame):
        path = Path(frame.f_code.co_filename)
        return path.stem if path.parent == package else None

    def profile(frame, event, _):
        callee = module_of(frame)
        if event != "call" or done or callee is None:
            return
        back = frame.f_back
        while back and module_of(back) is None:  # what stands between is Python's own
            back = back.f_back
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = [frame.f_locals.get(name) for name in names]
        for walk in walks:
            walk.see(module_of(back) if back else "you", callee, code.co_name, values)
        if code.co_name == until:
            done.append(1)

    return profile


def main():
    import minimind
    from minimind.cli import main as cli

    package = Path(minimind.__file__).resolve().parent
    config, batch = Walk(is_config), Walk(is_batch)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("A walk from the command line to the loss. " * 300, encoding="utf-8")
        argv = ["pretrain", "--data", text, "--out", f"{folder}/run", "--vocab-size", 300]
        argv += ["--steps", 1, "--device", "cpu", "--seq-len", 64]
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            sys.setprofile(traced([config, batch], package, "lm_loss"))
            try:
                cli(list(map(str, argv)))
            finally:
                sys.setprofile(None)
    print(f"a config\n{config}\n\na batch\n{batch}")


if __name__ == "__main__":
    main()
