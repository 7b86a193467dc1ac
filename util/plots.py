"""Pictures of spectrograms, with the axes that the front end gives them."""

from itertools import cycle, islice

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

MASK_COLOUR = "0.82"
LABELLED_SHARE = 0.03  # of the time axis that a box has to span to have its label written on it
CLASS_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def reconstruction_figure(rows, caption):
    """Original, masked and reconstructed spectrograms, a sample a row, high frequency at the top.

    Args:
        rows: list of dicts: `title`, `original` and `reconstruction` (float [F, T]), `removed` (bool [F, T]), and
            `extent`, (first s, last s, lowest Hz, highest Hz) or None where the axes are not known.
        caption: a line under the pictures.

    Returns:
        A matplotlib Figure.
    """
    figure = Figure(figsize=(13, 3.6 * len(rows) + 0.5), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(rows), 3))
    for line, row in zip(axes, rows, strict=True):
        scale = _scale(row["original"])
        masked = np.ma.masked_array(row["original"], row["removed"])
        panels = (("original", row["original"]), ("masked", masked), ("reconstruction", row["reconstruction"]))
        for axis, (name, image) in zip(line, panels, strict=True):
            axis.set_facecolor(MASK_COLOUR)
            shown = _show(axis, image, row["extent"], cmap="viridis", **scale)
            axis.set_title(f"{name}: {row['title']}" if name == "original" else name, fontsize=9)
        figure.colorbar(shown, ax=line[2], label="standard deviations")
    figure.supxlabel(caption, fontsize=9)
    return figure


def scene_sheet(rows, class_names):
    """Labelled spectrograms, each beside its mask, two samples a row, high frequency at the top.

    Args:
        rows: list of dicts: `title`, `image` (float [F, T]), `mask` (uint8 [F, T]), `extent` as in `reconstruction_figure`.
        class_names: names of the mask's values; the first is drawn as background.

    Returns:
        A matplotlib Figure.
    """
    lines = -(-len(rows) // 2)
    figure = Figure(figsize=(17, 3.3 * lines + 0.4), layout="constrained")
    axes = np.atleast_2d(figure.subplots(lines, 4)).reshape(-1, 2)
    for pair in axes[len(rows) :]:
        for axis in pair:
            axis.set_axis_off()
    colours = _class_colours(class_names)
    for (left, right), row in zip(axes, rows, strict=False):
        _show(left, row["image"], row["extent"], cmap="viridis", **_scale(row["image"]))
        left.set_title(row["title"], fontsize=9)
        _show(right, row["mask"], row["extent"], cmap=colours, vmin=0, vmax=len(class_names) - 1)
        present = [class_names[value] for value in np.unique(row["mask"]) if value] or [class_names[0]]
        right.set_title(", ".join(present), fontsize=9)
    _class_legend(figure, colours, class_names)
    return figure


def prediction_sheet(rows, class_names, caption):
    """Spectrogram, truth and prediction, a sample a row.

    Args:
        rows: list of dicts: `title`, `image` (float [F, T]), `target` and `prediction` (class ids [F, T]), `extent` as in
            `reconstruction_figure`.

    Returns:
        A matplotlib Figure.
    """
    figure = Figure(figsize=(13, 3 * len(rows) + 0.6), layout="constrained")
    colours = _class_colours(class_names)
    for line, row in zip(np.atleast_2d(figure.subplots(len(rows), 3)), rows, strict=True):
        _show(line[0], row["image"], row["extent"], cmap="viridis", **_scale(row["image"]))
        line[0].set_title(row["title"], fontsize=9)
        for axis, name in zip(line[1:], ("target", "prediction"), strict=True):
            _show(axis, row[name], row["extent"], cmap=colours, vmin=0, vmax=len(class_names) - 1)
            axis.set_title("truth" if name == "target" else name, fontsize=9)
    _class_legend(figure, colours, class_names)
    figure.suptitle(caption, fontsize=10)
    return figure


def labelled_figure(rows, class_names, caption):
    """Waterfalls with the carriers that were found in them, each beside its class map, high frequency at the top.

    Args:
        rows: list of dicts: `title`, `image` (dB [F, T]), `classes` (class ids [F, T]), `extent` as in
            `reconstruction_figure`, `carriers` (a list of `radio.carriers.Carrier` on the same axes).

    Returns:
        A matplotlib Figure.
    """
    figure = Figure(figsize=(15, 4.2 * len(rows) + 0.8), layout="constrained")
    colours = _class_colours(class_names)
    for line, row in zip(np.atleast_2d(figure.subplots(len(rows), 2, width_ratios=(3, 2))), rows, strict=True):
        shown = _show(line[0], row["image"], row["extent"], cmap="viridis", **_scale(row["image"]))
        figure.colorbar(shown, ax=line[0], label="dB of full scale a cell", pad=0.01)
        line[0].set_title(row["title"], fontsize=9)
        for carrier in row["carriers"]:
            colour = colours(class_names.index(carrier.label))
            corner = (carrier.start_s * 1e3, carrier.freq_lower_hz / 1e6)
            size = (carrier.duration_s * 1e3, carrier.bandwidth_hz / 1e6)
            line[0].add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.8))
            if row["extent"] and carrier.duration_s < LABELLED_SHARE * (row["extent"][1] - row["extent"][0]):
                continue  # hundreds of short bursts: their names would cover them, and take seconds to draw
            line[0].annotate(f"{carrier.label} {carrier.confidence:.2f}", (corner[0], carrier.freq_upper_hz / 1e6),
                             xytext=(3, -3), textcoords="offset points", va="top", fontsize=8, color="white",
                             bbox={"facecolor": colour, "edgecolor": "none", "pad": 1}, clip_on=True)  # fmt: skip
        _show(line[1], row["classes"], row["extent"], cmap=colours, vmin=0, vmax=len(class_names) - 1)
        line[1].set_title("likeliest class of each cell", fontsize=9)
    _class_legend(figure, colours, class_names)
    figure.suptitle(caption, fontsize=10)
    return figure


