"""What training on several processes costs: DDP itself, the bytes of a step, and a save; and what to expect of many GPUs.

    python benchmarks/bench_distributed.py              # a GPU where there is one
    python benchmarks/bench_distributed.py --update     # on an H200: its step times in the tables of SCALING.md
    python benchmarks/bench_distributed.py --scaling    # only those tables, from the step times known so far
    python benchmarks/bench_distributed.py --scaling --step_ms S=20 L=95    # from others

- DDP: the step of `bench_pretrain.py` with the model as it is and wrapped as `util.parallel.wrap` wraps it, in a process
  group of one process. Both begin with the same weights and take turns, which of them first alternates. Beside seconds of
  the clock stand those that the process computed, which others on the same cores change less.
- Bytes: two processes over gloo on the CPU take a step, and what is handed to collectives is counted, as torch dispatches
  them: with DDP, with DDP and four accumulated batches, and with `--shard`. Of an all-gather what comes out counts, of a
  reduce-scatter what goes in.
- Save: steps of ViT-S without a save, after one that is written in the background, and after one that is waited for, the
  same number of steps in turn; what is left of a write after them counts too. Into a folder in `--output`.
- On a GPU, step times of ViT-S, M, L and H by batch.
"""

import argparse
import contextlib
import copy
import gc
import math
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import bench_pretrain
import common
import scaling
import torch
import torch.distributed as dist
from bench_pretrain import IMAGE_SIZE, Trainer, our_loss, our_model, synchronize
from torch.utils._python_dispatch import TorchDispatchMode

import models_mae
from util import checkpoint, parallel
from util.device import AMP_CHOICES, keep_freed_memory, pick_amp, pick_device
from util.errors import UserError, reported
from util.progress import peak_memory_bytes
from util.saver import Saver

SEED = 0
WARM_UP_STEPS = 3
MODEL = {"cpu": "mae_vit_tiny_patch16", "cuda": "mae_vit_large_patch16"}
BATCH_SIZE = {"cpu": 8, "cuda": 64}
SAVED_MODEL, SAVED_BATCH_SIZE = "mae_vit_small_patch16", {"cpu": 2, "cuda": 64}
PROCESSES, ACCUMULATED = 2, 4
CPU = torch.device("cpu")


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Costs of training on several processes, and the efficiency to expect of many GPUs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", metavar="PRESET", help=f"where not given {MODEL['cpu']}, on a GPU {MODEL['cuda']}")
    parser.add_argument("--batch_size", type=int, help=f"where not given {BATCH_SIZE['cpu']}, on a GPU {BATCH_SIZE['cuda']}")
    parser.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--steps", type=int, default=2, help="training steps to a turn with and without DDP")
    parser.add_argument("--scaling", action="store_true", help="measure nothing, print the tables of SCALING.md")
    parser.add_argument("--step_ms", nargs="+", default=[], metavar="S=MS",
                        help="step times for the tables; the others are an H200's results in --output, or assumed")
    parser.add_argument("--update", action="store_true", help="put the tables into SCALING.md")
    common.add_arguments(parser, repeats=15)
    return parser


def random_batch(model, batch_size, device):
    images = torch.randn(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE).to(device)
    return images, torch.rand(batch_size, model.num_patches).to(device)


def ranged(numbers):
    """A `common.spread` in a cell."""
    return "{median:.3g} ({min:.3g} .. {max:.3g})".format(**numbers)


def free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# DDP in one process


@contextlib.contextmanager
def group_of_one(device):
    over = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(over, store=dist.HashStore(), rank=0, world_size=1, device_id=device if over == "nccl" else None)
    try:
        yield over
    finally:
        dist.destroy_process_group()


def ddp_overhead(preset, batch_size, amp, device, args):
    """Seconds of a step without and with DDP, of the clock and of the process, and their ratio turn by turn."""
    torch.manual_seed(SEED)
    bare = our_model(preset).to(device)
    images, noise = random_batch(bare, batch_size, device)
    with group_of_one(device) as backend:
        wrapped = parallel.wrap_ddp(copy.deepcopy(bare), device, same_graph=True)
        trainers = {"without": Trainer(bare, our_loss, amp, device), "DDP": Trainer(wrapped, our_loss, amp, device)}
        for _ in range(max(WARM_UP_STEPS, args.steps)):
            losses = [trainer.step(images, noise).item() for trainer in trainers.values()]
        if not math.isclose(*losses, rel_tol=1e-2):
            raise RuntimeError(f"expected the same loss without and with DDP; found {losses[0]} and {losses[1]}")
        clocks = {"step_s": {name: [] for name in trainers}, "step_cpu_s": {name: [] for name in trainers}}
        for number in range(args.repeats):
            for name in list(trainers)[:: -1 if number % 2 else 1]:
                used = time.process_time()
                rate = bench_pretrain.images_per_s(trainers[name], images, noise, args.steps)
                clocks["step_s"][name].append(batch_size / rate)
                clocks["step_cpu_s"][name].append((time.process_time() - used) / args.steps)
    found = {"backend": backend, "steps": args.steps}
    for clock, turns in clocks.items():
        ratios = [ours / bare for ours, bare in zip(turns["DDP"], turns["without"], strict=True)]
        found[clock] = {name: common.spread(seconds) for name, seconds in turns.items()}
        found[clock]["DDP_over_without"] = common.spread(ratios)
    return found


