"""Every task of the repository: ``nox -s tests|coverage|lint|types|bench|reproduce|reproduce-part|reproduce-ancra|
reproduce-gdro-at``.

All sessions share one environment, ``.nox/env``, so that torch is installed once. It grows in layers (run,
dev, bench): a session asks for what it needs, and a layer that is already there costs nothing. What follows
``--`` is handed on, for example ``nox -s reproduce -- --scale smoke``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".nox" / "env"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
PACKAGES = tuple(sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")))
LAYERS = {"run": (), "dev": ("dev", "eval", "tensorboard"), "bench": ("bench",)}
"""The extras of the core that each layer adds; "run" is what a user of the packages gets."""

nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "none"


def _requirements(layer: str) -> list[str]:
    found: set[str] = set()
    for package in PACKAGES:
        project = nox.project.load_toml(package / "pyproject.toml")["project"]
        extras = project.get("optional-dependencies", {})
        found.update(project["dependencies"] if layer == "run" else ())
        found.update(entry for extra in LAYERS[layer] for entry in extras.get(extra, ()))
    return sorted(entry for entry in found if " @ " not in entry)  # ours come last, as editable installs


def _stamp(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([sys.version, sys.base_prefix, *parts]).encode()).hexdigest()


def _is_current(name: str, content: str) -> bool:
    stamp = ENVIRONMENT / f"{name}.stamp"
    return stamp.is_file() and stamp.read_text() == content


def _pip(session: nox.Session, *arguments: str) -> None:
    # Not compiled to bytecode: torch has thousands of modules, and Python compiles those that it imports.
    quiet = ("--quiet", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile")
    session.run(str(PYTHON), "-m", "pip", "install", *quiet, *arguments, external=True)


def _make_environment(session: nox.Session) -> None:
    """Make ``.nox/env`` with the Python that runs nox, anew when that Python is another one."""
    if PYTHON.is_file() and _is_current("python", _stamp([])):
        return
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    session.log("making .nox/env")
    session.run(sys.executable, "-m", "venv", str(ENVIRONMENT), external=True)
    (ENVIRONMENT / "python.stamp").write_text(_stamp([]))


def environment(session: nox.Session, *layers: str) -> None:
    """Bring ``.nox/env`` up to the given layers; each is installed once, and again when it changes."""
    _make_environment(session)
    for layer in ("run", *layers):
        wanted = _requirements(layer)
        content = _stamp(wanted)
        if _is_current(layer, content):
            continue
        session.log(f"installing layer '{layer}' (once; torch takes minutes): {', '.join(wanted)}")
        # Together, so that no library of a layer moves torch.
        _pip(session, *sorted({*_requirements("run"), *wanted}))
        (ENVIRONMENT / f"{layer}.stamp").write_text(content)
    projects = _stamp([(package / "pyproject.toml").read_text() for package in PACKAGES])
    if not _is_current("packages", projects):
        # Editable installs refuse our relative references to each other, hence without dependencies.
        _pip(session, "--no-deps", *(argument for package in PACKAGES for argument in ("-e", str(package))))
        (ENVIRONMENT / "packages.stamp").write_text(projects)


def python(session: nox.Session, *arguments: str, **options: Any) -> None:
    """Run the environment's Python; a failure fails the session."""
    session.run(str(PYTHON), *arguments, external=True, **options)


# Threads that wait for work sleep instead of spinning: on a machine that does anything else a spinning pair is
# measured ten times slower than one thread, on an idle one there is no difference to see.
PATIENT = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}


def _scale(arguments: Sequence[str]) -> list[str]:
    named = any(argument.split("=")[0] == "--scale" for argument in arguments)
    return list(arguments) if named else ["--scale", "demo", *arguments]


# Tests in as many processes as the machine has cores, one thread each: two threads each would be slower than either.
SPREAD = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "worksteal")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests but the slow ones; with arguments: pytest with just these (``-- -m slow``)."""
    environment(session, "dev")
    if session.posargs:
        python(session, "-m", "pytest", *session.posargs)
        return
    python(session, "-m", "pytest", "-q", "-m", "not slow", *SPREAD, env=ONE_THREAD)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run all tests and measure which lines they reach (at least 90%); a third slower than without."""
    environment(session, "dev")
    sources = (f"--cov={path.name}" for package in PACKAGES for path in (package / "src").iterdir())
    measured = (*sources, "--cov-report=term:skip-covered", "--cov-fail-under=90")
    python(session, "-m", "pytest", "-q", *SPREAD, *measured, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    environment(session, "dev")
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    environment(session, "dev")
    python(session, "-m", "mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure attacks, masks, negatives and loading against what people use instead (under 20 minutes)."""
    environment(session, "bench")
    python(session, "-m", "benchmarks.speed", *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Reproduce every paper in short on the embedded data, or at ``-- --scale smoke|demo|reduced|paper``."""
    environment(session)
    python(session, "-m", "benchmarks.reproduce", "all", *_scale(session.posargs), env=PATIENT)


@nox.session(name="reproduce-part")
def reproduce_part(session: nox.Session) -> None:
    """Reproduce PART alone; same arguments as ``reproduce``."""
    environment(session)
    python(session, "-m", "benchmarks.reproduce", "part", *_scale(session.posargs), env=PATIENT)


@nox.session(name="reproduce-ancra")
def reproduce_ancra(session: nox.Session) -> None:
    """Reproduce ANCRA alone; same arguments as ``reproduce``."""
    environment(session)
    python(session, "-m", "benchmarks.reproduce", "ancra", *_scale(session.posargs), env=PATIENT)


@nox.session(name="reproduce-gdro-at")
def reproduce_gdro_at(session: nox.Session) -> None:
    """Reproduce GDRO-AT alone; same arguments as ``reproduce``."""
    environment(session)
    python(session, "-m", "benchmarks.reproduce", "gdro-at", *_scale(session.posargs), env=PATIENT)
