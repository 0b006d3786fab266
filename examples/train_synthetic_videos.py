"""Train a whole pipeline on synthetic videos, from frames to moments.

    python examples/train_synthetic_videos.py
    tmapdiff demo --model runs/shapes/pipeline --video-dir runs/shapes/videos/test

It needs no files and no network: it draws the videos, and trains the frame encoder on them to
predict what each frame shows where.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from tmapdiff import spin_briefly

spin_briefly()  # before torch is imported

import numpy as np
import torch
from torch import Tensor, nn

from tmapdiff import (
    PRESETS,
    FrameEncoder,
    MomentDataset,
    MomentLocalizationPipeline,
    Trainer,
    Vocabulary,
)
from tmapdiff.data import SyntheticVideos, open_feature_store
from tmapdiff.evaluation import evaluate, evaluate_prior, fit_moment_prior
from tmapdiff.recipes import check_run_folder
from tmapdiff.video import FeatureStoreWriter, FramePreprocessor

FPS = SyntheticVideos.frame_rate / 2
FRAMES_PER_VIDEO = 12  # to train the frame encoder


def see_shapes(data: SyntheticVideos, passes: int) -> FrameEncoder:
    """Train a small frame encoder to predict what frames show."""
    encoder = FrameEncoder("test_resnet", pretrained=False)
    size = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    encoder.preprocess = FramePreprocessor({**encoder.preprocess.config, **size})
    encoder.description = "timm test_resnet, trained on made-up frames"
    random, frames, layouts = np.random.default_rng(0), [], []
    for video_id, video in data.videos.items():
        count = round(video.duration * data.frame_rate)
        numbers = random.choice(count, FRAMES_PER_VIDEO, replace=False)
        frames += [encoder.preprocess(image) for image in data.frames(video_id, numbers)]
        layouts += list(torch.from_numpy(data.layout(video_id, numbers)).flatten(1))
    inputs, targets = torch.stack(frames), torch.stack(layouts)
    # Its features are the predicted layout: few, and all of them matter.
    encoder.feature_dim = targets.shape[1]
    encoder.model.reset_classifier(encoder.feature_dim)
    model = encoder.model.requires_grad_(True).train()
    steps = passes * len(inputs) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        loss: Tensor = nn.functional.mse_loss(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    print(f"frame encoder: {steps} steps, mean squared error {loss.item():.4f}")
    return encoder


def write_features(parts: list[SyntheticVideos], encoder: FrameEncoder, path: Path) -> None:
    """Encode every second frame, as `extract_features` does for files."""
    with FeatureStoreWriter(path, {"seconds_per_feature": 1 / FPS}) as store:
        for data in parts:
            for video_id, video in data.videos.items():
                numbers = np.arange(1, round(video.duration * data.frame_rate), 2)
                features = encoder.encode(data.frames(video_id, numbers), batch_size=64)
                store.write(video_id, features.numpy(), {"duration": video.duration})
        store.finish()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/shapes"), help="(default: runs/shapes)")
    add("--overwrite", action="store_true", help="replace the run in --output")
    add("--videos", type=int, default=600, help="training videos (default: 600)")
    add("--passes", type=int, default=5, help="epochs of the frame encoder (default: 5)")
    add("--epochs", type=int, default=20, help="epochs of the localizer (default: 20)")
    add("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args(arguments)
    files = ("checkpoints", "pipeline")
    check_run_folder(args.output, resume=False, overwrite=args.overwrite, writes=files)
    began = time.perf_counter()
    torch.manual_seed(args.seed)

    train, test = SyntheticVideos(args.videos), SyntheticVideos(split="test")
    encoder = see_shapes(train, args.passes)
    write_features([train, test], encoder, args.output / "features.h5")
    test.write(args.output / "videos" / "test")
    print(f"features and videos after {time.perf_counter() - began:.0f} s")

    store = open_feature_store(args.output / "features.h5")
    vocabulary = Vocabulary.from_sentences(item.query for item in train.annotations)
    preset = replace(PRESETS["nano"], encoder={**PRESETS["nano"].encoder, "channels": 128})
    model = preset.build(vocabulary_size=len(vocabulary), clip_channels=encoder.feature_dim)
    clips = model.grid.num_clips
    train_set, test_set = (
        MomentDataset(part.annotations, store, vocabulary, clips) for part in (train, test)
    )
    config = replace(preset.training, epochs=args.epochs, learning_rate=2e-3, seed=args.seed)
    trainer = Trainer(model, train_set, config, args.output, device="cpu", overwrite=True)
    trainer.train()

    model = trainer.ema_model
    prior = evaluate_prior(model.grid, fit_moment_prior(model.grid, train_set), test_set)
    found = evaluate(model, test_set, seed=args.seed).metrics
    for name, metrics in (("best constant", prior), ("model", found)):
        print(f"{name:14}", *(f"{key} {value:5.1f}" for key, value in metrics.items()), sep="  ")
    durations = [item.duration for item in train.annotations]
    pipeline = MomentLocalizationPipeline(model, vocabulary, encoder, fps=FPS, durations=durations)
    pipeline.save_pretrained(args.output / "pipeline")
    print(f"written to {args.output / 'pipeline'} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
