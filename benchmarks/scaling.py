"""The efficiency to expect of many GPUs, on paper: the model of SCALING.md; `bench_distributed.py --scaling` prints it.

Times are in seconds, sizes in bytes, bandwidths in bytes/s.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

import models_mae
from util.errors import UserError
from util.files import atomic_path
from util.flops import pretraining_flops

DOCUMENT = Path(__file__).with_name("SCALING.md")
BEGIN, END = "<!-- tables of bench_distributed.py --scaling -->", "<!-- end of the tables -->"
COMMAND = "python benchmarks/bench_distributed.py --update"

MODELS = {
    "S": "mae_vit_small_patch16",
    "M": "mae_vit_medium_patch16",
    "L": "mae_vit_large_patch16",
    "H": "mae_vit_huge_patch14",
}
IMAGE_SIZE, MASK_RATIO = 224, 0.75
BATCH, LARGE_BATCH = 64, 256  # a GPU; the first is the published setting

PEAK_FLOPS = 989.4e12  # H200, H100 SXM: dense bf16, NVIDIA's data sheets
ASSUMED_MFU, LOW_MFU = 0.4, 0.2

# NVLink 4 carries 450 GB/s each way, of which NCCL's protocol leaves 370 (nccl-tests issue 212, a maintainer).
NVLINK = 370e9
# A 400 Gb/s card carries 50 GB/s, of which 46 to 48 are seen (nccl-tests issue 290, a maintainer).
CARD = 46e9
OVERLAP = 0.8  # of the backward pass: the first gradients have to be there, and NCCL takes some of the GPU
BACKWARD = 2 / 3  # of a step: twice the FLOPs of the forward pass
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # DDP's defaults


class Way(NamedTuple):
    """How NCCL may do a collective: what it takes to begin and from GPU to GPU, and the share of the bandwidth it uses."""

    tree: bool
    base: float
    nvlink_hop: float
    network_hop: float
    share: float


# Ring and tree in the protocols Simple and LL128, with the constants of NCCL's own cost model (src/graph/tuning.cc).
WAYS = (
    Way(False, 8.4e-6, 3.4e-6, 14e-6, 1.0),
    Way(False, 14e-6, 1.9e-6, 4e-6, 0.92),
    Way(True, 8.4e-6, 4e-6, 14e-6, 0.92),
    Way(True, 14e-6, 1.25e-6, 8.5e-6, 0.92**2),
)


@dataclass(frozen=True)
class Cluster:
    """Machines of `per_node` GPUs each, joined by NVLink; `network`: of all cards of a machine together."""

    nodes: int
    per_node: int
    network: float = CARD
    nvlink: float = NVLINK
    ways: tuple = WAYS

    @property
    def gpus(self):
        return self.nodes * self.per_node

    @property
    def bus(self):
        """What a GPU sends and receives while all do. NCCL pipelines the two links, so the slower one counts.

        Every byte that goes round passes every machine's cards once, and those are shared by its GPUs' rings.
        """
        return min(self.nvlink if self.per_node > 1 else math.inf, self.network if self.nodes > 1 else math.inf)

    def latency(self, way, rounds):
        """Of so many times round a ring, or of a tree up and down, whose machines are chains."""
        if way.tree:
            hops = (self.per_node - 1) * way.nvlink_hop + math.ceil(math.log2(self.nodes)) * way.network_hop
            return way.base + 2 * hops
        return way.base + rounds * ((self.gpus - self.nodes) * way.nvlink_hop + (self.nodes - 1) * way.network_hop)

    def all_reduce(self, size):
        """Time to sum `size` bytes over all GPUs."""
        if self.gpus == 1:
            return 0.0
        return min(
            self.latency(way, 2) + 2 * (1 if way.tree else (self.gpus - 1) / self.gpus) * size / (way.share * self.bus)
            for way in self.ways
        )

    def gather(self, size):
        """Time of an all-gather to `size` bytes, or a reduce-scatter of them, for which NCCL has only rings."""
        if self.gpus == 1:
            return 0.0
        return min(
            self.latency(way, 1) + (self.gpus - 1) / self.gpus * size / (way.share * self.bus)
            for way in self.ways if not way.tree
        )  # fmt: skip


CLUSTERS = {
    "8, NVLink": Cluster(1, 8),
    "8, one a machine, 400 Gb/s": Cluster(8, 1),
    "64, 400 Gb/s a GPU": Cluster(8, 8, 8 * CARD),
    "64, 400 Gb/s a machine": Cluster(8, 8),
    "512, 400 Gb/s a GPU": Cluster(64, 8, 8 * CARD),
    "512, 400 Gb/s a machine": Cluster(64, 8),
}
NARROW = "64, 400 Gb/s a machine"  # where sensitivity is shown


# What a step computes and exchanges


@dataclass(frozen=True)
class Sizes:
    """Of a model in fp32: (rows, values, whether trained) of each parameter, for each block and for what is in none."""

    blocks: tuple
    rest: tuple

    @property
    def trained(self):
        return sum(values for group in (*self.blocks, self.rest) for _, values, trained in group if trained)

    @property
    def gradients(self):
        return 4 * self.trained

    def gathered(self, processes):
        """Bytes of all-gathers in a step with --shard: of blocks in the forward and again in the backward pass."""
        return 2 * sum(padded(block, processes) for block in self.blocks) + padded(self.rest, processes)

    def divided(self, processes):
        """Bytes of reduce-scatters in a step with --shard."""
        return sum(padded(group, processes, trained_only=True) for group in (*self.blocks, self.rest))


def padded(parameters, processes, trained_only=False):
    """Bytes of parameters whose rows are divided among the processes, filled up so that all have as many."""
    return sum(4 * values // rows * math.ceil(rows / processes) * processes
               for rows, values, trained in parameters if trained or not trained_only)  # fmt: skip


@functools.cache
def sizes(preset):
    with torch.device("meta"):
        model = models_mae.create_model(preset, img_size=IMAGE_SIZE)
    blocks = [*model.blocks, *model.decoder_blocks]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    groups = [tuple((len(parameter), parameter.numel(), parameter.requires_grad) for parameter in group)
              for group in (*(block.parameters() for block in blocks), rest)]  # fmt: skip
    return Sizes(tuple(groups[:-1]), groups[-1])


@functools.cache
def step_flops(preset, mask_ratio=MASK_RATIO):
    """Floating-point operations of forward and backward pass for an image; of matrix products alone."""
    with torch.device("meta"):
        model = models_mae.create_model(preset, img_size=IMAGE_SIZE)
    return pretraining_flops(model, mask_ratio)


# What becomes of the step


def ddp(size, step, cluster):
    """(time of a step's exchange, what of it the step waits for), gradients copied to every process."""
    buckets = 1 + math.ceil(max(0, size.gradients - FIRST_BUCKET) / BUCKET)
    each = cluster.all_reduce(size.gradients / buckets)
    # The last bucket is full when the backward pass ends.
    return buckets * each, max(each, buckets * each - OVERLAP * BACKWARD * step)


def shard(size, step, cluster):
    """The same with --shard: weights are gathered before both passes, gradients divided after the second."""
    blocks = [cluster.gather(padded(block, cluster.gpus)) for block in size.blocks]
    forward = cluster.gather(padded(size.rest, cluster.gpus)) + sum(blocks)
    divided = cluster.gather(padded(size.rest, cluster.gpus, trained_only=True))
    backward = 2 * sum(blocks) + divided
    # The first gather of each pass has nothing to hide behind, nor have the last gradients.
    waits = max(forward - sum(blocks[1:]), forward - OVERLAP * (1 - BACKWARD) * step)
    waits += max(blocks[-1] + blocks[0] + divided, backward - OVERLAP * BACKWARD * step)
    return forward + backward, waits


def efficiency(exchange, size, step, cluster):
    """Images a second and GPU over those of one GPU alone."""
    return step / (step + exchange(size, step, cluster)[1])


# Step times


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step by model and batch; `source` says where from, `assumed` that nobody measured them."""

    seconds: dict
    source: str
    assumed: bool

    def of(self, name, batch=BATCH):
        """Of another batch than is known in proportion to its size."""
        known = self.seconds[name]
        return known[batch] if batch in known else known[BATCH] * batch / BATCH


def assumed(mfu=ASSUMED_MFU):
    seconds = {name: {BATCH: BATCH * step_flops(preset) / (mfu * PEAK_FLOPS)} for name, preset in MODELS.items()}
    return StepTimes(seconds, f"**assumed, not measured**: {mfu:.0%} of an H200's {PEAK_FLOPS / 1e12:.0f} TFLOP/s", True)


def from_record(record):
    """Step times of a record of `bench_distributed.py`; None where it has not those of all models."""
    found = record.get("step_times", {})
    seconds = {name: {int(batch): entry["step_s"]["median"] for batch, entry in found.get(preset, {}).items()}
               for name, preset in MODELS.items()}  # fmt: skip
    if not all(BATCH in known for known in seconds.values()):
        return None
    return StepTimes(seconds, f"measured on one {record['device']}, {record['date']}, amp {record['amp']}", False)


def recorded(folder):
    """Step times of an H200 from the results in a folder; None where there are none."""
    for path in sorted(Path(folder).glob("*H200*.json")):
        if times := from_record(json.loads(path.read_text()).get("bench_distributed", {})):
            return times
    return None


def given(entries, others):
    """Step times of `others` with those of the command line, such as "S=20" in ms, in their place.

    Raises:
        UserError: not of that form.
    """
    seconds = dict(others.seconds)
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if name not in MODELS or not 0 < milliseconds < math.inf:
            raise UserError(f"--step_ms: expected one of {', '.join(MODELS)}, = and milliseconds; found {entry!r}")
        seconds[name] = {BATCH: milliseconds / 1e3}
    return StepTimes(seconds, f"given for {', '.join(entry.partition('=')[0] for entry in entries)}; the others "
                     f"{others.source}", others.assumed)  # fmt: skip


# The tables


def tables(times):
    """SCALING.md's tables for these step times, as Markdown."""
    rows = []
    for name, preset in MODELS.items():
        size, step, flops = sizes(preset), times.of(name), step_flops(preset)
        gathered = ", ".join(f"{size.gathered(processes) / 1e6:,.0f}" for processes in (8, 512))
        rows.append((f"ViT-{name}, `{preset}`", f"{size.trained:,}", f"{size.gradients / 1e6:,.0f}", gathered,
                     f"{flops / 1e9:.1f}", f"{step * 1e3:.1f}", f"{BATCH * flops / step / PEAK_FLOPS:.0%}"))  # fmt: skip
    header = ("model", "trained parameters", "gradients, MB", "gathered with `--shard` by 8, by 512, MB", "GFLOP an image",
              f"step of {BATCH}, ms", "of the peak")  # fmt: skip
    parts = [f"Step times: {times.source}.", markdown(header, rows)]
    for title, exchange in (("DDP", ddp), ("`--shard` (FSDP2)", shard)):
        rows = [(f"ViT-{name}", *(_cell(exchange, sizes(preset), times.of(name), cluster) for cluster in CLUSTERS.values()))
                for name, preset in MODELS.items()]  # fmt: skip
        parts.append(f"{title}, {BATCH} images a GPU: efficiency, in brackets the exchange of a step in ms, hidden or not:")
        parts.append(markdown((title, *CLUSTERS), rows))
    changed = {f"{LARGE_BATCH} images a GPU instead of {BATCH}": _beside(times, times, LARGE_BATCH)}
    if times.assumed:
        changed[f"{LOW_MFU:.0%} of the peak instead of {ASSUMED_MFU:.0%}"] = _beside(times, assumed(LOW_MFU))
    parts += [f"DDP on {NARROW}, {what}: {shares}." for what, shares in changed.items()]
    return "\n\n".join(parts)


def _cell(exchange, size, step, cluster):
    return f"{efficiency(exchange, size, step, cluster):.0%} ({exchange(size, step, cluster)[0] * 1e3:.1f})"


def _beside(times, others, batch=BATCH):
    """How DDP's efficiency changes with other step times."""
    def share(name, step):
        return f"{efficiency(ddp, sizes(MODELS[name]), step, CLUSTERS[NARROW]):.0%}"

    return ", ".join(f"{name} {share(name, times.of(name))} to {share(name, others.of(name, batch))}" for name in MODELS)


def markdown(header, rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def in_document():
    """The tables that SCALING.md holds."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def update(times):
    """Put the tables for these step times into SCALING.md."""
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{DOCUMENT.name}: expected the lines {BEGIN} and {END}; found it without")
    with atomic_path(DOCUMENT) as temporary:
        temporary.write_text(f"{before}{begin}\n\n{tables(times)}\n\n{end}{after}")
