"""Render the documentation into _site/: nbdev's processed notebooks and the root's _quarto.yml,
with Quarto where it is installed, else with smalldocs, which reads the same file.
`SITE_ENGINE=quarto|smalldocs` insists on one."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
stage, site = root / "_proc", root / "_site"
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
            names = [
                n.name
                for n in ast.parse(cell.source).body
                if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"
            ]
            if names:
                yield mk_cell(
                    "".join(f'<a id="{n.lower()}"></a>' for n in names), cell_type="markdown"
                )
        yield cell


def process(src, dst, cfg):  # notebook, processed notebook, nbdev's settings
    """Apply nbdev's processors (hide, links to names), then make its absolute links between pages
    relative."""
    from execnb.nbio import read_nb, write_nb
    from nbdev.processors import FilterDefaults

    nb = read_nb(src)
    nb.cells = list(with_anchors(nb.cells))
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
    dst.write_text(text.replace(cfg.git_url, repository() or cfg.git_url), encoding="utf-8")


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
    (stage / "data_samples").mkdir()
    for name in ("_quarto.yml", "LICENSE", "data_samples/NOTICE.md"):
        shutil.copy2(root / name, stage / name)


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
    (stage / "_site/data_samples").mkdir(exist_ok=True)
    # linked as it is: no page, so no engine copies it
    shutil.copy2(root / "data_samples/NOTICE.md", stage / "_site/data_samples")
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(stage / "_site", site)
    print(
        f"{sum(1 for _ in site.rglob('*.html'))} pages by {engine}; look at them with: "
        f"{Path(sys.executable).name} -m http.server -d _site"
    )


if __name__ == "__main__":
    main()
