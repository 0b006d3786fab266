"""Train a whole pipeline on made-up videos, from pictures to moments, in a few minutes.

    python examples/train_synthetic_videos.py
    tmapdiff demo --model runs/shapes/pipeline --video-dir runs/shapes/videos/test

Needs no file and no network: the videos are drawn, and the frame encoder, whose weights would
otherwise come from the hub, first learns on their pictures which shape is where.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tmapdiff import FrameEncoder, MomentLocalizationPipeline, TmapdiffError, extract_features
from tmapdiff.data import SyntheticVideos, open_feature_store
from tmapdiff.recipes import LocalizationData, Reading, Recipe, evaluate_trained
from tmapdiff.video import FramePreprocessor

FPS = 4
PICTURES_A_VIDEO = 24  # that the frame encoder learns from


def see_shapes(data: SyntheticVideos, passes: int, seed: int) -> FrameEncoder:
    """Train a small frame encoder to tell what the pictures show."""
    torch.manual_seed(seed)
    encoder = FrameEncoder("test_resnet", pretrained=False)
    size = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    encoder.preprocess = FramePreprocessor({**encoder.preprocess.config, **size})
    encoder.description = "timm test_resnet, trained on made-up pictures"
    random, frames, layouts = np.random.default_rng(seed), [], []
    for video_id, video in data.videos.items():
        count = round(video.duration * data.frame_rate)
        numbers = random.choice(count, PICTURES_A_VIDEO, replace=False)
        frames += [encoder.preprocess(image) for image in data.pictures(video_id, numbers)]
        layouts += list(torch.from_numpy(data.layout(video_id, numbers)).flatten(1))
    pictures, targets = torch.stack(frames), torch.stack(layouts)
    # Its last layer gives what it has seen, so features are few and all matter.
    encoder.feature_dim = targets.shape[1]
    encoder.model.reset_classifier(encoder.feature_dim)
    model = encoder.model.requires_grad_(True).train()
    steps = passes * len(pictures) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (64,))
        loss: Tensor = nn.functional.mse_loss(model(pictures[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    print(f"frame encoder: {steps} steps, mean squared error {loss.item():.4f}")
    return encoder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--videos", type=int, help="videos to train on (default: 270)")
    parser.add_argument("--passes", type=int, default=5, help="of the frame encoder (default: 5)")
    parser.add_argument("--epochs", type=int, default=30, help="of the localizer (default: 30)")
    parser.add_argument("--preset", default="nano", help="size of the localizer (default: nano)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args(arguments)
    began = time.perf_counter()

    parts = [SyntheticVideos(args.videos), SyntheticVideos(split="test")]
    encoder = see_shapes(parts[0], args.passes, args.seed)
    files = [file for part in parts for file in part.write(args.output / "videos" / part.split)]
    print(f"{len(files)} videos after {time.perf_counter() - began:.0f} s")
    features = args.output / "features.h5"
    print(extract_features(files, encoder, features, fps=FPS))
    print(f"features after {time.perf_counter() - began:.0f} s")

    train, test = (part.annotations for part in parts)
    data = LocalizationData("shapes", train, test, open_feature_store(features))
    recipe = Recipe(args.preset, seed=args.seed, training={"epochs": args.epochs})
    trained = recipe.train(data, args.output, device="cpu", say=print)
    for name, metrics in evaluate_trained(trained, Reading((1, 5)), data).rows.items():
        print(f"{name:26}", *(f"{key} {value:5.1f}" for key, value in metrics.items()), sep="  ")

    pipeline = MomentLocalizationPipeline(
        trained.model, trained.train_set.vocabulary, encoder, fps=FPS
    )
    pipeline.save_pretrained(args.output / "pipeline")
    print(f"written to {args.output / 'pipeline'} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
