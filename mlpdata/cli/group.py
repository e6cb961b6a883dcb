"""The command `mlpdata` itself: errors as one line and a status, signals, standard streams."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys

import click

from mlpdata.errors import Error, UsageError, first_line, lacks_memory, printable, printable_lines


class Command(click.Command):
    """Copies what parameters name elsewhere only when all of them are known to be well formed.

    A kind of parameter says by a method `late` what becomes of a value then.
    """

    def invoke(self, ctx):
        for param in self.params:
            if late := getattr(param.type, "late", None):
                value = ctx.params[param.name]
                ctx.params[param.name] = tuple(map(late, value)) if isinstance(value, tuple) else value and late(value)
        return super().invoke(ctx)


class Commands(click.Group):
    """Turns expected failures into one line and exit status 1; anything else is a bug and shows its traceback."""

    command_class = Command

    def list_commands(self, ctx):
        return list(self.commands)  # in the order of use, not of the alphabet

    def main(self, *args, **kwargs):
        _open_standard_streams()
        return super().main(*args, **kwargs)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Error as e:
            click.echo(f"mlpdata: error: {e}", err=True)
            ctx.exit(2 if isinstance(e, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("mlpdata: stopped", err=True)
            ctx.exit(1)
        except (MemoryError, RuntimeError) as e:
            if not lacks_memory(e):
                raise
            click.echo("mlpdata: error: out of memory", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            # The reader of our output went away (`mlpdata list | head`): nothing to say, nobody to say it to.
            _drop_output()
            ctx.exit(1)
        except OSError as e:
            where = f": {e.filename}" if e.filename else ""
            tell(f"mlpdata: error: {e.strerror or first_line(e)}{where}")
            ctx.exit(1)


def _drop_output() -> None:
    """Else Python fails once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Print a line of the work to standard output, one line whatever names it holds. Raises Error as `say_lines` does.

    If its reader went away (`mlpdata convert ... | head -1`), the work goes on, as it does without its progress line.
    """
    try:
        say_lines(printable(line))
    except BrokenPipeError:
        _drop_output()


def tell(line: str) -> None:
    """Print a line to standard error, where standard output is for programs."""
    click.echo(printable(line), err=True)


def say_lines(text: str) -> None:
    """Print lines to standard output. Raises Error where that cannot be written, as a log on a full disk."""
    try:
        click.echo(printable_lines(text.split("\n")))
    except BrokenPipeError:
        raise
    except OSError as e:
        _drop_output()
        raise Error(f"cannot write to standard output: {e.strerror or first_line(e)}") from None


def _open_standard_streams() -> None:
    """Open what the caller closed (`2>&-`): else the next file that is opened is where messages are written to.

    They take any name: what cannot be encoded is written as Python writes it in strings.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):  # a name of a file or class may hold what the encoding has not
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def stop(number, frame) -> None:
    """A signal asks to end: as Ctrl-C does, but for a module that is being imported.

    Such a one may take the interpreter with it (numpy: "Fatal Python error"), so it ends here. Whatever is under way
    then survives it as it survives a kill.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"mlpdata: stopped\n")
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(package_name="mlpdata", prog_name="mlpdata")
def main():
    """Image archives to low-resolution FFCV and WebDataset shards, and a trainer that reads them at full speed.

    \b
    mlpdata convert cifar10
    mlpdata train cifar10-small
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is imported. GNU's OpenMP has waiting threads spin for milliseconds (300,000 turns). Where other
        # programs have the cores, that takes what the thread waited for would need: training the demo on two cores
        # beside six busy programs, 442 images/s, and 1,302 with 3,000 turns; on idle cores 13,100 and 12,500.
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    gc.set_threshold(100_000)  # imports and listings of archives make many objects and next to no garbage
    # Asked to end, end as after Ctrl-C: clean, and saying how to go on. Also where Ctrl-C is ignored, as it is for what
    # a script starts with `&`; but not for what nohup keeps going.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
