"""The fine-tuned models: MAE's encoder and decoder, heads that fold back, and modes that train what they say."""

import math

import pytest
import torch
from torch import nn

import models_mae
import models_presets
import models_vit
from models_vit import ClassificationViT, SegmentationViT
from util.errors import UserError
from util.pretrained import Weights

SIZES = {"img_size": (24, 40), "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_num_heads": 2}
GRID = (3, 5)


def pretrained(**kwargs):
    torch.manual_seed(1)
    return models_mae.MaskedAutoencoderViT(**SIZES, **DECODER, decoder_depth=3, **kwargs)


def segmenter(num_classes=3, **kwargs):
    torch.manual_seed(0)
    return SegmentationViT(num_classes, **{**SIZES, **DECODER, **kwargs})


def classifier(num_classes=3, **kwargs):
    torch.manual_seed(0)
    return ClassificationViT(num_classes, **{**SIZES, **kwargs})


MODELS = {
    "decoder": segmenter,
    "linear": lambda **kwargs: segmenter(head="linear", **kwargs),
    "global_pool": classifier,
    "cls_token": lambda **kwargs: classifier(global_pool=False, **kwargs),
}
NORM = {"decoder": ("norm.",), "linear": ("norm.",), "global_pool": (), "cls_token": ("norm.",)}
HEAD = {
    "decoder": ("decoder_embed.", "decoder_blocks.", "decoder_norm.", "head."),
    "linear": ("head.",),
    "global_pool": ("fc_norm.", "head."),
    "cls_token": ("head.",),
}
ENCODER = ("cls_token", "patch_embed.", "blocks.")


def expected_to_train(kind, mode):
    prefixes = {
        "full": (*ENCODER, *NORM[kind], *HEAD[kind]),
        "head": HEAD[kind],
        "probe": ("head.",),
        "last:1": ("blocks.2.", *NORM[kind], *HEAD[kind]),
        "last:3": ("blocks.", *NORM[kind], *HEAD[kind]),
    }[mode]
    return {name for name in MODELS[kind]().state_dict() if name.startswith(prefixes)}


