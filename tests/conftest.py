# SPDX-License-Identifier: MIT
"""A test that is left out must say why; under CI=true or LUTRA_STRICT=1 only what cannot be had may be."""

from __future__ import annotations

import importlib.util
import os
import signal

import pytest

STRICT = os.environ.get("CI") == "true" or os.environ.get("LUTRA_STRICT") == "1"

os.environ["HF_HUB_OFFLINE"] = "1"  # the tests that want a hub bring one along

# How the reasons begin that always count: no installation and no setting would change them.
ALLOWED = ("this CPU has no ", "this is no ", "no shared material", "this machine has no Chromium, and apt")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of what needs torch, which has an environment of its own; let Ctrl-C count."""
    config.addinivalue_line("markers", "torch: computes with torch")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background; children would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_directories(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What programs remember of their users goes elsewhere."""
    for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        os.environ[variable] = str(tmp_path_factory.mktemp(variable.lower()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs torch where there is none."""
    if item.get_closest_marker("torch") and not importlib.util.find_spec("torch"):
        pytest.skip("torch is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """A test."""
    return strict((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """A module."""
    return strict((yield))


def strict(report):
    """``report``, as a failure where it must not be left out."""
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid}: left out, and nothing may be here: {reason}"
    return report
