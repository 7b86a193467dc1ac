"""Fine-tuning from the first epoch to the best; the evaluation, in whose confusion matrices every sample counts once."""

import math
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F

import models_deeplab
from data.labelled import LabelledSamples, class_weights, collate_labelled, mix, shift_and_flip
from data.sampling import EpochBatches, make_loader, to_images
from data.tasks import HEADS
from engine_pretrain import PRINT_EVERY_STEPS, LossTrace, Progress
from models_vit import train_mode
from util import checkpoint
from util.errors import UserError
from util.logger import RunLog, Stopwatch, peak_memory_bytes, report_step
from util.lr_decay import param_groups_lrd
from util.lr_sched import half_cosine, set_lr
from util.metrics import Confusion, GroupedConfusion, table, table_by_group
from util.plots import confusion_figure, prediction_sheet

SPLIT = "split.json"
# What decides which epoch is kept, on the validation part.
CHOSEN_BY = {"segmentation": "mean_iou", "classification": "mean_accuracy"}
MEANS = ("pixel_accuracy", "mean_accuracy", "mean_iou", "mean_f1")
SHEET_SAMPLES = 9  # best, median and worst
SNR_STEP_DB = 5


def optimization(args, model, data, device):
    """(optimizer, learning rate by position in epochs, loss, Mixup or None)."""
    classes, classifies = len(data.class_names), HEADS[args.task] == "classification"
    if args.model in models_deeplab.PRESETS:
        recipe = models_deeplab.RECIPE
        optimizer = torch.optim.SGD(model.parameters(), args.lr, recipe["momentum"], weight_decay=args.weight_decay)

        def rate(epoch):
            return args.lr * recipe["lr_drop_factor"] ** (int(epoch) // recipe["lr_drop_epochs"])
    else:
        groups = param_groups_lrd(model, args.weight_decay, args.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)
        rate = partial(half_cosine, lr=args.lr, min_lr=args.min_lr, warmup_epochs=args.warmup_epochs, epochs=args.epochs)

    weight = class_weights(data.parts["train"], classes, args.class_weights)
    weight = None if weight is None else weight.to(device)
    if classifies and (args.mixup or args.cutmix):
        mixup = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=classes)  # it smooths the labels
        return optimizer, rate, nn.CrossEntropyLoss(weight), mixup
    return optimizer, rate, nn.CrossEntropyLoss(weight, label_smoothing=args.smoothing if classifies else 0.0), None


def loader_of(part, args, device, training=False, fresh=False):
    dataset = LabelledSamples(part, args.seed, fresh)
    # Batch norm has nothing to normalize over in a last batch of one.
    drop_single = training and args.model in models_deeplab.PRESETS
    batches = EpochBatches(len(dataset), args.batch_size, args.seed, training, drop_single)
    if not len(batches):
        raise UserError(f"--model {args.model}: expected 2 samples or more to train on; found {len(dataset)}")
    return make_loader(dataset, batches, args.num_workers, args.pin_mem and device.type == "cuda", collate_labelled)


def best_so_far(args, saved):
    """The state of the best epoch until a checkpoint: its own, or that of the checkpoint-best.pth beside it."""
    if saved["best_epoch"] == saved["epoch"]:
        return saved
    path = Path(args.resume).parent / checkpoint.BEST
    state = checkpoint.load(path)
    if state["epoch"] != saved["best_epoch"]:
        raise UserError(f"{path}: expected epoch {saved['best_epoch']}, the best until {args.resume}; found epoch "
                        f"{state['epoch']}")  # fmt: skip
    return state


