"""Training of a localizer, from a preset and changes to it."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils.data import DataLoader

from tmapdiff._core.checks import check_choice, check_int, check_range, message
from tmapdiff.data import (
    SEGMENT_SECONDS,
    MomentDataset,
    Vocabulary,
    add_negatives,
    collate_moments,
    load_glove,
)
from tmapdiff.errors import ArgumentError, ConfigError, FileError
from tmapdiff.evaluation import Protocol, fit_presence
from tmapdiff.models import (
    MapLocalizer,
    MomentLocalizer,
    SimilarityLocalizer,
    TransformersTextEncoder,
)
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.presets import DECODERS, FORMER_NAMES, PRESETS, Preset
from tmapdiff.recipes.data import LocalizationData
from tmapdiff.recipes.frame_encoder import EncoderMatch
from tmapdiff.training import RESUME_MAY_CHANGE, Trainer, TrainingConfig
from tmapdiff.training.checkpoints import keep_checkpoints, list_checkpoints

ModelKind = Literal["diffusion", "deterministic", "ms2dtan", "similarity"]
SYNTHETIC_EPOCHS = 30
# Results of a run, which another run would replace.
RUN_FILES = ("checkpoints", "metrics.json", "predictions.jsonl", "maps.png", "pipeline")
# Share of the training videos to fit presence on. The seed differs from that of `hold_out`.
_PRESENCE_SHARE, _PRESENCE_SEED = 0.1, 1
# Its cells are DiDeMo's 21 moments.
DIDEMO_GRID = {"num_clips": 6, "num_anchors": 6, "num_scales": 1}


@dataclass(frozen=True)
class Recipe:
    """How a localizer is built and trained: a preset, and changes to it.

    Attributes:
        preset: Name of the preset.
        model: `diffusion`; `deterministic`, its deterministic twin; `ms2dtan`, the baseline; or
            `similarity`, a `SimilarityLocalizer`, which is only fitted.
        decoder: Name of a decoder of Table 3. Defaults to the preset's.
        objective: What is learned. Defaults to the model's.
        glove: Text file of GloVe vectors. By default, word embeddings are learned.
        clip_seconds: Seconds per clip, to train on windows of long videos and evaluate on whole
            ones. By default, clips divide each video equally; for DiDeMo, they are its segments.
        seed: Seed of weights, data order and noise.
        training: Fields of `TrainingConfig` to change; None leaves the preset's. With `negatives`,
            a tenth of the training videos is held out, and `fit_presence` is called on them. It is
            all that `negatives` do for `similarity`, which does not learn from them.

    Raises:
        ArgumentError: If a number is out of range.
        ConfigError: If the preset, model or decoder is unknown, or the model has no such decoder or
            learns no objective.
    """

    preset: str = "tiny"
    model: ModelKind = "diffusion"
    decoder: str | None = None
    objective: str | None = None
    glove: str | os.PathLike[str] | None = None
    clip_seconds: float | None = None
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("Recipe", "preset", self.preset, [*PRESETS, *FORMER_NAMES])
        check_choice("Recipe", "model", self.model, get_args(ModelKind))
        if self.decoder is not None:
            check_choice("Recipe", "decoder", self.decoder, DECODERS)
        for name, idle in (("decoder", ("ms2dtan", "similarity")), ("objective", ("similarity",))):
            if getattr(self, name) is not None and self.model in idle:
                expected = f"no {name} for model {self.model}, which does not use it"
                raise ConfigError(message("Recipe", expected, getattr(self, name)))
        if self.clip_seconds is not None:
            check_range("Recipe", "clip_seconds", self.clip_seconds, 0, open_low=True)
        check_int("Recipe", "seed", self.seed, at_least=0)

    def preset_for(self, protocol: Protocol) -> Preset:
        """Return the preset, with the grid that `protocol` and the model need."""
        preset = PRESETS[self.preset]
        if protocol == "didemo":
            return replace(preset, grid=DIDEMO_GRID)
        if self.model == "similarity":
            # Without a decoder, candidates are cheap: they can start and end at any feature row.
            grid, each = dict(preset.grid), preset.encoder.get("features_per_clip", 1)
            grid |= {name: each * grid[name] for name in ("num_clips", "num_anchors")}
            return replace(preset, grid=grid, encoder={**preset.encoder, "features_per_clip": 1})
        return preset

    def default_folder(
        self, data: str, sources: Mapping[str, Any], control: str | None = None
    ) -> Path:
        """Return a folder name for a run that is unique to its data and recipe.

        It consists of data, preset, model and seed, and a digest of everything else given.

        Args:
            data: Name of the data set.
            sources: Paths and numbers that define the data, by option name, with those of features
                under `features`; None counts as not given.
            control: Name of the control, if nothing is trained.
        """
        named = ("decoder", "objective", "glove", "clip_seconds")
        given = {**sources, **{name: getattr(self, name) for name in named}}
        given |= {name: one for name, one in self.training.items() if name not in RESUME_MAY_CHANGE}
        given = {name: one for name, one in given.items() if one is not None and one is not False}
        kind = control or self.model
        words = [data, self.preset, *([] if kind == "diffusion" else [kind]), str(self.seed)]
        name = "-".join(words)
        if given:
            if "features" in given:
                given["features"] = [_as_found(place) for place in given["features"]]
            content = json.dumps(given, sort_keys=True, default=_as_found)
            name += f"-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        return Path("runs", name)

    def training_config(self, data: LocalizationData) -> TrainingConfig:
        """Return the training configuration for `data`.

        Raises:
            ArgumentError, ConfigError: As `TrainingConfig`.
        """
        changes = {name: value for name, value in self.training.items() if value is not None}
        if data.is_synthetic:
            changes.setdefault("epochs", SYNTHETIC_EPOCHS)
        return replace(self.preset_for(data.protocol).training, **changes, seed=self.seed)

    def build(
        self,
        vocabulary: Vocabulary | None,
        feature_dim: int,
        protocol: Protocol = "rank",
        say: Callable[[str], None] = lambda line: None,
        text_channels: int | None = None,
    ) -> MapLocalizer:
        """Build the model with its initial weights.

        Args:
            vocabulary: Its vocabulary; None with `text_channels`.
            feature_dim: Channels of the video features.
            protocol: Protocol of the evaluation, which may determine the grid.
            say: Called with each line of progress.
            text_channels: Channels of the words, if they are features.

        Raises:
            FileError: If the GloVe vectors cannot be read.
            ArgumentError, ConfigError: If settings do not fit each other.
        """
        preset = self.preset_for(protocol)
        torch.manual_seed(self.seed)
        size = None if vocabulary is None else len(vocabulary)
        fields: dict[str, Any] = {"vocabulary_size": size, "clip_channels": feature_dim}
        if text_channels is not None:
            fields["encoder"] = {"text_channels": text_channels}
        if self.objective:
            fields["objective"] = self.objective
        if self.glove is not None:
            if vocabulary is None:
                raise ConfigError(message("Recipe", "glove with a vocabulary", "words as features"))
            vectors, found = load_glove(self.glove, vocabulary.words).rows_for(vocabulary)
            say(f"GloVe: {found} of {len(vocabulary)} words found")
            fields["encoder"] = {"word_channels": vectors.shape[1], "train_words": False}
        model: MapLocalizer
        if self.model == "ms2dtan":
            model = preset.build_ms2dtan(**fields)
        elif self.model == "similarity":
            if text_channels != feature_dim:
                expected = f"word features with the clips' {feature_dim} channels"
                got = "a vocabulary" if text_channels is None else f"{text_channels} channels"
                raise ConfigError(message("Recipe, model similarity", expected, got))
            model = preset.build_similarity(clip_channels=feature_dim)
        else:
            decoder = DECODERS[self.decoder] if self.decoder else {}
            fields["deterministic"] = self.model == "deterministic"
            model = preset.build(decoder=decoder, **fields)
        if self.glove is not None:
            model.encoder.load_word_vectors(vectors)
        say(f"model: preset {self.preset}, {model.num_parameters() / 1e6:.2f} million parameters")
        return model

    def set_options(self, data: LocalizationData) -> dict[str, Any]:
        """Return the arguments of `make_train_set` and `make_test_set` of `data` for the preset.

        Raises:
            ConfigError: If the clips of DiDeMo are to last longer or shorter than its segments.
        """
        if data.protocol == "didemo" and self.clip_seconds not in (None, SEGMENT_SECONDS):
            expected = "no clip_seconds for DiDeMo, whose clips are its segments"
            raise ConfigError(message("Recipe", expected, self.clip_seconds))
        preset = self.preset_for(data.protocol)
        return {
            "grid": preset.make_grid(),
            "vocabulary": data.make_vocabulary(),
            "clip_seconds": SEGMENT_SECONDS if data.protocol == "didemo" else self.clip_seconds,
            "features_per_clip": preset.encoder.get("features_per_clip", 1),
        }

    def train(
        self,
        data: LocalizationData,
        output: str | os.PathLike[str],
        *,
        steps: Sequence[int] = (),
        device: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> "TrainedLocalizer":
        """Train on a data set.

        Args:
            data: The data set.
            output: Folder for checkpoints and logs, which `similarity` does not write.
            steps: Denoising steps of the later evaluation, checked before training.
            device: `cpu`. Defaults to accelerate's choice.
            resume: Whether to continue the run in `output`, possibly for more epochs. `similarity`
                is fitted again from the start.
            overwrite: Whether to replace the run in `output`.
            say: Called with each line of progress.

        Raises:
            ArgumentError, ConfigError: If settings do not fit the data or each other.
            CheckpointError: If the run in `output` cannot be continued.
            FileError: If a file cannot be read or written, or `output` holds an earlier run.
            FeatureError: If the features of a video cannot be used.
        """
        config = self.training_config(data)
        options = self.set_options(data)
        add_presence: Callable[[MapLocalizer], object] | None = None
        if config.negatives:
            kept, held = data.train.split_videos(_PRESENCE_SHARE, _PRESENCE_SEED)
            asked = replace(data, test=add_negatives(held)).make_test_set(**options)
            data = replace(data, train=kept)
            add_presence = partial(fit_presence, dataset=asked, seed=self.seed)
            say(f"{len(held):,} queries are held out of training, to fit presence")
        train_set, test_set = data.make_train_set(**options), data.make_test_set(**options)
        width = data.store.feature_dim
        model = self.build(options["vocabulary"], width, data.protocol, say, data.text_channels)
        if isinstance(model, SimilarityLocalizer):
            if overwrite and is_main_process():
                keep_checkpoints(Path(output, "checkpoints"), [])  # of another model
            loss = model.fit(DataLoader(train_set, config.batch_size, collate_fn=collate_moments))
            say(f"fitted {model.weight.numel()} numbers: loss {loss:.3f}")
            model.eval()
            if add_presence is not None:
                add_presence(model)
            return TrainedLocalizer(model, model, train_set, test_set, None)
        if isinstance(model, MomentLocalizer):
            for count in steps:
                model.scheduler.set_timesteps(count)
        trainer = Trainer(
            model,
            train_set,
            config,
            output,
            validation=test_set,
            validate_every=None,  # drawn only: it is also the test set
            overwrite=overwrite,
            device=device,
        )
        if resume and not trainer.resume().progress.step:
            say(f"there is no checkpoint in {output}: training from the start")
        trainer.train()
        models = trainer.ema_model.eval(), trainer.raw_model
        if add_presence is not None:
            add_presence(models[0])
        return TrainedLocalizer(*models, train_set, test_set, trainer.accelerator)


@dataclass(frozen=True)
class TrainedLocalizer:
    """Result of a training.

    Attributes:
        model: Model with the moving average of the weights, the one to use.
        raw_model: Model with the weights of the last step.
        train_set: Training set.
        test_set: Test set.
        accelerator: The `accelerate.Accelerator` that was used; None for `similarity`.
    """

    model: MapLocalizer
    raw_model: MapLocalizer
    train_set: MomentDataset
    test_set: MomentDataset
    accelerator: Any = field(repr=False)

    def make_pipeline(
        self,
        match: EncoderMatch | None = None,
        text_encoder: TransformersTextEncoder | None = None,
    ) -> MomentLocalizationPipeline:
        """Build a pipeline with the model.

        Args:
            match: Frame encoder of the features, for a pipeline that takes videos.
            text_encoder: Text encoder of the queries, if words are features.
        """
        rate = self.test_set.store.seconds_per_feature
        encoder = None if match is None else match.encoder
        return MomentLocalizationPipeline(
            self.model,
            self.test_set.vocabulary,
            frame_encoder=encoder,
            text_encoder=text_encoder,
            text_features="sentence" if text_encoder else None,
            fps=match.fps if match and encoder else rate and 1 / rate,
            clip_seconds=self.test_set.clip_seconds,
            durations=[item.duration for item in self.train_set.annotations],
        )


def check_run_folder(
    folder: str | os.PathLike[str],
    *,
    resume: bool,
    overwrite: bool,
    writes: Sequence[str] = RUN_FILES,
) -> None:
    """Raise FileError if a script would replace an earlier run without being told to.

    Args:
        folder: The folder.
        resume: Whether the option `--resume` was given.
        overwrite: Whether `--overwrite` was given.
        writes: Which of `RUN_FILES` the script writes. If there are others, it always raises.

    Raises:
        FileError: If it holds an earlier run.
        ArgumentError: If both options were given.
    """
    if resume and overwrite:
        raise ArgumentError(message("--overwrite", "no --resume", "both"))
    place = Path(folder)
    found = [name for name in RUN_FILES if (place / name).exists()]
    if not list_checkpoints(place / "checkpoints"):
        found = [name for name in found if name != "checkpoints"]
    others = [name for name in found if name not in writes]
    if others:
        hint = "This run does not write such files. Choose another folder with --output."
    elif found and not (resume or overwrite):
        resumes = "Continue it with --resume, replace" if "checkpoints" in writes else "Replace"
        hint = f"{resumes} it with --overwrite, or choose another folder with --output."
    else:
        return
    expected = f"no earlier run in {place}"
    raise FileError(message("--output", expected, ", ".join(others or found), hint))


def _as_found(place: str | os.PathLike[str]) -> str:
    """Return the absolute path if it exists, or the name unchanged."""
    return str(Path(place).resolve() if Path(place).exists() else place)


def is_main_process() -> bool:
    """Return whether this process prints and writes: the first of several that were launched."""
    return os.environ.get("RANK", "0") == "0"
