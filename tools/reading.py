"""How the chapters read, in numbers: pictures of structure, sizes of cells, lines of code before
the problem, things to touch.

python tools/reading.py [COMMIT]     of the notebooks as they are, or as they were in a commit"""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def chapters(commit=None):  # `{name: cells}`
    "The numbered notebooks."
    if not commit:
        return {p.stem: json.loads(p.read_text("utf-8"))["cells"] for p in files()}
    git = ["git", "-C", str(root)]
    listed = subprocess.run(
        [*git, "ls-tree", "--name-only", commit, "nbs/"], capture_output=True, text=True, check=True
    ).stdout.split()
    names = [name for name in listed if re.fullmatch(r"nbs/\d\d_\w+\.ipynb", name)]
    texts = {
        name: subprocess.run([*git, "show", f"{commit}:{name}"], capture_output=True, check=True)
        for name in names
    }
    return {Path(name).stem: json.loads(run.stdout)["cells"] for name, run in texts.items()}


def files():
    return sorted((root / "nbs").glob("[0-9][0-9]_*.ipynb"))


def code(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def length(source):
    return sum(bool(line.strip()) for line in source.splitlines())


def before_the_problem(cells):
    "Lines of code before its heading, None without one."
    total = 0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search(r"^## The problem", source, re.M):
            return total
        total += length(source) if cell["cell_type"] == "code" else 0


def numbers(commit=None):  # `{what: value}`
    "The table."
    books = chapters(commit)
    sources = {name: code(cells) for name, cells in books.items()}
    lengths = [length(source) for cells in sources.values() for source in cells]
    exported = [s for cells in sources.values() for s in cells if re.search(r"^#\|\s*export", s)]
    drawn = {
        name: sum(bool(re.search(r"(?<!def )\b(boxes|line_up)\(", s)) for s in cells)
        for name, cells in sources.items()
    }
    touched = [
        name
        for name, cells in sources.items()
        if any(re.search(r"\bdial\(|\binteract\(", s) for s in cells)
    ]
    problems = [n for n in map(before_the_problem, books.values()) if n is not None]
    return {
        "chapters": len(books),
        "cells that draw structure": sum(drawn.values()),
        "chapters with such a cell": sum(map(bool, drawn.values())),
        "median code cell, lines": statistics.median(lengths),
        "longest code cell, lines": max(lengths),
        "exported cells": len(exported),
        "exported cells over 25 lines": sum(length(s) > 25 for s in exported),
        "median lines of code before the problem": statistics.median(problems),
        "most lines of code before the problem": max(problems),
        "chapters with something to touch": len(touched),
    }


if __name__ == "__main__":
    for what, value in numbers(*sys.argv[1:2]).items():
        print(f"{what:42}{value:>6g}")
