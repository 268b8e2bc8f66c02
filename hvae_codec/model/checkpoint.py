"""Runs on disk: a folder with `config.json` and `model.safetensors`, the weights that people use.

`weights/` has those of stores, which stay when training goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import CONFIG_FILE, LATEST_RUN, Config, ModelConfig, PruningConfig, config_to_dict, load_config
from ..errors import ConfigError, ModelError
from ..ranges import flags_of
from ..storage.files import replaced_atomically, write_atomically
from .hvae import HVAE
from .kept_weights import kept_weights

WEIGHTS_FILE = "model.safetensors"


def save_config(run: Path, config: Config) -> None:
    """Write the resolved configuration into the folder `run`, which is created if it is missing."""
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / CONFIG_FILE, json.dumps(config_to_dict(config), indent=2).encode() + b"\n")


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically; `ModelError` if they cannot be written."""
    try:
        with replaced_atomically(path) as partial:
            _write_weights(partial, weights)
    except SafetensorError as error:  # a full disk is no OSError here
        raise ModelError(f"cannot write {path} ({error}); make room on the disk and try again") from None


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a new file, which others may read as the user's umask says: safetensors lets nobody."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
    path.chmod(mode)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read safetensors; `ModelError` if the file is missing or damaged, `OSError` if it may not be read."""
    try:
        open(path, "rb").close()  # the library says of any file that it cannot open that it is not there
        return load_file(path)
    except FileNotFoundError:
        raise ModelError(f"there are no weights at {path}; the run was not finished or is not a run") from None
    except SafetensorError as error:
        raise ModelError(f"cannot read the weights {path}: {error}; copy or train the run again") from None


def fill_model(model: nn.Module, weights: dict[str, Tensor], source: Path | str, *, assign: bool = False) -> None:
    """Load `weights` into `model`; `ModelError` names a tensor that is missing, unknown or of another shape.

    With `assign` they are not copied: a model on the meta device, which has none, takes them as they are.
    """
    own = model.state_dict()
    for name in own.keys() | weights.keys():
        if name not in weights:
            raise ModelError(f"{source} lacks the tensor {name}; its configuration and weights do not belong together")
        if name not in own:
            raise ModelError(f"{source} has a tensor {name} that its configuration has no place for")
        given, expected = list(weights[name].shape), list(own[name].shape)
        if given != expected:
            raise ModelError(f"{source}: the tensor {name} is {given}, its configuration says {expected}")
    model.load_state_dict(weights, assign=assign)


def find_run(run: Path | str, option: str = "--model") -> Path:
    """Find the folder of a run, also that to which `runs/latest` points; `ModelError` if there is none.

    `option` is what names another one on the command line.
    """
    path = Path(run)
    is_latest = path.name == Path(LATEST_RUN).name
    if path.is_symlink() or (is_latest and _is_pointer(path)):
        pointer, path = path, Path(os.path.normpath(path.parent / _target(path)))
        if not path.exists():
            raise ModelError(f"{pointer} points to {path}, which is not there; give {option} with the folder of a run")
    if not path.exists():
        advice = f"train one first (hvae-codec train DATA) or give {option}" if is_latest else "check the path"
        raise ModelError(f"there is no run at {path}; {advice}")
    if not (path / CONFIG_FILE).is_file():
        raise ModelError(f"{path} is not a run: it holds no {CONFIG_FILE}")
    return path


def point_latest(latest: Path, run: Path) -> None:
    """Make `latest` (such as `runs/latest`) point to `run`: a symbolic link, or a file with its path if links fail.

    Raises `ModelError` if `latest` is something else.
    """
    check_latest(latest)
    latest.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(run, latest.parent)
    with replaced_atomically(latest) as partial:
        partial.unlink(missing_ok=True)  # what a kill left
        if not _linked_to_folder(partial, target):
            partial.write_text(target, encoding="utf-8")


def _linked_to_folder(link: Path, target: str) -> bool:
    """Make `link` point to a folder; False where links fail, and on Windows, which lets no file take their names."""
    if os.name == "nt":
        return False
    try:
        link.symlink_to(target)
    except OSError:
        return False
    return True


def check_latest(latest: Path) -> None:
    """Raise `ModelError` if `latest` is not free, and no pointer to a run."""
    if latest.exists() and not latest.is_symlink() and not _is_pointer(latest):
        raise ModelError(f"{latest} is in the way of the pointer to the last run; move it")


def _target(pointer: Path) -> str:
    return os.readlink(pointer) if pointer.is_symlink() else pointer.read_text("utf-8", errors="replace").strip()


def _is_pointer(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 4096 and (path.parent / _target(path)).is_dir()


def apply_pruning(model: HVAE, pruning: PruningConfig | None) -> HVAE:
    """Let `model`, on its device, be what its run pruned it to; a whole model collapses what is not left.

    Raises `ConfigError` if what is left is not of this model.
    """
    model.pruning = pruning
    if pruning is None:
        return model
    try:
        each = zip(pruning.kept, model.config.unpruned_groups, strict=True)
        keep = [flags_of(text, group.variates, "variates") for text, group in each]
        if model.config.is_slim and [group.variates for group in model.config.groups] != [int(k.sum()) for k in keep]:
            raise ValueError("their numbers of variates are others")
    except ValueError as error:
        raise ConfigError(f"pruning.kept does not fit the model's latent groups ({error})") from None
    if pruning.collapse == "sample":
        model.prune_to([torch.from_numpy(flags).view(-1, 1, 1) for flags in keep])
    return model


def load_run_config(run: Path | str) -> Config:
    """Read the configuration of a run."""
    return load_config(find_run(run) / CONFIG_FILE)


def load_model(run: Path | str = LATEST_RUN, device: str | torch.device = "cpu", *, kept: str = "") -> HVAE:
    """Load the model of a run in evaluation state, weights on `device`.

    If the run keeps weights of the hash `kept`, it is the model with those. Raises `ModelError` if the run is missing
    or damaged, `ConfigError` if its configuration is.
    """
    folder = find_run(run)
    file = kept_weights(folder, kept)
    if not (kept and file.exists()):
        file = folder / WEIGHTS_FILE
    config = load_run_config(folder)
    model = HVAE(config.model)
    fill_model(model, load_weights(file), file)
    model.run = folder
    model.requires_grad_(False)
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return apply_pruning(model, config.pruning)


def keep_weights(model: HVAE) -> str:
    """Keep the weights of `model` in its run, for whoever needs them after training went on; see `load_model`.

    Returns why that failed, as the run need not be writable; empty if they are there, or if the model has no run.
    """
    if model.run is None or (path := kept_weights(model.run, model_hash(model))).exists():
        return ""
    try:
        path.parent.mkdir(exist_ok=True)
        with replaced_atomically(path) as partial:
            if not _link_weights(model, partial):
                partial.unlink(missing_ok=True)
                _write_weights(partial, model.state_dict())
    except (OSError, SafetensorError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _link_weights(model: HVAE, path: Path) -> bool:
    """Give the weights of the run of `model` the name `path` too; False if they are others by now, or if links fail."""
    assert model.run is not None
    own = model.state_dict()
    try:
        os.link(model.run / WEIGHTS_FILE, path)
        linked = load_weights(path)
    except (OSError, ModelError):
        return False
    return linked.keys() == own.keys() and all(torch.equal(linked[name], own[name].cpu()) for name in own)


def save_model(run: Path, config: Config, weights: dict[str, Tensor]) -> None:
    """Write a run: weights, then the configuration, without which a folder is no run."""
    run.mkdir(parents=True, exist_ok=True)
    save_weights(run / WEIGHTS_FILE, weights)
    save_config(run, config)


def model_hash(model: HVAE) -> str:
    """Compute SHA-256 (hex) of the configuration and every weight: equal exactly if two models compute the same.

    Cached until a weight changes, if the model is not trained: optimisers may change weights, but not their version.
    """
    weights = model.state_dict()
    versions = tuple((tensor.data_ptr(), tensor._version) for tensor in weights.values())
    trained = any(parameter.requires_grad for parameter in model.parameters())
    if trained or model.known_hash is None or model.known_hash[0] != versions:
        model.known_hash = (versions, weights_hash(model.config, weights))
    return model.known_hash[1]


def weights_hash(config: ModelConfig, weights: dict[str, Tensor]) -> str:
    """Compute what `model_hash` does, of the model of `config` with these weights."""
    described = config_to_dict(Config(config))["model"]
    if config.resample == "projected":
        del described["resample"]  # as before that key existed: stores and statistics hold such hashes
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
