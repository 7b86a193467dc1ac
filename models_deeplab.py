"""The convolutional baseline, torchvision's DeepLabV3 ("Rethinking Atrous Convolution", arXiv 1706.05587)."""

from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from models_presets import look_up
from radio.grid import OUTSIDE

PRESETS = {
    "deeplabv3_mobilenet_v3_large": segmentation.deeplabv3_mobilenet_v3_large,
    "deeplabv3_resnet50": segmentation.deeplabv3_resnet50,
    "deeplabv3_resnet101": segmentation.deeplabv3_resnet101,
}

# How the published baselines were trained on MathWorks' NR and LTE frames. The rate is absolute.
RECIPE = {
    "opt": "sgd",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_drop_epochs": 10,
    "lr_drop_factor": 0.1,
    "class_weights": "median_frequency",
    "batch_size": 4,
}


def schedule(epoch, lr, args):
    """Learning rate at a position in epochs: it drops by a factor every few epochs."""
    return lr * RECIPE["lr_drop_factor"] ** (int(epoch) // RECIPE["lr_drop_epochs"])


class DeepLabV3(nn.Module):
    """Backbone, atrous pyramid and bilinear upsampling; torchvision's state-dict keys, no auxiliary head.

    Args:
        name: one of `PRESETS`.
        num_classes: classes of a cell.
        in_chans: channels of the images.

    Raises:
        UserError: no such preset.
    """

    def __init__(self, name, num_classes, in_chans=1):
        super().__init__()
        # Without `weights_backbone=None` torchvision would download ImageNet weights.
        no_weights = {"weights": None, "weights_backbone": None, "aux_loss": False}
        model = look_up(name, PRESETS)(num_classes=num_classes, **no_weights)
        self.pads = False  # see `models_mae.ViTEncoder`
        self.backbone = model.backbone
        self.classifier = model.classifier
        # The first convolution takes the channels of our images.
        modules = self.backbone.named_modules()
        path, old = next((path, module) for path, module in modules if isinstance(module, nn.Conv2d))
        conv = nn.Conv2d(in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.backbone.set_submodule(path, conv)

    def forward(self, imgs):
        """Images [N, in_chans, frequency, time] -> logits [N, num_classes, frequency, time].

        Raises:
            ValueError: one image in train mode: batch norm of the pyramid's 1 × 1 features needs two.
        """
        if self.training and len(imgs) < 2:
            raise ValueError(f"expected 2 images or more in a training batch: {len(imgs)=}")
        if self.pads:
            imgs = imgs.masked_fill(imgs == OUTSIDE, 0)
        features = self.backbone(imgs)["out"]  # (N, channels, frequency / stride, time / stride)
        logits = self.classifier(features)  # (N, num_classes, frequency / stride, time / stride)
        return F.interpolate(logits, size=imgs.shape[-2:], mode="bilinear", align_corners=False)
