"""The LSTM over the words of many captions at once, without computing their padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def run_lstm(
    lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, initial: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Outputs (N, T, H) of ``lstm`` over ``inputs`` (N, T, E); zero beyond each row's length.

    Args:
        lstm: one layer, ``batch_first``.
        inputs: (N, T, E), padded at the end.
        lengths: (N,) on the CPU.
        initial: hidden and cell state, each (N, H); None for zeros.
    """
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    state = None if initial is None else (initial[0].unsqueeze(0), initial[1].unsqueeze(0))
    outputs, _ = lstm(packed, state)
    padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])
    return padded


def step_lstm(lstm: nn.LSTM, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the same layer: inputs (N, E), state (N, H) twice -> the next state."""
    input_weight, hidden_weight, input_bias, hidden_bias = lstm.all_weights[0]
    gates = torch.addmm(input_bias + hidden_bias, inputs, input_weight.t())
    return update_cell(torch.addmm(gates, hidden, hidden_weight.t()), cell)


def update_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden and cell state (N, H) from the summed gate inputs (N, 4H), as PyTorch's."""
    enter, forget, candidate, leave = gates.chunk(4, dim=1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def real_positions(lengths: Tensor, width: int) -> Tensor:
    """Mask (N, width), True where a row's position is shorter than its length."""
    return torch.arange(width).unsqueeze(0) < lengths.unsqueeze(1)
