"""Images with labels and with the truth about explanations: masks, boxes, parts. Knows no model."""
