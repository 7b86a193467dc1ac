"""A scene: carriers and distractors in one observed band, through channels and a receiver, with their labels.

A scene is drawn on the host, as plain parameters that depend on the configuration, the seed and the scene's
number alone. `Scene.carriers()` says what is in it, `render` makes its IQ on any device; both read the same
parameters.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch

from radio.carriers import LTE, NR
from radio.rng import Stream
from radio.scenes import channel, distractors, labels, lte, nr, nr_grid, ofdm, receiver, traffic

# Purposes of a scene's streams; those of transmissions and distractors are numbered on from these.
PARAMETERS, RECEIVER, CAPTURE, FIRST_TRANSMISSION, FIRST_DISTRACTOR = 0, 1, 2, 100, 500

_ENERGY_SYMBOLS = 256  # whose energies are summed at once


@dataclass(frozen=True)
class Transmission:
    """A carrier as it is sent and received.

    Attributes:
        cell: what is sent: an `LteCell` or `NrCarrier`.
        traffic: how its PDSCH is scheduled.
        offset_hz: where its centre is observed, from the centre of the band; errors of the receiver's clock
            included.
        first_sample_s: time of the scene's first sample on the carrier's clock, from the start of its frame
            0.
        first_slot, num_slots: when it sends (slots of NR, subframes of LTE, from frame 0).
        snr_db: mean power of its occupied resource elements over the noise in them, as received.
        fading: the channel.
        backoff_db: of the mean power to the amplifier's saturation; None for a linear one.
        edge_s: length of the windowed edges of symbols.
    """

    cell: lte.LteCell | nr.NrCarrier
    traffic: traffic.Traffic
    offset_hz: float
    first_sample_s: float
    first_slot: int
    num_slots: int
    snr_db: float
    fading: channel.Fading
    backoff_db: float | None
    edge_s: float

    @property
    def label(self):
        return LTE if isinstance(self.cell, lte.LteCell) else NR

    @property
    def slot_s(self):
        return _slot_s(self.cell)

    def span_s(self):
        """(first, last) time at which it sends, from the scene's first sample on the carrier's clock."""
        first = self.first_slot * self.slot_s - self.first_sample_s
        return first, first + self.num_slots * self.slot_s


@dataclass(frozen=True)
class Scene:
    """Everything that was drawn. `parameters()` gives it as plain values, for a line of metadata.

    is_real: samples are real. Their spectrum is its own mirror image; labels are in its upper half.
    padding: zeros before and after the recording, in samples.
    """

    stream: Stream
    sample_rate_hz: float
    num_samples: int
    center_freq_hz: float
    clock_error_ppm: float
    transmissions: tuple
    distractors: tuple
    receiver: receiver.Receiver
    is_real: bool = False
    padding: tuple = (0, 0)

    @property
    def duration_s(self):
        return self.num_samples / self.sample_rate_hz

    @property
    def recorded_s(self):
        """(start, end) of what was recorded, between zeros."""
        before, after = self.padding
        return before / self.sample_rate_hz, (self.num_samples - after) / self.sample_rate_hz

    @property
    def interval_s(self):
        """Time from sample to sample on the carriers' clocks."""
        return (1 + self.clock_error_ppm * 1e-6) / self.sample_rate_hz

    def parameters(self):
        drawn = dataclasses.asdict(self)
        for plain, transmission in zip(drawn["transmissions"], self.transmissions, strict=True):
            plain["technology"] = transmission.label
        return drawn

    def schedule(self, number):
        """(bits, power_db) of a transmission; see `radio.scenes.traffic.schedule`."""
        transmission = self.transmissions[number]
        rng = self.stream.child(FIRST_TRANSMISSION + number).child(0).generator()
        return traffic.schedule(
            transmission.traffic,
            transmission.first_slot,
            transmission.num_slots,
            transmission.cell.num_rb,
            rng,
        )

    def distractor_stream(self, number):
        return self.stream.child(FIRST_DISTRACTOR + number)

    def carriers(self):
        """The labels; see `radio.scenes.labels.carriers`."""
        return labels.carriers(self)


def _slot_s(cell):
    return 1e-3 if isinstance(cell, lte.LteCell) else 15e-3 / cell.spacing_khz


# Rendering


def render(scene, device="cpu"):
    """The IQ of a scene: complex64 [samples] on the device.

    In units of the receiver's thermal noise where it has no quantiser (noise has unit power per sample), else
    of full scale.
    """
    iq = torch.zeros(scene.num_samples, dtype=torch.complex64, device=device)
    for number in range(len(scene.transmissions)):
        _transmit(iq, scene, number)
    for number, distractor in enumerate(scene.distractors):
        distractors.add(iq, distractor, scene.sample_rate_hz, scene.distractor_stream(number))
    if scene.is_real:  # half of the power goes to the mirror image, as half of the noise's
        iq = (iq.real * math.sqrt(2)).to(torch.complex64)
    iq = receiver.receive(iq, scene.receiver, scene.sample_rate_hz, scene.stream.child(RECEIVER))
    if scene.is_real:
        iq.imag.zero_()
    before, after = scene.padding
    iq[:before] = 0
    iq[scene.num_samples - after :] = 0
    return iq


