"""Every command and every piece of Python of the documents does what it says, on data that take seconds.

Paths stand for small data of the same kind. No flag is taken away; those of `SHORT` come after them and cut
the time. What
needs a cluster, a download or hours is checked as far as its flags go: `PARSED`.
"""

import glob
import importlib
import io
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
from safetensors.torch import save_file
from support import BAND, NANO, ROOT, call, write_ci16, write_frames, write_ntu_fi, write_radioml

import models_mae
import models_vit
from util import fetch

SHORT = {
    "main_pretrain": "--front_end band --input_size 16 --n_fft 64 --window_ms 2 --batch_size 2 --epochs 1 "
    "--warmup_epochs 0 --num_workers 0 --device cpu --peak_tflops 1 --scenes 8",
    "main_finetune": "--batch_size 4 --epochs 1 --warmup_epochs 0 --num_workers 0 --device cpu",
    "main_synthesize": "--input_size 16 --n_fft 64 --window_ms 2 --train 8 --val 4 --test 4 --num_workers 0",
    "main_pack": "--input_size 16 --n_fft 64 --window_ms 2 --device cpu",
    "main_segment": "--device cpu",
    "main_embed": "--device cpu --num_workers 0",
    "main_download": "",
}
PARSED = re.compile(
    r"^torchrun|submitit_launch|weights/make|benchmarks/|main_download\.py (?!list)|mae_vit_base|facebook/"
)
BY_HAND = ("make ", "pip ", "cp ", "rm ", "hackrf_transfer ")
WITH_DATA = (
    "README.md",
    "PRETRAIN.md",
    "FINETUNE.md",
    "RESULTS.md",
    "docs/CLUSTER.md",
    "docs/DATA.md",
    "weights/README.md",
)
LINKED = (*WITH_DATA, "docs/SPEED.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/SCALING.md")


def blocks(document, language=""):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return [text for own, text in found if own == language]


def commands(document):
    """Each command of the blocks without a language, its continued lines joined; lines that show a form are
    none.
    """
    lines = "".join(blocks(document)).replace("\\\n", " ").splitlines()
    lines = [" ".join(line.partition("#")[0].split()) for line in lines]
    return [line for line in lines if line and "[flags]" not in line]


