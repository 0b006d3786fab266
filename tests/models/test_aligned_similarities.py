import torch
import torch.nn.functional as F
from helpers.assertions import assert_close
from helpers.contracts import draw, randomize_
from models.test_encoder import NUM_WORDS

from tmapdiff.models.aligned_similarities import Similarities


def test_similarities_are_the_cosines_of_each_space() -> None:
    similarities = randomize_(Similarities(5, (3, 2), words=True, metric=True))
    rows, words = draw(3, 7, 5), draw(3, 5, 5, seed=1)
    query = similarities.embed_query(words, NUM_WORDS)
    found = similarities(similarities.embed(rows), query)
    assert found.shape == (3, similarities.num_similarities, 7)
    for sample, length in enumerate(NUM_WORDS.tolist()):
        own = words[sample, :length]
        for place, space in enumerate((slice(0, 3), slice(3, 5))):
            each = torch.stack(
                [F.cosine_similarity(rows[sample][:, space], word[space][None]) for word in own]
            )
            sentence = own.mean(0)[None, space]
            of_sentence = F.cosine_similarity(rows[sample][:, space], sentence)
            assert_close(found[sample, place], of_sentence)
            assert_close(found[sample, 2 + place], each.amax(0))
            assert_close(found[sample, 4 + place], each.mean(0))
    unit, sentence = similarities.embed(rows), query.sentence
    down, up = (layer.weight for layer in similarities.of_rows)
    other_down, other_up = (layer.weight for layer in similarities.of_query)
    moved = sentence + sentence @ other_down.T @ other_up.T
    learned = torch.einsum("btc,bc->bt", unit + unit @ down.T @ up.T, moved) / 2
    assert_close(found[:, 6], learned)


def test_the_learned_metric_begins_as_the_mean_of_the_cosines() -> None:
    similarities = Similarities(5, (3, 2), metric=True)
    query = similarities.embed_query(draw(3, 5, 5), NUM_WORDS)
    found = similarities(similarities.embed(draw(3, 7, 5, seed=1)), query)
    assert_close(found[:, 2], found[:, :2].mean(1))
