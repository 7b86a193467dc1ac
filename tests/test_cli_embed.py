"""main_embed.py: features of windows, their labels, nearest neighbours, and a run that goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support import CAPTURES, NANO, ROOT, call, command, largest_file, needs_captures, write_ci16

import engine_embed
import main_embed
import models_mae
import models_vit
from data.annotated import TiledRecordings
from data.set_writer import spectrogram_set_writer
from engine_embed import Rows, nearest_neighbours, principal_components
from radio.recordings import find_recordings
from radio.spectrogram import Spectrogram
from util.errors import UserError
from util.pretrained import read_weights, write_weights

FRONT_END = {"n_fft": 64, "duration_s": 0.01, "image_size": [16, 24], "normalize": "per_spectrogram"}
WIDTH, PATCHES = NANO["embed_dim"], 24


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
    monkeypatch.setitem(models_vit.PRESETS, "vit_nano", NANO)


@pytest.fixture
def weights(tmp_path):
    return write_encoder(tmp_path / "nano.safetensors", FRONT_END)


def write_encoder(path, front_end=None, in_chans=1):
    torch.manual_seed(0)
    model = models_vit.create_encoder("vit_nano", FRONT_END["image_size"], in_chans)
    for block in model.blocks:  # random weights alone leave features alike
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    write_weights(path, model.state_dict(), holds="encoder", preset="vit_nano", front_end=front_end)
    return path


def write_air(folder, count=3, duration_s=0.035):
    for number in range(count):
        write_ci16(folder, f"r{number}", duration_s, (200e3, 100e3)[number % 2], seed=number)
    return folder


def write_set(path, masks=None, labels=None, count=6):
    noise = np.random.default_rng(0).normal(size=(count, 1, 16, 24)).astype(np.float32)
    classes = ("Noise", "NR", "LTE") if masks is not None or labels is not None else ()
    with spectrogram_set_writer(
        path,
        count,
        Spectrogram(**FRONT_END),
        class_names=classes,
        masks=masks is not None,
        labels=labels is not None,
    ) as writer:
        for number in range(count):
            about = {
                "name": f"w{number}",
                "path": f"air/{number // 2}",
                "start_s": number / 10,
                "sample_rate_hz": 1e6,
            }
            writer.add(noise[number], about, masks and masks[number], labels and labels[number])
    return path


def embedded(tmp_path, data, weights, *flags, name="features.npz"):
    """The arrays that a run writes."""
    flags = (
        *([data] if not isinstance(data, list) else data),
        "--weights",
        weights,
        "--output",
        tmp_path / name,
        *flags,
    )
    assert call(main_embed, *flags, "--amp", "off", "--num_workers", 0) == 0
    assert not list(tmp_path.glob(".*partial"))
    with np.load(tmp_path / name, allow_pickle=False) as file:
        return dict(file)


def model_of(weights):
    read = read_weights(weights)
    model = models_vit.create_encoder("vit_nano", FRONT_END["image_size"], norm_eps=read.norm_eps)
    model.load_state_dict(read.state_dict)
    return model.eval()


# What the rows are


@torch.inference_mode()
def test_rows_are_the_encoder_of_each_window(tmp_path, weights):
    air = write_air(tmp_path / "air")
    found = embedded(tmp_path, air, weights, "--patches", "--batch_size", 4)
    front_end, model = Spectrogram(**FRONT_END), model_of(weights)
    source = TiledRecordings(find_recordings([air]), front_end)
    assert len(source) == 9
    for index in range(len(source)):
        tokens = model.encode(front_end(torch.from_numpy(source.load(index, None)[1])[None]))[0].numpy()
        np.testing.assert_allclose(found["cls"][index], tokens[0], atol=1e-4)
        np.testing.assert_allclose(found["mean"][index], tokens[1:].mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(found["patches"][index], tokens[1:], atol=4e-3)
    about = [source.describe(index, None) for index in range(len(source))]
    assert found["file"].tolist() == [one["path"] for one in about]
    for name in ("start_s", "sample_rate_hz", "center_freq_hz"):
        assert found[name].tolist() == [one[name] for one in about]
    shapes = {name: (found[name].shape, found[name].dtype) for name in ("cls", "mean", "patches", "start_s")}
    assert shapes == {
        "cls": ((9, WIDTH), np.float32),
        "mean": ((9, WIDTH), np.float32),
        "patches": ((9, PATCHES, WIDTH), np.float16),
        "start_s": ((9,), np.float64),
    }
    assert (str(found["preset"]), str(found["weights"])) == ("vit_nano", str(weights))
    assert json.loads(str(found["front_end"])) == FRONT_END
    assert found.keys() & {"label", "classes"} == set()


def test_the_patches_are_kept_when_asked_for_only(tmp_path, weights):
    assert "patches" not in embedded(tmp_path, write_air(tmp_path / "air", 1), weights)


def test_worker_processes_change_nothing(tmp_path, weights):
    air = write_air(tmp_path / "air")
    alone = embedded(tmp_path, air, weights)
    flags = ("--output", tmp_path / "b.npz", "--num_workers", 2, "--amp", "off")
    assert call(main_embed, air, "--weights", weights, *flags) == 0
    with np.load(tmp_path / "b.npz") as file:
        np.testing.assert_allclose(file["cls"], alone["cls"], atol=1e-5)


def test_paths_of_several_kinds_follow_each_other(tmp_path, weights):
    """Images have no times, and unlabelled windows beside labelled ones the label -1."""
    labelled = write_set(tmp_path / "set", labels=[0, 1, 2, 2, 1, 0])
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).save(tmp_path / "pictures" / "p.png")
    found = embedded(tmp_path, [labelled, tmp_path / "pictures"], weights)
    assert found["label"].tolist() == [0, 1, 2, 2, 1, 0, -1]
    assert found["file"].tolist() == [
        *(f"air/{number // 2}" for number in range(6)),
        str(tmp_path / "pictures" / "p.png"),
    ]
    assert np.isnan(found["start_s"][-1])
    assert np.isnan(found["center_freq_hz"]).all()


def test_other_weights_and_epsilons_change_the_rows(tmp_path, weights, capsys):
    air = write_air(tmp_path / "air", 1)
    usual = embedded(tmp_path, air, weights)
    assert "epsilon of norms inside blocks 1e-06" in capsys.readouterr().out
    other = embedded(tmp_path, air, weights, "--norm_eps", 0.1, name="b.npz")
    assert not np.allclose(usual["cls"], other["cls"], atol=1e-3)


def test_positions_are_resampled_for_another_image_size(tmp_path, weights, capsys):
    found = embedded(tmp_path, write_air(tmp_path / "air", 1), weights, "--input_size", 24, 32, "--patches")
    assert found["patches"].shape == (3, 48, WIDTH)
    assert "adapted: pos_embed 4 x 6 -> 6 x 8" in capsys.readouterr().out


def test_weights_without_a_front_end_get_a_default_with_one_warning(tmp_path, capsys):
    weights = write_encoder(tmp_path / "bare.safetensors")
    square = models_vit.create_encoder(
        "vit_nano", 16
    ).state_dict()  # a grid that follows from the number of patches
    write_weights(
        weights,
        read_weights(weights).state_dict | {"pos_embed": square["pos_embed"]},
        holds="encoder",
        preset="vit_nano",
    )
    write_ci16(tmp_path / "air", "a", 0.04)
    assert embedded(tmp_path, tmp_path / "air", weights, "--n_fft", 64, "--input_size", 16)["cls"].shape == (
        2,
        WIDTH,
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert "no front end for IQ" in lines[0]


# Labels


def test_masks_give_the_carrier_with_the_most_cells(tmp_path, weights):
    masks = np.zeros((6, 16, 24), np.uint8)
    masks[1, :1], masks[2, :5], masks[3, 0, 0] = 1, 2, 2
    masks[4, :3], masks[4, 3:5] = 1, 2
    data = write_set(tmp_path / "set", masks=list(masks))
    for number, flags in enumerate(((), ("--task", "segmentation"))):
        found = embedded(tmp_path, data, weights, *flags, name=f"{number}.npz")
        assert found["label"].tolist() == [0, 1, 2, 2, 1, 0]
        assert found["label"].dtype == np.int64
        assert found["classes"].tolist() == ["Noise", "NR", "LTE"]


def test_labels_of_a_set_come_before_its_masks_unless_the_task_says_so(tmp_path, weights):
    data = write_set(
        tmp_path / "set", masks=list(np.full((6, 16, 24), 2, np.uint8)), labels=[0, 1, 2, 2, 1, 0]
    )
    assert embedded(tmp_path, data, weights)["label"].tolist() == [0, 1, 2, 2, 1, 0]
    assert (
        embedded(tmp_path, data, weights, "--task", "segmentation", name="b.npz")["label"].tolist() == [2] * 6
    )


def test_all_parts_of_a_divided_set_are_read(tmp_path, weights):
    for number, part in enumerate(("train", "val", "test")):
        write_set(tmp_path / "scenes" / part, labels=[number] * 2, count=2)
    assert embedded(tmp_path, tmp_path / "scenes", weights)["label"].tolist() == [0, 0, 1, 1, 2, 2]


def test_class_folders(tmp_path, weights):
    for name in ("ble", "zigbee"):
        write_air(tmp_path / "folders" / name, 2)
    found = embedded(tmp_path, tmp_path / "folders", weights, "--task", "classification")
    assert found["label"].tolist() == [0] * 6 + [1] * 6
    assert found["classes"].tolist() == ["ble", "zigbee"]


def test_annotations(tmp_path, weights):
    carrier = {
        "core:sample_start": 2000,
        "core:sample_count": 2000,
        "core:freq_lower_edge": 2.4e9,
        "core:freq_upper_edge": 2.4e9 + 50e3,
        "core:label": "LTE",
    }
    write_ci16(tmp_path / "air", "a", annotations=[carrier], duration_s=0.03)
    found = embedded(tmp_path, tmp_path / "air", weights, "--task", "segmentation", "--classes", "Noise,LTE")
    assert found["label"].tolist() == [0, 1, 0]
    assert "label" not in embedded(tmp_path, tmp_path / "air", weights, name="b.npz")


def test_csi(tmp_path, weights, capsys):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "csi.npz",
        x=rng.random((8, 10, 30)),
        label=np.array(list("abababab")),
        day=np.arange(8) // 4,
    )
    found = embedded(
        tmp_path, tmp_path / "csi.npz", weights, "--knn", 2, "--leave_out", "day", name="features.npz"
    )
    assert found["label"].tolist() == [0, 1] * 4
    assert found["file"].tolist() == [str(tmp_path / f"csi.npz [{number}]") for number in range(8)]
    assert "leave-day-out: 8 windows of 2" in capsys.readouterr().out
    settings = json.loads(str(found["front_end"]))
    assert np.shape(settings["normalization"]["mean"]) == (1, 10, 1)
    settings["normalization"]["std"] = np.full((1, 10, 1), 3.0).tolist()
    other = embedded(
        tmp_path, tmp_path / "csi.npz", write_encoder(tmp_path / "csi.safetensors", settings), name="b.npz"
    )
    assert json.loads(str(other["front_end"])) == settings  # statistics of the weights come first
    assert not np.allclose(found["cls"], other["cls"], atol=1e-3)


# Going on


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, weights, monkeypatch):
    air = write_air(tmp_path / "air", 4)
    flags = (air, "--weights", weights, "--amp", "off", "--num_workers", 0, "--batch_size", 2, "--patches")
    assert call(main_embed, *flags, "--output", tmp_path / "through.npz") == 0
    calls, embed = [], models_vit.Encoder.forward

    def stop_at_third(model, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(model, images)

    monkeypatch.setattr(models_vit.Encoder, "forward", stop_at_third)
    assert call(main_embed, *flags, "--output", tmp_path / "b.npz") == 75
    assert not (tmp_path / "b.npz").exists()
    assert call(main_embed, *flags, "--output", tmp_path / "b.npz") == 0
    assert calls == [2] * 7
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "through.npz").read_bytes()
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "through.png").read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, weights):
    """Killed after a commit and in the middle of the rows after it."""
    air = write_air(tmp_path / "air", 4)
    flags = [
        str(flag)
        for flag in (
            air,
            "--weights",
            weights,
            "--amp",
            "off",
            "--num_workers",
            1,
            "--batch_size",
            2,
            "--output",
            tmp_path / "b.npz",
        )
    ]
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import engine_embed, main_embed, models_mae, models_vit, torch
from support import NANO
models_mae.PRESETS["mae_vit_nano"] = models_vit.PRESETS["vit_nano"] = NANO
add = engine_embed.Rows.add
def killed(rows, values):
    add(rows, values)
    if rows.done == 4:
        rows.commit()
    if rows.done == 6:
        os.truncate(rows.folder / "mean", 5 * rows.row_bytes("mean") + 7)
        os.kill(os.getpid(), signal.SIGKILL)
engine_embed.Rows.add = killed
main_embed.main(main_embed.get_args_parser().parse_args({flags!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / ".b.npz.partial" / "state.json").read_text())["done"] == 4
    assert call(main_embed, *flags) == 0
    assert call(main_embed, *flags[:-1], tmp_path / "through.npz") == 0
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "through.npz").read_bytes()
    assert not list(tmp_path.glob(".*partial"))


def test_rows_of_other_arguments_are_no_start(tmp_path):
    columns = {"cls": (np.float32, (2,))}

    def stop(key):
        with Rows(tmp_path / "partial", columns, key) as rows:
            rows.add({"cls": np.ones((3, 2))})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop({"model": "a"})
    with pytest.raises(
        UserError, match=r'made with other arguments \(model was "a", is "b"\): remove that folder'
    ):
        stop({"model": "b"})
    with Rows(tmp_path / "partial", columns, {"model": "a"}) as rows:
        assert rows.done == 3
        assert rows.read("cls", 1, 9).tolist() == [[1, 1], [1, 1]]
    assert not (tmp_path / "partial").exists()


def test_one_process_writes_at_a_time(tmp_path):
    def second():
        with contextlib.suppress(UserError), Rows(tmp_path / "partial", {"cls": (np.float32, (2,))}, {}):
            os._exit(1)
        os._exit(0)

    with Rows(tmp_path / "partial", {"cls": (np.float32, (2,))}, {}) as rows:
        rows.add({"cls": np.ones((3, 2))})
        child = os.fork() or second()
        assert os.waitpid(child, 0)[1] == 0
        assert rows.read("cls", 0, 3).tolist() == [[1, 1]] * 3


def test_no_array_of_features_is_in_memory(tmp_path, monkeypatch):
    rows = rows_of(tmp_path, np.random.default_rng(0).normal(size=(5000, 100)), [0, 1] * 2500)
    monkeypatch.setattr(engine_embed, "CHUNK_BYTES", 2**14)
    windows = SimpleNamespace(names=["a"], file=np.zeros(5000, int), COLUMNS=())
    tracemalloc.start()
    try:
        engine_embed.write_features(tmp_path / "f.npz", rows, windows, {})
        principal_components(rows, "cls")
        assert tracemalloc.get_traced_memory()[1] < 5000 * 100 * 4 / 2
    finally:
        tracemalloc.stop()
    with np.load(tmp_path / "f.npz") as file:
        assert np.array_equal(file["cls"], rows.read("cls", 0, 5000))


# Nearest neighbours and principal components


def rows_of(tmp_path, features, labels):
    columns = {"cls": (np.float32, features.shape[1:]), "label": (np.int64, ())}
    rows = Rows(tmp_path / "rows", columns, {})
    rows.__enter__().add({"cls": features, "label": np.array(labels)})
    return rows


def neighbours(rows, names, group, k):
    windows = SimpleNamespace(class_names=names, group=np.array(group))
    return nearest_neighbours(rows, "cls", windows, np.full(rows.done, True), k)


def test_neighbours_of_the_same_recording_have_no_vote(tmp_path):
    """Six recordings whose windows lie at one angle each and have changing labels; the label is in the angle
    of others.
    """
    angles = np.array([0.0, 0.3, 0.6, 2.0, 2.3, 2.6]).repeat(3)
    features = (
        np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 19)[:, None]
    )  # length says nothing
    labels = [0] * 9 + [1] * 9
    group = np.arange(6).repeat(3)
    assert neighbours(rows_of(tmp_path, features, labels), ["a", "b"], group, 4)["pixel_accuracy"] == 1.0


def test_leaving_recordings_out_decides(tmp_path, monkeypatch):
    """A window's nearest neighbours, all of its own recording, agree with it; the next recording never does."""
    angles = np.array([0.0, 0.5, 1.0, 1.5]).repeat(5)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 1, 0, 1]).repeat(5)
    rows = rows_of(tmp_path, features, labels)
    assert neighbours(rows, ["a", "b"], np.arange(4).repeat(5), 5)["pixel_accuracy"] == 0.0
    assert neighbours(rows, ["a", "b"], np.arange(20), 4)["pixel_accuracy"] == 1.0  # what a leak would report
    monkeypatch.setattr(engine_embed, "QUERIES", 3)
    monkeypatch.setattr(engine_embed, "NEIGHBOURS", 4)
    assert neighbours(rows, ["a", "b"], np.arange(4).repeat(5), 5)["pixel_accuracy"] == 0.0
    assert neighbours(rows, ["a", "b"], np.arange(20), 4)["pixel_accuracy"] == 1.0


