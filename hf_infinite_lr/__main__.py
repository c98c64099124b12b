"""`python -m hf_infinite_lr` is the command `hf-infinite-lr`; `accelerate launch -m hf_infinite_lr` starts it too."""

import sys

from hf_infinite_lr.cli import main

if __name__ == "__main__":
    sys.exit(main())
