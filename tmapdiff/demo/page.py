"""The page, built with Gradio."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from tmapdiff.data.text_tracks import TRACK_SUFFIXES
from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.visits import Visits, line
from tmapdiff.models import SimilarityLocalizer
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.video.extraction import VIDEO_SUFFIXES

_HERE = Path(__file__).parent
_TITLE = "Find the moment"
_INTRODUCTION = "Describe {}, and see when. Every cell of the map is a candidate moment."
# For synthetic videos; shown if the model knows all words.
_EXAMPLES = ("the red circle moves to the left", "the yellow triangle rises", "a box is flashing")
_MOST_WAITING = 16  # visitors; one is served at a time
_DAY = 86_400  # seconds


def build_page(
    pipeline: MomentLocalizationPipeline,
    limits: DemoLimits,
    listed: Mapping[str, Path],
    examples: Sequence[str] = (),
) -> gr.Blocks:
    """Build the page, with files to pick from by name."""
    tracks = pipeline.takes_text_tracks
    what, kind = ("what is said", "transcript") if tracks else ("what happens", "video")
    if not examples and pipeline.vocabulary is not None:
        examples = [one for one in _EXAMPLES if not pipeline.unknown_words(one)]
    visits = Visits(pipeline, limits, listed)
    generative = pipeline.localizer.is_generative
    default_steps = pipeline.localizer.config.get("num_inference_steps", 1)

    options: Any = {"analytics_enabled": False, "delete_cache": (3600, _DAY)}
    with gr.Blocks(title=_TITLE, fill_width=True, **options) as page:
        source = gr.State()  # the file to search
        gr.HTML(f"<h1>{_TITLE}</h1><p>{_INTRODUCTION.format(what)}</p>", elem_id="heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=6, min_width=320, elem_id="left"):
                player: Any = (
                    gr.HTML(
                        value="",
                        html_template='<div class="transcript"></div>',
                        js_on_load="tmapdiffDemo.transcript(element, props, watch)",
                        elem_id="transcript",
                    )
                    if tracks
                    else gr.Video(
                        interactive=False,
                        show_label=False,
                        elem_id="player",
                        height=400,
                        buttons=[],
                    )
                )
                gr.HTML(
                    html_template='<div class="timeline"></div>',
                    js_on_load="tmapdiffDemo.timeline(element)",
                    elem_id="timeline",
                )
                with gr.Row(elem_id="sources", equal_height=True):
                    upload = gr.UploadButton(
                        "Upload a file" if tracks else "Upload a video",
                        file_types=[*TRACK_SUFFIXES] if tracks else ["video", *VIDEO_SUFFIXES],
                        elem_id="upload",
                        min_width=140,
                    )
                    picker = gr.Dropdown(
                        [("or pick one …", ""), *((name, name) for name in listed)],
                        value="",
                        show_label=False,
                        container=False,
                        visible=bool(listed),
                        elem_id="picker",
                        min_width=180,
                        scale=2,
                    )
            with gr.Column(scale=5, min_width=320, elem_id="right"):
                query = gr.Textbox(
                    label=f"{what.capitalize()}?",
                    placeholder=examples[0] if examples else None,
                    max_length=300,
                    lines=1,
                    elem_id="query",
                )
                with gr.Row(elem_id="examples", visible=bool(examples)):
                    buttons = [
                        gr.Button(one, size="sm", min_width=0, variant="secondary")
                        for one in examples
                    ]
                with gr.Row(elem_id="settings", visible=generative):
                    numbers = [
                        gr.Slider(
                            1,
                            most,
                            value=min(value, most),
                            step=1,
                            label=name.capitalize(),
                            elem_id=name,
                            buttons=[],
                            min_width=120,
                        )
                        for name, value, most in (
                            ("steps", default_steps, limits.max_steps),
                            ("samples", 4, limits.max_samples),
                        )
                    ]
                as_set = gr.Checkbox(
                    label="Estimate the number of moments",
                    info="Show as many moments as there seem to be, or none, instead of five.",
                    elem_id="as-set",
                )
                ask = gr.Button("Find", variant="primary", elem_id="ask")
                status = gr.HTML(
                    line(f"Upload a {kind} or pick one, and type a sentence."), elem_id="status"
                )
                gr.HTML(f"<p>{html.escape(_describe(pipeline))}</p>", elem_id="about")
                if pipeline.vocabulary is not None:
                    known = sorted(pipeline.vocabulary.words[2:])
                    with gr.Accordion(
                        f"{len(known):,} words that the model knows", open=False, elem_id="words"
                    ):
                        gr.HTML(f"<p>{html.escape(', '.join(known))}</p>")
                answer = gr.HTML(
                    value="",
                    html_template='<div class="map-card"></div>',
                    js_on_load="tmapdiffDemo.map(element, props, watch)",
                    elem_id="map",
                )

        queue = {"concurrency_id": "pipeline", "api_visibility": "private"}
        quiet = {**queue, "show_progress": "hidden"}
        shown = [player, picker, status, answer, source]
        upload.upload(visits.upload, upload, shown, **quiet)
        picker.select(visits.pick, picker, shown, **quiet)
        asked = [query, *numbers, as_set, source]
        for event in (ask.click, query.submit):
            event(visits.ask, asked, [status, answer], **quiet)
        for button in buttons:
            chosen = button.click(lambda text: text, button, query, **quiet)
            chosen.then(visits.ask, asked, [status, answer], **quiet)
    page.queue(max_size=_MOST_WAITING, default_concurrency_limit=1)
    return page


def page_style() -> dict[str, Any]:
    """Return the arguments of `Blocks.launch` for the theme, style and scripts of the page."""
    script = (_HERE / "demo.js").read_text(encoding="utf-8")
    return {
        "theme": _theme(),
        "css": (_HERE / "demo.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
    }


def _describe(pipeline: MomentLocalizationPipeline) -> str:
    """Describe the model to visitors."""
    parts = []
    if isinstance(pipeline.localizer, SimilarityLocalizer):
        whole = "the transcript" if pipeline.takes_text_tracks else "frames"
        parts.append(f"Compares {whole} with the sentence, one piece at a time")
    if pipeline.config.durations:
        shortest, *_, longest = pipeline.config.durations
        parts.append(f"Trained on videos of {shortest:.0f} to {longest:.0f} s")
    if pipeline.frame_encoder is not None:
        parts.append(f"Frame encoder: {pipeline.frame_encoder.description}")
    return "".join(f"{part}. " for part in parts)


def _theme() -> Any:
    blue = gr.themes.Color(
        name="tmapdiff",
        c50="#eef3f8", c100="#d9e4ef", c200="#b3c8de", c300="#82a5c8", c400="#4a7cab",
        c500="#1f5b94", c600="#004488", c700="#003a74", c800="#002f5e", c900="#00254a",
        c950="#001a35",
    )  # fmt: skip
    return gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue="stone",
        radius_size="sm",
        font=["IBM Plex Sans", "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["IBM Plex Mono", "ui-monospace", "monospace"],
    )
