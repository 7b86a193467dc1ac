"""One epoch of pretraining, the held-out loss, and the pictures that show what was learnt."""

import math
import time
from dataclasses import dataclass, field

import torch
from einops import repeat

from models_mae import patch_statistics
from util import cost, distributed, parallel
from util.errors import RunError, StoppedError
from util.logger import Stopwatch, peak_memory_bytes, report_steps
from util.lr_sched import half_cosine, set_lr

PRINT_EVERY_STEPS = 20
ESTIMATED_STEPS = 5  # after which the time to the end is known about


@dataclass
class Progress:
    """Where a run is, and what it has seen of the current epoch; saved and restored with its checkpoints.

    `step` counts optimizer steps since the start of the run, `epoch_step` those of the current epoch. `loss_sum` and
    `weight` are of all processes.
    """

    step: int = 0
    epoch_step: int = 0
    loss_sum: float = 0.0
    weight: float = 0.0

    def start_epoch(self):
        self.epoch_step, self.loss_sum, self.weight = 0, 0.0, 0.0


@dataclass
class Step:
    """What an optimizer step came to: mean loss, learning rate, norm of the gradient; `weight` of the loss in means."""

    number: int
    loss: float
    weight: float
    lr: float
    grad_norm: float


@dataclass
class LossTrace:
    """Losses and gradient norms left on the device until somebody asks, so that the device is not made to wait.

    `entries` are (step, epoch, sample indices, sum of the losses, weight of the sum, learning rate, gradient norm or None),
    the last of a step with its norm. A scaler meets infinite gradients by design and skips their steps: with
    `norms_may_overflow` they are no error.
    """

    dataset: object
    norms_may_overflow: bool
    entries: list = field(default_factory=list)

    def add(self, step, epoch, index, loss_sum, weight, lr, grad_norm=None):
        self.entries.append((step, epoch, index, loss_sum, weight, lr, grad_norm))

    def read(self, progress):
        """Bring the losses to the host, sum them over all processes and add them to the epoch's.

        Returns:
            A list of `Step` since the last read.

        Raises:
            RunError: a loss or a gradient norm was not finite; names the step and its samples. On all processes alike.
        """
        if not self.entries:
            return []
        zero = torch.zeros_like(self.entries[0][3], dtype=torch.float64)
        table = torch.stack([
            torch.stack([loss.double(), zero + weight, zero if norm is None else norm.double()])
            for *_, loss, weight, _, norm in self.entries
        ])  # fmt: skip
        own = table[:, 0].tolist()
        sums = distributed.all_reduce_sum(table[:, :2].flatten().tolist())
        steps = []
        for place, (entry, norm) in enumerate(zip(self.entries, table[:, 2].tolist(), strict=True)):
            number, epoch, index, _, _, lr, has_norm = entry
            loss, weight = sums[2 * place : 2 * place + 2]
            if not (math.isfinite(loss) and (math.isfinite(norm) or self.norms_may_overflow)):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
                mine = self._named(epoch, index) if math.isfinite(loss) or not math.isfinite(own[place]) else []
                named = [name for names in distributed.all_gather(mine) for name in names]
                more = f" and {len(named) - 8} more" if len(named) > 8 else ""
                raise RunError(f"{what} at step {number} of epoch {epoch}, expected a finite number; samples "
                               f"{', '.join(named[:8])}{more}")  # fmt: skip
            if not steps or steps[-1].number != number + 1:
                steps.append(Step(number + 1, 0.0, 0.0, lr, math.nan))
            step = steps[-1]
            step.loss = (step.loss * step.weight + loss) / ((step.weight + weight) or 1.0)
            step.weight += weight
            step.grad_norm = norm if has_norm is not None else step.grad_norm
            progress.loss_sum += loss
            progress.weight += weight
        self.entries = []
        return steps

    def _named(self, epoch, index):
        named = []
        for sample in index.tolist():
            about = self.dataset.describe(epoch, sample)
            at = f" at {about['start_s'] * 1e3:.3f} ms" if "start_s" in about else ""
            named.append(f"{sample} ({about['name']}{at})")
        return named


