"""StageCLI: what fit, validate, test and predict share, as one LightningCLI class.

The parsers have no sub-commands (`run=False`); each command builds its stage and runs it. So what
fails in building is a matter of usage, and a checkpoint never changes the settings: LightningCLI
would let a checkpoint's hyper-parameters override the command line.
"""

import logging
import warnings
from argparse import ArgumentError
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from cyclelight.commands.guard import OneLine, UsageError, one_line
from cyclelight.commands.parsing import explain, option_of
from cyclelight.commands.processes import Heed, die_with_parent, keep_signals
from cyclelight.commands.recipes import with_recipes
from cyclelight.commands.trainer_settings import check_strategy, check_training, choose_precision
from cyclelight.errors import argument_of, printable
from cyclelight.files import write_text
from cyclelight.modules.domain import DomainModule
from cyclelight.runs.checkpoints import AtomicCheckpoints, damage
from cyclelight.runs.report import Report
from datamodules.domain_images import DomainImages

log = logging.getLogger(__name__)

# Lightning lets configurations be fetched from anywhere. A recipe is a program: it names classes to
# import and files to write, so that it is read from this machine's disk alone.
set_parsing_settings(config_read_mode_urls_enabled=False, config_read_mode_fsspec_enabled=False)

EPILOG = """\
Other classes: --model CLASS and --data CLASS, by import path or short name, and with --help for
their options. Every option of Lightning's Trainer is there as --trainer.NAME
(--trainer.max_epochs, --trainer.devices, ...), and for fit those of its ModelCheckpoint as
--checkpoint.NAME.
--print_config shows all options with their values as a configuration file."""


# Lightning's annotations come out as float | int, in this order, by which 1, one batch, is read as
# 1.0, all of them.
Trainer.__init__.__annotations__ |= {
    name: int | float | None
    for name in Trainer.__init__.__annotations__
    if name.startswith("limit_")
}


