"""torch.compile for the slow parts of a training step, at one batch size."""

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

# Methods of models, besides the blocks, with many small operations.
PARTS = ("embed", "embed_for_decoder", "forward_loss")

# Flags that may differ between a run and the one that it resumes.
FLAGS = ("compile", "grad_ckpt")


def add_arguments(group):
    ways = "compile the training step; auto: on a GPU; graphs: as CUDA graphs, for small models"
    group.add_argument("--compile", default="auto", choices=COMPILE_CHOICES, help=ways)
    twice = "less memory, a third more time: compute blocks twice"
    group.add_argument("--grad_ckpt", action="store_true", help=twice)


def pick_compile(args, device, processes):
    """The choice of `--compile`: "on", "graphs" or "off". "auto" is "on" if `can_compile`.

    Raises:
        UserError: CUDA graphs without a GPU, or with several processes, `--accum_iter` or `--grad_ckpt`.
    """
    if args.compile == "auto":
        return "on" if can_compile(device) else "off"
    needed = device.type == "cuda" and processes == args.accum_iter == 1 and not args.grad_ckpt
    if args.compile == "graphs" and not needed:
        expected = "one GPU, --accum_iter 1 and no --grad_ckpt"
        found = f"{processes} x {device.type}, {args.accum_iter}, {args.grad_ckpt}"
        raise UserError(f"--compile graphs: expected {expected}; found {found}")
    return args.compile


def can_compile(device):
    """Whether torch's compiler works on the device: GPU, triton, C compiler (else it warns)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    if not importlib.util.find_spec("triton"):
        return False
    has_compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # triton's order
    if not has_compiler:
        expected = "expected a C compiler, gcc or clang; found none"
        warn(f"--compile auto: not compiled, which takes longer: {expected}")
    return bool(has_compiler)


class AtOneBatchSize:
    """A function of tensors that is compiled for the batch size of training with gradients.

    Other calls (the smaller last batch of an epoch, evaluation) run uncompiled, so nothing is compiled twice.
    """

    def __init__(self, function, batch_size, **options):
        self.function, self.batch_size = function, batch_size
        self.compiled = torch.compile(function, dynamic=False, **options)

    def __call__(self, *args):
        trains = len(args[0]) == self.batch_size and torch.is_grad_enabled()
        return (self.compiled if trains else self.function)(*args)


def compile_model(model, way, batch_size, amp, visible):
    """Compile a model in place; its parameters keep their names. Compiling starts at the first step.

    On a GPU its blocks use `util.attention.short_attention` if that is faster.

    Args:
        model: of `models_mae` or `models_vit`, on its device.
        way: of `pick_compile`. "on" compiles the blocks, once per shape, and `PARTS`. "graphs" compiles the
            whole forward pass and replays both passes as CUDA graphs, for models whose kernels take less time
            than their launches.
        batch_size, amp: of training; visible: patches that the encoder sees in training.
    """
    if way == "off":
        return
    model.is_graph = True
    decoder_blocks = getattr(model, "decoder_blocks", ())
    for blocks, patches in ((model.blocks, visible), (decoder_blocks, model.num_patches)):
        if blocks and blocks[0].attn.qkv.weight.is_cuda:
            given = blocks[0].attn, batch_size, 1 + patches, DTYPES[amp]
            if distributed.broadcast(lambda given=given: attention.is_faster(*given)):
                attention.use(blocks, short=True)
    if way == "graphs":
        model.forward = AtOneBatchSize(model.forward, batch_size, mode="reduce-overhead")
        return
    for block in (*model.blocks, *decoder_blocks):
        block.forward = AtOneBatchSize(block.forward, batch_size)
    for name in PARTS:
        if hasattr(model, name):
            setattr(model, name, AtOneBatchSize(getattr(model, name), batch_size))


@contextlib.contextmanager
def working_compiler(flag):
    """Turn an error of the compiler, which starts when it is first used, into a `UserError`."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
        expected = "expected a compiler that works (--compile off does without)"
        raise UserError(f"{flag}: {expected}; {reason}") from error


def warm_up(model, way, loss_of):
    """Take a step that changes no weight, so that the compiler runs; print its time.

    Args:
        model: in the mode of training.
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
