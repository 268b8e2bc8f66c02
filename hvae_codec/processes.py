"""The processes that work on one model together, as `torchrun` starts them; alone, everything here is the identity.

Tensors on GPUs travel by nccl, those on CPUs, and all that the hosts must agree on, by gloo: one group, since a second
one finds no peers after the launcher restarted them. What makes a process fail is told to the others through the
launcher's store, so that one of them says it once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.nn.parallel import DistributedDataParallel

from .errors import HvaeCodecError, TrainingError, UsageError

T = TypeVar("T")

SAME_ERROR_SECONDS = 1.0
"""How long a process that fails waits for the others to fail for the same reason."""


class FailedElsewhere(HvaeCodecError):  # noqa: N818 - not this process's error
    """Another process of this run failed, and says why."""


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; `Processes()` is one alone."""

    rank: int = 0
    """From 0; the first one writes files and speaks."""
    count: int = 1
    local_rank: int = 0
    """From 0 on each machine."""
    local_count: int = 1
    """Processes on this machine."""
    device: str = "cpu"
    """Where this one computes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def on(self, device: str) -> Processes:
        """These, computing on `device`; on GPUs each on its own. Raises `UsageError` where a machine has too few."""
        if self.count == 1 or not device.startswith("cuda"):
            return replace(self, device=device)
        if device != "cuda":
            raise UsageError(f"each of {self.count} processes takes a GPU of its own; give --device cuda, not {device}")
        gpus = torch.cuda.device_count()
        if self.local_count > gpus:
            raise UsageError(
                f"{self.local_count} processes were started on a machine with {gpus} GPUs; give torchrun "
                f"--nproc-per-node {gpus}, or --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return replace(self, device=f"cuda:{self.local_rank}")

    def share(self, total: int, unit: int) -> range:
        """This process's part of `total` items: a stretch of whole units of `unit` items; the last may be short.

        >>> [Processes(rank, 3).share(10, 2) for rank in range(3)]
        [range(0, 4), range(4, 8), range(8, 10)]
        """
        units = -(-total // unit)
        # Rounded up: the first process, which shows how far all are, has no smaller share than any other.
        first, last = (-(-units * rank // self.count) * unit for rank in (self.rank, self.rank + 1))
        return range(min(first, total), min(last, total))

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of `tensor` over the processes, in its own precision."""
        return self.sum(tensor) / self.count if self.count > 1 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of `tensor` over the processes."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def smallest(self, tensor: Tensor) -> Tensor:
        """Smallest value of `tensor`, elementwise, over the processes."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def _reduced(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.count == 1:
            return tensor
        result = tensor.clone()
        dist.all_reduce(result, operation)
        return result

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process, which alone does it; its error is raised by all."""
        if self.count == 1:
            return work()
        outcome: list[object] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except (HvaeCodecError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise cast(Exception, outcome[1])
        return cast(T, outcome[0])

    def spread(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors: the others need not see its files, nor have tensors of their own."""
        if self.count == 1:
            return tensors
        kinds = self.on_first(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        spread = {}
        for name, (shape, dtype) in kinds.items():
            own = tensors[name].cpu().contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            dist.broadcast(own, src=0)
            spread[name] = own
        return spread

    def synchronised(self, model: nn.Module) -> nn.Module:
        """`model`, with gradients averaged over the processes in its backward pass.

        Gradients stay the tensors that they are: the optimiser has them as parts of a flat one.
        """
        if self.count == 1:
            return model
        devices = [torch.device(self.device)] if self.device.startswith("cuda") else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=False)


class StopAgreement:
    """Whether any process wants to stop, learnt by all at the same step.

    Nobody waits for the answer to a question just asked: it is that of the step before.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked: tuple[Tensor, dist.Work] | None = None

    def reached(self, wanted: bool) -> bool:
        """Called once a step by every process, with what this one wants."""
        if self._processes.count == 1:
            return wanted
        answer = self.close()
        flag = torch.tensor(int(wanted))
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)
        self._asked = (flag, cast(dist.Work, work))
        return answer

    def close(self) -> bool:
        """Wait for the last answer."""
        if self._asked is None:
            return False
        flag, work = self._asked
        self._asked = None
        work.wait()
        return bool(flag)


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that `torchrun` started, as its environment tells; without one, this process alone.

    What goes wrong within is raised by the process that it happened to, with the process named unless all have it in
    common, and as `FailedElsewhere` by the others; `TrainingError` where a process vanished without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    processes = _join()
    try:
        yield processes
    except KeyboardInterrupt:
        dist.destroy_process_group()
        raise
    except Exception as error:
        _fail(processes, error)
    dist.destroy_process_group()


def _join() -> Processes:
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        local, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the processes cannot be connected ({error}); check the options of torchrun, and that the machines reach "
            "each other"
        ) from None
    except KeyError as error:
        raise TrainingError(f"WORLD_SIZE is set but {error} is not; start several processes with torchrun") from None
    return Processes(dist.get_rank(), dist.get_world_size(), local, local_count)


def _fail(processes: Processes, error: Exception) -> NoReturn:
    """Raise what this process is to say of `error`: itself, or that another has said it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself; the launcher must not cut its message short
    try:
        board = _failures()
        if _is_lost_peer(error):
            if board.check(["first"]):
                raise FailedElsewhere("another process failed") from None
            error = TrainingError(
                "the connection to another process was lost, which may have been killed; run the same command again to "
                "go on"
            )
        board.set(f"error {processes.rank}", str(error))
        if board.compare_set("first", "", str(processes.rank)).decode() != str(processes.rank):
            raise FailedElsewhere("another process failed") from None
        common = isinstance(error, TrainingError) or _all_say(board, processes, str(error))
    except dist.DistError:  # the launcher is gone too
        common = True
    if common or not isinstance(error, HvaeCodecError):
        raise error from None
    raise type(error)(f"process {processes.rank} of {processes.count}: {error}") from None


def _failures() -> Store:
    """Where processes tell each other why they fail; that of an earlier attempt of the launcher is not this one's."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, timeout=timedelta(seconds=10)
    )
    return PrefixStore(f"hvae_codec {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _all_say(board: Store, processes: Processes, message: str) -> bool:
    """Whether all processes fail with this message, soon."""
    keys = [f"error {rank}" for rank in range(processes.count)]
    end = time.monotonic() + SAME_ERROR_SECONDS
    while not board.check(keys):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return all(board.get(key).decode() == message for key in keys)


def _is_lost_peer(error: Exception) -> bool:
    """Whether `error` is that of a collective whose other side is gone."""
    words = ("gloo", "Connection", "NCCL", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
