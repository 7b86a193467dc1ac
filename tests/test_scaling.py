"""benchmarks/scaling.py: its formulas at their limits, and what they count against what torch counts."""

import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed as dist
from support import NANO, ROOT, call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import models_mae
from util import parallel

sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script

import common
import scaling
from scaling import Cluster

# Rings and trees that take no time to start.
AT_ONCE = ((False, 0, 0, 0, 1.0), (True, 0, 0, 0, 1.0))
RING, TREE = ((tree, 100, 1, 10, 1.0) for tree in (False, True))
EXCHANGES = pytest.mark.parametrize("exchange", [scaling.ddp, scaling.shard])
PROCESSES, ACCUMULATED = 2, 4


@pytest.fixture(params=["S", "H"])
def groups(request):
    return scaling.model_of(scaling.MODELS[request.param])[1]


def test_two_gpus_send_each_half_twice():
    assert Cluster(1, 2, nvlink=100.0, ways=AT_ONCE).all_reduce(1000) == 10
    assert Cluster(1, 2, nvlink=100.0, ways=AT_ONCE).gather(1000) == 5
    assert Cluster(2, 1, network=10.0, ways=AT_ONCE).all_reduce(1000) == 100


def test_latency_of_a_ring_is_of_every_hop_and_of_a_tree_of_its_depth():
    assert Cluster(1, 8, ways=(RING,)).all_reduce(0) == 100 + 2 * 7
    assert Cluster(8, 8, ways=(RING,)).all_reduce(0) == 100 + 2 * (56 + 7 * 10)
    assert Cluster(8, 8, ways=(RING,)).gather(0) == 100 + 56 + 7 * 10
    assert Cluster(8, 8, ways=(TREE,)).all_reduce(0) == 100 + 2 * (7 + 3 * 10)


def test_the_slower_of_the_two_links_counts():
    assert Cluster(1, 8, network=1.0, nvlink=5.0).bus == 5
    assert Cluster(2, 8, network=1.0, nvlink=5.0).bus == 1
    assert Cluster(2, 8, network=9.0, nvlink=5.0).bus == 5
    assert Cluster(8, 1, network=9.0, nvlink=5.0).bus == 9


@EXCHANGES
def test_one_gpu_and_infinite_bandwidth_lose_nothing(exchange, groups):
    assert scaling.efficiency(exchange, groups, 0.1, Cluster(1, 1)) == 1
    assert exchange(groups, 0.1, Cluster(64, 8, math.inf, math.inf, AT_ONCE)) == (0, 0)


@EXCHANGES
def test_efficiency_falls_with_gpus_and_slower_links_and_grows_with_the_step(exchange, groups):
    def of(step, *cluster):
        return scaling.efficiency(exchange, groups, step, Cluster(*cluster))

    assert 0 < of(0.02, 64, 8) < of(0.02, 8, 8) < of(0.02, 8, 8, 8 * scaling.CARD) < of(0.02, 1, 8) < 1
    assert of(0.02, 8, 8) < of(0.08, 8, 8)
    exchanged, waited = exchange(groups, 10.0, Cluster(8, 8))
    assert 0 < waited < exchanged  # most of it hides behind a long step


def parameter(*shape, trained=True):
    return torch.nn.Parameter(torch.empty(shape, device="meta"), requires_grad=trained)