class SaveConfig(SaveConfigCallback):
    """Write the settings in effect into the output folder, ready to be passed to `--config`."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.config.output is not None:
            path = Path(self.config.output) / self.config_filename
            # Not by the parser's own `save`, which one killed meanwhile leaves empty or half done.
            write_text(path, self.parser.dump(self.config, skip_unset=False))


class StageCLI(LightningCLI):
    """What the four stages share: the options and where the results go."""

    name: ClassVar[str]
    summary: ClassVar[str]
    default_model: type[LightningModule] = DomainModule
    default_data: type[LightningDataModule] = DomainImages
    output_required: ClassVar[bool] = False
    takes_checkpoint: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    checkpoint_words: ClassVar[tuple[str | None, ...]] = (None,)
    config_name: ClassVar[str] = "config.yaml"
    save_config: ClassVar[type[SaveConfig]] = SaveConfig
    makes_images: ClassVar[bool] = False
    """Whether networks are run to make images: then the precision is chosen by the hardware."""
    words: ClassVar[str] = ""
    """Of the usage: what stands before the options."""

    def __init__(self, args: list[str]) -> None:
        self.args = with_recipes(args)
        # jsonargparse lists the options of a fixed class only: let the help be about the defaults,
        # or the classes that are named.
        self.helping = bool({"-h", "--help"} & set(args))
        if self.helping:
            model = take_class(self.args, "model", LightningModule)
            data = take_class(self.args, "data", LightningDataModule)
            self.default_model = model or self.default_model
            self.default_data = data or self.default_data
        output = "--output DIR" if self.output_required else "[--output DIR]"
        super().__init__(
            LightningModule if not self.helping else self.default_model,
            LightningDataModule if not self.helping else self.default_data,
            save_config_callback=self.save_config,
            save_config_kwargs={"save_to_log_dir": False, "config_filename": self.config_name},
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"lightning {self.name}",
                "usage": f"lightning {self.name} {self.words}[--config FILE] {output} "
                "[--OPTION VALUE ...]",
                "description": self.summary,
                "epilog": EPILOG,
                "allow_abbrev": False,
                "exit_on_error": False,
            },
            subclass_mode_model=not self.helping,
            subclass_mode_data=not self.helping,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The output folder and the classes; in the help, the Trainer's options would bury them."""
        parser.add_argument(
            "--output",
            type=str if self.output_required else str | None,
            required=self.output_required,
            metavar="DIR",
            help="The folder that everything of this run goes to.",
        )
        if self.helping:
            parser.add_lightning_class_args(self.default_model, "model")
            parser.add_lightning_class_args(self.default_data, "data")
            return
        super().add_core_arguments_to_parser(parser)
        parser.link_arguments("output", "trainer.default_root_dir")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A checkpoint to start from, by name rather than by Lightning's signature."""
        if self.takes_checkpoint:
            parser.add_argument(
                "--ckpt_path",
                type=str | None,
                metavar="FILE",
                help="A checkpoint file to resume or judge; for fit also `last`, the output's own.",
            )
        if self.takes_checkpoint and not self.helping:
            # Only fit makes a callback of these; the others take the config.yaml of a fit.
            parser.add_class_arguments(
                ModelCheckpoint, "checkpoint", skip={"dirpath"}, instantiate=False
            )
            # With a version counter, a resumed run would write last-v1.ckpt beside last.ckpt.
            parser.set_defaults(
                {"checkpoint.save_last": True, "checkpoint.enable_version_counter": False}
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """What was given to us, in place of sys.argv, after the stage's own classes.

        As arguments these give way to the user's choice without a trace; as the parser's defaults
        they would hand their settings on to another class wherever the names agree.
        """
        chosen = {"model": self.default_model, "data": self.default_data}
        classes = [f"--{key}={c.__module__}.{c.__qualname__}" for key, c in chosen.items()]
        self.config = parser.parse_args(self.args if self.helping else [*classes, *self.args])

    def before_instantiate_classes(self) -> None:
        """What cannot go well is known now; Lightning would notice after loading the data."""
        if self.config.output == "":
            raise UsageError("--output: the name of the folder is empty")
        check_strategy(self.config.trainer, shards=self.shards)
        if self.makes_images:
            choose_precision(self.config.trainer, self.kept_precision())
        else:
            check_training(self.config.trainer)
        path = self.config.get("ckpt_path")
        if path in self.checkpoint_words:
            return
        if not Path(path).is_file():
            raise UsageError(f"--ckpt_path: there is no file {path}")
        if reason := damage(Path(path)):
            raise UsageError(f"--ckpt_path: {path} cannot be used: {reason}")

    def kept_precision(self) -> str | None:
        """The precision of the run that this one goes on with, if it does."""
        return None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Without logs and checkpoints, unless a stage or the user asks for them."""
        for key in ("logger", "enable_checkpointing"):
            kwargs.setdefault(key, self.config_init.trainer[key] or False)
        if not self.config_init.trainer.plugins:
            kwargs["plugins"] = [AtomicCheckpoints(), *kwargs.get("plugins", [])]
        callbacks = self.trainer_defaults.get("callbacks", [])
        self.trainer_defaults["callbacks"] = [*callbacks, Heed()]
        trainer = super().instantiate_trainer(**kwargs)
        keep_signals(trainer)
        die_with_parent(trainer)
        return trainer

    def instantiate_classes(self) -> None:
        """What a constructor refuses is told as the option that set it."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError, MisconfigurationException) as error:
            raise UsageError(self._refusal(error)) from error

    def _refusal(self, error: BaseException) -> str:
        """The constructor's message; where it is about an argument, that as the option.

        jsonargparse wraps it, in several lines; a message of ours has one line.
        """
        while error.__cause__ is not None and "\n" in str(error):
            error = error.__cause__
        reason, argument = one_line(error), argument_of(error)
        option = option_of(error, self.config.as_dict())
        if argument is None or option is None:
            return reason
        told = reason.removeprefix(argument)
        return f"--{option}{told if told != reason else f': {reason}'}"


def take_class(args: list[str], key: str, base: type) -> Any:
    """The subclass of `base` that `--key NAME` or `--key=NAME` names, taken out of `args`, or None.

    Raises:
        UsageError: there is no such class.
    """
    given = [i for i, arg in enumerate(args) if arg.partition("=")[0] == f"--{key}"]
    if not given:
        return None
    i = given[-1]
    words = [args.pop(i)]
    if "=" not in words[0] and i < len(args):
        words.append(args.pop(i))
    module, _, name = words[-1].rpartition("=")[2].rpartition(".")
    if module:
        with suppress(ImportError):
            import_module(module)
    classes, found = [base], None
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        if one.__name__ == name and one.__module__ == (module or one.__module__):
            found = one
    if found is None:
        raise UsageError(f"--{key}: there is no class {words[-1]}")
    return found


S = TypeVar("S", bound=StageCLI)


def build(stage: type[S], args: list[str]) -> S:
    """The stage with its model, data and trainer; UsageError if the settings do not allow it."""
    _quieten()
    try:
        return stage(args)
    except ArgumentError as error:
        raise UsageError(explain(str(error))) from error


def _quieten() -> None:
    """Our own messages only: Lightning's are tips about other products and what was detected."""
    told = logging.StreamHandler()
    told.setFormatter(OneLine())
    logging.basicConfig(handlers=[told])
    logging.getLogger("cyclelight").setLevel(logging.INFO)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Where it says that a process died, and so ends the others.
    launcher = "lightning.fabric.strategies.launchers.subprocess_script"
    logging.getLogger(launcher).setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
    # Logging counts steps across epochs, so short epochs lose nothing.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than")
    # The body below a covariance head.
    warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode at the start")
    # A process without validation images has nothing to count.
    warnings.filterwarnings("ignore", message="The ``compute`` method of metric MeanMetric")
    # validate and test make no ModelCheckpoint, and need none.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def show(report: Report | None, part: str = "") -> None:
    """The table of figures, on the first process, under the name of what they are of, if any."""
    if report is not None and (report.scores or report.notes):
        print(printable(f"{part}\n{report}" if part else report))
