"""What every encoder is made of: attention, pre-norm transformer blocks, learned queries."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Runs ``function(*tensors)`` without keeping its inner activations, as `torch.utils.checkpoint.checkpoint` does.
Checkpoint = Callable[..., Tensor | tuple[Tensor, ...]]


class Attention(nn.Module):
    """Multi-head scaled dot-product attention, onto itself or onto a context of another width."""

    def __init__(self, size: int, heads: int, context_size: int | None = None, dropout: float = 0.0):
        super().__init__()
        if size % heads:
            raise ValueError(f"hidden_size {size} must be a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(context_size or size, 2 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``x`` [B, N, D] onto ``context`` [B, M, C]; ``bias`` [B, M] is added to the scores of each key."""
        context = x if context is None else context
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), *self.key_value(context).chunk(2, dim=-1))
        )
        mask = None if bias is None else bias[:, None, None, :].to(query.dtype)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers around a GELU."""

    def __init__(self, size: int, hidden_size: int, out_size: int, dropout: float = 0.0):
        super().__init__(nn.Linear(size, hidden_size), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_size, out_size))


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and MLP, each added to its input (Xiong et al. 2020)."""

    def __init__(self, size: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = Attention(size, heads, dropout=dropout)
        self.mlp = Mlp(size, 4 * size, size, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Checkpointed(nn.ModuleList):
    """Blocks run one after the other, each under ``checkpoint`` where one has been set.

    A block takes the running tensors and gives them back changed; behind them it may take constants, which need no
    gradient and are the same for all blocks.
    """

    checkpoint: Checkpoint | None = None

    def forward(self, *running: Tensor, constants: tuple[Tensor, ...] = ()) -> Tensor | tuple[Tensor, ...]:
        for block in self:
            if self.checkpoint is not None and self.training and torch.is_grad_enabled():
                # A reentrant checkpoint over inputs that all are constants would drop the block's own gradients.
                if not any(x.requires_grad for x in running):
                    running = (running[0].detach().requires_grad_(), *running[1:])
                # Constants are bound, not passed: DeepSpeed's cpu_checkpointing empties the tensors it is passed.
                out = self.checkpoint(functools.partial(_with_constants, block, constants), *running)
            else:
                out = block(*running, *constants)
            running = out if isinstance(out, tuple) else (out,)
        return running[0] if len(running) == 1 else running


def _with_constants(block: nn.Module, constants: tuple[Tensor, ...], *running: Tensor):
    return block(*running, *constants)


class Queries(nn.Module):
    """A few learned queries that read a sequence of any length into a fixed number of tokens of another width."""

    def __init__(self, tokens: int, size: int, heads: int, out_size: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(tokens, size).normal_(std=0.02))
        self.norm = nn.LayerNorm(size)
        self.attention = Attention(size, heads)
        self.out = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, out_size))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` [B, N, D] to [B, tokens, out_size]; ``bias`` [B, N] as in `Attention`."""
        queries = self.queries.expand(len(x), -1, -1)
        return self.out(queries + self.attention(queries, self.norm(x), bias))


class Absent(nn.Module):
    """The learned stand-in for the tokens of a modality that a sample lacks."""

    def __init__(self, tokens: int, size: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, size).normal_(std=0.02))

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """``tokens`` [B, n, size] where ``present`` [B], the stand-in elsewhere."""
        return torch.where(present[:, None, None], tokens, self.tokens.to(tokens.dtype))


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype a module computes in. Asks `parameters`, because naming a weight would fetch it under ZeRO-3."""
    return next(module.parameters()).dtype


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Sinusoidal encoding [..., size] of real positions [...] (Vaswani et al. 2017), in float32."""
    half = torch.arange(size // 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * torch.exp(-half * (math.log(1e4) / (size // 2)))
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, size % 2))


def sample_mask(batch: int, length: int, share: float, device: torch.device) -> Tensor:
    """Boolean [batch, length]: ``round(share × length)`` random positions of each row are True."""
    count = round(share * length)
    rank = torch.rand(batch, length, device=device).argsort(dim=1).argsort(dim=1)
    return rank < count
