"""Tables, figures and timing: numbers beside the paper."""
