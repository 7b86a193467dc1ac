"""Fine-tuning from the first epoch to the best."""

import math
from functools import partial
from pathlib import Path

import torch
from timm.data import Mixup
from timm.optim import Lars
from torch.nn import functional as F

import models_deeplab
from data.feeding import make_loader
from data.labelled import RANDOM_NUMBERS, LabelledSamples, class_weights, mix, shift_and_flip
from data.sampling import EpochBatches
from data.tasks import HEADS
from engine_evaluate import evaluate
from engine_pretrain import LossTrace, Progress, Reporter
from models_vit import ViTEncoder, train_mode
from util import checkpoint, compiling, cost, distributed, parallel, resume
from util.errors import StoppedError, UserError, warn
from util.lr_decay import param_groups_lrd
from util.lr_sched import half_cosine, set_lr
from util.metrics import means, overall
from util.recipes import LARS_TRUST
from util.record import Record

SPLIT = "split.json"
# What decides which epoch is kept, on the validation part.
CHOSEN_BY = {"segmentation": "mean_iou", "classification": "mean_accuracy"}


def lars(groups, lr):
    """LARS as MAE's linear probe has it: weights adapt, and what has one dimension does not."""
    for group in groups:
        group["always_adapt"] = group["params"][0].ndim > 1
    return Lars(groups, lr=lr, momentum=0.9, trust_coeff=LARS_TRUST)


OPTIMIZERS = {"adamw": partial(torch.optim.AdamW, fused=True), "lars": lars,
              "sgd": partial(torch.optim.SGD, momentum=0.9)}  # fmt: skip


class Loss:
    """Cross-entropy of a batch as (sum, weight of the sum), for means over batches that processes share.

    Args:
        weight: of the classes, float [classes], or None; smoothing: share of a label that all classes get.
    """

    def __init__(self, weight=None, smoothing=0.0):
        self.weight, self.smoothing = weight, smoothing

    def __call__(self, logits, target):
        """logits: float [N, classes, ...]; target: ids, int64 [N, ...], or shares of the classes, as logits.

        Returns:
            The sum, a scalar, and its weight: the classes' weights added up, or the number of labels.
        """
        loss = F.cross_entropy(logits, target, self.weight, reduction="sum", label_smoothing=self.smoothing)
        if self.weight is None or target.is_floating_point():
            return loss, logits.numel() // logits.shape[1]
        return loss, self.weight[target].sum()


def optimization(args, model, data, device):
    """(optimizer, learning rate by position in epochs, `Loss`, Mixup or None)."""
    classes, classifies = len(data.class_names), HEADS[args.task] == "classification"
    if args.model in models_deeplab.PRESETS:
        recipe = models_deeplab.RECIPE
        optimizer = torch.optim.SGD(model.parameters(), args.lr, recipe["momentum"], weight_decay=args.weight_decay)

        def rate(epoch):
            return args.lr * recipe["lr_drop_factor"] ** (int(epoch) // recipe["lr_drop_epochs"])
    else:
        groups = param_groups_lrd(model, args.weight_decay, args.layer_decay)
        optimizer = OPTIMIZERS[args.opt](groups, lr=args.lr)
        rate = partial(half_cosine, lr=args.lr, min_lr=args.min_lr, warmup_epochs=args.warmup_epochs, epochs=args.epochs)

    weight = class_weights(data.parts["train"], classes, args.class_weights)
    weight = None if weight is None else weight.to(device)
    if classifies and (args.mixup or args.cutmix):
        mixup = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=classes)  # it smooths the labels
        return optimizer, rate, Loss(weight), mixup
    return optimizer, rate, Loss(weight, args.smoothing if classifies else 0.0), None


def loader_of(part, args, device, training=False, fresh=False, more_numbers=0):
    dataset = LabelledSamples(part, args.seed, fresh, more_numbers)
    # Batch norm has nothing to normalize over in a last batch of one.
    drop_single = training and args.model in models_deeplab.PRESETS
    batches = EpochBatches(len(dataset), args.batch_size, args.seed, training, drop_single, distributed.rank(),
                           distributed.world_size())  # fmt: skip
    if not len(batches):
        raise UserError(f"--model {args.model}: expected {2 * distributed.world_size()} samples or more to train on; found "
                        f"{len(dataset)}")  # fmt: skip
    return make_loader(dataset, batches, args.num_workers, args.pin_mem and device.type == "cuda")


def best_so_far(path, saved):
    """The state of the best epoch until a checkpoint: its own, or that of the checkpoint-best.pth beside it.

    A run that was killed between the two has a best of the epoch after, which comes again; one whose disk was full when its
    best was due has an older one, which is what is left of it.
    """
    if saved["best_epoch"] < 0 or (saved["best_epoch"] == saved["epoch"] and not saved["progress"]["epoch_step"]):
        return saved
    beside = Path(path).parent / checkpoint.BEST
    state = checkpoint.load(beside)
    if state["epoch"] < saved["best_epoch"]:
        warn(f"{beside}: expected epoch {saved['best_epoch']}, the best until {path}; found epoch {state['epoch']}, now "
             "taken for the best")  # fmt: skip
    return state


