import time
from urllib.parse import urlparse

import pytest
from helpers.processes import SECONDS

pytestmark = [pytest.mark.browser, pytest.mark.process]
CLIPS = 16  # of the pipeline
QUERY = "the red circle moves to the left"


def eventually(condition, seconds=SECONDS, show=lambda: None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, show()
        time.sleep(0.05)


def pixels(visit):
    return visit.page.evaluate("document.querySelector('#map canvas').toDataURL()")


def test_upload_ask_and_jump(visit, films, server):
    visit.upload(films["good"])
    visit.wait_for_video()
    assert visit.video("duration") == pytest.approx(films["duration"], abs=0.05)
    visit.ask(QUERY)
    visit.wait_for_answer()

    # A cell of the map: row r of starts, from below, and column c of lengths.
    row, column, clip = 5, 2, films["duration"] / CLIPS
    box = visit.page.locator("#map .plot").bounding_box()
    place = {
        "x": box["width"] * (column + 0.5) / CLIPS,
        "y": box["height"] * (1 - (row + 0.5) / CLIPS),
    }
    visit.page.locator("#map .plot").click(position=place)
    eventually(lambda: row * clip <= visit.video("currentTime") < row * clip + 2)
    # The player continues from there, and its head on the timeline follows.
    before = visit.video("currentTime")
    eventually(lambda: visit.video("currentTime") > before)
    head = visit.page.evaluate("parseFloat(document.querySelector('.playhead').style.left)")
    assert head / 100 * films["duration"] == pytest.approx(visit.video("currentTime"), abs=1.5)
    first, last = row * clip, (row + column + 1) * clip
    said = visit.page.text_content("#map .readout b").replace(" s", "").split(" \u2013 ")
    assert [float(one) for one in said] == pytest.approx([first, last], abs=0.051)

    # It stops where the moment ends.
    visit.page.evaluate(f"document.querySelector('#player video').currentTime = {last - 0.3}")
    eventually(lambda: visit.video("paused"))
    assert visit.video("currentTime") == pytest.approx(last, abs=0.5)

    # A bar of the timeline: the player jumps to where it is drawn.
    bar = visit.page.locator("#timeline .bar.moment").first
    drawn = bar.bounding_box()
    tracks = visit.page.locator("#timeline .tracks").bounding_box()
    start = (drawn["x"] - tracks["x"]) / tracks["width"] * films["duration"]
    bar.click()
    eventually(lambda: abs(visit.video("currentTime") - start) < 1)

    # The curve above the bars: one step per clip.
    curve = visit.page.locator("#timeline .curve svg")
    steps = curve.locator("path").get_attribute("d").removeprefix("M0 1V").split("V")
    heights, ends = zip(*(map(float, one.split("H")) for one in steps[:CLIPS]), strict=True)
    assert ends == pytest.approx([clip * (at + 1) for at in range(CLIPS)])
    assert min(heights) == 0
    assert max(heights) < 1
    assert curve.bounding_box()["width"] == pytest.approx(tracks["width"])
    likeliest = heights.index(0) * clip
    assert curve.get_attribute("aria-label").endswith(f", at {likeliest:.1f} s")

    assert visit.hosts <= {urlparse(server.address).netloc, ""}
    assert visit.complaints == []


def at_cursor(visit):
    """Return the cell (row of starts, column of lengths) of the map's cursor."""
    drawn = visit.page.locator("#map .cursor").bounding_box()
    box = visit.page.locator("#map .plot canvas").bounding_box()
    row = (box["y"] + box["height"] - drawn["y"] - drawn["height"]) / box["height"] * CLIPS
    column = (drawn["x"] - box["x"]) / box["width"] * CLIPS
    assert (row, column) == pytest.approx((round(row), round(column)), abs=0.1)
    return round(row), round(column)


def painted(visit):
    """Return the colored cells of the map: the candidates."""
    opaque = visit.page.evaluate(
        """() => {
            const canvas = document.querySelector("#map canvas");
            const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [...image.data].filter((_, at) => at % 4 === 3).map((one) => one > 0);
        }"""
    )
    return {(CLIPS - 1 - at // CLIPS, at % CLIPS) for at, visible in enumerate(opaque) if visible}


def test_the_map_by_keyboard(visit, films):
    visit.pick("shapes.mp4")
    visit.wait_for_video()
    visit.ask(QUERY)
    visit.wait_for_answer()
    candidates, clip = painted(visit), films["duration"] / CLIPS
    assert len(candidates) < CLIPS * (CLIPS + 1) / 2  # there are gaps
    plot = visit.page.locator("#map .plot")
    assert QUERY in plot.get_attribute("aria-label")
    described = visit.page.text_content(f"#{plot.get_attribute('aria-describedby')}")
    assert "Enter plays" in described

    visit.page.focus("#ask")
    for _ in range(20):  # over whatever lies between
        visit.page.keyboard.press("Tab")
        if plot.evaluate("(one) => one === document.activeElement"):
            break
    assert plot.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
    # It begins at the best moment.
    place = at_cursor(visit)
    best = visit.page.locator("#timeline .bar.moment").first.get_attribute("aria-label")
    said = visit.page.text_content("#map .said")
    assert best.split(". ")[1].split(",")[0] == said.split(",")[0]

    seen = {place}
    moves = {"ArrowUp": (1, 0), "ArrowDown": (-1, 0), "ArrowRight": (0, 1), "ArrowLeft": (0, -1)}
    keys = ["ArrowDown"] * CLIPS + ["ArrowRight"] * CLIPS + ["ArrowLeft", "ArrowUp"] * CLIPS
    keys += ["ArrowDown"] * 9 + ["ArrowRight"] * 4
    for key in keys:
        visit.page.keyboard.press(key)
        row, column = place
        up, right = moves[key]
        ahead = [(row + n * up, column + n * right) for n in range(1, CLIPS)]
        place = next((one for one in ahead if one in candidates), place)
        assert at_cursor(visit) == place
        seen.add(place)
    assert len(seen) > CLIPS
    row, column = place
    first, last = row * clip, (row + column + 1) * clip
    said = visit.page.text_content("#map .said").split(",")[0].replace(" s", "").split(" \u2013 ")
    assert [float(one) for one in said] == pytest.approx([first, last], abs=0.051)

    visit.page.keyboard.press("Enter")
    eventually(lambda: first <= visit.video("currentTime") < first + 2)
    eventually(lambda: not visit.video("paused"))
    visit.page.keyboard.press("Tab")
    assert not visit.page.locator("#map .cursor").is_visible()
    assert visit.page.text_content("#map .said") == ""
    assert visit.complaints == []


def test_steps_and_samples(visit):
    visit.pick("shapes.mp4")
    visit.wait_for_video()
    visit.ask(QUERY, steps=3, samples=5)
    visit.wait_for_answer()
    assert visit.page.locator("#timeline .bar.sample").count() == 5
    assert visit.page.locator("#map .layer .sample-dot").count() == 5
    assert "±" in visit.page.text_content("#timeline .note >> nth=0")
    # The clean maps after three steps, the noisy maps between them, and the result.
    frames = visit.page.locator("#map .frames")
    assert frames.get_attribute("max") == "5"
    drawn = {pixels(visit)}
    for number in range(5):
        frames.evaluate(
            f"(one) => {{ one.value = {number}; one.dispatchEvent(new Event('input')) }}"
        )
        drawn.add(pixels(visit))
    assert len(drawn) >= 2  # clean maps of an untrained model are much alike
    assert visit.page.locator("#map .disc").count() == 0
    visit.page.click("#map .play")
    visit.page.wait_for_function(
        "document.querySelector('.frame-name').textContent.startsWith('result: the mean of 5')"
    )
    assert visit.page.locator("#map .disc").count() == 5

    visit.ask(QUERY, steps=1, samples=1)
    visit.wait_for_answer()
    assert visit.page.locator("#timeline .bar.sample").count() == 0
    assert visit.page.locator("#map .frames").get_attribute("max") == "1"
    assert "±" not in visit.page.text_content("#timeline")
    assert visit.complaints == []
    # On a phone, too, all of it is as wide as the screen.
    visit.page.set_viewport_size({"width": 390, "height": 844})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    notes = visit.page.locator("#timeline .note")
    assert all("\u2013" in note for note in notes.all_text_contents())  # times, wherever they fit
    assert notes.count() == 5


def test_an_example_is_asked_by_a_click(visit):
    assert "Frame encoder: timm test_resnet" in visit.page.text_content("#about")
    visit.pick("shapes.mp4")
    visit.wait_for_video()
    visit.page.click("#examples button")
    visit.wait_for_answer()
    assert visit.page.input_value("#query textarea, #query input") == QUERY
    assert "Gaps are not candidates" in visit.page.text_content("#map .gaps")


def test_what_is_refused(visit, films, server):
    for film, text in (
        ("broken", "broken.mp4: expected a video, got"),
        ("text", "letter.mp4: expected a video, got"),
        ("hour", "hour.mp4: expected a video of at most 600 seconds, got 3600 seconds. Cut it "
                 "to the part you need."),
    ):  # fmt: skip
        visit.upload(films[film])
        said = visit.page.wait_for_selector(f"#status [role=alert] >> text={films[film].name}")
        assert said.text_content().startswith(text)
        assert "\n" not in said.text_content()
        assert str(server.scratch) not in said.text_content()
        assert "Traceback" not in visit.page.content()
        visit.ask(QUERY)
        visit.page.wait_for_selector(
            "#status >> text=There is no file to search yet: upload or pick one."
        )
    visit.upload(films["large"])
    visit.page.wait_for_function(
        "document.body.innerText.includes('exceed the maximum allowed size')"
    )
    assert "large.mp4" not in server.files()


def test_the_words_that_the_model_knows(visit):
    visit.pick("shapes.mp4")
    visit.wait_for_video()
    visit.ask("  ")
    assert visit.wait_for_alert() == "Type a sentence first."
    visit.ask("?!")
    visit.page.wait_for_selector("#status [role=alert] >> text=expected")
    visit.page.click("#words button")
    visit.page.wait_for_selector("#words >> text=circle, left, moves, red, the, to")
    visit.ask("the azul circle")
    visit.page.wait_for_selector("#status >> text=The model does not know these words: azul.")
    visit.ask("el perro ladra")
    known = "It knows 6 words, such as the, circle, left, moves, red."
    visit.page.wait_for_selector(f"#status [role=alert] >> text={known}")


def test_no_file_is_served_that_was_not_given(server, films):
    picks = server.scratch.parent / "picks"
    assert server.status_of("") == 200
    for path in ("/etc/passwd", picks / "notes.txt",
                 server.scratch.parent / "pipeline" / "model_index.json", films["good"],
                 "http://example.org/", "https:/example.org/"):  # fmt: skip
        for route in ("gradio_api/file=", "file="):
            assert server.status_of(f"{route}{path}") in (403, 404), path


def test_visitors_do_not_meet(visit, new_visit, films):
    visit.pick("shapes.mp4")
    visit.wait_for_video()
    other = new_visit()
    other.upload(films["short"])
    other.wait_for_video()
    assert "short" in other.video("currentSrc")
    for one in (visit, other):
        one.ask(QUERY)
    for one in (visit, other):
        one.wait_for_answer()
    # The last second on the timeline identifies the video.
    ends = [one.page.locator("#timeline .tick").last.text_content() for one in (visit, other)]
    assert ends == ["35 s", "4 s"]


def test_nothing_goes_to_other_hosts(server):
    """After all tests above, the proxy of all requests to other hosts got none."""
    with pytest.raises(BlockingIOError):
        server.outside.accept()


def test_the_number_of_moments_is_estimated(visit):
    visit.pick("shapes.mp4")
    visit.wait_for_video()
    visit.page.check("#as-set input")
    visit.ask(QUERY, samples=3)
    visit.wait_for_answer()
    said = visit.page.text_content("#timeline .found")
    found = visit.page.locator("#timeline .bar.moment").count()
    assert ("not found in this video" in said) is (found == 0)
    assert "in this video with probability" in said
    visit.page.uncheck("#as-set input")
    visit.ask(QUERY, samples=3)
    visit.wait_for_answer()
    assert visit.page.locator("#timeline .found").count() == 0
    assert visit.complaints == []
