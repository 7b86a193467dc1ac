"""One epoch of pretraining, the held-out loss, and the pictures that show what was learnt."""

import math
import time
from dataclasses import dataclass, field

import torch
from einops import repeat

from data.sampling import to_images
from models_mae import patch_statistics
from util.errors import RunError
from util.logger import Stopwatch, peak_memory_bytes, report_step
from util.lr_sched import half_cosine, set_lr

PRINT_EVERY_STEPS = 20


@dataclass
class Progress:
    """Where a run is, and what it has seen of the current epoch; saved and restored with its checkpoints.

    `step` counts optimizer steps since the start of the run.
    """

    step: int = 0
    loss_sum: float = 0.0
    samples: int = 0

    def start_epoch(self):
        self.loss_sum, self.samples = 0.0, 0


@dataclass
class LossTrace:
    """Losses and gradient norms left on the device until somebody asks, so that the device is not made to wait.

    `entries` are (step, epoch, sample indices, loss, gradient norm or None). A scaler meets infinite gradients by design
    and skips their steps: with `norms_may_overflow` they are no error.
    """

    dataset: object
    norms_may_overflow: bool
    entries: list = field(default_factory=list)

    def add(self, step, epoch, index, loss, grad_norm):
        self.entries.append((step, epoch, index, loss, grad_norm))

    def read(self, progress):
        """Bring the losses to the host and add them to the epoch's: (mean loss, last gradient norm) since the last read.

        Raises:
            RunError: a loss or a gradient norm was not finite; names the step and its samples.
        """
        if not self.entries:
            return math.nan, math.nan
        zero = torch.zeros_like(self.entries[0][3])
        table = torch.stack([
            torch.stack([loss, zero if norm is None else norm.to(zero.dtype)]) for *_, loss, norm in self.entries
        ]).tolist()
        for (step, epoch, index, _, _), (loss, grad_norm) in zip(self.entries, table, strict=True):
            if not (math.isfinite(loss) and (math.isfinite(grad_norm) or self.norms_may_overflow)):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {grad_norm}"
                named = self._named(epoch, index)
                raise RunError(f"{what} at step {step} of epoch {epoch}, expected a finite number; samples {named}")
        counts = [len(index) for _, _, index, _, _ in self.entries]
        total = sum(count * loss for count, (loss, _) in zip(counts, table, strict=True))
        norms = [row[1] for row, entry in zip(table, self.entries, strict=True) if entry[4] is not None]
        self.entries = []
        progress.loss_sum += total
        progress.samples += sum(counts)
        return total / sum(counts), norms[-1] if norms else math.nan

    def _named(self, epoch, index):
        named = []
        for sample in index.tolist()[:8]:
            about = self.dataset.describe(epoch, sample)
            at = f" at {about['start_s'] * 1e3:.3f} ms" if "start_s" in about else ""
            named.append(f"{sample} ({about['name']}{at})")
        return ", ".join(named) + (f" and {len(index) - 8} more" if len(index) > 8 else "")


