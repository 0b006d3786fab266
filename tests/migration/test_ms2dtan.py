import json
import os
from pathlib import Path

import h5py
import pytest
import torch
from helpers.assertions import assert_same, refuses
from helpers.migration import EXPERIMENT, changed, recording, write_checkpoint
from torch import Tensor

from tmapdiff import MS2DTAN, load_annotations, load_ms2dtan, ms2dtan_config
from tmapdiff.data import Annotation, AnnotationSet, GloveVectors, Vocabulary, collate_moments
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError
from tmapdiff.evaluation import evaluate
from tmapdiff.recipes import LocalizationData


def make_dataset(experiment, annotations, store, vocabulary, *, training):
    data = LocalizationData("charades", annotations, annotations, store)
    make = data.make_train_set if training else data.make_test_set
    each = experiment.preset.encoder["features_per_clip"]
    return make(experiment.preset.make_grid(), vocabulary, experiment.clip_seconds, each)


def test_fields_have_their_places():
    found = ms2dtan_config(EXPERIMENT)
    assert found.preset.grid == {"num_clips": 16, "num_anchors": 4, "num_scales": 3}
    assert found.preset.encoder == {
        "channels": 8,
        "word_channels": 6,
        "num_text_layers": 2,
        "train_words": False,
        "map_layer": "conv",
        "features_per_clip": 1,
    }
    training = found.preset.training
    assert (training.epochs, training.batch_size) == (100, 32)
    assert (training.learning_rate, training.weight_decay) == (1e-4, 0)
    assert (found.clip_seconds, found.seconds_per_feature, found.normalized) == (0.64, 0.64, True)
    assert (found.data_dir, found.features) == (Path("data/Charades-STA"), "i3d.hdf5")
    assert (found.dataset, found.checkpoint) == ("charades", Path("release/epoch0039.pkl"))
    assert (found.ranks, found.thresholds) == ((1, 5), (0.5, 0.7))

    baseline = found.build_ms2dtan(vocabulary_size=9)
    assert isinstance(baseline, MS2DTAN)
    assert baseline.config.kernel_sizes == [5, 3]
    assert (baseline.config.nms_threshold, baseline.objective.name) == (0.45, "bce-rescaled")
    assert not baseline.encoder.text_encoder.embedding.weight.requires_grad
    localizer = found.preset.build(vocabulary_size=9, clip_channels=5, decoder={"num_groups": 2})
    assert localizer.grid == baseline.grid
    assert localizer.config.encoder_config == baseline.config.encoder_config
    assert localizer.config.nms_threshold == 0.45


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MODEL.PARAMS.NUM_SCALES", None, "the field MODEL.PARAMS.NUM_SCALES, got none."),
        ("MODEL.NAME", "TAN", "MODEL.NAME to be 'MultiScale_TAN', got 'TAN'."),
        ("MODEL.MAP_MODULE.NAME", "Conv", "MODEL.MAP_MODULE.NAME to be 'MapGatedConv', got"),
        ("MODEL.MAP_MODULE.PARAMS.DILATIONS", [1, 2], "DILATIONS to be [1, 1], got [1, 2]."),
        ("MODEL.MAP_MODULE.PARAMS.PADDINGS", [2, 0], "PADDINGS to be [2, 1], got [2, 0]."),
        ("MODEL.MAP_MODULE.PARAMS.GROUPS", [1, 2], "a model that MS2DTAN supports, got MODEL.MAP"),
        ("MODEL.CLIP_MODULE.PARAMS.KERNEL_SIZE", 2, "KERNEL_SIZE to be 1, got 2."),
        ("MODEL.PROP_MODULE.NAME", "Conv", "'MultiScalePropConvTanhBN' or 'MultiScalePropMaxP"),
        ("MODEL.FUSION_MODULE.PARAMS.TXT_HIDDEN_SIZE", 16, "TXT_HIDDEN_SIZE to be 8, got 16."),
        ("MODEL.FUSION_MODULE.PARAMS.TXT_ENCODER.NAME", "GRU", "ENCODER.NAME to be 'LSTM', got"),
    ],
)
def test_unsupported_models(name, value, expected):
    with refuses(ConfigError, "ms2dtan_config: expected ", expected):
        ms2dtan_config(changed({name: value}))


