"""Weights of other projects: the same input gives the same features there and here, and names go and come
back.
"""

import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

import models_mae
import models_vit
from util import convert
from util.errors import UserError
from util.loading import load_pretrained
from util.pos_embed import sincos_2d
from util.pretrained import read_weights

SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 3, "decoder_num_heads": 2}
IMAGE = (32, 32)
CHANNELS = 2


def filled(model):
    """Every tensor drawn, so that none is mistaken for another, the norms and position embeddings included."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(
                torch.randn(value.shape, generator=generator) / 5
                + ("norm" in name and name.endswith("weight"))
            )
    return model.eval()


def mae(**kwargs):
    return filled(models_mae.MaskedAutoencoderViT(IMAGE, in_chans=CHANNELS, **SIZES, **DECODER, **kwargs))


def vit_mae(pretraining=True, image_size=IMAGE[0], fill=True):
    """transformers' model of the same sizes; imported here, as that takes seconds."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

    config = ViTMAEConfig(
        image_size=image_size,
        patch_size=8,
        num_channels=CHANNELS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        layer_norm_eps=1e-6,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    model = (ViTMAEForPreTraining if pretraining else ViTMAEModel)(config)
    return filled(model) if fill else model


def images(seed=0):
    return torch.randn(3, CHANNELS, *IMAGE, generator=torch.Generator().manual_seed(seed))


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_same_answers(ours, theirs):
    """Reconstruction and loss of the same patches, and the encoder's tokens of all of them in their order."""
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss, pred, mask = ours(images(), 0.75, noise)
        found = theirs(images(), noise=noise)
        torch.testing.assert_close(pred, found.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(loss, found.loss, atol=1e-5, rtol=0)
        assert torch.equal(mask, found.mask)
        theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.0
        in_order = torch.arange(16.0).expand(3, -1)
        tokens = theirs.vit(images(), noise=in_order).last_hidden_state
        torch.testing.assert_close(ours.encode(images()), tokens, atol=1e-5, rtol=0)
        theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.75


def published(state):
    """The names of facebook/vit-mae-base on the hub, written out, for those of transformers 5 in memory."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("vit.layers.", "vit.encoder.layer.")
        for old, new in (
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


# transformers


def test_transformers_to_ours_and_back():
    theirs, ours = vit_mae(), mae(norm_pix_loss=True)
    state = convert.from_transformers(theirs.state_dict())
    ours.load_state_dict(state)
    assert_same_answers(ours, theirs)
    assert_same_tensors(convert.to_transformers(state), published(theirs.state_dict()))
    assert_same_tensors(convert.from_transformers(published(theirs.state_dict())), state)


def test_ours_to_transformers_and_back(tmp_path):
    """By way of a folder, as users of transformers have it; what its `save_pretrained` writes comes back too."""
    ours, template = mae(norm_pix_loss=True), vit_mae()
    template.config.save_pretrained(tmp_path)
    save_file(convert.to_transformers(ours.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    theirs, info = type(template).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_answers(ours, theirs.eval())

    theirs.save_pretrained(tmp_path / "saved")
    found = read_weights(tmp_path / "saved" / "model.safetensors")
    assert_same_tensors(found.state_dict, ours.state_dict())
    assert found.converted == "names of transformers -> MAE's"
    assert_same_tensors(convert.from_transformers(theirs.state_dict()), ours.state_dict())


def test_an_encoder_of_transformers_alone(tmp_path):
    """A ViTMAEModel has no prefix; it is read from torch's file as well, and taken without a word about the
    decoder.
    """
    theirs = vit_mae(pretraining=False)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    found = read_weights(tmp_path / "pytorch_model.bin")
    model = models_vit.SegmentationViT(3, IMAGE, in_chans=CHANNELS, **SIZES, head="linear")
    report = load_pretrained(model, found.state_dict, "a", found.front_end, found.converted)
    assert "adapted 1: names of transformers -> MAE's" in report.summary().splitlines()
    assert report.left == []
    assert_same_tensors(convert.to_timm(model.state_dict()), found.state_dict)
    # The names of both models of transformers are one without the prefix.
    prefixed = {f"vit.{name}": value for name, value in theirs.state_dict().items()}
    assert_same_tensors(convert.from_transformers(prefixed), found.state_dict)


@pytest.mark.parametrize("side", [32, 64])
def test_fixed_positions_of_transformers_are_ours(side):
    """Time columns in the first half of the channels, frequency rows in the second, as MAE's."""
    theirs = vit_mae(image_size=side, fill=False)
    # A new model of 5.24 has zeros: what it counts as initialised is not filled. Its files bring theirs
    # along.
    theirs.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    theirs.vit.embeddings.initialize_weights()
    theirs.decoder.initialize_weights((side // 8) ** 2)
    state = convert.from_transformers(theirs.state_dict())
    for name, width in (("pos_embed", 32), ("decoder_pos_embed", 16)):
        torch.testing.assert_close(state[name], sincos_2d(width, (side // 8, side // 8)), atol=1e-6, rtol=0)


def test_what_transformers_has_besides_keeps_its_name(tmp_path):
    """A file of its ViT with a classifier: an encoder to start from, and the rest is reported as left."""
    state = published(
        {f"vit.{name}": value for name, value in vit_mae(pretraining=False).state_dict().items()}
    )
    state |= {"classifier.weight": torch.zeros(5, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    save_file(state, tmp_path / "vit.safetensors")
    found = read_weights(tmp_path / "vit.safetensors")
    model = models_vit.ClassificationViT(3, IMAGE, in_chans=CHANNELS, **SIZES, global_pool=False)
    assert load_pretrained(model, found.state_dict, "a").left == [
        "classifier.weight",
        "vit.pooler.dense.bias",
    ]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (r"layers\.1\.attention\.k_proj\.bias", "query, key and value of blocks.1.attn.qkv.bias; found no k"),
        (r"layers\.1\.attention\.o_proj\.weight", "an encoder with blocks.1.attn.proj.weight .*; found none"),
        (r"layers\.1\.", "an encoder with blocks.1.norm1.weight .*; found none"),
        (r"embeddings\.position_embeddings", "an encoder with pos_embed .*; found none"),
    ],
)
def test_a_file_of_transformers_that_lacks_something_is_refused(tmp_path, gone, said):
    state = {name: value for name, value in vit_mae(False).state_dict().items() if not re.match(gone, name)}
    save_file(state, tmp_path / "a.safetensors")
    model = models_vit.ClassificationViT(3, IMAGE, in_chans=CHANNELS, **SIZES)
    with pytest.raises(UserError, match=rf"a\.safetensors: expected {said}") as error:
        load_pretrained(
            model, read_weights(tmp_path / "a.safetensors").state_dict, tmp_path / "a.safetensors"
        )
    assert "\n" not in str(error.value)


# timm


def timm_vit(**kwargs):
    sizes = SIZES | {"img_size": IMAGE, "in_chans": CHANNELS, "num_classes": 0, "global_pool": ""}
    return filled(VisionTransformer(**{**sizes, **kwargs}))


def test_timm_to_ours_and_back():
    theirs, ours = (
        timm_vit(),
        models_vit.ClassificationViT(3, IMAGE, in_chans=CHANNELS, **SIZES, global_pool=False).eval(),
    )
    state = convert.from_timm(theirs.state_dict())
    assert load_pretrained(ours, state, "a").left == []
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(images()), theirs(images()), atol=1e-5, rtol=0)
    back = timm_vit()
    back.load_state_dict(convert.to_timm(ours.state_dict()))
    assert_same_tensors(back.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_ours_to_timm_and_back(size):
    """The encoder of a masked autoencoder, decoder left out."""
    ours = filled(models_mae.MaskedAutoencoderViT(size, in_chans=CHANNELS, **SIZES, **DECODER))
    theirs = timm_vit(img_size=size)
    theirs.load_state_dict(convert.to_timm(ours.state_dict()))
    noise = torch.randn(3, CHANNELS, *size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(noise), ours.encode(noise), atol=1e-5, rtol=0)
    assert_same_tensors(convert.from_timm(theirs.state_dict()), convert.to_timm(ours.state_dict()))


@pytest.mark.parametrize("pooled", [True, False])
def test_a_classifier_is_timms_with_all_its_names(pooled):
    """Ours of the mean of the patches has timm's `fc_norm`, in the whole file and in the encoder."""
    ours = filled(models_vit.ClassificationViT(5, IMAGE, in_chans=CHANNELS, **SIZES, global_pool=pooled))
    theirs = timm_vit(num_classes=5, global_pool="avg" if pooled else "token")
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(theirs(images()), ours(images()), atol=1e-5, rtol=0)
    pooling = timm_vit(global_pool="avg" if pooled else "token")
    pooling.load_state_dict(convert.to_timm(ours.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(ours.head(pooling(images())), ours(images()), atol=1e-5, rtol=0)


def test_timm_without_a_position_for_the_class_token(tmp_path):
    theirs, ours = timm_vit(no_embed_class=True), mae()
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    found = read_weights(tmp_path / "a.safetensors")
    report = load_pretrained(ours, found.state_dict, "a", found.front_end, found.converted)
    assert report.adapted == ["pos_embed + zeros for the class token"]
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(images()), theirs(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"reg_tokens": 4}, "reg_token"),
        ({"init_values": 1.0}, "blocks.0.ls1.gamma"),
        ({"qk_norm": True}, "blocks.0.attn.[qk]_norm"),
        ({"pre_norm": True}, "norm_pre"),
        ({"global_pool": "map"}, "attn_pool"),
    ],
)
def test_other_models_of_timm_are_refused(tmp_path, kwargs, name):
    save_file(timm_vit(**kwargs).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=rf"a\.safetensors: expected the layers of a plain Vision Transformer; found {name}"
    ):
        read_weights(tmp_path / "a.safetensors")


def test_timm_without_a_class_token_is_refused():
    with pytest.raises(UserError, match=r"an encoder with cls_token of .*; found none"):
        load_pretrained(mae(), convert.from_timm(timm_vit(class_token=False).state_dict()), "a")


@pytest.mark.parametrize("preset", models_vit.PRESETS)
def test_presets_have_models_of_timm(preset):
    """The sizes of which timm has no model of this name are arguments."""
    name = preset.removesuffix("_dec512d8b").replace("medium", "base").replace("wavesfm", "small") + "_224"
    more = {
        "small": {"embed_dim": 512, "num_heads": 8},
        "wavesfm": {"embed_dim": 256, "num_heads": 8, "depth": 8},
    }
    more = more.get(preset.split("_")[1], {})
    with torch.device("meta"):
        theirs = timm.create_model(name, in_chans=1, num_classes=0, global_pool="", **more)
        ours = models_vit.create_model(preset, "segmentation", 3, 224)
    shapes = [
        {name: tuple(value.shape) for name, value in state.items()}
        for state in (theirs.state_dict(), convert.to_timm(ours.state_dict()))
    ]
    assert shapes[0] == shapes[1]


# MAE


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_of_mae_are_ours(tmp_path, suffix):
    ours = mae()
    if suffix == ".pth":
        torch.save({"model": ours.state_dict()}, tmp_path / "mae.pth")
    else:
        save_file(ours.state_dict(), tmp_path / "mae.safetensors")
    found = read_weights(tmp_path / f"mae{suffix}")
    assert_same_tensors(found.state_dict, ours.state_dict())
    assert found.converted == ""
    other = models_mae.MaskedAutoencoderViT(IMAGE, in_chans=CHANNELS, **SIZES, **DECODER).eval()
    report = load_pretrained(other, found.state_dict, "mae")
    assert report.left == report.new == report.adapted == []
    with torch.no_grad():
        torch.testing.assert_close(other.encode(images()), ours.encode(images()), atol=1e-5, rtol=0)
    assert_same_tensors(other.state_dict(), ours.state_dict())


def test_names_that_are_no_vision_transformers_stay():
    state = {"backbone.0.0.weight": torch.zeros(1), "classifier.4.bias": torch.zeros(1)}
    assert convert.to_ours(state) == (state, "")


@pytest.mark.parametrize("names", ["mae", "transformers"])
def test_colour_becomes_one_channel_that_answers_a_grey_image_as_before(tmp_path, names):
    """Whatever the names of the file."""
    rgb = filled(models_mae.MaskedAutoencoderViT(IMAGE, in_chans=3, **SIZES, **DECODER))
    state = rgb.state_dict() if names == "mae" else convert.to_transformers(rgb.state_dict())
    save_file(state, tmp_path / "rgb.safetensors")
    one = models_mae.MaskedAutoencoderViT(IMAGE, in_chans=1, **SIZES, **DECODER).eval()
    found = convert.to_timm(read_weights(tmp_path / "rgb.safetensors").state_dict)
    assert load_pretrained(one, found, "rgb").adapted == ["patch_embed.proj.weight 3 -> 1 channels"]
    grey = torch.randn(2, 1, *IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(
            one.encode(grey), rgb.encode(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=0
        )


def test_files_have_no_views(tmp_path):
    save_file(convert.to_transformers(mae().state_dict()), tmp_path / "a.safetensors")
    assert_same_tensors(convert.from_transformers(load_file(tmp_path / "a.safetensors")), mae().state_dict())
