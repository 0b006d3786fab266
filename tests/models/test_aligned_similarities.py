import torch
import torch.nn.functional as F
from helpers.assertions import assert_close
from helpers.contracts import draw
from models.test_encoder import NUM_WORDS

from tmapdiff.models.aligned_similarities import Similarities


def test_similarities_are_the_cosines_of_each_space() -> None:
    similarities = Similarities(5, (3, 2), words=True)
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
