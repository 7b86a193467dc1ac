"""Copies in host memory, of one tensor or of all in a state."""

import copy

import torch


@torch.no_grad()
def host_copy(tensor):
    """A copy on the CPU. A copy from a GPU is page-locked, and complete once the current stream is.

    No buffer is kept: torch reuses page-locked memory. Without one a GB on the CPU took 0.8 s, else 0.1 s.
    """
    place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return place.copy_(tensor, non_blocking=True)


def host_copy_of_state(state):
    """A deep copy of nested dicts, lists and tuples, with every tensor on the CPU."""
    tensors = list(_tensors(state))
    copies = {}
    for tensor in tensors:
        if id(tensor) not in copies:
            copies[id(tensor)] = host_copy(tensor)
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copy.deepcopy(state, copies)


def _tensors(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
