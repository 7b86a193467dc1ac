"""Fine-tuning: the loop over epochs, one epoch, and the measurement of a labelled part."""

import math
import time
from functools import partial
from pathlib import Path

import torch
from timm.data import Mixup
from timm.optim import Lars
from torch.nn import functional as F

import models_deeplab
from data.batches import Batches, are_finite
from data.labelled import RANDOM_NUMBERS, LabelledSamples, class_weights, mix, shift_and_flip
from data.splits import has_masks
from data.tasks import HEADS
from models_vit import train_mode
from radio.grid import OUTSIDE
from util import checkpoint, compiling, distributed, parallel
from util.errors import RunError, StoppedError, UserError, few, warn
from util.lr_decay import param_groups_lrd
from util.lr_sched import set_lr
from util.metrics import IGNORED, Confusion, GroupedConfusion, foreground_iou, means, natural, overall
from util.progress import NAMED_SAMPLES, Reporter
from util.recipes import LARS_TRUST

SPLIT = "split.json"
# The validation figure that decides which epoch is kept.
CHOSEN_BY = {"segmentation": "mean_iou", "classification": "mean_accuracy"}


def lars(groups, lr):
    """LARS as in MAE's linear probe: only parameters of more than one dimension adapt their rate."""
    for group in groups:
        group["always_adapt"] = group["params"][0].ndim > 1
    return Lars(groups, lr=lr, momentum=0.9, trust_coeff=LARS_TRUST)


OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "lars": lars,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


def make_optimizer(model, run):
    """The optimizer of the recipe, for the parameters that train."""
    args = run.args
    if args.model in models_deeplab.PRESETS:
        momentum = models_deeplab.RECIPE["momentum"]
        return torch.optim.SGD(model.parameters(), run.lr, momentum, weight_decay=args.weight_decay)
    return OPTIMIZERS[args.opt](param_groups_lrd(model, args.weight_decay, args.layer_decay), lr=run.lr)


class Objective:
    """What a batch is trained on: augmented images and targets, and the cross-entropy of the logits.

    Args:
        args: flags of fine-tuning; data: `data.tasks.Labelled`.
    """

    def __init__(self, args, data, device):
        classes, classifies = len(data.class_names), HEADS[args.task] == "classification"
        self.args, self.mixup = args, None
        self.smoothing = args.smoothing if classifies else 0.0
        if classifies and (args.mixup or args.cutmix):
            self.mixup = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=classes)
            self.smoothing = 0.0  # Mixup smooths the labels
        self.pads = data.front_end.pads
        weight = class_weights(data.parts["train"], classes, args.class_weights, data.front_end)
        self.weight = None if weight is None else weight.to(device)  # of the classes, float [classes]

    def augment(self, batch, epoch, place):
        """(images, target) of a batch: ids, int64 [B, ...], or with Mixup shares of the classes, float [B,
        classes].

        Args:
            place: of the batch's first sample in the epoch.
        """
        images, target, args = batch["images"], batch["target"], self.args
        if target.dim() > 1 and (args.time_shift or args.flip):
            images, target = shift_and_flip(images, target, batch["noise"], args.time_shift, args.flip)
        target = countable(images, target) if self.pads else target.long()
        if self.mixup is not None:
            images, target = mix(images, target, self.mixup, args.seed, epoch, place)
        return images, target

    def loss(self, logits, target):
        """Cross-entropy as (sum, weight of the sum), for means over batches and processes.

        Args:
            logits: float [N, classes, ...]; target: as `augment` gives it.

        Returns:
            A scalar; the sum of the classes' weights, or the number of labels.
        """
        loss = F.cross_entropy(logits, target, self.weight, reduction="sum", label_smoothing=self.smoothing)
        if target.is_floating_point() or (self.weight is None and not self.pads):
            return loss, logits.numel() // logits.shape[1]
        counts = target != IGNORED
        return loss, counts.sum() if self.weight is None else (self.weight[target * counts] * counts).sum()


def countable(images, target):
    """Targets with `IGNORED` in the cells that lie outside of the recording: int64 [B, ...].

    Args:
        images: [B, C, F, T]; target: class ids, [B, F, T], or [B], which stay.
    """
    target = target.long()
    return target.masked_fill(images[:, 0] == OUTSIDE, IGNORED) if target.dim() > 1 else target


def batches_of(part, data, run, training=False, more_numbers=0):
    """`data.batches.Batches` of a part of the data; more_numbers: of each sample, for the model."""
    dataset = LabelledSamples(part, run.args.seed, training and data.fresh, more_numbers)
    # Batch norm cannot normalize a last batch of one sample.
    drop_single = training and run.args.model in models_deeplab.PRESETS
    batches = Batches(dataset, data.front_end, run.device, run.args, training, drop_single)
    if not len(batches):
        least = 2 * distributed.world_size()
        raise UserError(
            f"--model {run.args.model}: expected {least} samples or more to train on; found {len(dataset)}"
        )
    return batches


