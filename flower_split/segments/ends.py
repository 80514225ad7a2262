"""The bottom and the top as modules of their own, for split learning step by step."""

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from flower_split.segments.cuts import Cuts
from flower_split.segments.segment import Segment


class Bottom(Segment):
    """Embeddings and layers 0 … k-1 of a stock model.

    Args:
        model: The stock `…ForCausalLM` with stand-ins for everything else.
        cuts: Which layers those are.
        fingerprint: Of the uncut model.
    """

    def __init__(self, model: PreTrainedModel, cuts: Cuts, fingerprint: str) -> None:
        # Layer k passes its input through, so its answer is h1 also where k is 0.
        super().__init__(model, cuts, fingerprint, leaves=cuts.bottom_layers)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """h1, (B, T, H).

        Args:
            input_ids: (B, T).
            attention_mask: (B, T).
            position_ids: (B, T) or (1, T).
        """
        return self._through(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        )


class Top(Segment):
    """Layers n-m … n-1, final norm and head of a stock model.

    Args:
        model: The stock `…ForCausalLM` with stand-ins for everything else.
        cuts: Which layers those are.
        fingerprint: Of the uncut model.
    """

    def __init__(self, model: PreTrainedModel, cuts: Cuts, fingerprint: str) -> None:
        # Without top layers, the stand-in for the last layer hands h2 on to the norm.
        enters = min(cuts.top_range.start, cuts.num_layers - 1)
        super().__init__(model, cuts, fingerprint, enters=enters)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits (B, T, V), and the loss where there are labels.

        Args:
            hidden: h2, (B, T, H).
            attention_mask: (B, T).
            position_ids: (B, T) or (1, T).
            labels: (B, T), token ids, -100 where none is to be predicted; shifted here.
        """
        output = self._whole(
            hidden,
            inputs_embeds=hidden.detach(),
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=False,
            return_dict=True,
        )
        return CausalLMOutput(loss=output.loss, logits=output.logits)
