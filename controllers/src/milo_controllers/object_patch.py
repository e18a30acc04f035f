"""The merge patch that makes the change of a partial object in the whole one: a pure function of both."""

from __future__ import annotations

from milo_controllers.json_patch import PartialListError, are_same, has_all_of
from milo_controllers.kinds import Document


def merge_patch(before: Document, after: Document, whole: Document, *, of: str = "") -> Document:
    """Return the merge patch for a change from `before` to `after`; empty if nothing changed.

    `before` is the part of `whole` that was read. What that part lacks is left as it is. A merge patch replaces lists:
    raises PartialListError for a changed list that `before` has without some fields of its elements. `of`: the path of
    the objects, for that error.
    """
    patch: Document = {}
    for name in dict.fromkeys((*before, *after)):
        old, new, path = before.get(name), after.get(name), f"{of}.{name}" if of else name
        if old == new and are_same(old, new):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = whole.get(name)
            if changed := merge_patch(old, new, inner if isinstance(inner, dict) else {}, of=path):
                patch[name] = changed
            continue
        kept = whole.get(name)
        if isinstance(kept, list) and isinstance(new, list) and not has_all_of(old, kept):
            raise PartialListError(
                f"{path} is a list, and the object was read without some fields of its elements, which the update "
                "would remove: use a type with all of their fields, or call patch"
            )
        patch[name] = new
    return patch
