"""Sentence features from text models of transformers."""

import os
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from tmapdiff._core.checks import check_int, foreign_errors, message, require, shown
from tmapdiff._core.files import written_beside
from tmapdiff._core.limits import JSON_GROWTH
from tmapdiff._core.transformers_models import load_beside, load_model
from tmapdiff.data._reading import read_text
from tmapdiff.errors import ArgumentError, CheckpointError
from tmapdiff.layers._modules import weights_version

# Files that `save_pretrained` of transformers' models and tokenizers may write.
TEXT_ENCODER_FILES = re.compile(
    r"(generation_|tokenizer_|adapter_)?config\.json|(pytorch_|adapter_)?model[.-][\w.-]*(safetensors|bin|json)"
    r"|(tokenizer|special_tokens_map|added_tokens|vocab)\.json|vocab\.(txt|bpe)|merges\.txt"
    r"|[\w.-]+\.(model|spm)|chat_template\.(jinja|json)"
)
_LOCK = threading.Lock()  # tokenizers and caches are not thread-safe


@dataclass(frozen=True)
class SentenceFeatures:
    """Features of sentences.

    Attributes:
        sentences: One vector per sentence.
        tokens: One vector per token, including start and end tokens; 0 after the last.
        num_tokens: Tokens of each sentence.

    Shape:
        - sentences: (B, sentence_channels) float32
        - tokens: (B, L, token_channels) float32
        - num_tokens: (B,) int64
    """

    sentences: Tensor
    tokens: Tensor
    num_tokens: Tensor


