"""Adapters: the model starts as it was, they and the head alone train, and merged they are plain weights."""

import pytest
import torch
from torch.nn import functional as F

import models_vit
from models_vit import ClassificationViT, SegmentationViT
from util import lora
from util.errors import UserError
from util.loading import load_pretrained
from util.pretrained import read_weights

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
RANK, ALPHA = 3, 6.0


def segmenter():
    torch.manual_seed(0)
    return SegmentationViT(3, **SIZES, decoder_embed_dim=8, decoder_num_heads=2).eval()


def classifier(**kwargs):
    torch.manual_seed(0)
    model = ClassificationViT(3, **SIZES, **kwargs).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


MODELS = {"segmentation": segmenter, "mean": classifier, "class token": lambda: classifier(global_pool=False)}


def adapted(model, trained=True):
    """With adapters; drawn at random, as after training."""
    lora.add(model, RANK, ALPHA)
    generator = torch.Generator().manual_seed(1)
    if trained:
        with torch.no_grad():
            for module in lora.modules(model):
                for parameter in module.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def images():
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_starts_as_it_was(kind):
    with torch.no_grad():
        assert torch.equal(adapted(MODELS[kind](), trained=False)(images()), MODELS[kind]()(images()))
    assert len(lora.modules(adapted(MODELS[kind]()))) == SIZES["depth"]  # of the encoder, not of the decoder
    assert lora.modules(MODELS[kind]()) == []


@pytest.mark.parametrize("kind", MODELS)
def test_merged_weights_give_the_same_outputs_under_plain_names(kind, tmp_path):
    model, merged = adapted(MODELS[kind]()), MODELS[kind]()
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    # as a file is read, and by itself
    for state in (read_weights(tmp_path / "a.pth").state_dict, lora.merged(model.state_dict())):
        assert state.keys() == merged.state_dict().keys()
        assert not any(value.requires_grad for value in state.values())
        assert load_pretrained(merged, state, "a").left == []
        with torch.no_grad():
            expected = MODELS[kind]()(images())
            assert (model(images()) - expected).abs().max() > 1e-3  # the adapters do something
            torch.testing.assert_close(merged(images()), model(images()), atol=1e-6, rtol=0)


def test_queries_and_values_change_by_the_scaled_product_and_keys_stay():
    before, model = segmenter().state_dict(), adapted(segmenter())
    merged = lora.merged(model.state_dict())
    for number, adapter in enumerate(lora.modules(model)):
        name = f"blocks.{number}.attn.qkv.weight"
        query, key, value = (merged[name] - before[name]).chunk(3)
        assert torch.equal(key, torch.zeros(16, 16))
        for change, a, b in (
            (query, adapter.a_query, adapter.b_query),
            (value, adapter.a_value, adapter.b_value),
        ):
            torch.testing.assert_close(change, ALPHA / RANK * b.detach() @ a.detach(), atol=1e-6, rtol=0)
            assert torch.linalg.matrix_rank(change, atol=1e-5) == RANK
    assert all(
        torch.equal(merged[name], before[name]) for name in before if not name.endswith("attn.qkv.weight")
    )


def test_without_adapters_a_state_dict_stays_as_it_is():
    state = segmenter().state_dict()
    assert lora.merged(state) == state


@pytest.mark.parametrize("rank", [1, 16])
def test_ranks_up_to_the_width_are_taken(rank):
    model = segmenter()
    lora.add(model, rank, ALPHA)
    assert {tuple(module.a_query.shape) for module in lora.modules(model)} == {(rank, 16)}


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_other_ranks_are_refused_and_nothing_is_added(rank):
    model = segmenter()
    with pytest.raises(
        UserError, match=rf"^--lora: expected a rank from 1 to 16, the width of the encoder; found {rank}$"
    ):
        lora.add(model, rank, ALPHA)
    assert lora.modules(model) == []


@pytest.mark.parametrize("mode", ["full", "head", "last:1"])
@pytest.mark.parametrize("kind", MODELS)
def test_adapters_and_head_alone_train(kind, mode):
    model = adapted(MODELS[kind](), trained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = models_vit.trainable(model, mode)
    models_vit.train_mode(model, mode)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    for _ in range(2):  # A has no gradient while B is zero
        optimizer.zero_grad()
        outputs = model(images())
        F.cross_entropy(outputs, torch.zeros_like(outputs[:, 0], dtype=torch.long)).backward()
        optimizer.step()
    head = {"segmentation": ("decoder_", "head."), "mean": ("fc_norm.", "head."), "class token": ("head.",)}[
        kind
    ]
    expected = {name for name in before if name.startswith(head) and name != "decoder_pos_embed"}
    expected |= {
        name for name in before if name.rpartition(".")[2] in ("a_query", "a_value", "b_query", "b_value")
    }
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert set(names) == moved == expected


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: {name: value for name, value in state.items() if not name.endswith("a_query")},
        lambda state: {name: value for name, value in state.items() if not name.endswith("scale")},
        lambda state: {
            name: value[:, :2] if name.endswith("b_value") else value for name, value in state.items()
        },
        lambda state: {
            name: value[0] if name.endswith("original") else value for name, value in state.items()
        },
    ],
)
def test_other_parametrizations_are_refused_in_a_line(tmp_path, broken):
    torch.save({"model": broken(adapted(segmenter()).state_dict())}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"a\.pth: expected a low-rank adapter of queries and values at blocks\.0\."
    ):
        read_weights(tmp_path / "a.pth")