# Bytes of a step


class CountedBytes(TorchDispatchMode):
    """Counts calls and bytes of collectives while it is entered; `of` gives those of one kind."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            kind = function.__name__.partition(".")[0].strip("_")
            calls, size = self.found.get(kind, (0, 0))
            self.found[kind] = calls + 1, size + max(map(_bytes, args))  # of what comes out and what goes in, the larger
        return function(*args, **(kwargs or {}))

    def of(self, kind):
        calls, size = self.found.get(kind, (0, 0))
        return {"calls": calls, "bytes": size}


def _bytes(value):
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def backward_passes(preset, shard, accumulated):
    """Counts of each of `accumulated` forward and backward passes that make a step, once torch has ordered its buckets."""
    torch.manual_seed(SEED)
    model = models_mae.create_model(preset, img_size=IMAGE_SIZE)
    trained = parallel.wrap(model, CPU, shard, same_graph=accumulated == 1)
    images, noise = random_batch(model, 1, CPU)
    for _ in range(WARM_UP_STEPS):
        model.zero_grad(set_to_none=True)
        counts = []
        for number in range(accumulated):
            with CountedBytes() as counted, parallel.grad_sync(trained, number + 1 == accumulated):
                our_loss(trained, images, noise).backward()
            counts.append(counted)
    return counts


def count_as(rank, path, preset):
    """What one of the processes that exchange does; what it counts."""
    torch.set_num_threads(max(1, torch.get_num_threads() // PROCESSES))
    store = dist.FileStore(path, PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=5))
    try:
        found = {}
        for name, shard in (("ddp", False), ("shard", True)):
            for accumulated in (1, ACCUMULATED):
                found[name, accumulated] = backward_passes(preset, shard, accumulated)
        return {
            "ddp": found["ddp", 1][0].of("allreduce"),
            "ddp_accumulated": [counted.of("allreduce") for counted in found["ddp", ACCUMULATED]],
            "shard": {kind: found["shard", 1][0].of(kind) for kind in ("allgather_base", "reduce_scatter_base")},
            "shard_accumulated": {kind: [counted.of(kind) for counted in found["shard", ACCUMULATED]]
                                  for kind in ("allgather_base", "reduce_scatter_base")},
        }  # fmt: skip
    finally:
        dist.destroy_process_group()


def count_bytes(preset):
    """Bytes that a process of two hands to the collectives of a step, and what they are on paper."""
    workers = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, workers as pool:
        parts = [pool.submit(count_as, rank, f"{folder}/store", preset) for rank in range(PROCESSES)]
        counted, other = (part.result() for part in parts)
    if counted != other:
        raise RuntimeError("expected processes that exchange the same; found others")
    size = scaling.sizes(preset)
    return {
        "processes": PROCESSES, "accumulated": ACCUMULATED, "trained_parameters": size.trained,
        "on_paper": {"ddp": size.gradients, "allgather_base": size.gathered(PROCESSES),
                     "reduce_scatter_base": size.divided(PROCESSES)}, **counted,
    }  # fmt: skip


def bytes_rows(found):
    """(what, calls, bytes, on paper, ratio) of each count."""
    paper, accumulated = found["on_paper"], found["accumulated"]

    def row(what, counts, expected):
        size, calls = (sum(count[key] for count in counts) for key in ("bytes", "calls"))
        return what, str(calls), f"{size:,}", f"{expected:,}", f"{size / expected:.5f}"

    names = {"allgather_base": "all-gather", "reduce_scatter_base": "reduce-scatter"}
    yield row("DDP: all-reduce", [found["ddp"]], paper["ddp"])
    yield row(f"DDP, {accumulated} batches a step: all-reduce", found["ddp_accumulated"], paper["ddp"])
    for kind, name in names.items():
        yield row(f"--shard: {name}", [found["shard"][kind]], paper[kind])
    for kind, name in names.items():
        times = accumulated if kind == "allgather_base" else 1
        yield row(f"--shard, {accumulated} batches a step: {name}", found["shard_accumulated"][kind], times * paper[kind])


# A save


class SavedTraining:
    """ViT-S in training and its savers: one that writes in the background, one that is waited for."""

    def __init__(self, folder, amp, device, saves):
        torch.manual_seed(SEED)
        self.model = our_model(SAVED_MODEL)
        self.trainer = Trainer(self.model, our_loss, amp, device)
        self.device = device
        self.batch = random_batch(self.model, SAVED_BATCH_SIZE[device.type], device)
        self.savers = {}
        for name, background in saves.items():
            (folder / name).mkdir()
            self.savers[name] = Saver(folder / name, background=background)
        self.step = 0

    def steps(self, count):
        """Take steps; when each of them ended."""
        ends = []
        for _ in range(count):
            self.trainer.step(*self.batch)
            self.step += 1
            synchronize(self.device)
            ends.append(time.perf_counter())
        return ends

    def state(self):
        """As `main_pretrain.py` saves it."""
        return {
            "format": checkpoint.FORMAT, "model": self.model.state_dict(), "optimizer": self.trainer.optimizer.state_dict(),
            "scaler": self.trainer.scaler.state_dict(), "epoch": 0, "step": self.step, "progress": {}, "num_samples": 0,
            "rng": checkpoint.random_state(), "args": {}, "front_end": {}, "classes": [],
        }  # fmt: skip

    def turn(self, name, count):
        """A save, if it is one of the savers', then steps, then what is left of the save.

        Returns:
            dict of seconds: `all`, `waited` and `written` of the save, and lists of steps `beside` the write and `free`.
        """
        saver = self.savers.get(name)
        started = time.perf_counter()
        if saver is not None:
            saver.save(self.state())
        begun = time.perf_counter()
        ends = self.steps(count)
        waited = saver.waited_s if saver is not None else 0.0
        if saver is not None:
            saver.close()
        ended = time.perf_counter()
        written = saver.written_s if saver is not None else 0.0
        writes_until = begun + written if saver is not None and saver.background else begun
        found = {"all": ended - started, "waited": waited, "written": written, "beside": [], "free": []}
        for start, end in zip([begun, *ends], ends, strict=False):
            if end <= writes_until or start >= writes_until:  # not one that is partly both
                found["beside" if end <= writes_until else "free"].append(end - start)
        return found


def save_cost(amp, device, args):
    """What a save costs training, written in the background and waited for."""
    saves = {"background": True, "waited for": False}
    with tempfile.TemporaryDirectory(dir=args.output, prefix=".bench-") as folder:
        training = SavedTraining(Path(folder), amp, device, saves)
        training.steps(WARM_UP_STEPS)
        for _ in range(2):  # from the second on a save has an older one to keep
            for name in saves:
                warm = training.turn(name, 1)
        size = next(Path(folder, name, checkpoint.LAST).stat().st_size for name in saves)
        # Twice as many steps as a write lasts, so that it ends while there is something for it to slow down.
        start = time.perf_counter()
        step_s = (training.steps(WARM_UP_STEPS)[-1] - start) / WARM_UP_STEPS
        count = max(3, min(400, math.ceil(2 * warm["written"] / step_s)))
        names = ["none", *saves]
        turns = {name: [] for name in names}
        repeats = (args.repeats + 2) // 3
        for number in range(repeats):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                turns[name].append(training.turn(name, count))
    found = {"model": SAVED_MODEL, "batch_size": SAVED_BATCH_SIZE[device.type], "checkpoint_bytes": size, "steps": count,
             "repeats": repeats}  # fmt: skip
    for name in saves:
        found[name] = {key: common.spread([turn[part] for turn in turns[name]])
                       for key, part in (("waited_s", "waited"), ("written_s", "written"))}  # fmt: skip
        lost = [turn["all"] - without["all"] for turn, without in zip(turns[name], turns["none"], strict=True)]
        found[name]["lost_s"] = common.spread(lost)
    waits = [[turn["waited"] for turn in turns[name]] for name in saves]
    found["waited_background_over_waited_for"] = common.spread([ours / theirs for ours, theirs in zip(*waits, strict=True)])
    steps = {"without a save": turns["none"], "beside a write": turns["background"]}
    for name, kind in zip(steps, ("free", "beside"), strict=True):
        if seconds := [second for turn in steps[name] for second in turn[kind]]:
            found.setdefault("step_s", {})[name] = common.spread(seconds) | {"steps": len(seconds)}
    return found


def save_rows(found):
    for name in ("background", "waited for"):
        yield name, *map(ranged, found[name].values())


# Step times of the sizes


def step_times(presets, batch_sizes, amp, device, args):
    """Step time, memory and share of the peak by preset and batch; a batch that does not fit is left out."""
    found = {}
    for preset in presets:
        torch.manual_seed(SEED)
        model = our_model(preset)
        trainer = Trainer(model, our_loss, amp, device)
        found[preset] = {}
        for batch_size in batch_sizes:
            free(device)
            try:
                batch = random_batch(model, batch_size, device)
                for _ in range(WARM_UP_STEPS):
                    trainer.step(*batch)
                seconds = [batch_size / bench_pretrain.images_per_s(trainer, *batch, 4 * args.steps)
                           for _ in range(args.repeats)]  # fmt: skip
            except torch.OutOfMemoryError:
                continue
            entry = {"step_s": common.spread(seconds), "memory_bytes": peak_memory_bytes(device)}
            entry["flops_per_s"] = float(f"{batch_size * scaling.step_flops(preset) / entry['step_s']['median']:.4g}")
            found[preset][str(batch_size)] = entry
        del model, trainer
    free(device)
    return found


def step_rows(found):
    for preset, batches in found.items():
        for batch_size, entry in batches.items():
            step = entry["step_s"]
            yield (preset, batch_size, f"{step['median'] * 1e3:.1f}", f"{step['min'] * 1e3:.1f} .. {step['max'] * 1e3:.1f}",
                   f"{int(batch_size) / step['median']:,.0f}", f"{entry['flops_per_s'] / 1e12:.1f}",
                   f"{entry['memory_bytes'] / 1e9:.1f}")  # fmt: skip


def measure(parser, args):
    """Measure, print and record everything; the record, as `scaling.from_record` reads it."""
    keep_freed_memory()
    device = pick_device(args.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    amp = pick_amp(args.amp, device)
    preset, batch_size = args.model or MODEL[device.type], args.batch_size or BATCH_SIZE[device.type]
    if preset not in models_mae.PRESETS:
        raise UserError(f"--model: expected one of {', '.join(models_mae.PRESETS)}; found {preset!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    print(f"on {common.device_name(device)}, {cores} of {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"amp {amp}, load before {load}")  # fmt: skip

    overhead = ddp_overhead(preset, batch_size, amp, device, args)
    free(device)
    print(f"\n{preset}, batch {batch_size}: a step in a process group of one over {overhead['backend']}")
    rows = [(what, *map(ranged, overhead[clock].values()))
            for what, clock in (("the clock", "step_s"), ("the process, all threads", "step_cpu_s"))]  # fmt: skip
    common.print_table(("seconds of", "without", "DDP", "ratio"), rows)

    counted = count_bytes(preset)
    print(f"\n{preset}, {counted['trained_parameters']:,} trained parameters: what one of {PROCESSES} exchanges in a step")
    common.print_table(("", "calls", "bytes", "on paper", "ratio"), list(bytes_rows(counted)))

    saved = save_cost(amp, device, args)
    free(device)
    print(f"\na save of {saved['model']}, {saved['checkpoint_bytes'] / 1e6:.0f} MB, and {saved['steps']} steps of "
          f"{saved['batch_size']} images; seconds")  # fmt: skip
    common.print_table(("written", "the step waits", "the write takes", "lost to the save"), list(save_rows(saved)))
    print(f"the step waits {ranged(saved['waited_background_over_waited_for'])} times as long for the one in the background")
    for name, step in saved["step_s"].items():
        print(f"a step {name}: {ranged(step)} s, {step['steps']} of them")

    results = {
        "model": preset, "batch_size": batch_size, "image_size": IMAGE_SIZE, "seed": SEED,
        "mask_ratio": bench_pretrain.MASK_RATIO, "amp": amp, "cores": cores, "load_before": load, "repeats": args.repeats,
        "ddp_in_one_process": overhead, "bytes_of_a_step": counted, "save": saved,
    }  # fmt: skip
    if device.type == "cuda":
        results["step_times"] = step_times(scaling.MODELS.values(), (scaling.BATCH, scaling.LARGE_BATCH), amp, device, args)
        print()
        common.print_table(("step", "batch", "ms", "least .. greatest", "images/s", "TFLOP/s", "GB"),
                           list(step_rows(results["step_times"])))  # fmt: skip
    print()
    return common.write_results("bench_distributed", parser, args, device, ("timm",), results)


def main(parser, args):
    common.check_args(args, *(["steps"] if args.batch_size is None else ["steps", "batch_size"]))
    record = {} if args.scaling else measure(parser, args)
    times = scaling.from_record(record) or scaling.recorded(args.output) or scaling.assumed()
    times = scaling.given(args.step_ms, times) if args.step_ms else times
    if args.scaling or "step_times" in record:
        print(scaling.tables(times))
    if args.update:
        scaling.update(times)
        print(f"wrote {scaling.DOCUMENT.name}")


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
