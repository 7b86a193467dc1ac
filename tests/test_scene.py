import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from radio.carriers import CLASS_NAMES, OTHER, paint
from radio.rng import TRAINING, VALIDATION, Stream
from radio.scenes import lte, nr, nr_grid, ofdm
from radio.scenes.channel import Fading
from radio.scenes.config import CLASSIC, PRESETS, WILD, SceneConfig, with_settings
from radio.scenes.draw import draw
from radio.scenes.receiver import Receiver
from radio.scenes.scene import FIRST_TRANSMISSION, Scene, Transmission, render
from radio.scenes.traffic import Traffic
from radio.spectrogram import Spectrogram
from util.errors import UserError

FULL = Traffic(users=1, busy=1.0, filled=1.0, dwell_slots=50.0)
SILENT = Receiver(noise=False)


def one_carrier(
    cell,
    sample_rate_hz,
    offset_hz=0.0,
    duration_s=0.01,
    snr_db=20.0,
    traffic=FULL,
    fading=None,
    receiver=SILENT,
    first_sample_s=0.02,
    edge_s=1e-6,
):
    slot_s = 1e-3 if isinstance(cell, lte.LteCell) else 15e-3 / cell.spacing_khz
    transmission = Transmission(
        cell,
        traffic,
        offset_hz,
        first_sample_s,
        int(first_sample_s / slot_s),
        round(duration_s / slot_s) + 2,
        snr_db,
        fading or Fading("none"),
        None,
        edge_s,
    )
    num_samples = round(duration_s * sample_rate_hz)
    return Scene(Stream(0), sample_rate_hz, num_samples, 2e9, 0.0, (transmission,), (), receiver)


def scenes(config, count, first=0):
    return [draw(config, Stream(0, TRAINING, index)) for index in range(first, first + count)]


# Labels against the energy


def spectrum(iq, sample_rate_hz):
    """(frequency ascending, power) of a stretch, windowed so that sidelobes of the FFT are none."""
    power = np.abs(np.fft.fftshift(np.fft.fft(iq.numpy() * np.hanning(len(iq))))) ** 2
    return np.fft.fftshift(np.fft.fftfreq(len(iq), 1 / sample_rate_hz)), power


RATES = {
    1.4: 1.92e6,
    3: 10e6,
    5: 7.68e6,
    10: 20e6,
    15: 19.2e6,
    20: 40e6,
    25: 46.08e6,
    30: 61.44e6,
    40: 61.44e6,
}


def cells():
    for width, num_rb in lte.RESOURCE_BLOCKS.items():
        yield pytest.param(lte.LteCell(num_rb, cell_id=7, control_symbols=2), width, id=f"LTE-{width}")
    for spacing, widths in nr.RESOURCE_BLOCKS.items():
        for width, num_rb in widths.items():
            case = "A" if spacing == 15 or num_rb * spacing < 20 * 30 else "C"
            yield pytest.param(
                nr.NrCarrier(spacing, num_rb, cell_id=7, ssb_case=case), width, id=f"NR-{spacing}-{width}"
            )


@pytest.mark.parametrize(("cell", "width"), list(cells()))
@pytest.mark.parametrize("side", [-1, 1])
def test_a_carrier_lies_in_its_label(cell, width, side):
    """At the top and at the bottom of the band: 99 % of the energy, and edges that are right to a bin of 4
    subcarriers.
    """
    rate = RATES.get(width, 122.88e6)
    offset_hz = side * (0.49 * rate - width * 0.5e6) + 1234.5
    scene = one_carrier(cell, rate, offset_hz, duration_s=0.004)
    [carrier] = scene.carriers()
    frequency, power = spectrum(render(scene), rate)
    inside = (frequency > carrier.freq_lower_hz) & (frequency < carrier.freq_upper_hz)
    assert power[inside].sum() > 0.99 * power.sum()

    bin_hz = 60e3
    bins = np.round(frequency / bin_hz).astype(int)
    level = np.bincount(bins - bins[0], power) / np.bincount(bins - bins[0])
    strong = np.flatnonzero(level > 0.3 * np.median(level[level > 0.1 * level.max()])) + bins[0]
    assert abs(strong[0] * bin_hz - carrier.freq_lower_hz) <= 1.5 * bin_hz
    assert abs(strong[-1] * bin_hz - carrier.freq_upper_hz) <= 1.5 * bin_hz


