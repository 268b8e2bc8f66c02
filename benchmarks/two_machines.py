"""Runs the commands of docs/clusters.md on two machines, and compares their stores with those of one process.

    python benchmarks/two_machines.py [--images 1200]

The machines are two network namespaces of this one (Linux, as root), each with a file system of its own at /srv. Joined
by a bridge, they have in common what the page says: a folder, /mnt/shared, or a bucket, on a third machine that speaks
S3. The commands are read from the page; row groups are made small, so that there is something to hand out. Twice more,
the second machine is lost in the middle: switched off, and cut off from the network until all is done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import skimage.data
import torch
from conditions import conditions
from kill_workers import CONFIG, tree
from PIL import Image
from rich.console import Console
from rich.table import Table

from hvae_codec.config import config_from_dict
from hvae_codec.model.checkpoint import save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.storage.bucket import BucketLocation

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
SMALL = "--shard 8 --batch-size 8 --keep 50% --evaluate none"
NET = "10.213.7"
SERVER = f"http://{NET}.254:5000"
BUCKET = {
    "AWS_ENDPOINT_URL": SERVER,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}
MINUTES = 10  # at most, for a command that ends by itself
COUNT = """
import json, sys
from distributed import Client
def count(dask_worker):
    return dask_worker.state.executed_count
with Client("tcp://head:8786", timeout=60) as client:
    answers = client.run(count, on_error="return")
