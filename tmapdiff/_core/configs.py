"""Stricter diffusers configurations: unknown fields are errors, and saving is lossless."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from tmapdiff._core.checks import message
from tmapdiff._core.numbers import is_number, plain
from tmapdiff.errors import ConfigError

# Keywords besides fields that diffusers passes through `from_config`.
_NOT_FIELDS = {"dtype", "torch_dtype"}


class NotAConfigError(ConfigError):
    """A configuration is not a dictionary; if it comes from a file, the file is damaged."""


class StrictConfigMixin:
    """Makes misspelled fields errors instead of ignoring them; put it before `ConfigMixin`."""

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Create an object from a configuration, as diffusers does, but reject names.

        diffusers would look up a name on the hub, and names may come from untrusted files.

        Raises:
            ConfigError: If `config` is not a dictionary, a field is unknown, or a field without a
                default is missing.
        """
        config = kwargs.pop("pretrained_model_name_or_path", config)
        if not isinstance(config, dict):
            expected = "a configuration as a dictionary"
            raise NotAConfigError(message(cls.__name__, expected, repr(config)))
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]

    @classmethod
    def check_nested(cls, config: dict[str, Any]) -> None:
        """Check that configurations within a configuration are dictionaries, not names."""
        for name, parameter in inspect.signature(cls).parameters.items():
            value = config.get(name, parameter.default)
            nested = "dict[" in str(parameter.annotation) and value is not parameter.default
            if nested and not isinstance(value, dict):
                raise ConfigError(message(cls.__name__, f"{name} to be a dictionary", repr(value)))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Sort the fields as diffusers does; reject unknown and missing ones."""
        parameters = inspect.signature(cls).parameters
        fields = [name for name in parameters if name != "kwargs"]
        for name in [*config_dict, *kwargs]:
            if name in fields or name.startswith("_") or name in _NOT_FIELDS:
                continue
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Fields: {', '.join(fields)}."
            expected = "only known configuration fields"
            raise ConfigError(message(cls.__name__, expected, repr(name), hint))
        for name in fields:
            required = parameters[name].default is inspect.Parameter.empty
            if required and name not in config_dict and name not in kwargs:
                raise ConfigError(message(cls.__name__, f"the configuration field {name}", "none"))
        return super().extract_init_dict(config_dict, **kwargs)  # type: ignore[misc]

    def register_to_config(self, **kwargs: Any) -> None:
        """Store fields as JSON returns them: tuples as lists, numbers as Python numbers."""
        super().register_to_config(  # type: ignore[misc]
            **{name: _as_json(value) for name, value in kwargs.items()}
        )


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        # Drop fields that diffusers adds, such as _class_name.
        return {k: _as_json(v) for k, v in value.items() if not k.startswith("_")}
    return plain(value) if is_number(value) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of nested dictionaries, with names joined by dots."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
