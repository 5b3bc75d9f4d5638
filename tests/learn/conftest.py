def pytest_terminal_summary(terminalreporter):
    """Print what each method reached, also where other processes trained it."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                terminalreporter.write_line(f"{name}: {value}")
