"""Routing: which adapter a row of the batch belongs to, told to the graph and remembered by the engine's KV cache.

The stock og.Engine knows nothing of adapters, so the choice travels in the only things it does know.

- The first id of a prompt is a *tag*: `number * vocabulary + token`, where `number % (slots + 1)` is the slot. Slot 0
  is the base, so that plain ids stay what they are; the graph takes slot and token apart again before the embedding.
  Logits keep their width, so no tag can be sampled, and the engine's penalties skip ids beyond the logits
  (`ApplyRepetitionPenaltyToLogits` of onnxruntime-genai and its CUDA kernel compare before they write). The prefix
  cache goes by ids and is thus separate per adapter; an adapter that takes over another's slot gets other numbers.
- One more attention layer, with a KV cache of its own, carries the slot along: the tagged token has a large key and
  the one-hot code of its slot as value, every other token has zeros. Attention from any later token of the sequence
  thus returns the code, in prefill, chunked prefill and decode alike; without a tag it returns zeros, the base.
- `code @ columns` is then a row's mask over the columns of a branch: one where the column is of the row's own adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from loraplex.server.engine.bank import NOBODY, Matrix
from loraplex.server.errors import BundleInvalid

MOST_IDS = 2**31
"""Token ids are 32-bit integers, which bounds the tags."""
ROUTE_LOGIT = 40.0
"""Attention score of the tagged token. All others score 0, so together they weigh under 1e-12 at any context length."""
_ATTENTION = ("GroupQueryAttention", "PagedAttention")
_SEQUENCE_INPUTS = {"GroupQueryAttention": (5, 6), "PagedAttention": (5, 6, 7, 16)}
"""The inputs of an attention node that say which rows belong together; the others concern RoPE, bias, norms, scales."""


def tag(prompt: Sequence[int], number: int, vocabulary: int) -> list[int]:
    """The prompt with its first id turned into a tag. The ids must lie below `vocabulary`."""
    return [number * vocabulary + prompt[0], *prompt[1:]]


def most_slots(config: Mapping[str, Any]) -> int:
    """How many adapters a graph can tell apart, by its parsed genai_config.json."""
    decoder = config["model"]["decoder"]
    width = int(decoder["num_key_value_heads"] * decoder["head_size"])
    return min(width, MOST_IDS // int(config["model"]["vocab_size"]) - 1)


class Routing:
    """Adds routing to a graph, for adapters in the slots 1 to `count`. Nodes are left unsorted."""

    def __init__(
        self, graph: onnx.GraphProto, config: dict[str, Any], count: int, constant: Callable[[str, Matrix], str]
    ) -> None:
        """Changes `graph` and `config`, the parsed genai_config.json. Raises BundleInvalid."""
        decoder = config["model"]["decoder"]
        self._graph = graph
        self._constant = constant
        self._heads: int = decoder["num_attention_heads"] // decoder["num_key_value_heads"]
        self._head_size: int = decoder["head_size"]
        self._width: int = decoder["num_key_value_heads"] * self._head_size
        if count > most_slots(config):
            raise BundleInvalid(f"this base routes at most {most_slots(config)} adapters, {count} were to be linked")
        self.dtype: np.dtype[Any] = next(
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in graph.input
            if value.name == "past_key_values.0.key"
        )
        self._count = count
        self._masks: dict[tuple[int, ...], str] = {}
        self._slots = ""
        self._selections: set[str] = set()
        self._selected_rows = _selected_rows(graph)
        self._read_tags(config["model"]["vocab_size"], count + 1)
        self._attend(decoder, count)

    def mask(self, owners: tuple[int, ...], source: str) -> str:
        """Name of the mask [rows of `source`, len(owners)] that opens the columns of each row's own adapter."""
        if owners not in self._masks:
            self._masks[owners] = self._make_mask(owners)
        return self._rows(self._masks[owners], source)

    def slots(self, source: str) -> str:
        """Name of the slots [rows of `source`, 1] of each row's adapter, as numbers of the activations' dtype."""
        if not self._slots:
            numbers = np.zeros((self._heads * self._width, 1), self.dtype)
            for owner in range(self._count):
                numbers[self._dimension(owner)] = owner + 1
            weight = self._constant("route/numbers", numbers)
            self._slots = self._node("MatMul", ["route/code", weight], "route/slots")
        return self._rows(self._slots, source)

    def _rows(self, name: str, source: str) -> str:
        """A tensor of all rows, or its selection where `source` has selected rows only."""
        if source not in self._selected_rows:
            return name
        selected = f"{name}/selected"
        if selected not in self._selections:
            self._selections.add(self._node("Gather", [name, "logits_indices"], selected, axis=0))
        return selected

    def _dimension(self, owner: int) -> int:
        """Where in the routing attention's output an adapter's code has its one."""
        # Query head h reads from KV head h // heads; the first that reads from this one will do.
        kv_head, dimension = divmod(owner, self._head_size)
        return kv_head * self._heads * self._head_size + dimension

    def _make_mask(self, owners: tuple[int, ...]) -> str:
        columns = np.zeros((self._heads * self._width, len(owners)), self.dtype)
        for column, owner in enumerate(owners):
            if owner != NOBODY:
                columns[self._dimension(owner), column] = 1
        name = f"route/mask_{len(self._masks)}"
        return self._node("MatMul", ["route/code", self._constant(f"{name}/columns", columns)], name)

    def _read_tags(self, vocabulary: int, slots: int) -> None:
        readers = [node for node in self._graph.node if "input_ids" in node.input]
        number, token = self._divide("input_ids", vocabulary, "route/token")
        self._divide(number, slots, "route/slot")
        for node in readers:
            node.input[:] = [token if name == "input_ids" else name for name in node.input]

    def _divide(self, dividend: str, divisor: int, remainder: str) -> tuple[str, str]:
        """Names of quotient and remainder; the latter is given."""
        size = self._constant(f"{remainder}/divisor", np.array(divisor, np.int64))
        quotient = self._node("Div", [dividend, size], f"{remainder}/quotient")
        whole = self._node("Mul", [quotient, size], f"{remainder}/whole")
        return quotient, self._node("Sub", [dividend, whole], remainder)

    def _attend(self, decoder: dict[str, Any], count: int) -> None:
        model = next((node for node in self._graph.node if node.op_type in _ATTENTION), None)
        if model is None:
            raise BundleInvalid("the base has no attention layer that routing knows")
        amplitude = np.sqrt(ROUTE_LOGIT / np.sqrt(self._head_size))
        key = np.zeros((count + 1, self._width), self.dtype)
        key[1:] = amplitude
        value = np.zeros_like(key)
        value[np.arange(1, count + 1), np.arange(count)] = 1
        query = np.full((count + 1, self._heads * self._width), amplitude, self.dtype)
        inputs = [
            self._node("Gather", [self._constant(f"route/{name}_table", table), "route/slot"], f"route/{name}")
            for name, table in (("query", query), ("key", key), ("value", value))
        ]
        layer: int = decoder["num_hidden_layers"]
        inputs += [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        inputs += [""] * (len(model.input) - len(inputs))
        for index in _SEQUENCE_INPUTS[model.op_type]:
            if index < len(model.input):
                inputs[index] = model.input[index]
        while not inputs[-1]:
            inputs.pop()
        self._graph.node.append(
            helper.make_node(
                model.op_type,
                inputs,
                ["route/code", f"present.{layer}.key", f"present.{layer}.value"],
                "route/attention",
                domain="com.microsoft",
                num_heads=self._heads * decoder["num_key_value_heads"],
                kv_num_heads=decoder["num_key_value_heads"],
                scale=float(1 / np.sqrt(self._head_size)),
            )
        )
        for values, prefix in ((self._graph.input, "past_key_values"), (self._graph.output, "present")):
            for part in ("key", "value"):
                added = onnx.ValueInfoProto()
                added.CopyFrom(next(value for value in values if value.name == f"{prefix}.0.{part}"))
                added.name = f"{prefix}.{layer}.{part}"
                values.append(added)
        decoder["num_hidden_layers"] = layer + 1
        for group in decoder.get("state_groups", []):
            if group["kind"] == "paged_kv":
                group["layer_ids"].append(layer)

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._graph.node.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output


def _selected_rows(graph: onnx.GraphProto) -> set[str]:
    """Tensors that have the rows of `logits_indices` only: those of a pruned LM head and of the layers behind it."""
    found: set[str] = set()
    for node in graph.node:
        if "logits_indices" in node.input or not found.isdisjoint(node.input):
            found.update(name for name in node.output if name)
    return found
