"""Bidirectional LSTM over sequences of different lengths."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tmapdiff.kernels._derivatives import is_transformed

# Channels per direction up to which a CPU is faster with padding than with packing.
_SMALL = 64


class PaddedLSTM(nn.LSTM):
    """A bidirectional LSTM over padded sequences, whose states do not depend on the padding.

    On a CPU, torch's LSTM runs packed sequences step by step, in many small operations. Small
    LSTMs therefore run over the padded sequences, with one oneDNN call per direction. Under
    `torch.func` they do so in operations that can be transformed.

    Args:
        input_size: Channels of the input.
        hidden_size: Channels of each direction.
        num_layers: Layers.

    Shape:
        - x: (B, L, input_size)
        - lengths: (B,), integer, 1 to L, on the CPU
        - returns: (B, L, 2 * hidden_size), 0 after the end of a sequence
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__(input_size, hidden_size, num_layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the states; see the class."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Many CPUs lack torch's LSTM in half precision.
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.to(self.all_weights[0][0].dtype), lengths)
        return self._padded(x, lengths) if self._goes_over_padding(x) else self._packed(x, lengths)

    def _goes_over_padding(self, x: Tensor) -> bool:
        return is_transformed(x, *self.parameters()) or bool(
            self.hidden_size <= _SMALL
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and torch.backends.mkldnn.enabled
            and torch.backends.mkldnn.is_available()
            and not torch.compiler.is_compiling()
        )

    def _packed(self, x: Tensor, lengths: Tensor) -> Tensor:
        # The LSTM expects the longest first. Sorting them itself, it would wait for the device.
        lengths, order = lengths.sort(descending=True)
        order = order.to(x.device, non_blocking=True)
        packed = pack_padded_sequence(x[order], lengths, batch_first=True)
        states, _ = pad_packed_sequence(
            super().forward(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return states[order.argsort()]

    def _padded(self, x: Tensor, lengths: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        behind = (place >= lengths[:, None])[..., None]
        # The backward direction starts at the last word, and also has its padding at the end.
        backwards = torch.where(behind[..., 0], place, lengths[:, None] - 1 - place)[..., None]
        x = x.masked_fill(behind, 0)
        start = x.new_zeros(1, x.shape[0], self.hidden_size)
        for layer in range(self.num_layers):
            forth, back = self.all_weights[2 * layer : 2 * layer + 2]
            states = _one_direction(x, start, forth)
            reversed_states = _one_direction(_ordered(x, backwards), start, back)
            x = torch.cat([states, _ordered(reversed_states, backwards)], dim=-1)
        return x.masked_fill(behind, 0)


def _ordered(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places.expand(-1, -1, x.shape[2]))


def _one_direction(x: Tensor, start: Tensor, weights: Sequence[Tensor]) -> Tensor:
    # Exports use plain operations, too: torch's LSTM would fix the batch size.
    exports = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if exports or is_transformed(x, *weights):
        return _step_by_step(x, start[0], *weights)
    states: Tensor = torch.lstm(
        x,
        (start, start),
        tuple(weights),
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=torch.is_grad_enabled(),
        bidirectional=False,
        batch_first=True,
    )[0]
    return states


def _step_by_step(
    x: Tensor, state: Tensor, of_input: Tensor, of_state: Tensor, bias: Tensor, other: Tensor
) -> Tensor:
    """Run in plain operations, as torch's LSTM has neither forward derivatives nor `vmap`."""
    cell, states = state, []
    for given in F.linear(x, of_input, bias + other).unbind(dim=1):
        gates = given + F.linear(state, of_state)
        enters, stays, new, leaves = gates.chunk(4, dim=-1)
        cell = stays.sigmoid() * cell + enters.sigmoid() * new.tanh()
        state = leaves.sigmoid() * cell.tanh()
        states.append(state)
    return torch.stack(states, dim=1)
