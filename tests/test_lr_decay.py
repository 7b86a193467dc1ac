"""Layer-wise learning-rate decay: the size of a step tells a parameter's rate."""

import pytest
import torch

import models_vit
from util.lr_decay import param_groups_lrd
from util.lr_sched import set_lr

SIZES = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
# With three blocks: embeddings, the blocks, and all above them.
POWER = {"cls_token": 4, "patch_embed": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1}


def models():
    torch.manual_seed(0)
    decoder = {"decoder_embed_dim": 8, "decoder_num_heads": 2}
    return {
        "decoder": models_vit.SegmentationViT(3, **SIZES, **decoder),
        "linear": models_vit.SegmentationViT(3, head="linear", **SIZES),
        "global_pool": models_vit.ClassificationViT(3, **SIZES),
        "cls_token": models_vit.ClassificationViT(3, global_pool=False, **SIZES),
    }


def power(name):
    return next((value for prefix, value in POWER.items() if name.startswith(prefix)), 0)


@pytest.mark.parametrize("kind", ["decoder", "linear", "global_pool", "cls_token"])
def test_steps_shrink_from_the_head_down(kind):
    """Plain gradient descent on a gradient of ones: what a parameter moves by is its rate."""
    model = models()[kind]
    models_vit.trainable(model, "full")
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(param_groups_lrd(model, 0.0, 0.5), lr=123.0)
    set_lr(optimizer, 0.25)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = torch.full_like(parameter, 0.0 if name.endswith("pos_embed") else 0.25 * 0.5 ** power(name))
        torch.testing.assert_close(before[name] - parameter, moved, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["decoder", "linear", "global_pool", "cls_token"])
def test_weights_decay_and_biases_norms_and_tokens_do_not(kind):
    """A step with no gradient shrinks what has weight decay, by rate × decay."""
    model = models()[kind]
    models_vit.trainable(model, "full")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = torch.optim.AdamW(param_groups_lrd(model, 0.1, 1.0), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    decays = {name: round(parameter.flatten()[0].item(), 5) for name, parameter in model.named_parameters()}
    for name, value in decays.items():
        matrix = name.endswith(
            (
                "qkv.weight",
                "attn.proj.weight",
                "fc1.weight",
                "fc2.weight",
                "head.weight",
                "decoder_embed.weight",
                "patch_embed.proj.weight",
            )
        )
        assert value == (0.95 if matrix else 1.0), name


@pytest.mark.parametrize("mode", ["full", "head", "probe", "last:2"])
def test_groups_hold_each_trained_parameter_once_and_no_other(mode):
    model = models()["decoder"]
    names = models_vit.trainable(model, mode)
    grouped = [
        id(parameter) for group in param_groups_lrd(model, 0.05, 0.75) for parameter in group["params"]
    ]
    parameters = dict(model.named_parameters())
    assert sorted(grouped) == sorted(id(parameters[name]) for name in names)


def test_twelve_blocks_reach_from_one_to_the_thirteenth_power():
    with torch.device("meta"):
        model = models_vit.create_model("vit_tiny_patch16", "classification", 6, 64)
    models_vit.trainable(model, "full")
    scales = [group["lr_scale"] for group in param_groups_lrd(model, 0.05, 0.65)]
    assert scales == sorted(scales)
    assert sorted(set(scales)) == pytest.approx([0.65**n for n in range(13, -1, -1)])
    # Matrices and the rest, of each of the 14 layers.
    assert len(scales) == 28


def test_more_names_without_weight_decay():
    model = models()["linear"]
    models_vit.trainable(model, "head")
    assert {group["weight_decay"] for group in param_groups_lrd(model, 0.05, 0.75)} == {0.0, 0.05}
    assert {group["weight_decay"] for group in param_groups_lrd(model, 0.05, 0.75, ("head.weight",))} == {0.0}
