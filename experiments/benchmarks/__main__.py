"""``python -m amc_compress.benchmarks``: lists the benchmarks, and runs one by its name."""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = {
    "env": "speed.environment_steps",
    "episode": "speed.episode",
    "networks": "speed.large_networks",
    "streaming": "speed.streaming",
    "scaling": "speed.scaling",
    "latency": "speed.latency_prediction",
    "int8": "speed.int8",
    "sparse": "speed.sparse_speed",
    "agents": "agents.agents_synthetic",
    "runs": "agents.compare_runs",
    "policies": "agents.kept_policies",
    "floors": "agents.score_floors",
    "winners": "agents.winners",
    "stages": "agents.staged_search",
    "records": "agents.record_check",
    "surrogates": "agents.recorded_quality",
    "pruning": "learners.pruning_learners",
    "channels": "learners.same_channels",
    "bits": "learners.fixed_or_searched",
    "joint": "learners.joint",
    "curves": "learners.score_ranking",
    "proxies": "learners.proxy_ranking",
    "transformer-proxies": "learners.proxy_transformers",
    "second-order": "learners.second_order",
}
"""Name -> module in this package, whose docstring's first line says what it measures."""

_PROGRAM = "python -m amc_compress.benchmarks"
_EXAMPLES = f"""\
Examples:
  {_PROGRAM} --list
  {_PROGRAM} --benchmark env --help
  {_PROGRAM} --benchmark env --kind joint --layers 12,60 --parts
"""


def listed() -> str:
    """Returns a line per benchmark: its name, and what it measures."""
    width = max(map(len, BENCHMARKS))
    return "\n".join(f"  {name:{width}}  {_summary(name)}" for name in BENCHMARKS)


def _module(name: str) -> str:
    return f"{__package__}.{BENCHMARKS[name]}"


def _summary(name: str) -> str:
    """The first line of the docstring, without importing what the benchmark needs."""
    path = Path(__file__).parent.joinpath(*BENCHMARKS[name].split(".")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


def main(arguments: Sequence[str]) -> None:
    """Runs what the command line asks for.

    Args:
        arguments: Those after the program's name; what is not known here is the benchmark's.
    """
    parser = argparse.ArgumentParser(
        _PROGRAM,
        "%(prog)s [--list] [--benchmark NAME [OPTIONS OF THE BENCHMARK]]",
        "Runs a benchmark; it prints a Markdown table, or lines of JSON.",
        f"Benchmarks:\n{listed()}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,  # the benchmark's own, where one is named
        allow_abbrev=False,  # short forms of the benchmark's options are not for here
    )
    parser.add_argument("--benchmark", choices=BENCHMARKS, metavar="NAME", help="which to run")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--help", action="store_true", help="this text, or the benchmark's")
    asked, others = parser.parse_known_args(arguments)
    if asked.list:
        print(listed())
    elif asked.benchmark is None:
        if others:
            parser.error(f"expected --benchmark NAME before {others[0]}; --list shows the names")
        parser.print_help()
    else:
        sys.argv[1:] = [*others, *(["--help"] if asked.help else [])]
        runpy.run_module(_module(asked.benchmark), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