@pytest.mark.parametrize("cell", [lte.LteCell(100), nr.NrCarrier(30, 51)])
@pytest.mark.parametrize("offset_hz", [-8e6, 0.0, 9e6])
def test_the_image_is_bright_where_the_mask_is(cell, offset_hz):
    """Nothing mirrored, in rows of the front end, for carriers cut by the band too."""
    scene = one_carrier(cell, 23.04e6, offset_hz, receiver=Receiver())
    front_end = Spectrogram(256, 0.01, (64, 64), "none")
    image = front_end(render(scene)[None])[0, 0].numpy()
    mask = paint(scene.carriers(), front_end, scene.sample_rate_hz, scene.num_samples)
    label = CLASS_NAMES.index(scene.transmissions[0].label)
    assert set(np.unique(mask)) == {0, label}
    bright = image.mean(axis=1) > (image.mean(axis=1).max() + image.mean(axis=1).min()) / 2
    assert (bright != (mask[:, 32] == label)).sum() <= 2


def test_a_carrier_that_is_switched_is_labelled_while_it_is_on():
    cell = lte.LteCell(25)
    scene = one_carrier(cell, 7.68e6, traffic=FULL)
    switched = dataclasses.replace(scene.transmissions[0], first_slot=23, num_slots=4)
    scene = dataclasses.replace(scene, transmissions=(switched,))
    [carrier] = scene.carriers()
    assert carrier.start_s == pytest.approx(0.003)
    assert carrier.duration_s == pytest.approx(0.004)
    power = np.abs(render(scene).numpy()) ** 2
    time = np.arange(scene.num_samples) / scene.sample_rate_hz
    inside = (time >= carrier.start_s - 1e-6) & (time < carrier.start_s + carrier.duration_s + 1e-6)
    assert power[~inside].max() == 0
    assert power[inside].mean() > 1


def test_an_idle_nr_carrier_is_as_wide_as_its_ssb():
    cell = nr.NrCarrier(30, 106, ssb_offset_hz=9e6, ssb_beams=(0, 3))
    scene = one_carrier(cell, 61.44e6, traffic=Traffic(users=0), duration_s=0.01)
    [carrier] = scene.carriers()
    assert carrier.freq_upper_hz - carrier.freq_lower_hz == pytest.approx(7.2e6)
    assert (carrier.freq_upper_hz + carrier.freq_lower_hz) / 2 == pytest.approx(9e6, abs=15e3)
    assert (
        one_carrier(dataclasses.replace(cell, ssb_beams=()), 61.44e6, traffic=Traffic(users=0)).carriers()
        == []
    )


# Signal-to-noise ratio


def elements(iq, sample_rate_hz, grid, first_sample_s):
    """Demodulate: complex [symbols, subcarriers] by an FFT in the middle of each cyclic prefix, an
    independent receiver.
    """
    size = round(sample_rate_hz / grid.spacing_hz)
    mu = round(np.log2(grid.spacing_hz / 15e3))
    rows, begin = [], 0.0
    places = np.arange(grid.occupied.shape[1]) + round(grid.lowest_hz / grid.spacing_hz)
    for number in range(grid.first_symbol + grid.occupied.shape[0]):
        prefix = 144 / 30.72e6 / 2**mu + (16 / 30.72e6 if number % (7 * 2**mu) == 0 else 0)
        if number >= grid.first_symbol:
            start = round((begin + prefix / 2 - first_sample_s) * sample_rate_hz)
            inside = start >= 0 and start + size <= len(iq)
            symbol = np.fft.fft(iq[start : start + size].numpy()) / size if inside else np.full(size, np.nan)
            rows.append(symbol[places])
        begin += prefix + 1 / grid.spacing_hz
    return np.array(rows)


