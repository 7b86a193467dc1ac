"""What the benchmarks share: the project on the import path, statistics of repeats, the table and the record of a run."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import torch

# Python looks for modules beside the script; the project lies above it and is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.device import usable_cores
from util.errors import UserError
from util.files import write_json


def add_arguments(parser, repeats):
    """The flags of every benchmark."""
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each candidate")
    parser.add_argument("--output", default="benchmarks/results", metavar="FOLDER", help="where the JSON file goes")


def check_args(args, *positive):
    """Refuse numbers below 1 and an output folder that cannot be made, before anything is measured."""
    for name in ("repeats", *positive):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected at least 1; found {getattr(args, name)}")
    try:
        Path(args.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: expected a folder that can be written; {error.strerror}") from error


def use_one_core():
    """Keep this process, torch's threads included, to the last of the cores that it may use, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def device_name(device):
    """The GPU by torch's name; the CPU by the system's, and what it computes with, since systems give many one name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1]
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{' and bf16' if bf16 else ''}"


def spread(values):
    """Median, least and greatest of the repeats, to four digits."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def print_table(header, rows):
    """Columns as wide as they need, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())


def columns(rates):
    """The cells of a `spread`: median, and least to greatest."""
    median, least, greatest = (f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in rates.values())
    return median, f"{least} .. {greatest}"


def write_results(name, parser, args, device, packages, results):
    """Put what ran, on what, and what came out into `<device>.json` of the output folder, among other benchmarks of it.

    It names no path of the machine.

    Returns:
        What it holds of this benchmark, by name.
    """
    given = [f"--{flag}{_shown(value)}" for flag, value in vars(args).items()
             if flag != "output" and value != parser.get_default(flag)]
    record = {
        "command": " ".join([f"python benchmarks/{name}.py", *given]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(device),
        "cores": len(usable_cores()),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("torch", "numpy", *packages)},
        **results,
    }
    path = Path(args.output) / f"{re.sub('[^A-Za-z0-9]+', '-', record['device']).strip('-')}.json"
    others = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, dict(sorted({**others, name: record}.items())))
    print(f"{name}: wrote {path}")
    return record


def _shown(value):
    if isinstance(value, list | tuple):
        return "".join(map(_shown, value))
    if value is True:
        return ""
    return " ..." if isinstance(value, str) and os.path.isabs(value) else f" {value}"


def read_results(folder):
    """All records in a folder: a list of (name, record), by device."""
    return [entry for path in sorted(Path(folder).glob("*.json")) for entry in json.loads(path.read_text()).items()]


def with_tables(path, begin, end, text):
    """A document with `text` between the marks `begin` and `end`.

    Raises:
        UserError: it has no such marks.
    """
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise UserError(f"{path.name}: expected the marks {begin} and {end}; found none")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}" if text else f"{before}{begin}\n{end}{after}"
