# SPDX-License-Identifier: Apache-2.0
"""What becomes of an action, until it is told as an outcome."""

from dataclasses import dataclass, replace

from bodocache.hints.actions import Operation, Outcome, Status
from bodocache.move.scopes import Scope


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and why; to how many pages it applies, and for how long."""

    status: Status
    reason: str
    pages: int = 0
    asked_pages: int = 0
    until_s: float | None = None
    operation: Operation | None = None

    @classmethod
    def of(
        cls,
        pages: int,
        scope: Scope,
        reason: str = "",
        *,
        until_s: float | None = None,
        operation: Operation | None = None,
    ) -> "Answer":
        """Accepted for ``pages``; clipped where the target has pages that lie in no tier."""
        answer = cls(Status.ACCEPTED, reason, pages, scope.asked_pages, until_s, operation)
        if scope.pages == scope.asked_pages:
            return answer
        return answer.clipped(f"{scope.pages} of {scope.asked_pages} pages are in the cache")

    def clipped(self, why: str) -> "Answer":
        """The same, not as far as was asked."""
        reason = f"{self.reason}; {why}" if self.reason else why
        return replace(self, status=Status.CLIPPED, reason=reason)

    def outcome(self, action_id: str, action: str) -> Outcome:
        """As it is told."""
        return Outcome(
            action_id,
            action,
            self.status,
            self.reason or "done",
            self.pages,
            self.asked_pages,
            self.until_s,
            self.operation,
        )