class Reporter:
    """What training says of itself while an epoch runs; see `util.logger.report_steps`.

    Rates are of all processes together, the share of waiting is their mean, and the memory that of the largest.
    """

    def __init__(self, trace, progress, log, device, steps_per_epoch, epochs, utilization=None):
        self.trace, self.progress, self.log, self.device = trace, progress, log, device
        self.utilization = utilization
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        self.images = 0
        self._first_step = progress.epoch_step
        self._lap, self._whole = Stopwatch(), Stopwatch()
        self._since_print = []
        self._waited = self._counted = 0

    def batches(self, feed):
        self._feed = feed
        return feed

    def read(self):
        """Bring all losses so far to the log."""
        steps = self.trace.read(self.progress)
        self.log.steps(steps)
        self._since_print += steps

    def end_step(self, epoch, stop, save, save_every_steps):
        """Count a step, print what is due, and save or raise `StoppedError`; see `train_one_epoch`."""
        progress = self.progress
        progress.step += 1
        progress.epoch_step += 1
        self._print(epoch)
        self._say_how_long(epoch)
        if name := stop.answer():
            self.read()
            raise StoppedError(f"{name} after step {progress.step}")
        # After an epoch's last step its checkpoint waits for the evaluation.
        if save_every_steps and progress.step % save_every_steps == 0 and progress.epoch_step < self.steps_per_epoch:
            self.read()
            save()

    def _say_how_long(self, epoch):
        """Once, after the first steps of a run. The very first is slower than the others."""
        step = self.progress.step
        if step == 1:
            self._first_ended = time.perf_counter()
        if step == self.progress.epoch_step == ESTIMATED_STEPS and self._first_step == 0:
            left = (self.epochs - epoch) * self.steps_per_epoch - step
            if left:
                print(cost.time_line((time.perf_counter() - self._first_ended) / (step - 1), left), flush=True)

    def _print(self, epoch):
        step = self.progress.epoch_step
        if step % PRINT_EVERY_STEPS and step != self.steps_per_epoch:
            return
        self.read()
        self._lap.images, self._counted = self.images - self._counted, self.images
        waited_s = self._feed.waited_s()
        self._waited += waited_s
        seconds, images_per_s = self._lap.read()
        images_per_s, data_wait = distributed.all_reduce_sum([images_per_s, waited_s / seconds / distributed.world_size()])
        memory = distributed.all_reduce_max(peak_memory_bytes(self.device))
        left = (self.epochs - epoch) * self.steps_per_epoch - step
        eta_s = left * self._whole.read()[0] / (step - self._first_step)
        where = f"epoch {epoch}/{self.epochs} step {step}/{self.steps_per_epoch}"
        report_steps(self.log, self._since_print, where, eta_s, images_per_s, data_wait, memory, self._mfu(images_per_s))
        self._since_print = []
        self._lap.lap()

    def _mfu(self, images_per_s):
        return self.utilization and self.utilization.of(images_per_s, distributed.world_size())

    def epoch_stats(self, lr):
        seconds = self._whole.read()[0]
        images, waited = distributed.all_reduce_sum([self.images, self._waited / distributed.world_size()])
        return {
            "train_loss": self.progress.loss_sum / self.progress.weight,
            "lr": lr,
            "images_per_s": round(images / seconds, 2),
            **({"mfu": round(self._mfu(images / seconds), 4)} if self.utilization else {}),
            "data_wait": round(waited / seconds, 4),
            "memory_bytes": distributed.all_reduce_max(peak_memory_bytes(self.device)),
            "seconds": round(seconds, 2),
        }


