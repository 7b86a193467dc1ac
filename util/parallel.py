"""A model on several processes: copied to each, with its gradients exchanged, or divided among them."""

import contextlib
import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from util.distributed import map_tensors, world_size


def spread(model, device, shard=False, same_graph=False):
    """The model as it is trained: gradients are exchanged, or with `shard` everything is divided among the processes.

    Args:
        model: on the CPU or the device, the same on all processes.
        same_graph: every step uses the same parameters, once each, and exchanges them: lets torch order the exchange.

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
    return copied(model, device, same_graph)


def copied(model, device, same_graph=False):
    """What `spread` makes of a model, on the device, that each of several processes has."""
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True,
        static_graph=same_graph,
    )  # fmt: skip


def rehearse(model, loss_of):
    """Let torch see one step of a copied model before the first, so that each step after it adds in the same order.

    It groups gradients for the exchange by the order in which the first step makes them; a run that resumes would otherwise
    have its first step, and from three processes on the last bits of it, otherwise.

    Args:
        model: as `spread` returned it; loss_of: called without arguments, gives the loss of some input.
    """
    if isinstance(model, DistributedDataParallel):
        model.eval()  # no running mean moves
        loss_of().backward()
        model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def exchange(model, now):
    """A backward pass that exchanges gradients, or, not `now`, lets them add up on each process."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    with contextlib.nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield


def whole(value):
    """A nested state with all its divided tensors put together; all processes have to ask."""
    return map_tensors(value, lambda tensor: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def load_optimizer(optimizer, state):
    """`load_state_dict` of whole tensors, divided as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def divided(number, value):
        parameter = parameters[number]
        if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    own = {number: {name: divided(number, value) for name, value in entry.items()}
           for number, entry in state["state"].items()}  # fmt: skip
    optimizer.load_state_dict(state | {"state": own})


def size_bytes(model):
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def divided(model, state):
    """A state dict of whole tensors, divided as those of the model are."""
    own = model.state_dict()
    return {name: distribute_tensor(value.to(own[name].device), own[name].device_mesh, own[name].placements)
            if isinstance(own.get(name), DTensor) else value for name, value in state.items()}  # fmt: skip


def undivided(model, create):
    """The model whole: itself, or what `create` makes, with its weights, where they are divided."""
    if not isinstance(model, FSDPModule):
        return model
    new = create()
    new.load_state_dict(whole(model.state_dict()))
    return new
