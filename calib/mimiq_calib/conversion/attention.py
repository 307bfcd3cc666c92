"""Multi-head attention with every tensor of it in the open.

timm hides the attention map in a fused kernel. Here the same computation is written out, with a
slot for a quantizer on each operand of both products and a place to read the tensors that
MimiQ's losses compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from timm.layers import Attention, AttentionRope

__all__ = ["ExposedAttention", "ExposedTokenAttention"]


class ExposedAttention(nn.Module):
    """What is the same in every attention: projections, slots, taps and the two products.

    Parameters keep timm's names. Dropout is left out: the model is only ever used in inference
    mode.

    Args:
        attention: The timm module whose parameters are taken over, not copied.
        name: Its dotted name, for messages.
        own_parameters: Names of parameters of the module itself that the subclass computes with.

    Attributes:
        qkv: The layer that makes queries, keys and values; None where three layers do.
        q_proj, k_proj, v_proj: The three layers; None where one makes all.
        query_quantizer, key_quantizer, probability_quantizer, value_quantizer: Slots on the
            operands of the two products; identities until quantizers are inserted.
        logits: Identity through which the raw products of queries and keys pass,
            ``(batch, heads, queries, keys)``: before position bias, mask and softmax, prefix
            tokens included.
        softmax: From logits to probabilities, over the keys.
        head_outputs: Identity through which the weighted values pass,
            ``(batch, heads, tokens, head_dim)``: before concatenation and projection.
        head_unit: What ``head_outputs`` is multiplied by to be that of the original model,
            ``(heads, 1, head_dim)``; None for ones. It takes no part in the computation.

    Raises:
        UnsupportedModelError: The module holds parts that are unknown here.
    """

    head_unit: Tensor | None

    def __init__(
        self, attention: nn.Module, name: str, *, own_parameters: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        _refuse_unknown_parts(attention, name, own_parameters)
        timm_attention: Any = attention
        self.num_heads: int = timm_attention.num_heads
        self.scale: float = timm_attention.scale
        self.qkv = _part(attention, "qkv")
        self.q_proj = _part(attention, "q_proj")
        self.k_proj = _part(attention, "k_proj")
        self.v_proj = _part(attention, "v_proj")
        self.q_norm = _part(attention, "q_norm") or nn.Identity()
        self.k_norm = _part(attention, "k_norm") or nn.Identity()
        self.norm = _part(attention, "norm") or nn.Identity()
        # Added to timm in 2026; earlier versions have no gate.
        self.gate = _part(attention, "gate")
        self.proj = attention.get_submodule("proj")
        self.query_quantizer: nn.Module = nn.Identity()
        self.key_quantizer: nn.Module = nn.Identity()
        self.probability_quantizer: nn.Module = nn.Identity()
        self.value_quantizer: nn.Module = nn.Identity()
        self.logits: nn.Module = nn.Identity()
        self.softmax: nn.Module = nn.Softmax(dim=-1)
        self.head_outputs: nn.Module = nn.Identity()
        # A buffer, so that a training that is resumed and a run that is loaded have it.
        self.register_buffer("head_unit", None)

    def input_layers(self) -> list[nn.Module]:
        """Every layer that takes the input of the attention."""
        layers = (self.qkv, self.q_proj, self.k_proj, self.v_proj, self.gate)
        return [layer for layer in layers if layer is not None]

    def rows_of(self, what: Literal["key", "value"]) -> tuple[nn.Linear, slice] | None:
        """The layer that makes the keys or the values, and which rows of its weight do.

        Returns:
            None where that is no Linear, or no longer one because it is quantized.
        """
        own = self.k_proj if what == "key" else self.v_proj
        if isinstance(own, nn.Linear):
            return own, slice(None)
        if isinstance(self.qkv, nn.Linear):
            size = self.qkv.out_features // 3
            first = size if what == "key" else 2 * size
            return self.qkv, slice(first, first + size)
        return None

    def attend(
        self, x: Tensor, position_bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend over the tokens of ``x``, ``(batch, tokens, channels)``.

        Args:
            x: Input of the attention.
            position_bias: Added to the logits, ``(heads, tokens, tokens)``.
            mask: Added to the logits, ``(windows, tokens, tokens)``; the batch goes through the
                windows over and over.
        """
        query, key, value = self._project(x)
        # The scale stands before the quantizer, so that in ONNX the dequantized query feeds its
        # product directly, and can be folded into the weights. The head similarity of the
        # logits does not see it: their maps are normalised to 0..1.
        query = self.query_quantizer(self.q_norm(query) * self.scale)
        key = self.key_quantizer(self.k_norm(key))
        logits = self.logits(query @ key.transpose(-2, -1))
        if position_bias is not None:
            logits = logits + position_bias
        if mask is not None:
            # Not added to the bias before: together they would be heads times as large.
            by_window = logits.unflatten(0, (-1, len(mask))) + mask[:, None]
            logits = by_window.flatten(end_dim=1)
        probabilities = self.probability_quantizer(self.softmax(logits))
        heads = self.head_outputs(probabilities @ self.value_quantizer(value))
        batch, tokens, _ = x.shape
        merged = self.norm(heads.transpose(1, 2).reshape(batch, tokens, -1))
        if self.gate is not None:
            merged = merged * self.gate(x).sigmoid()
        projected: Tensor = self.proj(merged)
        return projected

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(batch, heads, tokens, head_dim)`` each."""
        batch, tokens, _ = x.shape
        if self.qkv is not None:
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            return query, key, value
        query, key, value = (
            layer(x).reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
            if layer is not None
        )
        return query, key, value


class ExposedTokenAttention(ExposedAttention):
    """timm's ``Attention`` over all tokens, and ``AttentionRope`` where nothing rotates.

    Args:
        attention: The timm module whose parameters are taken over, not copied.
        name: Its dotted name, for messages.

    Raises:
        UnsupportedModelError: The module holds parts that are unknown here, or several queries
            share a key.
    """

    def __init__(self, attention: Attention | AttentionRope, name: str) -> None:
        super().__init__(attention, name)
        if getattr(attention, "num_kv_groups", 1) != 1:
            raise UnsupportedModelError(name, "it has fewer heads of keys than of queries")

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend over the tokens of ``x``, ``(batch, tokens, channels)``.

        Raises:
            UnsupportedModelError: A mask was passed, or causal attention asked for.
        """
        if attn_mask is not None or is_causal:
            raise UnsupportedModelError("attention", "attention masks are not supported")
        return self.attend(x)


_KNOWN_PARTS = frozenset(
    {
        *("qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm"),
        *("softmax", "attn_drop", "norm", "gate", "proj", "proj_drop"),
    }
)


def _refuse_unknown_parts(attention: nn.Module, name: str, own_parameters: frozenset[str]) -> None:
    """A later timm may add a part; leaving it out would change the result without a word."""
    unknown = {part for part, _ in attention.named_children()} - _KNOWN_PARTS
    parameters = {parameter for parameter, _ in attention.named_parameters(recurse=False)}
    unknown |= parameters - own_parameters
    if unknown:
        raise UnsupportedModelError(
            name, f"its attention has parts unknown to this version: {', '.join(sorted(unknown))}"
        )


def _part(attention: nn.Module, name: str) -> nn.Module | None:
    part = getattr(attention, name, None)
    return part if isinstance(part, nn.Module) else None
