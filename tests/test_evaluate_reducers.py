"""The list of reducers: names, bracketed settings, budgets."""

import pytest

from sttm.config import IndexConfig
from sttm.errors import ConfigError
from sttm.evaluation.reducers import parse_reducers
from sttm.merging import MergeConfig

BASE = IndexConfig(merge=MergeConfig(budget=0.25, root_level=0))


def test_full_tokens_come_first_and_nothing_comes_twice() -> None:
    labels = [r.label for r in parse_reducers("sttm, tome,none,sttm", [0.5, 0.3], BASE)]
    assert labels == ["none", "sttm 0.5", "sttm 0.3", "tome 0.5", "tome 0.3"]


def test_bracketed_settings_reach_the_group_they_belong_to() -> None:
    spec = "sttm[variant=reference,links=all],sttm[merge_layer=0,position_rule=reassigned],none[kv_scheme=int8]"
    none, merged, placed, stored = parse_reducers(spec, [0.5], BASE)
    assert (merged.merge.variant, merged.merge.links, merged.merge.budget) == ("reference", "all", 0.5)
    assert (placed.prefill.merge_layer, placed.prefill.position_rule) == (0, "reassigned")
    assert (stored.kv_scheme, stored.merge.method, stored.budget) == ("int8", "none", None)
    assert none.kv_scheme is merged.kv_scheme is None


def test_settings_not_named_come_from_the_configuration_but_its_budget_does_not() -> None:
    _, sttm, tome = parse_reducers("sttm,tome", [0.5], BASE)
    assert (sttm.merge.root_level, sttm.merge.budget) == (0, 0.5)
    assert (tome.merge.root_level, tome.merge.method) == (0, "tome")


def test_thresholds_of_the_configuration_do_not_stand_beside_a_budget() -> None:
    base = IndexConfig(merge=MergeConfig(spatial_threshold=0.8, temporal_threshold=0.6))
    (_, sttm) = parse_reducers("sttm", [0.5], base)
    assert (sttm.merge.budget, sttm.merge.spatial_threshold) == (0.5, None)
    (_, capped) = parse_reducers("sttm", [0.5], IndexConfig(merge=MergeConfig(tokens=7)))
    assert (capped.merge.budget, capped.merge.tokens) == (0.5, None)


@pytest.mark.parametrize("target", ["tokens=100", "spatial_threshold=.8,temporal_threshold=.6", "budget=0.7"])
def test_a_target_in_the_brackets_replaces_the_budgets(target: str) -> None:
    reducers = parse_reducers(f"sttm[{target}]", [0.5, 0.3], BASE)
    assert [r.budget for r in reducers] == [None, None]
    assert reducers[1].merge.budget == (0.7 if "budget" in target else None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stm", "did you mean 'sttm'"),
        ("sttm[merge_layr=0]", "did you mean 'merge_layer'"),
        ("sttm[variant]", "setting=value"),
        ("sttm[variant=best]", "variant"),
        ("sttm[links=all", "brackets do not match"),
        ("sttm]x[", "brackets do not match"),
        ("sttm[a[b]]", "brackets do not match"),
        ("none[budget=0.5]", "keeps every token"),
        ("sttm[variant=reference,links=best]", "unites all links"),
        ("9", "not of the form"),
    ],
)
def test_a_mistake_is_named_with_its_cure(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_reducers(spec, [0.5], BASE)


def test_a_method_without_any_target_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs --budgets"):
        parse_reducers("tome", [], BASE)