def test_unlabelled_windows_have_no_vote_and_more_neighbours_than_windows_are_fine(tmp_path):
    features = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.05], [0.05, 1]])
    rows = rows_of(tmp_path, features, [0, 0, 1, 1, -1, -1])
    windows = SimpleNamespace(class_names=["a", "b"], group=np.arange(6))
    results = nearest_neighbours(rows, "cls", windows, np.arange(6) < 4, 20)
    assert (results["samples"], results["pixel_accuracy"]) == (4, 1.0)


def test_components_are_those_of_the_singular_value_decomposition(tmp_path, monkeypatch):
    features = np.random.default_rng(0).normal(size=(50, 6)) * [1, 5, 2, 1, 9, 1] + 3
    features = features.astype(np.float32)
    rows = rows_of(tmp_path, features, [0] * 50)
    monkeypatch.setattr(engine_embed, "CHUNK_BYTES", 7 * rows.row_bytes("cls"))
    points, shares = principal_components(rows, "cls")
    left, values, axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    sign = np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)])
    np.testing.assert_allclose(points, (left * values)[:, :2] * sign, atol=1e-4)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:2], rtol=1e-5)


def test_neighbours_are_printed_and_classes_of_one_recording_left_out(tmp_path, weights, capsys):
    data = write_set(tmp_path / "set", labels=[0, 1, 0, 1, 2, 2])
    embedded(tmp_path, data, weights, "--knn")
    out = capsys.readouterr().out
    assert "k-NN: LTE is not scored: it is in one recording only" in out
    assert "k = 20, votes weighted by exp(s / 0.07), leave-recording-out: 4 windows of 2" in out
    assert "chance (always Noise)     50.0%" in out
    assert out.index("class token") < out.index("mean of patches")
    assert "6 rows of 16" in out


