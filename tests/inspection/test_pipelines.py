import h5py
import numpy as np
import pytest
import torch
from helpers.assertions import kinds
from helpers.datasets import query_line, write_lines

from tmapdiff import PRESETS, MomentLocalizationPipeline, Vocabulary
from tmapdiff.data import open_feature_store
from tmapdiff.inspection import inspect
from tmapdiff.video import FrameEncoder
from tmapdiff.video.frame_encoder import other_encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    encoder = FrameEncoder("test_resnet", pretrained=False)
    vocabulary = Vocabulary(["a", "dog", "runs"])
    sizes = {"vocabulary_size": len(vocabulary), "clip_channels": encoder.feature_dim}
    model = PRESETS["nano"].build(**sizes)
    pipeline = MomentLocalizationPipeline(model, vocabulary, encoder, fps=2.0)
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder, pipeline


def test_facts(saved):
    folder, pipeline = saved
    found = inspect(folder)
    assert (found.kind, found.findings) == ("pipeline", ())
    facts = found.facts["pipeline"]
    assert (facts["model"], facts["takes"]) == ("MomentLocalizer", "videos or features")
    assert facts["million parameters"] == round(pipeline.localizer.num_parameters() / 1e6, 2)
    assert (facts["vocabulary"], facts["frames per second"]) == (5, 2.0)


def test_weights_that_are_not_finite_are_found(saved, tmp_path):
    pipeline = MomentLocalizationPipeline.from_pretrained(saved[0])
    name, weight = next(iter(pipeline.localizer.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = torch.inf
    pipeline.save_pretrained(tmp_path / "spoilt")
    assert kinds(inspect(tmp_path / "spoilt")) == {"weights that are not finite": (name,)}


def test_against_features(saved, tmp_path):
    folder, pipeline = saved
    encoder, width = pipeline.frame_encoder, pipeline.frame_encoder.feature_dim

    def store(**attributes):
        path = tmp_path / "f.h5"
        with h5py.File(path, "w") as file:
            made_by = np.bytes_(encoder.fingerprint.encode())
            attributes = {"seconds_per_feature": 0.5, "model_sha256": made_by, **attributes}
            columns = attributes.pop("width", width)
            file.attrs.update(attributes)
            file["a"] = np.ones((4, columns), np.float32)
        return path

    assert inspect(folder, store()).findings == ()
    assert set(kinds(inspect(folder, store(width=3)))) == {"wrong width"}
    assert set(kinds(inspect(folder, store(seconds_per_feature=1.0)))) == {"wrong rate"}
    converted = MomentLocalizationPipeline.from_pretrained(folder).to(torch.bfloat16)
    assert not other_encoder(converted.frame_encoder, open_feature_store(store()))  # unknown
    other = store(model_sha256=np.bytes_(b"0"))
    assert set(kinds(inspect(other, folder))) == {"another frame encoder"}
    with pytest.warns(UserWarning, match="'model_sha256' of variable length"):
        assert set(kinds(inspect(store(model_sha256="0"), folder))) == {"unknown frame encoder"}


def test_against_annotations(saved, tmp_path):
    queries = {"x": "the dog sleeps", "y": "cats sleep", "z": "..."}
    lines = (query_line(qid, query=query) for qid, query in queries.items())
    path = write_lines(tmp_path / "queries.jsonl", lines)
    assert kinds(inspect(saved[0], path)) == {"unknown words": ("y",)}
    found = inspect(path, saved[0])
    assert kinds(found) == {"queries without a word": ("z",), "unknown words": ("y",)}