def best_so_far(path, saved):
    """The state of the best epoch until a checkpoint: its own, or that of checkpoint-best.pth beside it.

    A run that was killed between the two saves has a best of the next epoch; that epoch comes again. A run
    whose disk was full when its best was due has an older best.
    """
    if saved["best_epoch"] < 0 or (
        saved["best_epoch"] == saved["epoch"] and not saved["progress"]["epoch_step"]
    ):
        return saved
    beside = Path(path).parent / checkpoint.BEST
    state = checkpoint.load(beside)
    if state["epoch"] < saved["best_epoch"]:
        warn(
            f"{beside}: expected epoch {saved['best_epoch']}, the best until {path}; found epoch {state['epoch']}, now "
            "taken for the best"
        )
    return state


def train(model, optimizer, objective, batches, data, run, progress, first_epoch):
    """Train to the last epoch with validation, log and checkpoints; the model ends in its best state.

    Args:
        model: as `util.parallel.wrap` returned it; batches: `data.batches.Batches` of the training part.
        progress: the `util.progress.Progress` to start from; its `score` has "best", "best_epoch",
            "seconds_training".
    """
    args, record, state = run.args, run.record, (model, optimizer, run.scaler, progress)
    val_batches = batches_of(data.parts["val"], data, run)
    record.take_over(first_epoch, progress.step)
    split_due = True
    for epoch in range(first_epoch, args.epochs):
        validates = (epoch + 1) % args.val_every == 0 or epoch + 1 == args.epochs
        try:
            stats = train_one_epoch(model, batches, optimizer, run, epoch, progress, objective)
            if validates:
                measured = evaluate(model, val_batches, run, data.class_names)
        except StoppedError as reason:
            record.stop(reason, *state, epoch)
        progress.score["seconds_training"] += stats["seconds"]
        progress.start_epoch()
        if not validates:
            record.epoch({"epoch": epoch, "step": progress.step, **stats})
            continue

        # report the validation
        results = measured["results"]
        val = {"val_loss": measured["loss"], **{f"val_{key}": value for key, value in means(results).items()}}
        print(
            f"epoch {epoch}/{args.epochs} validation: loss {val['val_loss']:.4f}, accuracy "
            f"{results[overall(results)]:.2%}, of classes {val['val_mean_accuracy']:.2%}, mean IoU "
            f"{val['val_mean_iou']:.2%}",
            flush=True,
        )
        record.scalars(progress.step, {name.replace("_", "/", 1): value for name, value in val.items()})
        record.epoch({"epoch": epoch, "step": progress.step, **stats, **val})

        # save
        score = results[CHOSEN_BY[HEADS[args.task]]] or 0.0
        is_best = score > progress.score["best"]
        if is_best:
            progress.score |= {"best": score, "best_epoch": epoch}
        if split_due and distributed.is_main():  # not before an epoch has shown that the data can be read
            with record.tried(SPLIT):
                data.save_split(record.folder / SPLIT, args.seed)
        split_due = False
        record.save(*state, epoch, completed=True, best=is_best)
    record.finish()
    kept = record.folder / checkpoint.BEST
    best = distributed.broadcast(lambda: checkpoint.load(kept))
    model = parallel.unwrap(model)
    checkpoint.load_model(model, parallel.shard_state(model, best["model"]), kept)
    return best["best_epoch"]


def warm_up(model, run, shape, drops, compile_mode):
    """Compile the training step with a batch of zeros, images of `shape` (C, F, T) with `drops` numbers."""

    def loss_of_zeros():
        images = torch.zeros(run.args.batch_size, *shape, device=run.device)
        numbers = [torch.zeros(len(images), drops, device=run.device)] if drops else []
        with run.autocast():
            return model(images, *numbers).float().mean()

    train_mode(parallel.unwrap(model), run.args.train)
    compiling.warm_up(model, compile_mode, loss_of_zeros)


