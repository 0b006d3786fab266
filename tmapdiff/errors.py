"""Every error that tmapdiff raises on purpose, and its warning.

Each error is a `TmapdiffError` and also the built-in error that Python users would expect, so that
both `except TmapdiffError` and `except ValueError` work. Messages are one line: who, what was
expected, what came, and a hint.
"""


class TmapdiffError(Exception):
    """Base of all errors that tmapdiff raises on purpose."""


class _MissingError(TmapdiffError, KeyError):
    def __str__(self) -> str:
        # KeyError shows the repr of its argument: a sentence in quotation marks.
        return str(self.args[0]) if self.args else ""


class ArgumentError(TmapdiffError, ValueError):
    """An argument has a value that the callee cannot work with."""


class ShapeError(ArgumentError):
    """A tensor has another shape than expected."""


class ConfigError(TmapdiffError, ValueError):
    """A configuration is contradictory, or names a field that does not exist."""


class UnknownNameError(_MissingError, ConfigError):
    """A table of named things, such as `PRESETS`, has none of that name."""


class AnnotationError(TmapdiffError, ValueError):
    """An annotation file, or one line of it, cannot be understood."""


class UnknownWordsWarning(UserWarning):
    """A query has words that the model does not know."""


class FeatureError(TmapdiffError, ValueError):
    """Video features cannot be read, or are not what the model was built for."""


class MissingFeatureError(_MissingError):
    """A feature store holds no features of a video."""


class VideoError(TmapdiffError, ValueError):
    """A video has no pictures that can be decoded."""


class NoVideoStreamError(VideoError):
    """A file, such as one of sound alone, has no video stream."""


class CheckpointError(TmapdiffError, ValueError):
    """A saved model or training state cannot be used."""


class FileError(TmapdiffError, OSError):
    """A file or folder cannot be read or written."""


class SizeLimitError(FileError, ValueError):
    """What a file declares takes more memory than one item may (`TMAPDIFF_MAX_ITEM_BYTES`)."""


class MissingDependencyError(TmapdiffError, ImportError):
    """A feature needs an optional package that is not installed."""
