"""Geometry and targets of multi-scale 2D temporal maps: nothing here learns."""

from tmapdiff.maps.contrasts import cell_means, contrast_features
from tmapdiff.maps.expected_hits import (
    candidate_likelihoods,
    deconvolve_map,
    expect_map,
    rank_by_expected_hits,
    rank_candidates_by_expected_hits,
)
from tmapdiff.maps.grid import MapGrid
from tmapdiff.maps.iou import IoUMapBuilder
from tmapdiff.maps.moment_sets import read_moment_sets
from tmapdiff.maps.moments import RankedMoments, rank_candidates, rank_moments, temporal_nms
from tmapdiff.maps.multiscale import MultiScaleMapSampler
from tmapdiff.maps.overlap import soft_hits, temporal_iou
from tmapdiff.maps.saliency import clip_saliency, map_saliency, resample_saliency

__all__ = [  # in the order the data flows
    "IoUMapBuilder",
    "MapGrid",
    "MultiScaleMapSampler",
    "RankedMoments",
    "candidate_likelihoods",
    "cell_means",
    "clip_saliency",
    "contrast_features",
    "deconvolve_map",
    "expect_map",
    "map_saliency",
    "rank_by_expected_hits",
    "rank_candidates",
    "rank_candidates_by_expected_hits",
    "rank_moments",
    "read_moment_sets",
    "resample_saliency",
    "soft_hits",
    "temporal_iou",
    "temporal_nms",
]
