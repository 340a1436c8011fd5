"""RemasteredPruning keeps the contract; its optimum against scikit-learn's on the design."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.precision_contract import PrecisionContract
from sklearn.linear_model import Lasso

from amc_compress.learners import RemasteredPruning
from amc_compress.learners.channel_pruning.lasso import contribution_matrix, entry_order_scores
from amc_compress.learners.channel_pruning.remastered import LassoSolver, choose_units
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model


class TestRemasteredPruning(PrecisionContract):
    def make(self, model, example, calibration, validation, **options):
        return RemasteredPruning(model, example, calibration, validation, **options)


def design(size, seed, rows=300, noise=0.3):
    """Contributions of units that share causes, one column each."""
    generator = np.random.default_rng(seed)
    causes = generator.normal(size=(rows, size)) @ generator.normal(size=(size, size))
    return causes * generator.uniform(0.1, 1.0, size) + noise * generator.normal(size=(rows, size))


def sklearn_lasso(z, penalty):
    """The same problem; its loss is divided by the number of rows."""
    y = z.sum(1)
    model = Lasso(alpha=penalty / len(y), fit_intercept=False, tol=1e-14, max_iter=10**6)
    return model.fit(z, y).coef_


def objective(z, beta, penalty):
    return 0.5 * ((z.sum(1) - z @ beta) ** 2).sum() + penalty * np.abs(beta).sum()


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("size", [2, 12, 40])
def test_optimum_equals_that_of_scikit_learn(size, share):
    z = design(size, seed=size)
    solver = LassoSolver(torch.from_numpy(z.T @ z))
    penalty = share * solver.largest_penalty
    found, expected = solver.solve(penalty), sklearn_lasso(z, penalty)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert (found.numpy() != 0).tolist() == (np.abs(expected) > 1e-9).tolist()
    value = objective(z, found.numpy(), penalty)
    assert value <= objective(z, expected, penalty) * (1 + 1e-12)
    assert solver.objective(found, penalty) == pytest.approx(value, rel=1e-9)
    assert 0.0 <= solver.duality_gap(found, penalty) + 1e-12 * value <= 1e-9 * value


def test_the_gap_bounds_the_distance_from_the_optimum():
    z = design(12, seed=5)
    solver = LassoSolver(torch.from_numpy(z.T @ z))
    penalty = 0.2 * solver.largest_penalty
    best = objective(z, sklearn_lasso(z, penalty), penalty)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        beta = torch.rand(12, generator=generator, dtype=torch.float64)
        assert solver.duality_gap(beta, penalty) >= objective(z, beta.numpy(), penalty) - best


@pytest.mark.parametrize("seed", range(4))
def test_every_count_is_met_by_a_support_that_scikit_learn_finds_too(seed):
    z = design(12, seed)
    form = torch.from_numpy(z.T @ z)
    for count in range(1, 13):
        choice = choose_units(form, count)
        assert choice.exact
        assert choice.units.tolist() == choice.coefficients.nonzero()[:, 0].tolist()
        assert len(choice.units) == count
        other = sklearn_lasso(z, choice.penalty)
        np.testing.assert_allclose(choice.coefficients.numpy(), other, atol=1e-5)
        if np.abs(choice.coefficients.numpy()[choice.units]).min() > 1e-5:
            assert np.flatnonzero(np.abs(other) > 1e-7).tolist() == choice.units.tolist()


def test_a_layer_of_a_network_is_solved_like_its_recorded_inputs():
    """The linear layer at the end of the network: every image is a row, fitted with intercept."""
    model = make_model("plain").eval()
    learner = RemasteredPruning(
        model, EXAMPLE, make_data(96, 2), make_data(64, 3), precision="fp32", round_to=1
    )
    with torch.no_grad():
        x = model[:8](torch.cat([images for images, _ in make_data(96, 2)])).double()
    x = (x - x.mean(0)).numpy()
    w = model[8].weight.detach().double().numpy()
    z = np.stack([np.outer(x[:, c], w[:, c]).ravel() for c in range(20)], 1)
    z /= np.linalg.norm(z.sum(1))
    tested = 0
    for count in (2, 5, 9):
        choice = learner.lasso("6", count)
        other = sklearn_lasso(z, choice.penalty)
        np.testing.assert_allclose(choice.coefficients.numpy(), other, atol=2e-3)
        value = objective(z, choice.coefficients.numpy(), choice.penalty)
        assert value == pytest.approx(objective(z, other, choice.penalty), rel=1e-5)
        if choice.exact:
            tested += 1
            assert learner.select("6", count).tolist() == choice.units.tolist()
    assert tested >= 2


def test_consumers_are_added_up_each_scaled_to_its_output():
    model = make_model("residual").eval()
    learner = RemasteredPruning(model, EXAMPLE, make_data(96, 2), make_data(64, 3), round_to=1)
    layers = [learner._layers[name] for name in ("conv1", "conv3")]
    expected = sum(
        contribution_matrix(x.weight, x.gram, torch.arange(144).reshape(16, 9)) / x.energy
        for x in layers
    )
    assert float(expected.sum()) == pytest.approx(2.0)
    choice = learner.lasso("stem", 6)
    np.testing.assert_allclose(
        choice.coefficients.numpy(),
        LassoSolver(expected).solve(choice.penalty).numpy(),
        atol=1e-9,
    )
    assert learner.select("stem", 6).tolist() == choice.units.tolist()


def test_copies_and_silent_units_are_settled_by_index():
    z = design(6, seed=1)
    z = np.concatenate([z, z[:, :2], np.zeros((300, 2))], 1)  # 6, 7 are 0, 1; 8, 9 silent
    form = torch.from_numpy(z.T @ z)
    for count in range(1, 11):
        choice = choose_units(form, count)
        units = choice.units.tolist()
        assert units == sorted(set(units))
        assert len(units) == count
        assert (8 in units) == (count >= 9)
        assert (9 in units) == (count == 10)
        assert choice.exact or int((choice.coefficients != 0).sum()) < count
    assert not choose_units(form, 9).exact


def test_a_form_of_zeros_leaves_the_first_units():
    choice = choose_units(torch.zeros(5, 5, dtype=torch.float64), 3)
    assert choice.units.tolist() == [0, 1, 2]
    assert not choice.exact


def test_units_of_very_different_size_are_solved():
    z = design(16, seed=3) * np.logspace(0, -3, 16)
    solver = LassoSolver(torch.from_numpy(z.T @ z))
    penalty = 1e-5 * solver.largest_penalty
    np.testing.assert_allclose(solver.solve(penalty).numpy(), sklearn_lasso(z, penalty), atol=1e-4)


def test_what_steps_do_not_settle_is_not_called_exact():
    z = design(12, seed=0)
    solver = LassoSolver(torch.from_numpy(z.T @ z), max_iterations=1)
    assert solver.solve(0.05 * solver.largest_penalty) is None
    for count in range(1, 12):
        choice = choose_units(solver.form, count, max_iterations=1)
        found = choice.coefficients.nonzero()[:, 0].tolist()
        assert not choice.exact
        assert len(found) < len(choice.units) == count
        assert set(found) <= set(choice.units.tolist())
        # The first penalty tried is given up, so all are filled up in the order of the path.
        order = entry_order_scores(solver.form).sort(descending=True, stable=True).indices
        rest = [unit for unit in order.tolist() if unit not in found][: count - len(found)]
        assert choice.units.tolist() == sorted(found + rest)
        assert choose_units(solver.form, count).exact


@pytest.mark.parametrize("form", [torch.zeros(2, 3), torch.full((2, 2), float("nan"))])
def test_forms_that_are_none_are_rejected(form):
    with pytest.raises(ValueError, match="finite square matrix"):
        LassoSolver(form)
