"""Channel selection by LASSO with the penalty found by bisection (He et al. 2017, equation 2).

With ``Z_c`` what unit ``c`` contributes to the outputs of the layers that read it, each layer
scaled to an output of norm 1, and ``Y = sum_c Z_c``, a penalty ``gamma`` gives

    beta(gamma) = argmin ||Y - sum_c beta_c Z_c||^2 / 2 + gamma ||beta||_1.                    (1)

All it needs of the data is ``A_cd = <Z_c, Z_d>`` and ``b = A 1`` (see ``lasso.py``). The units
that stay are those with ``beta_c != 0``, for the penalty that leaves as many as asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_compress.learners.candidates.preparation import Samples
from amc_compress.learners.channel_pruning.criteria import rank_units
from amc_compress.learners.channel_pruning.lasso import entry_order_scores
from amc_compress.learners.channel_pruning.ranking import contributions
from amc_compress.learners.channel_pruning.selection import SolvedSelection
from amc_env.support.threads import limited_threads

_CHECK_EVERY = 25
_SMALLEST = 1e-9  # penalty, relative to the one that leaves nothing
_NARROWEST = 1e-12


@dataclass(frozen=True)
class LassoChoice:
    """What the bisection ended with.

    Args:
        units: The units that stay, sorted.
        penalty: The ``gamma`` of ``coefficients``.
        coefficients: ``beta(gamma)``, shape (size,).
        exact: Whether exactly the units of ``units`` have a coefficient other than zero. If not,
            no penalty was found that does so, and ``coefficients`` has fewer.
    """

    units: Tensor
    penalty: float
    coefficients: Tensor
    exact: bool


class LassoSolver:
    """Minimises ``beta^T A beta / 2 - b^T beta + gamma ||beta||_1``, ``b = A 1``.

    By FISTA (Beck & Teboulle 2009, equations 4.1 to 4.3): ISTA, as PocketFlow has it, with
    momentum, and with a step length per coefficient: units differ in size by orders of magnitude.
    Where the support and the signs have settled the optimum is known in closed form,
    ``A_SS beta_S = b_S - gamma sign(beta_S)``; it is taken once it meets the optimality
    conditions, so that it is exact to rounding.

    Args:
        form: ``A``, symmetric without negative eigenvalues, shape (size, size), float64.
        tolerance: Duality gap, relative to ``gamma ||beta||_1``, at which to stop where there is
            no closed form (units that are copies of each other).
        max_iterations: Steps after which to give up.

    Raises:
        ValueError: If ``form`` is not a finite square matrix.
    """

    def __init__(
        self, form: Tensor, *, tolerance: float = 1e-9, max_iterations: int = 3000
    ) -> None:
        if form.dim() != 2 or form.shape[0] != form.shape[1] or not bool(form.isfinite().all()):
            raise ValueError(f"Expected a finite square matrix, got shape {tuple(form.shape)}.")
        self.form = form.detach().double().cpu()
        self.target = self.form.sum(1)
        self.energy = float(self.target.sum())
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        # s diag(A) bounds A from above if s is the largest eigenvalue of A scaled to ones there.
        diagonal = self.form.diagonal()
        diagonal = diagonal.clamp(min=max(1e-14 * float(diagonal.max()), 1e-300))
        scaled = self.form / torch.outer(diagonal.sqrt(), diagonal.sqrt())
        self._curvature = diagonal * max(float(torch.linalg.eigvalsh(scaled)[-1]), 1e-14)

    @property
    def largest_penalty(self) -> float:
        """The smallest penalty at which every coefficient is zero."""
        return float(self.target.abs().max())

    def solve(self, penalty: float, start: Tensor | None = None) -> Tensor | None:
        """Returns the coefficients at a penalty > 0, shape (size,).

        Args:
            penalty: ``gamma``.
            start: Where to start; at zero if not given.

        Returns:
            ``None`` if the steps were not enough, as can be if units are next to dependent.
        """
        beta = torch.zeros_like(self.target) if start is None else start.clone()
        ahead, momentum = beta, 1.0
        for iteration in range(self.max_iterations + 1):
            if iteration % _CHECK_EVERY == 0:
                exact = self._closed_form(beta, penalty)
                if exact is not None:
                    return exact
                enough = self.tolerance * penalty * float(beta.abs().sum())
                if self.duality_gap(beta, penalty) <= enough:
                    return beta
            moved = ahead - (self.form @ ahead - self.target) / self._curvature
            shrunk = moved.abs() - penalty / self._curvature
            new = moved.sign() * shrunk.clamp(min=0.0)
            if float((ahead - new) @ (self._curvature * (new - beta))) > 0.0:
                momentum = 1.0  # uphill: start the momentum anew (O'Donoghue & Candes 2015)
            next_momentum = (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
            ahead = new + (momentum - 1.0) / next_momentum * (new - beta)
            beta, momentum = new, next_momentum
        return None

    def objective(self, beta: Tensor, penalty: float) -> float:
        """Returns the value of (1), ``||Y||^2 / 2`` included."""
        fit = 0.5 * (beta @ (self.form @ beta)) - self.target @ beta + 0.5 * self.energy
        return float(fit + penalty * beta.abs().sum())

    def duality_gap(self, beta: Tensor, penalty: float) -> float:
        """Returns by how much the objective at ``beta`` can at most be above the optimum."""
        correlation = self.target - self.form @ beta  # Z^T (Y - Z beta)
        largest = float(correlation.abs().max())
        scale = 1.0 if largest <= penalty else penalty / largest
        residual = float(self.energy - beta @ (self.target + correlation))
        along = float(self.energy - self.target @ beta)
        # D(theta) = (||Y||^2 - ||Y - theta||^2) / 2 at theta = scale x residual.
        dual = scale * along - 0.5 * scale**2 * residual
        return self.objective(beta, penalty) - dual

    def _closed_form(self, beta: Tensor, penalty: float) -> Tensor | None:
        """Returns the optimum if it has the support and signs of ``beta``."""
        support = beta.nonzero()[:, 0]
        exact = torch.zeros_like(beta)
        if len(support):
            sub = self.form.index_select(0, support).index_select(1, support)
            factor, info = torch.linalg.cholesky_ex(sub)
            if info.item():
                return None
            signs = beta[support].sign()
            right = (self.target[support] - penalty * signs).unsqueeze(1)
            solved = torch.cholesky_solve(right, factor)[:, 0]
            if bool((solved * signs <= 0.0).any()):
                return None
            exact[support] = solved
        correlation = self.target - self.form @ exact
        excess = correlation.abs() - penalty
        excess[support] = (correlation[support] - penalty * beta[support].sign()).abs()
        slack = 1e-9 * penalty + 1e-14 * self.largest_penalty  # the second is rounding
        return exact if float(excess.max()) <= slack else None


def choose_units(form: Tensor, count: int, *, max_iterations: int = 3000) -> LassoChoice:
    """Finds the penalty that leaves exactly ``count`` coefficients, by bisection.

    Units enter (and sometimes leave) one by one as the penalty falls, so there is an interval of
    such penalties for every count, unless units enter together or never: copies of each other,
    or units that contribute nothing. Then the bisection ends at a penalty with too few. Those
    units stay, and are filled up in the order in which units enter the LASSO path
    (``entry_order_scores``), of equal ones the larger contribution and then the lower index
    first. So it does where the LASSO is too badly conditioned to be solved to the end.

    Args:
        form: The quadratic form ``A`` of the contributions, shape (size, size).
        count: How many units stay, from 1 to the size.
        max_iterations: Steps per penalty after which to give up.
    """
    solver = LassoSolver(form, max_iterations=max_iterations)
    low, high, few = 0.0, solver.largest_penalty, torch.zeros_like(solver.target)
    smallest = _SMALLEST * high
    while high > smallest and high - low > _NARROWEST * high:
        penalty = high / 2.0 if low == 0.0 else (low + high) / 2.0
        found = solver.solve(penalty, few)
        if found is None:
            break
        entered = int((found != 0).sum())
        if entered == count:
            return LassoChoice(found.nonzero()[:, 0], penalty, found, True)
        if entered < count:
            high, few = penalty, found
        else:
            low = penalty
    order = rank_units(entry_order_scores(solver.form))
    order = order[torch.sort((few != 0)[order].int(), descending=True, stable=True).indices]
    return LassoChoice(order[:count].sort().values, high, few, False)


class RemasteredPruning(SolvedSelection):
    """Channel pruning by LASSO, solved for the count wanted (PocketFlow: ``chn-pruned-rmt``).

    He et al. 2017. The layers behind the units that stay are repaired by least squares, like
    those of any channel pruning. Unlike ``ChannelPruning(criterion="lasso")``, which orders the
    units by when they enter the path, a unit that leaves again at a smaller penalty is gone.
    ``criterion`` ranks groups without input statistics.
    """

    def _prepare(self, samples: Samples) -> None:
        self._forms: dict[str, Tensor | None] = {}
        super()._prepare(samples)

    def lasso(self, group: str, count: int) -> LassoChoice | None:
        """Returns penalty and coefficients behind a selection; ``None`` without statistics.

        Raises:
            ValueError: If the group has no so many units, or there is no such group.
        """
        self._check_selection(group, count)
        with limited_threads(self.threads):  # as for the selection itself
            if group not in self._forms:
                self._forms[group] = contributions(self.traced, self._layers, group)
            form = self._forms[group]
            return None if form is None else choose_units(form, count)

    def _solve(self, group: str, count: int) -> Tensor | None:
        choice = self.lasso(group, count)
        return None if choice is None else choice.units
