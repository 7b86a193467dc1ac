"""torch.compile of what takes the time of a training step, at one batch size."""

import contextlib
import importlib.util
import os
import shutil
import time

import torch

from util import attention, distributed
from util.device import DTYPES
from util.errors import UserError, warn

COMPILE_CHOICES = ("auto", "on", "graphs", "off")

# Methods of models besides the blocks whose operations are many and small.
PARTS = ("embed", "embed_for_decoder", "forward_loss")

# Flags that may differ between a run and the one that it resumes.
FLAGS = ("compile", "grad_ckpt")


def add_arguments(group):
    group.add_argument("--compile", default="auto", choices=COMPILE_CHOICES,
                       help="compile the training step; auto: on a GPU; graphs: as CUDA graphs, for small models")
    group.add_argument("--grad_ckpt", action="store_true", help="less memory, a third more time: compute blocks twice")


def pick_compile(args, device, processes):
    """The way of `--compile` by name: "on", "graphs" or "off". "auto" is on where `can_compile`.

    Raises:
        UserError: CUDA graphs asked for where there is no GPU, or where gradients add up or are exchanged.
    """
    choice = args.compile
    if choice == "graphs" and (device.type != "cuda" or processes > 1 or args.accum_iter > 1 or args.grad_ckpt):
        raise UserError("--compile graphs: expected one GPU, --accum_iter 1 and no --grad_ckpt; found "
                        f"{processes} x {device.type}, {args.accum_iter}, {args.grad_ckpt}")  # fmt: skip
    if choice != "auto":
        return choice
    return "on" if can_compile(device) else "off"


def can_compile(device):
    """Whether it is a GPU that torch's compiler knows, with what that needs; a missing C compiler is warned of."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0) or not importlib.util.find_spec("triton"):
        return False
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):  # as triton looks for one
        warn("--compile auto: not compiled, which takes longer: expected a C compiler, gcc or clang; found none")
        return False
    return True


class AtOneBatchSize:
    """A function of tensors that is compiled where they have the batch size of training, and gradients are wanted.

    Everything else, the last, smaller batch of an epoch and evaluation, runs as it is written, so nothing is compiled again.
    """

    def __init__(self, function, batch_size, **options):
        self.function, self.batch_size = function, batch_size
        self.compiled = torch.compile(function, dynamic=False, **options)

    def __call__(self, *args):
        return (self.compiled if len(args[0]) == self.batch_size and torch.is_grad_enabled() else self.function)(*args)


def compile_model(model, way, batch_size, amp, visible):
    """Have a model compiled in place, so that its parameters keep their names. Compiling happens at the first step.

    On a GPU its blocks get `util.attention.short_attention` where that is faster there.

    Args:
        model: of `models_mae` or `models_vit`, on its device.
        way: of `pick_compile`. "on" compiles blocks, all of one shape once, and what is between them; "graphs" the whole
            forward pass, and replays it and the backward pass as CUDA graphs, for models so small that launches take longer
            than what is launched.
        batch_size: that of training; amp: its precision; visible: patches that the encoder sees then.
    """
    if way == "off":
        return
    for blocks, patches in ((model.blocks, visible), (getattr(model, "decoder_blocks", ()), model.num_patches)):
        if blocks and blocks[0].attn.qkv.weight.is_cuda:
            given = blocks[0].attn, batch_size, 1 + patches, DTYPES[amp]
            if distributed.broadcast(lambda given=given: attention.is_faster(*given)):
                attention.use(blocks, short=True)
    if way == "graphs":
        model.forward = AtOneBatchSize(model.forward, batch_size, mode="reduce-overhead")
        return
    for block in (*model.blocks, *getattr(model, "decoder_blocks", ())):
        block.forward = AtOneBatchSize(block.forward, batch_size)
    for name in PARTS:
        if hasattr(model, name):
            setattr(model, name, AtOneBatchSize(getattr(model, name), batch_size))


@contextlib.contextmanager
def working_compiler(flag):
    """A user's mistake of what the compiler, which begins when it is first needed, says of this machine."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
        raise UserError(f"{flag}: expected a compiler that works (--compile off does without); {reason}") from error


def warm_up(model, way, loss_of):
    """Take a step that changes no weight, for the compiler to do its work, and say how long it took.

    Args:
        model: as it is trained, in the mode in which it is.
        loss_of: called without arguments, gives the loss of a batch.

    Raises:
        UserError: the compiler does not work on this machine.
    """
    if way == "off":
        return
    started = time.perf_counter()
    with working_compiler(f"--compile {way}"):
        for _ in range(3 if way == "graphs" else 1):  # graphs are recorded at the second step
            loss_of().backward()
            model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"compiled in {time.perf_counter() - started:.1f} s")
