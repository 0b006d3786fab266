"""Export of models for use without this library (`torch.export`) or without torch (ONNX).

`OnnxLocalizer` imports onnxruntime and NumPy, but not torch.
"""

from typing import TYPE_CHECKING

from tmapdiff._core.lazy import loaded_when_used

if TYPE_CHECKING:
    from tmapdiff.export.exporting import ExportReport as ExportReport
    from tmapdiff.export.exporting import export_pipeline as export_pipeline
    from tmapdiff.export.runtime import OnnxLocalizer as OnnxLocalizer

_HOMES = {
    "export_pipeline": "exporting",
    "ExportReport": "exporting",
    "OnnxLocalizer": "runtime",
}

__all__ = [*_HOMES]

__getattr__ = loaded_when_used(__name__, _HOMES)
