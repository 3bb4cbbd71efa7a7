"""Pictures from stored values: they are files of their own, hold what was asked, leave no state."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from error_tables import LAYERS, made
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from results import ROW

from mt_convert.errors import OutputError, SpecError
from mt_convert.evaluation.errors import pictures as error_pictures
from mt_convert.evaluation.errors.pictures import error_by_layer, histograms
from mt_convert.evaluation.errors.rows import CAUSES
from mt_convert.evaluation.errors.table import ErrorTable
from mt_convert.report import pictures
from mt_convert.report.pictures import accuracy_over_time
from mt_convert.report.row_groups import kinds_of, subject
from mt_convert.report.rows import Row

TIMES = (1, 2, 4, 8, 16, 32)


def rows(**columns: object) -> list[Row]:
    """Rows that rise with n and T."""
    return [
        dataclasses.replace(
            ROW,
            **{
                "n": n,
                "T": T,
                "snn_accuracy": 90 * (1 - math.exp(-n * T / 8)),
                "agreement": 1 - math.exp(-n * T / 8),
                **columns,
            },  # type: ignore[arg-type]
        )
        for n in (1, 15)
        for T in TIMES
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    figures: list[Figure] = []
    write = pictures.write

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        write(figure, path)

    for module in (pictures, error_pictures):
        monkeypatch.setattr(module, "write", keep)
    return figures


def visible(figure: Figure) -> list[Axes]:
    """The panels that show something."""
    return [axes for axes in figure.axes if axes.axison]


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "errors": lambda path: error_by_layer(made(), 15, 2, path),
    "histograms": lambda path: histograms(made(), 15, 2, path),
    "accuracy": lambda path: accuracy_over_time(rows(), path),
    "map": lambda path: accuracy_over_time(kinds(pictures.PANELS + 1), path),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_a_png_of_a_size_that_can_be_read_and_nothing_else_is_left(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "picture.png"
    DRAWINGS[name](path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert all(400 < side < 2400 for side in picture.size)
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 20  # not blank
    assert [item.name for item in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.sampled
@pytest.mark.parametrize("form", ["png", "pdf"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_text_does_not_leave_the_picture_nor_titles_cover_each_other(
    name: str, form: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    DRAWINGS[name](tmp_path / f"picture.{form}")
    (figure,) = drawn
    width, height = figure.canvas.get_width_height()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    texts = [item.get_window_extent() for item in (figure._suptitle, *figure.legends) if item]
    for box in (*boxes, *texts):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    for k, text in enumerate(texts):
        others = [*texts[:k], *boxes]
        assert not any(text.overlaps(other) for other in others)


def kinds(count: int) -> list[Row]:
    """Rows of so many calibrations, of which the last has no row at T = 32."""
    given = [row for k in range(count) for row in rows(calibration=f"way_{k}")]
    return given[:-1]


def test_more_kinds_than_panels_are_a_map_with_every_number(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    given = kinds(pictures.PANELS + 1)
    accuracy_over_time(given, tmp_path / "accuracy.png")
    axes, bar = drawn[0].axes
    shades = axes.images[0].get_array()
    assert shades.shape == (2 * (pictures.PANELS + 1), len(TIMES))
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert len(texts) == len(given) == shades.size - 1
    for row, text in zip(given, texts.values(), strict=True):
        assert text == f"{row.snn_accuracy:.1f}" + "=" * (row.exact_share == 1)
    first = given[0]
    assert first.qann_accuracy is not None
    assert shades[0, 0] == min(pictures.FAR, first.qann_accuracy - first.snn_accuracy)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[:3] == ["by way_0, n = 1", "n = 15", "by way_1, n = 1"]
    assert "points below" in bar.get_ylabel()
    assert drawn[0].get_size_inches()[0] == pictures.PAGE


@pytest.mark.slow
@pytest.mark.parametrize(("count", "width"), [(1, pictures.COLUMN), (3, pictures.PAGE)])
def test_a_printed_picture_is_as_wide_as_a_column_or_a_page_and_can_be_read(
    count: int, width: float, tmp_path: Path, drawn: list[Figure]
) -> None:
    accuracy_over_time(kinds(count), tmp_path / "accuracy.pdf")
    assert drawn[0].get_size_inches()[0] == width
    sizes = [text.get_fontsize() for text in drawn[0].findobj(Text) if text.get_text()]
    assert min(sizes) >= 6


@pytest.mark.slow
def test_what_is_wider_than_a_page_gets_smaller_in_print(tmp_path: Path) -> None:
    figure, (axes,) = pictures.make_figure((14, 4), (1, 1))
    title = axes.set_title("title", fontsize=12)
    pictures.write(figure, tmp_path / "wide.svg")
    assert figure.get_size_inches().tolist() == [pictures.PAGE, 2.0]
    assert title.get_fontsize() == 6


@pytest.mark.slow
@pytest.mark.parametrize(("form", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_name_of_a_file_says_its_form_and_the_same_figure_makes_the_same_bytes(
    form: str, start: bytes, tmp_path: Path
) -> None:
    figure, (axes,) = pictures.make_figure((1.5, 1.5), (1, 1))
    axes.plot([0, 1], [1, 0])
    contents = []
    for name in "ab":
        pictures.write(figure, tmp_path / f"{name}.{form}")
        contents.append((tmp_path / f"{name}.{form}").read_bytes())
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]


def test_a_form_that_cannot_be_drawn_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no known form") as raised:
        accuracy_over_time(rows(), tmp_path / "picture.gif")
    assert "png, pdf, svg" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_drawn_without_the_global_state_of_pyplot() -> None:
    assert "pyplot" not in Path(pictures.__file__).read_text()


def test_a_file_that_cannot_be_written_is_an_error_of_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        error_by_layer(made(), 15, 2, tmp_path / "file" / "errors.png")


# ----------------------------------------------------------------------------------- what is shown


def test_bars_stack_relative_errors_in_percent_and_dots_are_the_whole(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    table = made()
    error_by_layer(table, 1, 32, tmp_path / "errors.png")
    for axes, view in zip(drawn[0].axes, ("forced", "propagated"), strict=True):
        row = [table.error(layer, view, 1, 32) for layer in LAYERS]
        for bars, cause in zip(axes.containers, CAUSES, strict=False):
            heights = [100 * (getattr(item, cause).relative or 0) for item in row]
            assert [bar.get_height() for bar in bars] == pytest.approx(heights)
        top = [bar.get_y() for bar in axes.containers[1]]
        assert top == pytest.approx([bar.get_height() for bar in axes.containers[0]])
        wholes = [100 * (item.whole.relative or 0) for item in row]
        assert list(axes.lines[0].get_ydata()) == pytest.approx(wholes)
    assert [text.get_text() for text in drawn[0].axes[1].get_xticklabels()] == list(LAYERS)
    assert "mean square of their sum" in drawn[0].axes[1].get_xlabel()


def test_a_line_for_each_n_and_the_references_across(tmp_path: Path, drawn: list[Figure]) -> None:
    given = rows()
    accuracy_over_time([*given[::-1]], tmp_path / "accuracy.png")
    above, below = visible(drawn[0])
    *lines, ann, qann = above.lines
    for n, line, agreed in zip((1, 15), lines, below.lines, strict=True):
        wanted = [row for row in given if row.n == n]
        assert list(line.get_xdata()) == list(TIMES)
        assert list(line.get_ydata()) == [row.snn_accuracy for row in wanted]
        assert list(agreed.get_ydata()) == [100 * row.agreement for row in wanted]
    assert set(ann.get_ydata()) == {ROW.ann_accuracy}
    assert set(qann.get_ydata()) == {ROW.qann_accuracy}
    assert [text.get_text() for text in below.get_xticklabels()] == [str(T) for T in TIMES]
    assert below.get_xscale() == "log"
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.texts] == ["n = 1", "n = 15", "ANN", "QANN"]


def test_rows_without_an_ann_are_drawn_without_its_line(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    accuracy_over_time(rows(ann_accuracy=None), tmp_path / "accuracy.png")
    assert len(visible(drawn[0])[0].lines) == 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [1, 4, 5])
def test_each_kind_of_rows_has_two_panels_headed_by_what_differs(
    kinds: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    names = ["none", "max_balance", "gaussian", "percentile", "membrane"][:kinds]
    given = [row for name in names for row in rows(calibration=name)]
    accuracy_over_time(given, tmp_path / "accuracy.png")
    panels = visible(drawn[0])
    assert len(panels) == 2 * kinds
    titles = [axes.get_title() for axes in panels if axes.get_title()]
    words = ["uncalibrated", *(f"by {name}" for name in names[1:])]
    assert titles == (words if kinds > 1 else [])


def test_kinds_differ_in_more_than_n_and_t() -> None:
    assert list(kinds_of(rows())) == [""]
    both = [*rows(signed=True), *rows(signed=False, qat_noise="stochastic")]
    kinds = kinds_of(both)
    assert [set(title.split("\n")) for title in kinds] == [
        {"signed", "QAT noise none"},
        {"unsigned", "QAT noise stochastic"},
    ]
    assert [len(kind) for kind in kinds.values()] == [12, 12]


def test_the_steps_that_a_calibration_was_made_for_do_not_part_rows() -> None:
    given = [dataclasses.replace(row, calibrated_T=2 * row.T) for row in rows()]
    assert list(kinds_of([*given, *rows()])) == [""]


def test_the_subject_is_what_all_rows_share() -> None:
    assert subject(rows()) == "resnet20_cifar, cifar10_jpeg, 10,000 images, W4, L = 15, seed 0"
    mixed = [*rows(weight_bits=None), *rows(levels=3)]
    assert subject(mixed) == "resnet20_cifar, cifar10_jpeg, 10,000 images, seed 0"
    assert "float weights" in subject(rows(weight_bits=None))


@pytest.mark.slow
def test_histograms_show_shares_of_the_network_and_of_each_layer(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    table = made()
    histograms(table, 15, 2, tmp_path / "histograms.png")
    rates, residuals, below, _, bar = drawn[0].axes
    for axes, name in ((rates, "rate_counts"), (residuals, "residual_counts")):
        counts = getattr(table.rate("all layers", 15, 2), name)
        shares = [100 * count / sum(counts) for count in counts]
        assert [patch.get_height() for patch in axes.patches] == pytest.approx(shares)
    assert below.images[0].get_array().shape == (len(LAYERS), len(rates.patches))
    assert "%" in bar.get_ylabel()


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("draw", [error_by_layer, histograms])
def test_what_was_not_measured_is_not_drawn(
    draw: Callable[[ErrorTable, int, int, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    with pytest.raises(SpecError, match="n=15, T=3"):
        draw(made(), 15, 3, path)
    with pytest.raises(SpecError, match="no layers to draw"):
        draw(ErrorTable(0, (), (), ()), 15, 3, path)
    with pytest.raises(SpecError, match="no rows to draw"):
        accuracy_over_time([], path)
    assert not path.exists()


@pytest.mark.slow
def test_a_picture_of_a_stored_table_is_the_same(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(made().to_json()))
    error_by_layer(made(), 15, 2, tmp_path / "a.png")
    error_by_layer(ErrorTable.from_json(stored), 15, 2, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
