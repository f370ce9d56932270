"""Run All over every chapter, as somebody in JupyterLab would: a fresh kernel, each cell from top
to bottom, none left out. Nothing is written; a failing cell is named, and the next chapter goes on.

`make lab-test` does it in the environment of `make lab`; `python tools/runall.py rope 31` takes the
notebooks whose names contain one of the words."""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

root = Path(__file__).resolve().parents[1]
os.environ.setdefault("MATPLOTLIBRC", str(root / "nbs/matplotlibrc"))


def notebooks(words):  # parts of names; none for all
    "The chapters in order, and the index. Solutions are for the tests to run."
    files = [*sorted((root / "nbs").glob("[0-9]*.ipynb")), root / "nbs/index.ipynb"]
    return [f for f in files if not words or any(w in f.name for w in words)]


class Client(NotebookClient):
    "A client that knows which cell it is at."

    at = 0

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        self.at = cell_index
        return await super().async_execute_cell(cell, cell_index, **kwargs)

    def handle_comm_msg(self, *message):
        "Widgets are not answered: nobody turns a dial here, and the two would wait for each other."


def run_all(path):  # a notebook
    "The words of the first failure, with the cell's place and its code; None if there is none."
    nb = nbformat.read(path, as_version=4)
    client = Client(
        nb,
        timeout=900,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        said = f"{error.ename}: {error.evalue}"
    except Exception as error:  # a kernel that died, a cell that took too long
        said = f"{type(error).__name__}: {error}"
    else:
        return None
    code = "\n".join("    " + line for line in nb.cells[client.at].source.splitlines()[:8])
    return f"cell {client.at + 1} of {len(nb.cells)}: {said}\n{code}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names (default: all)")
    files = notebooks(parser.parse_args().names)
    if not files:
        sys.exit("no notebook has such a name")
    failed = []
    for path in files:
        start = time.time()
        print(f"{path.name:28}", end=" ", flush=True)
        said = run_all(path)
        failed += [path.name] if said else []
        print(f"{time.time() - start:6.1f} s  {f'FAILS at {said}' if said else 'ok'}", flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(files)} can't be run from top to bottom: {failed}")
    print(f"all {len(files)} run from top to bottom")


if __name__ == "__main__":
    main()
