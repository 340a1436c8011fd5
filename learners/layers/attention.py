"""``nn.MultiheadAttention`` of which heads or embedding channels are missing.

The original insists on as many channels in its heads as its embedding has. This one takes all
widths from its weights. Its parameters, names and signature are those of the original.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_env.errors import InputDataError


def can_be_cut(module: nn.Module) -> bool:
    """Whether :class:`CutMultiheadAttention` can take a module's place."""
    return (
        type(module) in (nn.MultiheadAttention, CutMultiheadAttention)
        and isinstance(getattr(module, "in_proj_weight", None), Tensor)
        and module.bias_k is None
        and not module.add_zero_attn
    )


class CutMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention whose widths are those of its weights; made by :meth:`adopt`."""

    @classmethod
    def adopt(cls, module: nn.MultiheadAttention) -> None:
        """Turns a copy with sliced weights into one, in place."""
        module.__class__ = cls
        module.num_heads = len(module.in_proj_weight) // (3 * module.head_dim)
        module.embed_dim = module.kdim = module.vdim = module.out_proj.weight.shape[0]
        module.out_proj.out_features, module.out_proj.in_features = module.out_proj.weight.shape
        # Tells encoder layers that their fused kernel does not fit.
        module._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what the original does; ``is_causal`` is a hint that needs its mask, as there.

        Raises:
            InputDataError: If a mask has an entry for each of other heads, or is missing.
        """
        if is_causal and attn_mask is None:
            raise InputDataError("Expected attn_mask with is_causal=True, got none: pass both.")
        is_batched = query.dim() == 3
        given = [query, key, value]
        if not is_batched:
            given = [x.unsqueeze(0) for x in given]
        elif not self.batch_first:
            given = [x.transpose(0, 1) for x in given]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for x, w, b in zip(given, weights, biases, strict=True)
        )
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        scores: Tensor | None = None
        if need_weights:
            products = (q * self.head_dim**-0.5) @ k.transpose(2, 3)
            scores = F.dropout((products if mask is None else products + mask).softmax(-1), dropout)
            heads = scores @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if scores is not None and average_attn_weights:
            scores = scores.mean(1)
        if not is_batched:
            return out[0], None if scores is None else scores[0]
        return out if self.batch_first else out.transpose(0, 1), scores

    def _mask(
        self, query: Tensor, attention: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """Returns both masks as numbers to be added, to broadcast to (batch, heads, L, S)."""
        found: Tensor | None = None
        if attention is not None:
            found = _added(attention, query)
            if found.dim() == 3:
                if len(found) != len(query) * self.num_heads:
                    raise InputDataError(
                        f"Expected a mask for all heads alike, or for each of the {self.num_heads} "
                        f"that were not cut, got one of shape {tuple(attention.shape)}."
                    )
                found = found.view(len(query), self.num_heads, *found.shape[1:])
        if padding is not None:
            hidden = _added(padding if padding.dim() == 2 else padding[None], query)[:, None, None]
            found = hidden if found is None else found + hidden
        return found


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
