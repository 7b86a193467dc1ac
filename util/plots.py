"""matplotlib Figures: spectrograms on the axes of the front end, confusion matrices, scatter plots."""

from functools import wraps
from itertools import cycle, islice

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

matplotlib.rcParams["text.parse_math"] = False  # $ in a file name is no formula
MASK_COLOUR = "0.82"
LABELLED_SHARE = 0.03  # of the time axis; shorter boxes get no label
CLASS_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def printable(draw):
    """A function that draws a Figure, with texts that every font can take."""

    @wraps(draw)
    def drawn(*args):
        figure = draw(*args)
        for text in figure.findobj(Text):
            own = text.get_text()
            plain = "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in own)
            if plain != own:
                text.set_text(plain)
        return figure

    return drawn


@printable
def reconstruction_figure(rows, caption):
    """Original, masked and reconstructed spectrograms, one sample per row, high frequency at the top.

    Args:
        rows: list of dicts: `title`, `original` and `reconstruction` (float [F, T]), `removed` (bool [F, T]),
            and `extent`, (first s, last s, lowest Hz, highest Hz) or None if unknown.
        caption: a line under the pictures.
    """
    figure = Figure(figsize=(13, 3.6 * len(rows) + 0.5), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(rows), 3))
    for line, row in zip(axes, rows, strict=True):
        scale = _scale(row["original"])
        masked = np.ma.masked_array(row["original"], row["removed"])
        for axis, name in zip(line, ("original", "masked", "reconstruction"), strict=True):
            image = masked if name == "masked" else row[name]
            axis.set_facecolor(MASK_COLOUR)
            shown = _show(axis, image, row["extent"], cmap="viridis", **scale)
            axis.set_title(f"{name}: {row['title']}" if name == "original" else name, fontsize=9)
        figure.colorbar(shown, ax=line[2], label="standard deviations")
    figure.supxlabel(caption, fontsize=9)
    return figure


