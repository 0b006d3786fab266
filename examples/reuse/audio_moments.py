"""Find a sound in a recording by its name: the localizer on a spectrogram instead of a video.

    python examples/reuse/audio_moments.py

The synthetic recordings hold two tones, and two chirps that differ only in direction, in loud
noise. `chance` is the best constant answer.
"""

import argparse

import tmapdiff as tm

tm.spin_briefly()  # before torch is imported

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

SECONDS, RATE, FREQUENCIES = 8, 2000, 65
GRID = {"num_clips": 16, "num_anchors": 8, "num_scales": 2}
SOUNDS = {  # from Hz, to Hz
    "a low tone": (300, 300),
    "a high tone": (800, 800),
    "a rising chirp": (400, 700),
    "a falling chirp": (700, 400),
}


def make_recordings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean spectra of clips, the index of the sound to find, and its start and end."""
    waves, moments = torch.randn(count, SECONDS * RATE), []
    for low, high in SOUNDS.values():
        length = 4 ** torch.rand(count, 1)
        start = torch.rand(count, 1) * (SECONDS - length)
        time = torch.arange(SECONDS * RATE) / RATE - start
        cycles = low * time + (high - low) * time.square() / (2 * length)
        waves += 0.7 * (2 * torch.pi * cycles).sin() * ((time >= 0) & (time < length))
        moments.append(torch.cat([start, start + length], dim=1))
    spectra = torch.stft(waves, 128, window=torch.hann_window(128), return_complex=True).abs()
    clips = adaptive_avg_pool1d(spectra.log1p(), GRID["num_clips"]).mT
    asked = torch.randint(len(SOUNDS), (count,))
    return clips, asked, torch.stack(moments)[asked, torch.arange(count)]


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    steps = parser.parse_args(arguments).steps
    torch.manual_seed(0)
    vocabulary = tm.Vocabulary.from_sentences(SOUNDS)
    queries = torch.stack([vocabulary.encode(name) for name in SOUNDS])
    sizes = {"vocabulary_size": len(vocabulary), "clip_channels": FREQUENCIES, "channels": 32}
    sizes |= {"word_channels": 32, "num_text_layers": 1}
    widths = {"feature_channels": 32, "channels": 32, "time_channels": 32}
    model = tm.MomentLocalizer(GRID | sizes, GRID | widths | {"kernel_sizes": [5, 5]})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    clips, asked, moments = make_recordings(2000)
    num_words, clip_seconds = torch.full((2000,), 3), torch.full((2000,), SECONDS / 16)
    for _ in range(steps):
        some = torch.randint(2000, (32,))
        inputs = clips[some], queries[asked[some]], num_words[some]
        optimizer.zero_grad()
        model.loss(*inputs, moments[some], clip_seconds[some]).backward()
        optimizer.step()
    prior = (model.build_iou_maps.packed(moments, clip_seconds) > 0.5).float().mean(0, keepdim=True)
    constant = tm.rank_moments(*model.sampler.merge(model.grid.unpack(prior)), clip_seconds[:1])
    clips, asked, moments = make_recordings(500)
    found = model.eval().localize(clips, queries[asked], num_words[:500], clip_seconds[:500])
    results = {}
    for name, answers in {"diffusion": found.ranked.moments, "chance": constant.moments}.items():
        metrics = tm.LocalizationMetrics(ranks=(1,))
        metrics.update(answers.expand(500, -1, -1), moments)
        results[name] = metrics.compute()
        print(f"{name:9}", *(f"{key} {value:.1f}" for key, value in results[name].items()))
    return results


if __name__ == "__main__":
    main()
