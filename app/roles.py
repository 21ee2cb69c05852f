"""What somebody may do: a viewer looks, a reviewer reviews and saves slices too, a lead does all.

    @needs("lead")
    def start(...): ...          # a handler of Gradio's; `doors.Blocks` refuses others before it runs

Roles stand in the list of users (`login`); without a login everybody leads. Pages hide what a role may not do
(`frame.css`); what holds is checked here, by the request, for every way in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from deepintuit.errors import ConfigError

ROLES = ("viewer", "reviewer", "lead")
"""Each may do what those before it may."""
_MAY = {
    "reviewer": "answering reviews and saving slices is for reviewers and leads",
    "lead": "starting and stopping jobs, opening and deciding reviews, gold and run cards are for leads",
}
_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def needs(least: str) -> Callable[[_Handler], _Handler]:
    """Mark a handler as one for this role and those above it."""

    def mark(handler: _Handler) -> _Handler:
        handler.least_role = least
        return handler

    return mark


def role_of(scope: Mapping[str, Any]) -> str:
    """The role of who sent a request."""
    return scope.get("deepintuit_role", "lead")


def check(scope: Mapping[str, Any], least: str) -> None:
    """ConfigError where who asks has a lower role."""
    role = role_of(scope)
    if ROLES.index(role) < ROLES.index(least):
        raise ConfigError(
            f"{scope.get('deepintuit_user')!r} is a {role} here",
            _MAY[least],
            f"Ask who runs the dashboard for the role {least!r}: it stands in the file of --auth",
        )
