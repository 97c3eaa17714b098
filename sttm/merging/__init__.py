"""Reduce the visual tokens of one video: `merge(features_THWC, MergeConfig(budget=0.3))` returns a `Merged`."""

from sttm.merging.config import MergeConfig
from sttm.merging.merged import Merged
from sttm.merging.sttm import merge

__all__ = ["MergeConfig", "Merged", "merge"]
