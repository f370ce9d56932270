"""Execute notebooks in place, so that each is committed with the outputs of a fresh Run-All: all of
them in order, or those whose names contain one of the arguments (`03`, `rope`, `solutions/`).
Cells marked `#| eval: false` are left alone, as are `#| gpu` cells where there is no CUDA and
`#| slow` cells unless SLOW=1: those keep the outputs they have."""

import base64
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / "nbs"))
# a widget that is not installed draws no bar: that says nothing about the notebook
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress")
os.environ.setdefault("MATPLOTLIBRC", str(root / "nbs/matplotlibrc"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


def skipped():  # the flags whose cells do not run here
    "Which flags of settings.ini's `tst_flags` leave a cell out on this machine."
    import torch

    return {
        f
        for f, run in {
            "gpu": torch.cuda.is_available(),
            "slow": os.environ.get("SLOW") == "1",
        }.items()
        if not run
    }


class Client(NotebookClient):
    "A notebook client that leaves flagged cells as they are."

    skip = frozenset()

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        directives = re.findall(r"^#\|\s*(.*?)\s*$", cell.source, re.M)
        if any(d in self.skip or re.fullmatch(r"eval:\s*false", d) for d in directives):
            return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def smaller(png):  # in base64
    "The same picture with at most 128 colours, which nobody sees; as it was, if that is no gain."
    from course import few_colours

    small = base64.b64encode(few_colours(base64.b64decode(png), 128)).decode()
    return min(small, png.replace("\n", ""), key=len)


def shrink(nb):
    "Make a notebook's pictures smaller: it shall stay below 400 kB."
    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = smaller("".join(data["image/png"]))


def execute(path, skip):  # notebook file, set of flags to leave out
    """Run one notebook from a fresh kernel and write it back, cleaned. Raises `CellExecutionError`
    with the traceback; the file is then unchanged."""
    nb = nbformat.read(path, as_version=4)
    client = Client(
        nb,
        timeout=900,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # it would warn of its own way to talk to us
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.skip = skip
    client.execute()
    shrink(nb)
    path.write_text(
        nbformat.writes(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
    )
    subprocess.run(["nbdev_clean", "--fname", str(path)], check=True, cwd=root)


if __name__ == "__main__":
    files = sorted((root / "nbs").glob("[!_.]*.ipynb")) + sorted(
        (root / "nbs/solutions").glob("[!_.]*.ipynb")
    )
    names = {f: f.relative_to(root / "nbs").as_posix() for f in files}
    if sys.argv[1:]:
        files = [f for f in files if any(a in names[f] for a in sys.argv[1:])]
    if not files:
        sys.exit(
            f"no notebook's name contains {' or '.join(sys.argv[1:])}; there are: "
            f"{', '.join(names.values())}"
        )
    skip = skipped()
    for f in files:
        start = time.time()
        print(f"{names[f]:32}", end=" ", flush=True)
        execute(f, skip)
        print(f"{time.time() - start:6.1f} s  {f.stat().st_size / 1000:5.0f} kB")
