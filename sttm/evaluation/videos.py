"""Finds the videos that questions name, and reads their frames."""

import posixpath
from pathlib import Path
from urllib.parse import urlsplit

from sttm.evaluation.questions import Clip
from sttm.video.decode import VideoConfig, read_video

_EXTENSIONS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


class VideoFolder:
    """Videos below one folder or URL.

    Args:
        root: the folder or URL that relative names count from.
        config: how videos are sampled.
    """

    def __init__(self, root: str, config: VideoConfig) -> None:
        self._root, self._config = root, config

    def resolve(self, name: str, *folders: str) -> str:
        """The path or URL of a video by its name, which may lack the extension.

        Args:
            name: a path below the root, an absolute path, or a URL.
            folders: folders below the root that are searched, too; releases of a benchmark differ in them.
        """
        if "://" in name or Path(name).is_absolute():
            return name
        if "://" in self._root:
            named = name if posixpath.splitext(urlsplit(name).path)[1] else name + _EXTENSIONS[0]
            return posixpath.join(self._root, named)
        places = [Path(self._root) / folder / name for folder in ("", *folders)]
        found = (place.with_name(place.name + ending) for place in places for ending in ("", *_EXTENSIONS))
        return str(next((path for path in found if path.is_file()), places[0]))

    def read(self, uri: str) -> Clip:
        """Read the sampled frames of a video.

        Raises:
            VideoError: the file cannot be used.
        """
        frames = read_video(uri, self._config)
        return Clip(frames.pixels, frames.seconds)
