"""How long `import hf_infinite_lr` takes on top of `import transformers.optimization`.

Run `python recipes/benchmarks/import_time.py`. Each measurement is a fresh process, in which transformers is imported
first; the number is the time of our own import alone. The bar is 0.1 s.
"""

import argparse
import statistics
import subprocess
import sys

MEASURE = """
import time
started = time.perf_counter()
import transformers.optimization
middle = time.perf_counter()
import hf_infinite_lr
print(middle - started, time.perf_counter() - middle)
"""


def measure() -> tuple[float, float]:
    """Return the seconds of transformers' import and of ours, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    theirs, ours = map(float, done.stdout.split())
    return theirs, ours


def main() -> None:
    """Print the medians and the spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    theirs, ours = zip(*(measure() for _ in range(parser.parse_args().repeats)), strict=True)
    print(f"transformers.optimization: median {statistics.median(theirs):.3f} s")
    print(f"added by hf_infinite_lr: median {statistics.median(ours):.3f} s ({min(ours):.3f} to {max(ours):.3f} s)")


if __name__ == "__main__":
    main()
