"""Random weights throughout: there is no network."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.text_encoders import save_two_towers, tiny_text_encoder
from packaging.version import Version

from tmapdiff import MultimodalEncoder
from tmapdiff.errors import ArgumentError, CheckpointError, MissingDependencyError
from tmapdiff.models import TransformersTextEncoder

transformers = pytest.importorskip("transformers")

WORDS = ["a", "person", "opens", "the", "door", "walks"]
SENTENCES = ["a person opens the door", "the person walks", "a door"]


def make_encoder(kind="bert", **options):
    encoder = tiny_text_encoder(WORDS, kind=kind, ends=True)
    return TransformersTextEncoder(encoder.model, encoder.tokenizer, **options)


def ids_of(sentence):
    return torch.tensor([[1, *(4 + WORDS.index(word) for word in sentence.split()), 2]])


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_each_sentence_is_as_if_alone(kind):
    encoder = make_encoder(kind)
    features = encoder(SENTENCES)
    assert features.num_tokens.tolist() == [7, 5, 4]
    assert features.tokens.shape == (3, 7, encoder.token_channels)
    for index, sentence in enumerate(SENTENCES):
        with torch.no_grad():
            alone = encoder.model(ids_of(sentence))
        length = int(features.num_tokens[index])
        assert_close(features.tokens[index, :length], alone.last_hidden_state[0])
        assert not features.tokens[index, length:].any()
        expected = alone.text_embeds[0] if kind == "clip" else alone.last_hidden_state[0].mean(0)
        assert_close(features.sentences[index], expected)
    assert encoder.sentence_channels == (8 if kind == "clip" else 16)


@pytest.mark.parametrize("kind", ["FNet", "Funnel", "ConvBert"])
def test_each_sentence_is_as_if_alone_where_models_read_the_padding(kind):
    sizes = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 16, "embedding_size": 16}
    sizes |= {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "block_sizes": [1, 1]}
    sizes |= {"num_attention_heads": 2} | ({} if kind == "Funnel" else {"num_hidden_layers": 1})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    features = TransformersTextEncoder(model, make_encoder().tokenizer)(SENTENCES)
    for index, sentence in enumerate(SENTENCES):
        with torch.no_grad():
            alone = model(ids_of(sentence)).last_hidden_state[0]
        assert_close(features.sentences[index], alone.mean(0))
        assert_close(features.tokens[index, : len(alone)], alone)


@pytest.mark.parametrize(("kind", "length"), [("Roberta", 10), ("MPNet", 10), ("Bert", 12)])
def test_sentences_are_as_long_as_the_model_has_positions_for(kind, length):
    # RoBERTa and its kin number them from the one after that of padding.
    sizes = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 16, "pad_token_id": 1}
    sizes |= {"num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 12}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    encoder = TransformersTextEncoder(model, make_encoder().tokenizer)
    with pytest.warns(UserWarning, match=f"at most {length} tokens, got 1 longer ones"):
        assert encoder(["door " * 50]).num_tokens.tolist() == [length]


def test_xlnet_has_no_longest_sentence():
    config = transformers.XLNetConfig(vocab_size=10, d_model=16, n_layer=1, n_head=2, d_inner=16)
    encoder = TransformersTextEncoder(transformers.XLNetModel(config), make_encoder().tokenizer)
    assert encoder(["door " * 50]).num_tokens.tolist() == [52]


def test_siglip_reads_the_padding_that_it_learned_with():
    encoder = make_encoder("siglip")
    features = encoder(SENTENCES)
    for index, sentence in enumerate(SENTENCES):
        ids = torch.nn.functional.pad(ids_of(sentence), (0, 12))[:, :12]
        with torch.no_grad():
            alone = encoder.model(ids)
        length = len(sentence.split()) + 2
        assert features.num_tokens[index] == length
        assert_close(features.sentences[index], alone.pooler_output[0])
        assert_close(features.tokens[index, :length], alone.last_hidden_state[0, :length])


def test_siglip_learned_small_letters():
    encoder = make_encoder("siglip")
    capitals = encoder([SENTENCES[0].title()])
    assert_close(capitals.sentences, encoder(SENTENCES[:1]).sentences)


def test_batches_and_order_do_not_matter():
    encoder = make_encoder(batch_size=2)
    encoder.cache_size = 0
    features = encoder([*SENTENCES, SENTENCES[0]])
    assert torch.equal(features.sentences[3], features.sentences[0])
    swapped = encoder(SENTENCES[::-1])
    assert_close(swapped.sentences.flip(0), features.sentences[:3])
    assert_close(swapped.tokens.flip(0), features.tokens[:3])


def test_sentences_are_computed_once_while_they_are_kept():
    encoder = make_encoder()
    encoder.cache_size = 2
    seen = []
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    first = encoder(SENTENCES[:2])
    again = encoder(SENTENCES[:2])
    assert seen == [2]
    assert torch.equal(first.tokens, again.tokens)
    # Results belong to the caller.
    again.sentences.zero_()
    again.tokens.zero_()
    assert torch.equal(encoder(SENTENCES[:2]).tokens, first.tokens)
    encoder(SENTENCES[:1])
    encoder(SENTENCES[2:])  # evicts the least recently used one
    assert seen == [2, 1]
    encoder(SENTENCES[:1])
    assert seen == [2, 1]
    encoder(SENTENCES[1:2])
    assert seen == [2, 1, 1]


def test_sentences_are_computed_again_with_other_weights():
    encoder, other = make_encoder(), make_encoder()
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(0.5)
    before, expected = encoder(SENTENCES), other(SENTENCES)
    encoder.load_state_dict(other.state_dict())
    after = encoder(SENTENCES)
    assert not torch.equal(after.sentences, before.sentences)
    assert torch.equal(after.sentences, expected.sentences)
    wide = encoder.double()(SENTENCES)
    assert_close(wide.sentences, expected.sentences)
    assert not torch.equal(wide.sentences, expected.sentences)


def test_it_is_frozen():
    encoder = make_encoder()
    before = encoder(SENTENCES).sentences
    torch.nn.Sequential(encoder).train()
    encoder._cache.clear()
    assert torch.equal(encoder(SENTENCES).sentences, before)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not before.requires_grad


@pytest.mark.parametrize("kind", ["bert", "clip", "siglip"])
def test_long_sentences_are_cut_with_a_warning_and_none_is_no_trouble(kind):
    sentences = ["door " * 50, "door " * 10, "the " + "door " * 10]
    text = r"at most 12 tokens, got 2 longer ones, whose ends are ignored: 'door door "
    with pytest.warns(UserWarning, match=text):
        features = make_encoder(kind)(sentences)
    assert features.num_tokens.tolist() == [12, 12, 12]
    empty = make_encoder("clip")([])
    assert (empty.sentences.shape, empty.tokens.shape[0]) == ((0, 8), 0)


@pytest.mark.parametrize(
    ("pooling", "more", "told"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [], None),
        ({"pooling_mode": "mean"}, [{"type": "x.Normalize", "path": "2_Normalize"}], None),
        ({"pooling_mode_cls_token": True}, [], "got pooling_mode_cls_token. Answers"),
        ({"pooling_mode": "cls"}, [], "got cls. Answers"),
        ({"pooling_mode_mean_tokens": True}, [{"type": "x.Dense", "path": "2"}], "got Dense."),
        (None, [], None),
    ],
)
def test_models_whose_sentence_vector_is_not_the_mean(tmp_path, pooling, more, told):
    make_encoder().save_pretrained(tmp_path)
    first = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "modules.json").write_text(json.dumps([*first, *more]))
    with pytest.warns(UserWarning, match=told) if told else nullcontext():
        TransformersTextEncoder(tmp_path)


WANTS_SENTENCEPIECE = pytest.mark.skipif(
    Version("5.0") <= Version(transformers.__version__) < Version("5.3"),
    reason="transformers 5.0 to 5.2 load no tokenizer beside SigLIP without sentencepiece",
)


@pytest.mark.parametrize("kind", ["clip", pytest.param("siglip", marks=WANTS_SENTENCEPIECE)])
def test_text_tower_of_a_whole_model_in_a_folder(tmp_path, kind):
    whole = save_two_towers(tmp_path, WORDS, kind)
    encoder = TransformersTextEncoder(tmp_path)
    ids = ids_of(SENTENCES[0])
    if kind == "siglip":
        ids = torch.nn.functional.pad(ids, (0, 12))[:, :12]
    with torch.no_grad():
        expected = whole.get_text_features(input_ids=ids)
    expected = getattr(expected, "pooler_output", expected)
    assert_close(encoder(SENTENCES[:1]).sentences, expected)
    # A model without a separate text class: its text features are requested.
    again = TransformersTextEncoder(whole, encoder.tokenizer)
    assert_close(again(SENTENCES).sentences, encoder(SENTENCES).sentences)
    assert again.sentence_channels == encoder.sentence_channels
    other = torch.nn.Linear(2, 2)
    other.config = transformers.PretrainedConfig()
    with refuses(ArgumentError, "expected a text model, got Linear."):
        TransformersTextEncoder(other, encoder.tokenizer)


def test_tokens_take_the_place_of_words():
    text = make_encoder("clip")
    model = MultimodalEncoder(
        16, 4, 2, None, 6, word_channels=8, channels=8, text_channels=text.token_channels
    )
    features = text(SENTENCES)
    maps = model(torch.randn(3, 16, 6), features.tokens, features.num_tokens)
    assert [tuple(one.shape) for one in maps] == [(3, 8, 16, 4), (3, 8, 8, 4)]
    sentences = MultimodalEncoder(
        16, 4, 2, None, 6, word_channels=8, channels=8, text_channels=text.sentence_channels
    )
    one = torch.ones(3, dtype=torch.long)
    maps = sentences(torch.randn(3, 16, 6), features.sentences[:, None], one)
    assert maps[0].shape == (3, 8, 16, 4)


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"TransformersTextEncoder: cannot load no-one/nothing: \S"
    ) as caught:
        TransformersTextEncoder("no-one/nothing")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with refuses(CheckpointError, f"TransformersTextEncoder: cannot load {tmp_path}: "):
        TransformersTextEncoder(tmp_path)
    make_encoder().model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    kept = {k: v for k, v in load_file(weights).items() if "layer.0" not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    with refuses(CheckpointError, "it has no weights encoder.layer.0."):
        TransformersTextEncoder(tmp_path)


@pytest.mark.parametrize("before", ["bert in shards", "a CLIP tower", "with added tokens"])
def test_what_was_saved_last_is_loaded(tmp_path, before):
    folder = tmp_path / "saved"
    if before == "bert in shards":
        encoder = make_encoder()
        encoder.tokenizer.chat_template = "{{ messages }}"
        encoder.save_pretrained(folder)
        encoder.model.save_pretrained(folder, max_shard_size="2KB")
        assert (folder / "model.safetensors.index.json").exists()
    elif before == "a CLIP tower":
        make_encoder("clip").save_pretrained(folder)
    else:
        make_encoder().save_pretrained(folder)
        # Files of other kinds of tokenizers, and of earlier releases.
        for name in ("added_tokens.json", "special_tokens_map.json", "vocab.txt", "spiece.model"):
            (folder / name).write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(b"")
    for name in ("README.md", "model_card.json"):
        (folder / name).write_text("mine")
    last = make_encoder()
    last.model.embeddings.word_embeddings.weight.data += 1
    last.save_pretrained(folder)
    last.save_pretrained(tmp_path / "alone")
    saved, alone = ({one.name for one in place.iterdir()} for place in (folder, tmp_path / "alone"))
    assert saved == alone | {"README.md", "model_card.json"}
    again = TransformersTextEncoder(folder)
    assert_close(again(["a door"]).tokens, last(["a door"]).tokens)


def test_refusals(monkeypatch):
    encoder = make_encoder()
    for wrong, got in (([" "], "' ' at 0"), (["a", ""], "'' at 1"), (["a", 3], "3 at 1")):
        with refuses(ArgumentError, f"expected sentences that are not blank, got {got}."):
            encoder(wrong)
    with refuses(ArgumentError, "expected a list of sentences, got 'a door'."):
        encoder("a door")
    with refuses(ArgumentError, "expected a tokenizer with the model, got none."):
        TransformersTextEncoder(encoder.model)
    encoder.tokenizer.pad_token = None
    with refuses(ArgumentError, "expected a tokenizer with a pad_token, got none."):
        TransformersTextEncoder(encoder.model, encoder.tokenizer)
    with refuses(ArgumentError, "expected batch_size to be an integer >= 1, got 0."):
        make_encoder(batch_size=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refuses(MissingDependencyError, "pip install -e '.[text]'"):
        TransformersTextEncoder("x")


def test_a_model_of_one_vector_per_token_in_place_of_the_sentence_is_refused():
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"hidden_size": 16, "vocab_size": 10}
    config = transformers.FlavaConfig(text_config=sizes, hidden_size=16, projection_dim=8)
    config.image_config.num_hidden_layers = config.multimodal_config.num_hidden_layers = 0
    with refuses(ArgumentError, "expected a model of one vector per sentence, got (3, 8)."):
        TransformersTextEncoder(transformers.FlavaModel(config), make_encoder().tokenizer)


def test_a_tokenizer_of_more_words_than_the_model_knows(tmp_path):
    encoder = make_encoder()
    encoder.save_pretrained(tmp_path)
    encoder.model.config.vocab_size = 8
    transformers.BertModel(encoder.model.config).save_pretrained(tmp_path)
    expected = "TransformersTextEncoder: expected a tokenizer with the model's 8 tokens, got one "
    with refuses(CheckpointError, expected):
        TransformersTextEncoder(tmp_path)


@pytest.mark.parametrize(
    ("length", "told"), [("many", "encode with"), (-1, "tokenize 'a'"), (0.5, "tokenize 'a'")]
)
def test_a_tokenizer_that_cannot_be_used(tmp_path, length, told):
    make_encoder().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
    with refuses(CheckpointError, f"TransformersTextEncoder: cannot {told}"):
        TransformersTextEncoder(tmp_path)


def test_a_tokenizer_that_fails_at_words_it_does_not_know(tmp_path):
    make_encoder().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token": "<unk>"', '"unk_token": "<none>"'))
    encoder = TransformersTextEncoder(tmp_path)
    with refuses(CheckpointError, "TransformersTextEncoder: cannot tokenize 'zebra': "):
        encoder(["zebra"])


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kind", ["attacker/beacon", "flash_attention_2"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_cannot_name_attention_that_is_code_of_the_hub(field, kind, nested, tmp_path):
    make_encoder().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if nested:  # as in a model of text and images
        config = {"model_type": "clip", "text_config": {field: kind}}
    else:
        config[field] = kind
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        TransformersTextEncoder(str(tmp_path))
    expected = "expected attn_implementation to be eager, sdpa or flex_attention, got "
    assert f"{expected}{kind}." in str(caught.value)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_a_folder_may_name_attention_of_transformers(kind, tmp_path):
    encoder = tiny_text_encoder(["a"])
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attn_implementation": kind}))
    loaded = TransformersTextEncoder(str(tmp_path))
    assert_close(loaded(["a"]).sentences, encoder(["a"]).sentences)
