"""Measure and print a training run: position, losses, speed, memory and remaining time."""

import math
import re
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from util import distributed
from util.errors import RunError, StoppedError, few

PRINT_EVERY_STEPS = 20
ESTIMATED_STEPS = 5  # steps after which the time to the end is estimated
NAMED_SAMPLES = 8  # most samples that an error names


@dataclass
class Progress:
    """Position of a run and sums of its current epoch; saved in checkpoints and restored from them.

    step: optimizer steps since the start of the run; epoch_step: those of the current epoch. loss_sum,
    weight: of all processes. score: the best validation so far, in fine-tuning.
    """

    step: int = 0
    epoch_step: int = 0
    loss_sum: float = 0.0
    weight: float = 0.0
    score: dict = field(default_factory=dict)

    def start_epoch(self):
        self.epoch_step, self.loss_sum, self.weight = 0, 0.0, 0.0

    def state(self):
        """The numbers for a checkpoint; `score` is saved beside them."""
        return {name: value for name, value in vars(self).items() if name != "score"}


@dataclass
class Step:
    """An optimizer step: mean loss and its weight, learning rate, norm of the gradient."""

    number: int
    loss: float
    weight: float
    lr: float
    grad_norm: float = math.nan


class Reporter:
    """Reports one epoch of training: console lines, TensorBoard, statistics.

    Losses and gradient norms stay on the device until a line is due, so that the device never waits. Rates
    are of all processes together, the data wait is their mean, and the memory is that of the largest process.

    Args:
        run: the `util.run.Run`; progress: the `Progress` to update; batches: the `data.batches.Batches` of
            the epoch.
        flops_per_image: model FLOPs of a training step per image, or None.
    """

    def __init__(self, run, progress, batches, epoch, flops_per_image=None):
        self.run, self.progress, self.batches, self.epoch = run, progress, batches, epoch
        self.steps_per_epoch = math.ceil(len(batches) / run.accum_iter)
        self.flops_per_image = flops_per_image
        self._pending = []  # losses and norms on the device
        self._unprinted = []  # `Step`s since the last line
        self._images = self._printed_images = 0
        self._waited_s = 0.0
        self._first_step = progress.epoch_step
        self._started = self._printed = time.perf_counter()

    def add(self, batch, loss_sum, weight, lr, grad_norm=None):
        """Note a batch; the last batch of a step comes with the gradient norm.

        Args:
            loss_sum, weight: sum of the losses of this process and its weight in the mean; tensors or
                numbers.
        """
        self._pending.append((batch["index"], loss_sum, weight, lr, grad_norm))
        self._images += batch["real"]

    def end_step(self, save):
        """Count a step, print a line if one is due, and call `save` if a checkpoint is due.

        Raises:
            RunError: a loss or a gradient was not finite.
            StoppedError: a signal asked the run to stop; the caller saves this complete step.
        """
        progress = self.progress
        progress.step += 1
        progress.epoch_step += 1
        if progress.epoch_step % PRINT_EVERY_STEPS == 0 or progress.epoch_step == self.steps_per_epoch:
            self._print()
        self._estimate()
        if name := self.run.stop.answer():
            self._read()
            raise StoppedError(f"{name} after step {progress.step}")
        every = self.run.args.save_every_steps
        # The checkpoint of an epoch's last step is written after the evaluation.
        if every and progress.step % every == 0 and progress.epoch_step < self.steps_per_epoch:
            self._read()
            save()

    def stats(self, lr):
        """dict of the epoch's statistics, for log.txt."""
        seconds = time.perf_counter() - self._started
        images, waited_s = distributed.all_reduce_sum(
            [self._images, self._waited_s / distributed.world_size()]
        )
        mfu = self._mfu(images / seconds)
        return {
            "train_loss": self.progress.loss_sum / self.progress.weight,
            "lr": lr,
            "images_per_s": round(images / seconds, 2),
            **({} if mfu is None else {"mfu": round(mfu, 4)}),
            "data_wait": round(waited_s / seconds, 4),
            "memory_bytes": distributed.all_reduce_max(peak_memory_bytes(self.run.device)),
            "seconds": round(seconds, 2),
        }

    def _read(self):
        """Bring all losses so far to the host, sum them over the processes, and log them."""
        if not self._pending:
            return
        zero = torch.zeros_like(self._pending[0][1], dtype=torch.float64)
        table = torch.stack(
            [
                torch.stack([loss.double(), zero + weight, zero if norm is None else norm.double()])
                for _, loss, weight, _, norm in self._pending
            ]
        )
        own = table[:, 0].tolist()
        sums = distributed.all_reduce_sum(table[:, :2].flatten().tolist())
        # The pending batches end with the last step; count back to the first.
        number = self.progress.step - sum(norm is not None for *_, norm in self._pending) + 1
        steps = []
        for place, ((index, _, _, lr, has_norm), norm) in enumerate(
            zip(self._pending, table[:, 2].tolist(), strict=True)
        ):
            loss, weight = sums[2 * place : 2 * place + 2]
            self._check(number, index, loss, norm, own[place])
            if not steps or steps[-1].number != number:
                steps.append(Step(number, 0.0, 0.0, lr))
            step = steps[-1]
            step.loss = (step.loss * step.weight + loss) / ((step.weight + weight) or 1.0)
            step.weight += weight
            self.progress.loss_sum += loss
            self.progress.weight += weight
            if has_norm is not None:
                step.grad_norm = norm
                number += 1
        self._pending = []
        self._unprinted += steps
        self.run.record.steps(steps)

    def _check(self, number, index, loss, norm, own_loss):
        """Raise if a loss or a norm is not finite, on all processes alike.

        With a gradient scaler infinite norms are no error: it adapts its scale and skips the step.
        """
        if math.isfinite(loss) and (math.isfinite(norm) or self.run.scaler.is_enabled()):
            return
        what = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        mine = (
            self.batches.names(self.epoch, index.tolist())
            if math.isfinite(loss) or not math.isfinite(own_loss)
            else []
        )
        names = [name for several in distributed.all_gather(mine) for name in several]
        named = few(names, NAMED_SAMPLES, counted=True)
        raise RunError(
            f"{what} at step {number - 1} of epoch {self.epoch}, expected a finite number; samples {named}"
        )

    def _print(self):
        self._read()
        now = time.perf_counter()
        seconds, images = max(now - self._printed, 1e-9), self._images - self._printed_images
        waited_s = self.batches.waited_s()
        self._waited_s += waited_s
        images_per_s, data_wait = distributed.all_reduce_sum(
            [images / seconds, waited_s / seconds / distributed.world_size()]
        )
        memory_bytes = distributed.all_reduce_max(peak_memory_bytes(self.run.device))
        mfu = self._mfu(images_per_s)
        done = self.progress.epoch_step - self._first_step
        minutes, eta_s = divmod(round(self._steps_left() * (now - self._started) / done), 60)
        last, weight = self._unprinted[-1], sum(step.weight for step in self._unprinted)
        loss = sum(step.loss * step.weight for step in self._unprinted) / weight
        print(
            f"epoch {self.epoch}/{self.run.args.epochs} step {self.progress.epoch_step}/{self.steps_per_epoch}  "
            f"loss {loss:.4f}  lr {last.lr:.2e}  grad {last.grad_norm:.3f}  {images_per_s:.1f} images/s  "
            f"{'' if mfu is None else f'mfu {mfu:.1%}  '}data wait {data_wait:.1%}  "
            f"memory {memory_bytes / 2**30:.2f} GiB  eta {minutes // 60}:{minutes % 60:02d}:{eta_s:02d}",
            flush=True,
        )
        values = {
            "images_per_s": images_per_s,
            "data_wait": data_wait,
            "memory_bytes": memory_bytes,
            "mfu": mfu,
        }
        self.run.record.scalars(
            last.number, {f"train/{k}": value for k, value in values.items() if value is not None}
        )
        self._unprinted, self._printed, self._printed_images = [], now, self._images

    def _estimate(self):
        """Print the time to the end once, after the first steps of a run, without the slow very first step."""
        step = self.progress.step
        if step == 1:
            self._first_ended = time.perf_counter()
        if (
            step == self.progress.epoch_step == ESTIMATED_STEPS
            and not self._first_step
            and self._steps_left()
        ):
            print(
                time_line((time.perf_counter() - self._first_ended) / (step - 1), self._steps_left()),
                flush=True,
            )

    def _steps_left(self):
        return (self.run.args.epochs - self.epoch) * self.steps_per_epoch - self.progress.epoch_step

    def _mfu(self, images_per_s):
        """Model FLOPs utilization (arXiv 2204.02311): the model's FLOPs as a share of the devices' peak."""
        if self.flops_per_image is None or not self.run.peak_flops_per_s:
            return None
        return images_per_s * self.flops_per_image / (distributed.world_size() * self.run.peak_flops_per_s)


def time_line(seconds_per_step, steps_left):
    """A line about the time to the end of training."""
    seconds = seconds_per_step * steps_left
    if seconds >= 3600:
        shown = f"{seconds / 3600:.1f} hours"
    else:
        shown = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return f"about {shown} of training to the end: {steps_left:,} steps of {seconds_per_step:.3g} s"


def peak_memory_bytes(device):
    """Peak memory so far: of the GPU as torch counts it, or of this process on a CPU (its resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # On Linux ru_maxrss starts at the parent's value; VmHWM does not.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