def _transmit(iq, scene, number):
    """Add a transmission."""
    transmission = scene.transmissions[number]
    stream = scene.stream.child(FIRST_TRANSMISSION + number).child(1)
    bits, power_db = scene.schedule(number)
    if transmission.label == LTE:
        grids = [
            lte.resource_grid(transmission.cell, transmission.first_slot, bits, stream, iq.device, power_db)
        ]
    else:
        grids = nr_grid.resource_grids(
            transmission.cell, transmission.first_slot, bits, stream, iq.device, power_db
        )
        error_hz = (
            scene.clock_error_ppm * 1e-6 * scene.center_freq_hz
        )  # of the receiver, a part of the offset
        carrier_hz = scene.center_freq_hz + transmission.offset_hz - error_hz
        for grid in grids:
            symbols = (grid.spacing_hz, grid.first_symbol, grid.values.shape[1])
            grid.values *= ofdm.carrier_phases(*symbols, carrier_hz).to(iq.device)[:, None]

    # channel and amplifier, then a scale that makes the SNR of what is observed of the occupied resource
    # elements
    energy, elements = 0.0, 0
    for grid in grids:
        rows, columns = _observed(grid, transmission, scene)
        if rows.stop == rows.start or columns.stop == columns.start:
            continue
        first = _propagate(grid, transmission, scene)
        seen, occupied = (
            grid.values[0, rows, columns.start - first : columns.stop - first],
            grid.occupied[rows, columns],
        )
        energy += float(_energy(seen, occupied)) / (grid.spacing_hz * scene.interval_s)
        elements += int(occupied.sum())
    if not energy:
        return
    gain = math.sqrt(10 ** (transmission.snr_db / 10) * elements / energy)

    for grid in grids:
        ofdm.modulate(
            iq,
            grid.values[0].mul_(gain),
            grid,
            transmission.offset_hz,
            scene.interval_s,
            transmission.first_sample_s,
            transmission.edge_s,
        )


def _energy(values, occupied):
    """Sum of |values|² where they are occupied: float64, on the device; in blocks of symbols, to need little
    memory.
    """
    blocks = zip(values.split(_ENERGY_SYMBOLS), occupied.split(_ENERGY_SYMBOLS), strict=True)
    sums = [
        (torch.view_as_real(part).square().sum(dim=2) * sent).sum(dtype=torch.float64)
        for part, sent in blocks
    ]
    return torch.stack(sums).sum()


def _propagate(grid, transmission, scene):
    """Put what arrives into a grid in place of what is sent: one port. An amplifier's regrowth makes it
    wider, as far as the band goes; `occupied` stays that of the carrier.

    Returns:
        the subcarrier of the carrier that has become the first of the grid's values.
    """
    first, width = 0, grid.values.shape[2]
    if transmission.backoff_db is not None and bool(grid.occupied.any()):
        inside = _in_band(
            grid.lowest_hz - width * grid.spacing_hz, 3 * width, grid.spacing_hz, transmission, scene
        )
        grid.values = channel.amplify(grid.values, transmission.backoff_db, keep=inside)
        first = inside.start - width
        grid.lowest_hz += first * grid.spacing_hz
    ports, symbols, subcarriers = grid.values.shape
    symbol_s = 1e-3 / 14 * 15e3 / grid.spacing_hz
    gains, delays_s = channel.taps(transmission.fading, ports, symbols, symbol_s)
    frequencies_hz = grid.lowest_hz + grid.spacing_hz * torch.arange(subcarriers, dtype=torch.float64)
    grid.values = channel.propagate(grid.values, frequencies_hz, gains, delays_s, out=grid.values[0])[None]
    return first


def _observed(grid, transmission, scene):
    """Slices of a grid's symbols and subcarriers that lie in the scene, at least in part."""
    starts, _ = ofdm.symbol_times(grid.spacing_hz, grid.first_symbol, grid.occupied.shape[0])
    starts_s = starts.double() / ofdm.TC_PER_S - transmission.first_sample_s
    rows = (starts_s[1:] > scene.interval_s) & (starts_s[:-1] < scene.duration_s - scene.interval_s)
    return _slice(rows), _in_band(
        grid.lowest_hz, grid.occupied.shape[1], grid.spacing_hz, transmission, scene
    )


def _in_band(lowest_hz, count, spacing_hz, transmission, scene):
    """The slice of subcarriers that the band holds."""
    frequencies_hz = (
        transmission.offset_hz + lowest_hz + spacing_hz * torch.arange(count, dtype=torch.float64)
    )
    return _slice(frequencies_hz.abs() * scene.interval_s < 0.5)


def _slice(inside):
    """The slice from the first true value to the last."""
    places = torch.nonzero(inside).flatten()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
