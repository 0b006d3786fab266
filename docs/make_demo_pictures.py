r"""Take screenshots of the demo while it is being served.

    tmapdiff demo --model runs/shapes/pipeline --video-dir runs/shapes/videos/test --port 7860
    python docs/make_demo_pictures.py shapes-test-0-0.mp4 "the yellow triangle rises" --name demo
    tmapdiff demo --text-encoder sentence-transformers/all-MiniLM-L6-v2 --video-dir examples \
        --port 7860
    python docs/make_demo_pictures.py council.vtt "where the budget is decided" \
        --name demo-transcript

Writes NAME.png and NAME-phone.png, with --dark also NAME-dark.png and NAME-phone-dark.png. Needs
the extra `test` and chromium.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SIZES = {"": (1280, 900), "-phone": (390, 844)}


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("video", help="name of a video to pick")
    add("sentence", help="the sentence to search for")
    add("--name", default="demo", help="name of the files (default: demo)")
    add("--dark", action="store_true", help="also in dark mode")
    add(
        "--address",
        default="http://127.0.0.1:7860/",
        help="of the demo (default: http://127.0.0.1:7860/)",
    )
    add("--output", type=Path, default=Path(__file__).parent / "images", help="folder")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for scheme in ("light", "dark") if args.dark else ("light",):
            for kind, (width, height) in SIZES.items():
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page.set_default_timeout(180_000)
                page.goto(args.address)
                ask(page, args.video, args.sentence)
                name = f"{args.name}{kind}{'-dark' if scheme == 'dark' else ''}.png"
                page.screenshot(path=args.output / name, full_page=True)
        browser.close()


def ask(page: Page, video: str, sentence: str) -> None:
    """Pick a video, ask, and wait until the answer is drawn."""
    page.click("#picker input")
    page.click(f"ul[role=listbox] li:has-text('{video}')")
    page.wait_for_selector(f"#status >> text={video} is ready")
    page.fill("#query textarea, #query input", sentence)
    page.click("#ask")
    page.wait_for_selector("#map .figure canvas")
    if page.query_selector("#player video"):
        start = "parseFloat(document.querySelector('#timeline .bar').style.left) / 100"
        seen = "document.querySelector('#player video')"
        page.wait_for_function(f"{seen}.readyState >= 2")
        page.evaluate(f"{seen}.currentTime = {start} * {seen}.duration + 2")
    page.wait_for_timeout(1500)  # until scrolling has ended


if __name__ == "__main__":
    main()
