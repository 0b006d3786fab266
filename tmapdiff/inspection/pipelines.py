"""Inspection of saved pipelines, which loads them completely."""

from pathlib import Path
from typing import Any

from tmapdiff.inspection.report import Inspection, about
from tmapdiff.pipelines import MomentLocalizationPipeline


def inspect_pipeline(path: Path) -> tuple[Inspection, MomentLocalizationPipeline]:
    """Inspect a saved pipeline; return the pipeline too."""
    pipeline = MomentLocalizationPipeline.from_pretrained(path)
    model, encoder = pipeline.localizer, pipeline.frame_encoder
    config = model.config
    taken = "videos" if encoder else "text tracks" if pipeline.takes_text_tracks else ""
    facts: dict[str, Any] = {
        "model": type(model).__name__,
        "million parameters": round(model.num_parameters() / 1e6, 2),
        "grid": repr(model.grid),
        "objective": model.objective.name,
        "ranking": config.ranking,
        "denoising steps": config.num_inference_steps if model.is_generative else None,
        "samples": config.num_samples if model.is_generative else None,
        "vocabulary": None if pipeline.vocabulary is None else len(pipeline.vocabulary),
        "feature width": model.encoder.config.clip_channels,
        "takes": f"{taken} or features" if taken else "features",
        "frame encoder": None if encoder is None else encoder.description,
        "frames per second": pipeline.config.fps,
        "seconds per clip": pipeline.config.clip_seconds or "videos are divided equally",
    }
    bad = model.weights_not_finite()
    findings = about("weights that are not finite", "{n} weights have NaN or inf", bad)
    return Inspection(path, "pipeline", {path.resolve().name: facts}, tuple(findings)), pipeline