json.dump({a: n for a, n in answers.items() if isinstance(n, int)}, open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Machine:
    """A network namespace with an address, and folders of its own."""

    name: str
    number: int
    root: Path
    """Where its own files are: /srv, and its working folder."""

    @property
    def namespace(self) -> str:
        """Its name for the system."""
        return f"hvae-{self.name}"

    @property
    def link(self) -> str:
        """The end of its cable that is at the bridge."""
        return f"hvae{self.number}"

    def start(self, line: str, log: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Run a line of a shell on this machine."""
        mounts = (
            "mount -t tmpfs tmpfs /mnt && mkdir /mnt/shared",
            f"mount --bind {self.root.parent}/shared /mnt/shared",
            f"mount --bind {self.root}/srv /srv",
            f"mount --bind {self.root.parent}/hosts /etc/hosts",
            f"cd {self.root}/home",
        )
        output = (log or self.root / "log").open("ab")
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", "-c", " && ".join([*mounts, line])],
            env=os.environ | BUCKET | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def pids(self) -> list[int]:
        """Numbers of the processes on this machine."""
        return [int(pid) for pid in _run(f"ip netns pids {self.namespace}").split()]

    def switch_off(self) -> None:
        """End all processes at once."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def cut_off(self) -> None:
        """Pull the cable: nothing comes or goes, and nobody is told."""
        _run(f"ip link set {self.link} down")

    def connect(self) -> None:
        """Put the cable back."""
        _run(f"ip link set {self.link} up")


@dataclass(frozen=True)
class Scenario:
    """A section of the page, and what happens to the second machine meanwhile."""

    what: str
    heading: str
    happens: Callable[[Machine], None] | None = None


SCENARIOS = (
    Scenario("a folder in common", "A folder that all see"),
    Scenario("a bucket in common", "A bucket"),
    Scenario("the other machine is switched off", "A folder that all see", Machine.switch_off),
    Scenario("the other machine is cut off", "A folder that all see", Machine.cut_off),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1200)
    options = parser.parse_args()
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("ip"):
        raise SystemExit("network namespaces take Linux, root and the program ip")
    table = Table("what", "exit code", "seconds", "row groups on head", "on other", "bytes of one process")
    with tempfile.TemporaryDirectory(prefix="two_machines-") as folder, network(Path(folder)) as machines:
        prepare(Path(folder), options.images)
        for scenario in SCENARIOS:
            table.add_row(scenario.what, *result(scenario, *machines))
    print(f"{conditions()}\npython benchmarks/two_machines.py --images {options.images}")
    Console(width=120).print(table)


# --- the page -------------------------------------------------------------------------------------------------------


def commands(heading: str) -> list[tuple[str, str]]:
    """Read the commands below a heading of the page, each with the machine it is for."""
    section = PAGE.read_text(encoding="utf-8").split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    (block,) = re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL)
    return [(name, line) for name, line in re.findall(r"^(\w+)\$ (.*)$", block, flags=re.MULTILINE)]


# --- the network ----------------------------------------------------------------------------------------------------


@contextmanager
def network(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Make two machines and a server of a bucket, which are gone at the end."""
    machines = Machine("head", 1, folder / "head"), Machine("other", 2, folder / "other")
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{NET}.{m.number} {m.name}\n" for m in machines))
    (folder / "shared").mkdir()
    try:
        _run(f"ip link add hvae0 type bridge && ip addr add {NET}.254/24 dev hvae0 && ip link set hvae0 up")
        for machine in machines:
            _add(machine)
        with bucket_server(folder):
            yield machines
    finally:
        for machine in machines:
            with suppress(subprocess.CalledProcessError):
                machine.switch_off()
                _run(f"ip netns del {machine.namespace}")
        _run("ip link del hvae0")


def _add(machine: Machine) -> None:
    for own in ("srv", "home"):
        (machine.root / own).mkdir(parents=True)
    inside = f"ip -n {machine.namespace}"
    _run(f"ip netns add {machine.namespace}")
    _run(f"ip link add {machine.link} type veth peer name eth0 netns {machine.namespace}")
    _run(f"ip link set {machine.link} master hvae0 up")
    _run(f"{inside} addr add {NET}.{machine.number}/24 dev eth0 && {inside} link set eth0 up")
    _run(f"{inside} link set lo up && {inside} route add default via {NET}.254")


def _run(line: str) -> str:
    return subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True).stdout


@contextmanager
def bucket_server(folder: Path) -> Iterator[None]:
    """Serve S3 at the bridge's own address."""
    with (folder / "server.log").open("wb") as log:
        command = [str(Path(sys.executable).parent / "moto_server"), "-H", f"{NET}.254", "-p", "5000"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(_answers, "the server of the bucket")
        urllib.request.urlopen(urllib.request.Request(f"{SERVER}/images", method="PUT")).close()
        yield
    finally:
        server.kill()
        server.wait()


def _answers() -> bool:
    try:
        urllib.request.urlopen(SERVER, timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 60 * MINUTES
    while not is_so():
        if time.monotonic() > until:
            raise SystemExit(f"{what} is not there after {MINUTES} minutes")
        time.sleep(0.02)


# --- images, model, encodes -----------------------------------------------------------------------------------------


def prepare(folder: Path, images: int) -> None:
    """Put images and a model of random weights into the common folder, the bucket, and the first machine's /srv."""
    torch.manual_seed(0)
    config = config_from_dict(CONFIG)
    for run in (folder / "shared" / "runs" / "photos", folder / "head" / "srv" / "runs" / "photos"):
        save_model(run, config, HVAE(config.model).state_dict())
    pixels, corners = skimage.data.astronaut(), np.random.default_rng(0).integers(0, 496, (images, 2))
    for number, (y, x) in enumerate(corners):
        path = folder / "shared" / "data" / ("train", "val")[number % 10 == 0] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[y : y + 16, x : x + 16]).save(path)
    _run(f"tar -C {folder}/shared/data -cf {folder}/photos.tar train val")
    os.environ.update(BUCKET)
    obstore.put(client(), "photos.tar", folder / "photos.tar")


def client() -> Any:
    return BucketLocation.of("s3://images/any").bucket.client


def result(scenario: Scenario, head: Machine, other: Machine) -> Sequence[str]:
    """Run a section's commands, then the last one again in one process; what came of it."""
    lines, machines = commands(scenario.heading), {"head": head, "other": other}
    forget(head.root.parent)
    for name, line in lines[:-1]:
        begin(machines, machines[name], line)
    expected_workers = sum(int(m[1]) for _, line in lines if (m := re.search(r"--nworkers (\d+)", line)))
    wait_until(lambda: len(row_groups_of_workers(head)) == expected_workers, "a worker")
    encode = f"{lines[-1][1]} {SMALL}"
    begun = time.monotonic()
    process = head.start(f"exec {encode}")
    counts: dict[str, int] = {}
    if scenario.happens is not None:
        while process.poll() is None and done_by(other, counts) < 3:
            counts = row_groups_of_workers(head)
        scenario.happens(other)
    code = process.wait(60 * MINUTES)
    seconds = time.monotonic() - begun
    counts |= row_groups_of_workers(head)  # of a machine that was lost, those that were counted before
    other.connect()
    for machine in (head, other):
        machine.switch_off()
    alone = re.sub(r" --on \S+", "", encode).replace("out.zarr", "one.zarr")
    assert head.start(f"exec {alone}").wait(60 * MINUTES) == 0, (head.root / "log").read_text()
    if code:
        print((head.root / "log").read_text())
    by_machine = [done_by(machine, counts) for machine in (head, other)]
    same = content(head.root.parent, "out.zarr") == content(head.root.parent, "one.zarr")
    return (str(code), f"{seconds:.1f}", *map(str, by_machine), "yes" if same and not code else "NO")


def done_by(machine: Machine, counts: Mapping[str, int]) -> int:
    """How many row groups the workers of a machine have done."""
    return sum(count for address, count in counts.items() if f"{NET}.{machine.number}:" in address)


def begin(machines: Mapping[str, Machine], machine: Machine, line: str) -> None:
    """Start one of the commands before the last; those that do nothing on a network are done here."""
    if line.startswith("export "):
        os.environ.update([line.removeprefix("export ").split("=", 1)])
    elif line.startswith("rsync "):
        name, path = re.findall(r" (\w+):/srv/(\S+) ", line)[0]
        shutil.copytree(machines[name].root / "srv" / path, machine.root / "srv" / path, dirs_exist_ok=True)
    else:
        machine.start(f"exec {line}")


def row_groups_of_workers(head: Machine) -> dict[str, int]:
    """How many tasks each worker of the scheduler has done, by its address; asked on the first machine."""
    answer = head.root / "answer.json"
    answer.unlink(missing_ok=True)
    head.start(f"exec python -c {shlex.quote(COUNT)} {answer}", head.root / "counts").wait()
    return json.loads(answer.read_text()) if answer.exists() else {}


def forget(folder: Path) -> None:
    """Remove the stores of the scenario before."""
    for left in folder.glob("shared/*.zarr*"):
        shutil.rmtree(left)
    keys = [entry["path"] for batch in obstore.list(client()) for entry in batch]
    obstore.delete(client(), [key for key in keys if ".zarr" in key])


def content(folder: Path, store: str) -> dict[str, bytes]:
    """The objects of a store, in the folder or else in the bucket."""
    if (folder / "shared" / store).exists():
        return tree(folder / "shared" / store)
    keys = [entry["path"] for batch in obstore.list(client(), store) for entry in batch]
    return {key.removeprefix(store): obstore.get(client(), key).bytes().to_bytes() for key in keys}


if __name__ == "__main__":
    main()
