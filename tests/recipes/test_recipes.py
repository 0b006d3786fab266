"""Evaluation and pipelines of recipes; training is tested with the examples."""

import json
import re
from dataclasses import replace

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.text_encoders import tiny_text_encoder
from matplotlib.figure import Figure

from tmapdiff import PRESETS, MomentLocalizationPipeline, Vocabulary
from tmapdiff.data import tokenize
from tmapdiff.data.sampling import torch_generator_for
from tmapdiff.errors import ConfigError
from tmapdiff.evaluation import draw_queries
from tmapdiff.models import MS2DTAN, MomentLocalizer
from tmapdiff.recipes import (
    LocalizationData,
    Recipe,
    SamplingOptions,
    TrainedLocalizer,
    evaluate_control,
    evaluate_localizer,
    make_pipeline_test_set,
)
from tmapdiff.recipes.training import SYNTHETIC_EPOCHS
from tmapdiff.video import VideoFeatures

VOCABULARY = Vocabulary(["a", "dog"])


@pytest.fixture(scope="module")
def data():
    return LocalizationData.make_up().limit(12)


def test_a_recipe_changes_what_it_names_and_nothing_else(data):
    recipe = Recipe("nano", seed=3, training={"batch_size": 8, "epochs": None})
    config, preset = recipe.training_config(data), PRESETS["nano"].training
    assert (config.batch_size, config.seed, config.epochs) == (8, 3, SYNTHETIC_EPOCHS)
    assert config.learning_rate == preset.learning_rate
    assert Recipe("nano", training={"epochs": 2}).training_config(data).epochs == 2
    model = Recipe("nano", objective="bce-full", decoder="cnn-mul").build(VOCABULARY, 5)
    assert model.objective.name == "bce-full"
    assert model.config.decoder_config["conditioning"] == "multiply"
    assert model.encoder.config.clip_channels == 5


@pytest.mark.parametrize(
    ("kind", "made", "generative"),
    [
        ("diffusion", MomentLocalizer, True),
        ("deterministic", MomentLocalizer, False),
        ("ms2dtan", MS2DTAN, False),
    ],
)
def test_each_model_has_the_weights_of_its_seed(kind, made, generative):
    lines = []
    model = Recipe("nano", kind, seed=1).build(VOCABULARY, 5, say=lines.append)
    assert isinstance(model, made)
    assert model.is_generative == generative
    assert lines == [f"model: preset nano, {model.num_parameters() / 1e6:.2f} million parameters"]
    again = Recipe("nano", kind, seed=1).build(VOCABULARY, 5).state_dict()
    other = Recipe("nano", kind, seed=2).build(VOCABULARY, 5).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
    assert any(not torch.equal(weight, other[name]) for name, weight in again.items())


def test_default_folders_tell_runs_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.h5").touch()
    given = {"train": tmp_path / "a", "features": ["a/clip.h5"], "limit": None}
    recipe = Recipe("nano", training={"epochs": 5, "learning_rate": 1e-3})
    places = (
        {}, {"train": tmp_path / "b"}, {"features": ["b/clip.h5"]}, {"limit": 9},
        {"features": ["a/clip.h5", "b/clip.h5"]},
    )  # fmt: skip
    names = [str(recipe.default_folder("charades", {**given, **change})) for change in places]
    names.append(str(recipe.default_folder("tacos", given)))
    names.append(str(recipe.default_folder("charades", given, "prior")))
    for change in (
        {"preset": "tiny"}, {"model": "ms2dtan"}, {"decoder": "cnn-mul"}, {"objective": "bce-full"},
        {"glove": "glove.txt"}, {"clip_seconds": 2.0}, {"seed": 1},
        {"training": {"epochs": 6, "learning_rate": 1e-3}},
        {"training": {"epochs": 5, "learning_rate": 2e-3}},
        {"training": {**recipe.training, "batch_size": 8}},
        {"training": {**recipe.training, "mixed_precision": "bf16"}},
    ):  # fmt: skip
        names.append(str(replace(recipe, **change).default_folder("charades", given)))
    assert len(set(names)) == len(names)
    assert re.fullmatch(r"runs/charades-nano-0-[0-9a-f]{8}", names[0])
    long = {**given, "features": [f"{'動' * 60}{n}.h5" for n in range(2)]}
    for sources in (long, {**long, "features": long["features"][::-1]}):
        names.append(str(recipe.default_folder("charades", sources)))
        (tmp_path / names[-1]).mkdir(parents=True)  # fails if names are too long or equal
    # Settings that do not affect results, and another spelling of a path, give the same run.
    same = replace(recipe, training={**recipe.training, "num_workers": 2, "compile": False})
    assert str(same.default_folder("charades", {**given, "features": ["./a/clip.h5"]})) == names[0]
    assert str(Recipe("nano").default_folder("synthetic", {"limit": None})) == (
        "runs/synthetic-nano-0"
    )


