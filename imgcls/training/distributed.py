"""One or several processes: which part of each batch is ours, what is summed over all, and who writes.

torchrun starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process, and nothing
here communicates. Only the main process writes files and prints. What decides how a run goes on is the same in all.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from imgcls.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: of this process, 0 for the main one.
        size: how many processes there are.
        device: of this process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device never changes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def describe(self) -> str:
        """Returns such as "cpu" or "4 x cuda"."""
        return str(self.device) if self.size == 1 else f"{self.size} x {self.device.type}"

    def draw_apart(self, seed: int) -> None:
        """Gives each process but the main one a torch state of its own, so that dropout differs between them."""
        if not self.is_main:
            torch.manual_seed((seed + self.rank * 2**32) % 2**63)

    def sum(self, *values: Tensor | float) -> Tensor:
        """Returns each value summed over all processes, float32 (values,), on the device."""
        local = [torch.as_tensor(value, dtype=torch.float32, device=self.device).detach() for value in values]
        total = torch.stack(local)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes to the main one, by rank, and nothing to the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, found)
        return found or []

    def ask_main(self, function: Callable[[], T]) -> T:
        """Calls a function in the main process only, and returns in all what it returned there."""
        if self.size == 1:
            return function()
        answer: list[Any] = [function() if self.is_main else None]
        dist.broadcast_object_list(answer, device=self.device)
        value: T = answer[0]
        return value

    def require_same(self, value: object, *, what: str) -> None:
        """Compares what each process has read of its own node's disk.

        Raises:
            DataError: it is not the same in all. They would wait for each other for ever, or learn from other images.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, hashlib.sha256(repr(value).encode()).hexdigest())
        if others := [rank for rank, digest in enumerate(found) if digest != found[0]]:
            raise DataError(
                f"{what}: process {others[0]} of {self.size} has others than the main one; bring the same to each node"
            )

    def wrap(self, network: nn.Module) -> nn.Module:
        """Returns what to call instead of the network, so that gradients are averaged over all processes."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def share_buffers(self, network: nn.Module) -> None:
        """Gives all processes the main one's buffers, such as a batch norm's statistics."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


def delay_averaging(network: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Within it, gradients are averaged over the processes only in the last part of a step."""
    if is_last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = network.no_sync()
    return context


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Joins the processes that torchrun has started, on this device or, with CUDA, on one's own of the node's."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    # Processes that are started anew meet in the same store, where the addresses of those before still stand.
    fresh = PrefixStore(f"attempt-{count_restarts()}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=size)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def count_restarts() -> int:
    """Returns how often torchrun has started these processes anew, after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
