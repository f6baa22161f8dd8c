"""Photographs the server's page for the docs: python -m docs.photograph_page BUNDLE IMAGE.

Needs the packages of the tests and a Chromium. Writes docs/serving/page.png.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parent / "serving" / "page.png"


def main(bundle: str, image: str) -> None:
    command = [sys.executable, "-m", "pipeline", "serve", bundle, "--port", "0", "--no-grpc", "--log-level", "error"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        address = next(line for line in server.stderr if line.startswith("ready: ")).removeprefix("ready: ").partition("/v2/")[0]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 720, "height": 640})
            page.goto(address)
            page.locator("#verdict", has_text="Verified here").wait_for()
            page.set_input_files("#file", image)
            page.wait_for_selector("#answer table")
            page.screenshot(path=str(TARGET))
            browser.close()
        server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
