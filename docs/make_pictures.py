"""Draw the figures of the documentation, from made-up data, with the library's own code.

    python docs/make_pictures.py

Every run on one machine draws the same figures. The script first trains a small model on made-up
videos, for the figure of denoising.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor
from torch.utils.data import DataLoader

from tmapdiff import (
    ActionTimelineFeatures,
    IoUMapBuilder,
    MapGrid,
    MapScheduler,
    MomentDataset,
    MomentLocalizer,
    MultiScaleMapSampler,
    RankedMoments,
    Vocabulary,
    deconvolve_map,
    get_objective,
    plot_map,
    rank_by_expected_hits,
    rank_moments,
    temporal_iou,
)
from tmapdiff.data import Annotation, SyntheticActivities, collate_moments
from tmapdiff.presets import PRESETS

# Told apart by the colour-blind, and in grey (Okabe and Ito).
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
SCALES = (BLUE, ORANGE, GREEN)
INK, FAINT = "#222222", "#dddddd"

GRID = MapGrid(num_clips=32, num_anchors=16, num_scales=2)


def main(arguments: list[str] | None = None) -> None:
    """Draw and save all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path(__file__).parent / "images", help="folder")
    add("--epochs", type=int, default=12, help="epochs of training (default: 12)")
    add("--videos", type=int, default=135, help="made-up videos to train on (default: 135)")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    pictures = {
        "method.png": draw_method(),
        "grid.png": draw_grid(),
        "iou-maps.png": draw_iou_maps(),
        "noise.png": draw_noise(),
        "signal-scale.png": draw_signal_scale(queries=10 * args.videos),
        "denoising.png": draw_denoising(*train(args.videos, args.epochs)),
        "reading.png": draw_reading(),
    }
    for name, figure in pictures.items():
        figure.savefig(args.output / name, dpi=120)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure, sizes in inches; not of pyplot, which would keep it."""
    return Figure(figsize=(width, height), layout="constrained")


# The method in one figure


def draw_method() -> Figure:
    """Draw the steps from video and sentence to moments."""
    figure = new_figure(9, 3.1)
    ax = figure.subplots()
    ax.set(xlim=(0, 18), ylim=(0, 6.2))
    ax.axis("off")

    def box(x: float, y: float, text: str, color: str, width: float = 2.9) -> None:
        shape = FancyBboxPatch(
            (x, y), width, 1.3, boxstyle="round,pad=0.08,rounding_size=0.2", fc="white", ec=color
        )
        shape.set_linewidth(1.8)
        ax.add_patch(shape)
        ax.text(x + width / 2, y + 0.65, text, ha="center", va="center", size=9, color=INK)

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0) -> None:
        ax.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=12,
                color=INK,
                connectionstyle=f"arc3,rad={bend}",
            )
        )

    box(0.2, 4.2, "video:\nN clips of features", BLUE)
    box(0.2, 1.2, "sentence:\nwords", BLUE)
    box(4.2, 2.7, "encoder:\nfeatures of\nevery candidate", BLUE)
    box(8.2, 2.7, "decoder:\npredicts the\nclean maps", ORANGE)
    box(8.2, 0.2, "noisy maps\nof K scales", ORANGE)
    box(12.0, 2.7, "merged map:\na score for each\n(start, duration)", GREEN, 2.7)
    box(15.5, 2.7, "ranked\nmoments", GREEN, 2.2)
    arrow((3.2, 4.8), (4.2, 3.9))
    arrow((3.2, 1.9), (4.2, 3.0))
    arrow((7.2, 3.35), (8.1, 3.35))
    arrow((9.0, 1.6), (9.0, 2.6))
    arrow((10.3, 2.6), (10.3, 1.6))
    arrow((11.2, 3.35), (11.9, 3.35))
    arrow((14.8, 3.35), (15.4, 3.35))
    ax.text(10.5, 2.1, "scheduler:\nless noise", size=8, va="center", color=INK)
    ax.text(8.8, 2.1, "repeat", size=8, va="center", ha="right", color=INK)
    ax.text(7.9, 0.85, "starts as\npure noise", size=8, va="center", ha="right", color=INK)
    ax.text(5.65, 4.35, "once per query", size=8, ha="center", color=INK)
    ax.text(15.2, 4.35, "merge, then NMS or expected hits", size=8, ha="center", color=INK)
    return figure


# Cells


def draw_grid() -> Figure:
    """Draw which moments are cells, on each scale and together."""
    grid = MapGrid(num_clips=16, num_anchors=4, num_scales=3)
    figure = new_figure(9, 3.6)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    for scale, ax in enumerate(axes[:3]):
        rows, columns = grid.shape(scale)
        mask = grid.mask(scale)
        for row in range(rows):
            for column in range(columns):
                valid = bool(mask[row, column])
                color = SCALES[scale] if valid else "white"
                ax.add_patch(
                    Rectangle((column, row), 1, 1, fc=color, ec="white" if valid else FAINT)
                )
        ax.set(xlim=(0, columns), ylim=(0, rows), xticks=[], yticks=[])
        ax.set_aspect("equal")
        step = grid.stride(scale)
        ax.set_title(f"scale {scale}: {rows} by {columns}\nsteps of {_clips(step)}", size=9)
        ax.set_xlabel("duration", size=9)
    axes[0].set_ylabel("start", size=9)

    # The finest scale that holds a cell of the dense map.
    finest = torch.full((16, 16), -1.0)
    for scale in reversed(range(3)):
        grid.dense_cells(finest, scale)[grid.mask(scale)] = scale
    ax = axes[3]
    shown = np.ma.masked_less(finest.numpy(), 0)
    colors = ListedColormap(SCALES)
    ax.pcolormesh(shown, cmap=colors, vmin=0, vmax=2, edgecolors="white", linewidth=0.5)
    ax.plot([0, 16], [16, 0], color=INK, lw=1, ls="--")
    ax.set(xlim=(0, 16), ylim=(0, 16), xlabel="duration (clips)", ylabel="start (clips)")
    ax.set(xticks=[0, 4, 8, 12, 16], yticks=[0, 4, 8, 12, 16])
    ax.set_aspect("equal")
    ax.set_title("merged: the finest scale\nthat holds each candidate", size=9)
    ax.text(10.3, 10.3, "would end\nafter the video", size=8, color=INK, ha="center")
    return figure


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"


def draw_iou_maps() -> Figure:
    """Draw what is learned: the IoU of every candidate with the annotated moment."""
    moment = (9.0, 20.0)
    maps = IoUMapBuilder(GRID)(torch.tensor([moment]), torch.ones(1))
    dense, mask = MultiScaleMapSampler(GRID).merge(maps)
    figure = new_figure(9, 3.2)
    axes = figure.subplots(1, 4, width_ratios=(0.55, 0.55, 1.2, 1.2))
    for scale, ax in enumerate(axes[:2]):
        shown = np.ma.masked_array(maps[scale][0].numpy(), ~GRID.mask(scale).numpy())
        rows, columns = GRID.shape(scale)
        ax.imshow(shown, origin="lower", vmin=0, vmax=1, extent=(0, columns, 0, rows))
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"scale {scale}", size=9)
        ax.set_xlabel("duration", size=9)
    axes[0].set_ylabel("start", size=9)
    for ax, objective, title in (
        (axes[2], "mse-full", "merged IoU map"),
        (axes[3], "mse-rescaled", "rescaled from 0.5..1"),
    ):
        target = get_objective(objective).target(dense[0].clamp(min=0))
        plot_map(target, mask, truth=[moment], ax=ax)
        ax.set_title(title, size=9)
    axes[3].set_ylabel("")
    figure.colorbar(axes[3].images[0], ax=axes[3], shrink=0.7, label="value of a cell")
    return figure


# Noise


def draw_noise() -> Figure:
    """Draw a map under more and more noise, with two signal scales."""
    sampler = MultiScaleMapSampler(GRID)
    clean = IoUMapBuilder(GRID).packed(torch.tensor([[9.0, 20.0]]), torch.ones(1))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    timesteps, signal_scales = (0, 200, 400, 600, 800, 950), (1.0, 0.1)
    figure = new_figure(9, 3.4)
    axes = figure.subplots(len(signal_scales), len(timesteps))
    for row, signal_scale in enumerate(signal_scales):
        scheduler = MapScheduler(signal_scale=signal_scale)
        axes[row, 0].set_ylabel(f"signal scale {signal_scale:g}", size=9)
        for column, timestep in enumerate(timesteps):
            step = torch.tensor([timestep])
            noisy = scheduler.add_noise(scheduler.to_signal(clean), noise, step)
            dense, mask = sampler.merge(GRID.unpack(scheduler.scale_model_input(noisy, step)))
            ax = axes[row, column]
            label = ax.get_ylabel()
            plot_map(dense[0], mask, limits=(-2.5, 2.5), ax=ax)
            ax.set(xticks=[], yticks=[], xlabel="", ylabel=label)
            if row == 0:
                ax.set_title(f"t = {timestep}", size=9)
    return figure


def draw_signal_scale(queries: int) -> Figure:
    """Draw how often the noised map alone, without video or query, gives the moment away."""
    mask = GRID.packed_mask()
    cells = GRID.packed_moments()[mask]
    # What each cell's own map looks like: the moment is found as the best match.
    patterns = IoUMapBuilder(GRID).packed(cells.float(), torch.ones(len(cells)))[:, mask]
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(len(cells), (queries,), generator=random)
    noise = torch.randn(queries, len(cells), generator=random)
    overlap = patterns[truth]  # IoU of every candidate with the true moment
    timesteps = range(0, 1000, 50)
    figure = new_figure(6.4, 3.4)
    ax = figure.subplots()
    curves = ((2, PINK, "D"), (1, ORANGE, "s"), (0.1, BLUE, "o"), (0.02, GREEN, "^"))
    for signal_scale, color, marker in curves:
        scheduler = MapScheduler(signal_scale=signal_scale)
        templates = scheduler.to_signal(patterns)
        hits = []
        for timestep in timesteps:
            steps = torch.full((queries,), timestep)
            noisy = scheduler.add_noise(templates[truth], noise, steps)
            rate = scheduler.alphas_cumprod[timestep].float().sqrt()
            # The likeliest moment under white noise: the nearest of the noised patterns.
            found = torch.cdist(noisy, rate * templates).argmin(dim=1)
            right = overlap.gather(1, found[:, None])[:, 0] > 0.5
            hits.append(100 * right.double().mean().item())
        ax.plot(timesteps, hits, color=color, marker=marker, ms=4, label=f"{signal_scale:g}")
    chance = 100 * (patterns > 0.5).double().mean().item()
    ax.axhline(chance, color=INK, lw=1, ls="--")
    ax.text(5, chance + 2, "chance", size=8, color=INK)
    ax.set(xlabel="timestep", ylabel="moments found (IoU > 0.5), %", ylim=(0, 103), xlim=(0, 999))
    ax.legend(title="signal scale", fontsize=8, title_fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


# Denoising


def train(videos: int, epochs: int) -> tuple[MomentLocalizer, MomentDataset]:
    """Train a small model on made-up videos; returns it with the queries it was not trained on."""
    data = {split: SyntheticActivities(videos, split=split) for split in ("train", "test")}
    sentences = (item.query for item in data["train"].annotations)
    vocabulary = Vocabulary.from_sentences(sentences)
    sets = {
        split: MomentDataset(
            one.annotations,
            ActionTimelineFeatures(one.videos, num_classes=one.num_classes, noise=1.0, jitter=0.5),
            vocabulary,
            num_clips=GRID.num_clips,
        )
        for split, one in data.items()
    }
    torch.manual_seed(0)
    model = PRESETS["nano"].build(
        vocabulary_size=len(vocabulary),
        clip_channels=256,
        encoder=asdict(GRID),
        decoder=asdict(GRID),
    )
    model.train()
    loader = DataLoader(sets["train"], batch_size=32, shuffle=True, collate_fn=collate_moments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=max(2, epochs * len(loader))
    )
    for _ in range(epochs):
        for batch in loader:
            loss = model.loss(
                batch.features, batch.words, batch.num_words, batch.moments, batch.clip_seconds
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), sets["test"]


@torch.no_grad()
def draw_denoising(model: MomentLocalizer, test: MomentDataset, steps: int = 5) -> Figure:
    """Draw a run of the sampling loop: what the model gets, and what it believes."""
    batch = collate_moments([next(one for one in test if _is_in_the_middle(one.annotation))])
    scheduler, grid = model.scheduler, model.grid
    sampler = MultiScaleMapSampler(grid)
    features = model.encoder(batch.features, batch.words, batch.num_words)
    random = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, grid.num_cells, generator=random)
    scheduler.set_timesteps(steps)
    seen, believed = [], []
    for timestep in scheduler.timesteps:
        scores = model.predict_scores(noisy, timestep[None], features)
        seen.append(scheduler.scale_model_input(noisy, timestep[None]))
        believed.append(model.objective.activation(scores))
        noisy = scheduler.step(scheduler.to_signal(believed[-1]), timestep, noisy).prev_sample
    figure = new_figure(9, 4.2)
    axes = figure.subplots(2, steps)
    seconds = float(batch.clip_seconds[0])
    truth = batch.moments[0].tolist()
    for column, timestep in enumerate(scheduler.timesteps.tolist()):
        for ax, maps, limits in (
            (axes[0, column], seen[column], (-2.5, 2.5)),
            (axes[1, column], believed[column], (0.0, 1.0)),
        ):
            dense, mask = sampler.merge(grid.unpack(maps))
            shown = truth if limits == (0.0, 1.0) else ()
            plot_map(dense[0], mask, clip_seconds=seconds, truth=shown, limits=limits, ax=ax)
            ax.set(xlabel="", ylabel="")
            if column:
                ax.set(yticklabels=[])
        axes[0, column].set(xticklabels=[])
        axes[0, column].set_title(f"t = {timestep}", size=9)
        axes[1, column].set_xlabel("duration (s)", size=9)
    axes[0, 0].set_ylabel("noisy maps\nstart (s)", size=9)
    axes[1, 0].set_ylabel("predicted maps\nstart (s)", size=9)
    figure.suptitle(f"“{batch.queries[0]}”", size=10)
    return figure


def _is_in_the_middle(item: Annotation) -> bool:
    start, end = item.moments[0]
    return start > 8 and end < item.duration - 5 and end - start > 5


# Reading moments off a map


def draw_reading() -> Figure:
    """Draw one map, read by NMS and by expected hits."""
    sampler = MultiScaleMapSampler(GRID)
    target = get_objective("mse-rescaled").target
    seconds = torch.ones(1)
    # Two events that the sentence may mean; of each, the boundaries are unsure.
    random = torch.Generator().manual_seed(3)
    moments = []
    for start, end, spread, count in ((4.0, 10.0, 1.2, 120), (18.0, 26.0, 2.2, 80)):
        shifts = torch.randn(count, 2, generator=random) * spread
        moments.append((torch.tensor([start, end]) + shifts).clamp(0, 32))
    drawn = torch.cat(moments)
    drawn = drawn[drawn[:, 1] - drawn[:, 0] > 1]
    maps = IoUMapBuilder(GRID).packed(drawn, torch.ones(len(drawn)))
    dense, mask = sampler.merge(GRID.unpack(target(maps).mean(dim=0, keepdim=True)))
    answers = {
        "NMS": rank_moments(dense, mask, seconds, top_n=5, nms_threshold=0.49),
        "expected hits": rank_by_expected_hits(dense, mask, seconds, target=target, top_n=5),
    }
    figure = new_figure(9, 5.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.4, 1))
    axes, strips = top.subplots(1, 3), bottom.subplots(1, 2, sharey=True)
    for ax, strip, (name, ranked) in zip(axes[::2], strips, answers.items(), strict=True):
        plot_map(dense[0], mask, predictions=ranked.moments[0].tolist(), limits=None, ax=ax)
        ax.set_title(f"map, read by {name}", size=9)
        _draw_answers(strip, ranked, drawn)
        strip.set_title(f"five answers by {name}", size=9)
    plot_map(_likelihood(dense, mask, target), mask, limits=None, ax=axes[1])
    axes[1].set_title("moments that explain the map", size=9)
    for ax in axes[1:]:
        ax.set_ylabel("")
    strips[0].set(yticks=range(5), yticklabels=range(1, 6), ylabel="answer")
    return figure


def _likelihood(dense: Tensor, mask: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
    """Probability of each candidate, as a dense map."""
    starts, durations = mask.nonzero(as_tuple=True)
    cells = torch.stack([starts, starts + durations + 1], dim=1).float()
    likelihood = deconvolve_map(dense[:, mask], target(temporal_iou(cells[:, None], cells)))
    result = torch.zeros_like(dense[0])
    result[mask] = likelihood[0]
    return result


def _draw_answers(ax: Axes, ranked: RankedMoments, drawn: Tensor) -> None:
    """Ranked moments as bars, over what share of the drawn moments goes on at each time."""
    times = np.linspace(0, 32, 257)
    going = ((drawn[:, :1] <= torch.tensor(times)) & (torch.tensor(times) < drawn[:, 1:])).double()
    share = going.mean(dim=0).numpy()
    ax.fill_between(times, 4.5, 4.5 - 4.8 * share / share.max(), color=FAINT, lw=0)
    for place, (start, end) in enumerate(ranked.moments[0].tolist()):
        ax.barh(place, end - start, left=start, height=0.6, color=BLUE if not place else ORANGE)
    ax.set(xlim=(0, 32), ylim=(4.6, -0.6), xlabel="time (s)")
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
