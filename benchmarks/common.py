"""What benchmarks share: the project on the import path, flags, timing by turns, tables, records."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

# Python looks for modules beside the script; the project lies above it and is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.device import keep_freed_memory, usable_cores
from util.errors import RunError, UserError, reported
from util.files import atomic_path, writable_folder, write_json
from util.flags import Parser

ROOT = Path(__file__).resolve().parent.parent
# The packages whose versions a record names, where they are installed.
PACKAGES = ("torch", "numpy", "timm", "transformers", "torchvision", "pillow", "sigmf", "sionna-no-rt")
CPU = torch.device("cpu")


def positive(text):
    """An integer of at least 1, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1; found {text}")
    return number


def get_parser(description, repeats=None):
    """A parser with the flags that benchmarks share; `repeats`: default of --repeats, None: no such flag."""
    parser = Parser(description)
    if repeats:
        parser.add_argument("--repeats", type=positive, default=repeats, help="turns of each candidate")
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks" / "results"), metavar="FOLDER", help="of the JSON files"
    )
    return parser


def run_benchmark(parser, measure):
    """The main of a benchmark: parse the flags, measure, print and record.

    Args:
        measure: called with the flags; returns (device, dict of results).
    """
    with reported():
        args = parser.parse_args()
        with writable_folder(args.output, f"--output {args.output}"):
            keep_freed_memory()
            device, results = measure(args)
            print(json.dumps(results, indent=1))
            write_record(Path(sys.argv[0]).stem, args, device, results)


def use_one_core():
    """Restrict this process and torch to the last of its cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def by_turns(candidates, repeats):
    """Call each candidate once uncounted, then all by turns: {name: list of what a candidate returned}."""
    for candidate in candidates.values():
        candidate()
    found = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, candidate in candidates.items():
            found[name].append(candidate())
    return found


def spread(values):
    """Median, minimum and maximum of the repeats, to four digits."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: digits(value, 4) for name, value in numbers.items()}


def digits(value, count=3):
    return float(f"{value:.{count}g}")


# Data


def run_command(command, folder=ROOT, **options):
    """Run a command of this project, such as "main_pack.py --output set".

    Raises:
        RunError: the command failed; the message has the last line of stderr.
    """
    script, *flags = shlex.split(command)
    words = [sys.executable, str(ROOT / script), *flags]
    done = subprocess.run(words, cwd=folder, check=False, text=True, stderr=subprocess.PIPE, **options)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RunError(f"{script}: expected status 0; found {done.returncode}: {last}")


def scenes_as_iq(folder, count, preset, settings=""):
    """The IQ of `count` scenes of a preset, changed by `--set`: int16 [samples, 2] each."""
    flags = (
        f"--output {shlex.quote(str(folder))} --preset {preset} --iq only --train 0 --val 0 --test {count}"
    )
    run_command(
        f"main_synthesize.py {flags} --num_workers 0 --set bits=0 {settings}", stdout=subprocess.DEVNULL
    )
    scenes = [np.fromfile(path, "<f4") for path in sorted(Path(folder).rglob("*.sigmf-data"))]
    return [np.round(iq / np.abs(iq).max() * 32767).astype("<i2").reshape(-1, 2) for iq in scenes]


def write_sigmf(path, iq, sample_rate_hz):
    """Write `path`.sigmf-data and .sigmf-meta: int16 samples [samples, 2] as a ci16_le recording at 1 GHz."""
    Path(f"{path}.sigmf-data").write_bytes(iq)
    info = {"core:datatype": "ci16_le", "core:sample_rate": sample_rate_hz, "core:version": "1.2.0"}
    captures = [{"core:sample_start": 0, "core:frequency": 1e9}]
    metadata = {"global": info, "captures": captures, "annotations": []}
    Path(f"{path}.sigmf-meta").write_text(json.dumps(metadata))


# Tables


def number(value):
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(found, with_range=True):
    """A `spread` as text: the median, and `with_range` the minimum and maximum too."""
    if not found:
        return ""
    text = number(found["median"])
    return f"{text} ({number(found['min'])} .. {number(found['max'])})" if with_range else text


def table(header, rows):
    """A Markdown table; "" without rows. `header`: the titles, "first | second"."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    ruler = "|" + "---|" * (1 + header.count(" | "))
    return "\n".join([f"| {header} |", ruler, *lines]) if lines else ""


def with_tables(document, marks, text):
    """The text of a document with `text` between two marks.

    Raises:
        UserError: the document lacks the marks.
    """
    parts = re.split("|".join(map(re.escape, marks)), document.read_text())
    if len(parts) != 3:
        raise UserError(f"{document.name}: expected the marks {' and '.join(marks)}; found others")
    between = f"\n\n{text}\n\n" if text else "\n"
    return f"{parts[0]}{marks[0]}{between}{marks[1]}{parts[2]}"


def write_tables(document, marks, text):
    with atomic_path(document) as temporary:
        temporary.write_text(with_tables(document, marks, text))


# Records


def device_name(device):
    """The GPU's name, or the CPU's with its vector instructions, as many CPUs share one name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1]
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{' and bf16' if bf16 else ''}"


def about_the_machine(device):
    """What every record says of the machine, the day and the versions."""
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(device),
        "cores": len(usable_cores()),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **versions},
    }


def write_record(name, args, device, results):
    """Put a run's record into `<device>.json` of the output folder. It names no path of the machine."""
    words = [f"python benchmarks/{name}.py"]
    for flag, value in vars(args).items():
        if flag in args.given - {"output"}:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *(Path(str(one)).name for one in values if one is not True)]
    record = {"command": " ".join(words), **about_the_machine(device), **results}
    path = Path(args.output) / f"{re.sub('[^A-Za-z0-9]+', '-', record['device']).strip('-')}.json"
    others = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, dict(sorted({**others, name: record}.items())))
    print(f"{name}: wrote {path}")


def read_records(folder):
    """All records in a folder: a list of (name, record), by device."""
    files = sorted(Path(folder).glob("*.json"))
    return [entry for path in files for entry in json.loads(path.read_text()).items()]