@printable
def scene_sheet(rows, class_names):
    """Spectrograms beside their masks, two samples per row, high frequency at the top.

    Args:
        rows: list of dicts: `title`, `image` (float [F, T]), `mask` (uint8 [F, T]), `extent` as in
            `reconstruction_figure`.
        class_names: names of the mask's values; the first is the background.
    """
    lines = -(-len(rows) // 2)
    figure = Figure(figsize=(17, 3.3 * lines + 0.4), layout="constrained")
    axes = np.atleast_2d(figure.subplots(lines, 4)).reshape(-1, 2)
    for axis in axes[len(rows) :].flat:
        axis.set_axis_off()
    colours = _class_colours(class_names)
    for (left, right), row in zip(axes, rows, strict=False):
        _show_spectrogram(left, row)
        present = [class_names[value] for value in np.unique(row["mask"]) if value] or [class_names[0]]
        _show_classes(right, row, "mask", colours, ", ".join(present))
    _class_legend(figure, colours, class_names)
    return figure


@printable
def prediction_sheet(rows, class_names, caption):
    """Spectrogram, truth and prediction, one sample per row.

    Args:
        rows: list of dicts: `title`, `image` (float [F, T]), `target` and `prediction` (class ids [F, T]),
            `extent` as in `reconstruction_figure`.
    """
    figure = Figure(figsize=(13, 3 * len(rows) + 0.6), layout="constrained")
    colours = _class_colours(class_names)
    for line, row in zip(np.atleast_2d(figure.subplots(len(rows), 3)), rows, strict=True):
        _show_spectrogram(line[0], row)
        _show_classes(line[1], row, "target", colours, "truth")
        _show_classes(line[2], row, "prediction", colours, "prediction")
    _class_legend(figure, colours, class_names)
    figure.suptitle(caption, fontsize=10)
    return figure


@printable
def labelled_figure(rows, class_names, caption):
    """Waterfalls with the carriers found, beside their class maps, high frequency at the top.

    White boxes are found, dashed ones annotated. A carrier with a cell shows its identity, another its
    confidence.

    Args:
        rows: list of dicts: `title`, `image` (dB [F, T]), `classes` (class ids [F, T]), `extent` as in
            `reconstruction_figure`, `carriers` and `true` (lists of `radio.carriers.Carrier` on the same
            axes; `true` may be missing).
    """
    height = 3.6 * len(rows) + 1.1  # inches; places are given, as a layout engine draws everything twice
    figure = Figure(figsize=(12, height))
    places = {"left": 0.06, "right": 0.985, "bottom": 0.85 / height, "top": 1 - 0.65 / height}
    widths = (60, 0.5, 1, 11, 42)  # waterfall, gap, colour bar, gap, class map
    grid = figure.add_gridspec(len(rows), 5, width_ratios=widths, wspace=0, hspace=0.3, **places)
    colours = _class_colours(class_names)
    for number, row in enumerate(rows):
        left, bar, right = (figure.add_subplot(grid[number, column]) for column in (0, 2, 4))
        figure.colorbar(_show_spectrogram(left, row), cax=bar)
        bar.set_title("dB", fontsize=8)
        bar.tick_params(labelsize=8)
        _show_classes(right, row, "classes", colours, "likeliest class of each cell")
        for axis in (left, right):
            axis.locator_params(nbins=6)  # text is what takes the most time
            _draw_boxes(axis, row["carriers"])
            _draw_boxes(axis, row.get("true") or (), (0, (4, 3)))
        for carrier in row["carriers"]:
            if row["extent"] and carrier.duration_s < LABELLED_SHARE * (row["extent"][1] - row["extent"][0]):
                continue  # labels would cover hundreds of short bursts, and take seconds to draw
            says = f"cell {carrier.cell.cell_id}" if carrier.confirmed else f"{carrier.confidence:.2f}"
            style = {"va": "top", "fontsize": 8, "color": "white", "xytext": (3, -3), "clip_on": True}
            style["bbox"] = {"facecolor": colours(class_names.index(carrier.label)), "pad": 1, "linewidth": 0}
            corner = (carrier.start_s * 1e3, carrier.freq_upper_hz / 1e6)
            left.annotate(f"{carrier.label} {says}", corner, textcoords="offset points", **style)
    patches = [Patch(color=colours(number), label=name) for number, name in enumerate(class_names)]
    figure.legend(handles=patches, loc="lower center", ncols=len(class_names), fontsize=9)
    figure.suptitle(caption, fontsize=10, y=1 - 0.15 / height)
    return figure


def _draw_boxes(axis, carriers, dashes="solid"):
    """White outlines on dark ones, which show on every colour."""
    boxes = [
        ((low, bottom), (high, bottom), (high, top), (low, top))
        for one in carriers
        for low, high in [(one.start_s * 1e3, one.end_s * 1e3)]
        for bottom, top in [(one.freq_lower_hz / 1e6, one.freq_upper_hz / 1e6)]
    ]
    for colour, width in (("black", 3.0), ("white", 1.4)):
        style = {"facecolors": "none", "edgecolors": colour, "linewidths": width}
        style["linestyles"] = dashes if colour == "white" else "solid"
        axis.add_collection(PolyCollection(boxes, **style), autolim=False)


@printable
def confusion_figure(counts, class_names, caption):
    """A confusion matrix: counts [classes, classes], rows are true classes, with their shares of the row."""
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.9 * len(class_names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        share = f"{100 * shares[row, column]:.1f} %" if counts[row].any() else "absent"
        style = {"ha": "center", "va": "center", "fontsize": 7}
        style["color"] = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{share}\n{counts[row, column]:,}", **style)
    places = range(len(class_names))
    axis.set_xticks(places, class_names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(places, class_names, fontsize=8)
    axis.set_xlabel("called", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    axis.set_title(caption, fontsize=9)
    return figure


@printable
def scatter_figure(points, groups, names, shares, caption):
    """Points of two principal components; the 20 largest groups are coloured, the rest grey.

    Args:
        points: float [N, 2]; groups: integers [N], places in `names`, or -1 for none.
        shares: of the variance, by component.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    axis = figure.subplots()
    counts = np.bincount(groups[groups >= 0], minlength=len(names))
    shown = sorted(np.argsort(-counts, kind="stable")[:20].tolist())
    rest = ~np.isin(groups, shown)
    colours = colormaps["tab10" if len(shown) <= 10 else "tab20"]
    style = {"s": 14, "alpha": 0.7, "linewidths": 0}
    if rest.any():
        axis.scatter(*points[rest].T, color=MASK_COLOUR, label=f"others ({rest.sum()})", **style)
    for number, group in enumerate(shown):
        here = groups == group
        label = f"{names[group]} ({counts[group]})"
        axis.scatter(*points[here].T, color=colours(number), label=label, **style)
    for number, label in enumerate((axis.set_xlabel, axis.set_ylabel)):
        label(f"principal component {number + 1} ({shares[number]:.1%} of the variance)")
    axis.set_title(caption, fontsize=10)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, markerscale=2)
    return figure


def _class_colours(class_names):
    return ListedColormap([MASK_COLOUR, *islice(cycle(CLASS_COLOURS), len(class_names) - 1)])


def _class_legend(figure, colours, class_names):
    patches = [Patch(color=colours(number), label=name) for number, name in enumerate(class_names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(class_names), fontsize=9)


def _scale(image):
    """Limits of the colour map, without a few extreme cells."""
    inside = image[np.isfinite(image)]  # cells outside of a recording are infinite
    low, high = np.percentile(inside, (1, 99.7)) if inside.size else (0, 1)
    return {"vmin": low, "vmax": max(high, low + 1e-6)}


def _show_spectrogram(axis, row):
    axis.set_title(row["title"], fontsize=9)
    return _show(axis, row["image"], row["extent"], cmap="viridis", **_scale(row["image"]))


def _show_classes(axis, row, name, colours, title):
    axis.set_title(title, fontsize=9)
    inside = np.ma.masked_where(np.isneginf(row["image"]), row[name])
    _show(axis, inside, row["extent"], cmap=colours, vmin=0, vmax=colours.N - 1)


def _show(axis, image, extent, **colours):
    """Draw an image on the axes of `extent`, as in `reconstruction_figure`; what `imshow` returns."""
    labels = ("time (cells)", "frequency (cells)")
    if extent is not None:
        first_s, last_s, low_hz, high_hz = extent
        extent = (first_s * 1e3, last_s * 1e3, low_hz / 1e6, high_hz / 1e6)
        labels = ("time (ms)", "frequency (MHz)")
    style = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    shown = axis.imshow(image, extent=extent, **style, **colours)
    axis.set_xlabel(labels[0], fontsize=8)
    axis.set_ylabel(labels[1], fontsize=8)
    axis.ticklabel_format(useOffset=False)
    axis.tick_params(labelsize=8)
    return shown
