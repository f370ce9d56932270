"""End every chapter with a link to the next one, in the order of _quarto.yml. `--check` only
compares. Run it when a chapter is added, moved or renamed."""

import hashlib
import json
import re
import sys
from pathlib import Path

import yaml

root = Path(__file__).resolve().parents[1]
START = "**Next:** "


def chapters():
    "The notebooks in the order of the site's sidebar."
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    for part in config["website"]["sidebar"]["contents"]:
        listed = part.get("contents", [])
        yield from (root / f for f in listed if re.match(r"nbs/\d", str(f)))


def title(nb):  # a notebook
    return re.match(r"# (.*)", "".join(nb["cells"][0]["source"]))[1]


def link(after, nb):  # the next chapter's file and notebook; None, None at the end
    "What the last cell says."
    if after is None:
        return f"{START}back to the [overview](index.ipynb)."
    return f"{START}chapter {int(after.name[:2])}, [{title(nb)}]({after.name})"


def main():
    files = list(chapters())
    books = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    old = []
    for path, nb, after in zip(files, books, [*zip(files, books), (None, None)][1:]):
        cells, text = nb["cells"], link(*after)
        last = "".join(cells[-1]["source"])
        if last == text:
            continue
        old.append(path.name)
        if last.startswith(START):
            cells.pop()
        name = hashlib.sha256(path.name.encode()).hexdigest()[:8]
        cells.append(dict(cell_type="markdown", id=name, metadata={}, source=[text]))
        if sys.argv[1:] != ["--check"]:
            written = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
            path.write_text(written, encoding="utf-8", newline="\n")
    if old and sys.argv[1:] == ["--check"]:
        sys.exit(f"{', '.join(old)}: no link to the next chapter; run `python tools/next.py`")


if __name__ == "__main__":
    main()
