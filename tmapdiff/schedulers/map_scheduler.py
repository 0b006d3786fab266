"""DDIM and two multistep solvers on packed IoU maps."""

import math
import os
from copy import copy
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, DDIMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor
from typing_extensions import Self

from tmapdiff._core.checks import (
    check_bool,
    check_choice,
    check_floating,
    check_int,
    check_range,
    check_shape,
    foreign_errors,
    message,
)
from tmapdiff._core.configs import NotAConfigError, StrictConfigMixin
from tmapdiff._core.files import folder_to_save_in, written_beside
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.schedulers.multistep import Past, extrapolated, interpolated

BetaSchedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
TimestepSpacing = Literal["trailing", "leading", "linspace"]
Solver = Literal["ddim", "dpmsolver++", "unipc"]

_MOST_TIMESTEPS = 100_000  # a hundred times the usual number: a loop builds the tables


@dataclass
class MapSchedulerOutput(BaseOutput):
    """Result of a denoising step.

    Shape:
        - prev_sample: (B, cells), maps at the previous, less noisy timestep
        - pred_original_sample: (B, cells), predicted clean maps
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


@dataclass
class SchedulerRun:
    """State of one denoising run, from `MapScheduler.begin`.

    Runs are independent, so each thread may have its own.

    Attributes:
        timesteps: The timesteps of the run, from noise to clean.
        past: The last steps taken, for multistep solvers.
    """

    timesteps: list[int]
    past: list[Past] = field(default_factory=list)


class MapScheduler(StrictConfigMixin, SchedulerMixin, ConfigMixin):
    """DDIM and two multistep solvers on packed IoU maps, for models that predict the clean maps.

    Wraps `diffusers.DDIMScheduler` for the noise schedule and the spacing of timesteps, with five
    differences: trailing timesteps are exact for every number of steps; a step looks up the
    previous timestep in `timesteps` (diffusers computes it, wrongly unless the number of steps
    divides that of timesteps); timesteps are checked; tables do not move between devices; and the
    predicted noise fits the clipped prediction (diffusers' `use_clipped_model_output=True`).

    IoU in [0, 1] becomes a signal in [-signal_scale, signal_scale] before noise is added
    (`to_signal`), and is mapped back after sampling (`to_iou`). An IoU map repeats its two degrees
    of freedom in hundreds of cells, so noise does not hide the moment unless the signal is scaled
    far below the 1 or 2 of other diffusion models.

    The solver determines how a step uses earlier predictions:

    - `ddim`: not at all. The only solver that can add noise (`eta`).
    - `dpmsolver++`: extrapolates the last two linearly, to sample in fewer steps. Its error is
      inversely proportional to the square of the number of steps, that of `ddim` to the number.
    - `unipc`: also corrects the last step with the prediction at its end, without another run of
      the model. More accurate when there are few steps.

    The multistep solvers equal `ddim` up to two steps. Use spacing `trailing` with them: unless
    there are many steps, the last one of `linspace` is too long to extrapolate over. Their steps
    must follow `timesteps` in order, each once; `set_timesteps` starts a new run.

    `set_timesteps` and `step` work as in diffusers, on one run at a time. Threads that share a
    scheduler pass `step` their own run, made by `begin`; the localizers do so.

    Args:
        num_train_timesteps: Timesteps of the noise schedule.
        beta_schedule: Shape of the noise schedule, in diffusers' names.
        beta_start: First beta of the linear schedules.
        beta_end: Last beta of the linear schedules.
        timestep_spacing: Spacing of sampling timesteps. `trailing` starts at pure noise for every
            number of steps.
        signal_scale: Largest absolute value of the signal.
        clip_sample: Whether steps clip the predicted signal to its range.
        normalize_input: Whether `scale_model_input` scales noisy maps to about unit variance.
        solver: How steps use earlier predictions.

    Raises:
        ConfigError: If `beta_schedule`, `timestep_spacing` or `solver` is unknown.
        ArgumentError: If `num_train_timesteps` is below 1 or above 100,000, a beta is outside
            (0, 1), `signal_scale` is not positive, or a switch is not True or False.

    Source: Song et al., DDIM, arXiv 2010.02502; Lu et al., DPM-Solver++ (2M), arXiv 2211.01095;
        Zhao et al., UniPC (of order 2), arXiv 2302.04867; signal scale: Chen et al., Analog Bits,
        arXiv 2208.04202; input scaling: Chen, arXiv 2301.10972.
    """

    config_name = "scheduler_config.json"
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: BetaSchedule = "squaredcos_cap_v2",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        timestep_spacing: TimestepSpacing = "trailing",
        signal_scale: float = 0.1,
        clip_sample: bool = True,
        normalize_input: bool = True,
        solver: Solver = "ddim",
    ) -> None:
        who = "MapScheduler"
        check_int(who, "num_train_timesteps", num_train_timesteps, at_least=1)
        check_range(who, "num_train_timesteps", num_train_timesteps, 1, _MOST_TIMESTEPS)
        check_choice(who, "beta_schedule", beta_schedule, get_args(BetaSchedule))
        check_choice(who, "timestep_spacing", timestep_spacing, get_args(TimestepSpacing))
        check_choice(who, "solver", solver, get_args(Solver))
        check_range(who, "beta_start", beta_start, 0, 1, open_low=True)
        check_range(who, "beta_end", beta_end, 0, 1, open_low=True)
        check_range(who, "signal_scale", signal_scale, 0, open_low=True)
        check_bool(who, "clip_sample", clip_sample)
        check_bool(who, "normalize_input", normalize_input)
        self._ddim = DDIMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_schedule=beta_schedule,
            beta_start=beta_start,
            beta_end=beta_end,
            timestep_spacing=timestep_spacing,
            prediction_type="sample",
            clip_sample=clip_sample,
            clip_sample_range=signal_scale,
        )
        # In float64, for accurate rates with maps of any dtype.
        self.alphas_cumprod = self._ddim.alphas_cumprod.double()
        self._tables: dict[torch.device, Tensor] = {}
        self.set_timesteps(num_train_timesteps)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a scheduler's configuration from a folder or the hub, as diffusers does.

        `pretrained_model_name_or_path` is a folder or a hub name; `kwargs` are diffusers'.

        Raises:
            CheckpointError: If there is no such configuration, or it is damaged.
            ConfigError, ArgumentError: As for the class.
        """
        place = f"{cls.__name__}: cannot load {pretrained_model_name_or_path}"
        with foreign_errors(CheckpointError, place):
            try:
                scheduler: Self = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            except NotAConfigError as error:
                raise CheckpointError(f"{place}: {error}") from error
        return scheduler

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write scheduler_config.json into a folder, keeping all other files there.

        `save_directory` is created if needed; `kwargs` are diffusers'.

        Raises:
            FileError: If `save_directory` is a file or cannot be written. It is then unchanged.
        """
        with written_beside(folder_to_save_in(type(self).__name__, save_directory)) as new:
            super().save_pretrained(str(new), **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return 1.0

    # IoU <-> signal

    def to_signal(self, iou: Tensor) -> Tensor:
        """Map `iou` in [0, 1], of any shape, to a signal in [-signal_scale, signal_scale]."""
        return (2 * iou - 1) * self.config.signal_scale

    def to_iou(self, signal: Tensor) -> Tensor:
        """Map a `signal` of any shape back to IoU. Values outside its range are not clipped."""
        return (signal / self.config.signal_scale + 1) / 2

    # Training

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """Add noise to clean maps: `sqrt(a_t) * x0 + sqrt(1 - a_t) * noise`.

        Args:
            original_samples: Clean maps, as a signal.
            noise: Standard normal noise.
            timesteps: Timestep of each sample, or one for all, 0 to `num_train_timesteps` - 1. A
                Python int avoids synchronizing with the device.

        Shape:
            - original_samples, noise: (B, cells)
            - timesteps: (B,) or (), integer
            - returns: (B, cells)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If maps are integers, or a timestep is none or is out of range. The range
                of tensors is only checked on the CPU, outside compiled code; other devices fail
                themselves.

        Source: Ho et al., DDPM, arXiv 2006.11239, Eq. 4.
        """
        who = "MapScheduler.add_noise"
        sizes = check_shape(who, "original_samples", original_samples, "B cells")
        check_shape(who, "noise", noise, "B cells", sizes)
        check_floating(who, "original_samples", original_samples)
        alpha = self._alphas(who, timesteps, sizes)
        signal, sigma = _rates(alpha, original_samples)
        return signal * original_samples + sigma * noise

    def scale_model_input(self, sample: Tensor, timesteps: Tensor | int) -> Tensor:
        """Divide noisy maps by their standard deviation at a timestep.

        `timesteps` and errors are as for `add_noise`.

        Shape:
            - sample: (B, cells)
            - returns: (B, cells); `sample` itself when `normalize_input` is off
        """
        who = "MapScheduler.scale_model_input"
        sizes = check_shape(who, "sample", sample, "B cells")
        check_floating(who, "sample", sample)
        if not self.config.normalize_input:
            return sample
        alpha = self._alphas(who, timesteps, sizes)
        if isinstance(alpha, float):
            return sample * self._input_scale(alpha)
        signal, sigma = _rates(alpha, sample)
        return sample * ((signal * self.config.signal_scale) ** 2 + sigma**2).rsqrt()

    def _input_scale(self, alpha: float) -> float:
        if not self.config.normalize_input:
            return 1.0
        # Most cells of an IoU map are 0, so the mean square of the signal is about signal_scale**2.
        return float((alpha * self.config.signal_scale**2 + 1 - alpha) ** -0.5)

    # Sampling

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Start a new run: set `timesteps` for sampling, from noise to clean.

        Args:
            num_inference_steps: Steps, 1 to `num_train_timesteps`.
            device: Where `timesteps` goes.

        Raises:
            ArgumentError: If `num_inference_steps` is out of range.
        """
        self._run = self.begin(num_inference_steps)
        self.num_inference_steps = len(self._run.timesteps)
        self._timesteps = torch.tensor(self._run.timesteps, device=device)

    @property
    def timesteps(self) -> Tensor:
        """Timesteps of the run; setting others, such as its last ones, starts a run of these.

        Raises:
            ArgumentError: If they are set to something other than integers that decrease, from
                below `num_train_timesteps` to at least 0.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        who, tensor = "MapScheduler.timesteps", torch.as_tensor(timesteps)
        check_shape(who, "timesteps", tensor, "steps")
        steps = tensor.tolist()
        bounded = [len(self), *steps, -1]
        whole = all(type(step) is int for step in steps)
        if not (steps and whole and all(now > after for now, after in pairwise(bounded))):
            expected = f"decreasing integers, below {len(self)} and not below 0"
            raise ArgumentError(message(who, expected, steps))
        self._run, self._timesteps = SchedulerRun(steps), tensor
        self.num_inference_steps = len(steps)

    def begin(self, num_inference_steps: int) -> SchedulerRun:
        """Return a separate run; `num_inference_steps` and errors are as in `set_timesteps`."""
        who, most = "MapScheduler", self.config.num_train_timesteps
        steps = check_int(who, "num_inference_steps", num_inference_steps, at_least=1)
        check_range(who, "num_inference_steps", steps, 1, most)
        if self.config.timestep_spacing == "trailing":
            # With fractions: diffusers counts down in floats, which for some numbers of steps (61
            # of 1000, for example) adds a step to timestep -1.
            return SchedulerRun(
                [round(Fraction(most * left, steps)) - 1 for left in range(steps, 0, -1)]
            )
        ddim = copy(self._ddim)  # as it stores the timesteps, and other threads may set others
        ddim.set_timesteps(steps)
        return SchedulerRun(ddim.timesteps.tolist())

    def coefficients(self, run: SchedulerRun | None = None) -> Tensor:
        """Compute the numbers of all DDIM steps of a run, for programs without this library.

        Args:
            run: The run. Defaults to that of `set_timesteps`.

        Shape:
            - returns: (steps, 4), float64: weights of clean and of noisy maps in the result of a
              step, scale of the decoder's next input, `signal_scale`

        Raises:
            ConfigError: If the solver is not `ddim`.
        """
        if self.config.solver != "ddim":
            expected = "solver ddim, whose steps are independent"
            raise ConfigError(message("MapScheduler.coefficients", expected, self.config.solver))
        steps, scale = (run or self._run).timesteps, self.config.signal_scale
        alphas = [*map(self._alpha, steps), 1.0]
        rows = [
            (*_weights(alpha, alpha_prev), self._input_scale(alpha_prev), scale)
            for alpha, alpha_prev in pairwise(alphas)
        ]
        return torch.tensor(rows, dtype=torch.float64).view(-1, 4)

    def previous_timestep(self, timestep: int | Tensor, run: SchedulerRun | None = None) -> int:
        """Return the timestep that follows `timestep` in the run; -1 is the clean map.

        Args:
            timestep: A timestep of the run.
            run: The run. Defaults to that of `set_timesteps`.

        Raises:
            ArgumentError: If `timestep` is not in the run.
        """
        return self._now_and_next(timestep, run)[1]

    def _now_and_next(self, timestep: int | Tensor, run: SchedulerRun | None) -> tuple[int, int]:
        steps = (run or self._run).timesteps
        now: Any = timestep.squeeze().tolist() if isinstance(timestep, Tensor) else timestep
        if now not in steps:  # nor are fractions and several timesteps
            raise ArgumentError(
                f"MapScheduler: expected a timestep that set_timesteps({len(steps)}) "
                f"chose, got {now}. Loop over scheduler.timesteps."
            )
        place = steps.index(now)
        return steps[place], [*steps, -1][place + 1]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        run: SchedulerRun | None = None,
    ) -> MapSchedulerOutput | tuple[Tensor, Tensor]:
        """Denoise maps by one step, from a timestep to the previous one.

        | here                   | paper                     |
        | ---                    | ---                       |
        | `sample`               | y_t                       |
        | `pred_original_sample` | x0, predicted             |
        | `alpha`, `alpha_prev`  | a_t, a_{t-1}              |
        | `sigma`                | sigma_t(eta)              |

        `y_{t-1} = sqrt(a_{t-1}) x0 + sqrt(1 - a_{t-1} - sigma^2) eps_theta + sigma eps`, with
        `eps_theta = (y_t - sqrt(a_t) x0) / sqrt(1 - a_t)`, the predicted noise

        Multistep solvers have sigma = 0, and combine several predictions into x0 and y_t.

        Args:
            model_output: Predicted clean maps, as a signal.
            timestep: Current timestep, one of `timesteps`. A Python int avoids synchronizing with
                the device.
            sample: Current noisy maps.
            eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM. Multistep solvers need 0.
            generator: Generator of the noise for `eta` > 0.
            variance_noise: The noise itself, instead of `generator`.
            return_dict: Return `MapSchedulerOutput` rather than a tuple.
            run: The run. Defaults to that of `set_timesteps`.

        Shape:
            - model_output, sample, variance_noise: (B, cells)

        Raises:
            ShapeError: If a shape does not fit, or changes during the run of a multistep solver.
            ArgumentError: If `timestep` is not one of `timesteps`, or `eta` is outside [0, 1]; with
                a multistep solver, if `timestep` is not the next one, or noise is requested.

        Source: Song et al., arXiv 2010.02502, Eq. 12 and 16; misprinted as Eq. 5 of arXiv
            2401.08232.
        """
        who = "MapScheduler.step"
        sizes = check_shape(who, "sample", sample, "B cells")
        check_shape(who, "model_output", model_output, "B cells", sizes)
        check_range(who, "eta", eta, 0, 1)
        run = run or self._run
        timestep, previous = self._now_and_next(timestep, run)
        if self.config.solver != "ddim":
            self._check_run(who, run, timestep, sample, eta, variance_noise)

        # 1. The signal and noise rates now and after the step.
        alpha, alpha_prev = self._alpha(timestep), self._alpha(previous)

        # 2. The predicted clean maps, combined with earlier predictions into the step's target.
        pred_original_sample = model_output
        if self.config.clip_sample:
            scale = self.config.signal_scale
            pred_original_sample = model_output.clamp(-scale, scale)
        target = pred_original_sample
        if self.config.solver != "ddim":
            if self.config.solver == "unipc" and run.past:
                last = run.past[-1]
                better = interpolated(run.past, alpha, pred_original_sample)
                sample = _ddim(last.sample, better, last.alpha, alpha)
            # Copies, as the caller may reuse its tensors (CUDA graphs do).
            now = Past(timestep, alpha, sample.clone(), pred_original_sample.clone())
            target = extrapolated([*run.past, now], alpha_prev)
            # A finished run frees its maps and can be repeated.
            run.past = [*run.past[-1:], now] if previous >= 0 else []

        # 3. The standard deviation of fresh noise (Eq. 16), 0 in the last step.
        sigma = 0.0
        if eta:
            beta = 1 - alpha / alpha_prev if alpha_prev else 1.0  # some schedules end in many zeros
            sigma = eta * ((1 - alpha_prev) / (1 - alpha) * beta) ** 0.5

        # 4. The less noisy maps (Eq. 12).
        prev_sample = _ddim(sample, target, alpha, alpha_prev, sigma)
        if sigma > 0:
            if variance_noise is None:
                variance_noise = torch.randn(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            check_shape(who, "variance_noise", variance_noise, "B cells", sizes)
            prev_sample = prev_sample + sigma * variance_noise

        if not return_dict:
            return prev_sample, pred_original_sample
        return MapSchedulerOutput(prev_sample, pred_original_sample)

    def _check_run(
        self,
        who: str,
        run: SchedulerRun,
        timestep: int,
        sample: Tensor,
        eta: float,
        variance_noise: Tensor | None,
    ) -> None:
        solver = self.config.solver
        if eta > 0 or variance_noise is not None:
            got = f"eta = {eta:g}" if eta > 0 else "variance_noise"
            expected = f"eta = 0 and no variance_noise with solver {solver}"
            raise ArgumentError(message(who, expected, got, "Only solver ddim adds noise."))
        hint = "Its steps build on each other: set_timesteps starts a new run."
        due = run.timesteps[0]
        if run.past:
            due = self.previous_timestep(run.past[-1].timestep, run)
        if timestep != due:
            raise ArgumentError(
                message(who, f"timestep {due} next with solver {solver}", timestep, hint)
            )
        if run.past:
            rows, cells = run.past[-1].sample.shape
            check_shape(who, "sample", sample, "B cells", {"B": rows, "cells": cells}, hint)

    def _alpha(self, timestep: int) -> float:
        return float(self.alphas_cumprod[timestep]) if timestep >= 0 else 1.0

    def _alphas(self, who: str, timesteps: Tensor | int, sizes: dict[str, int]) -> Tensor | float:
        """Return cumulative alphas of timesteps: (B, 1) or (1, 1), float64; for an int, a float."""
        steps = torch.as_tensor(timesteps)
        if steps.dim():
            check_shape(who, "timesteps", steps, "B", sizes)
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise ArgumentError(f"{who}: expected integer timesteps, got {steps.dtype}.")
        # To long, as torch takes uint8 indices for a mask.
        steps, most = steps.reshape(-1, 1).long(), len(self) - 1
        if steps.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = steps[(steps < 0) | (steps > most)]
            if len(wrong):
                raise ArgumentError(
                    f"{who}: expected timesteps in 0 to {most}, got {int(wrong[0])}."
                )
        if isinstance(timesteps, int):
            return self._alpha(timesteps)
        if steps.device not in self._tables:
            # Cached, as copying to a device synchronizes with it.
            self._tables[steps.device] = self.alphas_cumprod.to(steps.device)
        return self._tables[steps.device][steps]


def _rates(alpha: Tensor | float, like: Tensor) -> tuple[Any, Any]:
    """Return the factors of signal and noise."""
    if isinstance(alpha, float):
        return alpha**0.5, (1 - alpha) ** 0.5
    return alpha.sqrt().to(like), (1 - alpha).sqrt().to(like)


def _ddim(
    sample: Tensor, clean: Tensor, alpha: float, alpha_prev: float, sigma: float = 0.0
) -> Tensor:
    """Compute Eq. 12 without fresh noise."""
    clean_weight, noisy_weight = _weights(alpha, alpha_prev, sigma)
    return clean_weight * clean + noisy_weight * sample


def _weights(alpha: float, alpha_prev: float, sigma: float = 0.0) -> tuple[float, float]:
    """Return the weights of clean and noisy maps in Eq. 12, solved for both."""
    if alpha >= 1:  # the maps are clean already
        return 1.0, 0.0
    noisy_weight = math.sqrt(max(1 - alpha_prev - sigma**2, 0.0) / (1 - alpha))
    return math.sqrt(alpha_prev) - noisy_weight * math.sqrt(alpha), noisy_weight
