"""What every test may rely on: no network, no window, one size, one precision, repeatable examples,
and an answer to the markers."""

import os
import tempfile

# a test that would download fails at once instead of hanging
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["MINIMIND_SIZE"] = "ci"
# nothing is written to, and nothing taken from, what the user has in his cache
_cache = tempfile.TemporaryDirectory(prefix="minimind-cache-")
os.environ["MINIMIND_CACHE"] = _cache.name
# a processor with bfloat16 would train in that
os.environ["MINIMIND_DTYPE"] = "float32"

import pytest
from hypothesis import settings

# no deadline: on shared cores one example can take a hundred times longer than the next
settings.register_profile(
    "minimind", deadline=None, derandomize=True, print_blob=True, max_examples=50
)
settings.load_profile("minimind")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def cuda():  # imported only when a test asks, so that the repository gates stay quick
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
        if "gpu" in item.keywords and not cuda():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
