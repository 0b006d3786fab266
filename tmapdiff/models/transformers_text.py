"""Features of sentences, by text models of transformers."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from tmapdiff._core.checks import check_int, foreign_errors, message, require, short
from tmapdiff._core.declared_weights import check_declared_weights
from tmapdiff._core.files import written_beside
from tmapdiff._core.limits import TEXT_GROWTH, check_item_bytes
from tmapdiff._core.threads import Lock
from tmapdiff.errors import ArgumentError, CheckpointError

# What `save_pretrained` of transformers' models and tokenizers may write.
TEXT_ENCODER_FILES = re.compile(
    r"(generation_|tokenizer_|adapter_)?config\.json|(pytorch_|adapter_)?model[.-][\w.-]*(safetensors|bin|json)"
    r"|(tokenizer|special_tokens_map|added_tokens|vocab)\.json|vocab\.(txt|bpe)|merges\.txt"
    r"|[\w.-]+\.(model|spm)|chat_template\.(jinja|json)"
)


@dataclass(frozen=True)
class SentenceFeatures:
    """Features of sentences.

    Attributes:
        sentences: One vector a sentence.
        tokens: One vector a token, those of beginning and end included; 0 after the last.
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
    """Sentence and token features by a frozen text model of transformers, kept in memory.

    Of CLIP and SigLIP it is the text tower, and the vector of a sentence lies in the space of the
    pictures' (`FrameEncoder(..., keep_head=True)` with the same weights, of CLIP). Of others, such
    as BERT, RoBERTa and T5's encoder, it is the mean over the tokens.

    `MultimodalEncoder(text_channels=encoder.token_channels)` takes `tokens` and `num_tokens` in
    place of words and their number.

    Args:
        model: Folder, name on the hub, or a model of transformers.
        tokenizer: Folder or name of the tokenizer, or a tokenizer; that of `model`, if None.
        device: Where to compute.
        batch_size: Sentences at a time.
        cache_size: Sentences whose features are kept, the latest used.

    Shape:
        - sentences: B strings; what is longer than the model reads is cut off
        - returns: `SentenceFeatures`, on the CPU

    Raises:
        MissingDependencyError: If transformers is not installed.
        CheckpointError: If the model or its tokenizer cannot be loaded, for example for want of a
            network, or do not fit each other; if the configuration names attention that is code
            from the hub.
        SizeLimitError: If a text in the folder takes more memory than it may.
        ArgumentError: If `model` is a model of more than text, or there is no tokenizer beside it,
            the tokenizer has no token for padding, or a number is out of range; if a sentence is no
            string or blank, in the call.

    Example:
        >>> encoder = TransformersTextEncoder("openai/clip-vit-base-patch16")  # doctest: +SKIP
        >>> encoder(["a person opens the door"]).sentences.shape  # doctest: +SKIP
        torch.Size([1, 512])
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        cache_size: int = 10_000,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self._transformers: Any = require("transformers", extra="text", purpose=who)
        self.batch_size = check_int(who, "batch_size", batch_size, at_least=1)
        self.cache_size = check_int(who, "cache_size", cache_size, at_least=0)
        if tokenizer is None:
            if not isinstance(model, str | os.PathLike):
                raise ArgumentError(message(who, "a tokenizer beside a model", "none"))
            tokenizer = model
        name = type(model).__name__
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            model = self._load_model(name)
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = self._load_tokenizer(os.fspath(tokenizer))
        if tokenizer.pad_token_id is None:
            raise ArgumentError(message(who, "a tokenizer with a pad_token", "none"))
        config = model.config
        if not hasattr(config, "hidden_size"):  # of text and pictures
            raise ArgumentError(message(who, "a text model", type(model).__name__))
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        # SigLIP learned with all sentences padded to one length, and reads the padding.
        self._reads_padding = config.model_type.startswith("siglip")
        self.token_channels: int = config.hidden_size
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}
        self._lock = Lock()  # tokenizers and the cache take one thread at a time
        # What a model and a tokenizer that do not fit each other, or are damaged, end in.
        with foreign_errors(CheckpointError, f"{who}: cannot encode with {name}"):
            positions = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
            self.max_tokens = min(positions, tokenizer.model_max_length, _MAX_TOKENS)
            self._check_tokens()
            self.sentence_channels: int = self._encode(["a"])[0][0].shape[0]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write model and tokenizer into a folder, for `TransformersTextEncoder(folder)`.

        A new folder appears whole or not at all. In one that exists, all files that transformers
        saves of models and tokenizers (configurations, weights in one file or in several with their
        index, vocabularies, chat templates) are replaced together; any other stays.

        Args:
            save_directory: Folder, made if need be.

        Raises:
            FileError: If the place cannot be written; what was there is as before.
        """
        with written_beside(save_directory, replaces={"": TEXT_ENCODER_FILES}) as folder:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is: it is frozen."""
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
        with self._lock:
            known = {one: self._cache[one] for one in sentences if one in self._cache}
        new = [one for one in dict.fromkeys(sentences) if one not in known]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            known.update(zip(batch, self._encode(batch), strict=True))
        self._remember(known)
        tokens = [known[one][1] for one in sentences]
        return SentenceFeatures(
            torch.stack([known[one][0] for one in sentences]),
            pad_sequence(tokens, batch_first=True),
            torch.tensor([len(one) for one in tokens]),
        )

    def _remember(self, used: dict[str, tuple[Tensor, Tensor]]) -> None:
        with self._lock:
            for sentence, features in used.items():
                self._cache.pop(sentence, None)
                self._cache[sentence] = features  # as the latest
            while len(self._cache) > self.cache_size:
                del self._cache[next(iter(self._cache))]

    @torch.no_grad()
    def _encode(self, sentences: list[str]) -> list[tuple[Tensor, Tensor]]:
        """Vector and tokens of each sentence."""
        with self._lock:
            inputs = self._tokens_of(sentences).to(self.model.device)
        outputs = self.model(**inputs)
        tokens = outputs.last_hidden_state.float()
        if self._reads_padding:
            mask = inputs["input_ids"] != self.tokenizer.pad_token_id
            vectors = outputs.pooler_output
        else:
            mask = inputs["attention_mask"].bool()
            vectors = getattr(outputs, "text_embeds", None)
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
        # A damaged one shows with the words that it does not know.
        what = f"{type(self).__name__}: cannot tokenize {sentences[0]!r}"
        with foreign_errors(CheckpointError, what):
            return self.tokenizer(
                sentences,
                padding="max_length" if self._reads_padding else True,
                truncation=True,
                max_length=self.max_tokens,
                padding_side="right",
                return_tensors="pt",
                return_attention_mask=not self._reads_padding,
                return_token_type_ids=False,
            )

    def _check_tokens(self) -> None:
        known = self.model.get_input_embeddings().num_embeddings
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        if largest >= known:
            expected = f"a tokenizer of the model's {known} tokens"
            got = f"one of a token {largest}"
            raise CheckpointError(message(type(self).__name__, expected, got))

    def _load_model(self, name: str) -> Any:
        place = f"{type(self).__name__}: cannot load {name}"
        with foreign_errors(CheckpointError, place):
            options = _loading(name)
            if os.path.isdir(name):
                _check_texts(Path(name))
            stated, _ = self._transformers.PretrainedConfig.get_config_dict(name, **options)
            _check_attention(place, stated)
            config = self._transformers.AutoConfig.from_pretrained(name, **options)
            model_class = getattr(
                self._transformers, _TEXT_MODELS.get(config.model_type, "AutoModel")
            )
            if os.path.isdir(name):
                check_declared_weights(place, Path(name), lambda: _build(model_class, name, config))
            model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
        # Heads that models were not trained with are not used.
        missing = [key for key in sorted(info["missing_keys"]) if "pooler" not in key]
        if missing:
            reason = f"it has no weights {', '.join(missing[:3])}"
            raise CheckpointError(f"{place}: {reason}.")
        return model

    def _load_tokenizer(self, name: str) -> Any:
        place = f"{type(self).__name__}: cannot load the tokenizer of {name}"
        with foreign_errors(CheckpointError, place):
            if os.path.isdir(name):
                _check_texts(Path(name))
            return self._transformers.AutoTokenizer.from_pretrained(name, **_loading(name))


def _loading(name: str) -> dict[str, bool]:
    # A folder must not bring code, about which transformers would ask at the terminal, and must not
    # name something else on the hub.
    return {"trust_remote_code": False, "local_files_only": os.path.isdir(name)}


def _check_attention(place: str, config: dict[str, Any]) -> None:
    """Refuse attention that is code from the hub, which a configuration may name."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_attention(place, value)
        if name in _ATTENTION_FIELDS and value not in _ATTENTION:
            expected = "attn_implementation to be eager, sdpa or flex_attention"
            hint = "Load it with transformers, and pass the model and its tokenizer."
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


# By the type that the configuration tells: the text part of models that are more than that.
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
# Of transformers itself; where it has flash attention not at hand, it takes that from the hub.
_ATTENTION_FIELDS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
_ATTENTION = (None, "eager", "sdpa", "flex_attention")
_MAX_TOKENS = 65_536  # where neither model nor tokenizer has a limit
