"""The whole model: encoder and decoder, loss, and the sampling loop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from typing_extensions import Self

from tmapdiff._core.checks import check_bool, check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.kernels.ddim_step import Activation, DDIMStep, ddim_step
from tmapdiff.models._base import answering
from tmapdiff.models.captured_runs import CapturedRuns
from tmapdiff.models.decoder import MapDiffusionDecoder
from tmapdiff.models.encoder import MultimodalEncoder
from tmapdiff.models.map_localizer import Generators, MapLocalizer, Ranking, check_generators
from tmapdiff.models.prepared import PreparedDecoder
from tmapdiff.schedulers import MapScheduler, SchedulerRun


@dataclass(frozen=True)
class DenoisingStep:
    """What a denoising run has come to after a step; given to callbacks.

    Attributes:
        index: Number of the step, from 0.
        timestep: Its timestep.
        clean: The maps that the model believed in, 0 in invalid cells.
        noisy: The maps that the next step starts from, mapped to IoU: noise goes far beyond [0, 1].
            0 in invalid cells.

    Shape:
        - clean, noisy: (B, cells)
    """

    index: int
    timestep: int
    clean: Tensor
    noisy: Tensor


_MOST_SAMPLES = 10_000  # a file that asks for more would never get its answer

StepCallback = Callable[[DenoisingStep], None]


@dataclass(frozen=True)
class _Run:
    """What the denoising steps, and samples, of one batch have in common."""

    decoder: PreparedDecoder
    scheduler: MapScheduler
    timesteps: list[int]
    mask: Tensor
    num_clips: Tensor | None
    device: torch.device


class MomentLocalizer(MapLocalizer):
    """Finds the moment of a video that a sentence describes, by denoising IoU maps.

    Args:
        encoder_config: Fields of the `MultimodalEncoder`.
        decoder_config: Fields of the `MapDiffusionDecoder`, of the same grid.
        scheduler_config: Fields of the `MapScheduler`; its defaults, if None.
        objective: What is learned, see `tmapdiff.losses.get_objective`.
        nms_threshold: Highest IoU that two returned moments may have, with `nms`.
        ranking: How moments are read off the map, `nms` or `expected-hits` (`localize`).
        num_inference_steps: Denoising steps of `localize` when the call names none.
        num_samples: Samples that `localize` averages when the call does not say; each costs
            `num_inference_steps` passes of the decoder.
        timestep_power: Training draws a timestep t with density proportional to its power of this
            number: 0 is uniform, more is more noise. Much noise is where video and query have to be
            read, little where the noisy map already gives the moment away.
        deterministic: Predict in one pass from an empty map at the last timestep, in training too:
            the same network as a plain regressor, the control of what diffusion is worth.

    Raises:
        ConfigError: If a field is unknown, or encoder and decoder do not fit each other.
        ArgumentError: If a size is out of range, `num_samples` above 10,000, or `deterministic` not
            True or False.

    Source: Zhang et al., arXiv 2401.08232.
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        decoder_config: dict[str, Any],
        scheduler_config: dict[str, Any] | None = None,
        objective: str = "mse-full",
        nms_threshold: float = 0.49,
        ranking: Ranking = "nms",
        num_inference_steps: int = 2,
        num_samples: int = 1,
        timestep_power: float = 0.0,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = MultimodalEncoder.from_config(encoder_config)
        self.decoder = MapDiffusionDecoder.from_config(decoder_config)
        self._scheduler = MapScheduler.from_config(
            {} if scheduler_config is None else scheduler_config
        )
        self._captured_runs: CapturedRuns | None = None
        self.prepare(self.decoder.grid, objective, nms_threshold, ranking)
        if self.encoder.grid != self.grid:
            raise ConfigError(
                f"MomentLocalizer: expected encoder and decoder of one grid, "
                f"got {self.encoder.grid} and {self.grid}."
            )
        if self.encoder.config.channels != self.decoder.config.feature_channels:
            raise ConfigError(
                f"MomentLocalizer: expected the decoder's feature_channels to be the encoder's "
                f"channels, {self.encoder.config.channels}, "
                f"got {self.decoder.config.feature_channels}."
            )
        self.scheduler.set_timesteps(num_inference_steps)
        check_bool("MomentLocalizer", "deterministic", deterministic)
        self._check_samples(check_int("MomentLocalizer", "num_samples", num_samples, at_least=1))
        check_range("MomentLocalizer", "timestep_power", timestep_power, 0)

    @classmethod
    def from_parts(
        cls,
        encoder: MultimodalEncoder,
        decoder: MapDiffusionDecoder,
        scheduler: MapScheduler | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a localizer of parts that exist already, weights included.

        Args:
            encoder: Encoder to use.
            decoder: Decoder to use.
            scheduler: Scheduler to use; the default one, if None.
            **kwargs: The other fields of the configuration.

        Raises:
            ConfigError: If the parts do not fit each other.
        """
        parts = {"encoder": encoder, "decoder": decoder, "scheduler": scheduler or MapScheduler()}
        fields = {f"{name}_config": dict(part.config) for name, part in parts.items()}
        model = cls(**fields, **kwargs)
        for name, part in parts.items():
            setattr(model, name, part)
        model.scheduler.set_timesteps(model.config.num_inference_steps)
        return model

    @property
    def scheduler(self) -> MapScheduler:
        """Adds the noise of training, and denoises; saved with the model, also one set later.

        Raises:
            ArgumentError: If it is set to no `MapScheduler`.
        """
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: MapScheduler) -> None:
        if not isinstance(scheduler, MapScheduler):
            hint = "MapScheduler has diffusers' solvers, too: see its `solver`."
            got = type(scheduler).__name__
            raise ArgumentError(message(type(self).__name__, "a MapScheduler", got, hint))
        self._scheduler = scheduler
        self.register_to_config(scheduler_config=dict(scheduler.config))

    def enable_cuda_graphs(self, most: int = 4) -> None:
        """Denoise on a GPU in CUDA graphs: all steps of a batch are then one launch.

        Steps of small batches take a GPU less time than Python takes to launch them. The first run
        of a kind takes longer, as it is captured: kinds differ in batch, clips, steps and dtype, so
        give batches of one size. Each graph keeps memory of its own: that of its map features, and
        of a step. Captured are runs in evaluation, without callbacks, with the solver ddim and
        `eta` 0; others, and all on a CPU, stay as they are.

        Args:
            most: Graphs that are kept; the one not used for longest makes room for a new one.

        Raises:
            ArgumentError: If `most` is below 1.
        """
        check_int("MomentLocalizer.enable_cuda_graphs", "most", most, at_least=1)
        self._captured_runs = CapturedRuns(most)

    def evaluation_view(self) -> Self:
        """Give the model in evaluation mode; as `MapModel.evaluation_view`, without CUDA graphs.

        Raises:
            ArgumentError: As `MapModel.evaluation_view`.
        """
        view = super().evaluation_view()
        if view is not self:
            view._captured_runs = None  # graphs are kept for parts that stay
        return view

    def disable_cuda_graphs(self) -> None:
        """Denoise step by step again, and free what the graphs keep."""
        self._captured_runs = None

    @property
    def is_generative(self) -> bool:
        """Whether predictions are samples: drawn from noise, in a number of denoising steps."""
        return not self.config.deterministic

    def loss(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None = None,
        num_clips: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Compute the training loss on a batch, at random timesteps.

        Args:
            features: Features of the clips.
            words: Word indices, padded with 0.
            num_words: Words of each query.
            moments: Annotated moments, in seconds.
            clip_seconds: Seconds a clip lasts, for each sample.
            num_moments: Moments that count, for each sample; may be 0. All, if None.
            num_clips: Clips of each video, when videos are shorter than the grid.
            generator: Source of timesteps and noise, on the features' device: one, or one a query
                (these are then independent of how queries are batched).

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L)
            - num_words, clip_seconds, num_moments, num_clips: (B,)
            - moments: (B, 2) or (B, M, 2)
            - returns: ()

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, a moment is no moment of the video, or a video
                has no clip or more than there are features of.
        """
        target, mask = self._targets(features, moments, clip_seconds, num_moments, num_clips)
        noisy, timesteps = self._corrupt(target, generator)
        map_features = self.encoder(features, words, num_words, num_clips)
        scores = self.denoise(noisy, timesteps, map_features, num_clips)
        return self.objective(scores, target, mask)

    def _compilable_parts(self) -> list[nn.Module]:
        return [*super()._compilable_parts(), self.decoder]

    def _corrupt(self, target: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
        """Noisy maps and their timesteps; of a regressor, empty maps at the last one."""
        batch, device, last = len(target), target.device, len(self.scheduler) - 1
        if self.config.deterministic:
            return torch.zeros_like(target), torch.full((batch,), last, device=device)
        check_generators("MomentLocalizer.loss", generator, batch)
        generators: list[torch.Generator | None]
        if generator is None or isinstance(generator, torch.Generator):
            generators = [generator]
        else:
            generators = list(generator) or [None]  # of no queries
        drawn = target.split(batch // len(generators)) if batch else [target]
        noise = torch.cat(
            [
                torch.randn(part.shape, dtype=part.dtype, device=device, generator=one)
                for part, one in zip(drawn, generators, strict=True)
            ]
        )
        uniform = torch.cat(
            [
                torch.rand(len(part), device=device, generator=one)
                for part, one in zip(drawn, generators, strict=True)
            ]
        )
        timesteps = self._timesteps_of(uniform)
        signal = self.scheduler.to_signal(target)
        return self.scheduler.add_noise(signal, noise, timesteps), timesteps

    def _timesteps_of(self, uniform: Tensor) -> Tensor:
        share = uniform ** (1 / (self.config.timestep_power + 1))
        # Rounding may reach the end of [0, 1).
        return (share * len(self.scheduler)).long().clamp(max=len(self.scheduler) - 1)

    def denoise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        features: Sequence[Tensor],
        num_clips: Tensor | None = None,
    ) -> Tensor:
        """Predict the scores of all cells from noisy maps, at their timesteps.

        Shape:
            - noisy: (B, cells), as a signal
            - timesteps: (B,)
            - features: K tensors (B, channels, N_k, A)
            - num_clips: (B,)
            - returns: (B, cells), scores of the objective
        """
        scaled = self.scheduler.scale_model_input(noisy, timesteps)
        return self.decoder(scaled.to(self.decoder.dtype), timesteps, features, num_clips)

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

        What steps have in common is computed before the first (`MapDiffusionDecoder.prepare`).
        Without a callback, and with `eta` 0, no step waits for the device.

        Args:
            features: Map features, as the encoder gives them.
            num_clips: Clips of each video, as the encoder was given them.
            num_inference_steps: Denoising steps; the configuration's number, if None.
            eta: 0 is deterministic, 1 adds as much noise as DDPM: with the scheduler's solver ddim
                only.
            generator: Source of noise: one, or one a sample (results are then independent of how
                samples are batched).
            noise: The noise to start from, instead of `generator`.
            callback: Called with a `DenoisingStep` after each step.

        Shape:
            - features: K tensors (B, channels, N_k, A)
            - num_clips: (B,)
            - noise: (B, cells)
            - returns: (B, cells), the map that the objective learns, 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `num_inference_steps` or `eta` is out of range, or the solver takes no
                `eta`.
        """
        run = self._prepare(features, num_clips, num_inference_steps)
        return self._sample(run, eta=eta, generator=generator, noise=noise, callback=callback)

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
        """Denoise several maps of each query, one after another, from noise of their own.

        The first samples are the same whatever `num_samples`.

        Args:
            features: Map features, as the encoder gives them.
            num_samples: Samples of each query; 1 of a deterministic localizer.
            num_clips: As for `sample_maps`.
            num_inference_steps: As for `sample_maps`.
            eta: As for `sample_maps`.
            generator: Source of noise: one, or one a query.
            callback: As for `sample_maps`, for each sample.

        Shape:
            - features: K tensors (B, channels, N_k, A)
            - num_clips: (B,)
            - returns: (B, num_samples, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If an argument is out of range.
        """
        count = check_int("MomentLocalizer", "num_samples", num_samples, at_least=1)
        self._check_samples(count)
        run = self._prepare(features, num_clips, num_inference_steps)
        # Not in one batch: it would repeat the features, the largest tensors of all.
        samples = [
            self._sample(run, eta=eta, generator=generator, callback=callback) for _ in range(count)
        ]
        return torch.stack(samples, dim=1)

    def _prepare(
        self,
        features: Sequence[Tensor],
        num_clips: Tensor | None,
        num_inference_steps: int | None,
    ) -> _Run:
        """Prepare a run; a regressor's is one step from an empty map."""
        scheduler, device = self.scheduler, features[0].device
        if self.config.deterministic:
            if num_inference_steps not in (None, 1):
                raise ArgumentError(
                    f"MomentLocalizer: expected one step, as it is deterministic, "
                    f"got num_inference_steps = {num_inference_steps}."
                )
            timesteps = [len(scheduler) - 1]
        else:
            if num_inference_steps is None:
                num_inference_steps = self.config.num_inference_steps
            timesteps = scheduler.begin(num_inference_steps).timesteps
        decoder = self.decoder.prepare(features, torch.tensor(timesteps, device=device), num_clips)
        mask = decoder.grid.packed_mask(device, num_clips)
        return _Run(decoder, scheduler, timesteps, mask, num_clips, device)

    def _sample(
        self,
        run: _Run,
        *,
        eta: float,
        generator: Generators,
        noise: Tensor | None = None,
        callback: StepCallback | None,
    ) -> Tensor:
        who, shape = "MomentLocalizer.sample_maps", (run.decoder.batch, run.decoder.grid.num_cells)
        if self.config.deterministic:
            empty = torch.zeros(shape, device=run.device)
            maps = self.objective.activation(self._denoise_step(empty, 0, run))
            return maps.masked_fill(~run.mask, 0)
        check_generators(who, generator, shape[0])
        check_range(who, "eta", eta, 0, 1)
        if isinstance(generator, list | tuple):
            generator = list(generator) or None  # of no samples
        if noise is None:
            maps = self._draw(run, generator)
        else:
            check_shape(who, "noise", noise, f"{shape[0]} {shape[1]}")
            maps = noise
        scheduler, steps = run.scheduler, SchedulerRun(run.timesteps)
        if eta == 0 and scheduler.config.solver == "ddim":
            return self._sample_ddim(run, steps, maps, callback)
        for index, timestep in enumerate(run.timesteps):
            scores = self._denoise_step(maps, index, run)
            clean = scheduler.to_signal(self.objective.activation(scores))
            fresh = None
            if eta > 0 and scheduler.previous_timestep(timestep, steps) >= 0:
                fresh = self._draw(run, generator).to(maps)
            maps, clean = scheduler.step(
                clean, timestep, maps, eta, variance_noise=fresh, return_dict=False, run=steps
            )
            if callback is not None:
                callback(self._step(run, index, clean, maps))
        return scheduler.to_iou(maps).masked_fill(~run.mask, 0)

    def _sample_ddim(
        self, run: _Run, steps: SchedulerRun, maps: Tensor, callback: StepCallback | None
    ) -> Tensor:
        """Do the same as the general loop, with all between two passes in one operation."""
        scheduler = run.scheduler
        # Copied once: a number that changed from step to step would keep a GPU waiting.
        coefficients = scheduler.coefficients(steps).to(torch.float32).to(run.device)
        scaled = scheduler.scale_model_input(maps, run.timesteps[0]).to(self.dtype)
        activation: Activation = "sigmoid" if self.objective.learns_logits else "identity"
        inputs = run.decoder, maps, scaled, coefficients, activation, scheduler.config.clip_sample
        captured = self._captured_runs if callback is None else None
        if captured is not None and captured.takes(maps):
            read = [*self.decoder.parameters(), *self.decoder.buffers()]
            maps = captured(_last_maps, read, *inputs)
        else:
            for index, (maps, clean, _) in enumerate(_ddim_steps(*inputs)):
                if callback is not None:
                    callback(self._step(run, index, clean, maps))
        return scheduler.to_iou(maps).masked_fill(~run.mask, 0)

    def _step(self, run: _Run, index: int, clean: Tensor, noisy: Tensor) -> DenoisingStep:
        shown = [run.scheduler.to_iou(one).masked_fill(~run.mask, 0) for one in (clean, noisy)]
        return DenoisingStep(index, run.timesteps[index], *shown)

    def _denoise_step(self, noisy: Tensor, step: int, run: _Run) -> Tensor:
        """Predict the scores of all cells at a step of a run: equal to `denoise`, but faster."""
        scaled = run.scheduler.scale_model_input(noisy, run.timesteps[step])
        return run.decoder.denoise(scaled.to(self.dtype), step).float()

    def _check_samples(self, num_samples: int) -> None:
        check_range("MomentLocalizer", "num_samples", num_samples, 1, _MOST_SAMPLES)
        if self.config.deterministic and num_samples != 1:
            expected = "one sample, as it is deterministic"
            raise ArgumentError(
                message("MomentLocalizer", expected, f"num_samples = {num_samples}")
            )

    def _draw(self, run: _Run, generator: Generators) -> Tensor:
        """Draw noise, of each sample with a generator of its own from that alone."""
        grid, batch, device = run.decoder.grid, run.decoder.batch, run.device
        if run.num_clips is None or not isinstance(generator, list):
            return randn_tensor((batch, grid.num_cells), generator=generator, device=device)
        # On the grid that the video would have alone: its noise must not depend on the padding.
        coarsest = grid.stride(grid.num_scales - 1)
        maps = [torch.zeros(batch, *shape, device=device) for shape in grid.shapes]
        for row, clips in enumerate(run.num_clips.tolist()):
            own = self.grid.resized(max(-(-clips // coarsest) * coarsest, self.grid.num_clips))
            noise = randn_tensor((1, own.num_cells), generator=generator[row], device=device)
            for scale, one in enumerate(own.unpack(noise)):
                maps[scale][row, : one.shape[1]] = one[0]
        return grid.pack(maps)

    @answering
    def predict_maps(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        num_clips: Tensor | None = None,
        *,
        num_inference_steps: int | None = None,
        num_samples: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Sample the map that the objective learns; `localize` passes these arguments on.

        Of several samples this is the mean: the expectation that `rank_by_expected_hits` reads.

        Args:
            features: Features of the clips.
            words: Word indices, padded with 0.
            num_words: Words of each query.
            num_clips: Clips of each video, when they differ. The features may then be of another
                number of clips than the configuration's.
            num_inference_steps: Denoising steps; the configuration's number, if None.
            num_samples: Samples of each query; the configuration's number, if None.
            eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
            generator: Source of noise: one, or one a query.
            callback: As for `sample_maps`, for each sample.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L)
            - num_words, num_clips: (B,)
            - returns: (B, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, or an argument is out of range.
        """
        self.grid_of(features, num_clips).check_num_clips(num_clips, wait=True)
        if num_samples is None:
            num_samples = self.config.num_samples
        samples = self.draw_samples(
            self.encoder(features, words, num_words, num_clips),
            num_samples,
            num_clips=num_clips,
            num_inference_steps=num_inference_steps,
            eta=eta,
            generator=generator,
            callback=callback,
        )
        return samples.mean(dim=1)


def _ddim_steps(
    prepared: PreparedDecoder,
    maps: Tensor,
    scaled: Tensor,
    coefficients: Tensor,
    activation: Activation,
    clip: bool,
) -> Iterator[DDIMStep]:
    """Denoise maps, step by step; a device has nothing to wait for."""
    for index in range(len(coefficients)):
        scores = prepared.denoise(scaled, index)
        step = ddim_step(scores, maps, coefficients[index], activation=activation, clip=clip)
        yield step
        maps, _, scaled = step


def _last_maps(*inputs: Any) -> Tensor:
    for step in _ddim_steps(*inputs):
        maps = step.noisy
    return maps
