"""Pictures and the report's sections on what a model sees and how alike the releases are."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hf_infinite_lr.plots import draw_reconstructions, draw_similarity, write_png
from hf_infinite_lr.plots.reconstruction import reconstruction_file, release_of
from hf_infinite_lr.report.representations import representation_sections
from hf_infinite_lr.report.run import Run


def images(count, channels=3):
    return tuple(np.random.RandomState(kind).rand(count, 8, 8, channels) for kind in range(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_column_has_its_panel_of_three_rows(tmp_path, channels):
    figure = draw_reconstructions({"a $x": images(2, channels), "b": images(5, channels)}, title="01-a")
    assert [panel.get_title() for panel in figure.axes] == [r"a \$x", "b"]
    shown = figure.axes[1].get_images()[0].get_array()
    assert shown.shape[:2] == (3 * 8, 5 * 8)
    np.testing.assert_array_equal(shown[8:16, 32:], images(5, channels)[1][4].squeeze())
    assert write_png(figure, tmp_path / "x.png").stat().st_size > 1000


def test_similarity_is_written_into_its_cells(tmp_path):
    figure = draw_similarity({"a": (["untrained", "01-a"], [[1.0, 0.25], [0.25, 1.0]])})
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "0.25", "0.25", "1.00"]
    write_png(figure, tmp_path / "x.png")


@pytest.mark.parametrize("sets", [1, 3])
def test_similarity_shows_its_labels_whole(sets):
    names = [f"0{number}-a-very-long-name-of-a-task" for number in range(4)]
    rows = [[1.0] * 4] * 4
    figure = draw_similarity({f"set {number}": (names, rows) for number in range(sets)})
    FigureCanvasAgg(figure).draw()
    texts = [text for axes in figure.axes for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels())]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(figure.bbox.x0 <= box.x0 and figure.bbox.y0 <= box.y0 for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert figure._suptitle.get_window_extent().y0 >= figure.axes[0].title.get_window_extent().y1


def test_the_report_shows_what_a_run_has_measured_in_the_order_of_its_tasks(tmp_path):
    tasks = [{"name": "b", "directory": "01-b"}, {"name": "a", "directory": "02-a"}]
    for release in ("02-a", "untrained", "01-b", "elsewhere"):
        (tmp_path / reconstruction_file(release)).touch()
    (tmp_path / "loss.png").touch()
    similar = {"b": {"models": ["untrained", "01-b"], "linear_cka": [[1.0, 0.5], [0.5, 1.0]]}}
    text = "\n".join(representation_sections(Run(tmp_path, {"tasks": tasks}, (), (), similar), tmp_path))
    places = [text.index(f"![{release}]") for release in ("untrained", "01-b", "02-a")]
    assert places == sorted(places)
    assert "elsewhere" not in text
    assert "| untrained | 1.000 | 0.500 |" in text
    assert (tmp_path / "linear_cka.png").stat().st_size > 1000
    assert release_of("loss.png") is None


def test_a_run_without_measures_has_no_such_section(tmp_path):
    assert representation_sections(Run(tmp_path, {"tasks": []}, (), ()), tmp_path) == []
