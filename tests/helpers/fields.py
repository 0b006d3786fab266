"""Configurations of the smallest models that have every part."""

from typing import Any

GRID: dict[str, Any] = {"num_clips": 8, "num_anchors": 4, "num_scales": 2}
ENCODER: dict[str, Any] = {
    **GRID,
    "vocabulary_size": 12,
    "clip_channels": 6,
    "word_channels": 4,
    "channels": 8,
    "num_text_layers": 1,
}
DECODER: dict[str, Any] = {
    **GRID,
    "feature_channels": 8,
    "channels": 8,
    "time_channels": 8,
    "kernel_sizes": [3, 3],
    "num_groups": 4,
}
# On its own, of whichever architecture.
SMALLEST_DECODER: dict[str, Any] = {
    "num_clips": 8,
    "num_anchors": 3,
    "num_scales": 2,
    "feature_channels": 2,
    "channels": 4,
    "time_channels": 4,
    "kernel_sizes": (3, 5),
    "num_groups": 2,
    "num_heads": 2,
    "num_layers": 1,
}
