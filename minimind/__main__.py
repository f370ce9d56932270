"`minimind` and `python -m minimind`, also as one of the processes that `torchrun` starts."

import os
import sys
from typing import NoReturn

# How often a thread of OpenMP, PyTorch's own among them, looks whether there is work again before
# it sleeps. By default it looks for milliseconds, and keeps a core from whoever else wants it: a
# training beside another program is then several times slower. benchmarks/LOG.md has the numbers.
SPINS = 2000


def let_threads_sleep() -> None:
    """Let threads that wait for work give up their core soon. It counts only before PyTorch is
    loaded; what the user has said about it stands."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def main() -> NoReturn:
    "The program. Nothing that is slow to import, or loads PyTorch, may be imported before this."
    let_threads_sleep()
    from minimind.cli import main as cli

    try:
        code = cli()
    except SystemExit as e:
        code = e.code
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from minimind.dist import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
