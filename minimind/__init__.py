"""A small language model from scratch: a course in notebooks, whose exported cells are the library.

>>> import minimind
>>> lm = minimind.load("runs/ci/sft")    # a model folder: ours, Hugging Face's, or an adapter's
>>> lm.chat("What is 23 + 45?")          # the conversation goes on; lm.reset() forgets it

A module is a chapter, of the same name in `nbs/`, and is imported when it is first asked for:

words      tokenizer, chat (roles, the template, replies taken apart), data (files, rows, batches)
model      layers, attention, rope, moe, model (`MiniMind("ci")`, `PRESETS`)
writing    sampling (logits to a token), generate (the engine: many prompts at once, streams)
training   losses, optim, dist, log, train (the loop), hub (Hugging Face's folders), checkpoint,
           evaluate, stage (what all trainings share), pretrain, sft
alignment  lora, dpo, rewards, rollout, remote, ppo, grpo, distill
scale      parallel (FSDP, DeepSpeed), track (SwanLab, W&B, TensorBoard), recipe, launch
shipping   quantize (weights in eight bits), doctor, library (`load`), ladder (`minimind run`),
           terminal, cli
workshop   core (device, seeds, whole files), plugins

`minimind --help` is the command line. What is documented here and in the chapters is meant to stay;
names that begin with an underscore may change.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In which module the names that the package itself offers are at home.
_HOMES = {
    "load": "library",
    "LanguageModel": "library",
    "MiniMind": "model",
    "Tokenizer": "tokenizer",
}

# For editors and type checkers; when the program runs, `__getattr__` imports what is asked for.
if TYPE_CHECKING:
    from . import attention as attention
    from . import chat as chat
    from . import checkpoint as checkpoint
    from . import cli as cli
    from . import core as core
    from . import data as data
    from . import dist as dist
    from . import distill as distill
    from . import doctor as doctor
    from . import dpo as dpo
    from . import evaluate as evaluate
    from . import generate as generate
    from . import grpo as grpo
    from . import hub as hub
    from . import ladder as ladder
    from . import launch as launch
    from . import layers as layers
    from . import library as library
    from . import log as log
    from . import lora as lora
    from . import losses as losses
    from . import model as model
    from . import moe as moe
    from . import optim as optim
    from . import parallel as parallel
    from . import plugins as plugins
    from . import ppo as ppo
    from . import pretrain as pretrain
    from . import quantize as quantize
    from . import recipe as recipe
    from . import remote as remote
    from . import rewards as rewards
    from . import rollout as rollout
    from . import rope as rope
    from . import sampling as sampling
    from . import sft as sft
    from . import stage as stage
    from . import terminal as terminal
    from . import tokenizer as tokenizer
    from . import track as track
    from . import train as train
    from .library import LanguageModel as LanguageModel
    from .library import load as load
    from .model import MiniMind as MiniMind
    from .tokenizer import Tokenizer as Tokenizer


def _modules() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]


def _offered(name: str) -> Any:
    "What `minimind.NAME` is: a module, or a name of one. Raises `AttributeError`."
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _modules():
        return importlib.import_module(f"{__name__}.{name}")
    hint = ""
    if not name.startswith("_"):
        from .plugins import did_you_mean

        hint = did_you_mean(name, __dir__())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    own = [name for name in globals() if name.startswith("__") and name.endswith("__")]
    return sorted({*own, *_HOMES, *_modules()})


# A type checker that saw it would believe in every name.
if not TYPE_CHECKING:
    __getattr__ = _offered
