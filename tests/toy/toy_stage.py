"A stage of nobody's: all that somebody has to write who adds one. tests/test_new_stage.py uses it."

from dataclasses import dataclass

import torch

from minimind.data import Batches
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, ModelConfig
from minimind.stage import Rung, Stage, StageConfig, run_stage, work_folder
from minimind.tokenizer import Tokenizer
from minimind.train import AT_LEAST_1, option


@dataclass(frozen=True)
class ToyConfig(StageConfig):
    "The alphabet in, a model that can say it out."

    out: str = "runs/toy"
    steps: int = 12
    warmup: int = 2
    letters: int = option(8, "letters of the alphabet that is learned", AT_LEAST_1)


class Alphabet(Batches):
    "Rows that say the alphabet, each from another letter on."

    steps_per_epoch = 4

    def __init__(self, cfg):
        self.cfg, self.tokens_per_epoch = cfg, 4 * cfg.batch_size * 16

    ahead = True  # a function of the step alone: made while the step before is computed

    def at(self, step, rank=0, world_size=1):
        g = torch.Generator().manual_seed(self.cfg.seed + step % self.steps_per_epoch)
        first = torch.randint(self.cfg.letters, (self.cfg.batch_size, 1), generator=g)
        ids = 40 + (first + torch.arange(16)) % self.cfg.letters
        ids = ids[rank::world_size]
        return dict(input_ids=ids, labels=ids)

    def fingerprint(self):
        return {"alphabet": self.cfg.letters}


def run(cfg, dry_run=False):
    with work_folder(cfg, dry_run):
        tokenizer = Tokenizer.train(["abc"] * 9, vocab_size=292)
        torch.manual_seed(cfg.seed)
        shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        config = ModelConfig(
            **shape, num_key_value_heads=1, intermediate_size=64, vocab_size=tokenizer.vocab_size
        )
        batches = Alphabet(cfg)
        model = MiniMind(config)
        return run_stage(cfg, model, tokenizer, batches, causal_lm_loss, None, "toy", dry_run)


TOY = Stage(
    "toy",
    ToyConfig,
    run,
    "learn the alphabet",
    rung=Rung(12, "an alphabet → a model that can say it", lambda folder: {}),
)
