"""The base of all models: strict configurations, saving and loading, answers in any mode."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self, override

from tmapdiff._core.checks import check_length, check_shape, foreign_errors, message, short
from tmapdiff._core.configs import StrictConfigMixin
from tmapdiff._core.declared_weights import check_declared_weights
from tmapdiff._core.files import folder_to_save_in, written_beside
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.kernels.map_conv import KernelSpectra
from tmapdiff.maps import MapGrid

Given = ParamSpec("Given")
Model = TypeVar("Model", bound="MapModel")
Result = TypeVar("Result")

_CHECKPOINT = partial(checkpoint, use_reentrant=False)  # diffusers' own cannot be pickled

# Files that `save_pretrained` may write in any release of diffusers: the configuration, and weights
# of any variant, in one file or sharded with an index.
MODEL_FILES = re.compile(r"config\.json|diffusion_pytorch_model[\w.-]*\.(safetensors|bin|json)")


class MapModel(StrictConfigMixin, ModelMixin, ConfigMixin):
    """Base of all models: diffusers' `ModelMixin` and `ConfigMixin`, made strict."""

    config_name = "config.json"

    @override
    def __getattr__(self, name: str) -> Any:
        # Parts take precedence over configuration fields of the same name.
        parts = vars(self).get("_modules", {})
        return parts[name] if name in parts else super().__getattr__(name)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the model; `*args` and `**kwargs` are those of `torch.nn.Module.to`."""
        # Some releases of diffusers warn about an empty list of parts to keep in float32.
        logger = logging.getLogger(ModelMixin.__module__)
        logger.addFilter(_names_a_part)
        try:
            moved: Self = super().to(*args, **kwargs)
        finally:
            logger.removeFilter(_names_a_part)
        return moved

    @override
    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] | None = None
    ) -> None:
        """Turn on activation checkpointing, as diffusers does; the model can still be pickled.

        `gradient_checkpointing_func` defaults to `torch.utils.checkpoint.checkpoint`.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func or _CHECKPOINT)

    def evaluation_view(self) -> Self:
        """Return the model in evaluation mode without changing the mode of this one.

        If any part is in training mode, this is a view: it shares weights and statistics but has
        its own modes, so other threads are not affected. Use a view once, as it does not see parts
        that are replaced later. A model in evaluation mode is returned itself.

        Raises:
            ArgumentError: If a part is in training mode and the `forward` of a part was replaced,
                as diffusers' offloading does: a view would run the original part.
        """
        parts: list[nn.Module] = [self]
        for part in parts:  # grows inside the loop
            parts += [child for child in part._modules.values() if child is not None]
        if not any(part.training for part in parts):
            return self
        for part in parts[1:]:
            if "forward" in vars(part):
                expected = f"evaluation mode, as the forward of a {type(part).__name__} is replaced"
                hint = "Call model.eval() first."
                raise ArgumentError(message(type(self).__name__, expected, "training mode", hint))
        views = {id(part): _view(part) for part in parts}
        for view in views.values():
            view._modules = {
                name: None if child is None else views[id(child)]
                for name, child in view._modules.items()
            }
        own: Any = views[id(self)]
        return own

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save config.json and the weights to a folder, replacing a model saved there before.

        Saving is atomic: a new folder appears whole or not at all, and in an existing one
        config.json and all weight files are replaced together. Other files stay, and so do weights
        of other variants than `variant`, if they have the same configuration.

        Args:
            save_directory: Folder, created if needed.
            **kwargs: As for diffusers' `ModelMixin.save_pretrained`. If `is_main_process` is
                False, nothing is written.

        Raises:
            FileError: If the folder is a file or cannot be written; it is then left as it was.
            ArgumentError: If another format than safetensors is requested.
        """
        who = type(self).__name__
        check_safe(who, kwargs)
        folder = folder_to_save_in(who, save_directory)
        if not kwargs.get("is_main_process", True):
            return
        replaces, variant = MODEL_FILES, kwargs.get("variant")
        if variant and self._is_configured_as(folder / self.config_name):
            own = rf"diffusion_pytorch_model[\w.-]*\.{re.escape(variant)}(-\d+-of-\d+)?\.\w+"
            replaces = re.compile(own)
        with written_beside(folder, replaces={"": replaces}) as new:
            super().save_pretrained(str(new), **kwargs)

    def _is_configured_as(self, path: Path) -> bool:
        def fields(text: str) -> dict[str, Any]:
            return {k: v for k, v in json.loads(text).items() if not k.startswith("_")}

        try:
            return fields(path.read_text(encoding="utf-8")) == fields(self.to_json_string())
        except (OSError, ValueError, AttributeError):
            return False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a model from a folder or the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: Folder, or name on the hub.
            **kwargs: As for diffusers' `ModelMixin.from_pretrained`.

        Raises:
            CheckpointError: If the model does not exist or is damaged, its weights do not match its
                configuration, the configuration declares far more weights than the files hold, or
                the configuration names another configuration in place of one.
            ConfigError: If the configuration has an unknown field.
        """
        place = f"{cls.__name__}: cannot load {pretrained_model_name_or_path}"
        name = str(pretrained_model_name_or_path)
        if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            # diffusers would look for it on the hub and report a network error.
            raise CheckpointError(f"{place}: there is no such folder.")
        return_info = kwargs.pop("output_loading_info", False)
        # Without accelerate, diffusers warns on every load that it falls back to this setting.
        kwargs.setdefault("low_cpu_mem_usage", False)
        kwargs.setdefault("use_safetensors", True)
        # Mismatches are reported below, by name: torch's error names them only in its second line.
        kwargs["ignore_mismatched_sizes"] = True
        with foreign_errors(CheckpointError, place):
            config = cls.load_config(
                pretrained_model_name_or_path,
                **{k: v for k, v in kwargs.items() if k in _PLACE_ARGUMENTS},
            )
            saved_as = config.get("_class_name", cls.__name__)
            if saved_as != cls.__name__:
                raise CheckpointError(f"{place}: it is a {short(str(saved_as))}.")
            try:
                cls.check_nested(config)
            except ConfigError as error:
                raise CheckpointError(f"{place}: {error}") from error
            folder = Path(name, kwargs.get("subfolder") or "")
            if folder.is_dir():
                check_declared_weights(place, folder, lambda: cls.from_config(config))
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, output_loading_info=True, **kwargs
            )
        for key, what in (
            ("missing_keys", "has no weights"),
            ("unexpected_keys", "has unknown weights"),
            ("mismatched_keys", "has weights of another shape"),
        ):
            if info.get(key):
                names = ", ".join(_describe(one) for one in sorted(info[key], key=str)[:3])
                raise CheckpointError(f"{place}: it {what}: {names} ({len(info[key])} in all).")
        # Loaded weights are views of the memory-mapped file. They would change with the file, and
        # where they are not aligned, some processors round differently.
        for one in (*model.parameters(), *model.buffers()):
            one.data = one.data.clone()
        return (model, info) if return_info else model  # type: ignore[return-value]


