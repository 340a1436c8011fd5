"""What ``compress`` returns: the smaller network, and what can be done with it."""

from __future__ import annotations

import contextlib
import html
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from amc_compress.data.batches import to_batches
from amc_compress.data.given import given_data
from amc_compress.front.columns import for_network
from amc_compress.front.options import changed, options_from, words_of_python
from amc_compress.front.trials import Trials
from amc_compress.learners.export.onnx_options import Integers, OnnxOptions
from amc_compress.learners.export.pretrained.described import describe
from amc_compress.report.summary import cost_text, read_summary
from amc_compress.runs.folder import PACKED, RunFolder
from amc_compress.runs.given import Given
from amc_compress.runs.networks import compressed_name, load_smaller
from amc_compress.runs.storage.trials import read_trials
from amc_compress.runs.task import Task
from amc_compress.stages.evaluate import predicted_costs
from amc_compress.stages.finetuning.stage import validation_score
from amc_compress.stages.formats import write_transformers
from amc_compress.stages.pipeline import Say, run_stages
from amc_compress.temporary import TemporaryFolder
from amc_env import CompressionPlan
from amc_env.errors import ArgumentError, RunFolderError
from amc_env.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILES = {".onnx": "model.onnx", ".packed": PACKED, ".safetensors": "model.safetensors"}


