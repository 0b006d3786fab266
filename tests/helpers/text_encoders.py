"""Text encoders of transformers, as small as they can be, of random weights."""

from collections.abc import Iterable

import torch

from tmapdiff.models import TransformersTextEncoder


def tiny_text_encoder(
    words: Iterable[str], channels: int = 16, kind: str = "bert"
) -> TransformersTextEncoder:
    """Make a model of one layer that knows these words, and tells their order.

    Its kind is `bert`, `clip` or `siglip`.
    """
    import tokenizers
    import transformers

    known = ["<pad>", "<s>", "</s>", "<unk>", *words]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    config_of, model_of, fields = {
        "bert": (transformers.BertConfig, transformers.BertModel, {}),
        "clip": (
            transformers.CLIPTextConfig,
            transformers.CLIPTextModelWithProjection,
            {"projection_dim": channels // 2},
        ),
        "siglip": (transformers.SiglipTextConfig, transformers.SiglipTextModel, {}),
    }[kind]
    config = config_of(
        **{"vocab_size": len(known), "hidden_size": channels, "intermediate_size": channels},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 12},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TransformersTextEncoder(model_of(config), tokenizer)