def train_one_epoch(model, front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast, save):
    """Train from the loader's first batch to the end of the epoch.

    A group of `accum_iter` batches makes a step, a smaller one at the end of the epoch too. Every sample of a group weighs
    the same, so that the step is the one that a batch of the group's size would give.

    Args:
        loader: of `data.sampling.make_loader`; its batch sampler says where in the epoch to start.
        progress: a `Progress`, counted on.
        autocast: makes the context of mixed precision.
        save: called after every `args.save_every_steps` steps but the epoch's last.

    Returns:
        dict of the epoch's statistics, for log.txt and TensorBoard.

    Raises:
        RunError: a loss or gradient that is not finite.
    """
    model.train()
    batches = loader.batch_sampler
    num_batches, first_batch = len(batches), batches.first_batch
    steps_per_epoch = math.ceil(num_batches / args.accum_iter)
    trace = LossTrace(loader.dataset, norms_may_overflow=scaler.is_enabled())
    watch, whole = Stopwatch(), Stopwatch()
    waited = 0.0

    for number, batch in enumerate(watch.batches(loader), start=first_batch):
        # start a group of accumulated batches
        if number % args.accum_iter == 0:
            lr = half_cosine(epoch + number / num_batches, args.lr, args.min_lr, args.warmup_epochs, args.epochs)
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            group_samples = min(args.accum_iter * args.batch_size, batches.num_samples - number * args.batch_size)

        # front end and mask on the training device
        images = to_images(batch["parts"], front_end, device)
        noise = batch["noise"].to(device, non_blocking=True)

        # forward and backward
        with autocast():
            loss, _, _ = model(images, args.mask_ratio, noise)
        scaler.scale(loss * (len(images) / group_samples)).backward()
        watch.images += len(images)
        whole.images += len(images)
        ends_group = (number + 1) % args.accum_iter == 0 or number + 1 == num_batches
        if not ends_group:
            trace.add(progress.step, epoch, batch["index"], loss.detach(), None)
            continue

        # step
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad or math.inf)
        scaler.step(optimizer)
        scaler.update()
        trace.add(progress.step, epoch, batch["index"], loss.detach(), grad_norm)
        progress.step += 1

        # report
        step_in_epoch = number // args.accum_iter + 1
        if step_in_epoch % PRINT_EVERY_STEPS == 0 or step_in_epoch == steps_per_epoch:
            mean_loss, norm = trace.read(progress)
            seconds, images_per_s, data_wait = watch.read()
            waited += watch.waited
            steps_left = (args.epochs - epoch) * steps_per_epoch - step_in_epoch
            steps_done = step_in_epoch - first_batch // args.accum_iter
            eta_s = steps_left * whole.read()[0] / steps_done
            where = f"epoch {epoch}/{args.epochs} step {step_in_epoch}/{steps_per_epoch}"
            memory = peak_memory_bytes(device)
            report_step(log, progress.step, where, eta_s, mean_loss, lr, norm, images_per_s, data_wait, memory)
            watch.lap()
        # After an epoch's last step its checkpoint waits for the evaluation.
        ends_epoch = step_in_epoch == steps_per_epoch
        if args.save_every_steps and progress.step % args.save_every_steps == 0 and not ends_epoch:
            trace.read(progress)
            save()

    seconds, images_per_s, _ = whole.read()
    return {
        "train_loss": progress.loss_sum / progress.samples,
        "lr": lr,
        "images_per_s": round(images_per_s, 2),
        "data_wait": round(waited / seconds, 4),
        "memory_bytes": peak_memory_bytes(device),
        "seconds": round(seconds, 2),
    }


@torch.no_grad()
def evaluate(model, front_end, loader, device, mask_ratio, autocast):
    """Loss over all held-out samples under their fixed masks, and that of predicting each image's mean.

    Returns:
        dict of `val_loss`, `val_mean_loss`, `val_samples`, `val_seconds`.
    """
    model.eval()
    started = time.perf_counter()
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    samples = 0
    for batch in loader:
        images = to_images(batch["parts"], front_end, device)
        noise = batch["noise"].to(device, non_blocking=True)
        with autocast():
            loss, _, mask = model(images, mask_ratio, noise)
        sums += len(images) * torch.stack([loss.float(), model.mean_loss(images, mask)]).double()
        samples += len(images)
    loss, mean_loss = (sums / samples).tolist()
    return {
        "val_loss": loss,
        "val_mean_loss": mean_loss,
        "val_samples": samples,
        "val_seconds": round(time.perf_counter() - started, 2),
    }


@torch.no_grad()
def reconstruct(model, images, noise, mask_ratio):
    """What the model makes of masked images, in the units of the images.

    Visible patches are shown as they are, since the loss never asked for them. With `norm_pix_loss` a predicted patch is
    put back to the mean and variance of the original patch, which a model would not have.

    Args:
        images: float [N, C, F, T]; noise: float [N, L].

    Returns:
        reconstruction: float32 [N, C, F, T]; removed: bool [N, C, F, T].
    """
    model.eval()
    _, pred, mask = model(images, mask_ratio, noise)
    patches = model.patchify(images.float())
    pred = pred.float()
    if model.norm_pix_loss:
        mean, var = patch_statistics(patches)
        pred = pred * (var + 1e-6).sqrt() + mean
    removed = repeat(mask.bool(), "n l -> n l d", d=patches.shape[-1])
    return model.unpatchify(torch.where(removed, pred, patches)), model.unpatchify(removed)