@pytest.mark.parametrize("snr_db", [-5, 10, 40])
@pytest.mark.parametrize(
    "fading", [Fading("none"), Fading("flat", 0, 100, 1), Fading("TDL-C", 300e-9, 30, 5)]
)
@pytest.mark.parametrize(
    "cell",
    [
        lte.LteCell(50, duplex="TDD", num_ports=2),
        lte.LteCell(25, num_ports=4, control_load=0.2),
        nr.NrCarrier(30, 51, tdd_pattern="DDDSU"),
        nr.NrCarrier(15, 52, ssb_case="A"),
    ],
)
def test_the_snr_is_that_of_the_occupied_resource_elements(cell, fading, snr_db):
    rate = 30.72e6
    light = Traffic(users=2, busy=0.4, filled=0.3)
    scene = one_carrier(
        cell,
        rate,
        snr_db=snr_db,
        traffic=light,
        fading=fading,
        receiver=Receiver(),
        first_sample_s=0.02,
        edge_s=0.0,
    )
    transmission = scene.transmissions[0]
    bits, _ = scene.schedule(0)
    arguments = (cell, transmission.first_slot, bits, scene.stream.child(FIRST_TRANSMISSION).child(1))
    grids = (
        [lte.resource_grid(*arguments)]
        if isinstance(cell, lte.LteCell)
        else nr_grid.resource_grids(*arguments)
    )
    noise, power = grids[0].spacing_hz / rate, []
    iq = render(scene)
    for grid in grids:
        noisy = elements(iq, rate, grid, 0.02)
        seen = np.isfinite(noisy)
        power.append(np.abs(noisy[grid.occupied.numpy() & seen]) ** 2)
    free = ~grids[0].occupied.numpy().any(axis=1, keepdims=True) & seen
    if len(grids) == 1 and free.any():
        assert np.mean(np.abs(noisy[free]) ** 2) == pytest.approx(noise, rel=0.05)
    signal = np.mean(np.concatenate(power)) - noise
    assert 10 * np.log10(signal / noise) == pytest.approx(snr_db, abs=0.5)


@pytest.mark.parametrize(("spacing_khz", "num_rb", "case"), [(15, 52, "A"), (30, 51, "C"), (60, 24, "A")])
def test_nr_symbols_carry_the_phase_of_their_carrier(spacing_khz, num_rb, case):
    """TS 38.211 5.4: exp(j 2π f0 (t - t_start,l - N_CP,l T_c)), against a carrier that goes on from symbol to
    symbol. Symbols of a subframe by hand: 144 samples of prefix at 2048 points, 16 T_s more twice a subframe.
    """
    rate, offset_hz, center_hz, ppm = 30.72e6, 1.23e6, 3.6e9 + 123.0, 7.0
    cell, mu = nr.NrCarrier(spacing_khz, num_rb, ssb_case=case), {15: 0, 30: 1, 60: 2}[spacing_khz]
    error_hz = ppm * 1e-6 * center_hz
    baseband = dataclasses.replace(
        one_carrier(cell, rate, offset_hz, 0.003, edge_s=0.0), center_freq_hz=-offset_hz
    )
    [transmission] = baseband.transmissions
    at_rf = dataclasses.replace(
        baseband,
        center_freq_hz=center_hz,
        clock_error_ppm=ppm,
        transmissions=(dataclasses.replace(transmission, offset_hz=offset_hz + error_hz),),
    )
    bits, _ = baseband.schedule(0)
    grid = nr_grid.resource_grids(cell, transmission.first_slot, bits, Stream(0))[0]
    rotations = []
    for scene in (baseband, at_rf):
        time_s = np.arange(scene.num_samples) * scene.interval_s
        shift_hz = scene.transmissions[0].offset_hz
        iq = render(scene).numpy() * np.exp(-2j * np.pi * shift_hz * time_s)
        rotations.append(elements(torch.from_numpy(iq), 1 / scene.interval_s, grid, 0.02))
    known = np.isfinite(rotations[0]).all(axis=1) & grid.occupied.numpy().any(axis=1)
    known &= np.isfinite(rotations[1]).all(axis=1)

    sent_s, times_s = 0.0, []
    for symbol in range(14 * 2**mu):
        prefix_s = (144 / 2**mu + 16 * (symbol % (7 * 2**mu) == 0)) / 30.72e6
        times_s.append(sent_s + prefix_s)
        sent_s += prefix_s + 1 / (1e3 * spacing_khz)
    assert sent_s == pytest.approx(1e-3)
    expected = np.exp(-2j * np.pi * (center_hz + offset_hz) * np.array(times_s))
    expected = expected[(grid.first_symbol + np.arange(len(known))) % len(expected)]
    baseband_sent = np.where(grid.occupied.numpy(), rotations[0], 0)  # SSBs may have another numerology
    found = np.array(
        [np.vdot(first, second) for first, second in zip(baseband_sent, rotations[1], strict=True)]
    )
    found = found[known]
    found /= abs(found)
    turned = found / expected[known]
    assert known.sum() > 30 * 2**mu
    assert np.abs(np.angle(turned * turned.mean().conj())).max() < 0.1
    assert np.abs(np.angle(found[1:] / found[:-1])).max() > 1  # it is seen


