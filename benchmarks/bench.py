"""Everything that is measured of speed, on this machine: `make bench`.

    python benchmarks/bench.py                          # all that the machine can; a GPU is measured where there is one
    python benchmarks/bench.py --only bench_pretrain bench_segment
    python benchmarks/bench.py --tables                 # measure nothing, put the results so far into the documents

Each benchmark runs in a process of its own, so that none finds threads, memory or compiled code of another, and can be run
alone in the same way. What they find goes to `benchmarks/results/<device>.json`, a record for each; the tables of the
documents between the marks are made of these files.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import common
import tables
import torch

from util.errors import UserError, reported

SMALL, MEDIUM, LARGE = (f"mae_vit_{size}_patch16" for size in ("small", "medium", "large"))

# What runs, with which flags, on a CPU and on a GPU. None: not there.
BENCHMARKS = {
    "bench_data": ((), ()),
    "bench_start": ((), None),
    "bench_pretrain": (
        (),
        ("--model", SMALL, MEDIUM, LARGE, "--batch_size", "1024", "512", "256", "--steps", "4", "--repeats", "5"),
    ),
    "bench_growth": ((), ("--model", SMALL, "--batch_size", "256", "--steps", "4")),
    "bench_end_to_end": (
        (),
        ("--model", LARGE, "--batch_size", "256", "--samples", "16384", "--windows", "2048"),
    ),
    "bench_segment": ((), ()),
    "bench_synthesize": ((), ()),
    "bench_distributed": ((), ("--update",)),
}


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Run all benchmarks that this machine can.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(BENCHMARKS), help="of these alone")
    parser.add_argument("--tables", action="store_true", help="only put the results so far into the documents")
    parser.add_argument("--output", default="benchmarks/results", metavar="FOLDER", help="where the results are")
    return parser


def main(args):
    if unknown := [name for name in args.only if name not in BENCHMARKS]:
        raise UserError(f"--only: expected some of {', '.join(BENCHMARKS)}; found {unknown[0]!r}")
    if args.tables:
        tables.update(args.output)
        return
    on_gpu = torch.cuda.is_available()
    failed = []
    for name in args.only:
        flags = BENCHMARKS[name][on_gpu]
        if flags is None:
            continue
        print(f"\n{name} {' '.join(flags)}", flush=True)
        started = time.perf_counter()
        script = Path(__file__).with_name(f"{name}.py")
        done = subprocess.run([sys.executable, str(script), *flags, "--output", args.output], env=os.environ, check=False)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    print()
    print(tables.text("docs/SPEED.md", common.read_results(args.output)))
    if Path(args.output).resolve() == (Path(__file__).parent / "results").resolve():
        tables.update(args.output)
    if failed:
        raise UserError(f"{', '.join(failed)}: expected to end; found an error, shown above")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
