"""The Python interface through torch.hub: models, with and without weights, and a labeller of recordings.

    import torch
    labeller = torch.hub.load(".", "labeller", source="local")
    for carrier in labeller.label("capture.sigmf-meta"):
        print(carrier)

    model = torch.hub.load(".", "radio_mae_vit_tiny", source="local")        # a released file of weights
    weights = "output_dir/checkpoint-last.pth"                               # a preset, started from a file
    encoder = torch.hub.load(".", "vit_small_patch16", source="local", pretrained=weights)

`mae_vit_*` are masked autoencoders, `vit_*` their encoders. Every other entry but `labeller` is a released
file of `main_download.py list`. "." is the folder of this file.
"""

import models_mae as _models_mae
import models_vit as _models_vit
import models_weights as _models_weights
from util import fetch as _fetch
from util import loading as _loading
from util import pretrained as _weights
from util.errors import UserError as _UserError
from util.errors import warn as _warn

# torch.hub looks for these before it calls an entry.
dependencies = ["torch", "torchvision", "timm", "einops", "numpy", "scipy", "safetensors", "sigmf"]
dependencies += ["matplotlib", "huggingface_hub", "filelock", "requests", "tqdm"]

_DOC = """{about}

    Args:
        pretrained: {pretrained}
        img_size: (frequency rows, time columns) of the images, or one number for both; None: that of the
            weights, else 224. Position embeddings of another size are resampled.
        in_chans: channels of the images; None: those of the weights' front end, else 1. Patch embeddings of
            another number are summed or repeated.
        show_report: print which tensors were loaded, left in the file, and new in the model.
        offline: do not use the network; None: as HF_HUB_OFFLINE says.
        kwargs: more arguments of the class, for example norm_eps=1e-5, the epsilon of norms inside blocks.

    Returns:
        The model, in train mode and float32. With weights, it has `load_report`, a `util.loading.LoadReport`;
        `front_end` (`radio.front_end`), which makes its images, `model.front_end(iq, sample_rate_hz)`, or None;
        and `class_names`.

    Raises:
        UserError: there is no such file or name, or its weights belong to another model.
    """


def labeller(
    weights="radio_seg_vit_tiny",
    device="auto",
    amp="auto",
    offline=None,
    classes=None,
    norm_eps=None,
    confirm=True,
    **limits,
):
    """Finds carriers in recordings and arrays of IQ, as main_segment.py does.

        labels = labeller().label("capture.sigmf-meta")
        labels[0].label, labels[0].center_freq_hz      # a sequence of `radio.carriers.Carrier`
        labels.class_map, labels.extent    # uint8 [rows, columns]; first s, last s, lowest Hz, highest Hz
        labels.figure().savefig("capture.png")

    Args:
        weights: a file with a segmentation head, a released name, or an address of the Hugging Face hub.
        device: auto, cpu, cuda, cuda:1, ...
        amp: mixed precision: auto, bf16, fp16 or off.
        offline: do not use the network; None: as HF_HUB_OFFLINE says.
        classes: class names, the background first, a list or "Noise,NR,LTE"; for weights without names.
        norm_eps: epsilon of the norms inside blocks; None: as the weights say, else 1e-6.
        confirm: search for LTE and NR cells; False: the model alone.
        limits: flags of main_segment.py: `min_bandwidth_hz`, `min_duration_s`, `min_confidence`, `bridge_s`,
            `overlap`.

    Returns:
        `engine_label.Labeller`; its method `label` takes a path, or complex samples with `sample_rate_hz`.

    Raises:
        UserError: the weights have no segmentation head or no class names, or a value is out of range.
    """
    from engine_label import Labeller
    from engine_segment import open_segmenter
    from util.device import pick_device

    classes = classes.split(",") if isinstance(classes, str) else classes
    segmenter = open_segmenter(weights, pick_device(device), amp, classes, norm_eps, offline)
    return Labeller(segmenter, weights, confirm=confirm, **limits)


def _front_end_of(weights, name):
    try:
        return _models_weights.front_end_of(weights, name)
    except _UserError:  # its images are not made of IQ
        return None


def _finished(model, weights, name, report, show_report):
    """The model with its front end, class names and report."""
    model.front_end = _front_end_of(weights, name)
    model.pads = model.front_end is not None and model.front_end.pads
    model.class_names, model.load_report = list(weights.classes), report
    if show_report and report:
        print(report.summary())
    return model


def _of_preset(create, name):
    """The entry of a preset."""

    def entry(pretrained=False, img_size=None, in_chans=None, show_report=False, offline=None, **kwargs):
        if not pretrained:
            return create(name, img_size=img_size or 224, in_chans=in_chans or 1, **kwargs)
        if pretrained is True:
            expected = "expected a file of weights or a name of `main_download.py list`"
            raise _UserError(f"{name}(pretrained=True): {expected}; found True")
        weights = _weights.read_weights(pretrained, offline)
        size = img_size or _models_weights.image_size_of(weights, pretrained)
        eps = {"norm_eps": _weights.pick_norm_eps(None, weights)}
        front_end = _front_end_of(weights, pretrained)
        channels = in_chans or (front_end.in_chans if front_end else 1)
        model = create(name, img_size=size, in_chans=channels, **eps | kwargs)
        report = weights.load_into(model, pretrained)
        if report.new:
            new = ", ".join(_loading.by_module(report.new, report.loaded))
            missing = f"{len(report.new)} tensors of {name} are not in the file and start at random"
            _warn(f"{pretrained}: {missing}: {new}")
        return _finished(model, weights, pretrained, report, show_report)

    return entry


def _of_file(name):
    """The entry of a released file of weights."""

    def entry(pretrained=True, img_size=None, in_chans=None, show_report=False, offline=None, **kwargs):
        weights = _weights.read_weights(name, offline)
        model = _models_weights.create_model(weights, name, img_size=img_size, in_chans=in_chans, **kwargs)
        report = _models_weights.load(model, weights, name) if pretrained else None
        return _finished(model, weights, name, report, show_report)

    return entry


def _define(name, entry, about, pretrained):
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = _DOC.format(about=about, pretrained=pretrained)
    globals()[name] = entry


_START = "a file of weights, a released name, or an address of the Hugging Face hub; False: a random start."
_OWN = "load the weights; False: the same model with a random start."
for _name in _models_mae.PRESETS:
    _define(_name, _of_preset(_models_mae.create_model, _name), f"The masked autoencoder {_name}.", _START)
for _name in _models_vit.PRESETS:
    _about = f"The encoder {_name}: images [N, C, F, T] to tokens [N, 1 + L, D], class token first."
    _define(_name, _of_preset(_models_vit.create_encoder, _name), _about, _START)
for _name, _released in _fetch.entries().items():
    if _released.kind == _fetch.WEIGHTS:
        _about = f"The released file {_name}: {_released.holds}.\n\n    Licence: {_released.licence}."
        _define(_name, _of_file(_name), _about, _OWN)
