"""hubconf.py as torch.hub gives it: every entry, models with their weights, and a labeller like
main_segment.py.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import ROOT, call, write_sigmf

import hubconf
import main_segment
import main_synthesize
import models_mae
import models_vit
from engine_label import PICTURE_STRETCHES
from radio.carriers import CLASS_NAMES, OTHER, Carrier
from radio.recordings import open_recording
from radio.spectrogram import Spectrogram
from util.errors import UserError
from util.fetch import WEIGHTS, entries
from util.pretrained import read_weights

RELEASED = ["radio_mae_vit_tiny", "radio_seg_vit_tiny"]
RATE = 15.36e6


def load(name, *args, **kwargs):
    return torch.hub.load(str(ROOT), name, *args, source="local", **kwargs)


@pytest.fixture(scope="module")
def labeller():
    """The model alone, whose search for cells takes longer than all else."""
    return load("labeller", device="cpu", amp="off", confirm=False)


@pytest.fixture(scope="module")
def iq(tmp_path_factory):
    """A scene with an LTE carrier that the released weights find: complex64 [400,000], 26 ms."""
    folder = tmp_path_factory.mktemp("scene")
    assert (
        call(
            main_synthesize,
            "--output",
            folder,
            "--iq",
            "only",
            "--preset",
            "classic",
            "--train",
            0,
            "--val",
            0,
            "--test",
            1,
            "--seed",
            3,
            "--num_workers",
            0,
            "--set",
            "duration_ms=27",
            f"sample_rates_hz={RATE}",
            "technologies=LTE",
            "lte_bandwidths_mhz=10",
            "snr_db=30",
            "num_carriers=1",
            "doppler_hz=0",
        )
        == 0
    )
    [recording] = open_recording(next(folder.rglob("*.sigmf-meta")))
    iq = recording.read(0, 400_000)
    return 0.5 * iq / np.abs(iq).max()


def write_iq(folder, iq, captures=({"core:sample_start": 0, "core:frequency": 1.8e9},)):
    folder.mkdir(parents=True, exist_ok=True)
    values = np.round(np.stack([iq.real, iq.imag], axis=1) * 2**15).astype("<i2")
    return write_sigmf(folder, values.tobytes(), "ci16_le", captures=captures, sample_rate=RATE)


def labelled_by_command(path, output, *flags):
    assert (
        call(
            main_segment,
            path,
            "--weights",
            RELEASED[1],
            "--device",
            "cpu",
            "--amp",
            "off",
            "--output",
            output,
            *flags or ("--no-confirm",),
        )
        == 0
    )
    return json.loads((output / "a.json").read_text())


def assert_same_carriers(labels, about):
    assert len(labels) == len(about["carriers"]) > 0
    for carrier, one in zip(labels, about["carriers"], strict=True):
        assert isinstance(carrier, Carrier)
        assert {name: getattr(carrier, name) for name in one if name != "stretch"} == {
            name: value for name, value in one.items() if name != "stretch"
        }


def test_every_entry_is_listed_and_explained():
    """As torch.hub.list lists them: what can be called and has no underscore."""
    listed = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")}
    weights = {name for name, entry in entries().items() if entry.kind == WEIGHTS}
    assert set(RELEASED) < weights
    assert listed == {"labeller", *models_mae.PRESETS, *models_vit.PRESETS, *weights}
    for name in listed:
        about = getattr(hubconf, name).__doc__
        assert all(part in about for part in ("Args:", "Returns:", "Raises:")), name
        assert getattr(hubconf, name).__name__ == name


@pytest.mark.slow
def test_the_dependencies_are_what_is_imported():
    """Everything that is not of the standard library, of a process that labels."""
    program = """
import sys
import hubconf, engine_label, engine_segment
assert not {"requests", "huggingface_hub"} - set(hubconf.dependencies)
own = {name.partition(".")[0] for name in sys.modules} & set(sys.argv[1].split())
print(*sorted(own - set(hubconf.dependencies)))
"""
    names = [
        line.partition(">")[0]
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if ">=" in line
    ]
    line = [sys.executable, "-c", program, " ".join({*names} - {"pillow"})]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.slow
def test_it_works_from_elsewhere(tmp_path):
    """From another folder, by a path that is put on `sys.path` for the call alone."""
    program = f"""
