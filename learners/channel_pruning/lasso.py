"""Channel selection by LASSO, the whole path at once (He et al. 2017, equation 2).

For a layer ``Y = sum_c X_c W_c^T`` the method looks for few non-zero ``beta`` with

    min_beta ||Y - sum_c beta_c Z_c||^2 / 2N + alpha ||beta||_1,    Z_c = X_c W_c^T.

All it needs of the data is ``A_cd = <Z_c, Z_d> = trace(W_c G_cd W_d^T)`` with ``G = X^T X``; and
``b_c = <Z_c, Y> = sum_d A_cd``. The authors run one LASSO per penalty and per layer; one LARS path
from the Gram matrix gives the order in which channels enter, and so the choice for every count.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

_RIDGE = 1e-10


def contribution_matrix(weight: Tensor, gram: Tensor, columns: Tensor) -> Tensor:
    """Returns ``A`` of one layer, summed over its convolution groups.

    ``A = P ((W^T W) * G) P^T`` with the membership ``P`` of columns in units, which is the trace
    above written out.

    Args:
        weight: Shape (conv groups, outputs per group, n), rows flattened like the patches.
        gram: Shape (conv groups, n, n).
        columns: Columns that belong to each unit, shape (size, columns per unit).
    """
    size, per_unit = columns.shape
    flat = columns.reshape(-1)
    total = torch.zeros(size, size, dtype=torch.float64)
    for w, g in zip(weight, gram, strict=True):
        part = w.double().index_select(1, flat)
        product = (part.T @ part) * g.double().index_select(0, flat).index_select(1, flat)
        total += product.reshape(size, per_unit, size, per_unit).sum((1, 3)).cpu()
    return total


def entry_order_scores(form: Tensor) -> Tensor:
    """Scores units by their first entry into the LASSO path of ``form``, earlier is higher.

    Units that never enter (they contribute nothing, or only what others contribute already) come
    last, the larger contribution first.

    Args:
        form: The symmetric matrix ``A``, shape (size, size).
    """
    # Here, because scikit-learn takes as long to import as torch, and other criteria do without.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    size = form.shape[0]
    scale = form.diagonal().mean().item()
    diagonal = form.diagonal().clamp(min=0.0)
    tail = diagonal / (1.0 + diagonal.max()) if size else diagonal
    if not np.isfinite(scale) or scale <= 0.0:
        return tail
    gram = (form / scale).numpy().copy()
    gram[np.diag_indices(size)] += _RIDGE
    with warnings.catch_warnings():
        # Collinear units make LARS drop regressors and say so; they keep their place in the tail.
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, _, path = lars_path_gram(
            gram.sum(0), gram, n_samples=1, method="lasso", copy_X=True, max_iter=8 * size
        )
    scores = tail.clone()
    entered = path != 0.0
    for unit in range(size):
        steps = np.flatnonzero(entered[unit])
        if steps.size:
            scores[unit] = 1.0 + path.shape[1] - float(steps[0])
    return scores
