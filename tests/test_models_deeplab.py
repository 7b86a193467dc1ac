"""The convolutional baseline is torchvision's, but for its first layer and what it returns."""

import pytest
import torch
from torch import nn
from torchvision.models import segmentation

import models_deeplab
from util.errors import UserError

WEIGHTS = {
    "deeplabv3_mobilenet_v3_large": segmentation.DeepLabV3_MobileNet_V3_Large_Weights.DEFAULT,
    "deeplabv3_resnet50": segmentation.DeepLabV3_ResNet50_Weights.DEFAULT,
    "deeplabv3_resnet101": segmentation.DeepLabV3_ResNet101_Weights.DEFAULT,
}
MOBILENET = "deeplabv3_mobilenet_v3_large"


@pytest.mark.parametrize("name", models_deeplab.PRESETS)
def test_presets_have_torchvisions_number_of_parameters(name):
    """Its published count, less the auxiliary head (3 × 3 to a quarter, batch norm, 1 × 1) and two channels
    of three.
    """
    with torch.device("meta"):
        model = models_deeplab.DeepLabV3(name, 21)
    features, first = (40, 16 * 3 * 3) if name == MOBILENET else (1024, 64 * 7 * 7)
    quarter = features // 4
    auxiliary = features * quarter * 9 + 2 * quarter + quarter * 21 + 21
    expected = WEIGHTS[name].meta["num_params"] - auxiliary - 2 * first
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_with_torchvisions_weights_the_logits_are_torchvisions():
    torch.manual_seed(0)
    reference = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    ).eval()
    model = models_deeplab.DeepLabV3(MOBILENET, 4, in_chans=3).eval()
    model.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, 40, 72)
    assert torch.equal(model(images), reference(images)["out"])


@pytest.mark.parametrize("in_chans", [1, 2])
def test_a_logit_for_each_class_and_cell(in_chans):
    model = models_deeplab.DeepLabV3(MOBILENET, 3, in_chans)
    logits = model(torch.randn(2, in_chans, 48, 64))
    assert logits.shape == (2, 3, 48, 64)
    logits.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_first_layer_starts_as_torchvisions():
    """He's normal distribution by fan-out: variance 2 / (64 channels × 7 × 7), and the geometry of the layer
    it replaces.
    """
    torch.manual_seed(0)
    conv = models_deeplab.DeepLabV3("deeplabv3_resnet50", 3).backbone.conv1
    assert (conv.weight.shape, conv.stride, conv.padding, conv.bias) == ((64, 1, 7, 7), (2, 2), (3, 3), None)
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert abs(conv.weight.mean().item()) < 0.002


def test_one_image_is_enough_to_evaluate_and_too_few_to_train():
    model, image = models_deeplab.DeepLabV3(MOBILENET, 3), torch.randn(1, 1, 32, 32)
    running = {name: value.clone() for name, value in model.named_buffers()}
    with pytest.raises(ValueError, match="2 images or more"):
        model(image)
    # Refused before any running mean is touched.
    assert all(torch.equal(value, running[name]) for name, value in model.named_buffers())
    assert model.eval()(image).shape == (1, 3, 32, 32)


def test_a_step_of_the_recipe_lowers_the_loss():
    torch.manual_seed(0)
    recipe = models_deeplab.RECIPE
    model = models_deeplab.DeepLabV3(MOBILENET, 3)
    images = torch.randn(recipe["batch_size"], 1, 32, 32)
    masks = torch.zeros(recipe["batch_size"], 32, 32, dtype=torch.int64)
    sgd = torch.optim.SGD(
        model.parameters(), **{key: recipe[key] for key in ("lr", "momentum", "weight_decay")}
    )
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(images), masks)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_unknown_presets():
    with pytest.raises(
        UserError, match=r"expected one of deeplabv3_mobilenet_v3_large, .*; found 'deeplabv3_vgg'"
    ):
        models_deeplab.DeepLabV3("deeplabv3_vgg", 3)
