"""Scenes made while training: which they are, and what training on them gives."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from support import call, write_ci16

import engine_reconstruct
import main_pretrain
import main_synthesize
from data import registry
from data.batches import EpochBatches, MaskedSamples, to_images
from data.feeding import make_loader
from data.sampling import DECIBELS
from data.synthetic import SceneMaker, SyntheticScenes, scene_config, scene_mask
from radio.rng import TRAINING, VALIDATION, Stream
from radio.scenes.config import CLASSIC, WILD, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render
from radio.spectrogram import Spectrogram
from util import checkpoint
from util.errors import UserError
from util.saver import Saver

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores

CPU = torch.device("cpu")
SHORT = ("sample_rates_hz=1.92e6", "duration_ms=2")  # scenes of milliseconds
CONFIG = with_settings(WILD, SHORT)


def front_end():
    return Spectrogram(128, 0.002, (32, 32))


def source(count=8, seed=0, config=CONFIG, **kwargs):
    return SyntheticScenes(SceneMaker(config, seed), count, front_end(), **kwargs)


def epochs_of(scenes, workers=0, training=True, batch_size=3, epochs=(0, 1, 2)):
    """What the workers send in some epochs: a list of batches for each."""
    batches = EpochBatches(len(scenes), batch_size, seed=0, shuffle=training)
    loader = make_loader(MaskedSamples(scenes, 4, 0, training), batches, workers, pin_memory=False)
    delivered = []
    for epoch in epochs:
        batches.epoch = epoch
        delivered.append([])
        for ends_batch, batch in loader.pieces():
            assert ends_batch
            batch["parts"] = [(kind, values.clone(), places) for kind, values, places in batch["parts"]]
            delivered[-1].append(batch)
    return delivered


# Which scene is made


@pytest.mark.parametrize("workers", [0, 3])
def test_no_scene_is_made_twice(workers):
    """(kind, number) of three epochs, as they reach the device, whichever worker sent them."""
    scenes = source(8, on_device=True)
    training, held_out = scenes.split(0.5, seed=0)
    made = [
        tuple(pair)
        for epoch in epochs_of(training, workers)
        for batch in epoch
        for _, numbers, _ in batch["parts"]
        for pair in numbers.tolist()
    ]
    assert sorted(made) == [(TRAINING, number) for number in range(24)]
    held = [
        [tuple(pair) for batch in epoch for _, numbers, _ in batch["parts"] for pair in numbers.tolist()]
        for epoch in epochs_of(held_out, workers, training=False)
    ]
    assert held == [[(VALIDATION, number) for number in range(4)]] * 3
    assert TRAINING != VALIDATION


def test_a_sample_is_the_spectrogram_of_its_number():
    scenes = source(5, seed=3)
    for epoch, index in ((0, 0), (0, 4), (2, 1)):
        number = 5 * epoch + index
        scene = draw(CONFIG, Stream(3, TRAINING, number))
        kind, values = scenes.load(index, None, epoch)
        assert kind == DECIBELS
        assert np.array_equal(values, front_end().decibels(render(scene)[None])[0].numpy())
        assert np.array_equal(scenes.mask(index, epoch), scene_mask(scene, front_end(), CONFIG.classes))
        expected = {
            "name": f"scene {number} of seed 3",
            "start_s": 0.0,
            "num_samples": 3840,
            "sample_rate_hz": 1.92e6,
            "center_freq_hz": scene.center_freq_hz,
            "scene": scene.parameters(),
        }
        assert scenes.describe(index, None, epoch) == expected
    assert not np.array_equal(scenes.load(0, None)[1], source(5, seed=4).load(0, None)[1])
    held_out = scenes.split(0.4, seed=0)[1]
    scene = draw(CONFIG, Stream(3, VALIDATION, 1))
    assert np.array_equal(held_out.load(1, None, 7)[1], front_end().decibels(render(scene)[None])[0].numpy())
    assert np.array_equal(held_out.mask(1, 7), scene_mask(scene, front_end(), CONFIG.classes))


def test_masks_know_the_classes_of_the_configuration():
    config = with_settings(CONFIG, ["num_distractors=3", "distractor_snr_db=20", "noise_only=0", "snr_db=20"])
    assert config.classes == ("Noise", "NR", "LTE", "Other")
    assert CLASSIC.classes == ("Noise", "NR", "LTE")
    without = with_settings(config, ["classes=Noise,LTE"])
    all_masks, some = (
        np.stack([scenes.mask(index) for index in range(20)])
        for scenes in (source(20, config=config), source(20, config=without))
    )
    assert set(np.unique(all_masks)) == {0, 1, 2, 3}
    assert np.array_equal(some == 1, all_masks == 2)
    assert not some[all_masks != 2].any()


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.01, 1), (0.5, 10), (0.99, 20)])
def test_held_out_scenes_are_added_to_those_of_training(fraction, count):
    training, held_out = source(20).split(fraction, seed=0)
    assert (len(training), len(held_out)) == (20, count)


def images(scenes, **kwargs):
    """Sample -> image of every epoch, by the way that training takes."""
    return {
        (epoch, int(index)): image
        for epoch, batches in enumerate(epochs_of(scenes, **kwargs))
        for batch in batches
        for index, image in zip(batch["index"], to_images(batch["parts"], front_end(), CPU), strict=True)
    }


def test_workers_batches_and_the_place_of_making_change_nothing():
    expected = images(source())
    assert len(expected) == 24
    assert len({image.sum().item() for image in expected.values()}) == 24
    for other in (
        images(source(), workers=1),
        images(source(), workers=4, batch_size=2),
        images(source(on_device=True)),
        images(source(on_device=True), workers=2, batch_size=8),
    ):
        assert other.keys() == expected.keys()
        assert all(torch.equal(image, expected[key]) for key, image in other.items())


def test_threads_change_nothing():
    """Sums of more threads have other last bits, which a quantiser makes visible."""
    scenes = source(6, config=with_settings(CONFIG, ["sample_rates_hz=30.72e6"]))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([scenes.load(index, None)[1] for index in range(6)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


def test_scenes_shorter_than_an_fft_are_refused():
    with pytest.raises(UserError, match="--n_fft: expected at most 3840, the shortest scene; found 3841"):
        SyntheticScenes(SceneMaker(CONFIG, 0), 4, Spectrogram(3841))
    SyntheticScenes(SceneMaker(CONFIG, 0), 4, Spectrogram(3840))


# What the flags open


def opened(*line):
    parser = argparse.ArgumentParser()
    registry.add_data_arguments(parser)
    args = parser.parse_args(["--data_path", *map(str, line)])
    found = registry.find(args.data_path)
    made = registry.front_end_for(found, args)
    return registry.open_source(found, made, args, seed=5), made


def test_presets_are_named_behind_a_colon():
    scenes, made = opened("synthetic", "--scenes", 7)
    assert (scenes.maker, len(scenes), made.duration_s) == (SceneMaker(WILD, 5), 7, 0.016)
    assert opened("synthetic:wild")[0].maker == SceneMaker(WILD, 5)
    scenes, made = opened("synthetic:classic", "--set", "snr_db=3")
    assert scenes.maker.config == with_settings(CLASSIC, ["snr_db=3"])
    assert made.duration_s == 0.04
    with pytest.raises(
        UserError, match="synthetic:tame: expected one of the presets wild, classic; found tame"
    ):
        opened("synthetic:tame")
    assert scene_config("wild", 4.0).duration_ms == (4.0,)


def test_a_window_length_is_that_of_every_scene():
    for path in ("synthetic", "synthetic:classic"):
        scenes, made = opened(path, "--window_ms", 3)
        assert made.duration_s == 0.003
        assert {scenes.maker.draw(TRAINING, number).duration_s for number in range(9)} == {0.003}


def test_scenes_and_recordings_in_one_epoch(tmp_path):
    write_ci16(tmp_path / "air", "a", 0.1)
    flags = (
        "--scenes",
        3,
        "--window_ms",
        2,
        "--n_fft",
        128,
        "--input_size",
        32,
        "--set",
        "sample_rates_hz=1.92e6",
    )
    both, made = opened("synthetic", tmp_path / "air", *flags)
    assert len(both) == 3 + 50
    delivered = epochs_of(both, batch_size=64, epochs=(1,))
    batch = delivered[0][0]
    assert sorted(len(values) for _, values, _ in batch["parts"]) == [3, 50]
    found = dict(zip(batch["index"].tolist(), to_images(batch["parts"], made, CPU), strict=True))
    for index in range(3):
        scene = both.sources[0].maker.draw(TRAINING, 3 + index)
        assert torch.equal(found[index], made(render(scene)[None])[0])


def test_settings_of_scenes_need_scenes(tmp_path):
    write_ci16(tmp_path, "a", 0.1)
    with pytest.raises(UserError, match="--set: expected --data_path synthetic with it; found none"):
        opened(tmp_path, "--set", "snr_db=3")


# Training on them

# Four patches; 8 scenes an epoch in batches of 3, 4 of their own held out.
SMALL = (
    "--model",
    "mae_vit_tiny_patch16",
    "--input_size",
    32,
    "--n_fft",
    128,
    "--window_ms",
    2,
    "--batch_size",
    3,
    "--epochs",
    2,
    "--warmup_epochs",
    0,
    "--blr",
    0.1,
    "--val_fraction",
    0.5,
    "--save_every_epochs",
    2,
    "--num_workers",
    0,
    "--device",
    "cpu",
)
SCENES = ("--data_path", "synthetic", "--scenes", 8, "--set", "sample_rates_hz=1.92e6")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """They take most of the time of so small a run."""
    monkeypatch.setattr(engine_reconstruct, "PICTURES", 1)
    monkeypatch.setattr(main_synthesize, "SHEET_SCENES", 1)


def train(output, *flags):
    return call(main_pretrain, "--output_dir", output, *SMALL, *flags)


def lines(output):
    return [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]


def weights(output):
    return checkpoint.load(output / checkpoint.LAST)["model"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_training_does_not_depend_on_workers_and_sees_new_scenes(tmp_path, capsys):
    for workers in (0, 2):
        assert train(tmp_path / str(workers), *SCENES, "--num_workers", workers) == 0
    assert "8 training samples, 4 held out" in capsys.readouterr().out
    assert_equal(weights(tmp_path / "0"), weights(tmp_path / "2"))
    losses = [
        [(line["train_loss"], line["val_loss"]) for line in lines(tmp_path / name)] for name in ("0", "2")
    ]
    assert losses[0] == losses[1]
    ours = lines(tmp_path / "0")
    assert ours[0]["val_mean_loss"] == ours[1]["val_mean_loss"]  # the same scenes under the same mask
    assert (tmp_path / "0" / "reconstruction.png").exists()
    # Nothing is removed and nothing learnt: the losses of two epochs differ by their scenes alone.
    assert train(tmp_path / "fixed", *SCENES, "--lr", 0, "--mask_ratio", 0) == 0
    first, second = lines(tmp_path / "fixed")
    assert first["val_loss"] == second["val_loss"]
    assert abs(first["train_loss"] - second["train_loss"]) > 1e-6  # equal scenes: equal to the last bit


def test_a_run_resumed_in_the_middle_of_an_epoch_ends_the_same(tmp_path, monkeypatch):
    copies = tmp_path / "copies"
    copies.mkdir()
    save = Saver.save

    def save_and_copy(self, state, *args):
        save(self, state, *args)
        shutil.copy(self.folder / checkpoint.LAST, copies / f"{state['step']}.pth")

    monkeypatch.setattr(Saver, "save", save_and_copy)
    assert train(tmp_path / "through", *SCENES, "--save_every_steps", 1, "--no-async_save") == 0
    monkeypatch.setattr(Saver, "save", save)
    for step, workers in ((1, 0), (4, 2)):
        out = tmp_path / str(step)
        assert train(out, *SCENES, "--resume", copies / f"{step}.pth", "--num_workers", workers) == 0
        assert_equal(weights(out), weights(tmp_path / "through"))
        assert lines(out)[-1]["train_loss"] == pytest.approx(
            lines(tmp_path / "through")[-1]["train_loss"], rel=1e-12
        )


def test_classic_scenes_train_at_their_own_length(tmp_path):
    flags = [*SMALL]
    del flags[flags.index("--window_ms") : flags.index("--window_ms") + 2]
    flags += ["--data_path", "synthetic:classic", "--scenes", 1, "--epochs", 1, "--output_dir", tmp_path]
    assert call(main_pretrain, *flags) == 0
    state = checkpoint.load(tmp_path / checkpoint.LAST)
    assert state["front_end"] == {
        "n_fft": 128,
        "duration_s": 0.04,
        "image_size": [32, 32],
        "normalize": "per_spectrogram",
    }


def test_a_folder_of_main_synthesize_trains_on_train_and_holds_out_val(tmp_path, capsys):
    """The first epoch of scenes made on the fly is that of the sets, to the rounding of float16."""
    made = (
        "--output",
        tmp_path / "scenes",
        "--train",
        8,
        "--val",
        4,
        "--test",
        3,
        "--n_fft",
        128,
        "--input_size",
        32,
        "--set",
        *SHORT,
        "--num_workers",
        0,
    )
    assert call(main_synthesize, *made) == 0
    for name, flags in (("sets", ("--data_path", tmp_path / "scenes")), ("fly", SCENES)):
        assert train(tmp_path / name, *flags, "--epochs", 1, "--lr", 0) == 0
        assert "8 training samples, 4 held out" in capsys.readouterr().out
    [sets], [fly] = lines(tmp_path / "sets"), lines(tmp_path / "fly")
    for loss in ("train_loss", "val_loss", "val_mean_loss"):
        assert sets[loss] == pytest.approx(fly[loss], rel=2e-3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--data_path", "synthetic:tame"),
            "error: --data_path synthetic:tame: expected one of the presets wild, classic",
        ),
        (("--data_path", "synthetic", "--set", "snr=3"), "error: --set snr=3: expected name=value"),
        (
            ("--data_path", "synthetic", "--set", "snr_db=9,2"),
            "error: --set snr_db: expected a range, the lower number first",
        ),
        (
            ("--data_path", "synthetic", "--set", "lte_bandwidths_mhz=7"),
            "error: --set lte_bandwidths_mhz: expected some of",
        ),
        (("--data_path", "synthetic", "--scenes", 0), "error: --scenes: expected at least 1; found 0"),
        (
            ("--data_path", "synthetic", "--n_fft", 9999),
            "error: --n_fft: expected at most 3840, the shortest scene; found 9999",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flags, words):
    assert train(tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(words), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_settings_without_scenes_are_one_line(tmp_path, capsys):
    write_ci16(tmp_path / "air", "a", 0.1)
    assert train(tmp_path / "out", "--data_path", tmp_path / "air", "--set", "snr_db=3") == 2
    assert capsys.readouterr().err == "error: --set: expected --data_path synthetic with it; found none\n"
    assert not (tmp_path / "out").exists()


def test_recordings_and_scenes_train_together(tmp_path, capsys):
    for number in range(2):
        write_ci16(tmp_path / "air", f"r{number}", 0.021, 200e3, seed=number)
    assert (
        train(tmp_path / "out", *SCENES[:1], "synthetic", tmp_path / "air", *SCENES[2:], "--epochs", 1) == 0
    )
    assert "18 training samples, 14 held out" in capsys.readouterr().out