def test_the_picture_shows_points_of_each_group(tmp_path, weights):
    embedded(tmp_path, write_air(tmp_path / "air"), weights)
    picture = np.asarray(Image.open(tmp_path / "features.png").convert("RGB"), int).reshape(-1, 3)
    coloured = picture[np.ptp(picture, axis=1) > 60]
    assert len(np.unique(coloured // 64, axis=0)) >= 3


# Mistakes


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, weights, capsys):
    air = write_air(tmp_path / "air", 2)
    (tmp_path / "taken.npz").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    out = ("--output", tmp_path / "new" / "f.npz")
    plain = (air, "--weights", weights)
    for flags, expected in (
        ((air, "--weights", tmp_path / "none.pth", *out), "expected a file of weights; found no such file"),
        (
            (tmp_path / "none", "--weights", weights, *out),
            "DATA {}/none: expected a file or folder; found none",
        ),
        (("synthetic", "--weights", weights, *out), "DATA synthetic: expected recordings"),
        (
            (*plain, "--output", tmp_path / "taken.npz"),
            "--output {}/taken.npz: expected a new file; it exists already",
        ),
        ((*plain, "--output", tmp_path / "f.npy"), "expected a name that ends in .npz"),
        ((*plain, "--output", tmp_path / "taken.npz" / "f.npz"), "expected a folder that can be written"),
        ((*plain, *out, "--knn"), "--knn: expected labelled data"),
        ((*plain, *out, "--knn", 0), "--knn: expected at least 1; found 0"),
        ((*plain, *out, "--leave_out", "day"), "--leave_out: expected --knn"),
        ((*plain, *out, "--batch_size", 0), "--batch_size: expected at least 1"),
        ((*plain, *out, "--norm_eps", -1), "--norm_eps: expected"),
        (
            (*plain, *out, "--n_fft", 128),
            "--n_fft: expected 64, which the weights were trained with; found 128",
        ),
        ((*plain, *out, "--input_size", 15), "expected multiples of patch_size=4"),
        ((*plain, *out, "--classes", "a,b"), "--classes: expected --task segmentation"),
        ((*plain, *out, "--task", "classification"), "expected folders of two classes or more"),
    ):
        assert call(main_embed, *flags) == 2, flags
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if not line.startswith("warning")]
        assert len(lines) == 1, error
        assert expected.format(tmp_path) in lines[0], error
        assert "--data_path" not in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_neighbours_need_two_recordings(tmp_path, weights, capsys):
    data = write_set(tmp_path / "set", labels=[0, 1], count=2)
    out = ("--output", tmp_path / "f.npz")
    assert call(main_embed, data, "--weights", weights, *out, "--knn") == 2
    assert (
        "--knn: expected two recordings or more, to leave each out in turn; found one, air/0"
        in capsys.readouterr().err
    )
    assert call(main_embed, data, "--weights", weights, *out, "--knn", "--leave_out", "day") == 2
    assert "--leave_out: expected a column of the data" in capsys.readouterr().err


