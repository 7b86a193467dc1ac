"""Reconstructions of masked spectrograms, and the picture of them."""

import torch
from einops import repeat

from data.batches import to_images
from models_mae import patch_statistics
from radio.grid import OUTSIDE
from util import distributed, parallel
from util.plots import reconstruction_figure

PICTURES = 4  # samples in the picture


@torch.no_grad()
def reconstruct(model, images, noise, mask_ratio):
    """Masked images as the model completes them, in the units of the images.

    Visible patches are copied: the loss never asked for them. With `norm_pix_loss` a predicted patch gets the
    mean and variance of the original patch, which a model would not have.

    Args:
        images: float [N, C, F, T]; noise: float [N, L]. Cells outside of the recording stay.

    Returns:
        reconstruction: float32 [N, C, F, T]; removed: bool [N, C, F, T].
    """
    model.eval()
    _, pred, mask = model(images, mask_ratio, noise)
    outside = images == OUTSIDE
    patches, pred = model.patchify(images.float().masked_fill(outside, 0)), pred.float()
    if model.norm_pix_loss:
        mean, var = patch_statistics(patches, model.patchify((~outside).float()))
        pred = pred * (var + 1e-6).sqrt() + mean
    removed = repeat(mask.bool(), "n l -> n l d", d=patches.shape[-1])
    rebuilt = model.unpatchify(torch.where(removed, pred, patches)).masked_fill(outside, OUTSIDE)
    return rebuilt, model.unpatchify(removed) & ~outside


def picture(model, batches, run, epoch):
    """Figure of a few samples, their masks and reconstructions; None on processes other than rank 0.

    All processes call it, since a sharded model computes with all of them.
    """
    args, dataset, front_end = run.args, batches.dataset, batches.front_end
    if not (distributed.is_main() or args.shard):
        return None
    model, rows = parallel.unwrap(model), []
    count = min(PICTURES, len(dataset))
    for index in (number * len(dataset) // count for number in range(count)):
        batch = dataset.batch([(0, index)])
        images = to_images(batch["parts"], front_end, run.device)
        noise = torch.from_numpy(batch["noise"]).to(run.device)
        rebuilt, removed = reconstruct(model, images, noise, args.mask_ratio)
        about = dataset.source.describe(index, None)
        rate = about.get("sample_rate_hz")
        shown = {"original": images, "reconstruction": rebuilt, "removed": removed}
        rows.append(
            {
                "title": about["name"]
                + (f", {about['start_s'] * 1e3:.1f} ms in" if rate and "start_s" in about else ""),
                "extent": front_end.extent_of(about),
                **{name: image[0, 0].cpu().numpy() for name, image in shown.items()},
            }
        )
    caption = f"{args.model}, epoch {epoch}, {args.mask_ratio:.0%} removed ({args.mask_kind}); visible patches as they are"
    if args.norm_pix_loss:
        caption += "; predicted patches are put back with the mean and variance of the original patches"
    return reconstruction_figure(rows, caption) if distributed.is_main() else None
