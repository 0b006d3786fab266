"""Models of transformers and what stands beside them, from folders and the hub, as files alone."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tmapdiff._core.checks import foreign_errors, message, require, short
from tmapdiff._core.declared_weights import check_declared_weights
from tmapdiff._core.limits import TEXT_GROWTH, check_item_bytes
from tmapdiff.errors import CheckpointError


def load_model(who: str, name: str, classes: Mapping[str, str]) -> Any:
    """Load a model: of the class that `classes` has for its type, else of `AutoModel`'s."""
    transformers = require("transformers", extra="text", purpose=who)
    place = f"{who}: cannot load {name}"
    with foreign_errors(CheckpointError, place), _quietly(transformers, name):
        options = _loading(name)
        if os.path.isdir(name):
            _check_texts(Path(name))
        stated, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
        _check_attention(place, stated)
        config = transformers.AutoConfig.from_pretrained(name, **options)
        model_class = getattr(transformers, classes.get(config.model_type, "AutoModel"))
        if os.path.isdir(name):
            check_declared_weights(place, Path(name), lambda: _build(model_class, name, config))
        model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
    # Heads that models were not trained with are not used.
    missing = [key for key in sorted(info["missing_keys"]) if "pooler" not in key]
    if missing:
        reason = f"it has no weights {', '.join(missing[:3])}"
        raise CheckpointError(f"{place}: {reason}.")
    return model


def load_beside(who: str, name: str, what: str, kind: str) -> Any:
    """Load what stands beside a model: `what`, such as its tokenizer, by `kind`, its AutoClass."""
    transformers = require("transformers", extra="text", purpose=who)
    place = f"{who}: cannot load the {what} of {name}"
    with foreign_errors(CheckpointError, place), _quietly(transformers, name):
        if os.path.isdir(name):
            _check_texts(Path(name))
        return getattr(transformers, kind).from_pretrained(name, **_loading(name))


def _loading(name: str) -> dict[str, bool]:
    # A folder must not bring code, about which transformers would ask at the terminal, and must not
    # name something else on the hub.
    return {"trust_remote_code": False, "local_files_only": os.path.isdir(name)}


@contextmanager
def _quietly(transformers: Any, name: str) -> Iterator[None]:
    """Keep back a table of the weights of the other tower, and bars where nothing is downloaded."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if os.path.isdir(name) or not sys.stderr.isatty():
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _check_attention(place: str, config: dict[str, Any]) -> None:
    """Refuse attention that is code from the hub, which a configuration may name."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_attention(place, value)
        if name in _ATTENTION_FIELDS and value not in _ATTENTION:
            expected = "attn_implementation to be eager, sdpa or flex_attention"
            hint = "Load it with transformers, and pass the model itself."
            raise CheckpointError(message(place, expected, short(str(value)), hint))


def _check_texts(folder: Path) -> None:
    """Refuse texts that would take too much memory; a configuration has a limit of its own."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt", ".model"):
            check_item_bytes(str(path), "a text", path.stat().st_size * TEXT_GROWTH)


def _build(model_class: Any, name: str, config: Any) -> Any:
    """Build a model as `from_pretrained` does, without weights."""
    if hasattr(model_class, "from_config"):
        return model_class.from_config(config)
    return model_class(model_class.config_class.from_pretrained(name, local_files_only=True))


# Of transformers itself; where it has flash attention not at hand, it takes that from the hub.
_ATTENTION_FIELDS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
_ATTENTION = (None, "eager", "sdpa", "flex_attention")
