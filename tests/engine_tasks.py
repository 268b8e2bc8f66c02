"""Tasks that tests give to engines: stateless functions of one item, where worker processes find them."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

from hvae_codec.engine.engine import Engine
from hvae_codec.engine.outcomes import Outcome
from hvae_codec.errors import DataError, ModelError


def call(item):
    """Call the first of a pair with the second."""
    function, argument = item
    return function(argument)


def square(number: int) -> int:
    return number * number


def slow_square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def square_or_error(number: int) -> int:
    if number == 3:
        raise DataError("image 3.png cannot be read; replace it")
    if number == 5:
        raise PermissionError(13, "Permission denied", "5.png")
    return number * number


def ends_worker(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_ends_worker(_: object) -> None:
    os._exit(3)


def programming_error(number: int) -> int:
    if number == 4:
        raise ZeroDivisionError("division by zero")
    time.sleep(0.01)
    return number


def wrong_model(number: int) -> int:
    raise ModelError("the model differs; give another one")


class UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def unpicklable_error(number: int) -> int:
    raise UnpicklableError("first", "second")


def pid_and_environment(name: str) -> tuple[int, str | None]:
    time.sleep(0.02)
    return os.getpid(), os.environ.get(name)


def prints_and_reads(number: int) -> str:
    print("printed", number)
    return os.read(0, 10).decode()


def write_pid_once(path: Path) -> int:
    """Note which process runs, and wait for the file `go` beside; returns at once if `path` exists."""
    if not path.exists():
        path.write_text(str(os.getpid()))
        while not path.with_name("go").exists():
            time.sleep(0.01)
    return os.getpid()


def set_mark(mark: str) -> None:
    os.environ["ENGINE_MARK"] = mark


def raise_model_error() -> None:
    raise ModelError("the model differs; give another one")


def complain() -> str:
    return "the folder /data is missing"


def die_once(path: Path) -> None:
    """End the first process that calls this, which a file tells."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class Backwards(Engine):
    """Runs all tasks in this process, the last one first, on what was pickled, as another process would."""

    window = 4

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, work, items, *, name=str, tally=None, reach=None):
        for number, item in reversed([*enumerate(items)]):
            task = pickle.dumps((work, item))
            self.sizes.append(len(task))
            there, it = pickle.loads(task)
            yield Outcome(number, item, result=pickle.loads(pickle.dumps(there(it))))


def note_and_give(path: Path, word: str) -> str:
    """Note in a file that this was called."""
    with path.open("a") as file:
        file.write(f"{word} ")
    return word


def length_times(value, item: int) -> int:
    return item * len(value.get())