# What scenes are drawn from


def test_a_scene_depends_on_seed_kind_and_number_alone():
    scene, again = draw(WILD, Stream(5, TRAINING, 12)), draw(WILD, Stream(5, TRAINING, 12))
    assert scene == again
    assert torch.equal(render(scene), render(again))
    for other in (Stream(6, TRAINING, 12), Stream(5, VALIDATION, 12), Stream(5, TRAINING, 13)):
        assert draw(WILD, other).parameters() != scene.parameters()


def test_global_random_state_is_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for scene in scenes(WILD, 6):
        render(scene)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_distractors_are_labelled_where_they_are_seen():
    config = with_settings(
        WILD, [*USUAL, "noise_only=1", "num_distractors=1", "distractor_snr_db=20", "filtered=0", "beyond=0"]
    )
    labelled = 0
    for scene in scenes(config, 40):
        carriers = scene.carriers()
        assert {carrier.label for carrier in carriers} <= {OTHER}
        if carriers:
            [one] = scene.distractors
            assert min(carrier.start_s for carrier in carriers) >= 0
            assert max(carrier.end_s for carrier in carriers) <= scene.duration_s * (1 + 1e-9)
            assert min(carrier.freq_lower_hz for carrier in carriers) >= one.center_hz - one.bandwidth_hz
            assert max(carrier.freq_upper_hz for carrier in carriers) <= one.center_hz + one.bandwidth_hz
            labelled += 1
        hidden = dataclasses.replace(
            scene,
            receiver=Receiver(passband=(0.497, 0.5), transition=(0.003, 0.003), stopband_db=60, floor_db=0),
        )
        assert len(hidden.carriers()) < len(carriers) or not carriers
    assert labelled > 30


def test_full_carriers_fill_every_block_and_are_as_many_as_idle_ones():
    assert WILD.full == WILD.idle > 0
    for base, settings in ((WILD, ["noise_only=0"]), (CLASSIC, ["idle=0.2", "full=0.2"])):
        full, idle, other = 0, 0, 0
        for scene in scenes(with_settings(base, settings), 250):
            for number, transmission in enumerate(scene.transmissions):
                if transmission.traffic.full:
                    bits, _ = scene.schedule(number)
                    assert bits.all()
                full += transmission.traffic.full
                idle += transmission.traffic.users == 0
                other += transmission.traffic.blocks
        count = sum(len(scene.transmissions) for scene in scenes(with_settings(base, settings), 250))
        assert full / count == pytest.approx(0.2, abs=0.06)
        assert idle / count == pytest.approx(0.2, abs=0.06)
        assert other == (0 if base is WILD else count - full - idle)


@pytest.mark.parametrize(
    "cell", [lte.LteCell(50, control_load=0.5), nr.NrCarrier(30, 51, tdd_pattern="DDDSU")]
)
def test_a_full_carrier_has_no_gaps(cell):
    """Every column of its downlink slots is occupied in every resource block; others are silent."""
    scene = one_carrier(cell, 30.72e6, traffic=Traffic(users=2, busy=0.3, filled=0.2, full=True))
    bits, _ = scene.schedule(0)
    grid = (
        lte.resource_grid(cell, 20, bits, Stream(0))
        if isinstance(cell, lte.LteCell)
        else nr_grid.resource_grids(cell, 40, bits, Stream(0))[0]
    )
    blocks = grid.occupied[:, : 12 * cell.num_rb].unflatten(1, (-1, 12)).any(dim=2)
    sent = blocks[12::14].any(dim=1)  # a symbol with PDSCH and no SSB
    assert sent.any()
    assert blocks[12::14][sent].all()
    assert bool(sent.all()) == isinstance(cell, lte.LteCell)


