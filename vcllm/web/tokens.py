"""Service tokens: signed, short-lived, for one role; the secret they are signed with is never sent.

A token is a JWT (HS256). Its key is derived from the internal token, so neither a token nor the key it was signed with
tells the internal token. Needs no web framework, so clients use it as well as servers.

It does not remember which tokens it has seen: whoever reads one off the wire can use it for the rest of its minute.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jwt
from pydantic import SecretStr

from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Forbidden, Unauthenticated

Issuer = Literal["gateway", "trainer"]

LIFETIME_S = 60
REUSED_S = 20
"""How long a token that was made is given out again, so that signing costs next to nothing per request."""
LEEWAY_S = 10
"""How far two clocks may be apart."""

MAY_ASK: Mapping[Role, frozenset[Issuer]] = {
    "actor": frozenset({"gateway", "trainer"}),
    "critic": frozenset({"gateway", "trainer"}),
    # Whatever a public request makes the gateway do, it does not reach what writes attacks.
    "attacker": frozenset({"trainer"}),
}
"""Whom a role answers."""

_ALGORITHM = "HS256"
_CLAIMS = ("iss", "aud", "iat", "exp", "jti")
_SIGNING = b"vcllm service token 1"
_SCRAPING = b"vcllm scrape token 1"

Clock = Callable[[], float]


class Signer:
    """Makes the tokens of one service. Thread-safe."""

    def __init__(self, secret: SecretStr, issuer: Issuer, *, clock: Clock = time.time) -> None:
        self.issuer = issuer
        self._key = _derived(secret, _SIGNING)
        self._clock = clock
        self._made: dict[Role, tuple[float, str]] = {}
        """When the last token for an audience was made, and the header it makes."""

    def header(self, audience: Role) -> str:
        """The value of `Authorization` for a request to a server of this role."""
        now = self._clock()
        made = self._made.get(audience)
        if made is None or not 0 <= now - made[0] < REUSED_S:  # below 0: the clock was set back
            made = self._made[audience] = now, f"Bearer {self._sign(audience, int(now))}"
        return made[1]

    def headers(self, audience: Role) -> dict[str, str]:
        return {"authorization": self.header(audience)}

    def _sign(self, audience: Role, now: int) -> str:
        claims = {
            "iss": self.issuer,
            "aud": audience,
            "iat": now,
            "exp": now + LIFETIME_S,
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)


class Verifier:
    """Knows whether a token opens a server of one role."""

    def __init__(self, secret: SecretStr, audience: Role) -> None:
        self.audience = audience
        self._key = _derived(secret, _SIGNING)

    def check(self, token: str) -> None:
        """Unauthenticated for what is no valid token for this role, Forbidden for that of a service it does not answer.

        Signatures are compared in constant time.
        """
        claims = self._claims(token)
        if int(claims["exp"]) - int(claims["iat"]) > LIFETIME_S:
            raise Unauthenticated(f"This service token lives longer than {LIFETIME_S} s, which none does.")
        if claims["iss"] not in MAY_ASK[self.audience]:
            answered = " and ".join(sorted(MAY_ASK[self.audience]))
            raise Forbidden(f"The {self.audience} answers the {answered} only.", code="wrong_service")

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=self.audience,
                leeway=LEEWAY_S,
                options={"require": list(_CLAIMS), "strict_aud": True},
            )
        except jwt.InvalidSignatureError as error:
            raise Unauthenticated(
                "This service token was not signed with this server's internal token. Give all services the same"
                " VCLLM_INTERNAL_TOKEN."
            ) from error
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
            when = "has expired" if isinstance(error, jwt.ExpiredSignatureError) else "is from the future"
            raise Unauthenticated(
                f"This service token {when}. If it was made just now, set the clocks: they may be {LEEWAY_S} s apart."
            ) from error
        except jwt.InvalidAudienceError as error:
            raise Unauthenticated(f"This service token is not for the {self.audience}.") from error
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError) as error:
            raise Unauthenticated("This is not a service token. Only services of this installation get in.") from error


def scrape_token(secret: SecretStr) -> str:
    """What a metrics scraper sends: it opens `/metrics` of every service and nothing else, and does not expire."""
    return f"vcm_{_derived(secret, _SCRAPING).hex()}"


def _derived(secret: SecretStr, purpose: bytes) -> bytes:
    """A key for one purpose, from which neither the secret nor the key for another can be told."""
    value = secret.get_secret_value()
    if not value:
        raise ValueError("The internal token is empty. Set VCLLM_INTERNAL_TOKEN to a long random string.")
    return hmac.new(value.encode(), purpose, hashlib.sha256).digest()
