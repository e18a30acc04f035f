"""Checks that callers' bearer tokens can be reviewed, by reviewing an invalid token."""

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.identity.token_review import TokenRejectedError, TokenReviewer, TokenReviewUnavailableError

_INVALID_TOKEN = "milo-discoveryd-check"  # noqa: S105 - a token of nobody, to be rejected
_SUBJECT = "token reviews"


async def check_token_reviews(reviewer: TokenReviewer) -> Finding:
    try:
        user = await reviewer.authenticate(_INVALID_TOKEN)
    except TokenRejectedError:
        return ok(_SUBJECT, f"{reviewer.origin} reviews tokens and rejects an invalid one")
    except TokenReviewUnavailableError as error:
        return fail(
            _SUBJECT,
            error.why,
            "bind the role milo-discoveryd-token-review to the user of token_review.kubeconfig, or correct that file",
        )
    return fail(
        _SUBJECT,
        f"{reviewer.origin} accepts an invalid token as {user.name}",
        "point token_review.kubeconfig to an API server that authenticates tokens",
    )
