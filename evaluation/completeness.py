"""Does the evidence add up to what it explains?"""

from torch import Tensor

from ..heads import Contract, Explained


def completeness_gap(explained: Explained, contract: Contract) -> Tensor:
    """|sum of maps + offset − logit|, relative to the image's largest |logit|: `b k`, 0 for an exact head.

    For `Contract.PROBABILITY` the probabilities stand in for the logits.
    """
    quantity = contract.explained_quantity(explained.logits)
    total = explained.maps.sum((-2, -1)) + explained.offset
    gap = (total - quantity.gather(1, explained.classes)).abs()
    return gap / quantity.abs().amax(1, keepdim=True)
