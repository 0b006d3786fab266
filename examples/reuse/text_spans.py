"""Find a span in a text: maps over (first token, length), from embeddings of tokens and a query.

    python examples/reuse/text_spans.py

The synthetic texts hold letters and a pair of brackets of each of four kinds, in any order. The
query is a kind, the answer the span from its opening to its closing bracket. An IoU above 0.99 is
exact; `chance` is the best constant answer.
"""

import argparse

import tmapdiff as tm

tm.spin_briefly()  # before torch is imported

import torch
from torch import Tensor, nn

LENGTH, KINDS, TOKENS = 12, 4, 20  # tokens 0 and 1 open and close the first kind, and so on
GRID = tm.MapGrid(num_clips=LENGTH, num_anchors=LENGTH, num_scales=1)  # its cells are all spans


def make_texts(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, the kind to find, and its span: first token, and the one after the last."""
    tokens = torch.randint(2 * KINDS, TOKENS, (count, LENGTH))
    places = torch.rand(count, LENGTH).argsort(1)[:, : 2 * KINDS].unflatten(1, (KINDS, 2))
    places = places.sort().values
    tokens.scatter_(1, places.flatten(1), torch.arange(2 * KINDS).expand(count, -1))
    asked = torch.randint(KINDS, (count,))
    first, last = places[torch.arange(count), asked].unbind(1)
    return tokens, asked, torch.stack([first, last + 1], dim=1).float()


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    steps = parser.parse_args(arguments).steps
    torch.manual_seed(0)
    first, last, query = (nn.Embedding(size, 32) for size in (TOKENS, TOKENS, KINDS))
    decoder = tm.MapDiffusionDecoder(LENGTH, LENGTH, 1, 32, 32, 32, kernel_sizes=[7, 7])
    starts, ends = GRID.moments(0).clamp(max=LENGTH).unbind(-1)  # spans past the end are invalid

    def denoise(noisy: Tensor, timestep: Tensor, tokens: Tensor, asked: Tensor) -> Tensor:
        spans = first(tokens[:, starts]) + last(tokens[:, ends - 1])
        features = torch.einsum("bijc,bc->bcij", spans, query(asked))
        return decoder(noisy, timestep, [features])

    build, objective = tm.IoUMapBuilder(GRID), tm.get_objective("mse-rescaled")
    scheduler = tm.MapScheduler(normalize_input=False)
    parts = nn.ModuleList([first, last, query, decoder])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=3e-3)
    for _ in range(steps):
        tokens, asked, spans = make_texts(32)
        target, timestep = objective.target(build.packed(spans)), torch.randint(1000, (32,))
        noisy = scheduler.add_noise(scheduler.to_signal(target), torch.randn_like(target), timestep)
        scores = denoise(noisy, timestep, tokens, asked)
        optimizer.zero_grad()
        objective(scores, target, GRID.packed_mask()).backward()
        optimizer.step()
    parts.eval().requires_grad_(False)
    tokens, asked, spans = make_texts(500)
    maps = torch.randn(500, GRID.num_cells)
    scheduler.set_timesteps(2)
    for timestep in scheduler.timesteps:
        clean = scheduler.to_signal(denoise(maps, timestep.expand(500), tokens, asked))
        maps = scheduler.step(clean, timestep, maps).prev_sample
    constant = (build.packed(make_texts(2000)[2]) > 0.5).float().mean(0, keepdim=True)
    results = {}
    for name, packed in {"diffusion": maps, "chance": constant.expand(500, -1)}.items():
        dense, mask = tm.MultiScaleMapSampler(GRID).merge(GRID.unpack(packed))
        metrics = tm.LocalizationMetrics(ranks=(1,), thresholds=(0.5, 0.99))
        metrics.update(tm.rank_moments(dense, mask), spans)
        results[name] = metrics.compute()
        print(f"{name:9}", *(f"{key} {value:.1f}" for key, value in results[name].items()))
    return results


if __name__ == "__main__":
    main()
