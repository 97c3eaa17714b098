"""Names follow from what shaped the bytes, and from nothing else."""

import hashlib

import pytest
import torch

from sttm.store.key import (
    ABSENT,
    Difference,
    canonical_json,
    differences,
    identity,
    make_recipe,
    recipe_digest,
    source_key,
)


def test_identity_is_stable_across_runs_and_versions() -> None:
    recipe = make_recipe(model={"id": "tiny"}, merge={"budget": 0.3}, store={"kv_scheme": "int8"})
    assert recipe_digest(recipe) == "6c26df237f963d021b904a60c1da91fde133ce2dea5583812bd782d8462b48c0"
    assert identity(recipe, "ab" * 32) == "525528e3731c72d511cbd3e070d29cff25c75f183a989773b266ff2ad79fc946"
    assert (
        source_key("s3://b/v.mp4", 12, "etag", recipe)
        == "210fa2c0de215922291be4530d33f183116116c9fbafdb3514d014fbcf4837ff"
    )


def test_order_of_sections_and_kind_of_sequence_do_not_matter() -> None:
    a = make_recipe(model={"id": "m", "sizes": (1, 2)}, merge={"budget": 0.3})
    b = make_recipe(merge={"budget": 0.3}, model={"sizes": [1, 2], "id": "m"})
    assert recipe_digest(a) == recipe_digest(b)
    assert differences(a, b) == []


def test_every_input_changes_its_name() -> None:
    recipe, other = make_recipe(merge={"budget": 0.3}), make_recipe(merge={"budget": 0.31})
    assert len({identity(r, c) for r in (recipe, other) for c in ("c1", "c2")}) == 4
    arguments = [("u", 1, "v"), ("w", 1, "v"), ("u", 2, "v"), ("u", 1, "w")]
    assert len({source_key(*a, r) for a in arguments for r in (recipe, other)}) == 8


def test_values_that_python_takes_for_equal_are_told_apart() -> None:
    assert len({recipe_digest(make_recipe(x={"v": v})) for v in (1, 1.0, True, "1", None, [1])}) == 6
    assert differences({"v": 1}, {"v": True}) == [Difference("v", 1, True)]


def test_differences_name_every_leaf() -> None:
    a = make_recipe(model={"id": "m"}, merge={"budget": 0.3, "links": "best"})
    b = make_recipe(model={"id": "m"}, merge={"budget": 0.5}, video={"fps": 1})
    assert differences(a, b) == [
        Difference("merge.budget", 0.3, 0.5),
        Difference("merge.links", "best", ABSENT),
        Difference("video", ABSENT, {"fps": 1}),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(1), {1: 2}, {"a": [object()]}, b"x"])
def test_what_has_no_exact_json_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|not text"):
        make_recipe(section={"value": value})


def test_a_recipe_without_format_version_is_refused() -> None:
    with pytest.raises(ValueError, match="make_recipe"):
        recipe_digest({"model": {}})


def test_a_source_key_is_the_digest_of_canonical_json() -> None:
    recipe = make_recipe(model={"id": "tiny"})
    for uri in ("s3://b/a.mp4", 's3://b/"quoted"\\ \n\x00.mp4', "file:///ä \U0001f600 \udcff.mp4"):
        text = canonical_json(["source", uri, 1 << 40, 'etag:"x"', recipe_digest(recipe)])
        assert source_key(uri, 1 << 40, 'etag:"x"', recipe) == hashlib.sha256(text).hexdigest()
