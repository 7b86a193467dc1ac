"""matplotlib Figures: spectrograms on the axes of the front end, confusion matrices, scatter plots."""

from itertools import cycle, islice

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

MASK_COLOUR = "0.82"
LABELLED_SHARE = 0.03  # of the time axis; shorter boxes get no label
CLASS_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


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


def labelled_figure(rows, class_names, caption):
    """Waterfalls with the carriers found, beside their class maps, high frequency at the top.

    Args:
        rows: list of dicts: `title`, `image` (dB [F, T]), `classes` (class ids [F, T]), `extent` as in
            `reconstruction_figure`, `carriers` (a list of `radio.carriers.Carrier` on the same axes).
    """
    figure = Figure(figsize=(15, 4.2 * len(rows) + 0.8), layout="constrained")
    colours = _class_colours(class_names)
    axes = np.atleast_2d(figure.subplots(len(rows), 2, width_ratios=(3, 2)))
    style = {"xytext": (3, -3), "textcoords": "offset points", "va": "top", "fontsize": 8, "color": "white"}
    for (left, right), row in zip(axes, rows, strict=True):
        figure.colorbar(_show_spectrogram(left, row), ax=left, label="dB of full scale a cell", pad=0.01)
        for carrier in row["carriers"]:
            colour = colours(class_names.index(carrier.label))
            corner = (carrier.start_s * 1e3, carrier.freq_lower_hz / 1e6)
            size = (carrier.duration_s * 1e3, carrier.bandwidth_hz / 1e6)
            left.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.8))
            if row["extent"] and carrier.duration_s < LABELLED_SHARE * (row["extent"][1] - row["extent"][0]):
                continue  # labels would cover hundreds of short bursts, and take seconds to draw
            box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
            top = (corner[0], carrier.freq_upper_hz / 1e6)
            left.annotate(f"{carrier.label} {carrier.confidence:.2f}", top, bbox=box, clip_on=True, **style)
        _show_classes(right, row, "classes", colours, "likeliest class of each cell")
    _class_legend(figure, colours, class_names)
    figure.suptitle(caption, fontsize=10)
    return figure


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
