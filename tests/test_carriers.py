"""The label everywhere: against SigMF's own library, real annotations, counted cells and the energy of
signals.
"""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sigmf import SigMFFile
from support import CAPTURES, needs_captures, write_sigmf

from radio.carriers import CLASS_NAMES, LTE, NOISE, NR, Carrier, from_annotation, paint, to_annotation
from radio.recordings import open_recording
from radio.spectrogram import Spectrogram

RATES_HZ = (1.92e6, 2.4e6, 11.52e6, 19.2e6, 61.44e6, 122.88e6, 1e6 / 3)


def random_carriers(rng, rate, num_samples, count):
    for _ in range(count):
        start, end = np.sort(rng.integers(0, num_samples + 1, 2))
        low, high = np.sort(rng.uniform(-0.5, 0.5, 2)) * rate + 3.4321e9
        yield Carrier(NR, start / rate, (end - start) / rate, low, high, rng.random())


# The rectangle


def test_class_ids_are_those_of_the_design():
    assert CLASS_NAMES == ("Noise", "NR", "LTE") == (NOISE, NR, LTE)


def test_centre_bandwidth_and_end():
    carrier = Carrier(LTE, 0.25, 0.5, 791.5e6, 800.5e6)
    assert (carrier.center_freq_hz, carrier.bandwidth_hz, carrier.end_s) == (796e6, 9e6, 0.75)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"duration_s": -1e-9}, "duration_s=-1e-09"),
        ({"duration_s": math.nan}, "duration_s=nan"),
        ({"start_s": math.inf}, "start_s=inf"),
        ({"start_s": math.nan}, "start_s=nan"),
        ({"freq_lower_hz": 2.0}, "freq_lower_hz=2.0"),
        ({"freq_upper_hz": math.inf}, "freq_upper_hz=inf"),
        ({"freq_upper_hz": math.nan}, "freq_upper_hz=nan"),
        ({"confidence": 1.01}, "confidence=1.01"),
        ({"confidence": math.nan}, "confidence=nan"),
    ],
)
def test_rectangles_that_are_none(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(Carrier(NR, 0.0, 1.0, 0.0, 1.0), **changes)


# Annotations


@pytest.mark.parametrize("rate", RATES_HZ)
def test_annotation_and_back_is_exact(rate):
    rng = np.random.default_rng(0)
    offset = int(rng.integers(2**40))
    for carrier in random_carriers(rng, rate, round(0.3 * rate), 200):
        annotation = json.loads(json.dumps(to_annotation(carrier, rate, offset)))
        start, count = (annotation[f"core:sample_{key}"] for key in ("start", "count"))
        assert (start - offset, count) == (round(carrier.start_s * rate), round(carrier.duration_s * rate))
        back = from_annotation(annotation, rate, offset)
        assert (back.label, back.confidence) == (carrier.label, carrier.confidence)
        assert (back.freq_lower_hz, back.freq_upper_hz) == (carrier.freq_lower_hz, carrier.freq_upper_hz)
        assert (back.start_s, back.duration_s) == ((start - offset) / rate, count / rate)
        assert to_annotation(back, rate, offset) == annotation


def test_ends_between_samples_go_to_the_nearest():
    for start, end in itertools.product((0.0, 2.4, 2.6, 7.51), (7.51, 8.4, 8.6, 99.0)):
        annotation = to_annotation(Carrier(NR, start / 1e6, (end - start) / 1e6, 0.0, 1.0), 1e6)
        assert abs(annotation["core:sample_start"] - start) < 0.5
        assert abs(annotation["core:sample_start"] + annotation["core:sample_count"] - end) < 0.5


@pytest.mark.parametrize("rate", RATES_HZ)
def test_annotations_do_not_pass_the_samples(rate):
    for num_samples in (1, 7, 9601, 1_234_567, 10**9 + 1):
        starts = [*range(min(5, num_samples)), num_samples // 3, num_samples - 1]
        for start in starts:
            carrier = Carrier(NR, start / rate, num_samples / rate - start / rate, 0.0, 1.0)
            annotation = to_annotation(carrier, rate)
            assert annotation["core:sample_start"] == start
            assert annotation["core:sample_start"] + annotation["core:sample_count"] == num_samples
        everywhere = Carrier(NR, -0.5, 1e6, 0.0, 1.0)
        annotation = to_annotation(everywhere, rate, 10, num_samples=num_samples)
        assert (annotation["core:sample_start"], annotation["core:sample_count"]) == (10, num_samples)


@pytest.mark.parametrize(("start", "end"), [(-50, -20), (100, 120), (130, 150), (40, 40)])
def test_what_is_outside_has_no_samples(start, end):
    carrier = Carrier(NR, start / 1e6, (end - start) / 1e6, 0.0, 1.0)
    annotation = to_annotation(carrier, 1e6, 1000, num_samples=100)
    assert annotation["core:sample_count"] == 0
    assert 1000 <= annotation["core:sample_start"] <= 1100


def test_no_end_is_the_end_of_the_capture():
    annotation = to_annotation(Carrier(NR, 0.5, math.inf, 0.0, 1.0), 100.0)
    assert annotation["core:sample_start"] == 50
    assert "core:sample_count" not in annotation
    assert from_annotation(annotation, 100.0) == Carrier(NR, 0.5, math.inf, 0.0, 1.0)
    assert (
        to_annotation(Carrier(NR, 0.5, math.inf, 0.0, 1.0), 100.0, num_samples=80)["core:sample_count"] == 30
    )


def test_annotations_of_others():
    found = {
        "core:sample_start": 10,
        "core:sample_count": 20,
        "core:freq_lower_edge": -5,
        "core:freq_upper_edge": 5,
    }
    assert from_annotation(found, 10.0) == Carrier("", 1.0, 2.0, -5.0, 5.0)
    assert from_annotation(found | {"core:label": "other"}, 10.0, 30).start_s == -2.0
    for missing in ({"lower"}, {"upper"}, {"lower", "upper"}):
        assert (
            from_annotation({key: found[key] for key in found if key.split("_")[-2] not in missing}, 10.0)
            is None
        )
    for edge in ("5", [5], {}):
        with pytest.raises(ValueError, match="numbers as core:freq_lower_edge"):
            from_annotation(found | {"core:freq_upper_edge": edge}, 10.0)
    with pytest.raises(ValueError, match=r"freq_lower_hz=-5.0 .*freq_upper_hz=-6.0"):
        from_annotation(found | {"core:freq_upper_edge": -6}, 10.0)


@pytest.mark.parametrize(
    ("comment", "confidence"),
    [
        ("confidence=0.25", 0.25),
        ("pci=301; confidence=1e-05", 1e-5),
        ("confidence=1.0; n_rb=100", 1.0),
        ("confidence=95", None),
        ("confidence=..", None),
        ("no confidence=0.5 here", None),
        ("overconfidence=0.5", None),
        ("", None),
    ],
)
def test_confidence_is_part_of_a_comment(comment, confidence):
    found = {
        "core:sample_start": 0,
        "core:sample_count": 1,
        "core:freq_lower_edge": 0,
        "core:freq_upper_edge": 1,
    }
    assert from_annotation(found | {"core:comment": comment}, 1.0).confidence == confidence


@pytest.mark.parametrize("offset", [0, 12345])
def test_sigmf_takes_what_is_written_and_recordings_open(tmp_path, offset):
    rate, stretches = 1e6, ((0, 600), (600, 1000))
    captures = [
        {"core:sample_start": first + offset, "core:frequency": 2e9 + first} for first, _ in stretches
    ]
    recordings = open_recording(write_sigmf(tmp_path, bytes(2000), captures=captures, offset=offset))
    assert [one.sample_start for one in recordings] == [0, 600]
    carriers = [
        Carrier(LTE, 1e-4, math.inf, 2e9 - 1e5, 2e9 + 1e5, 0.875),
        Carrier(NR, 2.5e-4, 1.5e-4, 2e9, 2e9 + 2e5),
    ]
    annotations = [
        to_annotation(one, rate, recording.sample_start + offset, num_samples=recording.num_samples)
        for one, recording in zip(carriers, recordings, strict=True)
    ]
    meta = write_sigmf(tmp_path, bytes(2000), captures=captures, annotations=annotations, offset=offset)
    metadata = SigMFFile(metadata=meta.read_text())
    metadata.validate()
    assert len(open_recording(meta)) == 2  # refuses annotations that reach beyond the samples
    read = metadata.get_annotations()
    starts = [(one["core:sample_start"] - offset, one["core:sample_count"]) for one in read]
    assert starts == [(100, 500), (850, 150)]
    assert {one["core:generator"] for one in read} == {"radio-mae"}
    back = [
        from_annotation(one, rate, first + offset) for one, (first, _) in zip(read, stretches, strict=True)
    ]
    assert back == [replace(carriers[0], duration_s=5e-4), carriers[1]]


# Masks

FRONT_ENDS = [  # n_fft, image size, sample rate, samples
    (64, (64, 50), 1.92e6, 30720),
    (1024, (224, 224), 19.2e6, 307200),
    (63, (63, 20), 1e6, 5000),
    (65, (40, 33), 2.4e6, 7001),
    (100, (7, 11), 44.1e3, 999),
    (128, (256, 64), 61.44e6, 60000),
    (512, (31, 1), 11.52e6, 2048),
]


@pytest.mark.parametrize(("n_fft", "size", "rate", "num_samples"), FRONT_ENDS)
def test_edges_are_right_to_half_a_cell(n_fft, size, rate, num_samples):
    front_end, rng = Spectrogram(n_fft, image_size=size), np.random.default_rng(n_fft)
    # Rows share the FFT's bins, each of which reaches half its width to both sides of its frequency.
    lowest_hz = np.fft.fftshift(np.fft.fftfreq(n_fft, 1 / rate))[0] - rate / n_fft / 2
    row_hz, column_s = rate / size[0], num_samples / rate / size[1]
    half_frame_s = (
        n_fft / rate / 2
    )  # the STFT cannot place borders better, and its frames end where the window does
    for _ in range(100):
        low, high = np.sort(rng.uniform(0, 1, 2)) * rate + lowest_hz
        first, last = np.sort(rng.uniform(0, 1, 2)) * num_samples / rate
        mask = paint([Carrier(LTE, first, last - first, low, high)], front_end, rate, num_samples)
        assert mask.dtype == np.uint8
        assert mask.shape == size
        rows, columns = np.flatnonzero((mask == 2).any(axis=1)), np.flatnonzero((mask == 2).any(axis=0))
        assert (mask == 2).sum() == len(rows) * len(columns)
        if len(columns):  # a carrier before the first centre or behind the last may miss all
            row_error = (
                row_hz / (2 if high - low >= row_hz else 1) * (1 + 1e-9)
            )  # narrower ones have a whole row
            column_error = column_s / (2 if last - first >= column_s else 1) + half_frame_s
            assert abs(rows[0] * row_hz + lowest_hz - low) <= row_error
            assert abs((rows[-1] + 1) * row_hz + lowest_hz - high) <= row_error
            assert abs(columns[0] * column_s - first) <= column_error
            assert abs((columns[-1] + 1) * column_s - last) <= column_error
        else:
            assert last - first <= column_s + 2 * half_frame_s


def test_a_carrier_of_less_than_a_cell_has_the_nearest():
    front_end = Spectrogram(64, image_size=(32, 16))
    rows_hz, columns_s = front_end.frequency_axis_hz(1e6).tolist(), front_end.time_axis_s(1e6, 5000).tolist()

    def painted(low, high, first, last):
        mask = paint([Carrier(LTE, first, last - first, low, high)], front_end, 1e6, 5000)
        return [tuple(cell) for cell in np.argwhere(mask).tolist()]

    for offset in (-0.4, 0.4):
        low = rows_hz[20] + offset * 1e6 / 32
        first = columns_s[3] + offset * 5e-3 / 16
        assert painted(low, low + 1e3, 0.0, 1.0) == [(20, column) for column in range(16)]
        assert painted(-1e6, 1e6, first, first + 1e-5) == [(row, 3) for row in range(32)]
        assert painted(low, low + 1e3, first, first + 1e-5) == [(20, 3)]
    assert painted(0.493e6, 0.497e6, 0.0, 1.0) == painted(-0.52e6, -0.51e6, 0.0, 1.0) == []  # outside
    assert painted(low, low, 0.0, 1.0) == painted(low, low + 1e3, 5.1e-3, 5.11e-3) == []


@pytest.mark.parametrize(("n_fft", "size", "rate", "num_samples"), FRONT_ENDS)
def test_a_cell_has_the_class_of_its_centre(n_fft, size, rate, num_samples):
    front_end, rng = Spectrogram(n_fft, image_size=size), np.random.default_rng(n_fft)
    carriers = list(random_carriers(rng, rate, num_samples, 5))
    carriers = [
        replace(one, label=label) for one, label in zip(carriers, (NR, LTE, NR, NOISE, LTE), strict=True)
    ]
    cell_hz, cell_s = rate / size[0], num_samples / rate / size[1] * (size[1] > 1)
    carriers = [one for one in carriers if one.bandwidth_hz > cell_hz and one.duration_s > cell_s]
    assert carriers
    mask = paint(carriers, front_end, rate, num_samples, 3.4321e9)
    frequencies = front_end.frequency_axis_hz(rate, 3.4321e9).tolist()
    times = front_end.time_axis_s(rate, num_samples).tolist()
    for row, column in rng.integers(0, size, (300, 2)):
        inside = [
            one.label
            for one in carriers
            if one.freq_lower_hz <= frequencies[row] < one.freq_upper_hz
            and one.start_s <= times[column] < one.end_s
        ]
        assert mask[row, column] == ("Noise", "NR", "LTE").index(inside[-1] if inside else "Noise")


def test_low_frequencies_and_early_times_come_first():
    front_end = Spectrogram(64, image_size=(64, 50))
    mask = paint([Carrier(NR, 0.0, 0.004, 2e9 + 0.3e6, 2e9 + 0.9e6)], front_end, 1.92e6, 30720, 2e9)
    rows, columns = np.nonzero(mask)
    assert rows.min() > 32 + 8
    assert rows.max() == 61
    assert columns.min() == 0
    assert columns.max() in (11, 12)


def test_masks_do_not_depend_on_where_the_centre_is():
    front_end, rng = Spectrogram(100, image_size=(50, 30)), np.random.default_rng(1)
    carriers = [
        replace(one, freq_lower_hz=one.freq_lower_hz - 3.4321e9, freq_upper_hz=one.freq_upper_hz - 3.4321e9)
        for one in random_carriers(rng, 1e6, 9999, 3)
    ]
    at_rf = [
        replace(one, freq_lower_hz=one.freq_lower_hz + 5e9, freq_upper_hz=one.freq_upper_hz + 5e9)
        for one in carriers
    ]
    expected = paint(carriers, front_end, 1e6, 9999)
    assert expected.any()
    assert np.array_equal(paint(carriers, front_end, 1e6, 9999, None), expected)
    assert np.array_equal(paint(at_rf, front_end, 1e6, 9999, 5e9), expected)


def test_later_carriers_lie_over_earlier_and_neighbours_share_no_cell():
    front_end = Spectrogram(64, image_size=(32, 16))
    everywhere = Carrier(NR, -1.0, math.inf, -1e9, 1e9)
    inner = Carrier(LTE, -1.0, math.inf, 0.0, 0.25e6)
    assert np.unique(paint([everywhere], front_end, 1e6, 5000)).tolist() == [1]
    assert np.unique(paint([inner, everywhere], front_end, 1e6, 5000)).tolist() == [1]
    both = paint([everywhere, inner], front_end, 1e6, 5000)
    assert ((both == 2) == (paint([inner], front_end, 1e6, 5000) == 2)).all()
    assert (both > 0).all()
    border = front_end.frequency_axis_hz(1e6)[20].item()  # just at a centre
    halves = [Carrier(NR, 0.0, 1.0, -1e9, border), Carrier(LTE, 0.0, 1.0, border, 1e9)]
    for order in (halves, halves[::-1]):
        assert (paint(order, front_end, 1e6, 5000)[:, 0] == [1] * 20 + [2] * 12).all()


def test_what_is_outside_is_cut():
    front_end = Spectrogram(64, image_size=(32, 16))
    outside = [
        Carrier(NR, 0.0, 1.0, 0.6e6, 0.9e6),
        Carrier(NR, 0.0, 1.0, -0.9e6, -0.6e6),
        Carrier(NR, -1.0, 0.9, -1e6, 1e6),
        Carrier(NR, 0.006, 1.0, -1e6, 1e6),
    ]
    assert not paint(outside, front_end, 1e6, 5000).any()
    upper = paint([Carrier(NR, -1.0, 9.0, 0.25e6, 9e6)], front_end, 1e6, 5000)
    assert np.flatnonzero(upper.all(axis=1)).tolist() == list(range(24, 32))


def test_labels_are_those_of_the_set():
    front_end, carrier = Spectrogram(64, image_size=(8, 8)), Carrier("other", 0.0, 1.0, -1e6, 1e6)
    with pytest.raises(ValueError, match=r"\('Noise', 'NR', 'LTE'\): carrier.label='other'"):
        paint([carrier], front_end, 1e6, 5000)
    assert (paint([carrier], front_end, 1e6, 5000, class_names=["Noise", "x", "y", "other"]) == 3).all()


@pytest.mark.parametrize(
    ("n_fft", "size"), [(256, (64, 40)), (255, (64, 40)), (256, (48, 37)), (63, (63, 25)), (128, (200, 20))]
)
def test_painted_cells_hold_the_energy(n_fft, size):
    rate, num_samples, low, high, first, last = 1e6, 50000, -0.31e6, 0.123e6, 0.011, 0.034
    rng = np.random.default_rng(0)
    spectrum = np.fft.fft(rng.standard_normal((num_samples, 2)) @ [1, 1j])
    frequencies = np.fft.fftfreq(num_samples, 1 / rate)
    iq = np.fft.ifft(spectrum * ((frequencies >= low) & (frequencies < high)))
    times = np.arange(num_samples) / rate
    iq = iq * ((times >= first) & (times < last)) + 1e-4 * (rng.standard_normal((num_samples, 2)) @ [1, 1j])
    front_end = Spectrogram(n_fft, image_size=size)
    power = 10 ** (front_end.decibels(torch.from_numpy(iq)[None])[0, 0].double().numpy() / 10)
    mask = paint([Carrier(NR, first, last - first, low, high)], front_end, rate, num_samples) == 1
    # Cells are left out where a border runs through them or, by the width of a window's main lobe, close by.
    margin = (1 + math.ceil(2 * size[0] / n_fft), 1 + math.ceil(n_fft * size[1] / num_samples))
    inside, outside = mask.copy(), mask.copy()
    for axis in (0, 1):
        for shift in range(-margin[axis], margin[axis] + 1):
            inside &= np.roll(mask, shift, axis)
        grown = [np.roll(outside, shift, axis) for shift in range(-margin[axis], margin[axis] + 1)]
        outside = np.any(grown, axis=0)
    assert inside.sum() > 0.5 * mask.sum()
    assert power[inside].min() > 100 * power[~outside].max()
    assert power[mask].sum() > 0.97 * power.sum()
    mirrored = mask[::-1]
    assert power[mirrored].sum() < 0.75 * power.sum()


# Real captures

# From README.md of the captures: (label, lowest and highest MHz from the centre).
ANNOTATED = {
    "lte-f1815.3-s19.2-bw20-0.08s-hackrf": [("LTE", -8.99, 9.01)],
    "lte-f796-s19.2-bw20-0.08s-hackrf": [
        ("LTE", -4.49, 4.51),
        ("LTE", 5.5, 9.6),
        ("other", -5.05, -4.75),
        ("other", 5.0, 5.3),
    ],
    "lte-f806-s19.2-bw20-0.08s-hackrf": [("LTE", -4.49, 4.51), ("LTE", 5.5, 9.6), ("LTE", -9.6, -5.5)],
    "lte-signal.1.92M": [("LTE", -0.54, 0.54)],
    "nr-srsran-n78-3502.8MHz-46.08Msps": [("NR", 6.24, 13.44)],
    "nr-amarisoft-n78-20MHz-23.04Msps": [("NR", -9.18, 9.18)],
    "noise-noise": [],
}


@needs_captures
@pytest.mark.parametrize("name", ANNOTATED)
def test_real_annotations_are_read_and_painted(name):
    meta = CAPTURES / f"{name}.sigmf-meta"
    [recording] = open_recording(meta)
    rate, centre, samples = recording.sample_rate_hz, recording.center_freq_hz or 0.0, recording.num_samples
    annotations = SigMFFile(metadata=meta.read_text()).get_annotations()
    carriers = [from_annotation(one, rate, recording.sample_start) for one in annotations]
    expected = ANNOTATED[name]
    assert len(carriers) == len(expected)
    for carrier, annotation, (label, low, high) in zip(carriers, annotations, expected, strict=True):
        assert carrier.label == label
        assert (carrier.freq_lower_hz - centre) / 1e6 == pytest.approx(low, abs=0.01)
        assert (carrier.freq_upper_hz - centre) / 1e6 == pytest.approx(high, abs=0.01)
        assert (carrier.start_s, carrier.end_s) == (0, recording.duration_s)
        written = to_annotation(carrier, rate, recording.sample_start, num_samples=samples)
        assert {key: written[key] for key in annotation if key != "core:comment"} == {
            key: value for key, value in annotation.items() if key != "core:comment"
        }
    front_end = Spectrogram(256, image_size=(192, 16))
    known = [one for one in carriers if one.label in CLASS_NAMES]
    mask = paint(known, front_end, rate, samples, recording.center_freq_hz)
    assert (mask == mask[:, :1]).all()
    for label in (NR, LTE):
        bands = [(low, high) for found, low, high in expected if found == label]
        share = sum(high - low for low, high in bands) * 1e6 / rate
        assert (mask == CLASS_NAMES.index(label)).mean() == pytest.approx(share, abs=(len(bands) + 0.1) / 192)
    if name == "lte-f796-s19.2-bw20-0.08s-hackrf":
        power = (
            front_end.decibels(torch.from_numpy(recording.read(0, samples))[None])[0, 0].mean(dim=1).numpy()
        )
        is_lte = mask[:, 0] == CLASS_NAMES.index(LTE)
        assert np.median(power[is_lte]) > np.median(power[~is_lte]) + 3
