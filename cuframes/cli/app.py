"""The sub-commands, put together."""

import typer

from cuframes._version import __version__
from cuframes.cli import bench, demo, framecache, host, pipe, publish, push, record, snapshot, watch
from cuframes.cli.stale import reports_stale

__all__ = ["app"]

app = typer.Typer(
    name="cuframes",
    help="Share video frames and encoded packets in place between the processes of this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


app.command()(demo.demo)
app.command()(publish.publish)
app.command()(reports_stale(watch.watch))
app.command("ls")(host.ls)
app.command()(host.info)
app.command()(reports_stale(snapshot.snapshot))
app.command()(reports_stale(pipe.pipe))
app.command()(reports_stale(record.record))
app.command()(reports_stale(push.push))
app.add_typer(framecache.app, name="framecache")
app.command()(host.gc)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    bench.bench
)
