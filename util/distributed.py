"""The only file that knows of several processes."""

import os

from util.errors import UserError


def require_single_process():
    """Refuse to run as one of several: without an exchange of gradients they would be copies of one run."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise UserError(f"WORLD_SIZE: expected one process, started by plain python; found {world_size}")