@pytest.mark.parametrize("kind", MODELS)
def test_state_dict_has_the_keys_and_shapes_of_mae_and_those_of_the_head(kind):
    mae, state = pretrained().state_dict(), MODELS[kind]().state_dict()
    own = {name for name in state if name.startswith(("head.", "fc_norm."))}
    assert {name: mae[name].shape for name in set(state) - own} == {
        name: state[name].shape for name in set(state) - own
    }
    encoder = {
        name
        for name in mae
        if name.startswith(("cls_token", "pos_embed", "patch_embed.", "blocks.", *NORM[kind]))
    }
    decoder = {
        name
        for name in mae
        if name.startswith(
            ("decoder_embed.", "decoder_pos_embed", "decoder_blocks.0.", "decoder_blocks.1.", "decoder_norm.")
        )
    }
    assert set(state) - own == encoder | (decoder if kind == "decoder" else set())
    assert own == {"head.weight", "head.bias"} | (
        {"fc_norm.weight", "fc_norm.bias"} if kind == "global_pool" else set()
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # ViT of 1000 classes on 224 × 224 RGB images: DeiT-Ti (arXiv 2012.12877), ViT-B, L and H as released
        # with MAE.
        ("vit_tiny_patch16", 5_717_416),
        ("vit_base_patch16", 86_567_656),
        ("vit_medium_patch16", 86_567_656),
        ("vit_large_patch16", 304_326_632),
        ("vit_huge_patch14", 632_045_800),
    ],
)
@pytest.mark.parametrize("global_pool", [False, True])
def test_classifiers_have_the_published_number_of_parameters(name, count, global_pool):
    with torch.device("meta"):
        model = models_vit.create_model(
            name, "classification", 1000, 224, in_chans=3, global_pool=global_pool
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_preset_of_mae_has_its_segmenter():
    assert set(models_vit.PRESETS) == {f"vit_{name[8:]}" for name in models_mae.PRESETS}
    for name, sizes in models_vit.PRESETS.items():
        side = 16 * sizes["patch_size"]
        with torch.device("meta"):
            mae = models_mae.create_model(f"mae_{name}", img_size=(side, 2 * side)).state_dict()
            state = models_vit.create_model(
                name, "segmentation", 3, (side, 2 * side), head_depth=4
            ).state_dict()
        own = {"head.weight", "head.bias"}
        assert all(mae[key].shape == state[key].shape for key in set(state) - own)
        assert state["head.weight"].shape == (3 * sizes["patch_size"] ** 2, sizes["decoder_embed_dim"])


def test_presets_are_names_of_the_module_too():
    with torch.device("meta"):
        model = models_vit.vit_tiny_patch16("segmentation", 4, (32, 48), head="linear")
    assert model.head.out_features == 16 * 16 * 4
    with pytest.raises(AttributeError, match="vit_giant"):
        _ = models_vit.vit_giant


@pytest.mark.parametrize("kind", MODELS)
def test_every_layer_norm_has_the_epsilon_of_mae(kind):
    assert {module.eps for module in MODELS[kind]().modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize("head", models_vit.HEADS)
@pytest.mark.parametrize("img_size", [(24, 40), (40, 24), 16, (8, 8)])
def test_a_logit_for_each_class_and_cell(head, img_size):
    model = segmenter(num_classes=4, img_size=img_size, in_chans=2, head=head)
    frequency, time = model.img_size
    assert model(torch.randn(2, 2, frequency, time)).shape == (2, 4, frequency, time)
    images = torch.randn(3, 2, frequency, time)
    assert classifier(num_classes=7, img_size=img_size, in_chans=2)(images).shape == (3, 7)


def test_patches_of_logits_fold_back_to_their_places():
    """Head and tokens set by hand: logit = 1000 × patch row + 100 × patch column + the number of the output."""
    model = segmenter(num_classes=2, head="linear")
    tokens = torch.zeros(1, 1 + 15, 32)
    for row in range(3):
        for column in range(5):
            tokens[0, 1 + 5 * row + column, 0] = 1000 * row + 100 * column
    model.forward_encoder = lambda *_: tokens
    with torch.no_grad():
        model.head.weight.zero_()[:, 0] = 1
        model.head.bias.copy_(torch.arange(128.0))
        logits = model(None)
    # Output (8 i + j) × 2 + class of a patch is the cell in its row i and column j.
    for label, frequency, time in [(0, 0, 0), (1, 0, 0), (0, 7, 3), (1, 8, 39), (0, 23, 16), (1, 13, 22)]:
        number = (frequency % 8 * 8 + time % 8) * 2 + label
        assert logits[0, label, frequency, time] == 1000 * (frequency // 8) + 100 * (time // 8) + number


def test_the_segmenter_goes_on_where_the_pretrained_decoder_is():
    mae, model = pretrained().eval(), segmenter(head_depth=2).eval()
    missing = model.load_state_dict(mae.state_dict(), strict=False).missing_keys
    assert missing == ["head.weight", "head.bias"]
    images = torch.randn(2, 1, 24, 40)
    tokens = mae.decoder_embed(mae.encode(images)) + mae.decoder_pos_embed
    tokens = mae.decoder_norm(mae.decoder_blocks[1](mae.decoder_blocks[0](tokens)))
    patches = model.head(tokens[:, 1:]).view(2, 3, 5, 8, 8, 3)  # (N, rows, columns, frequency, time, classes)
    torch.testing.assert_close(model(images), patches.permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 24, 40))


def test_the_classifier_pools_the_tokens_of_the_pretrained_encoder():
    mae, images = pretrained().eval(), torch.randn(2, 1, 24, 40)
    for global_pool in (False, True):
        model = classifier(global_pool=global_pool).eval()
        model.load_state_dict(mae.state_dict(), strict=False)
        nn.init.normal_(model.head.weight)
        if global_pool:
            mae.norm = nn.Identity()  # the mean is normalized, not the tokens
            mean = mae.encode(images)[:, 1:].mean(dim=1)
            features = (mean - mean.mean(1, keepdim=True)) / (
                mean.var(1, correction=0, keepdim=True) + 1e-6
            ).sqrt()
        else:
            features = mae.encode(images)[:, 0]
        torch.testing.assert_close(model(images), features @ model.head.weight.T, atol=1e-5, rtol=1e-5)


def test_a_new_classifier_is_undecided():
    model = classifier(num_classes=50)
    assert (model.head.bias == 0).all()
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    labels = torch.arange(4)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 1, 24, 40)), labels)
    assert loss.item() == pytest.approx(math.log(50), abs=1e-3)


def test_drop_path_grows_with_depth_and_spares_the_head():
    model = segmenter(drop_path=0.4)
    rates = [
        [getattr(path, "rate", 0) for path in (block.drop_path1, block.drop_path2)] for block in model.blocks
    ]
    assert rates == [[0, 0], [0.2, 0.2], [0.4, 0.4]]
    assert not any("DropPath" in type(module).__name__ for module in model.decoder_blocks.modules())