def train(args, data, model, saved, folder, device, autocast, scaler):
    """Train to the end, validating on the way; the model is left as it was in its best epoch.

    Returns:
        dict of "best_epoch", "step" and "seconds_training".
    """
    optimizer, rate, criterion, mixup = optimization(args, model, data, device)
    loader = loader_of(data.parts["train"], args, device, training=True, fresh=data.fresh)
    val_loader = loader_of(data.parts["val"], args, device)
    # Labels that cannot be read should not show after hours of training.
    for name in ("val", "test"):
        for _ in data.parts[name].targets():
            pass
    progress, best, best_epoch, first_epoch, seconds = Progress(), -1.0, -1, 0, 0.0
    if saved:
        if saved["front_end"] != data.settings:
            raise UserError(f"{args.resume}: expected the front end {data.settings}; found {saved['front_end']}")
        if saved["num_samples"] != len(loader.dataset):
            raise UserError(f"{args.resume}: expected a run on {len(loader.dataset)} training samples; found one on "
                            f"{saved['num_samples']}")  # fmt: skip
        best_state = best_so_far(args, saved)
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        checkpoint.set_random_state(saved["rng"])
        progress = Progress(**saved["progress"])
        first_epoch, best, best_epoch = saved["epoch"] + 1, saved["best"], saved["best_epoch"]
        seconds = saved.get("seconds_training", 0.0)
        checkpoint.save(best_state, folder, name=checkpoint.BEST)
    counts = ", ".join(f"{len(part)} {name}" for name, part in data.parts.items())
    print(f"{args.model} on {device}, amp {args.amp}; samples: {counts}; batch {args.batch_size} x {args.accum_iter}, "
          f"lr {args.lr:.3g}")  # fmt: skip

    log = RunLog(folder, args.log_dir, first_epoch, progress.step)
    split_written = False
    for epoch in range(first_epoch, args.epochs):
        progress.start_epoch()
        loader.batch_sampler.epoch = epoch
        stats = train_one_epoch(
            model, data.front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast, criterion, mixup,
            rate,
        )  # fmt: skip
        seconds += stats["seconds"]
        if (epoch + 1) % args.val_every and epoch + 1 < args.epochs:
            log.epoch({"epoch": epoch, **stats})
            continue

        # validate
        measured = evaluate(model, data.front_end, val_loader, device, autocast, data.class_names)
        score = measured["results"][CHOSEN_BY[HEADS[args.task]]] or 0.0
        val = {"val_loss": measured["loss"], **{f"val_{key}": measured["results"][key] for key in MEANS}}
        print(f"epoch {epoch}/{args.epochs} validation: loss {val['val_loss']:.4f}, "
              f"accuracy {val['val_pixel_accuracy']:.2%}, of classes {val['val_mean_accuracy']:.2%}, "
              f"mean IoU {val['val_mean_iou']:.2%}", flush=True)  # fmt: skip
        log.scalars(progress.step, {name.replace("_", "/", 1): value for name, value in val.items()})
        log.epoch({"epoch": epoch, **stats, **val})
        if score > best:
            best, best_epoch = score, epoch

        # save
        if not split_written:  # not before the first epoch has shown that the data can be read
            data.save_split(folder / SPLIT, args.seed)
            split_written = True
        state = {
            "format": checkpoint.FORMAT, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(), "epoch": epoch, "step": progress.step, "progress": vars(progress).copy(),
            "num_samples": len(loader.dataset), "rng": checkpoint.random_state(), "front_end": data.settings,
            "classes": list(data.class_names), "best": best, "best_epoch": best_epoch, "seconds_training": seconds,
            "args": vars(args).copy(),
        }  # fmt: skip
        checkpoint.save(state, folder)
        if best_epoch == epoch:
            checkpoint.save(state, folder, name=checkpoint.BEST)
    log.close()
    kept = folder / checkpoint.BEST
    checkpoint.load_model(model, checkpoint.load(kept)["model"], kept)
    return {"best_epoch": best_epoch, "step": progress.step, "seconds_training": round(seconds, 1)}


def train_one_epoch(
    model, front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast, criterion, mixup, rate
):
    """Train an epoch. Accumulation and the last, smaller group are as in pretraining.

    Args:
        criterion: called with logits and targets, gives the mean loss of a batch.
        mixup: timm's Mixup for classification, or None.
        rate: called with the position in epochs, gives the learning rate.

    Returns:
        dict of the epoch's statistics.

    Raises:
        RunError: a loss or gradient that is not finite.
    """
    train_mode(model, args.train)
    batches = loader.batch_sampler
    num_batches = len(batches)
    steps_per_epoch = math.ceil(num_batches / args.accum_iter)
    trace = LossTrace(loader.dataset, norms_may_overflow=scaler.is_enabled())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    watch, whole = Stopwatch(), Stopwatch()
    waited = 0.0

    for number, batch in enumerate(watch.batches(loader)):
        # start a group of accumulated batches
        if number % args.accum_iter == 0:
            lr = rate(epoch + number / num_batches)
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            group_samples = min(args.accum_iter * args.batch_size, batches.kept_samples - number * args.batch_size)

        # front end and augmentation on the training device
        images = to_images(batch["parts"], front_end, device)
        target = batch["target"].to(device, non_blocking=True)
        if target.dim() > 1 and (args.time_shift or args.flip):
            numbers = batch["noise"].to(device, non_blocking=True)
            images, target = shift_and_flip(images, target, numbers, args.time_shift, args.flip)
        target = target.long()
        if mixup is not None:
            images, target = mix(images, target, mixup, args.seed, epoch, number)

        # forward and backward
        with autocast():
            logits = model(images)
        loss = criterion(logits.float(), target)
        scaler.scale(loss * (len(images) / group_samples)).backward()
        watch.images += len(images)
        whole.images += len(images)
        if (number + 1) % args.accum_iter and number + 1 < num_batches:
            trace.add(progress.step, epoch, batch["index"], loss.detach(), None)
            continue

        # step
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip_grad or math.inf)
        scaler.step(optimizer)
        scaler.update()
        trace.add(progress.step, epoch, batch["index"], loss.detach(), grad_norm)
        progress.step += 1

        # report
        step = number // args.accum_iter + 1
        if step % PRINT_EVERY_STEPS == 0 or step == steps_per_epoch:
            mean_loss, norm = trace.read(progress)
            _, images_per_s, data_wait = watch.read()
            waited += watch.waited
            eta_s = ((args.epochs - epoch) * steps_per_epoch - step) * whole.read()[0] / step
            where = f"epoch {epoch}/{args.epochs} step {step}/{steps_per_epoch}"
            memory = peak_memory_bytes(device)
            report_step(log, progress.step, where, eta_s, mean_loss, lr, norm, images_per_s, data_wait, memory)
            watch.lap()

    seconds, images_per_s, _ = whole.read()
    return {"train_loss": progress.loss_sum / progress.samples, "lr": lr, "images_per_s": round(images_per_s, 2),
            "data_wait": round(waited / seconds, 4), "memory_bytes": peak_memory_bytes(device),
            "seconds": round(seconds, 2)}  # fmt: skip


