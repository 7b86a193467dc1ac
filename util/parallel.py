"""A model on several processes: DDP copies it to each and exchanges gradients; FSDP2 shards it."""

import contextlib
import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from util.distributed import map_tensors, world_size


def wrap(model, device, shard=False, same_graph=False):
    """Wrap a model for training: in DDP, or with `shard` in FSDP2; a single process needs neither.

    Args:
        model: on the CPU or the device, the same on all processes.
        same_graph: every step uses the same parameters, once each, and exchanges them; see DDP's `static_graph`.

    Returns:
        What to call in training; `model`, on the device, is what to evaluate and save.
    """
    if shard:
        # What a model returns is a view of a larger tensor; nothing is written into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device.type, (world_size(),))
        for block in (*model.blocks, *getattr(model, "decoder_blocks", ())):
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    model.to(device)
    if world_size() == 1:
        return model
    if device.type == "cuda" and any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return wrap_ddp(model, device, same_graph)


def unwrap(model):
    """The model inside what `wrap` returned."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def wrap_ddp(model, device, same_graph=False):
    """Wrap a model, which is on the device, in DDP."""
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True,
        static_graph=same_graph,
    )  # fmt: skip


def dry_run(model, loss_of):
    """Run one backward pass through DDP before the first step, so that a resumed run adds gradients in the same order.

    DDP groups gradients by the order of its first backward pass. Without a dry run the first step after resuming groups
    them differently, which changes the last bits of their sums with three or more processes.

    Args:
        model: as `wrap` returned it; loss_of: called without arguments, gives the loss of some input.
    """
    if isinstance(model, DistributedDataParallel):
        model.eval()  # no running mean moves
        loss_of().backward()
        model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def grad_sync(model, now):
    """A backward pass that exchanges gradients if `now`; else each process accumulates its own."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    with contextlib.nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield


def full_tensors(value):
    """A nested state with each sharded tensor gathered to a full one; all processes have to call this."""
    return map_tensors(value, lambda tensor: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def load_optimizer(optimizer, state):
    """`load_state_dict` of full tensors, sharded as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def sharded(number, value):
        parameter = parameters[number]
        if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    own = {number: {name: sharded(number, value) for name, value in entry.items()}
           for number, entry in state["state"].items()}  # fmt: skip
    optimizer.load_state_dict(state | {"state": own})


def shard_state(model, state):
    """Shard a state dict of full tensors as the model is sharded."""
    own = model.state_dict()
    return {name: distribute_tensor(value.to(own[name].device), own[name].device_mesh, own[name].placements)
            if isinstance(own.get(name), DTensor) else value for name, value in state.items()}  # fmt: skip


def unsharded(model, create):
    """The model itself or, if it is sharded, a new one of `create` with its full weights."""
    if not isinstance(model, FSDPModule):
        return model
    new = create()
    new.load_state_dict(full_tensors(model.state_dict()))
    return new
