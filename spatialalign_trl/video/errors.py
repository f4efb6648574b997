"""Define the error that every command lists when it cannot read a video."""


class VideoError(ValueError):
    """A file cannot be read as the video that it should be. The message names the file, the reason and the remedy."""


def unreadable(name: str, reason: str) -> VideoError:
    """Return the error of a file that is not read: its name, and the reason with the remedy, without a full stop."""
    return VideoError(f"{name} is not a readable video: {reason}.")


class MissingVideoError(VideoError, FileNotFoundError):
    """There is no such file."""