def test_ddp_waits_for_what_the_backward_pass_does_not_hide():
    groups = [[parameter(1, scaling.FIRST_BUCKET // 4), parameter(1, 3 * scaling.BUCKET // 4)]]
    cluster = Cluster(1, 2, nvlink=float(scaling.BUCKET), ways=AT_ONCE)
    whole = 3 + scaling.FIRST_BUCKET / scaling.BUCKET
    assert scaling.ddp(groups, 0.0, cluster) == pytest.approx((whole, whole))
    assert scaling.ddp(groups, 1.5, cluster) == pytest.approx((whole, whole - scaling.OVERLAP))
    assert scaling.ddp(groups, 1e3, cluster) == pytest.approx((whole, whole / 4))  # the last of four


def test_parameters_are_padded_to_whole_rows():
    # 3 rows of 5 and 1 row of 7 over 2 processes: 4 rows and 2
    assert scaling.padded([parameter(3, 5), parameter(1, 7, trained=False)], 2) == 4 * (20 + 14)
    assert scaling.padded([parameter(3, 5), parameter(1, 7, trained=False)], 2, trained_only=True) == 4 * 20


@pytest.mark.parametrize("preset", ["mae_vit_tiny_patch16", "mae_vit_huge_patch14"])
def test_operations_are_those_that_torch_counts(preset):
    with torch.device("meta"):
        model = models_mae.create_model(preset)
        images = torch.zeros(1, 1, 224, 224)
    # The kernel whose products are all counted.
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model(images, 0.75)[0].backward()
    assert scaling.model_of(preset)[0] == counted.get_total_flops()


class CountedBytes(TorchDispatchMode):
    """Counts the bytes of collectives, by kind: of a collective's inputs and outputs the larger."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            kind = function.__name__.partition(".")[0].strip("_")
            self.found[kind] = self.found.get(kind, 0) + max(map(size_of, args))
        return function(*args, **(kwargs or {}))


def size_of(value):
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


def count_in_process(rank, path):
    """Bytes of the collectives of a step, by kind, for each (whether --shard, batches a step)."""
    torch.set_num_threads(1)
    store = dist.FileStore(path, PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    counts = {}
    for shard, batches in ((False, 1), (False, ACCUMULATED), (True, 1), (True, ACCUMULATED)):
        torch.manual_seed(0)
        model = models_mae.MaskedAutoencoderViT(**NANO, img_size=16)
        model = parallel.wrap(model, common.CPU, shard, same_graph=batches == 1)
        for _ in range(3):  # until torch has ordered its buckets
            with CountedBytes() as counted:
                for number in range(batches):
                    with parallel.grad_sync(model, number + 1 == batches):
                        model(torch.ones(1, 1, 16, 16), 0.75)[0].backward()
        counts[shard, batches] = counted.found
    dist.destroy_process_group()
    return counts


@pytest.mark.slow
def test_bytes_are_those_that_two_processes_exchange(tmp_path, monkeypatch):
    monkeypatch.setitem(models_mae.PRESETS, "nano", NANO)
    monkeypatch.setattr(scaling.bench_pretrain, "IMAGE_SIZE", 16)
    _, groups = scaling.model_of("nano")
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(count_in_process, rank, str(tmp_path / "store")) for rank in range(PROCESSES)]
        counts, other = (part.result() for part in parts)
    assert counts == other
    for batches in (1, ACCUMULATED):
        assert counts[False, batches]["allreduce"] == scaling.scattered(groups)
        assert counts[True, batches]["allgather_base"] == batches * scaling.gathered(groups, PROCESSES)
        assert counts[True, batches]["reduce_scatter_base"] == scaling.scattered(groups, PROCESSES)


def test_step_times_come_from_the_command_line_a_record_or_an_assumption(capsys):
    assumed = scaling.step_times([])
    flops, _ = scaling.model_of("mae_vit_large_patch16")
    assert assumed["L"][0] == pytest.approx(64 * flops / (0.4 * 989.4e12))
    assert "assumed" in assumed["L"][1]

    def candidate(name, rate):
        return {"model": scaling.MODELS["S"], "name": name, "batch_size": 8, "images_per_s": {"median": rate}}

    candidates = [
        candidate("radio-mae", 640.0),
        candidate("radio-mae", 320.0),
        candidate("transformers", 6400.0),
    ]
    records = [("bench_pretrain", {"device": "NVIDIA H200", "candidates": candidates})]
    assert scaling.step_times(records) == assumed | {"S": (0.1, "measured, batch 8")}
    given = scaling.get_args_parser().parse_args(["--step_ms", "S=20", "L=95"]).step_ms
    assert dict(given) == {"S": (0.02, "given"), "L": (0.095, "given")}
    for wrong in ("S", "X=1", "S=no", "S=0", "S=inf"):
        assert call(scaling, "--step_ms", wrong) == 2
        assert "--step_ms: " in capsys.readouterr().err


def test_the_document_holds_what_the_code_says(tmp_path, monkeypatch, capsys):
    records = common.read_records(ROOT / "benchmarks" / "results")
    text = scaling.tables(scaling.step_times(records))
    assert common.with_tables(scaling.DOCUMENT, scaling.MARKS, text) == scaling.DOCUMENT.read_text()
    copy = tmp_path / "SCALING.md"
    copy.write_text(scaling.DOCUMENT.read_text())
    monkeypatch.setattr(scaling, "DOCUMENT", copy)
    assert call(scaling, "--step_ms", "S=1000", "--update", "--output", tmp_path) == 0
    assert capsys.readouterr().out.strip() in copy.read_text()
    copy.write_text("no tables")
    assert call(scaling, "--update", "--output", tmp_path) == 2
    assert "SCALING.md: expected the marks" in capsys.readouterr().err
