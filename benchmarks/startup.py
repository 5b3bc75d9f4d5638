"""How long the command line takes before it does anything: printed, not asserted."""

import subprocess
import sys
import time

COMMANDS = (["--help"], ["list"], ["config", "atss"])
RUNS = 7


def seconds(arguments: list[str]) -> float:
    """Return the median time of `RUNS` starts of detcli with `arguments`."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "detcli", *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return sorted(times)[RUNS // 2]


if __name__ == "__main__":
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    print(f"{'python -c pass':24} {time.perf_counter() - bare:.3f} s")
    for arguments in COMMANDS:
        print(f"{'detcli ' + ' '.join(arguments):24} {seconds(arguments):.3f} s")