def test_words_of_glove_are_loaded(tmp_path):
    (tmp_path / "glove.txt").write_text("a 1 2 3\ncat 4 5 6\n")
    lines = []
    recipe = Recipe("nano", glove=tmp_path / "glove.txt")
    model = recipe.build(VOCABULARY, 5, say=lines.append)
    assert lines[0] == "GloVe: 1 of 4 words found"
    words = model.encoder.text_encoder.embedding.weight
    assert words[2].tolist() == [1.0, 2.0, 3.0]
    assert not words.requires_grad


def test_unknown_names_are_refused():
    for fields, text in (
        ({"preset": "huge"}, "expected preset to be one of nano"),
        ({"model": "prior"}, "expected model to be one of diffusion, deterministic, ms2dtan"),
        ({"decoder": "rnn"}, "expected decoder to be one of transformer-xattn-ss"),
        ({"decoder": "cnn-mul", "model": "ms2dtan"}, "no decoder for model ms2dtan, which does"),
        ({"objective": "bce-full", "model": "similarity"}, "no objective for model similarity"),
    ):
        with refuses(ConfigError, text):
            Recipe(**fields)


def test_controls_bracket_every_model(data):
    recipe = Recipe("nano")
    prior, oracle = (evaluate_control(name, recipe, data) for name in ("prior", "oracle"))
    assert oracle.rows["oracle"]["Rank1@0.5"] == 100
    assert prior.rows["prior"]["mIoU"] < oracle.rows["oracle"]["mIoU"]
    assert prior.summary() == {**prior.rows["prior"], "rows": prior.rows}
    data = replace(data, protocol="qvhighlights")
    prior, oracle = (
        evaluate_control(name, recipe, data).rows[name] for name in ("prior", "oracle")
    )
    assert prior["MR-full-mAP"] < oracle["MR-full-mAP"]
    with refuses(ConfigError, "expected control to be one of prior, oracle, got 'best'."):
        evaluate_control("best", recipe, data)


def test_results_are_written_with_what_they_come_from(data, tmp_path):
    data = data.limit(2)  # each is drawn
    vocabulary = Vocabulary.from_sentences(item.query for item in data.train)
    model = Recipe("nano").build(vocabulary, data.store.feature_dim).eval()
    test_set = data.make_test_set(model.grid, vocabulary)
    results = evaluate_localizer(model, test_set, SamplingOptions((1, 2)), label="raw, ")
    assert list(results.rows) == ["raw, steps 1", "raw, steps 2"]
    names = results.write(tmp_path, {"seed": 7})
    assert names == ("metrics.json", "predictions.jsonl", "maps.png")
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert (summary["seed"], summary["num_inference_steps"]) == (7, 1)
    assert summary["mIoU"] == results.rows["raw, steps 1"]["mIoU"]
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == len(data.test)
    pipeline = MomentLocalizationPipeline(model, vocabulary)
    same = evaluate_localizer(model, make_pipeline_test_set(pipeline, data), SamplingOptions((1,)))
    assert same.evaluation.metrics == results.rows["raw, steps 1"]