def test_damaged_samples_are_one_line(tmp_path, weights, capsys):
    iq = np.ones(4000, np.complex64)
    iq[3000] = np.nan
    np.save(tmp_path / "x.npy", iq)
    flags = (tmp_path / "x.npy", "--sample_rate", 100e3, "--weights", weights, "--output", tmp_path / "f.npz")
    assert call(main_embed, *flags, "--num_workers", 0) == 2
    assert "x.npy: expected finite samples" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, weights, capsys):
    air = write_air(tmp_path / "air", 4)
    flags = (
        air,
        "--weights",
        weights,
        "--output",
        tmp_path / "f.npz",
        "--num_workers",
        0,
        "--batch_size",
        2,
        "--patches",
    )
    # Of the patches of 12 windows, 9216 bytes; of the picture.
    for size_bytes, expected in (
        (4000, ".f.npz.partial: expected a folder"),
        (10_000, "f.npz: expected a file"),
    ):
        with largest_file(size_bytes):
            assert call(main_embed, *flags) == 2
        assert expected in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.glob("*f.*")) == [".f.npz.partial"]
    assert call(main_embed, *flags) == 0
    assert sorted(path.name for path in tmp_path.glob("*f.*")) == ["f.npz", "f.png"]


@needs_captures
@pytest.mark.slow
def test_neighbours_of_real_captures(tmp_path):
    flags = ("--task", "segmentation", "--classes", "Noise,NR,LTE", "--knn", "--output", tmp_path / "f.npz")
    done = command(
        "main_embed.py", CAPTURES, "--weights", ROOT / "weights" / "radio_seg_vit_tiny.safetensors", *flags
    )
    assert done.returncode == 0, done.stderr
    [accuracy] = [line.split()[3] for line in done.stdout.splitlines() if line.startswith("mean of patches")]
    assert float(accuracy.rstrip("%")) > 65  # chance: 47 %
    with np.load(tmp_path / "f.npz") as file:
        assert file["cls"].shape == (len(file["file"]), 192)
        assert set(file["label"].tolist()) == {0, 1, 2}
