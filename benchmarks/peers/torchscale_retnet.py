"""torchscale's RetNetDecoder, the official RetNet: built, initialised and run in its own best way.

Its chunkwise form equals the other two only for a vanishing epsilon of the norms, because the input of its head norm
has another scale. Bars that use it set `norm_eps` to 1e-12 on both sides.
"""

import torch
from torch import Tensor, nn
from torchscale.architecture.config import RetNetConfig as TorchscaleConfig
from torchscale.architecture.retnet import RetNetDecoder

from benchmarks.peers import pairs
from retbench.architectures.configs import ModelConfig

CHUNK_SIZE = 512  # torchscale's default recurrent_chunk_size


def build_peer(config: ModelConfig, *, seed: int, chunkwise: bool = False) -> RetNetDecoder:
    """Build a torchscale decoder of `config`'s shapes with its own initialisation and norm weights other than one.

    Args:
        config: Variant `torchscale`, decay `eq8`.
        seed: Same seed, same weights, in either form.
        chunkwise: Use its chunkwise form (which cannot decode) instead of parallel and recurrent.
    """
    arguments = TorchscaleConfig(
        vocab_size=config.vocab_size,
        decoder_embed_dim=config.d_model,
        decoder_value_embed_dim=pairs.retention_of(config).value_dim,
        decoder_ffn_embed_dim=pairs.ffn_of(config).ffn_dim,
        decoder_layers=config.num_layers,
        decoder_retention_heads=config.mixer.num_heads,
        activation_fn="swish",  # as its fairseq architectures; the default is gelu
        layernorm_eps=config.norm_eps,
        chunkwise_recurrent=chunkwise,
        recurrent_chunk_size=CHUNK_SIZE,
    )
    torch.manual_seed(seed)
    peer = RetNetDecoder(arguments, nn.Embedding(config.vocab_size, config.d_model)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return peer


def last_logits(peer: RetNetDecoder, tokens: Tensor) -> Tensor:
    """Return the logits (B, 1, N) of the last token: the features of all tokens, then the head for one."""
    features = peer(tokens, features_only=True)[0]
    logits: Tensor = peer.output_layer(features[:, -1:])
    return logits


class RecurrentDecoding:
    """torchscale's recurrent form, one token at a time.

    torchscale takes the whole history at every step and uses its length and its last token. Here the history is a
    prefix of one tensor that is allocated in advance, so that passing it costs nothing.

    Args:
        peer: A decoder that is not chunkwise.
        capacity: Largest number of tokens of history.
    """

    def __init__(self, peer: RetNetDecoder, capacity: int) -> None:
        self.peer = peer
        self.history = torch.zeros(1, capacity, dtype=torch.int64)
        self.position = 0
        self.state: dict[int, dict[str, Tensor]] = {}

    def step(self, token: Tensor) -> Tensor:
        """Process one token (1, 1) and return its logits (1, 1, N)."""
        self.history[:, self.position : self.position + 1] = token
        self.position += 1
        logits: Tensor = self.peer(self.history[:, : self.position], incremental_state=self.state)[0]
        return logits

    def mark(self) -> tuple[int, dict[int, dict[str, Tensor]]]:
        """Return a mark for `rewind`. torchscale makes new tensors at every step, so that none has to be copied."""
        return self.position, {layer: dict(parts) for layer, parts in self.state.items()}

    def rewind(self, mark: tuple[int, dict[int, dict[str, Tensor]]]) -> None:
        """Return to `mark`."""
        self.position = mark[0]
        self.state = {layer: dict(parts) for layer, parts in mark[1].items()}
