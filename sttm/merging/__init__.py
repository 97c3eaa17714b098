"""Reducing the visual tokens of one video: features [T, H, W, C] in, survivors and the map to them out.

from sttm.merging import MergeConfig, merge
merged = merge(features_THWC, MergeConfig(budget=0.3))
"""

from sttm.merging.config import MergeConfig
from sttm.merging.merged import Merged
from sttm.merging.sttm import merge

__all__ = ["MergeConfig", "Merged", "merge"]
