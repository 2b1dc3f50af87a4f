"""Tables and figures: numbers beside the paper."""
