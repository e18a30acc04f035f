"""Whether the bearer tokens of callers can be reviewed: the API server is shown one that nobody has."""

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.identity.token_review import RejectedError, TokenReviews, UnreviewedError

_NOBODYS = "milo-discoveryd-check"
_WHAT = "token reviews"


async def reviewing(reviews: TokenReviews) -> Finding:
    try:
        user = await reviews.user(_NOBODYS)
    except RejectedError:
        return ok(_WHAT, f"{reviews.origin} says whose tokens are whose, and that one which was made up is nobody's")
    except UnreviewedError as error:
        return fail(
            _WHAT,
            error.why,
            "bind the role milo-discoveryd-token-review to the user of token_review.kubeconfig, or mend that file",
        )
    return fail(
        _WHAT,
        f"{reviews.origin} takes a token that was made up for one of {user.name}",
        "have token_review.kubeconfig lead to an API server that looks at tokens",
    )
