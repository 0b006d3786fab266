"""Custom encoders, decoders and objectives, independent of the library's classes."""

from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import draw, randomize_
from helpers.fields import GRID
from helpers.oracles import sampled_by_calls
from torch import Tensor, nn

from tmapdiff import (
    ActionTimelineFeatures,
    MapGrid,
    MomentDataset,
    MomentLocalizationPipeline,
    Trainer,
    Vocabulary,
)
from tmapdiff.data import SyntheticActivities
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.evaluation import evaluate
from tmapdiff.losses import MapObjective, get_objective
from tmapdiff.models import MapDiffusionDecoder, MomentLocalizer, MultimodalEncoder, register_part
from tmapdiff.schedulers import MapScheduler
from tmapdiff.training import TrainingConfig

ENCODER = {**GRID, "vocabulary_size": 99, "clip_channels": 8, "word_channels": 4, "channels": 8}
DECODER = {**GRID, "feature_channels": 8, "channels": 8, "time_channels": 8, "kernel_sizes": [3]}
MAPS = [draw(2, 8, 8, 4), draw(2, 8, 4, 4)]


class OwnDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grid, self.feature_channels = MapGrid(**GRID), 8
        self.head = nn.Linear(10, 1)

    def forward(self, noisy: Tensor, timestep: Any, features: Any, num_clips: Any = None) -> Tensor:
        cells = torch.cat([one.flatten(2) for one in features], 2).transpose(1, 2)
        time = (timestep / 1000)[:, None, None].expand(*noisy.shape, 1)
        return self.head(torch.cat([cells, noisy[..., None], time], 2))[..., 0]


class OwnEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grid, self.channels = MapGrid(**GRID), 8
        self.words = nn.EmbeddingBag(99, 8, padding_idx=0)

    def forward(
        self, features: Tensor, words: Tensor, num_words: Any, num_clips: Any = None
    ) -> Any:
        video = (features.mean(1) * self.words(words))[..., None, None]
        return [video.expand(-1, -1, *shape) for shape in self.grid.shapes]


class Hinge:
    name = "hinge"

    def target(self, iou: Tensor) -> Tensor:
        return iou**2

    def activation(self, scores: Tensor) -> Tensor:
        return scores.clamp(0, 1)

    def __call__(self, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return ((scores - target).abs() - 0.1).relu()[..., mask].mean()


class HalfDecoder(MapDiffusionDecoder):
    """A subclass that changes what its parent predicts."""

    calls = 0

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        self.calls += 1
        return super().forward(*inputs, **named) / 2


@register_part("tests-named")
class NamedDecoder(OwnDecoder, ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, num_clips: int = 8, feature_channels: int = 8) -> None:
        super().__init__()
        del self.feature_channels  # a field of the configuration is enough


register_part("tests-half")(HalfDecoder)
square = MapObjective("square", torch.square, torch.relu, lambda one, other: (one - other) ** 2)
hinge = register_part("hinge")(Hinge())

CASES: dict[str, Any] = {
    "decoder": lambda: (MultimodalEncoder(**ENCODER), OwnDecoder(), "mse-full"),
    "encoder": lambda: (OwnEncoder(), MapDiffusionDecoder(**DECODER), "mse-full"),
    "objective": lambda: (MultimodalEncoder(**ENCODER), MapDiffusionDecoder(**DECODER), square),
    "all": lambda: (OwnEncoder(), OwnDecoder(), hinge),
    "subclass": lambda: (MultimodalEncoder(**ENCODER), HalfDecoder(**DECODER), "bce-full"),
}
NOT_SAVED = {"decoder": "OwnDecoder", "encoder": "OwnEncoder", "objective": "square",
             "all": "OwnEncoder"}  # fmt: skip


def make(case: str, **fields: Any) -> MomentLocalizer:
    torch.manual_seed(0)
    encoder, decoder, objective = CASES[case]()
    model = MomentLocalizer.from_parts(encoder, decoder, objective=objective, **fields)
    return randomize_(model).eval()


@pytest.fixture(scope="module")
def dataset() -> MomentDataset:
    data = SyntheticActivities(num_videos=2)
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes, feature_dim=8)
    words = Vocabulary.from_sentences(item.query for item in data.annotations)
    return MomentDataset(data.annotations, store, words, num_clips=8)