def words_of(command):
    """(module, flags) of a command: what comes after a pipe, and in it the first script."""
    words = shlex.split(command.rpartition("| ")[2])
    first = next(place for place, word in enumerate(words) if word.endswith(".py"))
    script, *flags = words[first:]
    flags = [path for flag in flags for path in (sorted(glob.glob(flag)) if "*" in flag else [flag])]
    folder, _, name = script.removesuffix(".py").rpartition("/")
    return importlib.import_module(f"weights.{name}" if folder == "weights" else name), flags


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The folder of a user: data where the documents have some, and small models under the names of the large
    ones.
    """
    for presets, prefix in ((models_mae.PRESETS, "mae_"), (models_vit.PRESETS, "")):
        for name in ("vit_small_patch16", "vit_large_patch16"):
            monkeypatch.setitem(presets, prefix + name, NANO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    band = {"core:sample_count": 3000, "core:freq_lower_edge": 2.39998e9, "core:freq_upper_edge": 2.40002e9}
    labels = [
        band | {"core:sample_start": 0, "core:label": "wifi"},
        band | {"core:sample_start": 3000, "core:label": "bluetooth"},
    ]
    for number in range(8):
        write_ci16(tmp_path / "iq", f"r{number}", 0.02, seed=number)
        write_ci16(tmp_path / "recordings", f"lte-f1815-{number}", 0.03, seed=number, annotations=labels)
    for name in ("up", "down"):
        for number in range(12):
            write_ci16(
                tmp_path / "folders" / name, f"{name}{number}", 0.02, seed=number + 50 * (name == "up")
            )
    write_ci16(tmp_path, "capture", sample_rate_hz=1e6, annotations=labels)
    write_ntu_fi(tmp_path / "NTU-Fi_HAR", count=3)
    write_frames(tmp_path / "TrainingData", 12)
    write_radioml(tmp_path / "GOLD_XYZ_OSC.0001_1024.hdf5", snrs=(-4, -2, 10), each=4)
    rng = np.random.default_rng(0)
    np.savez(
        "csi.npz",
        x=rng.random((48, 10, 30), np.float32) + 1,
        label=np.array(["sit", "walk"] * 24),
        day=np.repeat(["D1", "D2", "D3", "D4"], 12),
    )
    shutil.copy("csi.npz", "geotec_esp32_csihar.npz")
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    samples = rng.integers(-30, 30, 2 * 100_000, np.int8).tobytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(samples)))
    return tmp_path


def short(module, flags):
    """What is put behind the flags of a command."""
    more = SHORT[module.__name__].split()
    if "--front_end" in flags:  # the other flags are of `band`
        more = SHORT[module.__name__].replace("--front_end band ", "")
        more = more.replace("--n_fft 64 --window_ms 2", "--column_us 100").split()
    if module.__name__ == "main_synthesize" and "--iq" not in flags:
        more += ["--set", "duration_ms=2", *(["sample_rates_hz=1.92e6"] * ("classic" not in flags))]
    if module.__name__ == "main_finetune" and "--eval" not in flags:
        more += ["--input_size", "16"]  # or as the set has it, which main_synthesize.py makes of that size
        more += ["--scenes", "12"] if "--scenes" in flags else []
    return more


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_DATA)
def test_commands_in_their_order(user, capsys, document):
    ran = []
    for command in commands(document):
        command = command.replace("/data/", "")
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
                command
            )
        elif PARSED.search(command):
            module, flags = words_of(command)
            args = module.get_args_parser().parse_args(flags)
            if hasattr(module, "check_args") and module.__name__ in SHORT:
                module.check_args(args)
            named = getattr(args, "finetune", None)
            assert not named or named.endswith(".pth") or fetch.entry_of(named) or fetch.hub_address(named), (
                command
            )
        elif not command.startswith(BY_HAND) or "python" in command:
            module, flags = words_of(command)
            prepare(user, module, flags)
            assert call(module, *flags, *short(module, flags)) == 0, (command, capsys.readouterr().err)
            ran.append(module.__name__)
    assert ran or document == "docs/CLUSTER.md", document
    assert set(ran) <= set(SHORT)


def prepare(user, module, flags):
    """What a user has by then: an output folder of this run, and what other commands of the document made."""
    if "output_finetune/checkpoint-best.pth" in flags:
        shutil.rmtree(user / "output_finetune", ignore_errors=True)
        trainer = importlib.import_module("main_finetune")
        made = ["--task", "segmentation", "--data_path", "recordings", "--classes", "noise,wifi"]
        assert call(trainer, *made, *short(trainer, made), "--n_fft", 64, "--window_ms", 5) == 0
        return
    output = {"main_pretrain": "output_dir", "main_finetune": "output_finetune"}.get(module.__name__)
    if output and (user / output).exists():
        shutil.rmtree(user / f"{output}-before", ignore_errors=True)
        (user / output).rename(user / f"{output}-before")
    if "labelled" in flags and module.__name__ == "main_finetune":  # the recordings of this test have no cell
        for number in range(8):
            write_ci16(user / "labelled", f"r{number}", 0.03, seed=number, annotations=[BAND])
    if module.__name__ == "main_synthesize":
        shutil.rmtree(user / flags[flags.index("--output") + 1], ignore_errors=True)
    for data in {"scenes", "made/scenes", "cp/scenes"} & set(flags):
        if not (user / data).exists():
            (user / data).parent.mkdir(exist_ok=True)
            made = [
                "--output",
                data,
                *SHORT["main_synthesize"].split(),
                "--set",
                "duration_ms=2",
                "sample_rates_hz=1.92e6",
            ]
            assert call(importlib.import_module("main_synthesize"), *made) == 0


@pytest.mark.slow
def test_python(user):
    """The encoder is one of a real size: what a reader has from --export."""
    weights = models_mae.mae_vit_tiny_patch16().state_dict()
    save_file(
        {name: value for name, value in weights.items() if "decoder" not in name and name != "mask_token"},
        "encoder.safetensors",
    )
    pieces = blocks("README.md", "python") + blocks("FINETUNE.md", "python")
    assert len(pieces) == 2
    shapes = []
    for piece in pieces:
        names = {}
        exec(piece.replace('repository = "."', f"repository = {str(ROOT)!r}"), names)
        shapes.append(tuple(names["features" if "features" in names else "tokens"].shape))
    assert shapes == [(1, 246, 192), (8, 197, 192)]


def headings(path):
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", LINKED)
def test_links_lead_somewhere(document):
    text = re.sub(
        r"^```.*?^```$|`[^`\n]*`", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL
    )
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_command_of_mae_has_its_line():
    """What the program answers stands in the table of FINETUNE.md too."""
    from util.flags import OF_MAE

    table = (ROOT / "FINETUNE.md").read_text().partition("## Coming from MAE")[2].partition("\n## ")[0]
    named = set(re.findall(r"--(\w+)", table))
    assert {"world_size", "dist_eval", "nb_classes", "aa", "color_jitter", "reprob"} <= named & set(OF_MAE)
    for script in ("main_linprobe.py", "submitit_pretrain.py"):
        assert script in table
