"""`perfsuite lab`: prove races and searches. Each command parses, calls one function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perfsuite import terminal

app = typer.Typer(
    help="Prove races on kernels against themselves, and searches on recorded spaces.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; results/lab by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def record(
    patterns: Annotated[
        list[str],
        typer.Argument(
            metavar="PATTERN...",
            help="As for `tune`; workloads together with kernels or families mean those kernels on those workloads.",
        ),
    ],
    passes: Annotated[int, typer.Option(min=2, help="Passes over the space, each in a process of its own.")] = 8,
    near: Annotated[int, typer.Option(min=0, help="Further passes over the configs near the best.")] = 8,
    processes: Annotated[int, typer.Option(min=0, help="Processes in which the best run side by side.")] = 20,
    rounds: Annotated[int, typer.Option(min=12, help="Rounds of the best in each of these processes.")] = 80,
    samples: Annotated[int, typer.Option(min=1, help="Samples of every config in each pass.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="As given to `tune`.")] = 1,
    policy: Annotated[str, typer.Option(metavar="WORDS", help="As given to `tune`.")] = "",
    out: Folder = None,
    as_json: Json = False,
) -> None:
    """Measure every configuration of the kernels' spaces, with all samples; stopped, it goes on where it was."""
    from perfsuite.lab import recording
    from perfsuite.lab.record import Effort
    from perfsuite.policy import Policy

    effort = Effort(passes, samples, near=near, processes=processes, rounds=rounds)
    written = recording.record(patterns, Policy.parse(policy, threads), effort, out, terminal.console(), quiet=as_json)
    if as_json:
        terminal.print_json([str(path) for path in written])


@app.command()
def score(
    tables: Annotated[
        list[Path] | None, typer.Argument(metavar="[TABLE]...", help="Tables or folders; results/lab by default.")
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this search or peer; may be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds for every search on every table.")] = 20,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Leave out Optuna and Kernel Tuner.")] = False,
    out: Folder = None,
    as_json: Json = False,
) -> None:
    """Replay recorded spaces under their own noise and rank the searches; writes score.json and pictures."""
    from perfsuite.lab import display, scoring

    wish = scoring.Wish(tuple(tables or ()), tuple(strategy or ()), repeats, not no_peers, out)
    board = scoring.score(wish, terminal.console(), quiet=as_json)
    if as_json:
        terminal.print_json(board.to_json())
    else:
        display.show(board, terminal.console())


@app.command()
def aa(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KERNEL WORKLOAD]...", help="Pairs; by default four kernels from 5 us to 50 ms."),
    ] = None,
    kernel: Annotated[str | None, typer.Option(metavar="K", help="Only the default pairs of this kernel.")] = None,
    races: Annotated[int, typer.Option(min=1, help="Races of each pair, for equals and each planted loss.")] = 10,
    rounds: Annotated[int | None, typer.Option(min=12, help="Rounds of a race at most; as in `tune`.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Seconds of a race at most; as in `tune`.")] = None,
    beside: Annotated[str, typer.Option(metavar="WHAT", help="What other cores do: none, hog, builds.")] = "none",
    threads: Annotated[int, typer.Option(min=1, help="As given to `tune`.")] = 1,
    policy: Annotated[str, typer.Option(metavar="WORDS", help="As given to `tune`.")] = "",
    as_json: Json = False,
) -> None:
    """Race kernels against themselves, and against themselves with 2, 3 and 5 % more rows: what do the verdicts say?"""
    from perfsuite.lab import aa as proof
    from perfsuite.policy import Policy

    pairs = proof.pairs(tuple(subjects or ()), kernel)
    done = proof.run(pairs, races, proof.effort(rounds, seconds), Policy.parse(policy, threads), beside)
    found = proof.summary(tuple(proof.shown(done, terminal.console(), quiet=as_json)))
    if as_json:
        terminal.print_json(found)
    else:
        proof.show(found, terminal.console())


@app.command()
def repeat(
    patterns: Annotated[list[str], typer.Argument(metavar="PATTERN...", help="As for `tune`.")],
    runs: Annotated[int, typer.Option(min=2, help="Fresh runs, each from an empty database.")] = 10,
    quick: Annotated[bool, typer.Option("--quick", help="As given to `tune`.")] = False,
    rounds: Annotated[int, typer.Option(min=12, help="Rounds of the race among the picks.")] = 120,
    threads: Annotated[int, typer.Option(min=1, help="As given to `tune`.")] = 1,
    policy: Annotated[str, typer.Option(metavar="WORDS", help="As given to `tune`.")] = "",
    as_json: Json = False,
) -> None:
    """Tune again and again from nothing, then race all the picks: do they lie in one tie set?"""
    from perfsuite.lab import repeat as proof
    from perfsuite.policy import Policy

    how = Policy.parse(policy, threads)
    plan = proof.plan_of(patterns, "quick" if quick else "default", how)
    picks = proof.raced(proof.collected(plan, runs, terminal.console(), quiet=as_json), plan.registry, how, rounds)
    found = proof.summary(tuple(picks))
    if as_json:
        terminal.print_json(found)
    else:
        proof.show(found, terminal.console())
