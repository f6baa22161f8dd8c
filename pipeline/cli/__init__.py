"""The command line: one file per command, imported when it is called.

So `pipeline --help` needs no torch. A new command is a click command in a file here and a row of
`COMMANDS`.
"""

import difflib
import importlib
import os
import sys
from typing import NoReturn

import click

from pipeline.cli.console import Console
from pipeline.cli.ending import exit_code_of

COMMANDS = {
    "init": ("pipeline.cli.init", "Write a config to start from: the quickstart's, or another shipped one by NAME."),
    "train-export": ("pipeline.cli.train", "Train, fold, export and verify: from a config to a bundle."),
    "train": ("pipeline.cli.train", "Train and keep checkpoints; export comes later."),
    "export": ("pipeline.cli.export", "Fold, export and verify a training run's last checkpoint, or a network trained elsewhere."),
    "verify": ("pipeline.cli.verify", "Check that a bundle's models, or any two forms of a model, give the same outputs."),
    "predict": ("pipeline.cli.predict", "Show which classes a bundle's model gives image files."),
    "reproduce": ("pipeline.cli.reproduce", "Run a table of a paper and show its figures next to ours."),
    "compare": ("pipeline.cli.reproduce", "Compare any runs side by side, grouped by their config without the seed."),
    "doctor": ("pipeline.cli.doctor", "Show what this machine can run."),
}
"""Maps a name to its module and to the line that `pipeline --help` shows. A test requires that the
line equals the command's own."""


class LazyGroup(click.Group):
    """The commands of the table above; each is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise click.UsageError(f"no command {name!r}, {hint}", ctx)


def _show_version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from importlib import metadata

        try:
            version = metadata.version("samegraph")
        except metadata.PackageNotFoundError:
            version = "(not installed, run from its sources)"
        click.echo(f"samegraph {version}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Exit codes: 0 done and everything holds, 1 a bug, 2 usage or configuration,
3 outputs are not the same, 4 a runtime or device is not available, 5 a damaged
file, 130 interrupted.

\b
Completion, in the shell's start-up file:
  bash  eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"
  zsh   eval "$(_PIPELINE_COMPLETE=zsh_source pipeline)"
  fish  _PIPELINE_COMPLETE=fish_source pipeline | source""",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version.")
def group() -> None:
    """Train the graph you ship: train without normalization, fold, export, and prove that the
    outputs are the same."""


def main() -> NoReturn:
    """Run the `pipeline` command."""
    if "_PIPELINE_COMPLETE" in os.environ:
        group.main(prog_name="pipeline")
    arguments = sys.argv[1:]
    console = Console.for_arguments(arguments)
    code = exit_code_of(lambda: _run(arguments, console), console)
    sys.exit(code)


def _run(arguments: list[str], console: Console) -> None:
    with group.make_context("pipeline", arguments, obj=console) as context:
        group.invoke(context)
