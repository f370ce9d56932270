"""Gates on the repository itself: the notebooks are the only source, and the course keeps its
order. Each failure says what to do."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

root = Path(__file__).resolve().parents[1]
nbs = root / "nbs"
package = root / "minimind"
BIN = Path(sys.executable).parent
# __main__ only calls cli; nbdev keeps the other two
HAND_WRITTEN = {"__init__", "__main__", "_modidx"}
HEAVY = {
    "nbdev",
    "fastcore",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "transformers",
    "peft",
    "fastapi",
    "uvicorn",
    "streamlit",
    "swanlab",
    "swanboard",
    "wandb",
    "tensorboard",
    "deepspeed",
    "gguf",
}

chapters = sorted(nbs.glob("[0-9]*.ipynb"))
solutions = sorted((nbs / "solutions").glob("[!_.]*.ipynb"))
everything = [*chapters, *solutions, nbs / "index.ipynb"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def name(path):
    return path.relative_to(nbs).as_posix()


def number(path):
    return int(re.match(r"\d+", path.stem)[0])


def directives(cell):
    return {d.strip() for d in re.findall(r"^#\|(.*)$", source(cell), re.M)}


def module_of(path):  # the module that a chapter exports, or None
    for cell in read(path)["cells"]:
        if m := re.search(r"^#\|\s*default_exp\s+(\w+)", source(cell), re.M):
            return m[1]


modules = {m: path for path in chapters if (m := module_of(path))}
# chapters that measure what others export
MEASURING = {"23_long_context", "24_experts"}


def imported(tree):  # a piece of code
    """The modules of this package that code imports, wherever the import stands; not what only a
    type checker reads."""
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            full = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "minimind." + (node.module or "") if node.level else node.module
            full = (
                [base]
                if base.strip(".") != "minimind"
                else ["minimind." + a.name for a in node.names]
            )
        else:
            continue
        for f in full:
            if f.startswith("minimind.") and f[9] != "_":
                yield f.split(".")[1]


def nbdev(copy, *command):
    "Run an nbdev command in a copy of the repository."
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )
    assert done.returncode == 0, f"{command[0]} fails:\n{done.stderr}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):  # a copy of the sources in which nbdev may write
    "Copy what nbdev reads; the working tree is never touched."
    there = tmp_path_factory.mktemp("repo")
    for f in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy2(root / f, there)
    shutil.copytree(nbs, there / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
    (there / "minimind").mkdir()
    for f in HAND_WRITTEN - {"_modidx"}:
        shutil.copy2(package / f"{f}.py", there / "minimind")
    return there


def test_modules_are_what_the_notebooks_export(copy):
    nbdev(copy, "nbdev_export")
    want = {p.name: p.read_text(encoding="utf-8") for p in (copy / "minimind").glob("*.py")}
    have = {p.name: p.read_text(encoding="utf-8") for p in package.glob("*.py")}
    differ = sorted(f for f in want.keys() | have.keys() if want.get(f) != have.get(f))
    assert not differ, (
        f"{', '.join(differ)}: not what the notebooks export; edit the notebook, never the "
        "module, and run `make export`"
    )


def test_no_orphan_module():
    orphans = sorted({p.stem for p in package.glob("*.py")} - set(modules) - HAND_WRITTEN)
    assert not orphans, (
        f"no notebook exports {orphans}; remove the file, or give it its chapter with `#| "
        "default_exp`"
    )
    assert len({number(p) for p in chapters}) == len(chapters), (
        f"two chapters share a number: {[p.name for p in chapters]}"
    )


def test_module_is_named_as_its_chapter():
    odd = {p.name: m for m, p in modules.items() if p.stem.split("_", 1)[1] != m}
    assert not odd, (
        f"these chapters export a module of another name: {odd}; a reader finds a module's "
        "chapter by its name"
    )


# The workshop: tools that every chapter may use. They stand last, and import nobody.
WORKSHOP = {"core", "plugins"}


def trees(m):  # the syntax tree of a module
    return ast.parse((package / f"{m}.py").read_text(encoding="utf-8"))


def test_the_ladder_holds():
    rank = {m: number(p) for m, p in modules.items()} | dict.fromkeys(WORKSHOP, -1)
    wrong = [
        f"{m} ({rank[m]:02}) imports {i} ({rank.get(i, '?')})"
        for m in modules
        for i in imported(trees(m))
        if rank.get(i, 99) >= rank[m]
    ]
    assert not wrong, (
        f"a module may import only earlier chapters: {'; '.join(wrong)}; move the shared thing "
        "down, or the import up"
    )


def test_what_stands_higher_is_reached_through_one_table():
    "Imports by a text would be steps of the ladder that nobody sees: there is one place for them."
    by_text = [
        f"{m}: {ast.unparse(node)[:80]}"
        for m in modules
        for node in ast.walk(trees(m))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        # a user's own reward is a module of the user's
        and (m, ast.unparse(node.args[0])) not in {("plugins", "module"), ("rewards", "module")}
    ]
    assert not by_text, f"imports by a text: {by_text}; give the thing a row in plugins.PLUGINS"
    quoted = [
        f"{m}: {node.value}"
        for m in set(modules) - {"plugins"}
        for node in ast.walk(trees(m))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"minimind\.\w+(:\w+)?", node.value)
    ]
    assert not quoted, f"modules named by a text: {quoted}; only plugins.PLUGINS does that"


def test_the_table_of_plugins_is_right():
    "Each row leads to a thing of that module, and nothing in the table is imported by its users."
    from minimind.plugins import PLUGINS

    gone = []
    for kind, rows in PLUGINS.items():
        for plugin, row in rows.items():
            module, _, thing = row.where.partition(":")
            body = trees(module.removeprefix("minimind.")).body
            names = {n.name for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
            names |= {
                t.id
                for n in body
                if isinstance(n, ast.Assign)
                for t in n.targets
                if isinstance(t, ast.Name)
            }
            if thing not in names:
                gone.append(f"{kind} {plugin}: {row.where}")
            assert row.what, f"{kind} {plugin} has no line for --help"
    assert not gone, f"plugins.PLUGINS names what is not there: {gone}"


def test_the_core_of_training_does_not_probe():
    "What an object may be asked stands in its base class, not in a `hasattr`."
    asked = [
        f"{m}: {ast.unparse(node)[:80]}"
        for m in ("train", "stage", "parallel", "checkpoint", "log", "dist", "rollout", "rewards")
        for node in ast.walk(trees(m))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("hasattr", "getattr")
        # a user's own reward is named by a text
        and (m, ast.unparse(node.func)) != ("rewards", "getattr")
    ]
    assert not asked, f"{asked}: give the base class a method or attribute with a default"


def test_lessons_use_only_what_was_taught():
    rank = {m: number(p) for m, p in modules.items()} | dict.fromkeys(WORKSHOP, -1)
    wrong = []
    for path in [*chapters, *solutions]:
        # the tour looks ahead: that is what it is for
        if not path.stem[0].isdigit() or path.stem == "00_tour":
            continue
        wrong += [
            f"{name(path)} imports {i}"
            for cell in read(path)["cells"]
            if cell["cell_type"] == "code"
            for i in imported(parsed(source(cell)))
            if rank.get(i, 99) > number(path)
        ]
    assert not wrong, (
        "a chapter's cells may import its own module and earlier ones: "
        f"{'; '.join(sorted(set(wrong)))}"
    )


def parsed(code):  # a cell's syntax tree; its magics are left out
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M))


def test_the_loop_reads_like_the_ten_lines_it_is():
    [fit] = [n for n in trees("train").body if isinstance(n, ast.FunctionDef) and n.name == "fit"]
    kinds = ast.If, ast.IfExp, ast.For, ast.While, ast.With, ast.Try, ast.BoolOp
    branches = sum(isinstance(node, kinds) for node in ast.walk(fit))
    lines = fit.end_lineno - fit.lineno + 1
    assert lines <= 25 and branches <= 8, f"fit has {lines} lines and {branches} branches"


def test_code_is_laid_out_for_readers():
    "No line over 100 columns, one statement a line, everywhere; `ruff format` has no wish left."
    where = [
        "nbs",
        "minimind/__main__.py",
        "tests",
        "tools",
        "benchmarks",
        "data_samples",
        "setup.py",
    ]
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run([BIN / "ruff", *command, *where], cwd=root, capture_output=True)
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, f"ruff {command[0]}: {said[:3000]}"
    # what nbdev writes around the cells (`__all__`) is its own
    wide = [
        f"{p.name}:{i}"
        for p in package.glob("*.py")
        if p.stem in modules
        for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100 and not re.match(r"__all__ = |           '", line)
    ]
    assert not wide, f"lines over 100 columns in modules: {wide}; a chapter's claim is one of them"


@pytest.mark.parametrize("path", [*chapters, nbs / "index.ipynb"], ids=name)
def test_commands_in_the_text_fit_the_page(path):
    wide = [
        line
        for cell in read(path)["cells"]
        if cell["cell_type"] == "markdown"
        for block in re.findall(r"^```\w*\n(.*?)^```", source(cell), re.S | re.M)
        for line in block.splitlines()
        if len(line) > 100
    ]
    assert not wide, f"{name(path)}: lines over 100 columns: {wide}; break them"


@pytest.mark.parametrize("path", list(modules.values()), ids=name)
def test_exported_cells_can_be_held_in_mind(path):
    long = {
        cell["id"]: n
        for cell in read(path)["cells"]
        if cell["cell_type"] == "code"
        and "export" in directives(cell)
        and (n := sum(bool(line.strip()) for line in source(cell).splitlines())) > 40
    }
    assert not long, (
        f"{name(path)}: exported cells of more than 40 lines: {long}; tell it in pieces"
    )


@pytest.mark.parametrize("path", list(modules.values()), ids=name)
def test_the_machine_is_drawn_before_its_code(path):
    drawn = False
    for cell in read(path)["cells"]:
        text = source(cell)
        drawn |= cell["cell_type"] == "code" and bool(re.search(r"\b(boxes|line_up)\(", text))
        if "export" in directives(cell) and re.search(r"^(def|class|@)", text, re.M):
            assert drawn, (
                f"{name(path)} exports {re.search(r'^(?:def|class) (.*)', text, re.M)[1]!r} before "
                "any picture of what is connected to what; draw it with nbs/course.py's `boxes`"
            )


# a number with a decimal point, a thousands separator or a per cent sign is most likely measured
NUMBER = re.compile(
    r"(?<![\w.,/^-])(\d{1,3}(?:,\d{3})+|\d+\.\d+)(?![\w.,]*\d)(?=\W|$)|(?<![\w.,])\d+(?= ?%)"
)
UNCHECKED = [r"```.*?```", r"\$\$.*?\$\$|\$[^$]*\$", r"`[^`]*`", r"\]\([^)]*\)", r"https?://\S+"]
# definitions and facts, which no cell computes
FACTS = {
    "6,400",  # tokens of the vocabulary
    "10,000",  # base of RoPE, in its paper
    "1,000,000",  # and in Qwen3
    "32,768",  # positions of the presets
    "65,536",  # values of two bytes
    "65,504",  # the largest float16
    "1.44",  # 1 / ln 2
}


def outputs(cell):
    "What a reader sees below a cell, as text."
    for out in cell.get("outputs", ()):
        yield "".join(out.get("text", ""))
        for kind, data in out.get("data", {}).items():
            if kind.startswith("text/"):
                yield re.sub(r"base64,[^\"]*", "", "".join(data))


@pytest.mark.parametrize("path", chapters, ids=name)
def test_numbers_in_prose_are_shown_above(path):
    seen, unseen = "", []
    for cell in read(path)["cells"]:
        text = source(cell)
        if cell["cell_type"] == "code":
            seen += "\n".join([text, *outputs(cell)]).replace("_", "")
            continue
        # exercises ask for numbers, and sources are cited for theirs
        if re.search(r"^#+ (Sources|Exercises)", text, re.M):
            break
        for pattern in UNCHECKED:
            text = re.sub(pattern, "", text, flags=re.S)
        for found in NUMBER.finditer(text):
            shown = found[0] in seen or found[0].replace(",", "") in seen.replace(",", "")
            if not shown and found[0] not in FACTS:
                unseen.append(text[max(0, found.start() - 30) : found.end() + 10])
    assert not unseen, (
        f"{name(path)}: numbers that no code or output above shows: {unseen}; show them, or leave "
        "them out"
    )


def test_no_public_name_twice():
    homes = defaultdict(list)
    for m in modules:
        for node in ast.parse((package / f"{m}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                for public in ast.literal_eval(node.value):
                    homes[public].append(m)
    # every stage has a `run(cfg)`, by design
    twice = {n: m for n, m in homes.items() if len(m) > 1 and n != "run"}
    assert not twice, (
        f"one home for each thing: {twice}; import it from the first, or give it a name of its own"
    )


def test_training_happens_in_one_place():
    calls = defaultdict(set)
    for m in modules:
        for node in ast.walk(ast.parse((package / f"{m}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                calls[node.func.attr].add(m)
    # parallel has the ways in which processes share a step, for the loop to call; optim's wrapper
    # of several optimizers steps each of them; an inference engine's step trains nothing
    for what, homes in {
        "backward": {"train", "parallel"},
        "step": {"train", "parallel", "optim", "generate"},
    }.items():
        assert calls[what] <= homes, (
            f"`.{what}(` is called in {calls[what] - homes}; a stage hands its loss to `fit`"
        )


def test_sidebar_lists_the_chapters():
    def hrefs(items):
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, str):
                yield item
            elif "contents" in item:
                yield from hrefs(item["contents"])
            else:
                yield item["href"]

    listed = list(
        hrefs(
            yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"][
                "sidebar"
            ]["contents"]
        )
    )
    missing = [f for p in chapters if (f := "nbs/" + p.name) not in listed]
    assert not missing, f"_quarto.yml's sidebar lacks {missing}; put each under its part"
    gone = [f for f in listed if "*" not in f and not (root / f).exists()]
    assert not gone, f"_quarto.yml's sidebar lists files that are not there: {gone}"
    ordered = [f for f in listed if "/" in f and re.match(r"nbs/\d", f)]
    assert ordered == sorted(ordered), (
        f"_quarto.yml's sidebar is not in the chapters' order: {ordered}"
    )


def test_readme_is_the_index():
    done = subprocess.run(
        [sys.executable, root / "tools/readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_benchmarks_are_shown_as_they_were_measured():
    done = subprocess.run(
        [sys.executable, root / "tools/front.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_index_links_lead_somewhere():
    text = (root / "README.md").read_text(encoding="utf-8")
    dead = [
        t
        for t in re.findall(r"\]\(([^)\s#]+)", text)
        if not re.match(r"[a-z]+:", t) and not (root / t).exists()
    ]
    assert not dead, (
        f"README.md links to files that are not there: {dead}; mend nbs/index.ipynb and run "
        "`make readme`"
    )
    stale = []
    for p in chapters:
        title, claim = re.match(r"# (.*)\s+> ((?:.|\n)*)", source(read(p)["cells"][0])).groups()
        if f"[{title}](nbs/{p.name}) | {' '.join(claim.split())} |" not in text:
            stale.append(p.name)
    assert not stale, (
        f"the index does not list {stale} with their present title and claim; run `make outputs "
        "NB=index`"
    )


def test_links_in_the_chapters_lead_somewhere():
    dead = [
        f"{name(path)}: {target}"
        for path in everything
        for cell in read(path)["cells"]
        if cell["cell_type"] == "markdown"
        # what stands in a block of code or in `code` is no link
        for target in re.findall(
            r"\]\(([^)\s#]+)", re.sub(r"```.*?```|`[^`\n]*`", "", source(cell), flags=re.S)
        )
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists()
    ]
    assert not dead, f"links to files that are not there: {dead}"


def test_each_chapter_leads_to_the_next():
    done = subprocess.run(
        [sys.executable, root / "tools/next.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_tables_in_the_chapters_are_whole():
    "A bar inside `code` ends a table's cell, unless it is written `\\|`."
    broken = [
        f"{name(path)}, cell {cell['id']}: {line[:60]}"
        for path in everything
        for cell in read(path)["cells"]
        if cell["cell_type"] == "markdown"
        for line in source(cell).splitlines()
        if line.startswith("|")
        for code in re.findall(r"`[^`]*`", line)
        if re.search(r"(?<!\\)\|", code)
    ]
    assert not broken, f"a bar cuts these rows of tables; write `\\|`: {broken}"


def packages(*extras):  # of settings.ini; the core's own are always among them
    "The packages that an installation with these extras asks for, by the names one imports."
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(root / "settings.ini", encoding="utf-8")
    wanted = " ".join(settings["DEFAULT"][f"{e}requirements"] for e in ("", *extras))
    names = {re.match(r"[\w.-]+", r)[0].replace("-", "_") for r in wanted.split()}
    # PyYAML is imported as yaml; JupyterLab brings IPython along
    also = {"pyyaml": {"yaml"}, "jupyterlab": {"IPython"}}
    return names.union(*(also.get(n, set()) for n in names))


def top_level(tree):  # the packages that code imports as soon as it is run
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    return {full for node in ast.walk(tree) if id(node) not in inside for full in names_in(node)}


def names_in(node):  # top-level packages of an import, or nothing
    if isinstance(node, ast.Import):
        return {a.name.split(".")[0] for a in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {node.module.split(".")[0]}
    return set()


def test_the_course_brings_what_its_chapters_import():
    """`make lab` installs the core and the extra `course`; every cell must run with that. What a
    function of the library imports when it is called may belong to another extra: it says so."""
    here = {p.stem for folder in ("nbs", "benchmarks") for p in (root / folder).glob("*.py")}
    there = packages("course_") | set(sys.stdlib_module_names) | here | {"minimind"}
    lacking = defaultdict(set)
    for path in everything:
        code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
        # a chapter may write a module of its own, in order to run it
        own = set(re.findall(r'"(\w+)\.py"', "".join(map(source, code))))
        for cell in code:
            tree = parsed(source(cell))
            wanted = top_level(tree)
            if "export" not in directives(cell):
                wanted = set().union(*map(names_in, ast.walk(tree)))
            for package in wanted - there - own:
                lacking[package].add(name(path))
    assert not lacking, (
        f"chapters import what `make lab` does not install: {dict(lacking)}; add the package to "
        "course_requirements in settings.ini"
    )


def test_notebooks_are_clean(copy):
    nbdev(copy, "nbdev_clean", "--fname", "nbs")
    noisy = [
        name(p)
        for p in everything
        if p.read_text(encoding="utf-8") != (copy / "nbs" / name(p)).read_text(encoding="utf-8")
    ]
    assert not noisy, f"{noisy}: run `make outputs`, or nbdev_clean, before committing"


@pytest.mark.parametrize("path", everything, ids=name)
def test_notebook(path):
    nb = read(path)
    cells, code = nb["cells"], [c for c in nb["cells"] if c["cell_type"] == "code"]
    assert path.stat().st_size < 400_000, (
        f"{name(path)} has {path.stat().st_size / 1000:.0f} kB; smaller or fewer figures, "
        "shorter outputs"
    )
    ids = Counter(c.get("id") for c in cells)
    assert None not in ids and max(ids.values()) == 1, (
        f"{name(path)}: every cell needs an id of its own, but {ids.most_common(2)}"
    )
    outputs = [(c, o) for c in code for o in c["outputs"]]
    errors = [o["ename"] for _, o in outputs if o["output_type"] == "error"]
    assert not errors, (
        f"{name(path)} is committed with error outputs {errors}; show an expected error by "
        "catching it"
    )
    for c, o in outputs:
        temp = re.search(
            "/" + r"tmp/\S*|ipykernel_\d+",
            json.dumps({k: v for k, v in o.items() if k != "metadata"}),
        )
        assert not temp, (
            f"{name(path)}, cell {c['id']}: the output changes with every run "
            f"({temp and temp[0]}); print the file's name only"
        )
    first = source(cells[0])
    assert first.startswith("# "), (
        f"{name(path)}: the first cell is the title, `# Title`, with its claim `> …`"
    )
    if path in chapters:
        assert re.search(r"^> \S", first, re.M), (
            f"{name(path)}: the first cell's `> …` says in one line what the chapter shows"
        )
        assert outputs, f"{name(path)} has no outputs; run `make outputs NB={path.stem}`"
        exports_nothing = path.stem in MEASURING or number(path) < 2 or number(path) > 40
        assert module_of(path) or exports_nothing, (
            f"{name(path)}: the second cell names the module, `#| default_exp …`"
        )


def test_exercises_have_solutions():
    solved = {p.stem for p in solutions}
    lacking = [
        p.name
        for p in chapters
        if p.stem not in solved
        and any(re.search(r"^#+ Exercises", source(c), re.M) for c in read(p)["cells"])
    ]
    assert not lacking, (
        f"{lacking} have exercises but no notebook of the same name in nbs/solutions/"
    )
    stray = [name(p) for p in solutions if not (nbs / p.name).exists()]
    assert not stray, f"{stray}: solutions without a chapter"
    exporting = [
        name(p)
        for p in solutions
        if any("export" in directives(c) or "default_exp" in source(c) for c in read(p)["cells"])
    ]
    assert not exporting, f"{exporting}: solutions export nothing"


def loaded(code):  # top-level packages that a fresh Python holds after running the code
    "What importing costs, told by sys.modules rather than by a clock."
    code += "\nimport sys, json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light():
    extra = loaded("import minimind") & (HEAVY | {"torch", "numpy"})
    assert not extra, (
        f"`import minimind` loads {extra}; minimind/__init__.py imports a part when it is asked for"
    )


def test_modules_need_only_the_core():
    extra = loaded("\n".join(f"import minimind.{m}" for m in modules)) & HEAVY
    assert not extra, (
        f"importing the modules loads {extra}; import it inside the function that needs it, or "
        "in a cell that is not exported"
    )


def test_help_is_light():
    extra = loaded(
        "from minimind.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    ) & (HEAVY | {"torch"})
    assert not extra, f"`minimind --help` loads {extra}; cli imports a stage when it is called"


def test_no_path_of_one_machine():
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    skip = {".git", ".venv", "_proc", "_site", "runs", "build"}
    files = (
        listing.stdout.splitlines()
        if listing.returncode == 0
        else [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    )
    local = re.compile(
        r"(?<![\w.~/-])/(?:"
        + "|".join(["work", "root", "home", "Users"])
        + r")/\w|\b[A-Z]:\\\\?Users\b"
    )
    found = []
    for f in files:
        if (
            Path(f).parts[0] in skip
            or Path(f).suffix in (".jsonl", ".png", ".safetensors")
            or not (root / f).exists()
        ):
            continue
        for i, line in enumerate(
            (root / f).read_text(encoding="utf-8", errors="ignore").splitlines(), 1
        ):
            if m := local.search(line):
                found.append(f"{f}:{i}: {m[0]}")
    assert not found, f"paths that exist on one machine only: {found[:10]}"
