"""Images with cells outside of the recording: no output, loss, gradient or figure depends on those cells."""

import argparse
import itertools

import numpy as np
import pytest
import torch
from test_compiling import nothing_compiles, quick  # noqa: F401

import models_mae
from data.labelled import LabelledSamples, Part
from data.sampling import IMAGE, Source
from engine_finetune import Objective, countable
from engine_reconstruct import reconstruct
from models_deeplab import DeepLabV3
from models_mae import MaskedAutoencoderViT
from models_vit import ClassificationViT, Encoder, ProbeNorm, SegmentationViT, mean_patch
from radio.grid import OUTSIDE, Grid
from radio.spectrogram import Spectrogram
from util import attention, compiling
from util.masking import MASK_KINDS, removal_order
from util.metrics import IGNORED, Confusion, foreground_iou
from util.plots import prediction_sheet

SIZES = {"img_size": (24, 40), "patch_size": 8, "in_chans": 2, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_num_heads": 2}
GRID, PATCHES = (3, 5), 15


def built(model_class, *args, **kwargs):
    torch.manual_seed(0)
    model = model_class(*args, **SIZES | kwargs)
    model.pads = True
    return model


def autoencoder(**kwargs):
    return built(MaskedAutoencoderViT, **DECODER | {"decoder_depth": 2} | kwargs)


def padded(count=4, seed=0):
    """Images: whole; short by 13 of 40 columns; narrow by 9 rows at either side; both, with a gap inside."""
    images = torch.randn(count, 2, 24, 40, generator=torch.Generator().manual_seed(seed))
    images[1, :, :, 27:] = OUTSIDE
    images[2, :, :9] = images[2, :, 15:] = OUTSIDE
    images[3, :, :8] = images[3, :, :, 30:] = images[3, :, :, 5:20] = OUTSIDE
    return images


def present_of(images):
    """The patches with a cell inside: bool [N, L]."""
    inside = images[:, 0] != OUTSIDE
    return inside.unfold(1, 8, 8).unfold(2, 8, 8).any(dim=(3, 4)).flatten(1)


def filled(images):
    return images.nan_to_num(neginf=0)


MODELS = {
    "encoder": lambda: built(Encoder),
    "decoder": lambda: built(SegmentationViT, 3, **DECODER),
    "linear": lambda: built(SegmentationViT, 3, head="linear"),
    "probed": lambda: built(SegmentationViT, 3, head="linear", head_norm=True),
    "global_pool": lambda: built(ClassificationViT, 3),
    "cls_token": lambda: built(ClassificationViT, 3, global_pool=False),
}


# Models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])  # in bf16 `CpuAttention` computes what needs gradients
def test_tokens_are_those_of_the_present_patches_alone(dtype, grad):
    model, images = MODELS["encoder"]().eval(), padded()
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.02}
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        tokens = model(images)
        for number, present in enumerate(present_of(images)):
            ids = present.nonzero().flatten()[None]
            alone = model.forward_encoder(filled(images[number : number + 1]), ids)[0]
            torch.testing.assert_close(tokens[number, 0], alone[0], **tolerance)
            torch.testing.assert_close(tokens[number, 1:][present], alone[1:], **tolerance)
            pooled = mean_patch(tokens[number : number + 1], present[None])[0]
            torch.testing.assert_close(pooled, alone[1:].mean(dim=0), **tolerance)


@pytest.mark.parametrize("head", ["decoder", "linear"])
def test_logits_are_those_of_the_present_patches_alone(head):
    model, images = MODELS[head]().eval(), padded()
    logits = model(images)
    for number, present in enumerate(present_of(images)):
        ids = present.nonzero().flatten()[None]
        tokens = model.forward_encoder(filled(images[number : number + 1]), ids)
        if head == "decoder":
            where = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids + 1], dim=1)
            tokens = model.decoder_embed(tokens) + model.decoder_pos_embed[0, where]
            tokens = model.decoder_norm(model.run(model.decoder_blocks, tokens))
        patches = model.patchify(logits[number : number + 1])[0][present]
        torch.testing.assert_close(patches, model.head(tokens[0, 1:]), atol=1e-5, rtol=1e-5)


