"""What the pages about clusters tell people to type is right: scripts parse, and Dask's part runs.

The options of `hvae-codec` are looked at in `test_docs_commands.py`, for all pages.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker

from hvae_codec_cli.app import main
from photos import save_png
from stores import tree

DOCS = Path(__file__).parents[1] / "docs"
TEXTS = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("clusters.md", "schedulers.md")}
DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}
SMALL = "--shard 8 --batch-size 8 --keep 50% --evaluate none"


def blocks(language: str, page: str | None = None) -> list[str]:
    """The blocks of code in one language."""
    texts = [TEXTS[page]] if page else TEXTS.values()
    return [
        b for text in texts for b in re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    ]


def prompts(section: str) -> list[str]:
    """What is typed below a heading of clusters.md."""
    text = TEXTS["clusters.md"].split(f"### {section}\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\w*\$ (.*)$", text, flags=re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """Each call of a program on the pages, in words, wherever it stands in a line."""
    code = "\n".join(blocks("console") + blocks("bash") + blocks("yaml") + blocks("python")).replace("\\\n", " ")
    code = re.sub(r"\n\s+--", " --", code)  # a folded line of YAML
    lists = re.findall(rf"\[{program}, ([^\]]*)\]", code)
    lines = re.findall(rf"(?:^|[ $\"]){program} ([a-z].*)$", code, flags=re.MULTILINE)
    return [line.replace(",", "").split() for line in lists] + [
        re.split(r"[\"'&#]\s*\)?$", x)[0].split() for x in lines
    ]


def test_the_pages_have_what_is_tested_here():
    assert len(commands("hvae-codec")) >= 12
    assert len(commands("dask")) >= 10
    assert [len(blocks(language)) for language in ("bash", "yaml", "python")] == [4, 3, 8]


@pytest.mark.parametrize("words", commands("dask"), ids=" ".join)
def test_dask_has_these_options(words):
    known = {option for parameter in DASK[words[0]].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("script", blocks("bash"), ids=lambda script: script.splitlines()[0])
def test_shell_scripts_are_shell_scripts(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if script.startswith("#!"):
        assert "#SBATCH" not in script.split("\n\n", 1)[1], "Slurm reads no options after the first command"


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_is_python(code):
    compile(code, "block", "exec")


def test_kubernetes_jobs_mount_what_their_commands_read():
    jobs = [yaml.safe_load(text) for text in blocks("yaml", "schedulers.md")]
    assert [job["kind"] for job in jobs] == ["Job", "Job"]
    for job in jobs:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
        read = re.findall(r"(/\w+/\w+)/", " ".join(container["command"]))
        assert set(read) == {container["volumeMounts"][0]["mountPath"]}
    encode = jobs[1]["spec"]
    assert f"$JOB_COMPLETION_INDEX/{encode['completions']}" in str(encode["template"])


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run, cut_patches) -> Path:
    """A working folder as the pages have it: data/, and one.zarr, which one process wrote; and run/."""
    place = tmp_path_factory.mktemp("place")
    for i, image in enumerate(cut_patches(20)):
        save_png(place / "data" / ("val" if i % 5 == 0 else "train") / f"{i:02d}.png", image)
    shutil.copytree(tiny_run, place / "run")
    with chdir(place), pytest.raises(SystemExit) as ended:
        main(f"encode data one.zarr --model run {SMALL}".split())  # a store says where its run is
    assert not ended.value.code
    return place


@pytest.mark.slow
def test_a_scheduler_a_worker_and_an_encode(place):
    scheduler, worker, encode = prompts("A scheduler file")
    with running(f"{scheduler} --dashboard-address 127.0.0.1:0", place), running(worker, place):
        subprocess.run(shlex.split(f"{encode} --model run {SMALL}"), cwd=place, env=environment(), check=True)
    assert tree(place / "out.zarr") == tree(place / "one.zarr")


@pytest.mark.slow
def test_a_job_array(place):
    (script,) = [script for script in blocks("bash", "schedulers.md") if "--array" in script]
    script = script.replace("/mnt/shared/out.zarr", "array.zarr").replace("/mnt/shared/runs/photos", "run")
    script = script.replace("/mnt/shared/data", "data").replace("--evaluate none", SMALL)
    for task in (1, 0):
        variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        subprocess.run(["bash", "-e", "-c", script], cwd=place, env=environment() | variables, check=True)
        assert (place / "array.zarr").exists() == (task == 0)
    assert tree(place / "array.zarr") == tree(place / "one.zarr")


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@contextmanager
def running(command: str, folder: Path) -> Iterator[None]:
    """Run a command of Dask, which is told to end afterwards."""
    with (folder / "log").open("ab") as log:
        words: Sequence[str] = shlex.split(command)
        process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=log, stderr=log)
    try:
        while words[1] == "scheduler" and not (folder / "scheduler.json").exists():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()
