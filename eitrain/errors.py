"""The one error that users of the training tools see."""

from eiexport.errors import ExportError


class TrainError(ExportError):
    """A user's mistake in training: one line that says what, where and how to fix."""
