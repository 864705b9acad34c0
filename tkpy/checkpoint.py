"""Checkpoints on disk: a folder with config.json and weights as safetensors, .bin or .pth, in one file or in shards."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch

_PICKLED = (".bin", ".pth", ".pt")
_ALIAS = "tkpy.alias:"  # safetensors metadata: this name is the same tensor as that one


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a checkpoint: (config, tensors by name). `folder` may also be a single weight file.

    Weights are looked for in this order: *.safetensors, *.bin, *.pth or *.pt; an index file
    (`*.safetensors.index.json`, `*.bin.index.json`) names the shards. config is {} where there is no config.json.
    Pickled files are read with `weights_only=True`: tensors only, no code.

    Raises:
        FileNotFoundError: no such folder, no weights in it, or a shard that the index names is missing.
        ValueError: a file that is not a checkpoint.
    """
    path = Path(folder)
    if path.is_file():
        config_file, files = path.parent / "config.json", [path]
    elif path.is_dir():
        config_file, files = path / "config.json", _weight_files(path)
    else:
        raise FileNotFoundError(f"checkpoint: needs an existing folder or weight file, got {path}")
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    return config, tensors


def _weight_files(folder: Path) -> list[Path]:
    for suffix in (".safetensors", *_PICKLED):
        index = sorted(folder.glob(f"*{suffix}.index.json"))
        if index:
            names = sorted(set(json.loads(index[0].read_text())["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"checkpoint: {index[0].name} names shards that are missing: {missing}")
            return [folder / name for name in names]
        files = sorted(folder.glob(f"*{suffix}"))
        if files:
            return files
    raise FileNotFoundError(
        f"checkpoint: needs *.safetensors, *.bin, *.pth or *.pt in {folder}, found {sorted(os.listdir(folder))[:20]}"
    )


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        tensors = safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"checkpoint: {file} is not a safetensors file: {error}") from error
    for key, name in metadata.items():
        if key.startswith(_ALIAS):
            tensors[key.removeprefix(_ALIAS)] = tensors[name]
    return tensors


def _read_pickled(file: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint: {file} must hold only tensors and plain containers: {error}") from error
    for wrapper in ("state", "model", "state_dict"):  # trainers nest the state dict
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint: {file} must hold a mapping of names to tensors, got {type(content).__name__}")
    return {name: t for name, t in content.items() if isinstance(t, torch.Tensor)}


def save(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json and model.safetensors, or numbered shards with an index above `max_shard_bytes`.

    A tensor that has several names (tied weights) is stored once; the other names stand in the file's metadata, and
    `load` gives them back.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    shards: list[dict[str, torch.Tensor]] = [{}]
    aliases: list[dict[str, str]] = [{}]
    size, place = 0, dict[tuple[Any, ...], tuple[int, str]]()
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key in place:
            shard, first = place[key]
            aliases[shard][_ALIAS + name] = first
            continue
        if size and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            aliases.append({})
            size = 0
        place[key] = (len(shards) - 1, name)
        shards[-1][name] = tensor.detach().to("cpu", copy=False).clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    _write_shards(path, shards, aliases)


def _write_shards(path: Path, shards: list[dict[str, torch.Tensor]], aliases: list[dict[str, str]]) -> None:
    if len(shards) == 1:
        safetensors.torch.save_file(shards[0], path / "model.safetensors", metadata={"format": "pt"} | aliases[0])
        return
    weight_map: dict[str, str] = {}
    for i, (shard, alias) in enumerate(zip(shards, aliases, strict=True), 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file(shard, path / file, metadata={"format": "pt"} | alias)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def assign(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, ignore: Iterable[str] = ()) -> None:
    """Give `module` (which may be on the meta device) copies of `tensors`, name by name, keeping their dtypes.

    `ignore` are patterns (fnmatch) of names in `tensors` to leave out knowingly.

    Raises:
        ValueError: names missing, names unexpected, or shapes that differ; all of them are listed.
    """
    patterns = tuple(ignore)
    own = module.state_dict(keep_vars=True)
    given = {n: t for n, t in tensors.items() if n in own or not any(fnmatchcase(n, p) for p in patterns)}
    problems = [f"missing '{n}' {tuple(own[n].shape)}" for n in own if n not in given]
    problems += [f"unexpected '{n}' {tuple(given[n].shape)}" for n in given if n not in own]
    problems += [
        f"'{n}' needs shape {tuple(own[n].shape)}, got {tuple(t.shape)}"
        for n, t in given.items()
        if n in own and t.shape != own[n].shape
    ]
    if problems:
        more = f" (and {len(problems) - 20} more)" if len(problems) > 20 else ""
        raise ValueError(f"{type(module).__name__}: the weights do not fit: " + "; ".join(problems[:20]) + more)
    # Names that share a parameter keep sharing it: load_state_dict(assign=True) gives each name what it is given.
    copies: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in given.items():
        key = id(own[name])
        if key not in copies:
            copies[key] = tensor.detach().clone(memory_format=torch.contiguous_format)
            if isinstance(own[name], torch.nn.Parameter):
                copies[key] = torch.nn.Parameter(copies[key], requires_grad=own[name].requires_grad)
        state[name] = copies[key]
    module.load_state_dict(state, strict=True, assign=True)


class Pretrained:
    """Mixin of models that read and write their original's checkpoints.

    A model defines `from_reference(config, state_dict)` and `reference_config()`; its own state-dict names are the
    original's, or it also defines `reference_state()`.
    """

    @classmethod
    def from_reference(cls, config: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> Self:
        """The model of the original's own `config` keys and parameter names; the tensors are copied."""
        raise NotImplementedError(f"{cls.__name__} must define from_reference")

    def reference_config(self) -> dict[str, Any]:
        """The configuration in the original's own keys."""
        raise NotImplementedError(f"{type(self).__name__} must define reference_config")

    def reference_state(self) -> dict[str, torch.Tensor]:
        """The weights by the original's own names."""
        assert isinstance(self, torch.nn.Module)
        return self.state_dict()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load a checkpoint folder (see `tkpy.checkpoint.load`), in eval mode.

        dtype: cast the weights (None keeps the file's dtypes); device: move the model.
        """
        model = cls.from_reference(*load(folder))
        assert isinstance(model, torch.nn.Module)
        return model.to(device=device, dtype=dtype).eval()

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_bytes: int = 5_000_000_000) -> None:
        """Write the checkpoint in the original's names and keys; `from_pretrained` reads it back."""
        save(folder, self.reference_config(), self.reference_state(), max_shard_bytes=max_shard_bytes)
