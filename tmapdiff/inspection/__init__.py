"""What is in a file or folder, and what is wrong with it."""

from tmapdiff.inspection.inspecting import inspect
from tmapdiff.inspection.report import Finding, Inspection

__all__ = ["Finding", "Inspection", "inspect"]
