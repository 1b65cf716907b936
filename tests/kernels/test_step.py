"""The beginning of a decode step."""

import torch


def test_begin_step(column):
    """Tokens become rows, positions count up, new pages are entered; padded rows change nothing."""
    embedding, table = column.randn(50, 72), torch.zeros(5, 4, dtype=torch.int32)
    tokens, positions = torch.tensor([7, 49, 0, 3, 11]), torch.tensor([31, 32, 5, 48, 0])
    slots = torch.tensor([3, 1, 4, 0, 4], dtype=torch.int32)
    pages = torch.tensor([9, 8, 0, 0, 0], dtype=torch.int32)
    state = [tensor.to(column.device) for tensor in (tokens, positions, table)]
    x, now = column.ops.begin_step(embedding, slots.to(column.device), pages.to(column.device), *state)
    assert torch.equal(x, embedding[tokens[slots.long()].to(column.device)])
    assert now.tolist() == [48, 32, 0, 31, 0]
    assert state[0].tolist() == [7, 49, 0, 3, 11]
    assert state[1].tolist() == [32, 33, 5, 49, 0]
    expected = torch.zeros(5, 4, dtype=torch.int32)
    expected[3, 3], expected[1, 2] = 9, 8
    assert torch.equal(state[2].cpu(), expected)
