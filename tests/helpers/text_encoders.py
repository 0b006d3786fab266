"""Text encoders of transformers, as small as they can be, of random weights."""

from collections.abc import Iterable

import torch

from tmapdiff.models import TransformersTextEncoder


def tiny_text_encoder(words: Iterable[str], channels: int = 16) -> TransformersTextEncoder:
    """Make a BERT of one layer that knows these words, and tells their order."""
    import tokenizers
    import transformers

    known = ["<pad>", "<unk>", *words]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: index for index, word in enumerate(known)}, unk_token="<unk>"
        )
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>"
    )
    config = transformers.BertConfig(
        vocab_size=len(known),
        hidden_size=channels,
        intermediate_size=channels,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TransformersTextEncoder(transformers.BertModel(config), tokenizer)