def test_classes_are_those_of_the_present_patches_alone():
    for name in ("global_pool", "cls_token"):
        model, images = MODELS[name]().eval(), padded()
        torch.nn.init.normal_(model.head.weight)
        for number, present in enumerate(present_of(images)):
            tokens = model.forward_encoder(filled(images[number][None]), present.nonzero().flatten()[None])
            pooled = model.fc_norm(tokens[:, 1:].mean(dim=1)) if model.global_pool else tokens[:, 0]
            torch.testing.assert_close(model(images)[number], model.head(pooled)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_values_outside_change_no_output_and_get_no_gradient(name):
    """Only the first channel says what is outside; the others may hold anything there."""
    model, images = MODELS[name](), padded()
    images.requires_grad_()
    other = images.detach().clone()
    other[:, 1:] = torch.where(other[:, :1] == OUTSIDE, 1e3, other[:, 1:])
    out = model(images)
    assert out.isfinite().all()
    torch.testing.assert_close(model(other), out)
    if name != "encoder":
        inside = torch.ones_like(out[:, :1], dtype=torch.bool) if out.dim() == 2 else images[:, :1] != OUTSIDE
        (out.square() * inside).sum().backward()
        assert (images.grad[images == OUTSIDE] == 0).all()
        assert images.grad.isfinite().all()
        assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


def test_the_norm_of_a_probe_is_over_the_present_patches():
    model, images = MODELS["probed"]().train(), padded()
    present, statistics = present_of(images), ProbeNorm(32)
    features = model.forward_encoder(filled(images), None, present)[:, 1:]
    expected = statistics(features[present])
    logits = model.patchify(model(images))[present]
    torch.testing.assert_close(logits, model.head(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.head_norm.state_dict(), statistics.state_dict())
    torch.testing.assert_close(model.eval()(images), model(images))


def test_an_image_without_a_cell_inside_has_finite_outputs():
    images = torch.full((2, 2, 24, 40), OUTSIDE)
    images[1] = padded(4)[1]
    for make in MODELS.values():
        assert make()(images).isfinite().all()
    model = autoencoder(norm_pix_loss=True)
    loss, pred, mask = model(images, 0.75, torch.rand(2, PATCHES))
    loss.backward()
    assert loss.isfinite()
    assert pred.isfinite().all()
    assert mask[0].sum() == 0
    assert model.mean_loss(images, mask).isfinite()
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("samples", [1, 5])
def test_gradients_of_masked_attention_in_bf16(monkeypatch, samples):
    monkeypatch.setattr(attention, "CHUNK_BYTES", 2**14)
    torch.manual_seed(0)
    qkv = torch.randn(samples, 37, 3, 2, 16)
    qkv[:, :, 1] += 3
    qkv = qkv.bfloat16().requires_grad_()
    mask = torch.rand(samples, 1, 1, 37) < 0.6
    mask[..., 0] = True
    grad = torch.randn(samples, 37, 2, 16).bfloat16()
    exact = qkv.detach().double().requires_grad_()
    expected = attention.usual_attention(exact, mask)
    expected.backward(grad.double())
    out = attention.CpuAttention.apply(qkv, attention._bias(mask, torch.bfloat16))
    assert (out.double() - expected).norm() < 0.01 * expected.norm()
    out.backward(grad)
    for found, right in zip(qkv.grad.double().unbind(2), exact.grad.unbind(2), strict=True):
        assert (found - right).norm() < 0.02 * right.norm()
    hidden = ~mask[:, 0, 0]
    assert (qkv.grad[:, :, 1:][hidden] == 0).all()  # keys and values of tokens that do not count


def test_deeplab_takes_cells_outside_for_the_mean():
    torch.manual_seed(0)
    model = DeepLabV3("deeplabv3_mobilenet_v3_large", 3, 2).eval()
    model.pads = True
    images = torch.randn(2, 2, 32, 64)
    images[1, :, :, 40:] = OUTSIDE
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(filled(images)))


# Masks


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
@pytest.mark.parametrize("mask_ratio", [0, 0.3, 0.5, 0.75, 0.9])
def test_masks_are_of_present_patches(mask_kind, mask_ratio):
    model, images = autoencoder(mask_kind=mask_kind), padded()
    present, noise = present_of(images), torch.rand(4, PATCHES)
    ids_keep, ids_restore, mask, counted = model.masking(noise, mask_ratio, present)
    whole = model.masking(noise[:1], mask_ratio)
    assert torch.equal(mask[0], whole[2][0])
    assert torch.equal(ids_keep[0, counted[0]].sort().values, whole[0][0].sort().values)
    for number in range(4):
        kept = ids_keep[number, counted[number]]
        left = {*present[number].nonzero().flatten().tolist()} - {*kept.tolist()}
        assert present[number, kept].all()
        assert mask[number].nonzero().flatten().tolist() == sorted(left)
        assert ids_restore[number].sort().values.tolist() == [*range(PATCHES)]
        assert ids_restore[number, kept].tolist() == [*range(len(kept))]
        assert len(kept) >= 1
        total = int(present[number].sum())
        if mask_kind == "random":
            assert len(kept) == max(1, int(total * (1 - mask_ratio) + 1e-6))
        if mask_ratio == 0:
            assert len(kept) == total
        # whole rows and columns, as far as they are present
        grid = present[number].view(GRID)
        removed = mask[number].view(GRID).bool()
        if mask_kind == "time" and number < 3:
            assert ((removed.sum(dim=0) == grid.sum(dim=0)) | (removed.sum(dim=0) == 0)).all()
            columns = int(grid.any(dim=0).sum())
            kept_columns = max(1, int(columns * (1 - mask_ratio) + 1e-6))
            assert len(kept) == kept_columns * int(grid.any(dim=1).sum())
        if mask_kind == "frequency" and number < 3:
            assert ((removed.sum(dim=1) == grid.sum(dim=1)) | (removed.sum(dim=1) == 0)).all()


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
def test_no_padded_image_keeps_more_patches_than_a_whole_one(mask_kind):
    """A GPU gives the encoder as many places as a whole image keeps."""
    shapes, ratios = [(7, 35), (14, 14), (3, 5), (1, 9)], [0.3, 0.5, 0.7, 0.75, 0.8, 0.9]
    for shape, ratio in itertools.product(shapes, ratios):
        sizes = [*itertools.product(range(1, shape[0] + 1), range(1, shape[1] + 1))]
        present = torch.zeros(len(sizes), *shape, dtype=torch.bool)
        for one, (rows, columns) in zip(present, sizes, strict=True):
            one[:rows, :columns] = True
        noise = torch.rand(len(sizes), shape[0] * shape[1])
        most = removal_order(noise, 1 - ratio, shape, mask_kind)[1]
        kept = removal_order(noise, 1 - ratio, shape, mask_kind, present.flatten(1))[1]
        worst = sizes[int(kept.argmax())]
        assert int(kept.max()) <= most, (shape, ratio, worst)


# The autoencoder


@pytest.mark.parametrize("mask_ratio", [0, 0.6])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_is_that_of_the_present_patches_alone(mask_ratio, norm_pix_loss):
    model, images = autoencoder(norm_pix_loss=norm_pix_loss).double(), padded().double()
    noise, present = torch.rand(4, PATCHES), present_of(images)
    loss, pred, mask = model(images, mask_ratio, noise)
    losses, means = [], []
    for number in range(4):
        ids = present[number].nonzero().flatten()
        order = ids[noise[number, ids].argsort()]
        kept = order[: max(1, int(len(ids) * (1 - mask_ratio) + 1e-6))].sort().values
        tokens = model.decoder_embed(model.forward_encoder(filled(images[number])[None], kept[None]))
        patches = model.mask_token[0].repeat(PATCHES, 1).index_copy(0, kept, tokens[0, 1:])[ids]
        where = torch.cat([torch.zeros(1, dtype=torch.long), ids + 1])
        tokens = (torch.cat([tokens[0, :1], patches]) + model.decoder_pos_embed[0, where])[None]
        tokens = model.decoder_norm(model.run(model.decoder_blocks, tokens))
        expected = model.decoder_pred(tokens)[0, 1:]
        torch.testing.assert_close(pred[number, ids], expected)

        # loss: cells inside of removed patches
        cells = model.patchify(images[number][None].float())[0]
        errors, squares = [], []
        whole = cells[cells.isfinite()]
        for place, patch in enumerate(ids.tolist()):
            inside = cells[patch].isfinite()
            target = cells[patch][inside]
            if norm_pix_loss:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            if patch not in kept or not mask_ratio:
                errors.append((expected[place][inside].float() - target).square())
                squares.append(target)
        losses.append(torch.cat(errors).mean())
        means.append((torch.cat(squares) - (0 if norm_pix_loss else whole.mean())).square().mean())
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    if mask_ratio and not norm_pix_loss:
        torch.testing.assert_close(model.mean_loss(images, mask), torch.stack(means).mean())


def test_a_batch_is_the_mean_of_its_images():
    """So accumulation and processes give the step of one large batch, whatever each image holds."""
    for kind in MASK_KINDS:
        model, images, noise = autoencoder(mask_kind=kind), padded(), torch.rand(4, PATCHES)
        model(images, 0.7, noise)[0].backward()
        together = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        model.zero_grad()
        for size in (1, 3):
            part = slice(0, 1) if size == 1 else slice(1, 4)
            (model(images[part], 0.7, noise[part])[0] * size / 4).backward()
        apart = [one.grad for one in model.parameters() if one.grad is not None]
        torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
def test_a_graph_computes_the_same(mask_kind):
    """On a GPU and compiled, no shape depends on what the images hold."""
    model, images, noise = autoencoder(mask_kind=mask_kind), padded(), torch.rand(4, PATCHES)
    expected = model(images, 0.6, noise)
    whole = model(filled(images), 0.6, noise)
    model.is_graph = True
    found = model(images, 0.6, noise)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[2])
    present = present_of(images)
    torch.testing.assert_close(found[1][present], expected[1][present], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(filled(images), 0.6, noise), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grad_ckpt", [False, True])
def test_training_is_the_same_compiled_and_compiles_once(quick, grad_ckpt):  # noqa: F811
    model, images, noise = autoencoder().train(), padded(), torch.rand(4, PATCHES)

    def step(images):
        model.zero_grad()
        loss = model(images, 0.7, noise)[0]
        loss.backward()
        return loss.detach(), [one.grad for one in model.parameters() if one.grad is not None]

    expected = step(images)
    model.grad_ckpt = grad_ckpt
    torch.testing.assert_close(step(images), expected)
    compiling.compile_model(model, "on", 4, "off", model.num_visible(0.7))
    torch.testing.assert_close(step(images), expected, atol=1e-5, rtol=1e-4)
    with nothing_compiles():
        for others in (filled(images), images.flip(0), padded(seed=1)):
            step(others)


def test_segmentation_is_the_same_compiled(quick):  # noqa: F811
    for name in ("decoder", "probed"):
        model, images = MODELS[name]().train(), padded()
        expected = model(images)
        compiling.compile_model(model, "on", 4, "off", PATCHES)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_reconstruction_keeps_what_is_visible_and_what_is_outside(norm_pix_loss):
    model, images = autoencoder(in_chans=1, norm_pix_loss=norm_pix_loss), padded()[:, :1]
    rebuilt, removed = reconstruct(model, images, torch.rand(4, PATCHES), 0.6)
    outside = images == OUTSIDE
    assert torch.equal(rebuilt == OUTSIDE, outside)
    assert not (removed & outside).any()
    assert torch.equal(rebuilt[~removed], images[~removed])
    assert not torch.isclose(rebuilt[removed], images[removed]).all()


def test_pictures_show_no_class_outside():
    image = padded()[1, 0].numpy()
    row = {"title": "short", "image": image, "extent": None}
    classes = np.zeros(image.shape, np.uint8)
    figure = prediction_sheet([row | {"target": classes, "prediction": classes}], ["Noise", "NR"], "")
    for axis in figure.axes[1:]:
        assert np.array_equal(np.ma.getmaskarray(axis.images[0].get_array()), image == OUTSIDE)


# Labels


class Cells(Source):
    """Padded images with masks."""

    task, class_names, in_chans, image_size = "segmentation", ["Noise", "NR", "LTE"], 2, (24, 40)

    def __init__(self):
        self.images = padded().numpy()

    def __len__(self):
        return 4

    def load(self, index, rng, epoch=0):
        return IMAGE, self.images[index]

    def target(self, index, epoch=0):
        return np.random.default_rng(index).integers(0, 3, (24, 40)).astype(np.uint8)

    def describe(self, index, rng, epoch=0):
        rows = {
            "sample_rate_hz": 6 * 180e3 if index == 2 else 24 * 180e3,
            "first_row": -9 if index == 2 else 0,
        }
        return rows | {"num_samples": round(10 * rows["sample_rate_hz"])}


def objective(weights="none", **flags):
    front_end = Grid(image_size=(24, 40), narrow_row_khz=None)
    data = argparse.Namespace(
        parts={"train": Part(Cells(), np.arange(4))}, class_names=Cells.class_names, front_end=front_end
    )
    flags = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "time_shift": False, "flip": False} | flags
    args = argparse.Namespace(task="segmentation", class_weights=weights, seed=0, **flags)
    return Objective(args, data, torch.device("cpu"))


