"""The programs of tools/: what they write on the front page and the site, and what they refuse."""

import importlib.util
import json
from pathlib import Path

import pytest

tools = Path(__file__).resolve().parents[1] / "tools"


def tool(name):  # a file of tools/, as a module; `site` and `next` are Python's own names too
    spec = importlib.util.spec_from_file_location(f"tools_{name}", tools / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def beside(monkeypatch):  # tools import each other by name
    monkeypatch.syspath_prepend(str(tools))


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.html").write_text('<h2 id="here">b</h2><a href="../a.html#top">a</a>')
    (tmp_path / "a.html").write_text(
        '<a href="sub/b.html#here">1</a><a href="sub/b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="https://example.org">4</a><script src="https://example.org/x.js"></script>'
    )
    links = tool("links")
    broken, remote = links.look(tmp_path)
    assert broken == ["a.html: sub/b.html#gone", "a.html: c.html"]
    assert remote == ["https://example.org/x.js"]
    assert links.look(tmp_path, places=False)[0] == ["a.html: c.html"]
    with pytest.raises(SystemExit, match="c.html"):
        links.main(tmp_path)


def test_goals_are_met_or_missed_by_the_numbers_of_the_tables():
    front = tool("front")
    cells = {"5,407": 5407, "0.01%": 0.01, "81,408 (2.9%)": 2.9, "1.24": 1.24}
    assert {cell: front.number(cell) for cell in cells} == cells
    rows = [["ci", "1", "1", "1", "1", "1.19"], ["26M", "1", "1", "1", "1", "1.00"]]
    goals = list(front.goal_rows({"train_speed": {"rows": rows}}))
    assert [row[2:] for row in goals] == [("1.19", "≥ 1.2", "✗"), ("1.00", "≥ 1.0", "✓")]


def test_every_goal_names_a_number_of_a_committed_table():
    front = tool("front")
    files = {p.stem: json.loads(p.read_text("utf-8")) for p in front.results.glob("*.json")}
    tables = {name: result for name, result in files.items() if "columns" in result}
    assert len(list(front.goal_rows(tables))) == len(front.GOALS)


def test_a_runs_curve_is_in_minutes_and_skips_evaluations(tmp_path):
    lines = [
        {"step": 10, "loss": 8.0, "lr": 1e-3, "seconds": 30.0},
        {"step": 20, "loss": 6.0, "lr": 1e-3, "seconds": 90.0},
        {"step": 20, "bpb": 2.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tool("front").curve(tmp_path) == [[0.5, 8.0], [2.0, 6.0]]


def notebook(path, *cells):
    import nbformat.v4 as v4

    nb = v4.new_notebook(cells=[v4.new_code_cell(code) for code in cells])
    path.write_text(json.dumps(nb), encoding="utf-8")
    return path


def test_run_all_names_the_cell_that_fails(tmp_path):
    runall = tool("runall")
    # a directive of the tests is no reason to leave a cell out: JupyterLab knows none
    wrong = notebook(tmp_path / "wrong.ipynb", "a = 1", "#| slow\nimport no_such_package", "a")
    said = runall.run_all(wrong)
    assert said.startswith("cell 2 of 3: ModuleNotFoundError") and "import no_such" in said
    assert runall.run_all(notebook(tmp_path / "right.ipynb", "a = 1", "assert a")) is None


def test_long_signatures_have_an_argument_a_line(beside):
    unfolded = tool("site").unfolded
    short = "f(a: int, b: dict[str, int]) -> int"
    long = short.replace("a: int", "a: tuple[int, str] = (1, 'x')" + " " * 80)
    lines = unfolded(long).split("\n")
    assert unfolded(short) == short and len(lines) == 4
    assert lines[0] == "f(" and lines[2:] == ["    b: dict[str, int],", ") -> int"]


def test_chapters_are_linked_in_the_sites_order():
    next_ = tool("next")
    files = [p.name for p in next_.chapters()]
    assert files == sorted(files) and len(files) > 30
    nb = {"cells": [{"source": ["# A title\n", "\n", "> A claim."]}]}
    said = next_.link(Path("nbs/03_chat.ipynb"), nb)
    assert said == "**Next:** chapter 3, [A title](03_chat.ipynb)"


def test_what_a_first_reader_may_skip_is_folded_to_the_next_heading(beside):
    cell = pytest.importorskip("execnb.nbio").mk_cell
    texts = ["# A", "## Under the bonnet", "### A part", "## Next", "### Under the bonnet: b"]
    cells = [cell(text, cell_type="markdown") for text in texts] + [cell("1 + 1")]
    shown = [c.source.split(">")[0] for c in tool("site").folded(cells)]
    fold, end = '<details class="bonnet"', "</details"
    assert shown == [*texts[:2], fold, texts[2], end, *texts[3:], fold, "1 + 1", end]
    # a heading in the middle of a cell, and what follows the sentence in italics
    text = "so.\n\n## Under the bonnet: x\n\n*Skip\nit.*\n\nNow\n```\n# no heading\n```\n## After"
    shown = [c.source for c in tool("site").folded([cell(text, cell_type="markdown")])]
    assert [s.split(">")[0] for s in shown] == [
        "so.\n\n",
        "## Under the bonnet: x\n\n*Skip\nit.*",
        fold,
        "Now\n```\n# no heading\n```\n",
        end,
        "## After",
    ]


def test_only_the_picture_of_a_machine_is_shown_on_the_site(beside):
    cell = pytest.importorskip("execnb.nbio").mk_cell
    picture = 'from course import boxes\n\nboxes([("a", 0, 0, "a", "data")]);'
    both = picture + "\n\nx = 1"
    shown = [c.source for c in tool("site").folded([cell(picture), cell(both), cell("boxed(1)")])]
    assert shown == [f"#| echo: false\n{picture}", both, "boxed(1)"]
    imports = "\n".join(f"import {name}" for name in ("a", "b", "c", "d"))
    shown = [c.source for c in tool("site").folded([cell(imports), cell("import a"), cell("%x")])]
    assert shown[1] == imports and len(shown) == 5


def test_the_reading_is_counted():
    reading = tool("reading")
    md, code = dict(cell_type="markdown"), dict(cell_type="code")
    cells = [
        code | dict(source="import a\n\nb = 1"),
        md | dict(source="## The problem: c"),
        code | dict(source="d"),
    ]
    assert reading.before_the_problem(cells) == 2
    assert reading.before_the_problem(cells[:1]) is None
    assert reading.numbers()["chapters"] == len(reading.files())