def train_one_epoch(
    model, front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast, save, stop, utilization=None
):
    """Train from the loader's first batch to the end of the epoch.

    A group of `accum_iter` batches of each process makes a step, a smaller one at the end of the epoch too. Every sample of
    a group weighs the same, so that the step is the one that a single batch of the group's size would give.

    Args:
        model: as `util.parallel.wrap` returned it.
        loader: of `data.feeding.make_loader`; its batch sampler says where in the epoch to start.
        progress: a `Progress`, counted on.
        autocast: makes the context of mixed precision.
        save: called after every `args.save_every_steps` steps but the epoch's last.
        stop: a `util.distributed.StopSignal`.
        utilization: a `util.flops.Utilization`, or None.

    Returns:
        dict of the epoch's statistics, for log.txt and TensorBoard.

    Raises:
        RunError: a loss or gradient that is not finite.
        StoppedError: a signal asked for it; the step before is whole, and is to be saved.
    """
    model.train()
    batches = loader.batch_sampler
    num_batches = len(batches)
    steps_per_epoch = math.ceil(num_batches / args.accum_iter)
    trace = LossTrace(loader.dataset, scaler.is_enabled())
    reporter = Reporter(trace, progress, log, device, steps_per_epoch, args.epochs, utilization)
    processes = distributed.world_size()

    for number, batch in enumerate(reporter.batches(loader.batches(front_end, device)), start=batches.first_batch):
        # start a group of accumulated batches
        if number % args.accum_iter == 0:
            lr = rate(args, epoch, progress.epoch_step, steps_per_epoch)
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            group_samples = min(args.accum_iter * batches.together, batches.num_samples - number * batches.together)
        ends_group = (number + 1) % args.accum_iter == 0 or number + 1 == num_batches
        if ends_group:
            stop.ask()
        real = batches.real(number)

        # forward and backward; torch takes the mean over the processes
        with parallel.grad_sync(model, ends_group):
            with autocast():
                loss, _, _ = model(batch["images"], args.mask_ratio, batch["noise"])
            scaler.scale(loss * (real * processes / group_samples)).backward()
        reporter.images += real
        if not ends_group:
            reporter.trace.add(progress.step, epoch, batch["index"], loss.detach() * real, real, lr)
            continue

        # step
        scaler.unscale_(optimizer)
        grad_norm = parallel.full_tensors(torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad or math.inf))
        scaler.step(optimizer)
        scaler.update()
        reporter.trace.add(progress.step, epoch, batch["index"], loss.detach() * real, real, lr, grad_norm)

        # report, stop or save
        reporter.end_step(epoch, stop, save, args.save_every_steps)
    return reporter.epoch_stats(rate(args, epoch, steps_per_epoch - 1, steps_per_epoch))


def rate(args, epoch, epoch_step, steps_per_epoch):
    return half_cosine(epoch + epoch_step / steps_per_epoch, args.lr, args.min_lr, args.warmup_epochs, args.epochs)


@torch.no_grad()
def evaluate(model, front_end, loader, device, mask_ratio, autocast, stop):
    """Loss over all held-out samples under their fixed masks, and that of predicting each image's mean.

    Returns:
        dict of `val_loss`, `val_mean_loss`, `val_samples`, `val_seconds`, of all processes.

    Raises:
        StoppedError: a signal asked for it.
    """
    model.eval()
    started = time.perf_counter()
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    samples = 0
    for number, batch in enumerate(loader.batches(front_end, device)):
        stop.ask()
        images = batch["images"]
        with autocast():
            loss, _, mask = model(images, mask_ratio, batch["noise"])
        real = loader.batch_sampler.real(number)
        sums += real * torch.stack([loss.float(), model.mean_loss(images, mask)]).double()
        samples += real
        if name := stop.answer():
            raise StoppedError(f"{name} while evaluating")
    loss, mean_loss, samples = distributed.all_reduce_sum([*sums.tolist(), samples])
    return {
        "val_loss": loss / samples,
        "val_mean_loss": mean_loss / samples,
        "val_samples": round(samples),
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