def train_one_epoch(model, batches, optimizer, run, epoch, progress, objective):
    """Train from the position of `progress` to the end of the epoch; steps and weights are as in pretraining.

    Args:
        objective: an `Objective`.

    Returns:
        dict of the epoch's statistics.

    Raises:
        RunError: a loss or gradient that is not finite.
        StoppedError: a signal asked for it; the step before is complete and is to be saved.
    """
    args, scaler, accum_iter = run.args, run.scaler, run.accum_iter
    train_mode(parallel.unwrap(model), args.train)
    batches.start(epoch, progress.epoch_step * accum_iter)
    reporter = Reporter(run, progress, batches, epoch)
    steps = reporter.steps_per_epoch
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    for number, batch in enumerate(batches, start=batches.first):
        # start a step
        if number % accum_iter == 0:
            lr = run.rate(epoch + progress.epoch_step / steps)
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            step_samples = batches.group_samples(number, accum_iter)
            step_weight = 0
        ends_step = (number + 1) % accum_iter == 0 or number + 1 == len(batches)
        if ends_step:
            run.stop.ask()

        # augment on the device
        real, cells = batch["real"], batch["target"][0].numel()
        images, target = objective.augment(batch, epoch, batches.place(number))
        drops = batch["noise"][:, RANDOM_NUMBERS:]

        # forward and backward; the gradients of the processes are averaged
        with parallel.grad_sync(model, ends_step):
            with run.autocast():
                logits = model(images, drops) if drops.shape[1] else model(images)
            loss, weight = objective.loss(logits.float()[:real], target[:real])
            scaler.scale(loss * (distributed.world_size() / (step_samples * cells))).backward()
        step_weight = step_weight + weight
        if not ends_step:
            reporter.add(batch, loss.detach(), weight, lr)
            continue

        # step
        scaler.unscale_(optimizer)
        if isinstance(weight, torch.Tensor):  # the mean is over the weights of the whole step
            total = distributed.all_reduce_sum_(step_weight.clone()).clamp_min(1e-12)  # 0: nothing inside
            factor = step_samples * cells / total
            for parameter in parameters:
                parameter.grad.mul_(factor)
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip_grad or math.inf)
        scaler.step(optimizer)
        scaler.update()
        reporter.add(batch, loss.detach(), weight, lr, parallel.full_tensors(grad_norm))

        # report, stop or save
        reporter.end_step(lambda: run.record.save(model, optimizer, scaler, progress, epoch))
    return reporter.stats(run.rate(epoch + 1 - 1 / steps))


@torch.no_grad()
def evaluate(model, batches, run, class_names, groupings=None):
    """Measure all samples of a part, each process its own.

    Args:
        batches: `data.batches.Batches` of `data.labelled.LabelledSamples`.
        groupings: dict of a grouping's name to a list of each sample's group, by number: figures are given
            for each too.

    Returns:
        dict, of all processes: `results` (see `util.metrics.figures`), `groups` ({grouping: {group: the
        same}}), `loss`, `seconds`, `scores`. scores: float64 [N], for masks `util.metrics.foreground_iou`,
        else 1 where the class is right and 0 where it is not.

    Raises:
        StoppedError: a signal asked for it.
    """
    model = parallel.unwrap(model).eval()
    started, device = time.perf_counter(), run.device
    masks = has_masks(batches.dataset.part.source)
    unit = "pixel" if masks else "sample"
    confusion = Confusion(class_names, device, unit)
    groupings = groupings or {}
    grouped = {
        name: GroupedConfusion(class_names, sorted(set(of), key=natural), device, unit)
        for name, of in groupings.items()
    }
    loss_sum, counted = torch.zeros(2, dtype=torch.float64, device=device)
    scores = torch.zeros(len(batches.dataset), dtype=torch.float64)
    for batch in batches:
        run.stop.ask()
        with run.autocast():
            logits = model(batch["images"])
        real = batch["real"]
        if real:
            logits, index = logits[:real], batch["index"][:real]
            target = countable(batch["images"][:real], batch["target"][:real])
            loss_sum += F.cross_entropy(logits.float(), target, reduction="sum").double()
            counted += (target != IGNORED).sum()
            pred = logits.argmax(dim=1)
            confusion.update(pred, target)
            for name, matrices in grouped.items():
                matrices.update(pred, target, [groupings[name][int(number)] for number in index])
            right = foreground_iou(pred, target, len(class_names)) if masks else (pred == target).double()
            scores[index] = right.cpu()
            fits = are_finite(batch["images"][:real], logits).cpu()
            if not fits.all():
                names = batches.names(0, index[~fits].tolist())
                found = f"NaN or infinity in samples {few(names, NAMED_SAMPLES, counted=True)}"
                raise RunError(f"expected finite images and logits; found {found}")
        if name := run.stop.answer():
            raise StoppedError(f"{name} while evaluating")
    loss_sum, counted = distributed.all_reduce_sum([float(loss_sum), float(counted)])
    distributed.all_reduce_sum_(scores)
    return {
        "results": confusion.results(),
        "groups": {name: matrices.results() for name, matrices in grouped.items()},
        "loss": loss_sum / max(1, counted),
        "seconds": round(time.perf_counter() - started, 2),
        "scores": scores,
    }
