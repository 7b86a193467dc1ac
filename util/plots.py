"""Pictures of spectrograms, with the axes that the front end gives them."""

import numpy as np
from matplotlib.figure import Figure

MASK_COLOUR = "0.82"


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
        low, high = np.percentile(row["original"], (1, 99.7))
        masked = np.ma.masked_array(row["original"], row["removed"])
        panels = (("original", row["original"]), ("masked", masked), ("reconstruction", row["reconstruction"]))
        for axis, (name, image) in zip(line, panels, strict=True):
            extent, labels = _axes_of(row["extent"])
            axis.set_facecolor(MASK_COLOUR)
            shown = axis.imshow(
                image, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=max(high, low + 1e-6), cmap="viridis",
                interpolation="nearest",
            )  # fmt: skip
            axis.set_title(f"{name}: {row['title']}" if name == "original" else name, fontsize=9)
            axis.set_xlabel(labels[0], fontsize=8)
            axis.set_ylabel(labels[1], fontsize=8)
            axis.ticklabel_format(useOffset=False)
            axis.tick_params(labelsize=8)
        figure.colorbar(shown, ax=line[2], label="standard deviations")
    figure.supxlabel(caption, fontsize=9)
    return figure


def _axes_of(extent):
    if extent is None:
        return None, ("time (cells)", "frequency (cells)")
    first_s, last_s, low_hz, high_hz = extent
    return (first_s * 1e3, last_s * 1e3, low_hz / 1e6, high_hz / 1e6), ("time (ms)", "frequency (MHz)")
