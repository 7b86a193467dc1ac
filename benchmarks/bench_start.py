"""How long a run takes to open its recordings, against their number: the first time, and with the index that it keeps.

    python benchmarks/bench_start.py

SigMF recordings, each a pair of files with one window of 16 ms and an annotation, are written to a temporary folder (0.8 GB
for 100,000 of them), a thousand to a folder. What is timed is all that `main_pretrain.py` does until it knows its training
and held-out windows: folders searched, metadata read, the index read, compared and written. Metadata are read by as many
processes as there are cores. The files are in the page cache: a file server is not measured; it is asked the state of every
file, and without an index the contents of the metadata.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import common
import torch

import main_pretrain
from radio import recording_index
from util.errors import UserError, reported

RECORDINGS_A_FOLDER = 1000
SAMPLE_RATE_HZ = 64e3  # 16 ms are the 1024 samples of an FFT


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Time to open recordings, by their number.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    common.add_arguments(parser, repeats=5)
    parser.add_argument("--recordings", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of recordings")
    return parser


def write_recordings(folder, first, end):
    """Recordings `first` to `end`."""
    samples = bytes(4 * 1024)
    for number in range(first, end):
        path = folder / f"{number // RECORDINGS_A_FOLDER:04}" / f"{number:07}"
        path.parent.mkdir(exist_ok=True)
        metadata = {
            "global": {"core:datatype": "ci16_le", "core:sample_rate": SAMPLE_RATE_HZ, "core:version": "1.2.0",
                       "core:hw": "a receiver and its antenna", "core:description": "one of many recordings"},
            "captures": [{"core:sample_start": 0, "core:frequency": 1e9 + number, "core:datetime": "2026-01-01T00:00:00Z"}],
            "annotations": [{"core:sample_start": 100, "core:sample_count": 500, "core:label": "NR",
                             "core:freq_lower_edge": 1e9, "core:freq_upper_edge": 1.00001e9}],
        }  # fmt: skip
        path.with_suffix(".sigmf-meta").write_text(json.dumps(metadata, indent=4))
        path.with_suffix(".sigmf-data").write_bytes(samples)


def seconds_to_open(folder, output, expected):
    """As `main_pretrain.py` opens a folder; sees that all windows are found."""
    flags = ["--data_path", str(folder), "--output_dir", str(output)]
    args = main_pretrain.get_args_parser().parse_args(flags)
    started = time.perf_counter()
    training, held_out, _, _ = main_pretrain.open_data(args, torch.device("cpu"))
    seconds = time.perf_counter() - started
    if len(training) + len(held_out) != expected:
        raise RuntimeError(f"expected {expected} windows; found {len(training)} and {len(held_out)}")
    return seconds


def measured(folder, count, repeats):
    """{"first", "with_index": seconds of each turn}."""
    output = folder / "output"
    output.mkdir(exist_ok=True)
    index = output / recording_index.NAME
    turns = {"first": [], "with_index": []}
    for _ in range(repeats):
        index.unlink(missing_ok=True)
        for name in turns:
            turns[name].append(seconds_to_open(folder / "recordings", output, count))
    if not index.exists():
        raise RuntimeError(f"expected an index of {count} recordings; found none")
    return turns


def main(parser, args):
    common.check_args(args)
    if min(args.recordings) < recording_index.LEAST_FILES:
        raise UserError(f"--recordings: expected at least {recording_index.LEAST_FILES}; found {min(args.recordings)}")
    sizes, written = {}, 0
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as folder:
        folder = Path(folder)
        (folder / "recordings").mkdir()
        for count in sorted(args.recordings):
            try:
                write_recordings(folder / "recordings", written, count)
            except OSError as error:
                raise UserError(f"{folder}: expected room for {count} recordings of 8 kB; {error}") from error
            written = count
            time.sleep(recording_index.SETTLED_NS / 1e9)
            seconds_to_open(folder / "recordings", folder / "none", count)  # a turn that does not count
            sizes[count] = {name: common.spread(turns) for name, turns in measured(folder, count, args.repeats).items()}

    print(f"{common.device_name(torch.device('cpu'))}; {args.repeats} turns each")
    common.print_table(
        ("recordings", "first s", "least .. greatest", "with index s", "least .. greatest"),
        [(f"{count:,}", *common.columns(found["first"]), *common.columns(found["with_index"]))
         for count, found in sizes.items()],
    )  # fmt: skip
    results = {"repeats": args.repeats, "seconds": {str(count): found for count, found in sizes.items()}}
    common.write_results("bench_start", parser, args, torch.device("cpu"), ("sigmf",), results)


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