def test_objective():
    found = ms2dtan_config(changed({"LOSS.PARAMS.MIN_IOU": 0}))
    assert found.objective == "bce-full"
    with pytest.warns(UserWarning, match=r"the IoU from \[0.5, 1\], and not from \[0.3, 1"):
        assert ms2dtan_config(changed({"LOSS.PARAMS.MIN_IOU": 0.3})).objective == "bce-rescaled"
    with pytest.warns(UserWarning, match=r"LOSS.NAME = 'focal' has no counterpart"):
        ms2dtan_config(changed({"LOSS.NAME": "focal"}))


def test_clips_that_divide_each_video():
    found = ms2dtan_config(changed({"DATASET.SLIDING_WINDOW": None, "DATASET.TIME_UNIT": None}))
    assert found.clip_seconds is None
    assert found.seconds_per_feature is None


def test_a_published_file_may_write_one_scale_and_numbers_as_text(tmp_path):
    changes = {
        "DATASET.OUTPUT_NUM_CLIPS": 16,
        "DATASET.NUM_ANCHORS": 16,
        "MODEL.PROP_MODULE.PARAMS.NUM_LAYERS": 16,
        "MODEL.PARAMS.NUM_SCALES": 1,
        "OPTIM.PARAMS.LR": "1e-4",  # what yaml makes of it
    }
    found = ms2dtan_config(changed(changes))
    assert found.preset.grid == {"num_clips": 16, "num_anchors": 16, "num_scales": 1}
    assert found.preset.training.learning_rate == 1e-4


LAYERS = "MODEL.PROP_MODULE.PARAMS.NUM_LAYERS"


@pytest.mark.parametrize(
    ("name", "value", "kind", "expected"),
    [
        ("DATASET.OUTPUT_NUM_CLIPS", [16, 8, 5], ConfigError, " to be [16, 8, 4]"),
        ("DATASET.NUM_ANCHORS", [4, 4, 8], ConfigError, " to be [4, 4, 4]"),
        (LAYERS, [4, 4, 4], ConfigError, " to be [4, 2, 2]"),
        ("DATASET.INPUT_NUM_CLIPS", 64, ConfigError, " to be 16 clips of 1 features"),
        ("DATASET.TIME_UNIT", 0, ArgumentError, " in (0, inf)"),
        ("OPTIM.PARAMS.LR", "x", ArgumentError, " in (0, inf)"),
        ("TEST.TIOU", 0.5, ArgumentError, " to be a list"),
        ("DATASET.TXT_INPUT_TYPE", "bert", ConfigError, " to be 'glove'"),
    ],
)
def test_refuses(name, value, kind, expected):
    with refuses(kind, f"ms2dtan_config: expected {name}{expected}, got {value!r}."):
        ms2dtan_config(changed({name: value}))


def test_a_data_set_of_one_s_own_is_carried_over():
    found = ms2dtan_config(changed({"DATASET.NAME": "kitchens"}))
    assert found.dataset == "kitchens"
    assert found.preset == ms2dtan_config(EXPERIMENT).preset
    assert found.build_ms2dtan(9).config.encoder_config["clip_channels"] == found.clip_channels


def test_files(tmp_path):
    path = tmp_path / "MS-2D-TAN-G-I3D.yaml"
    path.write_text(json.dumps(EXPERIMENT))  # which is yaml
    found = ms2dtan_config(path)
    assert found.preset.description == "MS-2D-TAN's experiment MS-2D-TAN-G-I3D.yaml"
    assert found.preset.grid == ms2dtan_config(EXPERIMENT).preset.grid
    for content, text in (
        ("a: [1", " is not YAML: while parsing a flow sequence."),
        ("- 1", ": expected fields of an experiment, got list."),
        ("", ": expected fields of an experiment, got NoneType."),
        ("a: !!python/object/apply:os.getcwd []", " is not YAML: could not determine"),
        ("\x00", " is not YAML: unacceptable character"),
        ("DATASET: {}", ": expected the field DATASET.OUTPUT_NUM_CLIPS, got none."),
        ("a: &a [1, 2]\nb: [*a, *a]\n", ": expected YAML without aliases, got an alias."),
        ("# " + "x" * 2**20, ": expected an experiment file of at most 1,048,576 bytes, got more."),
    ):
        path.write_text(content)
        with refuses(ConfigError, f"{path}{text}"):
            ms2dtan_config(path)
    with refuses(FileError, "none.yaml: No such file or directory."):
        ms2dtan_config(tmp_path / "none.yaml")
    with refuses(FileError, f"cannot read {tmp_path}: "):
        ms2dtan_config(tmp_path)


