"""What to expect of 8 to 512 GPUs, on paper: the model of SCALING.md and its tables.

    python benchmarks/scaling.py                        # print the tables
    python benchmarks/scaling.py --step_ms S=20 L=95    # from your own step times
    python benchmarks/scaling.py --update               # write the tables into SCALING.md

Times are in seconds, sizes in bytes, bandwidths in bytes/s. `groups` are the parameters of a model: a list
for each block, then a list of those outside blocks.
"""

import argparse
import functools
import math
from dataclasses import dataclass

import bench_pretrain
import common
import torch

from util.errors import reported
from util.flops import pretraining_flops

DOCUMENT = common.ROOT / "benchmarks" / "SCALING.md"
MARKS = "<!-- made by benchmarks/scaling.py -->", "<!-- end of scaling -->"
MODELS = {
    "S": "mae_vit_small_patch16",
    "M": "mae_vit_medium_patch16",
    "L": "mae_vit_large_patch16",
    "H": "mae_vit_huge_patch14",
}
BATCH = 64  # images a GPU, as published
PEAK_FLOPS = 989.4e12  # H200, H100 SXM: dense bf16, NVIDIA's data sheets
ASSUMED_MFU = 0.4

# NVLink 4 carries 450 GB/s each way; NCCL's protocol leaves 370 (nccl-tests issue 212, a maintainer).
NVLINK = 370e9
# A 400 Gb/s card carries 50 GB/s, of which 46 to 48 are seen (nccl-tests issue 290, a maintainer).
CARD = 46e9
OVERLAP = 0.8  # of the backward pass: the first gradients have to be there, and NCCL takes some of the GPU
BACKWARD = 2 / 3  # of a step: twice the FLOPs of the forward pass
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # DDP's defaults
# NCCL's rings and trees in the protocols Simple and LL128, constants of its cost model (src/graph/tuning.cc):
# (tree?, seconds to start, of an NVLink hop, of a network hop, share of the bandwidth).
WAYS = (
    (False, 8.4e-6, 3.4e-6, 14e-6, 1.0),
    (False, 14e-6, 1.9e-6, 4e-6, 0.92),
    (True, 8.4e-6, 4e-6, 14e-6, 0.92),
    (True, 14e-6, 1.25e-6, 8.5e-6, 0.92**2),
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
    def bus(self):
        """Bandwidth of a GPU while all send. NCCL pipelines the two links, so the slower one counts."""
        return min([self.nvlink] * (self.per_node > 1) + [self.network] * (self.nodes > 1))

    def all_reduce(self, size):
        """Seconds to sum `size` bytes over all GPUs."""
        return min(self._seconds(size, 2, *way) for way in self.ways)

    def gather(self, size):
        """Seconds of an all-gather to, or a reduce-scatter of, `size` bytes; NCCL has only rings for them."""
        return min(self._seconds(size, 1, *way) for way in self.ways if not way[0])

    def _seconds(self, size, rounds, tree, start, nvlink_hop, network_hop, share):
        """Seconds of `rounds` times round a ring, or up and down a tree whose machines are chains."""
        gpus = self.nodes * self.per_node
        if gpus == 1:
            return 0.0
        if tree:
            hops = (self.per_node - 1) * nvlink_hop + math.ceil(math.log2(self.nodes)) * network_hop
            sent = size
        else:
            hops = (gpus - self.nodes) * nvlink_hop + (self.nodes - 1) * network_hop
            sent = size * (gpus - 1) / gpus
        return start + rounds * (hops + sent / (share * self.bus))


CLUSTERS = {
    "8, NVLink": Cluster(1, 8),
    "8, one a machine, 400 Gb/s": Cluster(8, 1),
    "64, 400 Gb/s a GPU": Cluster(8, 8, 8 * CARD),
    "64, 400 Gb/s a machine": Cluster(8, 8),
    "512, 400 Gb/s a GPU": Cluster(64, 8, 8 * CARD),
    "512, 400 Gb/s a machine": Cluster(64, 8),
}


@functools.cache
def model_of(preset):
    """(FLOPs of a training step for an image, groups)."""
    with torch.device("meta"):
        model = bench_pretrain.our_model(preset)
    blocks = [list(block.parameters()) for block in (*model.blocks, *model.decoder_blocks)]
    inside = {id(parameter) for block in blocks for parameter in block}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return pretraining_flops(model, bench_pretrain.MASK_RATIO), [*blocks, rest]


def padded(parameters, gpus, trained_only=False):
    """Bytes of parameters whose rows are sharded and padded, so that all GPUs have as many."""
    counted = [one for one in parameters if one.requires_grad or not trained_only]
    return sum(4 * one[0].numel() * math.ceil(len(one) / gpus) * gpus for one in counted)


def gathered(groups, gpus):
    """Bytes of all-gathers in a step with --shard: of blocks in the forward and in the backward pass."""
    *blocks, rest = (padded(group, gpus) for group in groups)
    return 2 * sum(blocks) + rest


def scattered(groups, gpus=1):
    """Bytes of reduce-scatters in a step with --shard; of one GPU the bytes of the gradients."""
    return sum(padded(group, gpus, trained_only=True) for group in groups)


def ddp(groups, step, cluster):
    """(seconds of a step's exchange, seconds that the step waits for it), gradients reduced over all GPUs."""
    gradients = scattered(groups)
    buckets = 1 + math.ceil(max(0, gradients - FIRST_BUCKET) / BUCKET)
    each = cluster.all_reduce(gradients / buckets)
    # The last bucket is full when the backward pass ends.
    return buckets * each, max(each, buckets * each - OVERLAP * BACKWARD * step)


def shard(groups, step, cluster):
    """The same with --shard: weights gathered before both passes, gradients scattered after the second."""
    gpus = cluster.nodes * cluster.per_node
    *blocks, rest = (cluster.gather(padded(group, gpus)) for group in groups)
    last = cluster.gather(padded(groups[-1], gpus, trained_only=True))
    forward, backward = rest + sum(blocks), 2 * sum(blocks) + last
    # Nothing hides the first gather of each pass, nor the last gradients.
    waits = max(rest + blocks[0], forward - OVERLAP * (1 - BACKWARD) * step)
    waits += max(blocks[-1] + blocks[0] + last, backward - OVERLAP * BACKWARD * step)
    return forward + backward, waits


def efficiency(exchange, groups, step, cluster):
    """Images a second and GPU, over those of one GPU alone."""
    return step / (step + exchange(groups, step, cluster)[1])


def step_times(records):
    """{model: (seconds of a step of `BATCH` images, their source)}.

    The fastest rate of `bench_pretrain.py` on an H200, at any batch size; else `ASSUMED_MFU` of its peak.
    """
    rates = {}
    for benchmark, record in records:
        if benchmark == "bench_pretrain" and "H200" in record["device"]:
            for one in record["candidates"]:
                if one["name"] == bench_pretrain.OURS:
                    rate = one["images_per_s"]["median"], f"measured, batch {one['batch_size']}"
                    rates[one["model"]] = max(rate, rates.get(one["model"], rate))
    times = {}
    for name, preset in MODELS.items():
        assumed = ASSUMED_MFU * PEAK_FLOPS / model_of(preset)[0], f"assumed, {ASSUMED_MFU:.0%} of the peak"
        rate, source = rates.get(preset, assumed)
        times[name] = BATCH / rate, source
    return times


def tables(times):
    """The tables of SCALING.md for these step times, as Markdown."""
    models = []
    efficiencies = {"DDP": (ddp, []), "`--shard` (FSDP2)": (shard, [])}
    for name, (step, source) in times.items():
        flops, groups = model_of(MODELS[name])
        gathers = ", ".join(f"{gathered(groups, gpus) / 1e6:,.0f}" for gpus in (8, 512))
        exchanged = f"{scattered(groups) / 1e6:,.0f}", gathers
        speed = f"{flops / 1e9:.1f}", f"{step * 1e3:.1f}", f"{BATCH * flops / step / PEAK_FLOPS:.0%}"
        models.append((f"ViT-{name}, `{MODELS[name]}`", *exchanged, *speed, source))
        for exchange, rows in efficiencies.values():
            cells = [f"ViT-{name}"]
            for cluster in CLUSTERS.values():
                milliseconds = exchange(groups, step, cluster)[0] * 1e3
                cells.append(f"{efficiency(exchange, groups, step, cluster):.0%} ({milliseconds:.1f})")
            rows.append(cells)
    exchanged = "gradients, MB | gathered with `--shard` by 8, by 512, MB"
    speed = f"GFLOP an image | step of {BATCH}, ms | of the peak | step time"
    parts = [common.table(f"model | {exchanged} | {speed}", models)]
    for title, (_, rows) in efficiencies.items():
        parts.append(f"{title}, {BATCH} images a GPU: efficiency, in brackets the exchange of a step in ms:")
        parts.append(common.table(" | ".join([title, *CLUSTERS]), rows))
    return "\n\n".join(parts)


def step_time(text):
    """A step time of the command line such as "S=20", in ms: (model, (seconds, "given"))."""
    name, _, value = text.partition("=")
    if name not in MODELS or not 0 < float(value or 0) < math.inf:
        raise argparse.ArgumentTypeError(f"expected {', '.join(MODELS)}=milliseconds; found {text!r}")
    return name, (float(value) / 1e3, "given")


def get_args_parser():
    parser = common.get_parser("Efficiency to expect of many GPUs.")
    given = {"type": step_time, "nargs": "+", "default": [], "metavar": "S=MS"}
    parser.add_argument("--step_ms", **given, help=f"step times of {BATCH} images")
    parser.add_argument("--update", action="store_true", help="write the tables into SCALING.md")
    return parser


def main(args):
    text = tables(step_times(common.read_records(args.output)) | dict(args.step_ms))
    print(text)
    if args.update:
        common.write_tables(DOCUMENT, MARKS, text)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
