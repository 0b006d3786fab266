"""Nothing goes on the network: not the tests, not an import, not a localization."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import huggingface_hub
import pytest
from helpers.assertions import refuses
from helpers.network import NetworkError, guard_network, watched_network
from helpers.pipelines import make_frame_encoder, make_localizer, make_pipe
from helpers.text_encoders import save_two_towers, tiny_text_encoder
from helpers.tiers import mostly_exhaustive

from tmapdiff import (
    MS2DTAN,
    FrameEncoder,
    MapScheduler,
    MomentLocalizationPipeline,
    MomentLocalizer,
    TransformersFrameEncoder,
    TransformersTextEncoder,
)
from tmapdiff.cli import main
from tmapdiff.errors import CheckpointError, TmapdiffError
from tmapdiff.models import MapDiffusionDecoder, MultimodalEncoder

PUBLIC = "192.0.2.1"  # kept free for documents: nobody is there

# What a user does, from the first import to moments; every public name is asked for.
JOB = """
from helpers.network import guard_network

guard_network()
import numpy as np
import tmapdiff
from tmapdiff import FrameEncoder, MomentLocalizationPipeline, PRESETS, Vocabulary

for name in tmapdiff.__all__:
    getattr(tmapdiff, name)
encoder = FrameEncoder("test_resnet", pretrained=False)
vocabulary = Vocabulary(["person", "opens", "door"])
localizer = PRESETS["nano"].build(
    vocabulary_size=len(vocabulary), clip_channels=encoder.feature_dim
)
pipe = MomentLocalizationPipeline(localizer, vocabulary, encoder, fps=2.0)
pipe.save_pretrained({folder!r})
pipe = MomentLocalizationPipeline.from_pretrained({folder!r})
pictures = np.zeros((20, 32, 32, 3), np.uint8)
found = pipe(pictures, "person opens a door", frame_rate=4.0)
print(len(found.moments[0]), "moments")

# huggingface_hub has a thread that sends telemetry, where it is asked to.
from huggingface_hub.utils import _telemetry

