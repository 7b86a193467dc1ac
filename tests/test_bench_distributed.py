"""The efficiency to expect of many GPUs: the formulas at their limits, what they count, and the document that holds them."""

import dataclasses
import json
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models_mae
from benchmarks import scaling
from benchmarks.scaling import Cluster, Way
from util.errors import UserError

# Rings and trees that take no time to begin.
AT_ONCE = (Way(False, 0, 0, 0, 1.0), Way(True, 0, 0, 0, 1.0))
EXCHANGES = pytest.mark.parametrize("exchange", [scaling.ddp, scaling.shard])


@pytest.fixture(params=scaling.MODELS)
def sizes(request):
    return scaling.sizes(scaling.MODELS[request.param])


def test_two_gpus_send_each_half_twice():
    assert Cluster(1, 2, nvlink=100.0, ways=AT_ONCE).all_reduce(1000) == 10
    assert Cluster(1, 2, nvlink=100.0, ways=AT_ONCE).gather(1000) == 5
    assert Cluster(2, 1, network=10.0, ways=AT_ONCE).all_reduce(1000) == 100


def test_latency_of_a_ring_is_of_every_hop_and_of_a_tree_of_its_depth():
    ring, tree = Way(False, 100, 1, 10, 1.0), Way(True, 100, 1, 10, 1.0)
    assert Cluster(1, 8).latency(ring, 2) == 100 + 2 * 7
    assert Cluster(8, 8).latency(ring, 2) == 100 + 2 * (56 + 7 * 10)
    assert Cluster(8, 8).latency(ring, 1) == 100 + 56 + 7 * 10
    assert Cluster(8, 8).latency(tree, 2) == 100 + 2 * (7 + 3 * 10)
    assert Cluster(1, 2).latency(tree, 2) == Cluster(1, 2).latency(ring, 2)


def test_the_slower_of_the_two_links_counts():
    assert Cluster(1, 8, network=1.0, nvlink=5.0).bus == 5
    assert Cluster(2, 8, network=1.0, nvlink=5.0).bus == 1
    assert Cluster(2, 8, network=9.0, nvlink=5.0).bus == 5
    assert Cluster(8, 1, network=9.0, nvlink=5.0).bus == 9


@EXCHANGES
def test_one_gpu_loses_nothing(exchange, sizes):
    assert scaling.efficiency(exchange, sizes, 0.1, Cluster(1, 1)) == 1


@EXCHANGES
@pytest.mark.parametrize("nodes", [1, 64])
def test_infinite_bandwidth_without_latency_loses_nothing(exchange, nodes, sizes):
    cluster = Cluster(nodes, 8, math.inf, math.inf, AT_ONCE)
    assert exchange(sizes, 0.1, cluster) == (0, 0)
    assert scaling.efficiency(exchange, sizes, 0.1, cluster) == 1


@EXCHANGES
def test_efficiency_falls_with_gpus_and_slower_links_and_grows_with_the_step(exchange, sizes):
    def of(step, *cluster):
        return scaling.efficiency(exchange, sizes, step, Cluster(*cluster))

    assert 0 < of(0.02, 64, 8) < of(0.02, 8, 8) < of(0.02, 8, 8, 8 * scaling.CARD) < of(0.02, 1, 8) < 1
    assert of(0.02, 8, 8) < of(0.08, 8, 8)
    exchanged, waited = exchange(sizes, 10.0, Cluster(8, 8))
    assert 0 < waited < exchanged  # most of it hides behind a long step