@pytest.mark.parametrize(
    "case", ["all", *(pytest.param(one, marks=pytest.mark.train) for one in CASES if one != "all")]
)
def test_trains_resumes_and_is_evaluated(case, dataset, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)

    def trainer(epochs: int, name: str = "run") -> Trainer:
        config = TrainingConfig(epochs=epochs, batch_size=max(2, len(dataset)), heat_map_every=9)
        return Trainer(
            make(case), dataset, config, tmp_path / name, device="cpu", show_progress=False
        )

    trainer(1).train()
    resumed = trainer(2).resume()
    assert resumed.progress.step == 1
    resumed.train()
    assert resumed.progress.step == 2
    before = make(case).state_dict()
    after = resumed.raw_model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    found = evaluate(resumed.ema_model, dataset, seed=1)
    assert 0 <= found.metrics["mIoU"] <= 100


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("case", CASES)
def test_sampling_is_the_loop_over_calls(case, solver):
    model = make(case, num_inference_steps=3)
    model.scheduler = MapScheduler(solver=solver)
    noise = draw(2, model.grid.num_cells)
    expected = sampled_by_calls(model, MAPS, noise, 3)
    assert_close(model.sample_maps(MAPS, noise=noise), expected)
    assert float(expected.std()) > 1e-3


def test_a_subclass_and_what_is_hooked_are_sampled_by_calls_others_by_a_prepared_run(monkeypatch):
    subclass, parent = make("subclass", num_inference_steps=3), make("encoder")
    subclass.sample_maps(MAPS)
    assert subclass.decoder.calls == 3
    prepare, prepared, called = parent.decoder.prepare, [], []
    monkeypatch.setattr(
        parent.decoder, "prepare", lambda *given: prepared.append(given) or prepare(*given)
    )
    noise = draw(2, parent.grid.num_cells)
    expected = parent.sample_maps(MAPS, noise=noise, num_inference_steps=3)
    assert len(prepared) == 1
    parent.decoder.register_forward_hook(lambda *given: called.append(given))
    assert_close(parent.sample_maps(MAPS, noise=noise, num_inference_steps=3), expected)
    assert len(called) == 3


@pytest.mark.compile
def test_a_compiled_decoder_is_what_sampling_calls():
    model = make("encoder", num_inference_steps=3)
    noise = draw(2, model.grid.num_cells)
    prepared = model.sample_maps(MAPS, noise=noise)
    compiled = []
    model.decoder.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    assert_close(model.sample_maps(MAPS, noise=noise), prepared)
    assert compiled


def test_regressors_of_own_parts_answer_too():
    model = make("all", deterministic=True)
    features, words = draw(2, 8, 8), torch.tensor([[1, 2], [3, 0]])
    found = model.localize(features, words, torch.tensor([2, 1]), torch.ones(2))
    assert found.ranked.moments.shape == (2, 5, 2)
    with refuses(ConfigError, "expected a localizer with a MultimodalEncoder, got OwnEncoder."):
        MomentLocalizationPipeline(model, Vocabulary(["a"]))
    model.check_values(features, words, torch.tensor([[0.0, 1.0]] * 2), torch.ones(2))
    assert model._compilable_parts() == [model.decoder]


@pytest.mark.parametrize("case", NOT_SAVED)
def test_what_a_file_cannot_name_is_not_saved(case, tmp_path):
    with refuses(ArgumentError, f"unregistered {NOT_SAVED[case]}. Register it with"):
        make(case).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("objective", [hinge, "l1-full"])
@pytest.mark.parametrize("decoder", [NamedDecoder, lambda: HalfDecoder(**DECODER)])
def test_registered_parts_are_saved(decoder, objective, tmp_path):
    encoder = MultimodalEncoder(**ENCODER)
    scheduler = MapScheduler(signal_scale=0.2)
    model = MomentLocalizer.from_parts(encoder, decoder(), scheduler, objective=objective)
    randomize_(model).eval().save_pretrained(tmp_path)
    loaded = MomentLocalizer.from_pretrained(tmp_path)
    assert loaded.scheduler.config.signal_scale == 0.2
    assert type(loaded.decoder) is type(model.decoder)
    assert loaded.objective is model.objective
    noise = draw(2, model.grid.num_cells)
    assert_same(loaded.sample_maps(MAPS, noise=noise), model.sample_maps(MAPS, noise=noise))


class Undecorated(NamedDecoder):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain


class AnyArguments(NamedDecoder):
    @register_to_config
    def __init__(self, **others: Any) -> None:
        super().__init__(**others)


class Scaled(NamedDecoder):
    @register_to_config
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain


class ScaledTwice(Scaled):
    @register_to_config
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(gain=2 * gain)