def test_wild_scenes_keep_their_promises():
    drawn = scenes(WILD, 400)
    for scene in drawn:
        half_hz = scene.sample_rate_hz / 2
        assert scene.sample_rate_hz in WILD.sample_rates_hz
        assert 0.49e-3 < scene.duration_s < 80.01e-3
        assert scene.num_samples >= 1024
        carriers = scene.carriers()
        for carrier in carriers:
            assert -half_hz <= carrier.freq_lower_hz < carrier.freq_upper_hz <= half_hz
            assert carrier.start_s >= 0
            assert carrier.start_s + carrier.duration_s <= scene.duration_s * (1 + 1e-9)
        carriers = [carrier for carrier in carriers if carrier.label != OTHER]
        edges = sorted((carrier.freq_lower_hz, carrier.freq_upper_hz) for carrier in carriers)
        assert all(low >= high for (_, high), (low, _) in itertools.pairwise(edges))
        for distractor in scene.distractors:
            low, high = (distractor.center_hz + side * distractor.bandwidth_hz / 2 for side in (-1, 1))
            assert all(
                high <= carrier.freq_lower_hz + 1e3 or low >= carrier.freq_upper_hz - 1e3
                for carrier in carriers
            )
        levels = [transmission.snr_db for transmission in scene.transmissions]
        assert not levels or (min(levels) >= -5 and max(levels) <= 40)
        assert json.loads(json.dumps(scene.parameters()))["sample_rate_hz"] == scene.sample_rate_hz

    everything = [transmission for scene in drawn for transmission in scene.transmissions]
    cells = [transmission.cell for transmission in everything]
    lte_cells = [cell for cell in cells if isinstance(cell, lte.LteCell)]
    nr_cells = [cell for cell in cells if isinstance(cell, nr.NrCarrier)]
    assert {scene.sample_rate_hz for scene in drawn} == set(WILD.sample_rates_hz)
    assert 0.05 < np.mean([not scene.transmissions for scene in drawn]) < 0.3
    assert {cell.num_rb for cell in lte_cells} == set(lte.RESOURCE_BLOCKS.values())
    assert {(cell.duplex, cell.num_ports) for cell in lte_cells} == {
        (d, p) for d in ("FDD", "TDD") for p in (1, 2, 4)
    }
    assert {cell.uldl_config for cell in lte_cells} == set(range(7))
    assert {cell.spacing_khz for cell in nr_cells} == {15, 30, 60}
    assert {bool(cell.tdd_pattern) for cell in nr_cells} == {True, False}
    assert {cell.ssb_case for cell in nr_cells} == {"A", "B", "C"}
    assert {kind for scene in drawn for kind in (d.kind for d in scene.distractors)} == set(
        WILD.distractor_kinds
    )
    assert {transmission.fading.model for transmission in everything} == set(WILD.fading_models)
    assert {scene.receiver.bits for scene in drawn} == {0, 8, 12, 16}
    inside = [
        scene
        for scene in drawn
        for carrier in scene.carriers()
        if carrier.freq_upper_hz - carrier.freq_lower_hz >= scene.sample_rate_hz * 0.999
    ]
    assert len(inside) > 10


def test_distractors_may_reach_beyond_the_band_where_no_carrier_is():
    config = with_settings(WILD, ["beyond=1", "sample_rates_hz=1.92e6,20e6", "num_distractors=2"])
    reaching = []
    for scene in scenes(config, 200):
        half_hz = scene.sample_rate_hz / 2
        for distractor in scene.distractors:
            low, high = (distractor.center_hz + side * distractor.bandwidth_hz / 2 for side in (-1, 1))
            seen_hz = min(high, half_hz) - max(low, -half_hz)
            if seen_hz < min(high - low, 2 * half_hz) - 1:
                reaching.append(distractor.kind)
            assert seen_hz > 0
            assert all(
                high <= one.freq_lower_hz + 1e3 or low >= one.freq_upper_hz - 1e3
                for one in scene.carriers()
                if one.label != OTHER
            )
    assert {"ofdm", "pulses", "qam"} <= set(reaching)