@pytest.mark.parametrize("mode", ["full", "head", "probe", "last:1", "last:3"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_moves_what_the_mode_says_and_nothing_else(kind, mode):
    model = MODELS[kind]()
    names = models_vit.trainable(model, mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    models_vit.train_mode(model, mode)
    logits = model(torch.randn(2, 1, 24, 40))
    nn.functional.cross_entropy(logits, torch.randint(0, 3, (2, *logits.shape[2:]))).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == expected_to_train(kind, mode)
    assert set(names) == moved
    assert len(names) == len(moved)


@pytest.mark.parametrize("kind", MODELS)
def test_a_mode_forgets_the_one_before(kind):
    model = MODELS[kind]()
    models_vit.trainable(model, "probe")
    assert set(models_vit.trainable(model, "full")) == expected_to_train(kind, "full")


@pytest.mark.parametrize("mode", ["full", "head", "probe", "last:2"])
@pytest.mark.parametrize("kind", MODELS)
def test_frozen_parts_are_in_eval_mode(kind, mode):
    model = MODELS[kind](drop_path=0.5)
    names = models_vit.trainable(model, mode)
    model.eval()  # an evaluation came before
    models_vit.train_mode(model, mode)
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    for name, module in leaves.items():
        for parameter, _ in module.named_parameters(recurse=False):
            assert module.training == (f"{name}.{parameter}" in names)
    dropping = [number for number, block in enumerate(model.blocks) if block.drop_path1.training]
    assert dropping == {"full": [0, 1, 2], "last:2": [1, 2]}.get(mode, [])


def test_given_numbers_decide_which_samples_skip_which_branch():
    """As timm's drop path does it with its own: kept branches are scaled up, and a batch may be cut as one
    likes.
    """
    model, images = segmenter(drop_path=0.5).train(), torch.randn(6, 1, 24, 40)
    assert len(model.drop_paths) == 4
    numbers = torch.rand(6, 4)
    together = model(images, numbers)
    assert torch.equal(together, model(images, numbers))
    apart = torch.cat([model(images[rows], numbers[rows]) for rows in (slice(0, 1), slice(1, 6))])
    torch.testing.assert_close(apart, together)
    assert not torch.allclose(together, model(images, numbers.flip(0)), atol=1e-3)

    path = model.drop_paths[-1]
    path.numbers = torch.tensor([0.49, 0.5, 0.99])
    assert path(torch.ones(3, 2, 1)).flatten().tolist() == [0, 0, 2, 2, 2, 2]
    torch.testing.assert_close(model.eval()(images, torch.zeros(6, 4)), model(images))


def test_a_frozen_encoder_drops_no_path():
    model, images = segmenter(drop_path=0.9), torch.randn(8, 1, 24, 40)
    models_vit.train_mode(model, "head")
    assert torch.equal(model(images), model(images))
    models_vit.train_mode(model, "full")
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    "mode", ["", "all", "last", "last:", "last:0", "last:4", "last:-1", "Full", "probe ", "last:1.5"]
)
def test_wrong_modes_are_said_in_a_line_and_change_nothing(mode):
    model = segmenter()
    models_vit.trainable(model, "probe")
    with pytest.raises(
        UserError, match="expected full, head, probe or last:N, N from 1 to 3; found '"
    ) as error:
        models_vit.trainable(model, mode)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="found"):
        models_vit.train_mode(model, mode)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


def test_other_models_are_trained_whole():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    assert len(models_vit.trainable(model, "full")) == 4
    models_vit.train_mode(model, "full")
    assert model[1].training
    with pytest.raises(UserError, match="expected full for a Sequential; found 'head'"):
        models_vit.trainable(model, "head")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "vit_giant"}, "vit_giant"),
        ({"task": "regression"}, "regression"),
        ({"img_size": (224, 100)}, "100"),
        ({"head": "upernet"}, "upernet"),
        ({"head_depth": 0}, "head_depth=0"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
    ],
)
def test_wrong_arguments_of_create_model(wrong, said):
    arguments = {
        "name": "vit_tiny_patch16",
        "task": "segmentation",
        "num_classes": 3,
        "img_size": 32,
        **wrong,
    }
    with pytest.raises(UserError, match=said) as error:
        models_vit.create_model(**arguments)
    assert str(error.value).startswith("--model")


def sized(width, depth, args=()):
    state = {f"blocks.{number}.norm1.weight": torch.zeros(1) for number in range(depth)}
    return Weights(state | {"patch_embed.proj.weight": torch.zeros(width, 1, 16, 16)}, None, [], dict(args))


@pytest.mark.parametrize(
    ("width", "depth", "name", "preset"),
    [
        (512, 12, None, "vit_small_patch16"),
        (256, 8, "vit_multi_small", "vit_wavesfm_patch16"),
        (768, 12, "mae_vit_medium_patch16", "vit_medium_patch16"),
        (768, 12, "vit_base_patch16", "vit_base_patch16"),
        (768, 12, "mae_vit_base_patch16_dec512d8b", "vit_base_patch16_dec512d8b"),
        (768, 12, "mae_vit_small_patch16", "vit_medium_patch16"),  # a name that the sizes contradict
        (1024, 24, "vit_large_patch16", "vit_large_patch16"),
    ],
)
def test_the_preset_follows_from_the_sizes_and_of_equal_ones_from_the_name(width, depth, name, preset):
    weights = sized(width, depth, {"model": name} if name else {})
    assert models_presets.preset_of(weights, "a.pth") == preset


def test_sizes_of_no_preset_are_named():
    with pytest.raises(
        UserError, match=r"a\.pth: .*vit_small_patch16.*; found patch_size 16, embed_dim 500, depth 7$"
    ):
        models_presets.preset_of(sized(500, 7, {"model": "mae_vit_small_patch16"}), "a.pth")
    with pytest.raises(
        UserError, match=r"a\.pth: expected an encoder with patch_embed.proj.weight; found a, b, \.\.\.$"
    ):
        models_presets.preset_of(Weights({"a": torch.zeros(1), "b": torch.zeros(1)}, None, [], {}), "a.pth")
