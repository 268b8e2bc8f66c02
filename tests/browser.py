"""A headless Chromium that tests drive: it notes what it says and what it asks the network for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
QUIET = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def start_chromium(folder: Path) -> Any:
    """Start the browser with its settings in `folder`; a test without one is skipped."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, *QUIET, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    window.set_script_timeout(20)
    return window


def open_page(window: Any, address: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
    """Load a page in a window of this size and colour scheme; a narrow one is a phone's."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    window.get(address)


def wait(window: Any, script: str, wanted: Any = "true") -> None:
    """Wait until `script` returns what is wanted."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(window, 20).until(lambda _: window.execute_script(script) == wanted)


def requested(window: Any) -> list[str]:
    """URLs that were asked for since this was called last."""
    messages = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def brightness(colour: str) -> float:
    """Mean of r, g, b in `rgb(r, g, b)`."""
    return float(np.mean([int(part) for part in colour.split("(")[1].split(")")[0].split(",")[:3]]))
