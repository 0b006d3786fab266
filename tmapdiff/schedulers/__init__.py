"""Noise schedulers for packed IoU maps."""

from tmapdiff.schedulers.map_scheduler import MapScheduler, MapSchedulerOutput, SchedulerRun

__all__ = ["MapScheduler", "MapSchedulerOutput", "SchedulerRun"]
