"""Every public function says what it takes and what it gives back, where an editor can read it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(f.stem for f in (ROOT / "minimind").glob("*.py") if f.stem[0] != "_")
# methods with underscores that are called from outside, by a name or by a sign
CALLED = {"__init__", "__call__", "__enter__", "__iter__", "__next__", "__getitem__", "__len__"}


def public_functions(source):
    "`(name, node)` of the functions and of the methods whose names have no underscore in front."
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    if part.name[0] != "_" or part.name in CALLED:
                        yield f"{node.name}.{part.name}", part


def without_type(node, method):
    "Names of the arguments that have no annotation, and `return` if the result has none."
    a = node.args
    places = [*a.posonlyargs, *a.args]
    if method and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list):
        places = places[1:]
    given = [*places, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    missing = [x.arg for x in given if x.annotation is None and x.arg[0] != "_"]
    # of `__init__` an annotated argument says enough (PEP 484)
    if node.returns is None and not (node.name == "__init__" and given and not missing):
        missing.append("return")
    return missing


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_annotated(module):
    source = (ROOT / "minimind" / f"{module}.py").read_text(encoding="utf-8")
    found = {name: without_type(node, "." in name) for name, node in public_functions(source)}
    missing = [f"{name}({', '.join(what)})" for name, what in found.items() if what]
    assert not missing, f"minimind.{module}: no type is given for {'; '.join(missing)}"


def test_the_gate_sees_what_is_missing():
    source = """
def f(a, b: int, *c, d=1, **e): ...
def g(_a, b: int) -> int: ...
def _h(a): ...
class A:
    def __init__(self): ...
    def m(self, x) -> int: ...
    @staticmethod
    def s(x) -> int: ...
    def _p(self, x): ...
class B:
    def __init__(self, x: int): ...
    def __call__(self, x: int): ...
"""
    assert {n: without_type(f, "." in n) for n, f in public_functions(source)} == {
        "f": ["a", "c", "d", "e", "return"],
        "g": [],
        "A.__init__": ["return"],
        "A.m": ["x"],
        "A.s": ["x"],
        "B.__init__": [],
        "B.__call__": ["return"],
    }


# what somebody writes who uses the library, and what an editor then knows about it
SCRIPT = """
import torch
from minimind.generate import chat, generate
from minimind.grpo import group_advantages, grpo_loss
from minimind.hub import load_pretrained, save_pretrained
from minimind.losses import lm_loss, token_logprobs
from minimind.model import MiniMind, ModelConfig, preset
from minimind.pretrain import PretrainConfig
from minimind.tokenizer import Tokenizer

model, tokenizer = load_pretrained("runs/ci/sft")
ids = tokenizer.encode("Hello")
batch = torch.tensor([ids])
"""
KNOWN = {
    "model": "minimind.model.MiniMind",
    "model(batch)": "torch._tensor.Tensor",
    "model.hidden(batch)": "torch._tensor.Tensor",
    "model.config": "minimind.model.ModelConfig",
    "model.config.head_dim": "int",
    "MiniMind(preset('ci', num_hidden_layers=2))": "minimind.model.MiniMind",
    "tokenizer": "minimind.tokenizer.Tokenizer",
    "ids": "list[int]",
    "tokenizer.decode(ids)": "str",
    "tokenizer.eos_id": "int | None",
    "tokenizer.vocab_size": "int",
    # of ids, or of lists of ids, as the prompts are
    "generate(model, [ids], max_new_tokens=8, temperature=0.3)": "list[Any]",
    "chat(model, tokenizer, 'Hi', seed=0)": "str",
    "lm_loss(model, batch, input_ids=batch)": "torch._tensor.Tensor",
    "token_logprobs(model(batch), batch)": "torch._tensor.Tensor",
    "group_advantages(torch.zeros(8), 4)": "torch._tensor.Tensor",
    "PretrainConfig(data=('x.txt',), steps=3)": "minimind.pretrain.PretrainConfig",
    "PretrainConfig(data=('x.txt',)).lr": "float",
    "save_pretrained(model, tokenizer, 'out')": "None",
}


def checked(folder, text, *options):
    "What mypy says about a script that stands outside the repository."
    (folder / "script.py").write_text(text)
    # the cache beside pytest's own: torch takes most of the time
    cache = ROOT / ".pytest_cache" / "mypy"
    command = [sys.executable, "-m", "mypy", "--cache-dir", cache, *options, "script.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_an_editor_knows_the_types(tmp_path):
    assert (ROOT / "minimind" / "py.typed").exists(), "without py.typed no tool reads the types"
    text = SCRIPT + "".join(f"reveal_type({what})\n" for what in KNOWN)
    said = checked(tmp_path, text, "--strict", "--follow-imports=silent")
    assert "error:" not in said, said
    first = len(SCRIPT.splitlines()) + 1
    seen = re.findall(r'script.py:(\d+): note: Revealed type is "(.*)"', said)
    assert dict(zip(KNOWN, [kind for _, kind in seen])) == KNOWN
    assert [int(line) for line, _ in seen] == list(range(first, first + len(KNOWN)))
