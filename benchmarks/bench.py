"""Measure the speed of everything on this machine: `make bench`.

    python benchmarks/bench.py                          # all; a GPU is measured where there is one
    python benchmarks/bench.py --only bench_pretrain bench_segment
    python benchmarks/bench.py --tables                 # measure nothing, write the tables

Each benchmark runs in a process of its own and can be run alone. The results go to
`benchmarks/results/<device>.json`. The tables in README.md and docs/SPEED.md are made from these files.
"""

import subprocess
import sys
from pathlib import Path

import common
import tables
import torch

from util.errors import RunError, UserError, reported

SIZES = " ".join(f"mae_vit_{size}_patch16" for size in ("small", "medium", "large"))
END_TO_END = "--model mae_vit_large_patch16 --batch_size 256 --samples 16384 --windows 2048"
# What runs, with which flags on a CPU and on a GPU.
BENCHMARKS = {
    "bench_data": ("", ""),
    "bench_pretrain": ("", f"--model {SIZES} --batch_size 1024 512 256 --steps 4 --repeats 5"),
    "bench_end_to_end": ("", END_TO_END),
    "bench_segment": ("", ""),
    "bench_synthesize": ("", ""),
}


def get_args_parser():
    parser = common.get_parser("Run all benchmarks that this machine can.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(BENCHMARKS), help="run these alone")
    parser.add_argument("--tables", action="store_true", help="only write the tables from the results so far")
    return parser


def main(args):
    if unknown := [name for name in args.only if name not in BENCHMARKS]:
        raise UserError(f"--only: expected some of {', '.join(BENCHMARKS)}; found {unknown[0]!r}")
    if args.tables:
        tables.update_speed(args.output)
        return
    failed = []
    for name in args.only:
        flags = BENCHMARKS[name][torch.cuda.is_available()]
        print(f"\n{name} {flags}", flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, script, *flags.split(), "--output", args.output]
        failed += [name] * bool(subprocess.run(command, check=False).returncode)
    print(f"\n{tables.speed('docs/SPEED.md', common.read_records(args.output))}")
    if Path(args.output).resolve() == common.ROOT / "benchmarks" / "results":
        tables.update_speed(args.output)
    if failed:
        raise RunError(f"{', '.join(failed)}: expected status 0; found an error, shown above")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
