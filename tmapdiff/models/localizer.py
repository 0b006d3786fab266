"""The diffusion model: encoder and decoder, loss, and sampling loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from typing_extensions import Self, override

from tmapdiff._core.checks import check_bool, check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.maps import MapGrid
from tmapdiff.models._base import answering
from tmapdiff.models.decoder import MapDiffusionDecoder
from tmapdiff.models.encoder import MultimodalEncoder
from tmapdiff.models.map_localizer import (
    Generators,
    MapLocalizer,
    Query,
    Ranking,
    check_generators,
)
from tmapdiff.models.protocols import (
    DenoisingRun,
    MapDecoder,
    MapEncoder,
    Objective,
    begin_run,
    make_part,
    part_field,
)
from tmapdiff.schedulers import MapScheduler, SchedulerRun

_MOST_SAMPLES = 10_000  # a saved model that asks for more would never finish


@dataclass(frozen=True)
class DenoisingStep:
    """State of a denoising run after one step, passed to callbacks.

    Attributes:
        index: Number of the step, from 0.
        timestep: Timestep of this step.
        clean: Clean maps predicted at this step, 0 in invalid cells.
        noisy: Maps that the next step starts from, on the scale of IoU, 0 in invalid cells. Noise
            takes them far outside [0, 1].

    Shape:
        - clean, noisy: (B, cells)
    """

    index: int
    timestep: int
    clean: Tensor
    noisy: Tensor


StepCallback = Callable[[DenoisingStep], None]


@dataclass(frozen=True)
class _Run:
    """State shared by all denoising steps and samples of one batch."""

    decoder: DenoisingRun
    timesteps: list[int]
    batch: int
    grid: MapGrid
    num_clips: Tensor | None
    mask: Tensor


class MomentLocalizer(MapLocalizer):
    """Finds the moment of a video that a sentence describes, by denoising IoU maps.

    Args:
        encoder_config: Fields of the `MultimodalEncoder`; or of a registered encoder, with its name
            as `part`. To use existing modules, see `from_parts`.
        decoder_config: Fields of the `MapDiffusionDecoder`, or of a registered decoder, on the same
            grid.
        scheduler_config: Fields of the `MapScheduler`. Defaults to the scheduler's defaults.
        objective: What is learned: a name (`tmapdiff.losses.get_objective`) or an `Objective`.
        nms_threshold: Only for `nms`: highest IoU that two returned moments may have.
        ranking: How moments are read off the map, see `localize`.
        num_inference_steps: Default number of denoising steps of `localize`.
        num_samples: Default number of samples that `localize` averages; each costs
            `num_inference_steps` passes of the decoder.
        timestep_power: Training draws timestep t with a density proportional to t to this power. 0
            is uniform; higher powers draw more noise, so that the model has to read the inputs.
        deterministic: Predict in one pass from an empty map at the last timestep, in training too.
            This is the deterministic twin: the same network as a plain regressor.
        presence_weights: Weights of `presence`, as fitted by `tmapdiff.evaluation.fit_presence`.
            Defaults to none.

    Raises:
        ConfigError: If a field is unknown, encoder and decoder do not fit each other, or a part
            lacks something that its protocol (`MapEncoder`, `MapDecoder`, `Objective`) requires.
        ArgumentError: If a size is out of range, `num_samples` is above 10,000, or `deterministic`
            is not True or False.

    Source: Zhang et al., arXiv 2401.08232.
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        decoder_config: dict[str, Any],
        scheduler_config: dict[str, Any] | None = None,
        objective: str | Objective = "mse-full",
        nms_threshold: float = 0.49,
        ranking: Ranking = "nms",
        num_inference_steps: int = 2,
        num_samples: int = 1,
        timestep_power: float = 0.0,
        deterministic: bool = False,
        presence_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        who = "MomentLocalizer"
        self.encoder = make_part(who, encoder_config, MultimodalEncoder, ("grid", "channels"))
        needs = ("grid", "feature_channels")
        self.decoder = make_part(who, decoder_config, MapDiffusionDecoder, needs)
        if isinstance(scheduler_config, MapScheduler):
            self._scheduler = scheduler_config
        else:
            fields = {} if scheduler_config is None else scheduler_config
            self._scheduler = MapScheduler.from_config(fields)
        self._set_up(self.decoder.grid, objective, nms_threshold, ranking)
        if self.encoder.grid != self.grid:
            got = f"{self.encoder.grid} and {self.grid}"
            raise ConfigError(message(who, "encoder and decoder with the same grid", got))
        channels = part_field(self.encoder, "channels")
        got = part_field(self.decoder, "feature_channels")
        if got != channels:
            expected = f"the decoder's feature_channels to be the encoder's channels, {channels}"
            raise ConfigError(message(who, expected, got))
        self.scheduler.set_timesteps(num_inference_steps)
        check_bool(who, "deterministic", deterministic)
        self._check_samples(num_samples)
        check_range(who, "timestep_power", timestep_power, 0)

    @classmethod
    def from_parts(
        cls,
        encoder: MapEncoder,
        decoder: MapDecoder,
        scheduler: MapScheduler | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build a localizer from an existing `encoder` and `decoder`, with their weights.

        Args:
            encoder: Encoder to use.
            decoder: Decoder to use.
            scheduler: Scheduler to use. Defaults to a new one.
            **kwargs: Other fields of the configuration.

        Raises:
            ConfigError: If the parts do not fit each other, or lack something that their protocols
                require.
        """
        # By name: diffusers would record positional arguments as default values.
        parts: Any = {"encoder": encoder, "decoder": decoder, "scheduler": scheduler}
        return cls(**{f"{name}_config": part for name, part in parts.items()}, **kwargs)

    @property
    def scheduler(self) -> MapScheduler:
        """Scheduler that adds noise in training and denoises; saved with the model.

        Raises:
            ArgumentError: If it is set to something other than a `MapScheduler`.
        """
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: MapScheduler) -> None:
        if not isinstance(scheduler, MapScheduler):
            hint = "MapScheduler also has diffusers' solvers: see its `solver`."
            got = type(scheduler).__name__
            raise ArgumentError(message(type(self).__name__, "a MapScheduler", got, hint))
        self._scheduler = scheduler
        self.register_to_config(scheduler_config=scheduler)

    @property
    @override
    def is_generative(self) -> bool:
        return not self.config.deterministic

    def _compilable_parts(self) -> list[nn.Module]:
        return [*super()._compilable_parts(), self.decoder]

    # Training

    @override
    def _loss(self, iou: Tensor, grid: MapGrid, query: Query, generator: Generators) -> Tensor:
        *_, num_clips = query
        target = self.objective.target(iou)
        noisy, timesteps = self._corrupt(target, grid, num_clips, generator)
        map_features = self.encoder(*query)
        scores = self.predict_scores(noisy, timesteps, map_features, num_clips)
        return self.objective(scores, target, grid.packed_mask(target.device, num_clips))

    def _corrupt(
        self, target: Tensor, grid: MapGrid, num_clips: Tensor | None, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """Return noisy maps and their timesteps; if deterministic, empty maps at the last one."""
        batch, device, last = len(target), target.device, len(self.scheduler) - 1
        if self.config.deterministic:
            return torch.zeros_like(target), torch.full((batch,), last, device=device)
        generators = check_generators("MomentLocalizer.loss", generator, batch)
        rows = batch // len(generators)  # per generator

        def draw(function: Callable[..., Tensor], *shape: int, **options: Any) -> Tensor:
            each = {"device": device, **options}
            return torch.cat([function(rows, *shape, generator=one, **each) for one in generators])

        if isinstance(generator, list | tuple) and num_clips is not None and grid != self.grid:
            place = {"device": device, "dtype": target.dtype}
            noise = self._draw_per_video(grid, num_clips, generators, place)
        else:  # all videos have the same cells, or one source
            noise = draw(torch.randn, target.shape[1], dtype=target.dtype)
        timesteps = self._timesteps_of(draw(torch.rand, dtype=torch.float32))
        signal = self.scheduler.to_signal(target)
        return self.scheduler.add_noise(signal, noise, timesteps), timesteps

    def _timesteps_of(self, uniform: Tensor) -> Tensor:
        share = uniform ** (1 / (self.config.timestep_power + 1))
        # Rounding may give 1, outside [0, 1).
        return (share * len(self.scheduler)).long().clamp(max=len(self.scheduler) - 1)

    def predict_scores(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        features: Sequence[Tensor],
        num_clips: Tensor | None = None,
    ) -> Tensor:
        """Predict the objective's scores of all cells from noisy maps, at their timesteps.

        Shape:
            - noisy: (B, cells), on the scheduler's signal scale
            - timesteps, num_clips: (B,)
            - features: K tensors (B, channels, N_k, A)
            - returns: (B, cells)
        """
        scaled = self.scheduler.scale_model_input(noisy, timesteps).to(self._decoder_dtype)
        scores: Tensor = self.decoder(scaled, timesteps, features, num_clips)
        return scores

    @property
    def _decoder_dtype(self) -> torch.dtype:
        # Custom decoders need not have a dtype. The encoder may have another, such as a frozen one.
        dtype: torch.dtype = getattr(self.decoder, "dtype", None) or self.dtype
        return dtype

    # Sampling

    @answering
    @override
    def predict_maps(self, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the mean of the samples; `args` and `kwargs` are those of `predict_samples`."""
        return self.predict_samples(*args, **kwargs).mean(dim=1)

    @answering
    @override
    def predict_samples(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        num_clips: Tensor | None = None,
        *,
        num_samples: int | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Sample `num_samples` maps of each query. Defaults to the configured number.

        `features`, `words`, `num_words` and `num_clips` are as for `localize`, `**sampling` as for
        `draw_samples`.

        Shape:
            - returns: (B, num_samples, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, or an argument is out of range.
        """
        self.grid_of(features, num_clips).check_num_clips(num_clips, wait=True)
        maps = self.encoder(features, words, num_words, num_clips)
        count = self.config.num_samples if num_samples is None else num_samples
        return self.draw_samples(maps, count, num_clips=num_clips, **sampling)

    @answering
    def draw_samples(
        self,
        features: Sequence[Tensor],
        num_samples: int,
        *,
        num_clips: Tensor | None = None,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Denoise several maps of each query, one after another, each from new noise.

        The first samples do not depend on `num_samples`, which must be 1 for a deterministic
        localizer. `features`, `num_clips`, `num_inference_steps`, `eta`, `generator` and `callback`
        are as for `sample_maps`.

        Shape:
            - returns: (B, num_samples, cells), 0 in invalid cells

        Raises:
            ShapeError, ArgumentError: As `sample_maps`; if `num_samples` is out of range.
        """
        count = self._check_samples(num_samples)
        run = self._begin(features, num_clips, num_inference_steps)
        # One batch of all samples would repeat the features, the largest tensors.
        samples = [self._denoise(run, None, eta, generator, callback) for _ in range(count)]
        return torch.stack(samples, dim=1)

    @answering
    def sample_maps(
        self,
        features: Sequence[Tensor],
        *,
        num_clips: Tensor | None = None,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        noise: Tensor | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Denoise maps from pure noise; a deterministic localizer predicts them in one pass.

        Without a callback, and with `eta` 0, no step waits for the device.

        Args:
            features: Map features from the encoder.
            num_clips: Clips of each video, as passed to the encoder.
            num_inference_steps: Denoising steps. Defaults to the configured number.
            eta: 0 is deterministic, 1 adds as much noise as DDPM. Only for the solver `ddim`.
            generator: Source of noise: one, or one per sample, which makes results independent of
                batching.
            noise: Noise to start from, instead of drawing it with `generator`.
            callback: Called with a `DenoisingStep` after each step.

        Shape:
            - features: K tensors (B, channels, N_k, A)
            - num_clips: (B,)
            - noise: (B, cells)
            - returns: (B, cells), the map that the objective learns, 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `num_inference_steps` or `eta` is out of range, the solver does not
                support `eta`, or a deterministic localizer is given `eta`, `noise` or a callback.
        """
        run = self._begin(features, num_clips, num_inference_steps)
        return self._denoise(run, noise, eta, generator, callback)

    def _begin(
        self, features: Sequence[Tensor], num_clips: Tensor | None, num_inference_steps: int | None
    ) -> _Run:
        """Choose the timesteps and prepare the decoder for them."""
        scheduler, device = self.scheduler, features[0].device
        if self.config.deterministic:
            if num_inference_steps not in (None, 1):
                got = f"num_inference_steps = {num_inference_steps}"
                expected = "one step, as the model is deterministic"
                raise ArgumentError(message("MomentLocalizer", expected, got))
            timesteps = [len(scheduler) - 1]
        else:
            steps = num_inference_steps
            steps = self.config.num_inference_steps if steps is None else steps
            timesteps = scheduler.begin(steps).timesteps
        run = begin_run(self.decoder, features, torch.tensor(timesteps, device=device), num_clips)
        grid = self.grid if num_clips is None else self.grid.resized(features[0].shape[2])
        mask = grid.packed_mask(device, num_clips)
        return _Run(run, timesteps, len(features[0]), grid, num_clips, mask)

    def _denoise(
        self,
        run: _Run,
        noise: Tensor | None,
        eta: float,
        generator: Generators,
        callback: StepCallback | None,
    ) -> Tensor:
        who = "MomentLocalizer.sample_maps"
        scheduler, objective, mask = self.scheduler, self.objective, run.mask
        check_generators(who, generator, run.batch)
        check_range(who, "eta", eta, 0, 1)
        if self.config.deterministic:
            for name, value in (("eta", eta or None), ("noise", noise), ("callback", callback)):
                if value is not None:
                    expected = f"no {name}, as the model is deterministic"
                    raise ArgumentError(message(who, expected, "one"))
            empty = torch.zeros(run.batch, run.grid.num_cells, device=mask.device)
            scaled = scheduler.scale_model_input(empty, run.timesteps[0]).to(self._decoder_dtype)
            maps = objective.activation(run.decoder.denoise(scaled, 0).float())
            return maps.masked_fill(~mask, 0)

        # 1. Start from noise.
        if noise is None:
            noise = self._draw(run, generator)
        check_shape(who, "noise", noise, f"{run.batch} {run.grid.num_cells}")
        noisy = noise.to(torch.promote_types(noise.dtype, torch.float32))
        steps = SchedulerRun(run.timesteps)

        for index, timestep in enumerate(run.timesteps):
            # 2. Predict the clean maps.
            scaled = scheduler.scale_model_input(noisy, timestep).to(self._decoder_dtype)
            scores = run.decoder.denoise(scaled, index)
            clean = scheduler.to_signal(objective.activation(scores.to(noisy.dtype)))

            # 3. Step to less noisy maps.
            is_last = index + 1 == len(run.timesteps)
            fresh = None if eta == 0 or is_last else self._draw(run, generator).to(noisy)
            noisy, clean = scheduler.step(
                clean, timestep, noisy, eta, variance_noise=fresh, return_dict=False, run=steps
            )
            if callback is not None:
                seen = (scheduler.to_iou(one).masked_fill(~mask, 0) for one in (clean, noisy))
                callback(DenoisingStep(index, timestep, *seen))
        return scheduler.to_iou(noisy).masked_fill(~mask, 0)

    def _draw(self, run: _Run, generator: Generators) -> Tensor:
        """Draw noise. With one generator per sample, it does not depend on the batch."""
        grid, batch = run.grid, run.batch
        # The same numbers whatever torch's default dtype.
        place: Any = {"device": run.mask.device, "dtype": torch.float32}
        several = list(generator) if isinstance(generator, list | tuple) else None
        if run.num_clips is None or not several:
            # An empty list is valid for an empty batch.
            source = generator if several is None else several or None
            return randn_tensor((batch, grid.num_cells), generator=source, **place)
        return self._draw_per_video(grid, run.num_clips, several, place)

    def _draw_per_video(
        self,
        grid: MapGrid,
        num_clips: Tensor,
        generators: Sequence[torch.Generator | None],
        place: dict[str, Any],
    ) -> Tensor:
        """Draw on the grid of each video alone, so that noise does not depend on the padding."""
        coarsest = grid.stride(grid.num_scales - 1)
        maps = [torch.zeros(len(num_clips), *shape, **place) for shape in grid.shapes]
        for row, clips in enumerate(num_clips.tolist()):
            own = self.grid.resized(max(-(-clips // coarsest) * coarsest, self.grid.num_clips))
            noise = randn_tensor((1, own.num_cells), generator=generators[row], **place)
            for scale, one in enumerate(own.unpack(noise)):
                maps[scale][row, : one.shape[1]] = one[0]
        return grid.pack(maps)

    def _check_samples(self, num_samples: int) -> int:
        count = check_int("MomentLocalizer", "num_samples", num_samples, at_least=1)
        check_range("MomentLocalizer", "num_samples", count, 1, _MOST_SAMPLES)
        if self.config.deterministic and count != 1:
            expected, got = "one sample, as the model is deterministic", f"num_samples = {count}"
            raise ArgumentError(message("MomentLocalizer", expected, got))
        return count
