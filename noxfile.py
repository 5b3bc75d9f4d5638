"""What is checked: `nox` runs lint, types and tests in the environment that it is started from."""

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "none"


@nox.session
def lint(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    # A process a core: most tests are short and wait for Python to start. tests/conftest.py orders the files.
    options = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
    session.run("pytest", *options, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def learn(session: nox.Session) -> None:
    """Train every method on the built-in shapes from random weights and hold it to the figures it should reach."""
    # A process a core, each with one thread: more than an hour on two cores, a few minutes a method, DETR most of one.
    options = ["-n", "auto", "--dist", "loadgroup"]
    session.run(
        "pytest", "tests/learn", *options, *session.posargs, env={"DETCLI_LEARN": "full", "OMP_NUM_THREADS": "1"}
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory against other tools and write benchmarks/RESULTS.md; give it the machine alone."""
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill runs at 50 random points, continue them, and compare what they end with to a run that was left alone."""
    session.run("pytest", "tests/engine/test_killed.py", *session.posargs, env={"DETCLI_CHAOS": "50"})


@nox.session
def documents(session: nox.Session) -> None:
    """Hold the published tables to the documents in a folder: nox -s documents -- FOLDER."""
    session.run("python", "tests/zoo/documents.py", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Compare converted checkpoints with what their own code computed; DETCLI_PARITY=FOLDER: other reference cases."""
    session.run("python", "tests/parity/session.py", *session.posargs)
    session.run("python", "docs/generate.py")