def moved(model):
    """Move the weights, as last layers are 0 before training."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def test_each_sampling_option_reaches_the_answers(data):
    vocabulary = Vocabulary.from_sentences(item.query for item in data.train)
    model = moved(Recipe("nano").build(vocabulary, data.store.feature_dim)).eval()
    test_set = data.limit(3).make_test_set(model.grid, vocabulary)
    found = [
        evaluate_localizer(model, test_set, SamplingOptions((1,), **fields)).evaluation.predictions
        for fields in ({}, {"seed": 1}, {"num_samples": 2}, {"ranking": "expected-hits"})
    ]
    assert len(set(found)) == 4


@pytest.mark.parametrize("fields", [{"ranking": "expected-hits"}, {"answer": "set"}])
def test_the_drawn_answers_are_those_in_the_file(data, monkeypatch, tmp_path, fields):
    drawn = []

    def draw(*args, **options):
        drawn.append(draw_queries(*args, **options))
        return Figure((1, 1))  # saving the other takes long

    monkeypatch.setattr("tmapdiff.recipes.evaluation.draw_queries", draw)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.train)
    model = moved(Recipe("nano").build(vocabulary, data.store.feature_dim)).eval()
    test_set = data.limit(1).make_test_set(model.grid, vocabulary)
    results = evaluate_localizer(model, test_set, SamplingOptions((1,), 2, **fields))
    results.write(tmp_path, {})
    (panel,) = (ax for ax in drawn[0].subfigs[0].axes if ax.get_label() == "moments")
    scores = [window[2] for window in results.evaluation.predictions[0].windows]
    expected = [f"{rank}  ({score:.2f})" for rank, score in enumerate(scores, start=1)]
    assert [text.get_text() for text in panel.get_yticklabels()[1:-1]] == expected


def as_the_pipeline_answers(pipeline, data):
    """Compare an evaluation with calls of the pipeline, which should give the same answers."""
    moved(pipeline.localizer)
    data = data.limit(6)
    test_set = make_pipeline_test_set(pipeline, data)
    found = evaluate_localizer(pipeline.localizer, test_set, SamplingOptions((2,), seed=3))
    for position, (item, one) in enumerate(
        zip(data.test, found.evaluation.predictions, strict=True)
    ):
        video = VideoFeatures(
            data.store[item.video_id], data.store.seconds_per_feature, item.duration
        )
        generator = torch_generator_for(3, position)
        output = pipeline(video, item.query, num_inference_steps=2, generator=generator)
        expected = [[moment.start, moment.end, moment.score] for moment in output.moments[0]]
        assert_close(torch.tensor(one.windows), torch.tensor(expected))


def test_sentences_are_encoded_by_the_pipeline_s_own_text_encoder(data, monkeypatch):
    monkeypatch.setattr("tmapdiff.recipes.data._ENCODED_AT_ONCE", 5)
    text = tiny_text_encoder(sorted({word for item in data.test for word in tokenize(item.query)}))
    model = PRESETS["nano"].build(
        vocabulary_size=None,
        clip_channels=data.store.feature_dim,
        encoder={"text_channels": text.token_channels},
    )
    as_the_pipeline_answers(MomentLocalizationPipeline(model, text_encoder=text), data)


def test_models_that_average_several_features_a_clip(data):
    vocabulary = Vocabulary.from_sentences(item.query for item in data.test)
    model = PRESETS["nano"].build(
        vocabulary_size=len(vocabulary),
        clip_channels=data.store.feature_dim,
        encoder={"features_per_clip": 3},
    )
    as_the_pipeline_answers(MomentLocalizationPipeline(model, vocabulary), data)


def test_what_is_fitted_makes_way_for_itself_as_a_training_does(data, tmp_path):
    torch.manual_seed(0)
    queries = {item.query for item in (*data.train, *data.test)}
    words = {query: torch.randn(1, data.store.feature_dim) for query in sorted(queries)}
    few = replace(data, word_features=words).limit(4)
    recipe = Recipe("aligned", model="similarity")
    other = tmp_path / "checkpoints" / "epoch-0001"
    other.mkdir(parents=True)
    found = recipe.train(few, tmp_path, overwrite=True)
    assert not other.exists()
    again = recipe.train(few, tmp_path, resume=True)
    assert torch.equal(found.model.weight, again.model.weight)


def test_pipelines_that_do_not_fit_the_data_are_refused(data):
    model = Recipe("nano").build(VOCABULARY, 5)
    pipeline = MomentLocalizationPipeline(model, VOCABULARY)
    with refuses(ConfigError, "expected features of 5 channels, as in training, got 256 from"):
        make_pipeline_test_set(pipeline, data)
    didemo = LocalizationData.make_up("didemo")
    with refuses(ConfigError, "Recipe: expected no clip_seconds for DiDeMo, whose clips are its"):
        Recipe("nano", clip_seconds=3).set_options(didemo)
    pipeline = MomentLocalizationPipeline(Recipe("nano").build(VOCABULARY, 256), VOCABULARY)
    with refuses(ConfigError, "expected a pipeline with DiDeMo's 21 moments"):
        make_pipeline_test_set(pipeline, didemo)


def test_pipelines_keep_the_durations_that_they_were_trained_on(data):
    vocabulary = Vocabulary.from_sentences(item.query for item in (*data.train, *data.test))
    model = Recipe("nano").build(vocabulary, data.store.feature_dim)
    train = data.make_train_set(model.grid, vocabulary)
    test = data.make_test_set(model.grid, vocabulary)
    pipeline = TrainedLocalizer(model, model, train, test, None).make_pipeline()
    lasted = sorted(item.duration for item in data.train)
    assert pipeline.config.durations[::2] == (lasted[0], lasted[-1])
    assert lasted[0] < pipeline.config.durations[1] < lasted[-1]
    pipeline = MomentLocalizationPipeline(model, vocabulary, durations=[1.0])
    videos = len({item.video_id for item in data.test})
    with pytest.warns(UserWarning, match=f"{videos} videos are more than twice as long as the"):
        make_pipeline_test_set(pipeline, data)
