"""Pretraining: the loop over epochs, one epoch, and the held-out loss."""

import math
import time
from functools import partial

import torch

from engine_reconstruct import picture
from util import checkpoint, compiling, distributed, flops, parallel
from util.errors import RunError, StoppedError, few
from util.lr_sched import set_lr
from util.progress import NAMED_SAMPLES, Reporter


def train(model, optimizer, batches, held_out, run, progress, first_epoch, starts_from_weights=False):
    """Train to the last epoch, with evaluation, log and checkpoints.

    Args:
        model: as `util.parallel.wrap` returned it; batches, held_out: `data.batches.Batches`; held_out may be
            None.
        progress: the `util.progress.Progress` to start from, counted on.
        starts_from_weights: evaluate before the first step too.
    """
    started = time.perf_counter()
    args, record, state = run.args, run.record, (model, optimizer, run.scaler, progress)
    record.take_over(first_epoch, progress.step)
    if starts_from_weights and held_out is not None:
        stats = evaluate(model, held_out, run)
        _report("before the first step", stats, run, progress)
        record.epoch({"epoch": first_epoch - 1, "step": progress.step, **stats})
    for epoch in range(first_epoch, args.epochs):
        try:
            stats = train_one_epoch(model, batches, optimizer, run, epoch, progress)
            if held_out is not None:
                stats |= evaluate(model, held_out, run)
        except StoppedError as reason:
            record.stop(reason, *state, epoch)
        if held_out is not None:
            _report(f"epoch {epoch}/{args.epochs}", stats, run, progress)
        record.epoch({"epoch": epoch, "step": progress.step, **stats})
        progress.start_epoch()

        # save
        if (epoch + 1) % args.save_every_epochs == 0 or epoch + 1 == args.epochs:
            record.save(*state, epoch, completed=True, numbered=True)
            shown = batches if held_out is None else held_out
            record.figure(progress.step, partial(picture, model, shown, run, epoch))
        elif args.save_every_steps:
            record.save(*state, epoch, completed=True)
    record.finish()
    seconds = time.perf_counter() - started
    print(
        f"trained to epoch {args.epochs} in {seconds:.0f} s; see {record.folder}/reconstruction.png, log.txt, "
        f"{checkpoint.LAST}"
    )


def train_one_epoch(model, batches, optimizer, run, epoch, progress):
    """Train from the position of `progress` to the end of the epoch.

    `accum_iter` batches of each process make a step, fewer at the end of the epoch. Every sample of a step
    has the same weight, so that the step is that of one large batch.

    Returns:
        dict of the epoch's statistics.

    Raises:
        RunError: a loss or gradient that is not finite.
        StoppedError: a signal asked for it; the step before is complete and is to be saved.
    """
    args, scaler, accum_iter = run.args, run.scaler, run.accum_iter
    model.train()
    batches.start(epoch, progress.epoch_step * accum_iter)
    reporter = Reporter(
        run, progress, batches, epoch, flops.pretraining_flops(parallel.unwrap(model), args.mask_ratio)
    )
    steps = reporter.steps_per_epoch

    for number, batch in enumerate(batches, start=batches.first):
        # start a step
        if number % accum_iter == 0:
            lr = run.rate(epoch + progress.epoch_step / steps)
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            step_samples = batches.group_samples(number, accum_iter)
        ends_step = (number + 1) % accum_iter == 0 or number + 1 == len(batches)
        if ends_step:
            run.stop.ask()

        # forward and backward; the gradients of the processes are averaged
        with parallel.grad_sync(model, ends_step):
            with run.autocast():
                loss, _, _ = model(batch["images"], args.mask_ratio, batch["noise"])
            scaler.scale(loss * (batch["real"] * distributed.world_size() / step_samples)).backward()
        loss_sum = loss.detach() * batch["real"]
        if not ends_step:
            reporter.add(batch, loss_sum, batch["real"], lr)
            continue

        # step
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad or math.inf)
        scaler.step(optimizer)
        scaler.update()
        reporter.add(batch, loss_sum, batch["real"], lr, parallel.full_tensors(grad_norm))

        # report, stop or save
        reporter.end_step(lambda: run.record.save(model, optimizer, scaler, progress, epoch))
    return reporter.stats(run.rate(epoch + (steps - 1) / steps))


@torch.no_grad()
def evaluate(model, batches, run):
    """Mean loss of held-out samples under their fixed masks, and the loss of predicting each image's mean.

    Returns:
        dict of `val_loss`, `val_mean_loss`, `val_samples`, `val_seconds`, over all processes.

    Raises:
        StoppedError: a signal asked for it.
    """
    model = parallel.unwrap(model).eval()
    started = time.perf_counter()
    sums, samples, losses = torch.zeros(2, device=run.device, dtype=torch.float64), 0, []
    for batch in batches:
        run.stop.ask()
        images, real = batch["images"], batch["real"]
        with run.autocast():
            loss, _, mask = model(images, run.args.mask_ratio, batch["noise"])
        sums += real * torch.stack([loss.float(), model.mean_loss(images, mask)]).double()
        samples += real
        losses += [(batch["index"], loss)] * bool(real)
        if name := run.stop.answer():
            raise StoppedError(f"{name} while evaluating")
    if not bool(sums.isfinite().all()):
        odd = [index.tolist() for index, loss in losses if not bool(loss.isfinite())]
        names = batches.names(0, odd[0] if odd else [])
        found = f"NaN or infinity in {few(names, NAMED_SAMPLES, counted=True)}"
        raise RunError(f"expected a finite loss of held-out samples; found {found}")
    loss, mean_loss, samples = distributed.all_reduce_sum([*sums.tolist(), samples])
    return {
        "val_loss": loss / samples,
        "val_mean_loss": mean_loss / samples,
        "val_samples": round(samples),
        "val_seconds": round(time.perf_counter() - started, 2),
    }


def _report(when, stats, run, progress):
    loss, mean_loss = stats["val_loss"], stats["val_mean_loss"]
    print(
        f"{when} held out: loss {loss:.4f}, predicting the mean {mean_loss:.4f}  ({stats['val_samples']} samples)",
        flush=True,
    )
    run.record.scalars(progress.step, {"val/loss": loss, "val/mean_loss": mean_loss})


def warm_up(model, run, shape):
    """Compile the training step with a batch of zeros: images of `shape`, (C, F, T)."""

    def loss_of_zeros():
        images = torch.zeros(run.args.batch_size, *shape, device=run.device)
        noise = torch.zeros(len(images), parallel.unwrap(model).num_patches, device=run.device)
        with run.autocast():
            return model(images, run.args.mask_ratio, noise)[0]

    compiling.warm_up(model.train(), run.compile_mode, loss_of_zeros)
