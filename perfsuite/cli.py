"""The command line: each command parses, calls one function and prints; nothing is decided here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from perfsuite import terminal
from perfsuite.lab import commands as lab

app = typer.Typer(
    help="perfsuite finds the fastest kernel for your machine and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lab.app, name="lab")

Patterns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATTERN]...",
        help="A family, an op, a kernel, a glob over these, or a workload such as 'softmax[rows=3000,cols=5000,f32]'.",
    ),
]
Pattern = Annotated[str | None, typer.Argument(metavar="[PATTERN]", help="As for `tune`.")]
Database = Annotated[
    str | None, typer.Option("--db", metavar="URL", help="Database: a file or an SQLAlchemy URL. [$PERFSUITE_DB]")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _ends(message: object, code: int = 2) -> NoReturn:
    print(f"perfsuite: {message}", file=sys.stderr)
    raise SystemExit(code)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show the machine and the toolchain, what is missing, and the remedy."""
    from perfsuite import doctor

    diagnosis = doctor.examine()
    if as_json:
        terminal.print_json(diagnosis.to_json())
    else:
        doctor.show(diagnosis, terminal.console())


@app.command("list")
def list_(pattern: Pattern = None, as_json: Json = False) -> None:
    """List families, ops, workloads and kernels, and what this machine can run."""
    from perfsuite import catalogue

    entries = catalogue.entries(pattern)
    if as_json:
        terminal.print_json(catalogue.to_json(entries))
    else:
        catalogue.show(entries, terminal.console())


@app.command()
def tune(
    patterns: Patterns = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few trials per kernel; everything in 3 minutes.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every configuration of every kernel.")] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop after about this long: 90s, 10m, 2h.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the timed kernels.")] = 1,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How to search: gaussian, model, local, evolutionary, halving, random or exhaustive."
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="WORDS", help="How to time: warm|cold, reused|fresh, eager|graph.")
    ] = "",
    no_ceilings: Annotated[
        bool, typer.Option("--no-ceilings", help="Do not measure the machine's ceilings first.")
    ] = False,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Find the fastest kernel for every workload of the patterns; what is known is not measured again."""
    from perfsuite import session

    if quick and full:
        raise ValueError("--quick and --full exclude each other")
    effort = "quick" if quick else "full" if full else "default"
    wish = session.Wish(tuple(patterns or ()), effort, budget, threads, strategy, policy, db, not no_ceilings)
    summary = session.tune(wish, terminal.console(), quiet=as_json)
    if as_json:
        terminal.print_json(summary)


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; by default the machine's own.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="The policy to report on, as given to `tune`.")] = 1,
    policy: Annotated[str, typer.Option(metavar="WORDS", help="As given to `tune`.")] = "",
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Write index.html, report.md and pictures: rooflines, efficiency gaps, winners, failures."""
    from perfsuite import session

    path = session.report(out, policy, threads, db)
    if as_json:
        terminal.print_json({"report": str(path)})
    else:
        print(path)


@app.command()
def best(pattern: Pattern = None, db: Database = None, as_json: Json = False) -> None:
    """Show the winner of every workload, its speed-up and what ties with it."""
    from perfsuite import session

    entries = session.best(pattern, db)
    if as_json:
        terminal.print_json([entry.to_json() for entry in entries])
    else:
        session.show_best(entries, terminal.console())


@app.command()
def check(
    patterns: Patterns = None,
    configs: Annotated[int, typer.Option(min=1, help="Configurations of each kernel to check.")] = 3,
    compiled: Annotated[int, typer.Option(min=1, help="Workloads of each op for kernels of torch.compile.")] = 2,
    as_json: Json = False,
) -> None:
    """Check every kernel against its float64 reference on test workloads and edge cases; compiled ones on the first."""
    from perfsuite import checks

    findings = list(checks.run(tuple(patterns or ()), configs, compiled, None if as_json else terminal.console()))
    if as_json:
        terminal.print_json([finding.to_json() for finding in findings])
    if any(finding.reason for finding in findings):
        raise SystemExit(1)


@app.command()
def compare(
    patterns: Patterns = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=8, help="Interleaved rounds.")] = 40,
    policy: Annotated[str, typer.Option(metavar="WORDS", help="As given to `tune`.")] = "",
    peers: Annotated[bool, typer.Option("--peers", help="Other libraries too, where they are installed.")] = False,
    goals: Annotated[
        bool, typer.Option("--targets", help="The shapes that have targets, and whether these are met.")
    ] = False,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Begin no race after so long.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep every race as it ends, and go on from what is there.")
    ] = None,
    show: Annotated[Path | None, typer.Option(metavar="FILE", help="Show such a file; measure nothing.")] = None,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Race every kernel's best config, with the fastest probe of the same bytes, in one interleaved run."""
    from perfsuite import standings, units
    from perfsuite.compare import Wish, compare
    from perfsuite.comparison import Journal
    from perfsuite.policy import Policy

    if show is None:
        seconds = units.parse_duration(budget) if budget else float("inf")
        wish = Wish(
            tuple(patterns or ()),
            Policy.parse(policy, threads),
            rounds,
            db,
            peers,
            grid=goals,
            seconds=seconds,
            out=out,
        )
        journal = compare(wish)
    else:
        journal = Journal.load(show)
    if as_json:
        terminal.print_json(standings.to_json(journal, goals=goals))
    else:
        standings.show(journal, terminal.console(), goals=goals)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The JSONL bundle to write.")],
    db: Database = None,
    machine: Annotated[bool, typer.Option("--here", help="Only this machine's trials of today's code.")] = False,
) -> None:
    """Write the trials of the database to a JSONL bundle."""
    from perfsuite import session

    print(f"{session.export(file, db, here=machine)} trials written to {file}")


@app.command("import")
def import_(file: Annotated[Path, typer.Argument(help="A bundle of `perfsuite export`.")], db: Database = None) -> None:
    """Add the trials of a JSONL bundle; importing twice changes nothing."""
    from perfsuite import session

    new, known = session.import_(file, db)
    print(f"{new} new trials, {known} were known")


def main() -> None:
    """The `perfsuite` command: exit code 2 and one line for a wrong request, 130 for Ctrl-C."""
    try:
        app()
    except (ValueError, LookupError, OSError) as wrong:
        _ends(wrong)
    except KeyboardInterrupt:
        _ends("stopped", 130)


if __name__ == "__main__":
    main()
