"""A bounded cache that evicts its oldest entry."""

from milo_discoveryd.log.change_log import LARGE_BYTES, Recent


def test_recent_cache_returns_stored_value() -> None:
    cache: Recent[str, int] = Recent(2)
    assert cache.get("a") is None
    assert cache.put("a", 1) == 1
    assert cache.get("a") == 1


def test_recent_cache_evicts_its_oldest_entry_at_the_limit() -> None:
    cache: Recent[str, int] = Recent(2)
    for key, value in (("a", 1), ("b", 2), ("c", 3)):
        cache.put(key, value)
    assert (len(cache), cache.get("a"), cache.get("c")) == (2, None, 3)


def test_cleared_recent_cache_is_empty() -> None:
    cache: Recent[str, int] = Recent(2)
    cache.put("a", 1)
    cache.clear()
    assert len(cache) == 0


def test_large_values_are_evicted_before_small_ones() -> None:
    cache: Recent[int, str] = Recent(100)
    cache.put(-1, "small", 10)
    for number in range(50):
        cache.put(number, "large", LARGE_BYTES)
    assert [*cache] == [-1, *range(34, 50)]
    cache.clear()
    for number in range(16):
        cache.put(number, "large", LARGE_BYTES)
    assert [*cache] == [*range(16)]
