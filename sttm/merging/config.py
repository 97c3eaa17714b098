"""Settings of the merge: which method, how much to keep, and the method's own options."""

import math
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from sttm.merging.temporal import LinkRule
from sttm.settings import Settings

Method = Literal["sttm", "none", "tome", "tome_frame", "dycoke", "uniform", "pooling", "random", "octree"]
Threshold = Field(default=None, ge=-1.0, le=1.0)


class MergeConfig(Settings):
    """How the visual tokens of one video are reduced.

    For `sttm` say either `budget` and/or `tokens` (the thresholds follow, per video), or the thresholds. A threshold of
    None turns its step off; with nothing said at all nothing is merged. Every other method needs `budget` or `tokens`.

    Attributes:
        method: `sttm`, `none` (keep everything) or a peer from `sttm.merging.peers.dispatch`.
        budget: share of the tokens kept, in (0, 1]: floor(budget * N) of them.
        tokens: most tokens kept; a shorter video is left alone. With `budget` too, the smaller count holds.
        spatial_threshold: a node stays whole if its cosine with each child reaches this (tau_S of the paper).
        temporal_threshold: nodes of neighbouring frames are linked from this cosine on (tau_T of the paper).
        root_level: how many levels below the coarsest the quadtree search starts; the paper uses 1.
        variant: `exact` is the paper's text; `reference` is what the authors' released code computes.
        links: `best`: a node joins its most similar overlap in the frame before; `all`: it joins all of them.
            None picks the variant's own: `best` for `exact`, `all` for `reference`, which knows no other.
        weighted: members of a survivor count by the cells they cover (True) or equally (False). None picks the
            variant's own: True for `exact`, False for `reference`.
        head_dim: similarity is the mean of the cosines of slices of this many channels; None compares whole vectors.
        spatial_share: under a budget r the spatial step alone keeps r ** spatial_share of the tokens, the temporal step
            the rest: 0 merges over time only, 1 over space only, 0.5 reduces by the same factor in both. The default
            kept the most accuracy of the built-in model (README, Findings).
        threshold_floor: a budget never links or pools below this cosine; where that is not enough it keeps more tokens
            than asked for, which `Merged.over_target` tells.
        seed: of the `random` method.
    """

    method: Method = "sttm"
    budget: float | None = Field(default=None, gt=0.0, le=1.0)
    tokens: int | None = Field(default=None, ge=1)
    spatial_threshold: float | None = Threshold
    temporal_threshold: float | None = Threshold
    root_level: int = Field(default=1, ge=0)
    variant: Literal["exact", "reference"] = "exact"
    links: Literal["best", "all"] | None = None
    weighted: bool | None = None
    head_dim: int | None = Field(default=None, ge=1)
    spatial_share: float = Field(default=0.75, ge=0.0, le=1.0)
    threshold_floor: float = Field(default=0.0, ge=-1.0, le=1.0)
    seed: int = 0

    @model_validator(mode="after")
    def _settings_agree(self) -> "MergeConfig":
        has_target = self.budget is not None or self.tokens is not None
        has_threshold = self.spatial_threshold is not None or self.temporal_threshold is not None
        if has_target and has_threshold:
            raise ValueError("a budget or token cap chooses the thresholds: give one or the other, not both")
        if self.method not in ("sttm", "none") and (has_threshold or not has_target):
            raise ValueError(f"method {self.method!r} needs budget= or tokens=, and takes no thresholds")
        if self.method == "none" and (has_target or has_threshold):
            raise ValueError("method 'none' keeps every token: drop budget, tokens and thresholds, or choose a method")
        if self.variant == "reference" and self.links == "best":
            raise ValueError("variant 'reference' unites all links: drop links='best' or use variant 'exact'")
        return self

    @property
    def link_rule(self) -> LinkRule:
        return "reference" if self.variant == "reference" else self.links or "best"

    @property
    def is_weighted(self) -> bool:
        return self.variant == "exact" if self.weighted is None else self.weighted

    def target(self, cells: int) -> int | None:
        """The most tokens to keep of a video of `cells` tokens; None where neither budget nor cap is set."""
        targets = []
        if self.budget is not None:  # read as the decimal it was written as: 0.29 of 100 is 29, not 28.999...
            targets.append(max(1, math.floor(Fraction(str(self.budget)) * cells)))
        if self.tokens is not None:
            targets.append(min(self.tokens, cells))
        return min(targets, default=None)
