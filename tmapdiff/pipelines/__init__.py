"""Pipelines from a video and a sentence to moments."""

from tmapdiff.pipelines._sources import list_sources
from tmapdiff.pipelines.moment_localization import MomentLocalizationPipeline, Pairs
from tmapdiff.pipelines.output import LocalizedMoment, MergedMaps, MomentLocalizationOutput

__all__ = [  # noqa: RUF022  in the order the data flows
    "MomentLocalizationPipeline",
    "MomentLocalizationOutput",
    "LocalizedMoment",
    "MergedMaps",
    "Pairs",
    "list_sources",
]
