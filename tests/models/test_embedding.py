"""Word vectors brought to a width, and the output that is tied to them."""

from __future__ import annotations

import pytest
import torch

from showtell.models.embedding import WordEmbedding
from showtell.models.output import OutputLayer
from showtell.text.vocabulary import PAD, SPECIALS
from showtell.training.optimization import Optimization

V = 9
IDS = torch.tensor([[5, PAD], [7, 5]])


def extended() -> WordEmbedding:
    return WordEmbedding(vocabulary_size=V, vector_width=2, width=6, extended=True)


def projected() -> WordEmbedding:
    return WordEmbedding(vocabulary_size=V, vector_width=2, width=6)


@pytest.mark.parametrize("embedding", [extended(), projected()])
def test_the_table_holds_what_each_word_is_read_as(embedding: WordEmbedding) -> None:
    assert embedding.table().shape == (V, 6)
    torch.testing.assert_close(embedding(IDS), embedding.table()[IDS])


def test_an_extended_embedding_begins_with_the_vectors() -> None:
    embedding = extended()
    glove = torch.randn(V - len(SPECIALS), 2)
    embedding.load_vectors(glove)
    table = embedding.table()
    torch.testing.assert_close(table[len(SPECIALS) :, :2], glove)
    assert not table[PAD].any()
    # Of full rank, where projected vectors keep the rank they came with.
    assert torch.linalg.matrix_rank(table) == 6
    plain = projected()
    centred = plain.table() - plain.projection.bias  # type: ignore[operator]
    assert torch.linalg.matrix_rank(centred) == 2


@pytest.mark.parametrize("width", [None, 4])
def test_vectors_as_wide_as_the_embedding_are_all_of_it(width: int | None) -> None:
    """So it is with learned words, where no vectors are loaded, and with wide GloVe."""
    embedding = WordEmbedding(vocabulary_size=V, vector_width=4, width=width, extended=True)
    assert [name for name, _ in embedding.named_parameters()] == ["vectors.weight"]
    torch.testing.assert_close(embedding(IDS), embedding.vectors.weight[IDS])


def test_an_extension_does_not_cut_the_vectors() -> None:
    with pytest.raises(ValueError, match="embedding_width=2 must be at least the 3"):
        WordEmbedding(vocabulary_size=V, vector_width=3, width=2, extended=True)


def test_a_tied_output_scores_by_the_product_with_each_embedding() -> None:
    torch.manual_seed(0)
    embedding, hidden = extended(), torch.randn(3, 4)
    output = OutputLayer(4, embedding, tied=True)
    output.bias.data.normal_()
    scores = output(hidden, embedding)
    for n in range(3):
        asked = output.projection.weight @ hidden[n]
        for word in range(V):
            expected = asked @ embedding(torch.tensor(word)) + output.bias[word]
            torch.testing.assert_close(scores[n, word], expected)


def test_a_tied_output_adds_no_matrix_of_the_vocabulary() -> None:
    own, tied = (OutputLayer(4, extended(), tied=tied) for tied in (False, True))
    assert sorted(tuple(p.shape) for p in own.parameters()) == [(V,), (V, 4)]
    assert sorted(tuple(p.shape) for p in tied.parameters()) == [(6, 4), (V,)]


def test_words_are_not_decayed() -> None:
    module = torch.nn.ModuleDict({"embedding": extended()})
    rules = Optimization(1e-3, None, 0.1, "constant", 0, 1.0, None, 0.0)
    decayed, plain = rules.optimizer(module).param_groups
    assert decayed["params"] == []
    assert len(plain["params"]) == 2
