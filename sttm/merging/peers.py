"""Peers of the merge behind the same interface, for evaluation."""

from collections.abc import Callable

from torch import Tensor

from sttm.merging.config import MergeConfig
from sttm.merging.merged import Merged

PEERS: dict[str, Callable[[Tensor, MergeConfig], Merged]] = {}
