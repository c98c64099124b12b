"""What a run has left beside its matrices: pictures of its releases, and how alike their representations are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_infinite_lr.plots import draw_similarity, write_png
from hf_infinite_lr.plots.reconstruction import release_of
from hf_infinite_lr.report.run import Run
from hf_infinite_lr.report.table import markdown, number

_SIMILARITY = "linear_cka.png"


def representation_sections(run: Run, folder: Path) -> list[str]:
    """
    Sections of the report, with their pictures written; none where the run has measured nothing of the kind.

    Args:
        run ([`Run`]): The run.
        folder (`Path`): Its `report/`.
    """
    return [*_similarity_section(run.representations, folder), *_reconstruction_section(run, folder)]


def _similarity_section(similar: Mapping[str, Any], folder: Path) -> list[str]:
    if not similar:
        return []
    write_png(
        draw_similarity({name: (found["models"], found["linear_cka"]) for name, found in similar.items()}),
        folder / _SIMILARITY,
    )
    section = [
        "## Representations",
        "Linear CKA (arXiv 1905.00414) of the mean-pooled features of each pair of models on a column's held-out "
        "part: 1 = alike up to rotation and scale.",
    ]
    for name, found in similar.items():
        rows = [[name, *found["models"]]]
        rows += [[m, *map(number, row)] for m, row in zip(found["models"], found["linear_cka"], strict=True)]
        section.append(markdown(rows))
    return [*section, f"![linear CKA between releases]({_SIMILARITY})"]


def _reconstruction_section(run: Run, folder: Path) -> list[str]:
    order = ["untrained", *(task.get("directory") for task in run.tasks)]
    found = {release_of(file.name): file.name for file in folder.glob("*.png")}
    pictures: Sequence[str] = [f"![{release}]({found[release]})" for release in order if release in found]
    if not pictures:
        return []
    text = "Original, masked and reconstructed held-out images of each column; visible patches are shown as they are."
    return ["## Reconstructions", text, *pictures]
