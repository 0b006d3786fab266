"""What each process of tests/test_several_processes.py does."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import Subset

from tmapdiff import PRESETS, ActionTimelineFeatures, MomentDataset, Trainer, Vocabulary
from tmapdiff.data import SyntheticActivities
from tmapdiff.evaluation import evaluate
from tmapdiff.models import MS2DTAN, MapLocalizer
from tmapdiff.training import TrainingConfig


def make_dataset(videos: int = 8, clip_seconds: float | None = None) -> MomentDataset:
    data = SyntheticActivities(num_videos=videos)
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes, feature_dim=16)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
    return MomentDataset(
        data.annotations, store, vocabulary, num_clips=8, clip_seconds=clip_seconds, clip_multiple=2
    )


def make_model(dataset: MomentDataset, kind: str = "diffusion") -> MapLocalizer:
    torch.manual_seed(0)
    preset = replace(
        PRESETS["tiny"],
        grid={"num_clips": 8, "num_anchors": 4, "num_scales": 2},
        # Of 64 bits, in which rounding is no excuse.
        encoder={"channels": 8, "word_channels": 8, "num_text_layers": 1},
        decoder={"channels": 8, "time_channels": 8, "kernel_sizes": [3]},
    )
    fields = {"vocabulary_size": len(dataset.vocabulary), "clip_channels": 16}
    model = preset.build_ms2dtan(**fields) if kind == MS2DTAN.__name__ else preset.build(**fields)
    return model.double()


def train(
    folder: Path,
    batch_size: int,
    queries: int = 20,
    clip_seconds: float | None = None,
    kind: str = "diffusion",
    resume: bool = False,
) -> None:
    dataset = make_dataset(clip_seconds=clip_seconds)
    config = TrainingConfig(
        epochs=2, batch_size=batch_size, seed=1, learning_rate=1e-2, heat_map_every=9
    )
    some = Subset(dataset, range(queries))
    some.store = dataset.store  # type: ignore[attr-defined]
    trainer = Trainer(
        make_model(dataset, kind),
        some,
        config,
        folder,
        validation=dataset,
        validate_every=2,
        device="cpu",
    )
    if resume:
        trainer.resume()
    losses = []
    step = trainer._step
    trainer._step = lambda batch: losses.append(float(loss := step(batch))) or loss  # type: ignore[method-assign,func-returns-value]
    trainer.train()
    if trainer.accelerator.is_main_process:
        found = {"raw": trainer.raw_model.state_dict(), "ema": trainer.ema_model.state_dict()}
        found |= {"losses": torch.tensor(losses), "history": trainer.history}
        torch.save(found, folder / "found.pt")


def evaluate_queries(folder: Path, queries: int) -> None:
    dataset = make_dataset()
    repeated = Subset(dataset, [index % len(dataset) for index in range(queries)])
    accelerator = Accelerator(cpu=True)
    model = make_model(dataset).eval()
    found = evaluate(model, repeated, batch_size=4, accelerator=accelerator)
    result = {
        "qids": [one.qid for one in found.predictions],
        "windows": [one.windows for one in found.predictions],
        "metrics": found.metrics,
        "confidence": found.confidence.tolist(),
    }
    path = folder / f"process-{accelerator.process_index}.json"
    path.write_text(json.dumps(result))
