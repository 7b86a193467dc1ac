"""An index of recordings changes nothing but the time that opening them takes, whatever happens to the files or to it."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from support import call, write_ci16, write_sigmf

import main_pretrain
from data import registry
from radio import recording_index, recordings
from radio.recording_index import RecordingIndex
from radio.recordings import find_recordings
from util.errors import UserError


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Keep few files too, and such as were written just now."""
    monkeypatch.setattr(recording_index, "LEAST_FILES", 1)
    monkeypatch.setattr(recording_index, "SETTLED_NS", -(10**9))


@pytest.fixture
def folder(tmp_path):
    """Recordings of every kind, with channels, stretches, annotations and data under another name."""
    folder = tmp_path / "air"
    for name in ("a", "b/c"):
        about = {"core:sample_start": 3, "core:sample_count": 9, "core:label": f"\u00e9 {name}", "x:y": [1.5, None]}
        write_ci16(folder / name, name[-1], 0.01, annotations=[about])
    data = np.arange(240, dtype=np.int8).tobytes()
    captures = [{"core:sample_start": 0, "core:frequency": 1e9 + 0.1}, {"core:sample_start": 20, "core:header_bytes": 4}]
    write_sigmf(folder, data, "ci8", "several", captures, num_channels=2, trailing_bytes=4)
    write_sigmf(folder, data, "ci8", "named", data_name="named.bin", dataset="named.bin")
    meta = write_sigmf(folder, data, "ci8", "inner")
    with tarfile.open(folder / "archive.sigmf", "w") as archive:
        for path in (meta, meta.with_suffix(".sigmf-data")):
            archive.add(path, path.name)
            path.unlink()
    np.save(folder / "planes.npy", np.arange(24, dtype=np.int16).reshape(2, 12))
    (folder / "raw.cs16").write_bytes(data)
    return folder


def index_of(folder, rate=1e6, datatype=None):
    return RecordingIndex(folder.parent / "index", rate, datatype)


def fields(found):
    return [(one, one.annotations) for one in found]


def found(folder, rate=1e6):
    """What is found with the index, which is what is found without one; and how many files had to be opened."""
    index = index_of(folder, rate)
    by_index = find_recordings(folder, rate, index=index)
    assert fields(by_index) == fields(find_recordings(folder, rate))
    assert all(isinstance(one.layout.dtype, np.dtype) and hash(one) for one in by_index)
    index.save()
    return by_index, index.opened


NUM_FILES = 7


def test_every_kind_comes_back_without_being_opened(folder, monkeypatch):
    first, opened = found(folder)
    assert opened == NUM_FILES
    assert len(first) == NUM_FILES + 3
    monkeypatch.setattr(recordings, "opened", None)  # nothing to open with
    index = index_of(folder)
    again = find_recordings(folder, 1e6, index=index)
    assert index.opened == 0
    assert fields(again) == fields(first)
    for one, other in zip(again, first, strict=True):
        np.testing.assert_array_equal(one.read(0, one.num_samples), other.read(0, other.num_samples))


@pytest.mark.parametrize("chunk", [1, 3, 500])
def test_processes_that_open_together_find_the_same(folder, monkeypatch, chunk):
    monkeypatch.setattr(recording_index, "LEAST_FILES_TO_SHARE", 2)
    monkeypatch.setattr(recording_index, "CHUNK_FILES", chunk)
    index = RecordingIndex(folder.parent / "shared", 1e6, None, processes=3)
    together = find_recordings(folder, 1e6, index=index)
    assert fields(together) == fields(find_recordings(folder, 1e6))
    index.save()
    found(folder)
    entries = [(folder.parent / name).read_bytes() for name in ("shared", "index")]
    assert entries[0] == entries[1]

    for name in ("a/a", "b/c/c"):  # the first of them is named, as by one process
        (folder / f"{name}.sigmf-meta").write_text("{}")
    with pytest.raises(UserError, match=r"air/a/a\.sigmf-meta: expected SigMF metadata"):
        find_recordings(folder, 1e6, index=RecordingIndex(folder.parent / "shared", 1e6, None, processes=3))


def test_an_unchanged_index_is_not_written_again(folder):
    found(folder)
    before = os.stat(folder.parent / "index")
    found(folder)
    assert os.stat(folder.parent / "index").st_ino == before.st_ino


