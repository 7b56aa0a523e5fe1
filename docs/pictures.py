"""The pictures of the README: parts of the report of a real run, as Chromium shows them.

    python docs/pictures.py [outputs/demo/report.html]

writes `docs/pictures/*.webp`. It needs Chromium and its driver (`apt-get install chromium
chromium-driver`), and selenium, which comes with `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from selenium import webdriver

PACKAGES = "chromium chromium-driver"
FOLDER = Path(__file__).parent / "pictures"
_MOST_BYTES = 200_000
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb"),
)


def find_chromium() -> tuple[str, str] | None:
    """The browser and its driver, as Debian's packages install them; None without both."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_chromium() -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile, which is closed at the end.

    Raises:
        RuntimeError: there is none.
    """
    found = find_chromium()
    if found is None:
        raise RuntimeError(f"there is no Chromium with a driver: apt-get install {PACKAGES}")
    with tempfile.TemporaryDirectory(prefix="dualkd-chromium-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = found[0]
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # With the driver named, selenium looks for none and asks no network.
        driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
        try:
            yield driver
        finally:
            driver.quit()


def show(driver: webdriver.Chrome, width: int, height: int, *, dark: bool) -> None:
    """Set the size of the page's window, in CSS pixels, and its colours."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: of its file.
        width: of the window.
        selector: what it shows; empty for the first screen.
        height: at most so much of it; of the first screen, all of it.
        dark: its colours.
    """

    name: str
    width: int = 1280
    selector: str = ""
    height: int = 900
    dark: bool = False


PICTURES = (
    Picture("first-screen", height=960),
    Picture("first-screen-dark", height=960, dark=True),
    Picture("phone", 400, height=900),
    Picture("phone-dark", 400, "#videos", height=900, dark=True),
    Picture("cost", selector="#saved"),
    Picture("classes", selector="#classes > figure"),
    Picture("videos", selector="#videos", height=860),
    Picture("teachers-dark", selector="#datw", height=1100, dark=True),
    Picture("residual", selector="#residual"),
)


def take(driver: webdriver.Chrome, picture: Picture) -> Path:
    """Write a picture and return its file."""
    show(driver, picture.width, picture.height, dark=picture.dark)
    area = {"x": 0, "y": 0, "width": picture.width, "height": picture.height}
    if picture.selector:
        box = "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        y, height = driver.execute_script(
            f"{box} return [b.y + scrollY, b.height];", picture.selector
        )
        margin = 16
        area |= {"y": y - margin, "height": min(height + 2 * margin, picture.height)}
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"format": "png", "captureBeyondViewport": True, "clip": {**area, "scale": 1}},
    )
    path = FOLDER / f"{picture.name}.webp"
    FOLDER.mkdir(exist_ok=True)
    Image.open(io.BytesIO(base64.b64decode(shot["data"]))).save(path, quality=88, method=6)
    if path.stat().st_size > _MOST_BYTES:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes, more than {_MOST_BYTES}")
    return path


def main() -> None:
    """Take them all."""
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo/report.html").resolve()
    if not page.is_file():
        sys.exit(f"no report at {page}; `make demo` makes it")
    with open_chromium() as driver:
        driver.get(page.as_uri())
        for picture in PICTURES:
            path = take(driver, picture)
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
