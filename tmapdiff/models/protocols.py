"""Protocols of a `MomentLocalizer`'s parts, and names for custom parts in saved models."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any, Protocol, TypeVar

from diffusers import ConfigMixin
from torch import Tensor, nn

from tmapdiff._core.checks import check_choice, message
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.layers._modules import is_plain
from tmapdiff.losses import OBJECTIVES, MapObjective, get_objective
from tmapdiff.maps import MapGrid
from tmapdiff.models.decoder import MapDiffusionDecoder
from tmapdiff.models.encoder import MultimodalEncoder
from tmapdiff.models.prepared import CalledDecoder

Part = TypeVar("Part")


class MapEncoder(Protocol):
    """A `torch.nn.Module` that encodes videos and queries into map features.

    `grid` and `channels` are attributes, or fields of its configuration. It may also have
    `features_per_clip`, the number of feature rows per clip.

    Attributes:
        grid: The candidate moments.
        channels: Channels of the map features.
    """

    grid: MapGrid
    channels: int

    def __call__(
        self, features: Tensor, words: Tensor, num_words: Tensor, num_clips: Tensor | None
    ) -> Sequence[Tensor]:
        """Encode videos and queries; the module's `forward`.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L), indices padded with 0, or (B, L, text_channels)
            - num_words, num_clips: (B,); with `num_clips`, N may differ from the grid's
            - returns: K tensors (B, channels, N_k, A)
        """
        ...


class MapDecoder(Protocol):
    """A `torch.nn.Module` that predicts clean maps from noisy ones.

    `grid` and `feature_channels` are attributes, or fields of its configuration. It may also have
    `prepare(features, timesteps, num_clips)`, which returns a `DenoisingRun`. Otherwise, or if a
    subclass overrides only `forward`, each sampling step calls the decoder.

    Attributes:
        grid: The candidate moments.
        feature_channels: Channels of the map features.
    """

    grid: MapGrid
    feature_channels: int

    def __call__(
        self,
        noisy: Tensor,
        timestep: Tensor,
        features: Sequence[Tensor],
        num_clips: Tensor | None,
    ) -> Tensor:
        """Score all cells; the module's `forward`.

        Shape:
            - noisy, returns: (B, cells), packed maps of all scales
            - timestep, num_clips: (B,)
            - features: K tensors (B, feature_channels, N_k, A), finest scale first
        """
        ...


class DenoisingRun(Protocol):
    """A run of denoising steps, with everything that they share computed in advance."""

    def denoise(self, noisy: Tensor, step: int) -> Tensor:
        """Score all cells of `noisy` maps, (B, cells), at a `step` of the run, from 0."""
        ...


class Objective(Protocol):
    """What a localizer learns, for example a `tmapdiff.losses.MapObjective`."""

    @property
    def name(self) -> str:
        """Its name in configurations."""
        ...

    def target(self, iou: Tensor) -> Tensor:
        """Turn the `iou` of all cells into the map in [0, 1] that is noised and learned."""
        ...

    def activation(self, scores: Tensor) -> Tensor:
        """Turn the decoder's `scores` into that map."""
        ...

    def __call__(self, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Compute the loss.

        Shape:
            - scores, target: (B, cells)
            - mask: (cells,) or (B, cells), bool: which cells are valid
            - returns: ()
        """
        ...


def begin_run(
    decoder: Any, features: Sequence[Tensor], timesteps: Tensor, num_clips: Tensor | None
) -> DenoisingRun:
    """Begin a run of denoising steps: a prepared one, if it equals calls of the decoder."""
    if _prepares_its_calls(decoder):
        run: DenoisingRun = decoder.prepare(features, timesteps, num_clips)
        return run
    return CalledDecoder(decoder, features, timesteps, num_clips)


def _prepares_its_calls(decoder: nn.Module) -> bool:
    owners = [one for one in type(decoder).__mro__ if {"prepare", "forward"} & vars(one).keys()]
    # A subclass may override `forward` without `prepare`.
    return is_plain(decoder, type(decoder)) and "prepare" in vars(owners[0])


_REGISTERED: dict[str, Any] = {}
_UNREGISTERED = "unregistered "
_INCOMPLETE = "whose configuration lacks"


def register_part(name: str) -> Callable[[Part], Part]:
    """Register a custom encoder or decoder class, as a decorator, or a custom objective.

    Models with such parts can be saved. Register them also wherever such a model is loaded. A name
    can be registered again; the last registration wins.

    Args:
        name: Name in configurations.

    Raises:
        ArgumentError: If the part is neither an encoder or decoder class with a configuration
            (`diffusers.ConfigMixin`) nor an objective of that name, or the name is one of
            `OBJECTIVES`.

    Example:
        >>> from tmapdiff.losses import MapObjective, rescale_iou
        >>> fourth = MapObjective("fourth", rescale_iou, rescale_iou, lambda s, t: (s - t) ** 4)
        >>> register_part("fourth")(fourth).name
        'fourth'
    """

    def register(part: Part) -> Part:
        who = f"register_part({name!r})"
        is_class = isinstance(part, type) and issubclass(part, nn.Module)
        if is_class and not issubclass(part, ConfigMixin):  # type: ignore[arg-type]
            hint = "Inherit from diffusers' ConfigMixin, and decorate __init__."
            raise ArgumentError(message(who, "a class with a configuration", part, hint))
        if not is_class and (getattr(part, "name", None) != name or name in OBJECTIVES):
            expected = "an encoder or decoder class, or an objective of that name"
            raise ArgumentError(message(who, expected, part))
        # Copy weights, as the caller may go on to train `part`.
        _REGISTERED[name] = deepcopy(part) if isinstance(part, nn.Module) else part
        return part

    return register


def part_config(part: Any) -> dict[str, Any]:
    """Return the configuration of a part: its fields, and the name of a custom part."""
    name = None
    if isinstance(part, nn.Module) and type(part) not in (MultimodalEncoder, MapDiffusionDecoder):
        names = (name for name, kind in _REGISTERED.items() if kind is type(part))
        name = next(names, None)
        if name is None:
            return {"part": f"{_UNREGISTERED}{type(part).__name__}"}
        if lacking := _arguments_not_in_config(part):
            return {"part": f"{name}, {_INCOMPLETE} {', '.join(lacking)}"}
    fields = {field: value for field, value in part.config.items() if not field.startswith("_")}
    return fields if name is None else {"part": name, **fields}


def _arguments_not_in_config(part: Any) -> list[str]:
    """Return what a custom part was built with that its configuration does not tell."""
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [
        name
        for name, one in signature(type(part)).parameters.items()
        if one.kind in several or name not in {*part.config, *part.ignore_for_config}
    ]


def part_field(part: Any, name: str) -> Any:
    """Return a field of a part's configuration, an attribute, or None."""
    config = getattr(part, "config", None)
    if isinstance(config, dict) and name in config:
        return config[name]
    return getattr(part, name, None)


def make_part(who: str, config: Any, default: Any, needs: Sequence[str]) -> Any:
    """Build a part from its configuration, or use an existing one; check the fields it `needs`."""
    part = config
    if isinstance(config, dict) and "part" in config:
        fields = dict(config)
        name = fields.pop("part")
        if not isinstance(_REGISTERED.get(name), type):
            hint = "Import the module that calls register_part for it before loading the model."
            raise ConfigError(message(who, "a registered part", repr(name), hint))
        part = _REGISTERED[name].from_config(fields)
    elif not isinstance(config, nn.Module):
        part = default.from_config(config)
    _check_needs(who, part, needs)
    return part


def find_objective(who: str, objective: str | Objective) -> Objective:
    """Return the objective, or look it up by name."""
    if isinstance(objective, str) and objective in _REGISTERED:
        objective = _REGISTERED[objective]
        if isinstance(objective, nn.Module):
            objective = deepcopy(objective)  # models must not share weights and modes
    elif not callable(objective):
        return get_objective(check_choice(who, "objective", objective, OBJECTIVES))
    _check_needs(who, objective, ("name", "target", "activation"))
    return objective  # type: ignore[return-value]


def _check_needs(who: str, part: Any, names: Sequence[str]) -> None:
    missing = [name for name in names if part_field(part, name) is None]
    if missing:
        got = f"a {type(part).__name__} without {', '.join(missing)}"
        hint = "See tmapdiff.models.protocols."
        raise ConfigError(message(who, f"a part with {', '.join(names)}", got, hint))


def check_registered(who: str, config: Mapping[str, Any], objective: Objective) -> None:
    """Raise ArgumentError unless a model's parts can be rebuilt from its configuration."""
    hint = "Register it with tmapdiff.models.register_part."
    for fields in config.values():
        name = str(fields.get("part", "")) if isinstance(fields, dict) else ""
        if _INCOMPLETE in name:
            hint = "Decorate its __init__ with register_to_config, and name all arguments there."
        if name.startswith(_UNREGISTERED) or _INCOMPLETE in name:
            raise ArgumentError(message(who, "parts that can be saved", name, hint))
    found = _REGISTERED.get(objective.name)
    if found is None and objective.name in OBJECTIVES:
        found = get_objective(objective.name)
    # Compare by value, as copies of a model have copies of the objective.
    differs = isinstance(found, MapObjective) and found != objective
    if differs or type(found) is not type(objective):
        got = f"the objective {_UNREGISTERED}{objective.name}"
        raise ArgumentError(message(who, "parts that can be saved", got, hint))
