"""Makes ``docs/options.md`` from the declarations of the options."""

from __future__ import annotations

from dataclasses import MISSING

from amc_compress.commands.options import VerbOptions
from amc_compress.config.option import Option, declared, flag
from amc_compress.config.run_config import RunConfig
from amc_compress.config.validation import readers_of

_HEAD = """\
# Options of a run

Made from the declarations in `experiments/config/options/` by
`python -m amc_compress.commands.reference > docs/options.md`; a test compares.

`amc compress` takes all of these, the other verbs those that concern them; `amc VERB --help` shows
the ones of every day (**bold** here), `amc VERB --help-all` all. In Python they are the fields of
`amc_compress.config.RunConfig`, with underscores. A file of options is given by `--config`:

```yaml
# run.yaml: amc compress --config run.yaml --out runs/mine
model: resnet20
data: data/cifar10
weights: resnet20.safetensors
budget: macs=0.5,bytes=0.3
evaluations: 200
```

The `config.json` of a run is such a file too. The command line wins over the file. Relative paths
start at the current directory. Code that a file names runs only where the command line names the
same, or with `--trust` ([trust](trust.md)).

`amc --install-completion` lets your shell complete options, and the words that they take.
"""


def options_page() -> str:
    """Returns the page, in Markdown."""
    panels: dict[str, list[str]] = {}
    for cls in (VerbOptions, RunConfig):
        for name, option in declared(cls).items():
            panels.setdefault(option.panel, []).append(_row(name, option))
    order = sorted(panels, key=lambda panel: panel == "Run")  # of every verb: last
    tables = (
        f"## {panel}\n\n| option | default | takes | learners | what it does |\n"
        + "| --- | --- | --- | --- | --- |\n"
        + "\n".join(panels[panel])
        + "\n"
        for panel in order
    )
    return "\n".join((_HEAD, *tables))


def _row(name: str, option: Option) -> str:
    written = ", ".join(f"`{flag(word)}`" for word in (name, *option.aliases))
    if option.everyday:
        written = f"**{written}**"
    learners = ", ".join(readers_of(option)) or "all"
    takes = ", ".join(f"`{word}`" for word in option.choices) or option.range
    text = option.help.replace("|", "\\|").replace("<", "&lt;")
    return f"| {written} | {_default(option)} | {takes} | {learners} | {text} |"


def _default(option: Option) -> str:
    if option.default is MISSING:
        return "must be given"
    if isinstance(option.default, bool):
        return "off"
    depends = option.default in (None, "", ()) or option.kind is str
    return option.default_text if depends or option.default_text else f"`{option.default}`"


if __name__ == "__main__":
    print(options_page(), end="")
