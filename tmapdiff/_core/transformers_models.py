"""Load transformers models, tokenizers and processors without running code from them."""

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
    """Load a model with the class that `classes` has for its type. Defaults to `AutoModel`."""
    place = f"{who}: cannot load {name}"
    with _loading(who, place, name) as (transformers, options):
        stated, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
        _check_attention(place, stated)
        # Not from AutoConfig, which before transformers 5 does not know SigLIP's text tower.
        model_class = getattr(transformers, classes.get(stated.get("model_type"), "AutoModel"))
        if os.path.isdir(name):
            configurations = getattr(model_class, "config_class", transformers.AutoConfig)
            config = configurations.from_pretrained(name, **options)
            build = getattr(model_class, "from_config", model_class)  # as `from_pretrained` does
            check_declared_weights(place, Path(name), lambda: build(config))
        model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
    # Pooler heads may be untrained, but are not used.
    missing = [key for key in sorted(info["missing_keys"]) if "pooler" not in key]
    if missing:
        reason = f"it has no weights {', '.join(missing[:3])}"
        raise CheckpointError(f"{place}: {reason}.")
    return model


def load_beside(who: str, name: str, what: str, kind: str) -> Any:
    """Load a companion of a model: `what`, such as its tokenizer, by `kind`, its AutoClass."""
    place = f"{who}: cannot load the {what} of {name}"
    with _loading(who, place, name) as (transformers, options):
        return getattr(transformers, kind).from_pretrained(name, **options)


@contextmanager
def _loading(who: str, place: str, name: str) -> Iterator[tuple[Any, dict[str, bool]]]:
    """Yield transformers, and options of its loaders, which are quiet in the block.

    Silent are warnings about the other tower's weights, and progress bars of local files.
    """
    transformers = require("transformers", extra="text", purpose=who)
    log, is_local = transformers.utils.logging, os.path.isdir(name)
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if is_local or not sys.stderr.isatty():
        log.disable_progress_bar()
    try:
        with foreign_errors(CheckpointError, place):
            if is_local:
                _check_texts(Path(name))
            # A folder must not run code (transformers would ask at the terminal) or refer to the
            # hub.
            yield transformers, {"trust_remote_code": False, "local_files_only": is_local}
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _check_attention(place: str, config: dict[str, Any]) -> None:
    """Reject attention implementations that a configuration would load from the hub as code."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_attention(place, value)
        if name in _ATTENTION_FIELDS and value not in _ATTENTION:
            expected = "attn_implementation to be eager, sdpa or flex_attention"
            hint = "Load the model with transformers, and pass the object."
            raise CheckpointError(message(place, expected, short(str(value)), hint))


def _check_texts(folder: Path) -> None:
    """Reject text files that would take too much memory; configurations have their own limit."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt", ".model"):
            check_item_bytes(str(path), "a text", path.stat().st_size * TEXT_GROWTH)


# Only implementations within transformers; it may download flash attention from the hub.
_ATTENTION_FIELDS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
_ATTENTION = (None, "eager", "sdpa", "flex_attention")
