"""Benchmarks measure what they say, and what they have measured is what the pages show."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "recipes" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_table_of_throughput_is_that_of_its_file(benchmark):
    throughput = benchmark("throughput")
    page = throughput.PAGE.read_text(encoding="utf-8")
    shown = page.split(throughput.BEGIN)[1].split(throughput.END)[0]
    assert shown.strip() == throughput.table(throughput.recorded())


def test_recording_keeps_the_page_around_the_table(benchmark, tmp_path, monkeypatch):
    throughput = benchmark("throughput")
    monkeypatch.setattr(throughput, "FILE", tmp_path / "throughput.json")
    monkeypatch.setattr(throughput, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(f"above\n{throughput.BEGIN}\nold\n{throughput.END}\nbelow\n")
    one = {
        "date": "2026-01-31",
        "machine": "a CPU",
        "threads": 2,
        "torch": "2.0",
        "transformers": "5.0",
        "rounds": 390,
        "operations_a_second_at_most": 1e11,
        "operations_a_step": 1e10,
        "units_a_step": 1024,
        "seconds_a_step": dict(zip(throughput.RUNNERS, (0.5, 0.4, 0.25), strict=True)),
        "of": {"stock Trainer": (0.8, 0.79, 0.81), "hand-written loop": (0.5, 0.49, 0.51)},
    }
    throughput.record({"lm-small": one})
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("\nbelow\n")
    assert "old" not in page
    row = next(line for line in page.splitlines() if "tokens/s" in line)
    figures = ["2,048 tokens/s", "2,560 tokens/s", "4,096 tokens/s", "20.0%", "0.8000 (0.7900 to 0.8100)"]
    assert row.split(" | ")[1:6] == figures
    assert page.count("not run: `python recipes/benchmarks/throughput.py --model") == len(throughput.MODELS) - 1
    assert throughput.recorded().keys() == {"lm-small"}


@pytest.mark.parametrize(
    ("name", "layers", "width", "length"), [("lm-small", 4, 128, 128), ("lm-410m", 24, 1024, 2048)]
)
def test_operations_of_a_language_model_are_those_of_the_formula(benchmark, name, layers, width, length):
    # 6 x matrix parameters + 12 x layers x width x length for each token (Chowdhery et al. 2022, appendix B)
    import torch

    throughput = benchmark("throughput")
    with torch.device("meta"):
        model, _, tokens = throughput.make(name)
    matrices = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    assert throughput.operations(name) == tokens * (6 * matrices + 12 * layers * width * length)


def test_recorded_runs_on_the_cpu_meet_the_bars(benchmark):
    throughput = benchmark("throughput")
    rows = {name: row for name, row in throughput.recorded().items() if throughput.MODELS[name][2] == "cpu"}
    assert len(rows) == 4
    bars = throughput.BARS.items()
    missed = {(name, other) for name, row in rows.items() for other, bar in bars if row["of"][other][0] < bar}
    assert missed == {("mae-small-default-malloc", other) for other in throughput.BARS}, "as the page says"


def test_every_row_is_counted(benchmark):
    throughput = benchmark("throughput")
    counted = [throughput.operations(name) for name in ("mae-small", "mae-vit-b")]
    assert 0 < counted[0] < counted[1]


def test_a_ratio_of_rounds_is_a_median_with_its_interval(benchmark):
    slower, faster = [float(n) for n in range(1, 102)], [1.0] * 101
    assert benchmark("turns").ratio(slower, faster) == (51.0, 41.0, 61.0)


@pytest.mark.slow
def test_a_rewind_needs_no_more_memory_than_training():
    # Its time is left to the benchmark: `test_restore.py` counts what is read.
    words = [sys.executable, "-W", "ignore", BENCHMARKS / "rewind_memory.py", "--hidden_size", "256", "--rounds", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"^peak of a rewind / peak of training: ([\d.]+) ", done.stdout, re.MULTILINE)
    assert 0.5 < float(found[1]) <= 1.05
    assert "(medians of 2 rounds)" in done.stdout
