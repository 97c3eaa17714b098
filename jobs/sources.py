"""What has become of the video files that a store was made of."""

from sttm.corpus import look_again
from sttm.store.catalog import CatalogRow
from sttm.store.key import Recipe, source_key
from sttm.store.store import Store


def source_states(store: Store, rows: list[CatalogRow]) -> list[str]:
    """For each row: `there` as it was when the row was made, `changed` since, or `gone` (or not to be read).

    Looks at every file once, and reads none. Of an error row nobody may know the recipe; it is then never `changed`.
    """
    refs = {ref.uri: ref for ref in look_again(sorted({row.uri for row in rows}))}
    recipes: dict[str, Recipe] = {}
    for row in rows:
        if row.identity and row.recipe_digest not in recipes:
            recipes[row.recipe_digest] = store.manifest(row.identity).recipe
    states = []
    for row in rows:
        ref, recipe = refs[row.uri], recipes.get(row.recipe_digest)
        if ref.size_bytes is None:
            states.append("gone")
        elif recipe and source_key(ref.uri, ref.size_bytes, ref.version, recipe) != row.source_key:
            states.append("changed")
        else:
            states.append("there")
    return states