def _names_a_part(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


def answering(
    method: Callable[Concatenate[Model, Given], Result],
) -> Callable[Concatenate[Model, Given], Result]:
    """Make a method run in evaluation mode and without gradients, whatever the model's mode."""

    @wraps(method)
    def answer(self: Model, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with torch.no_grad():
            return method(self.evaluation_view(), *args, **kwargs)

    return answer


def _view(part: nn.Module) -> nn.Module:
    """Copy a module into evaluation mode; tensors and children are shared."""
    view: nn.Module = object.__new__(type(part))
    own: dict[str, Any] = {"training": False}
    own["_compiled_call_impl"] = None  # would run `part`
    for name, value in vars(part).items():
        if isinstance(value, KernelSpectra):  # not kept by a model in training
            own[name] = KernelSpectra()
    vars(view).update({**vars(part), **own})
    return view


def grid_of_maps(
    who: str,
    name: str,
    maps: Any,
    channels: int,
    grid: MapGrid,
    num_clips: Tensor | None,
    sizes: dict[str, int] | None = None,
) -> MapGrid:
    """Check the map features of all scales, and return their grid: without `num_clips`, `grid`."""
    check_length(who, name, maps, grid.num_scales)
    if num_clips is not None:
        check_shape(who, f"{name}[0]", maps[0], "B C N A")
        grid = grid.resized(maps[0].shape[2])
    for scale, (rows, columns) in enumerate(grid.shapes):
        axes = f"B {channels} {rows} {columns}"
        sizes = check_shape(who, f"{name}[{scale}]", maps[scale], axes, sizes)
    if num_clips is not None:
        check_shape(who, "num_clips", num_clips, "B", sizes)
    return grid


def check_safe(who: str, options: Mapping[str, Any]) -> None:
    """Raise ArgumentError if another format than safetensors is requested."""
    for option, needed in (("safe_serialization", True), ("use_flashpack", False)):
        if bool(options.get(option, needed)) != needed:
            expected = f"{option}={needed}, as only safetensors can be loaded"
            raise ArgumentError(message(who, expected, repr(options[option])))


def _describe(key: Any) -> str:
    if isinstance(key, str):
        return key
    name, saved, expected = key
    return f"{name} {tuple(saved)} instead of {tuple(expected)}"


_PLACE_ARGUMENTS = {
    "subfolder",
    "cache_dir",
    "force_download",
    "proxies",
    "local_files_only",
    "token",
    "revision",
}
