"""Annotated recordings: masks against the power in their spectrograms, and against what is known of the
shared captures.
"""

import io
import re
import tarfile

import numpy as np
import pytest
import torch
from support import CAPTURES, needs_captures, write_ci16, write_sigmf

from data.annotated import AnnotatedWindows
from data.sampling import IQ
from data.splits import make_splits, sample_names
from radio.recordings import find_recordings, open_recording
from radio.spectrogram import Spectrogram
from util.errors import UserError

RATE = 200e3
WINDOW = 2000  # samples of 10 ms


def front_end(**kwargs):
    return Spectrogram(**{"n_fft": 64, "duration_s": 0.01, "image_size": (40, 50)} | kwargs)


def annotation(start, count, low, high, label="LTE"):
    found = {
        "core:sample_start": start,
        "core:sample_count": count,
        "core:freq_lower_edge": low,
        "core:freq_upper_edge": high,
        "core:label": label,
    }
    return {key: value for key, value in found.items() if value is not None}


def band(rng, start, count, total, low, high):
    """Noise of one band, on for some of the samples: complex [total]."""
    spectrum = np.fft.fft(rng.standard_normal((total, 2)) @ [1, 1j])
    frequency = np.fft.fftfreq(total, 1 / RATE)
    noise = np.fft.ifft(spectrum * ((frequency >= low) & (frequency < high)))
    noise[:start] = noise[start + count :] = 0
    return noise


def folder_of(tmp_path, *annotations, name="a", duration_s=0.04, **info):
    write_ci16(tmp_path, name, duration_s, RATE, annotations=annotations, **info)
    return find_recordings(tmp_path)


# Where annotations lie


def test_masks_are_where_the_power_is(tmp_path, capsys):
    """Two channels, two frequencies, indices that begin at core:offset, and edges at RF."""
    rng, total, offset = np.random.default_rng(0), 4 * WINDOW, 1000
    iq = rng.standard_normal((2, total, 2)) @ [1, 1j] * 1e-3
    lte, nr = (
        (3000, 3500, 20e3, 60e3),
        (5000, 2100, -80e3, -30e3),
    )  # LTE: over the border between the captures
    iq += band(rng, *lte[:2], total, *lte[2:]) + band(rng, *nr[:2], total, *nr[2:])
    codes = np.round(np.stack([iq.real, iq.imag], -1).transpose(1, 0, 2) / 8 * 2**15).astype("<i2")
    captures = [
        {"core:sample_start": offset, "core:frequency": 2.4e9},
        {"core:sample_start": offset + 2 * WINDOW, "core:frequency": 2.41e9},
    ]
    # What is annotated at the RF of one capture is out of the other's band: there it is annotated anew.
    annotations = [
        annotation(offset + 3000, 3500, 2.4e9 + 20e3, 2.4e9 + 60e3),
        annotation(offset + 4000, 2500, 2.41e9 + 20e3, 2.41e9 + 60e3),
        annotation(offset + 5000, 2100, 2.41e9 - 80e3, 2.41e9 - 30e3, "NR"),
    ]
    write_sigmf(
        tmp_path,
        codes.tobytes(),
        "ci16_le",
        captures=captures,
        annotations=annotations,
        sample_rate=RATE,
        num_channels=2,
        offset=offset,
    )
    source = AnnotatedWindows(find_recordings(tmp_path), front_end())
    assert len(source) == 8  # 2 captures, 2 channels, 2 windows
    assert set(source.groups["recording"]) == {"a.sigmf-meta"}
    seen = []
    for index in range(8):
        kind, values = source.load(index, None)
        assert kind == IQ
        assert values.dtype == np.complex64
        power = front_end().decibels(torch.from_numpy(values)[None])[0, 0].numpy()
        mask = source.target(index)
        assert mask.dtype == np.uint8
        # Borders of bands and bursts are not sharp: cells whose neighbours in all directions are of the same
        # kind are.
        around = np.lib.stride_tricks.sliding_window_view(np.pad(mask > 0, 2, "edge"), (5, 5))
        clear = around.all((2, 3)) | ~around.any((2, 3))
        assert clear.mean() > 0.6
        assert ((power > -45) == (mask > 0))[clear].mean() > 0.99
        seen.append(set(np.unique(mask).tolist()))
    assert seen == [{0}, {0, 2}, {0}, {0, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}]
    assert len(set(sample_names(source))) == 8
    assert not capsys.readouterr().err


