"""A headless Chromium that opens a page, acts on it, and tells what it found and what the console said."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert program, "the slow tests need Chromium: .ci/chromium installs it"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
    return subprocess.run([program, *flags, *arguments], capture_output=True, text=True, timeout=timeout, check=True)


def console_errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line and "Download the" not in line]


def acted_on(page: Path, script: str, tmp_path: Path) -> dict[str, Any]:
    """Open a copy of a page, run a script in it once it has drawn, and return the object that the script returns."""
    action = (
        "<script>setTimeout(() => document.body.setAttribute('data-found',"
        f" JSON.stringify((() => {{ {script} }})())), 1500)</script></body>"
    )
    copy = tmp_path / "acted.html"
    copy.write_text(page.read_text().replace("</body>", action))
    done = chromium("--virtual-time-budget=6000", "--dump-dom", copy.as_uri())
    assert console_errors(done) == []
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[-500:]
    answer: dict[str, Any] = json.loads(found.group(1).replace("&quot;", '"'))
    return answer
