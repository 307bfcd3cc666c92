"""Multi-head attention with every tensor of it in the open.

timm hides the attention map in a fused kernel. Here the same computation is written out, with a
slot for a quantizer on each operand of both products and a place to read the tensors that
MimiQ's losses compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from timm.layers import Attention

__all__ = ["ExposedAttention"]


class ExposedAttention(nn.Module):
    """timm's ``Attention`` written out; parameters keep their names.

    Dropout is left out: the model is only ever used in inference mode.

    Args:
        attention: The timm module whose parameters are taken over, not copied.
        name: Its dotted name, for messages.

    Attributes:
        query_quantizer, key_quantizer, probability_quantizer, value_quantizer: Slots on the
            operands of the two products; identities until quantizers are inserted.
        logits: Identity through which the raw products of queries and keys pass,
            ``(batch, heads, queries, keys)``: before softmax, prefix tokens included.
        head_outputs: Identity through which the weighted values pass,
            ``(batch, heads, tokens, head_dim)``: before concatenation and projection.

    Raises:
        UnsupportedModelError: The module takes a mask or holds parts that are unknown here.
    """

    def __init__(self, attention: Attention, name: str) -> None:
        super().__init__()
        _refuse_unknown_parts(attention, name)
        self.num_heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.qkv: nn.Module = attention.qkv
        self.q_norm: nn.Module = attention.q_norm
        self.k_norm: nn.Module = attention.k_norm
        self.norm: nn.Module = attention.norm
        # Added to timm in 2026; earlier versions have no gate.
        self.gate: nn.Module | None = getattr(attention, "gate", None)
        self.proj: nn.Module = attention.proj
        self.query_quantizer: nn.Module = nn.Identity()
        self.key_quantizer: nn.Module = nn.Identity()
        self.probability_quantizer: nn.Module = nn.Identity()
        self.value_quantizer: nn.Module = nn.Identity()
        self.logits: nn.Module = nn.Identity()
        self.head_outputs: nn.Module = nn.Identity()

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend over the tokens of ``x``, ``(batch, tokens, channels)``.

        Raises:
            UnsupportedModelError: A mask was passed, or causal attention asked for.
        """
        if attn_mask is not None or is_causal:
            raise UnsupportedModelError("attention", "attention masks are not supported")
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # The scale stands before the quantizer, so that in ONNX the dequantized query feeds its
        # product directly, and can be folded into the weights. The head similarity of the
        # logits does not see it: their maps are normalised to 0..1.
        query = self.query_quantizer(self.q_norm(query) * self.scale)
        key = self.key_quantizer(self.k_norm(key))
        logits = self.logits(query @ key.transpose(-2, -1))
        probabilities = self.probability_quantizer(logits.softmax(dim=-1))
        heads = self.head_outputs(probabilities @ self.value_quantizer(value))
        merged = self.norm(heads.transpose(1, 2).reshape(batch, tokens, -1))
        if self.gate is not None:
            merged = merged * self.gate(x).sigmoid()
        projected: Tensor = self.proj(merged)
        return projected


_KNOWN_PARTS = frozenset(
    {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
)


def _refuse_unknown_parts(attention: nn.Module, name: str) -> None:
    """A later timm may add a part; leaving it out would change the result without a word."""
    unknown = {part for part, _ in attention.named_children()} - _KNOWN_PARTS
    unknown |= {parameter for parameter, _ in attention.named_parameters(recurse=False)}
    if unknown:
        raise UnsupportedModelError(
            name, f"its attention has parts unknown to this version: {', '.join(sorted(unknown))}"
        )