def test_annotations_count_from_their_stretch_and_end_with_their_capture(tmp_path):
    captures = [
        {"core:sample_start": 0, "core:frequency": 1e6},
        {"core:sample_start": 30, "core:frequency": 1e6},
        {"core:sample_start": 50, "core:frequency": 2e6},
    ]
    annotations = [
        annotation(10, None, 0, 1, "a"),
        annotation(35, None, 0, 1, "b"),
        annotation(60, None, 0, 1, "c"),
        annotation(20, 60, 0, 1, "d"),
        annotation(49, 0, 0, 1, "e"),
        annotation(10, 40, 0, 1, "f"),
    ]
    found = open_recording(write_sigmf(tmp_path, bytes(200), captures=captures, annotations=annotations))
    spans = [
        {
            one["core:label"]: (one["core:sample_start"], one["core:sample_count"])
            for one in recording.annotations
        }
        for recording in found
    ]
    # The first two captures are one stretch, but an annotation without a count ends with its capture.
    assert spans == [
        {"a": (10, 20), "b": (35, 15), "d": (20, 60), "f": (10, 40)},
        {"c": (10, 40), "d": (-30, 60)},
    ]


def test_annotations_are_read_of_archives_and_of_no_other_format(tmp_path):
    meta = write_sigmf(tmp_path, bytes(200), annotations=[annotation(10, 20, 0, 1)])
    with tarfile.open(tmp_path / "b.sigmf", "w") as tar:
        for name in ("a.sigmf-meta", "a.sigmf-data"):
            content = (tmp_path / name).read_bytes()
            member = tarfile.TarInfo(f"a/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    np.save(tmp_path / "c.npy", np.zeros(100, np.complex64))
    expected = open_recording(meta)[0].annotations
    assert expected == (annotation(10, 20, 0, 1),)
    assert open_recording(tmp_path / "b.sigmf")[0].annotations == expected
    assert open_recording(tmp_path / "a.sigmf-data")[0].annotations == expected
    assert open_recording(tmp_path / "c.npy", 1e6)[0].annotations is None
    assert len({open_recording(meta)[0], open_recording(meta)[0]}) == 1  # recordings still have a hash


# Windows


def test_windows_lie_side_by_side_and_short_recordings_are_used_whole(tmp_path, capsys):
    note = annotation(0, 10, 2.4e9, 2.4e9 + 1e3)
    for name, duration_s in (("long", 0.0355), ("short", 0.004), ("tiny", 63 / RATE), ("two", 0.02)):
        write_ci16(tmp_path, name, duration_s, RATE, annotations=[note])
    recordings = find_recordings(tmp_path)
    source = AnnotatedWindows(recordings, front_end())
    long, short, _, two = recordings
    wanted = [
        (long, 0, 2000),
        (long, 2000, 2000),
        (long, 4000, 2000),
        (short, 0, 800),
        (two, 0, 2000),
        (two, 2000, 2000),
    ]
    assert len(source) == len(wanted)
    for index, (recording, start, count) in enumerate(wanted):
        assert np.array_equal(source.load(index, None)[1], recording.read(start, count))
        about = source.describe(index, None)
        assert (about["name"], about["sample_start"], about["num_samples"]) == (recording.name, start, count)
        assert about["start_s"] == start / RATE
    assert source.groups["recording"].tolist() == [one.name for one, _, _ in wanted]
    warnings = capsys.readouterr().err.splitlines()
    assert "1 of 4 recordings skipped" in warnings[0]
    assert "tiny.sigmf-meta" in warnings[0]
    assert (
        "1 of 4 recordings are shorter than a window of 10 ms and used whole: short.sigmf-meta" in warnings[1]
    )
    assert len(warnings) == 2


def test_short_windows_have_their_true_duration(tmp_path):
    recordings = folder_of(tmp_path, annotation(0, 400, 2.4e9 - 1e6, 2.4e9 + 1e6), duration_s=0.004)
    mask = AnnotatedWindows(recordings, front_end()).target(0)
    assert (mask[:, :24] == 2).all()  # half of 800 samples, so half of the 50 columns
    assert (mask[:, 26:] == 0).all()


# Labels


def test_classes_are_those_asked_for_and_others_are_counted(tmp_path, capsys):
    low, high = 2.4e9 - 50e3, 2.4e9 + 50e3
    outside = annotation(0, 100, 2.5e9, 2.6e9)
    time_alone = {"core:sample_start": 0, "core:label": "LTE"}
    notes = [
        annotation(0, 4000, low, high),
        annotation(0, 4000, low, high, "WiFi"),
        annotation(0, 9, low, high, "WiFi"),
        annotation(3000, 500, low, 2.4e9, "DAB"),
        time_alone,
        outside,
        annotation(0, 1, low, high, None),
    ]
    source = AnnotatedWindows(folder_of(tmp_path, *notes), front_end(), ["air", "DAB", "LTE"])
    assert source.class_names == ["air", "DAB", "LTE"]
    assert source.target(0).max() == source.target(0)[20, 25] == 2  # WiFi over it leaves LTE what it is
    assert set(np.unique(source.target(1)).tolist()) == {0, 1, 2}
    assert set(np.unique(source.target(3)).tolist()) == {0}
    [warning] = capsys.readouterr().err.splitlines()
    for part in ("air", "WiFi (2)", "(no label) (1)", "1 with no frequency edges", "1 with edges outside"):
        assert part in warning


def test_what_nothing_else_is_can_be_annotated_too(tmp_path):
    notes = [annotation(0, 8000, 2.4e9 - 1e6, 2.4e9 + 1e6), annotation(0, 8000, 2.4e9, 2.4e9 + 1e6, "Noise")]
    mask = AnnotatedWindows(folder_of(tmp_path, *notes), front_end()).target(0)
    assert (mask[:20] == 2).all()
    assert (mask[21:] == 0).all()


def test_empty_annotations_mean_the_first_class(tmp_path, capsys):
    write_ci16(tmp_path, "empty", 0.01, RATE)
    source = AnnotatedWindows(folder_of(tmp_path, annotation(0, 99, 2.4e9, 2.4e9 + 1e4)), front_end())
    names = [source.describe(index, None)["name"] for index in range(len(source))]
    assert not source.target(names.index("empty.sigmf-meta")).any()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("notes", "classes", "says"),
    [
        ([], ["Noise", "LTE"], ["--classes", "LTE", "found none"]),
        ([annotation(0, 9, 0, 1, "other")], ["Noise", "LTE"], ["--classes", "other (1)"]),
        ([annotation(0, 9, 2.4e9, 2.4e9 + 1, "Noise")], ["Noise", "LTE"], ["--classes", "LTE", "found none"]),
        ([annotation(0, 9, 0, 1)], ["Noise", "LTE"], ["1 with edges outside"]),
        (
            [annotation(0, 9, 2.4e9 + 1, 2.4e9)],
            ["Noise", "LTE"],
            ["a.sigmf-meta", "annotation LTE at sample 0", "edges"],
        ),
        ([annotation(0, 9, "low", 1)], ["Noise", "LTE"], ["a.sigmf-meta", "'low'"]),
        ([annotation(0, 9, 0, 1)], ["LTE"], ["--classes", "2 to 256", "LTE"]),
        ([annotation(0, 9, 0, 1)], ["LTE", "LTE"], ["--classes", "LTE,LTE"]),
        ([annotation(0, 9, 0, 1)], ["Noise", ""], ["--classes"]),
    ],
)
def test_labels_that_make_no_masks(tmp_path, notes, classes, says):
    with pytest.raises(UserError) as error:
        AnnotatedWindows(folder_of(tmp_path, *notes), front_end(), classes)
    assert all(part in str(error.value) for part in says)
    assert "\n" not in str(error.value)