print(_telemetry._TELEMETRY_THREAD, _telemetry._TELEMETRY_QUEUE.qsize())
"""


def run(code: str, *before: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}  # as users have it
    command = [*before, sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


@pytest.mark.process
def test_imports_and_localization_need_no_network_and_tell_nobody(tmp_path):
    # In a network of its own, with nothing in it, where the machine allows that.
    before = ("unshare", "-rn") if can_unshare() else ()
    code = JOB.format(folder=str(tmp_path / "pipeline"))
    done = run(code, *before)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["5 moments", "None 0"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tests_do_not_leave_the_machine():
    for ask in (
        lambda: socket.create_connection((PUBLIC, 80), timeout=1),
        lambda: socket.create_connection(("example.invalid", 80), timeout=1),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (PUBLIC, 53)),
        lambda: socket.socket(socket.AF_INET6).connect_ex(("2001:db8::1", 80)),
        lambda: socket.gethostbyname("example.invalid"),
    ):
        with pytest.raises(NetworkError, match=r"tests: expected no network, got socket\.\w+ of "):
            ask()


def test_what_stays_on_the_machine_is_allowed(tmp_path):
    guard_network()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, port), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))


BEACON = "attacker/beacon"  # the form of a name on the hub


def make_with_scheduler() -> MomentLocalizer:
    return make_localizer(scheduler_config=dict(MapScheduler().config))


def make_with_text_encoder() -> MomentLocalizationPipeline:
    localizer = make_localizer(encoder={"text_channels": 16, "vocabulary_size": None})
    return make_pipe(localizer, vocabulary=None, text_encoder=tiny_text_encoder(["a"]))


def make_image_tower() -> TransformersFrameEncoder:
    with tempfile.TemporaryDirectory() as folder:
        save_two_towers(Path(folder), ["a"])
        return TransformersFrameEncoder(folder)


LOADABLE = {
    "MomentLocalizer": (make_with_scheduler, MomentLocalizer.from_pretrained),
    "MS2DTAN": (lambda: make_localizer(MS2DTAN), MS2DTAN.from_pretrained),
    "MultimodalEncoder": (lambda: make_localizer().encoder, MultimodalEncoder.from_pretrained),
    "MapDiffusionDecoder": (lambda: make_localizer().decoder, MapDiffusionDecoder.from_pretrained),
    "MapScheduler": (MapScheduler, MapScheduler.from_pretrained),
    "FrameEncoder": (make_frame_encoder, FrameEncoder.from_pretrained),
    "TransformersFrameEncoder": (make_image_tower, TransformersFrameEncoder),
    "TransformersTextEncoder": (lambda: tiny_text_encoder(["a"]), TransformersTextEncoder),
    "a pipeline": (
        lambda: make_pipe(make_with_scheduler(), frame_encoder=make_frame_encoder()),
        MomentLocalizationPipeline.from_pretrained,
    ),
    "a pipeline with a text encoder": (
        make_with_text_encoder,
        MomentLocalizationPipeline.from_pretrained,
    ),
}
# Names under which libraries look for something else to load.
ADDED = (
    "_name_or_path", "name_or_path", "auto_map", "quantization_config", "custom_pipeline",
    "base_model_name_or_path", "pretrained_model_name_or_path", "tokenizer_file", "_class_name",
)  # fmt: skip


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library may ask; nothing answers."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before it asks again
    # Before version 1, the hub's library keeps sessions which stay offline.
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def places_in(value: object, place: tuple = ()) -> list[tuple]:
    """Give each field of a document, those of dictionaries and the first of lists too."""
    inner = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = [*enumerate(value)][:1]
    return [place] * bool(place) + [p for k, v in inner for p in places_in(v, (*place, k))]


def with_beacon(document: object, place: tuple, value: object) -> str:
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return json.dumps(changed)


@pytest.mark.filterwarnings("ignore")
def test_what_asks_the_hub_is_noticed(online):
    with watched_network() as wishes, pytest.raises(CheckpointError):
        MapScheduler.from_pretrained(BEACON)
    assert wishes


@pytest.mark.filterwarnings("ignore")
@mostly_exhaustive("kind", list(LOADABLE), "MomentLocalizer")
def test_no_field_of_a_configuration_makes_a_local_folder_ask_the_hub(kind, online, tmp_path):
    make, load = LOADABLE[kind]
    made = make()
    made.save_pretrained(tmp_path)
    documents = {
        path: path.read_text()
        for path in sorted(tmp_path.rglob("*.json"))
        # Parts are tried by themselves; words are no names.
        if kind.startswith("a pipe") <= (path.parent == tmp_path) and path.name != "tokenizer.json"
    }
    assert documents
    tried = 0
    for path, text in documents.items():
        document = json.loads(text)
        for place in [*places_in(document), *((name,) for name in ADDED)]:
            path.write_text(with_beacon(document, place, BEACON))
            with watched_network() as wishes, contextlib.suppress(TmapdiffError):
                load(tmp_path)
            assert not wishes, (path.name, place, wishes)
            tried += 1
        path.write_text(text)
    assert tried > 15


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("field", ["encoder_config", "decoder_config", "scheduler_config"])
def test_a_nested_configuration_that_is_no_dictionary_is_refused(field, online, tmp_path, capsys):
    make, load_pipeline = LOADABLE["a pipeline"]
    make().save_pretrained(tmp_path)
    path = tmp_path / "localizer" / "config.json"
    document = json.loads(path.read_text())
    for value in (BEACON, [BEACON], 3, "", None):
        path.write_text(with_beacon(document, (field,), value))
        if (field, value) == ("scheduler_config", None):
            assert MomentLocalizer.from_pretrained(path.parent)  # the defaults
            continue
        text = f"expected {field} to be a dictionary, got {value!r}."
        with watched_network() as wishes:
            for load, folder in (
                (MomentLocalizer.from_pretrained, path.parent),
                (load_pipeline, tmp_path),
            ):
                with refuses(CheckpointError, text):
                    load(folder)
            if value == BEACON:
                ask = ["a dog", "--model", str(tmp_path)]
                for command in (["inspect", str(tmp_path)], ["localize", "x.mp4", *ask]):
                    assert main(command) == 1
                    assert text in capsys.readouterr().err
        assert not wishes


@pytest.mark.filterwarnings("ignore")
def test_a_name_in_place_of_a_configuration_is_refused(online):
    with watched_network() as wishes:
        kinds = MomentLocalizer, MS2DTAN, MultimodalEncoder, MapDiffusionDecoder, MapScheduler
        for kind in kinds:
            for arguments in (
                {"config": BEACON},
                {"config": None},
                {"pretrained_model_name_or_path": BEACON},
            ):
                with refuses(TmapdiffError, "expected a configuration as a dictionary"):
                    kind.from_config(**arguments)
    assert not wishes
