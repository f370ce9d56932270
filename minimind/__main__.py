"`python -m minimind`, also as one of the processes that `torchrun` starts."

from minimind.cli import main
from minimind.dist import leave

if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as e:
        code = e.code
    leave(code)
