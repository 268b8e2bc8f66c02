"""Several processes that work on one model, as `torchrun` starts them; for one alone, everything is the identity.

Tensors on GPUs travel by nccl, those on CPUs, and all that the hosts must agree on, by gloo: one group, since a second
one finds no peers after the launcher restarted them. A collective fails if one process is later than the others by
`TIMEOUT`; long work is therefore done outside of them, and waited for as long as it gives signs of life.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import HvaeCodecError, TrainingError, UsageError
from .signs_of_life import BEAT, CounterStore, SilentError, shown_alive, wait_for_end

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for others in a collective, and for a sign of life of one that works."""


class FailedElsewhere(HvaeCodecError):  # noqa: N818 - not this process's error
    """Another process of this run failed, and says why."""


@dataclass(frozen=True)
class DistributedContext:
    """This process among all of a run, and (`local_`) among those on its machine; `DistributedContext()` is alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: str = "cpu"  # where this one computes
    launcher: Launcher | None = field(default=None, compare=False, repr=False)  # None if this process is alone

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def on(self, device: str) -> DistributedContext:
        """The same, computing on `device`; on GPUs each on its own. Raises `UsageError` if a machine has too few."""
        if self.world_size == 1 or not device.startswith("cuda"):
            return replace(self, device=device)
        if device != "cuda":
            raise UsageError(
                f"each of {self.world_size} processes takes a GPU of its own; give --device cuda, not {device}"
            )
        gpus = torch.cuda.device_count()
        if self.local_world_size > gpus:
            raise UsageError(
                f"{self.local_world_size} processes were started on a machine with {gpus} GPUs; give torchrun "
                f"--nproc-per-node {gpus}, or --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return replace(self, device=f"cuda:{self.local_rank}")

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Average `tensor` over the processes, in its own precision."""
        return self.all_reduce_sum(tensor).div_(self.world_size) if self.world_size > 1 else tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over the processes."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_min(self, tensor: Tensor) -> Tensor:
        """Take the smallest value of `tensor`, elementwise, over the processes."""
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def _all_reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.world_size == 1:
            return tensor
        result = tensor.clone()
        dist.all_reduce(result, operation)
        return result

    def any(self, own: bool) -> bool:
        """Whether `own` is true in any process."""
        return bool(self._all_reduce(torch.tensor(int(own)), dist.ReduceOp.MAX))

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Do `work` on the first process alone, and return its result on all; its error is raised by all."""
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        with self._waiting_for(range(1)):
            if self.is_main:
                try:
                    outcome[0] = work()
                except (HvaeCodecError, OSError) as error:
                    outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        result, failure = outcome
        if failure is not None:
            raise failure
        return result

    def waiting_for_all(self) -> AbstractContextManager[None]:
        """Do work in the context that may take some processes much longer than others; ends for all at one time.

        Raises `TrainingError` if another process is not heard of for `TIMEOUT`.
        """
        return self._waiting_for(range(self.world_size))

    @contextmanager
    def _waiting_for(self, ranks: range) -> Iterator[None]:
        """Wait, at the end, for the processes `ranks`, which work in the context."""
        if self.launcher is None:
            yield
            return
        with self.launcher.meeting(ranks, self.rank):
            yield

    def broadcast(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the first process's tensors: the others need not see its files, nor have tensors of their own."""
        if self.world_size == 1:
            return tensors
        kinds = self.run_on_main(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        result = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
        for name, tensor in result.items():
            if self.is_main:
                tensor.copy_(tensors[name])
            dist.broadcast(tensor, src=0)
        return result


@dataclass(frozen=True)
class Launcher:
    """The counters that the processes' launcher has for them in this attempt; the first one to fail is known by them.

    Under a launcher without such a store, they are the first process's.
    """

    store: CounterStore
    patience: timedelta = TIMEOUT
    _meetings: Iterator[int] = field(default_factory=itertools.count)  # the same number in all processes

    @classmethod
    def connect(cls, patience: timedelta) -> Launcher:
        """Connect to the store by the environment variables of the launcher."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))  # type: ignore[attr-defined]
        return cls(store, patience)

    @contextmanager
    def meeting(self, ranks: range, own: int) -> Iterator[None]:
        """Show, if `own` is one of `ranks`, that this process is alive; wait for the others of them at the end."""
        name = f"hvae_codec meeting {next(self._meetings)}, attempt {_attempt()}, of"
        patience = self.patience.total_seconds()
        beat = min(BEAT, patience / 10)
        with shown_alive(self.store, f"{name} {own}", beat) if own in ranks else nullcontext():
            yield
        for rank in ranks:
            try:
                wait_for_end(self.store, f"{name} {rank}", patience, beat)
            except SilentError:
                silent = f"process {rank} has not been heard of for {patience / 60:g} minutes"
                raise TrainingError(f"{silent}; run the same command again to continue") from None


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


class StopAgreement:
    """Whether any process wants to stop, learnt by all at the same step; a step late, so that nobody waits."""

    def __init__(self, processes: DistributedContext) -> None:
        self._processes = processes
        self._flag, self._work = torch.tensor(0), None

    def reached(self, wanted: bool) -> bool:
        """Return whether any process wanted to stop a step ago; each calls this once per step with what it wants."""
        if self._processes.world_size == 1:
            return wanted
        answer = self.close()
        self._flag = torch.tensor(int(wanted))
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return answer

    def close(self) -> bool:
        """Wait for the last answer."""
        if self._work is not None:
            self._work.wait()
        return bool(self._flag)


@contextmanager
def init_distributed(timeout: timedelta = TIMEOUT) -> Iterator[DistributedContext]:
    """Join the processes that `torchrun` started, by its environment variables; without them, this process is alone.

    An error within is raised by the process that it happened to first, and as `FailedElsewhere` by the others;
    `TrainingError` if a process vanished, or is not heard of for `timeout`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield DistributedContext()
        return
    # Its functions have the group of the moment of import as a default. If torch.compile imported it later, the group
    # would outlive `destroy_process_group`, and its threads the interpreter, which aborts the process now and then.
    from torch.distributed.nn import functional  # noqa: F401

    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
        local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        launcher = Launcher.connect(timeout)
    except (RuntimeError, ValueError, KeyError) as error:  # WORLD_SIZE alone may be set by something else
        raise TrainingError(
            f"the processes cannot be connected ({error}); start them with torchrun; check the options of torchrun "
            "and that the machines reach each other"
        ) from None
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size(), *local, launcher=launcher)
    except KeyboardInterrupt:
        dist.destroy_process_group()
        raise
    except Exception as error:
        _fail(error)
    dist.destroy_process_group()


def _fail(error: Exception) -> NoReturn:
    """Raise `error` if this process is the first to fail, so that it is reported once; else `FailedElsewhere`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself; the launcher must not cut its message short
    if not _is_first_to_fail():
        raise FailedElsewhere("another process failed") from None
    words = ("gloo", "Connection", "NCCL", "Broken pipe")  # of a collective whose other side is gone
    named = any(word in str(error) for word in words)
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named):
        error = TrainingError(
            "the connection to another process was lost, which may have been killed; run the same command again to "
            "continue"
        )
    raise error from None


def _is_first_to_fail() -> bool:
    """Whether no process has asked before, in this attempt of the launcher, which has a store of counters."""
    try:
        store = Launcher.connect(TIMEOUT).store
        return bool(store.add(f"hvae_codec failed, attempt {_attempt()}", 1) == 1)
    except dist.DistError:  # the launcher is gone too
        return True
