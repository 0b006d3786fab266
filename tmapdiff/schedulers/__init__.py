"""Noise on packed IoU maps: adding it in training, taking it away in sampling."""

from tmapdiff.schedulers.map_scheduler import MapScheduler, MapSchedulerOutput, SchedulerRun

__all__ = ["MapScheduler", "MapSchedulerOutput", "SchedulerRun"]
