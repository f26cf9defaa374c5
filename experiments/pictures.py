"""`make pictures`: pages in a browser, into docs/images/.

    python -m experiments.pictures

A patient of `make demo`, the report that `make release` leaves, and a Space of the released model.
"""

import argparse
import shutil
import time
from contextlib import suppress
from pathlib import Path
from socket import create_connection
from threading import Thread

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from experiments.evidence.release import MODEL_CARDS, RELEASES
from hymate_training.publishing.space.app import main as serve_space

IMAGES = Path(__file__).parents[1] / "docs" / "images"
RELEASED = RELEASES["mortality"].name
PORT = 7899
PATIENCE = 120  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` made")
    parser.add_argument("--work", type=Path, default=Path("runs/release"), help="what `make release` made")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the pictures go")
    args = parser.parse_args()
    (patient,) = (path for path in (args.demo / "report" / "patients").glob("*.html") if path.name != "index.html")
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        picture_patient(browser, patient, args.images / "patient.png")
        page = opened(browser, (args.work / f"{RELEASED}-report" / "index.html").resolve().as_uri(), 1046, 960)
        page.screenshot(path=args.images / "report.png")
        picture_space(browser, args.images / "space.png")
        browser.close()
    for name in ("patient", "report", "space"):
        image = args.images / f"{name}.png"
        Image.open(image).quantize(256).save(image, optimize=True)  # a third of the bytes


def opened(browser: Browser, address: str, width: int, height: int) -> Page:
    """A page in a window of that size."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    return page


def picture_patient(browser: Browser, path: Path, image: Path) -> None:
    """The prediction over time and the events that moved it."""
    page = opened(browser, path.resolve().as_uri(), 900, 900)
    first = page.locator("section[aria-labelledby=trajectory-title]").bounding_box()
    last = page.locator("section[aria-labelledby=grounds-title] table").first.bounding_box()
    assert first is not None
    assert last is not None
    height = last["y"] + last["height"] - first["y"]
    clip = {"x": first["x"], "y": first["y"], "width": first["width"], "height": height + 16}
    page.screenshot(path=image, clip=clip, full_page=True)


def picture_space(browser: Browser, image: Path) -> None:
    """What a visitor sees first."""
    place = str(MODEL_CARDS / RELEASED)
    Thread(target=serve_space, args=([place, "--port", str(PORT)],), daemon=True).start()
    for _ in range(PATIENCE):
        with suppress(OSError), create_connection(("127.0.0.1", PORT)):
            break
        time.sleep(1)
    page = opened(browser, f"http://127.0.0.1:{PORT}", 1280, 940)
    page.wait_for_selector("#answer img")
    page.wait_for_timeout(1000)  # until the table is filled
    page.screenshot(path=image)


if __name__ == "__main__":
    main()