def test_ddp_waits_for_what_the_backward_pass_does_not_hide():
    size = scaling.Sizes((), ((1, scaling.FIRST_BUCKET // 4, True), (1, 3 * scaling.BUCKET // 4, True)))
    cluster = Cluster(1, 2, nvlink=float(scaling.BUCKET), ways=AT_ONCE)
    whole = 3 + scaling.FIRST_BUCKET / scaling.BUCKET
    assert scaling.ddp(size, 0.0, cluster) == pytest.approx((whole, whole))
    assert scaling.ddp(size, 1.5, cluster) == pytest.approx((whole, whole - scaling.OVERLAP))
    assert scaling.ddp(size, 1e3, cluster) == pytest.approx((whole, whole / 4))  # the last of four


@pytest.mark.parametrize("preset", models_mae.PRESETS)
def test_parameters_are_those_of_the_model(preset):
    size = scaling.sizes(preset)
    with torch.device("meta"):
        model = models_mae.create_model(preset)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert size.gradients == 4 * trained == size.divided(1)
    blocks = sum(parameter.numel() for name, parameter in model.named_parameters() if "blocks." in name)
    assert size.gathered(1) == 4 * (blocks + sum(parameter.numel() for parameter in model.parameters()))


def test_parameters_are_filled_up_to_whole_rows():
    # 3 rows of 5 and 1 row of 7 over 2 processes: 4 rows and 2
    assert scaling.padded(((3, 15, True), (1, 7, False)), 2) == 4 * (20 + 14)
    assert scaling.padded(((3, 15, True), (1, 7, False)), 2, trained_only=True) == 4 * 20


@pytest.mark.parametrize(("preset", "mask_ratio"), [
    ("mae_vit_tiny_patch16", 0.75), ("mae_vit_tiny_patch16", 0.8), ("mae_vit_huge_patch14", 0.75),
])  # fmt: skip
def test_operations_are_those_that_torch_counts(preset, mask_ratio):
    with torch.device("meta"):
        model = models_mae.create_model(preset)
        images = torch.zeros(1, 1, 224, 224)
    # The kernel whose products are all counted.
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model(images, mask_ratio)[0].backward()
    assert scaling.step_flops(preset, mask_ratio) == counted.get_total_flops()


def test_step_times_come_from_the_command_line_a_record_or_an_assumption(tmp_path):
    assumed = scaling.assumed()
    assert assumed.assumed
    assert assumed.of("L") == pytest.approx(64 * scaling.step_flops("mae_vit_large_patch16") / (0.4 * 989.4e12))
    assert assumed.of("L", 256) == 4 * assumed.of("L")
    assert scaling.recorded(tmp_path) is None

    entry = {"64": {"step_s": {"median": 0.1}}, "256": {"step_s": {"median": 0.3}}}
    record = {"device": "NVIDIA H200", "date": "2030-01-01", "amp": "bf16"}
    path = tmp_path / "NVIDIA-H200.json"
    path.write_text(json.dumps({"bench_distributed": record}))
    assert scaling.recorded(tmp_path) is None  # has no step times
    record["step_times"] = dict.fromkeys(scaling.MODELS.values(), entry)
    path.write_text(json.dumps({"bench_distributed": record}))
    recorded = scaling.recorded(tmp_path)
    assert (recorded.assumed, recorded.of("S"), recorded.of("S", 256), recorded.of("S", 128)) == (False, 0.1, 0.3, 0.2)
    assert "measured on one NVIDIA H200" in scaling.tables(recorded)

    given = scaling.given(["S=20"], recorded)
    assert (given.of("S"), given.of("M")) == (0.02, 0.1)
    for wrong in ("S", "X=1", "S=no", "S=0", "S=inf"):
        with pytest.raises(UserError, match="--step_ms"):
            scaling.given([wrong], recorded)


def test_the_document_holds_what_the_code_says(tmp_path, monkeypatch):
    times = [scaling.assumed(), scaling.recorded(scaling.DOCUMENT.parent / "results")]
    assert scaling.in_document() in [scaling.tables(known) for known in times if known]

    copy = tmp_path / "SCALING.md"
    copy.write_text(scaling.DOCUMENT.read_text())
    monkeypatch.setattr(scaling, "DOCUMENT", copy)
    slower = dataclasses.replace(scaling.assumed(), seconds={name: {64: 1.0} for name in scaling.MODELS})
    scaling.update(slower)
    assert scaling.in_document() == scaling.tables(slower)
    scaling.update(scaling.assumed())
    assert scaling.in_document() == scaling.tables(scaling.assumed())
    copy.write_text("no tables")
    with pytest.raises(UserError, match="expected the lines"):
        scaling.update(slower)
