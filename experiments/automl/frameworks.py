"""The four frameworks of Balaji & Allen 2018: what each needs to be installed and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"
"""Scripts that run in the frameworks' own interpreters and import nothing of this project."""


@dataclass(frozen=True)
class Framework:
    """An AutoML framework.

    Args:
        name: What it is called here and on the command line.
        requirements: What pip installs, pinned where later releases of a dependency break it.
        pythons: Python versions it works on, ``"major.minor"``, the best tried first.
        modules: What must be importable for it to count as installed.
        adapter: The script that trains it; its contract is in ``adapters/harness.py``.
        paper_version: The release that the paper compared.
        engine: How it searches.
        stands_for: The agents of this project that search in the same way.
        note: Where it cannot follow the protocol to the letter.
        needs_java: Whether it needs a Java runtime.
    """

    name: str
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    modules: tuple[str, ...]
    adapter: Path
    paper_version: str = ""
    engine: str = ""
    stands_for: str = ""
    note: str = ""
    needs_java: bool = False


_ALL = (
    Framework(
        name="auto-sklearn",
        # 0.15.0 is the last release; it was written against scikit-learn 0.24 and the numerical
        # packages of that time. setuptools 81 no longer has the pkg_resources it imports.
        requirements=(
            "auto-sklearn==0.15.0",
            "numpy==1.22.4",
            "scipy==1.7.3",
            "pandas==1.5.3",
            "setuptools<81",
        ),
        pythons=("3.9", "3.8"),
        modules=("autosklearn.classification", "autosklearn.regression"),
        adapter=ADAPTERS / "run_auto_sklearn.py",
        paper_version="0.4.0",
        engine="Bayesian optimisation (SMAC) with a warm start, then ensemble selection",
        stands_for="gp, tpe",
        note="no warm start on data sets that its meta-learning was trained on",
    ),
    Framework(
        name="tpot",
        # It imports stopit, which imports pkg_resources.
        requirements=("tpot==1.1.0", "setuptools<81"),
        pythons=("3.11", "3.10", "3.12", "3.13"),
        modules=("tpot",),
        adapter=ADAPTERS / "run_tpot.py",
        paper_version="0.9",
        engine="genetic programming on pipelines (NSGA-II)",
        stands_for="evolution, nsga2",
        note="its time limit is told to the search alone; start and last fit come on top",
    ),
    Framework(
        name="h2o",
        requirements=("h2o==3.46.0.12", "numpy"),
        pythons=("3.11", "3.10", "3.12", "3.9", "3.8", "3.7"),
        modules=("h2o", "h2o.automl"),
        adapter=ADAPTERS / "run_h2o.py",
        paper_version="3.20.0.2",
        engine="random search, then stacking",
        stands_for="random",
        note="chooses classifiers by mean error per class, not weighted F1; the start of its "
        "server comes on top of the time limit",
        needs_java=True,
    ),
    Framework(
        name="auto_ml",
        # 2.9.10 is the last release, of 2018; it imports parts of scikit-learn and pandas that
        # later releases removed.
        requirements=(
            "auto_ml==2.9.10",
            "scikit-learn==0.20.4",
            "numpy==1.17.5",
            "scipy==1.3.3",
            "pandas==0.24.2",
        ),
        pythons=("3.7",),
        modules=("auto_ml",),
        adapter=ADAPTERS / "run_auto_ml.py",
        paper_version="2.7.0",
        engine="grid search over few model families",
        stands_for="uniform, deep-heavy, shallow-heavy (a few fixed plans)",
        note="takes no time limit: its adapter stops it",
    ),
)

FRAMEWORKS: Mapping[str, Framework] = {framework.name: framework for framework in _ALL}
"""Name -> framework."""