def train(args, flags, data, model, path, saved, folder, device, autocast, scaler, stop, way="off"):
    """Train to the end, validating on the way; the model is left as it was in its best epoch.

    Args:
        flags: those of the command, for checkpoints; `args` may accumulate otherwise.
        path, saved: the checkpoint to go on from, or None.
        way: of `util.compiling.pick_compile`.

    Returns:
        dict of "best_epoch", "step" and "seconds_training".
    """
    trained = parallel.wrap(model, device, args.shard, same_graph=args.accum_iter == 1 and args.train == "full")
    parallel.dry_run(trained, lambda: trained(torch.zeros(2, data.source.in_chans, *data.front_end.image_size,
                                                          device=device)).sum())  # fmt: skip
    optimizer, rate, criterion, mixup = optimization(args, model, data, device)
    drops = len(model.drop_paths) if isinstance(model, ViTEncoder) else 0
    way = way if isinstance(model, ViTEncoder) else "off"
    model.grad_ckpt = args.grad_ckpt
    if way != "off":
        compiling.compile_model(model, way, args.batch_size, args.amp, model.num_patches)
    loader = loader_of(data.parts["train"], args, device, training=True, fresh=data.fresh, more_numbers=drops)
    val_loader = loader_of(data.parts["val"], args, device)
    # Labels that cannot be read should not show after hours of training.
    for name in ("val", "test"):
        for _ in data.parts[name].targets():
            pass
    progress, best, best_epoch, first_epoch, seconds, best_state = Progress(), -1.0, -1, 0, 0.0, None
    batch = resume.effective_batch(args)
    if saved:
        if saved["front_end"] != data.settings:
            raise UserError(f"{path}: expected the front end {data.settings}; found {saved['front_end']}")
        if saved["num_samples"] != len(loader.dataset):
            raise UserError(f"{path}: expected a run on {len(loader.dataset)} training samples; found one on "
                            f"{saved['num_samples']}")  # fmt: skip
        first_epoch = resume.first_epoch(saved, batch)
        best_state = distributed.broadcast(lambda: best_so_far(path, saved))
        parallel.load_optimizer(optimizer, saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        checkpoint.set_random_state(saved["rng"])
        progress = Progress(**saved["progress"])
        best, best_epoch, seconds = best_state["best"], best_state["best_epoch"], saved["seconds_training"]
        print(f"resumed from {path}: epoch {saved['epoch']} done, {progress.step} steps")
    counts = ", ".join(f"{len(part)} {name}" for name, part in data.parts.items())
    if isinstance(model, ViTEncoder):
        print(cost.memory_line(model, device, min(args.batch_size, len(loader.dataset)), args))
    print(f"{args.model} on {device}, amp {args.amp}; samples: {counts}; {resume.batch_description(args)}, "
          f"lr {args.lr:.3g}, {args.epochs} epochs")  # fmt: skip

    if first_epoch >= args.epochs:
        print(f"nothing is left to train: {first_epoch} epochs are done, --epochs is {args.epochs}")

    def loss_of_zeros():
        images = torch.zeros(args.batch_size, data.source.in_chans, *data.front_end.image_size, device=device)
        with autocast():
            return trained(images, *([torch.zeros(args.batch_size, drops, device=device)] if drops else [])).float().mean()

    train_mode(model, args.train)
    compiling.warm_up(trained, way, loss_of_zeros)

    if distributed.is_main() and best_state is not None and best_epoch >= 0:
        checkpoint.save(best_state, folder, name=checkpoint.BEST)
    about = {"num_samples": len(loader.dataset), "effective_batch": batch, "args": flags, "front_end": data.settings,
             "classes": list(data.class_names), "split": data.fingerprint if distributed.is_main() else ""}  # fmt: skip
    with Record(folder, args.log_dir, model, optimizer, scaler, progress, about, first_epoch,
                background=args.async_save) as record:  # fmt: skip
        log = record.log

        def scored():
            return {"best": best, "best_epoch": best_epoch, "seconds_training": seconds}

        split_written = False
        for epoch in range(first_epoch, args.epochs):
            if progress.epoch_step == 0:
                progress.start_epoch()
            loader.batch_sampler.epoch, loader.batch_sampler.first_batch = epoch, progress.epoch_step * args.accum_iter
            validates = (epoch + 1) % args.val_every == 0 or epoch + 1 == args.epochs
            try:
                stats = train_one_epoch(
                    trained, model, data.front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast,
                    criterion, mixup, rate, partial(record.save, epoch, **scored()), stop,
                )  # fmt: skip
                if validates:
                    measured = evaluate(model, data.front_end, val_loader, device, autocast, data.class_names, stop)
            except StoppedError as reason:
                record.stop(reason, epoch, **scored())
            seconds += stats["seconds"]
            progress.start_epoch()
            if not validates:
                log.epoch({"epoch": epoch, "step": progress.step, **stats})
                continue

            # validate
            results = measured["results"]
            score = results[CHOSEN_BY[HEADS[args.task]]] or 0.0
            val = {"val_loss": measured["loss"], **{f"val_{key}": value for key, value in means(results).items()}}
            print(f"epoch {epoch}/{args.epochs} validation: loss {val['val_loss']:.4f}, "
                  f"accuracy {results[overall(results)]:.2%}, of classes {val['val_mean_accuracy']:.2%}, "
                  f"mean IoU {val['val_mean_iou']:.2%}", flush=True)  # fmt: skip
            log.scalars(progress.step, {name.replace("_", "/", 1): value for name, value in val.items()})
            log.epoch({"epoch": epoch, "step": progress.step, **stats, **val})
            if score > best:
                best, best_epoch = score, epoch

            # save
            if not split_written and distributed.is_main():  # not before an epoch has shown that the data can be read
                data.save_split(folder / SPLIT, args.seed)
                split_written = True
            record.save(epoch, completed=True, as_best=best_epoch == epoch, **scored())
        record.finish()
    kept = folder / checkpoint.BEST
    best_state = distributed.broadcast(lambda: checkpoint.load(kept))
    checkpoint.load_model(model, parallel.shard_state(model, best_state["model"]), kept)
    return {"best_epoch": best_state["best_epoch"], "step": progress.step, "seconds_training": round(seconds, 1)}


def train_one_epoch(
    model, whole, front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast, criterion, mixup, rate,
    save, stop,
):
    """Train an epoch, or the rest of one. Accumulation and the last, smaller group are as in pretraining.

    Args:
        model: as `util.parallel.wrap` returned it of `whole`.
        criterion: a `Loss`.
        mixup: timm's Mixup for classification, or None.
        rate: called with the position in epochs, gives the learning rate.
        save: called after every `args.save_every_steps` steps but the epoch's last.
        stop: a `util.distributed.StopSignal`.

    Returns:
        dict of the epoch's statistics.

    Raises:
        RunError: a loss or gradient that is not finite.
        StoppedError: a signal asked for it; the step before is whole, and is to be saved.
    """  # fmt: skip
    train_mode(whole, args.train)
    batches = loader.batch_sampler
    num_batches = len(batches)
    steps_per_epoch = math.ceil(num_batches / args.accum_iter)
    reporter = Reporter(LossTrace(loader.dataset, scaler.is_enabled()), progress, log, device, steps_per_epoch, args.epochs)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    processes = distributed.world_size()

    for number, batch in enumerate(reporter.batches(loader.batches(front_end, device)), start=batches.first_batch):
        # start a group of accumulated batches
        if number % args.accum_iter == 0:
            lr = rate(epoch + progress.epoch_step / steps_per_epoch)
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            group_samples = min(args.accum_iter * batches.together, batches.kept_samples - number * batches.together)
            group_weight = 0
        ends_group = (number + 1) % args.accum_iter == 0 or number + 1 == num_batches
        if ends_group:
            stop.ask()

        # augmentation on the training device
        images, target, numbers = batch["images"], batch["target"], batch["noise"]
        if target.dim() > 1 and (args.time_shift or args.flip):
            images, target = shift_and_flip(images, target, numbers, args.time_shift, args.flip)
        target = target.long()
        cells = target[0].numel()
        if mixup is not None:
            images, target = mix(images, target, mixup, args.seed, epoch, batches.first(number))
        drops = (numbers[:, RANDOM_NUMBERS:],) if numbers.shape[1] > RANDOM_NUMBERS else ()
        real = batches.real(number)

        # forward and backward; torch takes the mean over the processes
        with parallel.grad_sync(model, ends_group):
            with autocast():
                logits = model(images, *drops)
            loss, weight = criterion(logits.float()[:real], target[:real])
            scaler.scale(loss * (processes / (group_samples * cells))).backward()
        group_weight = group_weight + weight
        reporter.images += real
        if not ends_group:
            reporter.trace.add(progress.step, epoch, batch["index"], loss.detach(), weight, lr)
            continue

        # step
        scaler.unscale_(optimizer)
        if isinstance(weight, torch.Tensor):  # the mean is over the weights of all that the step has seen
            factor = group_samples * cells / distributed.all_reduce_sum_(group_weight.clone())
            for parameter in parameters:
                parameter.grad.mul_(factor)
        grad_norm = parallel.full_tensors(torch.nn.utils.clip_grad_norm_(parameters, args.clip_grad or math.inf))
        scaler.step(optimizer)
        scaler.update()
        reporter.trace.add(progress.step, epoch, batch["index"], loss.detach(), weight, lr, grad_norm)

        # report, stop or save
        reporter.end_step(epoch, stop, save, args.save_every_steps)
    return reporter.epoch_stats(rate(epoch + 1 - 1 / steps_per_epoch))