# A checkpoint of the public implementation, its features in HDF5 and its words in GloVe's form


class Published:
    """Files of a user of MS-2D-TAN, made from a recording of its outputs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tensors = recording(name)
        max_pool = name == "ms2dtan-max-pool"
        self.features_per_clip = 2 if max_pool else 1
        self.folder = folder
        self.config = changed(
            {
                "DATASET.NORMALIZE": False,  # the recordings' features are not
                "DATASET.INPUT_NUM_CLIPS": 16 * self.features_per_clip,
                "MODEL.CLIP_MODULE.PARAMS.INPUT_SIZE": self.tensors["features"].shape[2],
                "MODEL.CLIP_MODULE.PARAMS.KERNEL_SIZE": self.features_per_clip,
                "MODEL.CLIP_MODULE.PARAMS.STRIDE": self.features_per_clip,
                "MODEL.FUSION_MODULE.PARAMS.TXT_INPUT_SIZE": self.tensors["words"].shape[2],
                **({"MODEL.PROP_MODULE.NAME": "MultiScalePropMaxPool"} if max_pool else {}),
            }
        )
        self.checkpoint = folder / "epoch0039-0.5664-0.8825.pkl"
        write_checkpoint(self.checkpoint, self.tensors)
        words = {
            f"word{query}x{place}": vector
            for query, vectors in enumerate(self.tensors["words"])
            for place, vector in enumerate(vectors[: int(self.tensors["num_words"][query])])
        }
        self.glove = folder / "glove.txt"
        numbers = {word: " ".join(map(repr, one.tolist())) for word, one in words.items()}
        self.glove.write_text("".join(f"{word} {text}\n" for word, text in numbers.items()))

    def annotations(self) -> AnnotationSet:
        return AnnotationSet(
            Annotation(
                query,
                f"v{query}",
                " ".join(f"word{query}x{place}" for place in range(int(count))),
                float(clips) * self.features_per_clip * 0.64,
                ((0.64, 1.28),),
            )
            for query, (count, clips) in enumerate(
                zip(self.tensors["num_words"], self.tensors["num_clips"], strict=True)
            )
        )

    def write_features(self) -> None:
        folder = self.folder / "data" / "Charades-STA"
        folder.mkdir(parents=True)
        with h5py.File(folder / "i3d.hdf5", "w") as file:
            for query, clips in enumerate(self.tensors["num_clips"]):
                features = self.tensors["features"][query, : int(clips) * self.features_per_clip]
                file[f"v{query}"] = features.double().numpy()


@pytest.mark.parametrize("name", ["ms2dtan-conv", "ms2dtan-max-pool", "ms2dtan-lengths"])
def test_a_checkpoint_answers_from_its_own_files_as_it_did(name, tmp_path):
    published = Published(tmp_path, name)
    published.write_features()
    experiment = ms2dtan_config(published.config)
    model, vocabulary = load_ms2dtan(experiment, published.checkpoint, published.glove)
    assert not model.training
    store = experiment.open_features(tmp_path)
    annotations = published.annotations()
    dataset = make_dataset(experiment, annotations, store, vocabulary, training=False)
    batch = collate_moments([dataset[index] for index in range(3)])
    assert_same(batch.num_clips, published.tensors["num_clips"].long())
    maps = model.predict_maps(batch.features, batch.words, batch.num_words, batch.num_clips)
    grid = model.grid.resized(int(batch.num_clips.max()))
    for scale, found in enumerate(grid.unpack(maps)):
        expected = published.tensors[f"probabilities.{scale}"]
        valid = published.tensors[f"masks.{scale}"].bool()
        torch.testing.assert_close(found, expected * valid, rtol=0, atol=1e-5)
    assert len(evaluate(model, dataset).predictions) == 3


def test_words_of_one_s_own_vocabulary(tmp_path):
    published = Published(tmp_path, "ms2dtan-conv")
    own = Vocabulary(["word1x0", "nowhere"])
    model, vocabulary = load_ms2dtan(
        published.config, published.checkpoint, published.glove, vocabulary=own
    )
    assert vocabulary is own
    rows: Tensor = model.encoder.text_encoder.embedding.weight
    assert_same(rows[2].detach(), published.tensors["words"][1, 0])
    # As for the public code, whose unknown words are zero.
    assert rows[[0, 1, 3]].abs().max() == 0


def test_words_come_once_and_never_as_padding(tmp_path):
    published = Published(tmp_path, "ms2dtan-conv")
    width = published.tensors["words"].shape[2]
    vectors = torch.arange(4.0)[:, None].expand(4, width)
    glove = GloveVectors(("<unk>", "a", "b", "a"), vectors)
    model, vocabulary = load_ms2dtan(published.config, published.checkpoint, glove)
    assert vocabulary.words[2:] == ("a", "b")
    assert model.encoder.text_encoder.embedding.weight[:, 0].tolist() == [0, 0, 1, 2]
    with refuses(ConfigError, f"load_ms2dtan: expected word vectors of {width} numbers, got 1."):
        load_ms2dtan(published.config, published.checkpoint, GloveVectors(("a",), vectors[:1, :1]))


def test_refuses_other_checkpoints(tmp_path):
    published = Published(tmp_path, "ms2dtan-conv")
    path, glove = tmp_path / "other.pkl", published.glove
    with refuses(FileError, f"load_ms2dtan: expected a file {path}, got no such file."):
        load_ms2dtan(published.config, path, glove)
    path.write_bytes(published.checkpoint.read_bytes()[:500])
    with refuses(FileError, f"cannot read {path}: "):
        load_ms2dtan(published.config, path, glove)
    torch.save([1, 2], path)
    with refuses(CheckpointError, f"load_ms2dtan: expected weights by name in {path}, got list."):
        load_ms2dtan(published.config, path, glove)
    torch.save({"epoch": torch.zeros(1)}, path)
    with refuses(CheckpointError, "it has unknown weights: epoch (1 in all)."):
        load_ms2dtan(published.config, path, glove)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    published = Published(tmp_path, "ms2dtan-conv")
    torch.save(Payload(), tmp_path / "bad.pkl")
    with refuses(FileError, "cannot read"):
        load_ms2dtan(published.config, tmp_path / "bad.pkl", published.glove)
    assert not (tmp_path / "harm").exists()


def test_data_are_read_as_the_file_says(tmp_path):
    folder = tmp_path / "data" / "Charades-STA"
    folder.mkdir(parents=True)
    (folder / "Charades_v1_train.csv").write_text("id,actions,length\nAAAAA,,30.0\n")
    (folder / "charades_sta_train.txt").write_text("AAAAA 1.0 2.5##a person sits.\n")
    with h5py.File(folder / "i3d.hdf5", "w") as file:
        file["AAAAA"] = torch.full((47, 5), 3.0).numpy()
    experiment = ms2dtan_config(EXPERIMENT)
    annotations = load_annotations(folder, "train")
    store = experiment.open_features(tmp_path)
    assert store.seconds_per_feature == 0.64
    torch.testing.assert_close(store["AAAAA"].norm(dim=1), torch.ones(47))
    vocabulary = Vocabulary.from_sentences(item.query for item in annotations)
    training = make_dataset(experiment, annotations, store, vocabulary, training=True)
    whole = make_dataset(experiment, annotations, store, vocabulary, training=False)
    assert (training[0].is_window, training[0].features.shape) == (True, (16, 5))
    assert (whole[0].num_clips, whole[0].features.shape) == (47, (48, 5))


def test_an_experiment_of_more_than_its_checkpoint_holds(tmp_path):
    published = Published(tmp_path, "ms2dtan-conv")

    def widened(value):
        if isinstance(value, dict):
            return {name: widened(one) for name, one in value.items()}
        if isinstance(value, list):
            return [widened(one) for one in value]
        return 10**6 if value == 8 and not isinstance(value, bool) else value

    config = {**published.config, "MODEL": widened(published.config["MODEL"])}
    with refuses(CheckpointError, "load_ms2dtan: its configuration declares", "bytes of weights"):
        load_ms2dtan(config, published.checkpoint, published.glove)
