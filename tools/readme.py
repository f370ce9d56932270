"""Write README.md from nbs/index.ipynb: its markdown, and the outputs of its code cells. `--check`
only compares."""

import json
import posixpath
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def link(m):  # a match of `](target`
    "Make a link that is relative to nbs/ relative to the root, where README.md lies."
    target = m[1]
    return m[0] if re.match(r"[a-z]+:|#|/", target) else "](" + posixpath.normpath("nbs/" + target)


def shown(out):  # one output of a code cell
    "The Markdown of an output: as it is if it is Markdown, else as a block of text."
    data = out.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(out.get("text") or data.get("text/plain", "")).rstrip()
    return f"```text\n{text}\n```" if text else ""


def readme():  # the text of README.md
    "Turn the index notebook into Markdown; `#| hide` drops a cell, `#| echo: false` its code."
    parts = []
    for cell in json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        src = "".join(cell["source"]).strip()
        if re.search(r"^#\|\s*hide\b", src, re.M):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\(([^)\s]+)", link, src))
        elif cell["cell_type"] == "code":
            code = re.sub(r"^#\|.*\n?", "", src, flags=re.M).strip()
            if code and not re.search(r"^#\|\s*echo:\s*false", src, re.M):
                parts.append(f"```python\n{code}\n```")
            parts += [re.sub(r"\]\(([^)\s]+)", link, s) for s in map(shown, cell["outputs"]) if s]
    note = "<!-- Made by `make readme` from nbs/index.ipynb: edit the notebook, not this file. -->"
    return "\n\n".join([note, *parts]) + "\n"


if __name__ == "__main__":
    path = root / "README.md"
    if sys.argv[1:] != ["--check"]:
        path.write_text(readme(), encoding="utf-8", newline="\n")
    elif not path.exists() or path.read_text(encoding="utf-8") != readme():
        sys.exit("README.md differs from nbs/index.ipynb; run `make readme`")
