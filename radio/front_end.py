"""The front ends by kind: `band`, the whole band of a recording in an image, and `grid`, images of one scale."""

from radio.grid import Grid
from radio.spectrogram import Spectrogram

FRONT_ENDS = {"band": Spectrogram, "grid": Grid}


def takes_iq(settings):
    """Whether these settings, a dict or None, are of a front end for IQ: not of images, CSI or rows."""
    return bool(settings) and ("n_fft" in settings or settings.get("kind") in (*FRONT_ENDS,))


def kind_of(settings):
    """The kind of a front end for IQ by its settings; those of `band` have no kind."""
    return settings.get("kind", "band")


def from_settings(settings):
    """The front end of `settings()`. Raises TypeError or ValueError for unknown or impossible parameters."""
    try:
        return FRONT_ENDS[kind_of(settings)](**settings)
    except (KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"expected settings of a front end: {error}") from error
