"""Whether the bearer tokens of callers can be reviewed: the API server is shown one that nobody has."""

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.identity.token_review import TokenRejectedError, TokenReviewer, TokenReviewUnavailableError

_NOBODYS = "milo-discoveryd-check"
_WHAT = "token reviews"


async def reviewing(reviews: TokenReviewer) -> Finding:
    try:
        user = await reviews.user(_NOBODYS)
    except TokenRejectedError:
        return ok(_WHAT, f"{reviews.origin} says whose tokens are whose, and that one which was made up is nobody's")
    except TokenReviewUnavailableError as error:
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