class Result:
    """A compressed network, its plan, and the run that they come from.

    Everything is read from the run's folder, where it is written as it is found.

    Attributes:
        out: The run folder.
    """

    def __init__(self, task: Task, talk: Say, temporary: TemporaryFolder | None = None) -> None:
        self._task = task
        self._talk = talk
        self._temporary = temporary  # it goes with this object
        self._network: nn.Module | None = None
        self.out = task.folder.path

    # ---- what was found

    @property
    def network(self) -> nn.Module:
        """The smaller network, fine-tuned if it was; in ``eval`` mode, with the types that came.

        The ``config`` of one of ``transformers`` is brought up to date where a configuration of its
        class describes it; where none does, that is said.
        """
        if self._network is None:
            network = load_smaller(self._folder, compressed_name(self._folder))
            self._network = self._given.form.hand_back(network)
            if reason := describe(self._network, self._given.example):
                self._talk(f"The network's config describes the original: {reason}.")
        return self._network

    @property
    def plan(self) -> CompressionPlan:
        """The best plan."""
        return self._folder.read_plan()

    @property
    def score(self) -> float:
        """Of the network on validation data, higher is better.

        Before fine-tuning that of the search, on its ``n_validation`` samples; afterwards that of
        the fine-tuned network, on all of them.
        """
        if self._folder.is_done("finetune"):
            return float(self._folder.results("finetune")["validation_score"])
        return float(self._folder.results("search")["best"]["score"])

    @property
    def original_score(self) -> float:
        """Of the original network on the samples that :attr:`score` is of."""
        if not self._folder.is_done("finetune"):
            return float(self._folder.results("search")["original_score"])
        score = self._folder.results("finetune").get("validation_score_original")
        # A run of an earlier release has not noted it.
        return validation_score(self._task, self._task.original) if score is None else float(score)

    @property
    def metric(self) -> str:
        """Name of the metric that scores are made from."""
        return self._folder.metric.name

    @property
    def costs(self) -> dict[str, float]:
        """Cost name -> absolute cost of the smaller network."""
        return predicted_costs(self._task.problem, self.plan)

    @property
    def original_costs(self) -> dict[str, float]:
        """Cost name -> absolute cost of the original network."""
        return self._task.problem.original()

    @property
    def cost_ratio(self) -> dict[str, float]:
        """Cost name -> share of the original's."""
        return dict(self._folder.results("search")["best"]["cost_ratio"])

    @property
    def trials(self) -> Trials:
        """Every evaluated plan."""
        return Trials(read_trials(self.out / "trials.jsonl"))

    def plot(self) -> Figure:
        """Returns the course of the search, and the cost and score of every evaluated plan."""
        from amc_compress.front.pictures import search_figure

        search, config = self._folder.results("search"), self._folder.config
        return search_figure(self.trials, search, config.budget, self._folder.metric)

    # ---- what is done with it

    @words_of_python()
    def finetune(self, train: Any = None, **options: Any) -> Result:
        """Trains the smaller network; an interrupted training goes on from its last epoch.

        Finished with the same options and data, it is not done again.

        Args:
            train: Batches to train on; those of the search if None.
            **options: Those of ``amc finetune``: ``epochs=30, learning_rate=0.01`` and others.

        Returns:
            This result, whose network is the fine-tuned one now.
        """
        values = options_from(options, ("finetune",))
        with self._open() as folder:
            config = changed(folder.config, values)
            config.validate(("finetune",))
            others = self._train_on(train)
            if others or folder.config.differences(config, {"finetune"}):
                folder.forget("finetune")
            folder.reconfigure(config)
            run_stages(self._task, ("finetune",), self._talk)
        self._network = None
        return self

    def _train_on(self, train: Any) -> bool:
        """Takes other training batches; returns whether a fine-tuning was with others."""
        task, folder = self._task, self._folder
        given = self._given
        if train is not None:
            loader = to_batches(
                for_network(train, "train", given.network),
                "train",
                batch_size=folder.config.batch_size,
                shuffle=True,
                workers=folder.config.data_workers,
            )
            seen = given_data(loader, task.data.validation, given.task)
            content = {**task.data.content, "train data": seen.content["train"]}
            data: Any = task.data
            task.data = replace(data, train=loader, content=content)
        if not folder.is_done("finetune"):
            return False
        before = folder.results("finetune").get("trained_on")
        return bool(before != task.data.content.get("train data"))

    @words_of_python()
    def export(
        self,
        path: str | Path | None = None,
        *,
        integers: str | None = None,
        block_size: int = Integers.block_size,
        **options: Any,
    ) -> Path:
        """Writes the file for deployment, compared with torch: float, or of 8-bit integers.

        Args:
            path: Where to; by its suffix ONNX (``.onnx``), the packed file of a quantized or sparse
                network (``.packed``) or plain tensors (``.safetensors``). None leaves the ONNX
                file in the run folder.
            integers: ``"int4"`` or ``"int8-dynamic"`` for weights that become integers without
                calibration, see :class:`Integers`.
            block_size: Of int4: consecutive inputs that share a scale.
            **options: Of :class:`OnnxOptions`: ``opset``, ``batch``, ``half``, ``input_name``.

        Returns:
            The file.

        Raises:
            ArgumentError: If the suffix is another.
            RunFolderError: If no runtime executes the network, or it has no such file.
        """
        suffix = Path(path).suffix if path is not None else ".onnx"
        if suffix not in _FILES:
            raise ArgumentError(
                f"Expected a file ending in {', '.join(_FILES)}, got {str(path)!r}; the suffix "
                f"says what is written."
            )
        onnx = OnnxOptions(**options)
        wanted = None if integers is None else Integers(integers, block_size)
        with self._open() as folder:
            self._ensure_finetuned()
            if suffix == ".onnx":
                if (onnx, wanted) != (self._task.onnx, self._task.onnx_integers):
                    folder.forget("export")
                    self._task.onnx, self._task.onnx_integers = onnx, wanted
                run_stages(self._task, ("export",), self._talk)
                if reason := folder.results("export").get("refused"):
                    raise RunFolderError(f"There is no ONNX file: {reason}")
        file = self.out / _FILES[suffix]
        if not file.exists():
            raise RunFolderError(
                f"The run in {self.out} has no {file.name}: only quantized and sparse networks "
                f"are packed; export to .onnx or .safetensors."
            )
        if path is None:
            return file
        write_atomic(Path(path), file.read_bytes())
        return Path(path)

    @words_of_python()
    def save_pretrained(
        self, folder: str | Path, *, tokenizer: Any = None, weights: str | None = None
    ) -> Path:
        """Writes a network of ``transformers`` as a folder, which is loaded again and compared.

        Where a configuration of its own class describes the smaller network,
        ``AutoModel.from_pretrained(folder)`` loads it, and ``amc_compress.load(folder)`` in any
        case.

        Args:
            folder: New or empty.
            tokenizer: The network's tokenizer, or a folder with its files; they are copied.
            weights: ``"compressed-tensors"`` for the integers of a quantized network in the format
                of that library, with which ``AutoModel.from_pretrained(folder)`` loads them.

        Returns:
            The folder.

        Raises:
            InputDataError: If the network, or the part that was compressed, is of another library
                or has no such weights, or the folder is in use.
        """
        with self._open():
            saved = write_transformers(self._task, Path(folder).expanduser(), tokenizer, weights)
        by = "AutoModel.from_pretrained" if saved.stock else "amc_compress.load"
        self._talk(f"{saved.path}: load it with {by}({str(saved.path)!r})")
        return saved.path

    def evaluate(self) -> Mapping[str, Any]:
        """Evaluates original and smaller network on the test data; returns ``summary.json``."""
        with self._open():
            self._ensure_finetuned()
            run_stages(self._task, ("evaluate",), self._talk)
        return read_summary(self.out)

    def report(self, path: str | Path | None = None, *, show: bool = False) -> Path:
        """Writes the report, one HTML file.

        Args:
            path: Where a copy goes to.
            show: Whether to open it in a browser.

        Returns:
            The file.
        """
        with self._open():
            self._ensure_finetuned()
            run_stages(self._task, ("evaluate", "report"), self._talk)
        file = self.out / "report.html"
        if path is not None:
            file = Path(shutil.copyfile(file, path))
        if show:
            import webbrowser

            webbrowser.open(file.resolve().as_uri())
        return file

    # ---- how it is shown

    def __repr__(self) -> str:
        return f"<Result of {self._task.config.model}: {'; '.join(self._said())}>"

    def _said(self) -> list[str]:
        metric, ratio = self._folder.metric, self.cost_ratio
        costs = [cost_text(name, ratio[name]) for name in self._folder.config.shown_costs]
        scores = f"{metric.said(self.original_score)} -> {metric.text(self.score)}"
        state = "fine-tuned" if self._folder.is_done("finetune") else "before fine-tuning"
        return [", ".join(costs), f"{scores} ({state})"]

    def _repr_html_(self) -> str:
        metric = self._folder.metric
        before, after = self.original_costs, self.costs
        rows = [(metric.title, metric.text(self.original_score), metric.text(self.score), "")]
        rows += [
            (name, f"{before[name]:.4g}", f"{after[name]:.4g}", f"{self.cost_ratio[name]:.1%}")
            for name in self._folder.config.shown_costs
        ]
        cells = "".join(
            f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows
        )
        head = "".join(f"<th>{text}</th>" for text in ("", "original", "compressed", "share"))
        name = html.escape(self._task.config.model)
        return f"<table><caption>{name}, compressed</caption><tr>{head}</tr>{cells}</table>"

    # ---- the folder

    @property
    def _folder(self) -> RunFolder:
        return self._task.folder

    @property
    def _given(self) -> Given:
        if (given := self._folder.given) is None:
            raise RunFolderError(f"Expected a run on objects in {self.out}, got one of names.")
        return given

    @contextlib.contextmanager
    def _open(self) -> Iterator[RunFolder]:
        """Locks the folder for work in it."""
        self._folder.reopen()
        with self._folder as folder:
            yield folder

    def _ensure_finetuned(self) -> None:
        """Without a fine-tuning the network of the search is the final one."""
        if self._folder.is_done("finetune"):
            return
        kept = self._folder.config
        self._folder.reconfigure(changed(kept, {"epochs": 0}))
        run_stages(self._task, ("finetune",), self._talk)
