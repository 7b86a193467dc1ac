"""main_pack.py: recordings to a spectrogram set."""

import numpy as np
import torch
from support import call, command, write_ci16

import main_pack
from data.spectrogram_set import SpectrogramSet
from radio.recordings import find_recordings
from radio.spectrogram import Spectrogram

SMALL = ("--n_fft", 64, "--window_ms", 10, "--input_size", 16, 24)


def test_a_set_holds_the_tiled_windows(tmp_path):
    for number, rate in enumerate((200e3, 100e3)):
        write_ci16(tmp_path / "air", f"r{number}", 0.035, rate, seed=number)
    done = command("main_pack.py", "--data_path", "air", "--output", "sets/all", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote 6 spectrograms" in done.stdout
    packed = SpectrogramSet(tmp_path / "sets" / "all")
    assert packed.shape == (6, 1, 16, 24)
    front_end = Spectrogram(**packed.front_end_settings)
    for index, about in enumerate(packed.metadata):
        recording = find_recordings(tmp_path / about["path"])[0]
        assert recording.sample_rate_hz == about["sample_rate_hz"]
        assert about["center_freq_hz"] == 2.4e9
        iq = recording.read(about["sample_start"], about["num_samples"])
        decibels = front_end.decibels(torch.from_numpy(iq)[None])[0].numpy()
        np.testing.assert_allclose(
            packed.load(index, None)[1] + np.float32(about["level_db"]), decibels, atol=0.02
        )


def test_mistakes(tmp_path, capsys):
    write_ci16(tmp_path / "air", duration_s=0.03)
    assert call(main_pack, "--data_path", tmp_path / "air", "--output", tmp_path / "air", *SMALL) == 2
    assert "air: expected a new folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert (
        call(main_pack, "--data_path", tmp_path / "air", "--output", tmp_path / "file" / "set", *SMALL) == 2
    )
    assert "expected a folder that can be written" in capsys.readouterr().err
    assert call(main_pack, "--data_path", tmp_path / "air", "--output", tmp_path / "set", *SMALL) == 0
    capsys.readouterr()
    assert call(main_pack, "--data_path", tmp_path / "set", "--output", tmp_path / "again", *SMALL) == 2
    assert "expected recordings to pack" in capsys.readouterr().err
    iq = np.ones(4000, np.complex64)
    iq[3000] = np.nan
    np.save(tmp_path / "x.npy", iq)
    flags = ("--data_path", tmp_path / "x.npy", "--sample_rate", 100e3, "--output", tmp_path / "nan", *SMALL)
    assert call(main_pack, *flags) == 2
    assert "x.npy: expected finite samples" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["air", "file", "set", "x.npy"]
