"""Settings of the merge: the method, how many tokens it keeps, and the options of the method."""

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

    For the method `sttm`, set either `budget`, `tokens` or both, and the thresholds are chosen for each video; or set
    the thresholds yourself. A threshold of None turns its step off. If none of these four is set, nothing is merged.
    Every other method except `none` needs `budget` or `tokens`.

    Attributes:
        method: `sttm`; `none`, which keeps every token; or one of the methods of `sttm.merging.peers.dispatch`.
        budget: share of the tokens that is kept, in (0, 1]: floor(budget * N) tokens.
        tokens: the most tokens that are kept; a video with fewer tokens stays as it is. If `budget` is set too, the
            smaller count holds.
        spatial_threshold: a node stays whole if its cosine with each child reaches this value (tau_S in the paper).
        temporal_threshold: overlapping nodes of neighbouring frames are linked if their cosine reaches this value
            (tau_T in the paper).
        root_level: how many levels below the coarsest level the quadtree search starts; the paper uses 1.
        variant: `exact` computes what the text of the paper says; `reference` computes what the authors' released code
            computes.
        links: with `best`, a node joins the most similar of the nodes it overlaps in the frame before; with `all`, it
            joins every one above the threshold. None takes `best` for the variant `exact` and `all` for the variant
            `reference`, which has no `best`.
        weighted: if True, the members of a survivor are averaged in proportion to the cells they cover; if False, all
            members count the same. None takes True for the variant `exact` and False for the variant `reference`.
        head_dim: vectors are cut into slices of this many channels, and similarity is the mean of the slices' cosines.
            None compares whole vectors.
        spatial_share: under a budget r, the spatial step alone keeps r ** spatial_share of the tokens, and the temporal
            step removes the rest: 0 merges over time only, 1 over space only, 0.5 reduces by the same factor in both.
            The default kept the most accuracy of the built-in model (sttm/evaluation/FINDINGS.md).
        threshold_floor: under a budget no tokens below this cosine are merged. If that leaves more tokens than the
            budget allows, `Merged.over_target` says how many.
        seed: seed of the method `random`.
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
        """The most tokens to keep of a video of `cells` tokens; None if neither `budget` nor `tokens` is set."""
        targets = []
        if self.budget is not None:  # as a decimal fraction, because in floats 0.29 * 100 is 28.999...
            targets.append(max(1, math.floor(Fraction(str(self.budget)) * cells)))
        if self.tokens is not None:
            targets.append(min(self.tokens, cells))
        return min(targets, default=None)