@pytest.mark.parametrize("weights", ["none", "median_frequency"])
@pytest.mark.parametrize("augmented", [False, True])
def test_cells_outside_are_in_no_loss_and_no_weight(weights, augmented):
    one = objective(weights, time_shift=augmented, flip=augmented)
    batch = LabelledSamples(Part(Cells(), np.arange(4)), 0).batch([(0, n) for n in range(4)])
    images = torch.from_numpy(batch["parts"][0][1])
    given = {
        "images": images,
        "target": torch.from_numpy(batch["target"]),
        "noise": torch.from_numpy(batch["noise"]),
    }
    images, target = one.augment(given, 0, 0)
    inside = images[:, 0] != OUTSIDE
    assert torch.equal(target != IGNORED, inside)
    assert int(inside.sum()) == int((given["images"][:, 0] != OUTSIDE).sum())
    logits = torch.randn(4, 3, 24, 40, requires_grad=True)
    loss, weight = one.loss(logits, target)
    loss.backward()
    assert (logits.grad.abs().sum(dim=1) > 0).equal(inside)
    weight_of = one.weight if one.weight is not None else torch.ones(3)
    picked = weight_of[target[inside]]
    log = logits.detach().log_softmax(dim=1).permute(0, 2, 3, 1)[inside]
    expected = -(log.gather(1, target[inside][:, None])[:, 0] * picked).sum()
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(weight.float(), picked.sum())
    # a batch in two halves has the same sums
    halves = [one.loss(logits[part].detach(), target[part]) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(half[0] for half in halves), expected)
    torch.testing.assert_close(sum(half[1] for half in halves).float(), picked.sum())


