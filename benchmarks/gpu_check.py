"""What a GPU gives: the same numbers as a CPU, how fast steps and codes are, and whether a run goes on to the last bit.

    python benchmarks/gpu_check.py --out studies/gpu --minutes 9
    python benchmarks/gpu_check.py --out studies/gpu --small --device cpu   # the smallest sizes, anywhere

Each part is a process of its own, so that a broken one ends alone, and has its share of the time:

    steps      time, memory and kernels of training steps: launched or recorded, formulas compiled or as written
    published  the same of the published code (--published FOLDER, see gpu_training_parts.py)
    same       losses on the GPU against the CPU's, and of recorded and compiled steps against others
    resume     runs that were cut in two against unbroken ones
    tests      tests marked gpu
    speed      images/s of encoding, decoding, KL statistics and whole stores
    ddp        what averaging gradients costs a single process
    codes      codes and decoded images against the CPU's
    compile    steps with torch.compile

Writes gpu_check.json and gpu_check.log after every part, and with --write-docs FILE tables for docs/gpu.md, which
--tables-of makes from an earlier gpu_check.json. The package need not be installed: --repo says where it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_tables import markdown, summary

LIMITS = {
    "steps": 170,
    "published": 45,
    "same": 90,
    "resume": 75,
    "tests": 60,
    "speed": 150,
    "ddp": 40,
    "codes": 110,
    "compile": 300,
}
"""Seconds of each part, at most; what it found until then is kept."""
LEAST_SECONDS = 15
"""No part starts with less."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        run_part(options)
        return
    if options.tables_of:
        found = json.loads(options.tables_of.read_text())
    else:
        with tempfile.TemporaryDirectory(prefix="gpu_check-") as work:
            found = run_parts(options, Path(work), list(sys.argv[1:] if arguments is None else arguments))
    print(summary(found))
    if options.write_docs:
        options.write_docs.write_text(markdown(found))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[1], help="checkout of hvae-codec")
    parser.add_argument("--out", type=Path, default=Path("studies/gpu"), help="folder of results")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--presets", nargs="+", default=["tiny32", "cifar10_C1"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 32], help="of steps of the last preset")
    parser.add_argument("--published", type=Path, help="folder with the published code")
    parser.add_argument("--write-docs", type=Path, metavar="FILE", help="write tables for docs/gpu.md there")
    parser.add_argument(
        "--tables-of", type=Path, metavar="JSON", help="run nothing: what an earlier gpu_check.json says"
    )
    parser.add_argument("--small", action="store_true", help="the smallest sizes, to see that it works")
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# --- parts one after the other, within the time ----------------------------------------------------------------------


def run_parts(options: argparse.Namespace, work: Path, arguments: list[str]) -> dict[str, Any]:
    """What all parts found, by name; written after each."""
    (options.out / "gpu_check.log").write_text("")
    found: dict[str, Any] = {"arguments": arguments, "seconds": {}}
    end = time.monotonic() + 60 * options.minutes
    for part in options.parts:
        left = end - time.monotonic()
        print(f"== {part} ({left:.0f} s left)", flush=True)
        if left < LEAST_SECONDS:
            found[part] = {"error": "no time was left"}
            continue
        started = time.monotonic()
        found[part] = child(options, part, work, arguments, min(left - 5, LIMITS[part] * (4 if options.small else 1)))
        found["seconds"][part] = round(time.monotonic() - started, 1)
        write(options.out / "gpu_check.json", found)
    return found


def child(options: argparse.Namespace, part: str, work: Path, arguments: list[str], limit: float) -> dict[str, Any]:
    """What `part` found in a process of its own; `error` says why it ended early."""
    command = [sys.executable, "-u", str(Path(__file__).resolve()), *arguments, "--part", part, "--work", str(work)]
    log = work / f"{part}.log"
    with open(log, "w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        thread = threading.Thread(target=pass_on, args=(process.stdout, stream), daemon=True)
        thread.start()
        error = ended(process, limit)
        thread.join(5)
    text = log.read_text(errors="replace")
    with open(options.out / "gpu_check.log", "a") as all_logs:
        all_logs.write(f"== {part}\n{text[-1_000_000:]}")
    file = work / f"{part}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if error:
        found["error"] = " | ".join([error, *[line for line in text.splitlines() if line.strip()][-2:]])[:400]
        print(f"  {part}: {found['error']}", flush=True)
    return found


def pass_on(lines: Any, stream: Any) -> None:
    """Write a child's lines to its log, and show those of its cases."""
    for line in lines:
        stream.write(line)
        stream.flush()
        if line.startswith("> "):
            print(line[1:300].rstrip(), flush=True)


def ended(process: subprocess.Popen, limit: float) -> str:
    """Wait for the child; why it ended before it was done, or nothing."""
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"stopped after {limit:.0f} s"
    return f"ended with code {code}" if code else ""


def write(path: Path, data: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, default=str))
    os.replace(partial, path)


# --- one part --------------------------------------------------------------------------------------------------------


def run_part(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(options.repo.resolve()))
    from gpu_cases import Cases, machine, prepare

    prepare(options)
    cases = Cases(options.work / f"{options.part}.json", write)
    cases.run("machine", lambda: machine(options.device))
    part_of(options.part)(options, cases)


def part_of(name: str) -> Callable[[argparse.Namespace, Any], None]:
    if name == "tests":
        return tests
    if name in ("codes", "speed"):
        import gpu_codec_parts

        return getattr(gpu_codec_parts, name)
    import gpu_training_parts

    return getattr(gpu_training_parts, name)


def tests(options: argparse.Namespace, cases: Any) -> None:
    def case() -> dict[str, Any]:
        # A warning of a GPU's is no failure here.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rf", "--durations=3"]
        command += ["-o", "filterwarnings=default", "tests/test_gpu.py"]
        limit = LIMITS["tests"] - 5  # before the part is ended, whose own processes would not be
        done = subprocess.run(command, cwd=options.repo, capture_output=True, text=True, check=False, timeout=limit)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        print("\n".join(lines))
        return {"ok": done.returncode == 0, "last": lines[-8:]}

    cases.run("tests marked gpu", case)


if __name__ == "__main__":
    main()