def confusion_figure(counts, class_names, caption):
    """A confusion matrix, rows what is true, as shares of each row with the counts beneath.

    Args:
        counts: integers [classes, classes].

    Returns:
        A matplotlib Figure.
    """
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.9 * len(class_names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        share = f"{100 * shares[row, column]:.1f} %" if counts[row].any() else "absent"
        axis.text(column, row, f"{share}\n{counts[row, column]:,}", ha="center", va="center", fontsize=7,
                  color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    places = range(len(class_names))
    axis.set_xticks(places, class_names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(places, class_names, fontsize=8)
    axis.set_xlabel("called", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    axis.set_title(caption, fontsize=9)
    return figure


def scatter_figure(points, groups, names, shares, caption):
    """Points of two principal components, coloured by group: the 20 largest groups, the rest grey.

    Args:
        points: float [N, 2]; groups: integers [N], places in `names`, or -1 for none.
        shares: of the variance, by component.

    Returns:
        A matplotlib Figure.
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
        axis.scatter(*points[here].T, color=colours(number), label=f"{names[group]} ({counts[group]})", **style)
    axis.set_xlabel(f"principal component 1 ({shares[0]:.1%} of the variance)")
    axis.set_ylabel(f"principal component 2 ({shares[1]:.1%} of the variance)")
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
    """Limits of the colour map that leave the odd strong cell aside."""
    low, high = np.percentile(image, (1, 99.7))
    return {"vmin": low, "vmax": max(high, low + 1e-6)}


def _show(axis, image, extent, **colours):
    """One spectrogram with its axes, as matplotlib's `imshow` gives it."""
    extent, labels = _axes_of(extent)
    shown = axis.imshow(image, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **colours)
    axis.set_xlabel(labels[0], fontsize=8)
    axis.set_ylabel(labels[1], fontsize=8)
    axis.ticklabel_format(useOffset=False)
    axis.tick_params(labelsize=8)
    return shown


def _axes_of(extent):
    if extent is None:
        return None, ("time (cells)", "frequency (cells)")
    first_s, last_s, low_hz, high_hz = extent
    return (first_s * 1e3, last_s * 1e3, low_hz / 1e6, high_hz / 1e6), ("time (ms)", "frequency (MHz)")