def test_distractors_may_be_wider_than_the_band():
    settings = [*USUAL, "beyond=1", "sample_rates_hz=20e6", "num_distractors=1", "distractor_kinds=ofdm"]
    config = with_settings(
        WILD, [*settings, "noise_only=1", "distractor_snr_db=20", "duration_ms=5", "filtered=0"]
    )
    whole = [
        (scene, carriers)
        for scene in scenes(config, 60)
        if (carriers := scene.carriers()) and carriers[0].bandwidth_hz == 20e6
    ]
    assert len(whole) > 5
    for scene, carriers in whole[:3]:
        power = render(scene).abs().square()
        times_s = torch.arange(len(power)) / 20e6
        on = torch.zeros(len(power), dtype=bool)
        for carrier in carriers:
            on |= (times_s >= carrier.start_s) & (times_s < carrier.end_s)
        assert not (~on).any() or power[on].mean() > 10 * power[~on].mean()


def test_of_a_wi_fi_channel_at_the_edge_of_the_band_nothing_is_mirrored_into_it():
    config = with_settings(
        WILD,
        [
            "beyond=1",
            "noise_only=1",
            "num_distractors=1",
            "distractor_kinds=ofdm",
            "distractor_snr_db=30",
            "duration_ms=10",
            "sample_rates_hz=10e6",
            "filtered=0",
            "unbalanced=0",
            "noisy_phase=0",
            "dc_spike=0",
            "agc=0",
            "bits=0",
            "real_valued=0",
            "faint=0",
            "padded=0",
            "hump=0",
        ],
    )
    pairs = [
        (scene, one)
        for scene in scenes(config, 60)
        for one in scene.distractors
        if one.settings["system"] == "wifi"
    ]
    pairs = [
        (scene, low_hz)
        for scene, one in pairs
        if -3e6 < (low_hz := one.center_hz - one.bandwidth_hz / 2) < 1e6
    ]
    assert pairs
    for scene, low_hz in pairs:
        frequency, power = spectrum(render(scene), 10e6)
        outside, inside = (
            power[frequency < low_hz - 1e6],
            power[(frequency > low_hz + 1e6) & (frequency < 4.7e6)],
        )
        assert inside.mean() > 30 * outside.mean()


USUAL = ["hump=0", "noiseless=0", "faint=0", "real_valued=0", "padded=0"]


def test_other_draws_do_not_depend_on_what_sets_captures_apart():
    for usual, scene in zip(scenes(with_settings(WILD, USUAL), 60), scenes(WILD, 60), strict=True):
        if scene.receiver == usual.receiver and not scene.is_real:
            assert dataclasses.replace(scene, padding=(0, 0)) == usual


def test_humps_are_filtered_noise_without_a_carrier():
    for scene in scenes(with_settings(WILD, [*USUAL, "hump=1", "num_distractors=0"]), 20):
        assert scene.receiver.stopband_db >= 10
        assert -0.5 < scene.receiver.passband[0] < scene.receiver.passband[1] < 0.5
        assert scene.carriers() == [] == list(scene.transmissions)


def test_noiseless_scenes_are_what_was_sent():
    settings = [*USUAL, "noiseless=1", "num_distractors=0", "duration_ms=2", "agc=0", "part_time=0"]
    drawn = scenes(with_settings(WILD, settings), 60)
    sent = [scene for scene in drawn if scene.carriers()]
    assert all(not scene.receiver.noise for scene in sent)
    assert all(scene.receiver.noise for scene in drawn if not scene.carriers())  # never all zeros
    assert {scene.receiver.bits for scene in sent} == {0, 8, 12, 16}
    silent = one_carrier(lte.LteCell(25, duplex="TDD"), 7.68e6, receiver=SILENT, edge_s=0.0)
    assert float((render(silent).abs() == 0).float().mean()) > 0.3  # uplink subframes


def test_faint_scenes_use_few_codes_beside_a_dc_spike():
    for scene in scenes(
        with_settings(WILD, [*USUAL, "faint=1", "duration_ms=2", "sample_rates_hz=3.84e6"]), 20
    ):
        codes = torch.view_as_real(render(scene)) * 128
        rms = float(codes.square().mean().sqrt())
        assert 0.9 < rms < 3.1  # rounding adds a twelfth
        assert scene.receiver.dc_db >= -12