class OneSize(MapDiffusionDecoder):
    @register_to_config
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(**DECODER)


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        (Undecorated, {"gain": 3.0}, "parts that can be saved, got tests-part, whose configurat"),
        (AnyArguments, {"num_clips": 8}, "parts that can be saved, got tests-part, whose confi"),
        (ScaledTwice, {"gain": 3.0}, "a part that decoder_config.gain = 6.0 rebuilds, got one wi"),
        (OneSize, {"gain": 3.0}, "only known configuration fields, got 'num_clips'. Fields: gain."),
        (Scaled, {"gain": 3.0}, None),
    ],
)
def test_parts_that_their_configuration_does_not_rebuild_are_not_saved(
    kind, fields, told, tmp_path
):
    decoder = register_part("tests-part")(kind)(**fields)
    model = MomentLocalizer.from_parts(MultimodalEncoder(**ENCODER), decoder)
    if told is None:
        model.save_pretrained(tmp_path / "model")
        assert MomentLocalizer.from_pretrained(tmp_path / "model").decoder.gain == 3.0
        return
    with refuses(ArgumentError, told):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Margin(nn.Module):
    name, target, activation = "margin", Hinge.target, Hinge.activation

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(0.1))

    def forward(self, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return ((scores - target).abs() - self.margin).square()[..., mask].mean()


def test_objectives_that_learn_belong_to_one_model(tmp_path):
    registered = register_part("margin")(Margin())
    parts = MultimodalEncoder(**ENCODER), MapDiffusionDecoder(**DECODER)
    model = MomentLocalizer.from_parts(*parts, objective=registered)
    assert model.objective is registered
    registered.margin.data += 1
    model.save_pretrained(tmp_path)
    fresh = MomentLocalizer(ENCODER, DECODER, objective="margin")
    one, other = (MomentLocalizer.from_pretrained(tmp_path) for _ in range(2))
    one.train()
    one.objective.margin.data += 1
    found = [float(each.objective.margin.detach()) for each in (fresh, one, other, model)]
    assert found == pytest.approx([0.1, 2.1, 1.1, 1.1])
    assert not other.objective.training
    features, words = draw(2, 8, 8), torch.tensor([[1, 2], [3, 0]])
    given = features, words, torch.tensor([2, 1]), torch.tensor([[0.0, 4.0]] * 2), torch.ones(2)
    one.loss(*given).backward()
    assert one.objective.margin.grad is not None
    assert one.localize(features, words, given[2], torch.ones(2)).ranked.moments.shape[2] == 2


def test_parts_that_are_exchanged_later_are_saved(tmp_path):
    model = make("encoder")
    model.encoder = randomize_(MultimodalEncoder(**ENCODER)).eval()
    model.decoder = randomize_(MapDiffusionDecoder(**{**DECODER, "channels": 16})).eval()
    model.objective = get_objective("bce-rescaled")
    model.save_pretrained(tmp_path)
    loaded = MomentLocalizer.from_pretrained(tmp_path)
    assert loaded.config.decoder_config["channels"] == 16
    assert loaded.objective.name == "bce-rescaled"
    model.objective = square
    with refuses(ArgumentError, "unregistered square"):
        model.save_pretrained(tmp_path)


def test_refuses_parts_that_lack_something(tmp_path):
    encoder, decoder = OwnEncoder(), OwnDecoder()
    del encoder.channels
    text = "MomentLocalizer: expected a part with grid, channels, got a OwnEncoder without channels"
    with refuses(ConfigError, text):
        MomentLocalizer.from_parts(encoder, decoder)
    with refuses(ConfigError, "got a Linear without grid, feature_channels."):
        MomentLocalizer.from_parts(OwnEncoder(), nn.Linear(1, 1))
    decoder.feature_channels = 9
    with refuses(ConfigError, "feature_channels to be the encoder's channels, 8, got 9."):
        MomentLocalizer.from_parts(OwnEncoder(), decoder)
    with refuses(ConfigError, "got a function without name, target, activation."):
        MomentLocalizer(ENCODER, DECODER, objective=lambda *given: 0)
    with refuses(ConfigError, "expected a registered part, got 'nobody'. Import the module"):
        MomentLocalizer(ENCODER, {"part": "nobody"})
    with refuses(ArgumentError, "register_part('own'): expected a class with a configuration"):
        register_part("own")(OwnDecoder)
    for name, part in (("other", hinge), ("mse-full", get_objective("mse-full")), ("own", 3)):
        with refuses(ArgumentError, "or an objective of that name, got"):
            register_part(name)(part)
