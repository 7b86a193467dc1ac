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
        same_graph: every step uses each parameter once and exchanges its gradient; see DDP's `static_graph`.

    Returns:
        The model to train with; evaluate and save `model`, which is on the device then.
    """
    if shard:
        # The model's output is a view, but nobody writes into it.
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
    """Wrap a model on the device in DDP."""
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, static_graph=same_graph
    )


def dry_run(model, loss_of):
    """Run one backward pass through DDP before the first step, so that resumed runs sum gradients in the same
    order.

    DDP groups gradients by the order of its first backward pass. With three or more processes other groups
    change the last bits of the sums.

    Args:
        model: of `wrap`; loss_of: called without arguments, gives the loss of some input.
    """
    if isinstance(model, DistributedDataParallel):
        model.eval()  # running means stay
        loss_of().backward()
        model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def grad_sync(model, now):
    """Exchange gradients in the backward pass if `now`; else each process accumulates its own."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    accumulates = isinstance(model, DistributedDataParallel) and not now
    with model.no_sync() if accumulates else contextlib.nullcontext():
        yield


def full_tensors(value):
    """A nested state with all sharded tensors gathered; all processes must call it."""
    return map_tensors(value, lambda tensor: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def load_optimizer(optimizer, state):
    """`load_state_dict` of full tensors, sharded like the parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {}
    for number, entry in state["state"].items():
        own[number] = {name: _sharded_as(parameters[number], value) for name, value in entry.items()}
    optimizer.load_state_dict(state | {"state": own})


def _sharded_as(own, value):
    """A full tensor sharded like `own`; values of other shapes and plain values stay."""
    if not isinstance(own, DTensor) or getattr(value, "shape", None) != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def shard_state(model, state):
    """A state dict of full tensors, sharded like the model."""
    own = model.state_dict()
    return {name: _sharded_as(own.get(name), value) for name, value in state.items()}


def unsharded(model, create):
    """The model or, if it is sharded, a model of `create` with its full weights."""
    if not isinstance(model, FSDPModule):
        return model
    new = create()
    new.load_state_dict(full_tensors(model.state_dict()))
    return new