class TransformersTextEncoder(nn.Module):
    """Computes sentence and token features with a frozen text model of transformers.

    For CLIP, SigLIP and other models with `get_text_features`, it uses the text tower: sentence
    vectors share a space with the images of a `TransformersFrameEncoder` of the same model. For
    other models, such as BERT, RoBERTa, T5's encoder and those of sentence-transformers, the
    sentence vector is the mean over the tokens; a warning says if sentence-transformers computes
    others, as for models that read the first token.

    `MultimodalEncoder(text_channels=encoder.token_channels)` takes `tokens` and `num_tokens` in
    place of words and their number.

    Args:
        model: Folder, name on the hub, or a transformers model.
        tokenizer: Folder, name or tokenizer. Defaults to the one of `model`.
        device: Device to compute on.
        batch_size: Sentences per batch; 1 for models that read the padding, such as FNet.

    Shape:
        - sentences: B strings; the end of one that is longer than `max_tokens` is cut off, with a
          warning
        - returns: `SentenceFeatures`, on the CPU

    Raises:
        MissingDependencyError: If transformers is not installed.
        CheckpointError: If the model or its tokenizer cannot be loaded, or do not fit each other,
            or the configuration asks for attention code from the hub.
        SizeLimitError: If a text file in the folder exceeds the memory limit.
        ArgumentError: At construction, if `model` is not a text model or returns no vector per
            sentence, a model is given without a tokenizer, the tokenizer has no padding token, or a
            number is out of range. In the call, if a sentence is blank or not a string.

    Example:
        >>> encoder = TransformersTextEncoder("openai/clip-vit-base-patch16")  # doctest: +SKIP
        >>> encoder(["a person opens the door"]).sentences.shape  # doctest: +SKIP
        torch.Size([1, 512])
    """

    cache_size = 10_000  # sentences whose features are kept; the least recently used are evicted

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        require("transformers", extra="text", purpose=who)
        self.batch_size = check_int(who, "batch_size", batch_size, at_least=1)
        if tokenizer is None:
            if not isinstance(model, str | os.PathLike):
                raise ArgumentError(message(who, "a tokenizer with the model", "none"))
            tokenizer = model
        name = type(model).__name__
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            model = load_model(who, name, _TEXT_MODELS)
            if other := _other_vectors(who, name):
                expected = f"a model whose sentence vector is the mean over the tokens, for {name}"
                hint = "Answers may be poor."
                warnings.warn(message(who, expected, ", ".join(other), hint), stacklevel=2)
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = load_beside(who, os.fspath(tokenizer), "tokenizer", "AutoTokenizer")
        if tokenizer.pad_token_id is None:
            raise ArgumentError(message(who, "a tokenizer with a pad_token", "none"))
        # Models of text and images have this method.
        self._is_whole = hasattr(model, "get_text_features")
        config = getattr(model.config, "text_config", model.config)
        if not self._is_whole and not hasattr(config, "hidden_size"):
            raise ArgumentError(message(who, "a text model", type(model).__name__))
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        # SigLIP was trained on lowercase sentences padded to one length, and reads the padding.
        # Not all of its tokenizers lowercase.
        self._reads_padding = config.model_type.startswith("siglip")
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}
        self._cached_with = weights_version(self.model)
        # A damaged model or an unsuitable tokenizer can raise any error here.
        with foreign_errors(CheckpointError, f"{who}: cannot encode with {name}"):
            self.max_tokens = min(_positions(model, config), tokenizer.model_max_length)
            largest = max(tokenizer.get_vocab().values(), default=0)
            if largest >= config.vocab_size:
                expected = f"a tokenizer with the model's {config.vocab_size} tokens"
                raise CheckpointError(message(who, expected, f"one with token {largest}"))
            vector, tokens = self._encode(["a"])[0]
            if vector.dim() != 1:  # FLAVA's
                expected, got = "a model of one vector per sentence", tuple(vector.shape)
                raise ArgumentError(message(who, expected, got))
            # Some models read the padding, such as ConvBERT and FNet.
            padded = self._encode(["a", "a a a"])[0][0]
            rounding = max(_ROUNDING, 4 * torch.finfo(self.dtype).eps) * vector.abs().max()
            self._batches = bool(((vector - padded).abs() <= rounding).all())
            self.sentence_channels: int = vector.shape[0]
            self.token_channels: int = tokens.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Save model and tokenizer to a folder, for `TransformersTextEncoder(folder)`.

        Saving is atomic, and replaces an earlier model and tokenizer. Other files stay.

        Args:
            save_directory: Folder, created if needed.

        Raises:
            FileError: If the folder cannot be written; it is then left as it was.
        """
        with written_beside(save_directory, replaces={"": TEXT_ENCODER_FILES}) as folder:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is: the model is frozen."""
        return super().train(False)

    def forward(self, sentences: Sequence[str]) -> SentenceFeatures:
        """Encode sentences; see the class."""
        who = type(self).__name__
        if isinstance(sentences, str):
            raise ArgumentError(message(who, "a list of sentences", repr(sentences)))
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str) or not sentence.strip():
                expected = "sentences that are not blank"
                raise ArgumentError(message(who, expected, f"{sentence!r} at {index}"))
        if not sentences:
            return SentenceFeatures(
                torch.zeros(0, self.sentence_channels),
                torch.zeros(0, 0, self.token_channels),
                torch.zeros(0, dtype=torch.long),
            )
        with _LOCK:
            if (weights := weights_version(self.model)) != self._cached_with:
                self._cache, self._cached_with = {}, weights
            known = {one: self._cache[one] for one in sentences if one in self._cache}
        new = [one for one in dict.fromkeys(sentences) if one not in known]
        size = self.batch_size if self._batches else 1
        for start in range(0, len(new), size):
            batch = new[start : start + size]
            known.update(zip(batch, self._encode(batch), strict=True))
        with _LOCK:
            for sentence, features in known.items():
                self._cache.pop(sentence, None)
                self._cache[sentence] = features  # moves it to the end
            while len(self._cache) > self.cache_size:
                del self._cache[next(iter(self._cache))]
        tokens = [known[one][1] for one in sentences]
        return SentenceFeatures(
            torch.stack([known[one][0] for one in sentences]),
            pad_sequence(tokens, batch_first=True),
            torch.tensor([len(one) for one in tokens]),
        )

    @torch.no_grad()
    def _encode(self, sentences: list[str]) -> list[tuple[Tensor, Tensor]]:
        with _LOCK:
            inputs = self._tokens_of(sentences).to(self.model.device)
        outputs = (self.model.get_text_features if self._is_whole else self.model)(**inputs)
        if self._reads_padding:
            mask = inputs["input_ids"] != self.tokenizer.pad_token_id
        else:
            mask = inputs["attention_mask"].bool()
        vectors: Tensor | None
        if isinstance(outputs, Tensor):  # `get_text_features` before transformers 5
            vectors, tokens, mask = outputs, outputs[:, None].float(), mask[:, :1]
        else:
            tokens = outputs.last_hidden_state.float()
            pooled = self._is_whole or self._reads_padding
            vectors = getattr(outputs, "pooler_output" if pooled else "text_embeds", None)
        if vectors is None:
            weights = mask[..., None].float()
            vectors = (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        lengths = mask.sum(dim=1).clamp(min=1).tolist()
        return [
            (vector, row[:length].clone())
            for vector, row, length in zip(
                vectors.float().cpu(), tokens.cpu(), lengths, strict=True
            )
        ]

    def _tokens_of(self, sentences: list[str]) -> Any:
        # A damaged tokenizer may fail only on words that it does not know.
        what = f"{type(self).__name__}: cannot tokenize {sentences[0]!r}"
        with foreign_errors(CheckpointError, what):
            texts = [one.lower() for one in sentences] if self._reads_padding else sentences
            whole = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
            tokens = self.tokenizer(
                texts,
                padding="max_length" if self._reads_padding else True,
                truncation=True,
                max_length=self.max_tokens,
                padding_side="right",
                return_tensors="pt",
                return_attention_mask=not self._reads_padding,
                return_token_type_ids=False,
            )
        if cut := [len(ids) > self.max_tokens for ids in whole].count(True):
            expected = f"sentences of at most {self.max_tokens} tokens"
            longest = max(range(len(whole)), key=lambda place: len(whole[place]))
            got = f"{cut} longer ones, whose ends are ignored: {shown(sentences[longest])}"
            warnings.warn(message(type(self).__name__, expected, got), stacklevel=4)
        return tokens


def _positions(model: nn.Module, config: Any) -> int:
    """Return the longest sentence that a model has positions for, in tokens."""
    positions = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
    for name, part in model.named_modules():
        # RoBERTa and its kin count from the position after that of padding.
        padding = getattr(part, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            positions -= padding + 1
    return min(positions, _MAX_TOKENS) if positions > 0 else _MAX_TOKENS  # XLNet's is -1


def _other_vectors(who: str, name: str) -> list[str]:
    """Return what sentence-transformers does for sentence vectors, beside a mean over tokens."""
    hub = require("transformers.utils", extra="text", purpose=who)
    options: dict[str, Any] = {"local_files_only": os.path.isdir(name)}
    for lack in ("missing_entries", "connection_errors"):
        options[f"_raise_exceptions_for_{lack}"] = False
    found: list[str] = []
    for file in ("modules.json", "1_Pooling/config.json"):
        with foreign_errors(CheckpointError, f"{who}: cannot load {file} of {name}"):
            place = hub.cached_file(name, file, **options)
            if place is not None:
                found += _OTHER_VECTORS.findall(read_text(Path(place), JSON_GROWTH))
    return found


# The sum of tokens over the square root of their number has the direction of the mean.
_OTHER_VECTORS = re.compile(
    r'pooling_mode_(?!mean)\w+(?=": *true)|(?<="pooling_mode": ")(?!mean)\w+'
    r'|(?<=\.)(?!Transformer|Pooling|Normalize|CLIPModel)\w+(?=")'
)
# Text towers of multimodal models, by the model type in the configuration.
_TEXT_MODELS = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
_ROUNDING = 5e-4  # relative to a vector's largest number, by which it may depend on its batch
_MAX_TOKENS = 65_536  # where neither model nor tokenizer has a limit
