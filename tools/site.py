"""Render the documentation into _site/: nbdev's processed notebooks and the root's _quarto.yml,
with Quarto where it is installed, else with smalldocs, which reads the same file.
`SITE_ENGINE=quarto|smalldocs` insists on one."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from links import main as check_links

root = Path(__file__).resolve().parents[1]
stage, site = root / "_proc", root / "_site"
# pages beside the notebooks, as they are
TEXTS = ["FAQ.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/LOG.md"]
TEXTS += ["data_samples/README.md", "data_samples/NOTICE.md"]
FILES = ["LICENSE", "CITATION.cff", "data_samples/MANIFEST.json"]
# the versions smalldocs asks its pages to load
NPM = {"katex": "0.16.11", "mermaid": "11.4.1"}
# stands for the site's own root until the depth of a page is known
LOCAL = "https://site.invalid"


def repository():  # address of the repository on GitHub, or None
    "Where source links point: what GitHub's runner says, else the clone's origin."
    if os.environ.get("GITHUB_REPOSITORY"):
        return "https://github.com/" + os.environ["GITHUB_REPOSITORY"]
    origin = subprocess.run(
        ["git", "remote", "get-url", "origin"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    m = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(\.git)?$", origin)
    return m and f"https://github.com/{m[1]}"


def defined(tree):  # of a cell
    "The functions and classes that a cell defines, and their methods, as nbdev links to them."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            methods = (m for m in node.body if isinstance(m, ast.FunctionDef))
            yield from (f"{node.name}.{method.name}" for method in methods)


def with_anchors(cells):  # cells of a notebook
    """Leave out cells of nothing but nbdev's directives, and put an anchor before every exported
    function and class, for links to its name."""
    from execnb.nbio import mk_cell

    for cell in cells:
        if cell.cell_type == "code" and all(
            line.startswith("#|") for line in cell.source.splitlines() if line.strip()
        ):
            continue
        if cell.cell_type == "code" and re.search(r"^#\|\s*export\b", cell.source, re.M):
            names = list(defined(ast.parse(cell.source)))
            if names:
                yield mk_cell(
                    "".join(f'<a id="{n.lower()}"></a>' for n in names), cell_type="markdown"
                )
        yield cell


def besides_imports(cell):
    "What a cell of code does besides importing; None if it is no plain Python."
    if cell.cell_type != "code":
        return None
    try:
        body = ast.parse(cell.source).body
    except SyntaxError:
        return None
    return [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]


def only_imports(cell):
    "Is a cell nothing but a long list of imports?"
    return besides_imports(cell) == [] and len(cell.source.splitlines()) > 3


def only_draws(cell):
    "Is a cell nothing but a picture of what is connected to what? Then its code is of no interest."
    if not re.search(r"\b(boxes|line_up)\(", cell.source):
        return False
    rest = besides_imports(cell) or []
    call = rest[0].value if len(rest) == 1 and isinstance(rest[0], ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("boxes", "line_up")


def sections(source):  # of a markdown cell
    """Its pieces: each begins with a heading, or is what follows the heading "Under the bonnet" and
    the sentence in italics below it, that stay to be seen."""
    fenced, pieces = False, [""]
    for line in source.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#+ ", line) and pieces[-1].strip():
            pieces.append("")
        pieces[-1] += line
    for piece in pieces:
        head = re.match(r"#+ Under the bonnet[^\n]*(\s*\*[^*].*?(?=\n\s*\n|\Z))?", piece, re.S)
        if head and piece[head.end() :].strip():
            yield piece[: head.end()]
            yield piece[head.end() :].lstrip("\n")
        else:
            yield piece


def in_sections(cells):
    "The cells, with one heading in each cell of text, and that at its beginning."
    from execnb.nbio import mk_cell

    for cell in cells:
        if cell.cell_type == "markdown" and "\n" in cell.source:
            yield from (mk_cell(part, cell_type="markdown") for part in sections(cell.source))
        else:
            yield cell


def folded(cells):  # of a notebook
    """Fold each section "Under the bonnet" away, to the next heading that is as high: what a first
    reader may skip. Long lists of imports too; pictures of a machine are shown without code."""
    from execnb.nbio import mk_cell

    level = 0  # of the open section's heading
    for cell in in_sections(cells):
        heading = cell.cell_type == "markdown" and re.match(r"(#+) (.*)", cell.source)
        if level and heading and len(heading[1]) <= level:
            yield mk_cell("</details>", cell_type="markdown")
            level = 0
        if only_draws(cell):
            cell.source = "#| echo: false\n" + cell.source
        if only_imports(cell) and not level:
            opening = '<details class="imports"><summary>Imports</summary>'
            yield mk_cell(opening, cell_type="markdown")
            yield cell
            cell = mk_cell("</details>", cell_type="markdown")
        yield cell
        if heading and not level and heading[2].startswith("Under the bonnet"):
            level = len(heading[1])
            summary = "<summary>Show this part; a first reader may skip it</summary>"
            yield mk_cell(f'<details class="bonnet">{summary}', cell_type="markdown")
    if level:
        yield mk_cell("</details>", cell_type="markdown")


def process(src, dst, cfg):  # notebook, processed notebook, nbdev's settings
    """Apply nbdev's processors (hide, links to names), then make its absolute links between pages
    relative."""
    from execnb.nbio import read_nb, write_nb
    from nbdev.processors import FilterDefaults

    nb = read_nb(src)
    nb.cells = list(folded(with_anchors(nb.cells)))
    FilterDefaults()(nb)
    dst.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, dst)
    up = "../" * (len(dst.relative_to(stage / "nbs").parts) - 1)
    stems = {re.sub(r"^\d+_", "", p.stem): p.stem for p in (root / "nbs").glob("*.ipynb")}
    # pages keep their number: both engines then agree
    text = re.sub(r"\boutput-file: [\w.-]+(\\n)?", "", dst.read_text(encoding="utf-8"))
    text = re.sub(
        re.escape(cfg.doc_host + cfg.doc_baseurl) + r"/(\w+)\.html",
        lambda m: f"{up}{stems.get(m[1], m[1])}.html",
        text,
    )
    # a recipe is shown on a page of its own
    text = re.sub(r"(\]\((?:\.\./)+recipes/[\w-]+)\.(?:toml|json|sh)\)", r"\1.md)", text)
    if repository():
        text = text.replace("   # OWNER: as in this page's address", "")
    dst.write_text(text.replace(cfg.git_url, repository() or cfg.git_url), encoding="utf-8")


def title_of(path):  # a notebook
    "Its number and title, as the sidebar shows them."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    number = re.match(r"(\d+)_", path.name)
    return " ".join(filter(None, [number and number[1], re.match(r"# (.*)", first)[1]]))


def numbered(entry):  # of the sidebar
    "The same entry with each notebook's number before its title."
    if isinstance(entry, dict):
        inner = {k: numbered(v) for k, v in entry.items() if k == "contents"}
        return entry | inner
    if isinstance(entry, list):
        return [numbered(e) for e in entry]
    files = sorted(root.glob(entry)) if entry.endswith(".ipynb") else []
    shown = [{"text": title_of(f), "href": f.relative_to(root).as_posix()} for f in files]
    return entry if not shown else shown if "*" in entry else shown[0]


def settings(source):  # address of the sources, or ""
    "The site's settings: _quarto.yml with numbers in its sidebar, and the repository's address."
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    web = config["website"]
    web["sidebar"]["contents"] = numbered(web["sidebar"]["contents"])
    if source:
        web["repo-url"] = source
        web["sidebar"]["tools"] = [{"icon": "github", "href": source, "text": "Source"}]
    return yaml.safe_dump(config, allow_unicode=True, sort_keys=False)


def unfolded(signature):  # one line of Python, or several
    "A long signature with one argument a line."
    if len(signature) <= 100 or "\n" in signature:
        return signature
    head, depth, parts = signature.split("(", 1)[0], 0, [""]
    for char in signature[len(head) + 1 :]:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:  # the arguments are over
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    rest = signature[len(head) + 1 + len(",".join(parts)) :]
    return f"{head}(\n" + "".join(f"    {part.strip()},\n" for part in parts) + rest


def make_pages():
    "Texts and recipes, which are no notebooks."
    for name in TEXTS + FILES:
        text = (root / name).read_text(encoding="utf-8")
        if "/" not in name:  # the page of the repository's README is the index
            text = text.replace("](README.md", "](nbs/index.ipynb")
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(text, encoding="utf-8")
    (stage / "recipes").mkdir()
    for path in sorted((root / "recipes").iterdir()):
        page = f"# {path.name}\n\n```{path.suffix[1:]}\n{path.read_text(encoding='utf-8')}```\n"
        (stage / "recipes" / f"{path.stem}.md").write_text(page, encoding="utf-8")


def make_references(source):  # address of the sources, or ""
    "A page for each module: its functions, their arguments, types, defaults and docstrings."
    if not importlib.util.find_spec("smalldocs"):  # Quarto can do without; it needs Python 3.11
        return
    from smalldocs.api import Settings, build

    where = f"{source}/blob/main" if source else ""
    chapters = {p.stem.split("_", 1)[1]: p for p in (root / "nbs").glob("[0-9]*.ipynb")}
    for page in build(Settings(stage, ["minimind"], out="api", root=root, source=where)):
        chapter = chapters.get(page.stem)
        if chapter:
            text = re.sub(
                r"(?<=^```python\n).+(?=\n```$)",
                lambda m: unfolded(m[0]),
                page.read_text(encoding="utf-8"),
                flags=re.M,
            )
            head, body = text.split("\n---\n", 1)
            told = f"Told in chapter [{title_of(chapter)}](../nbs/{chapter.name})."
            page.write_text(f"{head}\n---\n\n{told}\n{body}", encoding="utf-8")
    # names in the chapters lead to the chapters that define them, not here
    (stage / "_symbols.json").unlink()


def build_stage():
    "Fill _proc/ with _quarto.yml and the processed notebooks and figures."
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob

    os.environ["IN_TEST"] = "1"  # nbdev's word for: do not export while a cell runs
    shutil.rmtree(stage, ignore_errors=True)
    cfg = get_config(path=root)
    for src in nbglob(root / "nbs", as_path=True):
        process(src, stage / "nbs" / src.relative_to(root / "nbs"), cfg)
    for src in (root / "nbs").rglob("*"):
        if src.suffix in (".svg", ".png", ".css") and ".ipynb_checkpoints" not in src.parts:
            dst = stage / "nbs" / src.relative_to(root / "nbs")
            dst.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(src, dst)
    source = repository() or ""
    make_pages()
    make_references(source)
    (stage / "_quarto.yml").write_text(settings(source), encoding="utf-8")


def vendor():  # True if the pages can load mathematics and diagrams from the site itself
    """Put KaTeX and mermaid beside the pages, from npm's packages; without npm the pages load them
    from the network."""
    if not shutil.which("npm"):
        return False
    box = stage / "npm"
    box.mkdir()
    got = subprocess.run(
        ["npm", "pack", "--silent", *(f"{k}@{v}" for k, v in NPM.items())],
        cwd=box,
        capture_output=True,
        text=True,
    )
    if got.returncode:
        return False
    for name, version in NPM.items():
        shutil.unpack_archive(box / f"{name}-{version}.tgz", box / name)
    libs = stage / "_site/site_libs"
    drop = shutil.ignore_patterns("*.map", "*.ttf", "*.woff", "contrib")
    shutil.copytree(box / "katex/package/dist", libs / "katex", ignore=drop, dirs_exist_ok=True)
    shutil.copytree(box / "katex/package/dist/contrib", libs / "katex/contrib", dirs_exist_ok=True)
    dist = box / "mermaid/package/dist"
    (libs / "mermaid").mkdir(parents=True, exist_ok=True)
    shutil.copy2(dist / "mermaid.esm.min.mjs", libs / "mermaid")
    shutil.copytree(
        dist / "chunks/mermaid.esm.min",
        libs / "mermaid/chunks/mermaid.esm.min",
        ignore=drop,
        dirs_exist_ok=True,
    )
    shutil.rmtree(box)
    return True


def smalldocs():
    "Render with smalldocs, in this process because two addresses in it have no setting."
    import smalldocs.layout
    from smalldocs.cli import main

    remote = smalldocs.layout.KATEX, smalldocs.layout.MERMAID
    local = f"{LOCAL}/katex", f"{LOCAL}/mermaid/mermaid.esm.min.mjs"
    smalldocs.layout.KATEX, smalldocs.layout.MERMAID = local
    try:
        main(["render", "--quiet", str(stage)])
    except SystemExit as e:
        if e.code:
            raise
    own = vendor()
    for page in (stage / "_site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        up = "../" * (len(page.relative_to(stage / "_site").parts) - 1) or "./"
        for here, there in zip(local, remote):
            text = text.replace(
                here, here.replace(LOCAL, up + "site_libs").replace(".//", "./") if own else there
            )
        page.write_text(text, encoding="utf-8")


def keep_home():
    "Themes ask Google for a font: take that out. The system's own fonts are named after it."
    remote = re.compile(r"@import\s*(?:url\([\"']?https?:[^)]*\)|[\"']https?:[^\"']*[\"'])[^;]*;")
    for path in (stage / "_site").rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        if remote.search(text):
            path.write_text(remote.sub("", text), encoding="utf-8")


def main():
    engine = os.environ.get("SITE_ENGINE") or ("quarto" if shutil.which("quarto") else "smalldocs")
    build_stage()
    if engine == "quarto":
        subprocess.run(["quarto", "render", str(stage)], check=True)
    else:
        smalldocs()
    if not (stage / "_site/index.html").exists():
        (stage / "_site/index.html").write_text(
            '<!doctype html><meta charset="utf-8">'
            '<meta http-equiv="refresh" content="0; url=nbs/index.html">'
            '<a href="nbs/index.html">minimind</a>\n'
        )
    keep_home()
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(stage / "_site", site)
    print(
        f"{sum(1 for _ in site.rglob('*.html'))} pages by {engine}; look at them with: "
        f"{Path(sys.executable).name} -m http.server -d _site"
    )
    # Quarto makes the names of places in its own way
    check_links(site, places=engine == "smalldocs")


if __name__ == "__main__":
    main()