def rewrite(folder):
    """Other contents of the same size, and the time of the last change set back."""
    path = folder / "a" / "a.sigmf-meta"
    before = os.stat(path)
    path.write_text(path.read_text().replace("2400000000.0", "2500000000.0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size


def grow(folder):
    with open(folder / "a" / "a.sigmf-data", "ab") as file:
        file.write(bytes(400))


def new(folder):
    write_ci16(folder / "new", "n", 0.01)


def remove(folder):
    shutil.rmtree(folder / "b")


def rename(folder):
    for path in (folder / "b" / "c").iterdir():
        path.rename(path.with_name(f"d{path.suffix}"))


def other_archive(folder):
    with tarfile.open(folder / "archive.sigmf", "a") as archive:
        archive.add(folder / "a" / "a.sigmf-meta", "sub/a.sigmf-meta")
        archive.add(folder / "a" / "a.sigmf-data", "sub/a.sigmf-data")


def other_array(folder):
    np.save(folder / "planes.npy", np.arange(24, dtype=np.int16).reshape(2, 12).T.copy())


def cut_raw(folder):
    os.truncate(folder / "raw.cs16", 80)


def no_dataset(folder):
    shutil.copy(folder / "named.bin", folder / "named.sigmf-data")
    with open(folder / "named.sigmf-data", "ab") as file:
        file.write(bytes(2))
    (folder / "named.bin").unlink()


@pytest.mark.parametrize(("change", "opened"), [
    (rewrite, 1), (grow, 1), (new, 1), (remove, 0), (rename, 1), (other_archive, 1), (other_array, 1), (cut_raw, 1),
    (no_dataset, 1),
])  # fmt: skip
def test_what_has_changed_is_opened_and_nothing_else(folder, change, opened):
    before, _ = found(folder)
    change(folder)
    after, opened_anew = found(folder)
    assert opened_anew == opened
    assert after != before
    assert found(folder)[1] == (1 if change is no_dataset else 0)


def test_data_that_come_later_under_the_name_that_goes_first(folder):
    """Metadata that name a data file which is not there are read with the one that is, as long as it is not there."""
    no_dataset(folder)
    before = {one.name: one.num_samples for one in found(folder)[0]}
    (folder / "named.bin").write_bytes(bytes(100))
    after = {one.name: one.num_samples for one in found(folder)[0]}
    assert (before["named.sigmf-meta"], after["named.sigmf-meta"]) == (121, 50)


def test_files_that_are_being_written_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(recording_index, "SETTLED_NS", 3600 * 10**9)
    found(folder)
    assert not (folder.parent / "index").exists()
    old = 10**18
    for path in folder.rglob("*"):
        os.utime(path, ns=(old, old))
    found(folder)  # their contents are old, but something else about them changed just now
    assert not (folder.parent / "index").exists()


def test_an_index_made_with_other_arguments_is_not_used(folder):
    found(folder)
    assert found(folder, 2e6)[1] == NUM_FILES
    assert index_of(folder, 1e6)._known == {}
    assert index_of(folder, 2e6)._known != {}
    assert index_of(folder, 2e6, "cu8")._known == {}


def test_an_index_of_another_version_is_not_used(folder, monkeypatch):
    found(folder)
    monkeypatch.setattr(recording_index, "FORMAT", recording_index.FORMAT + 1)
    assert found(folder)[1] == NUM_FILES
    monkeypatch.setattr(recording_index, "_program", lambda: 5)
    assert found(folder)[1] == NUM_FILES


def test_a_damaged_index_is_not_used(folder):
    found(folder)
    path = folder.parent / "index"
    whole = path.read_bytes()
    number = whole.index(b"1000000.0", whole.index(b"\n"))
    damages = [b"", b"[" * 200_000, whole[:-1], whole[:100], b"\xff" + whole, whole[:number] + b"2" + whole[number + 1 :],
               b"[]\n{}", b"null\n{}", whole.partition(b"\n")[0] + b"\n[" + b"[" * 200_000]  # fmt: skip
    for damage in damages:
        path.write_bytes(damage)
        assert found(folder)[1] == NUM_FILES
        assert path.read_bytes() == whole


def test_mistakes_are_found_again(folder):
    found(folder)
    meta = folder / "a" / "a.sigmf-meta"
    meta.write_text(json.dumps({"global": {}}))
    for _ in range(2):
        index = index_of(folder)
        with pytest.raises(UserError, match="core:datatype"):
            find_recordings(folder, 1e6, index=index)
    (folder / "a" / "a.sigmf-data").unlink()
    with pytest.raises(UserError, match="no such file"):
        find_recordings([folder / "a" / "a.sigmf-data"], 1e6, index=index_of(folder))


def test_an_index_that_cannot_be_written_is_no_reason_to_stop(folder, capsys):
    index = RecordingIndex(folder / "nowhere" / "index", 1e6)
    find_recordings(folder, 1e6, index=index)
    index.save()
    assert "nowhere/index: could not be written" in capsys.readouterr().err


def test_paths_may_be_given_otherwise(folder, monkeypatch):
    found(folder)
    monkeypatch.chdir(folder.parent)
    index = index_of(folder)
    by_index = find_recordings(["air/b", "./air"], 1e6, index=index)
    assert index.opened == 0
    assert fields(by_index) == fields(find_recordings(["air/b", "./air"], 1e6))
    assert str(by_index[0].path) == "air/b/c/c.sigmf-meta"


def test_a_run_keeps_one_in_its_folder_where_there_are_many_recordings(tmp_path, monkeypatch):
    for number in range(3):
        write_ci16(tmp_path / "air", str(number), seed=number)
    flags = ("--data_path", tmp_path / "air", "--output_dir", tmp_path / "out", "--model", "mae_vit_tiny_patch16",
             "--window_ms", 5, "--n_fft", 64, "--input_size", 32, "--epochs", 1, "--batch_size", 30, "--num_workers", 0,
             "--device", "cpu", "--amp", "off")  # fmt: skip
    monkeypatch.setattr(recording_index, "LEAST_FILES", 4)
    assert call(main_pretrain, *flags) == 0
    assert not (tmp_path / "out" / recording_index.NAME).exists()
    monkeypatch.setattr(recording_index, "LEAST_FILES", 3)
    assert call(main_pretrain, *flags, "--epochs", 2, "--resume", tmp_path / "out" / "checkpoint-last.pth") == 0
    assert (tmp_path / "out" / recording_index.NAME).exists()

    args = main_pretrain.get_args_parser().parse_args([str(flag) for flag in flags])
    with registry.recording_index(args) as index:
        assert len(find_recordings([tmp_path / "air"], index=index)) == 3
        assert index.opened == 0
