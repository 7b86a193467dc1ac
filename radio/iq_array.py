"""IQ in memory, read like a recording."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from radio.recordings import Recording
from radio.samples import Layout
from util.errors import UserError


@dataclass(frozen=True)
class IqArray(Recording):
    """A `Recording` of one channel in memory."""

    iq: np.ndarray = field(default=None, repr=False, compare=False)  # complex [samples]

    def read(self, start, count):
        start = self.checked_start(start, count)
        values = self.iq[start : start + count].astype(np.complex64)
        self.check_finite(values, start)
        return values


def recording_of(iq, sample_rate_hz, center_freq_hz=None):
    """The `IqArray` of complex [samples], a NumPy array or torch tensor; full scale is a magnitude of 1.

    Raises:
        UserError: another shape or type, or no positive sample rate.
    """
    iq = iq.detach().cpu().numpy() if hasattr(iq, "detach") else np.asarray(iq)
    if iq.ndim != 1 or iq.dtype.kind != "c":
        raise UserError(f"iq: expected a complex array [samples]; found {iq.dtype} {list(iq.shape)}")
    if not sample_rate_hz or not 0 < sample_rate_hz < float("inf"):
        raise UserError(f"sample_rate_hz: expected the array's sample rate in Hz; found {sample_rate_hz}")
    path, rate = Path("iq"), float(sample_rate_hz)
    layout = Layout(path, 0, np.dtype("f4"), components=2)
    return IqArray(path, "iq", rate, center_freq_hz, len(iq), "cf32_le", 0, layout, iq=iq)
