"""Propose when something happens: several moments per signal, without class, from one map.

    python examples/reuse/action_proposals.py

The synthetic signals hold one to three oscillations of any frequency in loud noise. AR@n is the
recall of n proposals, averaged over IoU from 0.5 to 0.95; `chance` is the best constant answer.
"""

import argparse

import tmapdiff as tm

tm.spin_briefly()  # before torch is imported

import torch
from torch import Tensor, nn

from tmapdiff.metrics import best_ious

GRID, CLIP = tm.MapGrid(num_clips=32, num_anchors=8, num_scales=3), 32  # samples in a clip


def make_signals(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return signals, (count, 1, samples), three moments each, in clips, and how many occur."""
    edges = (torch.rand(count, 7) + 0.3).cumsum(1)
    moments = (GRID.num_clips * edges / edges[:, -1:])[:, :6].unflatten(1, (3, 2))
    moments = moments.gather(1, torch.rand(count, 3, 1).argsort(1).expand(-1, -1, 2))  # shuffled
    num_moments = torch.randint(1, 4, (count,))
    time, (start, end) = torch.arange(GRID.num_clips * CLIP), (CLIP * moments).unbind(2)
    inside = (time >= start[..., None]) & (time < end[..., None])
    inside &= (torch.arange(3) < num_moments[:, None])[..., None]
    waves = (2 * torch.pi * (0.05 + 0.35 * torch.rand(count, 3, 1)) * time).sin() * inside
    return waves.sum(1, keepdim=True) + torch.randn(count, 1, len(time)), moments, num_moments


def recall(proposals: Tensor, moments: Tensor, num_moments: Tensor) -> float:
    iou = best_ious(moments, proposals)[torch.arange(moments.shape[1]) < num_moments[:, None]]
    return 100 * float((iou[:, None] > torch.linspace(0.5, 0.95, 10)).double().mean())


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    steps = parser.parse_args(arguments).steps
    torch.manual_seed(0)
    filters, pool = nn.Conv1d(1, 32, kernel_size=33, padding=16), nn.AvgPool1d(CLIP)
    encode = nn.Sequential(filters, nn.ReLU(), pool, tm.MapFeatureBuilder(GRID, channels=32))
    decoder = tm.MapDiffusionDecoder(32, 8, 3, 32, 32, 32, kernel_sizes=[5, 5])
    build, scheduler = tm.IoUMapBuilder(GRID), tm.MapScheduler(normalize_input=False)
    parts = nn.ModuleList([encode, decoder])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=3e-3)
    for _ in range(steps):
        signals, moments, num_moments = make_signals(32)
        iou, timestep = build.packed(moments, None, num_moments), torch.randint(1000, (32,))
        noisy = scheduler.add_noise(scheduler.to_signal(iou), torch.randn_like(iou), timestep)
        scores = decoder(noisy, timestep, encode(signals))
        optimizer.zero_grad()
        tm.get_objective("mse-full")(scores, iou, GRID.packed_mask()).backward()
        optimizer.step()
    parts.eval().requires_grad_(False)
    _, moments, num_moments = make_signals(2000)
    constant = (build.packed(moments, None, num_moments) > 0.5).float().mean(0)
    signals, moments, num_moments = make_signals(500)
    features, maps = encode(signals), torch.randn(500, GRID.num_cells)
    scheduler.set_timesteps(2)
    for timestep in scheduler.timesteps:
        clean = scheduler.to_signal(decoder(maps, timestep.expand(500), features))
        maps = scheduler.step(clean, timestep, maps).prev_sample
    results = {}
    for name, packed in {"diffusion": maps, "chance": constant.expand(500, -1)}.items():
        dense, mask = tm.MultiScaleMapSampler(GRID).merge(GRID.unpack(packed))
        found = tm.rank_moments(dense, mask, top_n=10).moments
        results[name] = {f"AR@{n}": recall(found[:, :n], moments, num_moments) for n in (1, 3, 10)}
        print(f"{name:9}", *(f"{key} {value:.1f}" for key, value in results[name].items()))
    return results


if __name__ == "__main__":
    main()
