"""Summaries of files and folders, and the problems in them."""

from tmapdiff.inspection.inspecting import inspect
from tmapdiff.inspection.report import Finding, Inspection

__all__ = ["Finding", "Inspection", "inspect"]