def test_real_scenes_are_their_own_mirror_image_and_labelled_in_the_upper_half():
    settings = [
        *USUAL,
        "real_valued=1",
        "noise_only=0",
        "snr_db=30",
        "duration_ms=4",
        "sample_rates_hz=30.72e6",
    ]
    labelled = 0
    for scene in scenes(with_settings(WILD, settings), 20):
        iq = render(scene)
        assert scene.is_real
        assert not iq.imag.any()
        assert all(carrier.freq_lower_hz >= 0 for carrier in scene.carriers())
        labelled += bool(scene.carriers())
    assert labelled > 10


def test_the_snr_of_real_samples_is_that_of_the_upper_half():
    scene = one_carrier(lte.LteCell(25), 30.72e6, 7e6, snr_db=20.0, receiver=Receiver())
    levels = []
    for is_real in (False, True):
        frequency, power = spectrum(render(dataclasses.replace(scene, is_real=is_real)), 30.72e6)
        inside = (abs(frequency - 7e6) < 2e6) & (abs(frequency - 7e6) > 0.1e6)
        levels.append(10 * np.log10(power[inside].mean() / power[(frequency > 11e6)].mean()))
    assert levels[1] == pytest.approx(levels[0], abs=0.2)


def test_padding_is_zeros_without_a_label():
    settings = [*USUAL, "padded=1", "noise_only=0", "duration_ms=3", "sample_rates_hz=3.84e6"]
    sides = set()
    for scene in scenes(with_settings(WILD, settings), 40):
        before, after = scene.padding
        sides.add((before > 0, after > 0))
        iq, count = render(scene), scene.num_samples
        assert not iq[:before].any()
        assert not iq[count - after :].any()
        assert before + after < count
        assert all(one.start_s >= before / 3.84e6 - 1e-12 for one in scene.carriers())
        assert all(one.end_s <= (count - after) / 3.84e6 + 1e-12 for one in scene.carriers())
    assert sides == {(True, False), (False, True), (True, True)}


def test_what_eight_bits_round_away_has_no_label():
    """Beside a carrier of 40 dB, in a receiver that has a code or two for both."""
    strong = one_carrier(lte.LteCell(25), 15.36e6, 4e6, snr_db=40.0).transmissions[0]
    weak = one_carrier(lte.LteCell(25), 15.36e6, -4e6, snr_db=2.0).transmissions[0]
    scene = dataclasses.replace(one_carrier(lte.LteCell(25), 15.36e6), transmissions=(strong, weak))
    assert len(scene.carriers()) == 2
    coarse, fine = (
        dataclasses.replace(scene, receiver=Receiver(bits=8, loading_db=loading_db))
        for loading_db in (-40, -15)
    )
    assert [one.center_freq_hz for one in coarse.carriers()] == [4e6]
    assert len(fine.carriers()) == 2


def test_gain_is_switched_as_often_as_asked_for():
    config = with_settings(WILD, ["agc=1", "agc_steps=6,8"])
    assert {len(scene.receiver.agc_steps) for scene in scenes(config, 40)} == {6, 7, 8}


