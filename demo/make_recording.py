"""Make a recording to try things on: two seconds of a busy 7.68 MHz band, as SigMF.

    python demo/make_recording.py FOLDER

In it: an OFDM carrier (15 kHz spacing, 14 symbols a millisecond, groups of 48 subcarriers that come and go, pilots on
every fourth symbol), a frequency hopper, chirps, and the receiver's noise. It is there to be looked at and trained on for a
minute; it claims no standard.
"""

import argparse
from pathlib import Path

import numpy as np
import sigmf

SAMPLE_RATE_HZ = 7.68e6
CENTER_FREQ_HZ = 2.45e9
DURATION_MS = 2000
N_FFT = 512  # subcarriers 15 kHz apart
SLOT_SAMPLES = 7680  # 1 ms: 14 symbols with a cyclic prefix of 36, the first one's 8 longer


def ofdm_carrier(rng, first_subcarrier, num_groups=5):
    """An OFDM carrier whose groups are busy for about 20 ms and idle for about as long: complex64 [samples]."""
    changes = rng.random((DURATION_MS, num_groups)) < 1 / 20
    busy = (rng.integers(0, 2, num_groups) + np.cumsum(changes, axis=0)) % 2  # (slots, groups)
    amplitude = np.repeat(np.repeat(busy[:, None, :], 14, axis=1), 48, axis=2).astype(np.float32)
    amplitude[:, ::4, ::3] = 1.4  # pilots

    grid = np.zeros((DURATION_MS, 14, N_FFT), np.complex64)
    points = rng.integers(0, 4, amplitude.shape)
    grid[:, :, : num_groups * 48] = amplitude * np.exp(1j * np.pi * (points / 2 + 0.25)).astype(np.complex64)
    symbols = np.fft.ifft(np.roll(grid, first_subcarrier, axis=2), norm="ortho").astype(np.complex64)
    symbols = np.concatenate([symbols[:, :, -36:], symbols], axis=2).reshape(DURATION_MS, -1)
    return np.concatenate([symbols[:, N_FFT - 8 : N_FFT], symbols], axis=1).reshape(-1)


def hopper(rng, low_hz, channel_hz, channels=8, dwell_ms=5):
    """Frequency-modulated bits on a channel that changes every `dwell_ms`: complex64 [samples]."""
    hops = low_hz + channel_hz * rng.integers(0, channels, DURATION_MS // dwell_ms)
    bits = np.repeat(rng.choice([-1, 1], DURATION_MS * 50), SLOT_SAMPLES // 50 + 1)[: DURATION_MS * SLOT_SAMPLES]
    frequency_hz = np.repeat(hops, dwell_ms * SLOT_SAMPLES) + 20e3 * bits
    return np.exp(2j * np.pi * np.cumsum(frequency_hz / SAMPLE_RATE_HZ)).astype(np.complex64)


def chirps(low_hz, high_hz, period_ms=4):
    """A sweep from the lower to the upper edge, three of every four periods: complex64 [samples]."""
    samples = np.arange(DURATION_MS * SLOT_SAMPLES)
    position = samples / (period_ms * SLOT_SAMPLES)
    frequency_hz = low_hz + (high_hz - low_hz) * (position % 1)
    on = position % 4 < 3
    return (on * np.exp(2j * np.pi * np.cumsum(frequency_hz / SAMPLE_RATE_HZ))).astype(np.complex64)


def main(folder, seed):
    rng = np.random.default_rng(seed)
    iq = ofdm_carrier(rng, first_subcarrier=-130) + 0.5 * hopper(rng, 2.0e6, 180e3) + 0.3 * chirps(-3.5e6, -2.5e6)
    noise = rng.standard_normal((len(iq), 2), np.float32) * 0.05
    values = np.stack([iq.real, iq.imag], axis=1) + noise
    values *= 0.5 / np.abs(values).max()

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data_file = folder / "demo.sigmf-data"
    np.round(values * 2**15).astype("<i2").tofile(data_file)
    metadata = sigmf.SigMFFile(
        data_file=data_file,
        global_info={
            sigmf.DATATYPE_KEY: "ci16_le",
            sigmf.SAMPLE_RATE_KEY: SAMPLE_RATE_HZ,
            sigmf.DESCRIPTION_KEY: "made by radio-mae's demo/make_recording.py",
        },
    )
    metadata.add_capture(0, metadata={sigmf.FREQUENCY_KEY: CENTER_FREQ_HZ})
    metadata.tofile(folder / "demo.sigmf-meta", overwrite=True)
    print(f"wrote {folder / 'demo.sigmf-meta'}: {DURATION_MS} ms at {SAMPLE_RATE_HZ / 1e6} Msps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a recording to try things on.")
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.folder, args.seed)
