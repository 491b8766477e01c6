"""What can go wrong in `attacks`."""


class AttackError(Exception):
    """Root of every error that `attacks` raises on purpose."""


class ThreatModelError(AttackError, ValueError):
    """A threat model contradicts itself, or does not fit the inputs or the attack."""


class BudgetError(AttackError):
    """The query budget is too small for the attack to take one step."""


class ModelError(AttackError):
    """The model's answers are no scores: wrong shape, not finite, or without the gradients that the attack needs."""


class SurrogateError(AttackError, ValueError):
    """A surrogate can't be fitted on these rows and labels."""
