"""DPP-Net's surrogate: a recurrent network that reads a cell layer by layer and tells its accuracy.

Dong et al., "DPP-Net", ECCV 2018, section 3.3: one LSTM with layer normalisation (Ba, Kiros, Hinton 2016), embeddings
and hidden state of size 128, embeddings uniform in [0, 1], a linear output whose bias starts at 2 and a sigmoid behind
it, Adam with a learning rate of 0.008. The bias is what the first cells reach on average (88 %), so that the surrogate
starts there. The loss is the mean absolute error, as in the progressive search that the paper builds on (Liu et al.,
"Progressive Neural Architecture Search", ECCV 2018).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latbench.training import threads
from latbench.with_torch import F, Tensor, nn, torch

SIZE, OUTPUT_BIAS, LEARNING_RATE = 128, 2.0, 0.008

Floats = npt.NDArray[np.float64]


class NormalisedLSTM(nn.Module):  # type: ignore[misc]
    """A cell of an LSTM: layer norms on what comes from the input, from the hidden state and from the memory."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        # Without torch's own first weights, which would advance the global random state.
        self.input, self.hidden = (nn.utils.skip_init(nn.Linear, size, 4 * size, bias=False) for _ in range(2))
        self.of_input, self.of_hidden, self.of_memory = (
            nn.LayerNorm(4 * size),
            nn.LayerNorm(4 * size),
            nn.LayerNorm(size),
        )
        for linear in (self.input, self.hidden):
            nn.init.uniform_(linear.weight, -(size**-0.5), size**-0.5, generator=generator)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of (n, size) inputs, hidden states and memories; gives the next two."""
        keep, write, new, out = (self.of_input(self.input(x)) + self.of_hidden(self.hidden(h))).chunk(4, dim=1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(self.of_memory(c)), c


class AccuracyModel(nn.Module):  # type: ignore[misc]
    """Sequences of up to any number of ``tokens`` different layers → a number between 0 and 1.

    A sequence is a row of token numbers, −1 behind its end. New ones depend on ``seed`` alone, and training on nothing
    but the weights and what it is given: no global random state is touched.
    """

    def __init__(self, tokens: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.rand(tokens, SIZE, generator=generator))
        self.cell = NormalisedLSTM(SIZE, generator)
        self.out = nn.utils.skip_init(nn.Linear, SIZE, 1)
        nn.init.uniform_(self.out.weight, -(SIZE**-0.5), SIZE**-0.5, generator=generator)
        nn.init.constant_(self.out.bias, OUTPUT_BIAS)

    def forward(self, sequences: Tensor) -> Tensor:
        """(n, longest) token numbers → (n,)."""
        h = c = self.embedding.new_zeros(len(sequences), SIZE)
        for step in sequences.T:
            there = (step >= 0)[:, None]
            next_h, next_c = self.cell(self.embedding[step.clamp(min=0)], h, c)
            h, c = torch.where(there, next_h, h), torch.where(there, next_c, c)
        return torch.sigmoid(self.out(h))[:, 0]

    @threads(1)  # Sums of other numbers of threads differ in the last bit, and a search that goes on must end the same.
    def learn(self, sequences: npt.NDArray[np.int64], accuracy: Sequence[float], steps: int) -> float:
        """Train on (n, longest) sequences and their (n,) accuracies, from the weights that are there.

        Gives the mean absolute error after the last step.
        """
        x, y = torch.from_numpy(sequences), torch.tensor(accuracy, dtype=torch.float32)
        optimiser = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)
        with torch.enable_grad():
            for _ in range(steps):
                optimiser.zero_grad()
                F.l1_loss(self(x), y).backward()
                optimiser.step()
        with torch.no_grad():
            return float(F.l1_loss(self(x), y))

    @threads(1)
    def tell(self, sequences: npt.NDArray[np.int64]) -> Floats:
        """Accuracies of (n, longest) sequences: (n,)."""
        with torch.no_grad():
            return np.asarray(self(torch.from_numpy(sequences)).numpy(), np.float64)

    def as_text(self) -> str:
        """All weights, bit for bit, as text."""
        flat = np.concatenate([p.detach().numpy().ravel() for p in self.parameters()])
        return b64encode(flat.astype("<f4").tobytes()).decode("ascii")

    def from_text(self, text: str) -> None:
        """Take the weights of :meth:`as_text`. Raises ValueError for those of another model."""
        flat = np.frombuffer(b64decode(text, validate=True), "<f4")
        parts = np.cumsum([p.numel() for p in self.parameters()])
        if len(flat) != parts[-1]:
            raise ValueError(f"{len(flat)} weights, not {parts[-1]}")
        with torch.no_grad():
            for p, part in zip(self.parameters(), np.split(flat, parts[:-1]), strict=True):
                p.copy_(torch.from_numpy(part.copy()).view_as(p))
