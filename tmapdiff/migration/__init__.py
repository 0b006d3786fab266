"""Experiment files and weights of other implementations."""

from tmapdiff.migration.ms2dtan import MS2DTANExperiment, load_ms2dtan, ms2dtan_config

__all__ = ["MS2DTANExperiment", "load_ms2dtan", "ms2dtan_config"]