@torch.no_grad()
def evaluate(model, front_end, loader, device, autocast, class_names, groupings=None):
    """Run over all samples of a part.

    Args:
        groupings: dict of a grouping's name to a list of each sample's group, by number: figures are given for each too.

    Returns:
        dict: `results` (see `util.metrics.figures`), `groups` ({grouping: {group: the same}}), `loss`, `seconds`, `scores`:
        float [N], each sample's share of right cells (or 0 and 1).
    """
    model.eval()
    started = time.perf_counter()
    confusion = Confusion(class_names, device)
    groupings = groupings or {}
    grouped = {name: GroupedConfusion(class_names, sorted(set(of), key=natural), device) for name, of in groupings.items()}
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    scores = torch.zeros(len(loader.dataset))
    for batch in loader:
        images = to_images(batch["parts"], front_end, device)
        target = batch["target"].to(device, non_blocking=True).long()
        with autocast():
            logits = model(images)
        loss_sum += F.cross_entropy(logits.float(), target).double() * len(target)
        pred = logits.argmax(dim=1)
        confusion.update(pred, target)
        for name, matrices in grouped.items():
            matrices.update(pred, target, [groupings[name][int(number)] for number in batch["index"]])
        scores[batch["index"]] = (pred == target).float().view(len(target), -1).mean(dim=1).cpu()
    return {"results": confusion.results(), "groups": {name: matrices.results() for name, matrices in grouped.items()},
            "loss": float(loss_sum) / max(1, len(scores)), "seconds": round(time.perf_counter() - started, 2),
            "scores": scores}  # fmt: skip


def natural(name):
    """Sort key under which "-5 dB" comes before "10 dB"."""
    number = re.match(r"-?\d+(\.\d+)?", name)
    return (0, float(number[0]), name) if number else (1, 0.0, name)


def groupings(part):
    """Names of the SNR range and the technologies of every sample, for those that say what is in them: see `evaluate`."""
    snr, technology = [], []
    for number in range(len(part)):
        scene = part.describe(number).get("scene")
        if scene is None:
            return {}
        carriers = scene["transmissions"]
        low = min((int(carrier["snr_db"] // SNR_STEP_DB) * SNR_STEP_DB for carrier in carriers), default=None)
        snr.append("no carrier" if low is None else f"{low} to {low + SNR_STEP_DB} dB")
        technology.append(" and ".join(sorted({carrier["technology"] for carrier in carriers})) or "no carrier")
    return {"SNR of the weakest carrier": snr, "technology": technology}


def report(measured, model, front_end, dataset, device, autocast, class_names, log, step, title):
    """The tables on the console, the confusion matrix and, of masks, the sheet of best, median and worst samples.

    Args:
        measured: what `evaluate` gave for the `LabelledSamples` `dataset`.
        log: a `RunLog`, which gets the pictures.

    Returns:
        The names of the pictures.
    """
    results = measured["results"]
    print(table(results))
    for name, groups in measured["groups"].items():
        print(f"\nby {name}\n{table_by_group(groups)}")
    caption = f"{title}\ntest part, {len(dataset)} samples"
    log.figure(step, confusion_figure(results["confusion"], class_names, caption), "confusion")
    if np.ndim(next(dataset.part.targets())) < 2:
        return ["confusion.png"]
    rows = predictions(model, front_end, dataset, measured["scores"], device, autocast)
    for row in rows:
        about = dataset.describe(0, row["number"])
        rate = about.get("sample_rate_hz")
        row["extent"] = rate and front_end.extent(rate, about.get("center_freq_hz"), about.get("num_samples"))
        row["title"] = f"{about['name']}: {row['score']:.1%} right"
    log.figure(step, prediction_sheet(rows, class_names, f"{title}: best, median and worst test samples"), "predictions")
    return ["confusion.png", "predictions.png"]


@torch.no_grad()
def predictions(model, front_end, dataset, scores, device, autocast):
    """What the sheet shows of the best, median and worst samples: dicts of number, image [F, T], target, prediction."""
    model.eval()
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    third = SHEET_SAMPLES // 3
    middle = max(0, (len(order) - third) // 2)
    chosen = list(dict.fromkeys([*order[:third], *order[middle : middle + third], *order[-third:]]))
    rows = []
    for number in chosen:
        batch = collate_labelled([dataset[0, number]])
        images = to_images(batch["parts"], front_end, device)
        with autocast():
            pred = model(images).argmax(dim=1)[0]
        rows.append({"number": number, "score": float(scores[number]), "image": images[0, 0].cpu().numpy(),
                     "target": batch["target"][0].numpy(), "prediction": pred.cpu().numpy()})  # fmt: skip
    return rows