def test_recordings_that_cannot_have_labels_are_named(tmp_path):
    folder_of(tmp_path, annotation(0, 9, 2.4e9, 2.4e9 + 1))
    np.save(tmp_path / "b.npy", np.zeros(4000, np.complex64))
    with pytest.raises(UserError, match=r"b\.npy: expected a SigMF recording.*1 of 2"):
        AnnotatedWindows(find_recordings(tmp_path, RATE), front_end())


@pytest.mark.parametrize("settings", [{"n_fft": 16384}, {"duration_s": 1e-4}])
def test_windows_without_an_fft_are_refused(tmp_path, settings):
    with pytest.raises(UserError, match="--window_ms, --n_fft"):
        AnnotatedWindows(folder_of(tmp_path, annotation(0, 9, 2.4e9, 2.4e9 + 1)), front_end(**settings))


# Real captures


def listed():
    """Rows of the captures' table: (name, Msps, ms, [(label, lowest MHz, highest MHz)])."""
    for line in (CAPTURES / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"[\d.]+", cells[2]):
            edges = re.findall(r"(\w+) ([-+][\d.]+)…([-+][\d.]+)", cells[4])
            yield (
                cells[0],
                float(cells[2]),
                float(cells[3]),
                [(one[0], float(one[1]), float(one[2])) for one in edges],
            )


@needs_captures
def test_shared_captures_have_the_masks_that_their_table_says(capsys):
    made = Spectrogram(1024, 0.01, (224, 224))
    source = AnnotatedWindows(find_recordings(CAPTURES), made)
    assert "other (2)" in capsys.readouterr().err
    rows = {f"{name}.sigmf-meta": row for name, *row in listed()}
    assert len(rows) == len(set(source.groups["recording"])) == 25
    assert len(source) == sum(max(1, int(round(ms / 10, 6))) for _, ms, _ in rows.values())
    for index, recording in enumerate(source.groups["recording"]):
        msps, ms, carriers = rows[recording]
        mask = source.target(index)
        assert (mask == mask[:, :1]).all()  # every capture has its carriers all the time
        for number, name in ((1, "NR"), (2, "LTE")):
            edges = np.clip([one[1:] for one in carriers if one[0] == name] or [(0, 0)], -msps / 2, msps / 2)
            width = np.diff(edges).sum() / msps * 224
            assert (mask[:, 0] == number).sum() == pytest.approx(
                width, abs=len(edges) + 0.3
            )  # MHz are rounded to 0.01
        assert source.describe(index, None)["num_samples"] == pytest.approx(min(ms, 10) * msps * 1e3, abs=2)
    parts = make_splits(source, 0, 0.2, 0.2).parts
    found = [set(source.groups["recording"][indices]) for indices in parts.values()]
    assert sum(map(len, found)) == 25