def test_whole_images_are_counted_as_without_a_front_end_that_pads():
    one = objective()
    images, target = torch.randn(2, 2, 24, 40), torch.randint(3, (2, 24, 40))
    loss, weight = one.loss(torch.zeros(2, 3, 24, 40), countable(images, target))
    assert int(weight) == target.numel()
    assert loss.item() == pytest.approx(target.numel() * np.log(3), rel=1e-5)
    labels = torch.tensor([0, 2])
    assert torch.equal(countable(padded()[:2], labels), labels)  # a class for each image stays


def test_cells_outside_are_in_no_figure():
    images = padded()
    target = countable(images, torch.randint(3, (4, 24, 40), generator=torch.Generator().manual_seed(0)))
    pred = torch.randint(3, (4, 24, 40), generator=torch.Generator().manual_seed(1))
    confusion = Confusion(Cells.class_names)
    confusion.update(pred, target)
    inside = target != IGNORED
    results = confusion.results()
    assert results["samples"] == int(inside.sum())
    assert results["pixel_accuracy"] == pytest.approx((pred == target)[inside].double().mean().item())
    other = torch.where(inside, pred, 2 - pred)
    again = Confusion(Cells.class_names)
    again.update(other, target)
    assert again.results() == results
    assert torch.equal(foreground_iou(other, target, 3), foreground_iou(pred, target, 3))
    confusion.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), IGNORED))
    assert confusion.results() == results
    with pytest.raises(ValueError, match="class ids"):
        confusion.update(pred, torch.full_like(target, -1))


def test_the_published_front_end_never_looks_for_cells_outside():
    model = autoencoder()
    model.pads = False
    images = torch.randn(2, 2, 24, 40)
    assert model.inside(images) == (images, None, None)
    assert not Spectrogram.pads
    assert models_mae.create_model("mae_vit_tiny_patch16").pads is False