import torch
labeller = torch.hub.load({str(ROOT)!r}, "labeller", source="local", device="cpu")
labels = labeller.label(torch.randn(80_000, dtype=torch.complex64), sample_rate_hz=20e6)
print(type(labels.figure()).__name__, labels.class_map.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["Figure (111, 112)"], done.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mae_vit_tiny_patch16", models_mae.MaskedAutoencoderViT), ("vit_tiny_patch16", models_vit.Encoder)],
)
def test_a_preset(name, kind):
    plain = load(name, img_size=(32, 64), in_chans=2)
    assert type(plain).__name__ == kind.__name__
    assert (plain.grid_size, plain.in_chans) == ((2, 4), 2)
    path = ROOT / "weights" / "radio_mae_vit_tiny.safetensors"
    started = load(name, pretrained=str(path))
    expected = read_weights(path).state_dict
    assert started.img_size == (112, 560)
    for key, value in started.state_dict().items():
        assert torch.equal(value, expected[key].float()), key
    assert started.load_report.new == []


def test_a_preset_with_weights_that_it_has_more_than(capsys):
    """An encoder with a head has no decoder to predict patches with: that is said."""
    model = load("mae_vit_tiny_patch16", pretrained="radio_seg_vit_tiny", img_size=112)
    assert model.grid_size == (7, 7)
    captured = capsys.readouterr()
    assert "start at random: mask_token, decoder_blocks.2..3.*, decoder_pred.*" in captured.err
    assert "loaded" not in captured.out
    load("vit_tiny_patch16", pretrained="radio_seg_vit_tiny", show_report=True)
    assert "blocks.0..11.*" in capsys.readouterr().out


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file(name):
    model, weights = load(name), read_weights(name)
    own = model.state_dict()
    assert own.keys() == weights.state_dict.keys()
    assert all(torch.equal(value, weights.state_dict[key].float()) for key, value in own.items())
    assert model.front_end.settings() == weights.front_end
    assert model.class_names == weights.classes
    other = load(name, pretrained=False).state_dict()
    assert other.keys() == own.keys()
    assert not torch.equal(other["blocks.0.attn.qkv.weight"], own["blocks.0.attn.qkv.weight"])


def test_a_front_end_goes_with_its_model(iq):
    model = load("radio_seg_vit_tiny").eval()
    iq = torch.from_numpy(iq[: model.front_end.num_samples(RATE)])
    with torch.inference_mode():
        logits = model(model.front_end(iq[None], RATE))
    assert logits.shape == (1, 4, 112, 560)
    assert load("radio_mae_vit_tiny", mask_kind="time").mask_kind == "time"


def test_a_recording_is_labelled_as_main_segment_labels_it(labeller, iq, tmp_path):
    path = write_iq(tmp_path, iq)
    about = labelled_by_command(path, tmp_path / "out")
    labels = labeller.label(path)
    assert_same_carriers(labels, about)
    assert labels.class_names == labeller.class_names == [*CLASS_NAMES, OTHER]
    assert labels.class_map.dtype == np.uint8
    assert labels.class_map.shape[0] == labeller.segmenter.front_end.num_rows(RATE)
    assert labels.extent == (0.0, pytest.approx(400_000 / RATE), 1.8e9 - RATE / 2, 1.8e9 + RATE / 2)
    left, _, right = labels.figure().axes
    assert len(left.collections[0].get_paths()) == len(labels)
    assert np.array_equal(right.images[0].get_array(), labels.class_map)
    assert torch.get_num_threads() == 1


def test_limits_are_those_of_main_segment(iq, tmp_path):
    path = write_iq(tmp_path, iq)
    flags = {
        "overlap": 0.5,
        "min_confidence": 0.3,
        "min_bandwidth_hz": 1e5,
        "min_duration_s": 1e-3,
        "bridge_s": 0.0,
    }
    words = [part for name, value in flags.items() for part in (f"--{name}", value)]
    about = labelled_by_command(path, tmp_path / "out", *words, "--no-confirm")
    other = load("labeller", device="cpu", amp="off", confirm=False, **flags)
    assert_same_carriers(other.label(str(path)), about)


@pytest.mark.slow
def test_cells_confirm_carriers(iq):
    """5 ms of an LTE carrier of 10 MHz."""
    labels = load("labeller", device="cpu", amp="off").label(iq[:76_800], sample_rate_hz=RATE)
    [carrier] = [one for one in labels if one.confirmed]
    assert carrier.label == carrier.cell.technology == "LTE"
    assert carrier.bandwidth_hz == pytest.approx(9e6, abs=RATE / 112)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_zeros_in_a_recording(iq):
    """Cells without power are no trouble for what the energy tells of an LTE carrier."""
    padded = iq[:230_400].copy()
    padded[:20_000] = padded[60_000:64_000] = 0
    labels = load("labeller", device="cpu", amp="off").label(padded, sample_rate_hz=RATE)
    [carrier] = [one for one in labels if one.confirmed]
    assert carrier.bandwidth_hz == pytest.approx(9e6, abs=RATE / 112)


