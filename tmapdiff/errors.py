"""All errors that tmapdiff raises on purpose, and its warning.

Each error is a `TmapdiffError` and also a suitable built-in error, so that both
`except TmapdiffError` and `except ValueError` work. Messages are one line: who, what was expected,
what was given, and a hint.
"""


class TmapdiffError(Exception):
    """Base of all errors that tmapdiff raises on purpose."""


class _MissingError(TmapdiffError, KeyError):
    def __str__(self) -> str:
        # KeyError would show the repr of the message, in quotes.
        return str(self.args[0]) if self.args else ""


class ArgumentError(TmapdiffError, ValueError):
    """An argument has an invalid value."""


class ShapeError(ArgumentError):
    """A tensor does not have the expected shape."""


class ConfigError(TmapdiffError, ValueError):
    """A configuration is contradictory, or names a field that does not exist."""


class UnknownNameError(_MissingError, ConfigError):
    """A name is not in a table such as `PRESETS`."""


class AnnotationError(TmapdiffError, ValueError):
    """An annotation file, or a line of it, cannot be parsed."""


class UnknownWordsWarning(UserWarning):
    """A query has words that the model does not know."""


class FeatureError(TmapdiffError, ValueError):
    """Video features cannot be read, or do not fit the model."""


class MissingFeatureError(_MissingError):
    """A feature store has no features for a video."""


class VideoError(TmapdiffError, ValueError):
    """A video has no frames that can be decoded."""


class NoVideoStreamError(VideoError):
    """A file has no video stream, only audio for example."""


class CheckpointError(TmapdiffError, ValueError):
    """A saved model or training state cannot be used."""


class FileError(TmapdiffError, OSError):
    """A file or folder cannot be read or written."""


class SizeLimitError(FileError, ValueError):
    """A file declares an item that takes more memory than `TMAPDIFF_MAX_ITEM_BYTES` allows."""


class MissingDependencyError(TmapdiffError, ImportError):
    """A feature needs an optional package that is not installed."""