def test_classic_scenes_are_the_published_recipe():
    drawn = scenes(CLASSIC, 600)
    kinds = [tuple(sorted({t.label for t in scene.transmissions})) for scene in drawn]
    for kind in (("LTE",), ("NR",), ("LTE", "NR")):
        assert abs(kinds.count(kind) / len(drawn) - 1 / 3) < 0.08
    for scene in drawn:
        assert (scene.sample_rate_hz, scene.num_samples) == (61.44e6, 2457600)
        assert scene.receiver == Receiver()
        assert not scene.distractors
        for transmission in scene.transmissions:
            cell, width = transmission.cell, dict.fromkeys((0,))
            widths = (
                lte.RESOURCE_BLOCKS if transmission.label == "LTE" else nr.RESOURCE_BLOCKS[cell.spacing_khz]
            )
            [width] = [mhz for mhz, num_rb in widths.items() if num_rb == cell.num_rb]
            assert width in ((5, 10, 15, 20) if transmission.label == "LTE" else (10, 15, 20, 25, 30, 40, 50))
            assert abs(transmission.offset_hz) <= (61.44e6 - width * 1e6) / 2 - 61.44e6 / 256 + 5e5
            assert transmission.fading.doppler_hz in (0, 10, 500)
            if transmission.label == "NR":
                assert [coreset.num_rb for coreset in cell.coresets] == [cell.num_rb // 6 * 6]
    assert {t.snr_db for scene in drawn for t in scene.transmissions} == {7.0, 17.0, 67.0}


# Settings


def test_settings_change_fields():
    config = with_settings(
        WILD, ["snr_db=0,20", "lte_ports=2", "duration_ms=10", "technologies=LTE", "inside=0.5"]
    )
    assert (config.snr_db, config.lte_ports, config.duration_ms) == ((0, 20), (2,), (10,))
    assert (config.technologies, config.inside) == (("LTE",), 0.5)
    drawn = scenes(config, 30)
    assert {t.label for scene in drawn for t in scene.transmissions} == {"LTE"}
    assert {round(scene.duration_s, 5) for scene in drawn} == {0.01}
    assert with_settings(WILD, []) == WILD == SceneConfig() == PRESETS["wild"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("snr=3", "snr_db"),
        ("snr_db", "expected name=value"),
        ("snr_db=20,0", "--set snr_db: expected a range, the lower number first; found 20,0"),
        ("snr_db=", "--set snr_db: expected a range"),
        ("snr_db=high", "--set snr_db: expected numbers; found high"),
        ("snr_db=nan,3", "--set snr_db: expected numbers"),
        ("lte_ports=", "--set lte_ports: expected one value or more; found none"),
        ("lte_bandwidths_mhz=7", "--set lte_bandwidths_mhz: expected some of 1.4,3,5,10,15,20; found 7"),
        ("nr_bandwidths_mhz=45", "--set nr_bandwidths_mhz: expected some of"),
        ("inside=2", "--set inside: expected numbers from 0 to 1; found 2"),
        ("technologies=WiFi", "--set technologies: expected some of LTE,NR; found WiFi"),
        ("sample_rates_hz=0", "--set sample_rates_hz: expected numbers from 10000"),
        ("lte_ports=3", "--set lte_ports: expected some of 1,2,4; found 3"),
        ("bits=1.5", "--set bits"),
        ("fading_models=TDL-X", "--set fading_models"),
        ("doppler_hz=0,5000", "--set doppler_hz"),
        ("classes=Noise,WiFi", "--set classes: expected some of LTE,NR,Noise,Other; found WiFi"),
        ("classes=NR,Noise", "--set classes: expected different classes, Noise first; found NR,Noise"),
        ("classes=Noise,NR,NR", "--set classes: expected different classes"),
    ],
)
def test_wrong_settings_are_named(setting, said):
    with pytest.raises(UserError) as error:
        with_settings(WILD, [setting])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_carrier_wider_than_the_band_is_an_error():
    expected = (
        "nr_bandwidths_mhz: expected a carrier that fits a band of 20 MHz, or inside or cut above 0; found 40"
    )
    with pytest.raises(UserError, match=expected):
        with_settings(CLASSIC, ["sample_rates_hz=20e6", "nr_bandwidths_mhz=40", "nr_spacings_khz=30"])


def test_a_spacing_that_lacks_all_bandwidths_gives_way_to_another():
    config = with_settings(WILD, ["nr_bandwidths_mhz=100", "technologies=NR", "noise_only=0"])
    cells = [one.cell for scene in scenes(config, 12) for one in scene.transmissions]
    assert cells
    assert all(cell.num_rb == nr.RESOURCE_BLOCKS[cell.spacing_khz][100] for cell in cells)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_scene():
    for scene in scenes(dataclasses.replace(WILD, bits=(0,)), 12):
        expected = render(scene)
        assert (render(scene, "cuda").cpu() - expected).abs().max() < 1e-3 * expected.abs().max()


def test_the_grid_clock_has_no_drift_over_the_frames():
    """The last system frame begins when 1023 frames have passed, to a part of a sample."""
    starts, _ = ofdm.symbol_times(30e3, 1023 * 280, 1)
    assert float(starts[0]) / ofdm.TC_PER_S == pytest.approx(10.23, abs=1e-12)
