"""What all models share: strict configurations, saving and loading, and answers in any mode."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn
from typing_extensions import Self, override

from tmapdiff._core.checks import foreign_errors, message, short
from tmapdiff._core.configs import StrictConfigMixin
from tmapdiff._core.declared_weights import check_declared_weights
from tmapdiff._core.files import folder_to_save_in, written_beside
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.kernels.map_conv import KernelSpectra

Given = ParamSpec("Given")
Model = TypeVar("Model", bound="MapModel")
Result = TypeVar("Result")

# What `save_pretrained` may write, in any release of diffusers and with any arguments: weights in
# one file or in several with an index, of any variant.
MODEL_FILES = re.compile(r"config\.json|diffusion_pytorch_model[\w.-]*\.(safetensors|bin|json)")


class MapModel(StrictConfigMixin, ModelMixin, ConfigMixin):
    """Base of all models: diffusers' `ModelMixin` and `ConfigMixin`, made strict."""

    config_name = "config.json"

    @override
    def __getattr__(self, name: str) -> Any:
        # A part goes before the field of that name, which diffusers would return.
        parts = vars(self).get("_modules", {})
        return parts[name] if name in parts else super().__getattr__(name)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the model, as `torch.nn.Module.to`.

        Args:
            *args: Device, dtype, or both.
            **kwargs: As for `torch.nn.Module.to`.
        """
        # Some releases of diffusers warn of parts to keep in float32 where there are none.
        logger = logging.getLogger(ModelMixin.__module__)
        logger.addFilter(_names_a_part)
        try:
            moved: Self = super().to(*args, **kwargs)
        finally:
            logger.removeFilter(_names_a_part)
        return moved

    def evaluation_view(self) -> Self:
        """Return the model in evaluation mode, and leave it in the mode that it is in.

        Where any part is in training mode, what is returned is a view: it has the same weights and
        statistics, but modes of its own, which other threads neither see nor change. Use a view
        once: it does not see parts that the model gets later. A model in evaluation mode is
        returned itself, and must stay in it while it answers.

        Raises:
            ArgumentError: If it is in training mode and the `forward` of a part was replaced, as
                diffusers' offloading does: a view would run the part itself.
        """
        parts: list[nn.Module] = [self]
        for part in parts:  # which grows
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
        """Write config.json and the weights into a folder, in place of what was saved there before.

        A new folder appears whole or not at all. In one that exists, config.json and all files of
        weights (`diffusion_pytorch_model*`: in one or in several with their index, of any variant)
        are replaced together; any other file stays. With a `variant`, weights of other variants
        stay too, if they are of the same configuration.

        Args:
            save_directory: Folder, made if need be.
            **kwargs: As for diffusers' `ModelMixin.save_pretrained`. Where `is_main_process` is
                False, nothing is written.

        Raises:
            FileError: If the place is a file or cannot be written; what was there is as before.
            ArgumentError: If weights are to be written in another form than safetensors.
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
        """Read a model from a folder or the hub, as diffusers does, in evaluation mode.

        Args:
            pretrained_model_name_or_path: Folder, or name on the hub.
            **kwargs: As for diffusers' `ModelMixin.from_pretrained`.

        Raises:
            CheckpointError: If there is no such model, it is damaged, its weights do not fit its
                configuration, or that declares far more of them than there are, or names another
                configuration in place of one.
            ConfigError: If the configuration has an unknown field.
        """
        place = f"{cls.__name__}: cannot load {pretrained_model_name_or_path}"
        name = str(pretrained_model_name_or_path)
        if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            # diffusers would look for it on the hub and complain of the network.
            raise CheckpointError(f"{place}: there is no such folder.")
        return_info = kwargs.pop("output_loading_info", False)
        # Without accelerate, diffusers would say on every load that it loads in the plain way.
        kwargs.setdefault("low_cpu_mem_usage", False)
        kwargs.setdefault("use_safetensors", True)
        # Reported below, by name: torch names them in the second line of its error.
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
        # As read, weights are views of the mapped file: they would change with it, and where they
        # are not aligned, some processors round differently.
        for one in (*model.parameters(), *model.buffers()):
            one.data = one.data.clone()
        return (model, info) if return_info else model  # type: ignore[return-value]


def _names_a_part(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


def answering(
    method: Callable[Concatenate[Model, Given], Result],
) -> Callable[Concatenate[Model, Given], Result]:
    """Let a method of a model answer as in evaluation mode, and without gradients, in any mode."""

    @wraps(method)
    def answer(self: Model, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with torch.no_grad():
            return method(self.evaluation_view(), *args, **kwargs)

    return answer


def _view(part: nn.Module) -> nn.Module:
    """Make a module of the same tensors, and still of the same children, in evaluation mode."""
    view: nn.Module = object.__new__(type(part))
    own: dict[str, Any] = {"training": False}
    own["_compiled_call_impl"] = None  # would run `part`
    for name, value in vars(part).items():
        if isinstance(value, KernelSpectra):  # which a model in training does not keep
            own[name] = KernelSpectra()
    vars(view).update({**vars(part), **own})
    return view


def check_safe(who: str, options: Mapping[str, Any]) -> None:
    """Raise ArgumentError if weights are to be written in a form that is not read."""
    for option, needed in (("safe_serialization", True), ("use_flashpack", False)):
        if bool(options.get(option, needed)) != needed:
            expected = f"{option}={needed}, as only safetensors are read"
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
