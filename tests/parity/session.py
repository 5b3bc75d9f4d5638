"""Runs reference cases and says what came of each: ``nox -s parity``, or with names of cases or parts of them.

What came of committed cases is written to zoo/parity.json, where those that were not chosen stay as they are; cases of
another folder (``DETCLI_PARITY=FOLDER``) are only printed. The exit status is 1 when a case fails; one that is not
supported does.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import comparison
import reference

from detcli.cli.text import aligned
from detcli.errors import DetcliError
from detcli.zoo.report import parity
from detcli.zoo.status import PARITY, digest, parity_cases


def main():
    """Run the cases; return the exit status."""
    folder = Path(os.environ.get("DETCLI_PARITY") or reference.CASES)
    wanted = sys.argv[1:]
    cases = [name for name in reference.names(folder) if not wanted or any(part in name for part in wanted)]
    results = dict(parity_cases()) if folder == reference.CASES else {}
    for number, name in enumerate(sorted(cases, key=lambda name: bool(reference.load(name, folder)["alias"])), 1):
        start = time.monotonic()
        results[name] = result(name, folder, results)
        text = "passes" if results[name]["passes"] else f"fails: {results[name]['wrong'][0]}"
        print(f"{number}/{len(cases)} {name}: {text} ({time.monotonic() - start:.0f} s)", flush=True)
    for line in aligned(*parity({name: results[name] for name in cases})):
        print(line)
    if folder == reference.CASES:
        # What another session has written meanwhile stays.
        results = {**parity_cases(), **{name: results[name] for name in cases}}
        kept = {name: results[name] for name in reference.names() if name in results}
        PARITY.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    failed = sum(not results[name]["passes"] for name in cases)
    print(f"{len(cases) - failed} of {len(cases)} cases pass")
    return int(failed > 0 or not cases)


def result(name, folder, results):
    """Return what came of the case `name`, as zoo/parity.json has it; `results` are those of the cases before."""
    case = reference.load(name, folder)
    found = comparison.Outcome()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            if case["alias"] is None:
                found = comparison.compare(case, Path(temporary))
            else:
                config, other = comparison.config_of(case), results.get(case["alias"])
                found.config = digest(config)
                passed = other is not None and other["passes"]
                same = passed and comparison.same_model(
                    config, comparison.config_of(reference.load(case["alias"], folder))
                )
                found.wrong = alias_failures(same, case["alias"], other)
        except Exception as error:  # what breaks in one case must not keep the others from being listed
            kind = "" if isinstance(error, DetcliError) else f"{type(error).__name__}: "
            found.wrong.append(kind + str(error).replace(f"{temporary}/", "").replace("\n", " "))
    return {
        "config": found.config,
        "passes": not found.wrong,
        "same_as": case["alias"] or "",
        "measured": found.measured,
        "wrong": found.wrong,
    }


def alias_failures(same_model, alias, other):
    """Return why a case hasn't the numbers of the case `alias`, of which came `other`."""
    if other is None:
        return [f"it has the numbers of {alias}, which was not run"]
    if not other["passes"]:
        return [f"it has the numbers of {alias}, which fails"]
    return [] if same_model else [f"it has the numbers of {alias}, and another model here"]


if __name__ == "__main__":
    sys.exit(main())