def test_a_retuned_recording(labeller, iq, tmp_path):
    """Carriers of all stretches, times from the file's first sample; a class map for each."""
    captures = [
        {"core:sample_start": 0, "core:frequency": 1.8e9},
        {"core:sample_start": 200_000, "core:frequency": 2e9},
    ]
    path = write_iq(tmp_path, iq, captures)
    labels = labeller.label(path)
    assert_same_carriers(labels, labelled_by_command(path, tmp_path / "out"))
    first, second = labels.stretches
    assert second.start_s == first.extent[1] == 200_000 / RATE
    assert second.extent[2:] == (2e9 - RATE / 2, 2e9 + RATE / 2)
    assert first.class_map.shape == second.class_map.shape
    assert all(carrier.start_s >= second.start_s for carrier in second.carriers)
    with pytest.raises(UserError, match="expected a recording of one stretch; found 2"):
        labels.class_map  # noqa: B018
    pictures = [axis for axis in labels.figure().axes if axis.images and axis.get_title()]
    assert len(pictures) == 4 <= 2 * PICTURE_STRETCHES


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_array(labeller, iq, tmp_path, kind):
    path = write_iq(tmp_path, iq)
    given = iq.astype(np.complex128) if kind == "numpy" else torch.from_numpy(iq)
    labels = labeller.label(given, sample_rate_hz=RATE, center_freq_hz=1.8e9)
    expected = labeller.label(path)
    assert len(labels) == len(expected) > 0
    for one, other in zip(labels, expected, strict=True):
        assert one.freq_lower_hz == pytest.approx(other.freq_lower_hz, abs=RATE / 85)
        assert one.label == other.label
    centred = labeller.label(given, sample_rate_hz=RATE)
    assert all(abs(one.center_freq_hz) < RATE / 2 for one in centred)


def test_a_raw_file(labeller, iq, tmp_path):
    iq.tofile(tmp_path / "a.cf32")
    from_file = labeller.label(tmp_path / "a.cf32", sample_rate_hz=RATE, center_freq_hz=1e9)
    assert list(from_file) == list(labeller.label(iq, sample_rate_hz=RATE, center_freq_hz=1e9))


@pytest.mark.parametrize(
    ("call_", "expected"),
    [
        (lambda: load("labeller", "nonsense"), "nonsense: expected a file or a name of"),
        (
            lambda: load("labeller", "radio_mae_vit_tiny"),
            "expected weights with a segmentation head; found none",
        ),
        (lambda: load("labeller", classes=["a", "b", "c", "d"]), "--classes: expected Noise,NR,LTE,Other"),
        (lambda: load("labeller", min_confidence=2), "min_confidence: expected 0 to 1; found 2"),
        (lambda: load("vit_tiny_patch16", "nonsense"), "nonsense: expected a file or a name of"),
        (lambda: load("vit_tiny_patch16", True), "expected a file of weights or a name of"),
        (lambda: load("vit_small_patch16", "radio_mae_vit_tiny"), "radio_mae_vit_tiny: expected"),
        (lambda: load("vit_tiny_patch16", img_size=17), "expected multiples of patch_size"),
        (lambda: load("mae_vit_base", offline=True), "expected it in the cache, being offline"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, tmp_path, call_, expected):
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path))
    with pytest.raises(UserError) as raised:
        call_()
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("recording", "more", "expected"),
    [
        ("gone.sigmf-meta", {}, "gone.sigmf-meta: expected a recording"),
        (
            np.zeros(10_000, np.float32),
            {"sample_rate_hz": 1e6},
            "iq: expected a complex array [samples]; found float32",
        ),
        (np.zeros((2, 10_000), np.complex64), {"sample_rate_hz": 1e6}, "found complex64 [2, 10000]"),
        (
            np.zeros(10_000, np.complex64),
            {},
            "sample_rate_hz: expected the array's sample rate in Hz; found None",
        ),
        (
            np.zeros(20, np.complex64),
            {"sample_rate_hz": 1e6},
            "iq: expected at least 70 samples, an FFT; found 20",
        ),
        (
            np.full(10_000, np.nan, np.complex64),
            {"sample_rate_hz": 1e6},
            "iq: expected finite samples, found ",
        ),
    ],
)
def test_recordings_that_cannot_be_labelled(labeller, recording, more, expected):
    with pytest.raises(UserError) as raised:
        labeller.label(recording, **more)
    assert expected in str(raised.value)


def test_it_is_no_other_front_end_than_the_files(labeller):
    assert labeller.segmenter.front_end.settings() == read_weights(RELEASED[1]).front_end
    assert labeller.segmenter.front_end.settings() != Spectrogram(1024, 0.016, (224, 224)).settings()
