"""What can go wrong in `attacks`."""


class AttackError(Exception):
    """Root of every error that `attacks` raises on purpose."""


class ThreatModelError(AttackError, ValueError):
    """A threat model contradicts itself or does not fit the inputs."""


class BudgetError(AttackError):
    """The query budget is too small for the attack to take one step."""
