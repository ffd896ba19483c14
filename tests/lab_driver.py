"""Drive a real JupyterLab in a real Chromium: run a notebook, move its sliders with the keyboard.

Needs `pip install playwright` and a Chromium on the PATH (or its path in CHROMIUM); nothing is downloaded.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}
MARKUP = "<script>alert(1)</script> <img src=x onerror=alert(2)> $\\LaTeX$"
VERDICT = re.compile("^[✓✗] .")  # before what a quiz has to say
SLIDERS = ".jp-OutputArea-output .widget-slider .noUi-handle"

# The page's side: `--expose-app-in-browser` gives us the application as window.jupyterapp.
READY = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    return !document.querySelector('#jupyterlab-splash') && panel?.context?.isReady
        && panel.sessionContext?.session?.kernel?.status === 'idle' }"""
# The counts are cleared first: stored ones would look like a finished run. The run's own promise is not
# awaited: it resolves early when a cell tagged raises-exception raises.
RUN_ALL = """async () => {
    await window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
    window.jupyterapp.commands.execute('notebook:run-all-cells') }"""
# null while it runs, else the faults: cells that raised, a dead kernel, or none
FAULTS = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const status = panel.sessionContext.session?.kernel?.status;
    const cells = [...panel.content.model.cells].filter(
        c => c.type === 'code' && c.sharedModel.getSource().trim());
    const raised = cells.filter(c => !(c.getMetadata('tags') || []).includes('raises-exception')).flatMap(
        c => c.outputs.toJSON().filter(o => o.output_type === 'error').map(
            o => `${o.ename}: ${o.evalue} in ${c.sharedModel.getSource()}`));
    if (raised.length) return raised;
    if (['dead', 'restarting', 'autorestarting'].includes(status)) return [`the kernel is ${status}`];
    return status === 'idle' && cells.every(c => c.executionCount !== null) ? [] : null }"""
RENDERED = """() => [...document.querySelectorAll(
    '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.widget-view+json"]')].every(
        output => output.querySelector('.jupyter-widgets'))"""
REDRAWN = """([output, before]) => {
    const img = output.querySelector('img');
    return img && img.src !== before && img.complete && img.naturalWidth > 0 }"""


def missing() -> str:
    """What this machine lacks to run a browser test, in words; empty if nothing."""
    if not importlib.util.find_spec("playwright"):
        return "playwright is not installed (pip install playwright)"
    return "" if CHROMIUM else "no chromium on the PATH"


@contextlib.contextmanager
def server(folder: Path):
    """Serve a copy of `folder` with settings of its own; yield the address."""
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as scratch:
        scratch = Path(scratch)
        shutil.copytree(folder, scratch / "root", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for plugin, values in SETTINGS.items():
            file = scratch / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        own |= {f"JUPYTER_{kind}_DIR": kind.lower() for kind in ("RUNTIME", "CONFIG", "DATA")}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
        command += [f"--ServerApp.root_dir={scratch / 'root'}", "--expose-app-in-browser"]
        with open(scratch / "server.log", "w") as log:
            env = os.environ | {key: str(scratch / path) for key, path in own.items()}
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for_server(process, address, scratch / "server.log")
            yield address
        finally:
            process.terminate()  # and with it the kernels
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_server(process: subprocess.Popen, address: str, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api", timeout=2)
            return
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def lab(folder: Path):
    """Yield a browser page whose base address is a JupyterLab that serves a copy of `folder`."""
    from playwright.sync_api import sync_playwright  # not in requirements.txt: see missing()

    with server(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(base_url=address, viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        try:
            yield page
        finally:
            browser.close()


def run_all(page, notebook: str, seconds: float = 3600) -> None:
    """Open a notebook and run all of it; AssertionError if a cell raises or the kernel dies."""
    reply = page.request.get(f"/api/contents/{notebook}?content=0")
    assert reply.ok, f"there is no {notebook}"  # Lab would only wait
    page.goto(f"/lab/tree/{notebook}?reset")
    page.wait_for_function(READY)
    page.evaluate(RUN_ALL)
    faults = page.wait_for_function(FAULTS, timeout=1000 * seconds, polling=500).json_value()
    assert not faults, faults
    page.wait_for_function(RENDERED)


def move_slider(page, handle, seconds: float = 60) -> tuple[str, str]:
    """One step with an arrow key. Returns the values before and after.

    AssertionError if the value stays, if no new figure comes, or if the new figure looks like the old one.
    """
    output = handle.locator('xpath=ancestor::div[contains(@class, "jp-OutputArea-output")][1]')
    where = handle.locator('xpath=ancestor::div[contains(@class, "widget-slider")][1]').inner_text()
    figure = output.locator("img").first
    handle.scroll_into_view_if_needed()
    figure.wait_for()
    before, pixels = handle.get_attribute("aria-valuenow"), figure.screenshot()
    source = figure.get_attribute("src")
    handle.focus()
    page.keyboard.press("ArrowLeft" if before == handle.get_attribute("aria-valuemax") else "ArrowRight")
    try:
        page.wait_for_function(REDRAWN, arg=[output.element_handle(), source], timeout=1000 * seconds)
    except Exception as error:
        raise AssertionError(f"slider {where!r}: no new figure after {seconds} s") from error
    after = handle.get_attribute("aria-valuenow")
    assert after != before, f"slider {where!r}: its value stays at {before}"
    assert figure.screenshot() != pixels, f"slider {where!r}: the new figure looks like the old one"
    return before, after


def answer_quizzes(page) -> int:
    """Take the first choice of every question with the keyboard, and give back how many there were.

    AssertionError where no explanation appears under a question.
    """
    groups = page.locator(".jp-OutputArea-output .widget-radio").all()
    for group in groups:
        group.scroll_into_view_if_needed()
        group.locator("input").first.focus()
        page.keyboard.press("Space")
        verdict = group.locator("xpath=following-sibling::div[1]")
        try:
            verdict.get_by_text(VERDICT).wait_for(timeout=20_000)
        except Exception as error:
            raise AssertionError(f"no explanation for {group.inner_text()!r}") from error
    return len(groups)


def type_in_playgrounds(page) -> int:
    """Type markup as the second answer of every playground, leave the field, and give back how many there were.

    AssertionError where no new result comes, or the markup does something.
    """
    alarms = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    fields = page.locator(".jp-OutputArea-output .widget-textarea textarea").all()
    for field in fields[2::3]:
        output = field.locator('xpath=ancestor::div[contains(@class, "jp-OutputArea-output")][1]')
        field.scroll_into_view_if_needed()
        before = output.inner_text()
        field.fill(MARKUP)
        page.keyboard.press("Tab")
        page.wait_for_function(
            "([output, before]) => output.innerText !== before", arg=[output.element_handle(), before]
        )
        page.wait_for_timeout(500)
        assert not alarms and not output.locator("img, script, mjx-container").count(), (
            "what was typed is not shown as text"
        )
    return len(fields) // 3
