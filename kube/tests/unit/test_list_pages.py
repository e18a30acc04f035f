"""The bounds of lists in pages."""

import pytest

from milo_kube.list_pages import LONGEST_TOKEN, MAX_PAGES, MAX_S, EndlessListError, ListPages, PageSize, smaller


def test_list_within_the_bounds_is_read() -> None:
    pages = ListPages(5.0)
    for _ in range(MAX_PAGES - 1):
        pages = pages.next("more", 5.0 + MAX_S - 1)
    with pytest.raises(EndlessListError, match=r"did not end in 2000 pages and 599 s .at most 2000 pages, 600 s."):
        pages.next("more", 5.0 + MAX_S - 1)


def test_slow_list_is_given_up() -> None:
    pages = ListPages(5.0).next("more", 5.0)
    with pytest.raises(EndlessListError, match="did not end in 2 pages and 600 s"):
        pages.next("more", 5.0 + MAX_S)


@pytest.mark.parametrize("token", ["€" * (LONGEST_TOKEN + 1), {"token": 1}, 7])
def test_list_whose_token_cannot_be_sent_is_given_up(token: object) -> None:
    with pytest.raises(EndlessListError, match="is not a string of at most 4096 characters"):
        ListPages(5.0).next(token, 5.0)


def test_smaller_pages_have_a_fifth_of_the_objects_and_at_least_one() -> None:
    assert [smaller(5_000), smaller(3)] == [1_000, 1]


def test_pages_have_more_objects_again_after_five_that_fitted() -> None:
    size, sizes = PageSize(50), []
    while size.shrink():
        sizes.append(size.objects)
    for _ in range(20):
        size.page_fitted()
        sizes.append(size.objects)
    assert sizes == [10, 2, 1, *[1] * 4, *[5] * 5, *[25] * 5, *[50] * 6]
