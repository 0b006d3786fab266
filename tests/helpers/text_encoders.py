"""Text encoders of transformers, as small as they can be, of random weights."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tmapdiff.models import TransformersTextEncoder


def tiny_text_encoder(
    words: Iterable[str], channels: int = 16, kind: str = "bert", ends: bool = False
) -> TransformersTextEncoder:
    """Make a `bert`, `clip` or `siglip` of one layer that knows these words.

    Its tokenizer marks both ends of a sentence if `ends`.
    """
    import transformers

    known = [*_SPECIAL, *words]
    tokenizer = _tokenizer(known, ends)
    config_of, model_of, fields = {
        "bert": (transformers.BertConfig, transformers.BertModel, {}),
        "clip": (
            transformers.CLIPTextConfig,
            transformers.CLIPTextModelWithProjection,
            {"projection_dim": channels // 2},
        ),
        "siglip": (transformers.SiglipTextConfig, transformers.SiglipTextModel, {}),
    }[kind]
    sizes = {**_SIZES, "hidden_size": channels, "intermediate_size": channels}
    config = config_of(vocab_size=len(known), **sizes, **_TEXT, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TransformersTextEncoder(model_of(config), tokenizer)


def save_two_towers(folder: Path, words: Iterable[str], kind: str = "clip") -> Any:
    """Save a model of pictures of 32 x 32 and sentences, with all that stands beside it.

    Its kind is `clip`, `siglip` or `altclip`, which has no class of its own for its text.
    """
    import transformers

    known = [*_SPECIAL, *words]
    sizes = {**_SIZES, "hidden_size": 16, "intermediate_size": 24}
    text = {**sizes, **_TEXT, "vocab_size": len(known)}
    image = {**sizes, "image_size": 32, "patch_size": 8}
    name, fields = {
        "clip": ("CLIP", {"projection_dim": 8}),
        "siglip": ("Siglip", {}),
        "altclip": ("AltCLIP", {"projection_dim": 8}),
    }[kind]
    if kind == "altclip":
        text |= {"max_position_embeddings": 16, "project_dim": 16}
        text |= {"initializer_range": 0.1, "initializer_factor": 0.1}  # so that sentences differ
    config = getattr(transformers, f"{name}Config")(
        text_config={**text, **fields}, vision_config={**image, **fields}, **fields
    )
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    )
    if kind == "siglip":
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = getattr(transformers, f"{name}Model")(config).eval()
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)
    _tokenizer(known, ends=True).save_pretrained(folder)
    return whole


_SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT = {"max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def _tokenizer(known: Sequence[str], ends: bool = False) -> Any:
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if ends:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
