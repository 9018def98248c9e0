"""Reproduce the papers' tables: ``python -m benchmarks.reproduce part --scale demo [further flags]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduce.engine import Reproduction
from benchmarks.reproduce.group_tables import write_group_tables
from benchmarks.reproduce.papers import PAPERS, tables_of
from benchmarks.reproduce.rows import Paper, Row
from benchmarks.reproduce.schedule import Stage, carry_out_all
from benchmarks.reproduce.tables import write_tables
from robust_core.cli import Parser, add_flags, guarded, normalise_flags
from robust_core.errors import UserError, unknown_name


def _parser(paper: Paper) -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.reproduce",
        description="Train, attack and tabulate the rows of a paper. Further flags set what all rows share.",
    )
    parser.add_argument("paper", help=f"{', '.join(PAPERS)} or all")
    parser.add_argument(
        "--seeds",
        default="",
        help="N: seeds 1 to N; with commas: just these, such as 1,4 or 4, (default: the scale's)",
    )
    parser.add_argument(
        "--rows", default="", help=f"rows, with commas: {', '.join(row.name for row in paper.rows)}"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="runs at once, one CPU thread each (default: one per CPU core at scales smoke and demo, else 1)",
    )
    parser.add_argument(
        "--all-methods", action="store_true", help="run the rows too that are left out otherwise"
    )
    parser.add_argument("--force", action="store_true", help="run finished rows again")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of runs and tables")
    parser.add_argument("--results", type=Path, help="results file to continue (default: in the folder)")
    add_flags(parser, paper.config)
    return parser


def _chosen(paper: Paper, scale: str, names: str, extra: bool) -> list[Row]:
    rows = paper.at(scale)
    if not names:
        return [row for row in rows if extra or not row.extra]
    known = {row.name: row for row in rows}
    for name in names.split(","):
        if name not in known:
            raise unknown_name(f"row at scale {scale}", name, known)
    return [known[name] for name in names.split(",")]


def _jobs(wanted: int, scale: str, given: Mapping[str, Any]) -> int:
    """Return how many runs go on at once: small networks gain more from that than from threads."""
    if wanted < 0:
        raise UserError(f"--jobs {wanted} is not possible; expected 1 or more, or 0 for one per core.")
    alone = scale not in ("smoke", "demo") or str(given.get("device", "cpu")).startswith("cuda")
    return wanted or (1 if alone else min(os.cpu_count() or 1, 8))


def _seeds(paper: Paper, scale: str, text: str) -> tuple[int, ...]:
    try:
        named = tuple(int(part) for part in text.removesuffix(",").split(",")) if text else paper.seeds[scale]
    except ValueError:
        raise UserError(f"--seeds {text} is no list of whole numbers; write 1,2,3.") from None
    if not text or "," in text:
        return named
    if named[0] < 1:
        raise UserError(
            f"--seeds {text} is not possible; expected how many, 1 or more, or a list such as 1,2,3."
        )
    return tuple(range(1, named[0] + 1))


def reproduce(paper: Paper, given: dict[str, Any], jobs: int) -> Iterator[Stage]:
    """Run one paper's rows at the given scale, stage by stage, and print its table."""
    names = ("paper", "jobs", "seeds", "rows", "all_methods", "force", "out", "results")
    options = {name: given.pop(name) for name in names}
    scale = given.pop("scale", "demo")
    if paper.absent is not None and (reason := paper.absent(given)):
        print(f"{paper.name}, {scale}: {reason}")
        return
    if jobs > 1:
        given = {"threads": 1, **given}
    folder = options["out"] / paper.name / scale
    work = Reproduction(paper, scale, folder, given, force=options["force"], results_path=options["results"])
    rows = _chosen(paper, scale, options["rows"], options["all_methods"])
    yield from work.stages(rows, _seeds(paper, scale, options["seeds"]))
    write = write_group_tables if paper.pairs else write_tables
    table = write(paper, work.present_results(), paper.at(scale), folder)
    print()
    print(table.text())
    print(
        f"{folder / 'index.html'} shows this table; each run has a page of its own: "
        f"{folder}/ROW-seedN/report/report.html"
    )


def _run(words: Sequence[str]) -> None:
    name = words[0] if words and not words[0].startswith("-") else ""
    if name not in (*PAPERS, "all", ""):
        raise unknown_name("paper", name, [*PAPERS, "all"])
    scale = getattr(_parser(PAPERS.get(name, PAPERS["part"])).parse_known_args(words)[0], "scale", "demo")
    papers = tables_of(name or "part", scale)
    if not papers:
        raise UserError(f"{name} has no rows at scale {scale}; its table is one of --scale paper.")
    begun = time.perf_counter()
    given = [vars(_parser(paper).parse_args(words)) for paper in papers]
    if len(papers) > 1 and (results := given[0]["results"]):
        raise UserError(
            f"--results {results} is one paper's file; {name} has {len(papers)}: name one, or use --out."
        )
    jobs = _jobs(given[0]["jobs"], scale, given[0])
    carry_out_all([reproduce(paper, own, jobs) for paper, own in zip(papers, given, strict=True)], jobs)
    print(f"{' and '.join(paper.name for paper in papers)}, {scale}: {time.perf_counter() - begun:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = normalise_flags(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run(words), "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
